"""Kinds of command-line arguments; a wrong one is told by argparse in one sentence."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text} is not a positive integer")
    return int(text)


def shard(text: str) -> tuple[int, int]:
    """`I/N`, the I-th of N parts, from 1."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N")
    return int(found[1]), int(found[2])
