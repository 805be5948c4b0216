"""P(recovery) and alpha_half, the alpha at which it is 1/2, with errors that know the matrix.

All starts of one (alpha, N, seed) share a sensing matrix, and all alphas of one seed share the rows
of it. Runs are therefore not independent: the matrix, named by its seed, is the cluster. Where the
matrix is revealed as it is asked, each start has its own: then each start of a seed is a cluster
(of sensing = "auto", which has both kinds, all of a seed are one, which no error is smaller by).

Both are functions of time. *By a time t* a run has recovered or it has not, whatever it did later.
*In the end* a run has recovered, or it is trapped or has diverged and never will; one that was
still moving when its time ran out is undecided, which is neither: P then lies between its value if
no undecided run recovers and its value if all do. Cells whose status is not done do not count.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import statsmodels.api as sm
import xarray as xr
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.proportion import proportion_confint
from statsmodels.tools.sm_exceptions import ModelWarning

from alphasweep.kernels.instance import ONE_A_START
from alphasweep.kernels.loss import Loss
from alphasweep.kernels.problem import LOSSES
from alphasweep.kernels.rates import recorded_unit

#: With fewer alphas the two parameters of the curve are not tested by anything.
FEWEST_ALPHAS = 3

#: By when a run has to have recovered: a time, several, or in the end ("end", None or inf).
By = float | str | None | Sequence[float | str | None]

#: Up to this share of the runs it does not matter how they end.
NEGLIGIBLE = 0.01

#: With fewer runs that were decided late, the rate at which others will be is not known.
_FEWEST_LATE = 10

#: Why the null model has no alpha_half.
NO_SIGNAL = "the labels hold no signal, so there is nothing to recover"
#: What there was before a sweep could name it.
_BEFORE = {"loss": "intensity", "sensing": "gaussian", "start": "uniform"}

#: Alphas whose logarithms differ by less are one alpha: M = round(alpha N) would be the same.
CLOSE = 1e-9


def is_done(ds: xr.Dataset) -> xr.DataArray:
    """Tell which cells are complete, by the CF flags of ``status``.

    Parameters
    ----------
    ds
        A sweep's dataset; ``status`` is (alpha, N, seed).

    Returns
    -------
    xr.DataArray
        (alpha, N, seed), boolean. Missing and failed cells are False.
    """
    return _is_flag(ds["status"], "done")


def _is_flag(variable: xr.DataArray, meaning: str) -> xr.DataArray:
    """Tell where a variable with CF flags has this one."""
    try:
        meanings = str(variable.attrs["flag_meanings"]).split()
        flag = variable.attrs["flag_values"][meanings.index(meaning)]
    except (KeyError, ValueError):
        raise ValueError(
            f"{variable.name} must have the attributes flag_values and flag_meanings of its store, "
            f"with {meaning!r}; got {variable.attrs}: tables of pandas and CSV lose them, "
            f"ds[{variable.name!r}].attrs = ... of xr.open_zarr(STORE) gives them back."
        ) from None
    found: xr.DataArray = (variable == flag).drop_attrs()
    return found


def check_labels(ds: xr.Dataset) -> None:
    """Refuse a dataset in which one label names two things, which would be counted twice.

    Parameters
    ----------
    ds
        Any dataset, for instance `xr.concat` of two sweeps' along seed.

    Raises
    ------
    ValueError
        If a label is repeated along any dimension; it is named.
    """
    for name, index in ds.indexes.items():
        repeated = index[index.duplicated()].unique()
        if len(repeated):
            shown = ", ".join(map(str, repeated[:5])) + (", ..." if len(repeated) > 5 else "")
            raise ValueError(
                f"{name} must name each of its values once; got {shown} more than once: drop what "
                f"was there before, or, where sweeps of other root_seeds are combined, give one of "
                f"them other labels first, as in ds.assign_coords({name}=ds.{name} + 1000)."
            )


def descent_of(ds: xr.Dataset) -> dict[str, Any]:
    """Settings of the descent and of its problem, the sections of these names of the sweep file.

    Parameters
    ----------
    ds
        A sweep's dataset; its attribute ``sweep`` is JSON text (a mapping in older stores).

    Returns
    -------
    dict
        loss, a, signal, sensing, start, learning_rate, t_max, ...; older stores, which
        have one kind of loss, sensing and start, do not say it.

    Raises
    ------
    ValueError
        If there is no such attribute, as where datasets were combined without attributes.
    """
    read = sweep_of(ds)
    return {**_BEFORE, **read["descent"], **read.get("problem", {})}


def sweep_of(ds: xr.Dataset) -> dict[str, Any]:
    """Return a dataset's attribute ``sweep``, the document of its sweep file; as `descent_of`."""
    sweep = ds.attrs.get("sweep")
    if sweep is None:
        raise ValueError(
            "a dataset must have the attribute sweep of its store; this one has lost it: "
            "ds.attrs = xr.open_zarr(STORE).attrs gives it back."
        )
    read: dict[str, Any] = json.loads(sweep) if isinstance(sweep, str) else sweep
    return read


