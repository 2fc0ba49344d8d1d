"""The command of a dataset folder: vocabularies, targets, ids, validation split, table; and the
folder that it writes: content, refusals, and never half of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vqa_toys import TEST, TRAIN, VAL, Row, load_recipe, prepare, targets, write_split

from mcan.data.prepared import Prepared
from mcan.engine.checkpoint import Checkpoint
from mcan.errors import DataError, RunError
from mcan.evaluation.metrics import soft_score
from mcan.files import sha256_of
from mcan.preparation.questions import Example
from mcan.preparation.recipe import write_prepared
from mcan.text.answers import normalise_answer
from mcan.text.vocabulary import SPECIAL_TOKENS, Vocabulary, tokenise

CUSTOM = load_recipe("custom")


def test_a_prepared_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_split(tmp_path, "train", TRAIN)
    files += write_split(tmp_path, "val", VAL, ".json.gz") + write_split(tmp_path, "test", TEST)
    prepared = prepare(CUSTOM, tmp_path, *files)
    assert (prepared.dataset, prepared.metric) == ("custom", "vqa_normalised")
    assert prepared.splits == ("train", "val", "test")
    command = f"python data/custom/prepare.py {' '.join(files)}"
    assert prepared.meta["command"] == command
    assert len(prepared.meta["sources"]) == 5
    # In the order of the questions: "a dog" is normalised, "a" is nothing.
    assert prepared.vocabulary.answers == ("yes", "2", "dog", "no", "")
    words = [word for _, _, text, _ in TRAIN for word in tokenise(text)]
    assert prepared.vocabulary.words == tuple(dict.fromkeys(words))
    assert targets(prepared, "train") == {
        11: {"yes": 1.0},
        10: {"2": 1.0},
        20: {"dog": 1.0},
        21: {"yes": 1.0, "no": 0.6},
        30: {"no": 1.0},
        31: {"": 1.0},
    }
    assert targets(prepared, "val") == {40: {"yes": 1.0}, 41: {}}
    train = prepared.split("train")
    assert train.human_answers[1] == list(TRAIN[1][3])
    assert train.question_types.names == ("is", "how", "what's", "what")
    captured = capsys.readouterr()
    printed = [" ".join(line.split()) for line in captured.out.splitlines()]
    assert printed == [
        f"{tmp_path / 'prepared'}: 19 tokens, 5 answers",
        "split questions images words unknown with target bound",
        "train 6 3 21 0 100.00 % 100.00 %",
        "val 2 1 6 2 50.00 % 50.00 %",
        "test 2 1 6 2 - -",
    ]
    for split in ("val", "test"):
        warning = f"{tmp_path / 'prepared'}, split {split}: 2 of 6 words (33%) are unknown"
        assert warning in captured.err


def random_rows(questions: int, seed: int = 0) -> list[Row]:
    random = np.random.default_rng(seed)
    pool = ["yes", "No.", "a cat", "cat", "two", "2", "the", "blue!", "Dont", "1,000"]
    rows: list[Row] = []
    for number in range(questions):
        text = " ".join(f"w{k}" for k in random.integers(0, 40, 5))
        question_id, image_id = number * 7919 % 10007, int(random.integers(30))
        rows.append((question_id, image_id, text, random.choice(pool, 10).tolist()))
    return rows


@pytest.mark.parametrize(
    ("arguments", "splits", "min_count", "top", "every"),
    [
        ("--min-answer-count 9", ["train"], 9, None, False),
        ("--answer-splits val train", ["val", "train"], 1, None, False),
        ("--top-answers 3", ["train"], 1, 3, False),
        ("--min-answer-count 12 --top-answers 6", ["train"], 12, 6, False),
        ("--count-answers every --min-answer-count 110", ["train"], 110, None, True),
    ],
)
def test_answer_vocabulary_by_brute_force(
    tmp_path: Path, arguments: str, splits: list[str], min_count: int, top: int | None, every: bool
) -> None:
    rows = {"train": random_rows(120), "val": random_rows(60, seed=1)}
    files = [word for name in rows for word in write_split(tmp_path, name, rows[name])]
    prepared = prepare(CUSTOM, tmp_path, *files, *arguments.split())
    given = [
        normalise_answer(answer)
        for name in splits
        for _, _, _, answers in rows[name]
        for answer in (answers if every else answers[:1])
    ]
    counts = Counter(given)
    ranked = sorted(counts, key=lambda answer: (-counts[answer], given.index(answer)))
    kept = {answer for answer in ranked[:top] if counts[answer] >= min_count}
    assert prepared.vocabulary.answers == tuple(sorted(kept, key=given.index))
    assert len(kept) > 1


def test_token_splits_and_their_order(tmp_path: Path) -> None:
    files = [*write_split(tmp_path, "train", TRAIN), *write_split(tmp_path, "test", TEST)]
    prepared = prepare(CUSTOM, tmp_path, *files, "--token-splits", "test", "train")
    assert prepared.vocabulary.words[:5] == ("is", "it", "new", "old", "a")
    assert prepared.meta["splits"]["test"]["unknown_words"] == 0


def test_carving_is_by_image_and_reproducible(tmp_path: Path) -> None:
    rows = random_rows(200)  # about 30 images
    files = write_split(tmp_path, "train", rows)

    def split(folder: str, *arguments: str) -> tuple[set[Any], set[Any], Prepared]:
        prepared = prepare(CUSTOM, tmp_path / folder, *files, *arguments)
        images = {name: set(prepared.split(name).image_ids.tolist()) for name in ("train", "val")}
        return images["train"], images["val"], prepared

    train, val, prepared = split("a", "--carve-validation", "0.2")
    assert train | val == {image for _, image, _, _ in rows}
    assert not train & val
    assert len(val) == 6
    counts = prepared.meta["splits"]
    assert counts["train"]["questions"] + counts["val"]["questions"] == 200
    words = {word for _, image, text, _ in rows if image in train for word in tokenise(text)}
    assert set(prepared.vocabulary.words) == words
    assert split("b", "--carve-validation", "0.2")[1] == val
    assert split("c", "--carve-validation", "0.2", "--seed", "1")[1] != val
    assert len(split("d")[1]) == 3  # a tenth by default
    assert len(split("few", "--carve-validation", "0.01")[1]) == 1
    assert len(split("many", "--carve-validation", "0.99")[0]) == 1
    alone = prepare(CUSTOM, tmp_path / "none", *files, "--carve-validation", "0")
    assert alone.splits == ("train",)


def stored(folder: Path) -> Vocabulary:
    """The vocabulary of the run that this makes in `folder`."""
    vocabulary = Vocabulary((*SPECIAL_TOKENS, "old", "it"), ("yes", "zebra"))
    sizes = {"tokens": 5, "answers": 3, "feature_size": 6, "grid_size": None}
    content = Checkpoint({}, vocabulary.to_json(), vocabulary.digest, sizes, [], {})
    (folder / "checkpoints").mkdir(parents=True)
    content.save(folder / "checkpoints" / "step_00000003.pt")
    return vocabulary


def test_the_vocabulary_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a training split; the same from the folder and from the file."""
    vocabulary, path = stored(tmp_path / "mine"), tmp_path / "mine/checkpoints/step_00000003.pt"
    files = [*write_split(tmp_path, "val", VAL), *write_split(tmp_path, "test", TEST)]
    for run in (tmp_path / "mine", path):
        prepared = prepare(CUSTOM, tmp_path, *files, "--vocabulary-from", str(run), "--force")
        assert prepared.vocabulary == vocabulary
        assert prepared.splits == ("val", "test")
        assert targets(prepared, "val") == {40: {"yes": 1.0}, 41: {"zebra": 1.0}}
        assert prepared.split("test").tokens[1].tolist() == [1, 3, 2]  # Is it old?
        name = "mine/checkpoints/step_00000003.pt"
        assert prepared.meta["vocabulary"] == {"tokens": 4, "answers": 2, "from": name}
        assert prepared.meta["sources"][name] == sha256_of(path)
        assert prepared.meta["command"].endswith(f" --vocabulary-from {run}")
    printed = capsys.readouterr().err
    assert "are unknown to the vocabulary" in printed
    assert "--token-splits" not in printed
    alone = prepare(CUSTOM, tmp_path / "b", *write_split(tmp_path, "train", TRAIN))
    assert "from" not in alone.meta["vocabulary"]


