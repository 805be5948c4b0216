"""Who drives a store, whatever clocks say and whoever has the number of a process now."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alphasweep.pipeline import lease
from alphasweep.pipeline.cli import app
from alphasweep.pipeline.grid import Block
from alphasweep.pipeline.part import Part
from alphasweep.pipeline.store import Store, StoreError
from tests.conftest import take_over, tiny

HOLD = """
import sys, time
from alphasweep.pipeline.store import Store
with Store(sys.argv[1]).lock():
    print("mine", flush=True)
    time.sleep(600)
"""


def hold(store: Store) -> subprocess.Popen[str]:
    """Start a driver of the store, and return when it has the lock."""
    driver = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.path)], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "mine\n"
    return driver


@pytest.fixture
def stranger(full: Store) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with the store, but the number of its dead driver."""
    driver = hold(full)
    driver.kill()
    driver.communicate()
    time.sleep(1.5 * lease._SAME_BIRTH_SECONDS)  # numbers come back after thousands of others
    with subprocess.Popen(["sleep", "600"]) as process:
        lock, said = full.control / "lock", full.control / "progress.json"
        text = re.sub("pid=.*", f"pid={process.pid}", lock.read_text())
        lock.write_text(re.sub("start=.*\n", "", text))  # of versions that do not look at it
        said.write_text(json.dumps(json.loads(said.read_text()) | {"pid": process.pid}))
        yield process
        process.kill()


def test_a_stranger_with_the_number_of_a_dead_driver(
    full: Store, stranger: subprocess.Popen[bytes]
) -> None:
    """It drives nothing, and keeps nobody out."""
    assert full.holder() is None
    assert full.holder_here() is None
    with full.lock() as writer:
        writer.prepare(tiny())
    assert stranger.poll() is None


def test_cancel_spares_strangers(
    full: Store, stranger: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No signal goes to a process that is not the driver; the store is the canceller's."""
    monkeypatch.setenv("PATH", "")  # no queue
    done = CliRunner().invoke(app, ["cancel", str(full.path)])
    assert done.exit_code == 0, done.output
    time.sleep(0.1)
    assert stranger.poll() is None


def test_who_cannot_be_told_from_a_stranger_is_not_signalled(full: Store) -> None:
    """A driver that could not say when it was born, on a full disk, is named and left alone."""
    driver = hold(full)
    try:
        assert full.holder_here() == driver.pid
        (full.control / "progress.json").unlink()
        assert full.holder_here() is None
        assert f"process {driver.pid}" in str(full.holder())
    finally:
        driver.kill()
        driver.communicate()


def test_a_killed_driver_that_nobody_has_waited_for(full: Store) -> None:
    """It is dead, though its number is still taken: in containers nobody may ever wait for it."""
    driver = hold(full)
    driver.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert full.holder() is None
        assert full.holder_here() is None
        with full.lock() as writer:
            writer.prepare(tiny())
    finally:
        driver.communicate()


def test_a_driver_on_another_host_is_not_judged_by_processes_here(full: Store) -> None:
    """Its number means nothing here: it keeps the store while its lock is refreshed."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    with full.lock():
        text = re.sub("pid=.*", f"pid={dead.pid}", (full.control / "lock").read_text())
    lock = full.control / "lock"
    lock.write_text(re.sub("host=.*", "host=elsewhere", text))
    assert f"process {dead.pid} on elsewhere" in str(full.holder())
    assert full.holder_here() is None
    with pytest.raises(StoreError, match=r"in use by process .* on elsewhere"), full.lock():
        pass
    lock.write_text(text)  # the same of this host is dead
    assert full.holder() is None


@pytest.mark.parametrize("off", [-3600.0, 3600.0])
def test_a_clock_that_is_not_the_file_servers(
    full: Store, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    """How long a driver was silent is told by the clock that times its signs of life."""
    real = time.time
    with full.lock():
        monkeypatch.setattr(time, "time", lambda: real() + off)
        assert "last sign of life 0 s ago" in str(full.holder())
        with pytest.raises(StoreError, match="one driver at a time"), Store(full.path).lock():
            pass
        os.utime(full.control / "lock", (real() - 1000, real() - 1000))
        assert full.holder() is None


@pytest.mark.parametrize("off", [-1000.0, 1000.0])
def test_a_lock_of_another_time_is_taken_when_nobody_refreshes_it(
    full: Store, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    """Who died elsewhere before a clock was set back keeps nobody out until then."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    with full.lock():
        text = (full.control / "lock").read_text()
    lock = full.control / "lock"
    lock.write_text(re.sub("host=.*", "host=elsewhere", text))
    os.utime(lock, (time.time() + off, time.time() + off))
    assert full.holder() is None
    with full.lock() as writer:
        writer.prepare(tiny())


def test_who_lost_the_lease_changes_nothing(full: Store) -> None:
    """Not one of a driver's ways to write goes on, and leaving the lock is no success either."""

    def drive_on() -> None:
        with full.lock() as writer:
            writer.prepare(tiny())
            take_over(full)
            before = _everything(full)
            for act in (
                lambda: writer.prepare(tiny()),
                lambda: writer.prepare(tiny(alpha=[2.0, 3.0, 4.0])),
                lambda: writer.commit(Block(2.0, 8, 0), []),
                lambda: writer.discard(Part(2.0, 8, 0, 0)),
                lambda: writer.say(cells=1),
                lambda: writer.log("end"),
            ):
                with pytest.raises(StoreError, match="taken over by process"):
                    act()
            assert _everything(full) == before

    with pytest.raises(StoreError, match="taken over by process"):
        drive_on()
    assert (full.control / "lock").exists()


def _everything(store: Store) -> dict[Path, bytes]:
    files = [*store.path.rglob("*"), *store.control.rglob("*")]
    return {file: file.read_bytes() for file in files if file.is_file()}
