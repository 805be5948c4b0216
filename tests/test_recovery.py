"""Claims about P(recovery), its intervals, and alpha_half."""

import json
import warnings
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit

from alphasweep.analysis.recovery import (
    NO_SIGNAL,
    alpha_half,
    by_text,
    describe_null,
    fitted_probability,
    is_done,
    outcomes,
    recovery_probability,
    times_of,
)

ALPHA = np.array([2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0])
STEEPNESS = 8.0
MISSING, DONE, FAILED = 0, 1, 2
OUTCOMES = {
    "flag_values": [0, 1, 2, 3, 4],
    "flag_meanings": "missing recovered trapped undecided diverged",
}


def dataset(recovered: np.ndarray, alpha: Any = ALPHA, N: Any = (256,)) -> xr.Dataset:
    """Label outcomes (alpha, N, seed, start) as a sweep in which every cell is done."""
    recovered = np.asarray(recovered, dtype=float)
    flags = {"flag_values": np.array([0, 1, 2]), "flag_meanings": "missing done failed"}
    cell = ("alpha", "N", "seed")
    text = {"long_name": "signal-to-noise ratio", "units": "1"}
    return xr.Dataset(
        {
            "status": (cell, np.full(recovered.shape[:3], DONE, np.int8), flags),
            "recovered": ((*cell, "start"), recovered),
        },
        coords={
            "alpha": ("alpha", np.asarray(alpha), text),
            "N": ("N", np.asarray(N), {"long_name": "dimension", "units": "1"}),
            "seed": np.arange(recovered.shape[2]),
        },
    )


def draw(
    rng: np.random.Generator, matrices: int, starts: int = 16, *, at: float = 3.3, spread: float = 0
) -> xr.Dataset:
    """Draw runs that recover with logistic(k (log alpha - log at - shift)), one shift a matrix."""
    shift = rng.normal(0, spread, matrices) if spread else np.zeros(matrices)
    p = expit(STEEPNESS * (np.log(ALPHA)[:, None, None, None] - np.log(at) - shift[:, None]))
    return dataset(rng.random((ALPHA.size, 1, matrices, starts)) < p)


def true_probability(at: float, spread: float) -> np.ndarray:
    """P(recovery) at ALPHA, averaged over the matrices' shifts by Gauss-Hermite nodes."""
    z, w = np.polynomial.hermite_e.hermegauss(40)
    p = expit(STEEPNESS * (np.log(ALPHA)[:, None] - np.log(at) - spread * z))
    return np.asarray(p @ w / w.sum())


# P(recovery)


def test_probability_is_the_share_of_runs() -> None:
    """Three of four runs recovered: P = 3/4, of 4 runs on 2 matrices."""
    p = recovery_probability(dataset([[[[1, 1], [1, 0]]]], alpha=[3.0])).squeeze()
    assert (float(p.probability), int(p.runs), int(p.matrices)) == (0.75, 4, 2)


@pytest.mark.parametrize("status", [MISSING, FAILED])
def test_only_done_cells_count(status: int) -> None:
    """A missing or failed cell changes nothing, even if it holds values."""
    ds = dataset([[[[1, 0], [1, 0], [1, 1]]]], alpha=[3.0])
    ds["status"][0, 0, 2] = status
    assert is_done(ds).values.ravel().tolist() == [True, True, False]
    xr.testing.assert_identical(
        recovery_probability(ds), recovery_probability(ds.isel(seed=[0, 1]))
    )


def test_undecided_and_diverged_runs_are_not_recovered() -> None:
    """Runs that were recorded as 0, for whatever reason, stay in the denominator."""
    p = recovery_probability(dataset([[[[1, 0, 0, 0]]]], alpha=[3.0]))
    assert p.probability.item() == 0.25


def test_a_cell_without_runs_is_nan() -> None:
    """Where nothing is done, P and its interval are NaN, and the counts are 0."""
    ds = dataset(np.ones((2, 1, 3, 4)), alpha=[3.0, 4.0])
    ds["status"][0] = MISSING
    p = recovery_probability(ds).squeeze().isel(alpha=0)
    assert np.isnan([p.probability, p.lower, p.upper]).all()
    assert (int(p.runs), int(p.matrices)) == (0, 0)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("matrices", [1, 6])
def test_interval_at_certainty_has_width(value: int, matrices: int) -> None:
    """At P = 0 and P = 1 the interval ends there, and is as wide as so many matrices allow."""
    p = recovery_probability(dataset(np.full((1, 1, matrices, 8), value), alpha=[3.0])).squeeze()
    ends = sorted(abs(float(end) - value) for end in (p.lower, p.upper))
    assert ends[0] == pytest.approx(0, abs=1e-12)
    assert ends[1] == pytest.approx(1.96**2 / (matrices + 1.96**2), rel=1e-3)