def loss_of_sweep(settings: Mapping[str, Any]) -> Loss:
    """Return the loss that `descent_of` names, with its parameters."""
    kind = LOSSES[settings["loss"]]
    return kind(**{field.name: settings[field.name] for field in fields(kind)})


def has_no_signal(ds: xr.Dataset) -> bool:
    """Tell whether a sweep is of the null model, by its attribute ``sweep``, if it has one."""
    return "sweep" in ds.attrs and descent_of(ds)["signal"] == "null"


def times_of(ds: xr.Dataset, by: By) -> NDArray[np.floating[Any]]:
    """Read by when runs have to have recovered.

    Parameters
    ----------
    ds
        A sweep's dataset, whose attribute ``sweep`` tells t_max where a time is asked for.
    by
        Times > 0 and up to t_max, or "end", None or inf for in the end.

    Returns
    -------
    numpy.ndarray
        The times, of shape () or (k,); inf for in the end.

    Raises
    ------
    ValueError
        If a time is not among those that the sweep knows of.
    """

    def read(one: Any) -> float:
        if one is None or one == "end":
            return math.inf
        try:
            time = float(one)
        except (TypeError, ValueError):
            time = math.nan
        if time == math.inf:
            return time
        t_max = descent_of(ds)["t_max"]
        if not 0 < time <= t_max:
            raise ValueError(
                f'by must be a time above 0 and up to t_max = {t_max:g}, or "end"; got {one!r}: '
                "what runs did later is not known: raise t_max in the sweep."
            )
        return time

    if isinstance(by, str) or np.ndim(by) == 0:  # type: ignore[arg-type]
        return np.asarray(read(by))
    return np.array([read(one) for one in by])  # type: ignore[union-attr]


def by_text(by: float) -> str:
    """Write by when runs have to have recovered: "by t = 60" or "in the end"."""
    return "in the end" if math.isinf(by) else f"by t = {by:g}"


def recovery_probability(ds: xr.Dataset, by: By = "end", *, confidence: float = 0.95) -> xr.Dataset:
    """Share of the runs that recovered the signal, with an interval clustered by matrix.

    Parameters
    ----------
    ds
        A sweep's dataset: ``status`` (alpha, N, seed), ``recovered`` (alpha, N, seed, start),
        for times also ``recovery_time``. Only cells that are done count.
    by
        By when a run has to have recovered: a time up to t_max, a sequence of times, or in the
        end ("end", None, inf), which needs ``outcome`` to know undecided runs from trapped ones.
    confidence
        Probability that the interval holds the true value, between 0 and 1.

    Returns
    -------
    xr.Dataset
        (alpha, N): ``probability``, ``least``, ``most``, ``lower``, ``upper``, ``runs``,
        ``matrices``; (N,): ``design_effect``. All dimensionless; NaN where no cell is done.
        ``by`` is a coordinate, and a dimension if `by` is a sequence.

    Raises
    ------
    ValueError
        If `confidence` does not lie between 0 and 1, a label is repeated along any dimension, or
        a time exceeds t_max.

    Notes
    -----
    In the end P lies between ``least``, if no undecided run recovers, and ``most``, if all do;
    ``probability`` is their middle. By a time all three are one.

    Wilson's interval for an effective number of runs: n / design effect, reduced further by
    Student's t for the number of matrices (Korn and Graubard, Survey Methodology 24, 1998). The
    design effect, the variance of P over that of independent runs, is pooled over alpha at each N,
    so that it exists where P is 0 or 1. The effective number lies between that of matrices, which
    is what is left if all starts on a matrix end alike, and that of runs. With one matrix it is 1.
    ``lower`` is that of ``least``, ``upper`` that of ``most``.
    """
    check_confidence(confidence)
    count = _count(ds, by)
    least, low, _, _ = _share(count, 0.0, confidence)
    most, _, high, _ = _share(count, 1.0, confidence)
    probability, _, _, design_effect = _share(count, 0.5, confidence)
    percent = f"{100 * confidence:g} %"
    return labelled(
        {
            "probability": (probability, "probability of recovery"),
            "least": (least, "probability of recovery if no undecided run recovers"),
            "most": (most, "probability of recovery if every undecided run recovers"),
            "lower": (low, f"lower end of the {percent} interval of the probability"),
            "upper": (high, f"upper end of the {percent} interval of the probability"),
            "runs": (count["runs"].sum("seed"), "number of runs counted"),
            "matrices": (
                (count["runs"] > 0).sum("seed"),
                "number of sensing matrices counted",
            ),
            "design_effect": (design_effect, "variance of P over that of independent runs"),
        },
        ds,
        confidence=confidence,
    )


