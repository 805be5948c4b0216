"""One run: keep the workers busy with what is missing, and commit what they hand in.

The driver is the store's only writer and keeps no results: if it dies, or is stopped, what workers
handed in is on the disk, and the next run commits it and goes on from there.
"""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol

from distributed import Client, Future
from distributed.scheduler import KilledWorker

from alphasweep.pipeline.grid import Block
from alphasweep.pipeline.part import Part
from alphasweep.pipeline.plan import MARGIN, Plan, Work
from alphasweep.pipeline.spec import Sweep
from alphasweep.pipeline.store import Failure, StoreError, Writer
from alphasweep.pipeline.tasks import NoTimeLeftError, part_of, submit_parts, unfit
from alphasweep.pipeline.words import duration, under_way

ATTEMPTS = 3
TIMEOUTS = 3
_IN_FLIGHT_PER_WORKER = 3
_TICK_SECONDS = 1.0
_STALLED_SECONDS = 30.0  # without any part finished, at least
_ANSWER_SECONDS = 10.0  # for what is here already
_NOT_THE_PARTS_FAULT = ("CANCELLED", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "COMPLETED", "")

_Outcome = Literal["finished", "unknown"] | BaseException


@dataclass
class Progress:
    """Where a run is. ``done`` counts cells that are safe on the disk, committed or handed in.

    ``predicted_seconds`` are core-seconds of the whole plan; of them are done those of finished
    parts, and running those that passed in the ``parts_running``. ``longest_seconds`` is how long
    the first of these has been running, and ``longest_predicted`` how long it should. ``stalled``
    says for how long nothing was finished, in seconds, once that is longer than it should take;
    ``silent`` how many workers are connected and say nothing, and ``silence`` for how long.
    """

    cells: int
    done: int
    failed: int
    running: int
    parts: int
    parts_done: int
    workers: int
    predicted_seconds: float
    predicted_done: float = 0.0
    predicted_running: float = 0.0
    parts_running: int = 0
    longest_seconds: float = 0.0
    longest_predicted: float = 0.0
    cells_now: int = 0
    runs_now: int = 0
    elapsed: float = 0.0
    kernel_seconds: float = 0.0
    core_seconds: float = 0.0
    stalled: float = 0.0
    silent: int = 0
    silence: float = 0.0

    def __str__(self) -> str:
        rate = self.runs_now / self.elapsed if self.elapsed else 0.0
        if self.stalled:
            left = f", nothing finished for {duration(self.stalled)}"
        elif self.seconds_left:
            left = f", about {duration(self.seconds_left)} left"
        else:
            left = ""
        return (
            f"{self.parts_done}/{self.parts} parts, {rate:.3g} runs/s, {self.failed} failed, "
            f"{self.workers} workers{f', {self.silent} silent' if self.silent else ''}"
            f"{under_way(asdict(self))}{left}"
        )

    @property
    def rate(self) -> float:
        """Cells a second of this run."""
        return self.cells_now / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def predicted_begun(self) -> float:
        """Core-seconds of the plan that have passed, in parts that are done or running."""
        return self.predicted_done + self.predicted_running

    @property
    def seconds_left(self) -> float | None:
        """Until the end, at the speed so far; None if nothing can be said, or nothing moves."""
        begun, total = self.predicted_begun, self.predicted_seconds
        if self.stalled or not 0 < begun < total:
            return None
        return (total / begun - 1) * self.elapsed


@dataclass(frozen=True)
class Lane:
    """Some sizes of a sweep, and the workers that compute them.

    Attributes
    ----------
    client : Client
    sizes : tuple of int
        The N that go to this client.
    workers : callable
        How many workers may be given work now.
    want : callable
        Told every second or so how many parts of the lane are left; what it raises ends the run.
    silences : callable
        How long workers have said nothing, in seconds, by address; of those that are silent.
    """

    client: Client
    sizes: tuple[int, ...]
    workers: Callable[[], int]
    want: Callable[[int], object] = lambda parts: None
    silences: Callable[[], Mapping[str, float]] = dict


class Death(Protocol):
    """A worker that is gone with its job, as `Workforce.deaths` tells."""

    @property
    def job(self) -> str:
        """Id of its job."""

    @property
    def state(self) -> str:
        """How the job ended, in the words of SLURM; "" if unknown."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Keys of the tasks it had in hand."""


class Workforce(Protocol):
    """Workers that come and go as jobs of a queue: `cluster.launch.Cluster`."""

    @property
    def deaths(self) -> Sequence[Death]:
        """All that died so far."""

    def check(self) -> None:
        """Look after the jobs; what it raises ends the run."""

    def retire(self, worker: str) -> None:
        """Replace a worker that has no time left."""

    def state(self) -> dict[str, Any]:
        """Say how things are, for `status`."""


