"""Claims about the log N laws: fits, their errors, and what is said about them."""

import math
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit

from alphasweep.analysis import recovery, scaling
from alphasweep.analysis.scaling import (
    DECISIVE,
    LAWS,
    UNLIKELY,
    describe,
    describe_slopes,
    evaluate,
    fit_log_laws,
)

N = 64 * 2 ** np.arange(7)
ERROR = np.array([0.05, 0.1, 0.04, 0.06, 0.08, 0.05, 0.1])
TRUE = {
    "linear": {"A": 1.7, "B": 0.28},
    "inverse": {"alpha_inf": 5.5, "A": 11.0},
    "constant": {"A": 3.2},
    "power": {"alpha_inf": 4.5, "A": 8.0, "nu": 0.3},
}
CONSTANT = LAWS["constant"]
LINEAR = ("linear", "inverse")  # two parameters, linear in them


def points(alpha_half: Any, error: Any = ERROR, N: Any = N) -> xr.Dataset:
    """Label alpha_half(N) and its errors as `analysis.recovery.alpha_half` does."""
    alpha_half = np.asarray(alpha_half, dtype=float)
    error = np.broadcast_to(np.asarray(error, dtype=float), alpha_half.shape)
    return xr.Dataset(
        {"alpha_half": ("N", alpha_half), "standard_error": ("N", error)},
        coords={"N": np.asarray(N, dtype=int)},
    )


def law(name: str, at: Any = N) -> np.ndarray:
    """Evaluate a law with its planted parameters."""
    return LAWS[name].function(np.asarray(at, dtype=float), **TRUE[name])


def fitted(laws: xr.Dataset, name: str, what: str = "value") -> np.ndarray:
    """Return one law's parameters or their errors, in the order of its formula."""
    return laws[what].sel(law=name, parameter=list(TRUE[name])).values


@pytest.fixture
def two_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the two laws in log N alone: what is claimed is of any number of them."""
    for name in LAWS.keys() - set(LINEAR):
        monkeypatch.delitem(LAWS, name)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Leave one law alone, where hundreds of fits make a claim of it: each law is fitted apart."""

    def leave(name: str) -> None:
        for other in LAWS.keys() - {name}:
            monkeypatch.delitem(LAWS, other)

    return leave


# fits


@pytest.mark.parametrize("name", LAWS)
def test_points_on_a_law_give_its_parameters(name: str) -> None:
    """Without noise the planted parameters come back, chi2 is 0, and the law goes on."""
    laws = fit_log_laws(points(law(name)))
    np.testing.assert_allclose(fitted(laws, name), list(TRUE[name].values()), rtol=1e-7)
    assert laws["chi2"].sel(law=name) < 1e-10
    assert laws["degrees_of_freedom"].sel(law=name) == 7 - len(TRUE[name])
    far = [1e4, 1e6]
    np.testing.assert_allclose(evaluate(laws, name, far)["alpha_half"], law(name, far), rtol=1e-7)


@pytest.mark.parametrize("name", LINEAR)
def test_the_fit_is_the_closed_form_of_weighted_least_squares(name: str) -> None:
    """Both laws are linear in their parameters: value, covariance and chi2 have a closed form."""
    alpha_half = law(name) + ERROR * np.random.default_rng(1).normal(size=N.size)
    slope = np.log(N) if name == "linear" else -1 / np.log(N)
    design = np.column_stack([np.ones(N.size), slope]) / ERROR[:, None]
    covariance = np.linalg.inv(design.T @ design)
    value = covariance @ design.T @ (alpha_half / ERROR)
    laws = fit_log_laws(points(alpha_half))
    np.testing.assert_allclose(fitted(laws, name), value, rtol=1e-6)
    np.testing.assert_allclose(fitted(laws, name, "error"), np.sqrt(np.diag(covariance)), rtol=1e-6)
    names = list(TRUE[name])
    found = laws["covariance"].sel(law=name, parameter=names, other=names)
    np.testing.assert_allclose(found, covariance, rtol=1e-6)
    residual = alpha_half / ERROR - design @ value
    np.testing.assert_allclose(laws["chi2"].sel(law=name), residual @ residual, rtol=1e-6)
    at = np.array([1.0, math.log(1e6) if name == "linear" else -1 / math.log(1e6)])
    error = evaluate(laws, name, 1e6)["standard_error"]
    np.testing.assert_allclose(error, math.sqrt(at @ covariance @ at), rtol=1e-6)