def _share(
    count: xr.Dataset, credit: float, confidence: float
) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray, xr.DataArray]:
    """P, the ends of its interval, and the design effect; an undecided run recovers by `credit`."""
    recovered = count["recovered"] + credit * count["undecided"]
    runs, matrices = count["runs"].sum("seed"), (count["runs"] > 0).sum("seed")
    probability = recovered.sum("seed") / runs.where(runs > 0)

    residual = recovered - probability * count["runs"]
    correction = matrices / (matrices - 1).where(matrices > 1)
    between = ((residual**2).sum("seed") * correction).sum("alpha")
    independent = (probability * (1 - probability) * runs).where(matrices > 1).sum("alpha")
    design_effect = between / independent.where(independent > 0)

    tail = (1 + confidence) / 2
    student = xr.apply_ufunc(stats.t.ppf, tail, matrices.where(matrices > 1) - 1)
    effective = runs / design_effect * (stats.norm.ppf(tail) / student) ** 2
    effective = effective.fillna(matrices).clip(matrices, runs).where(runs > 0)
    lower, upper = xr.apply_ufunc(
        proportion_confint,
        probability * effective,
        effective,
        kwargs={"alpha": 1 - confidence, "method": "wilson"},
        output_core_dims=[[], []],
    )
    return probability, lower, upper, design_effect


def alpha_half(ds: xr.Dataset, by: By = "end", *, confidence: float = 0.95) -> xr.Dataset:
    """Fit P(recovery) = logistic(intercept + slope log alpha) at each N and solve it for P = 1/2.

    Parameters
    ----------
    ds
        A sweep's dataset, see `recovery_probability`. Only cells that are done count.
    by
        By when a run has to have recovered, as for `recovery_probability`.
    confidence
        Probability that the interval holds the true alpha_half, between 0 and 1.

    Returns
    -------
    xr.Dataset
        (N,), all dimensionless; ``by`` is a coordinate, and a dimension if `by` is a sequence:

        - ``alpha_half``, ``standard_error``: the alpha where P = 1/2, and its error;
        - ``least``, ``most``: alpha_half if every undecided run recovers, and if none does;
        - ``lower``, ``upper``: ends of its interval;
        - ``intercept``, ``slope``: of the log odds of recovery in log alpha;
        - ``width``: distance in alpha between P = 1/4 and P = 3/4;
        - ``dispersion``: Pearson's chi2 per degree of freedom over cells (alpha, seed); near 1
          if the curve holds and the matrices do not differ;
        - ``misfit``: the same over alphas, matrices taken together; what the eye sees;
        - ``alphas``, ``matrices``, ``runs``, ``undecided``: how many were used;
        - ``none_up_to``, ``all_from``: the largest alpha up to which no run recovered, and the
          smallest from which on every run did. Where P is too steep for a curve to be fitted,
          this is what is known of alpha_half;
        - ``note``: empty, or why there is no alpha_half (or no error), which is then NaN; that runs
          diverged, if any did; and what undecided runs leave open, with the t_max that would settle
          it, where ``least`` and ``most`` are apart by more than half a standard error.

    Raises
    ------
    ValueError
        If `confidence` does not lie between 0 and 1, a label is repeated along any dimension, or
        a time exceeds t_max.

    Notes
    -----
    Binomial regression by statsmodels' GLM. The covariance is the sandwich with the seed as its
    cluster, since one seed's matrices share their rows at all alphas. The error of alpha_half
    follows from it by the delta method. As matrices can only add to the variance of independent
    runs, the error is never taken smaller than that of independent runs: with few matrices
    the sandwich often comes out too small by chance, which would give its N too much weight.

    The interval is that of Student's t with a degree of freedom less than matrices, or of
    independent runs if that is wider. Measured over 4,000 sweeps a case, where matrices differ by
    0.1 to 0.4 in log alpha_half: with 4, 5, 6 matrices 95 % intervals hold the truth in 0.95 to
    0.96 of them, where 1.96 standard errors hold it in 0.85 to 0.91, and one in 0.61 to 0.67.

    In the end an undecided run counts as half a recovery, so that alpha_half is the middle of what
    is possible; the interval reaches from the lower end of that of ``least`` to the upper one of
    that of ``most``. If one of these is unknown, so is alpha_half.
    """
    check_confidence(confidence)
    count = _count(ds, by)
    ways = outcomes(ds)["settled_at"] if count["undecided"].any() else None

    def fit(at: xr.Dataset) -> _Fit:
        if not at["undecided"].any():
            return _fit(at, confidence)
        t_max = math.nan if ways is None else float(ways.sel(N=at["N"]))
        return _bounded(at, confidence, t_max)

    times = np.atleast_1d(count["by"].values)
    each = [count.sel(by=time) for time in times] if count["by"].ndim else [count]
    fits = [[fit(at.sel(N=N)) for N in ds["N"].values] for at in each]
    if has_no_signal(ds):
        fits = [[fit._replace(note=NO_SIGNAL) for fit in row] for row in fits]

    def column(name: str) -> xr.DataArray:
        values = [[getattr(fit, name) for fit in row] for row in fits]
        table = xr.DataArray(values, dims=("by", "N"), coords={"by": times, "N": ds["N"]})
        return table.isel(by=0) if count["by"].ndim == 0 else table

    columns = {name: (column(name), text) for name, text in _FIT_TEXTS.items()}
    return labelled(columns, ds, confidence=confidence)


