"""train.py: a run from the command line, and every mistake told in one sentence."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    ROOT,
    Lab,
    assert_same,
    at_call,
    contents,
    die,
    load,
    make_lab,
    metrics_of,
    outcome,
    program,
)

from mcan.config import load_config
from mcan.data.synthetic import make_synthetic
from mcan.engine.trainer import Trainer


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """With an unfinished run, `runs/small`, whose newest checkpoint is that of step 6."""
    lab = make_lab(tmp_path_factory.mktemp("lab"))
    assert lab.train("small", patch=at_call(Trainer, "_update", 9, die)).status == -9
    return lab


def test_a_run_as_a_user_starts_it(lab, tmp_path):
    """In processes of their own, from another folder, interrupted for good measure."""
    train = [sys.executable, str(ROOT / "train.py"), str(lab.folder / "config.yaml"), "name=user"]
    result = program(*train, cwd=lab.folder)
    assert result.status == 0, result.err
    assert result.err.splitlines()[-1] == "finished; evaluate with: python eval.py runs/user"
    run = lab.run("user")
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "tensorboard",
    ]
    assert lab.train("forked").status == 0
    assert_same(outcome(run), outcome(lab.run("forked")))

    config = load_config(run / "config.yaml")
    assert config == load_config(lab.folder / "config.yaml", ["name=user"])
    (start,) = json.loads((run / "environment.json").read_text())["starts"]
    assert start["torch"] == str(torch.__version__)
    assert start["command"][1:] == train[2:]
    assert start["processes"] == 1
    lines = metrics_of(run)
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
    lines = metrics_of(lab.run("every_2"))
    assert [x["epoch"] for x in lines if x["kind"] == "evaluation"] == [2, 3]
    assert lab.train("none", "data.evaluate=null", "train.keep_last=2").status == 0
    assert not [x for x in metrics_of(lab.run("none")) if x["kind"] == "evaluation"]
    names = sorted(path.name for path in (lab.run("none") / "checkpoints").iterdir())
    assert names == ["step_00000015.pt", "step_00000018.pt"]


def test_best_is_the_first_of_the_highest_scores(lab):
    assert lab.train("scores", "train.epochs=6", "schedule.decay_after=[]").status == 0
    lines = [x for x in metrics_of(lab.run("scores")) if x["kind"] == "evaluation"]
    best = max(lines, key=lambda line: (line["overall"], -line["step"]))
    kept = load(lab.run("scores") / "checkpoints" / "best.pt")
    assert kept["best"] == {"score": best["overall"], "step": best["step"]}
    assert kept["position"]["step"] == best["step"]


class Evil:
    """Code that a pickle would run when it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("touch harm",)


Damage = Callable[[Path, Lab], None]


def newest(run: Path) -> Path:
    return run / "checkpoints" / "step_00000006.pt"


def write(name: str, content: str | bytes) -> Damage:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda run, _: (run / name).write_bytes(data) and None


def saved(content: Any, **options: Any) -> Damage:
    return lambda run, _: torch.save(content, newest(run), **options)


def changed(**values: Any) -> Damage:
    def damage(run: Path, _: Lab) -> None:
        torch.save(load(newest(run)) | values, newest(run))

    return damage


def without(*names: str) -> Damage:
    def damage(run: Path, _: Lab) -> None:
        content = load(newest(run))
        torch.save({key: content[key] for key in content if key not in names}, newest(run))

    return damage


def cut(share: float) -> Damage:
    def damage(run: Path, _: Lab) -> None:
        data = newest(run).read_bytes()
        newest(run).write_bytes(data[: int(len(data) * share)])

    return damage


def other_weight(run: Path, _: Lab) -> None:
    content = load(newest(run))
    content["model"]["classifier.bias"] = torch.zeros(3)
    del content["model"]["norm.weight"]
    content["model"]["extra"] = torch.zeros(2, 2)
    torch.save(content, newest(run))


