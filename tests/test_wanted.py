"""A sweep that wants some cells of its axes alone, `[[grid.only]]`, from its file to its store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alphasweep.pipeline import layout
from alphasweep.pipeline.dataset import DONE, MISSING
from alphasweep.pipeline.grid import wanted
from alphasweep.pipeline.messages import SweepError
from alphasweep.pipeline.plan import REFERENCE, CostModel, make_plan
from alphasweep.pipeline.run import run
from alphasweep.pipeline.spec import Sweep, as_document, load
from alphasweep.pipeline.status import status
from alphasweep.pipeline.store import Store
from alphasweep.pipeline.sweeps import gains, union, widened
from alphasweep.pipeline.verify import verify
from tests.conftest import fill, tiny

MODEL = CostModel(REFERENCE)
BOXES = [{"alpha": [2.0], "N": [8]}, {"alpha": [4.0], "N": [12], "seed": [0, 2]}]


def some(boxes: Any = BOXES, **grid: Any) -> Sweep:
    """Return the tiny sweep with five of its twelve cells wanted."""
    return tiny(only=boxes, **grid)


def cells(sweep: Sweep) -> set[tuple[float, int, int]]:
    """Name the wanted cells of a sweep."""
    grid = sweep.grid
    return {
        (grid.alpha[i], grid.N[j], grid.seed[k]) for i, j, k in np.argwhere(wanted(grid)).tolist()
    }


def planned(sweep: Sweep, store: Store | None = None) -> set[tuple[float, int, int]]:
    """Name the cells that a plan has computed."""
    plan = make_plan(sweep, MODEL, store)
    return {
        (part.alpha, part.N, seed)
        for work in plan.work()
        for part in work.parts
        for seed in part.seeds
    }


def compute(store: Store, sweep: Sweep) -> None:
    """Compute what is planned, without Dask."""
    with store.lock() as writer:
        writer.prepare(sweep)
    plan = make_plan(sweep, MODEL, store)
    fill(store, sweep, [part for work in plan.work() for part in work.parts])


def values(store: Store) -> dict[str, np.ndarray]:
    """Read every variable of cells."""
    names = store.attributes()["cell_variables"]
    return {name: np.asarray(layout.open_arrays(store.path)[name][...]) for name in names}


FIVE = {(2.0, 8, 0), (2.0, 8, 1), (2.0, 8, 2), (4.0, 12, 0), (4.0, 12, 2)}


def test_a_plan_asks_for_what_is_wanted() -> None:
    """And for nothing else; its numbers are of these cells."""
    assert cells(some()) == planned(some()) == FIVE
    plan = make_plan(some(), MODEL)
    assert (plan.cells, plan.missing) == (5, {8: 3, 12: 2})
    assert plan.files < make_plan(tiny(), MODEL).files
    assert plan.disk * 12 == make_plan(tiny(), MODEL).disk * 5


@pytest.mark.long
def test_a_run_computes_and_counts_what_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plan, result, status and verify agree; the bits are those of the whole sweep's cells."""
    monkeypatch.chdir(tmp_path)
    first = run(some(), workers=1)
    assert (first.computed, first.missing, first.complete) == (5, 0, True)
    found = status("tiny.zarr")
    assert (found.cells, found.done, found.missing) == (5, 5, 0)
    report = verify(Store("tiny.zarr"))
    assert report.ok
    assert report.cells == {"missing": 0, "done": 5, "failed": 0}
    assert run("tiny.zarr", workers=1).computed == 0
    compute(Store("whole.zarr"), tiny())
    mine = wanted(some().grid)
    of_some, of_all = values(Store("tiny.zarr")), values(Store("whole.zarr"))
    for name in of_all.keys() - {"seconds"}:
        np.testing.assert_array_equal(of_some[name][mine], of_all[name][mine])
    assert (Store("tiny.zarr").status() == np.where(mine, DONE, MISSING)).all()


def test_missing_is_what_is_wanted_and_not_computed(tmp_path: Path) -> None:
    """Here one of the two parts."""
    store = Store(tmp_path / "tiny.zarr")
    with store.lock() as writer:
        writer.prepare(some())
    assert (store.missing(), status(store.path).missing) == (5, 5)
    fill(store, some(), [work.parts[0] for work in make_plan(some(), MODEL, store).work()][:1])
    done = int((store.status() == DONE).sum())
    assert 0 < done < 5
    assert (store.missing(), status(store.path).missing) == (5 - done, 5 - done)
    assert len(planned(some(), store)) == 5 - done


def test_more_cells_of_the_same_axes_are_added(tmp_path: Path) -> None:
    """A store gains a box, then all: what was done keeps its bits, and nothing is done twice."""
    store = Store(tmp_path / "tiny.zarr")
    compute(store, some())
    before = values(store)
    more = some([*BOXES, {"alpha": [2.0], "N": [12]}])
    assert planned(more, store) == {(2.0, 12, seed) for seed in range(3)}
    assert gains(some(), more) == "3 cells"
    compute(store, more)
    assert store.missing() == 0
    assert store.sweep() == more
    compute(store, tiny())
    assert store.sweep() == tiny()
    assert (store.status() == DONE).all()
    assert store.attributes()["format"] == 1
    after, mine = values(store), wanted(some().grid)
    for name, held in before.items():
        assert after[name][mine].tobytes() == held[mine].tobytes()