def outcomes(ds: xr.Dataset) -> xr.Dataset:
    """Count how the runs ended, and say which t_max would let nearly all of them end.

    Parameters
    ----------
    ds
        A sweep's dataset: ``status``, ``recovered``; ``outcome``, without which all that did not
        recover is trapped; ``end_time``, or ``steps`` of a descent by steps of learning_rate.

    Returns
    -------
    xr.Dataset
        (N,): numbers of ``runs``, ``recovered``, ``trapped``, ``undecided``, ``diverged``, over all
        alphas; ``settled_at``: the t_max at which 1 % of them would be undecided, NaN
        where it cannot be said.

    Notes
    -----
    ``settled_at`` lets runs go on to be decided at the rate at which they were from t_max / 2 to
    t_max, if 10 or more were. Shares of 192 to 256 runs at t = 30 and 60 say 430, 680, 1200, 2200
    for N = 64, 128, 256, 512 at alpha = 2.9; in the end it took about 300, 700, 700, 1200.
    """
    check_labels(ds)
    read = ds[[name for name in ("status", "recovered", *_ENDS) if name in ds]].compute()
    counted = read["recovered"].where(is_done(read))
    over = ("alpha", "seed", "start")
    number = {"runs": counted.notnull().sum(over), "recovered": (counted == 1).sum(over)}
    for name in ("trapped", "undecided", "diverged"):
        number[name] = ended(read, counted, name).sum(over)

    settled = xr.full_like(number["runs"], math.nan, dtype=float)
    if number["undecided"].any() and (time := _end_time(ds, read)) is not None:
        t_max = descent_of(ds)["t_max"]
        late = ended(read, counted, "undecided") | (counted.notnull() & (time > t_max / 2))
        early, open_ = (
            n.where(n > 0) / number["runs"] for n in (late.sum(over), number["undecided"])
        )
        rate = np.log(early / open_) / (t_max / 2)
        enough = (early - open_) * number["runs"] >= _FEWEST_LATE
        settled = t_max + np.log(open_ / NEGLIGIBLE) / rate.where(enough)
        settled = settled.where(open_ > NEGLIGIBLE, t_max)
    return labelled(
        {
            "runs": (number["runs"], "number of runs"),
            **{name: (number[name], f"number of runs that {_HOW[name]}") for name in _HOW},
            "settled_at": (settled, "t_max at which 1 % of the runs would be undecided"),
        },
        ds,
    )


_ENDS = ("outcome", "end_time", "steps")
_HOW = {
    "recovered": "recovered",
    "trapped": "are trapped",
    "undecided": "were still moving at t_max",
    "diverged": "diverged",
}


def ended(ds: xr.Dataset, counted: xr.DataArray, how: str) -> xr.DataArray:
    """Tell which runs ended so.

    Parameters
    ----------
    ds
        A sweep's dataset; without ``outcome``, all that did not recover is trapped.
    counted
        (alpha, N, seed, start): ``recovered`` of the runs that count, NaN elsewhere.
    how
        "recovered", "trapped", "undecided" or "diverged".

    Returns
    -------
    xr.DataArray
        (alpha, N, seed, start), boolean.
    """
    if "outcome" in ds:
        return counted.notnull() & _is_flag(ds["outcome"], how)
    return counted == 0 if how == "trapped" else xr.zeros_like(counted, dtype=bool)


def _end_time(ds: xr.Dataset, read: xr.Dataset) -> xr.DataArray | None:
    """When each run ended, (alpha, N, seed, start); None if nothing tells it."""
    if "sweep" not in ds.attrs:
        return None
    settings, time = descent_of(ds), read.get("end_time")
    if "steps" not in read or settings.get("method", "gd") != "gd":
        return time
    rate = settings["learning_rate"]
    by_steps = read["steps"] * (ds["learning_rate"] if rate == "auto" else rate)
    return by_steps if time is None else time.fillna(by_steps)


