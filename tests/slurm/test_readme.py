"""What the README says about clusters, word for word, on a real SLURM."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from alphasweep.pipeline.store import Store
from tests.conftest import bits
from tests.slurm.conftest import Slurm

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "tests" / "slurm" / "cluster.sh"


def chapter() -> list[str]:
    """Return the blocks of shell commands of the chapter about clusters, in their order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## On a cluster\n(.*?)^## ", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^```bash\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)


def typed(commands: str, folder: Path) -> str:
    """Type commands in a shell, stop at the first that fails, and return what they said."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_chapter_about_clusters(slurm: Slurm, tmp_path: Path) -> None:
    """Its commands run as they are, with the files that they write as they are written."""
    commands, demo = chapter()
    # The reader's environment, made by Start, is the one that the tests run in.
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    place = Path(sys.executable).parent
    (tmp_path / ".venv" / "bin" / "activate").write_text(f'export PATH="{place}:$PATH"\n')
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    said = typed(f"{demo}\n{commands}", tmp_path)  # the cluster of this session is started already
    assert "Submitted the driver of" in said
    assert "32 of 32 cells done" in said
    assert "Traceback" not in said
    store = Store(tmp_path / "quick.zarr")
    assert "jobs of class small submitted to slurm" in (store.control / "driver.log").read_text()
    typed(f"{place}/alphasweep run quick --store local.zarr", tmp_path)
    assert bits(store.path) == bits(tmp_path / "local.zarr")
    assert slurm.jobs() == []


def test_every_user_has_a_cluster_of_his_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: Slurm
) -> None:
    """Its folder is by user, and ports that others listen at are left to them."""
    monkeypatch.delenv("ALPHASWEEP_SLURM_ROOT")
    monkeypatch.delenv("ALPHASWEEP_SLURM_PORT", raising=False)
    assert f"alphasweep-slurm-{os.getuid()}/" in typed(f"{CLUSTER} env", tmp_path)
    first = 16817 + os.getuid() % 1499 * 10
    monkeypatch.setenv("ALPHASWEEP_SLURM_ROOT", str(tmp_path / "slurm"))
    with socket.socket() as other:
        with suppress(OSError):  # somebody does so already
            other.bind(("127.0.0.1", first + 2))
            other.listen()
        try:
            typed(f'{CLUSTER} start && eval "$({CLUSTER} env)" && srun -n 1 true', tmp_path)
        finally:
            typed(f"{CLUSTER} stop", tmp_path)
