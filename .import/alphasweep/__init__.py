"""Gradient descent on phase retrieval over a grid (alpha, N, seed), and its log N corrections.

What a script or a notebook needs: `run` computes a sweep, `status` tells how far one is, `open`
reads its store, and `Study` holds what the analysis makes of it. All else is in
`alphasweep.kernels`, `alphasweep.pipeline`, `alphasweep.cluster` and `alphasweep.analysis`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alphasweep.analysis.study import Study
    from alphasweep.pipeline.reading import open_sweep as open
    from alphasweep.pipeline.run import run
    from alphasweep.pipeline.status import status

__all__ = ["Study", "open", "run", "status"]

_HOMES = {
    "Study": ("alphasweep.analysis.study", "Study"),
    "open": ("alphasweep.pipeline.reading", "open_sweep"),
    "run": ("alphasweep.pipeline.run", "run"),
    "status": ("alphasweep.pipeline.status", "status"),
}


def __getattr__(name: str) -> Any:
    # xarray, Dask and statsmodels take seconds to load: only for who uses them.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, its = _HOMES[name]
    return getattr(import_module(module), its)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