def test_one_matrix_counts_as_one_run() -> None:
    """A single matrix may have decided all of its runs: its interval is that of one run."""
    few = recovery_probability(dataset([[[[1, 0]]]], alpha=[3.0])).squeeze()
    many = recovery_probability(dataset([[[[1, 0] * 50]]], alpha=[3.0])).squeeze()
    assert float(many.lower) == pytest.approx(float(few.lower))
    assert float(many.upper) == pytest.approx(float(few.upper))
    assert float(many.upper - many.lower) > 0.75


def test_starts_that_end_alike_add_nothing() -> None:
    """If all starts of a matrix end alike, 16 of them leave the interval of one."""
    one = np.array([1, 1, 0, 1, 0, 1, 1, 0.0])[None, None, :, None]
    p = recovery_probability(dataset(one, alpha=[3.0])).squeeze()
    q = recovery_probability(dataset(np.repeat(one, 16, axis=3), alpha=[3.0])).squeeze()
    assert float(q.design_effect) > 16
    assert float(q.upper - q.lower) == pytest.approx(float(p.upper - p.lower))


def test_independent_starts_narrow_the_interval() -> None:
    """With many independent runs the interval is nearly that of independent runs."""
    p = recovery_probability(draw(np.random.default_rng(3), 60)).sel(alpha=3.5).squeeze()
    width = 2 * 1.96 * np.sqrt(p.probability * (1 - p.probability) / p.runs)
    assert float((p.upper - p.lower) / width) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("matrices", "spread"), [(8, 0.0), (8, 0.15), (30, 0.15)])
def test_the_intervals_cover(matrices: int, spread: float) -> None:
    """95 % intervals hold the true P in at least 93 % of 400 cells, matrices alike or not.

    With 30 other seeds the shares were 0.977 ± 0.008, 0.977 ± 0.011 and 0.964 ± 0.014 (mean and
    standard deviation), never below 0.937: a false alarm has a probability of 1e-2 at most, in the
    last case. The seed is fixed.
    """
    truth = true_probability(3.3, spread)[:, None]
    rng = np.random.default_rng(11)
    inside = []
    for _ in range(50):
        p = recovery_probability(draw(rng, matrices, spread=spread))
        inside.append((p.lower <= truth) & (truth <= p.upper))
    assert np.mean(inside) >= 0.93


def test_clusters_matter_to_the_coverage() -> None:
    """Without the design effect, intervals of matrices that differ would be too narrow by half."""
    p = recovery_probability(draw(np.random.default_rng(5), 40, spread=0.25))
    assert p.design_effect.item() > 4


def test_confidence_widens_the_interval() -> None:
    """A 99 % interval contains the 90 % one, and the label says which it is."""
    ds = draw(np.random.default_rng(1), 8)
    wide, narrow = (recovery_probability(ds, confidence=c) for c in (0.99, 0.9))
    assert (wide.lower < narrow.lower).all()
    assert (wide.upper > narrow.upper).all()
    assert "99 %" in wide.lower.attrs["long_name"]


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_wrong_confidence_is_refused(confidence: float) -> None:
    """A confidence that is no probability is refused with what was received."""
    with pytest.raises(ValueError, match=f"between 0 and 1; got {confidence}"):
        recovery_probability(draw(np.random.default_rng(1), 2), confidence=confidence)


# alpha_half


def test_exact_shares_give_the_exact_alpha_half() -> None:
    """Shares that lie on a logistic curve give back its centre, slope and width."""
    alpha, runs = np.array([2.0, 3.0, 4.5]), 100
    p = np.array([0.2, 0.5, 0.8])  # logits -log 4, 0, log 4 at equally spaced log alpha
    recovered = np.arange(runs) < (p * runs)[:, None]
    half = alpha_half(dataset(recovered.reshape(3, 1, 20, 5), alpha=alpha)).squeeze()
    assert float(half.alpha_half) == pytest.approx(3.0, rel=1e-9)
    assert float(half.slope) == pytest.approx(np.log(4) / np.log(1.5), rel=1e-9)
    curve = fitted_probability(half.expand_dims("N"), alpha)
    np.testing.assert_allclose(curve.squeeze(), p, rtol=1e-9)
    quarter = float(half.alpha_half) * np.exp(np.array([-1, 1]) * np.log(3) / float(half.slope))
    assert float(half.width) == pytest.approx(float(np.diff(quarter)[0]), rel=1e-9)
    assert float(half.misfit) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_a_planted_alpha_half_is_recovered_within_its_error(spread: float) -> None:
    """Over 100 sweeps of 16 matrices the pulls have mean 0 and width 1, matrices alike or not.

    The mean of 100 pulls is off by 0.35 with a probability of 5e-4; their standard
    deviation leaves 0.75 .. 1.3 with one of 1e-3. Seeds are fixed.
    """
    rng = np.random.default_rng(17)
    halves = [alpha_half(draw(rng, 16, spread=spread)).squeeze() for _ in range(100)]
    pull = np.array([float((h.alpha_half - 3.3) / h.standard_error) for h in halves])
    assert abs(pull.mean()) < 0.35
    assert 0.75 < pull.std() < 1.3


