"""A Dask client, and what is behind it, inside a context manager."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import dask
from distributed import Client, LocalCluster

# Set before a worker process starts, so that its BLAS reads them when it is loaded.
_ONE_THREAD = {
    name: "1"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
}


@contextmanager
def local(workers: int) -> Iterator[Client]:
    """A client on this machine: processes with one thread and one BLAS thread each.

    The scheduler and its web page listen on loopback only. On leaving, whatever the workers are
    doing is killed: what matters is on the disk.

    Parameters
    ----------
    workers : int
        Number of processes, >= 1.
    """
    settings = {
        "distributed.nanny.pre-spawn-environ": _ONE_THREAD,
        # Parts are long single calls into BLAS that hold no lock of ours: not a fault.
        "distributed.admin.tick.limit": "1h",
        "distributed.worker.memory.terminate": 0.95,
    }
    with dask.config.set(settings), _quiet():
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )
        client = Client(cluster)
        try:
            yield client
        finally:
            for nanny in cluster.workers.values():
                process = getattr(nanny, "process", None)
                if process is not None and process.process is not None:
                    process.process.kill()
            client.close(timeout=2)
            cluster.close(timeout=5)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's own log out of the terminal; failures reach the driver as exceptions."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
