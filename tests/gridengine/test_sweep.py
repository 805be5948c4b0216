"""Whole sweeps on a real Grid Engine, as on SLURM: whatever happens to their jobs.

Each ends with the bits of a sweep that nothing happened to, and leaves nothing behind.
"""

from __future__ import annotations

import os
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from alphasweep.cluster.launch import launch
from alphasweep.pipeline.store import Store
from tests.conftest import bits
from tests.gridengine.conftest import GridEngine, profile
from tests.slurm.conftest import until
from tests.slurm.test_sweep import LARGE, SMALL, Desk

MINUTE = SMALL | {"up_to_N": 12, "walltime": "1 min"}


@pytest.fixture
def desk(gridengine: GridEngine, tmp_path: Path) -> Iterator[Desk]:
    """A desk of the test's own, where nothing may be left at the end."""
    one = Desk(gridengine, tmp_path)
    try:
        yield one
        one.leaves_nothing()
    finally:
        one.clear()


def logs(desk: Desk) -> list[Path]:
    """Return the logs of all jobs of a sweep."""
    return list((desk.store.control / "cluster" / "logs").iterdir())


def test_a_job_gets_what_the_profile_says(gridengine: GridEngine, tmp_path: Path) -> None:
    """Cores by a parallel environment, and addresses for the memory and what is mapped beside."""
    size = {"name": "one", "up_to_N": 9, "memory": "300 MiB", "walltime": "10 min", "cores": 2}
    one = profile(classes=[size], parallel_environment="smp")
    with launch(one, {"one": 1}, run_directory=tmp_path, token="a") as cluster:
        until(lambda: cluster.check() or cluster.workers("one"), what="a worker")
        client = cluster.client("one")
        assert set(client.run(os.getenv, "NSLOTS").values()) == {"2"}
        (limits,) = client.run(resource.getrlimit, resource.RLIMIT_AS).values()
    assert limits[1] == (300 + 512) * 2**20


def test_quick_is_the_same_through_a_queue(desk: Desk) -> None:
    """The bits are those of a local run, with two classes of jobs, in a shell that is not csh."""
    desk.ends(desk.start("run", "quick", "--workers", "1", "--store", "local.zarr"))
    desk.store = Store(desk.folder / "a.zarr")
    desk.cluster(classes=(SMALL | {"up_to_N": 32}, LARGE | {"up_to_N": 1024}))
    there = ("quick", "--on", "p.toml", "--part-seconds", "1", "--store", "a.zarr")
    desk.ends(desk.start("run", *there))
    assert bits(desk.store.path) == bits(desk.folder / "local.zarr")


def test_lost_workers(gridengine: GridEngine, desk: Desk) -> None:
    """A deleted job, a killed worker, and one at its walltime, which are no early deaths."""
    hang = "if (alpha, N, seed) == (2.0, 8, 3) and once(): time.sleep(1000)"
    desk.cluster(extra=hang, classes=(MINUTE,), partition="short.q")
    desk.hold()
    run = desk.run()
    desk.computes(5)
    gridengine.do("qdel", desk.workers(3)[0])
    desk.computes()
    job = desk.workers(3)[0]
    worker = until(lambda: gridengine.processes(job), what=f"the processes of job {job}")[-1]
    os.kill(worker, signal.SIGKILL)
    desk.computes()
    desk.let_go()
    desk.ends(run)
    desk.is_complete()
    ended = [re.findall(r"\.o(\d+)$", log.name)[0] for log in logs(desk)]
    told = [gridengine.do("qacct", "-j", job) for job in ended]
    assert any("qmaster enforced h_rt" in text for text in told)


def test_broken_prologue(desk: Desk) -> None:
    """Jobs that cannot even start a worker are few, and what their log says is shown."""
    desk.cluster(prologue=("echo no such module >&2; exit 3",), early_deaths=2, jobs=2)
    said = desk.ends(desk.run(), status=1)
    assert "no such module" in said
    assert "FAILED, exit code 3, node localhost" in said
    assert "Traceback" not in said
    assert len(logs(desk)) <= 4


def test_jobs_that_never_start(desk: Desk) -> None:
    """Jobs in the error state would wait for ever; what is wrong with them ends the run."""
    desk.cluster(extra_directives=("-wd /nowhere",), early_deaths=2, jobs=2)
    said = desk.ends(desk.run(), status=1)
    assert "can't chdir to /nowhere" in said
    assert "Traceback" not in said


def test_cancelled_and_killed_drivers(
    gridengine: GridEngine, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cancel` ends a driver and its jobs, and those of a driver that was killed.

    Only the queue of the run is asked: here are SLURM's commands, and no controller.
    """
    there = desk.folder / "bin"
    there.mkdir()
    for program in ("squeue", "scancel"):
        (there / program).write_text(
            "#!/bin/sh\necho Unable to contact slurm controller >&2; exit 1\n"
        )
        (there / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(there), prepend=os.pathsep)
    desk.cluster()
    desk.hold()
    run = desk.run()
    desk.computes()
    assert "missing" in desk.type("cancel", "tiny.zarr")
    desk.leaves_nothing()
    assert "What was finished is kept" in desk.ends(run, status=130)
    run = desk.run()
    desk.computes()
    for job in desk.workers(3):  # they would leave by themselves when their driver is gone
        for process in gridengine.processes(job):
            os.kill(process, signal.SIGSTOP)
    run.kill()
    run.wait()
    assert desk.workers(3)
    assert "missing" in desk.type("cancel", "tiny.zarr")
    desk.leaves_nothing()
    desk.let_go()
    desk.ends(desk.run())
    desk.is_complete()