def describe_null(ds: xr.Dataset) -> str:
    """Say what a sweep of the null model holds, in place of alpha_half.

    Parameters
    ----------
    ds
        A sweep's dataset; ``final_energy`` and ``outlier`` are used.

    Returns
    -------
    str
        A few lines of text: at each N and the smallest and largest alpha that are done, the mean
        of the final energy, and how often labels like these have an outlier at the start.
    """
    counted = _count(ds, "end")
    count = counted["runs"].sum("seed")
    lines = [f"{NO_SIGNAL.capitalize()}; the sweep has no alpha_half. It holds:"]
    for N in ds["N"].values:
        done = count["alpha"].values[(count.sel(N=N) > 0).values]
        if not done.size:
            lines.append(f"  N = {N}: no cell is done.")
        for alpha in sorted({done.min(), done.max()} if done.size else ()):
            cells = ds[["status", "final_energy", "outlier"]].sel(N=N, alpha=alpha)
            cells = cells.isel(time=0).load()
            cells = cells.isel(seed=is_done(cells).values)
            energy = cells["final_energy"].values
            energy = energy[np.isfinite(energy)]
            mean = f"mean final energy {energy.mean():.3g}" if energy.size else "no finite energy"
            share = float(cells["outlier"].notnull().mean())
            lines.append(
                f"  N = {N}, alpha = {_text(alpha)}: {mean}; at the start, {share:.0%} of the "
                "spectra of a signal with such labels have an outlier."
            )
    diverged = int(counted["diverged"].sum())
    if diverged:
        lines.append(f"  {diverged} of {int(count.sum())} runs diverged: lower learning_rate.")
    return "\n".join(lines)


def fitted_probability(half: xr.Dataset, alpha: NDArray[np.floating[Any]]) -> xr.DataArray:
    """Evaluate the curves fitted by `alpha_half`.

    Parameters
    ----------
    half
        What `alpha_half` returned.
    alpha
        (n,), > 0, dimensionless.

    Returns
    -------
    xr.DataArray
        (N, alpha), between 0 and 1; NaN at an N without a fit.
    """
    log_alpha = xr.DataArray(np.log(alpha), dims="alpha", coords={"alpha": alpha})
    log_odds = half["intercept"] + half["slope"] * log_alpha
    curve: xr.DataArray = xr.apply_ufunc(stats.logistic.cdf, log_odds)
    return curve.assign_attrs(long_name="fitted probability of recovery", units="1")


_BY_TEXT = {"long_name": "physical time of recovery, at the latest; inf: in the end", "units": "1"}
_FIT_TEXTS = {
    "alpha_half": "alpha at which half of the runs recover",
    "standard_error": "standard error of alpha_half, clustered by matrix",
    "lower": "lower end of the interval of alpha_half",
    "upper": "upper end of the interval of alpha_half",
    "least": "alpha_half if every undecided run recovers",
    "most": "alpha_half if no undecided run recovers",
    "intercept": "log odds of recovery at alpha = 1",
    "slope": "change of the log odds of recovery per unit of log alpha",
    "width": "distance in alpha between P = 1/4 and P = 3/4",
    "dispersion": "Pearson chi2 per degree of freedom over (alpha, matrix)",
    "misfit": "Pearson chi2 per degree of freedom over alpha",
    "alphas": "number of alphas used",
    "matrices": "number of sensing matrices used",
    "runs": "number of runs used",
    "undecided": "number of undecided runs among them",
    "none_up_to": "largest alpha up to which no run recovered",
    "all_from": "smallest alpha from which on every run recovered",
    "note": "why a value is missing",
}


class _Fit(NamedTuple):
    """One N's row of `alpha_half`."""

    note: str
    alphas: int
    matrices: int
    runs: int
    undecided: int
    none_up_to: float
    all_from: float
    alpha_half: float = math.nan
    standard_error: float = math.nan
    lower: float = math.nan
    upper: float = math.nan
    least: float = math.nan
    most: float = math.nan
    intercept: float = math.nan
    slope: float = math.nan
    width: float = math.nan
    dispersion: float = math.nan
    misfit: float = math.nan


class _Reason(NamedTuple):
    """Why there is no alpha_half, and what would help."""

    what: str
    todo: str


