"""How alpha_half grows with log N: the laws, fitted and put into words.

Near m = 0 the overlap, 1/sqrt(N) at the start, grows by a factor independent of N before the
Hessian's outlier dies. So the alpha that half of the runs need moves with log N (arXiv:2403.02418).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from lmfit import Model
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import approx_fprime
from uncertainties import ufloat

from alphasweep.analysis.recovery import by_text, check_labels

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Law:
    """A law alpha_half(N).

    Attributes
    ----------
    formula, tex : str
        The law in plain text and for figures.
    function : callable
        Takes N, (n,), and each parameter as a number; returns alpha_half, (n,).
    guess : dict of float
        The parameters' names, in the order of `function`, with a value to start from.
    """

    formula: str
    tex: str
    function: Callable[..., Array]
    guess: dict[str, float]


def _linear(N: Array, A: float, B: float) -> Array:
    return A + B * np.log(N)


def _inverse(N: Array, alpha_inf: float, A: float) -> Array:
    return alpha_inf - A / np.log(N)


def _constant(N: Array, A: float) -> Array:
    return np.full_like(N, A)


def _power(N: Array, alpha_inf: float, A: float, nu: float) -> Array:
    return alpha_inf - A * N**-nu


#: The laws by name. Another law is another entry; everything below follows from it.
LAWS = {
    "linear": Law("A + B log N", r"$A + B\,\log N$", _linear, {"A": 1.0, "B": 0.3}),
    "inverse": Law(
        "alpha_inf - A / log N",
        r"$\alpha_\infty - A/\log N$",
        _inverse,
        {"alpha_inf": 6.0, "A": 10.0},
    ),
    "constant": Law("A", "$A$", _constant, {"A": 3.0}),
    "power": Law(
        "alpha_inf - A N^-nu",
        r"$\alpha_\infty - A\,N^{-\nu}$",
        _power,
        {"alpha_inf": 6.0, "A": 10.0, "nu": 0.3},
    ),
}

#: A difference of AIC that tells two laws apart: one is then exp(6 / 2) = 20 times likelier.
DECISIVE = 6.0

#: With fewer, the error of an alpha_half is not known well enough to weigh it.
FEWEST_MATRICES = 4

#: Below this probability of so large a chi2, a law is said not to fit.
UNLIKELY = 0.01

#: With an error of so many times the largest alpha_half, a parameter is not known at all.
HOPELESS = 1000.0

#: Where the laws are extrapolated to when they are described.
FAR_N = 10**6
_FAR = "10^6"


def fit_log_laws(alpha_half: xr.Dataset) -> xr.Dataset:
    """Fit every law to alpha_half(N), weighted by the standard errors.

    Parameters
    ----------
    alpha_half
        What `analysis.recovery.alpha_half` returned: ``alpha_half`` and ``standard_error`` (N,).
        An N without both, or with an error of 0, is left out. So is one of fewer than 4
        ``matrices``, where these are told; without them errors are taken as exact. Half the
        distance from ``least`` to ``most``, which undecided runs leave open, adds to the error.

    Returns
    -------
    xr.Dataset
        Dims law, parameter, other (the parameters again) and fitted_N (the N that were used). NaN
        where a law has no such parameter or could not be fitted:

        - ``value``, ``error`` (law, parameter), ``covariance`` (law, parameter, other);
        - ``chi2``, ``degrees_of_freedom`` (law,): squared residuals in units of the errors;
        - ``aic`` (law,): chi2 + 2 parameters, by which laws are compared;
        - ``formula``, ``note`` (law,): the law in words; why it could not be fitted, or empty;
        - ``raised`` (law,): whether that is an error of the law's own function.

        The attribute ``by`` is that of alpha_half.

    Raises
    ------
    ValueError
        If an N is there more than once.

    Notes
    -----
    Least squares by lmfit. The errors of alpha_half are not rescaled by chi2, so a law that does
    not fit shows it in its chi2. Different N share no matrix, so their errors are independent.

    AIC is chi2 + 2 k, for k parameters: by so much chi2 of new points exceeds that of the fitted
    ones, on average, whatever the number of points, as their errors are given. The term that makes
    it AICc, 2 k (k + 1) / (n - k - 1), and lmfit's ``aic``, n log(chi2 / n) + 2 k, are for errors
    that are known up to a factor which the residuals tell; they forget whether chi2 is large.

    An error that m matrices told is itself uncertain: a residual in its units has Student's
    distribution with m - 1 degrees of freedom and a variance of (m - 1) / (m - 3), by which squared
    errors are enlarged. Measured with 4, 5, 6, 8 matrices at 4 and 7 N, 40,000 draws a case: a true
    law is said not to fit (p < 0.01) in 0.004 to 0.015 of them, and 1.96 errors of B on either side
    hold the truth in 0.92 to 0.97. Without that it is 0.03 to 0.14 and 0.76 to 0.91.
    """
    check_labels(alpha_half)
    points = _points(alpha_half)
    parameters = list(dict.fromkeys(name for law in LAWS.values() for name in law.guess))
    fits = [_fit(law, points, parameters) for law in LAWS.values()]
    time = {"by": float(points["by"])} if "by" in points.coords else {}
    laws = xr.concat(fits, dim="law").assign_attrs(time)
    return laws.assign_coords(
        law=("law", list(LAWS), {"long_name": "law of alpha_half(N)", "units": "1"}),
        parameter=("parameter", parameters, {"long_name": "parameter of a law", "units": "1"}),
        other=("other", parameters, {"long_name": "parameter of a law", "units": "1"}),
        fitted_N=("fitted_N", points["N"].values, {"long_name": "N that was fitted", "units": "1"}),
    )


def fit_power(points: xr.Dataset) -> xr.Dataset:
    """Fit log(value) = A + B log N, weighted by the errors: a power law of exponent B.

    Parameters
    ----------
    points
        (N,): ``value``, the logarithm, with ``standard_error``, ``least``, ``most`` and
        ``matrices``, taken as `fit_log_laws` takes those of alpha_half.

    Returns
    -------
    xr.Dataset
        As of `fit_log_laws`, of this law alone.
    """
    found = _fit(LAWS["linear"], _points(points.rename(value="alpha_half")), ["A", "B"])
    names = {"long_name": "parameter of the law", "units": "1"}
    return found.assign_coords({k: (k, ["A", "B"], names) for k in ("parameter", "other")})


def _points(alpha_half: xr.Dataset) -> xr.Dataset:
    """Take the N that can be fitted, with all that their errors have to hold."""
    known = alpha_half["alpha_half"].notnull() & (alpha_half["standard_error"] > 0)
    points = alpha_half.isel(N=known.values)
    if "least" in points:
        open_ = (points["most"] - points["least"]) / 2
        points = points.assign(standard_error=np.hypot(points["standard_error"], open_))
    if "matrices" in points:
        points = points.isel(N=(points["matrices"] >= FEWEST_MATRICES).values)
        enlarged = np.sqrt((points["matrices"] - 1) / (points["matrices"] - 3))
        points = points.assign(standard_error=points["standard_error"] * enlarged)
    return points


def evaluate(laws: xr.Dataset, law: str, N: ArrayLike) -> xr.Dataset:
    """Evaluate a fitted law, with the standard error that its parameters leave.

    Parameters
    ----------
    laws
        What `fit_log_laws` returned.
    law
        The name of a law, one of `LAWS`.
    N
        (n,), > 1, dimensionless; may lie outside the range that was fitted.

    Returns
    -------
    xr.Dataset
        (N,): ``alpha_half``, ``standard_error``; NaN if the law could not be fitted.

    Raises
    ------
    ValueError
        If there is no law of that name.
    """
    if law not in LAWS:
        raise ValueError(f"law must be one of {', '.join(LAWS)}; got {law!r}.")
    at = np.atleast_1d(np.asarray(N, dtype=float))
    value, error = np.full((2, at.size), math.nan)
    if not laws["note"].sel(law=law).item():
        names = list(LAWS[law].guess)
        best = laws["value"].sel(law=law, parameter=names).values
        covariance = laws["covariance"].sel(law=law, parameter=names, other=names).values

        def curve(parameters: Array) -> Array:
            return LAWS[law].function(at, *parameters)

        slopes = approx_fprime(best, curve).reshape(at.size, len(names))
        value, error = curve(best), np.sqrt(np.einsum("np,pq,nq->n", slopes, covariance, slopes))
    return xr.Dataset(
        {
            "alpha_half": ("N", value, {"long_name": f"alpha_half by {law}", "units": "1"}),
            "standard_error": (
                "N",
                error,
                {"long_name": f"standard error of alpha_half by {law}", "units": "1"},
            ),
        },
        coords={"N": ("N", at, {"long_name": "dimension", "units": "1"})},
    )


def describe(laws: xr.Dataset) -> str:
    """Say in plain language what the fits are, and how much the range of N can tell.

    Parameters
    ----------
    laws
        What `fit_log_laws` returned.

    Returns
    -------
    str
        A few lines of text; which law is preferred, if any, and what each says of N = 10^6.
    """
    N = laws["fitted_N"].values
    fitted = [law for law in laws["law"].values if not laws["note"].sel(law=law).item()]
    broken = laws.isel(law=laws["raised"].values)
    if not fitted:
        # What raised, and of the others the one that needs least.
        rest = laws.isel(law=~laws["raised"].values).sortby("degrees_of_freedom")
        notes = dict.fromkeys([*rest["note"].values[-1:], *broken["note"].values])
        return f"No law of alpha_half(N) was fitted: {'; '.join(notes)}."
    time = f" {by_text(laws.attrs['by'])}" if "by" in laws.attrs else ""
    lines = [
        f"alpha_half{time} at {N.size} values of N from {N.min():.0f} to {N.max():.0f}: "
        f"log N from {math.log(N.min()):.2f} to {math.log(N.max()):.2f}, "
        f"a factor of {math.log(N.max()) / math.log(N.min()):.2f}."
    ]
    lines += [_describe_law(laws, law) for law in fitted]
    lines += [
        f"  {formula}: not fitted: {note}."
        for formula, note in zip(broken["formula"].values, broken["note"].values, strict=True)
    ]
    lines += [_describe_growth(laws)] if "linear" in fitted else []
    lines += [_describe_choice(laws.sel(law=fitted))]
    return "\n".join(lines)


def describe_slopes(laws: Iterable[xr.Dataset]) -> str:
    """Say how fast alpha_half grows with log N by several times and in the end.

    Parameters
    ----------
    laws
        What `fit_log_laws` returned for alpha_half by each time.

    Returns
    -------
    str
        A line or two: B of the law "linear" with its standard error, by each time.
    """
    slopes = {}
    for fitted in laws:
        at = fitted.sel(law="linear", parameter="B")
        if not at["note"].item():
            slopes[fitted.attrs["by"]] = ufloat(at["value"].item(), at["error"].item())
    said = ", ".join(f"{B:.2ufP} {by_text(time)}" for time, B in slopes.items())
    if not said:
        return "The slope of alpha_half in log N is not known by any time."
    text = f"Slope of alpha_half in log N (B of {LAWS['linear'].formula}): {said}."
    end = slopes.get(math.inf)
    if end is None or len(slopes) < 2:
        return f"{text} In the end it is not known." if end is None else text
    first = min(slopes)
    # Both are of the same runs, so the error of their difference is rather smaller than this.
    excess = slopes[first] - end
    if abs(excess.n) < 2 * excess.s:
        return f"{text} By t = {first:g} and in the end it agrees within the errors."
    size, more = (excess, "larger") if excess.n > 0 else (-excess, "smaller")
    return (
        f"{text} By t = {first:g} it is {size:.2ufP} {more} than in the end, as the time to "
        "recover changes with N."
    )


def _fit(law: Law, points: xr.Dataset, parameters: list[str]) -> xr.Dataset:
    """Fit one law; a row of `fit_log_laws`."""
    names = list(law.guess)
    value = xr.DataArray(
        np.full(len(parameters), math.nan), dims="parameter", coords={"parameter": parameters}
    )
    covariance = value * value.rename(parameter="other")
    chi2, freedom, raised = math.nan, points.sizes["N"] - len(names), False
    note = (
        f"a law of {_number(len(names), 'parameter')} needs alpha_half with an error above 0, of "
        f"{FEWEST_MATRICES} matrices or more, at {_number(len(names), 'value')} of N or more; "
        f"there are {points.sizes['N']}"
    )
    if freedom >= 0:
        try:
            best, found, least = _least_squares(law, points)
        except Exception as why:  # whatever a law's function may raise costs no other law
            note, raised = f"{type(why).__name__}: {str(why).partition(chr(10))[0]}", True
        else:
            note = "its parameters cannot be told from these alpha_half and their errors"
            most = (HOPELESS * float(points["alpha_half"].max())) ** 2
            if np.isfinite(found).all() and (found.diagonal() > 0).all() and found.max() < most:
                note, chi2 = "", least
                value.loc[names], covariance.loc[names, names] = best, found
    error = np.sqrt(covariance.values.diagonal())
    return xr.Dataset(
        {
            "value": _labelled(value, "best value of a parameter"),
            "error": _labelled(value.copy(data=error), "standard error of a parameter"),
            "covariance": _labelled(covariance, "covariance of two parameters"),
            "chi2": _labelled(xr.DataArray(chi2), "sum of squared residuals over squared errors"),
            "aic": _labelled(xr.DataArray(chi2 + 2 * len(names)), "chi2 + 2 parameters"),
            "degrees_of_freedom": _labelled(
                xr.DataArray(freedom), "number of N minus number of parameters"
            ),
            "formula": _labelled(xr.DataArray(law.formula), "formula of the law"),
            "note": _labelled(xr.DataArray(note), "why the law could not be fitted"),
            "raised": _labelled(xr.DataArray(raised), "whether the law's function raised an error"),
        }
    )


def _least_squares(law: Law, points: xr.Dataset) -> tuple[Array, Array, float]:
    """Fit one law: parameters, (k,), their covariance, (k, k), NaN if unknown, and chi2."""
    errors = points["standard_error"].values
    unit = float(np.median(errors))
    with np.errstate(all="ignore"):
        model = Model(law.function, independent_vars=["N"], nan_policy="propagate")
        result = model.fit(
            points["alpha_half"].values,
            N=points["N"].values.astype(float),
            weights=unit / errors,
            # MINPACK, lmfit's default, steps by a share of the parameter: none where it is ~0.
            method="least_squares",
            scale_covar=False,
            fit_kws=dict.fromkeys(("ftol", "xtol", "gtol"), 1e-12),
            **law.guess,
        )
    best = np.array([result.best_values[name] for name in law.guess])
    covariance = np.full((best.size, best.size), math.nan)
    if result.covar is not None:
        covariance = result.covar * unit**2
    return best, covariance, result.chisqr / unit**2


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)}"


def _labelled(variable: xr.DataArray, text: str) -> xr.DataArray:
    return variable.assign_attrs(long_name=text, units="1")


def _describe_law(laws: xr.Dataset, law: str) -> str:
    """One law in one line: parameters, chi2, and its value at FAR_N."""
    fit = laws.sel(law=law)
    parameters = ", ".join(
        f"{name} = {_with_error(fit.value.sel(parameter=name), fit.error.sel(parameter=name))}"
        for name in LAWS[law].guess
    )
    freedom = int(fit["degrees_of_freedom"])
    if freedom:
        p = stats.chi2.sf(float(fit["chi2"]), freedom)
        verdict = "does not fit" if p < UNLIKELY else "fits"
        test = f"{verdict}, chi2 = {float(fit['chi2']):.3g}, degrees of freedom = {freedom}, "
        test += f"p = {p:.2g}"
    else:
        test = "passes through every point, so it is not tested"
    far = evaluate(laws, law, FAR_N).isel(N=0)
    return (
        f"  {LAWS[law].formula}: {parameters}; {test}; at N = {_FAR} "
        f"it says {_with_error(far['alpha_half'], far['standard_error'])}."
    )


def _describe_growth(laws: xr.Dataset) -> str:
    """Whether alpha_half depends on N at all."""
    B = laws.sel(law="linear", parameter="B")
    errors = float(B["value"] / B["error"])
    if abs(errors) < 2:
        return f"No dependence on N is seen: B is {errors:.1f} standard errors from 0."
    growth = "rises" if errors > 0 else "falls"
    return f"alpha_half {growth} with log N: B is {errors:.1f} standard errors from 0."


def _describe_choice(laws: xr.Dataset) -> str:
    """Whether the range of N tells the laws apart."""
    tested = laws.isel(law=(laws["degrees_of_freedom"] > 0).values).sortby("aic")
    if not tested.sizes["law"]:
        return "With no degree of freedom left, nothing tells the laws apart: add values of N."
    if tested.sizes["law"] < 2:
        return f"Only {tested['formula'].item()} is tested: add values of N to compare it."
    best, *rivals = tested["formula"].values
    behind = (tested["aic"] - tested["aic"][0]).values[1:]
    p = stats.chi2.sf(tested["chi2"], tested["degrees_of_freedom"])
    none_fits = " But none of them fits: the true law is another, or the errors are too small."
    if behind[0] >= DECISIVE:
        return (
            f"The points prefer {best} to {', '.join(rivals)}: their AIC differ by {behind[0]:.3g}"
            f"{' or more' * (len(rivals) > 1)}, {DECISIVE:g} would do."
            f"{none_fits if p[0] < UNLIKELY else ''}"
        )
    close = tested.isel(law=[0, *(1 + np.flatnonzero(behind < DECISIVE))])
    far = [evaluate(laws, law, FAR_N)["alpha_half"].item() for law in close["law"].values]
    which = "the laws" if len(far) == laws.sizes["law"] else " and ".join(close["formula"].values)
    return (
        f"This range of N does not tell {which} apart: their AIC differ by "
        f"{np.ptp(close['aic'].values):.3g}; {DECISIVE:g} would do. Yet at N = {_FAR} they differ "
        f"by {np.ptp(far):.2g}: larger N or smaller errors are needed before any is extrapolated."
        f"{none_fits if p.max() < UNLIKELY else ''}"
    )


def _with_error(value: xr.DataArray, error: xr.DataArray) -> str:
    """Write value±error, with two digits of the error."""
    return f"{ufloat(value.item(), error.item()):.2ufP}"
