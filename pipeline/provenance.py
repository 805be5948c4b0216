"""Which code computed a cell, and whether this code would give the same numbers."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from threadpoolctl import threadpool_info

from alphasweep.kernels.problem import AUTO
from alphasweep.pipeline.dataset import KEPT, OF_PAIRS, cell_variables, pair_variables
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.recipe import Recipe
from alphasweep.pipeline.sections import as_problem_table
from alphasweep.pipeline.spec import Sweep

# What decides about numbers: also which they are, of which type, M = round(alpha N), and the steps.
_COMPUTE = (
    "alphasweep.kernels",
    "alphasweep.pipeline.part",
    "alphasweep.pipeline.dataset",
    "alphasweep.pipeline.sections",
    "alphasweep.pipeline.recipe",
    "alphasweep.pipeline.spec",
)
_TRANSPORT = ("distributed", "dask", "cloudpickle")  # driver and worker have to understand another
#: What there was before a sweep could name it.
_BEFORE = {"loss": "intensity", "sensing": "gaussian", "start": "uniform", "method": "gd"}
# A few steps with the settings of a recipe. Stores hold what they gave, so these are for ever.
_OWN = Part(alpha=4.0, N=32, first_seed=0, last_seed=0)
_STEPS = (0, 1, 3)
_PAIRS = ((1.5, 32), (3.0, 128), (6.0, 512), (4.0, 2048))  # whose learning_rate = "auto" is held
_STARTS = (0, 1)
# Another BLAS, or another processor, sums in another order; a few steps do not amplify that much.
_ROUNDING = {"float32": 1e-4, "float64": 1e-10}

# Whole runs with settings of their own, which go where a few steps do not. They are in float64, so
# that little is lost in rounding (with six kernels of OpenBLAS they differ by 2e-10 at most, after
# ARPACK). Stores hold what they gave, so an entry is for ever, and others may be added.
_ROUNDING_OF_RUNS = 1e-8
_SETTINGS = {"t_max": 20.0, "recovered_at": 0.95, "precision": "float64"}
# They go by the method of the recipe: a change of another one changes no number of its store.
_OF_METHOD: dict[str, dict[str, Any]] = {
    "gd": {"learning_rate": 0.03, "trapped_below": 0.01},
    "flow": {"tolerance": 1e-3, "rest_within": 0.01},
}
_LONG = {
    "problem": {"a": 1.0},
    "descent": _SETTINGS,
    "record": {"times": [0.5, 2.0]},  # between two steps
    "probe": {"times": [0.0, 2.0], "modes": 2},
}
_RUNS: dict[str, tuple[Part, list[int], dict[str, Any]]] = {
    # M = 22, not 22.5. The starts are undecided, are trapped, recover, and by gd diverge: the last
    # one is above its first energy at a look before the third leaves, and at the look after.
    "planted": (Part(2.5, 9, 2, 2), [1, 2, 3, 11], _LONG),
    # M = 30, not 29.7.
    "null": (Part(2.7, 11, 0, 0), [0, 1], _LONG | {"problem": {"a": 1.0, "signal": "null"}}),
    # Probed by ARPACK, and more rows than are multiplied at once.
    "large": (
        Part(3.1, 257, 0, 0),
        [0],
        {
            "problem": {"a": 1.0},
            "descent": _SETTINGS | {"t_max": 0.5},
            "record": {"times": []},
            "probe": {"times": [0.0, 0.5], "modes": 2},
        },
    ),
}


@cache
def code_version() -> str:
    """Version of alphasweep, and of the very files that compute: ``0.1.0+3f2a9c01``."""
    digest = hashlib.sha256()
    for name in _COMPUTE:
        origin = Path(str(import_module(name).__file__))
        files = origin.parent.glob("*.py") if origin.name == "__init__.py" else [origin]
        for file in sorted(files):
            digest.update(file.read_bytes())
    return f"{version('alphasweep')}+{digest.hexdigest()[:8]}"


@cache
def environment() -> dict[str, str]:
    """Versions of what decides the numbers of this process, or whether it understands another.

    A processor, or the kernel that a BLAS chooses for it, is not among them: it changes the last
    digits, and a cluster has many.
    """
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "alphasweep": code_version(),
        "Python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "NumPy": np.__version__,
        "BLAS of NumPy": f"{blas['name']} {blas['version']}",
        "SciPy": scipy.__version__,
        **{name: version(name) for name in _TRANSPORT},
    }


def recipe_digest(recipe: Recipe) -> str:
    """Tell recipes apart: 16 hex digits of all that is in one."""
    # What had no name before is not in it: parts and stores of before keep their digest.
    named = recipe.descent.model_dump() | as_problem_table(recipe.problem)
    descent = dict(named.items() - _BEFORE.items())
    steps = (recipe.steps, recipe.probe_steps, recipe.modes)
    text = json.dumps([recipe.root_seed, recipe.start, descent, *steps], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def machine() -> dict[str, str]:
    """Name what can change bits besides the code.

    Returns
    -------
    dict
        ``python``, its version; ``blas``, each library of NumPy and SciPy with its version and the
        kernel that it chose for this processor; ``cpu``, the processor's model.
    """
    libraries = {
        f"{found['internal_api']} {found['version']} {found.get('architecture', '')}".strip()
        for found in threadpool_info()
        if found["user_api"] == "blas"
    }
    return {
        "python": platform.python_version(),
        "blas": ", ".join(sorted(libraries)) or "unknown",
        "cpu": _processor(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine() or "unknown"


def fingerprint(recipe: Recipe) -> dict[str, Any]:
    """Compute a few tiny cells: one with the settings of a recipe, three steps, and whole runs.

    Returns
    -------
    dict
        By name of a variable, all but ``seconds``: values of the first cell, (start, step) or
        (start,) as nested lists; by "cell/variable": values of the runs. It is JSON, and takes a
        tenth of a second.
    """
    small = replace(recipe, start=_STARTS, steps=_STEPS, probe_steps=(), modes=0)
    found = _values(small, _OWN)
    method = recipe.descent.method
    if "learning_rate" in pair_variables(recipe):
        _, rate = OF_PAIRS["learning_rate"]
        found["steps a unit of time"] = [1 / rate(recipe, alpha, N) for alpha, N in _PAIRS]
    if recipe.problem.sensing == AUTO:
        # Not as long as the sweep's: t_max may be raised.
        found["which are revealed"] = [
            float(recipe.problem.at(M, N, starts=1, t=8.0, round_trips=400.0).one_a_start)
            for M, N in ((256, 128), (1600, 400), (2400, 600), (8192, 1024))
        ]
    for name, (part, starts, settings) in _RUNS.items():
        descent = settings["descent"] | {"method": method} | _OF_METHOD.get(method, {})
        grid = {"alpha": [part.alpha], "N": [part.N], "seed": [*part.seeds], "start": starts}
        # Through a sweep: it decides by which steps times are reached.
        document = {"name": name, "root_seed": 5, "grid": grid, **settings, "descent": descent}
        run = _values(Sweep.from_document(document).recipe, part)
        found |= {f"{name}/{variable}": values for variable, values in run.items()}
    return found


def _values(recipe: Recipe, part: Part) -> dict[str, Any]:
    (cell,) = compute(recipe, part)
    # A start that ended before is NaN, which JSON does not have.
    return {
        name: np.nan_to_num(cell[name].astype(float), nan=-99.0).tolist()
        for name in cell_variables(recipe)
        if name not in KEPT and name != "seconds"
    }


def other_numbers(recipe: Recipe, expected: dict[str, Any]) -> list[str]:
    """Say where this code departs from a fingerprint by more than rounding.

    Parameters
    ----------
    recipe : Recipe
    expected : dict
        What `fingerprint` returned, of this code or of another: only what both know is compared.

    Returns
    -------
    list of str
        Names of the variables that differ, with the largest difference; empty if none does.
    """
    largest: dict[str, float] = {}
    for name, values in fingerprint(recipe).items():
        if name not in expected:
            continue
        run, _, variable = name.rpartition("/")
        rounding = _ROUNDING_OF_RUNS if run else _ROUNDING[recipe.descent.precision]
        wanted = np.array(expected[name])
        difference = np.abs(np.array(values) - wanted)
        if (difference > rounding * np.maximum(1, np.abs(wanted))).any():
            largest[variable] = max(largest.get(variable, 0.0), float(difference.max()))
    return [f"{variable} by up to {value:.2g}" for variable, value in largest.items()]
