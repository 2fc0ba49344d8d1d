"""What importing the library asks of torch, seen from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# `hg` is the flag of memory for which large pages were asked.
PROGRAM = """
import re, torch, mcan.engine.checkpoint
numbers = torch.ones(2**24)
flags, inside = [], False
for line in open("/proc/self/smaps"):
    if found := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
        first, last = (int(end, 16) for end in found.groups())
        inside = first <= numbers.data_ptr() + 2**25 < last
    if inside and line.startswith("VmFlags:"):
        flags = line.split()
print("hg" in flags)
"""


@pytest.mark.skipif(
    not SETTING.exists() or "[madvise]" not in SETTING.read_text(),
    reason="this system has no large pages to ask for",
)
@pytest.mark.parametrize(
    ("said", "given"), [({}, "True"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "False")]
)
def test_large_pages_unless_something_else_was_said(said, given):
    kept = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=kept | said, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [given]
