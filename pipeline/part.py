"""A part, the unit of work, of retry and of batching: one alpha, one N, a few consecutive seeds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from kernels.descent import Outcome, descend
from kernels.hessian import Eigenpairs, lowest_eigenpairs
from kernels.instance import Instance, draw_instance, uniform_starts
from kernels.loss import Array
from pipeline.spec import Sweep

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, order=True)
class Part:
    """Cells (alpha, N, seed) for ``first_seed <= seed <= last_seed``, named by values."""

    alpha: float
    N: int
    first_seed: int
    last_seed: int

    @property
    def name(self) -> str:
        """Name of the part's file, without suffix; `from_name` reads it back."""
        return f"alpha={self.alpha!r}_N={self.N}_seed={self.first_seed}-{self.last_seed}"

    @classmethod
    def from_name(cls, name: str) -> Part:
        """Inverse of `name`; ValueError if it is no such name."""
        alpha, N, seeds = (field.partition("=")[2] for field in name.split("_"))
        first, last = seeds.split("-")
        return cls(float(alpha), int(N), int(first), int(last))

    @property
    def seeds(self) -> range:
        """The seeds, ascending."""
        return range(self.first_seed, self.last_seed + 1)

    def __str__(self) -> str:
        return f"alpha = {self.alpha:g}, N = {self.N}, seed {self.first_seed} to {self.last_seed}"


def compute(sweep: Sweep, part: Part) -> Arrays:
    """Run every start of every cell of a part, with one BLAS thread.

    Returns
    -------
    dict
        The variables of the dataset that have a seed axis (architecture of the dataset:
        `pipeline.store.VARIABLES`), with that axis first; alpha and N are the part's own.
        Deterministic but for ``seconds``.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        cells = [_cell(sweep, part.alpha, part.N, seed) for seed in part.seeds]
    return {name: np.stack([cell[name] for cell in cells]) for name in cells[0]}


def _cell(sweep: Sweep, alpha: float, N: int, seed: int) -> Arrays:
    began = time.perf_counter()
    settings = sweep.descent
    instance = draw_instance(
        sweep.root_seed,
        N,
        seed,
        M=sweep.measurements(alpha, N),
        signal=settings.signal,
        precision=settings.precision,
    )
    starts = uniform_starts(
        sweep.root_seed, N, seed, sweep.grid.start, precision=settings.precision
    )
    probe = _HessianProbe(sweep, instance) if sweep.probe else None
    run = descend(
        instance,
        starts,
        a=settings.a,
        learning_rate=settings.learning_rate,
        record=sweep.steps,
        recovered_at=settings.recovered_at,
        trapped_below=settings.trapped_below,
        probe=probe,
    )
    cell: Arrays = {
        "outcome": run.outcome,
        "recovered": (run.outcome == Outcome.RECOVERED).astype(np.float32),
        "steps": run.steps.astype(np.float64),
        "recovery_time": run.recovery_time,
        "final_overlap": run.final_overlap,
        "final_energy": run.final_energy,
        "overlap": run.overlap,
        "energy": run.energy,
        "mu": run.mu,
        "bulk_edge": run.bulk_edge,
        "outlier": run.outlier,
        "outlier_overlap": run.outlier_overlap,
    }
    if probe is not None:
        cell |= {"lambda_min": probe.values, "signal_overlap": probe.overlaps}
    cell["seconds"] = np.array(time.perf_counter() - began)
    return cell


class _HessianProbe:
    """Collects the lowest eigenpairs along the first start, each from the previous one's vector."""

    def __init__(self, sweep: Sweep, instance: Instance) -> None:
        assert sweep.probe is not None
        self._at = {sweep.steps.index(step) for step in sweep.probe_steps}
        self._a, self._modes, self._instance = sweep.descent.a, sweep.probe.modes, instance
        self._previous: Eigenpairs | None = None
        self.values = np.full((len(sweep.steps), self._modes), np.nan)
        self.overlaps = np.full_like(self.values, np.nan)

    def __call__(self, k: int, w: Array) -> None:
        if k not in self._at:
            return
        v0 = None if self._previous is None else self._previous.vectors[:, 0]
        pairs = lowest_eigenpairs(self._instance, w, a=self._a, modes=self._modes, v0=v0)
        self.values[k] = pairs.values
        self.overlaps[k] = pairs.signal_overlap(self._instance.w_star)
        self._previous = pairs
