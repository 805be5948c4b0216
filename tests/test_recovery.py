"""Claims about P(recovery), its intervals, and alpha_half."""

import warnings
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.special import expit

from analysis.recovery import alpha_half, fitted_probability, is_done, recovery_probability

ALPHA = np.array([2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0])
STEEPNESS = 8.0
MISSING, DONE, FAILED = 0, 1, 2


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
        (_steps([0.2, 0.8]), "fewer than 3 alphas"),
        (_steps([0, 0, 1, 1]), "P is 0 below alpha = 4 and 1 above alpha = 3"),
        (_steps([0, 0.4, 1, 1]), "P is 0 below alpha = 3 and 1 above alpha = 3"),
        (_steps([0.1, 0.2, 0.3]), "does not rise through 1/2 between alpha = 2 and 4"),
        (_steps([0.7, 0.8, 0.9]), "does not rise through 1/2 between alpha = 2 and 4"),
        (_steps([0.9, 0.5, 0.1]), "does not rise through 1/2"),
        (_steps([0.5, 0.5, 0.5]), "does not rise through 1/2"),
        (_steps([1, 1, 0, 0]), "P falls with alpha"),
        (_steps([0.1, 0.5, 0.9]).assign(status=lambda d: d.status * 0), "no cell is done"),
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
