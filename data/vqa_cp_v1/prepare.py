"""VQA-CP v1: the official JSON files -> prepared/. Sources and counts: README.md here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mcan.data.room import Room, prepare_room
from mcan.errors import command

ROOM = Room(
    name="vqa_cp_v1",
    folder=Path(__file__).resolve().parent,
    splits={
        "train": ("vqacp_v1_train_questions.json", "vqacp_v1_train_annotations.json"),
        "test": ("vqacp_v1_test_questions.json", "vqacp_v1_test_annotations.json"),
    },
)
main = partial(prepare_room, ROOM)

if __name__ == "__main__":
    command(main)
