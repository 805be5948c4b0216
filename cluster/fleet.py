"""The workers of one size class, and what is done when they or their jobs are gone.

dask-jobqueue submits and cancels. What it leaves out is here: it replaces no job that was refused,
that died before its worker joined, or that came to its walltime.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from distributed import Client, Scheduler, SchedulerPlugin, Status, Worker

from alphasweep.cluster.local import check
from alphasweep.cluster.profile import SizeClass
from alphasweep.cluster.pulse import silences
from alphasweep.cluster.queue import OVER, Answer, ClusterError, Ended, Listed

_UNLISTED_SECONDS = 120.0  # that a queue may take to list a job which it has accepted
_LOST_SECONDS = 15.0  # after that, a worker that left although its job goes on does not come back
_HEARD_SECONDS = 30.0  # after that, a worker that says nothing does not contradict the queue
_YOUNG_SECONDS = 60.0
_JOBS_AT_ONCE = 50  # submitted between two looks at the queue, which serves others too
_LONGEST_PAUSE = 60.0  # between two attempts to submit, in seconds
_LOG_LINES = 20
_ALIVE = ("PENDING", "RUNNING")
_ABSENCES = 2  # answers in a row that do not list a job
# A job that still runs although its worker is gone: its node is cut off, or dead.
_NOT_ITS_FAULT = ("CANCELLED", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "RUNNING")

# What is cleared away, and what never starts.
_GONE = ("COMPLETING", "ERROR")
_TOLD_SECONDS = 60.0  # after that, a queue that has not said how a job ended will not say it


@dataclass(frozen=True)
class Death:
    """A job that ended although the run still wanted it.

    Attributes
    ----------
    size_class, job : str
        Its class and id.
    worker : str
        Address of its worker; "" if that never joined.
    state, exit_code, node : str
        As the queue tells; "" if it does not.
    tasks : tuple of str
        Keys of the tasks that the worker had in hand. They run again elsewhere.
    finished : int
        Tasks that the worker had finished.
    young : bool
        Whether it counts against the profile's `early_deaths`.
    """

    size_class: str
    job: str
    worker: str
    state: str
    exit_code: str
    node: str
    tasks: tuple[str, ...]
    finished: int
    young: bool


class Fleet:
    """Workers of one class on this machine; `local` replaces them by itself."""

    def __init__(self, size: SizeClass, jobs: int, client: Client) -> None:
        self.size, self.jobs, self.client = size, jobs, client
        self.cluster = cast(Any, client.cluster)
        self.scheduler: Scheduler = self.cluster.scheduler
        self.deaths: list[Death] = []
        self._pending: Counter[str] = Counter()
        self._running = jobs
        self._core_seconds = 0.0
        self._looked = time.monotonic()

    @property
    def submitting(self) -> bool:
        """Whether a job may be in the queue whose id is not known yet."""
        return False

    def knows(self, job: str) -> bool:
        """Whether a job is, or was, of this fleet."""
        return False

    def doubtful(self, listed: Mapping[str, Listed]) -> list[str]:
        """Return the jobs about which the queue is to be asked one by one; from any thread.

        Parameters
        ----------
        listed : mapping
            What it listed just now.
        """
        return []

    def supervise(self, answer: Answer | None) -> None:
        """Replace what is gone.

        Parameters
        ----------
        answer : Answer or None
            A new one of the queue; None if there is no way to ask it.
        """
        check(self.client)
        self._count(running=len(self.scheduler.workers), pending=Counter())

    def retire(self, worker: str) -> None:
        """Let a worker, given by address, finish what it has, and end it."""
        self.scheduler.loop.add_callback(self._retire, worker)

    def state(self) -> dict[str, Any]:
        """See `launch.Cluster.state`."""
        since = time.monotonic() - self._looked
        return {
            "wanted": self.jobs,
            "pending": self._pending.total(),
            "reasons": dict(self._pending),
            "running": self._running,
            "workers": len(self.scheduler.workers),
            "died": len(self.deaths),
            "core_seconds": self._core_seconds + self._running * self.size.cores * since,
        }

    def _count(self, *, running: int, pending: Counter[str]) -> None:
        now = time.monotonic()
        self._core_seconds += self._running * self.size.cores * (now - self._looked)
        self._running, self._pending, self._looked = running, pending, now

    async def _retire(self, worker: str) -> None:
        # To close a worker is to interrupt its task: it is taken out of service first. It finishes
        # what it has begun, and begins nothing more: what waits there goes elsewhere as it closes.
        # Dask puts it back into service, or does not close it, while it alone holds a result that
        # somebody wants.
        while there := self.scheduler.workers.get(worker):
            told = there.status is Status.closing_gracefully
            ended = told and await self._has_ended(worker)
            if ended or not told:
                await self.scheduler.retire_workers(
                    workers=[worker], close_workers=ended, remove=ended
                )
            await asyncio.sleep(0.1)

    async def _has_ended(self, worker: str) -> bool:
        said = await self.client.run(_never_begun, workers=[worker], on_error="return")
        there, held = self.scheduler.workers.get(worker), said.get(worker)
        # What it finished may still be on its way here, where it is in hand until then.
        return (
            there is not None
            and isinstance(held, set)
            and all(str(task.key) in held for task in there.processing)
        )


def _never_begun(dask_worker: Worker) -> set[str] | None:
    """Say, on a worker, which tasks it holds and will not begin; None while it may, or computes."""
    told = dask_worker.status is Status.closing_gracefully
    if not told or dask_worker.state.all_running_tasks:
        return None
    tasks = dask_worker.state.tasks.values()
    return {str(task.key) for task in tasks if task.state == "ready"}


class QueueFleet(Fleet):
    """Workers of one class, each a job of a queue.

    Parameters
    ----------
    early_deaths : int
        See `launch.Cluster.check`.
    logs : Path
        Where jobs write; the names of their files contain their id.
    submitting : set
        Names of workers whose job is being submitted.
    submitted, refused : dict
        Names of workers by the id of their job, and the queue's words by the name of a worker
        whose job it refused. The event loop adds to all three, see `launch`.
    """

    def __init__(
        self,
        size: SizeClass,
        jobs: int,
        client: Client,
        *,
        early_deaths: int,
        logs: Path,
        submitting: set[str],
        submitted: dict[str, str],
        refused: dict[str, str],
    ) -> None:
        super().__init__(size, jobs, client)
        self._early_deaths, self._logs = early_deaths, logs
        self._submitting, self._submitted, self._refused = submitting, submitted, refused
        self._former: set[str] = set()
        self._running = 0
        self._retiring: set[str] = set()
        self._records: dict[str, _Record] = {}
        self._dying: dict[str, _Life] = {}
        self._young = self._refusals = 0
        self._not_before = 0.0
        self._ledger = _Ledger()
        self.scheduler.loop.add_callback(self.scheduler.add_plugin, self._ledger)
        self._submit(replacing=[])

    @property
    def submitting(self) -> bool:
        """See `Fleet.submitting`."""
        return bool(self._submitting)

    def knows(self, job: str) -> bool:
        """See `Fleet.knows`."""
        return job in self._submitted or job in self._former

    def doubtful(self, listed: Mapping[str, Listed]) -> list[str]:
        """See `Fleet.doubtful`: jobs that have no worker and are not listed as they should be."""
        doubtful = [
            job
            for job, name in self._submitted.copy().items()
            if not self._lives(name)
            and (job not in listed or listed[job].state not in _ALIVE or self._ledger.lost(name))
        ]
        return [*self._dying.copy(), *doubtful]

    def supervise(self, answer: Answer | None) -> None:
        """Replace what is gone; see `Fleet.supervise`."""
        jobs = self._submitted.copy()
        news = jobs.keys() - self._records.keys()
        self._records |= {job: _Record(time.monotonic()) for job in news}
        gone = {job: name for job, name in jobs.items() if self._is_gone(job, name, answer)}
        pending = Counter(
            self._reason(job, answer)
            for job, name in jobs.items()
            if job not in gone and not self._lives(name)
        )
        pending.pop("", None)  # of those that have begun
        running = len(jobs) - len(gone) - pending.total()
        self._count(running=running, pending=pending)
        for job, name in gone.items():
            self._give_up(job, name)
        blamed = [self._judge(job, answer) for job in list(self._dying)]
        refused = {name: self._refused.pop(name) for name in list(self._refused)}
        if refused:
            self._refusals += 1
        elif news:
            self._refusals = 0
        self._stop_if_hopeless(list(refused.values()))
        if refused or any(blamed):
            troubles = max(self._refusals, self._young)
            self._not_before = time.monotonic() + min(2.0 ** (troubles - 1), _LONGEST_PAUSE)
        self._submit(replacing=[*gone.values(), *refused])

    def retire(self, worker: str) -> None:
        """Let a worker, given by address, finish what it has, and end its job."""
        self._retiring.add(str(self.scheduler.workers[worker].name))
        super().retire(worker)

    def _is_gone(self, job: str, name: str, answer: Answer | None) -> bool:
        """Judge by what is sure: a connection before the queue, which may tell of minutes ago."""
        record = self._records[job]
        if self._lives(name):
            record.absences = 0
            return False
        if self._ledger.lost(name, seconds=_LOST_SECONDS):
            return True
        if answer is None:
            return False
        listed, end = answer.jobs.get(job), answer.ends.get(job, Ended())
        if end.state in OVER or (listed and listed.state in _GONE):
            return True
        if listed or end.state:
            record.seen, record.absences = True, 0
            return False
        # Not listed, and nobody knows how it ended. To be believed of a job that was listed, if it
        # is said twice; or of one that must have been by now.
        record.absences += 1
        known = record.seen or answer.asked - record.since > _UNLISTED_SECONDS
        return known and record.absences >= _ABSENCES

    def _lives(self, name: str) -> bool:
        """Whether a worker is connected, and was heard lately."""
        life = self._ledger.lives.get(name)
        if life is None or life.left is not None:
            return False
        return silences(self.client).get(life.address, 0.0) < _HEARD_SECONDS

    def _reason(self, job: str, answer: Answer | None) -> str:
        """Say why a job waits; "" if it does not."""
        listed = answer.jobs.get(job) if answer else None
        if listed is None:
            return "unknown"
        return listed.reason if listed.state == "PENDING" else ""

    def _give_up(self, job: str, name: str) -> None:
        del self._submitted[job], self._records[job]
        self._former.add(job)
        life = self._ledger.lives.pop(name, _Life())
        life.left = life.left or time.monotonic()
        if name in self._retiring:
            self._retiring.discard(name)
        else:
            self._dying[job] = life

    def _judge(self, job: str, answer: Answer | None) -> bool:
        """Record how a job ended, as soon as the queue knows; return whether it died young."""
        end = answer.ends.get(job) if answer else Ended()
        if end is None or end.state == "COMPLETING":
            return False
        if answer and not end.state and _undecided(self._dying[job]):
            return False
        life = self._dying.pop(job)
        assert life.left is not None
        young = (
            not life.finished
            and life.left - life.joined < _YOUNG_SECONDS
            and end.state not in _NOT_ITS_FAULT
        )
        if young:
            self._young += 1
        elif life.finished:
            self._young = max(0, self._young - 1)
        how = (life.address, end.state, end.exit_code, end.node)
        self.deaths.append(Death(self.size.name, job, *how, life.tasks, life.finished, young))
        return young

    def _stop_if_hopeless(self, refusals: list[str]) -> None:
        K = self._early_deaths
        if self._young >= K:
            last = [death for death in self.deaths if death.young][-1]
            raise ClusterError(
                f"jobs of class {self.size.name} must live long enough to finish a task; {K} died "
                f"before their worker joined, or within {_YOUNG_SECONDS:.0f} s and with nothing "
                f"finished. The last was job {last.job} ({last.state or 'state unknown'}, exit "
                f"code {last.exit_code or 'unknown'}, node {last.node or 'unknown'}). "
                f"{self._log(last.job)}\nMend what it says (prologue, python, memory, walltime, "
                "interface in the profile?), and run again: what was finished is kept."
            )
        if self._refusals >= K and not self._running and not self._pending:
            raise ClusterError(
                f"the queue must accept jobs of class {self.size.name}; it refused them {K} times "
                f"in a row, at last with:\n{refusals[-1].strip()}\nMend what it says (partition, "
                "account, memory, walltime, extra_directives in the profile?), and run again."
            )

    def _log(self, job: str) -> str:
        # Not also those of job 112 or of worker 12 for job 12: queues write NAME-12.err, NAME.o12.
        own = re.compile(rf"(-|\.[oe]){re.escape(job)}(\.[a-z]+)?$")
        paths = [path for path in self._logs.glob("*") if own.search(path.name)]
        written = [path for path in paths if path.stat().st_size]
        if not written:
            return f"It wrote no log in {self._logs}."
        lines = "\n".join(path.read_text("utf-8", "replace") for path in written).splitlines()
        return f"The end of its log, in {self._logs}:\n" + "\n".join(lines[-_LOG_LINES:])

    def _submit(self, *, replacing: list[str]) -> None:
        # Jobs that may all have died young of the same are not replaced before that is known.
        suspects = sum(not life.finished and _undecided(life) for life in self._dying.values())
        more = time.monotonic() >= self._not_before and suspects < self._early_deaths
        self.scheduler.loop.add_callback(self._rescale, replacing, more)

    def _rescale(self, replacing: list[str], more: bool) -> None:
        # In the event loop, as Dask changes these too. It closes handles that lost their spec.
        cluster, there = self.cluster, self.scheduler.workers
        for name in replacing:
            cluster.worker_spec.pop(name, None)
        before = set(cluster.worker_spec)
        target = min(self.jobs, len(before) + (_JOBS_AT_ONCE if more else 0))
        # Where fewer are wanted, jobs that wait are withdrawn, and those that work are left.
        cluster.scale(max(target, min(len(before), len(there))))
        self._retiring |= before - set(cluster.worker_spec)
        staying = [worker for worker in there.values() if str(worker.name) not in self._retiring]
        idle = [worker.address for worker in staying if not worker.processing]
        for address in idle[: max(0, len(staying) - self.jobs)]:
            self.retire(address)


@dataclass
class _Record:
    """What the queue told of a job that is wanted: since when, by the monotonic clock."""

    since: float
    seen: bool = False
    absences: int = 0


@dataclass
class _Life:
    """Of a worker; times by the monotonic clock, in seconds."""

    address: str = ""
    joined: float = float("inf")
    left: float | None = None
    finished: int = 0
    tasks: tuple[str, ...] = ()


def _undecided(life: _Life) -> bool:
    return life.left is not None and time.monotonic() - life.left < _TOLD_SECONDS


class _Ledger(SchedulerPlugin):
    """Who joined, how much they finished, and what they had in hand when they left."""

    def __init__(self) -> None:
        self.lives: dict[str, _Life] = {}
        self._at: dict[str, _Life] = {}

    def lost(self, name: str, *, seconds: float = 0.0) -> bool:
        """Whether a worker left, and has been gone for so long."""
        left = self.lives[name].left if name in self.lives else None
        return left is not None and time.monotonic() - left >= seconds

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        life = self._at[worker] = _Life(worker, joined=time.monotonic())
        self.lives[str(scheduler.workers[worker].name)] = life

    def transition(self, key: Any, start: str, finish: str, *args: Any, **news: Any) -> None:
        if (start, finish) == ("processing", "memory") and news.get("worker") in self._at:
            self._at[news["worker"]].finished += 1

    def log_event(self, topic: str, msg: Any) -> None:
        # Not remove_worker: by then the scheduler has sent the tasks elsewhere.
        if topic == "all" and msg["action"] == "remove-worker" and msg["worker"] in self._at:
            life = self._at.pop(msg["worker"])
            life.left, life.tasks = time.monotonic(), tuple(map(str, msg["processing-tasks"]))
