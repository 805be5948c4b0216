"""What a decided store says of a time t is what a store whose t_max is t says, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from alphasweep.analysis.recovery import alpha_half, recovery_probability
from alphasweep.kernels.descent import Outcome
from alphasweep.kernels.loss import IntensityLoss
from alphasweep.kernels.rates import recorded_unit
from alphasweep.pipeline.spec import Sweep
from alphasweep.pipeline.store import Store
from tests.conftest import fill, parts_of

METHODS: dict[str, dict[str, Any]] = {
    "gd": {"learning_rate": 0.03},
    "auto": {"learning_rate": "auto"},
    "flow": {"method": "flow"},
}
# Of what times are rounded to a multiple.
UNITS = {"gd": 0.03, "auto": recorded_unit(IntensityLoss(1.0), 6.0), "flow": 0.0}


def dataset(path: Path, method: str, t_max: float) -> xr.Dataset:
    """Run a sweep to t_max, and load its store."""
    sweep = Sweep.from_document(
        {
            "name": "to-a-time",
            "root_seed": 2,
            "grid": {
                "alpha": [1.1, 1.5, 2.0, 3.0, 6.0], "N": [8, 12],
                "seed": [0, 1, 2, 3], "start": [0, 1, 2, 3],
            },
            "problem": {"a": 1.0},
            "descent": {**METHODS[method], "t_max": t_max},
            "record": {"times": [0.3, 1.0]},
        }
    )  # fmt: skip
    store = Store(path)
    fill(store, sweep, parts_of(sweep, 4))
    return xr.open_zarr(store.path).load()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.long
def test_a_time_of_a_decided_store_is_a_store_of_that_time(tmp_path: Path, method: str) -> None:
    """Who recovered and when, who is decided, P and alpha_half by t; also at t itself.

    Time t is one at which a run recovers; of plain steps, which round it, a little before or after.
    """
    long, unit = dataset(tmp_path / "long.zarr", method, 200.0), UNITS[method]
    times = np.sort(long.recovery_time.values.ravel())
    if method == "auto":
        times = times[times % unit == 0]
    recovered_at = float(times[times.searchsorted(6.0)])
    for shift in {-0.4 * unit, 0.4 * unit}:
        t = recovered_at + shift
        short = dataset(tmp_path / f"{shift}.zarr", method, t)
        by = (long.recovered == 1) & (long.recovery_time <= recovered_at)
        np.testing.assert_array_equal(short.recovered == 1, by)
        np.testing.assert_array_equal(short.recovery_time, long.recovery_time.where(by))
        early = by | ((long.recovered == 0) & (long.end_time <= recovered_at))
        undecided = short.outcome == Outcome.UNDECIDED
        np.testing.assert_array_equal(~undecided, early & (long.outcome != Outcome.UNDECIDED))
        assert (early & ~by).any()
        assert undecided.any()
        for name in ("overlap", "energy", "mu", "outlier"):
            np.testing.assert_array_equal(short[name][..., :3], long[name][..., :3])
        for result in (recovery_probability, alpha_half):
            xr.testing.assert_identical(result(long, t), result(short, t))
        assert np.isfinite(alpha_half(long, t)["alpha_half"]).all()
        P = recovery_probability(long, t)["probability"]
        np.testing.assert_array_equal(P, short.recovered.mean(("seed", "start")))
        assert (recovery_probability(long)["least"] > P).any()
