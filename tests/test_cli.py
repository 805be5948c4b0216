"""The commands, as a user types them: what they print, how they end, and what they leave behind."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.metadata import packages_distributions
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
import xarray as xr
from typer.testing import CliRunner

from alphasweep.analysis import figures, scaling
from alphasweep.cluster import worker
from alphasweep.cluster.launch import job_name, record_queue
from alphasweep.kernels.problem import LOSSES
from alphasweep.pipeline import cli
from alphasweep.pipeline.cli import app
from alphasweep.pipeline.part import compute
from alphasweep.pipeline.spec import Sweep, load
from alphasweep.pipeline.store import Store, Writer, hand_in
from tests.conftest import TINY as CONFTEST
from tests.conftest import bits, fill, keep_own_modules, parts_of, tiny
from tests.losses import Welsch
from tests.test_figures import BROKEN, SQUARE, grid, no_picture, with_something_to_show

pytestmark = pytest.mark.long

COMMAND = [sys.executable, "-P", "-m", "alphasweep.pipeline.cli"]
TINY = """
name = "tiny"
root_seed = 5
[grid]
alpha = [2.0, 3.0, 4.0]
N = [8, 12]
seed = { from = 0, to = 3 }
start = { from = 0, to = 3 }
[descent]
a = 1.0
learning_rate = 0.03
t_max = 3.0
[record]
times = [0.3, 1.0]
[probe]
times = [0, 1]
modes = 2
"""


def quick_by(method: str, folder: Path | str = "") -> str:
    """Return what to run for the preset quick by a method of the descent, in a store quick.zarr."""
    if method == "gd":
        return "quick"
    lines = (files("alphasweep.pipeline") / "presets" / "quick.toml").read_text().splitlines()
    text = [line for line in lines if not line.startswith(("learning_rate", "trapped_below"))]
    text.insert(text.index("[descent]") + 1, f'method = "{method}"')
    (file := Path(folder, f"{method}.toml")).write_text("\n".join(text))
    return str(file)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, with a small sweep file in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


# What every Python of a held run imports before all else: a worker waits with its third cell until
# it is let go. A driver computes cells, too (its plan's, the fingerprint's), and is never held.
HOLD = """
import sys, time
from pathlib import Path
if any(word.endswith("alphasweep.cluster.worker") for word in sys.orig_argv):
    from alphasweep.pipeline import part
    real, hold, begun = part._compute_cell, Path({hold!r}), []
    def held(*cell):
        begun.append(cell)
        while len(begun) > 2 and hold.exists():
            time.sleep(0.05)
        return real(*cell)
    part._compute_cell = held
"""
BEFORE_HOLD = 4  # cells that the two workers hand in


def patch(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every Python that is started run a script first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(script)
    places = (folder, Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))


@pytest.fixture
def hold(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Hold all runs, for whatever has to happen in the middle of one, while this file is there."""
    file = here / "hold"
    file.touch()
    patch(here / "patch", HOLD.format(hold=str(file)), monkeypatch)
    yield file
    file.unlink(missing_ok=True)


