"""A store knows which code computed it, and refuses code that gives other numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from math import ceil, floor
from typing import Any

import numpy as np
import pytest
import xarray as xr

from alphasweep.kernels import descent, hessian
from alphasweep.kernels.descent import Outcome
from alphasweep.kernels.methods import METHODS
from alphasweep.kernels.sensing import DenseSensing
from alphasweep.pipeline import provenance
from alphasweep.pipeline.dataset import COMPUTED
from alphasweep.pipeline.part import compute
from alphasweep.pipeline.provenance import code_version, fingerprint, other_numbers
from alphasweep.pipeline.recipe import Recipe
from alphasweep.pipeline.spec import Sweep, as_document
from alphasweep.pipeline.store import Store, StoreError, hand_in
from tests.conftest import bits, fill, parts_of, tiny

RECIPE = tiny().recipe


def test_a_fingerprint_is_json_and_repeats() -> None:
    """It survives JSON unchanged, and the same code gives it again, to the bit."""
    first = fingerprint(RECIPE)
    assert json.loads(json.dumps(first)) == first == fingerprint(RECIPE)
    assert other_numbers(RECIPE, first) == []
    assert np.shape(first["overlap"]) == (2, 3)


ENDS = {
    "gd": ["UNDECIDED", "TRAPPED", "RECOVERED", "DIVERGED"],
    "flow": ["UNDECIDED", "TRAPPED", "RECOVERED", "TRAPPED"],
}


@pytest.mark.parametrize("method", METHODS)
def test_a_fingerprint_knows_every_field_and_every_end(method: str) -> None:
    """Each computed variable has values in it, and its starts end in every way, by each method."""
    found = fingerprint(recipe_of(method))
    assert {name.rpartition("/")[2] for name in found} == set(COMPUTED) - {"seconds"}
    unknown = {
        name
        for name in set(COMPUTED) - {"seconds"}
        if (np.array(found[f"planted/{name}"]) == -99.0).all()
        and (np.array(found[f"large/{name}"]) == -99.0).all()
    }
    assert unknown == (
        {"final_lambda_min"} if method == "gd" else set()
    )  # which gd does not look at
    assert [Outcome(int(end)).name for end in found["planted/outcome"]] == ENDS[method]


def recipe_of(method: str) -> Recipe:
    """Return the recipe of the tiny sweep with another method."""
    descent = {"method": method, "t_max": 3.0} | {"gd": {"learning_rate": 0.03}}.get(method, {})
    document = as_document(tiny()) | {"descent": descent}
    return Sweep.from_document(document).recipe


@pytest.mark.parametrize("method", METHODS)
def test_a_change_of_one_method_concerns_no_store_of_another(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a recipe of the method that changed is refused."""
    before = {name: fingerprint(recipe_of(name)) for name in METHODS}
    real = METHODS[method]

    def changed(*args: Any, **more: Any) -> Any:
        run = real(*args, **more)
        return replace(run, final_overlap=1.001 * run.final_overlap)

    monkeypatch.setitem(METHODS, method, changed)
    refused = [name for name in METHODS if other_numbers(recipe_of(name), before[name])]
    assert refused == [method]


def test_rounding_is_not_another_number() -> None:
    """What another BLAS does to the last digits is let pass."""
    nearby = {
        name: (np.array(values) * (1 + (1e-10 if "/" in name else 1e-6))).tolist()
        for name, values in fingerprint(RECIPE).items()
    }
    assert other_numbers(RECIPE, nearby) == []


