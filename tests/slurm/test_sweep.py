"""Whole sweeps on a real SLURM, through the command line, whatever happens to jobs and nodes.

Each ends with the bits of a sweep that nothing happened to, and leaves nothing behind.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from alphasweep.cluster.launch import driver_name, job_name
from alphasweep.pipeline.dataset import FAILED
from alphasweep.pipeline.provenance import code_version
from alphasweep.pipeline.spec import load
from alphasweep.pipeline.store import Store
from tests.conftest import bits, fill, keep_own_modules, parts_of
from tests.slurm.conftest import Slurm, until

if TYPE_CHECKING:
    from tests.gridengine.conftest import GridEngine

COMMAND = [sys.executable, "-P", "-m", "alphasweep.pipeline.cli"]
ROOT = Path(__file__).parents[2]
SMALL = {"name": "small", "up_to_N": 8, "memory": "400 MB", "walltime": "10 min"}
LARGE = {"name": "large", "up_to_N": 12, "memory": "500 MB", "walltime": "10 min"}

# 48 cells, each a part of its own, since t_max is long; most of them stop long before.
SWEEP = """
name = "tiny"
root_seed = 5
[grid]
alpha = [2.0, 4.0]
N = [8, 12]
seed = { from = 0, to = 11 }
start = [0, 1]
[descent]
a = 1.0
learning_rate = 0.03
t_max = 30.0
[record]
times = [0.3, 1.0]
[probe]
times = [0, 1]
modes = 2
"""

# What a worker imports before all else: a cell does what a test wants; and while cells are held, it
# waits for a ticket, so that a test can do things in the middle of a sweep, however long they take.
PATCH = """
import os, sys, time
if "distributed.cli.dask_worker" in sys.orig_argv:
    from alphasweep.pipeline import part
    real, here, begun = part._compute_cell, os.path.dirname(__file__), []
    def once():
        marker = os.path.join(here, "happened")
        return not os.path.exists(marker) and not open(marker, "w").close()
    def may_go():
        if not os.path.exists(os.path.join(here, "held")):
            return True
        for name in os.listdir(here):
            if name.startswith("ticket"):
                try:
                    os.unlink(os.path.join(here, name))
                    return True
                except FileNotFoundError:  # another worker has taken it
                    pass
        return False
    def patched(recipe, alpha, N, seed):
        begun.append(seed)
        {extra}
        while not may_go():
            time.sleep(0.05)
        return real(recipe, alpha, N, seed)
    part._compute_cell = patched
