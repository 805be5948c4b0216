"""The Zarr store of a sweep: create, hand in parts, commit blocks, read what is there.

    results.zarr/        Zarr v3, consolidated: the dataset, and nothing else
    results.zarr.run/    beside it: lock, parts/, errors/, progress.json, events.jsonl

A worker hands in a part as one file, by an atomic rename. A commit owns one block (one alpha, one
N, the seeds of one chunk): it merges the block's parts over what is there and writes ``status``
last, so a cell is done only when everything of it is on disk. Every step can be killed and
repeated: parts are deterministic, merging twice changes nothing, and parts are removed only after
the committed block was read back.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import traceback
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import filelock
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from kernels.descent import Outcome
from pipeline.part import Arrays, Part
from pipeline.spec import Sweep, SweepError, as_document, differences

MISSING, DONE, FAILED = range(3)
_STATUS = ("missing", "done", "failed")
_LEASE_SECONDS = 60.0
_ELEMENTS_PER_CHUNK = 1000  # seeds * starts; keeps the number of files low


class StoreError(RuntimeError):
    """The store cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Variable:
    """One data variable of the dataset.

    ``kind`` is a NumPy dtype, or "real" for the precision of the descent.
    """

    dims: tuple[str, ...]
    kind: str
    long_name: str
    units: str = "1"
    fill: float = float("nan")
    attrs: Mapping[str, Any] = field(default_factory=dict)


def _flags(names: Iterable[str]) -> dict[str, Any]:
    meanings = list(names)
    return {"flag_values": list(range(len(meanings))), "flag_meanings": " ".join(meanings)}


_CELL = ("alpha", "N", "seed")
_RUN = (*_CELL, "start")
_SERIES = (*_RUN, "time")
_MODES = (*_CELL, "time", "mode")
_TIME = "learning_rate * step"

VARIABLES: dict[str, Variable] = {
    "status": Variable(_CELL, "int8", "what is known of the cell", fill=0, attrs=_flags(_STATUS)),
    "outcome": Variable(
        _RUN,
        "int8",
        "how the start ended",
        fill=0,
        attrs=_flags(o.name.lower() for o in Outcome)
        | {"comment": "; ".join(f"{o.name.lower()}: {o.advice}" for o in Outcome)},
    ),
    "recovered": Variable(_RUN, "float32", "1 if the signal was recovered, else 0"),
    "recovery_time": Variable(_RUN, "float64", "time of recovery", _TIME),
    "steps": Variable(_RUN, "float64", "steps of gradient descent taken"),
    "final_overlap": Variable(_RUN, "real", "overlap w.w_star/N at the last step"),
    "final_energy": Variable(_RUN, "real", "energy at the last step"),
    "overlap": Variable(_SERIES, "real", "overlap w.w_star/N; its sign is arbitrary"),
    "energy": Variable(_SERIES, "real", "energy, mean loss of a sample"),
    "mu": Variable(_SERIES, "real", "Lagrange multiplier w.grad L/N"),
    "bulk_edge": Variable(
        _SERIES, "real", "lower edge of the Riemannian Hessian's bulk at large N, from the labels"
    ),
    "outlier": Variable(
        _SERIES, "real", "outlier of the Riemannian Hessian at large N; NaN where there is none"
    ),
    "outlier_overlap": Variable(
        _SERIES, "real", "squared overlap of the outlier's eigenvector with the signal at large N"
    ),
    "lambda_min": Variable(
        _MODES, "float64", "lowest eigenvalues of the Riemannian Hessian of the first start"
    ),
    "signal_overlap": Variable(
        _MODES, "float64", "squared overlap of these eigenvectors with the signal"
    ),
    "measurements": Variable(("alpha", "N"), "int64", "number of measurements M = round(alpha N)"),
    "seconds": Variable(_CELL, "float64", "time the cell took on one core", "s"),
    "code": Variable(
        _CELL, "int16", "index into the attribute code_versions; -1 if not computed", fill=-1
    ),
}

