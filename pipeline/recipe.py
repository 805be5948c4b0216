"""What the numbers of a sweep's cells depend on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alphasweep.kernels.instance import measurements
from alphasweep.kernels.problem import Problem
from alphasweep.pipeline.sections import Descent


@dataclass(frozen=True)
class Recipe:
    """All that the numbers of a cell depend on, besides its own (alpha, N, seed).

    Attributes
    ----------
    root_seed : int
        All random streams descend from it.
    start : tuple of int
        Names of the initial conditions.
    problem : Problem
    descent : Descent
    steps, probe_steps : tuple of float
        Counts of the method (`Descent.count`), steps of gd and times of flow, at which the series
        are recorded, from 0 to the last one, and at which the Hessian is probed, a subset.
    modes : int
        Eigenpairs of a probe; 0 without probes.
    """

    root_seed: int
    start: tuple[int, ...]
    problem: Problem
    descent: Descent
    steps: tuple[float, ...]
    probe_steps: tuple[float, ...]
    modes: int

    @property
    def times(self) -> npt.NDArray[np.float64]:
        """Physical times of `steps`, shape (len(steps),)."""
        return self.descent.unit(self.problem.loss) * np.array(self.steps, dtype=np.float64)

    def problem_at(self, alpha: float, N: int) -> Problem:
        """Return the problem of the cells at one alpha and N, whose sensing is no longer "auto"."""
        return self.problem.at(
            measurements(alpha, N),
            N,
            starts=len(self.start),
            t=self.descent.lasts(N),
            round_trips=self.descent.round_trips(self.problem.loss, alpha, N),
        )
