"""A store outlives the code that made it: older ones go on, also where the code computes more."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from alphasweep.analysis.recovery import recovery_probability
from alphasweep.analysis.study import Study
from alphasweep.kernels.descent import Outcome
from alphasweep.pipeline import dataset as contract
from alphasweep.pipeline import layout, part
from alphasweep.pipeline.dataset import DONE, GRID, MISSING, Variable
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.reading import open_sweep
from alphasweep.pipeline.spec import Sweep, as_document
from alphasweep.pipeline.store import Store, StoreError, hand_in
from alphasweep.pipeline.verify import verify
from tests.conftest import bits, fill, parts_of, tiny
from tests.stores.make import make

ARCHIVES = sorted((Path(__file__).parent / "stores").glob("*.tar.xz"))  # by stores/make.py
ANGLES = np.array([0.0, 0.5, 1.0])
NAN = ((2,), np.dtype("float64")), np.full(2, np.nan).tobytes()


def name_of(archive: Path | None) -> str:
    """Return what a test with a store is called."""
    return archive.name.partition(".")[0] if archive else "flow"


@pytest.fixture(params=ARCHIVES, ids=name_of)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store that an older version made, or this one, of which four cells are not yet computed."""
    if request.param is None:
        return make(tmp_path, "flow")
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return Store(tmp_path / "old.zarr")


# Also a store by the gradient flow, which no version has made before this one.
also_flow = pytest.mark.parametrize("old", [*ARCHIVES, None], indirect=True, ids=name_of)


@pytest.fixture
def since(old: Store) -> list[str]:
    """What this code computes, and that of the store did not: of its cells it is not known."""
    of_all = ["end_time", "products", "final_speed", "final_lambda_min"]
    return [name for name in of_all if name not in old.attributes()["cell_variables"]]