"""

# What every process of ours imports before all else, for a test that cannot wait for a minute.
SHORT_LEASE = """
from alphasweep.pipeline import lease
lease.LEASE_SECONDS = 10.0
"""


class Desk:
    """A folder with a sweep and a cluster file, and one who types commands in it."""

    def __init__(self, queue: Slurm | GridEngine, folder: Path) -> None:
        self.queue, self.folder = queue, folder
        self.store = Store(folder / "tiny.zarr")
        self.started: dict[subprocess.Popen[str], Path] = {}
        self._patch = folder / "patch"
        self._tickets = count()
        (folder / "tiny.toml").write_text(SWEEP)
        keep_own_modules(folder)

    def cluster(
        self,
        *,
        extra: str = "pass",
        classes: tuple[dict[str, Any], ...] = (SMALL | {"up_to_N": 12},),
        prologue: tuple[str, ...] = (),
        driver_walltime: str = "10 min",
        short_lease: bool = False,
        **keys: Any,
    ) -> None:
        """Write the cluster file, p.toml, for workers that do something `extra` in each cell."""
        self._patch.mkdir(exist_ok=True)
        patch = PATCH.format(extra=extra) + SHORT_LEASE * short_lease
        (self._patch / "sitecustomize.py").write_text(patch)
        lines = [f"export PYTHONPATH={self._patch}:$PYTHONPATH", *prologue]
        keys = {"kind": self.queue.kind, "jobs": 3, "prologue": lines} | keys
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        driver = {"memory": "500 MB", "walltime": driver_walltime}
        for title, table in (("[driver]", driver), *(("[[classes]]", size) for size in classes)):
            text += f"{title}\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items())
        (self.folder / "p.toml").write_text(text)

    def hold(self) -> None:
        """Hold all cells from now on, but for those that `computes` waits for."""
        (self._patch / "held").touch()

    def let_go(self) -> None:
        """Hold no cell any more."""
        (self._patch / "held").unlink()

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command, its errors among its output."""
        output = self.folder / f"output-{len(self.started)}"
        with output.open("w") as file:
            process = subprocess.Popen(
                [*COMMAND, *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(self._patch), str(ROOT)])},
            )
        self.started[process] = output
        return process

    def said(self, process: subprocess.Popen[str]) -> str:
        """Return what a command has said so far."""
        return self.started[process].read_text()

    def run(self, *options: str, sweep: str = "tiny.toml") -> subprocess.Popen[str]:
        """Start a driver in the foreground, with parts of one cell."""
        return self.start("run", sweep, "--on", "p.toml", "--part-seconds", "0.001", *options)

    def submit(self, sweep: str = "tiny.toml") -> str:
        """Submit a driver, with parts of one cell, and return its job."""
        said = self.type("submit", sweep, "--on", "p.toml", "--part-seconds", "0.001")
        return re.findall(r"as job (\d+)", said)[0]

    def type(self, *words: str, status: int = 0) -> str:
        """Run a command to its end, with the status that is expected, and return what it said."""
        return self.ends(self.start(*words), status=status)

    def ends(self, process: subprocess.Popen[str], *, status: int = 0) -> str:
        """Wait for the end of a command, with the status that is expected."""
        try:
            process.wait(timeout=600)
        finally:
            said = self.said(process)
        assert process.returncode == status, said
        return said

    def status(self) -> dict[str, Any]:
        """Return what `alphasweep status --json` prints."""
        found: dict[str, Any] = json.loads(self.type("status", str(self.store.path), "--json"))
        return found

    @property
    def names(self) -> tuple[str, str]:
        """How the names of the worker jobs begin, and that of the driver's."""
        run = self.store.control / "cluster"
        return job_name(run), driver_name(run)

    def computes(self, cells: int = 1) -> None:
        """Wait until a driver, this or the next, tells of so many cells more than it does now."""
        given = -math.inf

        def give() -> None:
            nonlocal given
            if (self._patch / "held").exists() and time.monotonic() > given + 15:
                given = time.monotonic()  # again: workers that are no more may have taken some
                for _ in range(cells):
                    (self._patch / f"ticket-{next(self._tickets)}").touch()

        def now() -> tuple[int, int]:
            said = self.store.progress()
            return said.get("pid", 0), said.get("cells_now", 0)

        def enough() -> bool:
            give()
            pid, done = now()
            return done >= cells + (before if pid == driver else 0)

        driver, before = now()
        until(enough, what=f"{cells} cells")

    def workers(self, number: int = 1) -> list[str]:
        """Wait until so many worker jobs run, and return them."""

        def running() -> list[str] | None:
            jobs = self.queue.jobs(name=self.names[0], state="RUNNING")
            return jobs if len(jobs) >= number else None

        found: list[str] = until(running, what=f"{number} running jobs")
        return found

    def leaves_nothing(self) -> None:
        """Claim that there is no job, no certificate and no process of the sweep."""
        until(
            lambda: not any(self.queue.jobs(name=name) for name in self.names),
            what="an empty queue",
        )
        until(lambda: not self._processes(), what="the end of all processes")
        assert not list(self.folder.rglob("certificates-*"))
        assert not list(self.store.control.glob(".preflight*"))

    def is_complete(self) -> None:
        """Claim that the store has the bits of a sweep that was computed without a queue."""
        other = Store(self.folder / "reference" / "tiny.zarr")
        if not other.exists():
            sweep = load(self.folder / "tiny.toml")
            fill(other, sweep, parts_of(sweep))
        assert bits(self.store.path) == bits(other.path)

    def _processes(self) -> list[Path]:
        """Return what runs in this folder or has it, or the run's name, in its command line."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (place / "cmdline").read_bytes().decode(errors="replace")
                if str(self.folder) in words or self.names[0] in words:
                    found.append(place)
        return found

    def clear(self) -> None:
        """End whatever a failed test left."""
        for process in self.started:
            process.kill()
            process.wait()
        for name in self.names:
            self.queue.cancel(name=name)


@pytest.fixture
def desk(slurm: Slurm, tmp_path: Path) -> Iterator[Desk]:
    """A desk of the test's own, where nothing may be left at the end."""
    one = Desk(slurm, tmp_path)
    try:
        yield one
        one.leaves_nothing()
    finally:
        one.clear()


