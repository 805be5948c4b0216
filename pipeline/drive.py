"""One run: send out the graph, a bounded number of parts at once, and see it through.

The driver keeps no results. If it dies, or is stopped, what workers handed in is on the disk and
the next run goes on from there.
"""

from __future__ import annotations

import os
import queue
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass, field
from functools import partial

from distributed import Client, Future

from pipeline.graph import submit_commit, submit_part
from pipeline.part import Part
from pipeline.plan import Plan, Work
from pipeline.spec import Sweep
from pipeline.store import Failure, Store, StoreError

RETRIES = 2
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
    cells_now: int = 0
    workers: int = 0
    elapsed: float = 0.0
    kernel_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Cells a second of this run."""
        return self.cells_now / self.elapsed if self.elapsed > 0 else 0.0


Watch = Callable[[Progress], None]


@dataclass(eq=False)
class _Open:
    """A block whose commit is still to come."""

    work: Work
    futures: dict[Part, Future] = field(default_factory=dict)
    failures: dict[Part, Failure] = field(default_factory=dict)
    committed_failures: int = 0
    commit: Future | None = None  # held, or Dask would forget the task


def drive(
    sweep: Sweep, store: Store, plan: Plan, client: Client, *, workers: int, watch: Watch
) -> Progress:
    """Compute and commit everything in the plan. The caller holds the store's lock.

    A part that raises is tried again on whatever worker is free, and after `RETRIES` more times it
    is recorded as failed with its traceback while the rest goes on.

    Parameters
    ----------
    watch : callable
        Told of the progress at least once a second.

    Raises
    ------
    StoreError
        If a part or a commit cannot be written (disk full, no permission, ...): going on would
        lose work. Everything handed in so far is kept.
    """
    store.log("run", host=socket.gethostname(), pid=os.getpid(), workers=workers, cells=plan.cells)
    run = _Run(sweep, store, plan, client, workers, watch)
    try:
        run.see_through()
    finally:
        run.report()
        store.log("end", done=run.progress.done, failed=run.progress.failed)
    return run.progress


class _Run:
    def __init__(
        self,
        sweep: Sweep,
        store: Store,
        plan: Plan,
        client: Client,
        workers: int,
        watch: Watch,
    ) -> None:
        self._sweep, self._store, self._client, self._watch = sweep, store, client, watch
        self._limit = _IN_FLIGHT_PER_WORKER * workers
        self._began = time.monotonic()
        self._settled: queue.SimpleQueue[tuple[_Open, Part | None, Future]] = queue.SimpleQueue()
        self._unsent = self._send(plan.work)
        self._running: set[Part] = set()
        self._commits = 0
        self.progress = Progress(
            cells=plan.cells,
            done=plan.done + plan.handed_in,
            failed=plan.failed,
            running=0,
            parts=sum(1 for _ in plan.all_parts()),
            parts_done=0,
            workers=workers,
        )

    def see_through(self) -> None:
        """Keep the workers busy until every block is committed."""
        sending = True
        while sending or self._commits:
            while sending and len(self._running) < self._limit:
                sending = next(self._unsent, None) is not None
            self.report()
            try:
                block, part, future = self._settled.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                continue
            if part is not None:
                self._settle_part(block, part, future)
            else:
                self._settle_commit(block, future)

    def report(self) -> None:
        """Tell the terminal, and `status` in another one."""
        progress = self.progress
        progress.elapsed = time.monotonic() - self._began
        progress.running = sum(len(part.seeds) for part in self._running)
        self._store.say(
            **asdict(progress), rate=progress.rate, time=time.time(), pid=os.getpid()
        )
        self._watch(progress)

    def _send(self, all_work: Iterable[Work]) -> Iterator[Part | Work]:
        """Submit part after part, and each block's commit behind its last part."""
        for work in all_work:
            block = _Open(work)
            for part in work.parts:
                self._running.add(part)
                future = submit_part(self._client, self._store, self._sweep, part, retries=RETRIES)
                block.futures[part] = future
                future.add_done_callback(partial(self._put, block, part))
                yield part
            self._commits += 1
            self._commit(block)
            yield work

    def _put(self, block: _Open, part: Part | None, future: Future) -> None:
        self._settled.put((block, part, future))

    def _commit(self, block: _Open) -> None:
        computed = {p: f for p, f in block.futures.items() if p not in block.failures}
        block.committed_failures = len(block.failures)
        block.commit = submit_commit(
            self._client,
            self._store,
            block.work.block,
            [*block.work.handed_in, *computed],
            list(block.failures.values()),
            after=list(computed.values()),
        )
        block.commit.add_done_callback(partial(self._put, block, None))

    def _settle_part(self, block: _Open, part: Part, future: Future) -> None:
        self._running.discard(part)
        if future.status == "finished":
            progress = self.progress
            progress.parts_done += 1
            progress.done += len(part.seeds)
            progress.cells_now += len(part.seeds)
            progress.kernel_seconds += future.result()
        else:
            self._fail(block, part, future)

    def _fail(self, block: _Open, part: Part, future: Future) -> None:
        if part in block.failures:
            return
        error = _exception(future)
        if isinstance(error, OSError):
            raise _cannot_write(self._store, error)
        block.failures[part] = Failure.of(part, error, RETRIES + 1)
        self.progress.parts_done += 1
        self.progress.failed += len(part.seeds)

    def _settle_commit(self, block: _Open, future: Future) -> None:
        if future.status == "finished":
            self._commits -= 1
            block.futures.clear()
            block.commit = None
            return
        # The commit shares the error of a part that failed, which may be told after it.
        for part, computed in block.futures.items():
            if computed.status not in ("finished", "pending"):
                self._fail(block, part, computed)
        if len(block.failures) == block.committed_failures:
            raise _cannot_write(self._store, _exception(future))
        self._commit(block)


def _exception(future: Future) -> BaseException:
    try:
        error = future.exception()
    except CancelledError as cancelled:
        error = cancelled
    return error or RuntimeError(f"the task ended as {future.status}")


def _cannot_write(store: Store, error: BaseException) -> StoreError:
    return StoreError(
        f"store {store.path} must be writable; a worker got {type(error).__name__}: {error}. "
        "Nothing that was finished is lost: make room or mend the file system, and run again."
    )
