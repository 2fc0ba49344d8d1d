#!/usr/bin/env python3
"""Draw the figures of docs/attention.md, after `make quickstart`; print its table of costs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import mcan
from mcan.drawing import COLOURS, drawing, line_style
from mcan.errors import command
from mcan.explain.explanation import Explanation
from mcan.explain.figures import save_figure
from mcan.nn.attention import Dot, MultiHeadAttention, ScaledDot, attention
from mcan.rows import Padded

IMAGE, QUESTION = "test/0", "what is the color of the shape?"
WIDTH, WORDS, REGIONS = 512, 14, 100


def costs() -> Iterator[str]:
    """Rows of a table: attention from 100 regions to 14 words at width 512, with some heads."""
    x, source = torch.zeros(1, REGIONS, WIDTH), torch.zeros(1, WORDS, WIDTH)
    masks = (torch.ones(1, count, dtype=torch.bool) for count in (REGIONS, WORDS))
    rows, source_rows = map(Padded, masks)
    for heads in (1, 2, 4, 8, 16):
        layer = MultiHeadAttention(WIDTH, heads, 0.0, "scaled_dot")
        similarity = MultiHeadAttention(WIDTH, heads, 0.0, "perceptron").similarity
        with FlopCounterMode(display=False) as counter:
            layer(x, source, rows, source_rows)
        sizes = [sum(p.numel() for p in part.parameters()) for part in (layer, similarity)]
        products, weights = counter.get_total_flops() // 2, heads * REGIONS * WORDS
        numbers = (heads, WIDTH // heads, sizes[0], products, weights, sizes[1])
        yield f"| {' | '.join(f'{number:,}' for number in numbers)} |"


def draw_steps(figure: Any) -> None:
    """A query and five keys in the plane: similarity, softmax, weighted sum."""
    query = torch.tensor([[1.6, 1.2]])
    keys = torch.tensor([[1.8, 0.4], [0.9, 1.9], [-1.0, 1.4], [-1.5, -0.8], [0.6, -1.6]])
    result, weights = attention(query, keys, keys, ScaledDot(2))
    vectors, first, second, mixed = figure.subplots(1, 4)
    for axes, shares in ((vectors, torch.ones(5)), (mixed, weights[0].clamp(min=0.15))):
        for number, (key, share) in enumerate(zip(keys, shares, strict=True), 1):
            draw_arrow(axes, key, f"{number}", COLOURS[0], float(share))
        axes.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), aspect="equal", xticks=[], yticks=[])
    draw_arrow(vectors, query[0], "q", COLOURS[1])
    draw_arrow(mixed, result[0], "result", COLOURS[2])
    vectors.set_title("query and keys")
    mixed.set_title("3. weighted sum of the values")
    first.bar(range(1, 6), ScaledDot(2)(query, keys)[0], color=COLOURS[0])
    second.bar(range(1, 6), weights[0], color=COLOURS[0])
    first.set(title="1. similarity  q·k / √2", xlabel="key")
    second.set(title="2. softmax", xlabel="key", ylim=(0, 1))


def draw_arrow(axes: Any, to: Tensor, label: str, color: str, alpha: float = 1.0) -> None:
    style = {"arrowstyle": "-|>", "color": color, "alpha": alpha, "linewidth": 2}
    axes.annotate("", to.tolist(), (0, 0), arrowprops=style)
    axes.text(*(1.14 * to).tolist(), label, color=color, ha="center", va="center")


def draw_scale(figure: Any, keys: int = 16, draws: int = 2000) -> None:
    """Normal queries and keys of width d: scores, entropy of the weights and their derivatives."""
    widths, panels = [2**power for power in range(11)], figure.subplots(1, 3)
    for number, (label, kind) in enumerate({"q·k": Dot, "q·k / √d": ScaledDot}.items()):
        found = []
        for width in widths:
            generator = torch.Generator().manual_seed(width)
            query = torch.randn(draws, 1, width, generator=generator)
            scores = kind(width)(query, torch.randn(draws, keys, width, generator=generator))
            weights = scores.softmax(-1)
            entropy = -torch.special.xlogy(weights, weights).sum(-1).mean()
            found.append((scores.var(), entropy, (weights * (1 - weights)).mean()))
        for axes, values in zip(panels, zip(*found, strict=True), strict=True):
            axes.plot(widths, values, label=label, **line_style(number))
    titles = ("variance of the scores", f"entropy, {keys} keys", "mean of ∂α/∂s = α (1 − α)")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_xscale("log", base=2)
        axes.set(title=title, xlabel="width d", xticks=widths[::2], xticklabels=widths[::2])
    panels[0].set_yscale("log")
    panels[0].set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    panels[0].legend()
    panels[1].axhline(np.log(keys), color="gray", linestyle=":")
    panels[1].text(1024, np.log(keys) - 0.03, f"uniform: ln {keys}", ha="right", va="top")
    panels[1].set_ylim(bottom=0)
    panels[2].set_ylim(bottom=0)


def draw_heads(figure: Any, seen: Explanation) -> None:
    """What each head of two units gives weight to."""
    names = "question.1.SA", "image.1.GA"
    for row, name in zip(figure.subplots(2, 4), names, strict=True):
        for head, axes in enumerate(row):
            draw_weights(axes, seen, name, head)


def draw_units(figure: Any, seen: Explanation) -> None:
    """The picture with its cells, then three units of the last layer, heads averaged."""
    picture, *panels = figure.subplots(1, 4)
    picture.imshow(seen.picture, extent=(0, 4, 4, 0))
    for cell in range(16):
        picture.text(cell % 4 + 0.08, cell // 4 + 0.08, cell, va="top", fontsize=8)
    picture.set(title="cells", xticks=range(5), yticks=range(5))
    picture.tick_params(labelbottom=False, labelleft=False)
    for axes, name in zip(panels, ("question.1.SA", "image.1.SA", "image.1.GA"), strict=True):
        draw_weights(axes, seen, name)


def draw_weights(axes: Any, seen: Explanation, name: str, head: int | None = None) -> None:
    """The weights of a unit from 0 (white) to 1: a row per query, a column per key."""
    weights = seen.attention(name, head)
    axes.imshow(weights, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.grid(visible=False)
    axes.set_title(name if head is None else f"{name}, head {head}")
    for axis, size in zip((axes.yaxis, axes.xaxis), weights.shape, strict=True):
        if size == len(seen.labels):
            axis.set_ticks(range(size), seen.labels, fontsize=8, rotation=90 * (axis is axes.xaxis))
        else:
            axis.set_ticks(range(0, size, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default="runs/easy_vqa_quickstart", metavar="RUN")
    parser.add_argument("--output", type=Path, default="docs/attention", metavar="FOLDER")
    args = parser.parse_args()
    from matplotlib.figure import Figure

    seen = mcan.load(args.run, device="cpu").explain(IMAGE, QUESTION)
    args.output.mkdir(exist_ok=True)
    figures: dict[str, tuple[tuple[float, float], Callable[[Any], None]]] = {
        "steps": ((11, 2.9), draw_steps),
        "scale": ((11, 3), draw_scale),
        "heads": ((11, 6), partial(draw_heads, seen=seen)),
        "units": ((12, 3.2), partial(draw_units, seen=seen)),
    }
    for name, (size, draw) in figures.items():
        with drawing():
            draw(figure := Figure(figsize=size, layout="constrained"))
            save_figure(figure, args.output / f"{name}.png")
    save_figure(seen.figure(), args.output / "answer.png")
    print(*costs(), sep="\n")


if __name__ == "__main__":
    command(main)
