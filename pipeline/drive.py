"""One run: keep the workers busy with what is missing, and commit what they hand in.

The driver is the store's only writer and keeps no results: if it dies, or is stopped, what workers
handed in is on the disk, and the next run commits it and goes on from there.
"""

from __future__ import annotations

import queue
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import NamedTuple

from distributed import Client, Future

from pipeline.graph import submit_part
from pipeline.part import Part
from pipeline.plan import Plan, Work
from pipeline.spec import Sweep
from pipeline.store import Block, Failure, StoreError, Writer

ATTEMPTS = 3
_IN_FLIGHT_PER_WORKER = 3
_TICK_SECONDS = 1.0


@dataclass
class Progress:
    """Where a run is. ``done`` counts cells that are safe on the disk, committed or handed in."""

    cells: int
    done: int
    failed: int
    running: int
    parts: int
    parts_done: int
    workers: int
    predicted_seconds: float
    predicted_done: float = 0.0
    cells_now: int = 0
    runs_now: int = 0
    elapsed: float = 0.0
    kernel_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Cells a second of this run."""
        return self.cells_now / self.elapsed if self.elapsed > 0 else 0.0


@dataclass(frozen=True)
class Lane:
    """Some sizes of a sweep, and the workers that compute them.

    Attributes
    ----------
    client : Client
    sizes : tuple of int
        The N that go to this client.
    workers : callable
        How many workers the client has now.
    """

    client: Client
    sizes: tuple[int, ...]
    workers: Callable[[], int]


def drive(
    sweep: Sweep,
    writer: Writer,
    plan: Plan,
    lanes: Sequence[Lane],
    *,
    watch: Callable[[Progress], None],
    check: Callable[[], None] = lambda: None,
) -> Progress:
    """Compute and commit everything in the plan.

    A part that raises is tried again on whatever worker is free; after `ATTEMPTS` it is recorded
    as failed with its traceback while the rest goes on.

    Parameters
    ----------
    sweep : Sweep
    writer : Writer
        Of the store that the plan was made for, prepared for the sweep.
    plan : Plan
    lanes : sequence of Lane
        Every N of the plan is in one of them.
    watch : callable
        Told of the progress at least once a second.
    check : callable
        Called as often; what it raises ends the run.

    Raises
    ------
    StoreError
        If a part or a commit cannot be written (disk full, no permission, ...): going on would
        lose work. Everything handed in so far is kept.
    """
    run = _Run(sweep, writer, plan, lanes, watch)
    writer.log("run", host=socket.gethostname(), cells=sum(plan.missing.values()))
    try:
        run.see_through(check)
    except OSError as error:
        raise _cannot_write(writer, error) from error
    finally:
        run.forget()
        run.report()
        writer.log("end", done=run.progress.done, failed=run.progress.failed)
    return run.progress


class _Run:
    def __init__(
        self,
        sweep: Sweep,
        writer: Writer,
        plan: Plan,
        lanes: Sequence[Lane],
        watch: Callable[[Progress], None],
    ) -> None:
        self._writer, self._plan, self._watch = writer, plan, watch
        self._recipe = sweep.recipe
        self._began = time.monotonic()
        self._settled: queue.SimpleQueue[tuple[_Traffic, _Sent, Future[float]]]
        self._settled = queue.SimpleQueue()
        self._traffic = [_Traffic(lane, _sendings(plan.work(lane.sizes))) for lane in lanes]
        self._attempts: Counter[Part] = Counter()
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

    def see_through(self, check: Callable[[], None]) -> None:
        """Keep the workers busy until every block is committed."""
        reported = -_TICK_SECONDS
        while True:
            for traffic in self._traffic:
                self._fill(traffic)
            if time.monotonic() - reported >= _TICK_SECONDS:
                check()
                self.report()
                reported = time.monotonic()
            if not any(traffic.running for traffic in self._traffic):
                return
            with suppress(queue.Empty):
                self._settle(*self._settled.get(timeout=_TICK_SECONDS))

    def forget(self) -> None:
        """Call back what is under way, if the run breaks off."""
        for traffic in self._traffic:
            traffic.lane.client.cancel(list(traffic.running.values()))
            traffic.running.clear()

    def report(self) -> None:
        """Tell the terminal, and `status` in another one."""
        progress = self.progress
        progress.elapsed = time.monotonic() - self._began
        progress.running = sum(len(p.seeds) for lane in self._traffic for p in lane.running)
        progress.workers = sum(traffic.lane.workers() for traffic in self._traffic)
        self._writer.say(**asdict(progress), rate=progress.rate)
        self._watch(progress)

    def _fill(self, traffic: _Traffic) -> None:
        limit = _IN_FLIGHT_PER_WORKER * max(1, traffic.lane.workers())
        while len(traffic.running) < limit:
            sent = traffic.again.popleft() if traffic.again else next(traffic.first, None)
            if sent is None:
                return
            self._attempts[sent.part] += 1
            future = submit_part(
                traffic.lane.client,
                self._writer.store.parts_folder,
                self._recipe,
                sent.part,
                attempt=self._attempts[sent.part],
            )
            traffic.running[sent.part] = future
            future.add_done_callback(partial(self._put, traffic, sent))

    def _put(self, traffic: _Traffic, sent: _Sent, future: Future[float]) -> None:
        self._settled.put((traffic, sent, future))

    def _settle(self, traffic: _Traffic, sent: _Sent, future: Future[float]) -> None:
        # What it computed is on the disk: with the future forgotten here, the death of the worker
        # that holds its acknowledgement makes nobody compute it again.
        part, block = sent
        del traffic.running[part]
        progress = self.progress
        if future.status == "finished":
            block.computed.append(part)
            progress.done += len(part.seeds)
            progress.cells_now += len(part.seeds)
            progress.runs_now += len(part.seeds) * len(self._recipe.start)
            progress.kernel_seconds += future.result()
        else:
            error = _exception(future)
            if self._attempts[part] < ATTEMPTS:
                traffic.again.append(sent)
                return
            if isinstance(error, OSError):
                raise error
            block.failures.append(Failure.of(part, error, attempts=self._attempts[part]))
            progress.failed += len(part.seeds)
        del self._attempts[part]
        progress.parts_done += 1
        progress.predicted_done += self._plan.part_seconds(part)
        if block.complete:
            self._writer.commit(block.block, block.computed, block.failures)


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


@dataclass(eq=False)
class _Traffic:
    """What is under way in a lane."""

    lane: Lane
    first: Iterator[_Sent]
    again: deque[_Sent] = field(default_factory=deque)
    running: dict[Part, Future[float]] = field(default_factory=dict)


def _sendings(all_work: Iterable[Work]) -> Iterator[_Sent]:
    for work in all_work:
        block = _OpenBlock(work.block, len(work.parts))
        yield from (_Sent(part, block) for part in work.parts)


def _exception(future: Future[float]) -> BaseException:
    try:
        error = future.exception()
    except CancelledError as cancelled:
        error = cancelled
    return error or RuntimeError(f"the task ended as {future.status}")


def _cannot_write(writer: Writer, error: OSError) -> StoreError:
    return StoreError(
        f"store {writer.store.path} must be writable; got {type(error).__name__}: {error}. "
        "Nothing that was finished is lost: make room or mend the file system, and run again."
    )
