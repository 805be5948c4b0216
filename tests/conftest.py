"""Small sweeps, and stores of them, for the tests of the pipeline."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import settings

from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.spec import Sweep, as_document
from alphasweep.pipeline.store import Store, hand_in

# Whoever starts us in the background may have us ignore Ctrl-C, and with us all that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# On a machine that others use, an example may take its time.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what runs whole commands: at the end its waiting would be everybody's."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


ROOMS = ("kernels", "pipeline", "cluster", "analysis")


def keep_own_modules(folder: Path, *more: str) -> None:
    """Have what a user may have beside a sweep: modules with the names of our folders, or others.

    They are packages, but for analysis.py.
    """
    for name in (*ROOMS, *more):
        file = folder / ("analysis.py" if name == "analysis" else f"{name}/__init__.py")
        file.parent.mkdir(exist_ok=True)
        file.write_text("raise ImportError('of the user, and not meant')\n")


TINY = {
    "name": "tiny",
    "root_seed": 5,
    "grid": {"alpha": [2.0, 4.0], "N": [8, 12], "seed": [0, 1, 2], "start": [0, 1]},
    "descent": {"a": 1.0, "learning_rate": 0.03, "t_max": 3.0},
    "record": {"times": [0.3, 1.0]},
    "probe": {"times": [0.0, 1.0], "modes": 2},
}


def tiny(**grid: Any) -> Sweep:
    """Return a sweep of a dozen cells that take milliseconds, with other axes if they are given."""
    return Sweep.from_document(TINY | {"grid": TINY["grid"] | grid})  # type: ignore[operator]


def tiny_flow(**grid: Any) -> Sweep:
    """Return the tiny sweep by the gradient flow, in which some starts end."""
    descent = {"method": "flow", "t_max": 12.0}
    return Sweep.from_document(
        as_document(tiny(**grid)) | {"descent": descent, "problem": {"a": 1.0}}
    )


SWEEPS = {"gd": tiny, "flow": tiny_flow}
"""The tiny sweep by each method of the descent."""


def parts_of(sweep: Sweep, seeds_per_part: int = 2) -> list[Part]:
    """Cut a whole sweep, of consecutive seeds, into parts."""
    seeds = sweep.grid.seed
    return [
        Part(alpha, N, first, min(first + seeds_per_part - 1, seeds[-1]))
        for alpha in sweep.grid.alpha
        for N in sweep.grid.N
        for first in seeds[::seeds_per_part]
    ]


def fill(store: Store, sweep: Sweep, parts: list[Part]) -> None:
    """Prepare the store, compute parts, and commit them, without Dask."""
    with store.lock() as writer:
        writer.prepare(sweep)
        for part in parts:
            hand_in(store.inbox(), part, compute(sweep.recipe, part))
        writer.collect()


def take_over(store: Store) -> None:
    """Have the lock be another driver's, who found the one of this process silent."""
    lock = store.control / "lock"
    other = lock.with_name("other")
    other.write_text(re.sub("token=.*", f"token={token_hex(16)}", lock.read_text()))
    other.replace(lock)


def seen_by(seen: Sequence[int], number: int) -> None:
    """Wait until a reader has seen so many cells done: a writer may be through before it looks."""
    end = time.monotonic() + 120
    while number not in seen:
        assert time.monotonic() < end, f"{number} cells done: not seen"
        time.sleep(0.01)


def bits(path: Path | str, **at: Any) -> dict[str, tuple[Any, bytes]]:
    """Read a store as anyone would: shape, type and bytes of all but ``seconds``."""
    dataset = xr.open_zarr(path).drop_vars("seconds").sel(at).load()
    return {
        str(name): ((values.shape, values.dtype), np.ascontiguousarray(values).tobytes())
        for name, values in ((n, v.values) for n, v in dataset.variables.items())
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A place for a store."""
    return Store(tmp_path / "tiny.zarr")


@pytest.fixture
def full(store: Store) -> Store:
    """A finished store of the tiny sweep."""
    fill(store, tiny(), parts_of(tiny()))
    return store
