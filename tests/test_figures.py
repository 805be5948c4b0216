"""Claims about the figures: they show the numbers, they survive any data, nothing is clipped."""

import functools
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from scipy import stats
from scipy.special import expit

from alphasweep.analysis import figures, recovery, scaling, style, times
from alphasweep.analysis.recovery import alpha_half, recovery_probability
from alphasweep.analysis.scaling import LAWS, Law, describe, evaluate
from alphasweep.analysis.study import Study
from alphasweep.analysis.thresholds import alpha_bbp_init
from alphasweep.kernels.loss import IntensityLoss
from alphasweep.kernels.rates import stable_rate

MISSING, DONE, FAILED = 0, 1, 2
ALPHA = np.array([2.0, 2.5, 3.0, 3.5, 4.0, 5.0])
TIME = np.array([0, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60])
PROBED = TIME[::2]
CELL = ("alpha", "N", "seed")
RUN = (*CELL, "start", "time")
DESCENT = {"learning_rate": 0.03, "t_max": 60.0, "signal": "planted"}


def sweep(
    N: Any = (64, 128, 256), seeds: int = 6, starts: int = 8, a: float = 1.0, growth: float = 0.3
) -> xr.Dataset:
    """Make a sweep by hand: P rises through 1/2 at 2.2 + 0.2 log N, the overlap grows to 1.

    The outlier dies at t = 3, and the overlap passes 0.3 at t = 30.
    """
    rng = np.random.default_rng(20)
    N = np.asarray(N)
    shape = (ALPHA.size, N.size, seeds, starts)
    p = expit(9 * (np.log(ALPHA)[:, None] - np.log(2.2 + growth * np.log(N / 64))))
    recovered = rng.random(shape) < p[:, :, None, None]
    over_time = np.ones((*shape, TIME.size))
    edge = -6 * np.exp(-TIME) - 0.5
    flags = {"flag_values": [0, 1, 2], "flag_meanings": "missing done failed"}
    probes = np.where(np.isin(TIME, PROBED)[:, None], edge[:, None] + [-0.2, 0.1], np.nan)
    ds = xr.Dataset(
        {
            "status": (CELL, np.full(shape[:3], DONE, np.int8), flags),
            "recovered": (RUN[:-1], recovered.astype(np.float32)),
            "recovery_time": (RUN[:-1], np.where(recovered, 30.0, np.nan)),
            "overlap": (RUN, -over_time * 0.1 * (1 + TIME / 10)),
            "energy": (RUN, over_time * np.exp(-TIME)),
            "bulk_edge": (RUN, over_time * edge),
            "outlier": (RUN, over_time * np.where(TIME < 3, edge - 0.1, np.nan)),
            "lambda_min": ((*CELL, "time", "mode"), np.ones((*shape[:3], 1, 1)) * probes),
            "signal_overlap": (
                (*CELL, "time", "mode"),
                np.where(np.isnan(probes), np.nan, np.ones((*shape[:3], 1, 1)) * [0.36, 0.04]),
            ),
        },
        coords={"alpha": ALPHA, "N": N, "seed": np.arange(seeds), "time": TIME, "mode": [0, 1]},
        attrs={"sweep": {"root_seed": 0, "descent": {**DESCENT, "a": a}}},
    )
    for name in ("alpha", "N"):
        ds[name].attrs = {"long_name": name, "units": "1"}
    return ds


def with_status(ds: xr.Dataset, status: int) -> xr.Dataset:
    """Give all cells a status, and the fill values of one that is not done."""
    values = ds.drop_vars("status") * np.nan
    return values.assign(status=ds["status"].copy(data=np.full(ds["status"].shape, status)))


def diverged() -> xr.Dataset:
    """No run got further than its first recorded time."""
    ds = sweep()
    series = [name for name in ds if "time" in ds[name].dims]
    return ds.assign(recovered=ds["recovered"] * 0, **(ds[series].where(ds["time"] == 0)))


def half_done() -> xr.Dataset:
    """Take cells away, as in a sweep that still runs: the largest N, and some elsewhere."""
    ds = sweep()
    status = ds["status"].copy()
    status[:, -1], status[::2, 0], status[1, :, 2:] = MISSING, FAILED, MISSING
    return ds.where(status == DONE).assign(status=status)


