#!/usr/bin/env python3
"""Ask a trained model about an image: `python scripts/ask.py RUN IMAGE ["QUESTION"]`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mcan
from mcan.api import open_picture
from mcan.console import DefaultsInHelp, message, positive, printable
from mcan.errors import RunError, UserError, command
from mcan.explain.explanation import SUFFIXES, Answers, check_suffix
from mcan.files import refuse_existing

_OVERRIDE = re.compile(r"[\w.]+=\S*")
_BAR = 30


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage='ask.py RUN IMAGE ["QUESTION"] [key=value ...] [options]',
        description="Answer a question about an image. The first line is the best answer with its "
        "probability; the other answers follow. Without QUESTION, read questions from standard "
        "input, one per line, until it ends (Ctrl-D in a terminal).",
        epilog="A network on features accepts an image file only if the extractor of its features "
        "is known and the extractor's weights are on this machine. It always accepts an image id "
        "of its stores.",
        formatter_class=DefaultsInHelp,
    )
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="run folder, exported folder or .pt file"
    )
    parser.add_argument(
        "image", metavar="IMAGE", help="image file, or image id in the model's stores"
    )
    described = "in quotes; key=value changes a key of the stored config, such as data.images=[...]"
    parser.add_argument("rest", metavar="QUESTION | key=value", nargs="*", help=described)
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="number of answers")
    parser.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        default="last",
        help="which checkpoint of a run",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    meaning = "weights of the feature extractor (default: those of torchvision)"
    parser.add_argument("--weights", type=Path, metavar="FILE", help=meaning)
    parser.add_argument(
        "--attention",
        type=Path,
        metavar="FILE",
        help="also write the attention: a page with controls (.html) or a figure (.png, .pdf, "
        ".svg); with several questions, that of the last one",
    )
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse()
    overrides = [text for text in args.rest if _OVERRIDE.fullmatch(text)]
    questions = [text for text in args.rest if not _OVERRIDE.fullmatch(text)]
    if len(questions) > 1:
        raise RunError(f"{len(questions)} questions; put one in quotes, or give none for a prompt")
    if args.attention is not None:
        check_attention(args.attention)
    model = mcan.load(
        args.run,
        device=args.device,
        checkpoint=args.checkpoint,
        overrides=overrides,
        weights=args.weights,
    )
    is_file = Path(args.image).is_file()
    if args.weights is not None and not is_file:
        raise RunError(f"--weights is for image files; {args.image!r} is not one")
    image = open_picture(args.image) if is_file else args.image
    if not questions:
        model.dataset([(image, "")])  # reports a bad image before the first question
    streams: tuple[Any, ...] = (sys.stdin, sys.stdout)
    for stream in streams:  # input that is not text; bars that the terminal cannot show
        stream.reconfigure(errors="replace")
    for question in questions or read_questions():
        question = question.encode(errors="replace").decode()  # bytes that are not text
        try:
            if not question.strip():
                raise RunError("the question is empty")
            if args.attention is None:
                show(model.answer(image, question, args.top))
            else:
                seen = model.explain(image, question, args.top)
                show(seen.answers)
                seen.save(args.attention)
                print(f"written: {args.attention}")
        except UserError as error:
            if questions:
                raise
            message(f"error: {error}")


def check_attention(path: Path) -> None:
    check_suffix(path, *SUFFIXES)
    refuse_existing(path, "--attention")


def read_questions() -> Iterator[str]:
    """Yield the lines of standard input; in a terminal, with a prompt, editing and history."""
    with suppress(ImportError):
        import readline  # noqa: F401 (changes `input`)
    prompt = "question: " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    with suppress(EOFError):
        while True:
            yield input(prompt)
    if prompt:
        print()


def show(answers: Answers) -> None:
    """Print the best answer, then the others with bars; print the note to standard error."""
    if note := answers.words.note:
        message(f"note: {printable(note)}")
    best, *others = ((printable(answer.text), answer.probability) for answer in answers)
    print(f"{best[0]} ({best[1]:.1%})")
    width = max([len(text) for text, _ in others], default=0)
    for text, probability in others:
        bar = "█" * round(_BAR * probability)
        print(f"  {text:{width}}  {probability:6.1%}  {bar}".rstrip())
    sys.stdout.flush()


if __name__ == "__main__":
    command(main)
