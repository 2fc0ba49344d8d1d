"""Visual question answering with Modular Co-Attention Networks (Yu et al., CVPR 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcan.api import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`mcan.load`, imported when it is used: `import mcan` alone does not load torch."""
    if name != "load":
        raise AttributeError(f"module 'mcan' has no attribute {name!r}")
    from mcan.api import load

    return load