def null_model() -> xr.Dataset:
    """Nothing is recovered, and the labels know of no outlier."""
    ds = sweep()
    ds = ds.assign(recovered=ds["recovered"] * 0, outlier=ds["outlier"] * np.nan)
    ds.attrs["sweep"]["descent"]["signal"] = "null"
    return ds


OUTCOMES = {
    "flag_values": [0, 1, 2, 3, 4],
    "flag_meanings": "missing recovered trapped undecided diverged",
}


def cut(share: float) -> xr.Dataset:
    """Leave a share of what did not recover undecided; recovery takes t ~ N / 6, at most 60."""
    ds = sweep(N=[64, 128, 256, 512])
    rng, recovered = np.random.default_rng(1), ds["recovered"] == 1
    lost = ~recovered & (rng.random(recovered.shape) < share)
    time = recovered.copy(data=rng.gamma(2.0, 0.08, recovered.shape)) * ds["N"]
    outcome = xr.where(recovered, 1, xr.where(lost, 3, 2)).assign_attrs(OUTCOMES)
    return ds.assign(outcome=outcome, recovery_time=time.clip(max=60.0).where(recovered))


DATA = {
    "whole": sweep(),
    "lazy": sweep().chunk(alpha=1, N=1),
    "nothing done": with_status(sweep(), MISSING),
    "all failed": with_status(sweep(), FAILED),
    "half done": half_done(),
    "one N": sweep(N=[64]),
    "two N": sweep(N=[64, 128]),
    "one alpha": sweep().isel(alpha=[1]),
    "one matrix": sweep(seeds=1),
    "one run": sweep(N=[64], seeds=1, starts=1).isel(alpha=[2]),
    "no probe": sweep().drop_dims("mode"),
    "one mode": sweep().isel(mode=[0]),
    "some N without alpha_half": sweep(growth=6.0),
    "no N with alpha_half": sweep().assign(recovered=lambda d: d["recovered"] * 0),
    "diverged at once": diverged(),
    "too steep": sweep().assign(recovered=lambda d: 1.0 * (d["alpha"] > 3) + 0 * d["recovered"]),
    "nothing recorded": sweep().assign(overlap=lambda d: d["overlap"] * np.nan),
    "only t = 0": sweep().isel(time=[0]),
    "null model": null_model(),
    "paper": sweep(N=64 * 2 ** np.arange(7)),
    "crowded N": sweep(N=[64, 70, 128, 130, 1000, 1024]),
    "far threshold": sweep(a=30.0),
    "threshold among the data": sweep(a=0.01),
    "some undecided": cut(0.3),
    "all undecided": cut(1.0),
    "decided in time": cut(0.0),
}


@functools.cache
def drawn(name: str) -> dict[str, Figure]:
    """Draw all figures of one of the sweeps, once."""
    return draw(DATA[name])


def draw(ds: xr.Dataset) -> dict[str, Figure]:
    """Draw all figures, as a command would."""
    study = Study(ds)
    return {name: make(study) for name, make in figures.FIGURES.items()}


def texts(figure: Figure) -> list[Text]:
    """Collect all texts that are seen, after drawing."""
    FigureCanvasAgg(figure).draw()
    found: list[Text] = list(figure.texts)
    for legend in figure.legends:
        found += [*legend.get_texts(), legend.get_title()]
    for axis in figure.axes:
        if axis.axison:
            found += [*axis.texts, axis.title, axis.xaxis.label, axis.yaxis.label]
            for scale in axis.xaxis, axis.yaxis:
                low, high = sorted(scale.get_view_interval())
                for tick in *scale.get_major_ticks(), *scale.get_minor_ticks():
                    found += [tick.label1] if low <= tick.get_loc() <= high else []
    return [t for t in found if t.get_visible() and t.get_text().strip()]


def with_something_to_show(ds: xr.Dataset) -> set[str]:
    """Names of the figures that are written of a sweep: those that are not empty, or raise."""
    study, found = Study(ds), set[str]()
    for name, make in figures.FIGURES.items():
        with suppress(LookupError):
            found |= set() if style.why_empty(make(study)) else {name}
    return found


def words(figure: Figure) -> str:
    """All that can be read in a figure."""
    return " ".join(" ".join(t.get_text() for t in texts(figure)).split())


def line(axis: Axes, label: str) -> Line2D:
    """Find the one line of an axis that the legend calls so."""
    [found] = [item for item in axis.lines if item.get_label() == label]
    return found


