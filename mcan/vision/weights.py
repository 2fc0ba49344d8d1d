"""Torchvision models by name, with weights that are downloaded, local, or random."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from mcan.data.json_items import file_sha256
from mcan.errors import DataError

DEFAULT, RANDOM = "DEFAULT", "random"
_SEED = 0


@dataclass(frozen=True)
class Weights:
    """What the user chose, `DEFAULT`, `random` or a file, and the `state` in the file.

    `description` goes into the provenance of a store; equal weights have equal ones.
    """

    choice: str
    description: Mapping[str, Any]
    state: Mapping[str, Tensor] | None = None


def check_name(name: str, known: Collection[str], what: str) -> None:
    """Raises `DataError` where torchvision has no model of this name."""
    if name not in known:
        near = get_close_matches(name, known, 3) or sorted(known)[:3]
        raise DataError(f"{name}: is no {what} of torchvision; there are {', '.join(near)}, ...")


def choose_weights(model: str, choice: str) -> Weights:
    """The weights for a torchvision model; nothing is downloaded before the model is built.

    Raises `DataError` where the file is not a state dictionary, or there are no DEFAULT weights.
    """
    if choice == RANDOM:
        return Weights(choice, {"random": True, "seed": _SEED})
    published = {weights.url: str(weights) for weights in get_model_weights(model)}
    if choice == DEFAULT:
        if not published:
            raise DataError(f"{model}: torchvision publishes no weights; use a file or random")
        return Weights(choice, {"published": str(get_model_weights(model).DEFAULT)})
    path = Path(choice)
    state = _read_state(path)
    digest = file_sha256(path)
    description = {"file": path.name, "sha256": digest}
    for url, name in published.items():
        # Torchvision's files are called NAME-HASH.pth.
        if digest.startswith(url.rsplit("-", 1)[-1].removesuffix(".pth")):
            description = {"published": name}
    return Weights(choice, description, state)


def build_model(name: str, weights: Weights, **options: Any) -> Any:
    """The model in evaluation mode; the state of a file is not in it yet, see `load_state`."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Some announce that their initialisation will change.
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(_SEED)
        if weights.choice != DEFAULT:
            return get_model(name, weights=None, **options).eval()
        try:
            return get_model(name, weights=DEFAULT, **options).eval()
        except (OSError, RuntimeError) as error:
            raise DataError(f"{name}: its weights could not be downloaded ({error})") from error


def load_state(part: nn.Module, weights: Weights, model: nn.Module) -> None:
    """Put the state of a file, if that was chosen, into `part`, the part of `model` that is used.

    Raises `DataError` where the file lacks a tensor of the part, has one in another shape, or has
    one that the model does not know.
    """
    if weights.state is None:
        return
    own, known = part.state_dict(), model.state_dict()
    given = {key: value for key, value in weights.state.items() if key in own}
    for key, value in own.items():
        # Frozen batch normalisation has no counter, and evaluation needs none.
        if key not in given and not key.endswith("num_batches_tracked"):
            raise DataError(f"{weights.choice}: tensor '{key}' is missing; is it of this model?")
        if key in given and given[key].shape != value.shape:
            raise DataError(
                f"{weights.choice}: tensor '{key}' is {tuple(given[key].shape)}, the model has "
                f"{tuple(value.shape)}"
            )
    for key in weights.state:
        if key not in known:
            raise DataError(f"{weights.choice}: the model has no tensor '{key}'")
    part.load_state_dict(given, strict=False)


def _read_state(path: Path) -> dict[str, Tensor]:
    """A state dictionary, as it is or below `state_dict` or `model`; nothing is executed."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; weights are DEFAULT, random or a file") from None
    except pickle.UnpicklingError as error:
        raise DataError(f"{path}: holds more than tensors and plain values; not loaded") from error
    except Exception as error:  # torch raises nearly anything for damaged files.
        raise DataError(f"{path}: not written by torch.save, or damaged ({error})") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise DataError(f"{path}: holds no state dictionary of tensors")
    return {str(key).removeprefix("module."): value for key, value in content.items()}
