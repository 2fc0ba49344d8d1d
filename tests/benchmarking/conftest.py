"""A tiny workload, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcan.benchmarking.turns import Spec
from mcan.benchmarking.workload import Workload, make

CONFIG = Path(__file__).resolve().parents[2] / "configs/_base_/mcan_small.yaml"
TINY = Workload(questions=23, regions=(2, 6), features=8, answers=20, words=50)
MODEL = ("model.hidden_size=8", "model.heads=2", "model.depth=1", "train.batch_size=4")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    make(folder, TINY)
    return folder


@pytest.fixture
def spec(folder, tmp_path):
    """A job of two updates per turn on the workload."""

    def build(job: str, *overrides: str, **options) -> Spec:
        paths = (f"data.prepared={folder}/prepared", f"data.images=[{folder}/images.h5]")
        names = ("data.max_tokens=14", "name=benchmark", f"runs={tmp_path}/runs")
        return Spec(job, str(CONFIG), (*paths, *names, *MODEL, *overrides), 2, **options)

    return build
