"""Schedules: the reference's rates and step boundaries, the cosine's end points."""

from __future__ import annotations

import pytest

from mcan.engine.schedules import Cosine, Plateau, RunLength


def published_rate(step: int, base: float, size: int, batch: int, epoch_steps: int) -> float:
    """The reference's rule as its code states it: updates are counted from 1, epochs end floor(N /
    B) later, warm-up ends at int(N / B * k), and the base is multiplied by 0.2 when epochs 11 and
    13 begin.
    """
    epoch, update = step // epoch_steps + 1, step + 1
    for begin in (11, 13):
        if epoch >= begin:
            base *= 0.2
    for k in (1, 2, 3):
        if update <= int(size / batch * k):
            return base * k / 4
    return base


# The first two are VQA v2's train, and train with Visual Genome.
@pytest.mark.parametrize(("size", "batch"), [(443_757, 64), (658_111, 64), (130, 64), (64, 64)])
def test_every_step_is_the_references(size, batch):
    steps = size // batch
    run = RunLength(size, batch, steps, 13)
    near = {steps * epoch + offset for epoch in range(14) for offset in range(-4, 5)}
    for step in sorted(step for step in near | {7, 1000, 50_000} if 0 <= step < 13 * steps):
        expected = published_rate(step, 1e-4, size, batch, steps)
        assert 1e-4 * Plateau().factor(step, run) == pytest.approx(expected), step
    if steps > 13:
        middle = [Plateau().factor(epoch * steps + steps // 2, run) for epoch in range(13)]
        assert middle == pytest.approx([0.25, 0.5, 0.75, *[1] * 7, 0.2, 0.2, 0.04])


def test_no_warm_up_and_no_decay():
    flat, run = Plateau(warmup_epochs=0, decay_after=()), RunLength(100, 10, 10, 50)
    assert {flat.factor(step, run) for step in range(500)} == {1.0}


def test_cosine_end_points():
    cosine, run = Cosine(name="cosine", final=0.1), RunLength(100, 10, 10, 5)
    expected = {0: 0.1, 9: 1.0, 10: 1.0, 30: 0.55, 50: 0.1, 1000: 0.1}
    assert {step: cosine.factor(step, run) for step in expected} == pytest.approx(expected)
    rates = [cosine.factor(step, run) for step in range(10, 51)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("warmup", "epoch_steps", "first"),
    [(0, 10, [1.0]), (0.25, 10, [0.5]), (0.5, 10, [0.2]), (1, 4, [0.25, 0.5, 0.75, 1])],
)
def test_cosine_warm_up(warmup, epoch_steps, first):
    cosine, run = Cosine(name="cosine", warmup_epochs=warmup), RunLength(9, 1, epoch_steps, 3)
    assert [cosine.factor(step, run) for step in range(len(first))] == pytest.approx(first)
