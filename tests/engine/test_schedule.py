"""Schedules: the reference's rates and step boundaries, the cosine's end points."""

from __future__ import annotations

import random

import pytest

from mcan.config import config_from_dict
from mcan.engine.optimisation import build_schedule
from mcan.engine.schedule import cosine, plateau

TRAIN, BATCH = 443_757, 64
"""Questions of VQA v2's training split."""
EPOCH = TRAIN // BATCH


def published_rate(step: int, base: float, size: int, batch: int, epoch_steps: int) -> float:
    """The reference's rule, told anew: updates are counted from 1, epochs end floor(N / B) later,
    warm-up ends at int(N / B * k), and the base is multiplied by 0.2 when epochs 11 and 13 begin.
    """
    epoch, update = step // epoch_steps + 1, step + 1
    for begin in (11, 13):
        if epoch >= begin:
            base *= 0.2
    for k in (1, 2, 3):
        if update <= int(size / batch * k):
            return base * k / 4
    return base


def test_rates_of_the_epochs():
    factor = plateau(TRAIN, BATCH, EPOCH)
    middle = [1e-4 * factor(epoch * EPOCH + EPOCH // 2) for epoch in range(13)]
    assert middle == pytest.approx([2.5e-5, 5e-5, 7.5e-5, *[1e-4] * 7, 2e-5, 2e-5, 4e-6])


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.25),
        (6932, 0.25),  # int(443757 / 64) = 6933
        (6933, 0.5),
        (13_866, 0.5),  # int(443757 / 64 * 2) = 13867: one update into the third epoch
        (13_867, 0.75),
        (20_800, 0.75),  # int(443757 / 64 * 3) = 20801: two updates into the fourth
        (20_801, 1.0),
        (69_329, 1.0),
        (69_330, 0.2),
        (83_195, 0.2),
        (83_196, 0.04),
        (90_128, 0.04),
    ],
)
def test_boundaries(step, expected):
    assert plateau(TRAIN, BATCH, EPOCH)(step) == pytest.approx(expected)


@pytest.mark.parametrize(("size", "batch"), [(443_757, 64), (658_111, 64), (130, 64), (64, 64)])
def test_every_step_is_the_references(size, batch):
    epoch_steps = size // batch
    factor = plateau(size, batch, epoch_steps)
    edges = {round(epoch_steps * epoch) for epoch in range(14)}
    steps = {edge + offset for edge in edges for offset in range(-4, 5)} | {7, 1000, 50_000}
    for step in sorted(step for step in steps if 0 <= step < 13 * epoch_steps):
        expected = published_rate(step, 1e-4, size, batch, epoch_steps)
        assert 1e-4 * factor(step) == pytest.approx(expected), step


def test_no_warm_up_and_no_decay():
    factor = plateau(100, 10, 10, warmup_epochs=0, decay_after=())
    assert {factor(step) for step in range(500)} == {1.0}


def test_cosine_end_points():
    factor = cosine(epoch_steps=10, epochs=5, warmup_epochs=1, final=0.1)
    assert factor(0) == pytest.approx(0.1)  # a tenth of the way up
    assert factor(9) == pytest.approx(1.0)
    assert factor(10) == pytest.approx(1.0)
    assert factor(30) == pytest.approx(0.55)  # half-way down
    assert factor(50) == pytest.approx(0.1)
    assert factor(1000) == pytest.approx(0.1)
    rates = [factor(step) for step in range(10, 51)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("warmup", "first"), [(0, 1.0), (0.25, 0.5), (0.5, 0.2)])
def test_cosine_with_fractions_of_an_epoch(warmup, first):
    assert cosine(10, 3, warmup)(0) == pytest.approx(first)


def test_cosine_that_only_warms_up():
    factor = cosine(epoch_steps=4, epochs=1, warmup_epochs=1)
    assert [factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("factor", [plateau(TRAIN, BATCH, EPOCH), cosine(EPOCH, 13)])
def test_pure_function_of_the_step(factor):
    steps = list(range(0, 13 * EPOCH, 1009))
    in_order = [factor(step) for step in steps]
    shuffled = random.Random(0).sample(steps, len(steps))
    assert dict(zip(steps, in_order, strict=True)) == {step: factor(step) for step in shuffled}


def test_built_from_the_config():
    stated = {"name": "x", "data": {"prepared": "p", "images": ["i"]}}
    config = config_from_dict(stated, "test")
    assert build_schedule(config, TRAIN, EPOCH)(13_866) == 0.5
    stated["schedule"] = {"name": "cosine", "warmup_epochs": 2, "final": 0.5}
    config = config_from_dict(stated, "test")
    assert build_schedule(config, TRAIN, EPOCH)(13 * EPOCH) == 0.5
    assert build_schedule(config, TRAIN, EPOCH)(EPOCH - 1) == pytest.approx(0.5)
