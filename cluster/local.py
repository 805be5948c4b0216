"""Workers on this machine: processes of this one, which are replaced when they end."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import Any, cast

import dask
import psutil
from distributed import Client, LocalCluster, Scheduler
from distributed.system import MEMORY_LIMIT
from tornado.ioloop import PeriodicCallback

from alphasweep.cluster import worker
from alphasweep.cluster.profile import SILENT_SECONDS
from alphasweep.cluster.pulse import Pulse
from alphasweep.cluster.queue import ClusterError

KILLED_AT = 0.95
"""Of its share of the memory: a worker that holds more is killed, or the machine would swap."""

# Set before a worker process starts, so that its BLAS reads them when it is loaded.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1"
)
# Parts are long single calls into BLAS that hold no lock of ours: not a fault.
TICK_LIMIT = "1h"
# Scratch directories stay empty: that a busy disk is slow to make them is nothing to tell.
_SLOW_DISK = "Creating scratch directories"
_WORKER = ONE_THREAD | {
    "PYTHONWARNINGS": f"ignore:{_SLOW_DISK}",
    "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": TICK_LIMIT,
    # Nobody reads it, and under Python 3.11 it can freeze the process (dask/distributed#8616).
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "300s",  # a busy driver answers late
}
_LOOK_SECONDS = 0.2
_STILLBORN = 4  # processes in a row that end before; then no more are started
_CLOSE_SECONDS = 60.0
_LAST_BYTES = 10_000  # of what a process wrote before it ended


@contextmanager
def local(workers: int, *, silent: float = SILENT_SECONDS) -> Iterator[Client]:
    """Start a client on this machine: processes with one thread and one BLAS thread each.

    The scheduler and its web page listen on loopback only. A worker that ends is replaced, see
    `check`. On leaving, whatever the workers are doing is killed: what matters is on the disk. To
    be called from any thread.

    Parameters
    ----------
    workers : int
        Number of processes, >= 1.
    silent : float
        Seconds after which a worker that says nothing is replaced, see `Pulse`.

    Raises
    ------
    ClusterError
        If they do not start.
    """
    settings = {
        "distributed.admin.tick.limit": TICK_LIMIT,
        "distributed.scheduler.worker-ttl": None,  # `Pulse` does that
    }
    with dask.config.set(settings), quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_SLOW_DISK)
        cluster = LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )
        client = Client(cluster)
        scheduler = cast(Scheduler, cluster.scheduler)
        Pulse(scheduler, silent)
        keeper = _Keeper(scheduler, workers)
        try:
            while len(scheduler.workers) < workers:
                keeper.check()
                time.sleep(0.02)
            yield client
        finally:
            keeper.stop()
            close(client)
            close(cluster)


def present(client: Client) -> int:
    """Return how many workers of a client of `local` are there now."""
    return len(cast(Any, client.cluster).scheduler.workers)


def check(client: Client) -> None:
    """Make sure that the workers of a client of `local` are there, or will be.

    Raises
    ------
    ClusterError
        If no more are started, since a few in a row ended before they were there.
    """
    cast(Any, client.cluster).scheduler.extensions["keeper"].check()


def close(one: Any) -> None:
    """Close a client or cluster of Dask. What was computed is safe: to be late is no error."""
    with suppress(TimeoutError):
        one.close(timeout=_CLOSE_SECONDS)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Dask's own log out of the terminal; failures reach the driver as exceptions."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@dataclass
class _Process:
    """A process of a worker, and whether it was ever connected."""

    name: str
    popen: subprocess.Popen[bytes]
    joined: bool = False


class _Keeper:
    """Starts the processes of the workers, and others for those that end.

    Not a nanny of Dask: it would be a part of the driver, start processes as multiprocessing does
    (see `cluster.worker`), and be given up by its cluster if a new worker takes more than 15 s to
    start; the run would then wait for ever. It lives in the scheduler's event loop, as `Pulse`.
    """

    def __init__(self, scheduler: Scheduler, workers: int) -> None:
        self._scheduler, self._workers = scheduler, workers
        self._memory = MEMORY_LIMIT // workers
        self._limit = KILLED_AT * self._memory
        self._processes: list[_Process] = []
        self._names = count()
        self._stillborn, self._not_before = 0, 0.0
        self._last = ""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, `stop` closes it
        self._lock = Lock()  # `stop` is of another thread
        scheduler.extensions["keeper"] = self
        scheduler.loop.add_callback(self._begin)

    def check(self) -> None:
        """See `check`."""
        if self._stillborn >= _STILLBORN:
            raise ClusterError(
                f"{self._workers} workers on this machine must start; got: {self._last}. Was one "
                "killed, or the memory full? What was finished is kept: run again, or with fewer "
                "--workers."
            )

    def stop(self) -> None:
        """Kill the workers, and start no more."""
        with self._lock:
            self._workers, processes = 0, self._processes
            self._processes = []
        for process in processes:
            process.popen.kill()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):  # one that waits for a disk dies when it may
                process.popen.communicate(timeout=_CLOSE_SECONDS)
        self._log.close()

    def _begin(self) -> None:
        # Of the scheduler's own, which stops them when it closes.
        again = PeriodicCallback(self._look, 1000 * _LOOK_SECONDS)
        self._scheduler.periodic_callbacks["keeper"] = again
        again.start()
        self._look()

    def _look(self) -> None:
        with self._lock:
            for process in list(self._processes):
                self._look_at(process)
            while (
                len(self._processes) < self._workers
                and self._stillborn < _STILLBORN
                and time.monotonic() >= self._not_before
            ):
                self._start()

    def _look_at(self, process: _Process) -> None:
        is_there = process.name in self._scheduler.aliases
        if is_there and not process.joined:
            process.joined, self._stillborn = True, 0
        if (status := process.popen.poll()) is not None:
            with process.popen:  # to close its stdin
                self._processes.remove(process)
            if not process.joined:
                self._blame(self._last_words() or f"a process that ended with status {status}")
        # Its connection is lost, which does not come back, or it is silent, see `Pulse`. One that
        # still starts is left alone: where others have the cores, that takes minutes.
        elif process.joined and (not is_there or _held(process.popen.pid) > self._limit):
            process.popen.kill()

    def _start(self) -> None:
        name = f"local-{next(self._names)}"
        words = [sys.executable, "-P", "-m", worker.__name__, self._scheduler.address, name]
        # The modules of the driver, wherever it has them from.
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        try:
            popen = subprocess.Popen(
                [*words, str(self._memory)],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                env=os.environ | _WORKER | path,
            )
        except OSError as error:  # such as too many processes
            self._blame(str(error))
        else:
            self._processes.append(_Process(name, popen))

    def _blame(self, why: str) -> None:
        self._stillborn += 1
        self._last = why
        self._not_before = time.monotonic() + self._stillborn

    def _last_words(self) -> str:
        file = self._log.fileno()
        end = os.pread(file, _LAST_BYTES, max(0, os.fstat(file).st_size - _LAST_BYTES))
        lines = end.decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _held(pid: int) -> int:
    """Bytes of memory that a process holds; 0 if it is no more."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
