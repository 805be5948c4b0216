"""Sweeps beside one another: another start, loss, method or a, at the same budget."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from scipy.stats import norm

from alphasweep.analysis.recovery import NO_SIGNAL, fitted_probability
from alphasweep.analysis.study import Study
from alphasweep.analysis.style import (
    COLUMN,
    GREY,
    STYLE,
    TIGHT,
    colors,
    empty,
    markers,
    recovery_by,
)

_REACH = float(norm.ppf(0.975))
_LINES = ("-", "--", "-.", ":")


def compare(studies: Mapping[str, Study]) -> xr.Dataset:
    """Return alpha_half of each sweep at each N, and how far it is from that of the first.

    Parameters
    ----------
    studies
        By the names they are shown with; each is asked by its own `Study.time`.

    Returns
    -------
    xr.Dataset, (sweep, N)
        ``alpha_half`` and ``standard_error``; ``difference`` to the first sweep and
        ``difference_error``, as of sweeps that share no matrix (of sweeps that do it is less).
        NaN where a sweep has no such N, or no alpha_half.
    """
    halves = [one.half[["alpha_half", "standard_error"]].drop_vars("by", errors="ignore")
              for one in studies.values()]  # fmt: skip
    found = xr.concat(halves, dim="sweep", join="outer").assign_coords(sweep=list(studies))
    first = found.isel(sweep=0, drop=True)
    error = (found["standard_error"] ** 2 + first["standard_error"] ** 2) ** 0.5
    difference = found["alpha_half"] - first["alpha_half"]
    others = xr.DataArray(np.arange(len(studies)) > 0, dims="sweep")
    return found.assign(difference=difference.where(others), difference_error=error.where(others))


def describe(compared: xr.Dataset) -> str:
    """Write a table of what `compare` returned."""
    names = [str(name) for name in compared["sweep"].values]
    lines = [f"alpha_half, and in brackets its difference to that of {names[0]}:"]
    for N in compared["N"].values:
        told = []
        for name in names:
            at = compared.sel(sweep=name, N=N)
            if np.isnan(at["alpha_half"]):
                told.append(f"{name} -")
                continue
            text = f"{name} {float(at['alpha_half']):.3f}±{float(at['standard_error']):.3f}"
            if not np.isnan(at["difference"]):
                off, error = float(at["difference"]), float(at["difference_error"])
                text += f" ({off:+.3f}±{error:.3f})"
            told.append(text)
        lines.append(f"  N = {N}: {', '.join(told)}")
    return "\n".join(lines)


@STYLE
def comparison(studies: Mapping[str, Study]) -> Figure:
    """P(recovery) against alpha of several sweeps, a panel for each N that all of them have.

    Parameters
    ----------
    studies
        As of `compare`.

    Returns
    -------
    Figure
        Up to four panels, the largest N. Bars are 95 % intervals, lines the binomial fits.
    """
    figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
    if without := [name for name, one in studies.items() if not one.has_signal]:
        return empty(figure, figure.subplots(1, 1, squeeze=False)[0], without[0], NO_SIGNAL)
    shared = set.intersection(*({int(N) for N in one.ds["N"].values} for one in studies.values()))
    if not shared:
        text = "the sweeps have no N in common"
        return empty(figure, figure.subplots(1, 1, squeeze=False)[0], text)
    sizes = sorted(shared)[-4:]
    columns = min(2, len(sizes))
    figure.set_size_inches(COLUMN * columns, 2.5 * -(-len(sizes) // columns))
    axes = figure.subplots(
        -(-len(sizes) // columns), columns, sharex=True, sharey=True, squeeze=False
    ).ravel()
    for axis in axes[len(sizes) :]:
        axis.set_axis_off()
    for axis, N in zip(axes, sizes, strict=False):
        looks = zip(studies.values(), colors(len(studies)), markers(len(studies)), strict=True)
        for k, (study, color, marker) in enumerate(looks):
            line = study.probability.sel(N=N)
            line = line.isel(alpha=(line["runs"] > 0).values)
            if not line.sizes["alpha"]:
                continue
            alpha, value = line["alpha"].values, line["probability"].values
            ends = [value - line["lower"].values, line["upper"].values - value]
            axis.errorbar(
                alpha,
                value,
                yerr=np.maximum(ends, 0),
                color=color,
                marker=marker,
                elinewidth=0.7,
                linestyle="none",
            )
            grid = np.linspace(alpha.min(), alpha.max(), 200)
            curve = fitted_probability(study.half.sel(N=[N]), grid)[0]
            axis.plot(grid, curve, color=color, linestyle=_LINES[k % len(_LINES)])
        axis.axhline(0.5, color=GREY, linewidth=0.6, linestyle=":")
        axis.annotate(rf"$N = {N}$", (0.97, 0.07), xycoords="axes fraction", ha="right")
        axis.set_ylim(-0.04, 1.04)
    for axis in axes[max(0, len(sizes) - columns) : len(sizes)]:
        axis.set_xlabel(r"signal-to-noise ratio $\alpha = M/N$")
        axis.xaxis.set_tick_params(labelbottom=True)
    for axis in axes[::columns]:
        axis.set_ylabel(rf"$P({recovery_by(next(iter(studies.values())).time)})$")
    handles = [
        axes[0].plot([], [], color=color, marker=marker, linestyle=_LINES[k % len(_LINES)])[0]
        for k, (color, marker) in enumerate(
            zip(colors(len(studies)), markers(len(studies)), strict=True)
        )
    ]
    figure.legend(
        handles, list(studies), loc="outside upper center", ncols=min(4, len(studies)), **TIGHT
    )
    return figure
