"""Checkpoint files: what is written is read back, and anything else is refused in one line."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import load, save_sealed
from torch import nn

from mcan.batch import Batch, Image, Question, Targets
from mcan.build import build_model
from mcan.config import config_from_dict
from mcan.engine.checkpoint import (
    Checkpoint,
    last_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_newest,
)
from mcan.errors import RunError
from mcan.nn.mcan import ModelSizes
from mcan.rows import Packed

FIXTURES = Path(__file__).parents[1] / "fixtures"
OUTPUTS = torch.load(FIXTURES / "format_1_outputs.pt", weights_only=True)


SIZES: dict[str, int | None] = {"tokens": 5, "answers": 3, "feature_size": 6, "grid_size": None}


class Evil:
    """Code that a pickle would run when it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 30), nn.LayerNorm(30), nn.Linear(30, 2))


def make(step: int = 6) -> Checkpoint:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    position = {"epoch": 1, "batch": 0, "step": step}
    return Checkpoint({"name": "x"}, "{}", "abc", SIZES, [], **states, position=position)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make().save(tmp_path / "step_00000006.pt")
    return tmp_path / "step_00000006.pt"


def test_what_is_written_is_read(path):
    written, read = make(), load_checkpoint(path)
    assert read.source == path
    assert (read.config, read.position) == (written.config, written.position)
    model, twin = network(), network()
    read.restore(model, torch.optim.Adam(model.parameters()))
    written.restore(twin)
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])
    assert load(path).keys() == vars(written).keys() - {"source"}  # torch.load alone reads it too


def mutate(kind: str, data: bytearray, chance: random.Random) -> None:
    """Change a file somewhere, or in its last 73 bytes."""
    first = chance.randrange(len(data) - 73 if kind == "flip_the_end" else 0, len(data) - 8)
    if kind == "cut":
        del data[first:]
    elif kind == "insert":
        data[first:first] = chance.randbytes(1 + chance.randrange(64))
    elif kind == "remove":
        del data[first : first + 1 + chance.randrange(64)]
    elif kind == "erase":
        data[first : first + 8] = bytes(8) if any(data[first : first + 8]) else b"x" * 8
    else:
        data[first] ^= 1 << chance.randrange(8)


@pytest.mark.parametrize("kind", ["flip", "flip_the_end", "erase", "cut", "insert", "remove"])
def test_every_damaged_byte_is_noticed(path, kind):
    whole, chance = path.read_bytes(), random.Random(kind)
    for _ in range(50):
        data = bytearray(whole)
        mutate(kind, data, chance)
        path.write_bytes(data)
        with pytest.raises(RunError, match=r"^\S+step_00000006.pt: (damaged|not a checkpoint)"):
            load_checkpoint(path)


def raw(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


def sealed(content: Any, **options: Any) -> Callable[[Path], Any]:
    return lambda path: save_sealed(content, path, **options)


FOREIGN = "not a checkpoint of train.py, or damaged"
EVIL: dict[str, Any] = {"format": 2, "x": Evil()}
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (raw(b""), FOREIGN),
    "text": (raw(b"hello\n"), FOREIGN),
    "pickle": (raw(pickle.dumps(EVIL)), FOREIGN),
    "code": (sealed(EVIL), FOREIGN),
    "code_in_the_old_layout": (sealed(EVIL, _use_new_zipfile_serialization=False), FOREIGN),
    "tensor": (sealed(torch.zeros(3)), FOREIGN),
    "state": (sealed({"weight": torch.zeros(3)}), FOREIGN),
    "other_format": (sealed({"format": 99}), "checkpoint format 99; this version reads 2"),
    "fields_missing": (sealed({"format": 2}), "the checkpoint is not complete: "),
    "without_a_checksum": (
        lambda path: torch.save(load(path), path),
        "damaged: the checksum at its end is missing",
    ),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "no such checkpoint"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(path, case, monkeypatch):
    monkeypatch.chdir(path.parent)
    spoil, sentence = REFUSED[case]
    spoil(path)
    with pytest.raises(RunError) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(f"{path}: {sentence}")
    assert "\n" not in str(error.value)
    assert not (path.parent / "harm").exists()


def test_states_that_do_not_fit(path):
    checkpoint, model = load_checkpoint(path), network()
    checkpoint.optimizer, adam = {}, torch.optim.Adam(model.parameters())
    with pytest.raises(RunError, match=r"does not fit the optimizer: .param_groups."):
        checkpoint.restore(model, adam)
    del checkpoint.model["1.weight"]
    checkpoint.model["3.weight"] = checkpoint.model["3.bias"] = torch.zeros(1)
    checkpoint.model["0.bias"] = torch.zeros(7)
    with pytest.raises(RunError) as error:
        checkpoint.restore(model)
    assert str(error.value) == (
        f"{path}: does not fit the config: missing: 1.weight; unexpected: 3.bias, 3.weight; "
        "of another shape: 0.bias (7,) instead of (30,)"
    )


def test_last_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for name in ("best", "step_00000008", "step_100000000"):
        make().save(tmp_path / f"{name}.pt")
        assert last_checkpoint(tmp_path) == tmp_path / f"{name}.pt"


def test_the_newest_are_kept(tmp_path):
    for step in range(1, 6):
        save_newest(make(step), tmp_path, best=step == 2, keep_last=2)
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step_00000004.pt", "step_00000005.pt"]
    assert load(tmp_path / "best.pt")["position"]["step"] == 2


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_logits_of_format_1_are_those_of_the_code_that_wrote_it(name, layout):
    checkpoint, recorded = load_checkpoint(FIXTURES / f"format_1_{name}.pt"), OUTPUTS[name]
    config = config_from_dict(checkpoint.config, name)
    model = build_model(config.model, ModelSizes(**checkpoint.sizes)).eval()
    checkpoint.restore(model)
    words = recorded["words"]
    image = Image(
        Packed(recorded.get("lengths", torch.ones_like(words))),
        recorded.get("regions"),
        recorded.get("boxes"),
        None,
        recorded.get("grid"),
        Packed(recorded["grid_lengths"]) if "grid" in recorded else None,
        recorded.get("grid_cells"),
        recorded.get("pixels"),
    )
    nothing = torch.zeros(0, dtype=torch.int64)
    batch = Batch(
        Question(recorded["tokens"], Packed(words)),
        image,
        Targets(nothing, nothing, torch.zeros(0)),
        torch.arange(len(words)),
    ).enter("cpu", layout)
    with torch.no_grad():
        logits = model(batch.question, batch.image)
    torch.testing.assert_close(logits, recorded["logits"], atol=1e-5, rtol=1e-4)
