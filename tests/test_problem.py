"""A loss, a sensing and a kind of start are entries of tables, and an old sweep is what it was."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from alphasweep.analysis.figures import FIGURES
from alphasweep.analysis.recovery import descent_of, has_no_signal
from alphasweep.analysis.study import Study
from alphasweep.analysis.thresholds import alpha_bbp_init, threshold_of
from alphasweep.kernels.descent import descend
from alphasweep.kernels.hessian import lowest_eigenpairs
from alphasweep.kernels.loss import IntensityLoss, energy, multiplier
from alphasweep.kernels.problem import LOSSES, SENSINGS, STARTS, Problem
from alphasweep.kernels.sensing import gaussian_sensing
from alphasweep.kernels.spectrum import spectrum
from alphasweep.pipeline.messages import SweepError
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.provenance import recipe_digest
from alphasweep.pipeline.spec import Sweep, as_document, load
from alphasweep.pipeline.store import Store
from alphasweep.pipeline.sweeps import differences
from tests.conftest import TINY, bits, fill, parts_of, tiny
from tests.losses import Welsch

NEW = {key: value for key, value in TINY.items() if key != "descent"} | {
    "problem": {"a": 1.0},
    "descent": {"learning_rate": 0.03, "t_max": 3.0},
}


@pytest.fixture
def welsch(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Register a second loss, and return the document of a sweep with it."""
    monkeypatch.setitem(LOSSES, "welsch", Welsch)
    return NEW | {"problem": {"loss": "welsch", "b": 0.7}}


# --- the value ---------------------------------------------------------------------------------


def test_a_problem_is_a_value() -> None:
    """It is equal to its like, travels, and knows nothing that is in no table."""
    problem = Problem(IntensityLoss(1.0), "null")
    assert pickle.loads(pickle.dumps(problem)) == problem == tiny_null().problem
    assert pickle.loads(pickle.dumps(tiny().recipe)) == tiny().recipe
    for key in ("signal", "sensing", "start"):
        with pytest.raises(ValueError, match=f"{key} must be one of .*; got nothing"):
            Problem(IntensityLoss(1.0), **{key: "nothing"})  # type: ignore[arg-type]


def tiny_null() -> Sweep:
    """Return the tiny sweep of the null model."""
    return Sweep.from_document(NEW | {"problem": {"a": 1.0, "signal": "null"}})


# --- old and new spelling ----------------------------------------------------------------------


def test_both_spellings_are_the_same_sweep() -> None:
    """`a` and `signal` in [descent] are those of [problem], also where both are there and agree."""
    old = Sweep.from_document(TINY)
    new = Sweep.from_document(NEW)
    both = Sweep.from_document(TINY | {"problem": {"a": 1, "loss": "intensity"}})
    assert old == new == both
    assert differences(old, new) == []
    document = as_document(old)
    assert document["problem"] == {
        "loss": "intensity",
        "a": 1.0,
        "signal": "planted",
        "sensing": "gaussian",
        "start": "uniform",
    }
    assert "a" not in document["descent"]


def test_digests_of_before_problems_had_a_name() -> None:
    """Parts that older code handed in are taken: these are the digests of commit 911740a."""
    assert recipe_digest(tiny().recipe) == recipe_digest(Sweep.from_document(NEW).recipe)
    assert recipe_digest(tiny().recipe) == "b023266cffc48ea0"
    assert recipe_digest(tiny_null().recipe) == "095bca1b58c67e7e"


