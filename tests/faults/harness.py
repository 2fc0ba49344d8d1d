"""Commands on tiny data, disturbed at every point: a call fails, or the process is killed.

docs/faults.md says what is disturbed. Then the command is run once more, as a user would. Checked
is that

- the disturbed command has written everything, or reported the fault in one line with its reason
  and a non-zero status;
- no file that was there before has changed, and what is to be replaced is whole, as it was or as it
  becomes;
- the second run ends with the files of an undisturbed one and no others, or says in one line what
  to delete, and the third one does.

Not compared: TensorBoard's events, speeds and times in logs, lock files.
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
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import runs
from commands import BROKEN, COMMANDS

from mcan.console import align, shard

LIBRARY: Any = ctypes.CDLL(None)
LIBRARY.fault_what.restype = ctypes.c_char_p
NOTHING, FAIL, BEFORE, AFTER = range(4)
"""As in faults.c."""
KINDS = dict.fromkeys(("ENOSPC", "EIO", "EROFS", "EACCES"), FAIL) | {
    "before": BEFORE,
    "after": AFTER,
}
INSTANT, INSTANTS = "instant", 200
SET_CHILD_SUBREAPER = 36
"""Of prctl(): this process becomes the parent of what a killed one leaves behind."""
NUMBERS = "calls", "faults", "kills", "unharmed", "repeated", "by hand", "failures"


class Case(NamedTuple):
    """The disturbance of the `number`-th call, or at the `number`-th random instant."""

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
            found[name] = None
            with suppress(ValueError):  # a line was cut short
                found[name] = runs.metrics_of(path.parent)
        elif path.suffix == ".pt":
            found[name] = {**runs.load(path), "metrics_bytes": 0}  # speeds differ in length
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
    name: str, folder: Path, *fault: int, again: bool = False, whole: bool = False, after: float = 0
) -> runs.Result:
    """Run a command in `folder`. `fault` is kind, number and errno of `fault_arm`; a kill takes the
    `whole` command with it, not only its process that makes the call; `after` are seconds."""
    command = COMMANDS[name]

    def patch() -> None:
        command.patch()
        leader = os.getpid() if whole else 0
        LIBRARY.fault_arm(os.fsencode(folder), *(fault or (NOTHING, 0, 0)), leader)
        if after:
            LIBRARY.fault_kill_after(ctypes.c_double(after))

    arguments = f"{command.arguments} {command.again if again else ''}".split()
    return runs.Lab(folder).launch(command.script, arguments, patch)()


def end_orphans() -> None:
    """Kill what a killed command left running."""
    for listed in Path("/proc/self/task").glob("*/children"):
        for number in map(int, listed.read_text().split()):
            os.kill(number, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(number, 0)


def measure(name: str, work: Path) -> Undisturbed:
    """Run the command without a fault."""
    template, folder = work / name, work / f"{name}_undisturbed"
    template.mkdir()
    COMMANDS[name].make(template)
    before = files(template)
    shutil.copytree(template, folder)
    started = time.monotonic()
    result = launch(name, folder)
    seconds = time.monotonic() - started
    if result.status:
        raise SystemExit(f"{name}, undisturbed: status {result.status}\n{result.err}")
    return Undisturbed(template, before, LIBRARY.fault_calls(), seconds, files(folder))


def judge(case: Case, base: Undisturbed, folder: Path, seed: int) -> tuple[str, str]:
    """How the case ended, one of `NUMBERS`, or "" if the call was not reached; and what failed."""
    whole, share = case.number % 2 == 0, random.Random(f"{seed} {case}").random()
    fired = False
    while not fired:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base.template, folder)
        if case.kind == INSTANT:
            first = launch(case.command, folder, after=share * base.seconds)
            fired = first.status == -signal.SIGKILL
            share *= 0.7  # if it had ended before
        else:
            fault = KINDS[case.kind], case.number, getattr(errno, case.kind, 0)
            first = launch(case.command, folder, *fault, whole=whole)
            fired = bool(LIBRARY.fault_fired())
            if not fired:
                return "", ""
        if whole:
            end_orphans()
    where = LIBRARY.fault_what().decode()
    try:
        return check(case, base, folder, first), ""
    except FailedCheck as error:
        return "failures", f"{case} ({where}): {error}"
    finally:
        end_orphans()


def check(case: Case, base: Undisturbed, folder: Path, first: runs.Result) -> str:
    """How a command ended whose `first` run was disturbed; raises `FailedCheck`."""
    now, said = files(folder), first.err
    if case.kind in errno.errorcode.values():
        check_message(first, os.strerror(getattr(errno, case.kind)))
    for name, content in base.before.items():
        replaced = name.startswith(COMMANDS[case.command].replaces or "/")
        if not replaced and (name not in now or difference({name: now[name]}, {name: content})):
            raise FailedCheck(f"{name}, which was there before, has changed")
    for place in COMMANDS[case.command].replaces:
        # Between two renames it is aside, where the next run finds it.
        aside = place if first.status == 0 else f".{place.rstrip('/')}.partial/old/"
        found = [below(now, place), below(now, aside)]
        whole = [below(base.before, place), below(base.after, place)]
        if all(difference(each, state) for each in found for state in whole):
            raise FailedCheck(f"{place} is neither what it was nor what it becomes")
    different = difference(now, base.after)
    if first.status == 0:
        if not different:
            return "unharmed"
        obey(said, folder, base.before, f"status 0, but {different}")
        ending = "by hand"
    else:
        second, ending = launch(case.command, folder, again=True), "repeated"
        said += second.err
        check_message(second)
        if second.status and difference(files(folder), base.after):
            obey(second.err, folder, base.before, "repeated")
            third, ending = launch(case.command, folder, again=True), "by hand"
            said += third.err
    if different := difference(files(folder), base.after):
        raise FailedCheck(f"{ending}, but {different}: {said}")
    return ending


def below(found: dict[str, Any], place: str) -> dict[str, Any]:
    """The files at a place, as if it were the whole folder."""
    return {n.removeprefix(place): content for n, content in found.items() if n.startswith(place)}


def check_message(result: runs.Result, reason: str = "") -> None:
    """No traceback, and with a non-zero status an error line with the reason."""
    if "Traceback" in result.err or "Fatal Python error" in result.err or result.status < 0:
        raise FailedCheck(f"status {result.status}: {result.err}")
    told = any(line.startswith(("error: ", "failed: ")) for line in result.err.splitlines())
    if result.status and not (told and reason in result.err):
        raise FailedCheck(f"status {result.status} without {reason or 'an error'}: {result.err}")


def obey(said: str, folder: Path, before: dict[str, Any], when: str) -> None:
    """Delete the file or folder that a message asks to delete, or whose name is already taken."""
    found = re.search(r"(?:error|warning): ([^\s:]+): .*(delete|choose another)", said)
    if not found or found[1] in before or f"{found[1]}/" in before:
        raise FailedCheck(f"{when}: {said}")
    path = folder / found[1]
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def lane(
    cases: Sequence[Case], bases: dict[str, Undisturbed], work: Path, seed: int, queue: Any
) -> None:
    """Judge cases one after another, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    LIBRARY.fault_open()
    LIBRARY.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for case in cases:
        folder = work / str(case).replace(":", "_")
        try:
            queue.put((case, *judge(case, bases[case.command], folder, seed)))
        except Exception as error:  # a hang, or a file that cannot be read any more
            end_orphans()
            queue.put((case, "failures", f"{case}: {error!r}"))
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Disturb commands at every point.")
    add = parser.add_argument
    add("commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(COMMANDS)}; default: all")
    add(
        "--only", nargs="+", default=[], metavar="CASE", help="train:ENOSPC:37, eval:instant:5, ..."
    )
    add("--part", type=shard, default=(1, 1), metavar="I/N", help="the I-th of N random parts")
    add("--seed", type=int, default=0, help="draws the instants and the parts")
    add("--lanes", type=int, default=len(os.sched_getaffinity(0)), help="cases at once")
    args = parser.parse_args()
    cases = [Case(name, kind, int(n)) for name, kind, n in (c.split(":") for c in args.only)]
    names = args.commands or list(dict.fromkeys(case.command for case in cases))
    names = names or [name for name in COMMANDS if name != BROKEN]
    started = time.monotonic()
    LIBRARY.fault_open()
    gc.freeze()  # or every process would copy most of the memory when it collects garbage
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary).resolve()
        bases = {name: measure(name, work) for name in names}
        if not cases:
            for name, base in bases.items():
                calls, instants = range(1, base.calls + 1), range(1, INSTANTS + 1)
                cases += [Case(name, kind, number) for number in calls for kind in KINDS]
                cases += [Case(name, INSTANT, number) for number in instants]
            random.Random(args.seed).shuffle(cases)
            cases = cases[args.part[0] - 1 :: args.part[1]]
        print(
            f"seed {args.seed}, part {'/'.join(map(str, args.part))}: {len(cases):,} cases",
            flush=True,
        )
        queue = runs.FORK.SimpleQueue()
        parts = [cases[number :: args.lanes] for number in range(args.lanes)]
        arguments = [(part, bases, work, args.seed, queue) for part in parts]
        lanes = [runs.FORK.Process(target=lane, args=each) for each in arguments]
        for process in lanes:
            process.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        counts = {name: Counter({"calls": base.calls}) for name, base in bases.items()}
        done = missed = 0
        with suppress(KeyboardInterrupt):
            while done < len(cases):
                while queue.empty() and not any(process.exitcode for process in lanes):
                    time.sleep(0.02)
                if queue.empty():
                    print("FAILED a lane has died\n", flush=True)
                    counts["all"] = Counter(failures=1)
                    break
                case, ending, failure = queue.get()
                done += 1
                missed += not ending
                if ending:
                    kind = "faults" if KINDS.get(case.kind) == FAIL else "kills"
                    counts[case.command].update([kind, ending])
                if failure:
                    print(f"FAILED {failure.strip()}\n", flush=True)
        for process in lanes:
            process.kill() if done < len(cases) else process.join()
    counts["all"] = sum(counts.values(), Counter())
    # The number of calls varies a little, but not by that much.
    lost = not args.only and missed > len(cases) // 20
    rows = [[name, *(f"{count[n]:,}" for n in NUMBERS)] for name, count in counts.items()]
    print(align([["command", *NUMBERS], *rows]))
    stopped = f"stopped after {done:,} cases; " if done < len(cases) else ""
    seconds = time.monotonic() - started
    print(f"{stopped}{missed:,} cases did not reach their call; {seconds:,.0f} s")
    return 1 if counts["all"]["failures"] or lost else 0


if __name__ == "__main__":
    sys.exit(main())
