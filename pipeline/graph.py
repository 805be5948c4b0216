"""Parts and commits as a Dask graph: a block's commit depends on its parts.

A task carries names and acknowledgements, never results: those are on the disk, and the disk is
the only truth. A task may run twice, or go on for a while after its worker was given up: parts are
deterministic and handed in atomically, so the second copy changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from distributed import Client, Future

from pipeline.part import Part, compute
from pipeline.spec import Sweep
from pipeline.store import Block, Failure, Store

COMMIT_PRIORITY = 10


def compute_part(store: str, sweep: Sweep, part: Part) -> float:
    """Task: compute a part and hand it in; the acknowledgement is the seconds it took."""
    arrays = compute(sweep, part)
    Store(store).hand_in(part, arrays)
    return float(arrays["seconds"].sum())


def commit_block(
    store: str,
    block: Block,
    parts: Sequence[Part],
    failures: Sequence[Failure],
    after: Sequence[float],
) -> None:
    """Task: commit a block, `after` its parts."""
    Store(store).commit(block, parts, failures)


def submit_part(client: Client, store: Store, sweep: Sweep, part: Part, *, retries: int) -> Future:
    """Add a part to the graph."""
    return client.submit(
        compute_part, str(store.path), sweep, part, retries=retries, pure=False, key=part.name
    )


def submit_commit(
    client: Client,
    store: Store,
    block: Block,
    parts: Sequence[Part],
    failures: Sequence[Failure],
    *,
    after: Sequence[Future],
) -> Future:
    """Add a block's commit to the graph, behind the futures of its parts."""
    return client.submit(
        commit_block,
        str(store.path),
        block,
        parts,
        failures,
        after,
        priority=COMMIT_PRIORITY,
        pure=False,
        retries=2,
    )
