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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mcan.batch import Image, PaddedLengths, Question
from mcan.build import (
    answer_probabilities,
    build_model,
    entry,
    model_sizes,
    open_dataset,
    open_stores,
    padded_lengths,
    predict_over_processes,
    run_metadata,
)
from mcan.config import Config, load_config
from mcan.console import progress
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.engine.processes import Processes, processes
from mcan.engine.run_folder import RunFolder, describe_environment
from mcan.engine.trainer import Trainer
from mcan.errors import DataError, RunError, UserError
from mcan.files import save_text
from mcan.nn.dropout import Dropout
from mcan.nn.mcan import ModelSizes
from mcan.rows import Padded

Measurements = dict[str, Any]
"""What a benchmark or one repetition measured, as JSON holds it."""

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
    with ExitStack() as stack:
        pipes = {name: stack.enter_context(_running(arm)) for name, arm in arms.items()}
        for name, arm in arms.items():
            results[name] = {"threads": arm.threads, "repetitions": []}
        for number in progress(range(repeats + 1), "repetitions", leave=False):
            for name, pipe in pipes.items():
                try:
                    pipe.send("go")
                    result = pipe.recv()
                except (EOFError, BrokenPipeError, ConnectionResetError):
                    result = "its process was killed"
                if isinstance(result, str):
                    raise RunError(f"the arm '{name}' ended early: {result}")
                if number:
                    results[name]["repetitions"].append(result)
                else:
                    results[name]["warm_up"] = result
    return results


@contextmanager
def _running(arm: Arm) -> Iterator[Connection]:
    """A pipe to the process of an arm, which ends when the pipe is closed."""
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        process = spawn.Process(target=_run_arm, args=(arm, folder, theirs))
        process.start()
        theirs.close()
        try:
            yield ours
        finally:
            ours.close()
            process.join()


def _run_arm(arm: Arm, folder: str, pipe: Connection) -> None:
    """The process of an arm: a repetition for every message."""
    torch.set_num_threads(arm.threads)
    overrides = (*arm.overrides, "name=benchmark", f"runs={folder}")
    try:
        config = load_config(arm.config, overrides)
        with processes(config.train.device) as job:
            repetitions = JOBS[arm.job](_Bench.open(config, job, arm))
            while True:
                pipe.recv()
                result: Measurements = {"questions": 0, "flops": 0.0, "steps": 1}
                result |= next(repetitions)
                on_gpu = job.device.type == "cuda"
                result["peak_memory"] = _peak_memory()
                result["peak_device_memory"] = (
                    torch.cuda.max_memory_allocated(job.device) if on_gpu else None
                )
                pipe.send(result)
    except EOFError:
        pass  # the benchmark is over
    except UserError as error:
        pipe.send(str(error))


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


@dataclass(frozen=True)
class _Bench:
    """The parts of a job, opened as `train.py` opens them."""

    config: Config
    arm: Arm
    job: Processes
    prepared: Prepared
    dataset: VQADataset
    sizes: ModelSizes

    @classmethod
    def open(cls, config: Config, job: Processes, arm: Arm) -> _Bench:
        prepared = Prepared.open(config.data.prepared)
        dataset = open_dataset(config, prepared, config.data.train, open_stores(config, job))
        sizes = model_sizes(prepared.vocabulary, dataset)
        torch.manual_seed(config.seed)
        return cls(config, arm, job, prepared, dataset, sizes)

    def model(self) -> nn.Module:
        """The config's network; as the authors compute it if this is the baseline."""
        model = build_model(self.config.model, self.sizes).to(self.job.device)
        return _with_torch_dropout(model) if self.arm.baseline else model

    def trainer(self) -> Trainer:
        """A trainer without evaluation, in the folder of a run that is thrown away."""
        run = RunFolder(Path(self.config.runs) / self.config.name)
        metadata = run_metadata(self.config, self.prepared, self.dataset, self.sizes)
        enter = entry(self.config, self.job.device, self.config.train.precision, self.lengths())
        return Trainer(self.config, self.model(), self.dataset, metadata, run, self.job, enter)

    def lengths(self) -> PaddedLengths | None:
        """What samples are padded to: fixed lengths in the baseline, a few if compiled."""
        if self.arm.baseline:
            return PaddedLengths((WORDS,), (int(self.regions().max()),))
        return padded_lengths(self.config, self.dataset)

    def regions(self) -> NDArray[np.int64]:
        """(Q,) regions of each question's image."""
        return self.dataset.images.lengths[self.dataset.image_rows]

    def flops(self) -> NDArray[np.float64]:
        """(Q,) operations of a forward pass on each question's own words and regions."""
        words = np.minimum(np.diff(self.dataset.tokens.offsets), self.config.data.max_tokens or 99)
        return _forward_flops(self.config, self.sizes, words, self.regions())


