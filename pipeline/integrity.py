"""What is in a store, believed only with proof: every byte against its checksum.

What a sweep's metadata and coordinates have to be is not written down here a second time: a fresh
store of the same sweep, built in a temporary folder, says it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from alphasweep.kernels.descent import Outcome
from alphasweep.pipeline import layout
from alphasweep.pipeline.dataset import FAILED, STATUS
from alphasweep.pipeline.grid import Geometry, Place
from alphasweep.pipeline.inbox import DamagedError
from alphasweep.pipeline.messages import SweepError
from alphasweep.pipeline.part import Part
from alphasweep.pipeline.spec import Sweep
from alphasweep.pipeline.store import Store, StoreError

CHUNK = re.compile(r"(c\.)?(\d+(?:\.\d+)*)")
"""The name of a chunk's file, in either of the two spellings."""

_NEEDED = ("outcome", "code", "status")
_DESCRIBES = ("shape", "data_type", "dimension_names", "fill_value")
_DECOMPRESS = numcodecs.Zstd().decode


class UnsoundError(Exception):
    """A file is not what it must be; the message says in what."""


class View:
    """The grid as the root metadata describe it, once they are found sound."""

    def __init__(self, store: Store) -> None:
        self.store, self.path = store, store.path
        self.root = read_object(self.path / "zarr.json")
        problem = ""
        with suppress(KeyError, TypeError, ValueError, AttributeError):  # then it is not sound
            problem = layout.too_new(self.root) or layout.unknown_variables(self.root)
        if problem:
            raise StoreError(f"store {self.path} must {problem}.")
        self.sweep = sound_sweep(self.root)
        try:
            self.arrays = layout.open_arrays(self.path)
        except Exception as error:  # of Zarr, which has many for metadata that it cannot read
            raise UnsoundError(f"Zarr cannot read what it says: {error}") from None
        attributes = layout.attributes_of(self.root)
        self.geometry = Geometry(self.sweep.grid, attributes["seeds_per_chunk"])
        self.codes = attributes["code_versions"]
        self.cell_variables: list[str] = attributes["cell_variables"]
        self._inbox = store.inbox()

    @cached_property
    def fixed(self) -> dict[str, npt.NDArray[Any]]:
        """Values that follow from the sweep: of the coordinates, and ``measurements``."""
        _, values = _fresh(self.sweep, tuple(self.cell_variables))
        return values

    def file(self, name: str, place: tuple[int, ...]) -> Path:
        """Path of a chunk."""
        return layout.chunk_file(self.path, self.arrays[name], place)

    def read(self, name: str, place: tuple[int, ...]) -> npt.NDArray[Any]:
        """Decode a chunk, (seed, ...) of a block; `UnsoundError` if any byte of it is wrong.

        By hand, as its codecs say (Zarr takes 0.8 ms for a small chunk, thirty times as long).
        """
        array = self.arrays[name]
        values = _decode(_content(self.file(name, place)), array.dtype)
        if values.size != np.prod(array.chunks):
            raise UnsoundError(f"holds {values.size} values, not {np.prod(array.chunks)}")
        values = values.reshape(array.chunks)
        if name not in self.cell_variables:
            return values
        _, _, rows = self.geometry.rows(place)  # type: ignore[arg-type]
        return values[0, 0, : rows.stop - rows.start]

    def has_waiting(self, part: Part) -> bool:
        """Whether a part is there; `DamagedError` or `ForeignError` if it is no data here."""
        try:
            return self._inbox.read(part, self.codes) is not None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise DamagedError("the disk cannot read it") from None

    def without_record(self, place: Place, status: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
        """Find the failed cells of a block that no record tells of."""
        unexplained = np.equal(status, FAILED)
        for rows in self._explained.get(place, ()):
            unexplained[rows] = False
        return unexplained

    @cached_property
    def _explained(self) -> dict[Place, list[slice]]:
        explained: dict[Place, list[slice]] = {}
        for entry in scan(self.store.errors_folder) if self.store.has_own_folder() else ():
            part = part_of(entry.name, ".json")
            with suppress(UnsoundError):
                read_object(self.store.errors_folder / entry.name)
                for place, rows in self.geometry.pieces(part) if part else ():
                    explained.setdefault(place, []).append(rows)
        return explained


def is_whole(name: str, values: npt.NDArray[Any], codes: int) -> npt.NDArray[np.bool_]:
    """Whether each cell has what every computed cell has, (seed,)."""
    match name:
        case "outcome":
            right = np.isin(values, [o for o in Outcome if o != Outcome.MISSING])
        case "recovered":
            right = np.isin(values, [0, 1])
        case "code":
            right = (values >= 0) & (values < codes)
        case "seconds":
            right = np.isfinite(values)
        case _:
            return np.ones(len(values), np.bool_)
    return np.asarray(right.reshape(len(values), -1).all(axis=1))


def is_no_status(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each value is none of those that a status can have, (seed,)."""
    return ~np.isin(values, range(len(STATUS)))


def states(
    view: View, part: Part, status: Callable[[Place], npt.NDArray[np.int8]]
) -> npt.NDArray[np.int8]:
    """Status of the cells of a part that are in the grid, given that of blocks."""
    found = [status(place)[rows] for place, rows in view.geometry.pieces(part)]
    return np.concatenate(found) if found else np.zeros(0, np.int8)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UnsoundError("the file is lost") from None
    except OSError as error:
        if error.errno != errno.EIO:
            raise  # no permission, a stale handle, ...: that is not the file's fault
        raise UnsoundError("the disk cannot read it") from None


def _decode(content: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    body, checksum = content[:-4], content[-4:]
    if len(checksum) < 4 or google_crc32c.value(body) != int.from_bytes(checksum, "little"):
        raise UnsoundError(f"its {len(content)} bytes do not match their checksum")
    try:
        return np.frombuffer(_DECOMPRESS(body), dtype.newbyteorder("<"))
    except (RuntimeError, ValueError) as error:
        raise UnsoundError(f"it cannot be decompressed: {error}") from None


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        found = json.loads(_content(file))
    except ValueError:  # of the syntax, or of the UTF-8
        raise UnsoundError("it is no JSON") from None
    if not isinstance(found, dict):
        raise UnsoundError("it is no JSON object")
    return found


def is_json(line: bytes) -> bool:
    """Whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def own_metadata(root: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a root document says of each array."""
    found: dict[str, Any] = root["consolidated_metadata"]["metadata"]
    return found


@lru_cache(maxsize=2)
def _fresh(
    sweep: Sweep, variables: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Metadata of a new store of this sweep with these variables, and its values of no run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fresh.zarr"
        layout.build(path, sweep, variables=variables)
        arrays = layout.open_arrays(path).items()
        values = {name: np.asarray(array[...]) for name, array in arrays if name not in variables}
        return own_metadata(layout.read_root(path)), values


def sound_sweep(root: Mapping[str, Any]) -> Sweep:
    """Return the sweep of a root document, whose arrays are as that sweep needs them."""
    try:
        attributes = layout.attributes_of(root)
        sweep = Sweep.from_document(attributes["sweep"])
        per_chunk, found = int(attributes["seeds_per_chunk"]), own_metadata(root)
        codes = attributes["code_versions"]
        if per_chunk < 1 or not (isinstance(codes, list) and codes):
            raise UnsoundError("its attributes seeds_per_chunk or code_versions are wrong")
        variables = attributes["cell_variables"]
        if not set(_NEEDED) <= set(variables) or variables[-1] != "status":
            raise UnsoundError("its attribute cell_variables is wrong")
        wanted, _ = _fresh(sweep, tuple(variables))
        if set(found) != set(wanted):
            names = ", ".join(sorted(set(found) ^ set(wanted)))
            raise UnsoundError(f"it names other arrays than its sweep has: {names}")
        for name, meta in found.items():
            if _essence(meta) != _essence(wanted[name]):
                raise UnsoundError(f"what it says of {name} does not fit its sweep")
            if _chunk_shape(meta) != [
                per_chunk if dim == "seed" and name != "seed" else length
                for dim, length in zip(
                    meta["dimension_names"], _chunk_shape(wanted[name]), strict=True
                )
            ]:
                raise UnsoundError(f"the chunks of {name} are not those of its attributes")
    except SweepError as error:
        raise UnsoundError(f"its sweep is not valid: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UnsoundError("it does not describe a sweep") from None
    return sweep


def _essence(meta: Mapping[str, Any]) -> list[Any]:
    """What decides how an array is read; labels, and words of other Zarr versions, do not."""
    encoding = meta["chunk_key_encoding"]
    return [
        *(meta[key] for key in _DESCRIBES),
        [codec["name"] for codec in meta["codecs"]],
        encoding["name"] in ("default", "v2") and encoding["configuration"],
    ]


def _chunk_shape(meta: Mapping[str, Any]) -> list[int]:
    shape: list[int] = meta["chunk_grid"]["configuration"]["chunk_shape"]
    return shape


def copy_of_root(store: Store) -> Path:
    """Where the writer keeps a copy of the root metadata."""
    return store.control / "zarr.json"


def part_of(name: str, suffix: str) -> Part | None:
    """Return the part that a file is named after; None if there is no such part."""
    with suppress(ValueError):
        part = Part.from_name(name.removesuffix(suffix))
        return part if name == part.name + suffix else None
    return None


def scan(folder: Path) -> Iterable[os.DirEntry[str]]:
    """List a folder, unsorted, without a stat of each file; nothing if there is none."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:
        return