@pytest.mark.parametrize(("spread", "most"), [(0.1, 0.985), (0.25, 0.985), (0.0, 1.0)])
@pytest.mark.parametrize("matrices", [4, 5, 6])
@pytest.mark.long
def test_few_matrices_give_an_interval_that_covers(
    matrices: int, spread: float, most: float
) -> None:
    """95 % intervals hold the true alpha_half in 0.915 to 0.985 of 400 sweeps that have so few.

    They are wider if matrices are alike, as no matrix can take from what independent runs vary.
    Over 4,000 sweeps a case the share was 0.951 to 0.96 where matrices differ: a false alarm has a
    probability of 1e-3 below and 5e-3 above, in each case. The seed is fixed.
    """
    rng = np.random.default_rng(31)
    draws = [draw(rng, matrices, 8, spread=spread) for _ in range(400)]
    sweeps = [ds.assign_coords(N=[8 + k]) for k, ds in enumerate(draws)]
    half = alpha_half(xr.concat(sweeps, dim="N")).dropna("N", subset=["standard_error"])
    assert half.sizes["N"] > 390
    inside = float(((half["lower"] <= 3.3) & (half["upper"] >= 3.3)).mean())
    assert 0.915 <= inside <= most
    assert half.attrs["confidence"] == 0.95


def test_a_larger_confidence_widens_the_interval_of_alpha_half() -> None:
    """By the ratio of Student's quantiles, where matrices differ; alpha stays positive."""
    ds = draw(np.random.default_rng(2), 5, spread=0.4)
    one, two = (alpha_half(ds, confidence=c).squeeze() for c in (0.9, 0.98))
    quantiles = stats.t.ppf([0.95, 0.99], 4)
    widths = [float(half.upper - half.alpha_half) for half in (one, two)]
    np.testing.assert_allclose(widths, float(one.standard_error) * quantiles)
    assert alpha_half(ds, confidence=1 - 1e-9).lower.item() == 0
    with pytest.raises(ValueError, match="between 0 and 1; got 95"):
        alpha_half(ds, confidence=95)


def test_matrices_that_differ_enlarge_the_error() -> None:
    """Spread between matrices shows in the standard error and in the dispersion."""
    alike = alpha_half(draw(np.random.default_rng(2), 30)).squeeze()
    apart = alpha_half(draw(np.random.default_rng(2), 30, spread=0.25)).squeeze()
    assert apart.standard_error > 2 * alike.standard_error
    assert apart.dispersion > 2
    assert float(alike.dispersion) == pytest.approx(1, abs=0.3)


def test_the_error_is_never_below_that_of_independent_runs() -> None:
    """Matrices that happen to agree to a run do not pretend to know alpha_half better."""
    recovered = np.zeros((3, 1, 4, 8))
    for k, share in enumerate((2, 4, 6)):
        recovered[k, :, :, :share] = 1
    half = alpha_half(dataset(recovered, alpha=[2.0, 3.0, 4.5])).squeeze()
    x, p, n = np.log([2, 3, 4.5]), np.array([0.25, 0.5, 0.75]), 32
    x = x - x[1]
    information = float(np.sum(n * p * (1 - p)))  # the design is symmetric about alpha_half
    expected = 3.0 / float(half.slope) / np.sqrt(information)
    assert float(half.standard_error) == pytest.approx(expected, rel=1e-6)


def test_a_curve_that_is_not_logistic_shows_in_the_misfit() -> None:
    """A plateau at 1/2 between two jumps gives a misfit far above 1."""
    recovered = np.zeros((6, 1, 20, 10))
    recovered[1:4, :, ::2] = 1
    recovered[4:] = 1
    recovered[0, :, 0, 0], recovered[5, :, 0, 0] = 1, 0
    half = alpha_half(dataset(recovered, alpha=[2, 2.1, 3, 4, 4.1, 6])).squeeze()
    assert half.misfit > 5


def _steps(shares: list[float], matrices: int = 4) -> xr.Dataset:
    """Build a sweep with exactly these shares of 10 runs at alpha = 2, 3, 4 ..."""
    run = np.arange(10) < 10 * np.array(shares)[:, None]
    recovered = np.repeat(run[:, None, None, :], matrices, axis=2)
    return dataset(recovered, alpha=2.0 + np.arange(len(shares)))


