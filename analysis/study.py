"""A sweep's dataset with all that follows from it, each result computed once, when it is needed."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import xarray as xr

from alphasweep.analysis import recovery, scaling, times
from alphasweep.analysis.thresholds import threshold_of, too_large

#: The first of the times, each twice the one before, at which P and alpha_half are looked at.
FIRST_TIME = 30.0


@dataclass(frozen=True, eq=False)
class Study:
    """A sweep's dataset, and its results: what figures, tables and sentences are made from.

    Attributes
    ----------
    ds : xr.Dataset
        A sweep's dataset, as `xr.open_zarr` gives it.
    by : float or "end", optional
        By when runs have to have recovered, see `analysis.recovery.recovery_probability`. None:
        in the end, if at every N at most 1 % of the runs are undecided, otherwise by t_max.
    """

    ds: xr.Dataset
    by: float | str | None = None

    @cached_property
    def outcomes(self) -> xr.Dataset:
        """How many runs ended how, (N,), see `analysis.recovery.outcomes`."""
        return recovery.outcomes(self.ds)

    @cached_property
    def time(self) -> float:
        """By when runs have to have recovered; inf for in the end."""
        if self.by is not None:
            return float(recovery.times_of(self.ds, self.by))
        return math.inf if self.is_decided else self.descent["t_max"]

    @cached_property
    def is_decided(self) -> bool:
        """Whether at most 1 % of the runs at every N are undecided."""
        undecided = self.outcomes["undecided"] > recovery.NEGLIGIBLE * self.outcomes["runs"]
        return not undecided.any()

    @cached_property
    def times(self) -> list[float]:
        """Of `halves`, ascending: 30, 60, 120, ... while runs recover later, t_max, inf.

        Without t_max where the runs are decided: it is then hardly anybody's time.
        """
        found = {self.time, math.inf}
        if not self.is_decided:
            found.add(self.descent["t_max"])
        later = self.ds["recovery_time"].where(recovery.is_done(self.ds)).values
        after, time = later[later > 0], FIRST_TIME
        while (after > time).sum() > recovery.NEGLIGIBLE * after.size:
            if time < self.descent["t_max"]:
                found.add(time)
            time *= 2
        return sorted(found)

    @cached_property
    def probability(self) -> xr.Dataset:
        """P(recovery) by `time`, (alpha, N), see `analysis.recovery.recovery_probability`."""
        return recovery.recovery_probability(self.ds, self.time)

    @cached_property
    def halves(self) -> xr.Dataset:
        """alpha_half by each of `times`, (by, N), see `analysis.recovery.alpha_half`."""
        return recovery.alpha_half(self.ds, self.times)

    @cached_property
    def half(self) -> xr.Dataset:
        """alpha_half by `time`, (N,)."""
        return self.halves.sel(by=self.time)

    @cached_property
    def laws(self) -> xr.Dataset:
        """The laws of alpha_half(N) by `time`, see `analysis.scaling.fit_log_laws`."""
        return self.laws_in_time[self.times.index(self.time)]

    @cached_property
    def laws_in_time(self) -> list[xr.Dataset]:
        """The laws by each of `times`."""
        return [scaling.fit_log_laws(self.halves.sel(by=time)) for time in self.times]

    @cached_property
    def recovery_times(self) -> xr.Dataset:
        """Median time of recovery, (alpha, N), see `analysis.times.recovery_times`."""
        return times.recovery_times(self.ds)

    @cached_property
    def growth(self) -> xr.Dataset:
        """How it grows with N, (alpha,), see `analysis.times.growth`."""
        return times.growth(self.recovery_times)

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

    @cached_property
    def unstable(self) -> str:
        """A sentence on runs that diverged, if they are more than 1 %, with what to do; or ""."""
        diverged, runs = (int(self.outcomes[name].sum()) for name in ("diverged", "runs"))
        if not diverged > recovery.NEGLIGIBLE * runs:
            return ""
        said = f"{diverged:,} of {runs:,} runs diverged ({diverged / runs:.0%})"
        rate = self.descent.get("learning_rate")
        if rate is None or self.descent.get("method", "gd") != "gd":
            return f"{said}: they say nothing of the threshold."
        if rate == "auto":
            return f'{said} at what learning_rate = "auto" chose: give a number below it.'
        N = int(self.ds["N"][(self.outcomes["diverged"] > 0).values].max())
        alpha = float(self.ds["alpha"].min())
        return f"{said}, as {too_large(self.descent, N=N, alpha=alpha)}."

    @cached_property
    def is_void(self) -> bool:
        """Whether so many runs diverged, more than half, that nothing useful can be said."""
        return bool(2 * self.outcomes["diverged"].sum() > self.outcomes["runs"].sum())

    def describe(self) -> str:
        """Say in a few lines what the sweep tells of alpha_half(N), or holds without a signal."""
        if not self.has_signal:
            return recovery.describe_null(self.ds)
        lines = [scaling.describe(self.laws)]
        if self.threshold is not None:
            text = f"outlier at the random start from alpha_BBP_init = {self.threshold:.4f}"
            lines.insert(0, text)
        if len(self.times) > 1:
            lines.append(scaling.describe_slopes(self.laws_in_time))
        lines += filter(None, [times.describe(self.growth)])
        return "\n".join(lines)