def verticals(axis: Axes) -> list[float]:
    """Where vertical lines cross an axis."""
    return [float(item.get_xdata()[0]) for item in axis.lines if list(item.get_ydata()) == [0, 1]]


# any data


@pytest.mark.parametrize("name", DATA)
def test_every_figure_can_be_drawn_with_no_text_clipped_or_covered(name: str) -> None:
    """Whatever is done, failed or missing: no exception, no warning, and every text is legible.

    All texts lie inside the figure, and no two of them overlap. (Boxes include the fonts' line
    spacing, so letters touch later than boxes do: a pixel at 100 dots per inch is left to them.)
    """
    for figure in drawn(name).values():
        seen = texts(figure)
        boxes = [text.get_window_extent() for text in seen]
        for k, box in enumerate(boxes):
            assert figure.bbox.padded(1).containsx(box.x0), seen[k]
            assert figure.bbox.padded(1).containsx(box.x1), seen[k]
            assert figure.bbox.padded(1).containsy(box.y0), seen[k]
            assert figure.bbox.padded(1).containsy(box.y1), seen[k]
            for other in range(k):
                assert not box.padded(-1).overlaps(boxes[other].padded(-1)), (seen[k], seen[other])


@pytest.mark.parametrize("name", ["whole", "nothing done", "no probe"])
def test_every_figure_can_be_saved(name: str, tmp_path: Path) -> None:
    """A figure becomes a PNG and a PDF, with no warning of a font or a glyph."""
    for what, figure in drawn(name).items():
        png, pdf = style.save(figure, tmp_path / what)
        assert png.read_bytes().startswith(b"\x89PNG")
        assert pdf.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", ["nothing done", "all failed"])
def test_an_empty_figure_says_why(name: str) -> None:
    """Without a done cell each figure says so, instead of showing empty axes."""
    for figure in drawn(name).values():
        assert "Nothing to draw: " in words(figure)
        assert "done" in words(figure)


def test_the_figure_of_alpha_half_says_why_it_is_empty() -> None:
    """If no N has an alpha_half, its note stands where the points would be."""
    said = words(drawn("no N with alpha_half")["alpha_half"])
    assert "N = 256: no run recovered up to alpha = 5: add larger alphas" in said


def test_lazy_data_gives_the_same_figures(tmp_path: Path) -> None:
    """Data that dask still has to load make the same pictures, byte for byte."""
    whole, lazy = draw(DATA["whole"]), draw(DATA["lazy"])
    for name in whole:
        for one, other in zip(
            style.save(whole[name], tmp_path / "whole", style.FORMATS),
            style.save(lazy[name], tmp_path / "lazy", style.FORMATS),
            strict=True,
        ):
            assert one.read_bytes() == other.read_bytes()


def test_saving_keeps_the_path_and_any_dot_in_it(tmp_path: Path) -> None:
    """The suffix is appended: a dot in the name is no suffix."""
    paths = style.save(draw(sweep())["recovery"], tmp_path / "alpha_3.5")
    assert [path.name for path in paths] == ["alpha_3.5.png", "alpha_3.5.pdf"]


# P(recovery)


def test_recovery_curves_show_the_shares_and_their_intervals() -> None:
    """Points are P, bars its interval, each N once, moved sideways by less than half a step."""
    ds = sweep()
    probability = recovery_probability(ds)
    [axis] = draw(ds)["recovery"].axes
    bars = [c for c in axis.containers if isinstance(c, ErrorbarContainer)]
    assert [c.get_label() for c in bars] == ["$N = 64$", "$N = 128$", "$N = 256$"]
    for N, container in zip(ds["N"].values, bars, strict=True):
        points, _, [segments] = container.lines
        p = probability.sel(N=N)
        np.testing.assert_allclose(points.get_ydata(), p["probability"])
        ends = np.array([segment[:, 1] for segment in segments.get_segments()])
        np.testing.assert_allclose(ends, np.column_stack([p["lower"], p["upper"]]), atol=1e-12)
        assert np.abs(points.get_xdata() - ds["alpha"].values).max() < 0.25
    assert verticals(axis) == [alpha_bbp_init(1.0)]


# alpha_half


