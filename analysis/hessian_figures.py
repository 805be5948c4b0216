"""Figures of what the Hessian does: the transition in alpha and time, spectra, the race, starts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter
from scipy.stats import norm

from alphasweep.analysis.initial import start_overlap
from alphasweep.analysis.mechanism import SMALL_OVERLAP, ways_out
from alphasweep.analysis.recovery import NO_SIGNAL, fitted_probability, is_done
from alphasweep.analysis.rerun import points_of
from alphasweep.analysis.study import Study
from alphasweep.analysis.style import (
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    PAGE,
    STYLE,
    TIGHT,
    colors,
    columns,
    empty,
    markers,
    panels,
    recovery_by,
    time_axis,
)
from alphasweep.kernels.density import density, lanczos_density
from alphasweep.kernels.hessian import RiemannianHessian
from alphasweep.kernels.starts import WEIGHTS

_REACH = float(norm.ppf(0.975))

#: Largest N of which a figure computes all eigenvalues: three times some seconds.
ALL_EIGENVALUES = 2048

#: Largest N of which a run is run again for a figure that nobody asked for.
AGAIN = 1024


@STYLE
def phase_diagram(study: Study) -> Figure:
    """Where the Hessian has an outlier, in alpha and time, with alpha_BBP(t) and its limits.

    Parameters
    ----------
    study
        Of a sweep without a signal: runs with one leave for it.

    Returns
    -------
    Figure
        One page wide. On the left shades are the share of runs with an outlier at the largest N,
        points alpha_BBP(t) with 95 % intervals, horizontal lines alpha_BBP_init and the value of
        the 1RSB threshold states; on the right the energy at some alphas with that of these
        states. Crosses at the right edge are extrapolations to t -> infinity, see
        `analysis.transition.limit`.
    """
    figure, axes = panels(1, 2, PAGE, 3.0)
    if not is_done(study.ds).any():
        return empty(figure, axes, "no cell of the sweep is done")
    if study.has_signal:
        return empty(figure, axes, "the sweep has a signal; alpha_BBP(t) is of runs without one")
    found = study.bbp_in_time
    if found["alpha_bbp"].isnull().all():
        return empty(figure, axes, "no transition lies between the alphas of the sweep")
    left, right = axes
    largest = found["share"].sel(N=study.largest)
    largest = largest.dropna("alpha", how="all").dropna("time", how="all")
    time = largest["time"].values
    mesh = left.pcolormesh(
        time,
        largest["alpha"].values,
        largest.transpose("alpha", "time").values,
        cmap="Blues",
        vmin=0,
        vmax=1.6,
        shading="nearest",
        rasterized=True,
    )
    mesh.set_edgecolor("face")
    sizes = found["N"].values
    for N, color, marker in zip(sizes, colors(len(sizes)), markers(len(sizes)), strict=True):
        line = found.sel(N=N).isel(time=found["alpha_bbp"].sel(N=N).notnull().values)
        bars = _REACH * line["standard_error"].values
        left.errorbar(
            line["time"].values,
            line["alpha_bbp"].values,
            yerr=np.nan_to_num(bars),
            color=color,
            marker=marker,
            markersize=2.6,
            elinewidth=0.7,
            linewidth=0.7,
            label=rf"$\alpha_\mathrm{{BBP}}(t)$, $N = {N}$",
        )
    if study.threshold is not None:
        text = rf"$\alpha_\mathrm{{BBP}}^\mathrm{{init}} = {study.threshold:.2f}$"
        left.axhline(study.threshold, color=ORANGE, linewidth=0.9, linestyle="-.", label=text)
    if study.threshold_at_bbp is not None:
        alpha = study.threshold_at_bbp.alpha
        text = rf"1RSB: $\alpha_\mathrm{{BBP}}^\mathrm{{TS}} = {alpha:.2f}$"
        left.axhline(alpha, color=GREEN, linewidth=0.9, linestyle="--", label=text)
    end = study.bbp_limit
    if not end["note"]:
        _at_infinity(left, end, "black")
    left.set_ylabel(r"signal-to-noise ratio $\alpha = M/N$")
    left.set_ylim(float(largest["alpha"].min()), float(largest["alpha"].max()))
    _draw_energies(right, study)
    for axis in axes:
        time_axis(axis, time)
    left.legend(loc="upper left", fontsize=7, frameon=True, framealpha=0.8, edgecolor="none")
    return figure


def _at_infinity(axis: Axes, end: dict[str, Any], color: Any) -> None:
    """Mark a limit at the right edge of a panel."""
    axis.errorbar(
        [0.985],
        [end["value"]],
        yerr=[_REACH * end["error"]],
        transform=axis.get_yaxis_transform(),
        color=color,
        marker="x",
        markersize=5,
        elinewidth=0.7,
        linestyle="none",
        clip_on=False,
    )


def _draw_energies(axis: Axes, study: Study) -> None:
    """Draw the energy at the largest N against time, with the threshold states' and the limits."""
    energies = study.null_energies
    alphas = energies["alpha"].values
    for alpha, color in zip(alphas, colors(len(alphas)), strict=True):
        line = energies.sel(alpha=alpha)
        axis.plot(line["time"].values, line["energy"].values, color=color)
        state = float(line["threshold_energy"])
        if not math.isnan(state):
            axis.axhline(state, color=color, linestyle="--", linewidth=0.8)
        if not math.isnan(float(line["limit"])):
            end = {"value": float(line["limit"]), "error": float(line["limit_error"])}
            _at_infinity(axis, end, color)
        axis.plot([], [], color=color, label=rf"$\alpha = {alpha:g}$")
    axis.plot([], [], color=GREY, linestyle="--", label="1RSB threshold states")
    lowest = float(energies["energy"].min())
    axis.set_ylim(min(0.0, lowest), 3 * float(energies["energy"].isel(time=-1).max()))
    axis.set_ylabel(rf"energy $E$, $N = {int(energies.attrs['N'])}$")
    axis.legend(loc="upper right", fontsize=7)


