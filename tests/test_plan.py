"""A plan holds what is missing, all of it and once, in parts of the size that was asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import layout
from pipeline.layout import seeds_per_chunk
from pipeline.part import Part, compute
from pipeline.plan import CostModel, Plan, calibrate, make_plan
from pipeline.spec import Sweep, load
from pipeline.store import Block, Failure, Store, hand_in
from tests.conftest import fill, tiny

MODEL = CostModel(np.full(4, 1e-9), 1.0, {})


def cells(plan: Plan) -> Counter[tuple[float, int, int]]:
    """Count how often each cell is in the plan's parts."""
    parts = [part for work in plan.work() for part in work.parts]
    return Counter((part.alpha, part.N, seed) for part in parts for seed in part.seeds)


@given(
    seeds=st.sets(st.integers(0, 60), min_size=1, max_size=25),
    starts=st.integers(1, 400),
    seconds=st.floats(1e-6, 1e2),
)
@settings(max_examples=60, deadline=None)
def test_a_new_plan_holds_every_cell_once(seeds: set[int], starts: int, seconds: float) -> None:
    """Whatever the seeds, the chunks and the part size; and no part leaves its block."""
    sweep = tiny(seed=sorted(seeds), start=list(range(starts)))
    plan = make_plan(sweep, MODEL, seconds_per_part=seconds)
    grid = sweep.grid
    wanted = {(a, N, s) for a in grid.alpha for N in grid.N for s in grid.seed}
    assert cells(plan) == Counter(dict.fromkeys(wanted, 1))
    per_chunk = seeds_per_chunk(sweep)
    blocks = Counter(work.block for work in plan.work())
    assert set(blocks.values()) == {1}
    for work in plan.work():
        for part in work.parts:
            assert (part.alpha, part.N) == (work.block.alpha, work.block.N)
            assert {grid.seed.index(s) // per_chunk for s in part.seeds} == {work.block.chunk}
    assert sum(plan.parts.values()) == sum(len(work.parts) for work in plan.work())
    assert sum(plan.missing.values()) == len(wanted) == plan.cells


def test_parts_take_about_the_time_asked_for() -> None:
    """Unless one seed takes longer, no part is longer than asked for, nor needlessly short."""
    sweep = load("laptop")
    plan = make_plan(sweep, MODEL, seconds_per_part=5.0)
    for work in plan.work():
        lengths = [len(part.seeds) for part in work.parts]
        one = plan.part_seconds(work.parts[0]) / lengths[0]
        fitting = max(1, int(5.0 / one))
        assert max(lengths) <= fitting
        assert len(lengths) == -(-8 // fitting)
        assert max(lengths) - min(lengths) <= 1
    assert max(plan.longest.values()) == pytest.approx(
        max(plan.part_seconds(part) for work in plan.work() for part in work.parts)
    )


def test_the_longest_parts_come_first() -> None:
    """So that the end of a run is not spent waiting for one worker."""
    plan = make_plan(load("laptop"), MODEL)
    firsts = [plan.part_seconds(work.parts[0]) for work in plan.work()]
    assert firsts[0] == pytest.approx(max(firsts))
    # Parts of one seed have an exact order; longer ones are cut evenly, which blurs it.
    singles = [s for s, work in zip(firsts, plan.work(), strict=True) if len(work.parts) == 8]
    assert len(singles) > 3
    assert singles == sorted(singles, reverse=True)


def test_work_by_size() -> None:
    """The sizes of a plan can be handed to different workers."""
    plan = make_plan(tiny(), MODEL)
    small, large = list(plan.work([8])), list(plan.work([12]))
    assert {work.block.N for work in small} == {8}
    assert {work.block.N for work in large} == {12}
    assert Counter(w.block for w in (*small, *large)) == Counter(w.block for w in plan.work())


def test_a_finished_store_leaves_nothing(full: Store) -> None:
    """Done is done."""
    plan = make_plan(tiny(), MODEL, full)
    assert list(plan.work()) == []
    assert (plan.done, plan.cells, sum(plan.seconds.values())) == (12, 12, 0)


def test_only_what_is_missing_is_planned(store: Store) -> None:
    """Neither what is committed nor what waits for its commit is computed again."""
    fill(store, tiny(), [Part(2.0, 8, 1, 1)])
    hand_in(store.inbox(), Part(4.0, 8, 0, 1), compute(tiny().recipe, Part(4.0, 8, 0, 1)))
    plan = make_plan(tiny(), MODEL, store)
    assert (plan.done, plan.handed_in, sum(plan.missing.values())) == (1, 2, 9)
    planned = cells(plan)
    for absent in ((2.0, 8, 1), (4.0, 8, 0), (4.0, 8, 1)):
        assert absent not in planned
    assert len(planned) == 9


def test_a_wider_sweep_adds_only_the_new_cells(full: Store) -> None:
    """Planning an edited sweep file against its store shows what it would add."""
    wide = tiny(alpha=[2.0, 3.0, 4.0], seed=[0, 1, 2, 3])
    plan = make_plan(wide, MODEL, full)
    assert plan.done == 12
    assert sum(plan.missing.values()) == 3 * 2 * 4 - 12
    assert full.sweep() == tiny()


def test_failed_cells_wait_until_asked_for(store: Store) -> None:
    """Failed cells are left alone, and computed again on request."""
    with store.lock() as writer:
        writer.prepare(tiny())
        failure = Failure.of(Part(2.0, 8, 0, 1), ZeroDivisionError("x"), attempts=3)
        writer.commit(Block(2.0, 8, 0), [], [failure])
    assert sum(make_plan(tiny(), MODEL, store).missing.values()) == 10
    again = make_plan(tiny(), MODEL, store, retry_failed=True)
    assert sum(again.missing.values()) == 12
    assert (make_plan(tiny(), MODEL, store).failed, again.failed) == (2, 0)


def test_the_forecast_of_disk_and_files_holds(full: Store) -> None:
    """The plan's files are those of the finished store, and its bytes those of the numbers."""
    plan = make_plan(tiny(), MODEL)
    files = [f for f in full.path.rglob("*") if f.is_file()]
    chunks = [f for f in files if f.name.startswith("c.")]
    assert len(chunks) <= plan.files <= len(files) + 20
    values = {n: v.nbytes for n, v in full.open().data_vars.items() if "seed" in v.dims}
    assert plan.disk == sum(values.values()) - values["code"] - values["status"]


def test_experience_replaces_the_forecast(full: Store) -> None:
    """Cells that were computed are predicted by their own mean, others corrected by the ratio."""
    seconds = full.open().seconds.values
    model = calibrate(tiny().recipe, full)
    assert model.seconds(tiny().recipe, 2.0, 8) == pytest.approx(seconds[0, 0].mean())
    bound = CostModel(model.flop_seconds, 1.0, {})
    ratio = model.seconds(tiny().recipe, 9.0, 8) / bound.seconds(tiny().recipe, 9.0, 8)
    assert ratio == pytest.approx(model.correction)
    assert model.correction != 1.0


def test_experience_is_found_in_whatever_chunk_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first seeds are missing, it is that of the next; where all are, there is none."""
    monkeypatch.setattr(layout, "_RUNS_PER_CHUNK", 2)  # a seed a chunk
    fill(store := Store(tmp_path / "tiny.zarr"), tiny(), [Part(2.0, 8, 1, 1), Part(4.0, 12, 2, 2)])
    seconds, mean = store.open().seconds.values, store.mean_seconds()
    assert mean[0, 0] == seconds[0, 0, 1]
    assert mean[1, 1] == seconds[1, 1, 2]
    assert np.isnan(mean[[0, 1], [1, 0]]).all()


def test_ten_million_cells_fit() -> None:
    """A huge grid has some ten thousand chunks a variable, and its work is made as it is read."""
    sweep = Sweep.from_document(
        load("paper").model_dump(mode="json")
        | {
            "grid": {
                "alpha": {"from": 1.0, "to": 10.9, "step": 0.1},
                "N": [64, 128, 256, 512, 1024],
                "seed": {"from": 0, "to": 19_999},
                "start": [0],
            }
        }
    )
    plan = make_plan(sweep, MODEL)
    assert plan.cells == 10_000_000
    assert plan.files < 300_000
    first = next(plan.work())
    assert first.block.N == 1024


def test_memory_of_a_worker_grows_with_the_matrix() -> None:
    """Peak memory holds the matrix, in the precision of the descent."""
    plan = make_plan(load("paper"), MODEL)
    assert plan.bytes[4096] > 8.0 * 4096**2 * 4
    assert plan.bytes[64] < plan.bytes[4096] / 2
