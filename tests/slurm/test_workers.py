"""Workers as jobs of a real SLURM: they come, they are replaced, and nothing of them stays."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from distributed.security import Security

from cluster.launch import WALLTIME_END, Cluster, ClusterError, job_name, launch
from cluster.profile import Profile
from tests.slurm.conftest import Slurm, profile, until

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def supervised(cluster: Cluster, condition: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """Wait for a condition as a driver does, which calls `check` meanwhile."""

    def found() -> Any:
        cluster.check()
        return condition()

    return until(found, seconds=seconds, what=what)


def workers(cluster: Cluster) -> dict[str, str]:
    """Return the jobs of the workers that are there, by address."""
    client = cluster.client("one")
    found: dict[str, str] = client.run(os.getenv, "SLURM_JOB_ID", on_error="ignore")
    return found


def busy(cluster: Cluster) -> str:
    """Wait until a worker has a task, and return its address."""
    processing = cluster.client("one").processing

    def found() -> str | None:
        return next((worker for worker, keys in processing().items() if keys), None)

    address: str = until(found, seconds=5, what="a worker at work")
    return address


def replaced(cluster: Cluster, lost: str, *, seconds: float = 30) -> None:
    """Wait until the class has two workers, and none of them is the lost job's."""
    supervised(
        cluster,
        lambda: len(there := workers(cluster)) == 2 and lost not in there.values(),
        seconds=seconds,
        what=f"a worker in the place of job {lost}",
    )


@contextmanager
def launched(slurm: Slurm, run: Path, one: Profile, jobs: int = 2) -> Iterator[Cluster]:
    """Launch, and on leaving claim that nothing stays: no job, no certificate, no process."""
    name, seen = job_name(run), set()
    with launch(one, {"one": jobs}, run_directory=run) as cluster:
        yield cluster
        seen.update(slurm.jobs(name=name))
    assert slurm.jobs(name=name, state="RUNNING") == slurm.jobs(name=name, state="PENDING") == []
    assert not list(run.glob("certificates*"))
    until(lambda: not any(map(slurm.processes, seen)), seconds=10, what="the end of all processes")
    assert not slurm.jobs(name=name)


@pytest.fixture(scope="module")
def pair(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Launch two workers, which the tests of faults wear out in turn."""
    run = tmp_path_factory.mktemp("pair")
    with launched(slurm, run, profile()) as cluster:
        cluster.wait("one", workers=2)
        yield cluster


def test_a_worker_is_one_thread_that_knows_its_end(pair: Cluster) -> None:
    """A job is a worker with one thread, one BLAS thread, and the end of its walltime in sight."""
    client = pair.client("one")
    state = pair.state()["one"]
    assert (state["wanted"], state["workers"]) == (2, 2)
    assert set(client.nthreads().values()) == {1}
    for name in ONE_THREAD:
        assert set(client.run(os.getenv, name).values()) == {"1"}
    for end in client.run(os.getenv, WALLTIME_END).values():
        assert 540 < float(end) - time.time() <= 600


def test_cancelled_job(pair: Cluster, slurm: Slurm) -> None:
    """A job that someone cancels is replaced, its task is done elsewhere, and nobody is blamed."""
    task = pair.client("one").submit(time.sleep, 8, key="sleeper")
    address = busy(pair)
    lost = workers(pair)[address]
    slurm.do("scancel", lost)
    replaced(pair, lost)
    death = pair.deaths[-1]
    assert (death.job, death.state, death.young) == (lost, "CANCELLED", False)
    assert (death.worker, death.tasks) == (address, ("sleeper",))
    task.result(timeout=30)


def test_killed_worker(pair: Cluster, slurm: Slurm) -> None:
    """A job whose worker is killed is replaced."""
    pids: dict[str, int] = pair.client("one").run(os.getpid)
    address, pid = next(iter(pids.items()))
    lost = workers(pair)[address]
    os.kill(pid, signal.SIGKILL)
    replaced(pair, lost)
    assert (pair.deaths[-1].job, pair.deaths[-1].exit_code) == (lost, "137:0")


def test_retired_worker(pair: Cluster) -> None:
    """A worker that is retired finishes what it has and is replaced, and that is no death."""
    before = len(pair.deaths)
    client = pair.client("one")
    tasks = [client.submit(os.getenv, "SLURM_JOB_ID", pure=False) for _ in range(2)]
    client.gather(tasks)
    slow = client.submit(lambda: (time.sleep(3), os.getenv("SLURM_JOB_ID"))[1], pure=False)
    address = busy(pair)
    lost = workers(pair)[address]
    pair.retire(address)
    assert slow.result(timeout=10) == lost
    del slow, tasks
    replaced(pair, lost)
    assert len(pair.deaths) == before


def test_refused_connections(pair: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scheduler and workers refuse no certificate, another run's certificate, and plain TCP."""
    client = pair.client("one")
    addresses = [client.scheduler.address, *client.nthreads()]
    foreign = Security.temporary()
    for address in addresses:
        assert address.startswith("tls://")
        plain = address.replace("tls://", "tcp://")
        for at, security in ((address, Security()), (address, foreign), (plain, None)):
            with pytest.raises((OSError, ValueError, TypeError)):
                Client(at, security=security, timeout=3)
