"""A sweep's dataset with all that follows from it, each result computed once, when it is needed."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from alphasweep.analysis import mechanism, recovery, scaling, times, transition
from alphasweep.analysis.threshold_states import (
    NoThresholdStateError,
    ThresholdState,
    threshold_at_bbp,
    threshold_state,
)
from alphasweep.analysis.thresholds import GAUSSIAN, threshold_of, too_large
from alphasweep.analysis.transition import sem
from alphasweep.kernels.loss import Loss

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
    def loss(self) -> Loss:
        """The loss, with its parameters."""
        return recovery.loss_of_sweep(self.descent)

    @cached_property
    def threshold_at_bbp(self) -> ThresholdState | None:
        """The 1RSB threshold states at alpha_BBP_TS; None where there are none."""
        if self.descent["sensing"] not in GAUSSIAN:
            return None
        try:
            return threshold_at_bbp(self.loss)
        except NoThresholdStateError:
            return None

    @cached_property
    def bbp_in_time(self) -> xr.Dataset:
        """alpha_BBP(t) of runs without a signal, (N, time); `analysis.transition`."""
        return transition.alpha_bbp_in_time(self.ds)

    @cached_property
    def largest(self) -> int:
        """The largest N at which a cell is done; the smallest N where none is."""
        done = recovery.is_done(self.ds).any(["alpha", "seed"]).values
        sizes = self.ds["N"].values
        return int(sizes[done].max(initial=sizes.min()))

    @cached_property
    def bbp_limit(self) -> dict[str, Any]:
        """alpha_BBP(t -> infinity) at the `largest` N, see `analysis.transition.limit`."""
        at = self.bbp_in_time["by_seed"].sel(N=self.largest).transpose("seed", "time")
        return transition.limit(at["time"].values, at.values)

    @cached_property
    def null_energies(self) -> xr.Dataset:
        """Mean energy at the `largest` N, (alpha, time), at up to four of the larger alphas.

        With the ``threshold_energy`` of the 1RSB states of each alpha, NaN where there are none;
        and ``limit`` and ``limit_error`` of t -> infinity, see `analysis.transition.limit`.
        """
        done = recovery.is_done(self.ds)
        at = self.ds["energy"].where(done).sel(N=self.largest).mean("start").load()
        at = at.dropna("alpha", how="all")
        largest = at["alpha"].values[at["alpha"].values >= at["alpha"].values.max() / 2]
        places = np.unique(np.linspace(0, len(largest) - 1, 4).round().astype(int))
        at = at.sel(alpha=largest[places]).transpose("alpha", "seed", "time")
        states, limits = [], []
        for alpha in at["alpha"].values:
            try:
                states.append(threshold_state(float(alpha), self.loss).energy)
            except NoThresholdStateError:
                states.append(math.nan)
            limits.append(transition.limit(at["time"].values, at.sel(alpha=alpha).values))
        return xr.Dataset(
            {
                "energy": at.mean("seed"),
                "threshold_energy": ("alpha", states),
                "limit": ("alpha", [one["value"] for one in limits]),
                "limit_error": ("alpha", [one["error"] for one in limits]),
            },
            attrs={"N": self.largest},
        )

    @cached_property
    def escapes(self) -> xr.Dataset:
        """When runs escaped, and when their outlier was gone, see `analysis.mechanism.escapes`."""
        return mechanism.escapes(self.ds)

    @cached_property
    def overlap_growth(self) -> xr.Dataset:
        """Growth of the overlap, (alpha, N, time), see `analysis.mechanism.overlap_growth`."""
        return mechanism.overlap_growth(self.ds)

    @cached_property
    def start_overlaps(self) -> xr.Dataset:
        """Mean squared overlap of the starts, (alpha, N), with its error over matrices."""
        ds = recovery.matrix_by_matrix(self.ds)
        at = (ds["overlap"].isel(time=0, drop=True) ** 2).where(recovery.is_done(ds)).mean("start")
        return xr.Dataset({"squared": at.mean("seed"), "standard_error": sem(at)}).load()

    def run_that_tells(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """Pick the cell whose first start tells most.

        Parameters
        ----------
        asked
            Values of alpha, N or seed that it must have; None for any.

        Returns
        -------
        dict or None
            Its alpha, N and seed: of a probed cell, if there is one, at the largest N, where the
            outlier dies on the way, the run recovers, and P(recovery) is between 0.5 and 0.9, in
            this order. None where none is done.

        Raises
        ------
        ValueError
            If a value is not one of the sweep.
        """
        ds, probability = self.ds, self.probability["probability"]
        for name, value in asked.items():
            if value is not None and value not in ds[name].values:
                held = ", ".join(f"{v:g}" for v in ds[name].values)
                raise ValueError(
                    f"{name} must be a value of the sweep, one of {held}; got {value}."
                )
        fixed = {name: [value] for name, value in asked.items() if value is not None}
        chosen = ds.sel(fixed)
        first = chosen.isel(start=0)
        small = abs(first["overlap"]) <= mechanism.SMALL_OVERLAP
        alive = first["outlier"].notnull()
        typical = probability.sel({k: v for k, v in fixed.items() if k != "seed"}) - 0.7
        merit = xr.Dataset(
            {
                "done": recovery.is_done(chosen),
                "probed": _is_probed(chosen),
                "large": chosen["N"],
                "dies": alive.isel(time=0, drop=True) & (small & ~alive).any("time"),
                "recovered": first["recovered"] == 1,
                "typical": abs(typical) <= 0.2 + 1e-9,
            }
        )
        table = merit.to_dataframe(dim_order=["alpha", "N", "seed"]).query("done")
        if table.empty:
            return None
        best = table.sort_values(list(merit.data_vars), ascending=False, kind="stable").index[0]
        return dict(zip(("alpha", "N", "seed"), best, strict=True))

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
            lines = [recovery.describe_null(self.ds)]
            if self.bbp_in_time["alpha_bbp"].notnull().any():
                lines.append(self._describe_transition())
            return "\n".join(lines)
        lines = [scaling.describe(self.laws)]
        if self.threshold is not None:
            text = f"outlier at the random start from alpha_BBP_init = {self.threshold:.4f}"
            lines.insert(0, text)
        if len(self.times) > 1:
            lines.append(scaling.describe_slopes(self.laws_in_time))
        lines += filter(None, [times.describe(self.growth)])
        lines += filter(None, [mechanism.describe(self.escapes, self.half)])
        return "\n".join(lines)

    def _describe_transition(self) -> str:
        """Say what alpha_BBP(t) is, and what the threshold states are next to it."""
        found = self.bbp_in_time
        lines = ["alpha_BBP(t), above which the Hessian has an outlier at time t:"]
        for N in found["N"].values:
            known = found.sel(N=N).dropna("time", subset=["alpha_bbp"])
            if not known.sizes["time"]:
                lines.append(f"  N = {N}: no transition lies between the alphas of the sweep.")
                continue
            asked = [0.0, 1.0, 10.0, 100.0, float(known["time"][-1])]
            at = known.sel(time=sorted(set(asked)), method="nearest").drop_duplicates("time")
            columns = (at[name].values for name in ("alpha_bbp", "standard_error", "time"))
            told = (f"{v:.2f}±{e:.2f} at t = {t:.3g}" for v, e, t in zip(*columns, strict=True))
            lines.append(f"  N = {N}: {', '.join(told)}.")
        end = self.bbp_limit
        if end["note"]:
            lines.append(f"  its limit is not known: {end['note']}.")
        else:
            lines.append(
                f"  t -> infinity at the largest N: {end['value']:.2f}±{end['error']:.2f}, by "
                f"alpha + c t^-{end['power']:.2f} from t = {end['since']:.3g} on; the error is of "
                "the matrices and of the times that are fitted, not of the law."
            )
        if self.threshold is not None:
            lines.append(f"  theory at t = 0: alpha_BBP_init = {self.threshold:.4f}.")
        if self.threshold_at_bbp is not None:
            state = self.threshold_at_bbp.alpha
            away = "" if end["note"] else f", {state - end['value']:+.2f} from that limit"
            lines.append(
                f"  1RSB threshold states: alpha_BBP_TS = {state:.4f}{away}; they approximate "
                "where the descent ends."
            )
        for alpha in self.null_energies["alpha"].values[-1:]:
            one = self.null_energies.sel(alpha=alpha)
            energy, last = float(one["threshold_energy"]), float(one["energy"][-1])
            if not math.isnan(energy):
                limit = float(one["limit"])
                further = (
                    ""
                    if math.isnan(limit)
                    else (f", extrapolated {limit:.4f}±{float(one['limit_error']):.4f}")
                )
                lines.append(
                    f"  energy at alpha = {alpha:g}: {last:.4f} at the last time{further}; "
                    f"of the 1RSB states {energy:.4f}."
                )
        return "\n".join(lines)


def _is_probed(ds: xr.Dataset) -> xr.DataArray:
    if "lambda_min" not in ds:
        return xr.zeros_like(ds["status"], dtype=bool)
    probed: xr.DataArray = ds["lambda_min"].notnull().any(["time", "mode"])
    return probed