@STYLE
def mechanism(study: Study) -> Figure:
    """The race: growth of the overlap, the outlier that pulls it, and who left before it was gone.

    Parameters
    ----------
    study
        Of a sweep with a signal.

    Returns
    -------
    Figure
        One page wide. Above the growth of the median overlap at the largest N, against time and
        against the outlier integrated over time (dotted: what it is if all of the overlap grew
        along the outlier's eigenvector); crosses mark the median time at which the outlier was
        gone. Below, for the largest N, the time of escape of each run that recovered against that
        at which its outlier was gone (on the line: it escaped before; at 0.001: there was none at
        the start); and the share of the runs that recovered which had escaped before, by N.
    """
    figure = Figure(figsize=(PAGE, 5.0), layout="constrained")
    axes = list(figure.subplots(2, 2).ravel())
    if not study.has_signal:
        return empty(figure, axes, NO_SIGNAL)
    escaped, growth = study.escapes, study.overlap_growth
    if not escaped["recovered"].any():
        return empty(figure, axes, "no run that is done recovered")
    N = study.largest
    known = _while_small(growth.sel(N=N))
    if not known.sizes["alpha"]:
        return empty(figure, axes, f"no run that is done at N = {N} was recorded at {_SMALL}")
    alphas = _spread(known["alpha"].values, 4)
    for alpha, color in zip(alphas, colors(len(alphas)), strict=True):
        line = known.sel(alpha=alpha)
        line = line.isel(time=(line["median"] <= SMALL_OVERLAP).values)
        value, pull = line["growth"].values, line["pull"].values
        axes[0].plot(
            line["time"].values[1:], value[1:], color=color, label=rf"$\alpha = {alpha:g}$"
        )
        axes[1].plot(pull, value, color=color)
        door = float(escaped["door"].sel(alpha=alpha, N=N).median())
        if not math.isnan(door):
            for axis, x in ((axes[0], line["time"].values), (axes[1], pull)):
                at = np.interp(door, line["time"].values, x)
                height = np.interp(door, line["time"].values, value)
                axis.plot(at, height, color=color, marker="x", markersize=6)
    axes[0].set_xscale("log")
    axes[0].set_xlabel(r"physical time $t$")
    reach = axes[1].get_xlim()[1]
    guide = np.linspace(0, min(reach, math.log(axes[1].get_ylim()[1])), 50)
    axes[1].plot(guide, np.exp(guide), color=GREY, linestyle=":", zorder=0)
    axes[1].set_xlabel(r"$\int_0^t -\lambda_\mathrm{outlier}\, dt'$")
    for axis in axes[:2]:
        axis.set_yscale("log")
        axis.set_ylabel(rf"growth of $|m|$, $N = {N}$")
        axis.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50]))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axes[0].legend(loc="upper left")
    _draw_escapes(axes[2], escaped.sel(N=N), alphas)
    _draw_ways_out(axes[3], study)
    return figure