@pytest.mark.parametrize("name", [*LINEAR, "constant"])
def test_planted_parameters_are_recovered_within_their_errors(
    name: str, only: Callable[[str], None]
) -> None:
    """Over 300 draws pulls are N(0, 1), of parameters and at N = 10^6, and chi2 follows its law.

    Each of the three means leaves +-0.2 with a probability of 5e-4, each of the standard
    deviations 0.86 .. 1.14 with 6e-4, and the Kolmogorov-Smirnov test of chi2 fails with 1e-3:
    0.5 % in all. The seed is fixed.
    """
    only(name)
    rng = np.random.default_rng(23)
    pulls, chi2 = [], []
    for _ in range(300):
        laws = fit_log_laws(points(law(name) + ERROR * rng.normal(size=N.size)))
        pull = (fitted(laws, name) - list(TRUE[name].values())) / fitted(laws, name, "error")
        far = evaluate(laws, name, 1e6)
        ahead = (far["alpha_half"] - law(name, 1e6)) / far["standard_error"]
        pulls.append([*pull, ahead.item()])
        chi2.append(float(laws["chi2"].sel(law=name)))
    assert np.abs(np.mean(pulls, axis=0)).max() < 0.2
    assert np.std(pulls, axis=0).min() > 0.86
    assert np.std(pulls, axis=0).max() < 1.14
    assert stats.kstest(chi2, stats.chi2(N.size - len(TRUE[name])).cdf).pvalue > 1e-3


def test_a_planted_power_is_recovered_within_its_errors(only: Callable[[str], None]) -> None:
    """Over 200 draws with small errors; a law that is not linear, so its pulls are nearly N(0, 1).

    A mean leaves +-0.3 with a probability of 1e-4, a standard deviation 0.83 .. 1.17 with 6e-4. The
    seed is fixed.
    """
    only("power")
    rng, pulls = np.random.default_rng(47), []
    for _ in range(200):
        laws = fit_log_laws(points(law("power") + ERROR / 10 * rng.normal(size=N.size), ERROR / 10))
        found = fitted(laws, "power") - list(TRUE["power"].values())
        pulls.append(found / fitted(laws, "power", "error"))
    assert np.abs(np.mean(pulls, axis=0)).max() < 0.3
    assert np.std(pulls, axis=0).min() > 0.83
    assert np.std(pulls, axis=0).max() < 1.17


def test_a_power_that_cannot_be_told_is_not_fitted() -> None:
    """Points on A + B log N leave nu = 0 and alpha_inf anywhere: a note, and no number."""
    laws = fit_log_laws(points(law("linear", N[:4]), 0.1, N[:4])).sel(law="power")
    assert (
        laws["note"].item()
        == "its parameters cannot be told from these alpha_half and their errors"
    )
    assert laws[["value", "error", "chi2"]].isnull().to_array().all()


