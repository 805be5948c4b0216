"""t_max raised in a store: runs that time cut off are computed again, all others keep every bit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from alphasweep.kernels.descent import Outcome
from alphasweep.kernels.methods import out_of_time
from alphasweep.pipeline import cli, layout
from alphasweep.pipeline import store as store_module
from alphasweep.pipeline.dataset import DONE, GRID, MISSING
from alphasweep.pipeline.messages import SweepError
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.plan import REFERENCE, CostModel, make_plan
from alphasweep.pipeline.reading import open_sweep
from alphasweep.pipeline.repair import repair
from alphasweep.pipeline.run import run
from alphasweep.pipeline.spec import Sweep, as_document
from alphasweep.pipeline.store import Store, StoreError, hand_in
from alphasweep.pipeline.sweeps import raises_t_max, widened
from alphasweep.pipeline.verify import verify
from tests.conftest import bits, fill, parts_of, tiny

METHODS: dict[str, dict[str, Any]] = {
    "gd": {"method": "gd", "learning_rate": 0.03},
    "flow": {"method": "flow"},
}
AUTO = {"auto": {"method": "gd", "learning_rate": "auto"}}  # whose steps are of each alpha and N
EARLY, LATE = 20.0, 60.0
# By t = 20 most runs have ended: some recovered, some trapped, and of gd one at the very last step.
GRID_VALUES = {"alpha": [2.0, 4.0], "N": [8, 12], "seed": [2, 3, 4, 5], "start": [0, 1]}
RECORDS: dict[str, tuple[list[float], list[float]]] = {
    "the same": ([0.3, 1.0, 11.0], [0.3, 1.0, 11.0]),
    "the old t_max and later ones": ([0.3, 1.0, 11.0], [0.3, 1.0, 11.0, EARLY, 33.0]),
}


def sweep(
    method: str,
    t_max: float,
    times: Sequence[float] = (0.3, 1.0, 11.0),
    **grid: Any,
) -> Sweep:
    """Return a sweep of sixteen cells to some t_max."""
    document = as_document(tiny(**GRID_VALUES | grid)) | {
        "descent": {"t_max": t_max, **(METHODS | AUTO)[method]},
        "record": {"times": list(times)},
    }
    return Sweep.from_document(document)


def lacking(store: Store) -> list[Part]:
    """Parts of one cell each for what a store does not have."""
    status = xr.open_zarr(store.path).status
    return [
        part
        for part in parts_of(store.sweep(), 1)
        if status.sel(alpha=part.alpha, N=part.N, seed=part.first_seed) == MISSING
    ]


def prepare(store: Store, wanted: Sweep) -> None:
    """Have a store ready for a sweep, with nothing computed."""
    with store.lock() as writer:
        writer.prepare(wanted)


def without_series(dataset: xr.Dataset) -> xr.Dataset:
    """Leave out what is recorded at times, and what is never the same twice."""
    series = [name for name, variable in dataset.data_vars.items() if "time" in variable.dims]
    return dataset.drop_vars([*series, "time", "seconds"])


def differ(one: xr.Dataset, other: xr.Dataset) -> Any:
    """Find the cells, (alpha, N, seed), that differ in any number but the series."""
    found = np.zeros([one.sizes[axis] for axis in GRID], bool)
    for name, values in without_series(one).data_vars.items():
        if values.dims[:3] == GRID:
            same = (values == other[name]) | (values.isnull() & other[name].isnull())
            found |= ~same.values.reshape(*found.shape, -1).all(axis=3)
    return found


@pytest.fixture(scope="module", autouse=True)
def no_fingerprint() -> Iterator[None]:
    """Do without what `test_provenance` is for: a quarter of a second at every preparation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "fingerprint", lambda recipe: {})
        patch.setattr(store_module, "other_numbers", lambda recipe, expected: [])
        yield