_SMALL = f"overlaps below {SMALL_OVERLAP:g} on its way"


def _while_small(growth: xr.Dataset) -> xr.Dataset:
    """The alphas at which the median overlap is small at two recorded times after the start."""
    some = (growth["median"] <= SMALL_OVERLAP) & (growth["time"] > 0) & (growth["growth"] > 0)
    return growth.isel(alpha=(some.sum("time") > 1).values)


def _spread(values: Any, count: int) -> list[float]:
    """Take so many of some values, from the first to the last."""
    places = np.unique(np.linspace(0, len(values) - 1, count).round().astype(int))
    return [float(values[place]) for place in places]


def _draw_escapes(axis: Axes, escaped: xr.Dataset, alphas: list[float]) -> None:
    seen = False
    for alpha, color, marker in zip(alphas, colors(len(alphas)), markers(len(alphas)), strict=True):
        runs = escaped.sel(alpha=alpha)
        mine = runs["recovered"].values
        mine &= runs["escape"].values > 0
        escape, door = runs["escape"].values[mine], runs["door"].values[mine]
        # Of a run that escaped first it is not known when its outlier would have gone: on the line.
        seen |= bool(mine.any())
        axis.plot(
            np.maximum(np.where(np.isnan(door), escape, door), 1e-3),
            escape,
            color=color,
            marker=marker,
            markersize=2.2,
            linestyle="none",
            alpha=0.6,
        )
    if seen:
        axis.set_xscale("log")
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        axis.plot([low, high], [low, high], color=GREY, linewidth=0.7, linestyle=":")
    axis.set_xlabel("time at which the outlier is gone")
    axis.set_ylabel(rf"time of escape, $|m| = {SMALL_OVERLAP:g}$")