def check_confidence(confidence: float) -> None:
    """Refuse with a ValueError what is no probability of an interval."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1; got {confidence}.")


def _count(ds: xr.Dataset, by: By) -> xr.Dataset:
    """Count ``runs`` in every done cell, (alpha, N, seed), and how many of them ended how.

    ``recovered`` and ``undecided`` are (alpha, N, seed), or (by, alpha, N, seed) for several times.
    By a time no run is undecided; ``moving`` are those that were when theirs ran out.
    """
    check_labels(ds)
    times = times_of(ds, by)
    timed = ["recovery_time"] if np.isfinite(times).any() else []
    # A dataset opened from a store is lazy; statsmodels and scipy.stats want numbers.
    names = ["status", "recovered", *timed, *[name for name in ("outcome",) if name in ds]]
    ds = matrix_by_matrix(ds[names].compute())
    counted = ds["recovered"].where(is_done(ds))
    moving = ended(ds, counted, "undecided").sum("start")

    def until(time: float) -> xr.Dataset:
        recovered, undecided = counted == 1, moving
        if math.isfinite(time):
            recovered &= ds["recovery_time"] <= _on_grid(ds, time)
            undecided = 0 * moving
        return xr.Dataset(
            {"recovered": recovered.sum("start"), "undecided": undecided}, coords={"by": time}
        )

    each = [until(float(time)) for time in times.ravel()]
    return (xr.concat(each, "by") if times.ndim else each[0]).assign(
        runs=counted.notnull().sum("start"),
        moving=moving,
        diverged=ended(ds, counted, "diverged").sum("start"),
    )


def matrix_by_matrix(ds: xr.Dataset) -> xr.Dataset:
    """Give the starts of a seed labels of seeds, where each has a sensing matrix of its own."""
    if "sweep" not in ds.attrs or descent_of(ds)["sensing"] not in ONE_A_START:
        return ds
    stacked = ds.stack(matrix=("seed", "start"), create_index=False).drop_vars(["seed", "start"])
    alone = stacked.rename(matrix="seed").assign_coords(seed=np.arange(stacked.sizes["matrix"]))
    return alone.expand_dims(start=[0], axis=-1).assign(status=alone["status"])


def _on_grid(ds: xr.Dataset, time: float) -> float:
    """Round a time as the sweep rounds its t_max: of plain steps, to the nearest one."""
    settings = descent_of(ds)
    if settings.get("method", "gd") != "gd":
        return time
    rate = settings["learning_rate"]
    if rate == "auto":
        rate = recorded_unit(loss_of_sweep(settings), settings["t_max"])
    return float(rate * round(time / rate))


def _bounded(count: xr.Dataset, confidence: float, settled_at: float) -> _Fit:
    """`_fit` where some runs are undecided: between none and all of them recover."""
    none, half, every = (
        _fit(count.assign(recovered=count["recovered"] + credit * count["undecided"]), confidence)
        for credit in (0.0, 0.5, 1.0)
    )
    found = np.array([fit.alpha_half for fit in (none, half, every)])
    least, most = every.alpha_half, none.alpha_half
    known = not np.isnan(found).any()
    if known:
        least, most = float(found.min()), float(found.max())
        fit = half._replace(
            lower=min(fit.lower for fit in (none, half, every)),
            upper=max(fit.upper for fit in (none, half, every)),
        )
    else:
        fit = _Fit("", none.alphas, none.matrices, none.runs, 0, math.nan, math.nan)
    undecided = int(count["undecided"].sum())
    fit = fit._replace(
        undecided=undecided,
        none_up_to=every.none_up_to,
        all_from=none.all_from,
        least=least,
        most=most,
    )
    why = f"{undecided} of {fit.runs} runs were still moving at t_max"
    remedy = (
        "raise it" if math.isnan(settled_at) else f"{float(f'{settled_at:.2g}'):g} would settle it"
    )
    if known and most - least > np.nan_to_num(fit.standard_error) / 2:
        what = f"alpha_half is between {least:.3g} and {most:.3g}"
    elif known:
        return fit
    elif not math.isnan(most):
        what = f"alpha_half is at most {most:.3g}"
    elif not math.isnan(least):
        what = f"alpha_half is at least {least:.3g}"
    else:
        reason = none.note if why in none.note else f"{none.note}; {why}: {remedy}"
        return fit._replace(note=reason)
    notes = (f"{what}, as {why}: {remedy}", fit.note or _fate(count))
    return fit._replace(note="; ".join(filter(None, notes)))


def _fate(count: xr.Dataset) -> str:
    """Tell of runs that diverged, if any did."""
    diverged, runs = int(count["diverged"].sum()), int(count["runs"].sum())
    if not diverged:
        return ""
    return f"{diverged} of {runs} runs diverged, which counts as not recovered: lower learning_rate"


@np.errstate(all="ignore")  # where alphas are all but equal odds overflow: no number then
def _fit(count: xr.Dataset, confidence: float) -> _Fit:
    """Regress one N's counts (alpha, seed) on log alpha."""
    cells = count.stack(cell=("alpha", "seed"))
    cells = cells.isel(cell=cells["runs"].values > 0)
    alpha, seed = cells["alpha"].values, cells["seed"].values
    runs, recovered = cells["runs"].values, cells["recovered"].values
    some, some_not = alpha[recovered > 0], alpha[recovered < runs]
    size: dict[str, Any] = {
        "alphas": np.unique(alpha).size,
        "matrices": np.unique(seed).size,
        "runs": int(runs.sum()),
        "undecided": 0,
        "none_up_to": max(alpha[alpha < some.min(initial=math.inf)], default=math.nan),
        "all_from": min(alpha[alpha > some_not.max(initial=-math.inf)], default=math.nan),
    }
    moving, diverged = int(cells["moving"].sum()), int(cells["diverged"].sum())
    fate = _fate(count)

    def without(reason: _Reason) -> _Fit:
        todo = reason.todo
        if todo == _LARGER and 2 * moving > size["runs"]:
            todo = f"{moving} of {size['runs']} runs were still moving at t_max: raise it"
        if 2 * diverged > size["runs"]:
            todo = ""
        why = ": ".join(filter(None, (reason.what, todo)))
        return _Fit("; ".join(filter(None, (why, fate))), **size)

    reason = _why_no_curve(alpha, recovered, runs)
    if reason:
        return without(reason)

    # Centred and scaled, or alphas that are close to one another leave no digit of the slope.
    log_alpha = np.log(alpha)
    centre, scale = log_alpha.mean(), log_alpha.std()
    too_steep = _Reason("P is too steep for an error", "add alphas where it rises, or runs")
    try:
        fit, *clustered = _regress((log_alpha - centre) / scale, recovered, runs, seed)
    except np.linalg.LinAlgError:  # the likelihood is flat to rounding, its Hessian singular
        return without(too_steep)
    if not fit.converged:
        return without(_Reason("the binomial regression did not converge", "add runs"))
    if not all(np.isfinite(result.cov_params()).all() for result in (fit, *clustered)):
        return without(too_steep)
    level, rise = fit.params
    reason = _why_no_crossing(alpha, level, rise, fit.null_deviance - fit.deviance, scale, centre)
    if reason:
        return without(reason)

    at = math.exp(centre - scale * level / rise)
    # d alpha_half / d (level, rise)
    gradient = at * scale / rise * np.array([-1.0, level / rise])
    errors = np.sqrt([gradient @ each.cov_params() @ gradient for each in (fit, *clustered)])
    note, error, reach = fate, float(errors.max()), math.nan
    if clustered:
        tail = (1 + confidence) / 2
        reach = np.max(errors * [stats.norm.ppf(tail), stats.t.ppf(tail, size["matrices"] - 1)])
    else:
        notes = ("a single matrix tells no error: add seeds", fate)
        note, error = "; ".join(filter(None, notes)), math.nan

    with np.errstate(over="ignore"):
        width = float(2 * at * np.sinh(math.log(3) * scale / rise))
    return _Fit(
        note,
        **size,
        alpha_half=at,
        standard_error=error,
        lower=float(np.maximum(at - reach, 0)),
        upper=float(at + reach),
        least=at,
        most=at,
        intercept=level - rise * centre / scale,
        slope=rise / scale,
        width=width,
        dispersion=_per_degree(fit.pearson_chi2, fit.df_resid),
        misfit=_misfit(alpha, recovered, runs, fit.fittedvalues),
    )


