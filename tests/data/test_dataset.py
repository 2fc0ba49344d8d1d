"""A batch equals what a reader that goes question by question collects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from toys import (
    VOCABULARY,
    make_examples,
    make_images,
    targets,
    write_folder,
    write_store,
)

from mcan.batch import Batch
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.data.sampler import BatchSampler
from mcan.data.store import open_store
from mcan.data.store_writer import PixelStoreWriter
from mcan.errors import DataError
from mcan.text.tokens import tokenise
from mcan.text.vocabulary import Vocabulary

IMAGES = make_images([0, 1, 2, 3], seed=1)
GRID = make_images([3, 2, 1, 0], dim=7, seed=2)
EXAMPLES = [*make_examples(12, [0, 1, 2, 3]), *make_examples(3, [2, 3], first=12)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder / "prepared", {"train": EXAMPLES[:12], "test": EXAMPLES[12:]})
    write_store(folder / "low.h5", IMAGES[:2])
    write_store(folder / "high.h5", IMAGES[2:])
    write_store(folder / "grid.h5", GRID)
    return folder


def make_dataset(data: Path, max_tokens: int | None = None) -> VQADataset:
    prepared = Prepared.open(data / "prepared")
    return VQADataset(
        [prepared.split("train"), prepared.split("test")],
        [open_store(data / "low.h5"), open_store(data / "high.h5")],
        [open_store(data / "grid.h5")],
        max_tokens,
    )


def check(batch: Batch, rows: Sequence[int], max_tokens: int | None) -> None:
    examples = [EXAMPLES[row] for row in rows]
    images = [IMAGES[int(example.image_id)] for example in examples]
    cells = [GRID[3 - int(example.image_id)] for example in examples]
    words = [VOCABULARY.encode(tokenise(e.question))[:max_tokens] for e in examples]
    assert batch.size == len(rows)
    assert batch.index.tolist() == list(rows)
    assert batch.index.dtype == batch.question.values.dtype == torch.int64
    assert batch.question.values.tolist() == [word for entry in words for word in entry]
    assert batch.question.layout.lengths.tolist() == [len(entry) for entry in words]
    assert batch.question.layout.longest == max(map(len, words), default=0)
    assert batch.question.layout.total == sum(map(len, words))
    dense = np.zeros((len(rows), 5), np.float32)
    for place, example in enumerate(examples):
        for answer, score in targets(example.answers):
            dense[place, answer] = score
    np.testing.assert_array_equal(batch.targets.dense(len(rows), 5), dense)
    assert batch.image.regions is not None
    assert batch.image.grid is not None
    assert batch.image.grid_cells is not None
    for packed, expected, width in ((batch.image.regions, images, 5), (batch.image.grid, cells, 7)):
        assert packed.values.shape[1] == width
        for found, image in zip(packed.split(), expected, strict=True):
            np.testing.assert_array_equal(found, image.features)
    assert len(batch.image.grid_cells) == batch.image.grid.layout.total
    assert batch.image.pixels is None


@pytest.mark.parametrize("max_tokens", [None, 1, 3])
def test_batches_equal_single_questions(data: Path, max_tokens: int | None) -> None:
    dataset = make_dataset(data, max_tokens)
    assert len(dataset) == len(EXAMPLES)

    @given(st.lists(st.integers(0, len(EXAMPLES) - 1), max_size=9))
    def any_batch(rows: list[int]) -> None:
        check(dataset[rows], rows, max_tokens)

    any_batch()
    check(dataset[[]], [], max_tokens)


def test_empty_batch_can_be_padded(data: Path) -> None:
    batch = make_dataset(data)[[]]
    assert batch.image.regions is not None
    assert batch.image.regions.padded().shape == (0, 0, 5)
    assert batch.question.padded().shape == (0, 0)
    assert batch.targets.dense(0, 5).shape == (0, 5)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_yield_the_same(data: Path, method: str) -> None:
    dataset = make_dataset(data)
    sampler = BatchSampler(len(dataset), 4, seed=0, epoch=0)
    loader: DataLoader[Batch] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=None,
        sampler=sampler,
        num_workers=1,
        multiprocessing_context=method,
    )
    count = 0
    for rows, batch in zip(sampler, loader, strict=True):
        check(batch, rows, None)
        count += 1
    assert count == 4


def test_accessors_by_row(data: Path) -> None:
    dataset = make_dataset(data)
    rows = [14, 0, 12, 3, 3]
    examples = [EXAMPLES[row] for row in rows]
    assert dataset.question_ids(rows) == [e.question_id for e in examples]
    assert dataset.image_ids(rows) == [e.image_id for e in examples]
    assert dataset.questions(rows) == [e.question for e in examples]
    assert dataset.human_answers(rows) == [list(e.answers) for e in examples]
    assert all(type(value) is int for value in dataset.question_ids(rows))
    assert dataset.question_ids([]) == []
    for types, attribute in (
        (dataset.answer_types, "answer_type"),
        (dataset.question_types, "question_type"),
    ):
        found = [types.names[code] for code in types.codes]
        assert found == [getattr(example, attribute) for example in EXAMPLES]


def test_types_of_several_splits_are_renumbered(tmp_path: Path) -> None:
    examples = make_examples(5, [0])
    write_folder(tmp_path / "p", {"a": examples[:3], "b": examples[:1:-1], "c": examples[4:]})
    write_store(tmp_path / "i.h5", IMAGES)
    prepared = Prepared.open(tmp_path / "p")
    dataset = VQADataset([prepared.split(n) for n in "abc"], [open_store(tmp_path / "i.h5")])
    types = dataset.question_types
    expected = [e.question_type for e in [*examples[:3], *examples[:1:-1], *examples[4:]]]
    assert [types.names[code] for code in types.codes] == expected
    assert len(set(types.names)) == len(types.names)


def test_pixels(data: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 2, 2), np.uint8)
    with PixelStoreWriter(tmp_path / "p.h5", (3, 2, 2)) as writer:
        for number in range(4):
            writer.add(number, pixels[number])
    split = Prepared.open(data / "prepared").split("train")
    dataset = VQADataset([split], [open_store(tmp_path / "p.h5")])
    image = dataset[[5, 0, 5]].image
    assert image.regions is None
    expected = pixels[[int(EXAMPLES[row].image_id) for row in (5, 0, 5)]]
    np.testing.assert_array_equal(image.pixels, expected)
    with pytest.raises(DataError, match=r"p\.h5 holds pixels, expected grid features"):
        VQADataset([split], [open_store(data / "low.h5")], [open_store(tmp_path / "p.h5")])


def test_missing_images_are_counted_and_named(data: Path) -> None:
    split = Prepared.open(data / "prepared").split("train")
    low = open_store(data / "low.h5")
    missing = sorted({e.image_id for e in EXAMPLES[:12]} - {0, 1})
    questions = sum(e.image_id in missing for e in EXAMPLES[:12])
    with pytest.raises(DataError) as error:
        VQADataset([split], [low])
    message = str(error.value)
    assert message.startswith(f"{len(missing)} images of {questions} questions are in none of")
    assert str(data / "low.h5") in message
    assert all(repr(image_id) in message for image_id in missing)
    assert "ids such as 0" in message
    with pytest.raises(DataError, match=r"in none of the image stores"):
        VQADataset([split], [low, open_store(data / "high.h5")], [low_grid(data)])


def low_grid(data: Path) -> Any:
    path = data / "low_grid.h5"
    return open_store(path if path.exists() else write_store(path, GRID[2:]))


def test_ids_of_another_type_are_missing(data: Path, tmp_path: Path) -> None:
    images = make_images(["0", "1", "2", "3"])
    store = open_store(write_store(tmp_path / "text.h5", images))
    with pytest.raises(DataError, match=r"in none .* ids such as '0'"):
        VQADataset([Prepared.open(data / "prepared").split("train")], [store])


def test_splits_of_different_vocabularies(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Vocabulary(VOCABULARY.tokens, VOCABULARY.answers[::-1])
    monkeypatch.setattr("toys.VOCABULARY", other)
    write_folder(tmp_path / "other", {"train": EXAMPLES[:2]})
    splits = [Prepared.open(p).split("train") for p in (data / "prepared", tmp_path / "other")]
    with pytest.raises(DataError, match="were made with different vocabularies"):
        VQADataset(splits, [open_store(data / "low.h5")])
