"""A table of tiny runs, and runners on it in processes of their own that may be killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runs import FORK, Lab, Patch, Result, entry_point, make_lab

import mcan.tables.running
import mcan.tables.writing
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


class TableLab(Lab):
    """A `Lab` with `table.yaml`: two rows, two seeds. No images are drawn."""

    def reproduce(self, *args: str, table: str = TABLE, patch: Patch | None = None) -> Result:
        """Run the command on the text of a table, to its end."""
        (self.folder / "table.yaml").write_text(table)
        result = self.start(*args, patch=patch)()
        (self.folder / "table.yaml").write_text(TABLE)
        return result

    def start(
        self, *args: str, patch: Patch | None = None, number: int = 0
    ) -> Callable[[], Result]:
        def both() -> None:
            mcan.tables.running.Popen = Forked
            mcan.tables.writing.write_figures = lambda *_: None
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
            len((run / "environment.jsonl").read_text().splitlines()) for run in self.folders(runs)
        ]

    def results(self, runs: str = "runs/reproduce") -> dict[str, bytes]:
        """The table's files, as they would be in another folder of runs."""
        return {
            path.name: path.read_bytes().replace(runs.encode(), b"RUNS")
            for path in sorted((self.folder / runs / "tables/table").glob("table.*"))
        }


def make_table_lab(folder: Path) -> TableLab:
    (folder / "table.yaml").write_text(TABLE)
    return TableLab(folder, make_lab(folder).data)


class Forked:
    """What the runner uses of `subprocess.Popen`, on forks, which have torch loaded."""

    def __init__(self, arguments: Sequence[str], **options: Any) -> None:
        _, script, *rest = arguments
        self._process = FORK.Process(target=_run, args=(script, rest))
        self._process.start()

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.join()

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)


def _run(script: str, arguments: list[str]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv = [script, *arguments]
    command(entry_point(Path(script).stem).main)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
