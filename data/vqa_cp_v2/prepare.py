"""VQA-CP v2: the official JSON files -> prepared/. Sources and counts: README.md here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mcan.data.room import Room, prepare_room
from mcan.errors import command

ROOM = Room(
    name="vqa_cp_v2",
    folder=Path(__file__).resolve().parent,
    splits={
        "train": ("vqacp_v2_train_questions.json", "vqacp_v2_train_annotations.json"),
        "test": ("vqacp_v2_test_questions.json", "vqacp_v2_test_annotations.json"),
    },
)
main = partial(prepare_room, ROOM)

if __name__ == "__main__":
    command(main)
