"""The authors' state dictionary against logits that were recorded with their code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mcan.batch import Image, Question
from mcan.build import build_model
from mcan.config.schema import ModelConfig
from mcan.nn.official import OfficialModel, convert_official
from mcan.rows import Packed, Padded

with np.load(Path(__file__).parents[1] / "fixtures" / "mcan_forward.npz") as file:
    RECORDED = {name: torch.from_numpy(file[name]) for name in file.files}
STATE = {name[3:]: value for name, value in RECORDED.items() if name.startswith("sd/")}
# With other norms than at first, which a swap or a missing factor would show.
NORMS = {name[6:]: value for name, value in RECORDED.items() if name.startswith("sd_ln/")}


def imported_logits(official: OfficialModel, layout: str = "padded") -> Tensor:
    model = build_model(ModelConfig.model_validate(official.model), official.sizes).eval()
    model.load_state_dict(official.state)
    features, tokens = RECORDED["img_feat"], RECORDED["ques_ix"].long()
    real, words = features.abs().sum(-1) > 0, tokens != 0
    question, image = Question(tokens, Padded(words)), Image(Padded(real), features)
    if layout == "packed":
        question = Question(tokens[words], Packed(words.sum(1)))
        image = Image(Packed(real.sum(1)), features[real])
    with torch.no_grad():
        return model(question, image)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(("changes", "logits"), [({}, "logits"), (NORMS, "logits_ln")])
def test_recorded_logits_of_the_reference(layout, changes, logits):
    found = imported_logits(convert_official(STATE | changes, heads=4), layout)
    torch.testing.assert_close(found, RECORDED[logits], rtol=0, atol=1e-5)


def test_a_norm_that_is_not_folded_would_show():
    official = convert_official(STATE | NORMS, heads=4)
    official.state["norm.weight"] = NORMS["proj_norm.a_2"]
    assert (imported_logits(official) - RECORDED["logits_ln"]).abs().max() > 1e-3


@pytest.mark.parametrize("state", [{}, STATE | {"proj.weight": torch.zeros(3)}])
def test_a_tensor_that_decides_a_size_must_be_a_matrix(state):
    with pytest.raises(ValueError, match=r"expected a matrix \S+\.weight"):
        convert_official(state, heads=4)
