"""A table of tiny runs, and runners on it in processes of their own that may be killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs import ROOT, Lab, Patch, Result, entry_point, make_lab

import mcan.report.write
import mcan.tables.children
from mcan.errors import command

REPRODUCE = "scripts/reproduce"
TABLE = """\
title: Tiny
source: nobody
verified: false
dataset: synthetic
base: config.yaml
split: val
columns: [overall, yes/no, number, other]
seeds: [0, 1]
rows:
  - name: wide
    overrides: [model.hidden_size=16, train.epochs=2]
    published: {overall: 50.0}
  - name: narrow
    overrides: [model.hidden_size=4, train.epochs=2]
"""


@dataclass
class TableLab(Lab):
    """A `Lab` with `table.yaml`: two rows, two seeds. Without `draws`, table.png stays empty."""

    draws: bool = False

    def reproduce(self, *args: str, patch: Patch | None = None) -> Result:
        return self.start(*args, patch=patch)()

    def start(
        self, *args: str, patch: Patch | None = None, number: int = 0
    ) -> Callable[[], Result]:
        def both() -> None:
            fork_children()
            if not self.draws:
                mcan.report.write.png = lambda _: b""
            if patch is not None:
                patch()

        for script in ("train", "eval"):
            entry_point(script)
        return self.launch(REPRODUCE, ["table.yaml", *args], both, number=number)

    def folders(self, runs: str = "runs/reproduce") -> list[Path]:
        return sorted(path.parent for path in (self.folder / runs).glob("*/config.yaml"))

    def starts(self, runs: str = "runs/reproduce") -> list[int]:
        """How often each run's training was started or resumed."""
        return [
            len(json.loads((run / "environment.json").read_text())["starts"])
            for run in self.folders(runs)
        ]

    def results(self, runs: str = "runs/reproduce") -> dict[str, bytes]:
        """The table's files as they would be in another folder of runs; not the page, which tells
        of the machine.
        """
        return {
            path.name: path.read_bytes().replace(runs.encode(), b"RUNS")
            for path in sorted((self.folder / runs / "tables/table").glob("table.*"))
        }


def make_table_lab(folder: Path, table: str = TABLE) -> TableLab:
    data = make_lab(folder).data
    (folder / "table.yaml").write_text(table)
    return TableLab(folder, data)


def fork_children() -> None:
    """A patch: entry points run in forks, which have torch loaded, instead of new programs."""
    mcan.tables.children.Popen = Forked


class Forked:
    """What the runner uses of `subprocess.Popen`."""

    def __init__(self, arguments: Sequence[str], **options: Any) -> None:
        assert arguments[0] == sys.executable
        script = Path(arguments[1])
        assert script.parent == ROOT
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            sys.argv = list(arguments[1:])
            status = 99
            try:
                command(entry_point(script.stem).main)
            except SystemExit as ending:
                status = int(ending.code or 0)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        self._status: int | None = None

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def wait(self) -> int:
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def send_signal(self, number: int) -> None:
        if self._status is None:
            os.kill(self.pid, number)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
