"""What programs print on standard error, and kinds of command-line arguments."""

from __future__ import annotations

import os
import re
import sys
import threading
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentTypeError
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from tqdm import tqdm

# By default a thread refreshes bars, and all forked processes share one lock: a worker that is
# killed while it holds that lock would stop every bar, and with it the run, forever.
tqdm.monitor_interval = 0
tqdm.set_lock(threading.RLock())


class _Messages:
    """Standard error. A run must not end because nobody reads its messages (a closed pipe)."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:  # what tqdm asks of a stream: isatty, encoding
        return getattr(sys.stderr, name)


MESSAGES: Any = _Messages()


def message(text: str) -> None:
    """One line on standard error, above a progress bar."""
    tqdm.write(text, file=MESSAGES)
    MESSAGES.flush()


def close_bars() -> None:
    """Close the bars of reads that failed: each would be drawn again below the next message."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


@cache
def message_once(text: str) -> None:
    """A message that is printed once, also if a file is read again."""
    message(text)


def progress(*args: Any, **options: Any) -> tqdm[Any]:
    """`tqdm.tqdm`: a moving line in a terminal, now and then a line in a log file."""
    interval = 0.1 if sys.stderr.isatty() else 30.0
    defaults = {"mininterval": interval, "dynamic_ncols": True, "file": MESSAGES}
    return tqdm(*args, **(defaults | options))


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a text table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip()
        for first, *cells in rows
    )


class DefaultsInHelp(ArgumentDefaultsHelpFormatter):
    """Ends the help of an option with its default, if there is one."""

    def _get_help_string(self, action: Action) -> str | None:
        if isinstance(action.default, list) and action.default:
            return f"{action.help} (default: {' '.join(action.default)})"
        nothing = action.default in (None, []) or action.default is False
        return action.help if nothing else super()._get_help_string(action)


def printable(text: str, most: int = 400) -> str:
    """The text in one line of at most `most` characters, with a sign for each one that cannot be
    shown or controls a terminal."""
    text, sign = text if len(text) <= most else f"{text[: most - 1]}…", "\N{REPLACEMENT CHARACTER}"
    return "".join(c if c.isprintable() else " " if c.isspace() else sign for c in text)


def one_line(text: str) -> str:
    """All of the text in one line; characters that cannot be shown are escaped."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)


def expand_home(path: str) -> str:
    """`path` with `~/` or `~name/` at its start replaced, if there is such a user."""
    return os.path.expanduser(path)  # noqa: PTH111 (pathlib's raises for an unknown user)


def natural(text: str, least: int = 0) -> int:
    """An argument that is a whole number of at least `least`."""
    if not text.isdecimal() or int(text) < least:
        raise ArgumentTypeError(f"{text} is not a whole number of at least {least}")
    return int(text)


def positive(text: str) -> int:
    return natural(text, least=1)


def shard(text: str) -> tuple[int, int]:
    """An argument `I/N`: the I-th of N parts, from 1."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N")
    return int(found[1]), int(found[2])
