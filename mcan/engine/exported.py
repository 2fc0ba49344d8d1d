"""A model as a folder that other programs can read: safetensors, YAML and JSON, no Python objects.

`model.safetensors` contains the weights and, in its header, the rest of the checkpoint.
`config.yaml` has the format of a run's, `vocabulary.json` that of a prepared folder's.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from mcan.config import config_from_dict, dump_config, load_config
from mcan.engine.checkpoint import EXPORTED, Checkpoint, from_fields
from mcan.errors import RunError, need
from mcan.files import parse_json, save_text, write_atomically
from mcan.text.vocabulary import Vocabulary

CONFIG, VOCABULARY = "config.yaml", "vocabulary.json"
_NOT_IN_HEADER = {"config", "vocabulary", "model", "optimizer", "question_keys", "source"}
_KEYS = "mcan.question_keys"


def write_exported(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the three files of a checkpoint into `folder`, the weights last."""
    need("safetensors", folder)
    from safetensors.torch import save

    header = {
        each.name: getattr(checkpoint, each.name)
        for each in fields(Checkpoint)
        if each.name not in _NOT_IN_HEADER
    }
    config = config_from_dict(checkpoint.config, str(checkpoint.source))
    save_text(folder / CONFIG, dump_config(config))
    save_text(folder / VOCABULARY, checkpoint.vocabulary)
    # Tensors that share memory must be separate, and every tensor contiguous.
    tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.model.items()}
    if checkpoint.question_keys is not None:
        tensors[_KEYS] = checkpoint.question_keys
    content = save(tensors, {"format": "pt", "mcan": json.dumps(header)})
    write_atomically(folder / EXPORTED, lambda file: file.write(content))


def read_exported(folder: Path) -> Checkpoint:
    """Read the checkpoint of an exported folder, to evaluate it or to start another run from it.

    Raises `RunError` if the folder is damaged or was not written by `write_exported`.
    """
    path = folder / EXPORTED
    need("safetensors", path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = dict(parse_json((file.metadata() or {})["mcan"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise RunError(f"{path}: not written by scripts/export.py, or damaged ({error})") from error
    vocabulary = folder / VOCABULARY
    if not vocabulary.is_file():
        raise RunError(f"{vocabulary}: no such file; export the run again")
    if Vocabulary.read(vocabulary).digest != header.get("vocabulary_digest"):
        raise RunError(f"{vocabulary}: not the vocabulary of {path}; export the run again")
    stated = {name: value for name, value in header.items() if name not in _NOT_IN_HEADER}
    read = {
        "config": load_config(folder / CONFIG).model_dump(mode="json"),
        "vocabulary": vocabulary.read_text(encoding="utf-8"),
        "question_keys": tensors.pop(_KEYS, None),
        "model": tensors,
    }
    return from_fields(stated | read, path)
