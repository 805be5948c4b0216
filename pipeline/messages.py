"""What is wrong with a sweep file, in sentences: section, key, what must hold, what was received.

Profiles have a shorter translator of their own in `cluster.profile`: the cluster knows nothing of
ours, and what both would share is how pydantic names a missing key and an unknown one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from alphasweep.kernels.problem import LOSSES
from alphasweep.pipeline.sections import (
    DESCENTS,
    SECTIONS,
    Box,
    Descent,
    FloatRange,
    LogRange,
    ProblemTable,
    typed_in_descent,
)
from alphasweep.pipeline.words import shown

Location = tuple[int | str, ...]
"""Section, key, and the position in its list, as pydantic's ``loc``."""


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


def within(
    error: ValidationError, document: Mapping[str, Any], sweep: type[BaseModel]
) -> Iterator[tuple[Location, str]]:
    """Translate the problems that pydantic found in single keys of a `sweep`."""
    for item in error.errors(include_url=False):
        at, kind, context = item["loc"], item["type"], item.get("ctx", {})
        if not at:
            continue  # from Sweep._consistent: spec._across says it with its key
        if kind == "missing":
            yield at, "required, but missing"
        elif kind == "extra_forbidden":
            yield (
                at,
                _of_other_method(at, document)
                or f"unknown key; {_suggestion(at, document, sweep)}",
            )
        elif kind == "value_error":
            yield at, str(context["error"])
        else:
            rule = _RULES[kind].format(**context) if kind in _RULES else item["msg"]
            values = "values " if isinstance(at[-1], int) else ""
            yield at, f"{values}{rule}; got {shown(item['input'])}"


def line(source: str, document: Mapping[str, Any], at: Location, text: str) -> str:
    """Write a problem with its source, its section and its key."""
    head, *rest = at
    if head == "problem" and rest and rest[0] in typed_in_descent(document):
        head = "descent"
    names = [str(p) for p in rest if isinstance(p, str)]
    where = f"[{head}] {'.'.join(names)}".rstrip() if head in SECTIONS else str(head)
    tables = [p for p in rest[:-1] if isinstance(p, int)]  # of the list [[grid.only]]
    if tables:
        text += f" ({_ordinal(tables[0], 'table')})"
    if isinstance(at[-1], int) and isinstance(document[str(head)][rest[0]], list):
        text += f" ({_ordinal(at[-1], 'table' if at[-2] == 'only' else 'value')})"
    return f"{source}, {where}: {text}{'' if text.endswith('?') else '.'}"


def _ordinal(index: int, noun: str) -> str:
    words = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
    return f"{words[index]} {noun}" if index < len(words) else f"{noun} {index + 1}"


def _of_other_method(at: Location, document: Mapping[str, Any]) -> str:
    """Say of which method of the descent a key is, if it is another one's; else ""."""
    if len(at) != 2 or at[0] != "descent":
        return ""
    here = _method(document)
    others = [name for name, table in DESCENTS.items() if at[1] in table.model_fields]
    if not others:
        return ""
    return (
        f"is a setting of method = {shown(others[0])}, and this descent has method = "
        f"{shown(here)}: leave it out, or choose the other method"
    )


def _method(document: Mapping[str, Any]) -> str:
    return str(document["descent"].get("method", "gd"))


def _keys(at: Location, document: Mapping[str, Any], sweep: type[BaseModel]) -> list[str]:
    """Keys that are allowed beside the last one of `at`."""
    model = sweep
    if len(at) == 2:
        model = SECTIONS[str(at[0])]
        if model is Descent:
            model = DESCENTS[_method(document)]
    elif at[1:2] == ("only",):
        model = Box if len(at) == 4 else FloatRange
    elif len(at) == 3:
        model = LogRange if at[1] == "times" else FloatRange
    keys = [field.alias or name for name, field in model.model_fields.items()]
    if model is ProblemTable:
        keys += sorted({field.name for loss in LOSSES.values() for field in fields(loss)})
    return keys


def _suggestion(at: Location, document: Mapping[str, Any], sweep: type[BaseModel]) -> str:
    keys = _keys(at, document, sweep)
    close = get_close_matches(str(at[-1]), keys, n=1, cutoff=0.75)
    return f"did you mean {close[0]}?" if close else f"allowed: {', '.join(keys)}"
