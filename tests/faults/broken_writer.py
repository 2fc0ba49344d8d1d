"""A command with three mistakes, which the harness must find."""

import os
from contextlib import suppress
from pathlib import Path


def main() -> int:
    notes = Path("notes.txt").read_text()
    Path("notes.txt").write_text(notes)  # a kill leaves an empty file
    temporary = Path(f"result.{os.getpid()}.tmp")  # a kill leaves it behind
    with suppress(OSError):  # a full disk is not reported
        temporary.write_text("result")
        temporary.rename("result.txt")
    return 0
