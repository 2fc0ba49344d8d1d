"""Phases and peaks."""

import time

import numpy as np
import pytest
import torch

from mcan.benchmarking.stopwatch import Stopwatch, peak_device_memory, peak_memory


def test_time_goes_to_the_phase_that_ends():
    watch = Stopwatch(torch.device("cpu"))
    watch.start()
    time.sleep(0.02)
    watch.mark("a")
    watch.mark("b")
    time.sleep(0.01)
    watch.mark("a")
    seconds = watch.read()
    assert seconds["a"] >= 0.03
    assert 0 <= seconds["b"] < seconds["a"]
    watch.start()
    assert watch.read() == {}


def test_peak_memory_grows_and_stays():
    before = peak_memory()
    block = np.ones(200_000_000, np.uint8)
    grown = peak_memory()
    assert grown >= block.nbytes
    assert grown >= before
    del block
    assert peak_memory() == pytest.approx(grown, rel=0.05)


def test_no_device_memory_on_a_cpu():
    assert peak_device_memory(torch.device("cpu")) is None
