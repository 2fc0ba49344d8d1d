"""The harness finds what it is for, in a writer with three mistakes, and nothing in eval.py."""

from __future__ import annotations

import re
import shutil
import sys

import pytest
from runs import ROOT, Result, program

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
KINDS = "ENOSPC", "EIO", "EROFS", "EACCES", "before", "after"


@pytest.fixture(scope="module")
def result() -> Result:
    cases = [f"broken:{kind}:{number}" for number in range(1, 7) for kind in KINDS]
    cases += ["eval:ENOSPC:3", "eval:before:7", "eval:instant:1"]
    return program(sys.executable, "tests/faults", "--only", *cases, cwd=ROOT)


@pytest.mark.parametrize(
    "failure",
    [
        r"broken:after:1 \(open64 notes\.txt\): notes\.txt, which was there before, has changed",
        r"broken:before:4 \(write result\..*\): repeated, but result\..*\.tmp is left",
        r"broken:ENOSPC:4 \(write result\..*\): status 0, but result\..*\.tmp is left",
        r"broken:EACCES:5 \(rename result\.txt\): status 0, but result\..*\.tmp is left",
    ],
)
def test_mistakes_are_found(result: Result, failure: str) -> None:
    assert result.status == 1, result.err
    assert re.search(f"FAILED {failure}", result.out), result.out


def test_counts_are_printed(result: Result) -> None:
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines()[-5:-1]}
    assert rows["command"] == [
        *("calls", "faults", "kills", "unharmed", "repeated"),
        *("by", "hand", "failures"),
    ]
    assert (rows["broken"][0], rows["eval"][1:3], rows["eval"][-1]) == ("5", ["1", "2"], "0")
    assert int(rows["all"][1]) + int(rows["all"][2]) == sum(map(int, rows["all"][3:]))
    assert "6 cases did not reach their call" in result.out  # the broken writer makes five calls