def test_every_part_of_a_problem_is_in_the_digest(
    welsch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another loss, parameter, sensing or start is another recipe."""
    monkeypatch.setitem(SENSINGS, "other", gaussian_sensing)
    monkeypatch.setitem(STARTS, "other", STARTS["uniform"])
    problems: list[dict[str, Any]] = [
        {"a": 1.0}, {"a": 1.1}, {"a": 1.0, "signal": "null"}, {"a": 1.0, "sensing": "other"},
        {"a": 1.0, "start": "other"}, {"loss": "welsch", "b": 0.7}, {"loss": "welsch", "b": 0.8},
    ]  # fmt: skip
    sweeps = [Sweep.from_document(NEW | {"problem": problem}) for problem in problems]
    assert len({recipe_digest(sweep.recipe) for sweep in sweeps}) == len(problems)
    assert all(differences(sweeps[0], other) for other in sweeps[1:])


def problems_of(changes: dict[str, Any]) -> list[str]:
    """Return what is wrong with a document."""
    with pytest.raises(SweepError) as caught:
        Sweep.from_document(NEW | changes)
    return caught.value.problems


OLD_DESCENT = NEW["descent"] | {"a": 2.0}  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"descent": OLD_DESCENT},
         "[descent] a: must be that of [problem], 1.0, or left out; got 2.0."),
        ({"problem": {"a": 0}}, "[problem] a: must be > 0; got 0."),
        ({"problem": {}}, "[problem] a: required, but missing."),
        ({"problem": {"a": True}}, "[problem] a: must be numeric; got true."),
        ({"problem": 3}, "[problem]: must be a table; got 3."),
        ({"problem": {"a": 1.0, "los": "intensity"}},
         "[problem] los: unknown key; did you mean loss?"),
        ({"problem": {"loss": "intens", "a": 1.0}},
         '[problem] loss: must be one of intensity, quartic, amplitude; got "intens".'),
        ({"problem": {"loss": 1}}, "[problem] loss: must be text; got 1."),
        ({"problem": {"a": 1.0, "sensing": "sparse"}},
         '[problem] sensing: must be one of gaussian, revealed, auto; got "sparse".'),
        ({"problem": {"a": 1.0, "sensing_tolerance": 1e-4}},
         "[problem] sensing_tolerance: is of sensing = revealed or auto; "
         'got it with "gaussian".'),
        ({"problem": {"a": 1.0, "sensing": "revealed", "sensing_tolerance": 1e-7}},
         "[problem] sensing_tolerance: must be >= 1.9e-06 in float32; got 1e-07."),
        ({"problem": {"a": 1.0, "start": "warm"}},
         "[problem] start: must be one of uniform, overlap, hessian, spectral, trimmed; "
         'got "warm".'),
        ({"problem": {"a": 1.0, "start": "spectral"}},
         '[grid] start: must be one value with start = "spectral", which is one point of a '
         "matrix; got 2 values."),
        ({"problem": {"a": 1.0, "start": "overlap"}},
         '[problem] start_overlap: is required with start = "overlap".'),
        ({"problem": {"a": 1.0, "start_overlap": 0.1}},
         '[problem] start_overlap: is of start = "overlap"; got it with "uniform".'),
        ({"problem": {"a": 1.0, "start": "hessian", "sensing": "auto"}},
         "[problem] start: must be overlap or uniform where sensing is auto, since others are "
         'made from the whole matrix; got "hessian".'),
    ],
)  # fmt: skip
def test_one_problem_of_a_problem(changes: dict[str, Any], expected: str) -> None:
    """What is wrong is named once, where it was typed."""
    assert problems_of(changes) == [f"sweep, {expected}"]


def test_a_parameter_belongs_to_its_loss(welsch: dict[str, Any]) -> None:
    """The parameter of another loss is unknown."""
    assert problems_of({"problem": {"loss": "welsch", "b": 1.0, "a": 1.0}})[0].startswith(
        "sweep, [problem] a: unknown key"
    )


# --- a second loss, from the file to the laws --------------------------------------------------


def test_a_second_loss_runs_a_sweep(welsch: dict[str, Any], store: Store, tmp_path: Path) -> None:
    """Descent, probes and spectrum are those of the loss; the threshold of the other is not told.

    A cell of the store is compared with the kernels' own answer.
    """
    lines = {"alpha": [2.0, 4.0], "N": [8, 12], "seed": [0, 1, 2], "start": [0, 1]}
    text = ['name = "second"\nroot_seed = 5\n[problem]\nloss = "welsch"\nb = 0.7\n[grid]']
    text += [f"{axis} = {values}" for axis, values in lines.items()]
    text += ["[descent]\nlearning_rate = 0.03\nt_max = 3.0\n[record]\ntimes = [0.3, 1.0]"]
    text += ["[probe]\ntimes = [0.0, 1.0]\nmodes = 2"]
    (tmp_path / "second.toml").write_text("\n".join(text))
    sweep = load(tmp_path / "second.toml")
    fill(store, sweep, parts_of(sweep))
    assert store.sweep() == sweep

    loss, ds = Welsch(0.7), store.open()
    cell = ds.sel(alpha=4.0, N=12, seed=1)
    instance = sweep.problem.instance(5, 12, 1, M=48)
    starts = sweep.problem.starts(5, 12, 1, (0, 1), instance=instance)
    run = descend(instance, starts, loss=loss, learning_rate=0.03, record=sweep.recipe.steps)
    assert np.array_equal(cell.energy, run.energy.astype(cell.energy.dtype), equal_nan=True)
    y_hat = instance.sensing.forward(starts)
    mu = multiplier(y_hat, instance.y, loss)
    edge = spectrum(y_hat, instance.y, loss=loss, N=12, mu=mu).bulk_edge
    lowest = lowest_eigenpairs(instance, starts[:, 0], loss=loss, modes=2).values
    at_start = cell.isel(time=0)
    np.testing.assert_allclose(at_start.energy, energy(y_hat, instance.y, loss), rtol=1e-6)
    np.testing.assert_allclose(at_start.bulk_edge, edge, rtol=1e-6)
    np.testing.assert_allclose(at_start.lambda_min, lowest, rtol=1e-6)
    other = lowest_eigenpairs(instance, starts[:, 0], loss=IntensityLoss(0.7), modes=2).values
    assert abs(other[0] - lowest[0]) > 0.1

    settings = descent_of(ds)
    assert (settings["loss"], settings["b"]) == ("welsch", 0.7)
    study = Study(ds)
    assert study.threshold == alpha_bbp_init(loss)
    assert study.threshold_at_bbp is None
    assert f"alpha_BBP_init = {study.threshold:.4f}" in study.describe()
    drawn = [make(study) for make in FIGURES.values()]
    told = [t.get_text() for f in drawn for t in f.findobj(lambda o: hasattr(o, "get_text"))]
    assert any("welsch" in text for text in told)


def test_a_start_and_a_sensing_are_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kind that is in its table is named by a sweep, and its numbers are used."""
    uniform = STARTS["uniform"]
    monkeypatch.setitem(STARTS, "mirrored", lambda *args, **more: -uniform(*args, **more))
    monkeypatch.setitem(
        SENSINGS, "halved", lambda *drawn: type(g := gaussian_sensing(*drawn))(g.X / 2)
    )
    cell = Part(4.0, 12, 0, 0)

    def first(**changes: str) -> tuple[Any, Any]:
        sweep = Sweep.from_document(NEW | {"problem": {"a": 1.0, **changes}})
        (values,) = compute(sweep.recipe, cell)
        return values["overlap"][:, 0], values["energy"][:, 0]

    overlap, value = first()
    assert np.array_equal(first(start="mirrored")[0], -overlap)
    assert not np.array_equal(first(sensing="halved")[1], value)


# --- what reads the settings of a store ---------------------------------------------------------


def test_settings_of_old_and_new_stores(full: Store) -> None:
    """The attribute `sweep` is read in both spellings."""
    new = full.open()
    old = new.assign_attrs(sweep=json.dumps(TINY))
    null = new.assign_attrs(sweep=json.dumps(as_document(tiny_null())))
    for ds in (new, old):
        assert descent_of(ds)["a"] == 1.0
        assert threshold_of(descent_of(ds)) == alpha_bbp_init(1.0)
    assert [has_no_signal(ds) for ds in (new, null)] == [False, True]


def test_a_store_in_the_old_spelling_goes_on(full: Store) -> None:
    """It is extended by a file in the new one, with the bits of a store made at once."""
    root = full.path / "zarr.json"
    document = json.loads(root.read_text())
    document["attributes"]["sweep"] = json.dumps(TINY)
    root.write_text(json.dumps(document))
    grid = NEW["grid"] | {"alpha": [2.0, 3.0, 4.0]}  # type: ignore[operator]
    wider = Sweep.from_document(NEW | {"grid": grid})
    fill(full, wider, parts_of(tiny(alpha=[3.0])))
    assert "problem" in json.loads(xr.open_zarr(full.path).attrs["sweep"])
    whole = Store(full.path.with_name("whole.zarr"))
    fill(whole, wider, parts_of(wider))
    assert bits(full.path) == bits(whole.path)
