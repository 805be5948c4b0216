"""What `cluster.gridengine` reads from a real Grid Engine."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from alphasweep.cluster import gridengine as queue
from alphasweep.cluster.queue import ClusterError, Ended
from tests.gridengine.conftest import GridEngine
from tests.slurm.conftest import until

NAME = "alphasweep-test"


@pytest.fixture(autouse=True)
def clean(gridengine: GridEngine) -> Iterator[None]:
    """Leave no job."""
    yield
    gridengine.cancel(name=NAME)


def submit(*words: str, body: str = "exec sleep 1000") -> str:
    """Submit a job that sleeps, or does something else, and return its id."""
    said = GridEngine().do(
        "sh", "-c", f"echo '{body}' | qsub -N {NAME} -S /bin/sh {' '.join(words)}"
    )
    return said.split('("')[0].split()[-1]


def state(job: str) -> str:
    """Return the state of a job that waits or runs; "" if it does not."""
    found = queue.jobs(NAME).get(job)
    return found.state if found else ""


def end(job: str) -> Ended:
    """Wait until it is told how a job ended."""
    until(lambda: not state(job), what=f"the end of job {job}")
    return until(lambda: queue.ended(job) if queue.ended(job).state else None, what="its account")


def test_jobs_that_wait_and_run(tmp_path: Path) -> None:
    """A job is listed from its submission to its end, with a reason why it waits."""
    running, held = submit("-o", str(tmp_path), "-j", "y"), submit("-h")
    large = submit("-l", "h_vmem=900T")
    until(lambda: state(running) == "RUNNING", what="a job that runs")
    until(lambda: "offers only" in queue.jobs(NAME)[large].reason, what="the scheduler's reason")
    found = queue.jobs(NAME[:-1])
    assert found.keys() == {running, held, large}
    assert [found[job].state for job in (running, held, large)] == ["RUNNING", *["PENDING"] * 2]
    assert "hold" in found[held].reason
    assert "h_vmem=900T" in found[large].reason
    assert queue.jobs("alphasweep-other") == {}
    queue.cancel([running, held, large])
    until(lambda: not queue.jobs(NAME), what="an empty queue")
    assert queue.ended(held) == Ended()
    queue.cancel([running, held, large])  # they are over: fine too


def test_job_that_never_starts(gridengine: GridEngine) -> None:
    """A job in the error state waits for ever; what was wrong is told, also as its end."""
    job = submit("-wd", "/nowhere")
    until(lambda: state(job) == "ERROR", what="the error state")
    assert "can't chdir to /nowhere" in queue.jobs(NAME)[job].reason
    assert queue.ended(job).state == "FAILED"
    assert "can't chdir to /nowhere" in queue.ended(job).exit_code


def test_how_jobs_end(gridengine: GridEngine, tmp_path: Path) -> None:
    """By themselves, with a failure, killed, or by their walltime."""
    to = ("-o", str(tmp_path), "-j", "y")
    well, badly, late, killed = (
        submit(*to, body="true"),
        submit(*to, body="exit 3"),
        submit(*to, "-l", "h_rt=4"),
        submit(*to),
    )
    pids = until(lambda: gridengine.processes(killed), what="a process")
    os.kill(pids[-1], signal.SIGKILL)
    assert end(well) == Ended("COMPLETED", "0", "localhost")
    assert end(badly) == Ended("FAILED", "3", "localhost")
    assert end(killed) == Ended("FAILED", "137 (assumedly after job)", "localhost")
    assert end(late).state == "TIMEOUT"


def test_notices_of_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that a site prints around the answer do no harm; an answer that is none is an error."""
    job = submit("-h")
    real = shutil.which("qstat")
    fake = tmp_path / "qstat"
    fake.write_text(f'#!/bin/sh\necho "Maintenance: 5 <b>"\n{real} "$@"\necho "</b> on the 3rd"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert queue.jobs(NAME)[job].state == "PENDING"
    fake.write_text("#!/bin/sh\necho down for maintenance\n")
    with pytest.raises(ClusterError, match=r"must print XML.*down for maintenance"):
        queue.jobs(NAME)
