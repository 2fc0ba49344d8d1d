"""The padded network compiles whole: no graph break, one graph per shape and mode."""

from __future__ import annotations

import pytest
import torch
from small import GRID, logits_of, make_batch, small_config, small_model
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from mcan.batch import MAX_SHAPES, PaddedLengths
from mcan.nn.attention import SIMILARITIES
from mcan.nn.encoders import QUESTION_ENCODERS
from mcan.nn.mcan import compile_in_place

OPTIONS = {"boxes": True, "box_embedding_size": 4, "position_encoding": True}
LENGTHS = PaddedLengths((4, 8), (20, 40), (8,))
# Words, regions and grid rows; how many shapes there were so far.
STEPS = [
    (([3, 4], [10, 20], [5, 6]), 1),
    (([2, 4], [12, 19], [5, 7]), 1),
    (([5, 8], [33, 40], [6, 6]), 2),
    (([3, 2], [17, 18], [8, 6]), 2),
]


def compiled_logits(network: nn.Module, lengths: tuple) -> torch.Tensor:
    entered = make_batch(*lengths).enter("cpu", "padded", torch.float64, LENGTHS)
    logits: torch.Tensor = network(entered.question, entered.image)
    return logits


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        yield


def test_one_graph_per_shape_and_mode():
    model = small_model(small_config(image=OPTIONS, depth=1, dropout=0.1), GRID)
    counter = CompileCounterWithBackend("eager")
    network = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    for lengths, shapes in STEPS:
        compiled_logits(network, lengths).sum().backward()
        assert counter.frame_count == shapes
    model.eval()
    with torch.no_grad():
        for lengths, _ in STEPS[:2]:
            found = compiled_logits(network, lengths)
            assert counter.frame_count == STEPS[-1][1] + 1
            torch.testing.assert_close(found, logits_of(model, make_batch(*lengths), "packed"))


@pytest.mark.slow
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("encoder", QUESTION_ENCODERS)
def test_no_choice_breaks_the_graph(similarity, encoder):
    """Logits and gradients are those of the eager network."""
    model = small_model(small_config(encoder, similarity=similarity, depth=1), GRID)
    network = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    results = []
    for part in (network, model):
        model.zero_grad()
        logits = compiled_logits(part, STEPS[0][0])
        logits.square().sum().backward()
        results.append((logits, {name: p.grad.clone() for name, p in model.named_parameters()}))
    torch.testing.assert_close(*results)


@pytest.mark.slow
def test_all_shapes_that_are_chosen_are_compiled():
    """Torch by itself stops at the ninth graph of a function."""
    lengths = PaddedLengths(range(2, 10, 2), range(3, 5))
    config = small_config("positional", depth=1, mca_layer="id_ga")
    model, counter = small_model(config), CompileCounterWithBackend("eager")
    compile_in_place(model, backend=counter)
    for training in (True, False):
        model.train(training)
        for words in lengths.words:
            for regions in lengths.regions:
                batch = make_batch([words, 1], [regions, 1])
                entered = batch.enter("cpu", "padded", torch.float64, lengths)
                model(entered.question, entered.image)
    assert len(lengths.words) * len(lengths.regions) == MAX_SHAPES
    assert counter.frame_count == 2 * MAX_SHAPES


@pytest.mark.slow
def test_inductor():
    model = small_model(small_config("positional", depth=1)).float()
    network = torch.compile(model, fullgraph=True, dynamic=False)
    entered = make_batch([3, 2], [4, 1]).enter("cpu", "padded", torch.float32)
    logits = [part(entered.question, entered.image) for part in (network, model)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-4)
    found = [torch.autograd.grad(each.sum(), model.classifier.weight) for each in logits]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
