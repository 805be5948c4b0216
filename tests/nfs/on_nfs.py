"""A store on a real NFS, driven from two of its clients; ``nfs.sh test`` runs these tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alphasweep.pipeline.spec import Sweep
from alphasweep.pipeline.store import Store
from tests.conftest import TINY, bits, fill, parts_of
from tests.slurm.conftest import until

EXPORT = Path("/run/export")  # the disk, as the server sees it
SWEEP = Sweep.from_document(
    TINY | {"grid": {"alpha": [2.0, 4.0], "N": [48], "seed": list(range(24)), "start": [0, 1]}}
)
FILE = """\
name = "tiny"
root_seed = 5
grid = { alpha = [2.0, 4.0], N = [48], seed = { from = 0, to = 23 }, start = [0, 1] }
descent = { a = 1.0, learning_rate = 0.03, t_max = 3.0 }
record = { times = [0.3, 1.0] }
probe = { times = [0.0, 1.0], modes = 2 }
"""
RUN = ["run", "tiny.toml", "--workers", "1", "--part-seconds", "0.05", "--wait"]


class Node:
    """A client of the server, with a host name of its own; commands run in a folder of the disk."""

    def __init__(self, name: str, folder: Path) -> None:
        pid = Path(f"/run/client-{name}").read_text().strip()
        enter = ["nsenter", "-t", pid, "--mount", "--net", "--uts", f"--wdns={folder}"]
        self._command = [*enter, sys.executable, "-P", "-m", "alphasweep.pipeline.cli"]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Begin a command of alphasweep."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*self._command, *words], start_new_session=True, **pipes)

    def does(self, *words: str) -> tuple[int, str]:
        """Run a command of alphasweep, and return its status and what it said of errors."""
        process = self.start(*words)
        _, errors = process.communicate(timeout=1200)
        return process.returncode, errors


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a plain loop gives, on a disk of this machine."""
    store = Store(tmp_path_factory.mktemp("reference") / "tiny.zarr")
    fill(store, SWEEP, parts_of(SWEEP))
    return bits(store.path)


@pytest.fixture(params=["nfs4", "nfs3"])
def nodes(request: pytest.FixtureRequest) -> Iterator[tuple[Node, Node]]:
    """Two clients in one folder of the disk, by NFS 4.2 and by NFS 3."""
    folder = EXPORT / "work"
    folder.mkdir()
    (folder / "tiny.toml").write_text(FILE)
    place = Path("/run") / request.param / folder.name
    yield Node("a", place), Node("b", place)
    shutil.rmtree(folder, ignore_errors=True)


def safe(number: int) -> bool:
    """Whether so many cells are done or handed in, by the server's own view of the disk."""
    store = Store(EXPORT / "work" / "tiny.zarr")
    if not store.exists():
        return False
    return int((store.status() == 1).sum()) + len(store.parts()) >= number


def end(process: subprocess.Popen[str], how: signal.Signals) -> None:
    """Send a signal to a driver and to its workers."""
    os.killpg(process.pid, how)


def test_killed_on_one_node_and_run_on_the_other(
    nodes: tuple[Node, Node], reference: dict[str, Any]
) -> None:
    """Whoever comes next goes on with what is on the disk, and the end has the same bits."""
    for number, node in ((4, nodes[0]), (12, nodes[1]), (20, nodes[1])):
        process = node.start(*RUN)
        until(lambda n=number: safe(n), what=f"{number} cells", seconds=600)
        end(process, signal.SIGKILL)
        process.communicate()
    assert nodes[0].does(*RUN) == (0, "")
    assert bits(EXPORT / "work" / "tiny.zarr") == reference
    assert nodes[1].does("verify", "tiny.zarr") == (0, "")


@pytest.mark.parametrize("other", [0, 1], ids=["on the same node", "on the other node"])
def test_a_driver_that_was_stopped_is_taken_over(
    nodes: tuple[Node, Node], reference: dict[str, Any], other: int
) -> None:
    """The second goes on though the first has files open; the first finds out when it is woken."""
    first = nodes[0].start(*RUN)
    until(lambda: safe(4), what="four cells", seconds=600)
    end(first, signal.SIGSTOP)
    try:
        assert nodes[other].does(*RUN) == (0, "")
    finally:
        end(first, signal.SIGCONT)
    _, errors = first.communicate(timeout=600)
    assert first.returncode == 1
    assert "taken over" in errors
    assert len(errors.splitlines()) == 1
    assert bits(EXPORT / "work" / "tiny.zarr") == reference


def test_a_full_disk(nodes: tuple[Node, Node], reference: dict[str, Any]) -> None:
    """One line, and nothing that was finished is lost: with room the next run ends as any other."""
    free = shutil.disk_usage(EXPORT).free
    with (EXPORT / "filling").open("wb") as filling:
        os.posix_fallocate(filling.fileno(), 0, free - 150_000)
    try:
        status, errors = nodes[0].does(*RUN)
    finally:
        (EXPORT / "filling").unlink()
    assert status == 1
    assert "No space left on device" in errors
    assert len(errors.splitlines()) == 1
    assert nodes[1].does(*RUN) == (0, "")
    assert bits(EXPORT / "work" / "tiny.zarr") == reference
