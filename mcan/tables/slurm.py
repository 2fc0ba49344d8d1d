"""Runs as jobs of a Slurm cluster, submitted with `submitit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mcan.errors import RunError
from mcan.tables.children import Children
from mcan.tables.plan import PlannedRun
from mcan.tables.runner import run_all

# What submitit takes for every kind of cluster; other parameters are Slurm's own.
_GENERAL = {
    "name",
    "timeout_min",
    "mem_gb",
    "nodes",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "stderr_to_stdout",
}


def submit(
    runs: Sequence[PlannedRun],
    logs: Path,
    parameters: Mapping[str, Any],
    processes: int = 1,
    cluster: str = "slurm",
) -> list[str]:
    """Submit an array of jobs, one for each run; their ids.

    `parameters` are submitit's (timeout_min, gpus_per_node, ...) or sbatch's (partition, ...);
    `logs` receives what jobs print. A job does what `run_all` does, claims included.

    Raises `RunError` where submitit is not installed or does not take the jobs.
    """
    try:
        submitit = import_module("submitit")
    except ImportError:
        raise RunError("--launcher slurm needs submitit: pip install submitit") from None
    named = {key if key in _GENERAL else f"{cluster}_{key}": v for key, v in parameters.items()}
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(**{"name": "reproduce", **named})
        jobs = executor.map_array(job, runs, [processes] * len(runs))
    except Exception as error:  # submitit has no exception of its own for what it refuses
        reason = " ".join(str(error).split())
        raise RunError(f"submitit does not take the jobs ({reason})") from error
    return [str(each.job_id) for each in jobs]


def job(run: PlannedRun, processes: int) -> None:
    """What a job does; it fails with `RunError` where its run does."""
    with Children() as children:
        failures = run_all([run], children, processes)
    if failures:
        raise RunError(failures[0])
