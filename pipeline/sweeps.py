"""The algebra of sweeps: what two of them have in common, and what one has more."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from alphasweep.pipeline.messages import SweepError
from alphasweep.pipeline.sections import MAX_VALUES, SECTIONS
from alphasweep.pipeline.spec import Sweep, as_document, check_size
from alphasweep.pipeline.words import shown

_SHOWN_VALUES = 8  # that are listed; of more, the number and the ends are told


def differences(old: Sweep, new: Sweep) -> list[str]:
    """Say why numbers computed for one sweep do not belong to another.

    The name, and the values of alpha, N and seed, change no number that exists. Neither do times
    that fall on the same steps.

    Parameters
    ----------
    old, new : Sweep
        The sweep of the store, and the sweep that is wanted.

    Returns
    -------
    list of str
        One line for each key that differs; empty if the new sweep can use the store.
    """
    before, after = _identity(old), _identity(new)
    if old.recipe.steps == new.recipe.steps:
        after["[record] times"] = before["[record] times"]
    if old.recipe.probe_steps == new.recipe.probe_steps and old.probe and new.probe:
        after["[probe] times"] = before["[probe] times"]
    return [
        _difference(key, before.get(key), after.get(key))
        for key in before | after
        if before.get(key) != after.get(key)
    ]


def raises_t_max(old: Sweep, new: Sweep) -> bool:
    """Whether a sweep differs from another by a larger t_max: decided runs are the same in both.

    Values of alpha, N and seed may differ. What is recorded and probed before the old t_max is the
    same; what is recorded there, since the runs ended there, need not be recorded by the new one.
    With sensing = "auto" what is chosen for each cell of the old one has to be the same.
    """
    before, after = old.recipe, new.recipe
    last, loss = before.times[-1], old.problem.loss
    is_later = after.times[-1] > last and before.modes == after.modes
    if not is_later or old.descent.unit(loss) != new.descent.unit(loss):
        return False
    document, earlier = as_document(new), as_document(old)
    descent = document["descent"] | {"t_max": earlier["descent"]["t_max"]}
    ends = {"descent": descent, "record": earlier["record"], "probe": earlier["probe"]}
    return (
        not differences(old, Sweep.from_document(document | ends))
        and before.steps[:-1] == tuple(step for step in after.steps if step < before.steps[-1])
        and before.probe_steps == tuple(s for s in after.probe_steps if s <= before.steps[-1])
        and all(
            before.problem_at(alpha, N) == after.problem_at(alpha, N)
            for alpha in old.grid.alpha
            for N in old.grid.N
        )
    )


def union(old: Sweep, new: Sweep) -> Sweep:
    """Return `old` with the values of both sweeps on its axes alpha, N and seed.

    If one of the two wants some of its cells alone, the cells that either wants are wanted; else
    all combinations of these values. If the new one raises t_max, its t_max with its times of
    records and probes are taken over.

    Raises
    ------
    SweepError
        If it would be larger than `old`, and than a sweep may be.
    """
    axes = {
        axis: sorted({*getattr(old.grid, axis), *getattr(new.grid, axis)})
        for axis in ("alpha", "N", "seed")
    }
    document = as_document(old)
    if raises_t_max(old, new):
        document |= {key: as_document(new)[key] for key in ("descent", "record", "probe")}
    grid = document["grid"] | axes
    if old.grid.only or new.grid.only:
        grid["only"] = [box.model_dump(mode="json") for box in (*old.grid.boxes, *new.grid.boxes)]
    whole = Sweep.from_document(document | {"grid": grid})
    if whole.grid != old.grid:
        check_size(whole, "the store with the values of this sweep")
    return whole


def widened(sweep: Sweep, values: Mapping[str, str], t_max: float | None = None) -> Sweep:
    """Add values, as typed, to axes of a sweep, and to each of its boxes if it has some.

    Parameters
    ----------
    sweep : Sweep
    values : mapping of str to str
        By axis, alpha, N or seed: numbers and ranges separated by commas. A range is
        ``first:end`` or ``first:end:step``, as in Python without its end; alpha needs a step.
        Empty adds nothing.
    t_max : float, optional
        Instead of the sweep's.

    Raises
    ------
    SweepError
        If a text is none of these, or the sweep would not be valid in a file.
    """
    document = as_document(sweep)
    if t_max is not None:
        document["descent"]["t_max"] = t_max
    typed = {axis: _typed_values(axis, text) for axis, text in values.items()}
    for table in (document["grid"], *document["grid"].get("only", [])):
        for axis, added in typed.items():
            table[axis] = sorted({*table[axis], *added})
    whole = Sweep.from_document(document, "extended sweep")
    if whole.grid != sweep.grid:
        check_size(whole, "extended sweep")
    return whole


def gains(old: Sweep, new: Sweep) -> str:
    """Say which values of alpha, N and seed, cells and t_max a sweep has that another has not."""
    found = []
    for axis in ("alpha", "N", "seed"):
        values = sorted({*getattr(new.grid, axis)} - {*getattr(old.grid, axis)})
        if not values:
            continue
        steps = len(values) - 1
        if axis != "alpha" and steps > 1 and values[-1] - values[0] == steps:
            text = f"{values[0]} to {values[-1]}"
        elif steps < _SHOWN_VALUES:
            text = ", ".join(f"{value}" for value in values)
        else:
            text = f"{len(values):,} values from {values[0]} to {values[-1]}"
        found.append(f"{axis} {text}")
    if not found and new.grid != old.grid:
        found.append(f"{new.cells - old.cells:,} cells")
    if new.descent.t_max != old.descent.t_max:
        found.append(f"t_max {new.descent.t_max:g} (before: {old.descent.t_max:g})")
    return "; ".join(found)


def _typed_values(axis: str, text: str) -> list[float]:
    number = float if axis == "alpha" else int
    values: list[float] = []
    try:
        for piece in filter(None, map(str.strip, text.split(","))):
            first, *range_ = map(number, piece.split(":"))
            values += _up_to(axis, piece, first, *range_) if range_ else [first]
    except SweepError:
        raise
    except (ValueError, TypeError):  # of a number; of a range with too many
        ranges = "first:end:step" if axis == "alpha" else "first:end or first:end:step"
        rule = f"must be numbers separated by commas, or {ranges}, without the end"
        raise SweepError([f"--{axis}: {rule}; got {text!r}."]) from None
    return values


def _up_to(
    axis: str, piece: str, first: float, end: float, step: float | None = None
) -> Iterator[float]:
    start, stop, by = (Decimal(str(v)) for v in (first, end, 1 if step is None else step))
    if axis == "alpha" and step is None:
        raise SweepError([f"--alpha: a range must have a step, first:end:step; got {piece}."])
    is_range = all(v.is_finite() for v in (start, stop, by)) and start < stop and by > 0
    if not is_range or (stop - start) / by > MAX_VALUES:
        rule = f"a range must have first < end, step > 0, and at most {MAX_VALUES:,} values"
        raise SweepError([f"--{axis}: {rule}; got {piece}."])
    number = type(first)
    return (number(start + i * by) for i in range(math.ceil((stop - start) / by)))


def _identity(sweep: Sweep) -> dict[str, Any]:
    document = as_document(sweep)
    keys = {f"[{s}] {k}": v for s in SECTIONS for k, v in (document[s] or {}).items()}
    for extendable in ("alpha", "N", "seed", "only"):
        keys.pop(f"[grid] {extendable}", None)
    return {"root_seed": sweep.root_seed, **keys}


def _difference(key: str, old: Any, new: Any) -> str:
    if isinstance(old, list) and isinstance(new, list):
        gone, added = sorted(set(old) - set(new)), sorted(set(new) - set(old))
        return f"{key}: {shown(gone)} only in the store, {shown(added)} only in this sweep"
    return f"{key} = {shown(old)} in the store, {shown(new)} in this sweep"