@pytest.mark.parametrize(
    ("ds", "note"),
    [
        (_steps([0, 0, 0, 0]), "no run recovered up to alpha = 5: add larger alphas"),
        (_steps([1, 1, 1]), "every run recovered from alpha = 2 on: add smaller alphas"),
        (_steps([0.25]), "the only alpha that is done is 2, with P = 0.3: add alphas"),
        (_steps([0.2, 0.8]), "fewer than 3 alphas are done: add alphas"),
        (
            _steps([0, 0, 1, 1]),
            "no run recovered up to alpha = 3, and every run from 4 on: alpha_half is between, "
            "P too steep to fit: add alphas there, or runs",
        ),
        (_steps([0, 1]), "no run recovered up to alpha = 2, and every run from 3 on"),
        (
            _steps([0, 0.4, 1, 1]),
            "no run recovered below alpha = 3, every run above it, a share of 0.4 there: "
            "alpha_half is near it, P too steep to fit: add alphas there, or runs",
        ),
        (
            _steps([0.9, 1, 1]),
            "every run recovered above alpha = 2, a share of 0.9 there: add smaller alphas",
        ),
        (
            _steps([0, 0, 0.1]),
            "no run recovered below alpha = 4, a share of 0.1 there: add larger alphas",
        ),
        (
            _steps([0.1, 0.2, 0.3]),
            "P does not rise through 1/2 between alpha = 2 and 4: widen the range of alpha",
        ),
        (_steps([0.7, 0.8, 0.9]), "P does not rise through 1/2 between alpha = 2 and 4"),
        (_steps([0.9, 0.5, 0.1]), "P falls with alpha: no curve that rises fits"),
        (
            _steps([0.5, 0.5, 0.5]),
            "P does not change measurably between alpha = 2 and 4: widen the range, or add runs",
        ),
        (_steps([0.1, 0.1, 0.1], 1), "P does not change measurably between alpha = 2 and 4"),
        (_steps([1, 1, 0, 0]), "P falls with alpha"),
        (
            _steps([0.2, 0.5, 0.8]).assign_coords(alpha=[3, np.nextafter(3, 4), 3 + 1e-15]),
            "all alphas lie between 3 and 3.000000000000001: widen the range of alpha",
        ),
        (
            _steps([0, 1]).assign_coords(alpha=[3, np.nextafter(3, 4)]),
            "up to alpha = 3, and every run from 3.0000000000000004 on",
        ),
        (_steps([0.1, 0.5, 0.9]).assign(status=lambda d: d.status * 0), "no cell is done"),
        (_steps([0.1, 0.5, 0.9]).assign(status=lambda d: d.status * 0 + FAILED), "no cell is done"),
    ],
)
def test_where_alpha_half_is_unknown_a_note_says_why(ds: xr.Dataset, note: str) -> None:
    """No exception, no warning, NaN in every number, and a note with the reason."""
    ds["status"].attrs = _steps([0.5])["status"].attrs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        half = alpha_half(ds).squeeze()
    assert note in str(half.note.values)
    assert np.isnan([half.alpha_half, half.standard_error, half.intercept, half.slope]).all()


@pytest.mark.parametrize(
    ("shares", "none_up_to", "all_from"),
    [
        ([0, 0, 1, 1], 3, 4),
        ([0, 0.4, 1, 1], 2, 4),
        ([0.1, 0.5, 1, 1], np.nan, 4),
        ([0, 0.5, 0.9], 2, np.nan),
        ([0, 0, 0], 4, np.nan),
        ([1, 1, 1], np.nan, 2),
        ([0, 1, 0, 1], 2, 5),
    ],
)
def test_the_alphas_that_bound_the_rise_are_told(
    shares: list[float], none_up_to: float, all_from: float
) -> None:
    """Without a finite slope they are what is known of alpha_half; they do not need a fit."""
    half = alpha_half(_steps(shares)).squeeze()
    np.testing.assert_equal(float(half.none_up_to), none_up_to)
    np.testing.assert_equal(float(half.all_from), all_from)


def test_alphas_close_to_one_another_are_fitted_as_well() -> None:
    """A thousandth of the range: alpha_half is at the same place of it, its error as much smaller.

    Logarithms are then linear, to a thousandth.
    """
    shares = _steps([0.1, 0.3, 0.9])
    wide, close = (
        alpha_half(shares.assign_coords(alpha=3 + by * np.arange(3.0))).squeeze()
        for by in (1e-3, 1e-6)
    )
    place = 1e3 * (float(close.alpha_half) - 3)
    assert place == pytest.approx(float(wide.alpha_half) - 3, rel=1e-3)
    for name in ("standard_error", "width"):
        assert 1e3 * float(close[name]) == pytest.approx(float(wide[name]), rel=1e-3)


def with_outcomes(ds: xr.Dataset, **shares: float) -> xr.Dataset:
    """Let runs that did not recover end so, in these shares of all runs; the rest is trapped."""
    outcome = xr.where(ds["recovered"] == 1, 1, 2)
    run = np.arange(ds.sizes["start"])[::-1] / ds.sizes["start"]
    for ending, share in shares.items():
        number = str(OUTCOMES["flag_meanings"]).split().index(ending)
        outcome = outcome.where(~((run < share) & (ds["recovered"] == 0)), number)
    return ds.assign(outcome=outcome.assign_attrs(OUTCOMES))


