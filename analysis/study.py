"""A sweep's dataset with all that follows from it, each result computed once, when it is needed."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import xarray as xr

from analysis import recovery, scaling
from analysis.thresholds import threshold_of


@dataclass(frozen=True, eq=False)
class Study:
    """A sweep's dataset, and its results: what figures, tables and sentences are made from.

    Attributes
    ----------
    ds : xr.Dataset
        A sweep's dataset, as `xr.open_zarr` gives it.
    """

    ds: xr.Dataset

    @cached_property
    def probability(self) -> xr.Dataset:
        """P(recovery), (alpha, N), see `analysis.recovery.recovery_probability`."""
        return recovery.recovery_probability(self.ds)

    @cached_property
    def half(self) -> xr.Dataset:
        """alpha_half, (N,), see `analysis.recovery.alpha_half`."""
        return recovery.alpha_half(self.ds)

    @cached_property
    def laws(self) -> xr.Dataset:
        """The laws of alpha_half(N), see `analysis.scaling.fit_log_laws`."""
        return scaling.fit_log_laws(self.half)

    @cached_property
    def descent(self) -> dict[str, Any]:
        """Settings of the descent, see `analysis.recovery.descent_of`."""
        return recovery.descent_of(self.ds)

    @cached_property
    def has_signal(self) -> bool:
        """Whether there is anything to recover."""
        return not recovery.has_no_signal(self.ds)

    @cached_property
    def threshold(self) -> float | None:
        """alpha_BBP of the random start; None where it is not known (`threshold_of`)."""
        return threshold_of(self.descent)

    def describe(self) -> str:
        """Say in a few lines what the sweep tells of alpha_half(N), or holds without a signal."""
        if not self.has_signal:
            return recovery.describe_null(self.ds)
        laws = scaling.describe(self.laws)
        if self.threshold is None:
            return laws
        return f"outlier at the random start from alpha_BBP_init = {self.threshold:.4f}\n{laws}"
