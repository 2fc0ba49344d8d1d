"""Damages files and lets every reader read them: `python tests/fuzz/run.py --cases 5000 --seed 0`.

A case runs in a child forked from this process, with the imports done, in at most 5 s (in which it
does not wait for a processor) and 1 GiB of address space above that of this process (RLIMIT_AS). It
fails if the command ends with anything but success or one line of error that names a damaged file
or its folder, and if it accepts a change of what a checksum covers. The file of a failure is kept
in `cases/`.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # before torch is imported
HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / part) for part in (".", "tables", "preparation", "datasets")]

from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from mutations import FOLDER, damaged  # noqa: E402
from readers import make_files, read_table  # noqa: E402

from mcan.console import shard  # noqa: E402
from mcan.errors import command  # noqa: E402

SECONDS, BYTES = 5.0, 1 << 30
CASES = HERE / "cases"


class Result(NamedTuple):
    """`verdict`: accepted, refused, or what is wrong."""

    verdict: str
    out: str = ""
    err: str = ""

    @property
    def failed(self) -> bool:
        return self.verdict not in ("accepted", "refused")


def execute(reader: Any, folder: Path) -> tuple[int | None, str, str]:
    """Exit status (negative: a signal; None: it took too long), and what was printed."""
    printed = [folder.with_name(f"printed.{stream}") for stream in ("out", "err")]
    process = os.fork()
    if process == 0:
        status: Any = 1
        try:
            os.chdir(folder)
            for descriptor, path in enumerate(printed, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            command(reader.run)
        except SystemExit as end:
            status = end.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    pidfd, start, waited, ended = os.pidfd_open(process), time.monotonic(), 0.0, False
    while not ended and time.monotonic() - start - waited < SECONDS:
        ended = bool(select.select([pidfd], [], [], 0.5)[0])
        waited = int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    if not ended:
        os.kill(process, signal.SIGKILL)
    os.close(pidfd)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return (status if ended else None), *(p.read_text(errors="replace") for p in printed)


def judge(reader: Any, folder: Path, names: set[str], intact: str) -> Result:
    """An error must contain one of `names`; `intact` is printed for files that are not damaged."""
    status, out, err = execute(reader, folder)
    lines = err.splitlines()
    errors = [line for line in lines if line.startswith(("error: ", "failed: "))]
    said = err if errors else out  # import_checkpoint.py prints a difference and returns 1
    verdict = "refused"
    if status is None or status < 0:
        verdict = "hangs" if status is None else f"dies of signal {-status}"
    elif "Traceback" in err or status not in (0, 1, 2):
        verdict = "traceback"
    elif status == 0:
        changed = reader.sealed == "bytes" or (reader.sealed == "values" and out != intact)
        verdict = "accepted although a checksum covers it" if changed else "accepted"
    elif not (errors or out):
        verdict = "no error message"
    elif errors and not (lines[-1] == errors[-1] and lines[-1].isprintable()):
        verdict = "the error is not one line of text"
    elif not any(name in said for name in names):
        verdict = "the error names no file"
    return Result(verdict, out, err)


class Workshop:
    """A folder with all intact files, and a folder for a case."""

    def __init__(self, folder: Path) -> None:
        self.files, self.case = folder / "files", folder / "case"
        self.readers = read_table()
        self._intact: dict[str, str] = {}
        self.files.mkdir()
        before = Path.cwd()
        os.chdir(self.files)
        make_files(self.files)
        os.chdir(before)

    def damageable(self, name: str) -> list[str]:
        """The files of a reader, by their paths."""
        patterns = self.readers[name].damaged
        found = {p for pattern in patterns for p in self.files.glob(pattern) if p.is_file()}
        found = {
            path for path in found if not path.name.startswith(".")
        }  # locks, which say nothing
        return sorted(str(path.relative_to(self.files)) for path in found)

    def run(self, name: str, file: str = "", content: bytes | str = b"") -> Result:
        """What the reader says if `content` takes the place of `file`."""
        reader = self.readers[name]
        if file and name not in self._intact:
            whole = self.run(name)
            assert whole.verdict.startswith("accepted"), whole
            self._intact[name] = whole.out
        try:
            for given_name in reader.given:
                source, copy = self.files / given_name, self.case / given_name
                copy.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
            if file:
                (self.case / file).unlink()
            if content == FOLDER:
                (self.case / file).mkdir()
            elif isinstance(content, bytes) and file:
                (self.case / file).write_bytes(content)
            names = {Path(path).name for path in self.damageable(name)} | {"o.h5.broken.tsv"}
            names |= {pattern.partition("/*")[0] for pattern in reader.damaged}
            if file and not isinstance(content, bytes):
                names.add("")  # what is absent may be what is still to be done
            return judge(reader, self.case, names, self._intact.get(name, ""))
        finally:
            shutil.rmtree(self.case)


def fuzz(shop: Workshop, name: str, cases: int, number: int, only: int | None) -> Counter[str]:
    """Run the cases of a reader (or `only` one of them) and report the failures."""
    files, counts = shop.damageable(name), Counter[str]()

    @seed(f"{number} {name}")
    @settings(
        max_examples=cases,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def generate(data: Any) -> None:
        file = data.draw(st.sampled_from(files))
        content = data.draw(damaged(Path(file).name, (shop.files / file).read_bytes()))
        case = counts.total()
        if only not in (None, case):
            counts["skipped"] += 1
            return
        found = shop.run(name, file, content)
        counts["failed" if found.failed else found.verdict] += 1
        if found.failed or only is not None:
            print(
                f"{file}: {found.verdict}; repeat with --seed {number} --only {f'{name}:{case}'!r}"
            )
            print("    " + "\n    ".join(found.err.splitlines()[-4:]), flush=True)
        if found.failed and isinstance(content, bytes):
            kept = CASES / name / f"{number}-{case}" / file
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(content)

    generate()
    return counts


def replay(shop: Workshop, name: str) -> Counter[str]:
    """Read the files of earlier failures again, which are `cases/READER/CASE/FILE`."""
    counts, folder = Counter[str](), CASES / name
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _, *parts = path.relative_to(folder).parts
        found = shop.run(name, str(Path(*parts)), path.read_bytes())
        counts["failed" if found.failed else "kept"] += 1
        if found.failed:
            print(f"{path}: {found.verdict}\n    {found.err}")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="READER[:NUMBER]", help="of this seed")
    parser.add_argument("--part", type=shard, default="1/1", metavar="I/N", help="of the readers")
    args = parser.parse_args()
    chosen, _, number = args.only.partition(":")
    total, memory = Counter[str](), Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        shop = Workshop(Path(folder))
        part, parts = args.part
        for name in [chosen] if chosen else list(shop.readers)[part - 1 :: parts]:
            total += replay(shop, name)
            cases = -(-args.cases // len(shop.readers))
            found = fuzz(shop, name, cases, args.seed, int(number) if number else None)
            total += found
            counts = ", ".join(f"{n:5} {what}" for what, n in sorted(found.items()))
            print(f"{name:26}{counts}", flush=True)
    print(f"{total.total():,} cases of seed {args.seed}: {dict(total)}")
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
