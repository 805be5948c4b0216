"""The short form of `tests/torture.py`, whose long form is a command."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.torture import Victim, race, torture, write_sweep

pytestmark = pytest.mark.long

ROUNDS, SEED, RACES = 3, 5, 6


def test_kills_at_random_lose_nothing_and_change_nothing(tmp_path: Path) -> None:
    """Drivers, workers and extensions may be killed, or suspended: what is done stays, all comes.

    Readers see no error and no wrong number meanwhile.
    """
    torture(tmp_path, ROUNDS, SEED, "flow")


def test_a_worker_is_found_and_killed(tmp_path: Path) -> None:
    """It is replaced: the run ends as if nothing had been."""
    sweep = write_sweep(tmp_path, {"alpha": [2.0], "N": [10], "seed": [0, 1]}, "flow")
    victim = Victim(tmp_path, "run", sweep, "--workers", "1")
    assert victim.kill("worker", random.Random(SEED)) == "worker"
    assert victim.wait() == 0, victim.log.read_text()


def test_of_two_drivers_exactly_one_runs(tmp_path: Path) -> None:
    """Whatever is at the path, and whoever looks at it meanwhile; the other is told who does."""
    race(tmp_path, RACES)
