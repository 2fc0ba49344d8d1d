"""SIGTERM and SIGINT ask the loop to stop after the step in progress."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Which signal asked to stop, if any; `training` says whether there is a step to finish."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.training = False

    @property
    def exit_status(self) -> int:
        """0 after SIGTERM (a scheduler takes the machine back), 130 after SIGINT (Ctrl-C)."""
        return 130 if self.signal == signal.SIGINT else 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Record SIGTERM and SIGINT instead of dying; before training, or asked twice, stop at once."""
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (request.signal == number or not request.training):
            raise KeyboardInterrupt
        if not request.training:
            sys.stderr.write("stopped before training began\n")
            raise SystemExit(0)
        request.signal = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_in_worker(_: int) -> None:
    """Loader workers leave stopping to the process that trains: they end when it ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
