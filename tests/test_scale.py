"""What keeps a driver small and quick however many parts there are; times are in the benchmarks."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from dask.utils import key_split
from hypothesis import given
from hypothesis import strategies as st

from alphasweep.pipeline.inbox import Inbox, hand_in
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.provenance import code_version
from alphasweep.pipeline.tasks import part_of, submit_parts
from tests.conftest import tiny


class _Client:
    """Answers `map` with the keys."""

    def map(self, task: Any, *arguments: Any, key: list[str], **settings: Any) -> list[str]:
        """Return what the futures' keys would be."""
        assert all(len(values) == len(key) for values in arguments)
        return key


def _keys(parts: list[Part]) -> list[str]:
    client: Any = _Client()
    keys: Any = submit_parts(
        client, Inbox(Path(), "", tiny().recipe), parts, seconds=[1.0] * len(parts)
    )
    return keys


@given(
    st.floats(1e-3, 1e6), st.integers(2, 10**6), st.integers(0, 10**9), st.integers(0, 10**6)
)  # fmt: skip
def test_to_dask_all_parts_are_one_kind_of_task(alpha: float, N: int, seed: int, more: int) -> None:
    """Dask never forgets a kind of task; and the part can be read from the key."""
    part = Part(alpha, N, seed, seed + more)
    (key,) = _keys([part])
    assert key_split(key) == "part"
    assert part_of(key) == part


def test_a_part_that_is_sent_again_is_another_task() -> None:
    """Or Dask would answer with what became of the first one."""
    assert len(set(_keys([Part(2.0, 8, 0, 1)] * 3))) == 3


def test_a_part_by_another_numpy_is_read(tmp_path: Path) -> None:
    """A header in another spelling or version is no reason to compute a part again."""
    part, recipe = Part(2.0, 8, 0, 2), tiny().recipe
    cells = compute(recipe, part)
    inbox = Inbox(tmp_path, "", recipe)
    hand_in(inbox, part, cells)
    quick = inbox.read(part, [code_version()])
    other = io.BytesIO()
    np.lib.format.write_array(other, cells, version=(3, 0))
    (file,) = tmp_path.iterdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("cells.npy", other.getvalue())
    slow = inbox.read(part, [code_version()])
    assert quick is not None
    assert slow is not None
    assert quick.cells.tobytes() == slow.cells.tobytes() == cells.tobytes()
