"""A plan holds what is missing, all of it and once, in parts of the size that was asked for."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphasweep.kernels.problem import Problem
from alphasweep.pipeline import layout
from alphasweep.pipeline import plan as plan_module
from alphasweep.pipeline.grid import Block
from alphasweep.pipeline.layout import seeds_per_chunk
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.plan import REFERENCE, CostModel, Plan, Speed, Work, calibrate, make_plan
from alphasweep.pipeline.spec import Sweep, as_document, load
from alphasweep.pipeline.store import Failure, Store, hand_in
from alphasweep.pipeline.terminal import show_plan
from tests.conftest import fill, tiny, tiny_flow

MODEL = CostModel(REFERENCE)


def slower(times: float) -> Speed:
    """Return a machine for which everything takes so many times as long."""

    def of(value: Any) -> Any:
        return tuple(map(of, value)) if isinstance(value, tuple) else times * value

    return Speed(**{name: of(value) for name, value in vars(REFERENCE).items()})


def sorted_work(plan: Plan) -> list[Work]:
    """Return the work of a plan by block."""
    return sorted(plan.work(), key=lambda work: (work.block.alpha, work.block.N, work.block.chunk))


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


def test_whoever_plans_and_whoever_runs_cut_the_same_parts(full: Store) -> None:
    """What was measured, which is never the same twice, changes what they take, not the parts."""
    wide, slow = tiny(alpha=[2.0, 9.0], N=[8, 12, 64]), slower(7.3)
    known = {(2.0, 8): 0.4}
    for seconds in (0.01, 0.05, 0.3, 1.0):
        for store in (None, full):
            one, other = (
                make_plan(wide, model, store, seconds_per_part=seconds)
                for model in (
                    CostModel.with_experience(REFERENCE, wide.recipe, known),
                    CostModel.with_experience(slow, wide.recipe, known),
                )
            )
            assert [w.parts for w in sorted_work(one)] == [w.parts for w in sorted_work(other)]
            assert one.parts == other.parts
    plain, slowed = (make_plan(wide, CostModel(speed)) for speed in (REFERENCE, slow))
    assert plain.parts == slowed.parts
    assert slowed.seconds[64] == pytest.approx(7.3 * plain.seconds[64])


def test_the_longest_parts_come_first() -> None:
    """So that the end of a run is not spent waiting for one worker."""
    plan = make_plan(load("laptop"), MODEL)
    longest = [max(map(plan.part_seconds, work.parts)) for work in plan.work()]
    assert longest == sorted(longest, reverse=True)
    assert longest[0] > 2 * longest[-1]


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
    ratio = model.seconds(tiny().recipe, 9.0, 8) / model.speed.bound(tiny().recipe, 9.0, 8)
    assert ratio == pytest.approx(model.correction)
    assert model.correction != 1.0


def test_every_piece_of_a_cell_is_counted() -> None:
    """Draws, steps, records with their theory, and probes: each as often as it happens."""
    recipe, M, N, R = tiny().recipe, 32, 8, 2
    nothing = Speed(0, 0, 0, (0,) * 4, 0, (0,) * 4, 0)
    often = {
        "cell": 1,
        "step": recipe.steps[-1],
        "record": len(recipe.steps),
        "flop": recipe.steps[-1] * 4 * M * N * R,
        "sample": len(recipe.steps) * M * R,
        "probe": len(recipe.probe_steps) * M * N,
        "entry": M * N,
    }
    assert set(often) == {field.name for field in fields(Speed)}
    for piece, times in often.items():
        one = (1.0,) * 4 if piece in ("flop", "probe") else 1.0
        assert replace(nothing, **{piece: one}).bound(recipe, 4.0, N) == times


def test_the_measurement_finds_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds what each piece takes, by a clock that others cannot stop, whatever hiccups."""
    speed = Speed(0.1, 0.01, 0.3, (4e-6, 3e-6, 2e-6, 1e-6), 1e-4, (5e-5, 6e-5, 7e-5, 8e-5), 1e-5)
    overhead = replace(speed, flop=(0.0,) * 4, sample=0.0, entry=0.0)
    recipe = load("quick").recipe
    clock = calls = 0.0

    def passes(seconds: float) -> None:
        nonlocal clock, calls
        calls += 1
        clock += seconds + (1000.0 if calls % 3 else 0.0)

    def of(N: int) -> Speed:
        return overhead if N == 2 else speed

    def at(N: int, values: tuple[float, ...]) -> float:
        return values[max(0, plan_module._SIZES.index(N))] if N > 2 else 0.0

    def drawn(root_seed: int, N: int, seed: int, *, M: int, precision: str) -> SimpleNamespace:
        assert precision == recipe.descent.precision
        passes(of(N).cell + of(N).entry * M * N)
        return SimpleNamespace(N=N, M=M)

    def starts(root_seed: int, N: int, seed: int, start: range, **_: Any) -> Any:
        assert len(start) == len(recipe.start)
        return np.zeros((N, len(start)))

    def descended(instance: Any, W: Any, *, record: tuple[int, int], **settings: Any) -> None:
        M, (N, R) = instance.M, W.shape
        step = speed.step + 4 * M * N * R * at(N, speed.flop)
        passes(record[1] * step + 2 * (of(N).record + M * R * of(N).sample))

    def probed(instance: Any, w: Any, **settings: Any) -> None:
        passes(instance.M * instance.N * at(instance.N, speed.probe))

    monkeypatch.setattr(plan_module.time, "process_time", lambda: clock)
    monkeypatch.setattr(Problem, "instance", staticmethod(drawn))
    monkeypatch.setattr(Problem, "starts", staticmethod(starts))
    monkeypatch.setattr(plan_module, "descend", descended)
    monkeypatch.setattr(plan_module, "lowest_eigenpairs", probed)
    found = calibrate(recipe).speed
    for field in fields(Speed):
        assert getattr(found, field.name) == pytest.approx(getattr(speed, field.name)), field.name