def test_diverged_runs_are_told_of_and_larger_alphas_are_not_advised() -> None:
    """Where most diverged, nothing else is the reason; where some did, it is said as well."""
    none = _steps([0, 0, 0])
    most = str(alpha_half(with_outcomes(none, diverged=0.6)).note.item())
    assert most == (
        "no run recovered up to alpha = 4; 72 of 120 runs diverged, which counts as not "
        "recovered: lower learning_rate"
    )
    some = str(alpha_half(with_outcomes(none, diverged=0.1)).note.item())
    assert "add larger alphas; 12 of 120 runs diverged" in some
    good = alpha_half(with_outcomes(_steps([0.1, 0.5, 0.7]), diverged=0.1))
    assert good.alpha_half.notnull()
    assert str(good.note.item()).startswith("12 of 120 runs diverged")
    assert str(alpha_half(with_outcomes(none)).note.item()).endswith("add larger alphas")


def test_runs_that_ran_out_of_time_want_a_longer_time() -> None:
    """No larger alpha helps a sweep whose runs were all still moving at t_max."""
    note = str(alpha_half(with_outcomes(_steps([0, 0, 0]), undecided=1)).note.item())
    assert note == (
        "no run recovered up to alpha = 4: 120 of 120 runs were still moving at t_max: raise it"
    )


def test_a_null_sweep_has_nothing_to_recover() -> None:
    """No alpha can help, and the note says so instead of asking for larger ones."""
    ds = _steps([0, 0, 0]).assign_attrs(sweep=json.dumps({"descent": {"signal": "null"}}))
    half = alpha_half(ds).squeeze()
    assert str(half.note.values) == NO_SIGNAL
    assert np.isnan(half.alpha_half)


def test_a_null_sweep_is_described_by_what_it_holds() -> None:
    """Energy, and how often its labels would show an outlier, of done cells; no alpha_half."""
    ds = _steps([0, 0, 0], 2).assign_attrs(sweep={"descent": {"signal": "null"}})
    energy = 0 * ds["recovered"] + ds["alpha"] / 10
    energy[2, :, 1] = 7.0
    outlier = xr.where(ds["start"] < 4, -1.0, np.nan) + 0 * ds["recovered"]
    ds = ds.assign(final_energy=energy, outlier=outlier.expand_dims(time=[0.0]))
    ds["status"][2, :, 1] = FAILED
    said = describe_null(ds)
    assert "N = 256, alpha = 2: mean final energy 0.2; at the start, 40% of" in said
    assert "N = 256, alpha = 4: mean final energy 0.4; at the start, 40% of" in said
    assert len(said.splitlines()) == 3
    assert "N = 256: no cell is done." in describe_null(
        ds.assign(status=xr.zeros_like(ds["status"]))
    )
    assert "50 of 50 runs diverged" in describe_null(with_outcomes(ds, diverged=1))


@st.composite
def tables(draw: st.DrawFn) -> xr.Dataset:
    """Draw any sweep: few or many runs, close or far alphas, missing cells, any way to end."""
    close = st.sampled_from([3.0, np.nextafter(3.0, 4), 3 + 1e-12, 3 + 1e-6, 3.1, 4.0, 1e-9, 1e12])
    alphas = st.one_of(close, st.floats(1e-6, 1e6))
    alpha = sorted(draw(st.lists(alphas, min_size=1, max_size=6, unique=True)))
    seeds, starts = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5, 1000]))
    shape = (len(alpha), 1, seeds)
    cells = len(alpha) * seeds
    count = draw(st.lists(st.integers(0, starts), min_size=cells, max_size=cells))
    if draw(st.booleans()):
        count = [round(c / starts) * starts for c in count]
    recovered = np.arange(starts) < np.array(count).reshape(*shape, 1)
    ds = with_outcomes(dataset(recovered, alpha=alpha), diverged=draw(st.sampled_from([0, 0.5, 1])))
    status = draw(
        st.lists(
            st.sampled_from([DONE, DONE, DONE, MISSING, FAILED]), min_size=cells, max_size=cells
        )
    )
    return ds.assign(status=ds["status"].copy(data=np.array(status).reshape(shape)))


