"""The made-up data has the sizes and lengths that it claims."""

import numpy as np
import pytest

from mcan.benchmarking.workload import WORD_COUNTS, Workload, make
from mcan.data.prepared import Prepared
from mcan.data.store import open_store


def test_the_histogram_is_of_60000_questions():
    assert sum(WORD_COUNTS.values()) == 60_000
    mean = sum(words * count for words, count in WORD_COUNTS.items()) / 60_000
    assert mean == pytest.approx(6.2388, abs=1e-4)


def test_lengths_regions_and_sizes(tmp_path):
    make(tmp_path, Workload(2000, regions=(2, 5), features=3, answers=9, words=40))
    prepared, store = Prepared.open(tmp_path / "prepared"), open_store(tmp_path / "images.h5")
    assert len(prepared.vocabulary.words) == 40
    assert len(prepared.vocabulary.answers) == 9
    split = prepared.split("train")
    assert len(split) == 2000
    lengths = np.diff(split.tokens.offsets)
    assert lengths.mean() == pytest.approx(6.2388, abs=0.2)
    assert (lengths == 5).mean() == pytest.approx(15564 / 60_000, abs=0.04)
    assert np.bincount(split.image_index).tolist() == [5] * 400
    assert set(np.diff(store.offsets).tolist()) == {2, 3, 4, 5}
    assert store.row_shape == (3,)
    scores = split.target_scores
    assert scores.values[scores.offsets[:-1]].min() == 1.0


def test_the_last_image_may_have_fewer_questions(tmp_path):
    make(tmp_path, Workload(6, regions=(1, 1), features=2, answers=2, words=2))
    split = Prepared.open(tmp_path / "prepared").split("train")
    assert np.bincount(split.image_index).tolist() == [5, 1]