@pytest.fixture
def one_more(old: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this code, once the store is made, compute one more variable, along one more axis."""
    compute_cell = part._compute_cell

    def with_more(recipe: Any, alpha: float, N: int, seed: int) -> dict[str, Any]:
        cell = compute_cell(recipe, alpha, N, seed)
        return cell | {"turned": np.outer(np.float32(cell["final_overlap"]), np.cos(ANGLES))}

    dims = (*GRID, "start", "angle")
    monkeypatch.setitem(contract.COMPUTED, "turned", Variable(dims, "float64", "turned overlap"))
    monkeypatch.setitem(contract.COORDINATES, "angle", ("angle of the turn", "1"))
    monkeypatch.setitem(contract.AXES, "angle", lambda recipe: ANGLES)
    monkeypatch.setattr(part, "_compute_cell", with_more)


def lacking(store: Store) -> list[Part]:
    """Parts of one cell each for what a store does not have."""
    status = xr.open_zarr(store.path).status
    return [p for p in parts_of(store.sweep(), 1) if status.sel(at(p)) == MISSING]


def at(cell: Part) -> dict[str, Any]:
    """Labels of a part that is one cell."""
    return {"alpha": cell.alpha, "N": cell.N, "seed": cell.first_seed}


def of_cell(path: Path, cell: Part) -> dict[str, Any]:
    """All bits of one cell, but for which version computed it."""
    return {name: held for name, held in bits(path, **at(cell)).items() if name != "code"}


def wide(sweep: Sweep) -> Sweep:
    """Return a sweep with values in the middle and at the end of its axes."""
    document = as_document(sweep)
    more = {"alpha": [1.3, 2.5, 6.0], "seed": [0, 1, 2, 3, 4, 5]}
    return Sweep.from_document(document | {"grid": document["grid"] | more})


def go_on(store: Store, sweep: Sweep) -> None:
    """Prepare a store for a sweep, and compute what it lacks."""
    with store.lock() as writer:
        writer.prepare(sweep)
    fill(store, sweep, lacking(store))
    assert (store.status() == DONE).all()
    assert verify(store).ok, verify(store).text()


def check_goes_on(store: Store, tmp_path: Path, *, blank: Mapping[str, Any]) -> None:
    """Continue and extend: what was there keeps its bits, the rest has those of a new store."""
    assert verify(store).ok, verify(store).text()
    before = {cell: of_cell(store.path, cell) for cell in parts_of(store.sweep(), 1)}
    todo = lacking(store)
    assert len(todo) == 4
    for cell in todo:
        del before[cell]

    go_on(store, store.sweep())
    go_on(store, wide(store.sweep()))

    fresh = Store(tmp_path / "fresh.zarr")
    fill(fresh, store.sweep(), parts_of(store.sweep(), 1))
    for cell in parts_of(store.sweep(), 1):
        held = of_cell(store.path, cell)
        assert held == (before[cell] | blank if cell in before else of_cell(fresh.path, cell)), cell


@also_flow
def test_a_store_of_an_older_version_goes_on(old: Store, since: list[str], tmp_path: Path) -> None:
    """It opens, verifies, continues, and widens; what was computed stays as it was."""
    outcomes = open_sweep(old.path).outcome.values
    never = {Outcome.DIVERGED} if old.sweep().descent.method == "flow" else set()
    assert {*map(int, outcomes.ravel())} == {*map(int, Outcome)} - never
    check_goes_on(old, tmp_path, blank=dict.fromkeys(since, NAN))


@also_flow
@pytest.mark.usefixtures("one_more")
def test_a_store_goes_on_with_code_that_computes_more(
    old: Store, since: list[str], tmp_path: Path
) -> None:
    """A variable along a new axis: cells of before read as not computed in it, others have it."""
    assert "turned" not in open_sweep(old.path)
    nothing = ((2, len(ANGLES)), np.dtype("float64")), np.full((2, len(ANGLES)), np.nan).tobytes()
    angle = ((len(ANGLES),), np.dtype("float64")), ANGLES.tobytes()
    check_goes_on(
        old, tmp_path, blank=dict.fromkeys(since, NAN) | {"turned": nothing, "angle": angle}
    )
    dataset = open_sweep(old.path).load()
    added = dataset.turned.sel(alpha=2.5)
    expected = dataset.final_overlap.sel(alpha=2.5) * np.cos(dataset.angle)
    np.testing.assert_array_equal(added, expected.transpose(*added.dims))
    assert [e["variables"] for e in old.history() if e["event"] == "add"] == [[*since, "turned"]]


@pytest.mark.usefixtures("one_more")
def test_a_lost_chunk_of_an_added_variable_is_damage(old: Store) -> None:
    """An added variable has chunks where cells are done, so that one that is lost is missed."""
    with old.lock() as writer:
        writer.prepare(old.sweep())
    lost = layout.chunk_file(old.path, layout.open_arrays(old.path)["turned"], (1, 0, 0))
    lost.unlink()
    (damage,) = verify(old).findings
    assert (damage.kind, damage.where) == ("chunk", lost)


@pytest.mark.usefixtures("one_more")
def test_adding_that_is_killed_is_done_again(old: Store, tmp_path: Path) -> None:
    """Killed before any of its steps, the store is as it was, and sound; then it goes on."""
    killed_at = 0
    while True:
        steps = iter(range(killed_at))

        def check(steps: Iterator[int] = steps) -> None:
            if next(steps, None) is None:
                raise InterruptedError

        try:
            layout.add_variables(old.path, ["turned"], check=check)
            break
        except InterruptedError:
            assert verify(old).ok
            assert "turned" not in open_sweep(old.path)
            killed_at += 1
    assert killed_at > 5
    assert verify(old).ok, verify(old).text()
    assert set(open_sweep(old.path).turned.dims) == {*GRID, "start", "angle"}


def test_a_part_that_waits_is_committed_with_what_is_added(
    old: Store, request: pytest.FixtureRequest
) -> None:
    """Variables are added before parts are committed, and nothing that was computed is lost."""
    sweep, (cell, *_) = old.sweep(), lacking(old)
    with old.lock() as writer:
        writer.prepare(sweep)  # so that the store knows the version of this code
    request.getfixturevalue("one_more")
    hand_in(old.inbox(), cell, compute(sweep.recipe, cell))
    with old.lock() as writer:
        writer.prepare(sweep)
    held = xr.open_zarr(old.path).sel(at(cell)).load()
    assert held.status == DONE
    assert np.isfinite(held.turned).all()


def test_parts_of_before_are_computed_again(old: Store, request: pytest.FixtureRequest) -> None:
    """A part that waits, and lacks what is computed now, is refused: its cells stay missing."""
    sweep, (cell, *_) = old.sweep(), lacking(old)
    hand_in(old.inbox(), cell, compute(sweep.recipe, cell))
    request.getfixturevalue("one_more")
    with old.lock() as writer:
        writer.prepare(sweep)
    assert (old.parts(), [e["why"] for e in old.history() if e["event"] == "refuse"]) == (
        [],
        ["its cells are of another type or number"],
    )
    assert cell in lacking(old)


def test_a_list_of_variables_that_is_damaged_is_damage(old: Store) -> None:
    """Status is the last of the variables, since it is written last."""
    listed = old.attributes()["cell_variables"]
    layout.change_attributes(old.path, cell_variables=listed[::-1])
    (damage, *_) = verify(old).findings
    assert (damage.kind, damage.severity) == ("root", "damage")
    assert "cell_variables is wrong" in damage.what


@pytest.mark.usefixtures("one_more")
def test_a_leftover_of_an_adding_does_not_get_in(old: Store) -> None:
    """What an adding left that was killed, of a grid that was another, is none of the store's."""
    stray = old.path / "turned" / "c.1.1.0.0.0"
    stray.parent.mkdir()
    stray.write_bytes(b"of another grid")
    with old.lock() as writer:
        writer.prepare(old.sweep())
    assert not stray.exists()


@pytest.mark.usefixtures("one_more")
def test_older_code_reads_but_does_not_write_what_it_does_not_know(
    old: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a store with one variable more all is read; to add to it, or to judge it, is refused."""
    go_on(old, old.sweep())
    held = open_sweep(old.path).turned.load()
    monkeypatch.undo()
    np.testing.assert_array_equal(open_sweep(old.path).turned, held)
    message = r"old.zarr must have only variables that .* knows; it has turned: use the version"
    before = bits(old.path)
    with old.lock() as writer, pytest.raises(StoreError, match=message):
        writer.prepare(wide(old.sweep()))
    with pytest.raises(StoreError, match=message):
        verify(old)
    assert bits(old.path) == before


def test_a_newer_format_is_refused(old: Store) -> None:
    """Whatever opens the store says in one line which version to use."""
    sweep = old.sweep()
    layout.change_attributes(old.path, format=layout.FORMAT + 1)
    message = r"old.zarr must be of format 2 or lower .* it has format 3: use the version"
    with pytest.raises(StoreError, match=message):
        open_sweep(old.path)
    with pytest.raises(StoreError, match=message):
        verify(old)
    with old.lock() as writer, pytest.raises(StoreError, match=message):
        writer.prepare(sweep)


def test_a_new_store_says_its_format_and_lists_its_variables(store: Store) -> None:
    """Both are root attributes, written when the store is made."""
    with store.lock() as writer:
        writer.prepare(tiny())
    written = layout.read_root(store.path)["attributes"]
    assert written["format"] == 1  # the lowest that it can have: see test_wanted
    assert json.loads(written["cell_variables"]) == list(contract.cell_variables(tiny().recipe))


def test_an_old_store_has_times(old: Store) -> None:
    """Of its outcomes and recovery times: P by t_max is what it always was, by others no more."""
    ds = xr.open_zarr(old.path)
    study = Study(ds)
    assert study.time == study.descent["t_max"] == 30.0
    ends = study.outcomes.sum("N")
    done = int((ds.outcome > 0).sum())
    assert done == ends.runs == ends.recovered + ends.trapped + ends.undecided + ends.diverged
    assert ends.undecided > 0
    P = recovery_probability(ds, [5, 30, "end"]).isel(N=0)
    of_old = ds.recovered.where(ds.status == DONE).mean(("seed", "start")).isel(N=0).load()
    np.testing.assert_array_equal(P.probability.sel(by=30), of_old)
    assert (P.probability.sel(by=5) <= of_old).all()
    assert (P.least.sel(by=np.inf) == of_old).all()
    assert (P.most.sel(by=np.inf) > of_old).any()
    assert f"{int(ends.diverged)} of {done} runs diverged" in study.unstable
