"""Claims about alpha_BBP(t), its limit, and how runs that recover had escaped: on made-up runs."""

import math

import numpy as np
import pytest
import xarray as xr

from alphasweep.analysis.hessian_figures import phase_diagram
from alphasweep.analysis.mechanism import SMALL_OVERLAP, describe, escapes, overlap_growth, ways_out
from alphasweep.analysis.study import Study
from alphasweep.analysis.style import why_empty
from alphasweep.analysis.transition import alpha_bbp_in_time, limit, outlier_share

TIME = np.array([0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0])
FLAGS = {"flag_values": [0, 1, 2], "flag_meanings": "missing done failed"}
RUN = ("alpha", "N", "seed", "start", "time")


def runs(
    alpha: list[float], overlap: np.ndarray, alive: np.ndarray, recovered: np.ndarray
) -> xr.Dataset:
    """Make a dataset at one N of overlaps and outliers, (alpha, seed, start, time) each."""
    shape = overlap.shape
    return xr.Dataset(
        {
            "status": (RUN[:3], np.ones((shape[0], 1, shape[1]), int), FLAGS),
            "overlap": (RUN, overlap[:, None]),
            "energy": (RUN, np.where(np.isfinite(overlap), 0.5, np.nan)[:, None]),
            "outlier": (RUN, np.where(alive, -2.0, np.nan)[:, None]),
            "recovered": (RUN[:4], recovered[:, None].astype(float)),
        },
        coords={"alpha": alpha, "N": [100], "seed": range(shape[1]), "start": range(shape[2]),
                "time": TIME},
    )  # fmt: skip


def crossings(at: np.ndarray, alpha: np.ndarray) -> xr.Dataset:
    """Runs (seed, time) of one start that have an outlier above an alpha of their own."""
    alive = alpha[:, None, None, None] > at[None, :, None, :]
    still = np.full(alive.shape, 0.01)
    return runs(alpha.tolist(), still, alive, np.zeros(alive.shape[:3]))


def test_alpha_bbp_is_the_mean_of_where_outliers_appear() -> None:
    """Crossings of 200 matrices that rise with time come back, and so does their spread."""
    rng = np.random.default_rng(0)
    mean = 2 + np.log1p(TIME)
    at = mean + 0.3 * rng.standard_normal((200, 1))
    found = alpha_bbp_in_time(crossings(at, np.arange(0.5, 8.0, 0.1))).isel(N=0)
    np.testing.assert_allclose(found["alpha_bbp"], at.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(found["standard_error"], 0.3 / math.sqrt(200), rtol=0.35)


def test_the_distance_of_alphas_is_part_of_the_error() -> None:
    """Where all matrices cross between the same two alphas nothing tells where."""
    at = np.full((8, 1), 3.1) + 0 * TIME
    found = alpha_bbp_in_time(crossings(at, np.arange(1.0, 6.0, 0.5))).isel(N=0, time=0)
    assert float(found["alpha_bbp"]) == pytest.approx(3.25)
    assert float(found["standard_error"]) == pytest.approx(0.5 / math.sqrt(12))


def test_a_transition_outside_of_the_alphas_is_not_known() -> None:
    """NaN, where some have one at the smallest alpha or none at the largest; or with one alpha."""
    at = np.array([[0.4], [3.0], [9.0]]) + 0 * TIME
    for alpha in (np.arange(1.0, 6.0, 0.5), np.array([2.0])):
        assert alpha_bbp_in_time(crossings(at, alpha))["alpha_bbp"].isnull().all()


def test_cells_that_are_not_done_are_left_out() -> None:
    """A matrix that lacks an alpha counts at none: it would move the others' mean."""
    at = np.array([[2.0], [3.0], [4.0]]) + 0 * TIME
    ds = crossings(at, np.arange(1.0, 6.0, 0.1))
    ds["status"][5, 0, 2] = 0
    assert outlier_share(ds).isel(alpha=5, seed=2).isnull().all()
    found = alpha_bbp_in_time(ds).isel(N=0)
    np.testing.assert_allclose(found["alpha_bbp"], 2.5, atol=0.06)
    assert float(found["share"].sel(alpha=3.55, method="nearest").isel(time=0)) == 1


@pytest.mark.parametrize("power", [0.3, 0.6, 1.0])
def test_a_limit_is_extrapolated_with_an_error_that_holds_it(power: float) -> None:
    """Of 6 - 2 t^-p with errors of matrices; in 40 repetitions within three errors of 6 in all."""
    time = np.append(0, np.geomspace(0.03, 200, 40))
    off = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        noise = 0.02 * rng.standard_normal((8, 1)) + 0.002 * rng.standard_normal((8, 41))
        with np.errstate(divide="ignore"):
            found = limit(time, 6 - 2 * np.where(time > 0, time, 1e-9) ** -power + noise)
        off.append((found["value"] - 6) / found["error"])
        assert found["note"] == ""
    assert np.mean(np.abs(off) < 3) >= 0.9
    assert abs(np.mean(off)) < 1.5


def test_too_few_matrices_or_times_have_no_limit() -> None:
    """It is said what is needed."""
    time = np.geomspace(0.1, 100, 30)
    found = limit(time, np.ones((2, 30)))
    assert math.isnan(found["value"])
    assert "3 matrices and 5 recorded times" in found["note"]
    assert limit(time[::10], np.ones((5, 3)))["note"]


def story() -> xr.Dataset:
    """Three runs on each of two matrices: one leaves before the door closes, one after, one not."""
    early = [0.05, 0.1, 0.2, 0.45, 0.8, 0.95, np.nan]
    late = [0.05, 0.06, 0.07, 0.08, 0.1, 0.2, 0.4]
    never = [0.05, 0.06, 0.07, 0.08, 0.1, 0.1, 0.1]
    alive = TIME < [[2.0], [0.5], [0.5]]
    both = np.stack([np.array([early, late, never])] * 2)
    return runs([3.0], both[None], np.stack([alive] * 2)[None], np.array([[[1, 1, 0]] * 2]))


def test_who_escaped_before_the_door_closed() -> None:
    """Times are interpolated between records; a door that would close later is not known."""
    found = escapes(story()).isel(alpha=0, N=0, seed=0)
    escape, door = found["escape"].values, found["door"].values
    share = math.log(0.3 / 0.2) / math.log(0.45 / 0.2)
    assert escape[0] == pytest.approx(0.3 * (1.0 / 0.3) ** share)
    assert math.isnan(door[0])
    assert escape[1] == pytest.approx(10 * 3 ** (math.log(0.3 / 0.2) / math.log(2)))
    assert door[1] == pytest.approx(math.sqrt(0.3))
    assert math.isnan(escape[2])
    shares = ways_out(escapes(story())).isel(alpha=0, N=0)
    assert float(shares["before"]) == 0.5
    assert float(shares["late"]) == 0.5
    assert int(shares["recovered"]) == 4
    half = xr.Dataset({"alpha_half": ("N", [3.1])}, coords={"N": [100]})
    assert (
        "N = 100, alpha = 3: of 4 runs that recovered 50% had escaped before the outlier was gone, "
        "50% more than three times later" in describe(escapes(story()), half)
    )


def test_no_outlier_at_the_start_is_a_door_that_was_never_open() -> None:
    """And a run that begins beyond the small overlaps has escaped at once."""
    ds = story()
    ds["outlier"][:] = np.nan
    found = escapes(ds).isel(alpha=0, N=0, seed=0)
    assert found["door"].values[0] == 0
    assert float(ways_out(escapes(ds))["before"].item()) == 0
    half = xr.Dataset({"alpha_half": ("N", [3.1])}, coords={"N": [100]})
    assert describe(escapes(ds), half) == ""
    ds["overlap"][:] = 0.5
    assert np.all(escapes(ds)["escape"].values == 0)
    assert SMALL_OVERLAP == 0.3


def test_growth_of_the_overlap_is_that_of_the_median_and_its_pull_an_integral() -> None:
    """Runs that ended keep their last overlap; the outlier is integrated while it is there."""
    found = overlap_growth(story()).isel(alpha=0, N=0)
    np.testing.assert_allclose(found["median"], [0.05, 0.06, 0.07, 0.08, 0.1, 0.2, 0.4])
    np.testing.assert_allclose(found["growth"], found["median"] / 0.05)
    np.testing.assert_allclose(found["scaled"], 10 * found["median"])
    # Of -2 for all to 0.3, then of one of three runs; by trapezoids.
    rate = np.array([2, 2, 2, 2 / 3, 0, 0, 0])
    pull = np.append(0, np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(TIME)))
    # The first run has ended by t = 30, but its last overlap counts on.
    np.testing.assert_allclose(found["pull"], pull)


