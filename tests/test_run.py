"""`run` and `status` in Python: from a script, a notebook and a thread, and what they refuse."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

from alphasweep.cluster import worker
from alphasweep.cluster.queue import ClusterError
from alphasweep.kernels.problem import LOSSES
from alphasweep.pipeline.drive import Progress
from alphasweep.pipeline.messages import SweepError
from alphasweep.pipeline.plan import Plan
from alphasweep.pipeline.run import Result, RunError, run
from alphasweep.pipeline.spec import Sweep, as_document, load
from alphasweep.pipeline.status import status
from alphasweep.pipeline.store import Store, StoreError
from tests import losses
from tests.conftest import bits, fill, keep_own_modules, parts_of, tiny, tiny_flow
from tests.test_local import broken as broken

pytestmark = pytest.mark.long

# Without a guard: who imports it runs it.
SCRIPT = """
from pathlib import Path

import alphasweep
from alphasweep.analysis.figures import FIGURES

with Path("begun").open("a") as file:
    file.write("once")
result = alphasweep.run("quick", workers=2)
assert result.complete and result.computed == 32, result
study = alphasweep.Study(alphasweep.open("quick.zarr"))
assert all(make(study).axes for make in FIGURES.values())
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Bits of the tiny sweep, computed without workers."""
    store = Store(tmp_path_factory.mktemp("reference") / "tiny.zarr")
    fill(store, tiny(), parts_of(tiny()))
    return bits(store.path)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Bits of the preset quick, computed without workers."""
    store, sweep = Store(tmp_path_factory.mktemp("reference") / "quick.zarr"), load("quick")
    fill(store, sweep, parts_of(sweep))
    return bits(store.path)


# --- where it works ---------------------------------------------------------------------------


def test_a_script_without_a_guard(here: Path, quick: dict[str, Any]) -> None:
    """Its workers do not run it again, nothing is printed, and no process is left.

    Beside it, and beside the notebook, lie modules of the user's with the names of our folders.
    """
    keep_own_modules(here)
    (here / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (here / "begun").read_text() == "once"
    assert bits("quick.zarr") == quick


def test_a_notebook_cell(here: Path, quick: dict[str, Any]) -> None:
    """A kernel has an event loop that runs, and no file of its own."""
    keep_own_modules(here)
    cell = nbformat.v4.new_code_cell(SCRIPT)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(here)}}).execute()
    assert cell.outputs == []
    assert bits("quick.zarr") == quick


def test_a_thread(reference: dict[str, Any]) -> None:
    """No handler of signals is installed, which only the main thread could do."""
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    found: list[Result] = []
    thread = Thread(target=lambda: found.append(run(tiny(), Path("tiny.zarr"), workers=1)))
    thread.start()
    thread.join(300)
    (result,) = found
    assert result.complete
    assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
    assert bits("tiny.zarr") == reference


OWN_LOSS = """
import alphasweep
from alphasweep.kernels.problem import LOSSES
from alphasweep.pipeline.spec import Sweep

LOSSES["welsch"] = Welsch
result = alphasweep.run(Sweep.from_document({document!r}), "tiny.zarr", workers=1)
assert result.complete, result.failures
"""


