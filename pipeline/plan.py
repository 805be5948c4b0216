"""What is missing, cut into parts by cost, and what it will take: before anything runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from kernels.descent import descend
from kernels.hessian import DENSE_UP_TO
from kernels.instance import draw_instance, uniform_starts
from pipeline.part import Part
from pipeline.spec import Sweep
from pipeline.store import DONE, FAILED, MISSING, VARIABLES, Block, Store, seeds_per_chunk

SECONDS_PER_PART = 5.0
_CALIBRATION_N = (64, 256, 1024)
_CALIBRATION_SECONDS = 1.0
_DRAW_SECONDS = 1e-8  # a normal variate
_THEORY_SECONDS = 3e-7  # edge and outlier, a sample and start
_PRODUCT_SECONDS = 2e-10  # a multiply-add of ARPACK's products with X, bound by memory
_ARPACK_PRODUCTS = 300
_PROCESS_BYTES = 300e6  # a worker with NumPy, SciPy, xarray, zarr and distributed loaded
_FILES_BESIDE = 40  # metadata, coordinates, lock, log


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
        Mean seconds of finished cells by (alpha, N).
    """

    flop_seconds: npt.NDArray[np.float64]
    correction: float
    known: dict[tuple[float, int], float]

    def seconds(self, sweep: Sweep, alpha: float, N: int) -> float:
        """Seconds of one cell (alpha, N, seed)."""
        if (alpha, N) in self.known:
            return self.known[alpha, N]
        return self.correction * self._bound(sweep, alpha, N)

    def _bound(self, sweep: Sweep, alpha: float, N: int) -> float:
        M, R = sweep.measurements(alpha, N), len(sweep.grid.start)
        per_flop = np.interp(np.log(N), np.log(_CALIBRATION_N), self.flop_seconds)
        descent = sweep.last_step * 4 * M * N * R * per_flop
        theory = len(sweep.steps) * M * R * _THEORY_SECONDS
        products = min(N, _ARPACK_PRODUCTS) * 2 * M * N * _PRODUCT_SECONDS
        probes = len(sweep.probe_steps) * products
        return float(M * N * _DRAW_SECONDS + descent + theory + probes)


def calibrate(sweep: Sweep, store: Store | None = None) -> CostModel:
    """Measure this machine for about a second, and read the seconds of cells already done."""
    starts = len(sweep.grid.start)
    with threadpool_limits(limits=1, user_api="blas"):
        rates = np.array([_flop_seconds(N, starts) for N in _CALIBRATION_N])
    model = CostModel(rates, 1.0, {})
    if store is None:
        return model
    seconds = store.seconds()
    known = {
        (alpha, N): float(np.nanmean(seconds[i, j]))
        for i, alpha in enumerate(sweep.grid.alpha)
        for j, N in enumerate(sweep.grid.N)
        if np.isfinite(seconds[i, j]).any()
    }
    ratios = [spent / model.seconds(sweep, *cell) for cell, spent in known.items()]
    return CostModel(rates, float(np.median(ratios)) if ratios else 1.0, known)


def _flop_seconds(N: int, starts: int) -> float:
    instance = draw_instance(0, N, 0, M=3 * N)
    W = uniform_starts(0, N, 0, range(starts))
    spent, steps, number = 0.0, 0, 4
    while spent < _CALIBRATION_SECONDS / len(_CALIBRATION_N):
        began = time.perf_counter()
        # A short learning rate: no start ends, and only the steps are timed.
        descend(instance, W, a=1.0, learning_rate=1e-5, record=(0, number), recovered_at=2.0)
        spent += time.perf_counter() - began
        steps += number
        number *= 2
    return spent / (steps * 4 * instance.M * N * starts)


@dataclass(frozen=True)
class Work:
    """What there is to do for one block: parts to compute, and parts that only wait for it."""

    block: Block
    parts: tuple[Part, ...]
    handed_in: tuple[Part, ...]


