"""train.py: a run from the command line, and every mistake reported in one line."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import runs
import torch
from filelock import FileLock
from runs import Lab

import mcan.build
from mcan.config import flatten, load_config
from mcan.data.prepared import Prepared
from mcan.engine.trainer import Trainer
from mcan.errors import BusyError
from mcan.preparation.synthetic import make_synthetic


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """With an unfinished run, `runs/small`, whose newest checkpoint is that of step 6."""
    lab = runs.make_lab(tmp_path_factory.mktemp("lab"))
    assert lab.train("small", patch=runs.at_call(Trainer, "update", 9, runs.die)).status == -9
    return lab


def test_a_run_as_a_user_starts_it(lab, tmp_path):
    """In a process of its own."""
    train = [
        sys.executable,
        str(runs.ROOT / "train.py"),
        str(lab.folder / "config.yaml"),
        "name=user",
    ]
    result = runs.program(*train, cwd=lab.folder)
    assert result.status == 0, result.err
    assert result.err.splitlines()[-1] == "finished; evaluate with: python eval.py runs/user"
    run = lab.run("user")
    files = "checkpoints config.yaml environment.jsonl metrics.jsonl tensorboard"
    assert {path.name for path in run.iterdir()} == {".lock", *files.split()}
    assert lab.train("forked").status == 0
    runs.assert_same(runs.outcome(run), runs.outcome(lab.run("forked")))

    config = load_config(run / "config.yaml")
    assert config == load_config(lab.folder / "config.yaml", ["name=user", "train.rows=packed"])
    start = json.loads((run / "environment.jsonl").read_text())
    assert start["torch"] == str(torch.__version__)
    assert start["command"][1:] == train[2:]
    assert start["processes"] == 1
    lines = runs.metrics_of(run)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [4, 6, 8, 12, 16, 18]
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [6, 12, 18]
    # Half the rate in the warm-up epoch, int(44 / 8) = 5 steps; a fifth after the second epoch.
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    assert rates == pytest.approx([0.0015, 0.003, 0.003, 0.003, 0.0006, 0.0006])


def test_help(lab):
    for script in ("train", "eval"):
        result = lab.execute(script, ["--help"])
        assert result.status == 0
        assert "key=value" in result.out


def test_evaluation_every_other_epoch_and_none(lab):
    assert lab.train("every_2", "train.evaluate_every=2").status == 0
    lines = runs.metrics_of(lab.run("every_2"))
    assert [x["epoch"] for x in lines if x["kind"] == "evaluation"] == [2, 3]
    assert lab.train("none", "data.evaluate=null", "train.keep_last=2").status == 0
    assert not [x for x in runs.metrics_of(lab.run("none")) if x["kind"] == "evaluation"]
    names = sorted(path.name for path in (lab.run("none") / "checkpoints").iterdir())
    assert names == ["step_00000015.pt", "step_00000018.pt"]


@pytest.mark.parametrize("key", ["overall", "per_answer_type.yes/no"])
def test_best_is_the_first_of_the_highest_scores(lab, key):
    name = f"best_{len(key)}"
    options = ["train.epochs=6", "schedule.decay_after=[]", f"evaluation.best_by={key}"]
    assert lab.train(name, *options).status == 0
    lines = [x for x in runs.metrics_of(lab.run(name)) if x["kind"] == "evaluation"]
    scores = {line["step"]: flatten(line)[key] for line in lines}
    step = max(scores, key=lambda step: (scores[step], -step))
    kept = runs.load(lab.run(name) / "checkpoints" / "best.pt")
    assert kept["best"] == {"score": scores[step], "step": step}
    assert kept["position"]["step"] == step


def newest(run: Path) -> Path:
    return run / "checkpoints" / "step_00000006.pt"


def nothing(run: Path, _: Lab) -> None:
    pass


def write(name: str, content: str) -> Callable[[Path, Lab], object]:
    return lambda run, _: (run / name).write_text(content)


def without_checkpoints(run: Path, _: Lab) -> None:
    shutil.rmtree(run / "checkpoints")


def other_weight(run: Path, _: Lab) -> None:
    content = runs.load(newest(run))
    content["model"]["classifier.bias"] = torch.zeros(3)
    runs.save_sealed(content, newest(run))


def all_cut(run: Path, _: Lab) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1000])


def of_format_1(run: Path, _: Lab) -> None:
    content = runs.load(newest(run))
    del content["loss_since_last_log"]
    torch.save(content | {"format": 1, "window": []}, newest(run))


def other_features(_: Path, lab: Lab) -> None:
    """A store of other features under the same ids, `other/images.h5`."""
    if not (lab.folder / "other").exists():
        make_synthetic(lab.folder / "other", images=10, feature_dim=6, seed=1)


OTHER_DATA = r"/small: the run was trained on another vocabulary, other questions or image stores, "
RESUMED: dict[str, tuple[Callable[[Path, Lab], object], list[str], str]] = {
    # What is asked does not fit the run.
    "other_key": (nothing, ["optimizer.lr=0.1"], r"started with optimizer.lr = 0.003, not 0.1; "),
    "other_kind": (nothing, ["schedule.name=cosine"], r"started with schedule\.\w+ = "),
    "other_list": (nothing, ["data.train=[train, val]"], r'data.train = \["train"\], not \["tr'),
    # The run folder.
    "config_not_yaml": (write("config.yaml", "a: [1"), [], r"config.yaml:1: not valid YAML"),
    "config_of_something_else": (write("config.yaml", "a: 1"), [], r"config.yaml:1: a is not a k"),
    "metrics_shorter": (write("metrics.jsonl", "{}"), [], r"metrics.jsonl: shorter than when the"),
    "checkpoints_gone": (without_checkpoints, [], r"/checkpoints: is missing, so there is nothing"),
    # The checkpoint.
    "all_damaged": (all_cut, [], r"step_00000006.pt: not a checkpoint of train.py, or damaged"),
    "earlier_format": (of_format_1, [], r"step_00000006.pt: written by an earlier version of this"),
    "weights_of_another_network": (other_weight, [], r"classifier\.bias \(3,\) instead"),
    "other_features": (other_features, ["data.images=[other/images.h5]"], OTHER_DATA),
    "one_store_more": (other_features, ["data.images=[images.h5, other/images.h5]"], OTHER_DATA),
}


def kept(folder: Path) -> dict[str, bytes]:
    """The files below a folder, without what the test itself writes there."""
    return {k: v for k, v in runs.contents(folder).items() if not k.startswith("printed_")}


def refused(
    lab: Lab, folder: Path, args: list[str], sentence: str, script: str = "train", status: int = 2
) -> None:
    """One sentence, and not a byte changed in `folder`."""
    before = kept(folder)
    result = lab.execute(script, args)
    assert result.status == status, result.err
    lines = result.err.splitlines()
    assert lines, result
    assert lines[-1].startswith("error: ")
    assert re.search(sentence, lines[-1]), lines[-1]
    assert len(result.errors()) == 1
    assert result.out == ""
    assert kept(folder) == before


@pytest.mark.parametrize("case", RESUMED)
def test_resume_refused(lab, case):
    damage, more, sentence = RESUMED[case]
    folder = lab.folder / f"runs_{case}"
    shutil.copytree(lab.folder / "runs" / "small", folder / "small")
    damage(folder / "small", lab)
    refused(lab, folder, [lab.config, f"runs={folder.name}", *more, "--resume"], sentence)


def test_the_store_may_move(lab):
    """And the control for all of the above."""
    shutil.copytree(lab.run("small"), lab.folder / "runs_moved" / "small")
    shutil.copy(lab.folder / "images.h5", lab.folder / "moved.h5")
    args = [lab.config, "runs=runs_moved", "data.images=[moved.h5]", "--resume"]
    result = lab.execute("train", args)
    assert result.status == 0, result.err


@pytest.mark.parametrize(("damaged", "intact"), [((12,), 10), ((12, 10), 6)])
def test_resume_takes_the_newest_intact_checkpoint(lab, damaged, intact):
    """It says so and keeps the damaged ones; eval.py names the intact one."""
    name, keep = f"cut_{len(damaged)}", "train.keep_last=3"
    kill = runs.at_call(Trainer, "update", 13, runs.die)
    assert lab.train(name, keep, patch=kill).status == -9
    folder = lab.run(name) / "checkpoints"
    paths = [folder / f"step_{step:08d}.pt" for step in damaged]
    spoilt = {path: path.read_bytes()[: -1 - 5000 * n] for n, path in enumerate(paths)}
    for path, content in spoilt.items():
        path.write_bytes(content)
    taken = f"runs/{name}/checkpoints/step_{intact:08d}.pt"
    for target in (f"runs/{name}", str(paths[0])):
        refused(lab, folder, [target], rf"12.pt: damaged: .*newest intact one is .*{taken}", "eval")
    result = lab.resume(name, keep)
    assert result.status == 0
    assert f"\nresumed after step {intact}\n" in result.err
    for path, content in spoilt.items():
        assert (folder / f"{path.name}.damaged").read_bytes() == content
        assert f"kept as {path.name}.damaged; continuing from {taken}" in result.err
        (folder / f"{path.name}.damaged").unlink()
    assert lab.train(f"whole_{name}", keep).status == 0
    runs.assert_same(runs.outcome(lab.run(name)), runs.outcome(lab.run(f"whole_{name}")))


def test_a_run_without_a_checkpoint_leaves_its_name_free(lab):
    """Whatever ended it; but not if it wrote checkpoints that are gone, or is still running."""
    for end in (runs.die, lambda: 1 / 0):
        ended = runs.at_call(Trainer, "update", 5, end)
        assert lab.train("early", "optimizer.lr=0.1", patch=ended).status
    with FileLock(lab.run("early") / ".lock"):
        assert "another process is training this run" in lab.train("early").errors()[0]
    result = lab.train("early")
    assert result.status == 0
    assert "runs/early: stopped before its first checkpoint; it starts from the begin" in result.err
    assert lab.train("not_early").status == 0
    runs.assert_same(runs.outcome(lab.run("early")), runs.outcome(lab.run("not_early")))
    assert load_config(lab.run("early") / "config.yaml").optimizer.lr == 0.003
    for path in (lab.run("early") / "checkpoints").iterdir():
        path.unlink()
    refused(lab, lab.run("early"), [lab.config, "name=early"], r"this run exists; continue it with")


def test_resume_over_edited_code_is_a_warning(lab):
    shutil.copytree(lab.run("small"), lab.run("edited"))
    log = lab.run("edited") / "environment.jsonl"
    (line,) = map(json.loads, log.read_text().splitlines())
    log.write_text(json.dumps(line | {"code": "0123456789ab"}) + "\n")
    result = lab.resume("edited")
    assert result.status == 0
    assert f"edited: trained so far by other code (0123456789ab; now {line['code']})" in result.err
    codes = [json.loads(line)["code"] for line in log.read_text().splitlines()]
    assert codes == ["0123456789ab", line["code"]]


@pytest.mark.parametrize("steps", [10, 12])
def test_max_steps_is_the_beginning_of_the_whole_run(lab, steps):
    """Inside an epoch and at its end; killed in the last evaluation and resumed."""
    name, most = f"most_{steps}", f"train.max_steps={steps}"
    assert lab.train("all", "train.keep_last=9", "train.checkpoint_every=2").status in (0, 2)
    kill = runs.at_call(mcan.build, "predict", 2, runs.die)
    assert lab.train(name, most, "train.checkpoint_every=1", patch=kill).status == -9
    assert lab.resume(name, most).status == 0
    path = Path("checkpoints") / f"step_{steps:08d}.pt"
    found, whole = (runs.load(lab.run(n) / path) for n in (name, "all"))
    runs.assert_same(found["model"], whole["model"])
    lines = [line for line in runs.metrics_of(lab.run(name)) if line["kind"] == "evaluation"]
    assert [line["step"] for line in lines] == [6, steps]
    assert f"finished after {steps} steps (train.max_steps=" in lab.resume(name, most).err


def test_limit_reads_the_first_questions(lab):
    """As if the splits had no others."""
    result = lab.train("part", "data.limit=9")
    assert result.status == 0
    assert "9 questions on " in result.err
    assert "(data.limit: the first 9 of each split)" in result.err
    full = Prepared.open(lab.folder / "prepared").split("train")
    for part in (full.first(9), pickle.loads(pickle.dumps(full.first(9)))):
        for name in ("tokens", "questions", "target_answers", "target_scores", "human_answers"):
            found, expected = getattr(part, name), getattr(full, name)
            assert [list(item) for item in found] == [list(expected[row]) for row in range(9)]
        assert part.question_ids.tolist() == full.question_ids[:9].tolist()
        images = [split.image_ids[split.image_index[:9]].tolist() for split in (part, full)]
        assert images[0] == images[1]
        assert len(part.image_ids) == len({*images[0]})
        assert part.answer_types.codes.tolist() == full.answer_types.codes[:9].tolist()
    assert {line["n"] for line in runs.metrics_of(lab.run("part")) if "n" in line} == {9}
    assert lab.eval("runs/part", "--split", "train", "--output", "part").status == 0
    metrics = json.loads((lab.folder / "part" / "metrics.json").read_text())
    assert (metrics["n"], metrics["limit"], metrics["trained_on_questions"]) == (9, 9, 9)


def test_training_on_the_evaluated_questions_is_reported(lab):
    result = lab.train("leak", "data.train=[train, val]", "train.epochs=1")
    assert "warning: data.train holds 11 of the 11 questions of data.evaluate (val); " in result.err
    (line,) = [line for line in runs.metrics_of(lab.run("leak")) if line["kind"] == "evaluation"]
    assert line["trained_on_questions"] == 11
    assert "data.train holds" not in lab.train("no_leak", "train.epochs=1").err


def test_home_folder_in_paths(lab, tmp_path):
    """In the config, its base, and arguments; a file that begins with ~ is not meant."""
    home = tmp_path / "home"
    shutil.copytree(lab.folder / "prepared", home / "prepared")
    shutil.copy(lab.folder / "images.h5", home)
    shutil.copy(lab.folder / "config.yaml", home / "base.yaml")
    text = "_base_: ~/base.yaml\nname: home\nruns: ~/runs\ndata: {prepared: ~/prepared}\n"
    (lab.folder / "home.yaml").write_text(text)

    def patch() -> None:
        os.environ["HOME"] = str(home)

    args = ["home.yaml", "data.images=[~/images.h5]", "train.max_steps=1", "train.clip_norm=~"]
    assert lab.execute("train", args, patch).status == 0
    assert lab.eval("~/runs/home", "--output=~/out", patch=patch).status == 0
    assert not list(lab.folder.glob("~*"))
    assert {path.name for path in home.iterdir()} >= {"runs", "out"}


OUTPUTS = ["2>&1 | head -1", "> /dev/full 2>&1", "2>&-", ">&- 2>&- <&-"]


@pytest.mark.parametrize("where", OUTPUTS)
def test_output_that_cannot_be_written(lab, tmp_path, where):
    args = f"{lab.folder}/config.yaml data.prepared={lab.folder}/prepared train.max_steps=7"
    images = f"data.images=[{lab.folder}/images.h5]"
    script = f"set -o pipefail; {sys.executable} {runs.ROOT}/train.py {args} {images} {where}"
    assert runs.program("bash", "-c", script, cwd=tmp_path).status == 0
    assert list((tmp_path / "runs" / "small" / "checkpoints").glob("step_00000007.pt"))


def test_existing_run(lab):
    folder = lab.folder / "runs"
    for changes in ([], ["optimizer.lr=0.1"]):
        sentence = r"runs/small: this run exists; continue it with --resume"
        refused(lab, folder, [lab.config, *changes], sentence)
    with FileLock(lab.run("small") / ".lock"):
        sentence = r"runs/small: another process is training this run"
        refused(lab, folder, [lab.config, "--resume"], sentence, status=BusyError.exit_code)


def test_the_lock_respects_the_umask(lab):
    assert lab.train("shared", "train.epochs=1", patch=lambda: os.umask(0o007) and None).status == 0
    assert stat.S_IMODE((lab.run("shared") / ".lock").stat().st_mode) == 0o660


def test_run_made_by_another_process_in_the_meantime(lab):
    """Two are started at once: the second finds the run when it is about to make it."""

    def other() -> None:
        shutil.copytree(lab.run("small"), lab.run("race"))

    before = runs.contents(lab.run("small"))
    result = lab.train("race", patch=runs.at_call(Trainer, "__init__", 1, other))
    assert result.status == BusyError.exit_code
    assert "runs/race: another process has made this run in the meantime" in result.errors()[0]
    assert runs.contents(lab.run("race")) == before


NEW: dict[str, tuple[str, str]] = {
    # name: (a file that is there, message)
    "foreign_file": ("new/small/notes.txt", r"new/small: exists and is not a run folder"),
    "foreign_checkpoints": ("new/small/checkpoints/step_00000007.pt", r"new/small: exists and is"),
    "file_in_place_of_the_run": ("new/small", r"Not a directory: .*new/small/checkpoints"),
    "file_in_place_of_runs": ("new", r"Not a directory: .*new/small/checkpoints"),
}


@pytest.mark.parametrize("case", NEW)
def test_start_refused(lab, tmp_path, case):
    file, sentence = NEW[case]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("mine")
    refused(lab, tmp_path, [lab.config, f"runs={tmp_path}/new"], sentence)


@pytest.fixture(scope="module")
def others(lab) -> Path:
    """Other data beside the lab's."""
    make_synthetic(lab.folder / "pixels", questions=20, images=10, kind="pixels")
    make_synthetic(lab.folder / "wide", questions=44, images=10, feature_dim=7)
    make_synthetic(lab.folder / "few", questions=5, images=10)
    (lab.folder / "vectors.txt").write_text("word1 1 2 3\nword2 4 5 6\n")
    return lab.folder


