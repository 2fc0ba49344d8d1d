"""Questions and annotations of your own in the VQA layout -> prepared/. How: README.md here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mcan.data.room import Room, prepare_room
from mcan.errors import command

ROOM = Room(
    name="custom",
    folder=Path(__file__).resolve().parent,
    splits={},
    min_answer_count=1,
    carve_validation=0.1,
)
main = partial(prepare_room, ROOM)

if __name__ == "__main__":
    command(main)