@dataclass(frozen=True)
class Plan:
    """What a run would do, and what it takes.

    Attributes
    ----------
    work : tuple of Work
        Largest parts first.
    cells, done, failed, handed_in : int
        Cells of the sweep; with status done; failed; in parts that wait for their commit.
    seconds : dict
        Predicted core-seconds of the missing cells by N.
    parts, missing : dict
        Parts and missing cells by N.
    bytes : dict
        Peak memory of a worker by N.
    files, disk : int
        Files of the finished store, and its bytes before compression.
    """

    work: tuple[Work, ...]
    cells: int
    done: int
    failed: int
    handed_in: int
    seconds: dict[int, float]
    parts: dict[int, int]
    missing: dict[int, int]
    bytes: dict[int, float]
    files: int
    disk: int

    def all_parts(self) -> Iterator[Part]:
        """Parts to compute, in order."""
        return (part for work in self.work for part in work.parts)


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
        Where the sweep is or will be kept.
    seconds_per_part : float
        How long a part should take; at least one seed goes into each.
    retry_failed : bool
        Whether failed cells are computed again.
    """
    grid = sweep.grid
    shape = (len(grid.alpha), len(grid.N), len(grid.seed))
    there = store is not None and store.exists()
    status = store.status() if store and there else np.zeros(shape, np.int8)
    waiting = handed_in(sweep, store) if store and there else {}
    ready = [part for parts in waiting.values() for part in parts]
    per_chunk = store.seeds_per_chunk() if store and there else seeds_per_chunk(sweep)
    wanted = status == MISSING
    if retry_failed:
        wanted |= status == FAILED
    seeds = np.array(grid.seed, dtype=np.int64)

    for part in ready:
        i, j = grid.alpha.index(part.alpha), grid.N.index(part.N)
        wanted[i, j, (seeds >= part.first_seed) & (seeds <= part.last_seed)] = False

    work, seconds, parts, missing = [], {}, {}, {}
    for j, N in enumerate(grid.N):
        seconds[N], parts[N], missing[N] = 0.0, 0, 0
        for i, alpha in enumerate(grid.alpha):
            cost = model.seconds(sweep, alpha, N)
            size = max(1, int(seconds_per_part / cost))
            absent = np.flatnonzero(wanted[i, j])
            seconds[N] += cost * len(absent)
            missing[N] += len(absent)
            by_chunk = {c: list(k) for c, k in groupby(absent, key=lambda k: int(k) // per_chunk)}
            for chunk in by_chunk:
                block = Block(alpha, N, chunk)
                new = tuple(
                    Part(alpha, N, run[0], run[-1])
                    for run in _runs(seeds[by_chunk[chunk]].tolist(), size)
                )
                parts[N] += len(new)
                work.append(
                    (cost * len(absent), Work(block, new, tuple(waiting.pop(block, ()))))
                )
    work.sort(key=lambda item: (-item[0] / max(1, len(item[1].parts)), item[1].block))
    only_commit = [Work(block, (), tuple(found)) for block, found in waiting.items()]
    size = np.dtype(sweep.descent.precision).itemsize
    chunks = shape[0] * shape[1] * -(-shape[2] // per_chunk)
    kept = [v for v in VARIABLES.values() if "seed" in v.dims and (sweep.probe or "mode" not in v.dims)]
    return Plan(
        work=(*only_commit, *(item for _, item in work)),
        cells=status.size,
        done=int((status == DONE).sum()),
        failed=int((status == FAILED).sum()),
        handed_in=sum(len(part.seeds) for part in ready),
        seconds=seconds,
        parts=parts,
        missing=missing,
        bytes={N: _peak_bytes(sweep, N, size) for N in grid.N},
        files=chunks * len(kept) + _FILES_BESIDE,
        disk=status.size * sum(_bytes_per_cell(sweep, v.dims, v.kind) for v in kept),
    )


def handed_in(sweep: Sweep, store: Store) -> dict[Block, list[Part]]:
    """Parts on the disk that wait for their commit, by block; unreadable ones are removed."""
    waiting: dict[Block, list[Part]] = {}
    for part in store.parts():
        if store.readable(part):
            chunk = sweep.grid.seed.index(part.first_seed) // store.seeds_per_chunk()
            waiting.setdefault(Block(part.alpha, part.N, chunk), []).append(part)
        else:
            store.discard(part)
    return waiting


def _runs(seeds: list[int], size: int) -> Iterable[list[int]]:
    """Cut ascending seeds into runs of consecutive numbers, at most `size` long, evenly."""
    for _, group in groupby(enumerate(seeds), key=lambda item: item[1] - item[0]):
        run = [seed for _, seed in group]
        number = -(-len(run) // size)
        edges = [len(run) * n // number for n in range(number + 1)]
        yield from (run[a:b] for a, b in zip(edges, edges[1:], strict=False))


def _peak_bytes(sweep: Sweep, N: int, size: int) -> float:
    M, R = sweep.measurements(max(sweep.grid.alpha), N), len(sweep.grid.start)
    matrix = M * N * (size + (4 if size == 8 else 0))  # drawn in single precision
    theory = 6 * M * R * 8
    dense = 4 * N * N * 8 if sweep.probe and N <= DENSE_UP_TO else 60 * N * 8
    return float(_PROCESS_BYTES + matrix + 3 * M * R * size + theory + dense)


def _bytes_per_cell(sweep: Sweep, dims: tuple[str, ...], kind: str) -> int:
    sizes = {
        "start": len(sweep.grid.start),
        "time": len(sweep.steps),
        "mode": sweep.probe.modes if sweep.probe else 0,
    }
    item = np.dtype(sweep.descent.precision if kind == "real" else kind).itemsize
    return int(item * np.prod([sizes.get(d, 1) for d in dims]))