def test_a_law_planted_in_runs_is_recovered_within_its_errors(only: Callable[[str], None]) -> None:
    """From 40 sweeps of single runs, through alpha_half(N), to B: pulls of mean 0 and width 1.

    Matrices differ, by 5 % in alpha_half. The mean leaves +-0.55 with a probability of 5e-4, the
    standard deviation 0.65 .. 1.4 with 1e-3. The seed is fixed.
    """
    only("linear")
    rng = np.random.default_rng(29)
    sizes, alpha = N[:4], np.linspace(1.8, 6, 9)
    pull = []
    for _ in range(40):
        at = law("linear", sizes)[:, None] * np.exp(rng.normal(0, 0.05, (sizes.size, 16)))
        p = expit(8 * (np.log(alpha)[:, None, None] - np.log(at)))[..., None]
        cell = ("alpha", "N", "seed")
        flags = {"flag_values": [0, 1], "flag_meanings": "missing done"}
        ds = xr.Dataset(
            {
                "status": (cell, np.ones((alpha.size, sizes.size, 16), int), flags),
                "recovered": ((*cell, "start"), (rng.random((*p.shape[:3], 8)) < p).astype(float)),
            },
            coords={"alpha": alpha, "N": sizes, "seed": np.arange(16)},
        )
        fit = fit_log_laws(recovery.alpha_half(ds)).sel(law="linear", parameter="B")
        pull.append(float((fit["value"] - TRUE["linear"]["B"]) / fit["error"]))
    assert abs(np.mean(pull)) < 0.55
    assert 0.65 < np.std(pull) < 1.4


def test_errors_that_few_matrices_told_are_not_taken_as_exact(only: Callable[[str], None]) -> None:
    """With 4 matrices a true law is hardly ever said not to fit, and B is known as well as said.

    300 draws of alpha_half at 4 values of N, their errors by Student's statistics. Rejected at 0.01
    were 0.005 of 40,000, inside 1.96 errors 0.96: more than 8 rejections have a probability of
    1e-4, less than 0.92 inside one of 1e-3. As exact errors they would be 0.06 and 0.84. The seed
    is fixed.
    """
    only("linear")
    rng = np.random.default_rng(37)
    rejected, inside = 0, 0
    for _ in range(300):
        told = 0.05 * np.sqrt(rng.chisquare(3, 4) / 3)
        half = points(law("linear", N[:4]) + 0.05 * rng.normal(size=4), told, N[:4])
        laws = fit_log_laws(half.assign(matrices=("N", [4] * 4))).sel(law="linear")
        rejected += stats.chi2.sf(float(laws["chi2"]), 2) < UNLIKELY
        fit = laws.sel(parameter="B")
        inside += abs(float(fit["value"]) - TRUE["linear"]["B"]) < 1.96 * float(fit["error"])
    assert rejected <= 8
    assert inside >= 0.92 * 300


@pytest.mark.usefixtures("two_laws")
def test_an_error_that_is_hardly_known_weighs_nothing() -> None:
    """Of three matrices it is left out; of very many it is what it is."""
    half = points(law("linear") + 0.02 * np.cos(N)).assign(matrices=("N", [3] + 6 * [10**6]))
    found, rest = (
        fit_log_laws(half),
        fit_log_laws(half[["alpha_half", "standard_error"]][{"N": slice(1, None)}]),
    )
    assert found["fitted_N"].values.tolist() == N[1:].tolist()
    np.testing.assert_allclose(found["error"], rest["error"], rtol=1e-5)
    few = describe(fit_log_laws(half.assign(matrices=("N", 7 * [3]))))
    assert "of 4 matrices or more, at 2 values of N or more; there are 0" in few


def test_what_undecided_runs_leave_open_is_an_error() -> None:
    """Half the distance of the bounds adds in squares; where all are decided nothing changes."""
    half = points(law("linear") + 0.02 * np.cos(N))
    wide = half.assign(least=half["alpha_half"] - 0.2, most=half["alpha_half"] + 0.2)
    expected = fit_log_laws(points(half["alpha_half"], np.hypot(ERROR, 0.2)))
    np.testing.assert_allclose(fit_log_laws(wide)["error"], expected["error"])
    decided = half.assign(least=half["alpha_half"], most=half["alpha_half"])
    xr.testing.assert_identical(fit_log_laws(decided), fit_log_laws(half))


