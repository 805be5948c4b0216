"""The sections of a sweep file, each a frozen table that validates its own keys."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    create_model,
    field_validator,
)

from alphasweep.kernels.flow import decided_by, round_trips
from alphasweep.kernels.instance import ONE_A_START
from alphasweep.kernels.loss import Loss
from alphasweep.kernels.problem import AUTO, LOSSES, SENSINGS, STARTS, Problem
from alphasweep.kernels.rates import recorded_unit, safe_rate
from alphasweep.kernels.starts import BLIND
from alphasweep.pipeline.words import shown

_MOST = 2**32 - 1  # a word of the name of a random stream, see kernels.instance
MAX_VALUES = 1_000_000
"""Of a range: a mistyped step must not fill the memory."""

_Number = TypeVar("_Number", int, float)

# Before the tables that use them: pydantic 2.10 takes a key for optional whose type comes later.
_Positive = Annotated[float, Field(gt=0)]
_Size = Annotated[int, Field(ge=2, le=_MOST)]
_Label = Annotated[int, Field(ge=0, le=_MOST)]


class Table(BaseModel):
    """A frozen table without unknown keys, whose values have the very types of TOML."""

    # strict: the text "3" is not a number, and true is not 1
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FloatRange(Table):
    """An axis as {from, to, step}."""

    first: _Positive = Field(alias="from")
    to: _Positive
    step: _Positive

    def values(self) -> tuple[float, ...]:
        """Return the values, both ends among them."""
        return tuple(float(v) for v in _inclusive(self.first, self.to, self.step))


class _IntRange(Table):
    first: _Label = Field(alias="from")
    to: _Label
    step: int = Field(default=1, ge=1)

    def values(self) -> tuple[int, ...]:
        return tuple(int(v) for v in _inclusive(self.first, self.to, self.step))


class LogRange(Table):
    """Times as {from, to, count}, evenly spaced on a log scale."""

    first: _Positive = Field(alias="from")
    to: _Positive
    count: int = Field(ge=2, le=MAX_VALUES)

    def values(self) -> tuple[float, ...]:
        """Return the values, both ends among them."""
        if self.first >= self.to:
            raise ValueError(f"must have from < to; got from = {self.first:g}, to = {self.to:g}")
        return tuple(np.geomspace(self.first, self.to, self.count).tolist())


def _inclusive(first: float, last: float, step: float) -> Iterator[Decimal]:
    # Decimal: 2.0 + 3 * 0.1 has to be the 2.3 that a reader would type in a list.
    start, stop, by = Decimal(str(first)), Decimal(str(last)), Decimal(str(step))
    got = f"got from = {first}, to = {last}, step = {step}"
    steps = (stop - start) / by
    if not 0 <= steps < MAX_VALUES:
        raise ValueError(f"must have from <= to, and at most {MAX_VALUES} values; {got}")
    if steps != int(steps):
        reached = start + int(steps) * by
        raise ValueError(f"`to` must be reached in whole steps; {got}: set to = {reached}")
    return (start + i * by for i in range(int(steps) + 1))


def _read(table: type[FloatRange | _IntRange | LogRange]) -> BeforeValidator:
    def read(value: object) -> object:
        if isinstance(value, dict):
            return table.model_validate(value).values()
        return tuple(value) if isinstance(value, list) else value

    return BeforeValidator(read)


def _ascending(values: tuple[_Number, ...]) -> tuple[_Number, ...]:
    repeated = ", ".join(str(v) for v, count in Counter(values).items() if count > 1)
    if repeated:
        raise ValueError(f"values must differ; got {repeated} more than once")
    return tuple(sorted(values))


_AXIS = (Field(min_length=1), AfterValidator(_ascending))
_Times = Annotated[
    tuple[float, ...], _read(LogRange), AfterValidator(lambda times: tuple(sorted(set(times))))
]


class Section(Table):
    """A section of a sweep file."""

    @field_validator("*")
    @classmethod
    def _note(cls, value: Any, info: ValidationInfo) -> Any:
        # The checks across sections need every valid value, also of a section that fails.
        if info.context is not None:
            section = next(name for name, kind in SECTIONS.items() if issubclass(cls, kind))
            info.context[section, info.field_name] = value
        return value


class Box(Table):
    """Cells of a sweep: all combinations of some values of its axes; all values of one left out."""

    alpha: Annotated[tuple[_Positive, ...], _read(FloatRange), *_AXIS] = ()
    N: Annotated[tuple[_Size, ...], _read(_IntRange), *_AXIS] = ()
    seed: Annotated[tuple[_Label, ...], _read(_IntRange), *_AXIS] = ()


def _boxes(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list of tables, [[grid.only]]; got {shown(value)}")
    return tuple(value)


class Grid(Section):
    """Which runs there are: all combinations of the values of four axes, or some of them.

    Attributes
    ----------
    alpha : tuple of float
        Signal-to-noise ratios M/N, > 0.
    N : tuple of int
        Dimensions of the signal, >= 2.
    seed : tuple of int
        Names of the sensing matrices (with their signals and labels), >= 0.
    start : tuple of int
        Names of the initial conditions that share one matrix, >= 0.
    only : tuple of Box
        The cells that are wanted, each in a box or more; empty: all.

    Each axis is ascending, without duplicates, and not empty. In a file it is a list, or a table
    {from, to, step} that includes `to`; step defaults to 1, and is required for alpha.
    """

    alpha: Annotated[tuple[_Positive, ...], _read(FloatRange), *_AXIS]
    N: Annotated[tuple[_Size, ...], _read(_IntRange), *_AXIS]
    seed: Annotated[tuple[_Label, ...], _read(_IntRange), *_AXIS]
    start: Annotated[tuple[_Label, ...], _read(_IntRange), *_AXIS]
    only: Annotated[tuple[Box, ...], BeforeValidator(_boxes)] = ()

    @field_validator("only")
    @classmethod
    def _among(cls, boxes: tuple[Box, ...], info: ValidationInfo) -> tuple[Box, ...]:
        axes: dict[str, Any] = {axis: info.data.get(axis) for axis in Box.model_fields}
        if not boxes or None in axes.values():  # an axis is wrong itself
            return boxes
        whole = [Box.model_construct(**{k: v or axes[k] for k, v in box}) for box in boxes]
        for axis, values in axes.items():
            typed = {value for box in whole for value in getattr(box, axis)}
            if other := sorted(typed - set(values)):
                raise ValueError(f"{axis} must be values of the axis {axis}; got {shown(other)}")
            if left := sorted(set(values) - typed):
                rule = f"each value of the axis {axis} must be in a table or more"
                raise ValueError(f"{rule}; in none is {shown(left)}")
        merged = _merged(whole)
        return () if merged == (Box.model_construct(**axes),) else merged

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The cells that are wanted, also where these are all."""
        axes: dict[str, Any] = {axis: getattr(self, axis) for axis in Box.model_fields}
        return self.only or (Box.model_construct(**axes),)


