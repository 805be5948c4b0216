"""The sweep file: TOML in, a frozen and validated `Sweep` out, every problem reported at once."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import (
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)

from alphasweep.kernels.instance import measurements
from alphasweep.kernels.problem import Problem
from alphasweep.kernels.revealed import least_tolerance
from alphasweep.kernels.starts import WEIGHTS
from alphasweep.pipeline.grid import wanted
from alphasweep.pipeline.messages import Location, SweepError, line, within
from alphasweep.pipeline.recipe import Recipe
from alphasweep.pipeline.sections import (
    MOVED,
    SECTIONS,
    Descent,
    Grid,
    Probe,
    Record,
    Table,
    as_problem_table,
    read_descent,
    read_problem,
)
from alphasweep.pipeline.words import shown

_MAX_CELLS = 10_000_000  # what plans, stores and resumes were measured with
_MAX_PAIRS = 100_000  # of alpha and N: each has some twenty files
_MAX_STEPS = 1_000_000_000  # far beyond any descent, and steps stay exact as float64
_PRESETS = files("alphasweep.pipeline") / "presets"


class Sweep(Table):
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
    problem: Annotated[Problem, PlainValidator(read_problem), PlainSerializer(as_problem_table)]
    descent: Annotated[
        Descent, PlainValidator(read_descent), PlainSerializer(lambda descent: dict(descent))
    ]
    record: Record
    probe: Probe | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        document = as_document(self)
        known = {(s, k): v for s in SECTIONS for k, v in (document[s] or {}).items()}
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
            problems = [*within(error, document, cls), *_across(document, known)]
            raise SweepError([line(source, document, *p) for p in problems]) from None

    @cached_property
    def cells(self) -> int:
        """Number of cells (alpha, N, seed) that are wanted."""
        return int(wanted(self.grid).sum()) if self.grid.only else _product(self.grid)

    @cached_property
    def recipe(self) -> Recipe:
        """How every cell is computed; of gd, steps are those nearest to the times asked for.

        Steps ascend, 0 and that of t_max among them; times closer than a step fall together.
        """
        step = partial(self.descent.count, self.problem.loss)
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


def _across(
    document: Mapping[str, Any], known: Mapping[tuple[str, str], Any]
) -> Iterator[tuple[Location, str]]:
    """Check keys against each other, as far as they are valid by themselves (`known`)."""
    t_max = known.get(("descent", "t_max"), math.inf)
    rate = known.get(("descent", "learning_rate"), t_max)
    smallest = min(known.get(("grid", "N"), [math.inf]))
    modes = known.get(("probe", "modes"), 0)
    if rate != "auto" and t_max < math.inf and not 1 <= t_max / rate <= _MAX_STEPS:
        rule = f"must reach t_max = {t_max:g} in 1 to {_MAX_STEPS} steps"
        yield ("descent", "learning_rate"), f"{rule}; got {rate:g}"
    problem, precision = document.get("problem"), known.get(("descent", "precision"), "float32")
    share = problem.get("sensing_tolerance") if isinstance(problem, Mapping) else None
    if isinstance(share, float) and 0 < share < (least := least_tolerance(np.dtype(precision))):
        yield (
            ("problem", "sensing_tolerance"),
            f"must be >= {least:.2g} in {precision}; got {share:g}",
        )
    kind = problem.get("start") if isinstance(problem, Mapping) else None
    starts = known.get(("grid", "start"), ())
    if kind in WEIGHTS and len(starts) > 1:
        rule = f"must be one value with start = {shown(kind)}, which is one point of a matrix"
        yield ("grid", "start"), f"{rule}; got {len(starts)} values"
    if modes >= smallest:
        yield ("probe", "modes"), f"must be < the smallest N = {smallest}; got {modes}"
    if ("grid", "alpha") in known and smallest < math.inf:
        for at, alpha in _typed(document, "grid", "alpha"):
            if measurements(alpha, smallest) < 1:
                rule = f"must give round(alpha N) >= 1 measurements at N = {smallest}"
                yield at, f"{rule}; got {shown(alpha)}"
    limit = f"t_max = {t_max:g}" if t_max < math.inf else "t_max"
    for section in ("record", "probe"):
        if (section, "times") in known:
            for at, time in _typed(document, section, "times"):
                if not 0 <= time <= t_max:
                    yield at, f"must lie in [0, {limit}]; got {shown(time)}"


def _typed(document: Mapping[str, Any], section: str, key: str) -> Iterator[tuple[Location, float]]:
    # As typed, not as stored, so that a message can point at it. Of a table the ends are enough.
    values = document[section][key]
    ends = values.items() if isinstance(values, dict) else enumerate(values)
    return (((section, key, end), value) for end, value in ends if end not in ("step", "count"))


def _with_problem(document: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return a document whose keys of the problem stand in [problem]."""
    descent, problem = document.get("descent"), document.get("problem", {})
    if not isinstance(descent, Mapping) or not isinstance(problem, Mapping):
        return dict(document)
    moved = {key: descent[key] for key in MOVED if key in descent}
    for key, value in moved.items():
        if key in problem and problem[key] != value:
            rule = f"must be that of [problem], {shown(problem[key])}, or left out"
            raise SweepError([f"{source}, [descent] {key}: {rule}; got {shown(value)}."])
    rest = {key: value for key, value in descent.items() if key not in moved}
    return {**document, "problem": {**moved, **problem}, "descent": rest}


def as_document(sweep: Sweep) -> dict[str, Any]:
    """Return all values of a sweep as JSON types, ranges written out; see `from_document`.

    `only` is left out where all cells are wanted, as versions before it know no such key.
    """
    document = sweep.model_dump(mode="json")
    if not sweep.grid.only:
        del document["grid"]["only"]
    return document


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


def _preset_text(name: str) -> str:
    return (_PRESETS / f"{name}.toml").read_text(encoding="utf-8")


def _parse(text: str, source: str) -> Sweep:
    try:
        document = tomllib.loads(text)
    except ValueError as error:  # also an integer of too many digits
        raise SweepError([f"{source}: must be TOML; {error}."]) from None
    sweep = Sweep.from_document(document, source)
    check_size(sweep, source)
    return sweep


def _product(grid: Grid) -> int:
    return len(grid.alpha) * len(grid.N) * len(grid.seed)


def check_size(sweep: Sweep, source: str) -> None:
    """Refuse more than a store stands; not in `Sweep`, or a larger one that is there was lost."""
    grid, pairs = sweep.grid, len(sweep.grid.alpha) * len(sweep.grid.N)
    shape = f"{len(grid.alpha):,} alpha x {len(grid.N):,} N x {len(grid.seed):,} seeds"
    for number, most, what in (
        (_product(grid), _MAX_CELLS, "cells (alpha, N, seed)"),
        (pairs, _MAX_PAIRS, "pairs (alpha, N)"),
    ):
        if number > most:
            rule = f"must have at most {most:,} {what} in one store"
            hint = "shorten an axis, or make several sweeps"
            raise SweepError([f"{source}, [grid]: {rule}; got {number:,} ({shape}): {hint}."])