def nothing(run: Path, _: Lab) -> None:
    pass


def gone(name: str) -> Damage:
    def damage(run: Path, _: Lab) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def pickled(run: Path, _: Lab) -> None:
    newest(run).write_bytes(pickle.dumps({"format": 1, "evil": Evil()}))


def a_folder(run: Path, _: Lab) -> None:
    newest(run).unlink()
    newest(run).mkdir()


def other_features(_: Path, lab: Lab) -> None:
    """A store of other features under the same ids, `other/images.h5`."""
    if not (lab.folder / "other").exists():
        make_synthetic(lab.folder / "other", images=10, feature_dim=6, seed=1)


def stores_unknown(run: Path, lab: Lab) -> None:
    """As checkpoints were before they noted their stores."""
    content = load(newest(run))
    for entry in content["trained_on"]:
        del entry["stores"]
    torch.save(content, newest(run))
    other_features(run, lab)


def stores_odd(run: Path, _: Lab) -> None:
    content = load(newest(run))
    content["trained_on"][0]["stores"] = ["images.h5"]
    torch.save(content, newest(run))


def store_moved(_: Path, lab: Lab) -> None:
    if not (lab.folder / "moved.h5").exists():
        shutil.copy(lab.folder / "images.h5", lab.folder / "moved.h5")


NOT_ONE = r"checkpoints/step_00000006.pt: not a checkpoint, or truncated$"
RESUMED: dict[str, tuple[Damage, list[str], str]] = {
    # What is asked does not fit the run.
    "other_key": (nothing, ["optimizer.lr=0.1"], r"started with optimizer.lr = 0.003, not 0.1; "),
    "other_kind": (nothing, ["schedule.name=cosine"], r"started with schedule\.\w+ = "),
    "other_list": (nothing, ["data.train=[train, val]"], r"data.train = \('train',\), not \('tr"),
    "key_that_looks_free": (nothing, ["train.log_every=7"], r"train.log_every = 4, not 7"),
    # The run folder.
    "config_not_yaml": (write("config.yaml", "a: [1"), [], r"config.yaml:1: not valid YAML"),
    "config_not_text": (write("config.yaml", b"\xff\xfe"), [], r"config.yaml.* is not UTF-8 text"),
    "config_empty": (write("config.yaml", ""), [], r"config.yaml: \w+ is missing"),
    "config_of_something_else": (write("config.yaml", "a: 1"), [], r"config.yaml:1: a is not a k"),
    "metrics_shorter": (write("metrics.jsonl", "{}"), [], r"metrics.jsonl: shorter than when the"),
    "metrics_gone": (gone("metrics.jsonl"), [], r"metrics.jsonl: shorter than when the"),
    "environment_damaged": (write("environment.json", "{"), [], r"environment.json: not the JSON"),
    "environment_not_text": (write("environment.json", b"\xff"), [], r"environment.json: not the"),
    "environment_a_list": (write("environment.json", "[]"), [], r"environment.json: not the JSON"),
    "environment_other": (write("environment.json", '{"starts": 1}'), [], r"environment.json: not"),
    "checkpoints_gone": (gone("checkpoints"), [], r"/checkpoints: is missing, so there is nothing"),
    # The checkpoint.
    "empty": (write("checkpoints/step_00000006.pt", b""), [], NOT_ONE),
    "cut_early": (cut(0.01), [], NOT_ONE),
    "cut_late": (cut(0.5), [], NOT_ONE),
    "cut_at_the_end": (cut(0.999), [], NOT_ONE),
    "random": (write("checkpoints/step_00000006.pt", os.urandom(5000)), [], NOT_ONE),
    "text": (write("checkpoints/step_00000006.pt", "hello\n"), [], NOT_ONE),
    "a_folder": (a_folder, [], r"step_00000006.pt: no such checkpoint"),
    "code": (saved({"format": 1, "evil": Evil()}), [], r"not loaded, because it holds more than"),
    "code_in_a_pickle": (pickled, [], NOT_ONE),
    "code_in_the_old_format": (
        saved({"format": 1, "evil": Evil()}, _use_new_zipfile_serialization=False),
        [],
        NOT_ONE,
    ),
    "a_tensor": (saved(torch.zeros(3)), [], r"a torch file, but not a checkpoint written by"),
    "a_state": (saved({"weight": torch.zeros(3)}), [], r"a torch file, but not a checkpoint wr"),
    "other_format": (changed(format=99), [], r"checkpoint format 99; this version reads 1"),
    "keys_missing": (without("optimizer", "window"), [], r"the checkpoint lacks optimizer, window"),
    "weights_of_another_network": (
        other_weight,
        [],
        r"step_00000006.pt: does not fit the network that the config describes: norm.weight is "
        r"absent in the checkpoint and \(12,\) in the network \(and 2 more\)$",
    ),
    "no_optimiser": (changed(optimizer={}), [], r"holds no state of the optimiser"),
    "other_vocabulary": (changed(vocabulary_digest="0"), [], r"runs_\w+/small: the vocabulary of"),
    "other_questions": (changed(trained_on=[]), [], r"the training data has changed since the run"),
    "other_features": (
        other_features,
        ["data.images=[other/images.h5]"],
        r"runs_\w+/small: other/images.h5: the image store does not hold what the run was trained",
    ),
    "one_store_more": (
        other_features,
        ["data.images=[images.h5, other/images.h5]"],
        r"runs_\w+/small: other/images.h5: the image store does not hold what the run was trained",
    ),
    "odd_stores": (stores_odd, [], r"the checkpoint's trained_on is not as train.py writes it"),
    "no_sizes": (changed(sizes={}), [], r"the checkpoint's sizes is not as train.py writes it"),
    "no_position": (changed(position={}), [], r"the checkpoint's position is not as"),
    "odd_model": (changed(model={"a": 1}), [], r"the checkpoint's model is not as"),
}