def test_what_is_not_known_to_both_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older stores hold less, and newer ones more, than this code computes."""
    names = ("overlap", "energy", "mu", "bulk_edge")  # of before the runs
    older = {name: values for name, values in fingerprint(RECIPE).items() if name in names}
    newer = fingerprint(RECIPE) | {"turned": [1.0], "flat/energy": [[1.0]]}
    assert other_numbers(RECIPE, older) == other_numbers(RECIPE, newer) == []
    broken_energy(monkeypatch)
    assert len(other_numbers(RECIPE, older)) == 1


@pytest.mark.parametrize("setting", ["a", "learning_rate", "signal"])
def test_a_fingerprint_knows_the_settings(setting: str) -> None:
    """Each setting that changes numbers changes the fingerprint."""
    value: Any = {"a": 1.1, "learning_rate": 0.031, "signal": "null"}[setting]
    document = as_document(tiny())
    section = "descent" if setting in document["descent"] else "problem"
    other = Sweep.from_document(document | {section: document[section] | {setting: value}})
    assert other_numbers(RECIPE, fingerprint(other.recipe)) != []


def broken_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the kernels give energies that are wrong by one part in a thousand."""
    real = descent.energy
    monkeypatch.setattr(descent, "energy", lambda *arguments: 1.001 * real(*arguments))


