"""Mistakes of the user, told in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Bad input: one clear sentence (which file, which key or id, what was expected).

    Entry points print the sentence and exit with `exit_code`; no traceback is shown.
    """

    exit_code = 2


class DataError(UserError):
    """A prepared dataset, store, word-vector file or raw dataset file is not as expected."""


class ConfigError(UserError):
    """A config file or an override is not as expected."""


class RunError(UserError):
    """A run folder or checkpoint is missing, damaged, or does not fit what was asked."""


class TrainingError(UserError):
    """Training cannot go on (non-finite loss, full disk); what was written before is intact."""

    exit_code = 1


def fail(error: UserError) -> NoReturn:
    """Print `error` on standard error and exit with its code."""
    sys.stderr.write(f"error: {error}\n")
    raise SystemExit(error.exit_code)


def command(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point: its status is the exit status, a `UserError` is one sentence."""
    try:
        status = main()
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None
    raise SystemExit(status or 0)