@pytest.mark.parametrize(
    "more", ["--token-splits test", "--top-answers 3", "--count-answers every"]
)
def test_the_vocabulary_of_a_run_is_taken_as_it_is(tmp_path: Path, more: str) -> None:
    stored(tmp_path / "mine")
    files = [*write_split(tmp_path, "test", TEST), "--vocabulary-from", str(tmp_path / "mine")]
    with pytest.raises(DataError, match="brings words and answers; leave out what chooses others"):
        prepare(CUSTOM, tmp_path, *files, *more.split())
    (tmp_path / "mine/checkpoints/step_00000003.pt").write_bytes(b"junk")
    for run, message in (("mine", "not a checkpoint"), ("nowhere", "neither a checkpoint nor a")):
        with pytest.raises(RunError, match=f"{run}.*{message}"):
            prepare(CUSTOM, tmp_path, *files[:-1], str(tmp_path / run))
    assert not (tmp_path / "prepared").exists()


TRAIN_VAL = {"train": TRAIN, "val": VAL}
TEXT_IDS: list[Row] = [(str(question), *rest) for question, *rest in VAL]  # type: ignore[misc]
TEXT_IMAGES: list[Row] = [(q, str(image), *rest) for q, image, *rest in VAL]  # type: ignore[misc]
REFUSED: list[tuple[str, dict[str, list[Row]], str]] = [
    ("vocabulary needs split 'dev', but there is train, val", TRAIN_VAL, "--token-splits=dev"),
    ("no answer occurs 99 times in train; choose", TRAIN_VAL, "--min-answer-count 99"),
    ("--carve-validation is 1.0, expected", TRAIN_VAL, "--carve-validation 1"),
    ("--files: a split is given twice", TRAIN_VAL, "--files val x.json"),
    ("--files dev: expected a split and its file", TRAIN_VAL, "--files dev"),
    ("nowhere.json: cannot be read", TRAIN_VAL, "--files dev nowhere.json"),
    ("'a/b' cannot be the name", TRAIN_VAL, "--files a/b {}/questions_train.json"),
    ("no answer occurs 1 time in test", {"train": TRAIN, "test": TEST}, "--answer-splits test"),
    ("of one image none can be held out", {"train": TRAIN[:2]}, ""),
    ("needs split 'train', but there is test; choose with", {"test": TEST}, ""),
    ("--answer-splits, or take that of a model with --vocabulary-from", {"test": TEST}, ""),
    (
        "raw: questions.json is not there; the README of the dataset folder says where to get it, "
        "--splits leaves a split out, and --files SPLIT FILE names",
        {},
        "--raw {}/raw",
    ),
    ("val.json: question '40': question id is '40' while", {"train": TRAIN, "val": TEXT_IDS}, ""),
    ("question 40: image id is '4' while", {"train": TRAIN, "val": TEXT_IMAGES}, ""),
]