def drive(
    sweep: Sweep,
    writer: Writer,
    plan: Plan,
    lanes: Sequence[Lane],
    *,
    watch: Callable[[Progress], object],
    workforce: Workforce | None = None,
) -> Progress:
    """Compute and commit everything in the plan.

    A part that raises is cut into its seeds, and these are tried again on whatever worker is free;
    after `ATTEMPTS` one is recorded as failed with its traceback while the rest goes on. Workers
    that are lost cost a part no attempt. But one that killed its worker is tried once more, in the
    next larger lane, and then recorded as failed; likewise one that `TIMEOUTS` workers did not
    finish before their walltime.

    Parameters
    ----------
    sweep : Sweep
    writer : Writer
        Of the store that the plan was made for, prepared for the sweep.
    plan : Plan
    lanes : sequence of Lane
        Every N of the plan is in one of them; ascending in the memory of the workers.
    watch : callable
        Told of the progress at least once a second.
    workforce : Workforce, optional
        What is behind the lanes, if it has to be looked after.

    Raises
    ------
    StoreError
        If a part or a commit cannot be written (disk full, no permission, ...): going on would
        lose work. Everything handed in so far is kept. Also if a worker is unfit, see
        `pipeline.tasks.unfit`; and within a tick or so of another driver's taking over: then
        nothing more is written.
    """
    run = _Run(sweep, writer, plan, lanes, watch, workforce)
    writer.log("run", cells=sum(plan.missing.values()))
    try:
        run.see_through()
    except OSError as error:
        raise _cannot_write(writer, error) from error
    finally:
        run.forget()
        writer.log("end", cells=run.progress.cells_now, failed=run.progress.failed)
        run.report()
    return run.progress


