"""What is missing, cut into parts by cost, and what it will take: before anything runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from alphasweep.kernels.descent import descend
from alphasweep.kernels.flow import decided_by
from alphasweep.kernels.hessian import DENSE_UP_TO, lowest_eigenpairs
from alphasweep.kernels.instance import Instance, measurements
from alphasweep.kernels.loss import Array
from alphasweep.kernels.problem import AUTO
from alphasweep.kernels.rates import stable_rate, too_large
from alphasweep.kernels.revealed import look_ranks, most_ranks, revealed_seconds
from alphasweep.pipeline.dataset import DONE, FAILED, MISSING, cell_dtype, cell_variables
from alphasweep.pipeline.grid import Block, Bools, Geometry, Ints, positions, shared, wanted
from alphasweep.pipeline.layout import seeds_per_chunk
from alphasweep.pipeline.part import Part
from alphasweep.pipeline.recipe import Recipe
from alphasweep.pipeline.spec import Sweep
from alphasweep.pipeline.store import Store, wider_sweep
from alphasweep.pipeline.sweeps import raises_t_max
from alphasweep.pipeline.words import between

SECONDS_PER_PART = 5.0
MARGIN = 1.5  # a part may take so much longer than predicted
_EARLIEST = 0.1  # of t_max: when starts that recover at once are through
_PROCESS_BYTES = 300e6  # a worker with NumPy, SciPy, xarray, zarr and distributed loaded
_FILES_BESIDE = 40  # metadata, coordinates, lock, log
_VECTORS = 16  # of samples and components in float64, beside a revealed sensing
_BUSY = 2.0  # times as long takes what is measured on a free core, where all cores compute
_PART_SECONDS = 0.05  # of each part: its file, its way, and what a worker loads for its first
_START_SECONDS = 1.0, 5.0  # until workers on this machine are there

_SIZES = (16, 64, 256, 512)  # N that are measured; beyond, a flop takes what it takes there
_ROWS = 3  # measurements / N of what is measured
_REPEATS = 7
_MOST_STARTS = 256  # more take as long each


@dataclass(frozen=True)
class Speed:
    """What the pieces of a cell take on a core, in seconds.

    Attributes
    ----------
    cell, step, record : float
        Of each cell, step and recorded step, however small the problem. Of the method flow a step
        is an evaluation of the gradient, which takes the same.
    flop : tuple of float
        Of a flop of the descent, beyond that, at `_SIZES`.
    sample : float
        Of a recorded step, for each sample and start.
    probe : tuple of float
        Of the lowest eigenpairs, for each entry of the sensing matrix, at `_SIZES`.
    entry : float
        To draw an entry of the sensing matrix.
    """

    cell: float
    step: float
    record: float
    flop: tuple[float, ...]
    sample: float
    probe: tuple[float, ...]
    entry: float

    def bound(self, recipe: Recipe, alpha: float, N: int) -> float:
        """Seconds of a cell (alpha, N, seed) whose starts all last until t_max.

        Of the method flow, which ends every start long before: until they end.
        """

        def at(values: tuple[float, ...]) -> float:
            return float(np.interp(np.log(N), np.log(_SIZES), values))

        M, R = measurements(alpha, N), len(recipe.start)
        trips = recipe.descent.round_trips(recipe.problem.loss, alpha, N)
        problem = recipe.problem_at(alpha, N)
        if problem.one_a_start:
            lasts, share = recipe.descent.lasts(N), problem.sensing_tolerance
            looks = len(recipe.probe_steps) / R + _looks(recipe)
            one = revealed_seconds(M, N, lasts, trips, share, looks=looks)
            return self.cell + R * (one + len(recipe.steps) * (self.record + M * self.sample))
        step = self.step + 4 * M * N * R * at(self.flop)
        record = self.record + M * R * self.sample
        probe = M * N * at(self.probe)
        return (
            self.cell
            + M * N * self.entry
            + trips * step
            + len(recipe.steps) * record
            + len(recipe.probe_steps) * probe
        )


REFERENCE = Speed(
    cell=1e-3,
    step=2e-5,
    record=6e-4,
    flop=(20e-12, 16e-12, 12e-12, 11e-12),
    sample=7e-8,
    probe=(2e-7, 3e-8, 3e-8, 7e-8),
    entry=1e-8,
)
"""A core of a server with AVX2, in single precision: parts are cut by it, whatever the machine."""


@dataclass(frozen=True)
class CostModel:
    """Predicts the seconds a cell takes on one core.

    Until a cell like it was run, it is an upper bound: every start is taken to last until t_max.

    Attributes
    ----------
    speed : Speed
    correction : float
        Ratio of real to predicted seconds in the store, 1 without experience.
    known : dict
        Mean seconds of finished cells by (alpha, N), see `Store.mean_seconds`.
    """

    speed: Speed
    correction: float = 1.0
    known: Mapping[tuple[float, int], float] = field(default_factory=dict)

    @classmethod
    def with_experience(
        cls, speed: Speed, recipe: Recipe, known: Mapping[tuple[float, int], float]
    ) -> CostModel:
        """Correct a speed by cells that were run."""
        ratios = [spent / speed.bound(recipe, *cell) for cell, spent in known.items()]
        return cls(speed, float(np.median(ratios)) if ratios else 1.0, known)

    def seconds(self, recipe: Recipe, alpha: float, N: int) -> float:
        """Seconds of one cell (alpha, N, seed)."""
        if (alpha, N) in self.known:
            return self.known[alpha, N]
        return self.correction * self.speed.bound(recipe, alpha, N)

    def between(self, recipe: Recipe, alpha: float, N: int) -> tuple[float, float]:
        """Seconds of one cell at least and at most, as far as can be said.

        Of a cell like those that were run, by the noise of machines; else from starts that recover
        at once to starts that all last until t_max.
        """
        expected = self.seconds(recipe, alpha, N)
        least, most = expected / _BUSY, expected * _BUSY
        if (alpha, N) not in self.known:
            bound = self.speed.bound(recipe, alpha, N)
            least, most = min(least, _EARLIEST * bound), max(most, _BUSY * bound)
        return least, most


def calibrate(recipe: Recipe, store: Store | None = None) -> CostModel:
    """Measure a core of this machine for a second or two, and read the seconds of cells done."""
    speed = _measure(recipe)
    if store is None:
        return CostModel(speed)
    grid, mean = store.sweep().grid, store.mean_seconds()
    known = {
        (grid.alpha[i], grid.N[j]): float(mean[i, j])
        for i, j in np.argwhere(np.isfinite(mean)).tolist()
    }
    return CostModel.with_experience(speed, recipe, known)


def _measure(recipe: Recipe) -> Speed:
    R = min(len(recipe.start), _MOST_STARTS)
    with threadpool_limits(limits=1, user_api="blas"):
        # At the smallest N everything is overhead.
        overhead, *pieces = (_Pieces.measured(recipe, N, R) for N in (2, *_SIZES))

    def beyond(piece: float, least: float, number: float) -> float:
        return max(0.0, piece - least) / number

    largest = pieces[-1]
    return Speed(
        cell=overhead.drawing,
        step=overhead.step,
        record=overhead.record,
        flop=tuple(beyond(p.step, overhead.step, 4 * p.entries * R) for p in pieces),
        sample=beyond(largest.record, overhead.record, _ROWS * _SIZES[-1] * R),
        probe=tuple(p.probe / p.entries for p in pieces),
        entry=beyond(largest.drawing, overhead.drawing, largest.entries),
    )


class _Pieces(NamedTuple):
    """Seconds of the pieces of a cell of one size, and the entries of its sensing matrix."""

    drawing: float
    step: float
    record: float
    probe: float
    entries: int

    @classmethod
    def measured(cls, recipe: Recipe, N: int, R: int) -> _Pieces:
        # One that is held, whatever the sweep's: what a revealed one takes is counted apart.
        problem = replace(recipe.problem, sensing="gaussian")
        M, precision = _ROWS * N, recipe.descent.precision

        def draw() -> tuple[Instance, Array]:
            instance = problem.instance(0, N, 0, M=M, precision=precision)
            starts = problem.starts(0, N, 0, range(R), instance=instance, precision=precision)
            return instance, starts

        instance, W = draw()

        def descent(steps: int) -> float:
            # A short learning rate: no start ends, and the first and the last step are recorded.
            return _least(
                lambda: descend(
                    instance,
                    W,
                    loss=problem.loss,
                    learning_rate=1e-5,
                    record=(0, steps),
                    recovered_at=2.0,
                    trapped_below=0.0,
                )
            )

        def probe() -> object:
            modes = min(recipe.modes, N - 1)
            return lowest_eigenpairs(instance, W[:, 0], loss=problem.loss, modes=modes)

        steps = max(5, min(256, 4096 // N))
        few, many = descent(1), descent(steps)
        step = max(0.0, many - few) / (steps - 1)
        return cls(
            drawing=_least(draw),
            step=step,
            record=max(0.0, few - step) / 2,
            probe=_least(probe) if recipe.modes else 0.0,
            entries=M * N,
        )


def _least(measured: Callable[[], object]) -> float:
    """Seconds of this process for the fastest of some calls: others may have the core meanwhile."""
    times, walls = [], []
    for _ in range(_REPEATS):
        began, since = time.process_time(), time.perf_counter()
        measured()
        times.append(time.process_time() - began)
        walls.append(time.perf_counter() - since)
    # A clock of processes may tick only a hundred times a second: then the one on the wall.
    return min(times) or min(walls)


@dataclass(frozen=True)
class Work:
    """The parts that are missing in one block."""

    block: Block
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Plan:
    """What a run would do, and what it takes.

    Attributes
    ----------
    cells, done, failed, handed_in : int
        Cells that the sweep wants; done; failed and left so; in parts that wait for their commit.
    again : int
        Of the cells to compute, those in which time ran out before t_max was raised.
    missing, parts : dict
        Cells to compute, and the parts they are cut into, by N.
    seconds, longest : dict
        Predicted core-seconds of these cells, and of the longest part, by N. Of cells like which
        none was run, every start is taken to last until t_max.
    least, most : dict
        Between what the core-seconds of these cells can be expected to lie, by N.
    bytes : dict
        Peak memory of a worker by N.
    files, disk : int
        Files of the finished store, and its bytes before compression.
    """

    cells: int
    done: int
    failed: int
    handed_in: int
    again: int
    missing: dict[int, int]
    parts: dict[int, int]
    seconds: dict[int, float]
    longest: dict[int, float]
    least: dict[int, float]
    most: dict[int, float]
    bytes: dict[int, float]
    files: int
    disk: int
    _sweep: Sweep
    _runs: _Runs
    _cost: npt.NDArray[np.float64]

    def __str__(self) -> str:
        if not any(self.parts.values()):
            return f"{self.name}: nothing is to be computed."
        cost = between(*(sum(each.values()) / 3600 for each in (self.least, self.most)))
        return (
            f"{self.name}: {sum(self.missing.values()):,} cells to compute, {cost} core-hours; "
            f"{self.done:,} of {self.cells:,} are done."
        )

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self._sweep.name

    @property
    def unstable(self) -> str:
        """A sentence on a learning_rate that lets starts diverge, with one that would do; or ""."""
        grid, problem = self._sweep.grid, self._sweep.problem
        rate = self._sweep.descent.own.get("learning_rate", "auto")
        known = {"gaussian", "revealed", AUTO}
        if rate == "auto" or problem.sensing not in known or problem.start != "uniform":
            return ""
        # Where the largest eigenvalue at the start is largest.
        alpha, N = min(grid.alpha), max(grid.N)
        is_stable = rate <= stable_rate(problem.loss, alpha, N)
        return "" if is_stable else f"{too_large(problem.loss, rate, alpha, N)}."

    def work(self, sizes: Collection[int] | None = None) -> Iterator[Work]:
        """Yield what is missing at these N (default: all), the longest parts first.

        It is made as it is read: however large the sweep, only the blocks in work are held.
        """
        grid, runs = self._sweep.grid, self._runs
        chosen = [j for j, N in enumerate(grid.N) if sizes is None or N in sizes]
        listed = runs.order[np.isin(runs.j[runs.order], chosen)]
        rows = zip(*(column[listed] for column in runs.columns()), strict=True)
        for (i, j, chunk), block in groupby(rows, key=itemgetter(0, 1, 2)):
            alpha, N = grid.alpha[i], grid.N[j]
            yield Work(
                Block(alpha, N, int(chunk)),
                tuple(
                    Part(alpha, N, seed + a, seed + b - 1)
                    for _, _, _, seed, length, number in block
                    for a, b in pairwise(int(length) * n // int(number) for n in range(number + 1))
                    for seed in (int(seed),)
                ),
            )

    def wall(self, groups: Iterable[tuple[Collection[int], int]]) -> tuple[float, float]:
        """Seconds that it takes at least and at most, without waiting for a queue.

        Parameters
        ----------
        groups : iterable of (N, workers)
            Which sizes go to how many workers; groups work side by side.
        """
        least = most = 0.0
        for sizes, workers in groups:
            least = max(least, sum(self.least[N] for N in sizes) / workers)
            longest = max((self.longest[N] for N in sizes), default=0.0)
            spent = sum(self.most[N] for N in sizes) / workers
            most = max(most, spent, _BUSY * longest)
        return least + _START_SECONDS[0], most + _START_SECONDS[1]

    def numbers(self) -> dict[str, Any]:
        """Say it all in plain numbers, for a table or a machine.

        Returns
        -------
        dict
            ``name``, ``t_max``; ``cells`` of the sweep, of which are ``done``, ``handed_in``,
            ``failed`` (and left so) or ``missing``; of the missing ones those that are computed
            ``again``, since t_max is raised; for the missing ones their ``runs`` (cells times
            starts), ``parts``, ``core_hours_least`` and ``core_hours_most``,
            ``longest_part_seconds``, ``memory_bytes`` of a worker, the kinds of ``sensing`` (what
            "auto" is at each size), and ``decided_by``, the time by
            which all but 1 % of the runs end (`kernels.flow`); the same by size in the list
            ``sizes``, with ``N``; ``files`` and ``disk_bytes`` (before compression) of the
            finished store; and ``unstable``, a sentence if the learning_rate is too large, or "".
        """
        sizes = self._sweep.grid.N
        return {
            "name": self.name,
            "t_max": self._sweep.descent.t_max,
            "cells": self.cells,
            "done": self.done,
            "handed_in": self.handed_in,
            "failed": self.failed,
            "again": self.again,
            **self.of(sizes),
            "sizes": [{"N": N, **self.of([N])} for N in sizes],
            "files": self.files,
            "disk_bytes": self.disk,
            "unstable": self.unstable,
        }

    def of(self, sizes: Collection[int]) -> dict[str, Any]:
        """Say what is missing at these N, at least one, see `numbers`."""
        missing = sum(self.missing[N] for N in sizes)
        return {
            "missing": missing,
            "runs": missing * len(self._sweep.grid.start),
            "parts": sum(self.parts[N] for N in sizes),
            "core_hours_least": sum(self.least[N] for N in sizes) / 3600,
            "core_hours_most": sum(self.most[N] for N in sizes) / 3600,
            "decided_by": max(map(decided_by, sizes)),
            "longest_part_seconds": max(self.longest[N] for N in sizes),
            "memory_bytes": int(max(self.bytes[N] for N in sizes)),
            "sensing": sorted(
                {
                    self._sweep.recipe.problem_at(alpha, N).sensing
                    for alpha in self._sweep.grid.alpha
                    for N in sizes
                }
            ),
        }

    def part_seconds(self, part: Part) -> float:
        """Predicted core-seconds of a part."""
        grid = self._sweep.grid
        cost = self._cost[grid.alpha.index(part.alpha), grid.N.index(part.N)]
        return float(cost * len(part.seeds))


@dataclass(frozen=True)
class _Runs:
    """Runs of consecutive missing seeds in one chunk, as columns; no longer list is ever made.

    Attributes
    ----------
    i, j, chunk, seed, length, number : (n,)
        Place of alpha and N, chunk, first seed, length, and number of parts it is cut into.
    order : (n,)
        Longest parts first; the runs of a block follow one another.
    """

    i: Ints
    j: Ints
    chunk: Ints
    seed: Ints
    length: Ints
    number: Ints
    order: Ints

    def columns(self) -> tuple[Ints, ...]:
        return self.i, self.j, self.chunk, self.seed, self.length, self.number

    @classmethod
    def of(
        cls, todo: Bools, seeds: Ints, chunk: Ints, size: Ints, cost: npt.NDArray[np.float64]
    ) -> _Runs:
        # A seed continues a run if the one before it is to be computed, its neighbour, and in its
        # chunk.
        joined = (np.diff(seeds) == 1) & (np.diff(chunk) == 0)
        both = todo[..., 1:] & todo[..., :-1] & joined
        begins, ends = todo.copy(), todo.copy()
        begins[..., 1:] &= ~both
        ends[..., :-1] &= ~both
        i, j, first = np.nonzero(begins)
        length = np.nonzero(ends)[2] - first + 1
        number = -(-length // size[i, j])
        longest = np.zeros_like(cost)
        np.maximum.at(longest, (i, j), cost[i, j] * -(-length // number))
        order = np.lexsort((first, j, i, -longest[i, j]))
        return cls(i, j, chunk[first], seeds[first], length, number, order)


def make_plan(
    sweep: Sweep,
    model: CostModel,
    store: Store | None = None,
    *,
    seconds_per_part: float = SECONDS_PER_PART,
    retry_failed: bool = False,
) -> Plan:
    """Compare the sweep with the store, and cut what is missing into parts.

    Parameters
    ----------
    sweep : Sweep
    model : CostModel
    store : Store, optional
        Where the sweep is kept; it may hold more values than the sweep has, or fewer.
    seconds_per_part : float
        How long a part should take; at least one seed goes into each.
    retry_failed : bool
        Whether failed cells are computed again.
    """
    grid, recipe = sweep.grid, sweep.recipe
    whole = wider_sweep(store, sweep) if store else sweep
    geometry = Geometry(
        whole.grid, store.attributes()["seeds_per_chunk"] if store else seeds_per_chunk(sweep)
    )
    chunk = positions(grid.seed, whole.grid.seed) // geometry.per_chunk
    status, handed_in, again = _known(sweep, store)

    todo = (status == MISSING) & ~handed_in
    if retry_failed:
        todo |= status == FAILED
    todo &= wanted(grid)

    def each(of: Callable[[Recipe, float, int], Any]) -> npt.NDArray[np.float64]:
        return np.array([[of(recipe, alpha, N) for N in grid.N] for alpha in grid.alpha])

    cost, between = each(model.seconds), each(model.between)
    # Not by what was measured, which is never the same twice: whoever plans a sweep, and then runs
    # it, here or elsewhere, counts the same parts.
    reference = CostModel.with_experience(REFERENCE, recipe, model.known)
    size = np.maximum(1, seconds_per_part / each(reference.seconds)).astype(np.int64)
    runs = _Runs.of(todo, np.array(grid.seed, dtype=np.int64), chunk, size, cost)
    number = todo.sum(axis=2)
    parts = np.bincount(runs.j, runs.number, len(grid.N)).astype(int)
    longest = np.zeros(len(grid.N))
    np.maximum.at(longest, runs.j, cost[runs.i, runs.j] * -(-runs.length // runs.number))

    def by_N(values: npt.NDArray[np.generic]) -> dict[int, Any]:
        return dict(zip(grid.N, values.tolist(), strict=True))

    return Plan(
        cells=sweep.cells,
        done=int((status == DONE).sum()),
        failed=int(((status == FAILED) & ~todo).sum()),
        handed_in=int(handed_in.sum()),
        again=int((again & todo).sum()),
        missing=by_N(number.sum(axis=0)),
        parts=by_N(parts),
        seconds=by_N((cost * number).sum(axis=0)),
        longest=by_N(longest),
        least=by_N((between[..., 0] * number).sum(axis=0)),
        most=by_N((between[..., 1] * number).sum(axis=0) + parts * _PART_SECONDS),
        # Of "auto" the matrix of a smaller alpha may be held, and the larger one.
        bytes=by_N(each(_peak_bytes).max(axis=0)),
        files=geometry.count(wanted(whole.grid)) * len(cell_variables(recipe)) + _FILES_BESIDE,
        disk=whole.cells * cell_dtype(recipe).itemsize,
        _sweep=sweep,
        _runs=runs,
        _cost=cost,
    )


def lacking(sweep: Sweep, store: Store) -> int:
    """Count the cells that a sweep wants, and that are neither done nor failed in its store."""
    status, _, _ = _known(sweep, store)
    return int((wanted(sweep.grid) & (status == MISSING)).sum())


def _known(sweep: Sweep, store: Store | None) -> tuple[npt.NDArray[np.int8], Bools, Bools]:
    """Status of the sweep's cells; which of the missing ones wait for their commit, or were done.

    The latter are to be computed again, since the sweep has a larger t_max than the store. A cell
    that the store has and the sweep does not want is missing.
    """
    mine = wanted(sweep.grid)
    status = np.zeros(mine.shape, np.int8)
    waiting, again = np.zeros((2, *mine.shape), bool)
    if store is None:
        return status, waiting, again
    stored = store.sweep()
    here, there = shared(sweep.grid, stored.grid)
    status[here] = store.status()[there]
    if raises_t_max(stored, sweep):
        again[here] = store.out_of_time()[there]
        status[again] = MISSING
    geometry = Geometry(sweep.grid, len(sweep.grid.seed))
    for part in store.parts():
        for (i, j, _), rows in geometry.pieces(part):
            waiting[i, j, rows] = True
    status[~mine] = MISSING
    return status, mine & waiting & (status != DONE), again


def _looks(recipe: Recipe) -> int:
    """Look so often for the lowest eigenvalue of a run, besides its probes: for rest, by flow."""
    return 1 if recipe.descent.own.get("rest_within") else 0


def _peak_bytes(recipe: Recipe, alpha: float, N: int) -> float:
    M, R = measurements(alpha, N), len(recipe.start)
    size = np.dtype(recipe.descent.precision).itemsize
    problem = recipe.problem_at(alpha, N)
    if problem.one_a_start:
        open_ = most_ranks(recipe.descent.lasts(N), M, N, problem.sensing_tolerance)
        looks = 2 * look_ranks(N) if recipe.modes or _looks(recipe) else 0
        directions = (M + N) * (sum(open_) + looks) * size
        return float(_PROCESS_BYTES + directions + _VECTORS * (M + N) * 8)
    matrix = M * N * (size + (4 if size == 8 else 0))  # drawn in single precision
    theory = 6 * M * R * 8
    dense = 4 * N * N * 8 if recipe.modes and N <= DENSE_UP_TO else 60 * N * 8
    return float(_PROCESS_BYTES + matrix + 4 * M * R * size + theory + dense)