@pytest.mark.parametrize(("message", "rows", "arguments"), REFUSED)
def test_refused(tmp_path: Path, message: str, rows: dict[str, list[Row]], arguments: str) -> None:
    files = [word for name, split in rows.items() for word in write_split(tmp_path, name, split)]
    with pytest.raises(DataError) as error:
        prepare(CUSTOM, tmp_path, *files, *arguments.format(tmp_path).split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "prepared").exists()


VOCABULARY = Vocabulary((*SPECIAL_TOKENS, "is", "it", "red"), ("yes", "2", "dog", ""))
EXAMPLES = [
    Example(7, 1, "Is it red?", ["yes"] * 8 + ["Yes."] * 2, "yes/no", "is it"),
    Example(9, 2, "How many?", ["two"] * 2 + ["2"] + ["three"] * 7, "number", ""),
    Example(8, 1, "???", ["a"] * 10, "other", ""),
]


def write(folder: Path, splits: dict[str, Any], **options: Any) -> Any:
    options = {"dataset": "toy", "metric": "vqa", "sources": {}, **options}
    return write_prepared(folder, splits, VOCABULARY, **options)


POOL = ["yes", "Yes!", "a dog", "dog", "cat", "two", "2", "the", ""]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(POOL), max_size=10), min_size=1, max_size=6),
    st.sampled_from(["vqa", "vqa_pre2021", "vqa_normalised", "exact"]),
)
def test_targets_are_the_credit_of_each_answer(
    tmp_path_factory: pytest.TempPathFactory, answers: list[list[str]], metric: str
) -> None:
    folder = tmp_path_factory.mktemp("targets") / "p"
    examples = [Example(n, 0, "?", human) for n, human in enumerate(answers)]
    write(folder, {"a": examples}, metric=metric)
    found = targets(Prepared.open(folder), "a")
    for number, human in enumerate(answers):
        expected = {
            answer: pytest.approx(
                1 if metric == "exact" else soft_score(count, len(human)), abs=1e-6
            )
            for answer, count in Counter(map(normalise_answer, human)).items()
            if answer in VOCABULARY.answers
        }
        assert found[number] == expected
        assert list(found[number]) == list(expected)  # in order of first appearance