@given(tables())
def test_any_table_of_counts_gives_numbers_or_a_note(ds: xr.Dataset) -> None:
    """Never an exception or a warning; alpha_half is among the alphas, or NaN with a reason."""
    p = recovery_probability(ds)
    known = p.where(p.runs > 0, drop=True)
    assert (known.lower <= known.probability + 1e-9).all()
    assert (known.probability <= known.upper + 1e-9).all()
    half = alpha_half(ds).squeeze()
    note = str(half.note.values)
    assert "nan" not in note
    if np.isnan(half.alpha_half):
        assert note
        assert np.isnan([half.standard_error, half.slope, half.width]).all()
        return
    used = ds["alpha"].values[(p.runs > 0).values.ravel()]
    assert used.min() * (1 - 1e-9) <= half.alpha_half <= used.max() * (1 + 1e-9)
    assert half.slope > 0
    assert half.width > 0
    assert half.standard_error > 0 or "single matrix" in note
    if half.standard_error > 0:
        assert 0 <= half.lower < half.alpha_half < half.upper
    else:
        assert np.isnan([half.lower, half.upper]).all()


def test_alphas_that_are_all_but_one_leave_no_error() -> None:
    """The only overlap of outcomes is between two alphas that hardly differ: a singular Hessian."""
    recovered = np.zeros((4, 1, 2, 1))
    recovered[2, 0, 1] = 1
    ds = dataset(recovered, alpha=[1.037225404790034e-05, 0.4912384286973852, 3 + 1e-12, 3 + 1e-6])
    ds["status"][:, 0] = [[MISSING, DONE], [DONE, DONE], [MISSING, DONE], [DONE, MISSING]]
    note = "P is too steep for an error: add alphas where it rises, or runs"
    assert str(alpha_half(ds).note.item()) == note


@pytest.mark.parametrize("name", ["alpha", "N", "seed", "start"])
def test_repeated_labels_are_refused(name: str) -> None:
    """What two stores both hold would count twice; the message names it, and the way out."""
    ds = _steps([0.1, 0.5, 0.9]).assign_coords(start=np.arange(10))
    twice = xr.concat([ds, ds.isel({name: [0]})], dim=name, data_vars="minimal")
    label = ds[name].values[0]
    for use in (alpha_half, recovery_probability):
        with pytest.raises(ValueError, match=f"{name} must name .* got {label} more than once"):
            use(twice)


def test_seeds_under_other_labels_are_other_seeds() -> None:
    """The advice works: two sweeps of the same seeds, one relabelled, count as all of them."""
    one, other = (draw(np.random.default_rng(k), 4, spread=0.1) for k in (1, 2))
    both = xr.concat([one, other.assign_coords(seed=other.seed + 1000)], dim="seed")
    half = alpha_half(both).squeeze()
    assert (int(half.matrices), int(half.runs)) == (8, 2 * int(alpha_half(one).runs.item()))


def test_flags_that_were_lost_are_asked_for() -> None:
    """Without its attributes status is a number without meaning."""
    ds = _steps([0.1, 0.5, 0.9])
    ds["status"].attrs = {}
    with pytest.raises(ValueError, match="status must have the attributes flag_values and flag_"):
        alpha_half(ds)


def test_a_single_matrix_gives_a_value_without_an_error() -> None:
    """With one matrix alpha_half is known, its error is not, and the note says so."""
    half = alpha_half(_steps([0.1, 0.5, 0.9], matrices=1)).squeeze()
    assert float(half.alpha_half) == pytest.approx(3, abs=0.2)
    assert np.isnan(half.standard_error)
    assert "single matrix" in str(half.note.values)


def test_one_bad_N_does_not_hide_the_others() -> None:
    """An N without a crossing is NaN; its neighbours are what they are alone."""
    good = _steps([0.1, 0.5, 0.9])
    bad = _steps([0, 0, 0]).assign_coords(N=[512])
    both = alpha_half(xr.concat([good, bad], dim="N"))
    assert both.note.values.tolist()[0] == ""
    assert float(both.alpha_half[0]) == float(alpha_half(good).alpha_half[0])
    assert np.isnan(both.alpha_half[1])


def test_the_order_of_alphas_and_seeds_is_irrelevant() -> None:
    """Reversing alpha and seed changes no number beyond rounding."""
    ds = draw(np.random.default_rng(4), 6, spread=0.1)
    turned = ds.isel(alpha=slice(None, None, -1), seed=slice(None, None, -1))
    xr.testing.assert_allclose(alpha_half(ds), alpha_half(turned))
    xr.testing.assert_allclose(
        recovery_probability(ds), recovery_probability(turned).sortby("alpha")
    )


def test_lazy_data_gives_the_same_numbers() -> None:
    """A dataset that dask still has to load gives, to the bit, what the loaded one gives."""
    ds = draw(np.random.default_rng(4), 6, spread=0.1)
    lazy = ds.chunk(alpha=1, N=1)
    assert lazy["recovered"].chunks is not None
    xr.testing.assert_identical(recovery_probability(lazy), recovery_probability(ds))
    xr.testing.assert_identical(alpha_half(lazy), alpha_half(ds))


def test_every_result_is_labelled() -> None:
    """Every variable and coordinate of both results has a long_name and units."""
    ds = draw(np.random.default_rng(4), 4)
    for result in (recovery_probability(ds), alpha_half(ds)):
        for name, variable in result.variables.items():
            assert variable.attrs.get("long_name"), name
            assert variable.attrs.get("units") == "1", name


