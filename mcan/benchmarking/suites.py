"""The benchmarks: which arms they compare, on what data. Each returns a record for `report`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mcan.benchmarking.arms import Arm, measure
from mcan.benchmarking.baseline_loader import write
from mcan.benchmarking.hardware import describe_machine
from mcan.benchmarking.startup import measure_startup
from mcan.benchmarking.summary import Record
from mcan.benchmarking.turns import Spec
from mcan.benchmarking.workload import QUESTIONS_PER_IMAGE, Workload, make
from mcan.config import Config, load_config
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.data.store import open_store

BF16 = {"train": "train.precision=bf16", "evaluate": "evaluation.precision=bf16"}


@dataclass(frozen=True)
class Sweep:
    """The values of one factor at a time."""

    regions: tuple[int, ...] = (36, 100, 608)
    width: tuple[int, ...] = (512, 1024)
    depth: tuple[int, ...] = (2, 4, 6, 8)
    questions: tuple[int, ...] = (10_000, 440_000, 4_400_000)


@dataclass(frozen=True)
class Settings:
    """What all benchmarks share: the config with overrides, `threads` of each arm, repetitions.

    `workload` gives the sizes of the data; each benchmark decides on the number of questions.
    `steps` are the updates of a repetition.
    """

    config: str
    overrides: tuple[str, ...]
    threads: int
    repeats: int
    workload: Workload
    steps: int = 3

    def resolve(self, *more: str) -> Config:
        paths = ("name=benchmark", "data.prepared=prepared", "data.images=[images.h5]")
        return load_config(self.config, (*self.overrides, *more, *paths))

    def training_questions(self) -> int:
        """So many that no epoch ends while it is measured."""
        return self.resolve().train.batch_size * (self.steps * (self.repeats + 1) + 2)


def train(settings: Settings, compiled: bool) -> Record:
    """A training step: the baseline, ours in float32, in bf16, and compiled where asked for."""
    with _data(settings, settings.training_questions()) as lab:
        arms = {
            "baseline": lab.arm("train_baseline"),
            "float32": lab.arm("train", "train.precision=float32"),
            "bf16": lab.arm("train", BF16["train"]),
        }
        if compiled:
            arms["bf16 compiled"] = lab.arm("train", BF16["train"], "train.compile=true")
        return lab.record("train", arms, products=True)


def evaluate(settings: Settings, questions: int) -> Record:
    """Predicting all questions: the baseline in batches of 32, ours as `eval.py` does."""
    with _data(settings, questions) as lab:
        arms = {
            "baseline": lab.arm("evaluate_baseline"),
            "float32": lab.arm("evaluate", "evaluation.precision=float32"),
            "bf16": lab.arm("evaluate", BF16["evaluate"]),
        }
        return lab.record("eval", arms, products=True)


def load(settings: Settings, questions: int) -> Record:
    """Ready batches in one process from a warm page cache."""
    with _data(settings, questions) as lab:
        prepared = Prepared.open(lab.folder / "prepared")
        store = open_store(lab.folder / "images.h5")
        write(lab.folder / "npz", VQADataset([prepared.split("train")], [store]))
        arms = {"baseline": lab.arm("load_baseline"), "ours": lab.arm("load")}
        return lab.record("loader", arms)


def startup(settings: Settings, questions: int, images: int, folder: Path | None) -> Record:
    """From the command to the end of the first step."""
    with tempfile.TemporaryDirectory() as temporary:
        starts = measure_startup(
            folder or Path(temporary) / "data",
            settings.config,
            questions,
            images,
            settings.threads,
            settings.repeats,
        )
    return {
        "what": "startup",
        "machine": describe_machine(),
        "threads": settings.threads,
        "questions": questions,
        "images": images,
        "starts": starts,
    }


def processes(settings: Settings, most: int) -> Record:
    """One process, two, four and so on, up to `most`, on the same batches."""
    with _data(settings, settings.training_questions()) as lab:
        arms = {
            f"{precision}, {count} process{'es' if count > 1 else ''}": replace(
                lab.arm("train", f"train.precision={precision}"), processes=count
            )
            for precision in ("float32", "bf16")
            for count in doubling(most)
        }
        return lab.record("scaling", arms)


def doubling(most: int) -> list[int]:
    """1, 2, 4 and so on, and `most`."""
    return [*(2**power for power in range((most - 1).bit_length())), most]


def sweep(settings: Settings, values: Sweep) -> Record:
    """How a bf16 training step grows with the work, and start-up with the number of questions."""
    points: list[Record] = []
    plain = replace(settings, overrides=(*settings.overrides, BF16["train"]))

    def add(factor: str, value: int, lab: _Lab, *overrides: str) -> None:
        result = measure({"step": lab.arm("train", *overrides)}, settings.repeats)["step"]
        points.append({"factor": factor, "value": value, **result})

    for regions in values.regions:
        workload = replace(settings.workload, regions=(regions, regions))
        fixed = replace(plain, workload=workload)
        with _data(fixed, fixed.training_questions()) as lab:
            add("regions", regions, lab)
    with _data(plain, plain.training_questions()) as lab:
        for width in values.width:
            add("width", width, lab, f"model.hidden_size={width}")
        for depth in values.depth:
            add("depth", depth, lab, f"model.depth={depth}")
        record = lab.record("sweep", {})
    starts = [
        startup(settings, count, -(-count // QUESTIONS_PER_IMAGE), None)
        for count in values.questions
    ]
    return record | {"points": points, "startup": starts}


@dataclass(frozen=True)
class _Lab:
    """Made-up data in `folder`, and the arms that work on it."""

    settings: Settings
    workload: Workload
    folder: Path

    def arm(self, job: str, *overrides: str) -> Arm:
        settings = self.settings
        data = (
            f"data.prepared={self.folder / 'prepared'}",
            f"data.images=[{self.folder / 'images.h5'}]",
            "data.evaluate=null",
            "data.max_tokens=14",
            # Reading the loss and writing it are not part of a step.
            "train.log_every=1000000",
        )
        files = str(self.folder / "npz")
        spec = Spec(
            job, settings.config, (*data, *settings.overrides, *overrides), settings.steps, files
        )
        config = settings.resolve(*overrides)
        precisions = {"train": config.train.precision, "evaluate": config.evaluation.precision}
        return Arm(
            spec,
            settings.threads,
            precision=precisions.get(job, "float32"),
            variables=_AS_TORCH_IS if job.endswith("_baseline") else {},
        )

    def record(self, what: str, arms: Mapping[str, Arm], products: bool = False) -> Record:
        """Measure the arms, and with `products` the machine's matrix products between them."""
        config = self.settings.resolve().model_dump(mode="json")
        record: Record = {
            "what": what,
            "machine": describe_machine(),
            "threads": self.settings.threads,
            "config": {key: config[key] for key in ("model", "optimizer", "train", "evaluation")},
            "workload": asdict(self.workload),
        }
        results: dict[str, Record] = {}
        if products:
            results = measure({**arms, _PRODUCTS: self.arm("multiply")}, self.settings.repeats)
            record["products"] = results.pop(_PRODUCTS)
        elif arms:
            results = measure(arms, self.settings.repeats)
        return record | {"arms": results}


_PRODUCTS = "matrix products"

# Without what `mcan` asks for when it is imported.
_AS_TORCH_IS = {"THP_MEM_ALLOC_ENABLE": "0"}


@contextmanager
def _data(settings: Settings, questions: int) -> Iterator[_Lab]:
    workload = replace(settings.workload, questions=questions)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), workload)
        yield _Lab(settings, workload, Path(folder))
