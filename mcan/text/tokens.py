"""Questions to words, by the rules of the authors' code."""

from __future__ import annotations

# One pass: deleted characters map to None, the two joiners to a space.
_RULES = str.maketrans("-/", "  ", ".,'!?\"()*#:;")


def tokenise(question: str) -> list[str]:
    """The lower-cased words of `question`; empty where nothing but punctuation is left."""
    return question.lower().translate(_RULES).split()
