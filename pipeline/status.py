"""How far a sweep is, also while it runs: what ``alphasweep status`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alphasweep.kernels.descent import Outcome
from alphasweep.pipeline import layout
from alphasweep.pipeline.dataset import DONE, FAILED
from alphasweep.pipeline.run import driver_job, remedies
from alphasweep.pipeline.store import Store


@dataclass(frozen=True)
class Status:
    """How far a sweep is; what is said of a run is 0 or empty while none is under way.

    Attributes
    ----------
    store, name : str
        Path of the store, and name of its sweep.
    cells, done, running, failed, missing : int
        Cells that the sweep wants. Done are also those that were handed in and wait for their
        commit.
    outcomes : dict of str to float
        Shares of the starts of committed cells that are ``recovered``, ``trapped``, ``undecided``
        or ``diverged``; empty while there are none.
    driver : str or None
        Who drives the store now.
    driver_job : dict or None
        ``id``, ``state`` and ``reason`` of the driver's own job, if it was submitted and is not
        over.
    workers, parts, parts_done, parts_running : int
        Of the run under way.
    rate : float
        Cells a second.
    seconds_left : float or None
        Until the end, if that can be said.
    longest_seconds, longest_predicted : float
        For how long the first of the running parts runs, and how long it should.
    stalled_seconds : float
        For how long nothing was finished, if that is too long.
    silent_workers : int
    silent_seconds : float
        Workers that say nothing, and for how long.
    cluster : dict
        By class of workers, see `cluster.launch.Cluster.state`.
    core_hours_used, core_hours_left : float
    efficiency : float or None
        Of the core-hours used, the share in the kernels.
    errors : list of str
        One for each failed part.
    remedies : dict of str to str
        What ends a wait that does not end by itself, by its reason in the queue's words.
    """

    store: str
    name: str
    cells: int
    done: int
    running: int
    failed: int
    missing: int
    outcomes: dict[str, float]
    driver: str | None
    driver_job: dict[str, str] | None
    workers: int
    parts: int
    parts_done: int
    parts_running: int
    rate: float
    seconds_left: float | None
    longest_seconds: float
    longest_predicted: float
    stalled_seconds: float
    silent_workers: int
    silent_seconds: float
    cluster: dict[str, dict[str, Any]]
    core_hours_used: float
    core_hours_left: float
    efficiency: float | None
    errors: list[str]
    remedies: dict[str, str]


def status(store: str | Path) -> Status:
    """Say how far a sweep is. Looking disturbs no run.

    Raises
    ------
    StoreError
        If there is no sweep at the path.
    """
    target = Store(store)
    sweep, waiting, cells = target.sweep(), target.parts(), target.status()
    failed = int((cells == FAILED).sum())
    done = min(
        sweep.cells - failed,
        int((cells == DONE).sum()) + sum(len(part.seeds) for part in waiting),
    )
    holder = target.holder()
    said = target.progress() if holder else {}
    running = min(int(said.get("running", 0)), sweep.cells - done - failed)
    begun = said.get("predicted_done", 0.0) + said.get("predicted_running", 0.0)
    cluster, job = said.get("cluster", {}), driver_job(target)
    held = sum(state["core_seconds"] for state in cluster.values())
    waits = [reason for state in cluster.values() for reason in state["reasons"]]
    return Status(
        store=str(target.path),
        name=sweep.name,
        cells=sweep.cells,
        done=done,
        running=running,
        failed=failed,
        missing=sweep.cells - done - failed - running,
        outcomes=_outcomes(target, cells == DONE),
        driver=holder,
        driver_job=job,
        workers=said.get("workers", 0),
        parts=said.get("parts", 0),
        parts_done=said.get("parts_done", 0),
        parts_running=said.get("parts_running", 0),
        rate=float(said.get("rate", 0.0)),
        seconds_left=said.get("seconds_left"),
        longest_seconds=said.get("longest_seconds", 0.0),
        longest_predicted=said.get("longest_predicted", 0.0),
        stalled_seconds=said.get("stalled", 0.0),
        silent_workers=said.get("silent", 0),
        silent_seconds=said.get("silence", 0.0),
        cluster=cluster,
        core_hours_used=held / 3600,
        core_hours_left=(said.get("predicted_seconds", 0.0) - begun) / 3600,
        efficiency=_efficiency(said, held),
        errors=[f"{failure['part']}: {failure['error']}" for failure in target.failures()],
        remedies=remedies([*waits, job["reason"]] if job else waits),
    )


def _outcomes(store: Store, is_done: npt.NDArray[np.bool_]) -> dict[str, float]:
    numbers = np.zeros(len(Outcome), dtype=np.int64)
    try:
        outcome = layout.open_arrays(store.path)["outcome"]
        for i in np.flatnonzero(is_done.any(axis=(1, 2))):  # one alpha at a time: a store is large
            ended = np.asarray(outcome[int(i)])[is_done[i]].ravel()
            numbers += np.bincount(ended, minlength=len(Outcome))
    except (ValueError, KeyError, OSError):  # what is damaged is for `verify` to tell of
        return {}
    if not numbers.any():
        return {}
    shares = numbers / numbers.sum()
    return {one.name.lower(): float(shares[one]) for one in Outcome if one != Outcome.MISSING}


def _efficiency(said: Mapping[str, Any], held: float) -> float | None:
    """Kernel seconds over the core-seconds that were held for them."""
    held = held or said.get("workers", 0) * said.get("elapsed", 0.0)
    return said["kernel_seconds"] / held if held else None
