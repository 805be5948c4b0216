"""How the figures look, and the parts that several are made of."""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from numpy.typing import NDArray

#: Widths of one and of two columns of a physics journal, in inches.
COLUMN, PAGE = 3.4, 7.0

#: Needed while a figure is made and while it is written, whatever the user's matplotlibrc says:
#: the labels are for Matplotlib's own mathematics, without LaTeX.
NEEDED: dict[Any, Any] = {
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

STYLE = mpl.rc_context(
    NEEDED
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
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.45"
_MARKERS = "osD^vPX<>*"
_LAW_COLORS, _LAW_STYLES = (BLUE, GREEN, "#CC79A7", "#56B4E9"), ("-", "--", ":", "-.")
# Each four laws begin with another style: sixteen look different, and the first four in print, too.
LAW_LOOKS = [
    (color, _LAW_STYLES[(first + k) % 4])
    for first in range(4)
    for k, color in enumerate(_LAW_COLORS)
]


TIGHT: dict[str, Any] = {"columnspacing": 1.0, "handletextpad": 0.5, "borderpad": 0.1}


def columns(entries: int) -> int:
    """Of a legend over one column of text: as few rows as fit, as full as can be."""
    rows = -(-entries // 4)
    return -(-entries // rows)


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
        with mpl.rc_context(NEEDED):
            figure.savefig(drawn, format=name, **FORMATS[name])
        paths.append(Path(f"{path_without_suffix}.{name}"))
        paths[-1].write_bytes(drawn.getbuffer())
    return tuple(paths)


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Make panels that share their horizontal axis, column by column."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
    return figure, list(axes.T.ravel())


def empty(figure: Figure, axes: Sequence[Axes], *lines: str) -> Figure:
    """Say in an empty figure why there is nothing to see."""
    for axis in axes:
        axis.set_axis_off()
    width = round(figure.get_figwidth() * 14)
    text = "\n".join(fill(line, width) for line in ("Nothing to draw:", *lines))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    figure.set_label(text)
    return figure


def why_empty(figure: Figure) -> str:
    """What `empty` said of a figure; "" of one that shows something."""
    return str(figure.get_label())


def notes(half: xr.Dataset) -> list[str]:
    """Why each N has no alpha_half."""
    notes = zip(half["N"].values, half["note"].values, strict=True)
    return [f"N = {N}: {note}" for N, note in notes]


def colors(count: int) -> list[Any]:
    """Colours in the order of N, dark to light, in any colour vision and in print."""
    return list(mpl.colormaps["viridis"](np.linspace(0, 0.85, count)))


def markers(count: int) -> list[str]:
    """Markers in the order of N."""
    return [_MARKERS[k % len(_MARKERS)] for k in range(count)]


def sideways(alpha: NDArray[np.floating[Any]], count: int) -> NDArray[np.floating[Any]]:
    """Distances in alpha by which `count` points at one alpha are moved apart."""
    if count < 2 or alpha.size < 2:
        return np.zeros(count)
    step = min(0.012 * np.ptp(alpha), 0.6 * np.diff(np.sort(alpha)).min() / count)
    shifts: NDArray[np.floating[Any]] = step * (np.arange(count) - (count - 1) / 2)
    return shifts


def recovery_by(time: float) -> str:
    """Write by when runs have to have recovered, in Matplotlib's mathematics."""
    if math.isinf(time):
        return r"\mathrm{recovery\ in\ the\ end}"
    return rf"\mathrm{{recovery\ by}}\ t = {time:g}"


def is_near(threshold: float, low: float, high: float) -> bool:
    """Whether an axis from low to high can be widened to the threshold and leave the data room."""
    return low - 0.4 * (high - low) < threshold < high + 0.4 * (high - low)


def widened(low: float, high: float, threshold: float) -> tuple[float, float]:
    """Limits of an axis that keep a line at the threshold off its ends."""
    margin = 0.05 * (high - low)
    return min(low, threshold - margin), max(high, threshold + margin)


def tick_at(axis: Axes, N: NDArray[np.integer[Any]]) -> None:
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


def apart(time: NDArray[np.floating[Any]], values: Any) -> tuple[Any, Any]:
    """Time and values with a gap after t = 0, which a logarithmic axis shows beside it."""
    if len(time) < 2 or time[0] > 0:
        return time, values
    return np.insert(time, 1, time[1] / 2), np.insert(np.asarray(values, dtype=float), 1, np.nan)


def time_axis(axis: Axes, time: NDArray[np.floating[Any]]) -> None:
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