def test_slopes_are_told_by_each_time_and_compared_with_the_end() -> None:
    """Each with its error and time; a difference beyond two errors is said to be the clock's."""

    def by(time: float, slope: float) -> xr.Dataset:
        half = points(1.7 + slope * np.log(N) + 0.001 * np.cos(N)).assign_coords(by=time)
        return fit_log_laws(half)

    said = describe_slopes([by(30, 0.5), by(60, 0.4), by(np.inf, 0.2)])
    assert re.search(r"0\.500±0\.\d+ by t = 30, 0\.400±0\.\d+ by t = 60, 0\.20", said)
    assert re.search(r"By t = 30 it is 0\.30\d*±0\.\d+ larger than in the end", said)
    assert "agrees within the errors" in describe_slopes([by(60, 0.201), by(np.inf, 0.2)])
    unknown = fit_log_laws(points([], [], []).assign_coords(by=np.inf))
    assert describe_slopes([by(60, 0.4), unknown]).endswith("In the end it is not known.")
    assert (
        describe_slopes([unknown]) == "The slope of alpha_half in log N is not known by any time."
    )


@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_errors_scale_and_alpha_shifts(scale: float, shift: float) -> None:
    """Larger errors leave the parameters and stretch theirs; a shift of alpha moves A alone.

    Of the laws that are linear in their parameters: the other takes long to fit.
    """
    alpha_half = law("linear") + 0.05 * np.cos(N)
    with mock.patch.dict(LAWS):
        del LAWS["power"]
        one = fit_log_laws(points(alpha_half))
        other = fit_log_laws(points(alpha_half + shift, scale * ERROR))
    moved = fitted(other, "linear") - [shift, 0]
    np.testing.assert_allclose(moved, fitted(one, "linear"), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        fitted(other, "linear", "error"), scale * fitted(one, "linear", "error"), rtol=1e-5
    )
    np.testing.assert_allclose(other["chi2"] * scale**2, one["chi2"], rtol=1e-4)


def test_the_order_of_N_is_irrelevant_and_lazy_data_is_welcome() -> None:
    """Reversed or not yet loaded, the points give the same laws."""
    half = points(law("linear") + 0.05 * np.cos(N))
    one, other = fit_log_laws(half), fit_log_laws(half.isel(N=slice(None, None, -1)).chunk(N=2))
    for name in ("value", "error", "covariance", "chi2"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6)
    assert describe(one) == describe(other)


# too little


@pytest.mark.usefixtures("two_laws")
@pytest.mark.parametrize(
    ("half", "count"),
    [
        (points([], [], []), 0),
        (points([3.0], [0.1], [64]), 1),
        (points([np.nan, 3.0, np.nan], [np.nan, 0.1, np.nan], [64, 128, 256]), 1),
        (points([3.0, 3.1, 3.2], [np.nan, np.nan, np.nan], [64, 128, 256]), 0),
        (points([3.0, 3.1, 3.2], [0, 0, 0], [64, 128, 256]), 0),
    ],
)
def test_too_few_values_of_N_give_a_note(half: xr.Dataset, count: int) -> None:
    """Without two alpha_half with errors nothing is fitted, and the note counts what there is."""
    laws = fit_log_laws(half)
    assert laws[["value", "error", "covariance", "chi2"]].isnull().all().to_array().all()
    for note in laws["note"].values:
        assert note.endswith(f"at 2 values of N or more; there are {count}")
    assert describe(laws).endswith(f"there are {count}.")
    assert evaluate(laws, "linear", [64, 128]).isnull().all().to_array().all()


@pytest.mark.usefixtures("two_laws")
def test_two_values_of_N_are_fitted_but_prove_nothing() -> None:
    """A line through two points: no degree of freedom, and the text says that nothing is tested."""
    laws = fit_log_laws(points([2.9, 3.4], 0.1, [64, 512]))
    assert (laws["degrees_of_freedom"] == 0).all()
    for name in LAWS:
        np.testing.assert_allclose(evaluate(laws, name, [64, 512])["alpha_half"], [2.9, 3.4])
    said = describe(laws)
    assert said.count("it is not tested") == 2
    assert "nothing tells the laws apart: add values of N" in said


def test_an_unknown_alpha_half_is_left_out() -> None:
    """An N without alpha_half, or whose error is unknown or 0, changes nothing."""
    known = points([2.9, 3.1, 3.3], 0.1, [64, 128, 256])
    unknown = points([np.nan, 9.0, 9.0], [np.nan, np.nan, 0.0], [512, 1024, 2048])
    xr.testing.assert_identical(
        fit_log_laws(xr.concat([known, unknown], dim="N")), fit_log_laws(known)
    )