def test_alpha_half_is_shown_with_its_errors_and_laws() -> None:
    """Points, bars and curves are those of the datasets; the laws go on beyond them."""
    study = Study(sweep())
    half, laws = study.half, study.laws
    [axis] = figures.alpha_half_against_log_N(study).axes
    [container] = [c for c in axis.containers if isinstance(c, ErrorbarContainer)]
    points, _, [bars] = container.lines
    np.testing.assert_allclose(
        points.get_xydata(), np.column_stack([half["N"], half["alpha_half"]])
    )
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, np.column_stack([half["lower"], half["upper"]]))
    assert r"recovery\ in\ the\ end" in axis.get_ylabel()
    curves = [c for c in axis.lines if len(c.get_xdata()) == 200]
    bands = [c for c in axis.collections if isinstance(c, FillBetweenPolyCollection)]
    fitted = [law for law in LAWS if not laws["note"].sel(law=law).item()]
    assert len(fitted) >= 3
    for law, curve, band in zip(fitted, curves, bands, strict=True):
        N, value = curve.get_data()
        [path] = band.get_paths()
        top = value + stats.norm.ppf(0.975) * evaluate(laws, law, N)["standard_error"]
        assert np.isin(top.values, path.vertices[:, 1]).all()
        np.testing.assert_allclose(value, evaluate(laws, law, N)["alpha_half"])
        assert N.max() >= 4 * 256


def test_by_when_runs_have_to_recover_is_chosen_by_the_data() -> None:
    """In the end if hardly a run is undecided, else by t_max; or as asked; it is said."""
    ds = sweep()
    outcome = xr.where(ds["recovered"] == 1, 1, 2)
    some = xr.where((ds["recovered"] == 0) & (ds["seed"] == 0), 3, outcome)
    few = outcome.copy()
    few[0, 0, 0, 0] = 3
    for ended, asked, time in (
        (outcome, None, np.inf),
        (few, None, np.inf),
        (some, None, 60.0),
        (some, "end", np.inf),
        (outcome, 45, 45.0),
    ):
        study = Study(ds.assign(outcome=ended.assign_attrs(OUTCOMES)), asked)
        assert study.time == study.half["by"] == study.probability["by"] == time
        label = r"in\ the\ end" if np.isinf(time) else f"by}}\\ t = {time:g}"
        for name in ("recovery", "alpha_half"):
            assert label in figures.FIGURES[name](study).axes[0].get_ylabel()
        said = study.describe()
        assert (
            f"alpha_half {'in the end' if np.isinf(time) else f'by t = {time:g}'} at 3 values"
            in said
        )
    assert study.times == [45.0, np.inf]
    early = ds.assign(recovery_time=ds["recovery_time"] * np.where(ds["start"] < 2, 5, 1))
    assert Study(early).times == [30.0, np.inf]
    assert Study(early.assign(outcome=some.assign_attrs(OUTCOMES))).times == [30.0, 60.0, np.inf]


def test_more_than_a_hundredth_that_diverged_is_told_with_the_rate_that_would_do() -> None:
    """The rate is 2 / lambda_max, rounded down, where the start is known; else only that it is."""
    ds = sweep()
    outcome = xr.where(ds["recovered"] == 1, 1, 2)
    for share, told in ((0, False), (2, False), (3, True)):  # 0, 6, 9 of 864 runs
        lost = (ds["start"] < share) & (ds["N"] == 128) & (ds["seed"] == 0) & (ds["alpha"] < 3.2)
        study = Study(ds.assign(outcome=outcome.where(~lost, 4).assign_attrs(OUTCOMES)))
        assert bool(study.unstable) == told
        assert not study.is_void
    rate = min(0.03, stable_rate(IntensityLoss(1.0), 2.0, 128))
    said = re.search(
        r"learning_rate = 0.03 is too large: ([\d.e-]+) would do, .* N = 128, alpha", study.unstable
    )
    assert said is not None
    assert rate / 4 < float(said[1]) <= rate / 2
    other = ds.assign_attrs(sweep={"descent": DESCENT | {"a": 1.0, "start": "elsewhere"}})
    whole = Study(other.assign(outcome=(0 * outcome + 4).assign_attrs(OUTCOMES)))
    assert whole.unstable.endswith("learning_rate = 0.03 is too large: lower it.")
    assert whole.is_void


