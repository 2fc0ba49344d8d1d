"""Speed and memory of the main jobs, measured by arms that take turns in one run.

An arm is one way to do a job. Each runs in a process of its own, so that its peak memory is its
own, and every repetition of an arm is next to one of each other arm, on the same questions. A
speed-up is the median of the ratios of neighbouring repetitions. The first repetition of each arm
is a warm-up and not counted.

The baseline arm is our network as the authors' code computes it: padded to 14 words and the largest
number of regions, every row computed, float32, torch's own dropout.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mcan import build
from mcan.batch import Image, PaddedLengths, Question
from mcan.config import Config, load_config
from mcan.console import progress
from mcan.data.prepared import Prepared
from mcan.engine.processes import Processes, processes
from mcan.engine.run_folder import RunFolder, describe_environment
from mcan.engine.trainer import Trainer
from mcan.errors import DataError, RunError, UserError
from mcan.files import parse_json, save_text
from mcan.nn.dropout import Dropout
from mcan.nn.mcan import ModelSizes
from mcan.rows import Padded

Measurements = dict[str, Any]
"""What a benchmark or one repetition measured, as JSON holds it."""
NOTHING: Measurements = {"questions": 0, "flops": 0.0, "steps": 1, "peak_device_memory": None}
"""What a repetition has measured unless it says otherwise."""

ROOT = Path(__file__).resolve().parents[1]
BASELINE = "baseline"
WORDS = 14

WORD_COUNTS = {
    2: 2, 3: 1857, 4: 6859, 5: 15564, 6: 12141, 7: 11338, 8: 5952, 9: 2960, 10: 1597, 11: 795,
    12: 447, 13: 214, 14: 122, 15: 61, 16: 40, 17: 24, 18: 15, 19: 11, 20: 1,
}  # fmt: skip
"""Words per question: how many of 60,000 questions of VQA v2 have so many (mean 6.24)."""


@dataclass(frozen=True)
class Arm:
    """One way to do a job: a name in `JOBS` and a config.

    `steps` is the number of updates per repetition of a training job.
    """

    job: str
    config: str
    overrides: tuple[str, ...] = ()
    threads: int = 1
    steps: int = 1
    baseline: bool = False

    def having(self, *overrides: str, **fields: Any) -> Arm:
        """This arm with more overrides, and with other `fields`."""
        return replace(self, overrides=(*self.overrides, *overrides), **fields)


# ------------------------------------------------------------------------------- taking turns


def measure(arms: Mapping[str, Arm], repeats: int) -> dict[str, Measurements]:
    """Repetitions of each arm, interleaved: name -> `warm_up` and `repetitions`.

    Raises `RunError` if the process of an arm ends early.
    """
    results: dict[str, Measurements] = {}
    pools, spawn = {}, get_context("spawn")
    with ExitStack() as stack:
        for name, arm in arms.items():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            pool = stack.enter_context(ProcessPoolExecutor(1, spawn))
            pools[name] = partial(pool.submit, _repeat, arm, folder)
            results[name] = {"threads": arm.threads, "repetitions": []}
        for number in progress(range(repeats + 1), "repetitions", leave=False):
            for name, submit in pools.items():
                try:
                    result = submit().result()
                except (UserError, BrokenProcessPool) as error:
                    raise RunError(f"the arm '{name}' ended early: {error}") from error
                if number:
                    results[name]["repetitions"].append(result)
                else:
                    results[name]["warm_up"] = result
    return results


def _repeat(arm: Arm, folder: str) -> Measurements:
    """The next repetition of the arm that has this process to itself."""
    return next(_repetitions(arm, folder))


@cache  # one iterator for all calls
def _repetitions(arm: Arm, folder: str) -> Iterator[Measurements]:
    torch.set_num_threads(arm.threads)
    config = load_config(arm.config, (*arm.overrides, "name=benchmark", f"runs={folder}"))
    with processes(config.train.device) as job:
        repetitions = JOBS[arm.job](_Bench(config, job, arm))
        while True:
            start = time.perf_counter()
            result = NOTHING | next(repetitions)
            if job.device.type == "cuda":
                torch.cuda.synchronize()
                result["peak_device_memory"] = torch.cuda.max_memory_allocated(job.device)
            yield {"seconds": time.perf_counter() - start, "peak_memory": _peak_memory()} | result


def _peak_memory(process: int | str = "self") -> int:
    """Most bytes of main memory that a process has held at once."""
    try:
        # ru_maxrss begins with the peak of the process that forked; prefer the kernel's own.
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        return 1024 * next(int(s.split()[1]) for s in status.splitlines() if s.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# ------------------------------------------------------------------------------------- the jobs


class _Bench:
    """The parts of a job, opened as `train.py` opens them."""

    def __init__(self, config: Config, job: Processes, arm: Arm) -> None:
        self.config, self.job, self.arm = config, job, arm
        self.prepared = Prepared.open(config.data.prepared)
        stores = build.open_stores(config, job)
        self.dataset = build.open_dataset(config, self.prepared, config.data.train, stores)
        self.sizes = build.model_sizes(self.prepared.vocabulary, self.dataset)
        torch.manual_seed(config.seed)

    def model(self) -> nn.Module:
        """The config's network; as the authors compute it if this is the baseline."""
        model = build.build_model(self.config.model, self.sizes).to(self.job.device)
        for module in list(model.modules()) if self.arm.baseline else ():
            for name, child in module.named_children():
                if isinstance(child, Dropout):
                    setattr(module, name, nn.Dropout(child.p))
        return model

    def trainer(self) -> Trainer:
        """A trainer without evaluation, in the folder of a run that is thrown away."""
        run = RunFolder(Path(self.config.runs) / self.config.name)
        metadata = build.run_metadata(self.config, self.prepared, self.dataset, self.sizes)
        precision = self.config.train.precision
        enter = build.entry(self.config, self.job.device, precision, self.lengths())
        return Trainer(self.config, self.model(), self.dataset, metadata, run, self.job, enter)

    def lengths(self) -> PaddedLengths | None:
        """What samples are padded to: fixed lengths in the baseline, a few if compiled."""
        if self.arm.baseline:
            return PaddedLengths((WORDS,), (int(self.regions().max()),))
        return build.padded_lengths(self.config, self.dataset)

    def regions(self) -> NDArray[np.int64]:
        """(Q,) regions of each question's image."""
        return self.dataset.images.lengths[self.dataset.image_rows]

    def flops(self) -> NDArray[np.float64]:
        """(Q,) operations of a forward pass on each question's own words and regions."""
        words = np.minimum(np.diff(self.dataset.tokens.offsets), self.config.data.max_tokens or 99)
        return _forward_flops(self.config, self.sizes, words, self.regions())


