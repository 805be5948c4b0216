"""When the Hessian's outlier is there: the BBP transition in alpha and in time.

Along a descent without a signal (`signal = "null"`) every run records whether labels like its own
would have an outlier at large N. Where it has one, a planted run is still being led to the signal.
So alpha_BBP(t) is the alpha above which there is one at time t: alpha_BBP_init at t = 0, and that
of the states in which the descent ends as t -> infinity.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from alphasweep.analysis.recovery import is_done

Array = NDArray[np.float64]

#: The last part of the record, as a ratio of times, of which a limit is extrapolated; and a shorter
#: one, which tells how much the choice matters.
LATE = (30.0, 10.0)

_FEWEST_TIMES, _FEWEST_SEEDS = 5, 3


def outlier_share(ds: xr.Dataset) -> xr.DataArray:
    """Share of the starts of each matrix whose labels have an outlier.

    Parameters
    ----------
    ds
        A sweep's dataset; ``outlier`` and ``energy`` are used.

    Returns
    -------
    xr.DataArray, (alpha, N, seed, time)
        NaN where a cell is not done, or no start was recorded.
    """
    recorded = ds["energy"].notnull() & is_done(ds)
    count = recorded.sum("start")
    share: xr.DataArray = ((ds["outlier"].notnull() & recorded).sum("start") / count).where(count)
    return share.transpose("alpha", "N", "seed", "time")


def sem(values: xr.DataArray) -> xr.DataArray:
    """Standard error of the mean over ``seed``; NaN for fewer than two."""
    number = values.notnull().sum("seed")
    squares = ((values - values.mean("seed")) ** 2).sum("seed")
    error: xr.DataArray = (squares / (number * (number - 1)).where(number > 1)) ** 0.5
    return error


def alpha_bbp_in_time(ds: xr.Dataset) -> xr.Dataset:
    """Return alpha_BBP(t) at each N: the mean, over runs, of the alpha at which an outlier appears.

    It is Spearman's and Karber's mean of a transition: nothing is assumed of its shape but that no
    run has an outlier at the smallest alpha and all have one at the largest.

    Parameters
    ----------
    ds
        As of `outlier_share`, with two alphas or more.

    Returns
    -------
    xr.Dataset, (N, time)
        ``alpha_bbp``; ``standard_error`` over matrices, with that of the distance of the alphas;
        ``by_seed`` (N, seed, time), what each matrix alone gives; ``share`` (alpha, N, time). NaN
        where the transition is not between the alphas.
    """
    by_seed = outlier_share(ds).sortby("alpha")
    alpha = by_seed["alpha"].values
    whole = by_seed.notnull().all("alpha")
    share = by_seed.where(whole).mean("seed")
    if alpha.size < 2:
        nothing = xr.full_like(by_seed.isel(alpha=0, drop=True), np.nan)
        empty = nothing.isel(seed=0, drop=True)
        return xr.Dataset(
            {"alpha_bbp": empty, "standard_error": empty, "by_seed": nothing, "share": share}
        )
    inside = (share.isel(alpha=0) == 0) & (share.isel(alpha=-1) == 1)
    at = (alpha[-1] - by_seed.where(whole).integrate("alpha")).where(inside)
    number = at.notnull().sum("seed")
    # Within a cell of the grid a crossing may be anywhere, on one side for all runs at worst.
    moves = share.diff("alpha")
    width = (moves * xr.DataArray(np.diff(alpha), dims="alpha")).sum("alpha") / moves.sum("alpha")
    spread = (moves > 0).sum("alpha")
    grid = width / math.sqrt(12) / np.sqrt(spread.where(spread > 0))
    error = ((sem(at).fillna(0) ** 2 + grid**2) ** 0.5).where(number > 1)
    return xr.Dataset(
        {
            "alpha_bbp": at.mean("seed"),
            "standard_error": error,
            "by_seed": at,
            "share": share,
        }
    )


def limit(time: Array, by_seed: Array) -> dict[str, Any]:
    """Extrapolate ``value(t) = limit + c t^-p`` to t -> infinity.

    Parameters
    ----------
    time : (n,)
    by_seed : (seeds, n)
        Whose mean is fitted at the late times, from `LATE` before the last; NaN are left out.

    Returns
    -------
    dict
        ``value``; ``error``, of the jackknife over seeds and of the choice of the late times, in
        quadrature; ``power`` p, ``factor`` c, ``since``; and a ``note`` instead of numbers where
        there are too few.
    """
    unknown = {"value": math.nan, "error": math.nan, "power": math.nan, "factor": math.nan}
    late = [time > time[-1] / ratio * (1 - 1e-9) for ratio in LATE]
    seeds = by_seed[np.isfinite(by_seed[:, late[0]]).all(axis=1)]
    if len(seeds) < _FEWEST_SEEDS or late[1].sum() < _FEWEST_TIMES:
        need = f"{_FEWEST_SEEDS} matrices and {_FEWEST_TIMES} recorded times in the last decade"
        return unknown | {"since": math.nan, "note": f"needs {need}"}

    def fit(values: Array, which: NDArray[np.bool_]) -> Array:
        t, last = time[which], values[which]

        def law(t: Array, end: float, c: float, p: float) -> Array:
            return np.asarray(end + c * (t / t[0]) ** -p)

        begin = (last[-1], last[0] - last[-1], 0.5)
        bounds = ([-np.inf, -np.inf, 0.05], [np.inf, np.inf, 3.0])
        found, _ = curve_fit(law, t, last, begin, bounds=bounds, maxfev=20_000)
        return np.asarray(found)

    try:
        best, short = (fit(seeds.mean(axis=0), which) for which in late)
        left_out = np.array(
            [fit(np.delete(seeds, k, 0).mean(axis=0), late[0])[0] for k in range(len(seeds))]
        )
    except RuntimeError as error:  # of the fit, that it found nothing
        return unknown | {"since": math.nan, "note": f"the fit failed: {error}"}
    n = len(seeds)
    jackknife = math.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2))
    first = time[late[0]][0]
    return {
        "value": float(best[0]),
        "error": math.hypot(jackknife, float(best[0] - short[0])),
        "power": float(best[2]),
        "factor": float(best[1] * first ** best[2]),
        "since": float(first),
        "note": "",
    }
