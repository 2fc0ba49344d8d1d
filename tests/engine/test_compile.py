"""`train.compile`: the compiled network trains as the eager one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import make_lab
from test_updates import make_trainer

from mcan.prediction import belief


@pytest.mark.slow
def test_compiled_is_eager(tmp_path: Path) -> None:
    """Six updates of an epoch, whose shapes differ, and a prediction."""
    lab = make_lab(tmp_path, {"model": {"dropout": 0.0}, "optimizer": {"eps": 1e-3}})
    eager, dataset, config = make_trainer(lab)
    compiled, _, _ = make_trainer(lab, "train.compile=true")
    for one, other in zip(eager.feed.batches(0, 0), compiled.feed.batches(0, 0), strict=True):
        eager._update(one)
        compiled._update(other)
        eager.position.batch += 1
        compiled.position.batch += 1
    torch.testing.assert_close(compiled.window, eager.window, rtol=1e-5, atol=0)
    assert compiled.model.state_dict().keys() == eager.model.state_dict().keys()
    for name, weight in eager.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], weight, atol=1e-5, rtol=1e-4)
    with torch.inference_mode():
        found, expected = (
            belief([trainer.model.eval()], config, torch.device("cpu"))(dataset[[0, 1, 2]])
            for trainer in (compiled, eager)
        )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