def kept(folder: Path) -> dict[str, bytes]:
    """The files below a folder, without what the test itself writes there."""
    return {k: v for k, v in contents(folder).items() if not k.startswith("printed_")}


def refused(lab: Lab, folder: Path, args: list[str], sentence: str, script: str = "train") -> None:
    """One sentence, status 2, and not a byte changed in `folder`."""
    before = kept(folder)
    result = lab.execute(script, args)
    assert result.status == 2, result.err
    lines = result.err.splitlines()
    assert lines, result
    assert lines[-1].startswith("error: ")
    assert re.search(sentence, lines[-1]), lines[-1]
    assert len(result.errors()) == 1
    assert "Traceback" not in result.err
    assert result.out == ""
    assert kept(folder) == before
    assert not (lab.folder / "harm").exists()


@pytest.mark.parametrize("case", RESUMED)
def test_resume_refused(lab, case):
    damage, more, sentence = RESUMED[case]
    runs = lab.folder / f"runs_{case}"
    shutil.copytree(lab.folder / "runs" / "small", runs / "small")
    damage(runs / "small", lab)
    refused(lab, runs, [lab.config, f"runs={runs.name}", *more, "--resume"], sentence)


def test_the_run_that_was_damaged_is_sound(lab):
    """The control for all of the above."""
    shutil.copytree(lab.folder / "runs" / "small", lab.folder / "runs_sound" / "small")
    assert lab.execute("train", [lab.config, "runs=runs_sound", "--resume"]).status == 0


@pytest.mark.parametrize(
    ("damage", "images"),
    [(store_moved, "moved.h5"), (stores_unknown, "other/images.h5")],
    ids=["store_moved", "stores_unknown"],
)
def test_resume_accepted(lab, damage, images):
    runs = lab.folder / f"runs_with_{images.split('.')[0].replace('/', '_')}"
    shutil.copytree(lab.folder / "runs" / "small", runs / "small")
    damage(runs / "small", lab)
    args = [lab.config, f"runs={runs.name}", f"data.images=[{images}]", "--resume"]
    result = lab.execute("train", args)
    assert result.status == 0, result.err