def test_a_null_sweep_whose_largest_N_is_missing_is_described_by_the_others() -> None:
    """As after a run that was stopped, or whose largest cells failed: figure and sentences."""
    at = 5 - 3 * np.exp(-TIME) + 0.1 * np.random.default_rng(1).standard_normal((6, 1))
    small = crossings(at, np.arange(1.0, 8.0, 0.25))
    missing = small.assign_coords(N=[200]).assign(status=small["status"] * 0)
    ds = xr.concat([small, missing], "N")
    ds["final_energy"] = ds["energy"].isel(time=-1)
    problem = {"loss": "amplitude", "signal": "null", "sensing": "gaussian", "start": "uniform"}
    ds.attrs["sweep"] = {"root_seed": 0, "descent": {"t_max": 30.0}, "problem": problem}
    study = Study(ds)
    assert study.largest == 100
    assert study.threshold_at_bbp is None  # of a loss whose Hessian knows nothing of labels
    text = study.describe()
    assert "N = 100: 2.0" in text
    assert "N = 200: no transition" in text
    assert why_empty(phase_diagram(study)) == ""


def test_a_null_sweep_is_described_by_its_transition() -> None:
    """Times, errors, the limit and the theory are in the sentences."""
    rng = np.random.default_rng(1)
    at = 5 - 3 * np.exp(-TIME) + 0.1 * rng.standard_normal((6, 1))
    ds = crossings(at, np.arange(1.0, 8.0, 0.25))
    ds["final_energy"] = ds["energy"].isel(time=-1)
    problem = {"loss": "intensity", "a": 1.0, "signal": "null", "sensing": "gaussian"}
    ds.attrs["sweep"] = {
        "root_seed": 0,
        "descent": {"method": "flow", "t_max": 30.0},
        "problem": problem | {"start": "uniform"},
    }
    text = Study(ds).describe()
    assert "alpha_BBP(t), above which the Hessian has an outlier at time t:" in text
    assert "N = 100: 2.0" in text
    assert "at t = 30." in text
    assert "alpha_BBP_init = 1.1349" in text
    assert "alpha_BBP_TS = 7.0940" in text
    assert "its limit is not known: needs 3 matrices and 5 recorded times" in text