def _merged(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """Write boxes as fewer: those that differ along one axis are one, one inside another goes."""
    found = sorted({tuple(values for _, values in box) for box in boxes})
    before = 0
    while len(found) != before:
        before = len(found)
        for axis in range(len(Box.model_fields)):
            along: dict[tuple[Any, ...], set[float]] = {}
            for key in found:
                rest = key[:axis] + key[axis + 1 :]
                along.setdefault(rest, set()).update(key[axis])
            found = sorted(
                (*rest[:axis], tuple(sorted(values)), *rest[axis:])
                for rest, values in along.items()
            )
        found = [
            key
            for key in found
            if not any(
                other != key and all(set(a) <= set(b) for a, b in zip(key, other, strict=True))
                for other in found
            )
        ]
    return tuple(
        Box.model_construct(**dict(zip(Box.model_fields, key, strict=True))) for key in found
    )


class Descent(Section):
    """How a run descends, and when it ends; a method adds its settings (`DESCENTS`).

    Attributes
    ----------
    method : str
        A name in `kernels.methods.METHODS`.
    t_max : float
        Physical time at which a run is given up.
    recovered_at : float
        abs(overlap) above which a start has recovered the signal, in (0, 1).
    precision : {"float32", "float64"}
        Of the descent.
    """

    method: str = "gd"
    t_max: _Positive
    recovered_at: float = Field(default=0.99, gt=0, lt=1)
    precision: Literal["float32", "float64"] = "float32"

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in DESCENTS:
            raise ValueError(f"must be one of {', '.join(DESCENTS)}; got {shown(name)}")
        return name

    @property
    def own(self) -> dict[str, Any]:
        """The settings of the method, by name."""
        return {key: value for key, value in self if key not in Descent.model_fields}

    def at(self, loss: Loss, alpha: float, N: int) -> Descent:
        """Return the settings of the runs at one alpha and N, all of them numbers."""
        return self

    def unit(self, loss: Loss) -> float:
        """Physical time of what is counted when it is recorded: here of time itself."""
        return 1.0

    def count(self, loss: Loss, time: float) -> float:
        """Return the count, in `unit`, at which what is asked at a physical time is recorded."""
        return time

    def lasts(self, N: int) -> float:
        """Return the physical time that a run is expected to last: to t_max."""
        return self.t_max

    def round_trips(self, loss: Loss, alpha: float, N: int) -> float:
        """Return how often the gradient is evaluated until t_max: once a count."""
        return self.at(loss, alpha, N).count(loss, self.t_max)


def _read_rate(value: object) -> object:
    if value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f'must be numeric, or "auto"; got {shown(value)}')
    if not 0 < value < math.inf:
        raise ValueError(f"must be finite and > 0; got {shown(value)}")
    return float(value)


