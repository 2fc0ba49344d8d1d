"""Claims: one holder at a time, however holders end."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import subprocess
import sys

import pytest
from table_lab import until

from mcan.errors import RunError
from mcan.tables.claims import claim, turn

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


# A process in its turn, which ends when something is written to it.
TAKER = """
import sys
from pathlib import Path
from mcan.tables.claims import turn
with turn(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read(1)
    print("done", flush=True)
"""


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_turns_are_waited_for(tmp_path, ends):
    command, pipe = [sys.executable, "-c", TAKER, tmp_path], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == b"mine\n"
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as second:
            assert second.stdout is not None
            assert not select.select([second.stdout], [], [], 1)[0]
            if ends == "killed":
                first.kill()
            else:
                first.stdin.write(b".")
                first.stdin.flush()
            assert second.stdout.readline() == b"mine\n"
            second.kill()


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claim(tmp_path / "run") as held, turn(tmp_path):
        assert held is not None
    assert capsys.readouterr().err.count("this file system has no locks") == 2


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for taken in (claim(tmp_path / "file" / "run"), turn(tmp_path / "file" / "output")):
        with pytest.raises(RunError, match="cannot be written"), taken:
            pass
