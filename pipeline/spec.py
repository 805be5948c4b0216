"""The sweep file: TOML in, a frozen and validated `Sweep` out, every problem reported at once."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from difflib import get_close_matches
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from alphasweep.kernels.flow import round_trips
from alphasweep.kernels.instance import measurements
from alphasweep.kernels.loss import Loss
from alphasweep.kernels.problem import LOSSES, SENSINGS, STARTS, Problem

_MOST = 2**32 - 1  # a word of the name of a random stream, see kernels.instance
_MAX_VALUES = 1_000_000  # a mistyped step must not fill the memory
_MAX_CELLS = 10_000_000  # what plans, stores and resumes were measured with
_MAX_PAIRS = 100_000  # of alpha and N: each has some twenty files
_MAX_STEPS = 1_000_000_000  # far beyond any descent, and steps stay exact as float64
_SHOWN_VALUES = 8  # that are listed; of more, the number and the ends are told
_PRESETS = files("alphasweep.pipeline") / "presets"

_Number = TypeVar("_Number", int, float)
_Place = tuple[int | str, ...]  # section, key, and the position in its list
_Problem = tuple[_Place, str]
_Known = Mapping[tuple[str, str], Any]

_Positive = Annotated[float, Field(gt=0)]
_Size = Annotated[int, Field(ge=2, le=_MOST)]
_Label = Annotated[int, Field(ge=0, le=_MOST)]


class SweepError(ValueError):
    """A sweep that cannot be read, or is not valid.

    Parameters
    ----------
    problems : list of str
        One line for each problem; the message of the error is these lines.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Table(BaseModel):
    # strict: the text "3" is not a number, and true is not 1
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _FloatRange(_Table):
    first: _Positive = Field(alias="from")
    to: _Positive
    step: _Positive

    def values(self) -> tuple[float, ...]:
        return tuple(float(v) for v in _inclusive(self.first, self.to, self.step))


class _IntRange(_Table):
    first: _Label = Field(alias="from")
    to: _Label
    step: int = Field(default=1, ge=1)

    def values(self) -> tuple[int, ...]:
        return tuple(int(v) for v in _inclusive(self.first, self.to, self.step))


class _LogRange(_Table):
    first: _Positive = Field(alias="from")
    to: _Positive
    count: int = Field(ge=2, le=_MAX_VALUES)

    def values(self) -> tuple[float, ...]:
        if self.first >= self.to:
            raise ValueError(f"must have from < to; got from = {self.first:g}, to = {self.to:g}")
        return tuple(np.geomspace(self.first, self.to, self.count).tolist())


def _inclusive(first: float, last: float, step: float) -> Iterator[Decimal]:
    # Decimal: 2.0 + 3 * 0.1 has to be the 2.3 that a reader would type in a list.
    start, stop, by = Decimal(str(first)), Decimal(str(last)), Decimal(str(step))
    got = f"got from = {first}, to = {last}, step = {step}"
    steps = (stop - start) / by
    if not 0 <= steps < _MAX_VALUES:
        raise ValueError(f"must have from <= to, and at most {_MAX_VALUES} values; {got}")
    if steps != int(steps):
        reached = start + int(steps) * by
        raise ValueError(f"`to` must be reached in whole steps; {got}: set to = {reached}")
    return (start + i * by for i in range(int(steps) + 1))


def _read(table: type[_FloatRange | _IntRange | _LogRange]) -> BeforeValidator:
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
    tuple[float, ...], _read(_LogRange), AfterValidator(lambda times: tuple(sorted(set(times))))
]


class _Section(_Table):
    @field_validator("*")
    @classmethod
    def _note(cls, value: Any, info: ValidationInfo) -> Any:
        # The checks across sections need every valid value, also of a section that fails.
        if info.context is not None:
            section = next(name for name, kind in _SECTIONS.items() if issubclass(cls, kind))
            info.context[section, info.field_name] = value
        return value


