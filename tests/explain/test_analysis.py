"""Entropies, masses and erasure, against closed forms, brute force and one question at a time."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from nn.small import enter, logits_of, make_batch, packed_rows, samples, small_config, small_model
from runs import Lab, make_lab

from mcan.batch import Batch, Image, Question
from mcan.errors import DataError
from mcan.explain import analysis
from mcan.explain.analysis import area, entropies, erase, erase_rows, erasure_steps, masses, study
from mcan.explain.weights import METHODS, observe

RANDOM = np.random.default_rng(0)
WORDS, REGIONS, GRID = [5, 1, 7, 3], [4, 6, 1, 3], [2, 1, 3, 2]


def test_entropy_is_that_of_the_closed_forms() -> None:
    even, one, two = np.full(4, 0.25), np.eye(4)[0], np.array([0.9, 0.1, 0, 0])
    weights = torch.tensor(np.array([[[even, one], [two, even]], [[one, two], [one, one]]]))
    nats, relative = entropies(weights, torch.tensor([2, 1]), torch.tensor([4, 1]))
    pair = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    expected = torch.tensor([[math.log(4) / 2, (pair + math.log(4)) / 2], [0, 0]]).double()
    torch.testing.assert_close(nats, expected)
    torch.testing.assert_close(relative[0], expected[0] / math.log(4))
    assert relative[1].isnan().all()  # one key


def test_masses_are_those_of_brute_force() -> None:
    weights = torch.rand(3, 2, 4, 5, dtype=torch.float64)
    sources, targets = torch.rand(3, 2, 4) < 0.5, torch.rand(3, 3, 5) < 0.4
    sources[0, 0], targets[1, 2] = False, False
    found = masses(weights, sources, targets)
    for b, h, f, s in np.ndindex(*found.shape):
        rows = [weights[b, h, q][targets[b, s]].sum() for q in sources[b, f].nonzero()[:, 0]]
        expected = sum(rows) / len(rows) if rows and targets[b, s].any() else torch.nan
        assert found[b, h, f, s].item() == pytest.approx(float(expected), nan_ok=True)


def small(kind: str, encoder: str = "lstm", **changes: object):
    """A network and a batch of four questions, in double precision."""
    image = {"boxes": True, "box_embedding_size": 3, "position_encoding": True}
    if kind == "pixels":
        image = {"input": "pixels", "stem": {"channels": [4, 6], "strides": [2, 2]}}
    model = small_model(
        small_config(encoder, image=image, **changes), 3 if kind == "grid" else None
    ).eval()
    shared = [0, 1, 1, 2] if kind == "shared" else None
    regions = REGIONS[:3] if shared else REGIONS
    batch = make_batch(WORDS, regions, GRID if kind == "grid" else None, shared)
    if kind == "pixels":
        pixels = torch.rand(4, 3, 12, 8, dtype=torch.float64) * 255
        batch = replace(batch, image=Image(packed_rows([1] * 4), pixels=pixels))
    return model, batch


def without(model, sample, words, rows):
    """The logits of one question with these words and image rows alone, none erased by the code."""
    count, width = len(sample["regions"]), len(words)
    regions, cells = rows[rows < count], rows[rows >= count] - count
    parts = {k: sample[k][regions] for k in ("regions", "boxes", "cells") if sample[k] is not None}
    image = Image(packed_rows([len(regions)]), **parts)
    if sample["grid"] is not None:
        grid = {"grid": sample["grid"][cells], "grid_cells": sample["grid_cells"][cells]}
        image = replace(image, grid_rows=packed_rows([len(cells)]), **grid)
    question = Question(sample["tokens"][words], packed_rows([width]))
    return logits_of(
        model, Batch(question, image, make_batch([1], [1]).targets, torch.arange(1)), "padded"
    )


@pytest.mark.parametrize("modality", ["words", "regions"])
@pytest.mark.parametrize("kind", ["regions", "grid", "shared"])
def test_erasing_is_leaving_rows_out_of_the_input(kind: str, modality: str) -> None:
    model, batch = small(kind, "positional" if kind == "grid" else "lstm")
    each = samples(batch)
    totals = [len(s["regions"]) + (0 if s["grid"] is None else len(s["grid"])) for s in each]
    counts = WORDS if modality == "words" else totals
    keep = RANDOM.random((4, 9)) < 0.6
    keep[:, 0] = True
    keep &= np.arange(9) < np.array(counts)[:, None]
    found = erase_rows(model, enter(batch, "packed"), modality, torch.from_numpy(keep))
    for logits, sample, kept, words, total in zip(found, each, keep, WORDS, totals, strict=True):
        chosen, all_words, all_rows = kept.nonzero()[0], np.arange(words), np.arange(total)
        of_words, of_rows = (chosen, all_rows) if modality == "words" else (all_words, chosen)
        expected = without(model, sample, of_words, of_rows)[0]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


def test_cells_of_a_stem_are_erased_behind_it() -> None:
    model, batch = small("pixels")
    keep = torch.rand(4, 6) < 0.6
    keep[:, 0] = True
    found = erase_rows(model, enter(batch, "packed"), "regions", keep)
    for row in range(4):
        words = batch.question.rows
        tokens = batch.question.tokens[words.starts[row] :][: WORDS[row]]
        y, y_rows = model.question_encoder(Question(tokens, packed_rows([WORDS[row]])))
        pixels = batch.image.pixels[row : row + 1]
        x, _ = model.image_encoder(Image(packed_rows([1]), pixels=pixels))
        x, x_rows = x[keep[row]], packed_rows([int(keep[row].sum())])
        y, x = model.cascade(y, x, y_rows, x_rows)
        fused = model.question_reduction(y, y_rows) + model.image_reduction(x, x_rows)
        expected = model.classifier(model.norm(fused))[0]
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cascade", ["encoder_decoder", "stacking"])
def test_study_is_that_of_each_question_alone(monkeypatch, cascade: str) -> None:
    model, batch = small("regions", cascade=cascade)
    targets = {"a": [[1, 3], [0], [], [2]], "b": [[0], [], [0], []]}
    monkeypatch.setattr(analysis, "_OBSERVED", 3)
    seen = observe(model, enter(batch, "packed"), gradients=True)

    def part(rows):
        cut = lambda d: {k: v[list(rows)] for k, v in d.items()}  # noqa: E731
        own = {k: getattr(seen, k)[list(rows)] for k in ("logits", "words", "regions", "answers")}
        return replace(seen, weights=cut(seen.weights), gradients=cut(seen.gradients), **own)

    found = study(part, [10, 11, 12, 13], targets)
    np.testing.assert_array_equal(found.uniform[:, 0], [0.5, 1 / 6, np.nan, 1 / 3])
    for row, (n, m) in enumerate(zip(WORDS, REGIONS, strict=True)):
        alone = {name: weights[row].numpy() for name, weights in seen.weights.items()}
        assert (found.counts["words"][row], found.counts["regions"][row]) == (n, m)
        for name in ("image.1.SA", "question.0.SA", "image.0.GA"):
            queries, keys = (m if name[0] == "i" else n), (m if name == "image.1.SA" else n)
            p = alone[name][:, :queries, :keys]
            with np.errstate(divide="ignore", invalid="ignore"):
                logs = np.where(p > 0, np.log(p), 0)
            expected = -(p * logs).sum(-1).mean(-1)
            np.testing.assert_allclose(found.nats[name][row], expected, atol=1e-12)
        of_a = targets["a"][row]
        for source, rows in enumerate([list(range(m)), of_a, targets["b"][row]]):
            expected = (
                alone["image.1.SA"][:, rows][..., of_a].sum(-1).mean(-1)
                if rows and of_a
                else np.nan
            )
            np.testing.assert_allclose(found.mass["image.1.SA"][row, :, source, 0], expected)
        share = found.rankings["regions"]["rollout"][row]
        expected = share[of_a].sum() / share.sum() if of_a else np.nan
        np.testing.assert_allclose(found.mass["rollout"][row, 0, 0, 0], expected)
        words, regions = found.rankings["words"], found.rankings["regions"]
        assert words.keys() == {"last unit", *METHODS} == regions.keys() - {"targets"}
        assert regions["targets"][row].nonzero()[0].tolist() == sorted({*of_a, *targets["b"][row]})
        expected = alone["image.1.GA"][:, :m, :n].mean((0, 1))
        np.testing.assert_allclose(words["last unit"][row, :n], expected)
        expected = alone["image.1.SA"][:, :m, :m].mean((0, 1))
        np.testing.assert_allclose(regions["last unit"][row, :m], expected)


def test_targets_out_of_range_are_named() -> None:
    model, batch = small("regions")
    seen = observe(model, enter(batch, "packed"), gradients=True)
    with pytest.raises(
        DataError, match=r"question 12: 'a' is \[1\], but its image has the rows 0 to 0"
    ):
        study(lambda rows: seen, [10, 11, 12, 13], {"a": [[0], [0], [1], [0]]})


def test_erasure_is_that_of_one_question_at_a_time() -> None:
    """The score is the sum of what is kept, so that every set of rows has its own."""
    counts = np.array([4, 1, 6, 2])
    ranking = RANDOM.random((4, 6))
    worth = RANDOM.random((4, 6))
    calls = []

    def score(rows, keep):
        calls.append(len(rows))
        assert (keep.sum(1) >= 1).all()
        assert not (keep & (np.arange(6) >= counts[rows, None])).any()
        return (worth[rows] * keep).sum(1)

    steps, found = erase(score, {"r": ranking}, counts)
    assert steps == [0, 1, 2, 3, 4, 5]
    for row, count in enumerate(counts):
        order = sorted(range(count), key=lambda i: -ranking[row, i])
        for name, sequence in (("most", order), ("least", order[::-1])):
            for place, step in enumerate(steps):
                rest = sequence[min(step, count - 1) :]
                assert found["r", name][place, row] == pytest.approx(worth[row, rest].sum())
    assert calls[0] == 4  # nothing is erased: one set for all orders
    assert len(found["random", "random"]) == 6


def test_ties_are_erased_at_random(monkeypatch) -> None:
    monkeypatch.setattr(analysis, "DRAWS", 1)
    worth, counts = RANDOM.random((50, 4)), np.full(50, 4)
    _, found = erase(
        lambda rows, keep: (worth[rows] * keep).sum(1), {"r": np.ones((50, 4))}, counts
    )
    np.testing.assert_array_equal(found["r", "most"], found["random", "random"])
    np.testing.assert_array_equal(found["r", "least"], found["random", "random"])
    _, first = erase(lambda rows, keep: 1.0 * keep[:, 0], {"r": np.ones((50, 4))}, counts)
    assert 0 < first["r", "most"][1].mean() < 1  # not always the same row


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_row_or_none_stays(count: int) -> None:
    steps, found = erase(lambda rows, keep: keep.sum(1), {"r": np.zeros((2, 1))}, np.full(2, count))
    assert steps == [0]
    np.testing.assert_array_equal(found["r", "most"], [[count, count]])
    assert area(steps, found["random", "random"].mean(1)) == count


def test_memory_of_erasure(peak_memory):
    """About 5 GB for 440,000 questions on 100 rows; it was 11."""
    rows = np.random.default_rng(0).random((500, 100), np.float32)
    rankings, counts = dict.fromkeys("abcd", rows), np.full(500, 100)
    peak = peak_memory(lambda: erase(lambda rows, keep: np.zeros(len(rows)), rankings, counts))
    assert peak < 16_000 * 500


def test_steps_and_areas() -> None:
    assert erasure_steps(1) == [0]
    assert erasure_steps(11) == list(range(11))
    steps = erasure_steps(100)
    assert (steps[:3], steps[-1], len(steps)) == ([0, 1, 2], 99, 11)
    assert area([0, 1, 2], np.array([100.0, 50.0, 0.0])) == 50
    assert area([0, 1, 5], np.array([1.0, 0.0, 0.0])) == pytest.approx(0.1)
    assert area(steps, np.array(steps) / 99) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = make_lab(tmp_path_factory.mktemp("lab"), metric="exact")
    assert lab.train("run", "train.epochs=1").status == 0
    assert lab.eval("runs/run", "--split", "val").status == 0
    return lab


def analyse(lab: Lab, *arguments: str):
    return lab.execute("scripts/analyse_attention", arguments)


def test_the_command_writes_all_numbers(lab: Lab) -> None:
    (lab.folder / "targets.json").write_text(json.dumps({44: {"a|b": [0]}, 46: {"c": [0]}}))
    done = analyse(lab, "runs/run", "--split", "val", "--targets", "targets.json")
    assert done.status == 0, done.err
    (folder,) = (lab.run("run") / "analysis").iterdir()
    names = ["analysis.json", "analysis.md", "attention.png", "erasure.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    result = json.loads((folder / "analysis.json").read_text(), parse_constant=pytest.fail)
    (evaluated,) = lab.run("run").glob("predictions/val_step_*/metrics.json")
    metrics = json.loads(evaluated.read_text())
    for modality, ranked in (("words", 4), ("regions", 5)):
        orders = result["erasure"][modality]["orders"]
        assert len(orders) == 1 + 2 * ranked
        for order in orders:
            assert order["curves"]["all questions"][0] == pytest.approx(metrics["overall"])
            for name, value in metrics["per_answer_type"].items():
                assert order["curves"][f"answer type {name}"][0] == pytest.approx(value)
    assert result["entropy"].keys() > {"question.0.SA", "image.0.SA", "image.0.GA"}
    assert result["targets"].keys() == {"a|b", "c"}
    assert result["targets"]["c"]["questions"] == 1
    assert result["mass"]["image.0.SA"]["a|b"]["c"]["heads"] == [
        None,
        None,
    ]  # never of one question
    share = result["mass"]["image.reduction"]["any row"]["a|b"]  # of one question
    assert share["groups"]["all questions"] == pytest.approx(share["heads"][0])
    page = (folder / "analysis.md").read_text()
    assert result["command"] in page
    assert "Share of the attention on: a|b" in page
    # Of the first questions alone, none has a target.
    (lab.folder / "later.json").write_text(json.dumps({50: {"d": [0]}, 44: {"e": []}}))
    arguments = "runs/run", "--split=val", "--limit=3", "--output=few", "--targets=later.json"
    assert analyse(lab, *arguments).status == 0
    few = json.loads((lab.folder / "few" / "analysis.json").read_text())
    assert (few["questions"], few["targets"], few["mass"]) == (3, {}, {})


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        (["runs/none", "--split=val"], None, "runs/none"),
        (["runs/run", "--split=none"], None, "there is no split 'none'; there is train, val"),
        (["runs/run"], None, "analysis/val_step_00000006: exists; choose another --output"),
        (["runs/run", "runs/run", "--split=val"], None, "one run folder or checkpoint, not 2"),
        (
            ["runs/run", "--split=val", "--output=prepared"],
            None,
            "prepared: exists; choose another",
        ),
        (["runs/run", "--split=val", "model.x=1"], None, "model.x"),
        (["runs/run", "--split=val", "--targets=none", "--output=wrong"], None, "No such file"),
        ([], "[1", "the file: Invalid JSON"),
        ([], "[1]", "the file: Input should be"),
        ([], '{"44": {"a": [0.5]}}', "44: a: 0: Input should be a valid integer"),
        ([], '{"44": {"a": [-1]}}', "44: a: 0: Input should be greater than or equal to 0"),
        ([], '{"44": [0]}', "44: Input should be"),
        ([], '{"1": {"a": [0]}}', "question '1' not in prepared/val.h5"),
        (
            [],
            '{"44": {"a": [9]}}',
            "targets of question 44: 'a' is [9], but its image has the rows",
        ),
    ],
)
def test_mistakes_are_one_sentence(lab: Lab, arguments, content, message: str) -> None:
    if content is not None:
        (lab.folder / "wrong.json").write_text(content)
        arguments = ["runs/run", "--split=val", "--targets=wrong.json", "--output=wrong"]
    done = analyse(lab, *arguments)
    (error,) = done.errors()
    assert message in error
    assert done.status == 2
    assert not (lab.folder / "wrong").exists()
