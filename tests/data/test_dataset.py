"""A batch equals what a reader that goes question by question collects; counts over the dataset,
and what stops or warns before training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from store_toys import make_images, write_pixels, write_store
from torch.utils.data import DataLoader
from toys import VOCABULARY, make_examples, targets, write_folder

from mcan.batch import Batch
from mcan.build import preflight
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.data.sampler import BatchSampler
from mcan.data.store import open_store
from mcan.errors import DataError
from mcan.preparation.questions import Example
from mcan.text.vocabulary import tokenise

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
    write_store(folder / "text.h5", make_images(["0", "1", "2", "3"]))
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
    words = [VOCABULARY.encode(tokenise(e.question))[:max_tokens] for e in examples]
    assert batch.size == len(rows)
    assert batch.index.tolist() == list(rows)
    question = batch.question
    assert batch.index.dtype == question.tokens.dtype == torch.int64
    tokens = [word for entry in words for word in entry]
    assert question.tokens.tolist() == tokens + [0] * question.rows.filler
    assert question.rows.lengths.tolist() == [len(entry) for entry in words]
    dense = np.zeros((len(rows), 5), np.float32)
    for place, example in enumerate(examples):
        for answer, score in targets(example.answers):
            dense[place, answer] = score
    np.testing.assert_array_equal(batch.targets.dense(len(rows), 5), dense)
    image = batch.image
    regions = [IMAGES[int(example.image_id)] for example in examples]
    grid = [GRID[3 - int(example.image_id)] for example in examples]
    for x, its_rows, expected, width in (
        (image.regions, image.rows, regions, 5),
        (image.grid, image.grid_rows, grid, 7),
    ):
        assert x.shape == (its_rows.total, width)
        assert its_rows.lengths.tolist() == [len(each.rows) for each in expected]
        found = np.concatenate([np.zeros((0, width)), *(each.rows for each in expected)])
        np.testing.assert_array_equal(x[: its_rows.valid], found)
    assert len(image.grid_cells) == image.grid_rows.total
    assert image.pixels is None


@pytest.mark.parametrize("max_tokens", [None, 1, 3])
def test_batches_equal_single_questions(data: Path, max_tokens: int | None) -> None:
    dataset = make_dataset(data, max_tokens)
    assert len(dataset) == len(EXAMPLES)

    @given(st.lists(st.integers(0, len(EXAMPLES) - 1), max_size=9))
    def any_batch(rows: list[int]) -> None:
        check(dataset[rows], rows, max_tokens)

    any_batch()
    check(dataset[[]], [], max_tokens)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_yield_the_same(data: Path, method: str) -> None:
    dataset = make_dataset(data)
    sampler = BatchSampler(len(dataset), 4, seed=0, epoch=0)
    options = {"num_workers": 1, "multiprocessing_context": method}
    loader = DataLoader(dataset, batch_size=None, sampler=sampler, **options)
    pairs = list(zip(sampler, loader, strict=True))
    assert len(pairs) == 4
    for rows, batch in pairs:
        check(batch, rows, None)


def test_questions_share_images_in_evaluation_order(data: Path) -> None:
    dataset = make_dataset(data)
    order = dataset.evaluation_order()
    assert sorted(order.tolist()) == list(range(len(EXAMPLES)))
    ids = [EXAMPLES[row].image_id for row in order]
    assert sum(a != b for a, b in itertools.pairwise(ids)) == len(set(ids)) - 1
    image = dataset.with_shared_images()[[0, 4, 1]].image
    alone = dataset[[0, 1]].image
    assert EXAMPLES[0].image_id == EXAMPLES[4].image_id
    assert image.rows.lengths[image.of_question].tolist() == [
        len(IMAGES[int(EXAMPLES[row].image_id)].rows) for row in (0, 4, 1)
    ]
    assert len(image.rows.lengths) == len(alone.rows.lengths) == 2


def test_what_evaluation_asks_for(data: Path) -> None:
    dataset = make_dataset(data)
    assert dataset.question_ids() == [e.question_id for e in EXAMPLES]
    assert all(type(value) is int for value in dataset.question_ids())


def test_types_of_several_splits_are_renumbered(tmp_path: Path) -> None:
    examples = make_examples(5, [0])
    splits = {"a": examples[:3], "b": examples[:1:-1], "c": examples[4:]}
    write_folder(tmp_path / "p", splits)
    write_store(tmp_path / "i.h5", IMAGES)
    prepared = Prepared.open(tmp_path / "p")
    dataset = VQADataset([prepared.split(n) for n in splits], [open_store(tmp_path / "i.h5")])
    for kind in ("answer_type", "question_type"):
        types = getattr(dataset, f"{kind}s")
        expected = [getattr(e, kind) for split in splits.values() for e in split]
        assert [types.names[code] for code in types.codes] == expected
        assert len(set(types.names)) == len(types.names)


def test_pixels(data: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 2, 2), np.uint8)
    write_pixels(tmp_path / "p.h5", dict(enumerate(pixels)))
    split = Prepared.open(data / "prepared").split("train")
    dataset = VQADataset([split], [open_store(tmp_path / "p.h5")])
    image = dataset[[5, 0, 5]].image
    assert image.regions is None
    assert image.rows.lengths.tolist() == [1, 1, 1]
    expected = pixels[[int(EXAMPLES[row].image_id) for row in (5, 0, 5)]]
    np.testing.assert_array_equal(image.pixels, expected)
    with pytest.raises(DataError, match=r"p\.h5 holds pixels, expected grid features"):
        VQADataset([split], [open_store(data / "low.h5")], [open_store(tmp_path / "p.h5")])


@pytest.mark.parametrize(
    ("images", "grid", "example"),
    [("low.h5", None, "0"), ("grid.h5", "low.h5", "0"), ("text.h5", None, "'0'")],
)
def test_missing_images_are_counted_and_named(
    data: Path, images: str, grid: str | None, example: str
) -> None:
    missing = {e.image_id for e in EXAMPLES[:12]} - ({0, 1} if "text" not in images else set())
    questions = sum(e.image_id in missing for e in EXAMPLES[:12])
    stores = [[open_store(data / name)] if name else [] for name in (images, grid)]
    with pytest.raises(DataError) as error:
        VQADataset([Prepared.open(data / "prepared").split("train")], *stores)
    message = str(error.value)
    path = data / "prepared" / "train.h5"
    stores = data / (grid or images)
    counts = f"{len(missing)} images of {questions} questions"
    assert message.startswith(f"{path}: the image stores ({stores}) lack {counts}: ")
    assert all(repr(image_id) in message for image_id in missing)
    assert f"ids such as {example}" in message


def open_dataset(folder: Path, splits: dict[str, list[Example]]) -> VQADataset:
    write_folder(folder / "p", splits)
    write_store(folder / "i.h5", make_images([0, 1]))
    prepared = Prepared.open(folder / "p")
    return VQADataset([prepared.split(name) for name in splits], [open_store(folder / "i.h5")])


def answered(count: int, total: int, first: int = 0) -> list[Example]:
    """`total` questions about image 0 of two known and one unknown word, `count` with a target."""
    return [
        Example(first + number, 0, "is the penguin?", ["yes" if number < count else "?"] * 10)
        for number in range(total)
    ]


def test_counts(tmp_path: Path) -> None:
    counts, warnings = preflight(
        open_dataset(tmp_path, {"a": answered(7, 8), "b": make_examples(2, [1], first=10)})
    )
    # One unknown word in each of eight questions, and 8 * 3 + 5 + 3 words.
    assert counts == "10 questions on 2 images, 25.0% unknown words"
    (warning,) = warnings  # none for the other split
    assert warning.startswith(f"{tmp_path}/p/a.h5: 8 of 24 words (33%) are unknown")


@pytest.mark.parametrize(("with_target", "warns"), [(8, False), (7, True), (1, True)])
def test_warns_above_a_fifth(tmp_path: Path, with_target: int, warns: bool) -> None:
    _, warnings = preflight(open_dataset(tmp_path, {"a": answered(with_target, 10)}))
    assert len(warnings) == 1 + warns
    if warns:
        share = f"{10 - with_target} of 10 questions ({(10 - with_target) * 10}%)"
        assert share in warnings[0]


def test_no_target_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.h5: none of the 4 questions has an answer"):
        preflight(open_dataset(tmp_path, {"a": answered(0, 4)}))


def test_ids_are_unique_over_splits(tmp_path: Path) -> None:
    splits = {"a": answered(3, 3), "b": answered(3, 3, first=2)}
    with pytest.raises(DataError, match=r"a\.h5, .*b\.h5: question id 2 occurs more than once"):
        preflight(open_dataset(tmp_path, splits))