_COORDINATES: dict[str, tuple[str, str]] = {
    "alpha": ("signal-to-noise ratio M/N asked for", "1"),
    "N": ("dimension of the signal", "1"),
    "seed": ("name of the sensing matrix, signal and labels", "1"),
    "start": ("name of the initial condition", "1"),
    "time": ("physical time", _TIME),
    "mode": ("rank of the eigenvalue, from the lowest", "1"),
}


@dataclass(frozen=True, order=True)
class Block:
    """The cells of one chunk of every variable: what one commit owns."""

    alpha: float
    N: int
    chunk: int


@dataclass(frozen=True)
class Failure:
    """Why a part has no result."""

    part: Part
    error: str
    traceback: str
    attempts: int

    @classmethod
    def of(cls, part: Part, error: BaseException, attempts: int) -> Failure:
        """Keep what an exception says."""
        text = "".join(traceback.format_exception(error))
        return cls(part, f"{type(error).__name__}: {error}", text, attempts)


def seeds_per_chunk(sweep: Sweep) -> int:
    """Length of a chunk along seed in a new store, which keeps it for ever."""
    return max(1, _ELEMENTS_PER_CHUNK // len(sweep.grid.start))


class Store:
    """A sweep's store at a path. Cheap to make; nothing is kept open between calls."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.control = self.path.with_name(self.path.name + ".run")
        self._parts = self.control / "parts"
        self._errors = self.control / "errors"

    # -- what is there ---------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether a sweep was created here.

        Raises
        ------
        StoreError
            If something else is at the path.
        """
        if not self.path.exists():
            return False
        if "sweep" not in self._root_attributes():
            raise StoreError(
                f"store {self.path} must be a sweep's Zarr store or not exist; something else is "
                "there: choose another --store."
            )
        return True

    def _root_attributes(self) -> dict[str, Any]:
        try:
            document = json.loads((self.path / "zarr.json").read_text())
            return cast(dict[str, Any], document["attributes"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def sweep(self) -> Sweep:
        """The sweep that the store belongs to."""
        attributes = self._root_attributes()
        if "sweep" not in attributes:
            raise StoreError(f"store {self.path} must be a sweep's Zarr store; there is none.")
        try:
            return Sweep.from_document(attributes["sweep"], f"store {self.path}")
        except SweepError as error:
            raise StoreError(str(error)) from None

    def status(self) -> npt.NDArray[np.int8]:
        """Status of every cell, (alpha, N, seed): 0 missing, 1 done, 2 failed."""
        return np.asarray(self._group("r")["status"][...], dtype=np.int8)

    def seconds(self) -> npt.NDArray[np.float64]:
        """Seconds every cell took, (alpha, N, seed); NaN where not computed."""
        return np.asarray(self._group("r")["seconds"][...], dtype=np.float64)

    def seeds_per_chunk(self) -> int:
        """Length of a chunk along seed, fixed when the store was created."""
        return int(self._root_attributes()["seeds_per_chunk"])

    def parts(self) -> list[Part]:
        """Parts that were handed in and are not yet committed, in order of their names."""
        found = []
        for file in sorted(self._parts.glob("*.npz")):
            with suppress(ValueError):
                found.append(Part.from_name(file.name.removesuffix(".npz")))
        return found

    def failures(self) -> list[dict[str, Any]]:
        """Records of failed parts, as `commit` wrote them."""
        return [json.loads(f.read_text()) for f in sorted(self._errors.glob("*.json"))]

    def progress(self) -> dict[str, Any] | None:
        """What the driver last said of itself, or None; see `lock_holder` for whether it lives."""
        try:
            return cast(dict[str, Any], json.loads((self.control / "progress.json").read_text()))
        except (OSError, ValueError):
            return None

    def open(self) -> xr.Dataset:
        """The dataset, lazily; the same as ``xarray.open_zarr(path)``."""
        self.sweep()
        return xr.open_zarr(self.path)

    # -- making and changing it ------------------------------------------------------------------

    def prepare(self, sweep: Sweep) -> None:
        """Create the store, or make sure that it is this sweep's.

        Raises
        ------
        StoreError
            If the path is in use for another sweep (the differences are named) or not writable.
        """
        if self.exists():
            self.check(sweep)
        else:
            self._create(sweep)
        self._parts.mkdir(parents=True, exist_ok=True)
        self._errors.mkdir(exist_ok=True)

    def check(self, sweep: Sweep) -> None:
        """Raise StoreError, with the differences, unless the store is this sweep's."""
        stored = self.sweep()
        wrong = differences(stored, sweep) + _grid_differences(stored, sweep)
        if wrong:
            raise StoreError(
                f"store {self.path} was made for another sweep: {'; '.join(wrong)}: "
                "choose another --store, or set these keys as in the store."
            )

    def _create(self, sweep: Sweep) -> None:
        # Built beside the path and renamed: there is no half-made store.
        building = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _build(building, sweep)
            building.rename(self.path)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def hand_in(self, part: Part, arrays: Arrays) -> None:
        """Write a part's file: durable and whole, or not there at all."""
        _replace(self._parts / f"{part.name}.npz", lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]

    def commit(self, block: Block, parts: Sequence[Part], failures: Sequence[Failure] = ()) -> int:
        """Merge parts into the dataset, ``status`` last; then remove their files.

        Parameters
        ----------
        block : Block
        parts : sequence of Part
            All in this block; a part whose file is gone was committed before.
        failures : sequence of Failure
            Parts of this block without a result: recorded, and marked failed unless done.

        Returns
        -------
        int
            Number of cells that were merged.
        """
        group = self._group("r+")
        at = _Position(group, block, self.seeds_per_chunk())
        loaded = [(part, arrays) for part in parts if (arrays := self._load(part)) is not None]
        status = np.array(group["status"][at.selection])

        if loaded:
            versions = list(group.attrs["code_versions"])
            for name, variable in VARIABLES.items():
                if "seed" not in variable.dims or name == "status" or name not in group:
                    continue
                array = _array(group, name)
                merged = np.array(array[at.selection])
                for part, arrays in loaded:
                    rows = at.rows(part.seeds)
                    merged[rows] = versions.index(code_version()) if name == "code" else arrays[name]
                at.write(self.path, array, merged)
            for part, _ in loaded:
                status[at.rows(part.seeds)] = DONE
        for failure in failures:
            self._record_failure(failure)
            rows = at.rows(failure.part.seeds)
            status[rows] = np.where(status[rows] == DONE, DONE, FAILED)
        at.write(self.path, _array(group, "status"), status)

        for part, arrays in loaded:
            for name in arrays:
                kept = np.array(group[name][at.selection])[at.rows(part.seeds)]
                np.testing.assert_array_equal(kept, arrays[name].astype(kept.dtype))
            (self._parts / f"{part.name}.npz").unlink(missing_ok=True)
            (self._errors / f"{part.name}.json").unlink(missing_ok=True)
        return sum(len(part.seeds) for part, _ in loaded)

    def discard(self, part: Part) -> None:
        """Remove a part's file that cannot be read."""
        (self._parts / f"{part.name}.npz").unlink(missing_ok=True)

    def _load(self, part: Part) -> Arrays | None:
        try:
            with np.load(self._parts / f"{part.name}.npz", allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None

    def readable(self, part: Part) -> bool:
        """Whether a part's file is whole (every array passes its checksum)."""
        try:
            return self._load(part) is not None
        except Exception:  # zipfile, zlib and NumPy each have their own errors for garbage
            return False

    def _record_failure(self, failure: Failure) -> None:
        record = {
            "part": str(failure.part),
            "error": failure.error,
            "traceback": failure.traceback,
            "attempts": failure.attempts,
            "host": socket.gethostname(),
            "time": datetime.now(UTC).isoformat(),
        }
        _replace_text(self._errors / f"{failure.part.name}.json", json.dumps(record, indent=1))

    def _group(self, mode: Literal["r", "r+"]) -> zarr.Group:
        return zarr.open_group(self.path, mode=mode, use_consolidated=True)

    # -- one driver ------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Any:
        """Hold the store as its only driver.

        Raises
        ------
        StoreError
            If another driver holds it; it is named.
        """
        self.control.mkdir(parents=True, exist_ok=True)
        lease = self._lease()
        try:
            lease.acquire()
        except filelock.Timeout:
            raise StoreError(
                f"store {self.path} is in use by another run ({self._describe(lease)}): wait for "
                "it, or stop it first."
            ) from None
        try:
            self._register_version()
            self._clean()
            yield
        finally:
            lease.release()

    def lock_holder(self) -> str | None:
        """Who drives the store now, or None."""
        lease = self._lease()
        if lease.owner is None:
            return None
        try:
            lease.acquire()  # a dead holder's claim is taken over, and given back
        except filelock.Timeout:
            return self._describe(lease)
        except OSError:
            return None
        lease.release()
        return None

    def _lease(self) -> filelock.SoftFileLease:
        return filelock.SoftFileLease(
            self.control / "lock", lease_duration=_LEASE_SECONDS, timeout=0
        )

    @staticmethod
    def _describe(lease: filelock.SoftFileLease) -> str:
        owner = lease.owner
        return f"process {owner.pid} on {owner.hostname}" if owner else "it has just ended"

    def _register_version(self) -> None:
        """List this code's version in the root attributes, so that commits can point at it."""
        if not self.path.exists():
            return
        metadata = self.path / "zarr.json"
        document = json.loads(metadata.read_text())
        versions = document["attributes"]["code_versions"]
        if code_version() not in versions:
            versions.append(code_version())
            _replace_text(metadata, json.dumps(document, indent=2))

    def _clean(self) -> None:
        """Remove what killed writers left behind."""
        for leftover in (*self._parts.glob(".*"), *self.path.glob("*/*.partial")):
            leftover.unlink(missing_ok=True)

    def say(self, **progress: Any) -> None:
        """Publish the driver's progress for `status` in another terminal."""
        _replace_text(self.control / "progress.json", json.dumps(progress), durable=False)

    def log(self, event: str, **details: Any) -> None:
        """Append one line to the log of events."""
        entry = {"time": datetime.now(UTC).isoformat(), "event": event, **details}
        with (self.control / "events.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")


def code_version() -> str:
    """Version of alphasweep that computes."""
    return version("alphasweep")


class _Position:
    """Where a block lies in the arrays."""

    def __init__(self, group: zarr.Group, block: Block, seeds_per_chunk: int) -> None:
        seeds = np.asarray(group["seed"][...])
        i = int(np.flatnonzero(np.asarray(group["alpha"][...]) == block.alpha)[0])
        j = int(np.flatnonzero(np.asarray(group["N"][...]) == block.N)[0])
        first = block.chunk * seeds_per_chunk
        self._seeds = seeds[first : first + seeds_per_chunk]
        self._chunk = (i, j, block.chunk)
        self.selection = (i, j, slice(first, first + len(self._seeds)))

    def rows(self, seeds: range) -> slice:
        """Rows of the block that hold consecutive seeds."""
        first = int(np.searchsorted(self._seeds, seeds[0]))
        rows = slice(first, first + len(seeds))
        if not np.array_equal(self._seeds[rows], seeds):
            raise StoreError(f"seeds {seeds[0]} to {seeds[-1]} are not consecutive in one chunk")
        return rows

    def write(self, store: Path, array: zarr.Array[Any], values: npt.NDArray[Any]) -> None:
        """Write the block's chunk and see it onto the disk (Zarr itself never calls fsync)."""
        array[self.selection] = values
        key = (*self._chunk, *(0 for _ in array.shape[3:]))
        _sync(store / array.path / array.metadata.encode_chunk_key(key))


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    # A block of NaN is data: without this Zarr would not write it, or delete the chunk.
    return cast("zarr.Array[Any]", group[name]).with_config({"write_empty_chunks": True})


def _grid_differences(stored: Sweep, wanted: Sweep) -> list[str]:
    return [
        f"[grid] {axis} has {len(getattr(stored.grid, axis))} values in the store, "
        f"{len(getattr(wanted.grid, axis))} in this sweep, and they differ"
        for axis in ("alpha", "N", "seed")
        if getattr(stored.grid, axis) != getattr(wanted.grid, axis)
    ]


def _build(path: Path, sweep: Sweep) -> None:
    grid = sweep.grid
    modes = sweep.probe.modes if sweep.probe else 0
    coordinates = {
        "alpha": np.array(grid.alpha, dtype=np.float64),
        "N": np.array(grid.N, dtype=np.int64),
        "seed": np.array(grid.seed, dtype=np.int64),
        "start": np.array(grid.start, dtype=np.int64),
        "time": sweep.times,
        "mode": np.arange(modes, dtype=np.int64),
    }
    sizes = {name: len(values) for name, values in coordinates.items()}
    per_chunk = seeds_per_chunk(sweep)
    group = zarr.create_group(
        path,
        zarr_format=3,
        attributes={
            "title": f"alphasweep {sweep.name}: gradient descent on phase retrieval",
            "source": "arXiv:2403.02418",
            "sweep": as_document(sweep),
            "seeds_per_chunk": per_chunk,
            "code_versions": [code_version()],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {p: version(p) for p in ("alphasweep", "numpy", "scipy", "xarray", "zarr")},
        },
    )
    for name, values in coordinates.items():
        if name == "mode" and not modes:
            continue
        long_name, units = _COORDINATES[name]
        array = _create_array(group, name, (name,), values.shape, values.dtype, 0, long_name, units)
        array[...] = values
    for name, variable in VARIABLES.items():
        if "mode" in variable.dims and not modes:
            continue
        kind = sweep.descent.precision if variable.kind == "real" else variable.kind
        shape = tuple(sizes[d] for d in variable.dims)
        chunks = {"alpha": 1, "N": 1, "seed": per_chunk} if "seed" in variable.dims else {}
        array = _create_array(
            group,
            name,
            variable.dims,
            shape,
            np.dtype(kind),
            0 if name == "measurements" else variable.fill,
            variable.long_name,
            variable.units,
            chunks=tuple(chunks.get(d, sizes[d]) for d in variable.dims),
            attrs=variable.attrs,
        )
        if name == "measurements":
            array[...] = [[sweep.measurements(alpha, N) for N in grid.N] for alpha in grid.alpha]
    _consolidate(path)


def _create_array(
    group: zarr.Group,
    name: str,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    fill: float,
    long_name: str,
    units: str,
    *,
    chunks: tuple[int, ...] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> zarr.Array[Any]:
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks or shape,
        fill_value=fill,
        dimension_names=dims,
        # One directory a variable; a checksum, or a flipped bit would be read as a number.
        chunk_key_encoding={"name": "default", "separator": "."},
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        attributes={"long_name": long_name, "units": units, **(attrs or {})},
    )


def _consolidate(path: Path) -> None:
    with warnings.catch_warnings():
        # Readers need it, and its replacement by one rename is the commit point of the metadata.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(path)


def _replace(path: Path, write: Any, *, durable: bool = True) -> None:
    """Write a file under another name, then rename it into place."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _replace_text(path: Path, text: str, *, durable: bool = True) -> None:
    _replace(path, lambda file: file.write(text.encode()), durable=durable)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
