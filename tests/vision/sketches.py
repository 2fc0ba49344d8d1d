"""Small pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIZES = [(96, 64), (64, 96), (96, 64), (80, 80), (128, 64), (96, 64), (150, 70)]


def draw(width: int, height: int, seed: int) -> Image.Image:
    """Coloured rectangles, so that there is something to see."""
    random = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128, np.uint8)
    for _ in range(6):
        x, y = int(random.integers(width - 8)), int(random.integers(height - 8))
        pixels[y : y + int(random.integers(8, 40)), x : x + int(random.integers(8, 40))] = (
            random.integers(0, 256, 3)
        )
    return Image.fromarray(pixels)
