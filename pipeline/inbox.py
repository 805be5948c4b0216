"""What workers hand in: a file a part, which says whose it is and which code made it.

A store's parts lie in a folder beside it, and a folder beside a store may hold what was computed
for another one: a store was removed and made anew, or workers outlived it. So a part names the
store, its recipe and the code that computed it, and is data nowhere else.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from alphasweep.pipeline.dataset import cell_dtype
from alphasweep.pipeline.files import patient, replace
from alphasweep.pipeline.part import Cells, Part
from alphasweep.pipeline.provenance import code_version, recipe_digest
from alphasweep.pipeline.recipe import Recipe


class DamagedError(Exception):
    """A part's file is not whole; the message says in what."""


class ForeignError(Exception):
    """A part is not one of this store; the message says why."""


@dataclass(frozen=True)
class HandedIn:
    """A part's cells, and the version of the code that computed them.

    ``code`` is "" where it is unknown: before 0.2, a part did not say it.
    """

    part: Part
    cells: Cells
    code: str


@dataclass(frozen=True)
class Inbox:
    """Where parts of a store are handed in, and what they are to be. It travels to the workers.

    Attributes
    ----------
    folder : Path
    store_id : str
        Of the store; "" if it was made before stores had one. Then parts have none, either.
    recipe : Recipe
    digest : str
        Of the recipe. A worker is told it: it may not know the name of a loss that a script made.
    """

    folder: Path
    store_id: str
    recipe: Recipe
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", recipe_digest(self.recipe))

    def file(self, part: Part) -> Path:
        """Where a part is handed in."""
        return self.folder / f"{part.name}.npz"

    def is_waiting(self, part: Part) -> bool:
        """Whether a part of this store is there, going by what it says of itself."""
        try:
            with zipfile.ZipFile(self.file(part)) as file:
                self._check(_origin(file))
        except FileNotFoundError:
            return False
        except OSError:
            return True  # that it cannot be read now says nothing about what is in it
        except Exception:  # zipfile and json each have their own errors for garbage
            return False
        return True

    def read(self, part: Part, codes: Collection[str]) -> HandedIn | None:
        """Read a part; None if there is no such file.

        Parameters
        ----------
        part : Part
        codes : collection of str
            Versions of the code whose numbers are wanted.

        Raises
        ------
        DamagedError
            If the file is not whole: it has checksums.
        ForeignError
            If it was computed for another store or recipe, or by other code.
        OSError
            If the file system cannot read it: that says nothing about what is in it.
        """
        try:
            whole = self.file(part).read_bytes()
        except FileNotFoundError:
            return None
        try:
            with zipfile.ZipFile(io.BytesIO(whole)) as file:
                content, origin = file.read("cells.npy"), _origin(file)
            cells = _cells(content, self._dtype, len(part.seeds))
        except Exception:  # zipfile, zlib, json and NumPy each have their own errors for garbage
            raise DamagedError("the file is not whole") from None
        self._check(origin)
        if cells.dtype != self._dtype or cells.shape != (len(part.seeds),):
            raise ForeignError("its cells are of another type or number")
        code = origin.get("code", "")
        if code and code not in codes:
            raise ForeignError(f"code {code} computed it, whose numbers are not wanted here")
        return HandedIn(part, cells, code)

    def _check(self, origin: dict[str, str]) -> None:
        if origin.get("store_id", "") != self.store_id:
            raise ForeignError("it was computed for another store")
        if origin and origin["recipe"] != self.digest:
            raise ForeignError("it was computed for another recipe")

    @cached_property
    def _dtype(self) -> np.dtype[Any]:
        return cell_dtype(self.recipe)


@patient
def hand_in(inbox: Inbox, part: Part, cells: Cells) -> None:
    """Write a part's file: whole, or not there.

    It survives the death of any process. A machine that crashes may lose the last second's parts.
    """
    origin = {"store_id": inbox.store_id, "recipe": inbox.digest, "code": code_version()}
    text = np.frombuffer(json.dumps(origin).encode(), np.uint8)
    replace(inbox.file(part), lambda file: np.savez(file, cells=cells, origin=text))


def _origin(file: zipfile.ZipFile) -> dict[str, str]:
    """Read what a part says of itself; nothing, if it is of a version that did not."""
    if "origin.npy" not in file.namelist():
        return {}
    _, _, text = file.read("origin.npy").partition(b"\n")  # which ends what NumPy puts before it
    return {str(name): str(value) for name, value in json.loads(text).items()}


def _cells(content: bytes, dtype: np.dtype[Any], number: int) -> Cells:
    header = _header(dtype, number)
    if content.startswith(header):
        return np.frombuffer(content, dtype, number, len(header))
    # Of another version of NumPy, or of another sweep.
    cells: Cells = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return cells


@lru_cache
def _header(dtype: np.dtype[Any], cells: int) -> bytes:
    """Return how `hand_in` begins such an array: NumPy takes longer to parse it than to read on."""
    file = io.BytesIO()
    np.save(file, np.zeros(cells, dtype))
    return file.getvalue()[: -cells * dtype.itemsize]