class _Run:
    def __init__(
        self,
        sweep: Sweep,
        writer: Writer,
        plan: Plan,
        lanes: Sequence[Lane],
        watch: Callable[[Progress], object],
        workforce: Workforce | None,
    ) -> None:
        self._writer, self._plan, self._watch = writer, plan, watch
        self._workforce = workforce
        self._recipe, self._inbox = sweep.recipe, writer.store.inbox()
        self._began = self._moved = time.monotonic()
        self._settled: queue.SimpleQueue[tuple[_Traffic, _Sent, Future[float], _Outcome]]
        self._settled = queue.SimpleQueue()
        self._traffic = [_Traffic(lane, plan) for lane in lanes]
        self._attempts: Counter[Part] = Counter()
        self._killed: Counter[Part] = Counter()
        self._timeouts: Counter[Part] = Counter()
        self._buried: set[str] = set()
        self.progress = Progress(
            cells=plan.cells,
            done=plan.done,
            failed=plan.failed,
            running=0,
            parts=sum(plan.parts.values()),
            parts_done=0,
            workers=0,
            predicted_seconds=sum(plan.seconds.values()),
        )

    def see_through(self) -> None:
        """Keep the workers busy until every block is committed."""
        looked = -_TICK_SECONDS
        while any(traffic.left for traffic in self._traffic):
            if time.monotonic() - looked >= _TICK_SECONDS:
                self._writer.check()  # before anything: this process may have been stopped for long
                self._look_after_workers()
                self.report()
                looked = time.monotonic()
                for traffic in self._traffic:
                    traffic.measure()
            self._fill()
            with suppress(queue.Empty):
                self._settle(*self._settled.get(timeout=_TICK_SECONDS))

    def forget(self) -> None:
        """Call back what is under way, if the run breaks off."""
        for traffic in self._traffic:
            futures = [future for _, future in traffic.running.values()]
            traffic.running.clear()
            _call_back(traffic.lane.client, futures)

    def report(self) -> None:
        """Tell the terminal, and `status` in another one."""
        progress = self.progress
        progress.elapsed = time.monotonic() - self._began
        silences = [s for lane in self._traffic for s in lane.lane.silences().values()]
        progress.silent, progress.silence = len(silences), max(silences, default=0.0)
        progress.running = sum(len(p.seeds) for lane in self._traffic for p in lane.running)
        progress.workers = sum(traffic.lane.workers() for traffic in self._traffic)
        self._measure_parts()
        cluster = self._workforce.state() if self._workforce else {}
        held = (state["core_seconds"] for state in cluster.values())
        progress.core_seconds = sum(held) if cluster else progress.workers * progress.elapsed
        self._writer.say(
            **asdict(progress),
            rate=progress.rate,
            seconds_left=progress.seconds_left,
            cluster=cluster,
        )
        self._watch(replace(progress))  # whoever keeps it has how it was

    def _measure_parts(self) -> None:
        """Note how far the parts that workers have in hand should be: they may take minutes."""
        now, progress = time.monotonic(), self.progress
        spans = [
            (now - since, self._plan.part_seconds(part))
            for traffic in self._traffic
            for part, since in traffic.in_hand(now).items()
        ]
        progress.parts_running = len(spans)
        progress.predicted_running = sum(min(span) for span in spans)
        progress.longest_seconds, progress.longest_predicted = max(spans, default=(0.0, 0.0))
        expected = MARGIN * max((predicted for _, predicted in spans), default=0.0)
        idle = now - self._moved
        progress.stalled = idle if idle > max(_STALLED_SECONDS, expected) else 0.0

    def _fill(self) -> None:
        for traffic in self._traffic:
            batch = traffic.batch()
            if not batch:
                continue
            parts = [sent.part for sent in batch]
            futures = submit_parts(
                traffic.lane.client,
                self._inbox,
                parts,
                seconds=[MARGIN * self._plan.part_seconds(part) for part in parts],
            )
            for sent, future in zip(batch, futures, strict=True):
                traffic.running[sent.part] = sent, future
                future.add_done_callback(partial(self._put, traffic, sent))

    def _put(self, traffic: _Traffic, sent: _Sent, future: Future[float]) -> None:
        # Here, in a thread of Dask's: a future's state goes on changing, and is not waited for.
        self._settled.put((traffic, sent, future, _outcome(future)))

    def _settle(
        self, traffic: _Traffic, sent: _Sent, future: Future[float], outcome: _Outcome
    ) -> None:
        part = sent.part
        if traffic.running.get(part) != (sent, future):
            return  # called back
        # What it computed is on the disk: with the future forgotten here, the death of the worker
        # that holds its acknowledgement makes nobody compute it again.
        del traffic.running[part]
        traffic.settled += 1
        if outcome == "finished":
            progress = self.progress
            progress.done += len(part.seeds)
            progress.cells_now += len(part.seeds)
            progress.runs_now += len(part.seeds) * len(self._recipe.start)
            self._conclude(traffic, sent, None)
        elif outcome == "unknown":
            traffic.again.append(sent)  # Dask lost sight of it
        elif worker := unfit(outcome):
            raise worker
        elif isinstance(outcome, NoTimeLeftError):
            assert self._workforce is not None
            self._workforce.retire(outcome.worker)
            traffic.again.append(sent)
        elif isinstance(outcome, KilledWorker) and self._workforce is not None:
            traffic.again.append(sent)  # many workers were lost; see `_look_after_workers`
        elif len(part.seeds) > 1 and not isinstance(outcome, OSError):
            self._cut(traffic, sent)
        else:
            self._attempts[part] += 1
            if self._attempts[part] < ATTEMPTS and not isinstance(outcome, KilledWorker):
                if isinstance(outcome, MemoryError):  # some queues refuse memory instead of killing
                    traffic = self._larger(traffic)
                traffic.again.append(sent)
            elif isinstance(outcome, OSError):
                raise outcome
            else:
                self._conclude(traffic, sent, outcome)

    def _larger(self, traffic: _Traffic) -> _Traffic:
        """Return where a part of this traffic, which is one less now, has more memory."""
        index = self._traffic.index(traffic)
        larger = self._traffic[min(index + 1, len(self._traffic) - 1)]
        traffic.left -= 1
        larger.left += 1
        return larger

    def _cut(self, traffic: _Traffic, sent: _Sent) -> None:
        """Try the seeds of a part that raised one by one: the others are not to fail with it."""
        part, block = sent
        seeds = [Part(part.alpha, part.N, seed, seed) for seed in part.seeds]
        traffic.again.extend(_Sent(one, block) for one in seeds)
        for counter in (block, self.progress):
            counter.parts += len(seeds) - 1
        traffic.left += len(seeds) - 1

    def _conclude(self, traffic: _Traffic, sent: _Sent, error: BaseException | None) -> None:
        part, block = sent
        attempts = self._attempts.pop(part, 0) + self._killed.pop(part, 0)
        attempts += self._timeouts.pop(part, 0)
        if error is None:
            block.computed.append(part)
        else:
            block.failures.append(Failure.of(part, error, attempts=attempts))
            self.progress.failed += len(part.seeds)
        self.progress.parts_done += 1
        self._moved = time.monotonic()
        self.progress.predicted_done += self._plan.part_seconds(part)
        traffic.left -= 1
        if block.complete:
            # From the disk: to fetch what a worker that just died has would be to wait for another.
            took = self._writer.commit(block.block, block.computed, block.failures)
            self.progress.kernel_seconds += took

    def _look_after_workers(self) -> None:
        for traffic in self._traffic:
            traffic.lane.want(traffic.left)
        if self._workforce is None:
            return
        self._workforce.check()
        for death in self._workforce.deaths:
            if death.job in self._buried:
                continue
            self._buried.add(death.job)
            for key in death.tasks:
                if key.partition("#")[0] and death.state not in _NOT_THE_PARTS_FAULT:
                    self._suspect(key, death)

    def _suspect(self, key: str, death: Death) -> None:
        """Blame a part for the death of a worker that had it in hand."""
        part = part_of(key)
        traffic = next((one for one in self._traffic if part in one.running), None)
        if traffic is None:
            return  # another worker has finished it meanwhile
        if traffic.running[part][1].key != key:
            return  # Dask had run it again before we knew; it is with larger workers by now
        # Whose job runs on was cut off, or silent: its node had to do with it more than the part.
        timed_out = death.state in ("TIMEOUT", "RUNNING")
        count = self._timeouts if timed_out else self._killed
        count[part] += 1
        if count[part] < (TIMEOUTS if timed_out else 1):
            return  # Dask runs it again
        sent, future = traffic.running.pop(part)
        _call_back(traffic.lane.client, [future])
        if timed_out:
            what = f"{TIMEOUTS} workers came to their walltime"
            if death.state == "RUNNING":
                what += " or fell silent"
            what += ": raise it, or lower --part-seconds"
            self._conclude(traffic, sent, WorkerLostError(what))
        elif count[part] == 1:
            self._larger(traffic).again.append(sent)
        else:
            what = f"it killed two workers; the job of the last, {death.job}, ended as "
            what += f"{death.state or 'unknown'}: does it need more memory?"
            self._conclude(traffic, sent, WorkerLostError(what))


