"""Figures that a paper could print, one function each; `FIGURES` names them.

Every function takes a `Study` and returns a `matplotlib.figure.Figure` that belongs to no window
and no global state. A figure without the data that it needs says so in an otherwise empty axis.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from scipy import stats
from uncertainties import ufloat

from alphasweep.analysis.hessian_figures import (
    mechanism,
    overlap_growth,
    phase_diagram,
    spectra,
    starts,
)
from alphasweep.analysis.mechanism import SMALL_OVERLAP
from alphasweep.analysis.recovery import NO_SIGNAL, fitted_probability
from alphasweep.analysis.scaling import LAWS, evaluate
from alphasweep.analysis.study import Study
from alphasweep.analysis.style import (
    BLUE,
    COLUMN,
    GREY,
    LAW_LOOKS,
    ORANGE,
    PAGE,
    STYLE,
    TIGHT,
    apart,
    colors,
    columns,
    empty,
    is_near,
    markers,
    notes,
    panels,
    recovery_by,
    save,
    sideways,
    tick_at,
    time_axis,
    why_empty,
    widened,
)
from alphasweep.analysis.times import shown


@STYLE
def recovery_curves(study: Study) -> Figure:
    """P(recovery) against alpha for every N, with fits and the threshold of the start.

    Parameters
    ----------
    study
        Of a sweep whose attributes tell the loss's a and t_max; P is by `study.time`.

    Returns
    -------
    Figure
        One column wide. Bars are the intervals of P, curves the binomial fits; the
        vertical line is alpha_bbp_init, where it is known, or an arrow points to it. Points of
        different N at one alpha are moved apart sideways, by about a marker's width, so that no
        bar hides another.
    """
    probability, half = study.probability, study.half
    figure, [axis] = panels(1, 1, COLUMN, 3.0)
    if not study.has_signal:
        return empty(figure, [axis], NO_SIGNAL)
    counted = probability["runs"].sum("alpha")
    shown = [N for N in probability["N"].values if counted.sel(N=N) > 0]
    if not shown:
        return empty(figure, [axis], "no cell of the sweep is done")

    shifts = sideways(probability["alpha"].values, len(shown))
    looks = zip(shown, colors(len(shown)), markers(len(shown)), shifts, strict=True)
    for N, color, marker, shift in looks:
        points = probability.sel(N=N)
        points = points.isel(alpha=(points["runs"] > 0).values)
        alpha, value = points["alpha"].values, points["probability"].values
        below, above = value - points["lower"].values, points["upper"].values - value
        axis.errorbar(
            alpha + shift,
            value,
            # Where P is 0 or 1 the interval's end may pass it by a rounding error.
            yerr=np.maximum([below, above], 0),
            color=color,
            marker=marker,
            linestyle="none",
            elinewidth=0.7,
            label=f"$N = {N}$",
        )
        grid = np.linspace(alpha.min(), alpha.max(), 200)
        axis.plot(grid, fitted_probability(half.sel(N=[N]), grid)[0], color=color)

    axis.axhline(0.5, color=GREY, linewidth=0.6, linestyle=":")
    if study.threshold is not None:
        _mark_threshold(axis, study.threshold)
    axis.set_xlabel(r"signal-to-noise ratio $\alpha = M/N$")
    axis.set_ylabel(rf"$P({recovery_by(study.time)})$")
    axis.set_ylim(-0.04, 1.04)
    title = f"bars: {100 * probability.attrs['confidence']:g} % intervals"
    figure.legend(loc="outside upper center", ncols=columns(len(shown)), title=title, **TIGHT)
    return figure


@STYLE
def alpha_half_against_log_N(study: Study) -> Figure:
    """alpha_half against log N, with the fitted laws and their errors.

    Parameters
    ----------
    study
        Of a sweep whose attributes tell the loss's a and t_max; P is by `study.time`.

    Returns
    -------
    Figure
        One column wide. Bars are the intervals of alpha_half, bands those of a law, of the same
        confidence; laws go on, lighter, beyond the N that were fitted. alpha_bbp_init is a line if
        near the data, otherwise an arrow to it.
    """
    figure, [axis] = panels(1, 1, COLUMN, 3.1)
    half, laws = study.half, study.laws
    points = half.isel(N=half["alpha_half"].notnull().values)
    if not points.sizes["N"]:
        return empty(figure, [axis], *notes(half))

    N = points["N"].values
    grid = np.geomspace(N.min() / 1.4, N.max() * 4 * 1.1, 200)
    inside = (grid >= N.min()) & (grid <= N.max())
    confidence, seen = half.attrs["confidence"], [points["lower"].values, points["upper"].values]
    reach = stats.norm.ppf((1 + confidence) / 2)
    for law, (color, style) in zip(LAWS, cycle(LAW_LOOKS), strict=False):
        curve = evaluate(laws, law, grid)
        value, band = curve["alpha_half"].values, reach * curve["standard_error"].values
        if np.isnan(value).any():
            continue
        axis.fill_between(grid, value - band, value + band, color=color, alpha=0.13, linewidth=0)
        seen.append(value)
        axis.plot(grid, value, color=color, linestyle=style, alpha=0.45)
        axis.plot(grid[inside], value[inside], color=color, linestyle=style, label=LAWS[law].tex)
    middle = points["alpha_half"].values
    axis.errorbar(
        N,
        middle,
        yerr=np.nan_to_num([middle - points["lower"].values, points["upper"].values - middle]),
        color="black",
        marker="o",
        linestyle="none",
        elinewidth=0.9,
        capsize=2,
        zorder=3,
        label="runs",
    )
    # The band of a law that hardly is known would leave no room for the points.
    room = np.concatenate([*seen, middle])
    low, high = np.nanmin(room), np.nanmax(room)
    margin = 0.08 * (high - low) or 0.1
    low, high = low - margin, high + margin
    axis.set_ylim(low, high)
    threshold = study.threshold
    text = "" if threshold is None else _threshold_text(threshold)
    if threshold is None:
        pass  # nobody knows it
    elif is_near(threshold, low, high):
        axis.axhline(threshold, color=ORANGE, linestyle="-.", linewidth=0.9, label=text)
        axis.set_ylim(widened(low, high, threshold))
    else:
        arrow, where = (r"$\downarrow$", "below") if threshold < low else (r"$\uparrow$", "above")
        text += f", {where}"
        axis.plot([], [], color=ORANGE, linestyle="none", marker=arrow, markersize=7, label=text)
    axis.set_xscale("log")
    axis.set_xlim(grid[0], grid[-1])
    tick_at(axis, np.concatenate([N, N.max() * np.array([2, 4])]))
    axis.set_xlabel(r"dimension $N$ (log scale)")
    axis.set_ylabel(rf"$\alpha_{{1/2}}$: $P({recovery_by(study.time)}) = 1/2$")
    title = f"bars and bands: {100 * confidence:g} % intervals"
    figure.legend(loc="outside upper center", ncols=2, title=title, **TIGHT)
    return figure


@STYLE
def alpha_half_in_time(study: Study) -> Figure:
    """alpha_half against log N, by times and in the end: what of its growth is the clock's.

    Parameters
    ----------
    study
        Of a sweep whose attributes tell t_max.

    Returns
    -------
    Figure
        One column wide. Bars are the intervals of alpha_half, lines its law A + B log N, by each of
        `study.times`. In the end, bars reach over all that undecided runs leave open; where
        only one bound of alpha_half is known, an arrow begins at it.
    """
    figure, [axis] = panels(1, 1, COLUMN, 2.9)
    if not study.has_signal:
        return empty(figure, [axis], NO_SIGNAL)
    halves = study.halves
    if halves[["least", "most"]].isnull().to_array().all():
        return empty(figure, [axis], *notes(study.half))
    sizes = halves["N"].values.astype(float)
    apart = np.exp(sideways(np.log(sizes), len(study.times)))
    shades = [*colors(len(study.times) - 1), "black"]
    looks = zip(study.laws_in_time, shades, markers(len(study.times)), apart, strict=True)
    for laws, color, marker, shift in looks:
        time = laws.attrs["by"]
        half = halves.sel(by=time)
        known = half.isel(N=half["alpha_half"].notnull().values)
        middle = known["alpha_half"].values
        label = "in the end" if math.isinf(time) else f"$t = {time:g}$"
        ends = [middle - known["lower"].values, known["upper"].values - middle]
        axis.errorbar(
            known["N"].values * shift,
            middle,
            yerr=np.nan_to_num(ends),
            color=color,
            marker=marker,
            linestyle="none",
            elinewidth=0.7,
            label=label,
        )
        for bound, side in (("most", "uplims"), ("least", "lolims")):
            only = half.isel(N=(half["alpha_half"].isnull() & half[bound].notnull()).values)
            where = only["N"].values * shift, only[bound].values
            arrow: dict[str, Any] = {side: True, "yerr": 0.2, "elinewidth": 0.7}
            axis.errorbar(*where, color=color, marker=marker, linestyle="none", **arrow)
        curve = evaluate(laws, "linear", sizes)["alpha_half"].values
        axis.plot(sizes, curve, color=color, linewidth=1.4 if math.isinf(time) else 0.8)
    axis.set_xscale("log")
    axis.set_xlim(sizes.min() / 1.25, sizes.max() * 1.25)
    tick_at(axis, halves["N"].values)
    axis.set_xlabel(r"dimension $N$ (log scale)")
    axis.set_ylabel(r"$\alpha_{1/2}$: $P(\mathrm{recovery\ by}\ t) = 1/2$")
    title = f"bars: {100 * halves.attrs['confidence']:g} % intervals; lines: {LAWS['linear'].tex}"
    ncols = columns(len(study.times))
    figure.legend(loc="outside upper center", ncols=ncols, title=title, **TIGHT)
    return figure


@STYLE
def recovery_time_against_N(study: Study) -> Figure:
    """Median time of recovery against N at some alphas, with the power laws that fit.

    Parameters
    ----------
    study
        Of any sweep.

    Returns
    -------
    Figure
        One column wide, both axes logarithmic. Bars are the intervals of the median; lines are
        c N^z, with z and its standard error.
    """
    figure, [axis] = panels(1, 1, COLUMN, 2.9)
    if not study.has_signal:
        return empty(figure, [axis], NO_SIGNAL)
    medians, growths = study.recovery_times, study.growth
    known = medians["median"].notnull()
    alphas = shown(growths) or list(medians["alpha"].values[known.any("N").values])[:1]
    if not alphas:
        return empty(figure, [axis], "no run that is done recovered")
    sizes = medians["N"].values.astype(float)
    apart = np.exp(sideways(np.log(sizes), len(alphas)))
    for alpha, color, marker, shift in zip(
        alphas, colors(len(alphas)), markers(len(alphas)), apart, strict=True
    ):
        at = medians.sel(alpha=alpha).isel(N=known.sel(alpha=alpha).values)
        middle = at["median"].values
        ends = [middle - at["lower"].values, at["upper"].values - middle]
        label, fit = rf"$\alpha = {alpha:g}$", growths.sel(alpha=alpha)
        if not fit["note"].item():
            A, B = (float(fit["value"].sel(parameter=name)) for name in ("A", "B"))
            z = ufloat(B, float(fit["error"].sel(parameter="B")))
            label += rf": $z = {z:.1ufL}$"
            axis.plot(sizes, np.exp(A) * sizes**B, color=color, linewidth=0.8)
        axis.errorbar(
            at["N"].values * shift,
            middle,
            yerr=np.nan_to_num(ends),
            color=color,
            marker=marker,
            linestyle="none",
            elinewidth=0.7,
            label=label,
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(sizes.min() / 1.25, sizes.max() * 1.25)
    tick_at(axis, medians["N"].values)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(r"dimension $N$ (log scale)")
    axis.set_ylabel(r"median time $t$ of recovery")
    title = f"bars: {100 * medians.attrs['confidence']:g} % intervals; lines: $c\\,N^z$"
    figure.legend(loc="outside upper center", ncols=2, title=title, **TIGHT)
    return figure


@STYLE
def one_run(
    study: Study,
    *,
    alpha: float | None = None,
    N: int | None = None,
    seed: int | None = None,
) -> Figure:
    """One run's story: overlap, energy and the Hessian's lowest eigenvalues against time.

    Parameters
    ----------
    study
        Of any sweep.
    alpha, N, seed
        The cell; what is None is chosen, see `Study.run_that_tells`.

    Returns
    -------
    Figure
        One page wide, of the cell's first start, the one that is probed. Theory is the large-N
        spectrum from the labels, drawn while abs(m) <= 0.3, where it holds; the last panel shows
        the same eigenvalues as distances from its edge. A dotted line marks the first recorded
        time without an outlier. Time is logarithmic; t = 0 stands beside it. Markers in the first
        panel are the overlap of the lowest eigenvector with the signal.

    Raises
    ------
    ValueError
        If `alpha`, `N` or `seed` is not a value of the sweep.
    """
    figure, axes = panels(2, 2, PAGE, 4.3)
    ds, cell = study.ds, study.run_that_tells({"alpha": alpha, "N": N, "seed": seed})
    if cell is None:
        return empty(figure, axes, "no cell that was asked for is done")
    run = ds.sel(cell).isel(start=0)
    names = [v for v in (*_SERIES, "lambda_min", "signal_overlap") if v in run]
    run = run[[*names, "recovered", "recovery_time"]].load()
    run = run.isel(time=run["overlap"].notnull().values)
    if not run.sizes["time"]:
        return empty(figure, axes, "the run has no recorded time")

    time, overlap = run["time"].values, np.abs(run["overlap"].values)
    _draw_overlap(axes[0], time, overlap, cell["N"])
    if "signal_overlap" in run:
        _draw_eigenvector(axes[0], run["signal_overlap"].isel(mode=0).dropna("time"))
    axes[1].plot(*apart(time, run["energy"].values), color=BLUE, marker=".", markersize=2.5)
    axes[1].set_ylabel(r"energy $E$")
    _draw_spectrum(axes, run.assign(small=("time", overlap <= SMALL_OVERLAP)))
    for axis in axes[1], axes[3]:
        time_axis(axis, time)
    figure.suptitle(_caption(study, cell, run), fontsize=9)
    lines, labels = axes[2].get_legend_handles_labels()
    title = rf"lines: large-$N$ theory, where $|m| \leq {SMALL_OVERLAP:g}$"
    title += "; markers: eigenvalues of the Hessian" if len(lines) > 2 else ""
    figure.legend(lines, labels, loc="outside lower center", ncols=4, title=title)
    return figure


_SERIES = ("overlap", "energy", "bulk_edge", "outlier")


#: The figures by name, which is also that of their files. Another figure is another entry:
#: `run` and `alphasweep figure` draw all of them; the first line of its docstring says what it is.
FIGURES: dict[str, Callable[[Study], Figure]] = {
    "recovery": recovery_curves,
    "alpha_half": alpha_half_against_log_N,
    "alpha_half_in_time": alpha_half_in_time,
    "recovery_time": recovery_time_against_N,
    "one_run": one_run,
    "phase_diagram": phase_diagram,
    "mechanism": mechanism,
    "overlap_growth": overlap_growth,
    "spectra": spectra,
    "starts": starts,
}


def draw(
    study: Study,
    folder: Path,
    names: Iterable[str] | None = None,
    formats: Iterable[str] = ("png", "pdf"),
) -> dict[str, str]:
    """Draw figures and write them into a folder; what goes wrong with one costs no other.

    Parameters
    ----------
    study
        Of any sweep.
    folder
        Where; it is made if it is not there.
    names
        Of `FIGURES`; if None all of them that have something to show.
    formats
        Of `FORMATS`.

    Returns
    -------
    dict of str
        Why a figure could not be drawn or written, by its name; also why one that was named has
        nothing to show. Empty if all is well.
    """
    problems = {}
    for name in FIGURES if names is None else names:
        try:
            figure = FIGURES[name](study)
            if why := why_empty(figure):
                if names is not None:
                    problems[name] = " ".join(why.split())
                continue
            folder.mkdir(parents=True, exist_ok=True)
            save(figure, folder / name, formats)
        except Exception as error:  # of a law, Matplotlib, its user's settings, fonts, a disk
            problems[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return problems


def _threshold_text(threshold: float) -> str:
    return rf"$\alpha_\mathrm{{BBP}}^\mathrm{{init}} = {threshold:.2f}$"


def _mark_threshold(axis: Axes, threshold: float) -> None:
    """Draw a threshold in alpha as a vertical line, or point to where it is."""
    low, high = axis.get_xlim()
    if is_near(threshold, low, high):
        axis.axvline(threshold, color=ORANGE, linewidth=0.9, linestyle="-.")
        axis.set_xlim(widened(low, high, threshold))
        place, side, text = threshold, "center", _threshold_text(threshold)
    elif threshold < low:
        place, side, text = low, "left", r"$\leftarrow$ " + _threshold_text(threshold)
    else:
        place, side, text = high, "right", _threshold_text(threshold) + r" $\rightarrow$"
    axis.annotate(
        text,
        (place, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        color=ORANGE,
        ha=side,
    )


def _draw_overlap(
    axis: Axes, time: NDArray[np.floating[Any]], overlap: NDArray[np.floating[Any]], N: int
) -> None:
    """Draw abs(m), with the size that it has at a random start."""
    typical = 1 / math.sqrt(N)
    axis.plot(*apart(time, overlap), color=BLUE, marker=".", markersize=2.5)
    axis.axhline(typical, color=GREY, linewidth=0.6, linestyle=":")
    axis.annotate(
        r"$1/\sqrt{N}$",
        (1, typical),
        xycoords=("axes fraction", "data"),
        xytext=(-4, -3),
        textcoords="offset points",
        color=GREY,
        ha="right",
        va="top",
    )
    axis.set_yscale("log")
    axis.set_ylim(min(overlap.min(), typical) / 2.5, 1.4)
    axis.set_ylabel(r"overlap $|m|$")


def _draw_eigenvector(axis: Axes, squared: xr.DataArray) -> None:
    """Mark the overlap of the lowest eigenvector with the signal, from its square."""
    if not squared.size:
        return
    value = np.sqrt(squared.values)
    axis.plot(squared["time"].values, value, color="black", marker="o", markersize=2.5, ls="none")
    low = min(float(axis.get_ylim()[0]), float(value.min()) / 1.5)
    axis.set_ylim(max(low, 1e-4), 2.5)
    axis.annotate(
        "markers: lowest eigenvector",
        (0, 1),
        xycoords="axes fraction",
        xytext=(4, -3),
        textcoords="offset points",
        va="top",
    )


def _draw_spectrum(axes: Sequence[Axes], run: xr.Dataset) -> None:
    """Draw the lowest eigenvalues as markers over edge and outlier of the theory.

    The last panel but one shows them as they are, the last one as distances from the edge. The
    time at which the outlier is gone is marked in all panels.
    """
    time, small = run["time"].values, run["small"].values
    edge, outlier = (run[name].where(run["small"]) for name in ("bulk_edge", "outlier"))
    probes = run["lambda_min"].dropna("time", how="all") if "lambda_min" in run else None
    for axis, origin in zip(axes[-2:], (xr.zeros_like(edge), edge), strict=True):
        axis.plot(*apart(time, (edge - origin).values), color=BLUE, label="bulk edge")
        axis.plot(*apart(time, (outlier - origin).values), color=ORANGE, ls="--", label="outlier")
        if probes is None:
            continue
        for k, mode in enumerate(probes["mode"].values):
            axis.plot(
                probes["time"].values,
                (probes.sel(mode=mode) - origin).values,
                color=GREY if k else "black",
                markerfacecolor="none" if k else "black",
                marker="o",
                markersize=4.5 if k else 2.5,
                linestyle="none",
                label=("lowest eigenvalue", "next lowest")[k] if k < 2 else None,
            )
    gone = np.flatnonzero(np.isnan(outlier.values) & small)
    if gone.size and not np.isnan(outlier.values[0]):
        for axis in axes:
            axis.axvline(time[gone[0]], color=ORANGE, linewidth=0.7, linestyle=":")
        axes[-2].annotate(
            "outlier gone",
            (time[gone[0]], 0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 4),
            textcoords="offset points",
            color=ORANGE,
        )
    axes[-2].axhline(0, color=GREY, linewidth=0.6, linestyle=":")
    for axis in axes[-2:]:
        axis.margins(y=0.1)
    axes[-2].set_ylabel(r"eigenvalue $\lambda$")
    axes[-1].set_ylabel(r"$\lambda$ minus bulk edge")


def _caption(study: Study, cell: dict[str, Any], run: xr.Dataset) -> str:
    ended = (
        f"recovered at $t = {float(run['recovery_time']):.3g}$"
        if run["recovered"] == 1
        else "not recovered"
    )
    settings = study.descent
    loss = f"$a = {settings['a']:g}$" if settings["loss"] == "intensity" else settings["loss"]
    return (
        rf"$\alpha = {cell['alpha']:g}$, $N = {cell['N']}$, {loss}, "
        f"seed {cell['seed']}: {ended}"
    )
