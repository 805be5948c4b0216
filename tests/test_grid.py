"""Claims about geometry: which cells are wanted, and where cells lie in a store's arrays."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphasweep.pipeline.grid import Block, Geometry, positions, shared, wanted
from alphasweep.pipeline.part import Part
from alphasweep.pipeline.sections import Box, Grid

ALPHA, SIZES = (2.0, 3.0, 4.5), (8, 12)
seeds = st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True).map(sorted)


def grid(seed: list[int], **others: object) -> Grid:
    """Return a grid of three alpha and two N."""
    return Grid.model_validate({"alpha": ALPHA, "N": SIZES, "seed": seed, "start": [0], **others})


@given(seed=seeds, per_chunk=st.integers(1, 5))
def test_blocks_hold_every_cell_once(seed: list[int], per_chunk: int) -> None:
    """Their rows are a partition of the arrays, and each names its own cells."""
    geometry = Geometry(grid(seed), per_chunk)
    held = np.zeros(geometry.shape, int)
    for place in geometry.places():
        assert geometry.has(place)
        i, j, rows = geometry.rows(place)
        held[i, j, rows] += 1
        cells = geometry.cells(place)
        assert (cells.alpha, cells.N) == (ALPHA[i], SIZES[j])
        assert (cells.first_seed, cells.last_seed) == (seed[rows][0], seed[rows][-1])
        assert geometry.place(Block(ALPHA[i], SIZES[j], place[2])) == place
    assert (held == 1).all()
    assert not geometry.has((0, 0, geometry.blocks[2]))
    assert geometry.count(np.ones(geometry.shape, bool)) == np.prod(geometry.blocks)
    assert geometry.count(np.zeros(geometry.shape, bool)) == 0


@given(seed=seeds, per_chunk=st.integers(1, 5), first=st.integers(0, 30), more=st.integers(0, 9))
def test_a_part_lies_where_its_seeds_are(
    seed: list[int], per_chunk: int, first: int, more: int
) -> None:
    """In all its blocks together, and wholly in one only if that has every seed of it."""
    geometry = Geometry(grid(seed), per_chunk)
    part = Part(3.0, 12, first, first + more)
    found = [
        seed[place[2] * per_chunk + row]
        for place, rows in geometry.pieces(part)
        for row in range(rows.start, rows.stop)
    ]
    assert found == [s for s in seed if s in part.seeds]
    chunks = {seed.index(s) // per_chunk for s in part.seeds if s in seed}
    if len(chunks) == 1 and len(found) == len(part.seeds):
        (chunk,) = chunks
        at = seed.index(first) - chunk * per_chunk
        assert geometry.whole(part) == (Block(3.0, 12, chunk), slice(at, at + more + 1))
    else:
        assert geometry.whole(part) is None


@pytest.mark.parametrize("part", [Part(2.5, 8, 0, 1), Part(2.0, 9, 0, 1)])
def test_a_part_of_other_axes_lies_nowhere(part: Part) -> None:
    """Neither in pieces nor whole."""
    geometry = Geometry(grid([0, 1, 2]), 2)
    assert geometry.pieces(part) == []
    assert geometry.whole(part) is None


boxes = st.fixed_dictionaries(
    {},
    optional={
        "alpha": st.lists(st.sampled_from(ALPHA), min_size=1, unique=True),
        "N": st.lists(st.sampled_from(SIZES), min_size=1, unique=True),
        "seed": st.lists(st.integers(0, 3), min_size=1, unique=True),
    },
)


@given(st.lists(boxes, max_size=5))
def test_wanted_is_what_is_in_a_box(asked: list[dict[str, list[float]]]) -> None:
    """However boxes overlap and are written as fewer; and all where there is none."""
    values = {"alpha": ALPHA, "N": SIZES, "seed": (0, 1, 2, 3)}
    whole = [{axis: box.get(axis, values[axis]) for axis in values} for box in asked]
    cells = [
        any(all(v in box[axis] for v, axis in zip(cell, values, strict=True)) for box in whole)
        for cell in product(*values.values())
    ]
    if any(not any(v in box[axis] for box in whole) for axis in values for v in values[axis]):
        if asked:
            with pytest.raises(ValueError, match="in none is"):
                grid([0, 1, 2, 3], only=asked)
            return
        cells = [True] * len(cells)
    found = grid([0, 1, 2, 3], only=asked)
    assert wanted(found).ravel().tolist() == cells
    assert len(found.only) <= len(asked)
    assert not (found.only and all(cells) and len(found.only) == 1)


def test_boxes_that_are_all_are_none() -> None:
    """Two halves of the product are the product, and how they were asked for is forgotten."""
    halves = [{"alpha": [2.0]}, {"alpha": [3.0, 4.5]}]
    assert grid([0, 1], only=halves) == grid([0, 1])
    (box,) = grid([0, 1]).boxes
    assert box == Box(alpha=ALPHA, N=SIZES, seed=(0, 1))


def test_what_two_grids_share() -> None:
    """The same cells in the arrays of both."""
    one, other = grid([0, 2, 5]), Grid(alpha=(3.0, 9.0), N=(8, 12, 16), seed=(1, 2, 5), start=(0,))
    here, there = shared(one, other)
    cells = [np.array(list(product(g.alpha, g.N, g.seed))) for g in (one, other)]
    of_one, of_other = (
        c.reshape(len(g.alpha), len(g.N), len(g.seed), 3)
        for c, g in zip(cells, (one, other), strict=True)
    )
    assert (of_one[here] == of_other[there]).all()
    assert of_one[here].shape == (1, 2, 2, 3)
    assert positions([2, 5], other.seed).tolist() == [1, 2]