@pytest.mark.usefixtures("two_laws")
@pytest.mark.parametrize("count", [3, 7])
def test_a_slope_of_zero_keeps_its_error(count: int) -> None:
    """Equal alpha_half give B = 0 with an error: no step of the fit is relative to B."""
    laws = fit_log_laws(points(np.full(count, 3.0), 0.1, N[:count]))
    np.testing.assert_allclose(fitted(laws, "linear"), [3, 0], atol=1e-8)
    np.testing.assert_allclose(fitted(laws, "inverse"), [3, 0], atol=1e-8)
    assert np.isfinite([fitted(laws, name, "error") for name in LAWS]).all()
    assert "No dependence on N is seen" in describe(laws)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(2, 10**9),
            st.one_of(st.just(3.0), st.floats(1e-6, 1e6), st.just(math.nan)),
            st.one_of(st.sampled_from([0.1, 0.0, 1e-9, 1e6, math.nan]), st.floats(1e-9, 1e6)),
        ),
        max_size=6,
        unique_by=lambda row: row[0],
    )
)
def test_any_points_give_laws_or_notes_and_true_words(rows: list[tuple[int, float, float]]) -> None:
    """Equal or wild, exact or vague: no exception, no warning, and no NaN in a sentence."""
    sizes, values, errors = zip(*rows, strict=True) if rows else ((), (), ())
    laws = fit_log_laws(points(values, errors, sizes))
    said = describe(laws)
    assert not re.search(r"\b(nan|inf)\b", said)
    for name in LAWS:
        fit = laws.sel(law=name, parameter=list(LAWS[name].guess))
        assert bool(fit["value"].notnull().all()) != bool(fit["note"].item())


def test_a_repeated_N_is_refused() -> None:
    """One N of two sweeps would weigh twice as much, without a word."""
    with pytest.raises(ValueError, match=r"N must name each .* got 128 more than once"):
        fit_log_laws(points([2.9, 3.1, 3.2], 0.1, [64, 128, 128]))


def test_an_unknown_law_is_refused() -> None:
    """A law that does not exist is refused with those that do."""
    with pytest.raises(ValueError, match=f"law must be one of {', '.join(LAWS)}; got 'cubic'"):
        evaluate(fit_log_laws(points(law("linear"))), "cubic", 100)


# words


@pytest.mark.usefixtures("two_laws")
def test_a_narrow_range_is_said_to_tell_nothing() -> None:
    """From N = 64 to 512 with errors of 0.1 both laws fit, and the text warns to extrapolate."""
    laws = fit_log_laws(points([2.9, 3.0, 3.3, 3.45], 0.1, N[:4]))
    said = describe(laws)
    assert "4 values of N from 64 to 512: log N from 4.16 to 6.24, a factor of 1.50" in said
    assert abs(float(laws["chi2"].diff("law").item())) < DECISIVE
    assert "This range of N does not tell the laws apart" in said
    far = [evaluate(laws, name, 10**6)["alpha_half"].item() for name in LAWS]
    assert f"at N = 10^6 they differ by {abs(far[0] - far[1]):.2g}" in said
    assert "alpha_half rises with log N" in said


@pytest.mark.usefixtures("two_laws")
@pytest.mark.parametrize(("name", "rival"), [("linear", "inverse"), ("inverse", "linear")])
def test_a_wide_range_names_the_law_that_made_the_points(name: str, rival: str) -> None:
    """With errors of 0.02 from N = 64 to 4096, the true law is preferred and the rival rejected."""
    said = describe(fit_log_laws(points(law(name), 0.02)))
    assert f"The points prefer {LAWS[name].formula} to {LAWS[rival].formula}" in said
    [line] = [line for line in said.splitlines() if line.startswith(f"  {LAWS[rival].formula}:")]
    assert "does not fit" in line
    assert "none of them fits" not in said


