"""Checkpoints of format 1, written by the code before this layout: they give the logits of then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mcan.batch import Batch, Image, Question, Targets
from mcan.build import build_model
from mcan.config import config_from_dict
from mcan.engine.checkpoint import load_checkpoint
from mcan.nn.mcan import ModelSizes
from mcan.rows import Packed

FIXTURES = Path(__file__).parents[1] / "fixtures"
OUTPUTS = torch.load(FIXTURES / "format_1_outputs.pt", weights_only=True)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_logits_are_those_of_the_code_that_wrote_it(name, layout):
    checkpoint, recorded = load_checkpoint(FIXTURES / f"format_1_{name}.pt"), OUTPUTS[name]
    config = config_from_dict(checkpoint.config, name)
    model = build_model(config.model, ModelSizes(**checkpoint.sizes)).eval()
    checkpoint.restore(model)
    words = recorded["words"]
    image = Image(
        Packed(recorded.get("lengths", torch.ones_like(words))),
        recorded.get("regions"),
        recorded.get("boxes"),
        None,
        recorded.get("grid"),
        Packed(recorded["grid_lengths"]) if "grid" in recorded else None,
        recorded.get("grid_cells"),
        recorded.get("pixels"),
    )
    nothing = torch.zeros(0, dtype=torch.int64)
    batch = Batch(
        Question(recorded["tokens"], Packed(words)),
        image,
        Targets(nothing, nothing, torch.zeros(0)),
        torch.arange(len(words)),
    ).enter("cpu", layout)
    with torch.no_grad():
        logits = model(batch.question, batch.image)
    torch.testing.assert_close(logits, recorded["logits"], atol=1e-5, rtol=1e-4)
