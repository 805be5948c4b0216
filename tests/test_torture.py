"""The short form of `tests/torture.py`, whose long form is a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture import race, torture

pytestmark = pytest.mark.long

ROUNDS, SEED, RACES = 3, 5, 6


def test_kills_at_random_lose_nothing_and_change_nothing(tmp_path: Path) -> None:
    """Drivers, workers and extensions may be killed, or suspended: what is done stays, all comes.

    Readers see no error and no wrong number meanwhile.
    """
    torture(tmp_path, ROUNDS, SEED, "flow")


def test_of_two_drivers_exactly_one_runs(tmp_path: Path) -> None:
    """Whatever is at the path, and whoever looks at it meanwhile; the other is told who does."""
    race(tmp_path, RACES)
