"""How long recovery takes: its times at each (alpha, N), and their growth with N.

A run that never recovers, as it is trapped or has diverged, has no such time. One that is undecided
may have one, later than its end: it is censored.
"""

import math
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats
from uncertainties import ufloat

from alphasweep.analysis.recovery import (
    check_confidence,
    check_labels,
    ended,
    is_done,
    labelled,
    matrix_by_matrix,
)
from alphasweep.analysis.scaling import fit_power

#: So many alphas are put into words and figures.
_SHOWN = 4


def recovery_times(ds: xr.Dataset, *, confidence: float = 0.95) -> xr.Dataset:
    """Median time of the runs that recover, with an interval clustered by matrix.

    Parameters
    ----------
    ds
        A sweep's dataset: ``status`` (alpha, N, seed), ``recovered`` and ``recovery_time``
        (alpha, N, seed, start), ``outcome``, without which no run is undecided.
    confidence
        Probability that the interval holds the true median, between 0 and 1.

    Returns
    -------
    xr.Dataset
        (alpha, N):

        - ``median``, physical time: the geometric middle of ``least`` and ``most``;
        - ``least``: the median if no undecided run recovers; ``most``: if all do, by the
          Kaplan-Meier estimator (`scipy.stats.ecdf` with these runs censored);
        - ``lower``, ``upper``: ends of the interval, from that of ``least`` to that of ``most``;
        - ``log_error``: standard error of log(median);
        - ``recovered``, ``undecided``, ``matrices``: how many were used.

        NaN where it is unknown, as where more than half are undecided.

    Notes
    -----
    The interval is Woodruff's (J. Am. Stat. Assoc. 47, 1952): that of the share of runs that are
    faster than the median, clustered by matrix, read as times from the distribution. As for
    alpha_half it is by Student's t, or that of independent runs where that is wider.
    """
    check_confidence(confidence)
    check_labels(ds)
    names = ["status", "recovered", "recovery_time", *[name for name in ("outcome",) if name in ds]]
    ds = matrix_by_matrix(ds[names].compute())
    counted = ds["recovered"].where(is_done(ds))
    time = ds["recovery_time"].where(counted == 1)
    cut = ended(ds, counted, "undecided")
    rows = [
        [
            _median(time.sel(alpha=alpha, N=N), cut.sel(alpha=alpha, N=N), confidence)
            for N in ds["N"].values
        ]
        for alpha in ds["alpha"].values
    ]
    where = {"alpha": ds["alpha"], "N": ds["N"]}
    return labelled(
        {
            name: (xr.DataArray([[row[name] for row in line] for line in rows], where), text)
            for name, text in _TEXTS.items()
        },
        ds,
        confidence=confidence,
    )


_TEXTS = {
    "median": "median physical time of recovery",
    "least": "median physical time of recovery if no undecided run recovers",
    "most": "median physical time of recovery if every undecided run recovers",
    "lower": "lower end of the interval of the median",
    "upper": "upper end of the interval of the median",
    "log_error": "standard error of the logarithm of the median",
    "recovered": "number of runs that recovered",
    "undecided": "number of runs that were still moving at t_max",
    "matrices": "number of sensing matrices with such runs",
}


def _median(time: xr.DataArray, cut: xr.DataArray, confidence: float) -> dict[str, float]:
    """One row of `recovery_times` from (seed, start)."""
    found = dict.fromkeys(_TEXTS, math.nan)
    times, open_ = time.transpose("seed", "start").values, cut.transpose("seed", "start").values
    known = np.isfinite(times)
    found["recovered"], found["undecided"] = int(known.sum()), int(open_.sum())
    found["matrices"] = int((known | open_).any(axis=1).sum())
    if not known.any():
        return found
    tail = (1 + confidence) / 2
    # Censored runs last beyond every time that was seen.
    least, most = (
        _quantiles(times, known, censored, tail) for censored in (np.zeros_like(open_), open_)
    )
    found["least"], found["most"] = least[0], most[0]
    found["median"] = math.sqrt(least[0] * most[0])
    if found["matrices"] > 1:
        found["lower"], found["upper"] = least[1], most[2]
        errors = [math.log(high / low) / (2 * reach) for _, low, high, reach in (least, most)]
        found["log_error"] = float(np.max(errors))
    return found


