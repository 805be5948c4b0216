"""The driver as a job of a real SLURM, which puts itself back into the queue."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from alphasweep.cluster import slurm as commands
from alphasweep.cluster.queue import ClusterError
from alphasweep.cluster.submit import REQUEUE_STATUS, driver_script, submit
from tests.slurm.conftest import Slurm, profile, until

DRIVER = f"""
import os, signal, sys, time
from pathlib import Path
def stop(number, _):
    print("told", signal.Signals(number).name, flush=True)
    raise SystemExit({REQUEUE_STATUS} if number == signal.SIGUSR1 else 143)
signal.signal(signal.SIGUSR1, stop)
signal.signal(signal.SIGTERM, stop)
runs = Path(sys.argv[1])
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
print("run", len(runs.read_text()), flush=True)
if len(runs.read_text()) < 3:
    time.sleep(500)
"""


def script(folder: Path, arguments: list[str], **changes: Any) -> str:
    """Return the job of a driver that is told to stop twice, and is through in its third run."""
    return driver_script(
        profile(driver={"memory": "200 MB", "walltime": "10 min"}, **changes),
        [sys.executable, "-c", DRIVER, *arguments],
        log=folder / "log",
        record=folder / "job",
        job_name="driver",
    )


def state(job: str) -> str:
    """Return the state of a job, also of one that is over."""
    there = commands.jobs("")
    return there[job].state if job in there else commands.ended(job).state


def test_driver_goes_back_into_the_queue(slurm: Slurm, tmp_path: Path) -> None:
    """A driver that is told of its walltime and has more to do runs again, until it is through.

    The walltime itself is not waited for: the shell gets the signal that SLURM would send.
    """
    log = tmp_path / "log"
    job = submit(script(tmp_path, [str(tmp_path / "a b")]))
    for run in (1, 2):
        until(
            lambda run=run: log.exists() and log.read_text().count("run ") == run,
            what=f"run {run}",
        )
        slurm.do("scancel", "--batch", "--signal=USR1", job)
    until(lambda: state(job) == "COMPLETED", what="the end of the job")
    said = [line for line in log.read_text().splitlines() if line.startswith(("run", "told"))]
    assert said == ["run 1", "told SIGUSR1", "run 2", "told SIGUSR1", "run 3"]
    assert slurm.shows(job)["Restarts"] == "2"


def test_driver_that_may_not_be_requeued(slurm: Slurm, tmp_path: Path) -> None:
    """SLURM's own refusal: each generation submits the next, once, which begins when it has ended.

    SLURM says the same of every job where the administrators set JobRequeue = 0 or undo --requeue.
    """
    log, record = tmp_path / "log", tmp_path / "job"
    never = {"extra_directives": ["--no-requeue"]}
    jobs = [submit(script(tmp_path, [str(tmp_path / "runs")], **never))]
    for run in (1, 2):
        until(
            lambda run=run: log.exists() and log.read_text().count("run ") == run,
            what=f"run {run}",
        )
        slurm.do("scancel", "--batch", "--signal=USR1", jobs[-1])
        until(lambda: state(jobs[-1]) == "COMPLETED", what="the end of the job")
        jobs.append(record.read_text().strip())
    until(lambda: state(jobs[-1]) == "COMPLETED", what="the end of the job")
    assert len(set(jobs)) == 3
    words = ("run", "told", "Requested", "alphasweep")
    said = [line for line in log.read_text().splitlines() if line.startswith(words)]
    assert said == [
        line
        for run, (job, next_) in enumerate(pairwise(jobs), 1)
        for line in (
            f"run {run}",
            "told SIGUSR1",
            f"Requested operation is presently disabled for job {job}",
            f"alphasweep: SLURM does not put this job back into the queue: job {next_} goes on "
            "after it.",
        )
    ] + ["run 3"]


def test_cancelled_driver(slurm: Slurm, tmp_path: Path) -> None:
    """A driver that is cancelled hears of it, and its job does not come back."""
    log = tmp_path / "log"
    job = submit(script(tmp_path, [str(tmp_path / "runs")]))
    until(lambda: log.exists() and "run 1" in log.read_text(), what="the driver")
    commands.cancel([job])
    until(lambda: not slurm.processes(job), what="the end of its processes")
    assert "told SIGTERM" in log.read_text()
    until(lambda: state(job) == "CANCELLED", what="the end of the job")


def test_refused_driver(slurm: Slurm) -> None:
    """What SLURM has against a job is in the error."""
    with pytest.raises(ClusterError, match="Requested node configuration is not available"):
        submit("#!/bin/sh\n#SBATCH --mem=100T\n")