@pytest.mark.usefixtures("two_laws")
def test_points_on_no_law_are_said_to_fit_none() -> None:
    """A hump fits neither law, and the text says that the true one is another."""
    said = describe(fit_log_laws(points(3 - (np.log(N) - 6) ** 2, 0.02)))
    assert said.count("does not fit") == 2
    assert "none of them fits" in said


def test_AIC_foretells_how_well_a_law_fits_new_points() -> None:
    """chi2 of new points is chi2 + 4 on average, for two parameters, with 4 values of N as with 7.

    2,000 draws: the mean difference has a standard deviation of 0.15 at most, and leaves 4 +- 0.6
    with a probability of 1e-4. AICc would foretell 16 with 4 values of N, 7 with 7.
    """
    rng = np.random.default_rng(41)
    for count in (4, 7):
        at, error = N[:count], ERROR[:count]
        design = np.column_stack([np.ones(count), np.log(at)]) / error[:, None]
        hat = design @ np.linalg.pinv(design)
        old, new = rng.normal(size=(2, 2000, count))
        further = np.mean(((new - old @ hat) ** 2).sum(1) - ((old - old @ hat) ** 2).sum(1))
        laws = fit_log_laws(points(law("linear", at) + error * old[0], error, at)).sel(law="linear")
        assert float(laws["chi2"]) == pytest.approx(((old[0] - hat @ old[0]) ** 2).sum(), rel=1e-6)
        assert float(laws["aic"] - laws["chi2"]) == pytest.approx(further, abs=0.6)


@pytest.mark.usefixtures("two_laws")
def test_a_smaller_law_is_preferred_where_it_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Laws of 1 and 2 parameters: the sentence goes by AIC, which chi2 alone would turn around."""
    monkeypatch.setitem(LAWS, "constant", CONSTANT)
    flat = fit_log_laws(points(3 + 0.01 * np.cos(N), 0.1))
    assert flat["chi2"].sel(law="constant") > flat["chi2"].sel(law="linear")
    assert flat["aic"].sel(law="constant") < flat["aic"].sel(law="linear")
    assert "does not tell the laws apart" in describe(flat)
    with monkeypatch.context() as bolder:
        bolder.setattr(scaling, "DECISIVE", 1.0)
        assert "The points prefer A to " in describe(flat)
    steep = describe(fit_log_laws(points(law("linear"), 0.02)))
    assert "The points prefer A + B log N to alpha_inf - A / log N, A: their AIC differ by" in steep
    vague = describe(fit_log_laws(points(law("linear", N[:4]), 0.1, N[:4])))
    assert "does not tell A + B log N and alpha_inf - A / log N apart" in vague
    two = describe(fit_log_laws(points([2.9, 3.4], 0.1, [64, 512])))
    assert "Only A is tested: add values of N to compare it." in two


def test_parameters_are_written_with_two_digits_of_their_errors() -> None:
    """B = 0.28 with an error of 0.0134 is written 0.280±0.013."""
    laws = fit_log_laws(points(law("linear")))
    error = float(laws["error"].sel(law="linear", parameter="B"))
    assert 0.01 < error < 0.0995
    assert f"B = 0.280±{error:.3f}" in describe(laws)


def test_every_result_is_labelled() -> None:
    """Every variable and coordinate has a long_name and units."""
    laws = fit_log_laws(points(law("linear")))
    for result in (laws, evaluate(laws, "linear", N)):
        for name, variable in result.variables.items():
            assert variable.attrs.get("long_name"), name
            assert variable.attrs.get("units") == "1", name


def test_a_law_that_wanders_off_is_not_broken() -> None:
    """Points that rise once and then stay drive nu beyond all bounds: not told, and no error."""
    half = points([2.658, 3.045, 2.976, 3.004], [0.11, 0.08, 0.06, 0.09], 64 * 2 ** np.arange(4))
    laws = fit_log_laws(half)
    assert not laws["raised"].any()
    assert laws["note"].sel(law="power").item().startswith("its parameters cannot be told")
    assert "not fitted" not in describe(laws)
