"""Pages of the documentation, and the code in them."""

from __future__ import annotations

import re

from runs import ROOT


def read_page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(page: str, language: str = "python") -> list[str]:
    """The code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.+?)^```", page, re.DOTALL | re.MULTILINE)