def test_a_kernel_with_other_numbers_is_refused(
    full: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is left alone, and the message says what differs and what to do."""
    before = bits(full.path)
    broken_energy(monkeypatch)
    wider = tiny(alpha=[2.0, 3.0, 4.0])
    with pytest.raises(StoreError, match=r"energy by up to 0\.0.*--other-numbers"):
        fill(full, wider, parts_of(wider))
    assert bits(full.path) == before


Mutation = Callable[[pytest.MonkeyPatch], None]


def after(target: str, change: Callable[[Any], Any]) -> Mutation:
    """Change what a function of ours returns."""

    def mutate(monkeypatch: pytest.MonkeyPatch) -> None:
        where, _, name = f"alphasweep.{target}".rpartition(".")
        real = getattr(import_module(where), name)
        monkeypatch.setattr(f"{where}.{name}", lambda *args, **more: change(real(*args, **more)))

    return mutate


def instead(target: str, value: Any) -> Mutation:
    """Put another value there."""
    there = f"alphasweep.{target}"
    return lambda monkeypatch: monkeypatch.setattr(there, value, raising=False)


def of_type(name: str, kind: str) -> Mutation:
    """Keep a variable in another type."""
    return lambda monkeypatch: monkeypatch.setitem(
        COMPUTED, name, replace(COMPUTED[name], kind=kind)
    )


def first_block_only(self: DenseSensing, W: Any, weigh: Any, y_hat: Any, out: Any) -> None:
    """Leave out the blocks of the sensing matrix after the first."""
    np.matmul(self.X, W, out=y_hat)
    rows = slice(0, min(len(self.X), 400))
    np.matmul(self.X[rows].T, weigh(y_hat[rows], rows), out=out)


def energy_in_single(y_hat: Any, y: Any, loss: Any) -> Any:
    """Sum in single precision."""
    return loss.ell(y_hat, y[:, None]).mean(axis=0, dtype=np.float32).astype(np.float64)


@pytest.mark.parametrize(
    ("mutate", "seen"),
    [
        pytest.param(mutate, seen, id=name)
        for name, mutate, seen in [
            ("lambda_min doubled", after(
                "pipeline.part.lowest_eigenpairs", lambda p: replace(p, values=2 * p.values)),
             "lambda_min"),
            ("overlap of the outlier halved", after(
                "kernels.descent.spectrum",
                lambda s: replace(s, outlier_overlap=s.outlier_overlap / 2)),
             "outlier_overlap"),
            ("nothing ever trapped", after("kernels.descent._speed", lambda s: s + 1), "outcome"),
            ("M rounded up", instead("pipeline.part.measurements", lambda a, N: ceil(a * N)),
             "energy"),
            ("M rounded down", instead("pipeline.part.measurements", lambda a, N: floor(a * N)),
             "energy"),
            ("a half of M rounded up",
             instead("pipeline.part.measurements", lambda a, N: floor(a * N + 0.5)), "energy"),
            ("times rounded down", instead("pipeline.sections.round", floor), "steps"),
            ("mu of the Hessian", after("kernels.hessian.multiplier", lambda mu: 1.001 * mu),
             "lambda_min"),
            ("the wrong end of the spectrum", lambda monkeypatch: monkeypatch.setattr(
                hessian, "eigsh", partial(wrong_end, hessian.eigsh)), "lambda_min"),
            ("eigenvectors against a start", after(
                "pipeline.part.lowest_eigenpairs", lambda p: replace(p, vectors=p.vectors[::-1])),
             "signal_overlap"),
            ("only the first rows", instead(
                "kernels.sensing.DenseSensing.round_trip", first_block_only), "energy"),
            ("energy summed in float32", instead("kernels.descent.energy", energy_in_single),
             "energy"),
            ("lambda_min kept in float32", of_type("lambda_min", "float32"), "lambda_min"),
            ("recovered and trapped exchanged", lambda monkeypatch: exchange(
                monkeypatch, "_RECOVERED", "_TRAPPED"), "outcome"),
        ]
    ],
)  # fmt: skip
def test_a_mutation_of_any_number_is_refused(
    full: Store, monkeypatch: pytest.MonkeyPatch, mutate: Mutation, seen: str
) -> None:
    """Whichever number the code would compute otherwise, it adds nothing to the store."""
    before = bits(full.path)
    mutate(monkeypatch)
    wider = tiny(alpha=[2.0, 3.0, 4.0])
    with pytest.raises(StoreError, match=rf"other ones \(.*\b{seen} by up to .*--other-numbers"):
        fill(full, wider, parts_of(wider))
    monkeypatch.undo()
    assert bits(full.path) == before


def wrong_end(real: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """Have ARPACK find the highest eigenvalues."""
    return real(*args, **more | {"which": "LA"})


def exchange(monkeypatch: pytest.MonkeyPatch, one: str, other: str) -> None:
    """Exchange two outcomes in the descent."""
    first, second = getattr(descent, one), getattr(descent, other)
    monkeypatch.setattr(descent, one, second)
    monkeypatch.setattr(descent, other, first)


def test_numbers_are_mixed_only_on_request_and_it_shows(
    full: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable `code` tells which cells are whose."""
    broken_energy(monkeypatch)
    for module in ("store", "inbox"):
        monkeypatch.setattr(f"alphasweep.pipeline.{module}.code_version", lambda: "9.9.9+new")
    with full.lock() as writer:
        writer.prepare(tiny(alpha=[2.0, 3.0, 4.0]), mix=True)
        for part in parts_of(tiny(alpha=[3.0])):
            hand_in(full.inbox(), part, compute(RECIPE, part))
        writer.collect()
    dataset = xr.open_zarr(full.path).load()
    assert json.loads(dataset.attrs["code_versions"]) == [code_version(), "9.9.9+new"]
    assert (dataset.code.sel(alpha=3.0) == 1).all()
    assert (dataset.code.sel(alpha=[2.0, 4.0]) == 0).all()
    assert full.versions() == {code_version(): 12, "9.9.9+new": 6}


def test_the_version_names_the_files_that_compute() -> None:
    """It is that of the package, and a digest of its kernels: a local change shows."""
    version, _, digest = code_version().partition("+")
    assert version
    assert len(digest) == 8
    provenance.code_version.cache_clear()
    assert code_version() == f"{version}+{digest}"


def test_history_tells_who_did_what(full: Store) -> None:
    """Creation and extension are kept with time, user, host, version and cells added."""
    fill(full, tiny(alpha=[2.0, 3.0, 4.0]), [])
    created, extended = full.history()
    assert (created["event"], created["cells"]) == ("create", 12)
    assert (extended["event"], extended["cells"]) == ("extend", 6)
    for event in (created, extended):
        assert event["version"] == code_version()
        assert {"time", "user", "host"} <= set(event)


def test_a_torn_line_in_the_history_hides_no_other(full: Store) -> None:
    """A crash in the middle of a line costs that line."""
    with (full.control / "events.jsonl").open("ab") as file:
        file.write(b'{"time": "20\xff')
    assert [event["event"] for event in full.history()] == ["create"]
