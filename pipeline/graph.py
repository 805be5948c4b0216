"""The sweep as a Dask graph: one task a part.

A task carries names and an acknowledgement, never results: those are on the disk, and the disk is
the only truth. A task may run twice, or go on for a while after its worker was given up: parts are
deterministic and handed in atomically, so a second copy changes nothing. What is handed in is
committed by the driver, the store's only writer (`pipeline.drive`), so nothing that outlives the
driver can write into the dataset.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from distributed import Client, Future, get_worker

from pipeline.part import Part, compute
from pipeline.spec import Recipe
from pipeline.store import hand_in

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


def compute_part(part: Part, seconds: float, *, parts_folder: Path, recipe: Recipe) -> float:
    """Task: compute a part and hand it in; the acknowledgement is the seconds it took.

    The driver waits for the acknowledgement and never fetches it: the worker may be gone by then.

    Parameters
    ----------
    part : Part
    seconds : float
        That it will take at most. A worker that is ended before declines it, unless it is the
        first one it gets: no later worker would have more time.
    parts_folder : Path
    recipe : Recipe
    """
    worker = str(get_worker().address)
    if time.time() + seconds > float(os.environ.get(WALLTIME_END, "inf")) and worker in _begun:
        raise NoTimeLeftError(worker)
    _begun.add(worker)
    try:
        cells = compute(recipe, part)
        hand_in(parts_folder, part, cells)
    except Exception as error:
        error.add_note(f"on {socket.gethostname()}")
        raise
    return float(cells["seconds"].sum())


def submit_parts(
    client: Client,
    parts_folder: Path,
    recipe: Recipe,
    parts: Sequence[Part],
    *,
    seconds: Sequence[float],
) -> list[Future[float]]:
    """Add parts to the graph, in one message; see `compute_part`."""
    futures: list[Future[float]] = client.map(
        compute_part,
        parts,
        seconds,
        key=[f"{_PREFIX}{part.name}#{uuid.uuid4().hex[:8]}" for part in parts],
        parts_folder=parts_folder,
        recipe=recipe,
    )
    return futures


def part_of(key: str) -> Part:
    """Return the part that a task of this key computes."""
    return Part.from_name(key.removeprefix(_PREFIX).partition("#")[0])