@pytest.fixture
def other_desk(slurm: Slurm, tmp_path: Path) -> Iterator[Desk]:
    """Another desk of the same user."""
    folder = tmp_path / "other"
    folder.mkdir()
    one = Desk(slurm, folder)
    try:
        yield one
        one.leaves_nothing()
    finally:
        one.clear()


def state_of(slurm: Slurm, job: str) -> str:
    """Return the state of a job in SLURM's word."""
    return slurm.shows(job)["JobState"]


def is_over(slurm: Slurm, job: str) -> None:
    """Wait until a submitted driver is through."""
    until(
        lambda: state_of(slurm, job) not in ("PENDING", "RUNNING", "COMPLETING"),
        seconds=600,
        what=f"the end of job {job}",
    )
    assert state_of(slurm, job) == "COMPLETED"


@contextmanager
def urgent(slurm: Slurm) -> Iterator[None]:
    """Have all nodes taken by a job that nothing of ours comes before."""
    words = ("-p", "urgent", "-N", "4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1000")
    job = slurm.do("sbatch", "--parsable", *words).strip()
    try:
        until(lambda: state_of(slurm, job) == "RUNNING", what="an urgent job")
        yield
    finally:
        slurm.do("scancel", job)


# --- the way through --------------------------------------------------------------------------


def test_quick_is_the_same_through_a_queue(slurm: Slurm, desk: Desk, other_desk: Desk) -> None:
    """Two sweeps at once, one run and one submitted, both give the bits of a local run.

    Without disturbing each other, and with one class of jobs or two.
    """
    local = desk.start("run", "quick", "--workers", "1", "--store", "local.zarr")
    desk.ends(local)
    desk.store, other_desk.store = (
        Store(desk.folder / "a.zarr"),
        Store(other_desk.folder / "b.zarr"),
    )
    for one in (desk, other_desk):
        one.cluster(classes=(SMALL | {"up_to_N": 32}, LARGE | {"up_to_N": 1024}))
    there = ("quick", "--on", "p.toml", "--part-seconds", "1")
    run = desk.start("run", *there, "--store", "a.zarr")
    said = other_desk.type("submit", *there, "--store", "b.zarr")
    job = re.findall(r"as job (\d+)", said)[0]
    assert re.search(
        r"cells in .* core-hours, \d+% of them in the kernels: \S+ \(estimated: \S+ to \S+\)",
        desk.ends(run),
    )
    is_over(slurm, job)
    wanted = bits(desk.folder / "local.zarr")
    assert bits(desk.store.path) == wanted
    assert bits(other_desk.store.path) == wanted


def test_without_tls(desk: Desk) -> None:
    """Who switches encryption off is told what that means, once; the sweep is the same."""
    desk.cluster(tls=False)
    said = desk.ends(desk.run())
    assert said.count("can read the traffic, and run programs as you") == 1
    assert "warnings.warn" not in said
    desk.is_complete()


# --- workers, nodes and the queue -------------------------------------------------------------


def test_lost_workers(slurm: Slurm, desk: Desk) -> None:
    """A cancelled job, a killed worker, a controller that is away, and a dead node: all is done."""
    desk.cluster()
    desk.hold()
    run = desk.run()
    desk.computes()
    slurm.do("scancel", desk.workers(3)[0])
    desk.computes()
    job = desk.workers(3)[0]
    worker = until(lambda: slurm.processes(job), what=f"the processes of job {job}")[-1]
    os.kill(worker, signal.SIGKILL)
    desk.computes()
    slurm.admin("stop-controller")
    try:
        away = time.monotonic()
        desk.computes(5)
        time.sleep(max(0.0, 10 - (time.monotonic() - away)))
    finally:
        slurm.admin("start-controller")
    node = slurm.shows(desk.workers(2)[0])["NodeList"]
    slurm.admin("kill-node", node)
    try:
        desk.let_go()
        said = desk.ends(run)
    finally:
        slurm.admin("revive-node", node)
    assert "failed" not in said.replace("0 failed", "")
    desk.is_complete()