def test_an_N_without_alpha_half_is_left_out() -> None:
    """Only the N whose alpha_half is known have a point."""
    ds = DATA["some N without alpha_half"]
    known = alpha_half(ds)["alpha_half"].dropna("N")
    assert 0 < known.sizes["N"] < ds.sizes["N"]
    [axis] = draw(ds)["alpha_half"].axes
    [container] = [c for c in axis.containers if isinstance(c, ErrorbarContainer)]
    np.testing.assert_allclose(container.lines[0].get_ydata(), known)


@pytest.mark.parametrize(
    ("a", "across", "up"),
    [
        (0.01, "", ""),
        (0.1, "", ""),
        (0.2, "", ""),
        (1.0, "", r"\downarrow"),
        (30.0, r"\rightarrow", r"\uparrow"),
    ],
)
def test_the_threshold_is_a_line_or_an_arrow_to_it(a: float, across: str, up: str) -> None:
    """A threshold near the data is a line; a far one leaves them room and says where it is."""
    drawing, threshold = draw(sweep(a=a, growth=0.1)), alpha_bbp_init(a)
    for name in ("recovery", "alpha_half"):
        assert f"= {threshold:.2f}$" in words(drawing[name])
    [axis] = drawing["recovery"].axes
    assert verticals(axis) == ([] if across else [threshold])
    assert across in words(drawing["recovery"])
    [axis] = drawing["alpha_half"].axes
    levels = [item.get_ydata()[0] for item in axis.lines if list(item.get_xdata()) == [0, 1]]
    assert levels == ([] if up else [threshold])
    for level in levels:
        low, high = axis.get_ylim()
        assert 0.03 < (level - low) / (high - low) < 0.97
    assert [m for m in (item.get_marker() for item in axis.lines) if "arrow" in str(m)] == (
        [f"${up}$"] if up else []
    )


# time