def _draw_ways_out(axis: Axes, study: Study) -> None:
    shares = ways_out(study.escapes)
    sizes = shares["N"].values
    for N, color, marker in zip(sizes, colors(len(sizes)), markers(len(sizes)), strict=True):
        line = shares.sel(N=N)
        line = line.isel(alpha=(line["recovered"] >= 5).values)
        if not line.sizes["alpha"]:
            continue
        share = line["before"].values
        reach = np.nan_to_num(_REACH * line["standard_error"].values)
        axis.errorbar(
            line["alpha"].values,
            share,
            yerr=np.array([np.minimum(reach, share), np.minimum(reach, 1 - share)]),
            color=color,
            marker=marker,
            elinewidth=0.7,
            linewidth=0.7,
            label=rf"$N = {N}$",
        )
    axis.set_ylim(-0.04, 1.04)
    axis.set_xlabel(r"signal-to-noise ratio $\alpha = M/N$")
    axis.set_ylabel("recovered, escaped before")
    if axis.containers:
        axis.legend(loc="best", ncols=1 + len(sizes) // 5)


@STYLE
def spectra(
    study: Study,
    *,
    alpha: float | None = None,
    N: int | None = None,
    seed: int | None = None,
) -> Figure:
    """The Hessian's eigenvalues at the start, at the transition and at the end, with the theory.

    Parameters
    ----------
    study
        Of any sweep whose matrices are held.
    alpha, N, seed
        The cell, whose first start is run again, alone; what is None is chosen as by
        `Study.run_that_tells`, with an N up to 1024, as a larger run takes minutes.

    Returns
    -------
    Figure
        One page wide. Bars are a histogram of all eigenvalues, above N = 2048 an estimate by
        stochastic Lanczos quadrature; the line is the density at large N from the labels, the
        marker its outlier where abs(m) <= 0.3. A tail of large eigenvalues, a tenth, is left out.
    """
    figure = Figure(figsize=(PAGE, 2.5), layout="constrained")
    axes = list(figure.subplots(1, 3))
    sizes = study.ds["N"].values
    if N is None:
        N = int(sizes[sizes <= AGAIN].max(initial=sizes.min()))
    cell = study.run_that_tells({"alpha": alpha, "N": N, "seed": seed})
    if cell is None:
        return empty(figure, axes, "no cell that was asked for is done")
    run = study.ds.sel(cell).isel(start=0)
    run = run[["overlap", "outlier"]].load()
    run = run.isel(time=run["overlap"].notnull().values)
    if not run.sizes["time"]:
        return empty(figure, axes, "the run has no recorded time")
    small = (abs(run["overlap"]) <= SMALL_OVERLAP).values
    gone = np.flatnonzero(small & run["outlier"].isnull().values)
    last = run.sizes["time"] - 1
    middle = int(gone[0]) if gone.size and gone[0] not in (0, last) else last // 2
    places = sorted({0, middle, last})
    points = points_of(study.ds, cell, [float(run["time"][k]) for k in places])
    if points is None:
        return empty(
            figure, axes, "the matrix of this run was revealed; it is not there to look at"
        )
    for axis in axes[len(points.points) :]:
        axis.set_axis_off()
    names = {0: "start", middle: "transition" if gone.size else "on the way", last: "end"}
    for axis, k, w in zip(axes, places, points.points, strict=False):
        hessian = RiemannianHessian(points.instance, w, loss=points.loss)
        if points.instance.N <= ALL_EIGENVALUES:
            values = np.linalg.eigvalsh(hessian.dense())[:-1]  # the last is along w
            shares = np.full(len(values), 1 / len(values))
        else:
            rng = np.random.default_rng(0)
            values, shares = lanczos_density(points.instance, w, loss=points.loss, rng=rng)
        y_hat = points.instance.sensing.forward(w[:, None])[:, 0].astype(float)
        curvature = points.loss.second(y_hat, points.instance.y.astype(float))
        theory = density(curvature, points.instance.M / points.instance.N, mu=hessian.mu)
        top = float(np.interp(0.9, theory.cumulative, theory.eigenvalue))
        low = min(values[0], theory.eigenvalue[0])
        low, top = low - 0.05 * (top - low), top
        edges = np.linspace(low, top, 41)
        height = np.histogram(values, edges, weights=shares)[0] / np.diff(edges)
        axis.stairs(height, edges, fill=True, color="0.8", label="eigenvalues")
        axis.plot(theory.eigenvalue, theory.density, color=BLUE, label="large $N$")
        outlier, time = float(run["outlier"][k]), float(run["time"][k])
        if small[k] and low < outlier < top:
            axis.plot(outlier, 0, color=ORANGE, marker="^", markersize=6, clip_on=False, zorder=4)
        axis.axvline(0, color=GREY, linewidth=0.6, linestyle=":")
        axis.set_xlim(low, top)
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(5, prune="lower"))
        axis.yaxis.set_major_locator(MaxNLocator(4, prune="lower"))
        axis.set_title(rf"{names[k]}: $t = {time:.3g}$", fontsize=9)
        axis.set_xlabel(r"eigenvalue $\lambda$")
    axes[0].set_ylabel("density")
    axes[0].plot([], [], color=ORANGE, marker="^", linestyle="none", label="outlier")
    handles = axes[0].get_legend_handles_labels()
    title = rf"$\alpha = {cell['alpha']:g}$, $N = {cell['N']}$, seed {cell['seed']}"
    figure.legend(*handles, loc="outside upper center", ncols=3, title=title, **TIGHT)
    return figure