class Grid(_Section):
    """Which runs there are: all combinations of the values of four axes.

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

    Each axis is ascending, without duplicates, and not empty. In a file it is a list, or a table
    {from, to, step} that includes `to`; step defaults to 1, and is required for alpha.
    """

    alpha: Annotated[tuple[_Positive, ...], _read(_FloatRange), *_AXIS]
    N: Annotated[tuple[_Size, ...], _read(_IntRange), *_AXIS]
    seed: Annotated[tuple[_Label, ...], _read(_IntRange), *_AXIS]
    start: Annotated[tuple[_Label, ...], _read(_IntRange), *_AXIS]


class Descent(_Section):
    """How a run descends, and when it ends; a method adds its settings (`_METHODS`).

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
        if name not in _METHODS:
            raise ValueError(f"must be one of {', '.join(_METHODS)}; got {_shown(name)}")
        return name

    @property
    def own(self) -> dict[str, float]:
        """The settings of the method, by name."""
        return {key: value for key, value in self if key not in Descent.model_fields}

    @property
    def unit(self) -> float:
        """Physical time of what the method counts when it records: here of time itself."""
        return 1.0

    def count(self, time: float) -> float:
        """Return the count, in `unit`, at which what is asked at a physical time is recorded."""
        return time

    def round_trips(self, N: int) -> float:
        """Return how often the gradient is evaluated until t_max: once a count."""
        return self.count(self.t_max)


class GradientDescent(Descent):
    """Method "gd": plain steps (`kernels.descent`), which are what it counts.

    Attributes
    ----------
    learning_rate : float
        Physical time of one step, in (0, t_max].
    trapped_below : float
        Speed |P grad L| / sqrt(N) below which a start is trapped, >= 0; 0 means never.
    """

    learning_rate: _Positive
    trapped_below: float = Field(default=1e-3, ge=0)

    @property
    def unit(self) -> float:
        """Physical time of one step."""
        return self.learning_rate

    def count(self, time: float) -> int:
        """Return the step nearest to a physical time."""
        return round(time / self.learning_rate)


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

    def round_trips(self, N: int) -> float:
        """As they were measured: `kernels.flow.round_trips`."""
        return round_trips(N, self.t_max, self.tolerance)


_METHODS: dict[str, type[Descent]] = {"gd": GradientDescent, "flow": GradientFlow}


def _read_descent(value: object, info: ValidationInfo) -> Descent:
    if isinstance(value, Descent):
        return value
    named = value.get("method", "gd") if isinstance(value, Mapping) else "gd"
    table = _METHODS.get(named) if isinstance(named, str) else None
    if table is None:  # the other keys may be settings of what was meant
        common = {key: value[key] for key in Descent.model_fields if key in value}  # type: ignore[operator,index]
        return Descent.model_validate(common, context=info.context)
    return table.model_validate(value, context=info.context)


class _ProblemTable(_Section):
    """The section [problem]; a loss adds its parameters (`_table_of`)."""

    loss: str = "intensity"
    signal: Literal["planted", "null"] = "planted"
    sensing: str = "gaussian"
    start: str = "uniform"

    @field_validator("loss", "sensing", "start")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        tables: dict[str, Collection[str]]
        tables = {"loss": LOSSES, "sensing": SENSINGS, "start": STARTS}
        known = tables[str(info.field_name)]
        if name not in known:
            raise ValueError(f"must be one of {', '.join(known)}; got {_shown(name)}")
        return name


@cache
def _table_of(loss: type[Loss]) -> type[_ProblemTable]:
    parameters: dict[str, Any] = {f.name: (_Positive, ...) for f in fields(loss)}
    return create_model("_ProblemTable", __base__=_ProblemTable, **parameters)


def _read_problem(value: object) -> Problem:
    if isinstance(value, Problem):
        return value
    name = value.get("loss", "intensity") if isinstance(value, Mapping) else None
    loss = LOSSES.get(name) if isinstance(name, str) else None
    if loss is None:
        if isinstance(value, Mapping):  # whose other keys may be parameters of what was meant
            value = {key: value[key] for key in _ProblemTable.model_fields if key in value}
        loss = LOSSES[_ProblemTable.model_validate(value).loss]
    named = _table_of(loss).model_validate(value).model_dump()
    parameters = {field.name: named.pop(field.name) for field in fields(loss)}
    return Problem(**named | {"loss": loss(**parameters)})


def as_problem_table(problem: Problem) -> dict[str, Any]:
    """Return the section [problem] of a sweep file, with all its values."""
    loss = problem.loss
    names = {key: getattr(problem, key) for key in ("signal", "sensing", "start")}
    return {"loss": loss.name, **loss.parameters, **names}


class Record(_Section):
    """When overlap, energy and mu are recorded; time 0 and t_max always are.

    Attributes
    ----------
    times : tuple of float
        Physical times in [0, t_max], ascending. In a file a list, or a log-spaced table
        {from, to, count}.
    """

    times: _Times


class Probe(_Section):
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


@dataclass(frozen=True)
class Recipe:
    """All that the numbers of a cell depend on, besides its own (alpha, N, seed).

    Attributes
    ----------
    root_seed : int
        All random streams descend from it.
    start : tuple of int
        Names of the initial conditions.
    problem : Problem
    descent : Descent
    steps, probe_steps : tuple of float
        Counts of the method, steps of gd and times of flow, at which the series are recorded, from
        0 to the last one, and at which the Hessian is probed, a subset.
    modes : int
        Eigenpairs of a probe; 0 without probes.
    """

    root_seed: int
    start: tuple[int, ...]
    problem: Problem
    descent: Descent
    steps: tuple[float, ...]
    probe_steps: tuple[float, ...]
    modes: int

    @property
    def times(self) -> npt.NDArray[np.float64]:
        """Physical times of `steps`, of gd learning_rate * step, shape (len(steps),)."""
        return self.descent.unit * np.array(self.steps, dtype=np.float64)


class Sweep(_Table):
    """What a sweep file asks for, validated as a whole.

    Attributes
    ----------
    name : str
        Of letters, digits and ``. _ -``.
    root_seed : int
        >= 0; all random streams of the sweep descend from it.
    grid, descent, record
        The sections of the file.
    problem : Problem
        What its section [problem] names.
    probe : Probe or None
        None: no eigenpairs are computed.

    See Also
    --------
    load : from a file or a preset, with every problem reported at once.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    root_seed: int = Field(ge=0)
    grid: Grid
    problem: Annotated[Problem, PlainValidator(_read_problem), PlainSerializer(as_problem_table)]
    descent: Annotated[
        Descent, PlainValidator(_read_descent), PlainSerializer(lambda descent: dict(descent))
    ]
    record: Record
    probe: Probe | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        document = as_document(self)
        known = {(s, k): v for s in _SECTIONS for k, v in (document[s] or {}).items()}
        problems = [f"[{at[0]}] {at[1]}: {text}" for at, text in _across(document, known)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @classmethod
    def from_document(cls, document: Mapping[str, Any], source: str = "sweep") -> Self:
        """Validate what `as_document` returned, or what a TOML file contains.

        Parameters
        ----------
        document : mapping
            The keys of a sweep file; sections are nested mappings. `a` and `signal` may stand in
            [descent], as they did before there was [problem].
        source : str
            How messages name the origin of the document.

        Raises
        ------
        SweepError
            If anything is missing, unknown, of the wrong type, or out of range.
        """
        known: dict[tuple[str, str], Any] = {}
        try:
            return cls.model_validate(_with_problem(document, source), context=known)
        except ValidationError as error:
            problems = [*_within(error, document), *_across(document, known)]
            raise SweepError([_line(source, document, *p) for p in problems]) from None

    @property
    def cells(self) -> int:
        """Number of cells (alpha, N, seed)."""
        return len(self.grid.alpha) * len(self.grid.N) * len(self.grid.seed)

    @cached_property
    def recipe(self) -> Recipe:
        """How every cell is computed; of gd, steps are those nearest to the times asked for.

        Steps ascend, 0 and that of t_max among them; times closer than a step fall together.
        """
        step = self.descent.count
        probe_steps = {step(t) for t in self.probe.times} if self.probe else set()
        times = (0.0, *self.record.times, self.descent.t_max)
        return Recipe(
            root_seed=self.root_seed,
            start=self.grid.start,
            problem=self.problem,
            descent=self.descent,
            steps=tuple(sorted(probe_steps.union(step(t) for t in times))),
            probe_steps=tuple(sorted(probe_steps)),
            modes=self.probe.modes if self.probe else 0,
        )


_SECTIONS: dict[str, type[_Section]] = {
    "grid": Grid,
    "problem": _ProblemTable,
    "descent": Descent,
    "record": Record,
    "probe": Probe,
}


def _typed_in_descent(document: Mapping[str, Any]) -> set[str]:
    """Keys of the problem that stand in [descent] alone."""
    problem, descent = document.get("problem", {}), document.get("descent")
    typed = descent if isinstance(descent, Mapping) else {}
    return {key for key in _MOVED if key in typed and key not in problem}


_MOVED = ("a", "signal")  # from [descent], where they stood before there was [problem]


def _with_problem(document: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return a document whose keys of the problem stand in [problem]."""
    descent, problem = document.get("descent"), document.get("problem", {})
    if not isinstance(descent, Mapping) or not isinstance(problem, Mapping):
        return dict(document)
    moved = {key: descent[key] for key in _MOVED if key in descent}
    for key, value in moved.items():
        if key in problem and problem[key] != value:
            rule = f"must be that of [problem], {_shown(problem[key])}, or left out"
            raise SweepError([f"{source}, [descent] {key}: {rule}; got {_shown(value)}."])
    rest = {key: value for key, value in descent.items() if key not in moved}
    return {**document, "problem": {**moved, **problem}, "descent": rest}


def preset_names() -> tuple[str, ...]:
    """Return the names of the sweeps that ship with alphasweep, sorted."""
    return tuple(sorted(Path(f.name).stem for f in _PRESETS.iterdir() if f.name.endswith(".toml")))


def template(name: str = "laptop") -> str:
    """Return the commented TOML text that `alphasweep init` writes: the preset `laptop`, renamed.

    Parameters
    ----------
    name : str
        Any text; what the name of a sweep may not contain becomes ``-``.
    """
    fitting = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "sweep"
    return _preset_text("laptop").replace('name = "laptop"', f'name = "{fitting}"')


def load(source: str | Path) -> Sweep:
    """Read a sweep.

    Parameters
    ----------
    source : str or Path
        The name of a preset (see `preset_names`), or the path of a TOML file.

    Raises
    ------
    SweepError
        If there is no such file or preset, if it is not TOML, or if the sweep is not valid; it
        names every problem.
    """
    if source in preset_names():
        return _parse(_preset_text(str(source)), f"preset {source}")
    where = f"sweep file {source}"
    try:
        text = Path(source).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        presets = ", ".join(preset_names())
        rule = f"no such file, and no preset of that name (presets: {presets})"
        raise SweepError([f"{where}: {rule}; `alphasweep init` writes a file."]) from None
    except OSError as error:
        raise SweepError([f"{where}: cannot be read: {error.strerror}."]) from None
    except UnicodeDecodeError as error:
        raise SweepError([f"{where}: must be UTF-8 text; byte {error.start} is not."]) from None
    return _parse(text, where)


def as_document(sweep: Sweep) -> dict[str, Any]:
    """Return all values of a sweep as JSON types, ranges written out; see `from_document`."""
    return sweep.model_dump(mode="json")


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


def union(old: Sweep, new: Sweep) -> Sweep:
    """Return `old` with the values of both sweeps on its axes alpha, N and seed.

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
    whole = Sweep.from_document(document | {"grid": document["grid"] | axes})
    if whole.cells > old.cells:
        _check_size(whole, "the store with the values of this sweep")
    return whole


def widened(sweep: Sweep, values: Mapping[str, str]) -> Sweep:
    """Add values, as typed, to axes of a sweep.

    Parameters
    ----------
    sweep : Sweep
    values : mapping of str to str
        By axis, alpha, N or seed: numbers and ranges separated by commas. A range is
        ``first:end`` or ``first:end:step``, as in Python without its end; alpha needs a step.
        Empty adds nothing.

    Raises
    ------
    SweepError
        If a text is none of these, or the sweep would not be valid in a file.
    """
    document = as_document(sweep)
    axes = {axis: [*document["grid"][axis], *_typed_values(axis, values[axis])] for axis in values}
    grid = {axis: sorted(set(added)) for axis, added in axes.items()}
    whole = Sweep.from_document(document | {"grid": document["grid"] | grid}, "extended sweep")
    if whole.cells > sweep.cells:
        _check_size(whole, "extended sweep")
    return whole


def gains(old: Sweep, new: Sweep) -> str:
    """Say which values of alpha, N and seed a sweep has that another one has not; "" if none."""
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
    if not is_range or (stop - start) / by > _MAX_VALUES:
        rule = f"a range must have first < end, step > 0, and at most {_MAX_VALUES:,} values"
        raise SweepError([f"--{axis}: {rule}; got {piece}."])
    number = type(first)
    return (number(start + i * by) for i in range(math.ceil((stop - start) / by)))


def _check_size(sweep: Sweep, source: str) -> None:
    """Refuse more than a store stands; not in `Sweep`, or a larger one that is there was lost."""
    grid, pairs = sweep.grid, len(sweep.grid.alpha) * len(sweep.grid.N)
    shape = f"{len(grid.alpha):,} alpha x {len(grid.N):,} N x {len(grid.seed):,} seeds"
    for number, most, what in (
        (sweep.cells, _MAX_CELLS, "cells (alpha, N, seed)"),
        (pairs, _MAX_PAIRS, "pairs (alpha, N)"),
    ):
        if number > most:
            rule = f"must have at most {most:,} {what} in one store"
            hint = "shorten an axis, or make several sweeps"
            raise SweepError([f"{source}, [grid]: {rule}; got {number:,} ({shape}): {hint}."])


def _preset_text(name: str) -> str:
    return (_PRESETS / f"{name}.toml").read_text(encoding="utf-8")


def _parse(text: str, source: str) -> Sweep:
    try:
        document = tomllib.loads(text)
    except ValueError as error:  # also an integer of too many digits
        raise SweepError([f"{source}: must be TOML; {error}."]) from None
    sweep = Sweep.from_document(document, source)
    _check_size(sweep, source)
    return sweep


def _identity(sweep: Sweep) -> dict[str, Any]:
    document = as_document(sweep)
    keys = {f"[{s}] {k}": v for s in _SECTIONS for k, v in (document[s] or {}).items()}
    for extendable in ("alpha", "N", "seed"):
        del keys[f"[grid] {extendable}"]
    return {"root_seed": sweep.root_seed, **keys}


def _difference(key: str, old: Any, new: Any) -> str:
    if isinstance(old, list) and isinstance(new, list):
        gone, added = sorted(set(old) - set(new)), sorted(set(new) - set(old))
        return f"{key}: {_shown(gone)} only in the store, {_shown(added)} only in this sweep"
    return f"{key} = {_shown(old)} in the store, {_shown(new)} in this sweep"


# What must hold, by the type of pydantic's error; the braces are filled from its context.
_RULES = {
    "greater_than": "must be > {gt:g}",
    "greater_than_equal": "must be >= {ge:g}",
    "less_than": "must be < {lt:g}",
    "less_than_equal": "must be <= {le:g}",
    "finite_number": "must be finite",
    "float_type": "must be numeric",
    "int_type": "must be integer",
    "string_type": "must be text",
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must consist of letters, digits, '.', '_' and '-'",
    "tuple_type": "must be a list or a table",
    "model_type": "must be a table",
    "too_short": "must have at least one value",
}


def _within(error: ValidationError, document: Mapping[str, Any]) -> Iterator[_Problem]:
    """Translate the problems that pydantic found in single keys."""
    for item in error.errors(include_url=False):
        place, kind, context = item["loc"], item["type"], item.get("ctx", {})
        if not place:
            continue  # from Sweep._consistent: _across says it with the place
        if kind == "missing":
            yield place, "required, but missing"
        elif kind == "extra_forbidden":
            yield (
                place,
                _of_other_method(place, document) or f"unknown key; {_suggestion(place, document)}",
            )
        elif kind == "value_error":
            yield place, str(context["error"])
        else:
            rule = _RULES[kind].format(**context) if kind in _RULES else item["msg"]
            values = "values " if isinstance(place[-1], int) else ""
            yield place, f"{values}{rule}; got {_shown(item['input'])}"


def _across(document: Mapping[str, Any], known: _Known) -> Iterator[_Problem]:
    """Check keys against each other, as far as they are valid by themselves (`known`)."""
    t_max = known.get(("descent", "t_max"), math.inf)
    rate = known.get(("descent", "learning_rate"), t_max)
    smallest = min(known.get(("grid", "N"), [math.inf]))
    modes = known.get(("probe", "modes"), 0)
    if t_max < math.inf and not 1 <= t_max / rate <= _MAX_STEPS:
        rule = f"must reach t_max = {t_max:g} in 1 to {_MAX_STEPS} steps"
        yield ("descent", "learning_rate"), f"{rule}; got {rate:g}"
    if modes >= smallest:
        yield ("probe", "modes"), f"must be < the smallest N = {smallest}; got {modes}"
    if ("grid", "alpha") in known and smallest < math.inf:
        for place, alpha in _typed(document, "grid", "alpha"):
            if measurements(alpha, smallest) < 1:
                rule = f"must give round(alpha N) >= 1 measurements at N = {smallest}"
                yield place, f"{rule}; got {_shown(alpha)}"
    limit = f"t_max = {t_max:g}" if t_max < math.inf else "t_max"
    for section in ("record", "probe"):
        if (section, "times") in known:
            for place, time in _typed(document, section, "times"):
                if not 0 <= time <= t_max:
                    yield place, f"must lie in [0, {limit}]; got {_shown(time)}"


def _typed(document: Mapping[str, Any], section: str, key: str) -> Iterator[tuple[_Place, float]]:
    # As typed, not as stored, so that a message can point at it. Of a table the ends are enough.
    values = document[section][key]
    ends = values.items() if isinstance(values, dict) else enumerate(values)
    return (((section, key, at), value) for at, value in ends if at not in ("step", "count"))


def _line(source: str, document: Mapping[str, Any], place: _Place, text: str) -> str:
    head, *rest = place
    if head == "problem" and rest and rest[0] in _typed_in_descent(document):
        head = "descent"
    names = [str(p) for p in rest if isinstance(p, str)]
    where = f"[{head}] {'.'.join(names)}".rstrip() if head in _SECTIONS else str(head)
    if isinstance(place[-1], int) and isinstance(document[str(head)][rest[0]], list):
        text += f" ({_ordinal(place[-1])})"
    return f"{source}, {where}: {text}{'' if text.endswith('?') else '.'}"


def _ordinal(index: int) -> str:
    words = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
    return f"{words[index]} value" if index < len(words) else f"value {index + 1}"


def _of_other_method(place: _Place, document: Mapping[str, Any]) -> str:
    """Say of which method of the descent a key is, if it is another one's; else ""."""
    if len(place) != 2 or place[0] != "descent":
        return ""
    here = _method(document)
    others = [name for name, table in _METHODS.items() if place[1] in table.model_fields]
    if not others:
        return ""
    return (
        f"is a setting of method = {_shown(others[0])}, and this descent has method = "
        f"{_shown(here)}: leave it out, or choose the other method"
    )


def _method(document: Mapping[str, Any]) -> str:
    return str(document["descent"].get("method", "gd"))


def _keys(place: _Place, document: Mapping[str, Any]) -> list[str]:
    """Keys that are allowed beside the last one of `place`."""
    model: type[BaseModel] = Sweep
    if len(place) == 2:
        model = _SECTIONS[str(place[0])]
        if model is Descent:
            model = _METHODS[_method(document)]
    elif len(place) == 3:
        model = _LogRange if place[1] == "times" else _FloatRange
    keys = [field.alias or name for name, field in model.model_fields.items()]
    if model is _ProblemTable:
        keys += sorted({field.name for loss in LOSSES.values() for field in fields(loss)})
    return keys


def _suggestion(place: _Place, document: Mapping[str, Any]) -> str:
    keys = _keys(place, document)
    close = get_close_matches(str(place[-1]), keys, n=1, cutoff=0.75)
    return f"did you mean {close[0]}?" if close else f"allowed: {', '.join(keys)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
