"""Jobs of a cluster: what submitit is asked for, and what a job does."""

from __future__ import annotations

import pickle
import sys
from types import SimpleNamespace

import pytest
from runs import entry_point
from table_lab import REPRODUCE, Forked, make_table_lab

import mcan.report.write
import mcan.tables.children
from mcan.errors import RunError
from mcan.tables.plan import plan
from mcan.tables.slurm import job, submit
from mcan.tables.spec import load_table


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = make_table_lab(tmp_path)
    monkeypatch.chdir(lab.folder)
    for script in ("train", "eval"):
        entry_point(script)
    monkeypatch.setattr(mcan.tables.children, "Popen", Forked)
    monkeypatch.setattr(mcan.report.write, "png", lambda _: b"")
    return lab


class Executor:
    """Of the fake submitit: jobs are pickled, as submitit does, and run at once."""

    made: list = []  # noqa: RUF012

    def __init__(self, folder, cluster):
        self.asked = {"folder": folder, "cluster": cluster}
        self.made.append(self)

    def update_parameters(self, **parameters):
        if "slurm_partitoin" in parameters:
            raise NameError("Unknown argument 'partitoin'\nfor executor 'slurm'")
        self.asked["parameters"] = parameters

    def map_array(self, function, *arguments):
        calls = [pickle.dumps((function, each)) for each in zip(*arguments, strict=True)]
        for call in calls:
            run, each = pickle.loads(call)
            run(*each)
        return [SimpleNamespace(job_id=f"17_{number}") for number in range(len(calls))]


@pytest.fixture
def submitit(monkeypatch):
    Executor.made.clear()
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Executor))
    return Executor


def test_the_table_as_jobs(lab, submitit, capfd):
    main = entry_point(REPRODUCE).main
    args = ["table.yaml", "--rows", "narrow", "--launcher", "slurm"]
    slurm = ["--slurm", "partition=gpu", "gpus_per_node=1", "timeout_min=600"]
    assert main([*args, *slurm]) == 0
    (executor,) = submitit.made
    assert executor.asked == {
        "folder": lab.folder.joinpath("runs/reproduce/.slurm").relative_to(lab.folder),
        "cluster": "slurm",
        "parameters": {
            "name": "reproduce",
            "slurm_partition": "gpu",
            "gpus_per_node": 1,
            "timeout_min": 600,
        },
    }
    printed = capfd.readouterr().out
    assert "submitted: 17_0, 17_1;" in printed
    assert lab.starts() == [1, 1]
    assert main(args[:3]) == 0
    printed = capfd.readouterr().out
    assert "train.py" not in printed
    assert "2 of 2" in printed
    assert main(args) == 0
    assert len(submitit.made) == 1


def test_a_job_fails_where_its_run_does(lab):
    run = plan(load_table("table.yaml"), overrides=["data.prepared=nowhere"])[0]
    with pytest.raises(RunError, match=r"wide, seed 0: .* train\.py ended with exit status 2"):
        job(run, 1)


def test_mistakes(lab, submitit, monkeypatch):
    with pytest.raises(RunError, match="Unknown argument 'partitoin' for executor 'slurm'"):
        submit([], lab.folder, {"partitoin": "gpu"})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RunError, match="needs submitit: pip install submitit"):
        submit([], lab.folder, {})