def _with_torch_dropout(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Dropout):
                setattr(module, name, nn.Dropout(child.p))
    return model


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
    with torch.device("meta"):
        model = build_model(config.model, sizes).eval()
    points = [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 2)]
    counts = []
    for w, r in points:
        question = Question(torch.zeros(1, w, dtype=torch.int64, device="meta"), _full(w))
        boxes = torch.zeros(1, r, 4, device="meta") if config.model.image.boxes else None
        image = Image(_full(r), torch.zeros(1, r, sizes.feature_size, device="meta"), boxes)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(question, image)
        counts.append(counter.get_total_flops())
    matrix = np.array([terms(float(w), float(r)) for w, r in points])
    return np.stack(terms(words.astype(float), regions.astype(float)), -1) @ np.linalg.solve(
        matrix, np.array(counts, float)
    )


def _full(rows: int) -> Padded:
    return Padded(torch.ones(1, rows, dtype=torch.bool, device="meta"), some_empty=False)


def _train(bench: _Bench) -> Iterator[Measurements]:
    """`steps` updates of the `Trainer` per repetition."""
    trainer, flops, steps = bench.trainer(), bench.flops(), bench.arm.steps
    trainer.model.train()
    with trainer.batches(0, 0) as batches:
        while True:
            questions, operations = 0, 0.0
            start = _now(bench)
            for _ in range(steps):
                micro_batches = next(batches)
                trainer.update(micro_batches)
                questions += sum(batch.size for batch in micro_batches)
                operations += sum(flops[batch.index].sum() for batch in micro_batches)
            yield {
                "seconds": _now(bench) - start,
                "questions": questions,
                "flops": 3 * operations,  # the backward pass has twice the forward's products
                "steps": steps,
            }


def _evaluate(bench: _Bench) -> Iterator[Measurements]:
    """All questions once, as `eval.py` predicts them."""
    model, operations = bench.model().eval(), float(bench.flops().sum())
    score = answer_probabilities([model], bench.config.train.loss)
    while True:
        start = _now(bench)
        predict_over_processes(
            score, bench.dataset, bench.config, bench.job, lengths=bench.lengths()
        )
        yield {
            "seconds": _now(bench) - start,
            "questions": len(bench.dataset),
            "flops": operations,
        }


def _load(bench: _Bench) -> Iterator[Measurements]:
    """Ready batches of one epoch, prepared in this process."""
    trainer = bench.trainer()
    while True:
        start = _now(bench)
        with trainer.batches(0, 0) as batches:
            questions = sum(batch.size for (batch,) in batches)
        yield {"seconds": _now(bench) - start, "questions": questions}


def _multiply(bench: _Bench) -> Iterator[Measurements]:
    """Operations per second of the best of some matrix products, in the config's precision."""
    # Here, since it looks for a compiler and warns where there is CUDA's but no GPU.
    from torch.utils.benchmark import Timer

    bf16 = bench.config.train.precision == "bf16"
    dtype, device = torch.bfloat16 if bf16 else torch.float32, bench.job.device
    # A large square, and the feed-forward layer of a batch of 64 (rows x in x out).
    shapes = ((2048, 2048, 2048), (3520, 512, 2048), (3520, 2048, 512))
    while True:
        best = 0.0
        for rows, inner, columns in shapes:
            timer = Timer(
                "linear(inputs, weight)",
                globals={
                    "linear": nn.functional.linear,
                    "inputs": torch.randn(rows, inner, device=device, dtype=dtype),
                    "weight": torch.randn(columns, inner, device=device, dtype=dtype),
                },
                num_threads=bench.arm.threads,
            )
            seconds = timer.blocked_autorange(min_run_time=0.3).median
            best = max(best, 2 * rows * inner * columns / seconds)
        yield {"seconds": 1.0, "flops": best}


