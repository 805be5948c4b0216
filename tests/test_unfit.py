"""A worker of another environment than the driver's computes nothing: the run ends and says why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

from alphasweep.pipeline import tasks
from alphasweep.pipeline.dataset import DONE, FAILED
from alphasweep.pipeline.drive import Lane, Progress, drive
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.plan import REFERENCE, CostModel, make_plan
from alphasweep.pipeline.provenance import code_version, environment
from alphasweep.pipeline.spec import Sweep
from alphasweep.pipeline.store import Store
from alphasweep.pipeline.tasks import UnfitWorkerError, unfit
from tests.conftest import tiny

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]

# Cells of some 20 ms, and more of them than a run computes before its workers are others.
LONG = """
name = "long"
root_seed = 5
[grid]
alpha = [2.0]
N = [64]
seed = { from = 0, to = 9999 }
start = [0, 1]
[descent]
a = 1.0
learning_rate = 0.01
t_max = 5.0
trapped_below = 0.0
recovered_at = 0.999999
[record]
times = [1.0]
"""
OTHER = """

_right = energy


def energy(*arguments):
    return 2 * _right(*arguments)
"""


def assert_only_right_numbers(store: Store) -> None:
    """Assert that some cells are done, none has failed, and all are what this code computes."""
    with store.lock() as writer:
        writer.collect()
    status, dataset = store.status()[0, 0], store.open()
    done = np.flatnonzero(status == DONE)
    assert len(done)
    assert not (status == FAILED).any()
    energy = dataset.final_energy.values[0, 0]
    for seed in done:
        (cell,) = compute(store.sweep().recipe, Part(2.0, 64, int(seed), int(seed)))
        np.testing.assert_array_equal(energy[seed], cell["final_energy"])
    assert store.versions() == {code_version(): len(done)}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code, which is what commands run, and may be changed."""
    for package in ("kernels", "pipeline", "cluster", "analysis"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / "code" / "alphasweep" / package, ignore=ignored)
    shutil.copy(ROOT / ".import" / "alphasweep" / "__init__.py", tmp_path / "code" / "alphasweep")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "code" / "alphasweep"


@pytest.fixture(scope="module")
def scheduler() -> Iterator[LocalCluster]:
    """A scheduler, for workers of all kinds."""
    # The profile can freeze a process of Python 3.11, see cluster.launch.
    with dask.config.set({"distributed.worker.profile.enabled": False}):
        cluster = LocalCluster(
            n_workers=0, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        )
    with cluster:
        yield cluster


def test_other_kernels_on_the_second_and_the_third_worker(
    scheduler: LocalCluster, tree: Path, store: Store
) -> None:
    """They come when the first has computed cells, find other kernels on their path: refused."""
    with (tree / "kernels" / "loss.py").open("a") as file:
        file.write(OTHER)
    address = scheduler.scheduler_address
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1"]
    command += ["--no-nanny", "--no-dashboard", "--death-timeout", "300"]
    right = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    started: list[subprocess.Popen[bytes]] = []

    def start(environ: dict[str, str]) -> None:
        started.append(subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL))

    def watch(progress: Progress) -> None:
        if progress.cells_now and len(started) == 1:
            for _ in range(2):
                start(right | {"PYTHONPATH": str(tree.parent)})

    sweep = Sweep.from_document(tomllib.loads(LONG))
    model = CostModel(REFERENCE)
    try:
        with Client(scheduler) as client, store.lock() as writer:
            writer.prepare(sweep)
            plan = make_plan(sweep, model, store, seconds_per_part=1e-9)
            start(right)
            lanes = [Lane(client, sweep.grid.N, lambda: len(scheduler.scheduler.workers))]
            with pytest.raises(UnfitWorkerError) as caught:
                drive(sweep, writer, plan, lanes, watch=watch)
    finally:
        for worker in started:
            worker.kill()
            worker.wait()
    said = str(caught.value)
    assert f"workers must be what the driver is, alphasweep {code_version()}" in said
    assert f"instead of {code_version()}" in said
    assert str(tree / "kernels") in said
    assert "what was finished is kept" in said
    assert_only_right_numbers(store)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A worker in this process, so that a test can change what it is."""
    with dask.config.set({"distributed.worker.profile.enabled": False}):
        cluster = LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            memory_limit=None,
        )
    with cluster, Client(cluster) as client:
        yield client


def run_all(store: Store, client: Client) -> None:
    """Run the tiny sweep on one worker."""
    with store.lock() as writer:
        writer.prepare(tiny())
        model = CostModel(REFERENCE)
        plan = make_plan(tiny(), model, store, seconds_per_part=1e-9)
        lanes = [Lane(client, tiny().grid.N, lambda: 1)]
        drive(tiny(), writer, plan, lanes, watch=lambda progress: None)


@pytest.mark.parametrize("name", environment())
def test_each_version_counts(
    store: Store, client: Client, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever differs is named, with what it must be, and no cell is computed, nor failed."""
    here = environment()
    monkeypatch.setattr(tasks, "environment", lambda: here)  # the driver's
    real = tasks._examine

    def other(worker: str, expected: dict[str, str]) -> None:
        with monkeypatch.context() as there:
            there.setattr(tasks, "environment", lambda: here | {name: "0.0.7"})
            real(worker, expected)

    monkeypatch.setattr(tasks, "_examine", other)
    with pytest.raises(UnfitWorkerError, match=f"{name} is 0.0.7 instead of") as caught:
        run_all(store, client)
    assert here[name] in str(caught.value)
    assert not store.status().any()
    assert store.failures() == store.parts() == []


def test_a_worker_that_cannot_even_read_its_task(
    store: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code of another version may lack what a task names: no part can help that."""

    def older(part: Part, seconds: float, *, parts_folder: Path, recipe: Any) -> float:
        raise AssertionError("it cannot be called")

    monkeypatch.setattr(tasks, "compute_part", older)
    with pytest.raises(UnfitWorkerError, match=r"could not begin a part; it got TypeError"):
        run_all(store, client)
    assert not store.status().any()
    assert store.failures() == []


def test_a_part_that_raises_is_no_fault_of_its_worker() -> None:
    """What comes out of the computation says where it was raised, and concerns the part."""
    error = TypeError("of the kernels")
    error.add_note("on node7")
    assert unfit(error) is None
    assert unfit(ZeroDivisionError()) is None


ROOMS = ("part", "dataset", "sections", "recipe", "spec")
DECIDES = ("kernels/descent.py", *(f"pipeline/{name}.py" for name in ROOMS))


@pytest.mark.parametrize("file", [*DECIDES, "kernels/new.py"])
def test_every_file_that_decides_a_number_is_in_the_digest(tree: Path, file: str) -> None:
    """M = round(alpha N), the rounding of times and the types are not in the kernels."""

    def version() -> str:
        script = "from alphasweep.pipeline.provenance import code_version; print(code_version())"
        return subprocess.check_output([sys.executable, "-c", script], text=True)

    before = version()
    assert before.strip() == code_version()
    with (tree / file).open("a") as opened:
        opened.write("# other\n")
    assert version() != before


def test_the_environment_is_that_of_what_is_loaded() -> None:
    """NumPy's own word counts, not what a package beside it says."""
    assert environment()["NumPy"] == np.__version__
    assert environment()["alphasweep"] == code_version()
    assert environment()["BLAS of NumPy"].strip()
    assert {"Python", "SciPy", "distributed", "dask", "cloudpickle"} <= environment().keys()
