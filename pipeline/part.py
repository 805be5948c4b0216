"""A part, the unit of work, of retry and of batching: one alpha, one N, a few consecutive seeds."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from alphasweep.kernels.descent import Outcome, Trajectory, joined
from alphasweep.kernels.hessian import Eigenpairs, lowest_eigenpairs
from alphasweep.kernels.instance import Instance, measurements
from alphasweep.kernels.loss import Array
from alphasweep.kernels.methods import METHODS
from alphasweep.kernels.revealed import HEALTHY, RevealedSensing, UnhealthyError, most_ranks
from alphasweep.pipeline.dataset import OF_REVEALED, cell_dtype
from alphasweep.pipeline.recipe import Recipe

Cells = npt.NDArray[Any]
"""(n,), structured: a record of `pipeline.dataset.cell_dtype` for each of n consecutive seeds."""


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
        last = f" to {self.last_seed}" if len(self.seeds) > 1 else ""
        return f"alpha = {self.alpha:g}, N = {self.N}, seed {self.first_seed}{last}"


def compute(recipe: Recipe, part: Part) -> Cells:
    """Run every start of every cell of a part, with one BLAS thread.

    Returns
    -------
    Cells
        In the order of `part.seeds`. Each cell is computed by itself, so it has the same bits in
        whatever part it comes; all but ``seconds`` is deterministic.
    """
    cells = np.empty(len(part.seeds), cell_dtype(recipe))
    with threadpool_limits(limits=1, user_api="blas"):
        for cell, seed in zip(cells, part.seeds, strict=True):
            for name, values in _compute_cell(recipe, part.alpha, part.N, seed).items():
                cell[name] = values
    return cells


def _compute_cell(recipe: Recipe, alpha: float, N: int, seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    problem, settings = (
        recipe.problem_at(alpha, N),
        recipe.descent.at(recipe.problem.loss, alpha, N),
    )
    M, precision = measurements(alpha, N), settings.precision
    most = most_ranks(settings.lasts(N), M, N, problem.sensing_tolerance)
    together = [(start,) for start in recipe.start] if problem.one_a_start else [recipe.start]
    probed: dict[str, Any] = {}
    runs: list[Trajectory] = []
    known: list[tuple[float, float, float]] = []
    for start in together:
        instance = problem.instance(
            recipe.root_seed, N, seed, M=M, precision=precision, start=start[0], most=most
        )
        probe = _HessianProbe(recipe, instance)
        run = METHODS[settings.method](
            instance,
            problem.starts(
                recipe.root_seed, N, seed, start, instance=instance, precision=precision
            ),
            loss=problem.loss,
            record=[settings.count(problem.loss, time) for time in recipe.times.tolist()],
            recovered_at=settings.recovered_at,
            probe=probe if recipe.probe_steps and not runs else None,
            **settings.own,
        )
        if recipe.modes and not runs:
            probed = {"lambda_min": probe.values, "signal_overlap": probe.overlaps}
        runs.append(run)
        known += [_revealed(instance)] * len(start)
    if recipe.problem.may_reveal:
        probed |= dict(zip(OF_REVEALED, zip(*known, strict=True), strict=True))
    run = joined(runs)
    return {
        **{field.name: getattr(run, field.name) for field in fields(run)},
        **probed,
        "recovered": run.outcome == Outcome.RECOVERED,
        "seconds": time.perf_counter() - began,
    }


def _revealed(instance: Instance) -> tuple[float, float, float]:
    """Right and left directions of a revealed sensing, and its health; NaN of one that is held.

    Raises
    ------
    UnhealthyError
        If the directions are not orthonormal, so that the run is not that of any matrix.
    """
    sensing = instance.sensing
    if not isinstance(sensing, RevealedSensing):
        return np.nan, np.nan, np.nan
    health = sensing.health()
    if not health <= HEALTHY:
        raise UnhealthyError(
            f"the revealed sensing must be orthonormal to {HEALTHY:g} at the end of a run; got "
            f"{health:.2g} with {sensing.ranks} directions: raise sensing_tolerance, or set "
            'precision = "float64"'
        )
    return *sensing.ranks, health


class _HessianProbe:
    """Collects the lowest eigenpairs along the first start, each from the previous one's vector."""

    def __init__(self, recipe: Recipe, instance: Instance) -> None:
        self._at = {recipe.steps.index(step) for step in recipe.probe_steps}
        self._loss, self._modes, self._instance = recipe.problem.loss, recipe.modes, instance
        self._previous: Eigenpairs | None = None
        self.values = np.full((len(recipe.steps), self._modes), np.nan)
        self.overlaps = np.full_like(self.values, np.nan)

    def __call__(self, k: int, w: Array) -> None:
        if k not in self._at:
            return
        v0 = None if self._previous is None else self._previous.vectors[:, 0]
        pairs = lowest_eigenpairs(self._instance, w, loss=self._loss, modes=self._modes, v0=v0)
        self.values[k] = pairs.values
        self.overlaps[k] = pairs.signal_overlap(self._instance.w_star)
        self._previous = pairs
