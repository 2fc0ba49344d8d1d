"""Errors of the user, reported in one line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

from mcan.console import close_bars, expand_home, message, one_line


class UserError(Exception):
    """Bad input: one clear line (which file, which key or id, what was expected)."""

    exit_code = 2

    def __str__(self) -> str:
        # Libraries report in several lines; names and values come from files.
        return one_line(" ".join(super().__str__().splitlines()))


class DataError(UserError):
    """A prepared dataset, store, word-vector file or raw dataset file is not as expected."""


class ConfigError(UserError):
    """A config file or an override is not as expected."""


class RunError(UserError):
    """A run folder or checkpoint is missing, damaged, or does not fit what was asked."""


class BusyError(RunError):
    """Another process trains the run."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: try again later."""


class TrainingError(UserError):
    """Training cannot go on (non-finite loss, full disk); what was written before is intact."""

    exit_code = 1


def shorten(items: Iterable[object], most: int = 10) -> str:
    """The items of a list in a message, the first `most` of them: "a, b and 2,990 more"."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def need(package: str, where: object) -> None:
    """Raise `DataError` unless the package of the extra of its name is installed."""
    if find_spec(package) is None:
        raise DataError(f"{where}: needs {package}: pip install -e '.[{package}]'")


def plural(count: int, noun: str) -> str:
    """A count in a message: "1 image", "2,990 images"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def command(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point: its status is the exit status.

    A `UserError` or an `OSError` (a full disk, a missing permission) is one line and no traceback.
    `~/` in an argument, also after `key=`, is the home folder, as shells replace it in some places.
    """
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:  # closed by the caller; a file must not take its number
            setattr(sys, stream, Path(os.devnull).open(mode))  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):  # names of files need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    home = expand_home("~/")
    sys.argv = [re.sub(r"^([\w.-]+=)?~/", lambda m: (m[1] or "") + home, a) for a in sys.argv]
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        message("interrupted")
        status = 130
    except BrokenPipeError:  # whoever read standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 1
    except (UserError, OSError) as error:
        close_bars()
        message(f"error: {one_line(str(error))}")
        status = getattr(error, "exit_code", 2)
    raise SystemExit(status or 0)