def test_preempted_workers_that_wait(slurm: Slurm, desk: Desk) -> None:
    """Jobs that are preempted are submitted anew, wait, as status tells, and then go on."""
    desk.cluster(partition="scavenge")
    desk.hold()
    run = desk.run()
    desk.computes()

    def waiting() -> bool:
        small = desk.status()["cluster"]["small"]
        return small["pending"] == sum(small["reasons"].values()) == 3 and small["workers"] == 0

    with urgent(slurm):
        until(waiting, what="three jobs that wait")
    desk.let_go()
    desk.ends(run)
    desk.is_complete()


def test_many_generations_of_workers(desk: Desk, other_desk: Desk) -> None:
    """Walltimes far shorter than the sweep: workers that end in time, and workers that are ended.

    One sweep has workers whose walltime leaves no time after eight parts, and declines those that
    would not fit; another has real walltimes of a minute and a part that hangs once, which nobody
    foresaw, and a job that came to its walltime is no early death.
    """
    desk.cluster(extra="len(begun) == 8 and os.environ.update(ALPHASWEEP_WALLTIME_END='1')")
    short = SMALL | {"up_to_N": 12, "walltime": "1 min"}
    other_desk.cluster(
        extra="if (alpha, N, seed) == (2.0, 8, 3) and once(): time.sleep(1000)",
        partition="short",
        classes=(short,),
        jobs=2,
        early_deaths=1,
    )
    last, first = other_desk.run(), desk.run()
    desk.ends(first)
    logs = list((desk.store.control / "cluster" / "logs").glob("*.err"))
    assert len(logs) >= 48 / 8
    other_desk.ends(last)
    assert any(
        "DUE TO TIME LIMIT" in log.read_text()
        for log in (other_desk.store.control / "cluster" / "logs").glob("*.err")
    )
    for one in (desk, other_desk):
        one.is_complete()


def test_broken_prologue(slurm: Slurm, desk: Desk) -> None:
    """Jobs that cannot even start a worker are few, and what their log says is shown."""
    desk.cluster(prologue=("echo no such module >&2; exit 3",), early_deaths=2, jobs=2)
    said = desk.ends(desk.run(), status=1)
    assert "no such module" in said
    assert "prologue" in said
    assert "Traceback" not in said
    assert len(list((desk.store.control / "cluster" / "logs").glob("*.err"))) <= 4


def test_part_that_needs_too_much_memory(slurm: Slurm, desk: Desk) -> None:
    """It is named, tried once more with more memory, then failed; the rest is done."""
    greedy = "if (alpha, N, seed) == (2.0, 8, 3): eaten = bytearray(700 << 20); time.sleep(600)"
    desk.cluster(extra=greedy, classes=(SMALL | {"up_to_N": 12}, LARGE | {"up_to_N": 24}))
    said = desk.ends(desk.run(), status=1)
    assert "1 cells failed" in said
    shown = desk.type("status", "tiny.zarr")
    assert "47 of 48 cells done" in shown
    assert "alpha = 2, N = 8, seed 3: WorkerLostError: it killed two workers" in shown
    (failure,) = desk.store.failures()
    assert failure["attempts"] == 2
    last = re.findall(r"of the last, (\d+)", failure["error"])[0]
    assert slurm.shows(last)["MinMemoryNode"] == "477M"  # of LARGE
    desk.cluster()
    desk.type("run", "tiny.zarr", "--retry-failed")
    desk.is_complete()


# --- the driver -------------------------------------------------------------------------------


