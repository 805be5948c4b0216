"""How times, sizes and ranges are written in a sentence or a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich import filesize

_LONG_PART = 30.0  # seconds after which one is told of while it runs


def duration(seconds: float) -> str:
    """Write a time span."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def between(least: float, most: float) -> str:
    """Write what lies between two numbers."""
    return f"{least:.2g} to {most:.2g}" if most else "0"


def size(number: float) -> str:
    """Write a number of bytes."""
    return filesize.decimal(int(number)).replace(".0 ", " ")


def under_way(where: Mapping[str, Any]) -> str:
    """Tell of parts that take long, by the `Progress` of a run as a document."""
    number, seconds = where.get("parts_running", 0), where.get("longest_seconds", 0.0)
    if seconds < _LONG_PART:
        return ""
    parts = "1 part running" if number == 1 else f"{number} parts running, the first"
    return f", {parts} for {duration(seconds)} of about {duration(where['longest_predicted'])}"


def shown(value: Any) -> str:
    """Write a value of a file, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
