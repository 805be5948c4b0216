"""Workers that say nothing: who is noticed, who is ended, and who is not to blame."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from distributed import Client

from alphasweep.cluster import pulse as pulse_module
from alphasweep.cluster.local import local
from alphasweep.cluster.pulse import Pulse, silences


class Played:
    """A scheduler whose workers speak by call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *workers: str) -> None:
        self.now = 1000.0
        monkeypatch.setattr(pulse_module, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.workers = {worker: SimpleNamespace(last_seen=0.0) for worker in workers}
        self.extensions: dict[str, Any] = {}
        self.loop = SimpleNamespace(add_callback=lambda function: None)
        self.ended: list[str] = []
        scheduler: Any = self
        self.pulse = Pulse(scheduler, 60.0)
        monkeypatch.setattr(self.pulse, "_end", self.ended.extend)

    def passes(self, seconds: int, *speak: str) -> None:
        """Let time pass, in which some workers speak."""
        for _ in range(seconds):
            self.now += 1
            for worker in speak:
                self.workers[worker].last_seen += 1
            self.pulse.look()


def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent worker is noticed, and ended once when its time is up; others are not."""
    played = Played(monkeypatch, "a", "b")
    played.passes(5, "a", "b")
    played.passes(50, "a")
    assert played.pulse.silent == {"b": 50.0}
    assert played.ended == []
    played.passes(11, "a")
    assert played.ended == ["b"]
    played.passes(40, "a")
    assert played.ended == ["b"]
    played.passes(1, "a", "b")
    assert played.pulse.silent == {}


def test_who_did_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the driver was stopped for an hour, or its clock was changed, nobody was silent."""
    played = Played(monkeypatch, "a", "b")
    played.passes(5, "a", "b")
    played.now += 3600
    played.passes(5)
    assert played.pulse.silent == {}
    played.workers["a"].last_seen -= 86400
    played.passes(1)
    played.passes(9)
    assert "a" not in played.pulse.silent
    assert played.ended == []


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition, and return its first true value."""
    end = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


def test_a_stopped_worker_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, then replaced, and what it had in hand is done by another."""
    monkeypatch.setattr(pulse_module, "_QUIET_SECONDS", 2.0)
    with local(1, silent=12.0) as client:
        (pid,) = client.run(os.getpid).values()
        os.kill(pid, signal.SIGSTOP)
        task = client.submit(os.getpid)
        until(lambda: silences(client), "a silent worker")
        assert task.result(timeout=120) != pid
        until(lambda: not psutil.pid_exists(pid), "the end of the stopped worker")
        until(lambda: not silences(client), "a worker that speaks")


def long_part(N: int) -> float:
    """Take seconds in one call of LAPACK."""
    matrix = np.random.default_rng(0).standard_normal((N, N))
    return float(np.linalg.eigvalsh(matrix @ matrix.T)[0])


@pytest.fixture(scope="module")
def client() -> Any:
    """One worker on this machine."""
    with local(1) as one:
        yield one


def test_a_worker_that_works_is_not_silent(client: Client) -> None:
    """One that is inside a single long call speaks meanwhile."""
    (worker,) = client.cluster.scheduler.workers.values()
    task = client.submit(long_part, 2500)
    until(lambda: worker.processing, "a worker at work")
    heard = set()
    while not task.done():
        heard.add(worker.last_seen)
        time.sleep(0.05)
    assert len(heard) > 2
