"""How entry points wire config, data and network."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from runs import Lab, assert_same, make_lab, outcome
from torch import nn

import mcan.build
from mcan.build import (
    ModelSizes,
    answer_probabilities,
    build_model,
    check_fits,
    count_trained_on,
    memory_warnings,
    model_sizes,
    open_dataset,
    open_stores,
    predict_over_processes,
    restore_model,
    run_metadata,
    word_vectors,
)
from mcan.config import Config, load_config
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.engine.checkpoint import Checkpoint
from mcan.engine.processes import Processes
from mcan.errors import RunError
from mcan.limits import free_memory
from mcan.preparation.questions import Example
from mcan.preparation.recipe import write_prepared
from mcan.preparation.store_writer import ImageRows, StoreWriter
from mcan.text.vocabulary import Vocabulary, build_tokens

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return make_lab(tmp_path_factory.mktemp("lab"), grid=True, boxes=True)


def config_of(lab: Lab, *overrides: str) -> Config:
    here = [f"data.prepared={lab.folder}/prepared", f"data.images=[{lab.folder}/images.h5]"]
    return load_config(lab.folder / lab.config, [*here, *overrides])


def dataset_of(config: Config, *splits: str) -> Any:
    prepared = Prepared.open(config.data.prepared)
    return open_dataset(config, prepared, splits or ("train",), open_stores(config, Processes(CPU)))


def test_trained_on_means_the_same_images_and_questions(tmp_path):
    """Neither ids that start again in every split nor names of datasets and splits decide."""
    asked = [Example(n, f"i{n % 2}", f"what is {n}", ["yes"]) for n in range(4)]
    others = [example._replace(image_id=f"j{example.question_id % 2}") for example in asked]
    reworded = [example._replace(question=f"{example.question}?") for example in asked]
    swapped = [e._replace(image_id=e.question, question=e.image_id) for e in asked]
    renumbered = [example._replace(question_id=9 + example.question_id) for example in asked]
    vocabulary = Vocabulary(build_tokens(["what is"]), ("yes",))
    counted = {  # split -> its questions, and how many of them are those of train
        "mine/train": (asked, 4),
        "mine/val": (others, 0),
        "mine/reworded": (reworded, 0),
        "mine/swapped": (swapped, 0),
        "mine/again": (renumbered, 4),
        "mine/half": ([*others[:2], *renumbered[:2]], 2),  # cut into other splits
        "mine/part": (asked[1:], 3),
        "mine/more": ([*renumbered[::-1], *others], 4),
        "yours/train": (others[:3], 0),
    }
    opened = {}
    for folder in ("mine", "yours"):
        meta = {"dataset": "custom", "metric": "vqa", "sources": {}}
        paths = [Path(name) for name in counted if name.startswith(folder)]
        splits = {path.name: counted[str(path)][0] for path in paths}
        write_prepared(tmp_path / folder, splits, vocabulary, **meta)
        prepared = Prepared.open(tmp_path / folder)
        opened |= {f"{folder}/{name}": prepared.split(name) for name in splits}
    train = opened["mine/train"]
    names = {"dataset": "custom", "split": "train", "questions": 4}
    older = {**names, "digest": train.questions_digest, "content": train.digest}
    imported = {**names, "digest": "", "content": ""}

    def counts(trained: dict[str, Any], keys: Any = None) -> dict[str, int]:
        keys = None if keys is None else torch.from_numpy(np.sort(keys))
        made = SimpleNamespace(trained_on=[trained], question_keys=keys)
        checkpoint = cast(Checkpoint, made)
        found = {name: count_trained_on(checkpoint, prepared, opened[name]) for name in opened}
        return {name: count for name, count in found.items() if count}

    expected = {name: count for name, (_, count) in counted.items() if count}
    assert counts(names, train.question_keys) == expected
    limited = {**expected, "mine/train": 2, "mine/again": 2, "mine/part": 1, "mine/more": 2}
    assert counts(names, train.first(2).question_keys) == limited
    assert counts(older) == {"mine/train": 4, "mine/again": 4}
    assert counts(imported).keys() == {"mine/train", "yours/train"}


def test_keys_of_questions_are_unique(tmp_path):
    """As they are after a resume: equal runs have equal checkpoints."""
    asked = [Example(n, "i", "what is it", ["yes"]) for n in range(2)]
    vocabulary = Vocabulary(build_tokens(["what is it"]), ("yes",))
    meta = {"dataset": "custom", "metric": "vqa", "sources": {}}
    write_prepared(tmp_path, {"train": asked}, vocabulary, **meta)
    prepared = Prepared.open(tmp_path)
    config = Config(name="a", data={"prepared": str(tmp_path), "images": ["x.h5"]})
    group = SimpleNamespace(stores=[], row_shape=(4,))
    dataset = SimpleNamespace(images=group, grid=None, splits=[prepared.split("train")])
    made = run_metadata(config, prepared, cast(VQADataset, dataset), ModelSizes(5, 1, 4))
    assert made.question_keys is not None
    assert len(made.question_keys) == 1


def test_sizes_follow_the_data(lab):
    config = config_of(lab)
    vocabulary = Prepared.open(config.data.prepared).vocabulary
    sizes = model_sizes(vocabulary, dataset_of(config))
    assert sizes == ModelSizes(2 + 12 + 5, 5, 6, None)
    config = config_of(lab, f"data.grid=[{lab.folder}/grid.h5]")
    assert model_sizes(vocabulary, dataset_of(config)).grid_size == 6


def test_splits_follow_each_other(lab):
    dataset = dataset_of(config_of(lab, "data.max_tokens=2"), "val", "train")
    assert len(dataset) == 11 + 44
    assert [split.name for split in dataset.splits] == ["val", "train"]
    assert int(dataset[range(55)].question.rows.lengths.max()) == 2


@pytest.mark.parametrize("residency", ["disk", "memory", "device"])
def test_residency_changes_no_bit(lab, residency):
    plain = dataset_of(config_of(lab))[[3, 1, 2]]
    held = dataset_of(config_of(lab, f"data.residency={residency}"))[[3, 1, 2]]
    assert torch.equal(plain.image.regions, held.image.regions)
    assert torch.equal(plain.image.boxes, held.image.boxes)


def test_stores_that_were_extracted_differently(lab, tmp_path, capsys):
    """A warning names both; an equal extractor, or none, is no reason for it."""
    for name, extractor in {"a": {"grid": "x"}, "b": {"grid": "y"}, "c": {"grid": "y"}}.items():
        with StoreWriter(tmp_path / f"{name}.h5", provenance={"extractor": extractor}) as writer:
            writer.add(ImageRows(1, np.ones((2, 6), np.float32)))

    def shown(*names):
        stores = ", ".join(str(tmp_path / f"{name}.h5") for name in names)
        open_stores(config_of(lab, f"data.images=[{stores}]"), Processes(CPU))
        return capsys.readouterr().err

    assert shown("b", "c") == ""
    assert re.search(r"extracted in different ways: .*a.h5 by .* and .*c.h5 by ", shown("a", "c"))


def test_position_encoding_takes_cells_of_the_grid(lab):
    config = config_of(
        lab, "model.image.position_encoding=true", f"data.grid=[{lab.folder}/grid.h5]"
    )
    check_fits(config, dataset_of(config))


def test_word_vectors(lab, tmp_path):
    vocabulary = Prepared.open(lab.data.prepared).vocabulary
    assert word_vectors(config_of(lab), vocabulary) == (None, None)
    path = tmp_path / "vectors.txt"
    path.write_text("word1 1 2 3 4 5 6\nelse 0 0 0 0 0 1\nplus0 6 5 4 3 2 1\n")
    option = f"model.question.word_vectors={{path: {path}}}"
    matrix, coverage = word_vectors(config_of(lab, option), vocabulary)
    assert matrix is not None
    assert matrix.shape == (19, 6)
    found = {vocabulary.tokens[row]: matrix[row].tolist() for row in matrix.any(1).nonzero()[:, 0]}
    assert found == {"word1": [1, 2, 3, 4, 5, 6], "plus0": [6, 5, 4, 3, 2, 1]}
    assert coverage is not None
    assert coverage.startswith(f"{path}: ")


def checkpoint_of(config: Config) -> Checkpoint:
    prepared, dataset = Prepared.open(config.data.prepared), dataset_of(config)
    sizes = model_sizes(prepared.vocabulary, dataset)
    checkpoint = run_metadata(config, prepared, dataset, sizes)
    checkpoint.model = build_model(config.model, sizes).state_dict()
    checkpoint.source = Path("there.pt")
    return checkpoint


def test_a_checkpoint_describes_its_run(lab):
    config = config_of(lab)
    checkpoint, prepared = checkpoint_of(config), Prepared.open(lab.data.prepared)
    assert checkpoint.config == config.model_dump(mode="json")
    assert checkpoint.vocabulary_digest == prepared.vocabulary.digest
    split, (trained,) = prepared.split("train"), checkpoint.trained_on
    assert trained == {
        "dataset": "synthetic",
        "split": "train",
        "questions": 44,
        "content": split.digest,
        "stores": {str(lab.data.images): open_store(lab.data.images).digest},
        "made_by": {str(lab.data.images): '{"made_up": true}'},
        "image_shape": [6],
    }
    assert checkpoint.question_keys.tolist() == sorted(split.question_keys.tolist())
    both = checkpoint_of(config_of(lab, f"data.grid=[{lab.data.grid}]")).trained_on[0]["stores"]
    assert both.keys() == {str(lab.data.images), str(lab.data.grid)}
    model = restore_model(checkpoint, config, dataset_of(config))
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, checkpoint.model[name])
    with pytest.raises(RunError, match=r"there.pt: does not fit the config: of another shape: cas"):
        restore_model(checkpoint, config_of(lab, "model.hidden_size=16"), dataset_of(config))
    checkpoint.sizes["feature_size"] = 7
    with pytest.raises(
        RunError, match=r"takes features of width 7 and no grid, but .* width 6 and no grid"
    ):
        restore_model(checkpoint, config, dataset_of(config))


@pytest.mark.parametrize("loss", ["bce_sum", "cross_entropy"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_predictions(lab, loss, precision):
    config = config_of(lab, f"train.loss={loss}", f"evaluation.precision={precision}")
    dataset = dataset_of(config)
    model = restore_model(checkpoint_of(config), config, dataset)
    score = answer_probabilities([model], loss)
    found = predict_over_processes(score, dataset, config, Processes(CPU), top=5)
    exact = dataset[range(44)].enter(CPU, "padded")
    with torch.no_grad():
        logits = model(exact.question, exact.image)
    expected = logits.softmax(1) if loss == "cross_entropy" else 1 / (1 + (-logits).exp())
    tolerance = 1e-6 if precision == "float32" else 0.02
    probabilities = torch.from_numpy(found.probabilities)
    picked = expected.gather(1, torch.from_numpy(found.answers))
    torch.testing.assert_close(probabilities, picked, atol=tolerance, rtol=0)


class Keeps(nn.Module):
    """Keeps 4,000 bytes of each question for the backward pass of 1,000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000))
        self.frozen = nn.Parameter(torch.ones(5000), requires_grad=False)

    def forward(self, question: Any, image: Any) -> torch.Tensor:
        return torch.ones(2, 1000) * self.weight


