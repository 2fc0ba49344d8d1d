"""The best answers of a vocabulary, scored as a result file, reach the bound of `prepare.py`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from test_easy_vqa import make_wheel
from test_vqa_family import ANSWERS, vizwiz
from vqa_toys import Row, load_recipe, prepare, write_json, write_split

from mcan.data.arrays import array_to_ids
from mcan.data.prepared import Prepared
from mcan.evaluation.metrics import METRICS, accuracies, percentage
from mcan.evaluation.results import read_results

ALL = ["--carve-validation", "0"]
CASE = [("yes", ["Yes"]), ("2", ["two"]), ("dog", ["A dog"] * 3), ("x ray", ["X-ray"])]
CASE += [("liver", ["the liver"]), ("", ["a"]), ("yes no", [" -yes-no\n"]), ("1000", ["1,000!"])]


def people_who_agree() -> list[Row]:
    return [(n, f"i{n}", "what is it", given) for n, (_, given) in enumerate(CASE)]


def people_who_disagree(seed: int) -> list[Row]:
    """Questions with one to ten people who write some words in many ways."""
    rng = random.Random(seed)
    written = ["Yes", "yes.", " yes", "Two", "2", "The Dog", "a dog", "x-ray!", "X ray", "an"]
    written += ["1,000", "1000", "dont", "don't", "left-hand, side -far", "...", "?", "it's 5_0"]
    return [
        (n, n // 3, "what is it", [rng.choice(written) for _ in range(1 + n % 10)])
        for n in range(120)
    ]


def perfect(prepared: Prepared, split: str, metric: str) -> list[str]:
    """The answer of the vocabulary with the highest accuracy, by trying them all."""
    answers = prepared.vocabulary.answers
    return [
        max(answers, key=lambda answer: accuracies(metric, [answer], [given])[0])
        for given in prepared.split(split).human_answers
    ]


def check_bounds(prepared: Prepared, folder: Path) -> dict[str, float]:
    """The bound of each split, which the perfect answers of a result file must reach."""
    bounds = {name: 100 * counts["bound"] for name, counts in prepared.meta["splits"].items()}
    for split, bound in bounds.items():
        found = score(prepared, split, folder, perfect(prepared, split, prepared.metric))
        assert found == pytest.approx(bound)
    return bounds


def score(prepared: Prepared, split: str, folder: Path, answers: list[str]) -> float:
    """The accuracy of a result file."""
    found = prepared.split(split)
    ids = array_to_ids(found.question_ids)
    entries = [{"question_id": i, "answer": a} for i, a in zip(ids, answers, strict=True)]
    predictions = read_results(write_json(folder / "results.json", entries), ids, split)
    return percentage(accuracies(prepared.metric, predictions, found.human_answers))


@pytest.mark.parametrize("name", ["vqa_v1", "vqa_v2", "vqa_cp_v1", "vqa_cp_v2", "ok_vqa", "custom"])
@pytest.mark.parametrize("metric", METRICS)
def test_perfect_answers_reach_the_bound(tmp_path: Path, name: str, metric: str) -> None:
    files = write_split(tmp_path, "train", people_who_disagree(0))
    files += write_split(tmp_path, "test", [(1000 + q, *r) for q, *r in people_who_disagree(1)])
    files += ["--min-answer-count", "8", "--metric", metric, *ALL]
    prepared = prepare(load_recipe(name), tmp_path, *files)
    assert (prepared.metric, len(prepared.vocabulary.answers) < 12) == (metric, True)
    for bound in check_bounds(prepared, tmp_path).values():
        assert 10 < bound < 100 or metric == "exact"


@pytest.mark.parametrize("metric", METRICS)
def test_own_answers_of_people_who_agree(
    tmp_path: Path, metric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_split(tmp_path, "train", people_who_agree())
    prepared = prepare(load_recipe("custom"), tmp_path, *files, "--metric", metric, *ALL)
    expected = {"exact": 100.0, "vqa_normalised": 100.0}
    bounds = check_bounds(prepared, tmp_path)
    assert bounds == dict.fromkeys(bounds, expected.get(metric, 0.0))
    assert ("vqa_normalised, which gives 100.00%" in capsys.readouterr().err) == (
        metric not in expected
    )
    for split in prepared.splits:
        rows = array_to_ids(prepared.split(split).question_ids)
        answers = [CASE[row][0] for row in rows]  # type: ignore[index]
        assert score(prepared, split, tmp_path, answers) == bounds[split]


@pytest.mark.parametrize("people", [1, 2, 3, 4, 9, 10])
def test_every_class_kept_is_enough_for_people_who_mean_the_same(
    tmp_path: Path, people: int
) -> None:
    ways = [["Yes", "yes.", " YES"], ["two", "2", "Two!"], ["a dog", "The dog", "dog"], ["", "an"]]
    rows: list[Row] = [
        (n, n, "what is it", [ways[n % 4][(n + k) % len(ways[n % 4])] for k in range(people)])
        for n in range(40)
    ]
    files = write_split(tmp_path, "train", rows)
    prepared = prepare(load_recipe("custom"), tmp_path, *files, *ALL)
    assert check_bounds(prepared, tmp_path) == {"train": 100}


@pytest.mark.parametrize("name", ["easy_vqa", "sort_of_clevr", "vizwiz"])
def test_datasets_with_their_own_readers(tmp_path: Path, name: str) -> None:
    options, wheel = {}, tmp_path / "w.whl"
    arguments = {"easy_vqa": ["--raw", str(wheel)], "sort_of_clevr": ["--images", "300"]}
    if name == "easy_vqa":
        options["sha256"] = make_wheel(wheel)
    for split in ("train", "val"):
        file = write_json(tmp_path / f"{split}.json", vizwiz(split, 8, ANSWERS))
        arguments.setdefault("vizwiz", []).extend(["--files", split, str(file)])
    prepared = prepare(load_recipe(name), tmp_path, *arguments[name], **options)
    assert check_bounds(prepared, tmp_path)["train"] == 100
