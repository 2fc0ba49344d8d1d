#!/usr/bin/env python3
"""Ask a trained model about a picture: `python scripts/ask.py RUN IMAGE ["QUESTION"]`."""

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
        description="Answer a question about a picture. The first line is the best answer and its "
        "probability, the next ones are the others. Without a question, questions are read from "
        "standard input, one a line, until it ends (Ctrl-D in a terminal).",
        epilog="A network on region features takes a picture only if the program that extracted "
        "them is known and its weights are on this machine; it always takes an id of its stores.",
        formatter_class=DefaultsInHelp,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder or .pt file")
    parser.add_argument("image", metavar="IMAGE", help="picture, or image id of the model's stores")
    described = "in quotes; key=value changes a key of the stored config, such as data.images=[...]"
    parser.add_argument("rest", metavar="QUESTION | key=value", nargs="*", help=described)
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="answers")
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
        help="also write what was attended to: a page with controls (.html) or a figure (.png, "
        ".pdf, .svg); of several questions, that of the last",
    )
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse()
    overrides = [text for text in args.rest if _OVERRIDE.fullmatch(text)]
    questions = [text for text in args.rest if not _OVERRIDE.fullmatch(text)]
    if len(questions) > 1:
        raise RunError(f"{len(questions)} questions; put one in quotes, or give none to be asked")
    if args.attention is not None:
        check_attention(args.attention)
    model = mcan.load(
        args.run,
        device=args.device,
        checkpoint=args.checkpoint,
        overrides=overrides,
        weights=args.weights,
    )
    image = open_picture(args.image) if Path(args.image).is_file() else args.image
    if not questions:
        model.dataset([(image, "")])  # reports what is wrong with the image before a question
    streams: tuple[Any, ...] = (sys.stdin, sys.stdout)
    for stream in streams:  # bytes that are no text; bars on a terminal that has none
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
    """The lines of standard input; in a terminal with a prompt, editing and a history in memory."""
    with suppress(ImportError):
        import readline  # noqa: F401 (changes `input`)
    prompt = "question: " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    with suppress(EOFError):
        while True:
            yield input(prompt)
    if prompt:
        print()


def show(answers: Answers) -> None:
    """The best answer, then the others with bars; on standard error what was not understood."""
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
