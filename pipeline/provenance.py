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

from pipeline.part import Part, compute
from pipeline.spec import Recipe, as_problem_table

# What decides about numbers: also which they are, of which type, M = round(alpha N), and the steps.
_COMPUTE = ("kernels", "pipeline.part", "pipeline.dataset", "pipeline.spec")
_TRANSPORT = ("distributed", "dask", "cloudpickle")  # driver and worker have to understand another
#: What there was before a sweep could name it.
_BEFORE = {"loss": "intensity", "sensing": "gaussian", "start": "uniform"}
_CELL = Part(alpha=4.0, N=32, first_seed=0, last_seed=0)
_STEPS = (0, 1, 3)
_STARTS = (0, 1)
_SHOWN = ("overlap", "energy", "mu", "bulk_edge")
# Another BLAS, or another processor, sums in another order; a few steps do not amplify that much.
_ROUNDING = {"float32": 1e-4, "float64": 1e-10}


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
    # What there was before [problem] is not in it: parts and stores of before keep their digest.
    problem = as_problem_table(recipe.problem).items() - _BEFORE.items()
    descent = recipe.descent.model_dump() | dict(problem)
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
    """Run three steps of a small problem with the settings of a recipe.

    Returns
    -------
    dict
        ``overlap``, ``energy``, ``mu`` and ``bulk_edge``, each (start, step) as nested lists: JSON.
        Takes milliseconds.
    """
    small = replace(recipe, start=_STARTS, steps=_STEPS, probe_steps=(), modes=0)
    (cell,) = compute(small, _CELL)
    # A start that ended before is NaN, which JSON does not have.
    return {name: np.nan_to_num(cell[name].astype(float), nan=-99.0).tolist() for name in _SHOWN}


def other_numbers(recipe: Recipe, expected: dict[str, Any]) -> list[str]:
    """Say where this code departs from a fingerprint by more than rounding.

    Returns
    -------
    list of str
        Names of the variables that differ, with the largest difference; empty if none does.
    """
    here, rounding = fingerprint(recipe), _ROUNDING[recipe.descent.precision]
    found = []
    for name, values in expected.items():
        difference = np.abs(np.array(here[name]) - np.array(values))
        if (difference > rounding * np.maximum(1, np.abs(values))).any():
            found.append(f"{name} by up to {difference.max():.2g}")
    return found