def _quantiles(
    times: NDArray[np.floating[Any]],
    known: NDArray[np.bool_],
    censored: NDArray[np.bool_],
    tail: float,
) -> tuple[float, float, float, float]:
    """Median, the ends of its interval, and how many standard errors one of these is away."""
    distribution = stats.ecdf(
        stats.CensoredData(
            uncensored=times[known],
            right=np.full(int(censored.sum()), times[known].max() * 2),
        )
    ).cdf

    def at(share: float) -> float:
        """The time by which a share has recovered; NaN if it was not seen."""
        reached = np.flatnonzero(distribution.probabilities >= share - 1e-12)
        return float(distribution.quantiles[reached[0]]) if reached.size and share > 0 else math.nan

    median, runs = at(0.5), known | censored
    faster = np.where(runs, (known & (times <= median)) - 0.5, 0).sum(axis=1)
    matrices, number = int(runs.any(axis=1).sum()), int(runs.sum())
    alike = 0.5 / math.sqrt(number)
    if matrices < 2 or math.isnan(median):
        return median, math.nan, math.nan, math.nan
    # The median of few runs is off the middle by half of one of them; that is no spread.
    between = math.sqrt(
        matrices / (matrices - 1) * np.square(faster - faster.sum() / matrices).sum()
    )
    reach = max(
        stats.norm.ppf(tail) * max(alike, between / number),
        stats.t.ppf(tail, matrices - 1) * between / number,
    )
    error = max(alike, between / number)
    return median, at(0.5 - reach), at(0.5 + reach), reach / error


def growth(times: xr.Dataset) -> xr.Dataset:
    """Fit median = c N^z at each alpha, weighted by the errors.

    Parameters
    ----------
    times
        What `recovery_times` returned.

    Returns
    -------
    xr.Dataset
        (alpha,): see `analysis.scaling.fit_power`; its parameter B is z, A is log c.
    """
    logs = xr.Dataset(
        {
            "value": np.log(times["median"]),
            "standard_error": times["log_error"],
            "least": np.log(times["least"]),
            "most": np.log(times["most"]),
            "matrices": times["matrices"],
        }
    )
    fits = [fit_power(logs.sel(alpha=alpha)) for alpha in times["alpha"].values]
    fitted = xr.concat(fits, dim=times["alpha"])
    fitted["alpha"].attrs = dict(times["alpha"].attrs)
    return fitted


def shown(growths: xr.Dataset) -> list[float]:
    """Choose the alphas that words and figures tell of: fitted to the most N, evenly apart."""
    freedom = growths["degrees_of_freedom"].where(growths["note"] == "")
    if freedom.isnull().all():
        return []
    best = growths["alpha"].values[(freedom == freedom.max()).values]
    places = np.unique(np.linspace(0, best.size - 1, _SHOWN).round().astype(int))
    return [float(alpha) for alpha in best[places]]


def describe(growths: xr.Dataset) -> str:
    """Say how the time of recovery grows with N; "" if that is not known.

    Parameters
    ----------
    growths
        What `growth` returned.

    Returns
    -------
    str
        A line: z of median = c N^z with its standard error, at some alphas.
    """
    said = []
    for alpha in shown(growths):
        z = growths.sel(alpha=alpha, parameter="B")
        said.append(f"{ufloat(z['value'].item(), z['error'].item()):.2ufP} at alpha = {alpha:g}")
    if not said:
        return ""
    return f"The median time of the runs that recover grows as N^z: z = {', '.join(said)}."