def test_existing_run_without_resume(lab):
    runs = lab.folder / "runs"
    refused(lab, runs, [lab.config], r"runs/small: this run exists; continue it with --resume")
    changed = [lab.config, "optimizer.lr=0.1"]
    refused(lab, runs, changed, r"runs/small: this run exists; continue it with --resume")


def test_locked_run(lab):
    descriptor = os.open(lab.run("small") / ".lock", os.O_RDWR)
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    sentence = r"runs/small: another process is training this run"
    refused(lab, lab.folder / "runs", [lab.config, "--resume"], sentence)
    os.close(descriptor)


def test_run_made_by_another_process_in_the_meantime(lab):
    """Two are started at once: the second finds the run when it is about to make it."""

    def other() -> None:
        shutil.copytree(lab.run("small"), lab.run("race"))

    before = contents(lab.run("small"))
    result = lab.train("race", patch=at_call(Trainer, "__init__", 1, other))
    assert result.status == 2
    assert "runs/race: another process has made this run in the meantime" in result.errors()[0]
    assert contents(lab.run("race")) == before


def occupied(path: str, name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / path).mkdir(parents=True)
        (folder / path / name).write_text("mine")

    return make


NEW: dict[str, tuple[Callable[[Path], None], str]] = {
    "foreign_file": (occupied("new/small", "notes.txt"), r"new/small: exists and is not a run fo"),
    "foreign_checkpoints": (
        occupied("new/small/checkpoints", "step_00000007.pt"),
        r"new/small: exists and is not a run folder",
    ),
    "file_in_place_of_the_run": (occupied("new", "small"), r"new/small: exists and is not a run f"),
    "file_in_place_of_runs": (occupied("", "new"), r"new/small: cannot be written \(Not a dir"),
}


@pytest.mark.parametrize("case", NEW)
def test_start_refused(lab, tmp_path, case):
    make, sentence = NEW[case]
    make(tmp_path / "place")
    refused(lab, tmp_path, [lab.config, f"runs={tmp_path}/place/new"], sentence)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_read_only_runs_folder(lab, tmp_path):
    tmp_path.chmod(0o500)
    refused(lab, tmp_path, [lab.config, f"runs={tmp_path}/runs"], r"cannot be written \(Permission")


def test_runs_folder_that_takes_no_folder(lab):
    sentence = r"/proc/mcan/small: cannot be written \(No such file"
    refused(lab, Path("/proc/mcan"), [lab.config, "runs=/proc/mcan"], sentence)


@pytest.fixture(scope="module")
def others(lab) -> dict[str, Path]:
    """Other data beside the lab's."""
    pixels = make_synthetic(lab.folder / "pixels", questions=20, images=10, kind="pixels")
    wide = make_synthetic(lab.folder / "wide", questions=44, images=10, feature_dim=7)
    few = make_synthetic(lab.folder / "few", questions=5, images=10)
    vectors = lab.folder / "vectors.txt"
    vectors.write_text("word1 1 2 3\nword2 4 5 6\n")
    return {"pixels": pixels.images, "wide": wide.images, "few": few.prepared, "vectors": vectors}