def test_what_it_can_cost_is_between_two_numbers(full: Store) -> None:
    """From starts that recover at once to all that last; narrower with cells that were run."""
    recipe, bound = tiny().recipe, REFERENCE.bound(tiny().recipe, 4.0, 8)
    least, most = MODEL.between(recipe, 4.0, 8)
    assert least < 0.2 * bound
    assert most > 1.5 * bound
    slow = CostModel.with_experience(REFERENCE, recipe, {(2.0, 8): 9 * MODEL.seconds(recipe, 2, 8)})
    assert slow.between(recipe, 4.0, 8)[1] > 10 * bound
    assert slow.between(recipe, 2.0, 8)[0] > 4 * MODEL.seconds(recipe, 2.0, 8)
    plan = make_plan(tiny(seed=[0, 1, 2, 3, 4]), MODEL, full)
    for N in tiny().grid.N:
        assert plan.least[N] < plan.seconds[N] < plan.most[N]


def test_the_time_on_the_wall() -> None:
    """Groups of workers work side by side, and no part is done by two."""
    plan = make_plan(load("laptop"), MODEL)
    sizes = tuple(plan.parts)
    one, ten = plan.wall([(sizes, 1)]), plan.wall([(sizes, 10)])
    begin = plan.wall([])
    assert one[0] - begin[0] == pytest.approx(sum(plan.least.values()))
    assert one[1] - begin[1] == pytest.approx(sum(plan.most.values()))
    assert ten[1] - begin[1] == pytest.approx(sum(plan.most.values()) / 10)
    assert plan.wall([(sizes, 10**6)])[1] - begin[1] >= max(plan.longest.values())
    both = plan.wall([(sizes[:2], 1), (sizes[2:], 10)])
    assert both == tuple(map(max, plan.wall([(sizes[:2], 1)]), plan.wall([(sizes[2:], 10)])))


def test_the_numbers_of_a_plan_add_up() -> None:
    """Those of the sizes are those of the sweep; all are plain."""
    plan = make_plan(load("laptop"), MODEL)
    found = json.loads(json.dumps(plan.numbers()))
    assert found["cells"] == found["missing"] + found["done"] + found["failed"]
    for key in ("missing", "runs", "parts", "core_hours_least", "core_hours_most"):
        assert found[key] == pytest.approx(sum(size[key] for size in found["sizes"]))
    for key in ("memory_bytes", "longest_part_seconds"):
        assert found[key] == max(size[key] for size in found["sizes"])
    assert found["runs"] == 5632
    assert found["parts"] == sum(len(work.parts) for work in plan.work())


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


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_memory_of_a_worker_holds_what_a_cell_takes(precision: str) -> None:
    """The estimate is not less than what is asked for, and not twice as much."""
    document = as_document(load("quick"))
    sweep = Sweep.from_document(
        document
        | {
            "grid": {"alpha": [4.0], "N": [500], "seed": [0], "start": [0, 1]},
            "descent": document["descent"] | {"precision": precision, "t_max": 0.1},
            "record": {"times": []},
            "probe": {"times": [0.0], "modes": 2},
        }
    )
    compute(sweep.recipe, Part(4.0, 8, 0, 0))  # what is loaded for the first one
    tracemalloc.start()
    try:
        compute(sweep.recipe, Part(4.0, 500, 0, 0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    estimate = make_plan(sweep, MODEL).bytes[500] - plan_module._PROCESS_BYTES
    objects = 1e5  # of Python's; the process itself has much more
    assert peak - objects <= estimate < 2 * peak


def test_a_clock_of_processes_that_hardly_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no reason to divide by zero: some kernels count the time of processes in jiffies."""
    monkeypatch.setattr(plan_module.time, "process_time", lambda: 0.0)
    sweep = tiny()
    speed = calibrate(sweep.recipe).speed
    assert speed.bound(sweep.recipe, 2.0, 8) > 0
    CostModel.with_experience(speed, sweep.recipe, {(2.0, 8): 0.01})


def test_the_plan_tells_what_t_max_cuts_off(capsys: pytest.CaptureFixture[str]) -> None:
    """Where 1 % of the runs last longer; the preset that decides all has no such line."""
    show_plan(make_plan(load("quick"), MODEL).numbers())
    assert "t_max = 30 cuts off runs that are not decided" in " ".join(
        capsys.readouterr().out.split()
    )
    show_plan(make_plan(load("laptop"), MODEL).numbers())
    assert "cuts off runs" not in " ".join(capsys.readouterr().out.split())


def test_runs_of_flow_are_counted_until_they_end() -> None:
    """To a small t_max by the time, beyond by the size; less with a larger tolerance."""
    document = as_document(tiny_flow())

    def trips(N: int, **changes: float) -> float:
        descent = document["descent"] | {"t_max": 20.0} | changes
        sweep = Sweep.from_document(document | {"descent": descent})
        return sweep.descent.round_trips(sweep.problem.loss, 4.0, N)

    assert trips(64, t_max=1e3) == trips(64, t_max=1e4) < trips(512, t_max=1e4)
    assert trips(64) == trips(512) < trips(512, t_max=100.0)
    assert trips(64, tolerance=1e-2) < trips(64) < trips(64, tolerance=1e-4)
    assert tiny().descent.round_trips(tiny().problem.loss, 4.0, 8) == 100
