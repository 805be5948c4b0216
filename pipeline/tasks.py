"""The tasks of Dask: one a part, and none that waits for another.

A task carries names and an acknowledgement, never results: those are on the disk, and the disk is
the only truth. A task may run twice, or go on for a while after its worker was given up: parts are
deterministic and handed in atomically, so a second copy changes nothing. What is handed in is
committed by the driver, the store's only writer (`pipeline.drive`), so nothing that outlives the
driver can write into the dataset.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from collections.abc import Mapping, Sequence

from distributed import Client, Future, get_worker

from alphasweep import kernels
from alphasweep.pipeline.inbox import Inbox, hand_in
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.provenance import code_version, environment
from alphasweep.pipeline.store import StoreError

WALLTIME_END = "ALPHASWEEP_WALLTIME_END"
"""Variable in the environment of a worker that will be ended: when, in seconds since the epoch."""

# To Dask, tasks are of one kind that share what is before the first hyphen. It remembers every kind
# for ever, and keeps tasks from workers that are busy only if there are many of their kind.
_PREFIX = "part-"

_begun: set[str] = set()  # addresses of the workers of this process that have had a part


class NoTimeLeftError(Exception):
    """A part was declined, since it would not be finished before its worker is ended.

    Attributes
    ----------
    worker : str
        Address of the worker.
    """

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        self.worker = worker


class UnfitWorkerError(StoreError):
    """A worker would give other numbers than the driver; the message says what to do."""


def compute_part(part: Part, seconds: float, *, inbox: Inbox, expected: Mapping[str, str]) -> float:
    """Task: compute a part and hand it in; the acknowledgement is the seconds it took.

    The driver waits for the acknowledgement and never fetches it: the worker may be gone by then.

    Parameters
    ----------
    part : Part
    seconds : float
        That it will take at most. A worker that is ended before declines it, unless it is the
        first one it gets: no later worker would have more time.
    inbox : Inbox
    expected : mapping of str to str
        What `environment` has to be here, as it is in the driver.

    Raises
    ------
    UnfitWorkerError
        If it is not. Nothing is computed then.
    """
    worker = str(get_worker().address)
    _examine(worker, expected)
    if time.time() + seconds > float(os.environ.get(WALLTIME_END, "inf")) and worker in _begun:
        raise NoTimeLeftError(worker)
    _begun.add(worker)
    try:
        cells = compute(inbox.recipe, part)
        hand_in(inbox, part, cells)
    except Exception as error:
        error.add_note(f"on {socket.gethostname()}")
        raise
    return float(cells["seconds"].sum())


def submit_parts(
    client: Client,
    inbox: Inbox,
    parts: Sequence[Part],
    *,
    seconds: Sequence[float],
) -> list[Future[float]]:
    """Have parts computed, sent in one message; see `compute_part`."""
    futures: list[Future[float]] = client.map(
        compute_part,
        parts,
        seconds,
        key=[f"{_PREFIX}{part.name}#{uuid.uuid4().hex[:8]}" for part in parts],
        inbox=inbox,
        expected=environment(),
    )
    return futures


def part_of(key: str) -> Part:
    """Return the part that a task of this key computes."""
    return Part.from_name(key.removeprefix(_PREFIX).partition("#")[0])


def unfit(error: BaseException) -> UnfitWorkerError | None:
    """Say, in the driver, whether what a task raised is its worker's fault, whatever the part."""
    if isinstance(error, UnfitWorkerError):
        found = str(error)
    # A worker of another version may not even be able to read its task. What is raised by a part
    # says where, see `compute_part`.
    elif isinstance(error, ImportError | AttributeError | TypeError) and not _notes(error):
        found = f"a worker could not begin a part; it got {type(error).__name__}: {error}"
    else:
        return None
    return UnfitWorkerError(
        f"workers must be what the driver is, alphasweep {code_version()} in {sys.prefix}, or "
        f"their numbers may be others; {found}. Mend the worker's environment (python and prologue "
        "in the profile? PYTHONPATH? files changed during the run?), and run again: what was "
        "finished is kept."
    )


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _examine(worker: str, expected: Mapping[str, str]) -> None:
    here = environment()  # of this process, found out once
    wrong = [
        f"{name} is {here.get(name, 'unknown')} instead of {wanted}"
        for name, wanted in expected.items()
        if here.get(name) != wanted
    ]
    if wrong:
        where = f"{socket.gethostname()} ({sys.executable}, {kernels.__path__[0]})"
        raise UnfitWorkerError(f"on worker {worker}, {where}, {', '.join(wrong)}")
