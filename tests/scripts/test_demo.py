"""`scripts/demo.py` in a real browser: upload, question, answer, attention, and no other host."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import Browser
from PIL import Image
from runs import Lab, make_lab

import mcan

ROOT = Path(__file__).parents[2]
SIZES = {"model": {"image": {"input": "pixels", "stem": {"channels": [4, 6], "strides": [2, 2]}}}}
WITH_GRADIO = pytest.mark.skipif(
    find_spec("gradio") is None and "MCAN_NEEDS_CHROMIUM" not in os.environ,
    reason="no gradio; install it with: pip install -e '.[demo]'",
)
ANSWER = "document.querySelector('#answer textarea').value"


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    folder = tmp_path_factory.mktemp("demo")
    lab = make_lab(folder, SIZES, kind="pixels")
    assert lab.train("a", "train.max_steps=8").status == 0
    (folder / "pictures").mkdir()
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        pixels = random.integers(0, 256, (90, 120, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{name}.png")
    Image.fromarray(pixels).save(folder / "pictures" / "two.jpg")
    Image.fromarray(pixels).save(folder / "pictures" / "three.tiff")
    (folder / "pictures" / "empty.jpg").touch()
    (folder / "truncated.png").write_bytes((folder / "pictures/one.png").read_bytes()[:9000])
    (folder / "text.png").write_text("This is not a picture.")
    Image.new("L", (20_000, 20_000)).save(folder / "large.png")
    Image.new("RGBA", (1, 1)).save(folder / "dot.png")
    return lab


@pytest.fixture(scope="module")
def demo(lab) -> Iterator[str]:
    """The address of a running demo, which ends when it is interrupted, without a complaint."""
    command = [sys.executable, ROOT / "scripts/demo.py", "runs/a", "--images", "pictures"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, "--port", str(free_port())], cwd=lab.folder, **options)
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.communicate()
        yield line.split()[0]
    finally:
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    left_out = "pictures: not offered, as browsers cannot show them: empty.jpg, three.tiff"
    assert (process.returncode, printed) == (0, f"{left_out}\nclosed\n")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def upload(browser: Browser, path: Path) -> None:
    """Give a picture, maybe in place of an earlier one."""
    shown = "document.querySelector('#picture img')?.src"
    before = browser.run(shown)
    browser.wait("!!document.querySelector('#picture input[type=file]')")
    browser.upload("#picture input[type=file]", path)
    browser.wait(f"{shown} && {shown} !== {before!r}".replace("None", "undefined"))


def ask(browser: Browser, question: str) -> str:
    """The answer, or the sentence on what is wrong, once it is there."""
    before = browser.run(ANSWER)
    browser.type("#question textarea", question)
    browser.press("Enter")
    browser.wait(f"{ANSWER} !== {before!r}")
    return str(browser.run(ANSWER))


def choose(browser: Browser, field: str, option: str) -> None:
    """Choose in a list, which closes again if it is filled while it is open."""
    find = "[...document.querySelectorAll('[role=option]')]"
    find += f".find(option => option.innerText.trim().endsWith('{option}'))"

    def chosen() -> object:
        browser.click(f"{field} input")
        time.sleep(0.3)
        browser.run(f"{find}?.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
        time.sleep(0.3)
        return browser.run(f"document.querySelector('{field} input').value") == option

    browser.wait_for(chosen)


def shown_figure(browser: Browser) -> str:
    return str(browser.wait("document.querySelector('#figure img')?.src"))


@WITH_GRADIO
def test_upload_question_answer_attention(browser, lab, demo, monkeypatch, tmp_path):
    monkeypatch.chdir(lab.folder)
    expected = mcan.load("runs/a").answer("pictures/one.png", "word1 plus2")[0]
    browser.open(demo)
    browser.wait("!!document.querySelector('#question textarea')", 60)
    assert ask(browser, "word1 plus2") == "choose or upload an image first"
    upload(browser, lab.folder / "pictures/one.png")
    assert ask(browser, "word1 plus2") == str(expected)
    figure = shown_figure(browser)
    width = "document.querySelector('#figure img').naturalWidth"
    assert browser.wait(width) == 1320

    # Another unit, then one of its heads.
    for field, option in (("#name", "image.0.GA"), ("#head", "1")):
        choose(browser, field, option)
        browser.wait(f"document.querySelector('#figure img').src !== {figure!r}")
        figure = shown_figure(browser)

    # A picture of the folder, and words that are unknown.
    browser.run("document.querySelector('#choose button, .gallery-item').click()")
    browser.wait("!!document.querySelector('#picture img')")
    assert "note: unknown words: <b>what<, b>" in ask(browser, "<b>what</b> plus2")

    hosts = {urlsplit(url).netloc for url in browser.requests}
    assert hosts == {urlsplit(demo).netloc}


@WITH_GRADIO
def test_mistakes_are_sentences(browser, lab, demo):
    browser.open(demo)
    browser.wait("!!document.querySelector('#question textarea')", 60)
    for name, sentence in {
        "truncated.png": "truncated.png: not a readable image (image file is truncated",
        "text.png": "text.png: not a readable image (cannot identify image file",
        "large.png": "large.png: not a readable image (it has 20000 x 20000 pixels; make it",
    }.items():
        upload(browser, lab.folder / name)
        found = ask(browser, "word1 plus2")
        assert found.startswith(sentence)
        assert "\n" not in found
        assert not browser.run("!!document.querySelector('#figure img')")
    assert ask(browser, "  ") == "type a question about the image"
    upload(browser, lab.folder / "dot.png")
    assert "(" in ask(browser, "word1 plus2")
    assert "words are unknown" in ask(browser, "x" * 10_000 + "\x00")


@WITH_GRADIO
def test_only_this_machine_is_served(demo):
    port = urlsplit(demo).port
    with socket.socket() as probe:
        probe.settimeout(2)
        others = [a[4][0] for a in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)]
        for address in others:
            if not address.startswith("127."):
                assert probe.connect_ex((address, port)) != 0


MISTAKES = {
    "no run": (["runs/b"], "runs/b: neither a checkpoint nor a run folder"),
    "no checkpoint": (["text.png"], "text.png: not a checkpoint of train.py"),
    "key": (["runs/a", "model.width=3"], "model.width"),
    "device": (["runs/a", "--device", "tpu"], "there is no device 'tpu'"),
    "no folder": (["runs/a", "--images", "none"], "none: no folder with images"),
    "no pictures": (["runs/a", "--images", "prepared"], "prepared: no folder with images"),
    "address": (["runs/a", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1: "),
    "host": (["runs/a", "--host", "a..b"], "cannot listen on a..b: "),
    "port": (["runs/a", "--port", "99999"], "cannot listen on 127.0.0.1, port 99999: "),
}


@pytest.mark.parametrize(("args", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_at_the_start(lab, args, sentence):
    result = lab.execute("scripts/demo", args)
    (error,) = result.errors()
    assert sentence in error
    assert result.status == 2


def test_port_in_use(lab):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = lab.execute("scripts/demo", ["runs/a", "--port", str(taken.getsockname()[1])])
    (error,) = result.errors()
    assert "Address already in use" in error
    assert result.status == 2


def test_without_gradio(lab):
    result = lab.execute("scripts/demo", ["runs/a"], lambda: sys.modules.update(gradio=None))
    assert result.errors() == ["error: the demo needs gradio: pip install -e '.[demo]'"]
    assert result.status == 2
