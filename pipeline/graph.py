"""The sweep as a Dask graph: one task a part.

A task carries names and an acknowledgement, never results: those are on the disk, and the disk is
the only truth. A task may run twice, or go on for a while after its worker was given up: parts are
deterministic and handed in atomically, so a second copy changes nothing. What is handed in is
committed by the driver, the store's only writer (`pipeline.drive`), so nothing that outlives the
driver can write into the dataset.
"""

from __future__ import annotations

import socket
from pathlib import Path

from distributed import Client, Future

from pipeline.part import Part, compute
from pipeline.spec import Recipe
from pipeline.store import hand_in


def compute_part(parts_folder: Path, recipe: Recipe, part: Part) -> float:
    """Task: compute a part and hand it in; the acknowledgement is the seconds it took."""
    try:
        cells = compute(recipe, part)
        hand_in(parts_folder, part, cells)
    except Exception as error:
        error.add_note(f"on {socket.gethostname()}")
        raise
    return float(cells["seconds"].sum())


def submit_part(
    client: Client, parts_folder: Path, recipe: Recipe, part: Part, *, attempt: int
) -> Future[float]:
    """Add a part to the graph."""
    key = f"{part.name}#{attempt}"
    return client.submit(compute_part, parts_folder, recipe, part, pure=False, key=key)
