"""Commands on tiny data, disturbed at every point: a call fails, or the process is killed.

`faults.c` counts the calls of a command that change a file, such as write, rename and mkdir. Each
case disturbs one of them: the n-th fails with ENOSPC, EIO, EROFS or EACCES, or the process that
makes it is killed before or after it; or the command is killed at a random instant. Then the
command is run once more, as a user would. Checked is that

- the disturbed command has written everything, or reported the fault in one line with its reason
  and a non-zero status;
- no file that was there before has changed;
- the second run ends with the files of an undisturbed one and no others, or says in one line what
  to delete, and the third one does.

Not compared: TensorBoard's events, whose numbers metrics.jsonl holds too; speeds and times in logs;
lock files. Failures to write a message to the terminal are not tested.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import gc
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import runs
from commands import BROKEN, COMMANDS, Command

from mcan.console import align, shard

LIBRARY: Any = ctypes.CDLL(None)
LIBRARY.fault_what.restype = ctypes.c_char_p
NOTHING, FAIL, BEFORE, AFTER = range(4)
"""As in faults.c."""
ERRORS = ("ENOSPC", "EIO", "EROFS", "EACCES")
KILLS = {"before": BEFORE, "after": AFTER}
INSTANT, INSTANTS = "instant", 200
SET_CHILD_SUBREAPER = 36
"""Of prctl(): this process becomes the parent of what a killed one leaves behind."""
NUMBERS = "calls", "faults", "kills", "unharmed", "repeated", "by hand", "failures"


class Case(NamedTuple):
    """One disturbance: the `number`-th call, or the `number`-th of the random instants."""

    command: str
    kind: str
    number: int

    def __str__(self) -> str:
        return ":".join(map(str, self))


class Undisturbed(NamedTuple):
    """What a command's cases are compared with; its folder is copied from `template`."""

    template: Path
    before: dict[str, Any]
    calls: int
    seconds: float
    after: dict[str, Any]


class Verdict(NamedTuple):
    """`ending` is one of `NUMBERS`, or "" if the call was not reached; `failure` says why."""

    case: Case
    ending: str
    failure: str = ""


class FailedCheck(Exception):  # noqa: N818 (nothing is wrong with the harness)
    """What was not as it must be."""


