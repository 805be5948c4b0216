"""Plain steps at learning_rate = "auto": stable at any a, alpha, N, and recorded at true times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import alphasweep
from alphasweep.analysis import thresholds
from alphasweep.analysis.recovery import recovery_probability
from alphasweep.analysis.study import Study
from alphasweep.kernels.descent import Outcome, descend
from alphasweep.kernels.instance import measurements
from alphasweep.kernels.loss import IntensityLoss
from alphasweep.kernels.problem import Problem
from alphasweep.kernels.rates import (
    recorded_unit,
    safe_rate,
    stable_rate,
    time_unit,
    too_large,
)
from alphasweep.kernels.spectrum import upper_edge
from alphasweep.pipeline import provenance
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.plan import REFERENCE, CostModel, Plan, make_plan
from alphasweep.pipeline.provenance import fingerprint, other_numbers
from alphasweep.pipeline.run import Doubt, run
from alphasweep.pipeline.spec import Sweep, as_document
from alphasweep.pipeline.store import Store
from alphasweep.pipeline.verify import verify
from tests.conftest import bits, fill, parts_of

SWEEP: dict[str, Any] = {
    "name": "auto",
    "root_seed": 1,
    "grid": {"alpha": [2.0, 6.0], "N": [16, 32], "seed": [0, 1], "start": [0, 1]},
    "problem": {"a": 1.0},
    "descent": {"learning_rate": "auto", "t_max": 5.0, "recovered_at": 0.9},
    "record": {"times": [0.1, 1.0, 2.7]},
    "probe": {"times": [0.0, 1.0], "modes": 1},
}


def auto(**changes: Any) -> Sweep:
    """Return a small sweep at learning_rate = "auto", with some keys replaced."""
    return Sweep.from_document(SWEEP | {key: SWEEP[key] | value for key, value in changes.items()})


@pytest.mark.parametrize("alpha", [1.5, 6.0])
def test_the_upper_edge_is_the_largest_eigenvalue(alpha: float) -> None:
    """Within a few per cent at N = 400, for ell'' of labels that are independent of the sensing."""
    problem, M = Problem(IntensityLoss(1.0)), measurements(alpha, 400)
    instance = problem.instance(0, 400, 0, M=M, precision="float64")
    X = instance.sensing.forward(np.eye(400))
    y_hat, y = np.random.default_rng(0).standard_normal((2, M, 1))
    t = problem.loss.second(y_hat, np.abs(y))
    largest = np.linalg.eigvalsh(X.T @ (t * X) / alpha)[-1]
    np.testing.assert_allclose(upper_edge(t, 400), largest, rtol=0.08)


@pytest.mark.parametrize(("a", "alpha", "N"), [(0.01, 1.5, 32), (1.0, 8.0, 32), (10.0, 1.5, 64)])
def test_no_start_diverges_at_the_safe_rate_and_most_do_at_16_times_it(
    a: float, alpha: float, N: int
) -> None:
    """Streams are fixed; `safe_rate` tells of more starts."""
    problem, rate = Problem(IntensityLoss(a)), safe_rate(IntensityLoss(a), alpha, N)
    diverged = []
    for factor in (1, 16):
        ends = [0, max(512, round(3 / (factor * rate)))]
        for seed in (0, 1):
            instance = problem.instance(0, N, seed, M=measurements(alpha, N))
            starts = problem.starts(0, N, seed, range(16), instance=instance)
            step = {"learning_rate": factor * rate, "record": ends}
            end = descend(instance, starts, loss=problem.loss, **step)
            diverged.append((end.outcome == Outcome.DIVERGED).mean())
    assert diverged[:2] == [0, 0]
    assert np.mean(diverged[2:]) > 0.5


def test_the_safe_rate_is_a_power_of_two_that_falls_with_N_and_grows_with_a_and_alpha() -> None:
    """So that runs of all alpha and N have steps at the same times, exactly."""
    for a in (0.001, 0.01, 0.1, 1.0, 10.0):
        loss = IntensityLoss(a)
        for alpha in (1.0, 3.0, 10.0):
            rates = np.array([safe_rate(loss, alpha, N) for N in (16, 64, 256, 1024)])
            mantissas, _ = np.frexp(rates)
            assert np.all(mantissas == 0.5)
            assert np.all(np.diff(rates) <= 0)
            assert np.all(rates <= time_unit(loss))
            assert np.all(rates < 0.7 * np.array([stable_rate(loss, alpha, 16)]))
        assert safe_rate(loss, 1.0, 1024) < safe_rate(loss, 10.0, 1024)
        assert safe_rate(loss, 3.0, 1024) < safe_rate(IntensityLoss(10 * a), 3.0, 1024)
    assert recorded_unit(IntensityLoss(1.0), 5.0) == time_unit(IntensityLoss(1.0)) == 1 / 32
    assert recorded_unit(IntensityLoss(1.0), 0.01) == 1 / 128


def test_times_are_those_at_which_all_sizes_have_a_step(tmp_path: Path) -> None:
    """What is recorded under a label is at that time, whatever the rate: the energies say it."""
    sweep = auto()
    store = Store(tmp_path / "auto.zarr")
    fill(store, sweep, parts_of(sweep))
    ds = alphasweep.open(store.path).load()
    assert ds.learning_rate.dims == ("alpha", "N")
    assert len(np.unique(ds.learning_rate)) > 1
    np.testing.assert_array_equal(ds.time, [0, 3 / 32, 1, 2.6875, 5])
    np.testing.assert_array_equal(ds.end_time, ds.steps * ds.learning_rate)
    loss = sweep.problem.loss
    for alpha in sweep.grid.alpha:
        for N in sweep.grid.N:
            rate = safe_rate(loss, alpha, N)
            assert rate == ds.learning_rate.sel(alpha=alpha, N=N)
            instance = sweep.problem.instance(1, N, 1, M=measurements(alpha, N))
            alone = descend(
                instance,
                sweep.problem.starts(1, N, 1, (0, 1), instance=instance),
                loss=loss,
                learning_rate=rate,
                record=[round(time / rate) for time in ds.time.values],
                recovered_at=0.9,
            )
            cell = ds.sel(alpha=alpha, N=N, seed=1)
            np.testing.assert_array_equal(cell.energy, alone.energy.astype(np.float32))
            np.testing.assert_array_equal(cell.recovery_time, alone.recovery_time)


@pytest.mark.long
def test_a_wider_sweep_changes_no_rate_and_no_bit(tmp_path: Path) -> None:
    """The rate of an (alpha, N) depends on nothing but the loss; the wider store is sound."""
    store, whole = Store(tmp_path / "auto.zarr"), Store(tmp_path / "whole.zarr")
    wide = auto(grid={"alpha": [2.0, 3.0, 6.0], "N": [8, 16, 32]})
    fill(store, auto(), parts_of(auto()))
    had = {part.name for part in parts_of(auto())}
    fill(store, wide, [part for part in parts_of(wide) if part.name not in had])
    fill(whole, wide, parts_of(wide))
    assert bits(store.path) == bits(whole.path)
    for each in (store, whole):
        assert [f for f in verify(each).findings if f.severity != "note"] == []


def test_code_that_would_choose_other_rates_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fingerprint holds the rates of pairs that no small run of it has."""
    recipe = auto().recipe
    expected = json.loads(json.dumps(fingerprint(recipe)))
    assert other_numbers(recipe, expected) == []
    real = provenance.OF_PAIRS["learning_rate"]

    def halved_at_large_N(recipe: Any, alpha: float, N: int) -> float:
        return real[1](recipe, alpha, N) / (2 if N > 1000 else 1)

    monkeypatch.setitem(provenance.OF_PAIRS, "learning_rate", (real[0], halved_at_large_N))
    (told,) = other_numbers(recipe, expected)
    assert told.startswith("steps a unit of time by up to")


