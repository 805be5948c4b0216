"""Workers that are connected and say nothing: stopped, or on a node that thrashes.

Dask's own watch (worker-ttl) looks once in the time that it allows, so that it takes up to twice as
long; and it goes by the clock of the day, so that after the sleep of a laptop all are silent to it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from distributed import Client, Scheduler
from distributed.scheduler import heartbeat_interval
from tornado.ioloop import PeriodicCallback

_LOOK_SECONDS = 1.0
_QUIET_SECONDS = 10.0  # from then on it is told; a worker says something every second or so
_HEARTBEATS = 20  # that have to be missing; with thousands of workers each may take a minute


class Pulse:
    """Hears the workers of a scheduler, and ends those that are silent for too long.

    It lives in the scheduler's event loop, which also hears the workers: where that stood still, it
    was not they who were silent.

    Parameters
    ----------
    scheduler : Scheduler
    limit : float
        Seconds of silence after which a worker is ended; what it had in hand goes to others.
    """

    def __init__(self, scheduler: Scheduler, limit: float) -> None:
        self._scheduler, self._limit = scheduler, limit
        self._heard: dict[str, tuple[float, float]] = {}
        self._looked = time.monotonic()
        self._ending: set[asyncio.Task[object]] = set()
        self.silent: dict[str, float] = {}
        scheduler.extensions["pulse"] = self
        scheduler.loop.add_callback(self._begin)

    def _begin(self) -> None:
        # Of the scheduler's own, which stops them when it closes.
        again = PeriodicCallback(self.look, 1000 * _LOOK_SECONDS)
        self._scheduler.periodic_callbacks["pulse"] = again
        again.start()

    def look(self) -> None:
        """Note who is silent, and end whom it has been too long."""
        now = time.monotonic()
        if now - self._looked > _QUIET_SECONDS:
            self._heard.clear()  # we were stopped: they could say what they liked
        self._looked = now
        workers = self._scheduler.workers
        for address, worker in workers.items():
            if self._heard.get(address, (None,))[0] != worker.last_seen:
                self._heard[address] = worker.last_seen, now
        self._heard = {address: self._heard[address] for address in workers}
        since = {address: now - heard for address, (_, heard) in self._heard.items()}
        self.silent = {address: s for address, s in since.items() if s > _QUIET_SECONDS}
        limit = max(self._limit, _HEARTBEATS * heartbeat_interval(len(workers)))
        if late := [address for address, s in since.items() if s > limit]:
            for address in late:
                self._heard[address] = workers[address].last_seen, now  # not to be ended twice
            self._end(late)

    def _end(self, workers: list[str]) -> None:
        task: asyncio.Task[object] = asyncio.ensure_future(
            self._scheduler.restart_workers(
                workers, wait_for_workers=False, on_error="return", stimulus_id="silent"
            )
        )
        self._ending.add(task)  # a task that nobody holds may be forgotten
        task.add_done_callback(self._ending.discard)


def silences(client: Client) -> dict[str, float]:
    """Return how long workers have been silent, in seconds, by address; of those that are."""
    pulse: Pulse = cast(Any, client.cluster).scheduler.extensions["pulse"]
    return pulse.silent
