"""outcome_<split>.json and what runs need: damage and changes are reported in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from made import Made, make, outcome, row

from mcan.engine.run_folder import code_digest
from mcan.errors import DataError, RunError
from mcan.preparation.synthetic import make_synthetic
from mcan.tables.outcomes import (
    DataCache,
    made_by_other_code,
    preview,
    read_outcome,
    refuse_problems,
)
from mcan.tables.planning import CommandOptions, PlannedRun, plan


@pytest.fixture
def run(tmp_path) -> PlannedRun:
    made = make(tmp_path, [row("a", 1)], seeds=[0])
    made.finish("a", 0, 60.0, {"yes/no": 80.5, "": 3.0})
    return made.run("a")


def test_runs_of_other_code(run):
    """Finished runs, and those that were only started."""
    assert made_by_other_code([run, run]) == []
    other = outcome(60.0).model_copy(update={"code": (code_digest(), "other")})
    run.outcome_path.write_text(other.model_dump_json())
    assert made_by_other_code([run, run]) == [run]
    run.outcome_path.unlink()
    assert made_by_other_code([run]) == []
    for code, found in ((code_digest(), []), ("other", [run])):
        (run.folder / "environment.jsonl").write_text(json.dumps({"code": code}))
        assert made_by_other_code([run]) == found


@pytest.mark.parametrize(
    "text", ["[]", "", "{", "[" * 100_000, '{"split": "val"}', '{"metrics": {"overall": "60"}}']
)
def test_damage_is_reported(run, text):
    run.outcome_path.write_text(text)
    with pytest.raises(RunError) as caught:
        read_outcome(run)
    reason = "not as reproduce.py wrote it; remove the file to evaluate again"
    assert str(caught.value) == f"{run.outcome_path}: {reason}"


@pytest.fixture
def data(tmp_path, monkeypatch) -> Made:
    """Two rows on synthetic data."""
    monkeypatch.chdir(tmp_path)
    make_synthetic(tmp_path / "made", questions=12, images=4)
    made = make(Path(), [row("a", 1), row("b", 2)], seeds=[0])
    data = {"prepared": "made/prepared", "images": ["made/images.h5"]}
    Path("base.yaml").write_text(yaml.safe_dump({"name": "base", "data": data}))
    return made


def problems(made: Made, *overrides: str) -> str:
    try:
        refuse_problems(plan(made.table, CommandOptions(overrides=overrides)), DataCache())
    except DataError as error:
        return str(error)
    return ""


def test_everything_that_is_missing_is_reported_once(data):
    assert problems(data) == ""
    absent = ["data.prepared=no", "data.images=[no.h5]", "model.question.word_vectors.path=no.txt"]
    found = problems(data, *absent)
    for name in ("no: no prepared", "no.h5", "'no.txt'"):
        assert found.count(name) == 1
    known = "; there is train, val"
    assert problems(data, "data.train=[train, vg]", "data.evaluate=tset") == (
        f"made/prepared: there is no split 'vg'{known}; "
        f"made/prepared: there is no split 'tset'{known}"
    )


def test_the_preview_has_states_and_costs(data):
    data.finish("a", 0, 60.0)
    runs = plan(data.table, CommandOptions(seeds=(0, 1), runs=Path("runs")))
    runs[1].folder.mkdir()
    (runs[1].folder / "config.yaml").touch()
    runs.append(replace(runs[2]))  # a row of an equal config
    lines = "\n".join(preview(runs, DataCache())).splitlines()
    assert lines[1:3] == ["a", "  base.yaml model.depth=1 -> val"]
    states = [line.split(maxsplit=3)[2] for line in lines if line.startswith("  seed")]
    assert states == ["done", "partly", "new", "new", "shared"]
    assert all("13 x 12 questions" in line for line in lines if line.startswith("  seed"))
    assert lines[-1] == "runs: 1 done, 1 partly, 2 new"
    absent = plan(data.table, CommandOptions(overrides=("data.prepared=no",)))
    assert sum("cost unknown" in line for line in preview(absent, DataCache())) == 2
