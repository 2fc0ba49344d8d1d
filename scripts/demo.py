#!/usr/bin/env python3
"""Ask a model about images on a local page: `python scripts/demo.py RUN`; see `--help`."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

from PIL import Image

import mcan
from mcan.api import Model
from mcan.console import DefaultsInHelp, message, positive, printable
from mcan.drawing import drawing
from mcan.errors import DataError, RunError, UserError, command, shorten
from mcan.explain.explanation import Explanation
from mcan.explain.weights import METHODS
from mcan.preparation.images import is_image, list_images
from mcan.preparation.names import image_formats

_CHOICES = 100
"""Maximum number of images offered from a folder."""
_SHOWN = {"BMP", "GIF", "JPEG", "MPO", "PNG", "WEBP"}
"""Formats of images, as Pillow calls them, that browsers show."""
_MEAN = "mean"
_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Environment of gradio and what it imports: no analytics and no check for newer versions."""
_CLOSED: Any = {
    **dict.fromkeys(("share", "ssr_mode", "pwa", "mcp_server"), False),
    **dict.fromkeys(("run_history", "enable_monitoring"), False),
}
"""What gradio serves besides the page by default: a public link, a Node server, an app, tools for
language models, a history in the browser, statistics."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Serve a local page: choose or upload an image, type a question, and see the "
        "answers and the attention. Needs `pip install -e '.[demo]'`.",
        formatter_class=DefaultsInHelp,
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="run folder, exported folder or .pt file")
    add("overrides", metavar="key=value", nargs="*", help="changes a key of the stored config")
    described = f"offer the images below this folder (the first {_CHOICES}) to choose from"
    add("--images", type=Path, metavar="FOLDER", help=described)
    described = "address to listen on; 127.0.0.1: this machine only, 0.0.0.0: the network too"
    add("--host", default="127.0.0.1", help=described)
    add("--port", type=positive, help="default: the first free one from 7860")
    add("--checkpoint", choices=("last", "best"), default="last", help="which checkpoint of a run")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    described = "weights of the feature extractor (default: those of torchvision)"
    add("--weights", type=Path, metavar="FILE", help=described)
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse()
    check_address(args.host, args.port or 0)
    pictures = [] if args.images is None else find_choices(args.images)
    model = mcan.load(
        args.run,
        device=args.device,
        checkpoint=args.checkpoint,
        overrides=args.overrides,
        weights=args.weights,
    )
    os.environ.update(_QUIET)
    # gradio checks that its own page responds, which must not go through a proxy.
    os.environ["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY"), args.host)))
    with TemporaryDirectory() as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        try:
            import gradio
        except ImportError as error:
            raise RunError("the demo needs gradio: pip install -e '.[demo]'") from error
        page = build_page(model, pictures, f"MCAN: {args.run}")
        fonts: Any = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace",)}
        _, url, _ = page.launch(
            server_name=args.host,
            server_port=args.port,
            theme=gradio.themes.Base(**fonts),
            footer_links=[],
            allowed_paths=pictures or [uploads],  # of none, gradio would ask the environment
            max_file_size="100mb",
            quiet=True,
            prevent_thread_lock=True,
            **_CLOSED,
        )
        print(f"{url} (Ctrl-C to stop)", flush=True)
        try:
            Event().wait()
        except KeyboardInterrupt:
            message("closed")
        finally:
            page.close(verbose=False)


def find_choices(folder: Path) -> list[str]:
    """The first images below a folder; those that a browser cannot show are left out and named."""
    found = list_images(folder.resolve(), None)
    if len(found) > _CHOICES:
        message(f"{folder}: offering the first {_CHOICES} of {len(found):,} images")
    first, formats = list(found.items())[:_CHOICES], _SHOWN & {*image_formats().values()}
    shown = {name: str(path) for name, path in first if is_image(path, formats)}
    if others := [name for name, _ in first if name not in shown]:
        message(f"{folder}: not offered, as browsers cannot show them: {shorten(others)}")
    return list(shown.values())


def check_address(host: str, port: int) -> None:
    """Raise `RunError` if the address cannot be used; gradio would try 100 ports first."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address[0], port))  # `getaddrinfo` wraps ports above 65535
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        where = f"{host}, port {port}" if port else host
        raise RunError(f"cannot listen on {where}: {reason}") from error


def build_page(model: Model, pictures: Sequence[str], title: str) -> Any:
    """The page as `gradio.Blocks`: image and question on the left, results on the right."""
    import gradio as gr

    def ask(path: str | None, question: str, name: str) -> list[Any]:
        try:
            if path is None:
                raise DataError("choose or upload an image first")
            if not question.strip():
                raise DataError("type a question about the image")
            seen = model.explain(path, question)
        except UserError as error:
            text = str(error).replace(f"{Path(path or '').parent}{os.sep}", "")
            return [printable(text), None, gr.skip(), gr.skip(), None]
        best, note = seen.answers[0], seen.answers.words.note
        lines = [printable(str(best)), *([f"note: {printable(note)}"] if note else [])]
        names = gr.update(choices=[*seen.methods, *seen.names])
        return ["\n".join(lines), seen, names, *draw(seen, name, _MEAN)]

    def draw(seen: Explanation | None, name: str, head: str) -> list[Any]:
        if seen is None:
            return [gr.skip(), None]
        heads = [] if name in seen.methods else list(map(str, range(len(seen.weights[name]))))
        head = head if head in heads else _MEAN
        file = BytesIO()
        with drawing():
            figure = seen.figure(name, None if head == _MEAN else int(head))
            figure.savefig(file, format="png")
        return [gr.update(choices=[_MEAN, *heads], value=head), Image.open(file)]

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        seen = gr.State(time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=2):
                sources = ["upload", "clipboard"]
                picture = gr.Image(label="Image", sources=sources, height=320, elem_id="picture")
                # The file as it is: gradio would convert some, and fail at broken ones.
                picture.preprocess = lambda payload: None if payload is None else payload.path
                question = gr.Textbox(label="Question", elem_id="question", submit_btn="Ask")
                if pictures:
                    gr.Examples(pictures, picture, label="Choose", examples_per_page=12)
            with gr.Column(scale=3):
                answer = gr.Textbox(label="Answer", elem_id="answer", max_lines=5)
                with gr.Row():
                    names = list(METHODS)
                    name = gr.Dropdown(names, value=names[0], label="Attention", elem_id="name")
                    head = gr.Dropdown([_MEAN], value=_MEAN, label="Head", elem_id="head")
                options = {
                    "format": "png",
                    "show_label": False,
                    "buttons": ["download", "fullscreen"],
                }
                figure = gr.Image(elem_id="figure", interactive=False, **options)
        outputs = [answer, seen, name, head, figure]
        one_by_one: Any = {"concurrency_id": "model", "concurrency_limit": 1}
        question.submit(ask, [picture, question, name], outputs, **one_by_one)
        gr.on([name.input, head.input], draw, [seen, name, head], [head, figure], **one_by_one)
    return page


if __name__ == "__main__":
    command(main)
