"""OK-VQA: the official JSON files -> prepared/. Sources and counts: README.md here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mcan.data.room import Room, prepare_room
from mcan.errors import command


def _files(split: str) -> tuple[str, str]:
    names = f"OpenEnded_mscoco_{split}_questions.json", f"mscoco_{split}_annotations.json"
    return f"{names[0]}.zip/{names[0]}", f"{names[1]}.zip/{names[1]}"


ROOM = Room(
    name="ok_vqa",
    folder=Path(__file__).resolve().parent,
    splits={"train": _files("train2014"), "test": _files("val2014")},
    # No answer is marked as the chosen one, and the questions are few.
    every_answer=True,
)
main = partial(prepare_room, ROOM)

if __name__ == "__main__":
    command(main)
