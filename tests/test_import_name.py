"""One import name: what is installed is alphasweep, and nothing of a user's is taken for it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import alphasweep
from alphasweep.pipeline.store import Store
from tests.conftest import ROOMS, fill, keep_own_modules, parts_of, tiny

ROOT = Path(__file__).parents[1]

SCRIPT = """
import alphasweep
from alphasweep.pipeline.store import Store
import alphasweep.kernels.descent, alphasweep.cluster.launch

ds = alphasweep.open("tiny.zarr")
assert int(ds.is_done.sum()) == 12
print(alphasweep.Study(ds).describe())
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store, and with modules of the user's own."""
    fill(Store(tmp_path / "tiny.zarr"), tiny(), parts_of(tiny()))
    keep_own_modules(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("options", [[], ["-P"]], ids=["as it comes", "safe path"])
@pytest.mark.long
def test_own_modules_of_a_user_are_not_in_the_way(here: Path, options: list[str]) -> None:
    """A script, a line of Python, and the command line work beside them."""
    (here / "script.py").write_text(SCRIPT)
    command = ["-m", "alphasweep.pipeline.cli", "status", "tiny.zarr"]
    for arguments in (["script.py"], ["-c", SCRIPT], command):
        words = [sys.executable, *options, *arguments]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.long
def test_a_submitted_driver_imports_nothing_of_its_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job that `submit` writes runs where modules lie called as those that are imported."""
    keep_own_modules(here, "dask", "xarray", "zarr")
    for name, line in (("sbatch", "cat > job; echo 7"), ("squeue", ":"), ("sinfo", "exit 1")):
        (here / name).write_text(f"#!/bin/sh\n{line}\n")
        (here / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(here), prepend=os.pathsep)
    size = 'memory = "1 GB"\nwalltime = "1h"\n'
    text = (
        f'kind = "slurm"\njobs = 1\n[driver]\n{size}[[classes]]\nname = "one"\nup_to_N = 99\n{size}'
    )
    (here / "slurm.toml").write_text(text)
    command = [sys.executable, "-P", "-m", "alphasweep.pipeline.cli"]
    subprocess.run([*command, "submit", "tiny.zarr", "--on", "slurm.toml"], check=True)
    done = subprocess.run(["bash", "job"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tiny: nothing is to be computed" in done.stdout


def test_a_checkout_of_our_name_is_not_in_the_way(tmp_path: Path) -> None:
    """Who works above a clone called `alphasweep` imports what is installed."""
    (tmp_path / "alphasweep" / "kernels").mkdir(parents=True)
    code = "import alphasweep; print(alphasweep.__file__)"
    found = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path)
    assert found.strip() == alphasweep.__file__


def test_names_are_offered_when_they_are_used() -> None:
    """All names of `alphasweep` are there, for completion too; another is an error."""
    assert set(alphasweep.__all__) <= set(dir(alphasweep))
    for name in alphasweep.__all__:
        assert callable(getattr(alphasweep, name))
    with pytest.raises(AttributeError, match="no attribute 'opens'"):
        alphasweep.opens  # noqa: B018


def test_the_folder_for_imports_leads_to_the_rooms() -> None:
    """What an editable install imports are these very files; a wheel takes the same."""
    links = ROOT / ".import" / "alphasweep"
    for room in ROOMS:
        assert (links / room).is_symlink()
        assert (links / room).resolve() == ROOT / room
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    sources = project["tool"]["hatch"]["build"]["targets"]["wheel"]["sources"]
    assert {sources.get(room) for room in ROOMS} == {f"alphasweep/{room}" for room in ROOMS}