_LARGER, _SMALLER = "add larger alphas", "add smaller alphas"


def _why_no_curve(
    alpha: NDArray[np.floating[Any]],
    recovered: NDArray[np.floating[Any]],
    runs: NDArray[np.integer[Any]],
) -> _Reason | None:
    """Say why the regression's maximum likelihood does not exist; None if it does."""
    if not runs.size:
        return _Reason("no cell is done", "")
    low, high = _text(alpha.min()), _text(alpha.max())
    some, some_not = alpha[recovered > 0], alpha[recovered < runs]
    if not some.size:
        return _Reason(f"no run recovered up to alpha = {high}", _LARGER)
    if not some_not.size:
        return _Reason(f"every run recovered from alpha = {low} on", _SMALLER)
    if low == high:
        share = recovered.sum() / runs.sum()
        return _Reason(f"the only alpha that is done is {low}, with P = {share:.2g}", "add alphas")
    if some_not.max() < some.min():
        between = f"alpha = {_text(some_not.max())}, and every run from {_text(some.min())} on"
        return _Reason(
            f"no run recovered up to {between}: alpha_half is between, P too steep to fit",
            "add alphas there, or runs",
        )
    if np.ptp(np.log(alpha)) > CLOSE > np.log(some_not.max() / some.min()):
        # Both outcomes at one alpha alone, or at some that are all but one: the slope is infinite.
        here = (alpha >= some.min()) & (alpha <= some_not.max())
        share = f"{recovered[here].sum() / runs[here].sum():.2g} there"
        if here[alpha.argmin()]:
            return _Reason(f"every run recovered above alpha = {low}, a share of {share}", _SMALLER)
        if here[alpha.argmax()]:
            return _Reason(f"no run recovered below alpha = {high}, a share of {share}", _LARGER)
        return _Reason(
            f"no run recovered below alpha = {_text(some.min())}, every run above it, a share of "
            f"{share}: alpha_half is near it, P too steep to fit",
            "add alphas there, or runs",
        )
    if some.max() <= some_not.min():
        return _FALLS
    if np.unique(alpha).size < FEWEST_ALPHAS:
        return _Reason(f"fewer than {FEWEST_ALPHAS} alphas are done", "add alphas")
    if np.ptp(np.log(alpha)) < CLOSE:
        return _Reason(f"all alphas lie between {low} and {high}", "widen the range of alpha")
    return None


