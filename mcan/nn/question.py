"""Question encoder (Yu et al. 2019, section 4.1).

B questions, T words of all of them, V tokens, E width of the embedding, d width of the model.
"""

from __future__ import annotations

from torch import Tensor, nn

from mcan.nn.position import sinusoidal
from mcan.ragged import Ragged


class QuestionEncoder(nn.Module):
    """Word embedding (V, E), then an LSTM with d units, or a linear map to d plus position
    encoding.

    All LSTM outputs are the question's features. `vectors` (V, E) starts the embedding from word
    vectors; `frozen` keeps them. `encoder` is `lstm` or `positional` (`ValueError` otherwise).
    """

    def __init__(
        self,
        tokens: int,
        embedding_size: int,
        size: int,
        encoder: str = "lstm",
        vectors: Tensor | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding_size)
        if vectors is not None:
            if vectors.shape != self.embedding.weight.shape:
                raise ValueError(
                    f"word vectors are {tuple(vectors.shape)}, not {(tokens, embedding_size)}"
                )
            self.embedding.weight.data.copy_(vectors)
        self.embedding.weight.requires_grad_(not frozen)
        if encoder not in ("lstm", "positional"):
            raise ValueError(f"encoder {encoder!r} is not one of lstm, positional")
        self.lstm = nn.LSTM(embedding_size, size, batch_first=True) if encoder == "lstm" else None
        self.projection = nn.Linear(embedding_size, size) if encoder == "positional" else None

    def forward(self, question: Ragged) -> Ragged:
        """Token ids (T,) -> features (T, d)."""
        layout = question.layout
        embedded = self.embedding(question.values)
        if self.lstm is not None:
            # Padding follows the words, so no state of a valid word has seen it.
            states, _ = self.lstm(layout.pad(embedded))
            return question.replace(layout.unpad(states))
        assert self.projection is not None
        projected = self.projection(embedded)
        place = sinusoidal(layout.position, projected.shape[1], projected.dtype)
        return question.replace(projected + place)