class GradientDescent(Descent):
    """Method "gd": plain steps (`kernels.descent`), which are what it counts.

    Attributes
    ----------
    learning_rate : float or "auto"
        Physical time of one step, in (0, t_max]; "auto" is `kernels.rates.safe_rate` of each alpha
        and N, and what is recorded is at multiples of `kernels.rates.recorded_unit`.
    trapped_below : float
        Speed |P grad L| / sqrt(N) below which a start is trapped, >= 0; 0 means never.
    """

    learning_rate: Annotated[float | Literal["auto"], PlainValidator(_read_rate)]
    trapped_below: float = Field(default=1e-3, ge=0)

    def at(self, loss: Loss, alpha: float, N: int) -> Descent:
        """Return the settings of the runs at one alpha and N, whose learning_rate is a number."""
        if self.learning_rate != "auto":
            return self
        rate = min(safe_rate(loss, alpha, N), self.unit(loss))
        return self.model_copy(update={"learning_rate": rate})

    def unit(self, loss: Loss) -> float:
        """Physical time of one step, or of what is so many steps at each alpha and N."""
        if self.learning_rate != "auto":
            return self.learning_rate
        return recorded_unit(loss, self.t_max)

    def count(self, loss: Loss, time: float) -> int:
        """Return the multiple of `unit` nearest to a physical time."""
        return round(time / self.unit(loss))


class GradientFlow(Descent):
    """Method "flow": the limit of small steps (`kernels.flow`), recorded at the very times asked.

    Attributes
    ----------
    tolerance : float
        Largest estimated error of a step, rms a component, in (0, 0.1].
    rest_within : float
        Remaining way, rms a component, below which a start in a minimum is trapped, >= 0; 0 means
        never.
    """

    tolerance: float = Field(default=1e-3, gt=0, le=0.1)
    rest_within: float = Field(default=0.01, ge=0)

    def lasts(self, N: int) -> float:
        """Until t_max, or until nearly all runs have ended."""
        return min(self.t_max, decided_by(N))

    def round_trips(self, loss: Loss, alpha: float, N: int) -> float:
        """As they were measured: `kernels.flow.round_trips`."""
        return round_trips(N, self.t_max, self.tolerance)


DESCENTS: dict[str, type[Descent]] = {"gd": GradientDescent, "flow": GradientFlow}


def read_descent(value: object, info: ValidationInfo) -> Descent:
    """Read the section [descent] by the table of its method."""
    if isinstance(value, Descent):
        return value
    named = value.get("method", "gd") if isinstance(value, Mapping) else "gd"
    table = DESCENTS.get(named) if isinstance(named, str) else None
    if table is None:  # the other keys may be settings of what was meant
        common = {key: value[key] for key in Descent.model_fields if key in value}  # type: ignore[operator,index]
        return Descent.model_validate(common, context=info.context)
    return table.model_validate(value, context=info.context)