def test_refinement_at_one_N_alone(tmp_path: Path) -> None:
    """An alpha is added to a store of all, at one N for each seed, and at another for one."""
    store = Store(tmp_path / "tiny.zarr")
    compute(store, tiny())
    only = tiny(alpha=[3.0], N=[8, 12], only=[{"N": [12]}, {"N": [8], "seed": [0]}])
    compute(store, only)
    assert store.sweep().cells == 12 + 4
    assert cells(store.sweep()) == cells(tiny()) | cells(only)
    assert store.missing() == 0
    assert verify(store).ok
    assert int((store.status() == DONE).sum()) == 16


def test_two_sweeps_of_all_cells_are_one_of_all() -> None:
    """As before there was `only`: the axes are joined, and all combinations are wanted."""
    whole = union(tiny(), tiny(alpha=[6.0], N=[16]))
    assert whole.grid.only == ()
    assert whole.cells == 3 * 3 * 3


def test_an_extension_goes_to_each_box() -> None:
    """New seeds to all that is wanted, a new alpha to each N and seed that any alpha had."""
    wider = widened(some(), {"alpha": "", "N": "", "seed": "3"})
    assert cells(wider) - FIVE == {(2.0, 8, 3), (4.0, 12, 3)}
    taller = widened(some(), {"alpha": "6", "N": "", "seed": ""})
    assert cells(taller) - FIVE == {(6.0, N, seed) for _, N, seed in FIVE}


def test_a_store_that_older_code_would_complete_is_refused_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has format 2; all others have 1, and a sweep without `only` is written as ever."""
    store, plain = Store(tmp_path / "some.zarr"), Store(tmp_path / "plain.zarr")
    for each, sweep in ((store, some()), (plain, tiny())):
        with each.lock() as writer:
            writer.prepare(sweep)
    assert (store.attributes()["format"], plain.attributes()["format"]) == (2, 1)
    assert "only" not in plain.attributes()["sweep"]["grid"]
    with plain.lock() as writer:
        writer.prepare(tiny(alpha=[3.0], only=[{"N": [8], "seed": [0]}, {"N": [12]}]))
    assert plain.attributes()["format"] == 2
    monkeypatch.setattr(layout, "FORMAT", 1)
    for each in (store, plain):
        with pytest.raises(Exception, match="must be of format 1 or lower for this alphasweep"):
            each.attributes()


def test_a_file_says_it(tmp_path: Path) -> None:
    """As tables [[grid.only]], with ranges; and it is read back from what a store holds."""
    text = (
        'name = "tiny"\nroot_seed = 5\n[grid]\nalpha = [2.0, 4.0]\nN = [8, 12]\nstart = [0, 1]\n'
        "seed = { from = 0, to = 2 }\n"
        "[[grid.only]]\nalpha = [2.0]\nN = [8]\n"
        "[[grid.only]]\nalpha = { from = 4.0, to = 4.0, step = 1.0 }\nN = [12]\nseed = [0, 2]\n"
        "[problem]\na = 1.0\n[descent]\nlearning_rate = 0.03\nt_max = 3.0\n"
        "[record]\ntimes = [0.3, 1.0]\n[probe]\ntimes = [0.0, 1.0]\nmodes = 2\n"
    )
    (tmp_path / "tiny.toml").write_text(text)
    sweep = load(tmp_path / "tiny.toml")
    assert sweep == some()
    assert Sweep.from_document(json.loads(json.dumps(as_document(sweep)))) == sweep


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ([{"alpha": [9.0]}, {}], "[grid] only: alpha must be values of the axis alpha; got [9.0]."),
        (
            [{"alpha": [2.0]}],
            "[grid] only: each value of the axis alpha must be in a table or more; in none is "
            "[4.0].",
        ),
        ([{}, {"n": [8]}], "[grid] only.n: unknown key; allowed: alpha, N, seed (second table)."),
        ([{"alpha": [2.0, -1.0]}], "[grid] only.alpha: values must be > 0; got -1.0 (first table)"),
        ([{"seed": []}], "[grid] only.seed: must have at least one value; got [] (first table)."),
        ({"alpha": [2.0]}, "[grid] only: must be a list of tables, [[grid.only]]; got "),
        ([3], "[grid] only: values must be a table; got 3 (first table)."),
    ],
)
def test_what_is_wrong_with_a_table_is_said(only: Any, said: str) -> None:
    """With the key, what must hold, what was received, and in which table."""
    with pytest.raises(SweepError) as refused:
        some(only)
    assert said in str(refused.value)