JOBS: dict[str, Callable[[_Bench], Iterator[Measurements]]] = {
    "train": _train,
    "evaluate": _evaluate,
    "load": _load,
    "multiply": _multiply,
}
"""name -> a generator that does its work once per repetition and yields what it measured."""


def _now(bench: _Bench) -> float:
    if bench.job.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure_startup(
    config: str, overrides: Sequence[str], repeats: int, threads: int
) -> list[Measurements]:
    """`python train.py` from its start to the log line of the first step."""
    results: list[Measurements] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as runs:
            command = [sys.executable, str(ROOT / "train.py"), config, *overrides]
            command += ["name=startup", f"runs={runs}", "train.log_every=1"]
            start = time.perf_counter()
            process = subprocess.Popen(
                command,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                metrics = Path(runs) / "startup" / "metrics.jsonl"
                while not (metrics.exists() and metrics.stat().st_size):
                    if process.poll() is not None:
                        assert process.stderr is not None
                        *_, last = ["no output", *process.stderr.read().splitlines()]
                        raise RunError(f"train.py ended early: {last.removeprefix('error: ')}")
                    time.sleep(0.01)
                seconds = time.perf_counter() - start
                memory = _peak_memory(process.pid)
                results.append({"seconds": seconds, "questions": 0, "steps": 1, "flops": 0.0})
                results[-1] |= {"peak_memory": memory, "peak_device_memory": None}
            finally:
                process.kill()
                process.communicate()
    return results


# ------------------------------------------------------------------------- record and report


def describe_machine() -> Measurements:
    """Processor, memory, GPUs and versions."""
    environment = describe_environment()
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
        **{key: environment[key] for key in ("time", "cpus", "gpus", "python", "torch")},
        "revision": environment["revision"],
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
    limits = {name: _best_product(arm) for name, arm in record.get("products", {}).items()}
    on_gpu = repetitions[0]["peak_device_memory"] is not None
    head = ["arm", f"s per {record['unit']}", "questions/s"]
    head += [f"times {next(iter(arms))}"] if compared else []
    head += ["peak memory, MB"] + (["peak GPU memory, MB"] if on_gpu else [])
    head += ["GFLOP/s on valid rows"] if counted else []
    head += ["of the best product"] if counted and limits else []
    rows = []
    for name, arm in arms.items():
        results = arm["repetitions"]
        row = [name, spread([each["seconds"] / each["steps"] for each in results], ",.3f")]
        speeds = [each["questions"] / each["seconds"] for each in results]
        row.append(f"{statistics.median(speeds):,.1f}" if speeds[0] else "")
        row += [spread(ratios(arm, first), ".2f")] if compared else []
        row.append(f"{max(each['peak_memory'] for each in results) / 1e6:,.0f}")
        row += [f"{max(r['peak_device_memory'] for r in results) / 1e6:,.0f}"] if on_gpu else []
        rate = statistics.median(each["flops"] / each["seconds"] for each in results)
        row += [f"{rate / 1e9:,.0f}"] if counted else []
        limit = limits.get(arm.get("precision", "float32"))
        row += [f"{rate / limit:.0%}" if limit else ""] if counted and limits else []
        rows.append(row)
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
        *[f"| {' | '.join(cells)} |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1))],
        *[f"| {' | '.join(cells)} |" for cells in rows],
    ]
    return "\n".join(lines) + "\n"


def _best_product(arm: Measurements) -> float:
    return max(float(each["flops"]) for each in arm["repetitions"])


def save(record: Measurements, folder: Path) -> None:
    """Write `folder`/<what>.json, and `folder`.md from all records in the folder.

    Raises `DataError` if one of them is not a record, or if a file cannot be written.
    """
    save_text(record_file(record["what"], folder), json.dumps(record, indent=1) + "\n")
    reports = [f"# Benchmark {folder.name}\n"]
    for file in sorted(folder.glob("*.json")):
        try:
            reports.append(report(json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
            raise DataError(f"{file}: not a record that scripts/benchmark.py wrote") from error
    save_text(folder.with_name(f"{folder.name}.md"), "\n".join(reports))


def record_file(what: str, folder: Path) -> Path:
    """The file of a new record; `DataError` if it exists."""
    file = folder / f"{what}.json"
    if file.exists():
        raise DataError(f"{file}: already exists; save under another name, or delete it")
    return file