def alphasweep(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=300, check=False, **settings
    )


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def held(sweep: str = "quick") -> subprocess.Popen[str]:
    """Start a run, and wait until its workers have done all they can."""
    run = start("run", sweep, "--workers", "2", "--part-seconds", "0.001")  # a cell a part
    end = time.monotonic() + 120
    while Store("quick.zarr").progress().get("cells_now") != BEFORE_HOLD:
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return run


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """Bits of the preset quick, run without interruption, and the seconds it took."""
    folder, began = tmp_path_factory.mktemp("reference"), time.monotonic()
    done = alphasweep("run", "quick", "--workers", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    return bits(folder / "quick.zarr"), time.monotonic() - began


@pytest.fixture(scope="session")
def reference(quick: tuple[dict[str, Any], float]) -> dict[str, Any]:
    """Bits of the preset quick."""
    return quick[0]


@pytest.fixture(scope="session")
def references(
    reference: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Bits of the preset quick by each method; those of the flow by a plain loop, without Dask."""
    folder = tmp_path_factory.mktemp("flow")
    sweep, store = load(quick_by("flow", folder)), Store(folder / "quick.zarr")
    fill(store, sweep, parts_of(sweep))
    return {"gd": reference, "flow": bits(store.path)}


# --- the way through --------------------------------------------------------------------------


def test_run_ends_with_figures_a_table_and_a_way_to_read(here: Path) -> None:
    """One command computes, fits, draws, and says where things are.

    It does so also where modules of the user's lie that are called as those that are imported.
    """
    keep_own_modules(here, "dask", "xarray", "zarr")
    program = Path(sys.executable).with_name("alphasweep")
    words = [program, "run", "quick", "--workers", "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "alpha_half" in done.stdout
    for name in ("recovery", "alpha_half", "one_run"):
        for suffix in ("png", "pdf"):
            assert (here / "quick.zarr.figures" / f"{name}.{suffix}").stat().st_size > 5000
    (line,) = re.findall(r"Data: +xarray\.open_zarr\('(.*)'\)", done.stdout)
    dataset = xr.open_zarr(line).load()
    assert (dataset.status == 1).all()
    assert dict(dataset.sizes)["start"] == 8


def test_running_again_computes_nothing(reference: dict[str, Any]) -> None:
    """A finished sweep is only drawn again, however it is cut; its bits stay."""
    alphasweep("run", "quick")
    again = alphasweep("run", "quick", "--part-seconds", "0.1")
    assert again.returncode == 0
    assert "cells to compute" not in again.stdout
    assert "quick: nothing is to be computed" in again.stdout
    planned = alphasweep("plan", "quick")
    assert planned.returncode == 0
    assert "Nothing is to be computed." in planned.stdout
    assert bits("quick.zarr") == reference


@pytest.mark.parametrize(
    ("method", "settings"),
    [("gd", ("--workers", "1")), ("flow", ("--workers", "3", "--part-seconds", "0.05"))],
)
def test_workers_and_parts_change_no_bit(
    references: dict[str, dict[str, Any]], method: str, settings: tuple[str, ...]
) -> None:
    """One worker or three, long parts or short ones: the same dataset."""
    assert alphasweep("run", quick_by(method), *settings).returncode == 0
    assert bits("quick.zarr") == references[method]


def test_an_edited_file_extends_its_store(here: Path) -> None:
    """More alphas and seeds in the sweep file are added to the store; old cells are kept."""
    alphasweep("run", "tiny.toml")
    before = bits("tiny.zarr")
    text = TINY.replace("[2.0, 3.0, 4.0]", "[2.0, 2.5, 3.0, 4.0, 5.0]").replace("to = 3", "to = 4")
    text = text.replace("start = { from = 0, to = 4 }", "start = { from = 0, to = 3 }")
    (here / "tiny.toml").write_text(text)
    done = alphasweep("run", "tiny.toml")
    assert done.returncode == 0, done.stderr
    assert "26 cells to compute" in done.stdout
    old = {"alpha": [2.0, 3.0, 4.0], "N": [8, 12], "seed": [0, 1, 2, 3]}
    assert bits("tiny.zarr", **old) == before
    assert (xr.open_zarr("tiny.zarr").status == 1).all()


def test_extend_is_an_edited_file(here: Path) -> None:
    """`extend` adds values on all axes to a store, and `run STORE` computes them."""
    flow = TINY.replace("learning_rate = 0.03", 'method = "flow"')
    (here / "tiny.toml").write_text(flow)
    fill(Store("tiny.zarr"), load("tiny.toml"), parts_of(load("tiny.toml"), 4))
    added = alphasweep("extend", "tiny.zarr", "--alpha", "2.5,5", "--N", "10", "--seed", "0:5")
    assert added.returncode == 0, added.stderr
    assert "51 cells were added. Compute them: alphasweep run tiny.zarr" in added.stdout
    done = alphasweep("run", "tiny.zarr")
    assert "51 cells to compute" in done.stdout
    text = flow.replace("[2.0, 3.0, 4.0]", "[2.0, 2.5, 3.0, 4.0, 5.0]").replace(
        "[8, 12]", "[8, 10, 12]"
    )
    text = text.replace("seed = { from = 0, to = 3 }", "seed = { from = 0, to = 4 }")
    (here / "tiny.toml").write_text(text)
    assert alphasweep("run", "tiny.toml", "--store", "other.zarr").returncode == 0
    assert bits("tiny.zarr") == bits("other.zarr")
    again = alphasweep("run", "tiny.zarr")
    assert again.returncode == 0
    assert "to compute" not in again.stdout


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--alpha", "2.5;3", "--alpha: must be numbers separated by commas"),
        ("--alpha", "-1", "[grid] alpha: values must be > 0; got -1.0"),
        ("--N", "1", "[grid] N: values must be >= 2; got 1"),
        ("--seed", "a:b", "--seed: must be numbers separated by commas, or first:end"),
    ],
)
def test_a_wrong_extension_is_one_clear_error(option: str, value: str, expected: str) -> None:
    """The store is left as it was."""
    sweep = load("tiny.toml")
    fill(Store("tiny.zarr"), sweep, [])
    before = bits("tiny.zarr")
    done = alphasweep("extend", "tiny.zarr", option, value)
    assert done.returncode == 1
    assert expected in done.stderr
    assert bits("tiny.zarr") == before


def test_init_plan_status_open(here: Path) -> None:
    """`init` writes a file that `plan` explains; `status` and `open` speak of the store."""
    assert alphasweep("init", "mine.toml").returncode == 0
    assert load(here / "mine.toml").grid == load("laptop").grid
    assert tomllib.loads((here / "mine.toml").read_text())["name"] == "mine"
    planned = alphasweep("plan", "mine.toml")
    assert planned.returncode == 0
    for word in ("cells", "parts", "core-hours", "peak memory", "352", "files"):
        assert word in planned.stdout
    assert not (here / "mine.zarr").exists()

    alphasweep("run", "tiny.toml")
    status = alphasweep("status", "tiny.zarr")
    assert "24 of 24 cells done" in status.stdout
    found = json.loads(alphasweep("status", "tiny.zarr", "--json").stdout)
    assert {k: found[k] for k in ("done", "running", "failed", "missing", "cells")} == {
        "done": 24, "running": 0, "failed": 0, "missing": 0, "cells": 24
    }  # fmt: skip
    assert "rate" in found
    (version,) = json.loads(alphasweep("status", "tiny.zarr", "--history", "--json").stdout)[
        "versions"
    ]
    assert alphasweep("--version").stdout == f"alphasweep {version}\n"
    opened = alphasweep("open", "tiny.zarr")
    assert "lambda_min" in opened.stdout
    scope: dict[str, Any] = {}
    exec(opened.stdout[opened.stdout.index("import xarray") :], scope)
    assert scope["ds"].sizes["alpha"] == 3


def test_a_run_counts_the_parts_of_its_plan() -> None:
    """`plan --json` has the numbers of the table, and the parts that `run` then counts."""
    options = ("tiny.toml", "--part-seconds", "0.013", "--workers", "2")
    planned = json.loads(alphasweep("plan", *options, "--json").stdout)
    assert planned["store"].endswith("/tiny.zarr")
    assert (planned["cells"], planned["missing"], planned["runs"]) == (24, 24, 96)
    assert 6 < planned["parts"] < 24
    assert planned["workers"] == 2
    assert 0 < planned["core_hours_least"] < planned["core_hours_most"]
    assert 0 < planned["wall_seconds_least"] < planned["wall_seconds_most"]
    assert [size["N"] for size in planned["sizes"]] == [8, 12]
    table = alphasweep("plan", *options).stdout
    assert re.search(rf"all +│ +24 │ +96 │ +{planned['parts']} │", table)
    assert re.search(r"It takes .* to .* with 2 workers, on this machine", table)
    done = alphasweep("run", *options)
    assert f"/{planned['parts']} parts" in done.stdout
    assert re.search(r"\d% of them in the kernels: \S+ \(estimated: \S+ to \S+\)", done.stdout)


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_sweep_that_does_not_fit_this_machine(here: Path, verb: str) -> None:
    """It is refused in a line that says what it needs and what there is, and leaves nothing."""
    text = TINY.replace("N = [8, 12]", "N = [8, 2000000]")
    # A rate that this N is stable at: of 0.03 a line of its own says that it is too large.
    text = text.replace("learning_rate = 0.03", "learning_rate = 0.005")
    (here / "tiny.toml").write_text(text)
    done = alphasweep(verb, "tiny.toml")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(
        r"alphasweep: 1 workers on this machine must have [\d.,]+ [TP]B each, which N = "
        r"2000000 takes; they can have [\d.]+ [MG]B in all: leave out the largest N or alpha, or "
        r"use a cluster",
        line,
    )
    assert ("2000000 │" in done.stdout) == (verb == "plan")
    assert sorted(p.name for p in here.iterdir()) == ["tiny.toml"]


def test_more_workers_than_the_memory_of_a_container_holds(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of a container counts, and what is possible is said; a store is not extended."""
    fill(Store("tiny.zarr"), load("tiny.toml"), parts_of(load("tiny.toml")))
    (here / "tiny.toml").write_text(TINY.replace("alpha = [2.0,", "alpha = [1.5, 2.0,"))
    script = "from distributed import system\nsystem.MEMORY_LIMIT = 1_000_000_000\n"
    patch(here / "patch", script, monkeypatch)
    before = bits("tiny.zarr")
    done = alphasweep("run", "tiny.toml", "--workers", "4")
    assert done.returncode == 1
    assert "4 workers on this machine must have 300 MB each" in done.stderr
    assert "they can have 950 MB in all: lower --workers to 3" in done.stderr
    assert bits("tiny.zarr") == before
    assert alphasweep("run", "tiny.toml", "--workers", "3").returncode == 0


@pytest.mark.parametrize(
    ("shell", "typed"),
    [
        ("bash", {"COMP_WORDS": "alphasweep stat", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "alphasweep stat"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "alphasweep stat"}),
    ],
)
def test_a_shell_completes(shell: str, typed: dict[str, str]) -> None:
    """What the script of a shell asks for is answered, and the script is for this command."""
    program = str(Path(sys.executable).with_name("alphasweep"))
    environment = os.environ | {"_ALPHASWEEP_COMPLETE": f"complete_{shell}"} | typed
    environment |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    answer = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert "status" in answer.stdout
    assert "submit" not in answer.stdout
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = subprocess.run(
        [program, "--show-completion", shell],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_ALPHASWEEP_COMPLETE" in shown.stdout


def test_status_while_it_runs(hold: Path) -> None:
    """From another terminal: who drives, how many cells are done and running, how fast."""
    run = held()
    try:
        found = json.loads(alphasweep("status", "quick.zarr", "--json").stdout)
        assert f"process {run.pid} on" in found["driver"]
        assert (found["cells"], found["done"], found["failed"]) == (32, BEFORE_HOLD, 0)
        assert found["running"] >= 2
        assert found["done"] + found["running"] + found["missing"] == 32
        assert found["rate"] > 0
        assert (found["parts"], found["parts_done"], found["parts_running"]) == (32, BEFORE_HOLD, 2)
        assert found["longest_predicted"] > 0
        assert f"driven by process {run.pid}" in alphasweep("status", "quick.zarr").stdout
    finally:
        run.send_signal(signal.SIGINT)
        run.communicate()
    assert run.returncode == 130
    assert "driven by" not in alphasweep("status", "quick.zarr").stdout


# --- stopped and killed -----------------------------------------------------------------------


@pytest.mark.parametrize(("how", "method"), [(signal.SIGINT, "gd"), (signal.SIGTERM, "flow")])
def test_ctrl_c_stops_at_once_and_loses_nothing(
    references: dict[str, dict[str, Any]], hold: Path, how: signal.Signals, method: str
) -> None:
    """It exits 130 whatever workers are at, keeps what was finished, and leaves no process."""
    run = held(quick_by(method))
    workers = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(how)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 130
    assert "run again to go on" in said
    assert "Traceback" not in said
    _gone, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    assert Store("quick.zarr").parts() == []
    assert int((Store("quick.zarr").status() == 1).sum()) == BEFORE_HOLD
    hold.unlink()
    done = alphasweep("run", quick_by(method))
    assert f"{32 - BEFORE_HOLD} cells to compute" in done.stdout
    assert bits("quick.zarr") == references[method]


def test_killed_at_random_and_run_again(quick: tuple[dict[str, Any], float]) -> None:
    """SIGKILL to driver and workers: the end is that of a run without interruption.

    Of many more kills, and of the flow, the torture knows.
    """
    moments = random.Random(2403)
    reference, seconds = quick
    kills = []
    while sum(kills) < 5:
        shutil.rmtree("quick.zarr", ignore_errors=True)
        shutil.rmtree("quick.zarr.run", ignore_errors=True)
        for _ in range(3):
            run = start("run", "quick", "--workers", "2", "--part-seconds", "0.02")
            # From the start of Python through that of the workers to the figures.
            time.sleep(moments.uniform(0.1, 1.0) * seconds)
            kills.append(run.poll() is None)  # it may be through before its moment
            if kills[-1]:
                os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
        done = alphasweep("run", "quick")
        assert done.returncode == 0, done.stderr
        assert bits("quick.zarr") == reference
        assert Store("quick.zarr").parts() == []
        assert len(kills) < 60, "hardly any run was killed"


def test_a_killed_worker_costs_no_cell(references: dict[str, dict[str, Any]], hold: Path) -> None:
    """A worker process that dies is replaced, and its part is computed by another."""
    run = held(quick_by("flow"))
    workers = [
        process
        for process in psutil.Process(run.pid).children(recursive=True)
        if worker.__name__ in process.cmdline()
    ]
    assert len(workers) == 2
    workers[0].kill()
    hold.unlink()
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 0, said
    assert bits("quick.zarr") == references["flow"]


# --- everything that can be wrong -------------------------------------------------------------


WRONG = {
    "bad TOML": ("[grid]\nalpha = [2.0", "must be TOML"),
    "unknown key": (
        TINY.replace("t_max", "tmax"),
        "[descent] tmax: unknown key; did you mean t_max?",
    ),
    "alpha <= 0": (
        TINY.replace("[2.0, 3.0, 4.0]", "[0.0, 3.0]"),
        "alpha: values must be > 0; got 0.0",
    ),
    "M < 1": (
        TINY.replace("[2.0, 3.0, 4.0]", "[0.01]"),
        "must give round(alpha N) >= 1 measurements",
    ),
    "N = 1": (TINY.replace("[8, 12]", "[1, 12]"), "N: values must be >= 2; got 1 (first value)"),
    "empty grid": (TINY.replace("[8, 12]", "[]"), "[grid] N: must have at least one value; got []"),
    "times beyond t_max": (
        TINY.replace("times = [0.3, 1.0]", "times = [0.3, 10.0]"),
        "[record] times: must lie in [0, t_max = 3]; got 10.0 (second value)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_wrong_sweep_file_is_one_clear_error(here: Path, name: str, verb: str) -> None:
    """It says what must hold, what was received and where; nothing is created."""
    text, expected = WRONG[name]
    (here / "tiny.toml").write_text(text)
    done = alphasweep(verb, "tiny.toml")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert expected in done.stderr
    assert done.stderr.startswith("alphasweep: sweep file tiny.toml")
    assert sorted(p.name for p in here.iterdir()) == ["tiny.toml"]


def test_a_store_of_another_sweep_is_refused(here: Path) -> None:
    """The key and both values are named, and the store is as it was."""
    alphasweep("run", "tiny.toml")
    before = bits("tiny.zarr")
    (here / "tiny.toml").write_text(TINY.replace("root_seed = 5", "root_seed = 6"))
    for verb in ("plan", "run"):
        done = alphasweep(verb, "tiny.toml")
        assert done.returncode == 1
        assert "root_seed = 5 in the store, 6 in this sweep" in done.stderr
        assert "choose another --store" in done.stderr
    assert bits("tiny.zarr") == before


@pytest.mark.parametrize("verb", ["status", "open"])
def test_no_store(here: Path, verb: str) -> None:
    """A path without a store, or with something else, is one line."""
    (here / "other").mkdir()
    for path in ("nothing.zarr", "other"):
        done = alphasweep(verb, path)
        assert done.returncode == 1
        assert f"{here / path} must be a sweep's Zarr store" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_second_driver_is_told_who_has_the_store(hold: Path) -> None:
    """And the first goes on undisturbed."""
    first = held()
    second = alphasweep("run", "quick")
    hold.unlink()
    said, _ = first.communicate()
    assert first.returncode == 0, said
    assert second.returncode == 1
    assert f"in use by process {first.pid} on" in second.stderr


@pytest.mark.parametrize("queued_before", [False, True])
def test_cancel_asks_no_queue_that_the_run_is_not_in(
    hold: Path, monkeypatch: pytest.MonkeyPatch, queued_before: bool
) -> None:
    """Where SLURM's commands are installed, and no controller answers, a local run is cancelled.

    Also if the sweep had jobs there once; then it is told that nobody knows of them.
    """
    Path("bin").mkdir()
    for program in ("squeue", "scancel"):
        Path("bin", program).write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
        Path("bin", program).chmod(0o755)
    monkeypatch.setenv("PATH", str(Path("bin").absolute()), prepend=os.pathsep)
    first = held()
    if queued_before:
        record_queue(Path("quick.zarr.run", "cluster"), "slurm")
    done = alphasweep("cancel", "quick.zarr")
    assert done.returncode == (1 if queued_before else 0), done.stderr
    assert ("no controller" in done.stderr) == queued_before
    said, _ = first.communicate()
    assert first.returncode == 130, said


def test_an_unwritable_store(here: Path) -> None:
    """A path below a file cannot be written, whoever asks: one clear line."""
    done = alphasweep("run", "tiny.toml", "--store", "tiny.toml/x.zarr")
    assert done.returncode == 1
    assert done.stderr.startswith("alphasweep: ")
    assert "must be writable" in done.stderr
    assert "Not a directory" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def small_disk(here: Path) -> Iterator[Callable[[str], list[str]]]:
    """A way to run a command with a disk of a few MB at ./disk, and a shell line before it."""
    prefix = ["unshare", "-rm", "sh", "-c"]
    probe = [*prefix, f"mount -t tmpfs -o size=1m none {here}"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs Linux and user namespaces")
    (here / "disk").mkdir()

    def command(mount: str) -> list[str]:
        return [*prefix, f'{mount} && cd disk && "$@"; code=$?; cp -r . ../kept; exit $code', "sh"]

    return command


def test_a_read_only_disk(small_disk: Callable[[str], list[str]]) -> None:
    """A store on a disk that cannot be written is refused in one line."""
    mount = "mount -t tmpfs -o size=1m,ro none disk"
    done = subprocess.run(
        [*small_disk(mount), *COMMAND, "run", "../tiny.toml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "must be writable" in done.stderr
    assert "Read-only file system" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("kilobytes", [300, 600, 900])
def test_a_full_disk(
    small_disk: Callable[[str], list[str]], reference: dict[str, Any], kilobytes: int
) -> None:
    """One clear line, and a store that is intact: with room, the next run finishes it.

    Where there is room for the store, and not for the figures, the figures alone have failed.
    """
    mount = f"mount -t tmpfs -o size={kilobytes}k none disk"
    done = subprocess.run(
        [*small_disk(mount), *COMMAND, "run", "quick"], capture_output=True, text=True, check=False
    )
    kept = Store("kept/quick.zarr")
    is_done = kept.exists() and bool((kept.status() == 1).all())
    assert done.returncode == 1
    assert ("not every figure could be saved" in done.stderr) == is_done
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    os.chdir("kept")
    again = alphasweep("run", "quick")
    assert again.returncode == 0, again.stderr
    assert bits("quick.zarr") == reference


def test_reading_on_a_read_only_disk(small_disk: Callable[[str], list[str]]) -> None:
    """What only reads a store works where nothing can be written."""
    fill(Store("tiny.zarr"), load("tiny.toml"), parts_of(load("tiny.toml"))[:1])
    mount = "mount -t tmpfs -o size=9m none disk && cp -r tiny.zarr tiny.zarr.run disk"
    mount += " && mount -o remount,ro disk"
    verbs = 'for verb in status verify open plan; do "$@" $verb tiny.zarr || exit 3; done'
    done = subprocess.run(
        [*small_disk(mount), "sh", "-c", verbs, "sh", *COMMAND],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_cancel_on_a_full_disk(small_disk: Callable[[str], list[str]], here: Path) -> None:
    """Jobs of a driver that is gone end first; then one line says what could not be written."""
    fill(Store("tiny.zarr"), load("tiny.toml"), parts_of(load("tiny.toml"))[:1])
    run_directory = here / "disk" / "tiny.zarr.run" / "cluster"
    record_queue(here / "tiny.zarr.run" / "cluster", "slurm")
    jobs, commands = here / "jobs", here / "bin"
    jobs.write_text(f"alphasweep|7|RUNNING|None|{job_name(run_directory, 'abcd')}\n")
    commands.mkdir()
    for name, line in (
        ("squeue", f"cat {jobs}"),
        ("scancel", f": > {jobs}; echo $@ > {here}/ended"),
    ):
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    mount = "mount -t tmpfs -o size=2m none disk && cp -r tiny.zarr tiny.zarr.run disk"
    mount += " && { cat /dev/zero > disk/fill 2>/dev/null; true; }"
    done = subprocess.run(
        [*small_disk(mount), *COMMAND, "cancel", "tiny.zarr"],
        env=os.environ | {"PATH": f"{commands}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (here / "ended").read_text().split()[-1] == "7"
    (line,) = done.stderr.splitlines()
    assert "the driver and the workers of" in line
    assert "are ended, but the store must be writable" in line
    assert "No space left on device" in line


def test_failed_cells_end_the_run_with_an_error(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are drawn of what is done, and the exit code says that something is not."""
    script = """
from alphasweep.pipeline import part
real = part._compute_cell
def failing(recipe, alpha, N, seed):
    if (alpha, N, seed) == (3.0, 8, 1):
        raise FloatingPointError("planted")
    return real(recipe, alpha, N, seed)
part._compute_cell = failing
"""
    with monkeypatch.context() as planted:
        patch(here / "patch", script, planted)
        done = alphasweep("run", "tiny.toml", "--part-seconds", "0.001")
    assert done.returncode == 1
    assert "1 cells failed" in done.stderr
    assert Path("tiny.zarr.figures/recovery.png").exists()
    status = alphasweep("status", "tiny.zarr")
    assert "23 of 24 cells done" in status.stdout
    assert "alpha = 3, N = 8, seed 1: FloatingPointError: planted" in status.stdout
    shown = alphasweep("status", "tiny.zarr", "--failures", "--history").stdout
    assert 'raise FloatingPointError("planted")' in shown
    assert "3 attempts" in shown
    assert re.search(r"run +by .*, 24 cells, code ", shown)
    mended = alphasweep("run", "tiny.toml", "--retry-failed")
    assert mended.returncode == 0
    assert "failed:" not in alphasweep("status", "tiny.zarr").stdout
    other = Store("other.zarr")
    fill(other, load("tiny.toml"), parts_of(load("tiny.toml")))
    assert bits("tiny.zarr") == bits("other.zarr")


@pytest.mark.parametrize("late", [1, 24])
def test_what_was_handed_in_after_the_store_was_prepared_is_committed(
    here: Path, monkeypatch: pytest.MonkeyPatch, late: int
) -> None:
    """Workers of a driver that was taken over hand in some cells, or all, before the plan is made.

    It leaves these to them; the run ends with all of it in the store.
    """
    sweep = load("tiny.toml")
    full = Store("full.zarr")
    fill(full, sweep, parts_of(sweep))
    prepare = Writer.prepare

    def then_others_hand_in(writer: Writer, *arguments: Any, **options: Any) -> None:
        prepare(writer, *arguments, **options)
        for part in parts_of(sweep, 1)[:late]:
            hand_in(writer.store.inbox(), part, compute(sweep.recipe, part))

    monkeypatch.setattr(Writer, "prepare", then_others_hand_in)
    done = CliRunner().invoke(app, ["run", "tiny.toml", "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert bits("tiny.zarr") == bits(full.path)


def test_a_cell_that_was_lost_ends_the_run_with_an_error(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that is gone before it is committed is told of; to run again computes it."""
    commit, lost = Writer.commit, parts_of(load("tiny.toml"), 1)[5]

    def after_a_loss(writer: Writer, *arguments: Any, **options: Any) -> float:
        writer.store.inbox().file(lost).unlink(missing_ok=True)
        return commit(writer, *arguments, **options)

    again = ["run", "tiny.toml", "--workers", "1", "--part-seconds", "0.001"]
    with monkeypatch.context() as losing:
        losing.setattr(Writer, "commit", after_a_loss)
        done = CliRunner().invoke(app, again)
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert "must hold every cell that was computed; 1 are not in it" in said
    assert CliRunner().invoke(app, again).exit_code == 0
    assert (Store("tiny.zarr").status() == 1).all()


def test_the_parts_are_ours() -> None:
    """The top-level packages belong to this distribution and to no other."""
    owners = packages_distributions()
    here = Path(__file__).parents[1]
    for name in ("kernels", "pipeline", "cluster", "analysis"):
        assert set(owners.get(name, ["alphasweep"])) == {"alphasweep"}  # none if editable
        (path,) = importlib.import_module(f"alphasweep.{name}").__path__
        assert Path(path).resolve() == here / name


def test_the_figures_of_two_stores_have_two_folders(here: Path) -> None:
    """The folder is named after the whole name, of which a part after a dot is no suffix."""
    for name in ("run.1.zarr", "run.2.zarr", "run.2"):
        store = Store(here / name)
        fill(store, tiny(), parts_of(tiny()))
        cli._conclude(store)
    found = {folder.name for folder in here.glob("*.figures")}
    assert found == {"run.1.zarr.figures", "run.2.zarr.figures", "run.2.figures"}


SAME_P = {"alpha": [2.0, 2.1, 2.2], "N": [32], "seed": [0], "start": list(range(8))}
BORDER: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "the same P everywhere": (SAME_P, {"t_max": 30.0}, "P does not change measurably between"),
    "a step": (
        {"alpha": [2.0, 4.0, 8.0], "N": [8], "seed": [0], "start": [0]},
        {},
        "4.0 to 8.0",
    ),
    "all diverged": (
        {"alpha": [2.0, 3.0, 4.0], "N": [12]},
        {"learning_rate": 1.0, "t_max": 60.0},
        "18 of 18 runs diverged, which counts as not recovered: lower learning_rate",
    ),
    "the null model": (
        {"alpha": [2.0, 3.0, 4.0], "N": [12]},
        {"signal": "null"},
        "The labels hold no signal, so there is nothing to recover",
    ),
    "alphas a rounding apart": (
        {"alpha": [3.0, 3.0000000000000004], "N": [12]},
        {},
        "no run recovered up to alpha = 3.0000000000000004",
    ),
}


@pytest.mark.parametrize("case", BORDER)
def test_a_run_says_what_can_be_said(
    here: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    """To its end, without a warning; what is said holds no NaN and no advice that cannot help."""
    grid, descent, expected = BORDER[case]
    sections = {"grid": CONFTEST["grid"] | grid, "descent": CONFTEST["descent"] | descent}
    sweep = Sweep.from_document(CONFTEST | sections)
    store = Store(here / "border.zarr")
    fill(store, sweep, parts_of(sweep))
    with pytest.raises(typer.Exit) if case == "all diverged" else nullcontext():
        cli._conclude(store)
    said = "".join(capfd.readouterr())
    assert expected in said
    assert said.startswith("18 of 18 runs diverged (100%)") == (case == "all diverged")
    assert "Data: " in said
    assert not re.search(r"\bnan\b|Traceback|Warning|add larger", said)
    drawn = {file.stem for file in (here / "border.zarr.figures").iterdir()}
    assert drawn == with_something_to_show(store.open()) > {"one_run"}


# --- what a user adds -------------------------------------------------------------------------

ADDED = """
import sys
from alphasweep.kernels.problem import LOSSES
from tests.losses import Welsch
LOSSES["welsch"] = Welsch
if not any(word.endswith("alphasweep.cluster.worker") for word in sys.orig_argv):
    from alphasweep.analysis.figures import FIGURES
    from alphasweep.analysis.scaling import LAWS
    from tests.test_figures import SQUARE, grid
    LAWS["square"], FIGURES["grid"] = SQUARE, grid
"""


def test_a_loss_a_law_and_a_figure_are_entries(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the sweep file through workers to the table, the fits and the pictures."""
    text = TINY.replace("N = [8, 12]", "N = [8, 12, 16]").replace("4.0]", "4.0, 6.0, 9.0]")
    text = text.replace("a = 1.0\n", "").replace("learning_rate = 0.03", 'method = "flow"')
    text = text.replace("t_max = 3.0", "t_max = 30.0")
    (here / "tiny.toml").write_text(text + '[problem]\nloss = "welsch"\nb = 0.7\n')
    patch(here / "patch", ADDED, monkeypatch)
    done = alphasweep("run", "tiny.toml", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert f"  {SQUARE.formula}: A = " in done.stdout
    drawn = {path.stem for path in Path("tiny.zarr.figures").iterdir()}
    assert drawn > {"recovery", "alpha_half", "grid"}
    some = alphasweep("figure", "tiny.zarr", "grid", "alpha_half", "--format", "svg", "--out", "s")
    assert some.returncode == 0, some.stderr
    assert {path.name for path in Path("s").iterdir()} == {"grid.svg", "alpha_half.svg"}

    monkeypatch.setitem(LOSSES, "welsch", Welsch)
    sweep, alone = load("tiny.toml"), Store("alone.zarr")
    fill(alone, sweep, parts_of(sweep, 4))
    assert bits("tiny.zarr") == bits("alone.zarr")
    assert sweep.problem.loss == Welsch(0.7)


# --- figures ----------------------------------------------------------------------------------


def test_a_law_and_a_figure_that_raise_lose_no_result(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of a run: table, laws and figures that can be made are; the exit status tells."""
    sections = {"grid": CONFTEST["grid"] | {"alpha": [2.0, 4.0, 6.0, 9.0], "seed": [0, 1, 2, 3]}}
    sweep = Sweep.from_document(CONFTEST | sections)
    store = Store(here / "planted.zarr")
    fill(store, sweep, parts_of(sweep))
    monkeypatch.setitem(scaling.LAWS, "broken", BROKEN)
    monkeypatch.setitem(figures.FIGURES, "no_picture", no_picture)
    monkeypatch.setitem(figures.FIGURES, "grid", grid)
    with pytest.raises(typer.Exit) as ended:
        cli._conclude(store)
    assert ended.value.exit_code == 1
    said = capfd.readouterr()
    assert "alpha_half, where P(recovery by t = 3) = 1/2" in said.out
    assert "A + nonsense: not fitted: ArithmeticError: planted in a law." in said.out
    assert "A + B log N: A = " in said.out
    assert "Data: " in said.out
    assert said.err.splitlines() == [
        "alphasweep: not every law of alpha_half(N) could be fitted; see above.",
        f"alphasweep: not every figure could be saved in {here / 'planted.zarr.figures'}: "
        "no_picture: LookupError: planted in a figure.",
    ]
    drawn = {path.stem for path in (here / "planted.zarr.figures").iterdir()}
    assert drawn == with_something_to_show(store.open()) > {"grid", "recovery"}


def test_figures_are_drawn_by_name(here: Path) -> None:
    """All or some, in any format and folder, again and again; what does not exist is named."""
    fill(Store("tiny.zarr"), load("tiny.toml"), parts_of(load("tiny.toml")))
    all_of_them = alphasweep("figure", "tiny.zarr")
    assert all_of_them.returncode == 0, all_of_them.stderr
    drawn = [path.stem for path in Path("tiny.zarr.figures").iterdir()]
    assert sorted(drawn) == sorted(2 * list(with_something_to_show(Store("tiny.zarr").open())))
    asked = ["one_run", "recovery", "--format", "svg", "--format", "pdf", "--out", "a b/c"]
    some = alphasweep("figure", "tiny.zarr", *asked)
    assert some.returncode == 0, some.stderr
    assert some.stdout.split(":")[1].strip() == "a b/c"
    files = {path.name for path in Path("a b/c").iterdir()}
    assert files == {f"{name}.{ending}" for name in asked[:2] for ending in ("svg", "pdf")}
    explained = [
        f"  {name}: {make.__doc__.split(chr(10))[0]}" for name, make in figures.FIGURES.items()
    ]
    for words, told in (
        (["nonsense"], "NAME must be one of these; got nonsense:\n" + "\n".join(explained)),
        (["--format", "gif"], "--format must be one of png, pdf, svg; got gif."),
    ):
        refused = alphasweep("figure", "tiny.zarr", *words)
        assert (refused.returncode, refused.stderr) == (1, f"alphasweep: {told}\n")
