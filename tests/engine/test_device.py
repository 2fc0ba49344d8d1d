"""The device of a process, and what is asked of torch for it."""

from __future__ import annotations

import os

import pytest

from mcan.engine.distributed import choose_device

VARIABLE = "THP_MEM_ALLOC_ENABLE"


@pytest.mark.parametrize(("said", "used"), [(None, "1"), ("0", "0")])
def test_large_pages_on_cpu_unless_something_else_was_said(said, used, monkeypatch):
    monkeypatch.setenv(VARIABLE, said or "")
    if said is None:
        monkeypatch.delenv(VARIABLE)
    assert choose_device("cpu").type == "cpu"
    assert os.environ[VARIABLE] == used