CONFIGS: dict[str, tuple[list[str], str]] = {
    "no_config": (["nowhere.yaml"], r"nowhere.yaml: the file does not exist"),
    "unknown_key": (["config.yaml", "train.epoch=3"], r"command line: train.epoch is not a key"),
    "no_prepared": (["config.yaml", "data.prepared=nowhere"], r"nowhere: there is no such prepare"),
    "no_store": (["config.yaml", "data.images=[no.h5]"], r"no.h5: there is no such image store"),
    "no_split": (["config.yaml", "data.train=[tain]"], r"no split 'tain'; there is train, val"),
    "no_evaluated_split": (["config.yaml", "data.evaluate=x"], r"no split 'x'; there is train, va"),
    "pixels_for_regions": (
        ["config.yaml", "data.images=[pixels/images.h5]"],
        r"model.image.input is regions, but data.images \(pixels/images.h5\) holds pixels",
    ),
    "regions_for_pixels": (
        ["config.yaml", "model.image.input=pixels"],
        r"model.image.input is pixels, but data.images \(images.h5\) holds regions",
    ),
    "no_boxes": (
        ["config.yaml", "model.image.boxes=true"],
        r"model.image.boxes is true, but data.images \(images.h5\) has no boxes",
    ),
    "no_grid": (
        ["config.yaml", "model.image.position_encoding=true"],
        r"no store of data.images or data.grid has grid shapes",
    ),
    "stores_that_differ": (
        ["config.yaml", "data.images=[images.h5, wide/images.h5]"],
        r"wide/images.h5 holds regions \(7,\).*images.h5 holds regions \(6,\)",
    ),
    "vector_width": (
        ["config.yaml", "model.question.word_vectors={path: vectors.txt}"],
        r"model.question.embedding_size is 6, but the vectors of vectors.txt have 3 dimensions",
    ),
    "no_vectors": (
        ["config.yaml", "model.question.word_vectors={path: no.txt}"],
        r"no.txt",
    ),
    "workers_and_device": (
        ["config.yaml", "data.residency=device", "data.workers=2"],
        r"data.residency is device while data.workers is 2",
    ),
    "fewer_questions_than_a_batch": (
        ["config.yaml", "data.prepared=few/prepared", "train.drop_last=true"],
        r"5 questions make no whole batch of 8",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_refused(lab, others, case):
    args, sentence = CONFIGS[case]
    refused(lab, lab.folder / "runs", [*args, f"name={case}"], sentence)
    assert not lab.run(case).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(lab):
    sentence = r"train.device is cuda, but torch sees no CUDA device; use cpu or auto"
    refused(lab, lab.folder / "runs", [lab.config, "name=gpu", "train.device=cuda"], sentence)


def test_unknown_metric(lab, tmp_path):
    shutil.copytree(lab.folder / "prepared", tmp_path / "prepared")
    meta = tmp_path / "prepared" / "meta.json"
    meta.write_text(meta.read_text().replace('"vqa"', '"bleu"'))
    args = [lab.config, "name=metric", f"data.prepared={tmp_path}/prepared"]
    sentence = r"meta.json: metric is 'bleu', expected one of exact, vqa, vqa_pre2021; or set eval"
    refused(lab, lab.folder / "runs", args, sentence)
    assert lab.train("metric", *args[2:], "evaluation.metric=exact").status == 0


REPLACED: dict[str, tuple[dict[str, Any], str]] = {
    "questions": ({"questions": 48}, r"the training data has changed since the run"),
    "vocabulary": ({"vocabulary": 13}, r"the vocabulary of the prepared data has changed"),
    "answers": ({"answers": 6}, r"the vocabulary of the prepared data has changed"),
    "features": ({"feature_dim": 7}, r"small: images.h5: the image store does not hold what the r"),
}


@pytest.mark.parametrize("case", REPLACED)
def test_data_replaced_between_start_and_resume(lab, tmp_path, case):
    options, sentence = REPLACED[case]
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    mine, new = make_lab(tmp_path / "old"), make_lab(tmp_path / "new", **options)
    shutil.copytree(lab.run("small"), mine.run("small"))
    for name in ("prepared", "images.h5"):
        (mine.folder / name).rename(mine.folder / f"old_{name}")
        (new.folder / name).rename(mine.folder / name)
    refused(mine, mine.folder / "runs", [mine.config, "--resume"], sentence)