@STYLE
def starts(study: Study) -> Figure:
    """What starts know of the signal, against alpha, with the theory; and whether that helps.

    Parameters
    ----------
    study
        Of a sweep with a signal.

    Returns
    -------
    Figure
        One page wide. On the left the mean squared overlap of the starts, with 95 % intervals over
        matrices, and the line of the theory at N -> infinity; on the right P(recovery).
    """
    figure = Figure(figsize=(PAGE, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    if not study.has_signal:
        return empty(figure, [left, right], NO_SIGNAL)
    known = study.start_overlaps
    if known["squared"].isnull().all():
        return empty(
            figure, [left, right], "no cell of the sweep is done and has its start recorded"
        )
    sizes = known["N"].values
    looks = list(zip(sizes, colors(len(sizes)), markers(len(sizes)), strict=True))
    for N, color, marker in looks:
        line = known.sel(N=N).dropna("alpha", subset=["squared"])
        left.errorbar(
            line["alpha"].values,
            line["squared"].values,
            yerr=np.nan_to_num(_REACH * line["standard_error"].values),
            color=color,
            marker=marker,
            elinewidth=0.7,
            linestyle="none",
        )
    alpha = known["alpha"].values
    kind, grid = study.descent["start"], np.linspace(alpha.min(), alpha.max(), 120)
    if kind in WEIGHTS or (kind == "hessian" and study.threshold is not None):
        theory = [start_overlap(kind, float(at), study.loss) for at in grid]
        left.plot(grid, theory, color=GREY, zorder=0, label=r"theory, $N \to \infty$")
        left.legend(loc="best")
    left.set_xlabel(r"signal-to-noise ratio $\alpha = M/N$")
    left.set_ylabel(r"squared overlap $m(0)^2$ of the starts")
    for N, color, marker in looks:
        line = study.probability.sel(N=N)
        line = line.isel(alpha=(line["runs"] > 0).values)
        if not line.sizes["alpha"]:
            continue
        value = line["probability"].values
        ends = [value - line["lower"].values, line["upper"].values - value]
        right.errorbar(
            line["alpha"].values,
            value,
            yerr=np.maximum(ends, 0),
            color=color,
            marker=marker,
            elinewidth=0.7,
            linestyle="none",
            label=rf"$N = {N}$",
        )
        right.plot(grid, fitted_probability(study.half.sel(N=[N]), grid)[0], color=color)
    right.set_ylim(-0.04, 1.04)
    right.set_xlabel(r"signal-to-noise ratio $\alpha = M/N$")
    right.set_ylabel(rf"$P({recovery_by(study.time)})$")
    title = f"starts: {kind}"
    figure.legend(
        loc="outside upper center", ncols=min(len(sizes), 8), title=title, **TIGHT,
        handles=right.get_legend_handles_labels()[0],
    )  # fmt: skip
    return figure


@STYLE
def overlap_growth(study: Study) -> Figure:
    """Growth of the overlap at small overlaps: the same for all large N, in units of 1/sqrt(N).

    Parameters
    ----------
    study
        Of a sweep with a signal.

    Returns
    -------
    Figure
        One column wide: the median of sqrt(N) abs(m) against time, at some alphas (colours) for
        each N (lines, the largest N thick), until the median overlap is 0.3. Shades are one
        standard error of the largest N.
    """
    figure, [axis] = panels(1, 1, COLUMN, 3.0)
    if not study.has_signal:
        return empty(figure, [axis], NO_SIGNAL)
    growth = study.overlap_growth
    known = _while_small(growth.sel(N=study.largest)).drop_vars("N")
    if not known.sizes["alpha"]:
        return empty(figure, [axis], f"no run that is done was recorded at {_SMALL}")
    known = growth.sel(alpha=known["alpha"])
    sizes, alphas = known["N"].values, _spread(known["alpha"].values, 4)
    dashes = ["-", "--", "-.", ":", (0, (1, 3))]
    for alpha, color in zip(alphas, colors(len(alphas)), strict=True):
        for k, N in enumerate(sizes[::-1][: len(dashes)]):
            line = known.sel(alpha=alpha, N=N)
            line = line.isel(time=((line["median"] <= SMALL_OVERLAP) & (line["time"] > 0)).values)
            time, value = line["time"].values, line["scaled"].values
            axis.plot(time, value, color=color, linestyle=dashes[k], linewidth=0.8 if k else 1.3)
            if not k:
                error = np.nan_to_num(line["standard_error"].values)
                ends = value * np.exp(-error), value * np.exp(error)
                axis.fill_between(time, *ends, color=color, alpha=0.2, linewidth=0)
        axis.plot([], [], color=color, label=rf"$\alpha = {alpha:g}$")
    for k, N in enumerate(sizes[::-1][: len(dashes)]):
        axis.plot([], [], color=GREY, linestyle=dashes[k], label=rf"$N = {N}$")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel(r"physical time $t$")
    axis.set_ylabel(r"median $\sqrt{N}\,|m(t)|$")
    entries = len(alphas) + min(len(sizes), len(dashes))
    figure.legend(loc="outside upper center", ncols=columns(entries), **TIGHT)
    return figure
