"""Which jobs are given up, by what a queue tells and by who is connected; without a queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Status, get_worker

from alphasweep.cluster import fleet as fleet_module
from alphasweep.cluster.fleet import Fleet, QueueFleet
from alphasweep.cluster.launch import Cluster
from alphasweep.cluster.local import local
from alphasweep.cluster.profile import SizeClass
from alphasweep.cluster.queue import Answer, ClusterError, Ended, Listed
from tests.test_pulse import until

SIZE = SizeClass(name="one", up_to_N=100, memory="1 GB", walltime="1h")  # type: ignore[arg-type]
RUNNING = Listed("name", "RUNNING", "None")
PENDING = Listed("name", "PENDING", "Priority")
FAILED = Ended("FAILED", "3:0", "n1")


class Site:
    """A fleet whose Dask is played: jobs are accepted at once, and workers come and go by call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, logs: Path, jobs: int = 2) -> None:
        self.now = 1000.0
        monkeypatch.setattr(fleet_module, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.names: dict[str, str] = {}
        self.submitting: set[str] = set()
        self.worker_spec: dict[str, object] = {}
        self.scheduler = SimpleNamespace(
            workers={},
            extensions={"pulse": SimpleNamespace(silent=(silent := {}))},
            loop=self,
            add_plugin=lambda plugin: setattr(self, "ledger", plugin),
        )
        self.silent: dict[str, float] = silent
        client: Any = SimpleNamespace(cluster=self)
        self.ledger: Any = None
        self.fleet = QueueFleet(
            SIZE,
            jobs,
            client,
            early_deaths=3,
            logs=logs,
            submitting=self.submitting,
            submitted=self.names,
            refused={},
        )
        self.accepted = list(self.names)

    def add_callback(self, function: Any, *arguments: Any) -> None:
        """Do at once what the event loop would do."""
        function(*arguments)

    def scale(self, number: int) -> None:
        """Accept jobs."""
        while len(self.worker_spec) < number:
            job = str(len(self.worker_spec) + 100 * int(self.now))
            self.worker_spec[f"worker of {job}"] = {}
            self.names[job] = f"worker of {job}"

    def joins(self, job: str) -> None:
        """Connect the worker of a job."""
        worker = SimpleNamespace(name=self.names[job], processing={}, address=job)
        self.scheduler.workers[job] = worker
        self.ledger.add_worker(self.scheduler, job)

    def leaves(self, job: str, *tasks: str) -> None:
        """Cut the connection of a worker that has tasks in hand."""
        del self.scheduler.workers[job]
        news = {"action": "remove-worker", "worker": job, "processing-tasks": tasks}
        self.ledger.log_event("all", news)

    def answer(
        self,
        listed: Iterable[str] = (),
        *,
        as_: Listed = RUNNING,
        ends: Mapping[str, Ended] | None = None,
    ) -> list[str]:
        """Answer as the queue would 3 s after the last time, and return the jobs that are kept."""
        self.now += 3
        told = dict.fromkeys(listed, as_)
        asked = self.fleet.doubtful(told)
        answer = Answer(self.now, told, {job: (ends or {}).get(job, Ended()) for job in asked})
        self.fleet.supervise(answer)
        return [job for job in self.accepted if job in self.names]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    """Return a site with two jobs that the queue has just accepted."""
    return Site(monkeypatch, tmp_path)


def test_an_answer_of_earlier(site: Site) -> None:
    """Jobs that a late answer does not list yet are waited for; at last they are replaced."""
    for _ in range(30):
        assert site.answer() == site.accepted
    assert site.fleet.state()["reasons"] == {"unknown": 2}
    site.now += 60
    site.answer()
    assert site.answer() == []
    assert len(site.names) == 2


def test_absences(site: Site) -> None:
    """A job that was listed is given up when two answers in a row do not list it."""
    first, second = both = site.accepted
    assert site.answer(both, as_=PENDING) == both
    assert site.answer([first]) == both
    assert site.answer(both) == both
    assert site.answer([first]) == both
    assert site.answer([first]) == [first]
    assert site.fleet.deaths == []  # the queue may tell later how it ended
    site.now += 60
    site.answer([first])
    assert [(death.job, death.young) for death in site.fleet.deaths] == [(second, True)]


def test_an_end_that_the_queue_knows(site: Site) -> None:
    """A job whose end the queue tells is given up at once, listed before or not."""
    first, second = site.accepted
    assert site.answer([first], ends={second: FAILED}) == [first]
    (death,) = site.fleet.deaths
    assert (death.job, death.state, death.exit_code, death.young) == (second, "FAILED", "3:0", True)


def test_jobs_that_are_not_listed_but_known(site: Site) -> None:
    """A job of which the queue says that it waits or runs is kept, whatever its list says."""
    alive = dict.fromkeys(site.accepted, Ended("PENDING"))
    assert site.answer(site.accepted) == site.accepted
    for _ in range(5):
        assert site.answer(ends=alive) == site.accepted


def test_connected_workers(site: Site) -> None:
    """A job whose worker is connected is kept, whatever the queue says."""
    first, second = site.accepted
    site.joins(first)
    site.joins(second)
    for _ in range(50):
        assert site.answer([second], as_=PENDING, ends={first: FAILED}) == site.accepted
    assert site.fleet.state()["running"] == 2


def test_silent_workers(site: Site) -> None:
    """A worker that is connected and says nothing does not contradict the queue for long."""
    first, second = site.accepted
    site.joins(first)
    failed = {first: Ended("NODE_FAIL", "0:0", "n1")}
    site.silent[first] = 20.0
    assert site.answer([second], ends=failed) == site.accepted
    site.silent[first] = 40.0
    assert site.answer([first, second]) == site.accepted
    assert site.answer([second], ends=failed) == [second]
    assert [death.state for death in site.fleet.deaths] == ["NODE_FAIL"]


def test_workers_that_leave(site: Site) -> None:
    """A worker that left and did not come back is given up, though its job is listed."""
    first, second = site.accepted
    site.joins(first)
    site.leaves(first)
    for _ in range(4):
        assert site.answer(site.accepted) == site.accepted
    runs = {first: Ended("RUNNING")}
    site.answer(site.accepted, ends=runs)
    assert site.answer(site.accepted, ends=runs) == [second]
    assert [(death.state, death.young) for death in site.fleet.deaths] == [("RUNNING", False)]


def test_deaths_that_no_queue_tells_of(site: Site) -> None:
    """Where no queue can be asked, a worker that left is judged by what it did, and not later."""
    first, second = site.accepted
    site.fleet.supervise(None)
    site.joins(first)
    site.joins(second)
    site.ledger.transition("a", "processing", "memory", worker=first)
    site.leaves(first, "part-b")
    site.leaves(second)
    site.now += 10
    site.fleet.supervise(None)
    assert site.fleet.deaths == []  # they may come back
    site.now += 6
    site.fleet.supervise(None)
    assert [(d.job, d.state, d.tasks, d.finished, d.young) for d in site.fleet.deaths] == [
        (first, "", ("part-b",), 1, False),
        (second, "", (), 0, True),
    ]
    site.now += 60
    site.fleet.supervise(None)
    assert len(site.names) == 2  # others


def test_jobs_that_die_young(site: Site) -> None:
    """Their number is limited, also where the queue's list is late."""
    site.answer(ends=dict.fromkeys(site.names, FAILED))
    site.now += 60
    site.answer()
    with pytest.raises(ClusterError, match=r"3 died before.*FAILED, exit code 3:0, node n1"):
        site.answer(ends=dict.fromkeys(site.names, FAILED))


def test_jobs_that_never_start(site: Site) -> None:
    """A job that failed to start waits for ever: it is given up at once, and counts."""
    second = site.accepted[1]
    wrong = Ended("FAILED", "can't chdir", "")
    site.answer([second], as_=Listed("name", "ERROR", "can't chdir"))
    assert second not in site.names
    site.answer(ends={second: wrong})
    assert [(d.job, d.exit_code, d.young) for d in site.fleet.deaths] == [
        (second, "can't chdir", True)
    ]


def test_ends_that_are_told_late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """While as many jobs may have died young as are allowed, no more are submitted."""
    site = Site(monkeypatch, tmp_path, jobs=3)
    site.answer(site.accepted)
    assert site.answer() == site.accepted
    for _ in range(5):
        site.answer()
        assert not site.names
    assert site.fleet.deaths == []
    site.answer(ends=dict.fromkeys(site.accepted, Ended("CANCELLED")))
    assert len(site.names) == 3
    assert [death.young for death in site.fleet.deaths] == [False] * 3


@pytest.mark.parametrize("name", ["a-12-one-2-7.err", "a-12.o7", "worker-7.log"])
def test_the_log_of_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """What is shown is of that job alone, whatever numbers are in the names of others."""
    for other in ("a-7-one-7-12.err", "a-12.o77", "worker-17.log", "a-12.o2", "a-7b-2.out"):
        (tmp_path / other).write_text("another job")
    (tmp_path / name).write_text("no such module")
    log = Site(monkeypatch, tmp_path).fleet._log("7")
    assert log.endswith(":\nno such module")


def wait_for(file: Path) -> str:
    """Task: say where it ran, once the file is there."""
    while not file.exists():
        time.sleep(0.05)
    return str(get_worker().address)


def test_what_a_retired_worker_has_not_begun_goes_elsewhere(tmp_path: Path) -> None:
    """It finishes what it has begun; what was sent to it before does not wait there for ever."""
    with local(1) as client:
        fleet = Fleet(SIZE, 1, client)
        workers = fleet.scheduler.workers
        until(lambda: workers, "no worker")
        (address,) = workers
        first, second = client.map(wait_for, [tmp_path / "begun", tmp_path], pure=False)
        until(lambda: len(workers[address].processing) == 2, "not sent")
        fleet.retire(address)
        until(lambda: workers[address].status is Status.closing_gracefully, "not retired")
        (tmp_path / "begun").touch()
        assert first.result(timeout=60) == address
        time.sleep(1)
        assert address in workers  # it alone has the result, which is wanted
        del first
        assert second.result(timeout=60) != address


class SlowQueue:
    """A queue that answers when it may."""

    def __init__(self) -> None:
        self.listed: dict[str, Listed] = {}
        self.cancelled: list[str] = []
        self.asked, self.may_answer = threading.Event(), threading.Event()

    def jobs(self, prefix: str) -> dict[str, Listed]:
        """List them, after a while."""
        self.asked.set()
        assert self.may_answer.wait(60)
        return self.listed

    def ended(self, job: str) -> Ended:
        """Know nothing."""
        return Ended()

    def cancel(self, jobs: Iterable[str]) -> None:
        """Note it."""
        self.cancelled += jobs


def looked(cluster: Cluster, number: int = 1) -> None:
    """Call `check` until the queue has been asked, and has answered, so many times."""
    for _ in range(number):
        cluster._next = 0.0
        cluster.check()
        end = time.monotonic() + 60
        while cluster._asking:
            assert time.monotonic() < end
            cluster.check()


def test_a_queue_that_does_not_answer(site: Site) -> None:
    """The driver goes on meanwhile, nothing is given up, and the state tells of it."""
    queue = SlowQueue()
    cluster = Cluster({"one": site.fleet}, queue=queue, prefix="a")
    for _ in range(100):
        cluster.check()
    assert queue.asked.wait(60)
    cluster._answered -= 300
    assert cluster.state()["one"]["answer_age"] > 300
    assert list(site.names) == site.accepted
    queue.listed = dict.fromkeys(site.accepted, RUNNING)
    queue.may_answer.set()
    looked(cluster)
    assert cluster.state()["one"]["answer_age"] < 300
    assert cluster.state()["one"]["running"] == 2


def test_jobs_that_nobody_knows(site: Site) -> None:
    """A job that the queue accepted though its command failed is cancelled, and no other."""
    queue = SlowQueue()
    queue.may_answer.set()
    cluster = Cluster({"one": site.fleet}, queue=queue, prefix="a")
    queue.listed = dict.fromkeys([*site.accepted, "7"], RUNNING)
    site.submitting.add("worker of 7")
    looked(cluster, 3)
    site.submitting.clear()
    looked(cluster)
    assert queue.cancelled == []
    looked(cluster)
    assert queue.cancelled == ["7"]
