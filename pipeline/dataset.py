"""The dataset: the public contract between what runs and what is read.

Its dimensions are alpha, N, seed, start, time and mode. A *cell* is one (alpha, N, seed): one
sensing matrix, all of its starts. What is computed of a cell is one record of `cell_dtype`; the
store gives each field of the record its dimensions and its labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from alphasweep.kernels.descent import Outcome
from alphasweep.kernels.instance import measurements
from alphasweep.pipeline.recipe import Recipe

MISSING, DONE, FAILED = range(3)
STATUS = ("missing", "done", "failed")

GRID = ("alpha", "N", "seed")
"""The dimensions along which a sweep can grow."""


@dataclass(frozen=True)
class Variable:
    """One data variable.

    Attributes
    ----------
    dims : tuple of str
    kind : str
        A NumPy dtype, or "real" for the precision of the descent.
    long_name, units : str
    fill : float
        What is read where nothing was computed.
    attrs : mapping
        Further attributes.
    """

    dims: tuple[str, ...]
    kind: str
    long_name: str
    units: str = "1"
    fill: float = float("nan")
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def dtype(self, recipe: Recipe) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(recipe.descent.precision if self.kind == "real" else self.kind)


def _flags(names: Iterable[str]) -> dict[str, Any]:
    meanings = list(names)
    return {"flag_values": list(range(len(meanings))), "flag_meanings": " ".join(meanings)}


_RUN = (*GRID, "start")
_SERIES = (*_RUN, "time")
_MODES = (*GRID, "time", "mode")
_TIME = "physical time; of gd learning_rate * step"

# Of every cell, as it was computed.
COMPUTED: dict[str, Variable] = {
    "outcome": Variable(
        _RUN,
        "int8",
        "how the start ended",
        fill=0,
        attrs=_flags(o.name.lower() for o in Outcome)
        | {"comment": "; ".join(f"{o.name.lower()}: {o.advice}" for o in Outcome)},
    ),
    "recovered": Variable(_RUN, "float32", "1 if the signal was recovered, else 0"),
    "recovery_time": Variable(_RUN, "float64", "time of recovery", _TIME),
    "end_time": Variable(_RUN, "float64", "time to which the start ran", _TIME),
    "steps": Variable(_RUN, "float64", "steps taken"),
    "products": Variable(_RUN, "float64", "products with X or its transpose in these steps"),
    "final_overlap": Variable(_RUN, "real", "overlap w.w_star/N at the last step"),
    "final_energy": Variable(_RUN, "real", "energy at the last step"),
    "final_speed": Variable(_RUN, "float64", "speed |P grad L|/sqrt(N) at the last step"),
    "final_lambda_min": Variable(
        _RUN,
        "float64",
        "lowest eigenvalue of the Riemannian Hessian at the end of a run of flow that did not "
        "recover",
    ),
    "overlap": Variable(_SERIES, "real", "overlap w.w_star/N; its sign is arbitrary"),
    "energy": Variable(_SERIES, "real", "energy, mean loss of a sample"),
    "mu": Variable(_SERIES, "real", "Lagrange multiplier w.grad L/N"),
    "bulk_edge": Variable(
        _SERIES, "real", "lower edge of the Riemannian Hessian's bulk at large N, from the labels"
    ),
    "outlier": Variable(
        _SERIES, "real", "outlier of the Riemannian Hessian at large N; NaN where there is none"
    ),
    "outlier_overlap": Variable(
        _SERIES, "real", "squared overlap of the outlier's eigenvector with the signal at large N"
    ),
    "lambda_min": Variable(
        _MODES, "float64", "lowest eigenvalues of the Riemannian Hessian of the first start"
    ),
    "signal_overlap": Variable(
        _MODES, "float64", "squared overlap of these eigenvectors with the signal"
    ),
    "seconds": Variable(GRID, "float64", "time the cell took on one core", "s"),
}

# Of a sensing that is revealed as it is asked, at the end of each run; NaN of one that is held.
OF_REVEALED: dict[str, Variable] = {
    "right_rank": Variable(_RUN, "float64", "directions w along which the sensing was revealed"),
    "left_rank": Variable(
        _RUN,
        "float64",
        "directions of samples along which the sensing was revealed; a run that needs more than "
        "were planned for ends as undecided, its end_time below t_max",
    ),
    "health": Variable(
        _RUN, "float64", "largest error of the orthonormality of what was revealed, and of its use"
    ),
}

# What the store says of every cell; `status` is written last.
KEPT: dict[str, Variable] = {
    "code": Variable(
        GRID, "int16", "index into the attribute code_versions; -1 if not computed", fill=-1
    ),
    "status": Variable(GRID, "int8", "what is known of the cell", fill=0, attrs=_flags(STATUS)),
}

# Of every alpha and N, with what gives its values.
OF_PAIRS: dict[str, tuple[Variable, Callable[[Recipe, float, int], float]]] = {
    "measurements": (
        Variable(GRID[:2], "int64", "number of measurements M = round(alpha N)", fill=-1),
        lambda recipe, alpha, N: measurements(alpha, N),
    ),
    "learning_rate": (
        Variable(GRID[:2], "float64", "time of a step, as learning_rate = auto chose it", _TIME),
        lambda recipe, alpha, N: recipe.descent.at(recipe.problem.loss, alpha, N).own[
            "learning_rate"
        ],
    ),
}

# long_name and units of the coordinates.
COORDINATES: dict[str, tuple[str, str]] = {
    "alpha": ("signal-to-noise ratio M/N asked for", "1"),
    "N": ("dimension of the signal", "1"),
    "seed": ("name of the sensing matrix, signal and labels", "1"),
    "start": ("name of the initial condition", "1"),
    "time": ("physical time", _TIME),
    "mode": ("rank of the eigenvalue, from the lowest", "1"),
}


# Labels along the dimensions of a cell. A dimension without labels has no variables.
AXES: dict[str, Callable[[Recipe], npt.NDArray[Any]]] = {
    "start": lambda recipe: np.array(recipe.start, dtype=np.int64),
    "time": lambda recipe: recipe.times,
    "mode": lambda recipe: np.arange(recipe.modes, dtype=np.int64),
}


def cell_variables(recipe: Recipe) -> dict[str, Variable]:
    """Return the variables that this code gives a cell of a recipe; `status` is the last.

    A store has those that its attribute ``cell_variables`` lists, which may be fewer or others.
    """
    revealed = OF_REVEALED if recipe.problem.may_reveal else {}
    computed = {
        name: variable
        for name, variable in (COMPUTED | revealed).items()
        if all(AXES[axis](recipe).size for axis in variable.dims[len(GRID) :])
    }
    return computed | KEPT


def pair_variables(recipe: Recipe) -> tuple[str, ...]:
    """Return the names in `OF_PAIRS` that a recipe needs."""
    is_auto = recipe.descent.own.get("learning_rate") == "auto"
    return tuple(name for name in OF_PAIRS if is_auto or name != "learning_rate")


def cell_dtype(recipe: Recipe) -> np.dtype[Any]:
    """Return the type of the record that holds what was computed of one cell."""
    sizes = {axis: len(labels(recipe)) for axis, labels in AXES.items()}
    return np.dtype(
        [
            (name, variable.dtype(recipe), tuple(sizes[d] for d in variable.dims[len(GRID) :]))
            for name, variable in cell_variables(recipe).items()
            if name not in KEPT
        ]
    )