@pytest.fixture(scope="module", params=METHODS)
def ends(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A method, and a finished store to t = 20 and one to t = 60."""
    folder = tmp_path_factory.mktemp(request.param)
    stores = []
    for t_max in (EARLY, LATE):
        store, wanted = Store(folder / f"{t_max:g}.zarr"), sweep(request.param, t_max)
        fill(store, wanted, parts_of(wanted, 4))
        stores.append(store)
    return request.param, *stores


@pytest.mark.parametrize(
    ("method", "records"),
    [*((method, records) for method in METHODS for records in RECORDS), ("auto", "the same")],
)
@pytest.mark.long
def test_a_raised_store_ends_as_a_fresh_one(tmp_path: Path, method: str, records: str) -> None:
    """To the bit in all variables; and only cells whose numbers change are computed again."""
    early, late = (
        sweep(method, t_max, times)
        for t_max, times in zip((EARLY, LATE), RECORDS[records], strict=True)
    )
    store, fresh = Store(tmp_path / "raised.zarr"), Store(tmp_path / "fresh.zarr")
    fill(store, early, parts_of(early, 4))
    fill(fresh, late, parts_of(late, 4))
    before, wanted = xr.open_zarr(store.path).load(), xr.open_zarr(fresh.path).load()
    others = differ(before, wanted)
    assert 0 < others.sum() < others.size / 2

    plan = make_plan(late, CostModel(REFERENCE), store)
    assert plan.again == sum(plan.missing.values()) == others.sum()
    assert plan.done == (~others).sum()

    prepare(store, late)
    np.testing.assert_array_equal(store.status() == MISSING, others)
    raised = xr.open_zarr(store.path).load()
    # What is missing is blank, what is not is what it was; series, too, at the times in common.
    assert raised.recovered.isnull().values[others].all()
    assert (raised.outcome.values[others] == Outcome.MISSING).all()
    decided = raised.status == DONE
    xr.testing.assert_equal(
        without_series(raised).where(decided), without_series(before).where(decided)
    )
    common = np.intersect1d(raised.time, before.time)
    for name in ("overlap", "lambda_min", "outlier"):
        one, other = (each[name].where(decided).sel(time=common) for each in (raised, before))
        xr.testing.assert_identical(one, other)
    assert verify(store).ok, verify(store).text()

    fill(store, late, lacking(store))
    assert bits(store.path) == bits(fresh.path)
    assert verify(store).ok, verify(store).text()
    told = [event for event in store.history() if event["event"] == "raise"]
    assert [(event["t_max"], event["again"]) for event in told] == [([EARLY, LATE], others.sum())]


def test_a_store_is_raised_and_widened_at_once(ends: Any, tmp_path: Path) -> None:
    """A sweep with a larger t_max and more values gives what a fresh one of it gives."""
    method, _, _ = ends
    wider = {"alpha": [2.0, 3.0, 4.0], "N": [12], "seed": [*range(6)]}
    early, late = sweep(method, EARLY, N=[12]), sweep(method, LATE, **wider)
    store, fresh = Store(tmp_path / "raised.zarr"), Store(tmp_path / "fresh.zarr")
    fill(store, early, parts_of(early, 4))
    fill(store, late, [])
    fill(store, late, lacking(store))
    fill(fresh, late, parts_of(late, 6))
    assert bits(store.path) == bits(fresh.path)
    events = [event["event"] for event in store.history()]
    assert events.index("raise") < events.index("extend")


def test_of_flow_the_last_step_counts_the_record_at_t_max(tmp_path: Path) -> None:
    """A run that recovers in a step which ends after t_max is the same but for one product."""
    whole = sweep("flow", LATE, alpha=[8.0], N=[12], seed=[0], start=[0])
    (cell,) = compute(whole.recipe, Part(8.0, 12, 0, 0))
    assert cell["outcome"] == Outcome.RECOVERED
    assert cell["recovery_time"] < cell["end_time"]
    t_max = float(cell["recovery_time"][0] + cell["end_time"][0]) / 2
    times = [time for time in (0.3, 1.0) if time < t_max]
    early, late = (
        sweep("flow", end, times, alpha=[8.0], N=[12], seed=[0], start=[0]).model_copy(
            update={"probe": None}
        )
        for end in (t_max, LATE)
    )
    stores = Store(tmp_path / "raised.zarr"), Store(tmp_path / "fresh.zarr")
    for store, wanted in zip(stores, (early, late), strict=True):
        fill(store, wanted, parts_of(wanted))
    prepare(stores[0], late)
    assert lacking(stores[0]) == []
    raised, fresh = (xr.open_zarr(store.path).load() for store in stores)
    assert (raised.products == fresh.products + 1).all()
    names = ["seconds", "products"]
    xr.testing.assert_equal(raised.drop_vars(names), fresh.drop_vars(names))


def test_who_is_out_of_time() -> None:
    """Undecided runs; of gd also those that the look at the last step found at rest or apart."""
    outcome = np.array([o for o in Outcome if o != Outcome.MISSING for _ in range(2)])
    steps = np.tile([99, 100], len(outcome) // 2)
    of = {
        method: [
            (Outcome(o).name.lower(), int(step))
            for o, step, cut in zip(
                outcome, steps, out_of_time(method, outcome, steps, last=100), strict=True
            )
            if cut
        ]
        for method in METHODS
    }
    undecided = [("undecided", 99), ("undecided", 100)]
    assert of["flow"] == undecided
    assert of["gd"] == [("trapped", 100), *undecided, ("diverged", 100)]


class Interrupted:
    """Counts what changes the disk, and lets so many changes happen."""

    def __init__(self, patch: pytest.MonkeyPatch, most: float = np.inf) -> None:
        self.done: list[Path] = []
        for owner, name in ((os, "link"), (os, "replace"), (Path, "replace"), (Path, "unlink")):
            patch.setattr(owner, name, self._counted(getattr(owner, name), most))

    def _counted(self, real: Any, most: float) -> Any:
        def call(*arguments: Any, **settings: Any) -> Any:
            if len(self.done) >= most:
                raise InterruptedError
            self.done.append(Path(arguments[-1]))
            return real(*arguments, **settings)

        return call


@pytest.mark.long
def test_a_raise_that_breaks_off_anywhere_can_be_done_again(
    ends: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any step, the store is the old one or the new one, sound, and goes on."""
    method, _, fresh = ends
    few = {"alpha": [2.0, 4.0], "N": [12]}
    early, late = (sweep(method, t_max, **few) for t_max in (EARLY, LATE))
    first, through = Store(tmp_path / "first.zarr"), Store(tmp_path / "through.zarr")
    fill(first, early, parts_of(early, 4))
    copy_of(first, through)
    before, again = bits(first.path), first.out_of_time()
    with monkeypatch.context() as patch:
        steps = Interrupted(patch).done
        layout.raise_t_max(through.path, late, again)
    root = max(i for i, path in enumerate(steps) if path == through.path / "zarr.json")
    assert 10 < root < len(steps) - 10
    for at in (root // 2, root, root + 1):
        store = Store(tmp_path / f"{at}.zarr")
        copy_of(first, store)
        with monkeypatch.context() as patch:
            Interrupted(patch, at)
            with pytest.raises(InterruptedError):
                layout.raise_t_max(store.path, late, again)
        damages = {f.kind for f in verify(store).findings if f.severity == "damage"}
        assert damages <= ({"metadata"} if at > root else set())  # copies that no reader needs
        with store.lock() as writer:
            repair(writer, verify(store))
        assert verify(store).ok, verify(store).text()
        if at <= root:
            assert bits(store.path) == before
        else:
            np.testing.assert_array_equal(store.status() == MISSING, again)
        prepare(store, late)
        np.testing.assert_array_equal(store.status() == MISSING, again)
        fill(store, late, lacking(store))
        assert bits(store.path) == bits(fresh.path, **few)


def copy_of(one: Store, other: Store) -> None:
    """Copy a store, with what is beside it."""
    for source, target in ((one.path, other.path), (one.control, other.control)):
        for file in [f for f in source.rglob("*") if f.is_file()]:
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())


def test_a_root_with_another_t_max_than_its_copy_is_damage(ends: Any, tmp_path: Path) -> None:
    """A digit that changed in zarr.json is no t_max that was raised."""
    method, early, _ = ends
    store = Store(tmp_path / "store.zarr")
    copy_of(early, store)
    file = store.path / "zarr.json"
    text = file.read_text()
    number = text.replace(r"\"t_max\": 20.0", r"\"t_max\": 12.0")
    assert number != text
    file.write_text(number)
    findings = verify(store).findings
    assert any(f.kind == "root" and "t_max = 20.0" in f.what for f in findings), findings
    with store.lock() as writer:
        repair(writer, verify(store))
    assert store.sweep() == sweep(method, EARLY)


def test_a_reader_of_the_earlier_end_is_not_confused(tmp_path: Path) -> None:
    """A dataset opened before t_max was raised loads the old numbers after."""
    early, late = sweep("gd", EARLY), sweep("gd", LATE)
    store = Store(tmp_path / "store.zarr")
    fill(store, early, parts_of(early, 4))
    opened = xr.open_zarr(store.path)
    expected = xr.open_zarr(store.path).load()
    prepare(store, late)
    fill(store, late, lacking(store))
    xr.testing.assert_identical(opened.load(), expected)
    assert open_sweep(store.path).time.values[-1] == pytest.approx(LATE)


def test_a_part_of_before_is_committed_and_then_judged(tmp_path: Path) -> None:
    """What was handed in to the old t_max counts where it is decided; later it is refused."""
    early, late = sweep("gd", EARLY), sweep("gd", LATE)
    store = Store(tmp_path / "store.zarr")
    prepare(store, early)
    part = Part(2.0, 12, 2, 5)
    cells = compute(early.recipe, part)
    cut = out_of_time("gd", cells["outcome"], cells["steps"], last=early.recipe.steps[-1])
    inbox = store.inbox()
    hand_in(inbox, part, cells)
    prepare(store, late)
    expected = np.where(cut.any(axis=1), MISSING, DONE)
    assert {*expected} == {MISSING, DONE}
    np.testing.assert_array_equal(store.status()[0, 1], expected)
    hand_in(inbox, part, cells)  # by a worker that outlived its driver
    prepare(store, late)
    np.testing.assert_array_equal(store.status()[0, 1], expected)
    (why,) = (event["why"] for event in store.history() if event["event"] == "refuse")
    assert "another recipe" in why


def test_a_smaller_t_max_is_refused_in_one_line(ends: Any) -> None:
    """It needs no run: the analysis takes any earlier time."""
    method, _, fresh = ends
    before = bits(fresh.path)
    for early in (sweep(method, EARLY), sweep(method, EARLY, alpha=[9.0])):
        with pytest.raises(StoreError, match=r"needs no new run.*by=20.*set t_max = 60") as error:
            prepare(fresh, early)
        assert "\n" not in str(error.value)
    assert bits(fresh.path) == before


OTHERS = {
    "a record before": {"record": {"times": [0.3, 1.0]}},
    "one more before": {"record": {"times": [0.3, 0.6, 1.0, 11.0]}},
    "a probe before": {"probe": {"times": [0.0], "modes": 2}},
    "a probe at the old t_max": {"probe": {"times": [0.0, 1.0, EARLY], "modes": 2}},
    "other modes": {"probe": {"times": [0.0, 1.0], "modes": 3}},
    "no probes": {"probe": None},
    "another loss": {"problem": {"a": 2.0}},
    "another seed": {"root_seed": 6},
    "other starts": {"grid": GRID_VALUES | {"start": [0, 1, 2]}},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("other", OTHERS)
def test_what_changes_decided_runs_is_another_sweep(method: str, other: str) -> None:
    """A larger t_max is taken alone."""
    early, late = sweep(method, EARLY), sweep(method, LATE)
    assert raises_t_max(early, late)
    assert raises_t_max(early, sweep(method, LATE, alpha=[5.0]))
    assert not raises_t_max(late, early)
    assert not raises_t_max(early, early)
    assert not raises_t_max(early, Sweep.from_document(as_document(late) | OTHERS[other]))


def test_a_part_of_a_step_more_is_no_larger_t_max() -> None:
    """Of gd, whose runs would end at the same step."""
    assert not raises_t_max(sweep("gd", EARLY), sweep("gd", EARLY + 0.001))


def test_damage_is_told_before_anything_is_changed(ends: Any, tmp_path: Path) -> None:
    """Outcomes that cannot be read decide about no cell; nor is a damaged series carried over."""
    method, early, _ = ends
    for name in ("outcome", "overlap"):
        store = Store(tmp_path / f"{name}.zarr")
        copy_of(early, store)
        file = next((store.path / name).glob("c.1.0.0.*"))
        file.write_bytes(file.read_bytes()[:-1] + b"\0")
        with pytest.raises(StoreError, match=r"sound for t_max to be raised; .*verify --repair"):
            prepare(store, sweep(method, LATE))
        assert store.sweep() == sweep(method, EARLY)


def test_a_raised_store_has_the_attributes_of_its_sweep(ends: Any, tmp_path: Path) -> None:
    """The attribute `sweep` says the larger t_max, which is true of every cell that is done."""
    method, early, _ = ends
    store = Store(tmp_path / "store.zarr")
    copy_of(early, store)
    prepare(store, widened(store.sweep(), {}, LATE))
    assert store.sweep() == sweep(method, LATE)
    assert json.loads(xr.open_zarr(store.path).attrs["sweep"])["descent"]["t_max"] == LATE
    with pytest.raises(SweepError, match="t_max"):
        widened(store.sweep(), {}, -1.0)


def test_commands_know_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`plan` says how many cells are computed again, `run` computes them, `status` tells it."""
    monkeypatch.chdir(tmp_path)
    early, late = (sweep("gd", t_max, N=[12]) for t_max in (EARLY, LATE))
    store = Store("tiny.zarr")
    fill(store, early, parts_of(early, 4))

    def said(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    monkeypatch.setattr(cli, "source", lambda sweep, path: (late, store))
    planned = said("plan", "later.toml")
    assert "t_max is raised to 60: 3 of the missing cells were done" in planned
    assert "8 cells in all: 5 done" in planned
    assert json.loads(said("plan", "later.toml", "--json"))["again"] == 3
    assert store.sweep() == early

    extended = said("extend", "tiny.zarr", "--t-max", "60")
    assert "Adding t_max 60 (before: 20)" in extended
    assert "3, in which time ran out, are to be computed again" in extended
    assert "3 missing" in said("status", "tiny.zarr")
    assert "t_max from 20 to 60, 3 cells computed again" in said("status", "tiny.zarr", "--history")
    assert "needs no new run" in said("extend", "tiny.zarr", "--t-max", "30", code=1)
    assert "Nothing to add" in said("extend", "tiny.zarr", "--t-max", "60")


@pytest.mark.long
def test_run_computes_them(tmp_path: Path) -> None:
    """`run` takes a sweep with a larger t_max as it takes one with more values, and tells it."""
    early, late = (sweep("gd", t_max, N=[12]) for t_max in (EARLY, LATE))
    store, fresh = Store(tmp_path / "raised.zarr"), Store(tmp_path / "fresh.zarr")
    fill(store, early, parts_of(early, 4))
    told: list[str] = []
    result = run(late, store.path, workers=1, watch=lambda event: told.append(str(event)))
    assert (result.computed, result.complete) == (3, True)
    assert "t_max is raised to 60: 3 cells, in which time had run out, are computed again" in told
    fill(fresh, late, parts_of(late, 4))
    assert bits(store.path) == bits(fresh.path)
