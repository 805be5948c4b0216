"""How many workers one driver keeps busy, and how many parts a second it can look after.

    python -m tests.benchmarks.workers [PROFILE] [WORKERS] [SECONDS] [PARTS_PER_WORKER]

Runs parts that sleep SECONDS (default 2) and hand in a real part file, with the real driver and a
real store, on WORKERS workers of the first class of the cluster file PROFILE (default: 2 on this
machine). For 64 on the SLURM of the tests (partition wide):

    ALPHASWEEP_SLURM_POLL=60 tests/slurm/cluster.sh start && eval "$(tests/slurm/cluster.sh env)"

Busy is the share of the workers' time spent in parts, from the time when all workers are there and
have loaded their modules to the last acknowledgement. The driver is saturated when it needs all of
one core, so what it needs of it for a part tells how many parts a second are too many; with
SECONDS = 0 that is seen directly.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
from pathlib import Path

from alphasweep.cluster.launch import launch
from alphasweep.cluster.profile import Profile, load
from alphasweep.pipeline.drive import Lane, Progress, drive
from alphasweep.pipeline.plan import calibrate, make_plan
from alphasweep.pipeline.spec import Sweep
from alphasweep.pipeline.store import Store

# A worker imports this before all else.
PATCH = """
import sys
modules = "distributed", "multiprocessing", "alphasweep.cluster.worker"
if any(module in word for module in modules for word in sys.orig_argv):
    import time
    from alphasweep.pipeline import part
    real, known = part._compute_cell, []
    def asleep(*where):
        known or known.append(real(*where))
        time.sleep({seconds})
        return known[0]
    part._compute_cell = asleep
"""


def sweep(parts: int) -> Sweep:
    """Return a sweep of so many cells, and each will be a part."""
    return Sweep.from_document(
        {
            "name": "asleep",
            "root_seed": 1,
            "grid": {"alpha": [2.0], "N": [8], "seed": list(range(parts)), "start": [0]},
            "descent": {"a": 1.0, "learning_rate": 0.03, "t_max": 0.3},
            "record": {"times": [0.3]},
        }
    )


def main(profile: str = "", workers: str = "2", seconds: str = "2", each: str = "20") -> None:
    """Run, and print what came out."""
    size = {"name": "local", "up_to_N": 8, "memory": "1 GB", "walltime": "1h"}
    local = Profile.model_validate({"kind": "local", "jobs": int(workers), "classes": [size]})
    one = load(Path(profile)) if profile else local
    name, number = one.classes[0].name, int(workers)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(PATCH.format(seconds=float(seconds)))
        os.environ["PYTHONPATH"] = folder  # jobs of the queue take it over from here
        work, store = sweep(number * int(each)), Store(Path(folder) / "asleep.zarr")
        began = time.perf_counter()
        with (
            store.lock() as writer,
            launch(
                one, {name: number}, run_directory=store.control / "cluster", token="t"
            ) as cluster,
        ):
            writer.prepare(work)
            cluster.wait(name, workers=number)
            print(f"{number} workers of {one.kind} after {time.perf_counter() - began:.1f} s")
            plan = make_plan(work, calibrate(work.recipe, store), store, seconds_per_part=1e-9)
            lane = Lane(cluster.client(name), (8,), lambda: cluster.workers(name))
            ends: list[float] = []

            def watch(where: Progress) -> None:
                if where.parts_done == where.parts:
                    ends.append(time.perf_counter())

            # They load half a second each, which 64 of them do not do on two cores elsewhere.
            lane.client.run(importlib.import_module, "alphasweep.pipeline.tasks")
            theirs = sum(lane.client.run(time.process_time).values())
            cpu, began = time.process_time(), time.perf_counter()
            end = drive(work, writer, plan, [lane], watch=watch, workforce=cluster)
            cpu, wall = time.process_time() - cpu, ends[0] - began
            theirs = sum(lane.client.run(time.process_time).values()) - theirs
    asleep = end.parts * float(seconds)
    print(
        f"{end.parts} parts of {float(seconds):g} s in {wall:.1f} s: {end.parts / wall:.1f} parts/s"
        f", busy {asleep / (number * wall):.1%}; the driver computed {cpu / wall:.0%} of the time, "
        f"{1000 * cpu / end.parts:.2f} ms a part; workers {1000 * theirs / end.parts:.2f} ms a part"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