def test_killed_driver(slurm: Slurm, desk: Desk) -> None:
    """Workers whose driver was killed leave, also those that come later; the next run goes on."""
    desk.cluster(partition="wide", jobs=5)
    desk.hold()
    run = desk.run()
    desk.computes()
    waiting = slurm.do(
        "sbatch", "--parsable", "-J", desk.names[0], "--hold", "-o", "/dev/null", "--wrap", "true"
    ).strip()
    run.kill()
    run.wait()
    until(
        lambda: slurm.jobs(name=desk.names[0]) == [waiting],
        seconds=240,
        what="the end of workers without a driver",
    )
    slurm.do("scancel", waiting)
    assert desk.status()["missing"]
    desk.let_go()
    desk.ends(desk.run())
    desk.is_complete()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt(desk: Desk, number: int) -> None:
    """Ctrl-C, and the signal of a shutdown, end jobs and driver at once, with status 130."""
    desk.cluster()
    desk.hold()
    run = desk.run()
    desk.computes()
    run.send_signal(number)
    said = desk.ends(run, status=130)
    assert "What was finished is kept" in said
    assert "Traceback" not in said
    desk.leaves_nothing()
    assert desk.status()["done"] > 0


def test_submitted_driver(slurm: Slurm, desk: Desk) -> None:
    """A driver goes back into the queue before its real walltime, or when SLURM requeues it."""
    desk.cluster(driver_walltime="3 min")
    desk.hold()
    job = desk.submit()

    def restarts() -> int:
        return int(slurm.shows(job)["Restarts"])

    def requeued() -> bool:
        if restarts() < 2:
            with suppress(AssertionError):  # it waits, since it was told of its walltime once more
                slurm.do("scontrol", "requeue", job)
        return restarts() >= 2

    desk.computes()
    until(lambda: restarts() >= 1, seconds=400, what="a driver that was told of its walltime")
    assert "the next one goes on" in (desk.store.control / "driver.log").read_text()
    desk.computes()
    until(requeued, what="a driver that SLURM has requeued")
    desk.let_go()
    is_over(slurm, job)
    desk.is_complete()


def test_driver_that_may_not_be_requeued(slurm: Slurm, desk: Desk) -> None:
    """Another job goes on after it; `status` and `cancel` know that one."""
    desk.cluster(extra_directives=("--no-requeue",))
    desk.hold()
    job = desk.submit()
    desk.computes()
    slurm.do("scancel", "--batch", "--signal=USR1", job)
    next_ = until(
        lambda: re.findall(r"job (\d+) goes on", (desk.store.control / "driver.log").read_text()),
        what="a job that goes on",
    )
    assert slurm.jobs(name=desk.names[1])[-1:] == next_ != [job]
    desk.computes()
    assert desk.status()["driver_job"]["id"] == next_[0]
    desk.type("cancel", "tiny.zarr")
    until(lambda: state_of(slurm, next_[0]) == "CANCELLED", what="the end of its job")
    desk.leaves_nothing()
    desk.let_go()
    desk.ends(desk.run())
    desk.is_complete()


def test_killed_submitted_driver(slurm: Slurm, desk: Desk) -> None:
    """A driver that is killed in its job ends the job; submitted again, it goes on."""
    desk.cluster()
    desk.hold()
    job = desk.submit()
    desk.computes()
    (driver,) = {int(pid) for pid in re.findall(r"process (\d+)", desk.status()["driver"])}
    os.kill(driver, signal.SIGKILL)
    until(lambda: state_of(slurm, job) == "FAILED", what="the end of its job")
    desk.let_go()
    is_over(slurm, desk.submit())
    desk.is_complete()


@pytest.mark.parametrize("how", ["in the foreground", "submitted"])
def test_suspended_driver(slurm: Slurm, desk: Desk, how: str) -> None:
    """A driver that was stopped for longer than a lease, taken over and resumed, ends by itself.

    It submits no job, and leaves the jobs, certificates, logs and records of the other alone, who
    finishes.
    """
    desk.cluster(short_lease=True)
    desk.hold()
    first = desk.run() if how == "in the foreground" else None
    job = "" if first else desk.submit()
    desk.computes()
    said = desk.store.progress()
    desk.workers(3)
    os.kill(said["pid"], signal.SIGSTOP)
    until(lambda: desk.status()["driver"] is None, what="the end of a lease")
    second = desk.run("--wait") if first else None
    other_job = "" if second else desk.submit()
    desk.computes()
    token = desk.store.progress()["token"]
    assert token != said["token"]
    own, everyone = f"{desk.names[0]}-{token}", desk.names[0]
    until(
        lambda: len(slurm.jobs(name=own, state="RUNNING")) == len(slurm.jobs(name=everyone)) == 3,
        what="the jobs of the second driver, and no other",
    )
    jobs, belongings = slurm.jobs(name=everyone), _belongings(desk, token)
    os.kill(said["pid"], signal.SIGCONT)
    seen: set[str] = set()

    def is_gone() -> bool:
        seen.update(slurm.jobs(name=everyone))
        if first:
            return first.poll() is not None
        return state_of(slurm, job) not in ("RUNNING", "COMPLETING")

    until(is_gone, what="the end of the driver that was resumed")
    assert seen == set(jobs) == set(slurm.jobs(name=own, state="RUNNING"))
    assert _belongings(desk, token) == belongings
    assert desk.store.progress()["token"] == token
    log = desk.store.control / "driver.log"  # of both, if they were submitted
    text = desk.ends(first, status=1) if first else log.read_text()
    assert text.count("it was taken over by process") == 1
    assert "Traceback" not in text
    desk.let_go()
    if second:
        desk.ends(second)
    else:
        assert state_of(slurm, job) == "FAILED"
        is_over(slurm, other_job)
    desk.is_complete()
    ends = [event["token"] for event in desk.store.history() if event["event"] == "end"]
    assert ends == [token]