class ProblemTable(Section):
    """The section [problem]; a loss adds its parameters (`_table_of`)."""

    loss: str = "intensity"
    signal: Literal["planted", "null"] = "planted"
    sensing: str = "gaussian"
    start: str = "uniform"
    sensing_tolerance: Annotated[float, Field(ge=1e-14, le=0.1)] | None = None
    start_overlap: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, validate_default=True
    )

    @field_validator("loss", "sensing", "start")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        tables: dict[str, Collection[str]]
        tables = {"loss": LOSSES, "sensing": (*SENSINGS, AUTO), "start": STARTS}
        known = tables[str(info.field_name)]
        if name not in known:
            raise ValueError(f"must be one of {', '.join(known)}; got {shown(name)}")
        return name

    @field_validator("start")
    @classmethod
    def _blind(cls, start: str, info: ValidationInfo) -> str:
        sensing = info.data.get("sensing", "gaussian")
        if start not in BLIND and sensing in (*ONE_A_START, AUTO):
            rule = f"must be {' or '.join(sorted(BLIND))} where sensing is {sensing}, since others"
            raise ValueError(f"{rule} are made from the whole matrix; got {shown(start)}")
        return start

    @field_validator("start_overlap")
    @classmethod
    def _of_overlap(cls, value: float | None, info: ValidationInfo) -> float | None:
        start = info.data.get("start", "uniform")
        if value is None and start == "overlap":
            raise ValueError('is required with start = "overlap"')
        if value is not None and start != "overlap":
            raise ValueError(f'is of start = "overlap"; got it with {shown(start)}')
        return value

    @field_validator("sensing_tolerance")
    @classmethod
    def _of_revealed(cls, value: float | None, info: ValidationInfo) -> float | None:
        sensing = info.data.get("sensing", AUTO)
        if value is not None and sensing not in (*ONE_A_START, AUTO):
            raise ValueError(f"is of sensing = revealed or auto; got it with {shown(sensing)}")
        return value


@cache
def _table_of(loss: type[Loss]) -> type[ProblemTable]:
    parameters: dict[str, Any] = {f.name: (_Positive, ...) for f in fields(loss)}
    return create_model("ProblemTable", __base__=ProblemTable, **parameters)


def read_problem(value: object) -> Problem:
    """Read the section [problem] by the table of its loss."""
    if isinstance(value, Problem):
        return value
    name = value.get("loss", "intensity") if isinstance(value, Mapping) else None
    loss = LOSSES.get(name) if isinstance(name, str) else None
    if loss is None:
        if isinstance(value, Mapping):  # whose other keys may be parameters of what was meant
            value = {key: value[key] for key in ProblemTable.model_fields if key in value}
        loss = LOSSES[ProblemTable.model_validate(value).loss]
    named = _table_of(loss).model_validate(value).model_dump(exclude_none=True)
    parameters = {field.name: named.pop(field.name) for field in fields(loss)}
    return Problem(**named | {"loss": loss(**parameters)})


def as_problem_table(problem: Problem) -> dict[str, Any]:
    """Return the section [problem] of a sweep file, with all its values."""
    loss = problem.loss
    keys = ["signal", "sensing", "start"]
    if problem.may_reveal:
        keys.append("sensing_tolerance")
    if problem.start == "overlap":
        keys.append("start_overlap")
    return {"loss": loss.name, **loss.parameters, **{key: getattr(problem, key) for key in keys}}


class Record(Section):
    """When overlap, energy and mu are recorded; time 0 and t_max always are.

    Attributes
    ----------
    times : tuple of float
        Physical times in [0, t_max], ascending. In a file a list, or a log-spaced table
        {from, to, count}.
    """

    times: _Times


class Probe(Section):
    """When the lowest eigenpairs of the Hessian are computed, and how many.

    Attributes
    ----------
    times : tuple of float
        Physical times in [0, t_max], ascending; in a file as in `Record`.
    modes : int
        Number of eigenpairs, from 1 to the smallest N - 1.
    """

    times: Annotated[_Times, Field(min_length=1)]
    modes: int = Field(ge=1)


SECTIONS: dict[str, type[Section]] = {
    "grid": Grid,
    "problem": ProblemTable,
    "descent": Descent,
    "record": Record,
    "probe": Probe,
}


MOVED = ("a", "signal")  # from [descent], where they stood before there was [problem]


def typed_in_descent(document: Mapping[str, Any]) -> set[str]:
    """Keys of the problem that stand in [descent] alone."""
    problem, descent = document.get("problem", {}), document.get("descent")
    typed = descent if isinstance(descent, Mapping) else {}
    return {key for key in MOVED if key in typed and key not in problem}
