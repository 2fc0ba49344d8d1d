"""The list of runs, and what differs between two."""

from __future__ import annotations

import json

import pytest
from runs import Lab, at_call, die, make_lab, metrics_of

from mcan.engine.trainer import Trainer
from mcan.files import lock_file


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A finished run, one that was killed, one without evaluation, one before its first step."""
    lab = make_lab(tmp_path_factory.mktemp("runs"))
    assert lab.train("done").status == 0
    kill = at_call(Trainer, "update", 9, die)
    assert lab.train("killed", "model.hidden_size=4", "seed=7", patch=kill).status == -9
    assert lab.train("blind", "data.evaluate=null", "train.epochs=1").status == 0
    assert lab.train("new", patch=at_call(Trainer, "update", 1, die)).status == -9
    return lab


STEP = '{"kind": "train", "epoch": 1, "step": 5, "samples_per_s": %s}\n'


def rows(lab: Lab, *arguments: str) -> dict[str, list[str]]:
    result = lab.execute("scripts/runs", list(arguments))
    assert result.status == 0, result.err
    return {cells[0]: cells[1:] for cells in map(str.split, result.out.splitlines())}


def test_states_epochs_results_and_changes(lab):
    found = rows(lab)
    assert found["run"] == ["state", "epoch", "best", "%", "last", "%", "training", "changed"]
    assert found["runs/done"][:2] == ["finished", "3/3"]
    lines = metrics_of(lab.run("done"))
    scores = [line["overall"] for line in lines if line["kind"] == "evaluation"]
    assert found["runs/done"][2:4] == [f"{max(scores):.2f}", f"{scores[-1]:.2f}"]
    assert found["runs/done"][5:] == []
    assert found["runs/killed"][:2] == ["stopped", "2/3"]
    assert found["runs/killed"][5:] == ["seed=7", "model.hidden_size=4"]
    assert found["runs/new"][:5] == ["stopped", "0/3", "–", "–", "0:00:00"]
    assert found["runs/blind"][:4] == ["finished", "1/1", "–", "–"]
    assert found["runs/blind"][5:] == ["data.evaluate=null", "train.epochs=1"]


def test_a_run_that_trains(lab):
    lock = lock_file(lab.run("killed") / ".lock")
    assert lock is not None
    try:
        assert rows(lab, "runs/killed", "runs/done")["runs/killed"][0] == "training"
    finally:
        lock.release()
    (lab.run("killed") / ".lock").unlink()
    assert rows(lab)["runs/killed"][0] == "stopped"
    assert not (lab.run("killed") / ".lock").exists()
    assert [*rows(lab, "runs/killed")] == ["run", "runs/killed"]


def test_time_is_that_of_the_steps(lab, tmp_path):
    """Batches of 8: 50 steps at 100 questions a second and 50 at 50."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_bytes((lab.run("done") / "config.yaml").read_bytes())
    lines = [
        {"kind": "train", "epoch": 1, "step": 50, "samples_per_s": 100.0},
        {"kind": "evaluation", "epoch": 1, "step": 50, "overall": 12.345},
        {"kind": "train", "epoch": 2, "step": 100, "samples_per_s": 50.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    # Half a line is what a killed run leaves.
    (tmp_path / "metrics.jsonl").write_text(text + '{"kind": "tr')
    expected = ["stopped", "2/3", "12.35", "12.35", "0:00:12"]
    assert rows(lab, str(tmp_path))[str(tmp_path)] == expected


def test_what_differs(lab):
    found = rows(lab, "diff", "runs/done", "runs/killed")
    assert found.pop("runs/done") == ["runs/killed"]
    assert found == {"seed": ["3", "7"], "model.hidden_size": ["8", "4"]}
    best = "runs/done/checkpoints/best.pt"
    assert [*rows(lab, "diff", best, "config.yaml")] == [best, "train.rows"]
    assert "do not differ" in lab.execute("scripts/runs", ["diff", best, "runs/done"]).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: not found"),
        (["prepared"], "prepared: contains no runs"),
        (["diff", "runs/done", "prepared"], "prepared: not a run folder; config.yaml is missing"),
        (["diff", "runs/done"], "diff takes two runs"),
        (["diff", "runs/done", "gone.pt"], "gone.pt"),
    ],
)
def test_mistakes(lab, arguments, message):
    result = lab.execute("scripts/runs", arguments)
    assert result.status == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_unreadable_runs_are_listed_with_the_reason(lab, tmp_path):
    for name, config, metrics in (
        ("old", "depth: 9\n", ""),
        ("torn", (lab.run("done") / "config.yaml").read_text(), '{"kind": "train"}\n'),
        ("nan", (lab.run("done") / "config.yaml").read_text(), STEP % "NaN"),
        ("huge", (lab.run("done") / "config.yaml").read_text(), STEP % "1e-30"),
        ("folder", (lab.run("done") / "config.yaml").read_text(), None),
    ):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text(config)
        if metrics is None:
            (folder / "metrics.jsonl").mkdir()
        else:
            (folder / "metrics.jsonl").write_text(metrics)
    found = rows(lab, str(tmp_path), "runs/done")
    assert {found[str(path)][0] for path in tmp_path.iterdir()} == {"unreadable"}
    assert found["runs/done"][0] == "finished"
    assert "depth" in found[str(tmp_path / "old")]
    assert found[str(tmp_path / "torn")][-1] == "damaged"
