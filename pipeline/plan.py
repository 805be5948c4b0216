"""What is missing, cut into parts by cost, and what it will take: before anything runs."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from kernels.descent import descend
from kernels.hessian import DENSE_UP_TO
from kernels.instance import draw_instance, uniform_starts
from pipeline.dataset import DONE, FAILED, GRID, MISSING, cell_dtype, cell_variables
from pipeline.layout import seeds_per_chunk
from pipeline.part import Part
from pipeline.spec import Recipe, Sweep, measurements
from pipeline.store import Block, Store, wider_sweep

SECONDS_PER_PART = 5.0
MARGIN = 1.5  # a part may take so much longer than predicted
_CALIBRATION_N = (16, 64, 256, 1024)
_CALIBRATION_SECONDS = 1.0
_DRAW_SECONDS = 1e-8  # a normal variate
_RECORD_SECONDS = 1e-3  # what NumPy's calls take at a record, however small the problem
_THEORY_SECONDS = 1e-7  # edge and outlier, a sample and start
_PRODUCT_SECONDS = 2e-10  # a multiply-add of ARPACK's products with X, bound by memory
_ARPACK_PRODUCTS = 300
_PROCESS_BYTES = 300e6  # a worker with NumPy, SciPy, xarray, zarr and distributed loaded
_FILES_BESIDE = 40  # metadata, coordinates, lock, log

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CostModel:
    """Predicts the seconds a cell takes on one core of this machine.

    Until a cell like it was run, it is an upper bound: every start is taken to last until t_max.

    Attributes
    ----------
    flop_seconds : (K,)
        Seconds a flop of the descent, measured at ``_CALIBRATION_N``.
    correction : float
        Ratio of real to predicted seconds in the store, 1 without experience.
    known : dict
        Mean seconds of finished cells by (alpha, N), see `Store.mean_seconds`.
    """

    flop_seconds: npt.NDArray[np.float64]
    correction: float
    known: dict[tuple[float, int], float]

    def seconds(self, recipe: Recipe, alpha: float, N: int) -> float:
        """Seconds of one cell (alpha, N, seed)."""
        if (alpha, N) in self.known:
            return self.known[alpha, N]
        return self.correction * self._bound(recipe, alpha, N)

    def _bound(self, recipe: Recipe, alpha: float, N: int) -> float:
        M, R = measurements(alpha, N), len(recipe.start)
        per_flop = np.interp(np.log(N), np.log(_CALIBRATION_N), self.flop_seconds)
        descent = recipe.steps[-1] * 4 * M * N * R * per_flop
        theory = len(recipe.steps) * (_RECORD_SECONDS + M * R * _THEORY_SECONDS)
        products = min(N, _ARPACK_PRODUCTS) * 2 * M * N * _PRODUCT_SECONDS
        probes = len(recipe.probe_steps) * products
        return float(M * N * _DRAW_SECONDS + descent + theory + probes)


def calibrate(recipe: Recipe, store: Store | None = None) -> CostModel:
    """Measure this machine for about a second, and read the seconds of cells already done."""
    with threadpool_limits(limits=1, user_api="blas"):
        rates = np.array([_flop_seconds(N, len(recipe.start)) for N in _CALIBRATION_N])
    model = CostModel(rates, 1.0, {})
    if store is None:
        return model
    grid, mean = store.sweep().grid, store.mean_seconds()
    known = {
        (grid.alpha[i], grid.N[j]): float(mean[i, j])
        for i, j in np.argwhere(np.isfinite(mean)).tolist()
    }
    ratios = [spent / model.seconds(recipe, *cell) for cell, spent in known.items()]
    return CostModel(rates, float(np.median(ratios)) if ratios else 1.0, known)


def _flop_seconds(N: int, starts: int) -> float:
    instance = draw_instance(0, N, 0, M=3 * N)
    W = uniform_starts(0, N, 0, range(starts))
    number, spent, rates = 4, 0.0, list[float]()
    while spent < _CALIBRATION_SECONDS / len(_CALIBRATION_N) or len(rates) < 3:
        began = time.perf_counter()
        # A short learning rate: no start ends, and only the steps are timed.
        descend(instance, W, a=1.0, learning_rate=1e-5, record=(0, number), recovered_at=2.0)
        took = time.perf_counter() - began
        rates.append(took / (number * 4 * instance.M * N * starts))
        spent += took
        number *= 2
    return float(np.median(rates))  # others may have stopped this process for a while


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
        Cells of the sweep; done; failed and left so; in parts that wait for their commit.
    missing, parts : dict
        Cells to compute, and the parts they are cut into, by N.
    seconds, longest : dict
        Predicted core-seconds of these cells, and of the longest part, by N.
    bytes : dict
        Peak memory of a worker by N.
    files, disk : int
        Files of the finished store, and its bytes before compression.
    """

    cells: int
    done: int
    failed: int
    handed_in: int
    missing: dict[int, int]
    parts: dict[int, int]
    seconds: dict[int, float]
    longest: dict[int, float]
    bytes: dict[int, float]
    files: int
    disk: int
    _sweep: Sweep
    _runs: _Runs
    _cost: npt.NDArray[np.float64]

    def work(self, sizes: Collection[int] | None = None) -> Iterator[Work]:
        """Yield what is missing at these N (default: all), the longest parts first.

        It is made as it is read: however large the sweep, only the blocks in work are held.
        """
        grid, runs = self._sweep.grid, self._runs
        wanted = [j for j, N in enumerate(grid.N) if sizes is None or N in sizes]
        chosen = runs.order[np.isin(runs.j[runs.order], wanted)]
        rows = zip(*(column[chosen] for column in runs.columns()), strict=True)
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
        cls, wanted: Bools, seeds: Ints, chunk: Ints, size: Ints, cost: npt.NDArray[np.float64]
    ) -> _Runs:
        # A seed continues a run if the one before it is wanted, its neighbour, and in its chunk.
        joined = (np.diff(seeds) == 1) & (np.diff(chunk) == 0)
        both = wanted[..., 1:] & wanted[..., :-1] & joined
        begins, ends = wanted.copy(), wanted.copy()
        begins[..., 1:] &= ~both
        ends[..., :-1] &= ~both
        i, j, first = np.nonzero(begins)
        length = np.nonzero(ends)[2] - first + 1
        number = -(-length // size[i, j])
        part_cost = cost[i, j] * np.minimum(size[i, j], wanted.shape[2])
        order = np.lexsort((first, j, i, -part_cost))
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
    seeds = np.array(grid.seed, dtype=np.int64)
    whole = wider_sweep(store, sweep) if store else sweep
    per_chunk = store.attributes()["seeds_per_chunk"] if store else seeds_per_chunk(sweep)
    chunk = np.searchsorted(np.array(whole.grid.seed), seeds) // per_chunk
    status, handed_in = _known(sweep, store)

    wanted = (status == MISSING) & ~handed_in
    if retry_failed:
        wanted |= status == FAILED
    cost = np.array([[model.seconds(recipe, alpha, N) for N in grid.N] for alpha in grid.alpha])
    size = np.maximum(1, seconds_per_part / cost).astype(np.int64)
    runs = _Runs.of(wanted, seeds, chunk, size, cost)
    missing = wanted.sum(axis=(0, 2))
    parts = np.bincount(runs.j, runs.number, len(grid.N)).astype(int)
    longest = np.zeros(len(grid.N))
    np.maximum.at(longest, runs.j, cost[runs.i, runs.j] * -(-runs.length // runs.number))
    blocks = len(whole.grid.alpha) * len(whole.grid.N) * -(-len(whole.grid.seed) // per_chunk)
    cells = np.prod([len(getattr(whole.grid, axis)) for axis in GRID], dtype=int)

    def by_N(values: npt.NDArray[np.generic]) -> dict[int, Any]:
        return dict(zip(grid.N, values.tolist(), strict=True))

    return Plan(
        cells=status.size,
        done=int((status == DONE).sum()),
        failed=int(((status == FAILED) & ~wanted).sum()),
        handed_in=int(handed_in.sum()),
        missing=by_N(missing),
        parts=by_N(parts),
        seconds=by_N((cost * wanted.sum(axis=2)).sum(axis=0)),
        longest=by_N(longest),
        bytes={N: _peak_bytes(recipe, max(grid.alpha), N) for N in grid.N},
        files=blocks * len(cell_variables(recipe)) + _FILES_BESIDE,
        disk=int(cells) * cell_dtype(recipe).itemsize,
        _sweep=sweep,
        _runs=runs,
        _cost=cost,
    )


def _known(sweep: Sweep, store: Store | None) -> tuple[npt.NDArray[np.int8], Bools]:
    """Status of the sweep's cells, and which of the missing ones wait for their commit."""
    grid = sweep.grid
    status = np.zeros((len(grid.alpha), len(grid.N), len(grid.seed)), np.int8)
    waiting = np.zeros(status.shape, bool)
    if store is None:
        return status, waiting
    held = store.sweep().grid
    shared = [np.intersect1d(getattr(grid, axis), getattr(held, axis)) for axis in GRID]
    here = [np.searchsorted(getattr(grid, a), v) for a, v in zip(GRID, shared, strict=True)]
    there = [np.searchsorted(getattr(held, a), v) for a, v in zip(GRID, shared, strict=True)]
    status[np.ix_(*here)] = store.status()[np.ix_(*there)]
    seeds = np.array(grid.seed)
    for part in store.parts():
        if part.alpha in grid.alpha and part.N in grid.N:
            i, j = grid.alpha.index(part.alpha), grid.N.index(part.N)
            waiting[i, j] |= (seeds >= part.first_seed) & (seeds <= part.last_seed)
    return status, waiting & (status != DONE)


def _peak_bytes(recipe: Recipe, alpha: float, N: int) -> float:
    M, R = measurements(alpha, N), len(recipe.start)
    size = np.dtype(recipe.descent.precision).itemsize
    matrix = M * N * (size + (4 if size == 8 else 0))  # drawn in single precision
    theory = 6 * M * R * 8
    dense = 4 * N * N * 8 if recipe.modes and N <= DENSE_UP_TO else 60 * N * 8
    return float(_PROCESS_BYTES + matrix + 4 * M * R * size + theory + dense)