_FALLS = _Reason("P falls with alpha", "no curve that rises fits")


def _why_no_crossing(
    alpha: NDArray[np.floating[Any]],
    level: float,
    rise: float,
    likelier: float,
    scale: float,
    centre: float,
) -> _Reason | None:
    """Say why a fitted curve has no alpha_half among the alphas; None if it has."""
    low, high = alpha.min(), alpha.max()
    between = f"between alpha = {_text(low)} and {_text(high)}"
    # By the likelihood, not by the slope over its error, which is small also where P is steep.
    if likelier < 1:
        return _Reason(f"P does not change measurably {between}", "widen the range, or add runs")
    if rise < 0:
        return _FALLS
    odds = level + rise * (np.log([low, high]) - centre) / scale
    if not odds[0] <= 0 <= odds[1]:
        return _Reason(f"P does not rise through 1/2 {between}", "widen the range of alpha")
    return None


def _text(alpha: float) -> str:
    """Write an alpha so that no two are written alike."""
    short = f"{alpha:g}"
    return short if float(short) == alpha else repr(float(alpha))


def _regress(
    x: NDArray[np.floating[Any]],
    recovered: NDArray[np.floating[Any]],
    runs: NDArray[np.integer[Any]],
    seed: NDArray[Any],
) -> list[Any]:
    """Fit the logistic curve; with two matrices or more, also with the clustered covariance."""
    endog = np.column_stack([recovered, runs - recovered])
    exog = np.column_stack([np.ones_like(x), x])
    model = sm.GLM(endog, exog, family=sm.families.Binomial())
    with warnings.catch_warnings():
        # Separation is excluded before; statsmodels also warns of it when a curve fits exactly.
        warnings.simplefilter("ignore", ModelWarning)
        results = [model.fit()]
        if np.unique(seed).size > 1:
            results.append(model.fit(cov_type="cluster", cov_kwds={"groups": seed}))
    return results


def _misfit(
    alpha: NDArray[np.floating[Any]],
    recovered: NDArray[np.floating[Any]],
    runs: NDArray[np.integer[Any]],
    probability: NDArray[np.floating[Any]],
) -> float:
    """Pearson's chi2 per degree of freedom of the totals at each alpha."""
    # A P that is 0 or 1 to rounding has a variance all the same, as in statsmodels.
    tiny = np.finfo(float).eps
    probability = probability.clip(tiny, 1 - tiny)
    _, place = np.unique(alpha, return_inverse=True)
    surplus = np.bincount(place, recovered - runs * probability)
    variance = np.bincount(place, runs * probability * (1 - probability))
    return _per_degree(float(np.sum(surplus**2 / variance)), variance.size - 2)


def _per_degree(chi2: float, degrees_of_freedom: float) -> float:
    return float(chi2 / degrees_of_freedom) if degrees_of_freedom > 0 else math.nan


def labelled(
    variables: dict[str, tuple[xr.DataArray, str]], ds: xr.Dataset, **attrs: Any
) -> xr.Dataset:
    """Collect results with their texts; coordinates keep the attributes of the sweep's."""
    labelled = xr.Dataset(
        {
            name: value.assign_attrs(long_name=text, units="1")
            for name, (value, text) in variables.items()
        },
        attrs=attrs,
    )
    for name in labelled.coords:
        labelled[name].attrs = dict(ds[name].attrs) if name in ds.coords else _BY_TEXT
    return labelled
