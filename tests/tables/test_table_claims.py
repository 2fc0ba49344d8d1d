"""Claims: one holder at a time, however holders end."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest
from table_lab import until

from mcan.errors import RunError
from mcan.tables.claims import claim

# A runner whose child outlives it.
OWNER = """
import os, subprocess, sys, time
from pathlib import Path
from mcan.tables.claims import claim
with claim(Path(sys.argv[1])) as held:
    child = subprocess.Popen(["sleep", "600"], pass_fds=(held,), start_new_session=True)
    print(child.pid, flush=True)
    time.sleep(600)
"""


def test_one_at_a_time(tmp_path):
    with claim(tmp_path / "run") as first:
        assert first is not None
        with claim(tmp_path / "run") as second, claim(tmp_path / "other") as other:
            assert second is None
            assert other is not None
    with claim(tmp_path / "run") as again:
        assert again is not None
    assert not (tmp_path / "run").exists()


def test_children_hold_it_when_its_owner_is_killed(tmp_path):
    run = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", OWNER, run], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
    try:
        with claim(run) as held:
            assert held is None
    finally:
        os.kill(child, signal.SIGKILL)

    def free() -> bool:
        with claim(run) as held:
            return held is not None

    until(free)


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claim(tmp_path / "run") as held:
        assert held is not None
    assert "this file system has no locks" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"), claim(tmp_path / "file" / "run"):
        pass
