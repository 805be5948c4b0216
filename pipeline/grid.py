"""The geometry of a sweep: which of its cells are wanted, and where cells lie in a store's arrays.

The arrays of a store have the axes alpha, N and seed. They are cut into chunks of one alpha, one N
and so many seeds; the cells of one chunk are a block, and a part lies in one block. A sweep may
want some cells of the product of its axes alone: the others are neither missing nor ever computed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from alphasweep.pipeline.dataset import GRID
from alphasweep.pipeline.part import Part
from alphasweep.pipeline.sections import Grid

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

Place = tuple[int, int, int]
"""Of a block: the index of its alpha, of its N, and of its chunk along seed."""


@dataclass(frozen=True, order=True)
class Block:
    """The cells of one chunk of every variable: what one commit owns."""

    alpha: float
    N: int
    chunk: int


def wanted(grid: Grid) -> Bools:
    """Return which cells of the product of the axes a sweep wants, (alpha, N, seed)."""
    axes = [getattr(grid, axis) for axis in GRID]
    found = np.full(tuple(map(len, axes)), not grid.only)
    for box in grid.only:
        inside = (np.isin(axis, getattr(box, name)) for name, axis in zip(GRID, axes, strict=True))
        found[np.ix_(*inside)] = True
    return found


def positions(values: npt.ArrayLike, axis: npt.ArrayLike) -> Ints:
    """Return where values are in an ascending axis that has all of them."""
    return np.searchsorted(np.asarray(axis), np.asarray(values))


def shared(one: Grid, other: Grid) -> tuple[tuple[Ints, ...], tuple[Ints, ...]]:
    """Return what selects the cells of both of two products of axes, in arrays of each."""
    common = [np.intersect1d(getattr(one, axis), getattr(other, axis)) for axis in GRID]
    here, there = (
        np.ix_(*(positions(v, getattr(grid, axis)) for axis, v in zip(GRID, common, strict=True)))
        for grid in (one, other)
    )
    return here, there


class Geometry:
    """Where the cells of a sweep lie in the arrays of its store.

    Parameters
    ----------
    grid : Grid
    per_chunk : int
        Seeds of a chunk, which a store keeps for ever.

    Attributes
    ----------
    shape : (int, int, int)
        Lengths of the axes alpha, N and seed.
    blocks : (int, int, int)
        Numbers of blocks along them.
    """

    def __init__(self, grid: Grid, per_chunk: int) -> None:
        self._grid, self.per_chunk = grid, per_chunk
        self._alpha = {alpha: i for i, alpha in enumerate(grid.alpha)}
        self._N = {N: j for j, N in enumerate(grid.N)}
        self.shape = (len(grid.alpha), len(grid.N), len(grid.seed))
        self.blocks = (*self.shape[:2], -(-self.shape[2] // per_chunk))

    def places(self) -> Iterator[Place]:
        """Yield the places of all blocks."""
        alphas, sizes, chunks = map(range, self.blocks)
        return product(alphas, sizes, chunks)

    def has(self, place: Place) -> bool:
        """Whether there is such a block."""
        return all(0 <= i < n for i, n in zip(place, self.blocks, strict=True))

    def place(self, block: Block) -> Place:
        """Return the place of a block of these axes."""
        return self._alpha[block.alpha], self._N[block.N], block.chunk

    def rows(self, place: Place) -> tuple[int, int, slice]:
        """Return what selects a block in an array."""
        i, j, chunk = place
        end = min((chunk + 1) * self.per_chunk, self.shape[2])
        return i, j, slice(chunk * self.per_chunk, end)

    def cells(self, place: Place, among: Bools | None = None) -> Part:
        """Name the cells of a block, or some of them: their seeds are among those of the part."""
        i, j, rows = self.rows(place)
        seeds = np.array(self._grid.seed[rows])
        seeds = seeds if among is None else seeds[among]
        return Part(self._grid.alpha[i], self._grid.N[j], int(seeds[0]), int(seeds[-1]))

    def pieces(self, part: Part) -> list[tuple[Place, slice]]:
        """Find the blocks that hold cells of a part, and the rows of these in each."""
        i, j = self._alpha.get(part.alpha), self._N.get(part.N)
        seeds, length = self._grid.seed, self.per_chunk
        first, end = bisect_left(seeds, part.first_seed), bisect_right(seeds, part.last_seed)
        if i is None or j is None or first >= end:
            return []
        return [
            ((i, j, k), slice(max(first - k * length, 0), min(end - k * length, length)))
            for k in range(first // length, (end - 1) // length + 1)
        ]

    def whole(self, part: Part) -> tuple[Block, slice] | None:
        """Find the block that holds all of a part, and its rows there; None if there is none."""
        found = self.pieces(part)
        if len(found) != 1:
            return None
        (((_, _, chunk), rows),) = found
        is_whole = rows.stop - rows.start == len(part.seeds)
        return (Block(part.alpha, part.N, chunk), rows) if is_whole else None

    def count(self, cells: Bools) -> int:
        """Count the blocks that hold any of these cells, (alpha, N, seed)."""
        starts = range(0, self.shape[2], self.per_chunk)
        return int(np.logical_or.reduceat(cells, starts, axis=2).sum())