STEP = 4000 * 64 + 3 * 4000


@pytest.mark.parametrize(
    ("overrides", "processes", "needed"),
    [
        ([], 1, STEP),
        (["train.accumulation=4"], 1, 4000 * 16 + 3 * 4000),
        (["train.precision=bf16"], 1, 2000 * 64 + 3 * 4000),
        ([], 2, 2 * (4000 * 32 + 3 * 4000)),
    ],
)
def test_memory_of_a_step(lab, monkeypatch, overrides, processes, needed):
    config = config_of(lab, "train.batch_size=64", *overrides)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    job = Processes(CPU, 0, processes)

    def warnings(free: int | None) -> list[str]:
        monkeypatch.setattr("mcan.build.free_memory", lambda device: free)
        return [*memory_warnings(Keeps(), dataset_of(config), config, job)]

    assert warnings(None) == warnings(needed) == []
    (warning,) = warnings(needed - 1)
    assert "free on cpu; raise train.accumulation or lower train.batch_size" in warning


def test_training_warns_of_little_memory_and_goes_on_as_it_would(lab):
    def little() -> None:
        mcan.build.free_memory = lambda device: 1 << 14

    warned = lab.train("warned", "train.epochs=1", patch=little)
    assert warned.status == 0
    assert "warning: a step needs at least 0.0 GiB of memory, but 0.0 GiB are free" in warned.err
    quiet = lab.train("quiet", "train.epochs=1")
    assert "GiB" not in quiet.err
    assert_same(outcome(lab.run("warned")), outcome(lab.run("quiet")))


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 8 << 30),
        ({"a": "max"}, 8 << 30),
        ({"a": 6 << 30}, 5 << 30),  # 2 used, 1 of them pages of files
        ({"a": 6 << 30, "a/job": 4 << 30}, 3 << 30),
        ({"a/job": 20 << 30}, 8 << 30),
    ],
)
def test_free_memory_within_control_groups(tmp_path, monkeypatch, limits, expected):
    monkeypatch.setattr("mcan.limits.ROOT", tmp_path)
    assert free_memory(CPU) is None
    groups = tmp_path / "sys/fs/cgroup"
    (groups / "a/job").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99 kB\nMemAvailable:    8388608 kB\n")
    assert free_memory(CPU) == 8 << 30
    (tmp_path / "proc/self/cgroup").write_text("0::/a/job\n")
    for group, limit in limits.items():
        (groups / group / "memory.max").write_text(f"{limit}\n")
        (groups / group / "memory.current").write_text(f"{2 << 30}\n")
        (groups / group / "memory.stat").write_text(f"anon 5\nfile {3 << 29}\nshmem {1 << 29}\n")
    assert free_memory(CPU) == expected
