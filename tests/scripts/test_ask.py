"""`scripts/ask.py`: answers, questions from standard input, and one sentence for each mistake."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import Lab, Patch, Result, make_lab, program

import mcan

ROOT = Path(__file__).parents[2]
SIZES = {"model": {"image": {"input": "pixels", "stem": {"channels": [4, 6], "strides": [2, 2]}}}}
QUESTION = "word1 plus2 word3?"


def ask(lab: Lab, *args: object, patch: Patch | None = None) -> Result:
    return lab.execute("scripts/ask", [str(argument) for argument in args], patch)


def typed(text: bytes) -> Patch:
    """A patch: standard input is this text."""
    return lambda: setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    """A run `a` on pixels, some pictures, and files that are none."""
    folder = tmp_path_factory.mktemp("pixels")
    lab = make_lab(folder, SIZES, kind="pixels")
    assert lab.train("a", "train.max_steps=8").status == 0
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (150, 200, 3)).astype(np.uint8))
    picture.save(folder / "picture.png")
    picture.save(folder / "picture.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "picture.jpg").read_bytes()[:4000])
    (folder / "text.png").write_text("This is not a picture.")
    (folder / "empty.png").touch()
    (folder / "nul.png").write_bytes(bytes(1000))
    Image.new("L", (20_000, 20_000)).save(folder / "large.png")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.fromarray(np.full((8, 8), 1e9, np.float32)).save(folder / "bright.tiff")
    (folder / "old.png").write_text("precious")
    checkpoint = next((lab.run("a") / "checkpoints").glob("step_*.pt"))
    content = checkpoint.read_bytes()
    for name, changed in (
        ("short", content[:-100]),
        ("good", content),
        ("other", content.replace(b"a", b"b", 1000)),
    ):
        (folder / f"{name}.pt").write_bytes(changed)
    (folder / "nothing").mkdir()
    return lab


@pytest.fixture(scope="module")
def on_regions(tmp_path_factory) -> Lab:
    lab = make_lab(tmp_path_factory.mktemp("regions"), boxes=True)
    assert lab.train("a", "train.max_steps=8").status == 0
    Image.new("RGB", (64, 48), "red").save(lab.folder / "picture.png")
    return lab


def test_first_line_is_the_best_answer(lab, monkeypatch):
    monkeypatch.chdir(lab.folder)
    answers = mcan.load("runs/a").answer("picture.png", QUESTION, top=4)
    result = ask(lab, "runs/a", "picture.png", QUESTION, "--top", 4)
    assert (result.status, result.err) == (0, "")
    first, *others = result.out.splitlines()
    assert first == str(answers[0])
    found = [re.fullmatch(r"  (\w+) +([0-9.]+)%( +█+)?", line).groups() for line in others]
    assert [(text, p) for text, p, _ in found] == [
        (answer.text, f"{100 * answer.probability:.1f}") for answer in answers[1:]
    ]
    for answer, (_, _, bar) in zip(answers[1:], found, strict=True):
        assert len((bar or "").strip()) == round(30 * answer.probability)


def test_id_of_a_store_and_overrides(on_regions, monkeypatch):
    monkeypatch.chdir(on_regions.folder)
    Path("images.h5").rename("moved.h5")
    try:
        result = ask(on_regions, "runs/a", "3", "data.images=[moved.h5]", QUESTION, "--top", 1)
    finally:
        Path("moved.h5").rename("images.h5")
    assert result.out == f"{mcan.load('runs/a').answer(3, QUESTION, top=1)[0]}\n"


@pytest.mark.parametrize(
    ("question", "note"),
    [
        ("what is plus2?", "note: unknown words: what, is"),
        ("Where?", "note: all words are unknown: where"),
        ("?!", "note: the question has no words"),
        ("word1 " * 5000, None),
        ("x" * 10_000, f"note: all words are unknown: {'x' * 300}"),
        ("word1 \x1b[31m\u202ered", "note: unknown words: \ufffd[31m\ufffdred"),
        ("key = value", "note: all words are unknown: key, =, value"),
    ],
)
def test_notes_on_the_question(lab, question, note):
    result = ask(lab, "runs/a", "picture.png", question)
    assert result.status == 0
    assert len(result.out.splitlines()) == 5
    assert result.err.startswith(note or "")
    assert ("note" in result.err) == (note is not None)
    assert len(result.err) < 500


def test_long_questions_are_cut(lab):
    result = ask(lab, "runs/a", "picture.png", "word1 " * 3 + "plus2", "data.max_tokens=3")
    assert result.err == "note: cut off after 3 words: plus2\n"


def test_questions_from_standard_input(lab, monkeypatch):
    monkeypatch.chdir(lab.folder)
    lines = b"word1 plus2\n\n  \nword3\xff \x00 plus1?\r\nword2 plus3"
    result = ask(lab, "runs/a", "picture.png", "--top", "1", patch=typed(lines))
    model = mcan.load("runs/a")
    expected = [
        model.answer("picture.png", q)[0] for q in ("word1 plus2", "x x plus1", "word2 plus3")
    ]
    assert result.out.splitlines() == [str(answer) for answer in expected]
    assert result.errors() == ["error: the question is empty"] * 2
    assert result.status == 0
    assert ask(lab, "runs/a", "picture.png", patch=typed(b"")) == Result(0, "", "")


def test_a_terminal_prompts_and_recalls(lab):
    """Up repeats the last question; Ctrl-D ends."""
    ours, theirs = pty.openpty()
    command = [sys.executable, ROOT / "scripts/ask.py", "runs/a", "picture.png", "--top", "1"]
    environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1", "HOME": str(lab.folder)}
    process = subprocess.Popen(
        command, cwd=lab.folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    printed = b""

    def wait_for(count: int) -> None:
        nonlocal printed
        while printed.count(b"question: ") < count:
            assert select.select([ours], [], [], 60)[0], printed
            printed += os.read(ours, 4096)

    wait_for(1)
    os.write(ours, b"word1 plus2\n")
    wait_for(2)
    os.write(ours, b"\x1b[A\n")
    answers = re.findall(rb"answer\d \(\d+\.\d%\)", printed)
    wait_for(3)
    os.write(ours, b"\x04")
    assert process.wait(30) == 0
    os.close(ours)
    assert len(answers) == 1
    assert set(re.findall(rb"answer\d \(\d+\.\d%\)", printed)) == set(answers)
    assert not list(lab.folder.glob(".*history*"))


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg", "html"])
def test_attention(lab, tmp_path, suffix):
    path = tmp_path / "new" / f"seen.{suffix}"
    result = ask(lab, "runs/a", "picture.png", QUESTION, "--attention", path)
    assert (result.status, result.errors()) == (0, [])
    assert (
        result.out.splitlines()[0]
        == ask(lab, "runs/a", "picture.png", QUESTION).out.splitlines()[0]
    )
    assert result.out.endswith(f"written: {path}\n")
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "html": b"<!"}[suffix]
    assert path.read_bytes().startswith(start)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_attention_of_several_questions_is_that_of_the_last(lab, tmp_path):
    both, last = tmp_path / "both.svg", tmp_path / "last.svg"
    lines = typed(b"word1 plus2\nword3 word4 plus1\n")
    assert ask(lab, "runs/a", "picture.png", "--attention", both, patch=lines).status == 0
    ask(lab, "runs/a", "picture.png", "word3 word4 plus1", "--attention", last)
    assert both.read_bytes() == last.read_bytes()


def test_modes_of_pictures_answer_alike(lab, tmp_path):
    opened = Image.open(lab.folder / "picture.png").quantize(200)
    shown = set()
    for name, picture in {
        "palette.png": opened,
        "palette.gif": opened,
        "rgb.png": opened.convert("RGB"),
        "rgba.png": opened.convert("RGBA"),
        "rgb.bmp": opened.convert("RGB"),
    }.items():
        picture.save(tmp_path / name)
        shown.add(ask(lab, "runs/a", tmp_path / name, QUESTION).out)
    assert len(shown) == 1
    assert ask(lab, "runs/a", "dot.png", QUESTION).status == 0


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no picture": (
        ["runs/a", "none.png", "q"],
        "'none.png': no such file, and no image with this id",
    ),
    "unknown id": (
        ["runs/a", "99", "q"],
        "99: no such file, and no image with this id in images.h5",
    ),
    "folder": (["runs/a", "nothing", "q"], "'nothing': no such file"),
    "empty name": (["runs/a", "", "q"], "'': no such file"),
    "NUL in the name": (["runs/a", "a\0b", "q"], "no such file"),
    "long name": (["runs/a", "a" * 5000, "q"], "File name too long"),
    "text": (["runs/a", "text.png", "q"], "text.png: not a readable image"),
    "empty file": (["runs/a", "empty.png", "q"], "empty.png: not a readable image"),
    "NUL bytes": (["runs/a", "nul.png", "q"], "nul.png: not a readable image"),
    "truncated": (["runs/a", "truncated.jpg", "q"], "truncated.jpg: not a readable image"),
    "large": (["runs/a", "large.png", "q"], "20000 x 20000 pixels; make it smaller"),
    "values": (["runs/a", "bright.tiff", "q"], "its values of mode F go from 1e+09"),
    "no run": (["runs/b", "picture.png", "q"], "runs/b: neither a checkpoint nor a run folder"),
    "empty run": (
        ["nothing", "picture.png", "q"],
        "nothing: neither a checkpoint nor a run folder",
    ),
    "short": (
        ["short.pt", "picture.png", "q"],
        "short.pt: not a checkpoint of train.py, or damaged",
    ),
    "damaged": (["other.pt", "picture.png", "q"], "its bytes do not match its checksum"),
    "no checkpoint": (["text.png", "picture.png", "q"], "text.png: not a checkpoint of train.py"),
    "empty question": (["runs/a", "picture.png", ""], "the question is empty"),
    "blank": (["runs/a", "picture.png", " \n"], "the question is empty"),
    "no quotes": (["runs/a", "picture.png", "what", "is", "it"], "3 questions; put one in quotes"),
    "suffix": (["runs/a", "picture.png", "q", "--attention", "a.jpg"], "a.jpg: ends in .jpg; use"),
    "no suffix": (["runs/a", "picture.png", "q", "--attention", "a"], "a: ends in nothing; use"),
    "existing": (["runs/a", "picture.png", "q", "--attention", "old.png"], "old.png: exists"),
    "not to be written": (
        ["runs/a", "picture.png", "word1", "--attention", "text.png/a.png"],
        "text.png/a.png: could not be written",
    ),
    "key": (["runs/a", "picture.png", "q", "model.width=3"], "model.width"),
    "value": (["runs/a", "picture.png", "q", "model.heads=some"], "model.heads"),
    "other sizes": (["runs/a", "picture.png", "q", "model.hidden_size=16"], "does not fit"),
    "device": (["runs/a", "picture.png", "q", "--device", "tpu"], "there is no device 'tpu'; use"),
    "no GPU": (
        ["runs/a", "picture.png", "q", "--device", "cuda:7"],
        "error: device is cuda:7, but",
    ),
    "no GPU by key": (["runs/a", "picture.png", "q", "train.device=cuda"], "train.device is cuda,"),
    "weights": (
        ["runs/a", "picture.png", "q", "--weights", "text.png"],
        "runs/a: starts from pixels",
    ),
    "best of a file": (
        ["good.pt", "picture.png", "q", "--checkpoint", "best"],
        "good.pt: a single checkpoint; best needs a run folder",
    ),
    "before a question": (["runs/a", "text.png"], "text.png: not a readable image"),
}


@pytest.mark.parametrize(("args", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_sentence(lab, args, sentence):
    result = ask(lab, *args)
    (error,) = result.errors()
    assert sentence in error
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert len(error) < 6000
    assert (lab.folder / "old.png").read_text() == "precious"


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_top_is_a_whole_number(lab, value):
    result = ask(lab, "runs/a", "picture.png", "q", "--top", value)
    assert result.status == 2
    assert "Traceback" not in result.err


def test_region_features_of_unknown_origin(on_regions):
    result = ask(on_regions, "runs/a", "picture.png", QUESTION)
    (error,) = result.errors()
    assert result.status == 2
    assert "extract" in error
    (error,) = ask(on_regions, "runs/a", "3", QUESTION, "--weights", "w.pth").errors()
    assert error == "error: --weights is for image files; '3' is not one"


def test_features_of_another_width(on_regions, tmp_path):
    other = make_lab(tmp_path, boxes=True, feature_dim=9)
    images = f"data.images=[{other.folder / 'images.h5'}]"
    result = ask(on_regions, "runs/a", "3", QUESTION, images)
    (error,) = result.errors()
    assert result.status == 2
    assert "9" in error


def test_starts_without_what_it_does_not_need():
    """The start is most of the time from a question to its answer."""
    heavy = ("matplotlib", "tensorboard", "torchvision", "torch._dynamo", "torch._inductor")
    code = "import runpy, sys; runpy.run_path('scripts/ask.py'); "
    code += f"print(*(set({heavy}) & set(sys.modules)))"
    result = program(sys.executable, "-c", code, cwd=ROOT)
    assert (result.status, result.out) == (0, "\n")