CONFIGS = [
    # (overrides, message)
    ("train.epoch=3", r"command line: train.epoch is not a key"),
    ("train.device=cuda", r"train.device is cuda, but torch sees no CUDA device; use cpu or auto"),
    ("train.device=cuda:1", r"train.device is cuda:1, but torch sees no CUDA device; use cpu or"),
    (
        "train.device=gpu",
        r'train.device is "gpu"; it must be text that matches `\^\(auto\|cpu\|cuda',
    ),
    ("data.prepared=nowhere", r"nowhere: no prepared dataset"),
    ("data.images=[no.h5]", r"no.h5: no such image store"),
    ("data.train=[tain]", r"no split 'tain'; there is train, val"),
    ("data.evaluate=x", r"no split 'x'; there is train, va"),
    ("data.images=[pixels/images.h5]", r"is regions, but data.images .* holds pixels"),
    ("model.image.input=pixels", r"is pixels, but data.images \(images.h5\) holds regions"),
    ("model.image.boxes=true", r"boxes is true, but data.images \(images.h5\) has no boxes"),
    ("model.image.position_encoding=true", r"no store of data.images or data.grid has grid shapes"),
    ("data.images=[images.h5, wide/images.h5]", r"wide/images.h5 holds regions \(7,\).*images"),
    ("model.question.word_vectors={path: vectors.txt}", r"size is 6, but .* have 3 dimensions"),
    ("model.question.word_vectors={path: no.txt}", r"no.txt"),
    (
        "evaluation.best_by=per_answer_type.colour",
        r'best_by is "per_answer_type.colour"; for prepared/val.h5 it can be n, overall, per_',
    ),
    ("data.prepared=few/prepared & train.drop_last=true", r"5 questions make no whole batch of 8"),
]


@pytest.mark.parametrize(("overrides", "sentence"), CONFIGS)
def test_config_refused(lab, others, overrides, sentence):
    args = [lab.config, "name=new", *overrides.split(" & ")]
    refused(lab, lab.folder / "runs", args, sentence)
    assert not lab.run("new").exists()


@pytest.mark.parametrize(
    "options", [{"questions": 48}, {"vocabulary": 13}, {"answers": 6}, {"feature_dim": 7}], ids=str
)
def test_data_replaced_between_start_and_resume(lab, tmp_path, options):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    mine, new = runs.make_lab(tmp_path / "old"), runs.make_lab(tmp_path / "new", **options)
    shutil.copytree(lab.run("small"), mine.run("small"))
    for name in ("prepared", "images.h5"):
        (mine.folder / name).rename(mine.folder / f"old_{name}")
        (new.folder / name).rename(mine.folder / name)
    refused(mine, mine.folder / "runs", [mine.config, "--resume"], OTHER_DATA)