def test_counts(tmp_path: Path) -> None:
    counts = write(tmp_path / "p", {"a": EXAMPLES, "b": [Example(1, 1, "is it red")]})
    assert counts == Prepared.open(tmp_path / "p").meta["splits"]
    names = ["questions", "images", "words", "unknown_words", "without_target", "bound"]
    names.append("bound_normalised")
    assert counts["b"] == dict(zip(names, (1, 1, 3, 0, 1, None, None), strict=True))
    # "a", given by all, is not normalised by the metric; "2" is the best of the second question.
    bounds = pytest.approx((1 + 0.9 + 0) / 3), pytest.approx((1 + 0.9 + 1) / 3)
    assert counts["a"] == dict(zip(names, (3, 2, 6, 3, 0, *bounds), strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "prepared", {"a": EXAMPLES, "b": EXAMPLES[:1]})
    return tmp_path / "prepared"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def failing(error: BaseException) -> Iterator[Example]:
    yield from EXAMPLES
    raise error


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_an_interrupted_writer_changes_nothing(folder: Path, error: BaseException) -> None:
    before = snapshot(folder.parent)
    for output in (folder, folder.parent / "new"):
        with pytest.raises(type(error)):
            write(output, {"a": EXAMPLES[:1], "b": failing(error)}, force=True)
    assert snapshot(folder.parent) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_existing_folder_needs_force(folder: Path) -> None:
    before = snapshot(folder.parent)
    with pytest.raises(DataError, match=r"prepared: already exists; replace it with --force"):
        write(folder, {"new": EXAMPLES[:1]})
    assert snapshot(folder.parent) == before
    write(folder, {"new": EXAMPLES[:1]}, force=True)
    assert {f.name for f in folder.iterdir()} == {"new.h5", "meta.json", "vocabulary.json"}
    assert list(folder.parent.iterdir()) == [folder]


def test_force_spares_what_it_did_not_write(folder: Path) -> None:
    (folder / "features.h5").write_text("precious")
    (folder.parent / "home").mkdir()
    (folder.parent / "home" / "thesis.tex").write_text("precious")
    (folder.parent / "file").write_text("precious")
    before = snapshot(folder.parent)
    for name, message in (
        ("prepared", r"contains features\.h5, which prepare\.py did not write"),
        ("home", r"contains thesis\.tex, which prepare\.py did not write"),
        ("file", "Not a directory"),
    ):
        with pytest.raises(DataError, match=message):
            write(folder.parent / name, {"a": EXAMPLES[:1]}, force=True)
    assert snapshot(folder.parent) == before


def test_an_empty_folder_is_used_and_further_files_appear_with_it(tmp_path: Path) -> None:
    def extra_files(folder: Path) -> None:
        assert list(tmp_path.iterdir()) == []
        (folder / "images.h5").write_text("images")

    write(tmp_path, {"a": EXAMPLES[:1]}, extra_files=extra_files)
    assert (tmp_path / "images.h5").read_text() == "images"
    write(tmp_path, {"a": EXAMPLES[:1]}, force=True)
    assert not (tmp_path / "images.h5").exists()


BAD_EXAMPLES: list[tuple[str, list[tuple[Any, ...]]]] = [
    ("question id 7 occurs more than once", [(7, 1, "a"), (7, 1, "b")]),
    ("question 'x': question id is 'x' while an earlier one is 7", [(7, 1, "a"), ("x", 1, "b")]),
    ("question 8: image id is 'x' while", [(7, 1, "a"), (8, "x", "b")]),
    ("question 7: image id is 1.0", [(7, 1.0, "a")]),
    ("question 7: None is not a string", [(7, 1, None)]),
    ("question 7: .* is not a string of valid Unicode", [(7, 1, "a", ["\udc00"])]),
    ("expected an integer of 64 bits", [(2**63, 1, "a")]),
    ("the split has no question", []),
]


@pytest.mark.parametrize(("message", "examples"), BAD_EXAMPLES)
def test_bad_examples_are_named(
    tmp_path: Path, message: str, examples: list[tuple[Any, ...]]
) -> None:
    with pytest.raises(DataError, match=rf"train\.h5: .*{message}"):
        write(tmp_path / "p", {"train": [Example(*fields) for fields in examples]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "/tmp"])
def test_split_names_must_be_file_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="split name"):
        write(tmp_path / "p", {name: EXAMPLES[:1]})
