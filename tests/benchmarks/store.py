"""What a large store costs: growing it, planning ten million cells, and a hundred thousand parts.

    python -m tests.benchmarks.store [widening | cells | parts [PARTS]]

Without a name all three are measured, each in a process of its own, in a temporary directory:

widening
    A value is put into the middle of alpha and of N in a store of 8,000 chunks; the inodes of the
    chunks tell that none was copied.
cells
    A grid of 10^7 cells is planned, then again against its half-done store, and asked for its
    status. The half that is done has a chunk of ``status`` and ``seconds`` each.
parts
    PARTS (default 100,000) parts that compute nothing, but are handed in and committed, go through
    Dask with two workers. Memory is that of the driver, which holds Dask's scheduler.

Stores lie where temporary files do: set TMPDIR to measure another file system.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from alphasweep.pipeline import layout
from alphasweep.pipeline.dataset import DONE
from alphasweep.pipeline.plan import REFERENCE, CostModel, calibrate, make_plan
from alphasweep.pipeline.spec import Sweep
from alphasweep.pipeline.store import Store
from alphasweep.pipeline.sweeps import widened

MODEL = CostModel(REFERENCE)


def sweep_of(alphas: int, sizes: int, seeds: int) -> Sweep:
    """Return a sweep of so many alpha, N and seeds, with one start and few records."""
    return Sweep.from_document(
        {
            "name": "large",
            "root_seed": 0,
            "grid": {
                "alpha": [round(1 + 0.1 * i, 1) for i in range(alphas)],
                "N": [10 + 10 * j for j in range(sizes)],
                "seed": {"from": 0, "to": seeds - 1},
                "start": [0],
            },
            "descent": {"a": 1.0, "learning_rate": 0.03, "t_max": 3.0},
            "record": {"times": [0.3, 1.0]},
        }
    )


def widening(folder: Path) -> None:
    """Measure a widening in the middle of both axes."""
    sweep, store = sweep_of(50, 12, 1000), Store(folder / "large.zarr")
    with store.lock() as writer:
        writer.prepare(sweep)
        arrays = layout.open_arrays(store.path, "r+")
        cells = [name for name, array in arrays.items() if len(array.shape) > 2]
        for name in cells:
            arrays[name][...] = np.ones((), arrays[name].dtype)
        before = _inodes(store, cells, sweep)
        wider = widened(sweep, {"alpha": "1.25,3.33", "N": "15,55"})
        began = time.perf_counter()
        writer.prepare(wider)
        spent = time.perf_counter() - began
    after = _inodes(store, cells, wider)
    kept = sum(after[at] == inode for at, inode in before.items())
    print(f"widening in the middle of alpha and N: {len(before):,} chunks in {spent:.1f} s;")
    print(
        f"  {kept:,} of {len(before):,} chunks are the files (inodes) that they were, for example"
    )
    for name, alpha, N in list(before)[:: len(before) // 3]:
        inodes = before[name, alpha, N], after[name, alpha, N]
        print(f"  {name} at alpha = {alpha}, N = {N}: inode {inodes[0]} before, {inodes[1]} after")
    assert kept == len(before)


def _inodes(store: Store, names: list[str], sweep: Sweep) -> dict[tuple[str, float, int], int]:
    arrays, grid = layout.open_arrays(store.path), sweep.grid
    found = {}
    for name, (i, alpha), (j, N) in product(names, enumerate(grid.alpha), enumerate(grid.N)):
        file = layout.chunk_file(store.path, arrays[name], (i, j, 0))
        if file.exists():
            found[name, alpha, N] = file.stat().st_ino
    return found


def cells(folder: Path) -> None:
    """Measure the planning of ten million cells."""
    sweep, store = sweep_of(100, 5, 20_000), Store(folder / "large.zarr")
    began = time.perf_counter()
    plan = make_plan(sweep, MODEL)
    said = f"{plan.cells:,} cells, {plan.files:,} files: planned in"
    print(f"{said} {time.perf_counter() - began:.1f} s")
    with store.lock() as writer:
        writer.prepare(sweep)
    arrays = layout.open_arrays(store.path, "r+")
    per_chunk = store.attributes()["seeds_per_chunk"]
    chunks = -(-len(sweep.grid.seed) // per_chunk)
    # Every other block, and in it all but some seeds: what is missing is in many runs.
    done = np.full(per_chunk, DONE, np.int8)
    done[::10] = 0
    blocks = list(product(range(len(sweep.grid.alpha)), range(len(sweep.grid.N)), range(chunks)))
    for i, j, k in blocks[::2]:
        at = slice(k * per_chunk, min((k + 1) * per_chunk, len(sweep.grid.seed)))
        part = done[: at.stop - at.start]
        arrays["status"][i, j, at] = part
        arrays["seconds"][i, j, at] = np.where(part, 0.1, np.nan)
    began = time.perf_counter()
    with store.lock() as writer:
        writer.prepare(sweep)
        plan = make_plan(sweep, calibrate(sweep.recipe, store), store, seconds_per_part=60)
        first = next(plan.work()).parts[0]
    spent = time.perf_counter() - began
    print(
        f"  its store with {plan.done:,} done, in {len(blocks):,} blocks: resumed in {spent:.1f} s "
        f"(a second of which measures the machine): {sum(plan.parts.values()):,} parts, first "
        f"{first}"
    )
    print(f"  peak memory of that process: {_peak() / 1e6:.0f} MB")
    began = time.perf_counter()
    command = [sys.executable, "-P", "-m", "alphasweep.pipeline.cli"]
    command += ["status", str(store.path), "--json"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(said)["done"] == plan.done
    print(f"  alphasweep status: {time.perf_counter() - began:.1f} s")


def parts(folder: Path, number: int) -> None:
    """Measure how fast parts go through Dask that take no time."""
    from alphasweep.cluster.local import local
    from alphasweep.pipeline.drive import Lane, Progress, drive

    sweep, store = sweep_of(number // 1000, 10, 100), Store(folder / "large.zarr")
    seen: list[tuple[int, float, float]] = []

    def watch(progress: Progress) -> None:
        if not seen or progress.parts_done >= seen[-1][0] + progress.parts // 10:
            seen.append((progress.parts_done, progress.elapsed, psutil.Process().memory_info().rss))
            print(
                f"  {progress.parts_done:,} parts after {progress.elapsed:.0f} s, memory "
                f"{seen[-1][2] / 1e6:.0f} MB",
                flush=True,
            )

    with store.lock() as writer:
        writer.prepare(sweep)
        plan = make_plan(sweep, MODEL, store, seconds_per_part=1e-9)
        with local(2) as client:
            client.run(_compute_nothing)
            end = drive(sweep, writer, plan, [Lane(client, sweep.grid.N, lambda: 2)], watch=watch)
            family = [psutil.Process(), *psutil.Process().children(recursive=True)]
            driver, *workers = (sum(process.cpu_times()[:2]) for process in family)
    assert (store.status() == DONE).all()
    load = psutil.getloadavg()[1]
    print(
        f"{end.parts_done:,} parts in {end.elapsed:.0f} s: {end.parts_done / end.elapsed:.0f} a "
        f"second; processor time a part: driver {1e3 * driver / end.parts_done:.1f} ms, workers "
        f"{1e3 * sum(workers) / end.parts_done:.1f} ms; load of the machine {load:.1f}"
    )


def _compute_nothing() -> None:
    # By value, as a worker does not know this file.
    import numpy as np

    from alphasweep.pipeline import tasks
    from alphasweep.pipeline.dataset import cell_dtype

    tasks.compute = lambda recipe, part: np.zeros(len(part.seeds), cell_dtype(recipe))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main(what: str, *numbers: Any) -> None:
    """Measure one of them."""
    with tempfile.TemporaryDirectory() as folder:
        if what == "parts":
            parts(Path(folder), *map(int, numbers or ["100000"]))
        else:
            {"widening": widening, "cells": cells}[what](Path(folder))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(*sys.argv[1:])
    else:
        for each in ("widening", "cells", "parts"):
            subprocess.run([sys.executable, "-m", "tests.benchmarks.store", each], check=True)
