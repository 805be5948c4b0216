"""Figures that a paper could print, one function each; `FIGURES` names them.

Every function takes a `Study` and returns a `matplotlib.figure.Figure` that belongs to no window
and no global state. A figure without the data that it needs says so in an otherwise empty axis.
"""

import io
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from scipy import stats
from uncertainties import ufloat

from alphasweep.analysis.recovery import NO_SIGNAL, fitted_probability, is_done
from alphasweep.analysis.scaling import LAWS, evaluate
from alphasweep.analysis.study import Study
from alphasweep.analysis.times import shown

#: Widths of one and of two columns of a physics journal, in inches.
COLUMN, PAGE = 3.4, 7.0

#: The large-N spectrum assumes a small overlap; beyond this it is not drawn.
SMALL_OVERLAP = 0.3

#: Needed while a figure is made and while it is written, whatever the user's matplotlibrc says:
#: the labels are for Matplotlib's own mathematics, without LaTeX.
_NEEDED: dict[Any, Any] = {
    "text.usetex": False,
    "text.parse_math": True,
    "pdf.fonttype": 42,
    "svg.hashsalt": "alphasweep",
}

#: How a figure can be written, with what keeps the date and the version out of the bytes.
FORMATS: dict[str, dict[str, Any]] = {
    "png": {"dpi": 300, "metadata": {"Software": None}},
    "pdf": {"metadata": {"CreationDate": None}},
    "svg": {"metadata": {"Date": None}},
}

_STYLE = mpl.rc_context(
    _NEEDED
    | {
        "font.family": "STIXGeneral",
        "mathtext.fontset": "stix",
        "font.size": 9,
        "axes.labelsize": 10,
        "legend.fontsize": 8.5,
        "legend.title_fontsize": 8.5,
        "legend.frameon": False,
        "legend.handlelength": 1.6,
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.1,
        "lines.markersize": 3.6,
        "xtick.direction": "in",
        "ytick.direction": "in",
        "xtick.top": True,
        "ytick.right": True,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
    }
)
# Okabe and Ito's colours, told apart with any colour vision. Orange is always the outlier: its
# eigenvalue, its end, its threshold.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "0.45"
_MARKERS = "osD^vPX<>*"
_LAW_COLORS, _LAW_STYLES = (_BLUE, _GREEN, "#CC79A7", "#56B4E9"), ("-", "--", ":", "-.")
# Each four laws begin with another style: sixteen look different, and the first four in print, too.
_LAW_LOOKS = [
    (color, _LAW_STYLES[(first + k) % 4])
    for first in range(4)
    for k, color in enumerate(_LAW_COLORS)
]


@_STYLE
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
    figure, [axis] = _panels(1, 1, COLUMN, 3.0)
    if not study.has_signal:
        return _empty(figure, [axis], NO_SIGNAL)
    counted = probability["runs"].sum("alpha")
    shown = [N for N in probability["N"].values if counted.sel(N=N) > 0]
    if not shown:
        return _empty(figure, [axis], "no cell of the sweep is done")

    shifts = _sideways(probability["alpha"].values, len(shown))
    looks = zip(shown, _colors(len(shown)), _cycle(len(shown)), shifts, strict=True)
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

    axis.axhline(0.5, color=_GREY, linewidth=0.6, linestyle=":")
    if study.threshold is not None:
        _mark_threshold(axis, study.threshold)
    axis.set_xlabel(r"signal-to-noise ratio $\alpha = M/N$")
    axis.set_ylabel(rf"$P({_recovery(study.time)})$")
    axis.set_ylim(-0.04, 1.04)
    title = f"bars: {100 * probability.attrs['confidence']:g} % intervals"
    figure.legend(loc="outside upper center", ncols=_columns(len(shown)), title=title, **_TIGHT)
    return figure


