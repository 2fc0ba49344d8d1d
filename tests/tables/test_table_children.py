"""Signals to the runner: each reaches the child once, whenever it comes."""

from __future__ import annotations

import signal
from subprocess import Popen
from typing import Any

import pytest

import mcan.tables.children
from mcan.tables.children import Children, Interrupted

INT, TERM = signal.SIGINT, signal.SIGTERM


class Recorder:
    """A program that ends by itself and notes the signals sent to it."""

    def __init__(self, early: list[int], late: list[int]) -> None:
        self.received: list[int] = []
        self._late = late
        for number in early:
            signal.raise_signal(number)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send_signal(self, number: int) -> None:
        self.received.append(number)

    def wait(self) -> int:
        for number in self._late:
            signal.raise_signal(number)
        return 0


class Watched(Children):
    """Gets signals right after it has noted its child."""

    noted: tuple[int, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_child" and value is not None:
            for number in self.noted:
                signal.raise_signal(number)


@pytest.mark.parametrize(
    ("early", "noted", "late"),
    [
        ([INT], [], []),
        ([INT, INT], [], []),
        ([INT, TERM], [], []),
        ([], [INT], []),
        ([TERM], [INT], []),
        ([INT], [], [INT]),
        ([], [], [TERM, INT]),
    ],
)
def test_each_signal_reaches_the_child_once(monkeypatch, early, noted, late):
    """A second one is an order to stop at once: one that is lost or doubled does harm."""
    started: list[Recorder] = []

    def start(*_: object, **options: object) -> Recorder:
        started.append(Recorder(early, late))
        return started[0]

    monkeypatch.setattr(mcan.tables.children, "Popen", start)
    with Watched() as children:
        children.noted = tuple(noted)
        with pytest.raises(Interrupted) as stop:
            children.run(["program"], 0)
        with pytest.raises(Interrupted):
            children.run(["another"], 0)
    assert len(started) == 1
    assert sorted(started[0].received) == sorted([*early, *noted, *late])
    assert stop.value.exit_status == 128 + (*early, *noted, *late)[-1]


def test_the_child_has_ended_when_the_runner_stops(monkeypatch):
    """Also where two signals came before it could be told of any."""
    started: list[Popen[bytes]] = []

    def start(*args: Any, **options: Any) -> Popen[bytes]:
        signal.raise_signal(TERM)
        started.append(Popen(*args, **{**options, "pass_fds": ()}))
        signal.raise_signal(TERM)
        return started[0]

    monkeypatch.setattr(mcan.tables.children, "Popen", start)
    with Children() as children, pytest.raises(Interrupted):
        children.run(["sleep", "60"], 0)
    assert started[0].returncode == -TERM
