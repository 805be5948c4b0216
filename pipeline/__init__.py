"""The sweep: what is wanted, what is missing, what is on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.reading import open_sweep

__all__ = ["open_sweep"]


def __getattr__(name: str) -> Any:
    # xarray takes most of a second to load: only for who opens something.
    if name == "open_sweep":
        from pipeline.reading import open_sweep

        return open_sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