def test_a_loss_of_a_script(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a script enters in a table its workers compute, though they do not know it."""
    document = as_document(tiny_flow()) | {"problem": {"loss": "welsch", "b": 0.7}}
    text = Path(losses.__file__).read_text() + OWN_LOSS.format(document=document)
    (here / "script.py").write_text(text)
    subprocess.run([sys.executable, "script.py"], check=True, timeout=300)
    monkeypatch.setitem(LOSSES, "welsch", losses.Welsch)
    sweep, alone = Sweep.from_document(document), Store("alone.zarr")
    fill(alone, sweep, parts_of(sweep))
    assert bits("tiny.zarr") == bits("alone.zarr")


def test_a_queue_can_be_used_in_a_thread() -> None:
    """dask-jobqueue installs a handler of signals when it is imported."""
    code = (
        "from threading import Thread\n"
        "from alphasweep.cluster.launch import _dask_jobqueue\n"
        "found = []\n"
        "thread = Thread(target=lambda: found.append(_dask_jobqueue().SLURMCluster))\n"
        "thread.start(); thread.join(); assert found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_classes_of_workers_on_this_machine(here: Path, reference: dict[str, Any]) -> None:
    """A cluster file says who computes what; a class too small is refused before all else."""
    profile = here / "here.toml"
    text = (
        'kind = "local"\njobs = 2\n'
        '[[classes]]\nname = "small"\nup_to_N = 8\nmemory = "1 GB"\nwalltime = "1h"\n'
        '[[classes]]\nname = "large"\nup_to_N = 99\nmemory = "{memory}"\nwalltime = "1h"\n'
    )
    profile.write_text(text.format(memory="200 MB"))
    with pytest.raises(ValueError, match="class large: memory must be at least 300 MB, which N = "):
        run(tiny(), "tiny.zarr", on=profile)
    assert not Path("tiny.zarr").exists()
    profile.write_text(text.format(memory="1 GB"))
    told: list[object] = []
    assert run(tiny(), "tiny.zarr", str(profile), watch=told.append).complete
    assert "1 jobs of class large submitted to local" in told
    assert bits("tiny.zarr") == reference


# --- what it tells ----------------------------------------------------------------------------


def test_a_run_is_told_and_stopped_and_goes_on() -> None:
    """First the plan, then words and progress; what `watch` raises stops it, nothing is lost.

    What it is told comes once a second or so, in which one worker ends far fewer than 240 parts.
    """
    told: list[Any] = []
    sweep = tiny(seed=list(range(60)))
    fill(Store("reference.zarr"), sweep, parts_of(sweep, seeds_per_part=60))

    class EnoughError(Exception):
        pass

    def watch(event: Any) -> None:
        told.append(event)
        if isinstance(event, Progress) and event.done:
            raise EnoughError

    with pytest.raises(EnoughError):
        run(sweep, "tiny.zarr", workers=1, part_seconds=0.001, watch=watch)
    plan, words, *progress = told
    assert isinstance(plan, Plan)
    assert str(plan).startswith("tiny: 240 cells to compute, ")
    assert words == "1 workers on this machine"
    assert all(isinstance(one, Progress) for one in progress)
    assert str(progress[0]).startswith("0/240 parts, 0 runs/s, 0 failed, 1 workers")
    begun = status("tiny.zarr")
    assert 0 < begun.done < 240
    assert (begun.missing, begun.driver) == (240 - begun.done, None)
    result = run("tiny.zarr", workers=1)
    assert result.complete
    assert result.computed == 240 - begun.done
    assert bits("tiny.zarr") == bits("reference.zarr")
    again = run(sweep)
    assert (again.complete, again.computed, again.progress) == (True, 0, None)


def test_cells_that_fail_are_told(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """The others are computed; the result and the status name what failed, and why."""
    (here / "patch").mkdir()
    (here / "patch" / "sitecustomize.py").write_text(
        "from alphasweep.pipeline import part\n"
        "real = part._compute_cell\n"
        "def broken(recipe, alpha, N, *rest):\n"
        "    if N == 12 and alpha == 4.0: raise ValueError('planted')\n"
        "    return real(recipe, alpha, N, *rest)\n"
        "part._compute_cell = broken\n"
    )
    monkeypatch.syspath_prepend(here / "patch")
    result = run(tiny(), "tiny.zarr", workers=1)
    assert (result.computed, result.failed, result.missing) == (9, 3, 0)
    assert not result.complete
    assert {failure["error"] for failure in result.failures} == {"ValueError: planted"}
    found = status(Path("tiny.zarr"))
    assert (found.done, found.failed) == (9, 3)
    assert len(found.errors) == 3
    assert int(result.open().is_done.sum()) == 9


def test_workers_that_do_not_come_back_end_the_run(broken: Path, reference: dict[str, Any]) -> None:
    """It ends with words instead of waiting, and later goes on where it was."""
    broken.unlink()
    patch = broken.with_name("sitecustomize.py")
    with patch.open("a") as more:
        more.write(
            "import time\n"
            "if is_worker:\n"
            "    from alphasweep.pipeline import part\n"
            "    real, begun = part._compute_cell, []\n"
            "    def until_broken(*cell):\n"
            "        begun.append(cell)\n"
            f"        broken = Path({str(broken)!r})\n"
            "        while len(begun) > 2 and not broken.exists(): time.sleep(0.05)\n"
            "        return real(*cell)\n"
            "    part._compute_cell = until_broken\n"
        )

    def watch(event: Any) -> None:
        if isinstance(event, Progress) and event.done and not broken.exists():
            broken.touch()
            for process in psutil.Process().children():
                if worker.__name__ in process.cmdline():
                    process.kill()

    with pytest.raises(ClusterError, match=r"this machine must start; got: .*planted"):
        run(tiny(), "tiny.zarr", workers=1, part_seconds=0.001, watch=watch)
    broken.unlink()
    patch.unlink()
    result = run(tiny(), "tiny.zarr", workers=1)
    assert result.complete
    assert 0 < result.computed < 12
    assert bits("tiny.zarr") == reference


def test_status_knows_how_starts_ended(full: Store) -> None:
    """The shares are those of the dataset; without cells, or with damage, none."""
    found = status(full.path)
    outcome = full.open().outcome.values
    expected = {"recovered": 1, "trapped": 2, "undecided": 3, "diverged": 4}
    assert found.outcomes == {name: (outcome == code).mean() for name, code in expected.items()}
    assert sum(found.outcomes.values()) == 1
    assert len({share for share in found.outcomes.values() if share}) > 1
    fill(Store("empty.zarr"), tiny(), [])
    assert status("empty.zarr").outcomes == {}
    for chunk in (full.path / "outcome").rglob("c*"):
        if chunk.is_file():
            chunk.write_bytes(b"damaged")
    assert status(full.path).outcomes == {}


# --- what it refuses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"sweep": "no.toml"}, SweepError, "no such file, and no preset of that name"),
        ({"workers": 0}, RunError, r"workers must be >= 1; got 0\."),
        ({"workers": 10**9}, RunError, "1000000000 workers on this machine must have"),
        ({"part_seconds": float("nan")}, RunError, "part_seconds must be a number of seconds > 0"),
        ({"store": "folder"}, StoreError, "something else is there"),
        ({"on": "no.toml"}, ValueError, "no.toml: cannot be read|no.toml: no such file"),
    ],
)
def test_what_is_refused(
    here: Path, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    """One of our own errors says what must hold; nothing is written."""
    (here / "folder").mkdir()
    with pytest.raises(error, match=words):
        run(**({"sweep": tiny(), "store": "tiny.zarr"} | arguments))
    assert [path.name for path in here.iterdir()] == ["folder"]