# time


def settings(**descent: Any) -> str:
    """Write the attribute ``sweep`` of a planted sweep."""
    return json.dumps({"descent": {"signal": "planted"} | descent})


def timed(
    rng: np.random.Generator, matrices: int, t_max: float, *, slow: float = 20.0
) -> xr.Dataset:
    """Draw runs as `draw`, which recover or are trapped at exponential times of mean slow.

    What is not over at t_max is undecided; the truth is kept in ``would``.
    """
    ds = draw(rng, matrices, spread=0.1)
    end = rng.exponential(slow, ds["recovered"].shape)
    over, good = end <= t_max, ds["recovered"].values == 1
    return ds.assign(
        would=ds["recovered"],
        recovered=ds["recovered"] * over,
        recovery_time=(ds["recovered"].dims, np.where(good & over, end, np.nan)),
        end_time=(ds["recovered"].dims, np.minimum(end, t_max)),
        outcome=xr.where(over, xr.where(ds["recovered"] == 1, 1, 2), 3).assign_attrs(OUTCOMES),
    ).assign_attrs(sweep=settings(t_max=t_max, method="flow"))


def test_by_a_time_is_what_a_sweep_of_that_t_max_finds() -> None:
    """P and alpha_half by t = 15 of a sweep to t = 60 are, to the bit, those of one to t = 15."""
    long, short = (timed(np.random.default_rng(8), 6, t_max) for t_max in (60.0, 15.0))
    assert (outcomes(short).undecided > outcomes(long).undecided).all()
    for result in (recovery_probability, alpha_half):
        by = result(long, 15)
        xr.testing.assert_identical(by, result(short, 15))
        counted = result(short.drop_vars("outcome"), 15)  # all that did not recover has failed
        xr.testing.assert_identical(by, counted)
    P = recovery_probability(long, 15)
    expected = (long["recovered"] == 1) & (long["recovery_time"] <= 15)
    np.testing.assert_allclose(P.probability, expected.mean(("seed", "start")))
    for name in ("least", "most"):
        xr.testing.assert_equal(P[name], P.probability.rename(name))


def test_plain_steps_round_a_time_as_t_max_is_rounded() -> None:
    """A recovery at the step that is nearest to t counts by t, as it does where t_max = t."""
    ds = dataset([[[[1, 1, 0, 0]]]], alpha=[3.0])
    ds["recovery_time"] = ds["recovered"].copy(data=[[[[0.3 * 33, 0.3 * 34, np.nan, np.nan]]]])
    for method, share in (("gd", 0.25), ("flow", 0.0)):
        told = ds.assign_attrs(sweep=settings(t_max=60.0, learning_rate=0.3, method=method))
        assert recovery_probability(told, 9.89).probability.item() == share
        assert recovery_probability(told, [9.6, 60]).probability.values.ravel().tolist() == [0, 0.5]


def test_several_times_are_a_dimension() -> None:
    """Each time's row is what it is alone; the end is inf, and may be asked for by three names."""
    ds = timed(np.random.default_rng(8), 6, 60.0)
    for result in (recovery_probability, alpha_half):
        rows = result(ds, [5, 20.0, "end"])
        assert rows["by"].values.tolist() == [5, 20, np.inf]
        assert rows["by"].attrs["long_name"]
        for time in (5, 20, None):
            alone = result(ds, time)
            xr.testing.assert_identical(
                rows.sel(by=time or np.inf).drop_vars("by"), alone.drop_vars("by")
            )
        xr.testing.assert_identical(result(ds), result(ds, np.inf))
    rising = recovery_probability(ds, [5, 20, 60])["probability"]
    assert (rising.diff("by") >= 0).all()
    assert (alpha_half(ds, [10, 20, 60])["alpha_half"].diff("by") < 0).all()
    assert (by_text(5), by_text(np.inf)) == ("by t = 5", "in the end")


@pytest.mark.parametrize("wrong", [60.1, 0, -1, "soon", np.nan])
def test_a_time_that_the_sweep_does_not_know_of_is_refused(wrong: Any) -> None:
    """Beyond t_max nothing is known: the message names t_max and what to do."""
    ds = timed(np.random.default_rng(8), 2, 60.0)
    for result in (recovery_probability, alpha_half, times_of):
        with pytest.raises(ValueError, match=r"up to t_max = 60, or \"end\"; got .* raise t_max"):
            result(ds, wrong)
        with pytest.raises(ValueError, match="up to t_max = 60"):
            result(ds, [30, wrong])