def bars(axis: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Points (n, 2) and ends of bars (n, 2) by the words of the legend."""
    found = {}
    for container in axis.containers:
        if isinstance(container, ErrorbarContainer) and not container.get_label().startswith("_"):
            points, _, [segments] = container.lines
            ends = np.array([segment[:, 1] for segment in segments.get_segments()])
            found[container.get_label()] = (np.asarray(points.get_xydata()), ends)
    return found


@pytest.mark.parametrize("name", ["decided in time", "some undecided"])
def test_alpha_half_is_shown_by_each_time_and_in_the_end(name: str) -> None:
    """Each with its interval and its law; undecided runs widen what is shown for the end alone."""
    study = Study(DATA[name])
    by = [30.0, np.inf] if name == "decided in time" else [30.0, 60.0, np.inf]
    assert study.times == by
    [axis] = figures.alpha_half_in_time(study).axes
    found = bars(axis)
    assert list(found) == [f"$t = {time:g}$" for time in by[:-1]] + ["in the end"]
    for time, (points, ends) in zip(by, found.values(), strict=True):
        half = study.halves.sel(by=time).dropna("N", subset=["alpha_half"])
        np.testing.assert_allclose(points[:, 1], half["alpha_half"])
        np.testing.assert_allclose(points[:, 0], half["N"], rtol=0.1)
        np.testing.assert_allclose(ends, np.column_stack([half["lower"], half["upper"]]))
        law = evaluate(study.laws_in_time[by.index(time)], "linear", study.ds["N"])
        assert any(
            np.allclose(law["alpha_half"], c.get_ydata())
            for c in axis.lines
            if len(c.get_ydata()) == 4
        )


def test_a_bound_of_alpha_half_is_an_arrow() -> None:
    """Where all undecided runs could recover, alpha_half has an upper bound alone."""
    study = Study(DATA["all undecided"])
    end = study.halves.sel(by=np.inf)
    assert end["alpha_half"].isnull().all()
    assert end["most"].notnull().all()
    [axis] = figures.alpha_half_in_time(study).axes
    down = [c for c in axis.containers if isinstance(c, ErrorbarContainer) and c.has_yerr]
    tops = np.concatenate([s[:, 1] for c in down for s in c.lines[2][0].get_segments()])
    assert np.isin(end["most"], tops).all()


def test_recovery_times_are_shown_with_the_power_laws_that_fit() -> None:
    """Points and bars are the medians, lines c N^z; z is written with its error."""
    study = Study(DATA["decided in time"])
    [axis] = figures.recovery_time_against_N(study).axes
    found, alphas = bars(axis), times.shown(study.growth)
    assert 1 < len(alphas) <= 4
    for alpha, (label, (points, ends)) in zip(alphas, found.items(), strict=True):
        medians = study.recovery_times.sel(alpha=alpha)
        np.testing.assert_allclose(points[:, 1], medians["median"])
        np.testing.assert_allclose(ends, np.column_stack([medians["lower"], medians["upper"]]))
        z = study.growth.sel(alpha=alpha, parameter="B")
        value, error = z["value"].item(), z["error"].item()
        digits = 1 - round(np.floor(np.log10(error)) + 1)
        assert label == (rf"$\alpha = {alpha:g}$: $z = {value:.{digits}f} \pm {error:.{digits}f}$")
    assert "The median time of the runs that recover grows as N^z: z = " in study.describe()


# one run


def test_the_story_shows_the_run_and_its_theory() -> None:
    """Overlap without sign, energy, eigenvalues; theory only where the overlap is small."""
    ds = sweep()
    overlap, spectrum, energy, gap = figures.one_run(Study(ds), alpha=3.0, N=256, seed=2).axes
    run = ds.sel(alpha=3.0, N=256, seed=2).isel(start=0)
    without_gap = [*range(1), *range(2, TIME.size + 1)]

    def values(shown: Line2D) -> np.ndarray:
        """What a line shows; t = 0 is not joined to what is on the logarithmic axis."""
        found = np.asarray(shown.get_ydata())
        assert np.isnan(found[1])
        return found[without_gap]

    np.testing.assert_allclose(values(overlap.lines[0]), -run["overlap"])
    np.testing.assert_allclose(values(energy.lines[0]), run["energy"])
    assert any(np.array_equal(np.unique(item.get_ydata()), [0.6]) for item in overlap.lines)
    small = TIME < 30
    edge = values(line(spectrum, "bulk edge"))
    np.testing.assert_allclose(edge[small], run["bulk_edge"][small])
    assert np.isnan(edge[~small]).all()
    alive = TIME < 3
    np.testing.assert_allclose(values(line(spectrum, "outlier"))[alive], run["outlier"][alive])
    np.testing.assert_allclose(values(line(gap, "outlier"))[alive], -0.1)
    for k, label in enumerate(("lowest eigenvalue", "next lowest")):
        probes = run["lambda_min"].sel(time=PROBED, mode=k)
        np.testing.assert_allclose(
            line(spectrum, label).get_xydata(), np.column_stack([PROBED, probes])
        )
        distance = line(gap, label).get_ydata()[PROBED < 30]
        np.testing.assert_allclose(distance, (-0.2, 0.1)[k])


def test_the_end_of_the_outlier_is_marked_in_every_panel() -> None:
    """The mark is at the first recorded time without an outlier; without a death there is none."""
    story = figures.one_run(Study(sweep()))
    assert [verticals(axis) for axis in story.axes] == [[3.0]] * 4
    assert "outlier gone" in words(story)
    for never in (null_model(), sweep().assign(outlier=lambda d: d["bulk_edge"] - 0.1)):
        story = figures.one_run(Study(never))
        assert [verticals(axis) for axis in story.axes] == [[]] * 4
        assert "outlier gone" not in words(story)


def test_the_story_chosen_is_a_recovery_at_the_largest_probed_N() -> None:
    """A probed cell is preferred, then the largest N, a run that recovered, a P from 0.5 to 0.9."""
    ds = sweep()
    ds["lambda_min"][:, -1] = np.nan
    title = words(figures.one_run(Study(ds)))
    assert "$N = 128$" in title
    assert ": recovered at" in title
    [alpha] = [value for value in ALPHA if rf"$\alpha = {value:g}$" in title]
    assert 0.5 <= recovery_probability(ds)["probability"].sel(alpha=alpha, N=128) <= 0.9


@pytest.mark.parametrize("asked", [{"alpha": 9.0}, {"N": 100}, {"seed": -1}])
def test_a_run_that_is_not_in_the_sweep_is_refused(asked: dict[str, Any]) -> None:
    """A value off the grid is refused with the values that there are."""
    [(name, value)] = asked.items()
    with pytest.raises(ValueError, match=f"{name} must be a value of the sweep.*; got {value}"):
        figures.one_run(Study(sweep()), **asked)


def test_a_cell_that_is_asked_for_but_not_done_is_named_as_the_reason() -> None:
    """Asking for a missing cell draws no other one."""
    ds = half_done()
    assert "no cell that was asked for is done" in words(figures.one_run(Study(ds), N=256))


# another law, another figure


def square(N: np.ndarray, A: float, B: float) -> np.ndarray:
    """A + B (log N)^2."""
    return A + B * np.log(N) ** 2


SQUARE = Law("A + B (log N)^2", r"$A + B\,(\log N)^2$", square, {"A": 2.0, "B": 0.02})


def broken(N: np.ndarray, A: float, B: float) -> np.ndarray:
    """Raise, whatever is asked."""
    raise ArithmeticError("planted in a law")


BROKEN = Law("A + nonsense", "$A + ?$", broken, {"A": 1.0, "B": 1.0})


def grid(study: Study) -> Figure:
    """How many runs each point of the grid has."""
    figure = Figure()
    figure.subplots().pcolormesh(study.probability["runs"].values)
    return figure


def no_picture(study: Study) -> Figure:
    """Nothing: it raises."""
    raise LookupError("planted in a figure")


def test_another_law_is_one_more_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fitted, described, and drawn with a look and a text of its own."""
    monkeypatch.setitem(LAWS, "square", SQUARE)
    study = Study(sweep(N=[64, 128, 256, 512]))
    assert f"  {SQUARE.formula}: A = " in describe(study.laws)
    [axis] = figures.alpha_half_against_log_N(study).axes
    curves = [c for c in axis.lines if len(c.get_xdata()) == 200]
    np.testing.assert_allclose(
        curves[-1].get_ydata(), evaluate(study.laws, "square", curves[-1].get_xdata())["alpha_half"]
    )
    assert len({(c.get_color(), c.get_linestyle()) for c in curves}) == len(LAWS) == len(curves)
    assert line(axis, SQUARE.tex).get_color() == curves[-1].get_color()


def test_a_law_that_raises_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are what they are without it, in numbers, words and figure; the error is told."""
    alone = Study(sweep())
    said = describe(alone.laws)
    monkeypatch.setitem(LAWS, "broken", BROKEN)
    study = Study(sweep())
    others = study.laws.sel(law=alone.laws["law"], parameter=alone.laws["parameter"])
    np.testing.assert_array_equal(others["value"], alone.laws["value"])
    told = "  A + nonsense: not fitted: ArithmeticError: planted in a law."
    lines = describe(study.laws).splitlines()
    assert [text for text in lines if text != told] == said.splitlines()
    assert told in lines
    assert study.laws["raised"].values.tolist() == [False] * len(alone.laws["law"]) + [True]
    [axis] = figures.alpha_half_against_log_N(study).axes
    assert BROKEN.tex not in [c.get_label() for c in axis.lines]


def test_another_figure_is_one_more_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is drawn with the others, in the formats that are asked for; one that raises is told."""
    monkeypatch.setitem(figures.FIGURES, "no_picture", no_picture)
    monkeypatch.setitem(figures.FIGURES, "grid", grid)
    problems = figures.draw(Study(sweep()), tmp_path / "new" / "folder", formats=["svg"])
    assert problems == {"no_picture": "LookupError: planted in a figure"}
    drawn = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert drawn == {f"{name}.svg" for name in with_something_to_show(sweep())}
    asked = figures.draw(Study(sweep()), tmp_path / "new", ["phase_diagram", "grid"], ["svg"])
    assert list(asked) == ["phase_diagram"]
    assert "Nothing to draw: the sweep has a signal" in asked["phase_diagram"]


def test_a_study_computes_each_result_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All figures and sentences share one P, one alpha_half and one fit."""
    calls: list[str] = []
    for module, name in (
        (recovery, "recovery_probability"),
        (recovery, "alpha_half"),
        (scaling, "fit_log_laws"),
    ):
        real = getattr(module, name)

        def counted(*given: Any, real: Any = real, name: str = name) -> Any:
            calls.append(name)
            return real(*given)

        monkeypatch.setattr(module, name, counted)
    study = Study(sweep(), 45)
    for make in figures.FIGURES.values():
        make(study)
    study.describe()
    assert sorted(set(calls)) == ["alpha_half", "fit_log_laws", "recovery_probability"]
    assert [calls.count(name) for name in ("alpha_half", "recovery_probability")] == [1, 1]
    assert calls.count("fit_log_laws") == len(study.times)