def _forward_flops(
    config: Config, sizes: ModelSizes, words: NDArray[np.int64], regions: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Operations of one question with so many words and regions, by torch's own counter.

    The count is c0 + c1 w + c2 r + c3 w² + c4 r² + c5 w r for every similarity: six counts of the
    padded network on the meta device, which computes nothing, give the six coefficients.
    """

    def terms(w: Any, r: Any) -> list[Any]:
        return [np.ones_like(w), w, r, w * w, r * r, w * r]

    assert sizes.feature_size is not None
    points, counts = [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 2)], []
    with torch.device("meta"), torch.no_grad():
        model = build.build_model(config.model, sizes).eval()
        for lengths in points:
            full = [Padded(torch.ones(1, n, dtype=torch.bool), some_empty=False) for n in lengths]
            question = Question(torch.zeros(full[0].mask.shape, dtype=torch.int64), full[0])
            boxes = torch.zeros(1, lengths[1], 4) if config.model.image.boxes else None
            image = Image(full[1], torch.zeros(1, lengths[1], sizes.feature_size), boxes)
            with FlopCounterMode(display=False) as counter:
                model(question, image)
            counts.append(counter.get_total_flops())
    factors = np.linalg.solve([terms(float(w), float(r)) for w, r in points], counts)
    return np.stack(terms(words.astype(float), regions.astype(float)), -1) @ factors


def _train(bench: _Bench) -> Iterator[Measurements]:
    """`steps` updates of the `Trainer` per repetition."""
    trainer, flops, steps = bench.trainer(), bench.flops(), bench.arm.steps
    trainer.model.train()
    with trainer.batches(0, 0) as batches:
        while True:
            questions, operations = 0, 0.0
            for _ in range(steps):
                micro_batches = next(batches)
                trainer.update(micro_batches)
                questions += sum(batch.size for batch in micro_batches)
                operations += sum(flops[batch.index].sum() for batch in micro_batches)
            # The backward pass has twice the forward's products.
            yield {"questions": questions, "flops": 3 * operations, "steps": steps}


def _evaluate(bench: _Bench) -> Iterator[Measurements]:
    """All questions once, as `eval.py` predicts them."""
    model, operations = bench.model().eval(), float(bench.flops().sum())
    score = build.answer_probabilities([model], bench.config.train.loss)
    while True:
        build.predict_over_processes(
            score, bench.dataset, bench.config, bench.job, lengths=bench.lengths()
        )
        yield {"questions": len(bench.dataset), "flops": operations}


def _load(bench: _Bench) -> Iterator[Measurements]:
    """Ready batches of one epoch, prepared in this process."""
    trainer = bench.trainer()
    while True:
        with trainer.batches(0, 0) as batches:
            questions = sum(batch.size for (batch,) in batches)
        yield {"questions": questions}


def _multiply(bench: _Bench) -> Iterator[Measurements]:
    """Operations per second of the best of some matrix products, in the config's precision."""
    # Here, since it looks for a compiler and warns where there is CUDA's but no GPU.
    from torch.utils.benchmark import Timer

    bf16 = bench.config.train.precision == "bf16"
    kind: Any = {"dtype": torch.bfloat16 if bf16 else torch.float32, "device": bench.job.device}
    # A large square, and the feed-forward layer of a batch of 64 (rows x in x out).
    shapes = ((2048, 2048, 2048), (3520, 512, 2048), (3520, 2048, 512))
    while True:
        best = 0.0
        for rows, inner, columns in shapes:
            sizes = {"inputs": (rows, inner), "weight": (columns, inner)}
            operands = {name: torch.randn(size, **kind) for name, size in sizes.items()}
            statement, threads = "torch.nn.functional.linear(inputs, weight)", bench.arm.threads
            timer = Timer(statement, globals=operands, num_threads=threads)
            seconds = timer.blocked_autorange(min_run_time=0.3).median
            best = max(best, 2 * rows * inner * columns / seconds)
        yield {"seconds": 1.0, "flops": best}


JOBS: dict[str, Callable[[_Bench], Iterator[Measurements]]] = {
    "train": _train,
    "eval": _evaluate,
    "loader": _load,
    "multiply": _multiply,
}
"""name -> a generator that does its work once per repetition and yields what it counted."""


def measure_startup(
    config: str, overrides: Sequence[str], repeats: int, threads: int
) -> list[Measurements]:
    """`python train.py` from its start to the log line of the first step."""
    results: list[Measurements] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as runs:
            command = [sys.executable, str(ROOT / "train.py"), config, *overrides]
            command += ["name=startup", f"runs={runs}", "train.log_every=1"]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            metrics, start = Path(runs) / "startup" / "metrics.jsonl", time.perf_counter()
            process = Popen(command, env=environment, stdout=DEVNULL, stderr=PIPE, text=True)
            try:
                while not (metrics.exists() and metrics.stat().st_size):
                    if process.poll() is not None:
                        *_, last = ["no output", *process.communicate()[1].splitlines()]
                        raise RunError(f"train.py ended early: {last.removeprefix('error: ')}")
                    time.sleep(0.01)
                seconds = time.perf_counter() - start
                results.append(
                    NOTHING | {"seconds": seconds, "peak_memory": _peak_memory(process.pid)}
                )
            finally:
                process.kill()
                process.communicate()
    return results


# ------------------------------------------------------------------------- record and report


def describe_machine() -> Measurements:
    """Processor, memory, GPUs and versions."""
    instructions = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    pairs = [line.partition(":")[::2] for line in text.splitlines()]
    fields = {key.strip(): value.strip() for key, value in reversed(pairs)}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "processor": fields.get("model name", platform.machine()),
        "instructions": [name for name in instructions if name in flags],
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "numpy": np.__version__,
        **describe_environment(),
    }