def files(folder: Path) -> dict[str, Any]:
    """Path -> content of all files, in a form that is the same for each run of a command."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name.startswith("printed_") or ".claims" in path.parts or path.name == ".lock":
            continue
        if path.is_dir():
            found[f"{name}/"] = None
        elif path.name == "metrics.jsonl":
            found[name] = runs.metrics_of(path.parent)
        elif path.suffix == ".pt":
            # Speeds in metrics.jsonl differ in length.
            found[name] = {**runs.load(path), "metrics_bytes": 0}
        elif path.parent.name != "tensorboard":
            found[name] = None if path.name == "environment.jsonl" else path.read_bytes()
    return found


def difference(now: dict[str, Any], expected: dict[str, Any]) -> str:
    """The first difference between two folders; "" if there is none."""
    if odd := sorted(now.keys() ^ expected.keys()):
        return ", ".join(f"{name} {'is left' if name in now else 'is missing'}" for name in odd[:3])
    try:
        runs.assert_same(now, expected, ignore=())
    except AssertionError as error:
        return f"{str(error).splitlines()[0]} differs"
    return ""


def launch(
    command: Command,
    folder: Path,
    again: bool = False,
    kind: int = NOTHING,
    number: int = 0,
    code: int = 0,
    whole: bool = False,
    seconds: float = 0,
) -> runs.Result:
    """Run the command in `folder`; `whole` kills it together with the process that it waits for."""

    def patch() -> None:
        command.patch()
        leader = os.getpid() if whole else 0
        LIBRARY.fault_arm(os.fsencode(folder), kind, number, code, leader)
        if seconds:
            LIBRARY.fault_kill_after(ctypes.c_double(seconds))

    arguments = [*command.arguments, *(command.again if again else ())]
    return runs.Lab(folder).launch(command.script, arguments, patch)()


def orphans() -> list[int]:
    """The children of this process."""
    listed = (path.read_text() for path in Path("/proc/self/task").glob("*/children"))
    return [int(number) for text in listed for number in text.split()]


def end_orphans() -> None:
    """Kill and forget what a killed command left running."""
    for number in orphans():
        os.kill(number, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(number, 0)


def measure(name: str, work: Path) -> Undisturbed:
    """Run the command twice without a fault."""
    command, template = COMMANDS[name], work / name
    template.mkdir()
    command.make(template)
    for path in template.glob("printed_*"):
        path.unlink()
    counts: list[tuple[int, dict[str, Any]]] = []
    seconds = 0.0
    for attempt in range(2):
        folder = work / f"{name}_{attempt}"
        shutil.copytree(template, folder)
        started = time.monotonic()
        result = launch(command, folder)
        seconds = time.monotonic() - started
        if result.status:
            raise SystemExit(f"{name}, undisturbed: status {result.status}\n{result.err}")
        counts.append((LIBRARY.fault_calls(), files(folder)))
        shutil.rmtree(folder)
    if counts[0][0] != counts[1][0] or difference(counts[0][1], counts[1][1]):
        print(
            f"{name}: two undisturbed runs differ: {counts[0][0]} and {counts[1][0]} calls; "
            f"{difference(counts[0][1], counts[1][1])}"
        )
    return Undisturbed(template, files(template), counts[0][0], seconds, counts[0][1])


def cases_of(name: str, calls: int) -> Iterator[Case]:
    for number in range(1, calls + 1):
        for kind in (*ERRORS, *KILLS):
            yield Case(name, kind, number)
    for number in range(1, INSTANTS + 1):
        yield Case(name, INSTANT, number)


def judge(case: Case, base: Undisturbed, folder: Path, seed: int) -> Verdict:
    """Run the case in `folder`."""
    command = COMMANDS[case.command]
    whole = case.number % 2 == 0
    share = random.Random(f"{seed} {case}").random()
    while True:
        shutil.copytree(base.template, folder)
        if case.kind == INSTANT:
            first = launch(command, folder, seconds=share * base.seconds)
            fired = first.status == -signal.SIGKILL
        else:
            kind = KILLS.get(case.kind, FAIL)
            code = getattr(errno, case.kind, 0)
            first = launch(command, folder, False, kind, case.number, code, whole)
            fired = bool(LIBRARY.fault_fired())
        if whole:
            end_orphans()
        if fired or case.kind != INSTANT:
            break
        share *= 0.7  # it had ended before
        shutil.rmtree(folder)
    if not fired:
        return Verdict(case, "")
    disturbed = f"{case} ({LIBRARY.fault_what().decode() or f'{share * base.seconds:.3f} s'})"
    now = files(folder)
    try:
        if case.kind in ERRORS:
            check_message(first, os.strerror(getattr(errno, case.kind)))
        for name in base.before:
            kept = name not in command.replaces and not name.startswith(command.replaces or "/")
            if kept and (
                name not in now or difference({name: now[name]}, {name: base.before[name]})
            ):
                raise FailedCheck(f"{name}, which was there before, has changed")
        if first.status == 0:
            if not (different := difference(now, base.after)):
                return Verdict(case, "unharmed")
            if "warning: " not in first.err:
                raise FailedCheck(f"status 0, but {different}: {first.err}")
            obey(first, folder, base.before)
            if different := difference(files(folder), base.after):
                raise FailedCheck(f"it was done as said, but {different}: {first.err}")
            return Verdict(case, "by hand")
        ending = "repeated"
        second = launch(command, folder, again=True)
        different = difference(files(folder), base.after)
        if second.status:
            check_message(second, "")
            if different:
                ending = "by hand"
                obey(second, folder, base.before)
                third = launch(command, folder, again=True)
                different = difference(files(folder), base.after)
                if third.status:
                    raise FailedCheck(f"it was done as said: {second.err}, but: {third.err}")
        if different:
            raise FailedCheck(f"after repeating, {different}: {first.err} {second.err}")
        return Verdict(case, ending)
    except FailedCheck as error:
        return Verdict(case, "failures", f"{disturbed}: {error}")
    finally:
        end_orphans()


def check_message(result: runs.Result, reason: str) -> None:
    """Not a traceback; with a non-zero status an error line, and the reason."""
    if "Traceback" in result.err or "Fatal Python error" in result.err:
        raise FailedCheck(result.err)
    if result.status < 0:
        raise FailedCheck(f"ended by signal {-result.status}: {result.err}")
    said = any(line.startswith(("error: ", "failed: ")) for line in result.err.splitlines())
    if result.status and not (said and reason in result.err):
        raise FailedCheck(f"status {result.status} without {reason or 'an error'}: {result.err}")


def obey(result: runs.Result, folder: Path, before: dict[str, Any]) -> None:
    """Delete what a message says is to be deleted, or stands in the way of the chosen name."""
    found = re.search(r"(?:error|warning): ([^\s:]+): .*(delete|choose another)", result.err)
    if not found or found[1] in before or f"{found[1]}/" in before:
        raise FailedCheck(f"repeated, it says: {result.err}")
    path = folder / found[1]
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def lane(
    cases: Sequence[Case], bases: dict[str, Undisturbed], work: Path, seed: int, queue: Any
) -> None:
    """Judge cases one after another in a process of its own."""
    LIBRARY.fault_open()
    LIBRARY.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for case in cases:
        folder = work / str(case).replace(":", "_")
        try:
            verdict = judge(case, bases[case.command], folder, seed)
        except Exception as error:  # a hang, or a file that cannot be read any more
            end_orphans()
            verdict = Verdict(case, "failures", f"{case}: {error!r}")
        queue.put(verdict)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Disturb commands at every point.")
    add = parser.add_argument
    add("commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(COMMANDS)}; default: all")
    add("--only", nargs="+", metavar="CASE", help="such as train:ENOSPC:37 or eval:instant:5")
    add("--part", type=shard, default=(1, 1), metavar="I/N", help="the I-th of N random parts")
    add("--seed", type=int, default=0, help="draws the instants and the parts")
    add("--lanes", type=int, default=len(os.sched_getaffinity(0)), help="cases at once")
    args = parser.parse_args()
    only = [Case(name, kind, int(n)) for name, kind, n in (c.split(":") for c in args.only or [])]
    names = args.commands or list(dict.fromkeys(case.command for case in only))
    names = names or [name for name in COMMANDS if name != BROKEN]
    started = time.monotonic()
    LIBRARY.fault_open()
    gc.freeze()  # or every process would copy most of the memory when it collects garbage
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary).resolve()
        bases = {name: measure(name, work) for name in names}
        cases = only or [c for name in names for c in cases_of(name, bases[name].calls)]
        random.Random(args.seed).shuffle(cases)
        part, parts = args.part
        cases = cases[part - 1 :: parts]
        print(f"seed {args.seed}, part {part}/{parts}: {len(cases):,} cases", flush=True)
        queue = runs.FORK.SimpleQueue()
        lanes = [
            runs.FORK.Process(
                target=lane, args=(cases[n :: args.lanes], bases, work, args.seed, queue)
            )
            for n in range(args.lanes)
        ]
        for process in lanes:
            process.start()
        verdicts = []
        for _ in cases:
            verdicts.append(queue.get())
            if verdicts[-1].failure:
                print(f"FAILED {verdicts[-1].failure.strip()}\n", flush=True)
        for process in lanes:
            process.join()
    counts = {name: Counter({"calls": base.calls}) for name, base in bases.items()}
    for verdict in verdicts:
        if verdict.ending:
            counted = "faults" if verdict.case.kind in ERRORS else "kills"
            counts[verdict.case.command].update([counted, verdict.ending])
    counts["all"] = sum(counts.values(), Counter())
    rows = [[name, *(f"{count[n]:,}" for n in NUMBERS)] for name, count in counts.items()]
    print(align([["command", *NUMBERS], *rows]))
    missed = sum(not verdict.ending for verdict in verdicts)
    print(f"{missed:,} cases did not reach their call; {time.monotonic() - started:,.0f} s")
    return 1 if counts["all"]["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