def _belongings(desk: Desk, token: str) -> dict[str, bytes]:
    """Read what is a driver's own, but for what it is writing: certificates, and its jobs' logs."""
    files = [file for file in desk.store.control.rglob(f"*{token}*/*") if file.is_file()]
    logs = (desk.store.control / "cluster" / "logs").glob(f"*{token}*")
    assert files
    return {str(file): file.read_bytes() for file in files} | {str(log): b"" for log in logs}


def test_cancel(slurm: Slurm, desk: Desk) -> None:
    """Drivers are cancelled, in the foreground, as jobs that run, and as jobs that wait."""
    desk.cluster()
    desk.hold()

    def cancelled() -> None:
        said = desk.type("cancel", "tiny.zarr")
        assert "missing" in said
        desk.leaves_nothing()
        assert desk.status()["driver"] is None

    run = desk.run()
    desk.computes()
    cancelled()
    assert "What was finished is kept" in desk.ends(run, status=130)
    desk.submit()
    desk.computes()
    cancelled()
    with urgent(slurm):
        job = desk.submit()
        until(lambda: state_of(slurm, job) == "PENDING", what="a driver that waits")
        cancelled()
    desk.let_go()
    desk.ends(desk.run())
    desk.is_complete()


def test_watched_from_elsewhere(desk: Desk) -> None:
    """While a sweep runs, its status tells jobs, rate, core-hours, efficiency and the end."""
    desk.cluster()
    desk.hold()
    run = desk.run()
    desk.computes(4)
    watch = desk.start("status", "tiny.zarr", "--watch")
    for words in ("3 workers; jobs: 3 running, 0 pending", "cells a minute", "core-hours used"):
        until(lambda words=words: words in desk.said(watch), what=words)
    desk.let_go()
    desk.ends(run)
    desk.ends(watch)
    desk.is_complete()


def test_workers_of_other_kernels_are_refused(desk: Desk) -> None:
    """The first worker is examined, and right; those that come later find other kernels first.

    The run ends and says so, with not one cell of theirs.
    """
    other, first, more = (desk.folder / name for name in ("other", "first", "more"))
    shutil.copytree(ROOT / ".import" / "alphasweep", other / "alphasweep")
    with (other / "alphasweep" / "kernels" / "loss.py").open("a") as file:
        file.write("\n_real = energy\n\ndef energy(*args):\n    return 2 * _real(*args)\n")
    wait = f"while [ ! -e {more} ]; do sleep 0.1; done"
    desk.cluster(
        prologue=(f"mkdir {first} || {{ {wait}; export PYTHONPATH={other}:$PYTHONPATH; }}",)
    )
    desk.hold()
    run = desk.run()
    desk.computes()
    more.touch()
    said = desk.ends(run, status=1)
    assert f"workers must be what the driver is, alphasweep {code_version()}" in said
    assert str(other / "alphasweep" / "kernels") in said
    assert "Traceback" not in said
    assert not (desk.store.status() == FAILED).any()
    desk.let_go()
    desk.cluster()
    desk.ends(desk.run())
    desk.is_complete()
    assert desk.store.versions() == {code_version(): 48}