def ratios(arm: Measurements, first: Measurements) -> list[float]:
    """How many times as fast as `first`, repetition by repetition."""
    pairs = zip(arm["repetitions"], first["repetitions"], strict=True)
    return [
        ours["questions"] / ours["seconds"] / (theirs["questions"] / theirs["seconds"])
        for ours, theirs in pairs
    ]


def spread(values: Sequence[float], form: str) -> str:
    """The median and, in brackets, the smallest and the largest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def report(record: Measurements) -> str:
    """A record as a section of Markdown: what it ran on, what it did, a row per arm."""
    machine, arms = record["machine"], record["arms"]
    first = next(iter(arms.values()))
    repetitions = first["repetitions"]
    compared = len(arms) > 1 and repetitions[0]["questions"]
    counted = repetitions[0]["flops"] > 0
    limits = {
        name: max(each["flops"] for each in arm["repetitions"])
        for name, arm in record.get("products", {}).items()
    }
    on_gpu = repetitions[0]["peak_device_memory"] is not None
    rows = []
    for name, arm in arms.items():
        results = arm["repetitions"]
        seconds = [each["seconds"] / each["steps"] for each in results]
        speed = statistics.median(each["questions"] / each["seconds"] for each in results)
        rate = statistics.median(each["flops"] / each["seconds"] for each in results)
        row = {"arm": name, f"s per {record['unit']}": spread(seconds, ",.3f")}
        row["questions/s"] = f"{speed:,.1f}" if speed else ""
        if compared:
            row[f"times {next(iter(arms))}"] = spread(ratios(arm, first), ".2f")
        row["peak memory, MB"] = f"{max(each['peak_memory'] for each in results) / 1e6:,.0f}"
        if on_gpu:
            peak = max(each["peak_device_memory"] for each in results)
            row["peak GPU memory, MB"] = f"{peak / 1e6:,.0f}"
        if counted:
            row["GFLOP/s on valid rows"] = f"{rate / 1e9:,.0f}"
        if counted and limits:
            limit = limits.get(arm.get("precision", "float32"))
            row["of the best product"] = f"{rate / limit:.0%}" if limit else ""
        rows.append(row)
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    products = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in limits.items())
    lines = [
        f"## {record['title']}",
        "",
        f"{machine['processor']}, {machine['cpus']} cores "
        f"({', '.join(machine['instructions']) or 'instructions unknown'}), "
        f"{machine['memory'] / 2**30:.0f} GiB; GPU: {', '.join(machine['gpus']) or 'none'}. "
        f"torch {machine['torch']}, numpy {machine['numpy']}, Python {machine['python']}; "
        f"{first['threads']} threads per process. {machine['time']}, "
        f"revision {machine['revision']}.",
        "",
        f"{record['work']} Medians; smallest and largest in brackets."
        + (f" Best matrix product in this run: {products}." if products else ""),
        "",
        *[f"| {' | '.join(cells)} |" for cells in (rows[0], rule, *(r.values() for r in rows))],
    ]
    return "\n".join(lines) + "\n"


def save(record: Measurements, folder: Path) -> None:
    """Write `folder`/<what>.json, and `folder`.md from all records in the folder.

    Raises `DataError` if one of them is not a record, or if a file cannot be written.
    """
    save_text(record_file(record["what"], folder), json.dumps(record, indent=1) + "\n")
    reports = [f"# Benchmark {folder.name}\n"]
    for file in sorted(folder.glob("*.json")):
        try:
            reports.append(report(parse_json(file.read_text(encoding="utf-8"))))
        except Exception as error:  # of a file that was edited, anything may have any type
            raise DataError(f"{file}: not a record that scripts/benchmark.py wrote") from error
    save_text(folder.with_name(f"{folder.name}.md"), "\n".join(reports))


def record_file(what: str, folder: Path) -> Path:
    """The file of a new record; `DataError` if it exists."""
    file = folder / f"{what}.json"
    if file.exists():
        raise DataError(f"{file}: already exists; save under another name, or delete it")
    return file
