"""A run of a sweep once more, from what its dataset says of it, to look at what is not kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from alphasweep.analysis.recovery import descent_of, loss_of_sweep, sweep_of
from alphasweep.kernels.instance import Instance, measurements
from alphasweep.kernels.loss import Array, Loss
from alphasweep.kernels.methods import METHODS
from alphasweep.kernels.problem import Problem


@dataclass(frozen=True)
class Points:
    """Points w (N,) of a run at some times, and what it descended on."""

    instance: Instance
    loss: Loss
    points: list[Array]


def points_of(ds: xr.Dataset, cell: Mapping[str, Any], times: Sequence[float]) -> Points | None:
    """Run the first start of a cell again, alone, and return it at some times.

    Parameters
    ----------
    ds
        A sweep's dataset, with the attribute ``sweep``.
    cell
        Values of alpha, N and seed.
    times
        Ascending; those that the run does not reach are left out.

    Returns
    -------
    Points or None
        None where the matrix was revealed: another descent would reveal another one. The flow
        of one start takes other steps than that of many, within its tolerance.
    """
    settings = descent_of(ds)
    if settings["sensing"] != "gaussian":
        return None
    loss = loss_of_sweep(settings)
    problem = Problem(
        loss,
        signal=settings["signal"],
        start=settings["start"],
        start_overlap=settings.get("start_overlap", 0.0),
    )
    alpha, N, seed = (cell[name] for name in ("alpha", "N", "seed"))
    root, start = int(sweep_of(ds)["root_seed"]), int(ds["start"][0])
    precision = settings.get("precision", "float32")
    instance = problem.instance(root, N, seed, M=measurements(alpha, N), precision=precision)
    W = problem.starts(root, N, seed, [start], instance=instance, precision=precision)
    own: dict[str, Any] = {}
    record: list[float] = list(times)
    if settings.get("method", "gd") == "gd":
        rate = settings["learning_rate"]
        if rate == "auto":
            rate = float(ds["learning_rate"].sel(alpha=alpha, N=N))
        record, own = (
            [round(time / rate) for time in times],
            {"learning_rate": rate, "trapped_below": 0.0},
        )
    else:
        own = {"tolerance": settings["tolerance"], "rest_within": 0.0}
    kept: dict[int, Array] = {}
    METHODS[settings.get("method", "gd")](
        instance,
        W,
        loss=loss,
        record=record,
        recovered_at=2.0,  # to go on to the last time
        probe=lambda k, w: kept.setdefault(k, w.copy()),
        **own,
    )
    return Points(instance, loss, [kept[k] for k in sorted(kept)])