def test_a_number_is_what_it_was(tmp_path: Path) -> None:
    """A sweep with a number has no variable learning_rate, and the number decides."""
    sweep = auto(descent={"learning_rate": 1 / 64})
    store = Store(tmp_path / "number.zarr")
    fill(store, sweep, parts_of(sweep))
    assert "learning_rate" not in xr.open_zarr(store.path).variables
    (cell,) = compute(sweep.recipe, Part(6.0, 16, 0, 0))
    (same,) = compute(auto().recipe, Part(6.0, 16, 0, 0))
    assert (safe_rate(sweep.problem.loss, 6.0, 16) == 1 / 64) == (
        cell["final_energy"].tolist() == same["final_energy"].tolist()
    )
    assert "steps a unit of time" not in fingerprint(sweep.recipe)


def test_probabilities_by_a_time_are_those_of_a_store_that_ends_then(tmp_path: Path) -> None:
    """Times of the analysis are rounded as the sweep rounds its t_max."""
    whole, early = Store(tmp_path / "whole.zarr"), Store(tmp_path / "early.zarr")
    grid = {"alpha": [6.0, 8.0], "start": [*range(16)]}
    time = 2.72  # rounded to 2.71875
    fill(whole, auto(grid=grid), parts_of(auto(grid=grid)))
    ends = auto(grid=grid, descent={"t_max": time}, record={"times": []})
    fill(early, ends, parts_of(ends))
    one = recovery_probability(alphasweep.open(whole.path).load(), by=time)
    other = recovery_probability(alphasweep.open(early.path).load(), by=time)
    assert 0 < float(one.probability.mean()) < 1
    np.testing.assert_array_equal(one.probability, other.probability)


