"""What the pipeline costs beyond the kernels.

    python tests/benchmarks/pipeline.py [PRESET-OR-SWEEP] [WORKERS]

Runs `alphasweep run` (default: laptop, a worker a core) in a temporary directory and compares the
kernel seconds, the variable `seconds` of the store summed over its cells, with workers x wall: of
the phase that computes and commits, and of the whole command, which also measures the machine,
starts the workers and draws the figures. What is missing from 100 % is overhead, of workers that
wait as well as of the driver. On cores that are shared with others the kernel seconds grow too, so
run it on an idle machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import xarray as xr


def main(sweep: str = "laptop", workers: str = str(os.cpu_count())) -> None:
    """Run the sweep and print the table."""
    if Path(sweep).exists():
        sweep = str(Path(sweep).resolve())
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "sweep.zarr")
        command = ["alphasweep", "run", sweep, "--store", str(store), "--workers", workers]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        whole = time.perf_counter() - began
        if done.returncode != 0:
            sys.exit(
                f"{' '.join(command)} must succeed; it exited {done.returncode}:\n{done.stderr}"
            )
        progress = json.loads((store.with_name(f"{store.name}.run") / "progress.json").read_text())
        with xr.open_zarr(store) as data:
            kernels, cells = float(data["seconds"].sum()), data["seconds"].size
    print(f"{sweep}: {cells} cells, {workers} workers, {kernels:.1f} s in the kernels")
    print("                     wall   workers x wall   overhead")
    for phase, wall in (("compute and commit", progress["elapsed"]), ("whole command", whole)):
        available = int(workers) * wall
        print(
            f"{phase:18s} {wall:5.1f} s {available:14.1f} s {1 - kernels / available:10.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
