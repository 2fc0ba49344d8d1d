"""docs/extending.md: its blocks, put where they say into a copy of the code, work as they are."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pages import blocks, read_page
from runs import ROOT, make_lab, program
from torch import Tensor, nn

import mcan

PAGE = read_page("extending.md")
BLOCK = re.compile(
    r"# (?P<file>[^\s,]+)(, (?P<side>above|below) (?P<line>[^\n]+))?\n(?P<code>.+)", re.DOTALL
)
USES = re.findall(r"Use it with `(\S+=\S+)`", PAGE)
TESTS = re.findall(r"`pytest (\S+) -k (\S+)`", PAGE)


def extended(folder: Path) -> Path:
    """A copy of the code with every block of the page, as its first line says."""
    for name in ("mcan", "scripts", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "eval.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for block in map(BLOCK.fullmatch, blocks(PAGE)):
        assert block is not None
        path, code = folder / block["file"], block["code"]
        if block["side"] is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
            continue
        # Before the first line that starts so, or after it; a class or function stands alone.
        place = rf"^ *{re.escape(block['line'])}(?!\w).*\n"
        code += "" if code.startswith(" ") else "\n\n"
        text = path.read_text()
        found = re.search(place, text, re.MULTILINE)
        assert found, block["line"]
        at = found.end() if block["side"] == "below" else found.start()
        path.write_text(text[:at] + code + text[at:])
    return folder


def test_one_of_each_is_added_and_trained(tmp_path, monkeypatch):
    folder = extended(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    make_lab(folder)
    assert len(USES) == 5
    trained = program(
        sys.executable,
        "train.py",
        "config.yaml",
        "name=new",
        "train.epochs=1",
        "schedule.warmup_epochs=0",
        *USES,
        cwd=folder,
    )
    assert trained.status == 0, trained.err
    kept = (folder / "runs/new/config.yaml").read_text()
    assert all(use.rpartition("=")[2] in kept for use in USES)
    last = json.loads((folder / "runs/new/metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["overall"] <= 100

    raw = folder / "data/mine/raw"
    raw.mkdir()
    for split, answers in (("train", ["Yes", "2"]), ("val", ["yes", "3"])):
        rows = [f"img_{n},What is {n}?,{answer}\n" for n, answer in enumerate(answers)]
        (raw / f"{split}.csv").write_text("image,question,answer\n" + "".join(rows))
    prepared = program(sys.executable, "data/mine/prepare.py", cwd=folder)
    assert prepared.status == 0, prepared.err
    bounds = {line.split()[0]: line.split()[-2] for line in prepared.out.splitlines()[-2:]}
    assert bounds == {"train": "100.00", "val": "50.00"}


class LowRank(nn.Module):
    """What peft puts in the place of a projection: W x + 2 B A x, with B = 0 at the start."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * F.linear(F.linear(x, self.a), self.b)


def peft_of_this_test(seen: dict[str, Any]) -> ModuleType:
    """The two names of peft that the page uses; `seen` receives gradients and logits."""

    def replace(network: nn.Module, swap: Callable[[nn.Module], nn.Module], kind: type) -> None:
        for name, module in [*network.named_modules()]:
            if isinstance(module, kind) and not name.endswith(".base"):
                above, _, last = name.rpartition(".")
                setattr(network.get_submodule(above), last, swap(module))

    def adapt(network: nn.Module, rank: int) -> nn.Module:
        network.requires_grad_(False)
        replace(network, lambda module: LowRank(module, rank), nn.Linear)

        def merge_and_unload() -> nn.Module:
            seen["adapters"] = [m for m in network.modules() if isinstance(m, LowRank)]
            seen["adapted"] = seen["logits"](network)
            for module in seen["adapters"]:
                module.base.weight.data += 2 * module.b @ module.a
            replace(network, lambda module: module.base, LowRank)
            return network

        network.merge_and_unload = merge_and_unload
        return network

    peft = ModuleType("peft")
    peft.LoraConfig = lambda r, target_modules: r
    peft.get_peft_model = adapt
    return peft


@pytest.mark.parametrize("kind", ["regions", "pixels"])
def test_adapters_on_every_projection(tmp_path, monkeypatch, kind):
    """All get a gradient; merged and saved, the network answers as it did, also in eval.py."""
    changes = {"model": {"image": {"input": kind, "stem": {"channels": [4], "strides": [2]}}}}
    lab = make_lab(tmp_path, changes, kind=kind)
    assert lab.train("small", "train.max_steps=4").status == 0
    monkeypatch.chdir(tmp_path)
    before = mcan.load("runs/small")
    val = before.split("val")
    batch = val[range(len(val))].enter(torch.device("cpu"), "packed")
    seen: dict[str, Any] = {"logits": lambda net: net.eval()(batch.question, batch.image).detach()}
    monkeypatch.setitem(sys.modules, "peft", peft_of_this_test(seen))
    (block,) = (text for text in blocks(PAGE) if text.startswith("# adapt.py"))
    exec(block.replace("easy_vqa_quickstart", "small"), {})

    count = sum(isinstance(module, nn.Linear) for module in before.network.modules())
    assert len(seen["adapters"]) == count > 20
    for adapter in seen["adapters"]:
        assert adapter.a.grad.abs().sum() > 0
        assert adapter.b.grad.abs().sum() > 0
        assert adapter.base.weight.grad is None
    saved = mcan.load("adapted.pt")
    torch.testing.assert_close(seen["logits"](saved.network), seen["adapted"])
    assert not torch.allclose(seen["adapted"], seen["logits"](before.network))
    assert lab.eval("adapted.pt", "--output", "out").status == 0
    found = json.loads(Path("out/predictions.json").read_text())
    best = seen["adapted"].argmax(1).tolist()
    assert [item["answer"] for item in found] == [before.vocabulary.answers[i] for i in best]
    assert len(found) == len(val) > 10


@pytest.mark.slow
def test_the_tests_that_the_page_names_cover_them(tmp_path, monkeypatch):
    folder = extended(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    assert len(TESTS) == 6
    files, names = zip(*TESTS, strict=True)
    run = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *dict.fromkeys(files)]
    done = program(*run, "-k", " or ".join(names), cwd=folder)
    assert done.status == 0, done.out
    for file, name in TESTS:
        assert re.search(rf"{file}::.*{name}.* PASSED", done.out)