class WorkerLostError(RuntimeError):
    """A part that no worker lives to finish."""


@dataclass(eq=False)
class _OpenBlock:
    """A block that waits for the rest of its parts."""

    block: Block
    parts: int
    computed: list[Part] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return len(self.computed) + len(self.failures) == self.parts


class _Sent(NamedTuple):
    part: Part
    block: _OpenBlock


class _Traffic:
    """What is under way in a lane, and how many parts are left in it."""

    def __init__(self, lane: Lane, plan: Plan) -> None:
        self.lane = lane
        self.left = sum(plan.parts[N] for N in lane.sizes)
        self.running: dict[Part, tuple[_Sent, Future[float]]] = {}
        self.again: deque[_Sent] = deque()
        self.settled = 0
        self._a_tick = 0
        self._since: dict[Part, float] = {}
        self._first = _sendings(plan.work(lane.sizes))

    def measure(self) -> None:
        """Note, every tick, how many parts settle in one."""
        self._a_tick, self.settled = self.settled, 0

    def in_hand(self, now: float) -> dict[Part, float]:
        """Which parts workers compute, one each in the order of their sending, and since when."""
        first = islice(self.running, self.lane.workers())
        self._since = {part: self._since.get(part, now) for part in first}
        return self._since

    def batch(self) -> list[_Sent]:
        """Take the next parts to send, if there is room for some.

        Under way are a few parts a worker; or, where parts are short, what a tick settles.
        """
        workers = self.lane.workers()
        limit = max(_IN_FLIGHT_PER_WORKER * workers, self._a_tick) if workers else 0
        room = limit - len(self.running)
        if room < max(1, limit // 3):  # a batch costs Dask little more than one part
            return []
        again = [self.again.popleft() for _ in range(min(room, len(self.again)))]
        return [*again, *islice(self._first, room - len(again))]


def _sendings(all_work: Iterable[Work]) -> Iterator[_Sent]:
    for work in all_work:
        block = _OpenBlock(work.block, len(work.parts))
        yield from (_Sent(part, block) for part in work.parts)


def _outcome(future: Future[float]) -> _Outcome:
    """Say what became of a task that was called settled.

    Only what was finished can be lost again, with the worker that held it: its part is on the disk.
    """
    status = future.status
    if status not in ("error", "cancelled"):
        return "finished"
    if status == "error":
        with suppress(TimeoutError):
            if isinstance(error := future.exception(timeout=_ANSWER_SECONDS), BaseException):
                return error
    return "unknown"


def _call_back(client: Client, futures: Sequence[Future[float]]) -> None:
    """Have tasks cancelled, without waiting for it."""
    loop: Any = client.loop
    loop.add_callback(client.cancel, futures)


def _cannot_write(writer: Writer, error: OSError) -> StoreError:
    return StoreError(
        f"store {writer.store.path} must be writable; got {type(error).__name__}: {error}. "
        "Nothing that was finished is lost: make room or mend the file system, and run again."
    )