def test_more_than_a_hundredth_that_diverged_at_auto_is_told(tmp_path: Path) -> None:
    """It names no number, as there were several."""
    store = Store(tmp_path / "auto.zarr")
    fill(store, auto(), parts_of(auto()))
    ds = alphasweep.open(store.path).load()
    told = Study(ds.assign(outcome=(0 * ds.outcome + 4).assign_attrs(ds.outcome.attrs))).unstable
    assert told.endswith('at what learning_rate = "auto" chose: give a number below it.')


def test_auto_is_kept_by_its_name() -> None:
    """In the document of a sweep, which a store keeps; a number is a float of its own."""
    assert as_document(auto())["descent"]["learning_rate"] == "auto"
    assert Sweep.from_document(as_document(auto())) == auto()
    assert auto(descent={"learning_rate": 1}).descent.own["learning_rate"] == 1.0


@pytest.mark.parametrize("a", [0.01, 10.0])
def test_a_rate_that_is_too_large_is_told_before_anything_runs(
    a: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By plan and run, for the largest eigenvalue, in the words of the end of a run."""

    def planned(rate: float | str) -> Plan:
        changed = {"problem": {"a": a}, "descent": {"learning_rate": rate, "t_max": 5.0}}
        return make_plan(auto(**changed), CostModel(REFERENCE))

    limit = stable_rate(IntensityLoss(a), 2.0, 32)
    assert planned(0.99 * limit).unstable == planned("auto").unstable == ""
    told = planned(1.01 * limit).unstable
    assert told == too_large(IntensityLoss(a), 1.01 * limit, 2.0, 32) + "."
    assert planned(1.01 * limit).numbers()["unstable"] == told
    advised = float(told.split("too large: ")[1].split()[0])
    assert limit / 4 < advised <= limit / 2
    assert planned(advised).unstable == ""
    of_end: dict[str, Any] = {
        "loss": "intensity",
        "a": a,
        "sensing": "gaussian",
        "start": "uniform",
    }
    of_end["learning_rate"] = 1.01 * limit
    assert thresholds.too_large(of_end, N=32, alpha=2.0) + "." == told

    events: list[Any] = []

    def stop(event: Any) -> None:
        events.append(event)
        if isinstance(event, Doubt):
            raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    sweep = auto(problem={"a": a}, descent={"learning_rate": 1.01 * limit})
    with pytest.raises(KeyboardInterrupt):
        run(sweep, workers=1, watch=stop)
    assert [type(event) for event in events] == [Plan, Doubt]
    assert events[1] == told
    assert not Store("auto.zarr").status().any()


def test_flow_has_no_rate_to_warn_of() -> None:
    """And its plan says so."""
    document = SWEEP | {"descent": {"method": "flow", "t_max": 5.0}}
    flow = make_plan(Sweep.from_document(document), CostModel(REFERENCE))
    assert flow.unstable == flow.numbers()["unstable"] == ""
