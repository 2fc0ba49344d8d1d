"""Shared by all tests."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

# Many tests fork, and neither CUDA nor autograd outlives a fork once a GPU has been seen.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from browser import Browser
from hypothesis import HealthCheck, settings
from tqdm import tqdm

# Tests run side by side on small tensors, where more threads only wait for each other.
torch.set_num_threads(1)

# A busy machine is no mistake of the code.
settings.register_profile("shared machine", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that compile come last: a process that has compiled cannot fork trainings any more."""
    items.sort(key=lambda item: "compil" in item.nodeid)


@pytest.fixture(autouse=True)
def _no_progress_bar_of_another_test() -> None:
    # A recorded traceback keeps the bar of a failed read; it would be drawn in later tests.
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Writes files by relative path into an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def files(texts: dict[str, str]) -> None:
        for name, text in texts.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    return files


@pytest.fixture
def peak_memory() -> Callable[..., int]:
    """The most bytes that Python and numpy hold at once while a function runs."""

    def measure(function: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            function()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real browser; without one the test is skipped, but fails in .ci/run."""
    opened = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield opened
    opened.close()
