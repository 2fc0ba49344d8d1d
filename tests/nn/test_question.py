"""Question encoders against an LSTM without padding, its equations, and the closed form."""

from __future__ import annotations

import naive
import pytest
import torch
from small import TOKENS, tokens
from torch import nn

from mcan.nn.position import sinusoidal
from mcan.nn.question import QuestionEncoder

E, D = 5, 8


def make(encoder: str) -> QuestionEncoder:
    torch.manual_seed(0)
    return QuestionEncoder(TOKENS, E, D, encoder).double()


@pytest.mark.parametrize("lengths", [[3, 1, 6], [2, 2], [1]])
def test_lstm_equals_one_question_at_a_time(lengths):
    encoder, question = make("lstm"), tokens(lengths)
    alone = nn.LSTM(E, D).double()
    alone.load_state_dict(encoder.lstm.state_dict())
    expected = [alone(encoder.embedding(words))[0] for words in question.split()]
    torch.testing.assert_close(encoder(question).values, torch.cat(expected))


@pytest.mark.parametrize("encoder", ["lstm", "positional"])
def test_equals_the_equations(encoder):
    ours, question = make(encoder), tokens([3, 1, 6])
    expected = [naive.question(ours.state_dict(), encoder, words) for words in question.split()]
    torch.testing.assert_close(ours(question).values, torch.cat(expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sinusoidal_equals_the_formula(dtype):
    places = torch.tensor([0, 1, 2, 13, 1000])
    expected = torch.stack([naive.position(int(place), D) for place in places]).to(dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 1e-2}[dtype]
    encoded = sinusoidal(places, D, dtype)
    assert encoded.dtype == dtype
    torch.testing.assert_close(encoded, expected, atol=tolerance, rtol=0)


def test_sinusoidal_needs_an_even_size():
    with pytest.raises(ValueError, match="even size, not 7"):
        sinusoidal(torch.arange(3), 7)


@pytest.mark.parametrize("frozen", [True, False])
def test_word_vectors_start_the_embedding_and_stay_if_frozen(frozen):
    vectors = torch.randn(TOKENS, E)
    encoder = QuestionEncoder(TOKENS, E, D, "lstm", vectors, frozen)
    assert torch.equal(encoder.embedding.weight, vectors)
    encoder(tokens([3, 2])).values.sum().backward()
    assert (encoder.embedding.weight.grad is None) == frozen
    assert encoder.lstm.weight_ih_l0.grad.any()
    vectors.zero_()
    assert encoder.embedding.weight.any()


def test_word_vectors_of_another_shape():
    with pytest.raises(ValueError, match=r"word vectors are \(3, 5\), not \(30, 5\)"):
        QuestionEncoder(TOKENS, E, D, vectors=torch.zeros(3, E))


def test_unknown_encoder():
    with pytest.raises(ValueError, match="'gru' is not one of lstm, positional"):
        QuestionEncoder(TOKENS, E, D, "gru")