def _columns(entries: int) -> int:
    """Of a legend over one column of text: as few rows as fit, as full as can be."""
    rows = -(-entries // 4)
    return -(-entries // rows)


_TIGHT: dict[str, Any] = {"columnspacing": 1.0, "handletextpad": 0.5, "borderpad": 0.1}


@_STYLE
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
    figure, [axis] = _panels(1, 1, COLUMN, 3.1)
    half, laws = study.half, study.laws
    points = half.isel(N=half["alpha_half"].notnull().values)
    if not points.sizes["N"]:
        return _empty(figure, [axis], *_notes(half))

    N = points["N"].values
    grid = np.geomspace(N.min() / 1.4, N.max() * 4 * 1.1, 200)
    inside = (grid >= N.min()) & (grid <= N.max())
    confidence, seen = half.attrs["confidence"], [points["lower"].values, points["upper"].values]
    reach = stats.norm.ppf((1 + confidence) / 2)
    for law, (color, style) in zip(LAWS, cycle(_LAW_LOOKS), strict=False):
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
    elif _is_near(threshold, low, high):
        axis.axhline(threshold, color=_ORANGE, linestyle="-.", linewidth=0.9, label=text)
        axis.set_ylim(_widened(low, high, threshold))
    else:
        arrow, where = (r"$\downarrow$", "below") if threshold < low else (r"$\uparrow$", "above")
        text += f", {where}"
        axis.plot([], [], color=_ORANGE, linestyle="none", marker=arrow, markersize=7, label=text)
    axis.set_xscale("log")
    axis.set_xlim(grid[0], grid[-1])
    _tick_at(axis, np.concatenate([N, N.max() * np.array([2, 4])]))
    axis.set_xlabel(r"dimension $N$ (log scale)")
    axis.set_ylabel(rf"$\alpha_{{1/2}}$: $P({_recovery(study.time)}) = 1/2$")
    title = f"bars and bands: {100 * confidence:g} % intervals"
    figure.legend(loc="outside upper center", ncols=2, title=title, **_TIGHT)
    return figure


@_STYLE
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
    figure, [axis] = _panels(1, 1, COLUMN, 2.9)
    if not study.has_signal:
        return _empty(figure, [axis], NO_SIGNAL)
    halves = study.halves
    if halves[["least", "most"]].isnull().to_array().all():
        return _empty(figure, [axis], *_notes(study.half))
    sizes = halves["N"].values.astype(float)
    apart = np.exp(_sideways(np.log(sizes), len(study.times)))
    colors = [*_colors(len(study.times) - 1), "black"]
    looks = zip(study.laws_in_time, colors, _cycle(len(study.times)), apart, strict=True)
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
    _tick_at(axis, halves["N"].values)
    axis.set_xlabel(r"dimension $N$ (log scale)")
    axis.set_ylabel(r"$\alpha_{1/2}$: $P(\mathrm{recovery\ by}\ t) = 1/2$")
    title = f"bars: {100 * halves.attrs['confidence']:g} % intervals; lines: {LAWS['linear'].tex}"
    ncols = _columns(len(study.times))
    figure.legend(loc="outside upper center", ncols=ncols, title=title, **_TIGHT)
    return figure


@_STYLE
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
    figure, [axis] = _panels(1, 1, COLUMN, 2.9)
    if not study.has_signal:
        return _empty(figure, [axis], NO_SIGNAL)
    medians, growths = study.recovery_times, study.growth
    known = medians["median"].notnull()
    alphas = shown(growths) or list(medians["alpha"].values[known.any("N").values])[:1]
    if not alphas:
        return _empty(figure, [axis], "no run that is done recovered")
    sizes = medians["N"].values.astype(float)
    apart = np.exp(_sideways(np.log(sizes), len(alphas)))
    for alpha, color, marker, shift in zip(
        alphas, _colors(len(alphas)), _cycle(len(alphas)), apart, strict=True
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
    _tick_at(axis, medians["N"].values)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(r"dimension $N$ (log scale)")
    axis.set_ylabel(r"median time $t$ of recovery")
    title = f"bars: {100 * medians.attrs['confidence']:g} % intervals; lines: $c\\,N^z$"
    figure.legend(loc="outside upper center", ncols=2, title=title, **_TIGHT)
    return figure


@_STYLE
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
        The cell; what is None is chosen. A probed cell is preferred, then the largest N, a run
        that recovered, P(recovery) between 0.5 and 0.9, and an outlier that dies on the way.

    Returns
    -------
    Figure
        One page wide, of the cell's first start, the one that is probed. Theory is the large-N
        spectrum from the labels, drawn while abs(m) <= 0.3, where it holds; the last panel shows
        the same eigenvalues as distances from its edge. A dotted line marks the first recorded
        time without an outlier. The time axis is linear from 0 to the first recorded time after
        it, and logarithmic from there.

    Raises
    ------
    ValueError
        If `alpha`, `N` or `seed` is not a value of the sweep.
    """
    figure, axes = _panels(2, 2, PAGE, 4.3)
    ds, cell = study.ds, _choose_run(study, {"alpha": alpha, "N": N, "seed": seed})
    if cell is None:
        return _empty(figure, axes, "no cell that was asked for is done")
    run = ds.sel(cell).isel(start=0)
    names = [v for v in (*_SERIES, "lambda_min") if v in run]
    run = run[[*names, "recovered", "recovery_time"]].load()
    run = run.isel(time=run["overlap"].notnull().values)
    if not run.sizes["time"]:
        return _empty(figure, axes, "the run has no recorded time")

    time, overlap = run["time"].values, np.abs(run["overlap"].values)
    _draw_overlap(axes[0], time, overlap, cell["N"])
    axes[1].plot(time, run["energy"].values, color=_BLUE, marker=".", markersize=2.5)
    axes[1].set_ylabel(r"energy $E$")
    _draw_spectrum(axes, run.assign(small=("time", overlap <= SMALL_OVERLAP)))
    for axis in axes[1], axes[3]:
        _time_axis(axis, time)
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
        Of `FIGURES`; all of them if None.
    formats
        Of `FORMATS`.

    Returns
    -------
    dict of str
        Why a figure could not be drawn or written, by its name; empty if all were.
    """
    problems = {}
    for name in FIGURES if names is None else names:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save(FIGURES[name](study), folder / name, formats)
        except Exception as error:  # of a law, Matplotlib, its user's settings, fonts, a disk
            problems[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return problems


def save(
    figure: Figure, path_without_suffix: Path | str, formats: Iterable[str] = ("png", "pdf")
) -> tuple[Path, ...]:
    """Write a figure, the same bytes for the same figure; a PNG has 300 dots per inch.

    Parameters
    ----------
    figure
        Any figure of this module.
    path_without_suffix
        Where; a dot and the format are appended.
    formats
        Of `FORMATS`.

    Returns
    -------
    tuple of Path
        A file for each format, in their order.
    """
    paths = []
    for name in formats:
        # Drawn in memory: a disk that is full leaves one plain error and no half of a figure.
        drawn = io.BytesIO()
        with mpl.rc_context(_NEEDED):
            figure.savefig(drawn, format=name, **FORMATS[name])
        paths.append(Path(f"{path_without_suffix}.{name}"))
        paths[-1].write_bytes(drawn.getbuffer())
    return tuple(paths)


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Make panels that share their horizontal axis, column by column."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
    return figure, list(axes.T.ravel())


def _empty(figure: Figure, axes: Sequence[Axes], *lines: str) -> Figure:
    """Say in an empty figure why there is nothing to see."""
    for axis in axes:
        axis.set_axis_off()
    width = round(figure.get_figwidth() * 14)
    text = "\n".join(fill(line, width) for line in ("Nothing to draw:", *lines))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def _notes(half: xr.Dataset) -> list[str]:
    """Why each N has no alpha_half."""
    notes = zip(half["N"].values, half["note"].values, strict=True)
    return [f"N = {N}: {note}" for N, note in notes]


def _colors(count: int) -> list[Any]:
    """Colours in the order of N, dark to light, in any colour vision and in print."""
    return list(mpl.colormaps["viridis"](np.linspace(0, 0.85, count)))


def _cycle(count: int) -> list[str]:
    return [_MARKERS[k % len(_MARKERS)] for k in range(count)]


def _sideways(alpha: NDArray[np.floating[Any]], count: int) -> NDArray[np.floating[Any]]:
    """Distances in alpha by which `count` points at one alpha are moved apart."""
    if count < 2 or alpha.size < 2:
        return np.zeros(count)
    step = min(0.012 * np.ptp(alpha), 0.6 * np.diff(np.sort(alpha)).min() / count)
    shifts: NDArray[np.floating[Any]] = step * (np.arange(count) - (count - 1) / 2)
    return shifts


def _recovery(time: float) -> str:
    """Write by when runs have to have recovered, in Matplotlib's mathematics."""
    if math.isinf(time):
        return r"\mathrm{recovery\ in\ the\ end}"
    return rf"\mathrm{{recovery\ by}}\ t = {time:g}"


def _threshold_text(threshold: float) -> str:
    return rf"$\alpha_\mathrm{{BBP}}^\mathrm{{init}} = {threshold:.2f}$"


def _is_near(threshold: float, low: float, high: float) -> bool:
    """Whether an axis from low to high can be widened to the threshold and leave the data room."""
    return low - 0.4 * (high - low) < threshold < high + 0.4 * (high - low)


def _widened(low: float, high: float, threshold: float) -> tuple[float, float]:
    """Limits of an axis that keep a line at the threshold off its ends."""
    margin = 0.05 * (high - low)
    return min(low, threshold - margin), max(high, threshold + margin)


def _mark_threshold(axis: Axes, threshold: float) -> None:
    """Draw a threshold in alpha as a vertical line, or point to where it is."""
    low, high = axis.get_xlim()
    if _is_near(threshold, low, high):
        axis.axvline(threshold, color=_ORANGE, linewidth=0.9, linestyle="-.")
        axis.set_xlim(_widened(low, high, threshold))
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
        color=_ORANGE,
        ha=side,
    )


def _tick_at(axis: Axes, N: NDArray[np.integer[Any]]) -> None:
    """Put the ticks of a logarithmic axis at these N, and labels where they have room."""
    low, high = np.log(axis.get_xlim())
    labelled: list[int] = []
    for value in N.tolist():
        if not labelled or math.log(value / labelled[-1]) > 0.11 * (high - low):
            labelled.append(value)
    axis.xaxis.set_major_locator(FixedLocator(labelled))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axis.xaxis.set_minor_locator(FixedLocator(N.tolist()))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _choose_run(study: Study, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Pick the cell that tells the story best among those that agree with what was asked."""
    ds, probability = study.ds, study.probability["probability"]
    for name, value in asked.items():
        if value is not None and value not in ds[name].values:
            held = ", ".join(f"{v:g}" for v in ds[name].values)
            raise ValueError(f"{name} must be a value of the sweep, one of {held}; got {value}.")
    fixed = {name: [value] for name, value in asked.items() if value is not None}
    chosen = ds.sel(fixed)
    first = chosen.isel(start=0)
    small = abs(first["overlap"]) <= SMALL_OVERLAP
    alive = first["outlier"].notnull()
    merit = xr.Dataset(
        {
            "done": is_done(chosen),
            "probed": _is_probed(chosen),
            "large": chosen["N"],
            "recovered": first["recovered"] == 1,
            "typical": (
                probability.sel({k: v for k, v in fixed.items() if k != "seed"}) - 0.7
            ).pipe(np.abs)
            <= 0.2 + 1e-9,
            "dies": alive.isel(time=0, drop=True) & (small & ~alive).any("time"),
        }
    )
    table = merit.to_dataframe(dim_order=["alpha", "N", "seed"]).query("done")
    if table.empty:
        return None
    best = table.sort_values(list(merit.data_vars), ascending=False, kind="stable").index[0]
    return dict(zip(("alpha", "N", "seed"), best, strict=True))


def _is_probed(ds: xr.Dataset) -> xr.DataArray:
    if "lambda_min" not in ds:
        return xr.zeros_like(ds["status"], dtype=bool)
    probed: xr.DataArray = ds["lambda_min"].notnull().any(["time", "mode"])
    return probed


def _draw_overlap(
    axis: Axes, time: NDArray[np.floating[Any]], overlap: NDArray[np.floating[Any]], N: int
) -> None:
    """Draw abs(m), with the size that it has at a random start."""
    typical = 1 / math.sqrt(N)
    axis.plot(time, overlap, color=_BLUE, marker=".", markersize=2.5)
    axis.axhline(typical, color=_GREY, linewidth=0.6, linestyle=":")
    axis.annotate(
        r"$1/\sqrt{N}$",
        (1, typical),
        xycoords=("axes fraction", "data"),
        xytext=(-4, -3),
        textcoords="offset points",
        color=_GREY,
        ha="right",
        va="top",
    )
    axis.set_yscale("log")
    axis.set_ylim(min(overlap.min(), typical) / 2.5, 1.4)
    axis.set_ylabel(r"overlap $|m|$")


def _draw_spectrum(axes: Sequence[Axes], run: xr.Dataset) -> None:
    """Draw the lowest eigenvalues as markers over edge and outlier of the theory.

    The last panel but one shows them as they are, the last one as distances from the edge. The
    time at which the outlier is gone is marked in all panels.
    """
    time, small = run["time"].values, run["small"].values
    edge, outlier = (run[name].where(run["small"]) for name in ("bulk_edge", "outlier"))
    probes = run["lambda_min"].dropna("time", how="all") if "lambda_min" in run else None
    for axis, origin in zip(axes[-2:], (xr.zeros_like(edge), edge), strict=True):
        axis.plot(time, (edge - origin).values, color=_BLUE, label="bulk edge")
        axis.plot(time, (outlier - origin).values, color=_ORANGE, ls="--", label="outlier")
        if probes is None:
            continue
        for k, mode in enumerate(probes["mode"].values):
            axis.plot(
                probes["time"].values,
                (probes.sel(mode=mode) - origin).values,
                color=_GREY if k else "black",
                markerfacecolor="none" if k else "black",
                marker="o",
                markersize=4.5 if k else 2.5,
                linestyle="none",
                label=("lowest eigenvalue", "next lowest")[k] if k < 2 else None,
            )
    gone = np.flatnonzero(np.isnan(outlier.values) & small)
    if gone.size and not np.isnan(outlier.values[0]):
        for axis in axes:
            axis.axvline(time[gone[0]], color=_ORANGE, linewidth=0.7, linestyle=":")
        axes[-2].annotate(
            "outlier gone",
            (time[gone[0]], 0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 4),
            textcoords="offset points",
            color=_ORANGE,
        )
    axes[-2].axhline(0, color=_GREY, linewidth=0.6, linestyle=":")
    for axis in axes[-2:]:
        axis.margins(y=0.1)
    axes[-2].set_ylabel(r"eigenvalue $\lambda$")
    axes[-1].set_ylabel(r"$\lambda$ minus bulk edge")


def _time_axis(axis: Axes, time: NDArray[np.floating[Any]]) -> None:
    """Show t = 0 on a logarithmic axis: linear up to the first time after it."""
    positive = time[time > 0]
    if positive.size:
        first, last = positive[0], positive[-1]
        axis.set_xscale("symlog", linthresh=first, linscale=0.4)
        axis.set_xlim(-0.3 * first, last * 1.15)
        decades = 10.0 ** np.arange(math.floor(math.log10(first)), math.log10(last) + 1)
        axis.xaxis.set_major_locator(FixedLocator([0.0, *decades[decades >= first]]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        between = np.outer(decades, np.arange(2, 10)).ravel()
        axis.xaxis.set_minor_locator(FixedLocator(between[between >= first].tolist()))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(r"physical time $t$")


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
