"""Programs run one at a time; SIGINT and SIGTERM are passed on to the one that runs."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from subprocess import Popen
from types import FrameType, TracebackType


class Interrupted(Exception):  # noqa: N818 (not an error: someone asked)
    """SIGINT or SIGTERM came; the child that ran then has ended."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


class Children:
    """Within its context, a signal ends the child first and then raises `Interrupted` here.

    Children have sessions of their own, since a Ctrl-C would reach them a second time otherwise,
    and training takes two for an order to stop at once.
    """

    def __init__(self) -> None:
        self._child: Popen[bytes] | None = None
        self._signal: int | None = None
        self._early: list[int] = []

    def __enter__(self) -> Children:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._pass_on) for number in numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str], keep: int) -> int:
        """Run a program to its end, which also holds the descriptor `keep`; its exit status.

        Raises `Interrupted`; `OSError` where it cannot be started.
        """
        self.check()
        with Popen(command, pass_fds=(keep,), start_new_session=True) as child:
            self._child = child
            # What came while it was being started; from here on, the handler has a child.
            for number in self._early:
                child.send_signal(number)
            status = child.wait()
            self._child = None
        self.check()
        return status

    def sleep(self, seconds: float) -> None:
        """Wait; raises `Interrupted`."""
        self.check()
        time.sleep(seconds)
        self.check()

    def check(self) -> None:
        """Raise `Interrupted` where a signal has come."""
        if self._signal is not None:
            raise Interrupted(self._signal)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if self._child is None:
            self._early.append(number)
        else:
            self._child.send_signal(number)
