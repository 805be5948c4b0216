"""Workers on this machine: they are replaced, or it is said that they are not, and none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from alphasweep.cluster import local as local_module
from alphasweep.cluster import worker
from alphasweep.cluster.local import check, local
from alphasweep.cluster.queue import ClusterError
from tests.test_pulse import until

# What a worker does before all else while the file is there.
BROKEN = """
import sys
from pathlib import Path
is_worker = any(word.endswith("alphasweep.cluster.worker") for word in sys.orig_argv)
if is_worker and Path({file!r}).exists():
    sys.exit("planted: no memory")
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have no process of a worker start while this file is there."""
    (file := tmp_path / "broken").touch()
    (tmp_path / "sitecustomize.py").write_text(BROKEN.format(file=str(file)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(local_module, "_STILLBORN", 2)
    return file


def test_a_worker_that_is_killed_comes_back() -> None:
    """Again and again, in a process of its own; the environment of the driver stays as it was."""
    before = dict(os.environ)
    with local(1) as client:
        seen = set()
        for _ in range(2):
            pid = client.submit(os.getpid, pure=False).result(timeout=120)
            assert pid not in seen | {os.getpid()}
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
        assert client.submit(os.getpid, pure=False).result(timeout=120) not in seen
        check(client)
    assert dict(os.environ) == before


def test_workers_that_do_not_start(broken: Path) -> None:
    """After some attempts that is told, with the last words of the process."""
    words = "1 workers on this machine must start; got: .*planted: no memory. Was one killed"
    with pytest.raises(ClusterError, match=words), local(1):
        pass


def test_workers_that_do_not_come_back(broken: Path) -> None:
    """While a process may still start nothing is said; then it is."""
    broken.unlink()
    with local(1) as client:
        pid = client.submit(os.getpid).result(timeout=120)
        check(client)
        broken.touch()
        os.kill(pid, signal.SIGKILL)
        until(lambda: refuses(lambda: check(client)), "an error")


def refuses(action: Callable[[], object]) -> bool:
    """Whether an action ends with an error of the cluster."""
    try:
        action()
    except ClusterError:
        return True
    return False


def hold_much(mark: Path) -> str:
    """Hold more memory than a worker may, the first time."""
    if mark.exists():
        return "again"
    mark.touch()
    much = np.ones(600 * 2**17)
    time.sleep(600)
    return str(much.sum())


def test_a_worker_that_holds_too_much_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed, and what it had in hand runs elsewhere."""
    monkeypatch.setattr(local_module, "MEMORY_LIMIT", 500_000_000)
    with local(1) as client:
        assert client.submit(hold_much, tmp_path / "mark").result(timeout=120) == "again"


def test_workers_end_with_their_driver() -> None:
    """However it ends, and whatever they are doing."""
    code = (
        "import os, time\n"
        "from alphasweep.cluster.local import local\n"
        "with local(1) as client:\n"
        "    print(client.submit(os.getpid).result(), flush=True)\n"
        "    client.submit(time.sleep, 600)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as driver:
        assert driver.stdout is not None
        there = psutil.Process(int(driver.stdout.readline()))
        driver.kill()
    assert not psutil.wait_procs([there], timeout=60)[1]


def test_a_worker_that_still_starts_ends_with_its_driver() -> None:
    """It would try for long to reach a driver who is gone."""
    process = subprocess.Popen(
        [sys.executable, "-m", worker.__name__, "tcp://127.0.0.1:1", "one", "1000000000"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1h"},
        cwd=Path(__file__).parents[1],
    )
    with process:
        assert process.stdin is not None
        process.stdin.close()
        try:
            assert process.wait(timeout=120) == 1
        finally:
            process.kill()