def test_undecided_runs_are_neither_success_nor_failure() -> None:
    """In the end P and alpha_half have bounds: those of all failures, and of all successes."""
    ds = timed(np.random.default_rng(8), 6, 30.0)
    lost = ds.assign(outcome=ds["outcome"].where(ds["outcome"] != 3, 2))
    won = ds.assign(
        outcome=ds["outcome"].where(ds["outcome"] != 3, 1),
        recovered=ds["recovered"].where(ds["outcome"] != 3, 1),
    )
    P, worst, best = (recovery_probability(each) for each in (ds, lost, won))
    xr.testing.assert_equal(P["least"], worst["probability"].rename("least"))
    xr.testing.assert_equal(P["most"], best["probability"].rename("most"))
    xr.testing.assert_equal(P["lower"], worst["lower"])
    xr.testing.assert_equal(P["upper"], best["upper"])
    assert (P["least"] < P["most"]).any()
    np.testing.assert_allclose(P["probability"], (P["least"] + P["most"]) / 2)
    half, worst, best = (alpha_half(each).squeeze() for each in (ds, lost, won))
    assert (float(half.least), float(half.most)) == (best.alpha_half, worst.alpha_half)
    assert best.alpha_half < half.alpha_half < worst.alpha_half
    assert (float(half.lower), float(half.upper)) == (best.lower, worst.upper)
    assert int(half.undecided) == int((ds["outcome"] == 3).sum()) > 0
    assert f"{int(half.undecided)} of {int(half.runs)} runs were still moving at t_max" in str(
        half.note.item()
    )
    assert "alpha_half is between" in str(half.note.item())


def test_where_only_one_bound_is_known_alpha_half_is_not() -> None:
    """If nearly all could still recover, alpha_half has an upper bound alone, and this is said."""
    half = alpha_half(with_outcomes(_steps([0.1, 0.3, 0.8, 1]), undecided=0.9)).squeeze()
    assert (
        half[["alpha_half", "standard_error", "lower", "upper", "least"]].isnull().to_array().all()
    )
    assert float(half.most) == alpha_half(_steps([0.1, 0.3, 0.8, 1])).alpha_half.item()
    assert str(half.note.item()) == (
        "alpha_half is at most 3.2, as 72 of 160 runs were still moving at t_max: raise it"
    )


def test_undecided_runs_that_matter_to_nothing_are_not_told_of() -> None:
    """Half a standard error is not worth a note."""
    ds = with_outcomes(_steps([0.1, 0.5, 0.9]))
    ds["outcome"][1, 0, 0, -1] = 3
    half = alpha_half(ds).squeeze()
    assert 0 < half.most - half.least < half.standard_error / 2
    assert (str(half.note.item()), int(half.undecided)) == ("", 1)


@pytest.mark.long
def test_the_interval_covers_what_runs_would_have_done() -> None:
    """With a fifth of the runs undecided, 95 % intervals hold alpha_half of the truth.

    In all but 10 of 200 sweeps at least; that they are wider by what is not known makes them safe.
    Without it, all undecided failed, at least a fifth of them miss it.
    """
    rng, hits, naive = np.random.default_rng(3), 0, 0
    for _ in range(200):
        ds = timed(rng, 6, 32.0)
        half = alpha_half(ds).squeeze()
        by = alpha_half(ds, 32).squeeze()
        hits += bool(half.lower <= 3.3 <= half.upper)
        naive += bool(by.lower <= 3.3 <= by.upper)
    assert hits >= 190
    assert naive <= 160


def test_outcomes_are_counted_and_the_time_that_settles_them_is_told() -> None:
    """Of exponential times with mean 20, 1 % is left after 92; 5 to 10 % of statistics is in it."""
    ds = timed(np.random.default_rng(5), 40, 30.0)
    found = outcomes(ds).squeeze()
    assert int(found.runs) == 8 * 40 * 16
    ends = [int(found[name]) for name in ("recovered", "trapped", "undecided", "diverged")]
    assert ends == [int((ds["outcome"] == k).sum()) for k in (1, 2, 3, 4)]
    assert float(found.settled_at) == pytest.approx(20 * np.log(100), rel=0.15)
    steps = ds.drop_vars("end_time").assign(steps=ds["end_time"] / 0.5)
    told = outcomes(steps.assign_attrs(sweep=settings(t_max=30.0, learning_rate=0.5)))
    assert told["settled_at"].item() == pytest.approx(float(found.settled_at))
    note = alpha_half(ds).note.item()
    assert f"at t_max: {float(found.settled_at):.2g} would settle it" in note


@pytest.mark.parametrize("lost", ["end_time", "late"])
def test_no_time_is_promised_where_none_is_known(lost: str) -> None:
    """Without the times of ends, or with hardly one in the last half, nothing is said."""
    ds = timed(np.random.default_rng(5), 4, 30.0)
    if lost == "late":
        ds["end_time"] = ds["end_time"].where(ds["outcome"] == 3, 1.0)
    else:
        ds = ds.drop_vars(lost)
    assert outcomes(ds)["settled_at"].isnull().all()
    assert "still moving at t_max: raise it" in alpha_half(ds).note.item()
