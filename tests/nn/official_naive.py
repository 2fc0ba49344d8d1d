"""The authors' network from its published description, on padded tensors, by official key names.

It serves as the independent side of the importer's tests: same keys and shapes as their state
dictionary, padding masked by a large negative number, LayerNorm by the unbiased deviation.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def random_state(
    d: int = 8, depth: int = 2, tokens: int = 20, answers: int = 7, glimpses: int = 1
) -> State:
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (tokens, 5)}
    for name, shape in {"ih": (4 * d, 5), "hh": (4 * d, d)}.items():
        shapes[f"lstm.weight_{name}_l0"] = shape
        shapes[f"lstm.bias_{name}_l0"] = (4 * d,)

    def linear(name: str, inner: int, out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inner), (out,)

    linear("img_feat_linear", 6, d)
    for part, attentions, norms in (("enc", ["mhatt"], 2), ("dec", ["mhatt1", "mhatt2"], 3)):
        for layer in range(depth):
            prefix = f"backbone.{part}_list.{layer}"
            for attention in attentions:
                for projection in ("v", "k", "q", "merge"):
                    linear(f"{prefix}.{attention}.linear_{projection}", d, d)
            linear(f"{prefix}.ffn.mlp.fc.linear", d, 4 * d)
            linear(f"{prefix}.ffn.mlp.linear", 4 * d, d)
            for norm in range(1, norms + 1):
                shapes[f"{prefix}.norm{norm}.a_2"] = shapes[f"{prefix}.norm{norm}.b_2"] = (d,)
    for flat in ("attflat_img", "attflat_lang"):
        linear(f"{flat}.mlp.fc.linear", d, 9)
        linear(f"{flat}.mlp.linear", 9, glimpses)
        linear(f"{flat}.linear_merge", d * glimpses, 10)
    shapes["proj_norm.a_2"] = shapes["proj_norm.b_2"] = (10,)
    linear("proj", 10, answers)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.5 for name, shape in shapes.items()}


def logits(state: State, image: Tensor, question: Tensor, heads: int) -> Tensor:
    """(B, answers) for padded features (B, m, 6), zero rows at the end, and ids (B, n), 0 = pad."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            state[f"{name}.a_2"] * centred / (x.std(-1, keepdim=True) + 1e-6) + state[f"{name}.b_2"]
        )

    def attend(name: str, x: Tensor, source: Tensor, pad: Tensor) -> Tensor:
        q, k, v = (
            linear(f"{name}.linear_{letter}", rows).unflatten(-1, (heads, -1)).transpose(1, 2)
            for letter, rows in (("q", x), ("k", source), ("v", source))
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(pad[:, None, None], -1e9).softmax(-1)
        return linear(f"{name}.linear_merge", (weights @ v).transpose(1, 2).flatten(2))

    def mlp(name: str, x: Tensor) -> Tensor:
        return linear(f"{name}.mlp.linear", linear(f"{name}.mlp.fc.linear", x).relu())

    def flat(name: str, x: Tensor, pad: Tensor) -> Tensor:
        weights = mlp(name, x).masked_fill(pad[..., None], -1e9).softmax(1)
        glimpses = [(weights[:, :, g : g + 1] * x).sum(1) for g in range(weights.shape[-1])]
        return linear(f"{name}.linear_merge", torch.cat(glimpses, 1))

    image_pad, question_pad = image.abs().sum(-1) == 0, question == 0
    d = state["img_feat_linear.weight"].shape[0]
    lstm = torch.nn.LSTM(state["embedding.weight"].shape[1], d, batch_first=True)
    lstm.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("lstm.")})
    with torch.no_grad():
        y, _ = lstm(F.embedding(question, state["embedding.weight"]))
    x = linear("img_feat_linear", image)
    depth = len({key.split(".")[2] for key in state if ".enc_list." in key})
    for layer in range(depth):
        unit = f"backbone.enc_list.{layer}"
        y = norm(f"{unit}.norm1", y + attend(f"{unit}.mhatt", y, y, question_pad))
        y = norm(f"{unit}.norm2", y + mlp(f"{unit}.ffn", y))
    for layer in range(depth):
        unit = f"backbone.dec_list.{layer}"
        x = norm(f"{unit}.norm1", x + attend(f"{unit}.mhatt1", x, x, image_pad))
        x = norm(f"{unit}.norm2", x + attend(f"{unit}.mhatt2", x, y, question_pad))
        x = norm(f"{unit}.norm3", x + mlp(f"{unit}.ffn", x))
    fused = flat("attflat_lang", y, question_pad) + flat("attflat_img", x, image_pad)
    return linear("proj", norm("proj_norm", fused))
