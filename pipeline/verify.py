"""Is everything in a store sound, and what to do if not.

`verify` only reads, and needs no lock. `repair` forgets what is not sound: its cells become
missing, and the next run computes them again. Nothing is ever guessed from a damaged file.

What a sweep's metadata and coordinates have to be is not written down here a second time: a fresh
store of the same sweep, built in a temporary folder, says it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numcodecs  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from kernels.descent import Outcome
from pipeline import layout
from pipeline.dataset import DONE, FAILED, GRID, MISSING, STATUS, cell_dtype, cell_variables
from pipeline.files import replace, replace_text, sync
from pipeline.part import Part
from pipeline.spec import Sweep, SweepError, differences
from pipeline.store import Store, StoreError, Writer

Severity = Literal["damage", "leftover", "note"]
Place = tuple[int, int, int]
"""Of a block: the place of its alpha, its N, and its chunk along seed."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}|.+\.partial")  # by `files.replace`, layout, and Zarr
_CHUNK = re.compile(r"(c\.)?(\d+(?:\.\d+)*)")
_DESCRIBES = ("shape", "data_type", "dimension_names", "fill_value")
_DECOMPRESS = numcodecs.Zstd().decode


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes
    ----------
    kind : str
        Which check found it.
    severity : str
        "damage": something was lost; "leftover": harmless, `repair` removes it; "note": to know.
    where : Path
    what : str
        What was found.
    todo : str
        What `repair` does about it, or what to do.
    cells : Part, optional
        Cells that cannot be relied on; their seeds are among its seeds.
    """

    kind: str
    severity: Severity
    where: Path
    what: str
    todo: str
    cells: Part | None = None

    def __str__(self) -> str:
        about = f" ({self.cells})" if self.cells else ""
        return f"{self.severity}: {self.where}: {self.what}{about}. {self.todo}."


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes
    ----------
    store : Path
    findings : tuple of Finding
    files, bytes : int
        Size of the store and of the folder beside it.
    cells : mapping
        Number of cells by status; empty if the metadata cannot be read.
    driver : str or None
        Who was writing meanwhile; what looks left over may then be in use.
    """

    store: Path
    findings: tuple[Finding, ...]
    files: int
    bytes: int
    cells: Mapping[str, int]
    driver: str | None

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not any(finding.severity == "damage" for finding in self.findings)

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(asdict(self) | {"ok": self.ok}, default=str, indent=1)

    def text(self) -> str:
        """Return the report for a terminal, damage first."""
        order = ("damage", "leftover", "note")
        count = Counter(finding.severity for finding in self.findings)
        cells = ", ".join(f"{number:,} {status}" for status, number in self.cells.items())
        return "\n".join(
            [
                f"{self.store}: {'sound' if self.ok else 'DAMAGED'}; {self.files:,} files, "
                f"{self.bytes / 1e6:,.1f} MB; cells: {cells or 'unknown'}.",
                *([f"In use by {self.driver}: files may be its own."] if self.driver else []),
                *map(str, sorted(self.findings, key=lambda finding: order.index(finding.severity))),
                f"{count['damage']} damages, {count['leftover']} leftovers, {count['note']} notes.",
            ]
        )


def verify(store: Store, *, watch: Callable[[int, int], object] = lambda done, all: None) -> Report:
    """Read all of a store, and say what is not sound in it.

    Chunks are read one by one: the memory needed is that of a chunk, of ``status`` (a byte a cell)
    and of the list of one variable's files.

    Parameters
    ----------
    store : Store
    watch : callable
        Told how many variables were read, and how many there are.

    Raises
    ------
    StoreError
        If there is nothing at the store's path.
    OSError
        If a file cannot be read for reasons that are not its content, such as its permissions.
    """
    if not store.path.is_dir():
        raise StoreError(f"store {store.path} must be a sweep's Zarr store; there is no folder.")
    driver, files, size = store.holder(), *_size(store)
    findings = [*_beside(store), *_control_files(store)]
    cells: dict[str, int] = {}
    try:
        view = _View(store)
    except _UnsoundError as error:
        findings.append(_bad_root(store, error))
    else:
        findings += _copy_of_root(store, view)
        findings += _metadata(view)
        check = _Check(view)
        findings += check.run(watch)
        cells = {name: int((check.status == k).sum()) for k, name in enumerate(STATUS)}
    return Report(store.path, tuple(findings), files, size, cells, driver)


def repair(writer: Writer, report: Report) -> tuple[str, ...]:
    """Mark cells that are not sound as missing, and remove what is left over.

    Every finding is looked at again before anything is changed: the report may be of a time before
    the lock was taken. Unknown files are left alone. A run computes what is missing then.

    Parameters
    ----------
    writer : Writer
    report : Report
        Of `verify`, for the same store.

    Returns
    -------
    tuple of str
        What was done, a line each.

    Raises
    ------
    StoreError
        If the root metadata are lost, and there is no sound copy of them.
    """
    store = writer.store
    try:
        view = _View(store)
        faults = [f.what for f in _copy_of_root(store, view) if f.kind == "root"]
    except _UnsoundError as error:
        faults = [str(error)]
    if faults:
        _restore_root(writer, faults[0])
        again = repair(writer, verify(store))  # what could not be judged without the root
        return (f"{store.path / 'zarr.json'}: restored from its copy", *again)
    work = _Repair(writer, view)
    return tuple(
        f"{finding.where}: {done}" for finding in report.findings if (done := work.mend(finding))
    )


class _UnsoundError(Exception):
    """A file is not what it must be; the message says in what."""


class _View:
    """The grid as the root metadata describe it, once they are found sound."""

    def __init__(self, store: Store) -> None:
        self.store, self.path = store, store.path
        self.root = _read_object(self.path / "zarr.json")
        self.sweep = _sound_sweep(self.root)
        self.arrays = layout.open_arrays(self.path)
        attributes = self.root["attributes"]
        self.per_chunk, self.codes = attributes["seeds_per_chunk"], attributes["code_versions"]
        self.cell_variables = list(cell_variables(self.sweep.recipe))
        grid = self.sweep.grid
        self._blocks = (len(grid.alpha), len(grid.N), -(-len(grid.seed) // self.per_chunk))
        self._index = {axis: {v: i for i, v in enumerate(getattr(grid, axis))} for axis in GRID[:2]}

    @cached_property
    def fixed(self) -> dict[str, npt.NDArray[Any]]:
        """Values that follow from the sweep: of the coordinates, and ``measurements``."""
        _, values = _fresh(self.sweep)
        return values

    def places(self) -> Iterator[Place]:
        """All blocks."""
        alphas, sizes, chunks = map(range, self._blocks)
        return product(alphas, sizes, chunks)

    def has(self, place: Place) -> bool:
        """Whether there is such a block."""
        return all(0 <= i < n for i, n in zip(place, self._blocks, strict=True))

    def rows(self, place: Place) -> tuple[int, int, slice]:
        """Where a block is in an array."""
        i, j, k = place
        end = min((k + 1) * self.per_chunk, len(self.sweep.grid.seed))
        return i, j, slice(k * self.per_chunk, end)

    def cells(self, place: Place, among: npt.NDArray[np.bool_] | None = None) -> Part:
        """Name the cells of a block, or some of them."""
        i, j, rows = self.rows(place)
        seeds = np.array(self.sweep.grid.seed[rows])
        seeds = seeds if among is None else seeds[among]
        return Part(self.sweep.grid.alpha[i], self.sweep.grid.N[j], int(seeds[0]), int(seeds[-1]))

    def places_of(self, part: Part) -> list[tuple[Place, slice]]:
        """Find the blocks that hold cells of a part, and the rows of these in each."""
        i, j = self._index["alpha"].get(part.alpha), self._index["N"].get(part.N)
        seeds, length = self.sweep.grid.seed, self.per_chunk
        first, end = bisect_left(seeds, part.first_seed), bisect_right(seeds, part.last_seed)
        if i is None or j is None or first >= end:
            return []
        return [
            ((i, j, k), slice(max(first - k * length, 0), min(end - k * length, length)))
            for k in range(first // length, (end - 1) // length + 1)
        ]

    def place_of(self, part: Part) -> Place | None:
        """Find the block that holds all of a part; None if there is none."""
        found = self.places_of(part)
        if len(found) != 1:
            return None
        ((place, rows),) = found
        return place if rows.stop - rows.start == len(part.seeds) else None

    def file(self, name: str, place: tuple[int, ...]) -> Path:
        """Path of a chunk."""
        return layout.chunk_file(self.path, self.arrays[name], place)

    def read(self, name: str, place: tuple[int, ...]) -> npt.NDArray[Any]:
        """Decode a chunk, (seed, ...) of a block; `_UnsoundError` if any byte of it is wrong.

        By hand, as its codecs say (Zarr takes 0.8 ms for a small chunk, thirty times as long).
        """
        array = self.arrays[name]
        values = _decode(_content(self.file(name, place)), array.dtype)
        if values.size != np.prod(array.chunks):
            raise _UnsoundError(f"holds {values.size} values, not {np.prod(array.chunks)}")
        values = values.reshape(array.chunks)
        if name not in self.cell_variables:
            return values
        _, _, rows = self.rows(place)  # type: ignore[arg-type]
        return values[0, 0, : rows.stop - rows.start]

    def without_record(self, place: Place, status: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
        """Find the failed cells of a block that no record tells of."""
        unexplained = np.equal(status, FAILED)
        for rows in self._explained.get(place, ()):
            unexplained[rows] = False
        return unexplained

    @cached_property
    def _explained(self) -> dict[Place, list[slice]]:
        explained: dict[Place, list[slice]] = {}
        for entry in _scan(self.store.errors_folder):
            part = _part_of(entry.name, ".json")
            with suppress(_UnsoundError):
                _read_object(self.store.errors_folder / entry.name)
                for place, rows in self.places_of(part) if part else ():
                    explained.setdefault(place, []).append(rows)
        return explained


class _Check:
    """One pass over the arrays and the parts; ``status`` first, since it is written last."""

    def __init__(self, view: _View) -> None:
        self._view = view
        grid = view.sweep.grid
        self.status = np.zeros((len(grid.alpha), len(grid.N), len(grid.seed)), np.int8)
        self._begun: set[Place] = set()  # blocks that have a chunk of any variable
        self._stated: set[Place] = set()  # blocks that have a chunk of status

    def run(self, watch: Callable[[int, int], object]) -> Iterator[Finding]:
        view = self._view
        names = [*reversed(view.cell_variables), *view.fixed]
        for number, name in enumerate(names):
            watch(number, len(names))
            present: set[tuple[int, ...]] = set()
            yield from self._files(name, present)
            if name in view.fixed:
                yield from self._fixed(name)
                continue
            places = {place[:3] for place in present}
            self._begun |= places  # type: ignore[arg-type]
            if name == "status":
                self._stated = set(places)  # type: ignore[arg-type]
            for place in view.places():
                yield from self._chunk(name, place, is_there=place in places)
        watch(len(names), len(names))
        waiting: set[Place] = set()
        yield from self._parts(waiting)
        yield from self._unstated(waiting)
        yield from self._records()

    def _files(self, name: str, present: set[tuple[int, ...]]) -> Iterator[Finding]:
        """List an array's folder; chunks of the grid go to `present`."""
        view, array = self._view, self._view.arrays[name]
        counts = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
        is_default = array.metadata.encode_chunk_key((0,)).startswith("c")
        snapshot = []
        for entry in _scan(view.path / name):
            file = view.path / name / entry.name
            match = _CHUNK.fullmatch(entry.name)
            if match is None:
                if entry.name != "zarr.json":
                    yield _stray(file)
            elif bool(match[1]) != is_default:
                snapshot.append(entry.stat().st_size)
            else:
                place = tuple(map(int, match[2].split(".")))
                inside = (0 <= i < n for i, n in zip(place, counts, strict=False))
                if len(place) == len(counts) and all(inside):
                    present.add(place)
                else:
                    yield Finding(
                        "orphan", "leftover", file, "a chunk outside the grid", "Repair removes it"
                    )
        if snapshot:
            yield Finding(
                "snapshot",
                "note",
                view.path / name,
                f"{len(snapshot)} chunks, {sum(snapshot):,} bytes, mostly links, kept for readers "
                "that opened the grid before it was widened",
                "Repair removes them: do so when no such reader is left",
            )

    def _chunk(self, name: str, place: Place, *, is_there: bool) -> Iterator[Finding]:
        view = self._view
        file, done = view.file(name, place), self._of(place) == DONE
        todo = "Repair marks all cells of the block missing"
        if not is_there:
            if done.any():
                what = "the chunk is lost, though cells of it are done"
                yield Finding("chunk", "damage", file, what, todo, view.cells(place))
            return
        try:
            values = view.read(name, place)
        except _UnsoundError as error:
            yield Finding("chunk", "damage", file, str(error), todo, view.cells(place))
            return
        if name == "status":
            self.status[view.rows(place)] = values
            wrong = _not_a_status(values)
            what, todo = "a status that does not exist", "Repair marks these cells missing"
            if (unexplained := view.without_record(place, values)).any():
                yield Finding(
                    "failure",
                    "damage",
                    file,
                    "failed cells without a record of why",
                    "Repair marks them missing, so that they are tried again",
                    view.cells(place, unexplained),
                )
        else:
            wrong = done & ~_is_whole(name, values, len(view.codes))
            what, todo = "done cells without a value here", "Repair marks these cells missing"
        if wrong.any():
            yield Finding("cell", "damage", file, what, todo, view.cells(place, wrong))

    def _fixed(self, name: str) -> Iterator[Finding]:
        view, wanted = self._view, self._view.fixed[name]
        place = (0,) * wanted.ndim
        try:
            if np.array_equal(view.read(name, place), wanted):
                return
            what = "values that are not those of the sweep"
        except _UnsoundError as error:
            what = str(error)
        todo = "Repair writes it again, from the sweep"
        yield Finding("coordinate", "damage", view.file(name, place), what, todo)

    def _parts(self, waiting: set[Place]) -> Iterator[Finding]:
        view, store = self._view, self._view.store
        dtype = cell_dtype(view.sweep.recipe)
        for entry in _scan(store.parts_folder):
            file = store.parts_folder / entry.name
            part = _part_of(entry.name, ".npz")
            if part is None:
                yield _stray(file)
            elif (place := view.place_of(part)) is None:
                what = "a part that this sweep has no place for"
                yield Finding("part", "leftover", file, what, "Repair removes it")
            elif store.load(part, dtype) is None:
                if not file.exists():
                    continue  # committed meanwhile
                what = "a part that is damaged, or of another sweep"
                todo = "Repair removes it, and the next run computes it again"
                yield Finding("part", "damage", file, what, todo, part)
            elif (_states(view, part, self._of) == DONE).all():
                what = "a part that is committed already"
                yield Finding("part", "leftover", file, what, "Repair removes it")
            else:
                waiting.add(place)

    def _of(self, place: Place) -> npt.NDArray[np.int8]:
        return self.status[self._view.rows(place)]

    def _unstated(self, waiting: set[Place]) -> Iterator[Finding]:
        """Blocks with numbers that nothing is said of."""
        for place in sorted(self._begun - self._stated - waiting):
            file = self._view.file("status", place)
            if file.exists():
                continue  # committed meanwhile
            yield Finding(
                "unfinished",
                "leftover",
                file,
                "numbers without their status: of a commit that was killed, or the status is lost",
                "They read as missing, and the next run computes them again",
                self._view.cells(place),
            )

    def _records(self) -> Iterator[Finding]:
        view, store = self._view, self._view.store
        for entry in _scan(store.errors_folder):
            file, part = store.errors_folder / entry.name, _part_of(entry.name, ".json")
            if part is None:
                yield _stray(file)
                continue
            try:
                _read_object(file)
            except _UnsoundError as error:
                todo = "Repair removes it, and has its cells tried again"
                yield Finding("record", "damage", file, str(error), todo, part)
                continue
            if FAILED not in _states(view, part, self._of):
                what = "a record of failure for cells that have not failed"
                yield Finding("record", "leftover", file, what, "Repair removes it", part)


class _Repair:
    """What is done about each kind of finding, by the one who holds the lock."""

    def __init__(self, writer: Writer, view: _View) -> None:
        self._writer, self._store, self._view = writer, writer.store, view
        self._arrays = layout.open_arrays(view.path, "r+")

    def mend(self, finding: Finding) -> str:
        """Do what is to be done, and say it; "" if there is nothing."""
        self._writer._check_lease()
        act: Callable[[Finding], str] | None = getattr(self, f"_{finding.kind}", None)
        return act(finding) if act else ""

    def _chunk(self, finding: Finding) -> str:
        name, place = self._named(finding.where)
        if name is None or self._is_sound(name, place):
            return ""
        self._forget(place, np.ones(len(self._status(place)), np.bool_))
        if name != "status":
            # Its content cannot be read, so it must not be merged with anything.
            finding.where.unlink(missing_ok=True)
            array = self._arrays[name]
            self._write(name, place, array.fill_value)
        return f"marked missing: {self._view.cells(place)}"

    _unfinished = _chunk

    def _cell(self, finding: Finding) -> str:
        name, place = self._named(finding.where)
        if name is None or not (self._is_sound(name, place) and self._is_sound("status", place)):
            return ""  # its chunk is a finding of its own
        status, values = self._status(place), self._view.read(name, place)
        if name == "status":
            wrong = _not_a_status(values)
        else:
            wrong = (status == DONE) & ~_is_whole(name, values, len(self._view.codes))
        return self._forget(place, wrong)

    def _failure(self, finding: Finding) -> str:
        _, place = self._named(finding.where)
        return self._forget(place, self._view.without_record(place, self._status(place)))

    def _record(self, finding: Finding) -> str:
        part = finding.cells
        if part is None:
            return ""
        try:
            _read_object(finding.where)
            if FAILED in _states(self._view, part, self._status):
                return ""
        except _UnsoundError:
            pass
        finding.where.unlink(missing_ok=True)
        return "removed"

    def _coordinate(self, finding: Finding) -> str:
        name = finding.where.parent.name
        if name not in self._view.fixed:
            return ""
        finding.where.unlink(missing_ok=True)
        self._arrays[name][...] = self._view.fixed[name]
        sync([finding.where, finding.where.parent])
        return "written again, from the sweep"

    def _metadata(self, finding: Finding) -> str:
        wanted = _own_metadata(self._view.root)[finding.where.parent.name]
        finding.where.parent.mkdir(exist_ok=True)
        replace_text(finding.where, json.dumps(wanted, indent=2))
        return "written again, from the root's"

    def _part(self, finding: Finding) -> str:
        part = _part_of(finding.where.name, ".npz")
        if part is None:
            return ""
        if self._view.place_of(part) is not None:
            is_whole = self._store.load(part, cell_dtype(self._view.sweep.recipe)) is not None
            if is_whole and not (_states(self._view, part, self._status) == DONE).all():
                return ""
        self._writer.discard(part)
        return "removed"

    def _orphan(self, finding: Finding) -> str:
        finding.where.unlink(missing_ok=True)
        return "removed"

    def _temporary(self, finding: Finding) -> str:
        _remove(finding.where)
        return "removed"

    def _snapshot(self, finding: Finding) -> str:
        array = self._arrays[finding.where.name]
        is_default = array.metadata.encode_chunk_key((0,)).startswith("c")
        count = 0
        for entry in _scan(finding.where):
            match = _CHUNK.fullmatch(entry.name)
            if match and bool(match[1]) != is_default:
                (finding.where / entry.name).unlink(missing_ok=True)
                count += 1
        return f"{count} chunks of an older grid removed"

    def _events(self, finding: Finding) -> str:
        lines = finding.where.read_bytes().splitlines(keepends=True)
        good = [line for line in lines if _is_json(line)]
        replace(finding.where, lambda file: file.writelines(good))
        return f"{len(lines) - len(good)} lines removed"

    def _progress(self, finding: Finding) -> str:
        finding.where.unlink(missing_ok=True)
        return "removed"

    def _named(self, file: Path) -> tuple[str | None, Place]:
        """Variable and place of a chunk's file; None if the grid has no such file now."""
        name, match = file.parent.name, _CHUNK.fullmatch(file.name)
        i, j, k, *_ = (int(key) for key in match[2].split(".")) if match else (-1, -1, -1)
        known = name in self._view.cell_variables and self._view.has((i, j, k))
        return (name if known and self._view.file(name, (i, j, k)) == file else None), (i, j, k)

    def _is_sound(self, name: str, place: Place) -> bool:
        try:
            self._view.read(name, place)
        except _UnsoundError:
            return False
        return True

    def _status(self, place: Place) -> npt.NDArray[np.int8]:
        """Status of a block; all missing if it cannot be read."""
        try:
            return self._view.read("status", place)
        except _UnsoundError:
            _, _, rows = self._view.rows(place)
            return np.full(rows.stop - rows.start, MISSING, np.int8)

    def _forget(self, place: Place, rows: npt.NDArray[np.bool_]) -> str:
        if not rows.any():
            return ""
        status = np.where(rows, MISSING, self._status(place)).astype(np.int8)
        if not self._is_sound("status", place):
            self._view.file("status", place).unlink(missing_ok=True)
        self._write("status", place, status)
        return f"marked missing: {self._view.cells(place, rows)}"

    def _write(self, name: str, place: Place, values: Any) -> None:
        self._arrays[name][self._view.rows(place)] = values
        file = self._view.file(name, place)
        sync([file, file.parent])


def _is_whole(name: str, values: npt.NDArray[Any], codes: int) -> npt.NDArray[np.bool_]:
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


def _not_a_status(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return ~np.isin(values, range(len(STATUS)))


def _states(
    view: _View, part: Part, status: Callable[[Place], npt.NDArray[np.int8]]
) -> npt.NDArray[np.int8]:
    """Status of the cells of a part that are in the grid, given that of blocks."""
    found = [status(place)[rows] for place, rows in view.places_of(part)]
    return np.concatenate(found) if found else np.zeros(0, np.int8)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise _UnsoundError("the file is lost") from None
    except OSError as error:
        if error.errno != errno.EIO:
            raise  # no permission, a stale handle, ...: that is not the file's fault
        raise _UnsoundError("the disk cannot read it") from None


def _decode(content: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    body, checksum = content[:-4], content[-4:]
    if len(checksum) < 4 or google_crc32c.value(body) != int.from_bytes(checksum, "little"):
        raise _UnsoundError(f"its {len(content)} bytes do not match their checksum")
    try:
        return np.frombuffer(_DECOMPRESS(body), dtype.newbyteorder("<"))
    except (RuntimeError, ValueError) as error:
        raise _UnsoundError(f"it cannot be decompressed: {error}") from None


def _read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        found = json.loads(_content(file))
    except ValueError:  # of the syntax, or of the UTF-8
        raise _UnsoundError("it is no JSON") from None
    if not isinstance(found, dict):
        raise _UnsoundError("it is no JSON object")
    return found


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _own_metadata(root: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = root["consolidated_metadata"]["metadata"]
    return found


@lru_cache(maxsize=2)
def _fresh(sweep: Sweep) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Metadata of a new store of this sweep, and its values that are not computed by runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fresh.zarr"
        layout.build(path, sweep)
        cells = cell_variables(sweep.recipe)
        arrays = layout.open_arrays(path).items()
        values = {name: np.asarray(array[...]) for name, array in arrays if name not in cells}
        return _own_metadata(layout.read_root(path)), values


def _sound_sweep(root: Mapping[str, Any]) -> Sweep:
    """Return the sweep of a root document, whose arrays are as that sweep needs them."""
    try:
        sweep = Sweep.from_document(root["attributes"]["sweep"])
        per_chunk, found = int(root["attributes"]["seeds_per_chunk"]), _own_metadata(root)
        codes = root["attributes"]["code_versions"]
        if per_chunk < 1 or not (isinstance(codes, list) and codes):
            raise _UnsoundError("its attributes seeds_per_chunk or code_versions are wrong")
        wanted, _ = _fresh(sweep)
        if set(found) != set(wanted):
            names = ", ".join(sorted(set(found) ^ set(wanted)))
            raise _UnsoundError(f"it names other arrays than its sweep has: {names}")
        for name, meta in found.items():
            if _essence(meta) != _essence(wanted[name]):
                raise _UnsoundError(f"what it says of {name} does not fit its sweep")
            if _chunk_shape(meta) != [
                per_chunk if dim == "seed" and name != "seed" else length
                for dim, length in zip(
                    meta["dimension_names"], _chunk_shape(wanted[name]), strict=True
                )
            ]:
                raise _UnsoundError(f"the chunks of {name} are not those of its attributes")
    except SweepError as error:
        raise _UnsoundError(f"its sweep is not valid: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _UnsoundError("it does not describe a sweep") from None
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


def _copy(store: Store) -> Path:
    """Where the writer keeps a copy of the root metadata."""
    return store.control / "zarr.json"


def _bad_root(store: Store, error: _UnsoundError) -> Finding:
    try:
        _sound_sweep(_read_object(_copy(store)))
        todo = f"Repair restores it from {_copy(store)}"
    except _UnsoundError:
        todo = _lost_root(store)
    what = f"{error}; nothing else can be judged without it"
    return Finding("root", "damage", store.path / "zarr.json", what, todo)


def _lost_root(store: Store) -> str:
    return (
        f"There is no sound copy of it at {_copy(store)}. Chunks are not touched: put zarr.json "
        "back from a backup, or run the sweep into another --store"
    )


def _restore_root(writer: Writer, fault: str) -> None:
    store = writer.store
    path = store.path / "zarr.json"
    try:
        copy = _read_object(_copy(store))
        _sound_sweep(copy)
    except _UnsoundError:
        raise StoreError(
            f"{path} must hold the metadata of a sweep; {fault}. {_lost_root(store)}."
        ) from None
    writer._check_lease()
    replace_text(path, json.dumps(copy, indent=2))


def _copy_of_root(store: Store, view: _View) -> Iterator[Finding]:
    file = _copy(store)
    try:
        copy = _read_object(file)
        wrong = differences(_sound_sweep(copy), view.sweep)
    except _UnsoundError as error:
        todo = "The next run writes it again"
        yield Finding("copy", "note", file, f"no copy of the root metadata: {error}", todo)
        return
    if wrong:
        # They are renewed together, and a change of shape, which may be torn, changes no recipe.
        what = f"it is not what its copy {file} says: {'; '.join(wrong)}"
        yield Finding("root", "damage", view.path / "zarr.json", what, "Repair restores the copy")


def _metadata(view: _View) -> Iterator[Finding]:
    for name, wanted in _own_metadata(view.root).items():
        file = view.path / name / "zarr.json"
        try:
            if _read_object(file) == wanted:
                continue
            what = "it is not what the root's zarr.json says: damaged, or of a killed widening"
        except _UnsoundError as error:
            what = str(error)
        todo = "Readers do not need it; repair writes it again, from the root's"
        yield Finding("metadata", "damage", file, what, todo)
    known = {"zarr.json", *view.arrays}
    for entry in _scan(view.path):
        if entry.name not in known:
            yield _stray(view.path / entry.name)


def _beside(store: Store) -> Iterator[Finding]:
    for file in sorted(store.path.parent.glob(f".{store.path.name}.*")):
        if _TEMPORARY.fullmatch(file.name):
            yield _stray(file)


def _control_files(store: Store) -> Iterator[Finding]:
    control = store.control
    for entry in _scan(control):
        if _TEMPORARY.fullmatch(entry.name):
            yield _stray(control / entry.name)
    events, progress = control / "events.jsonl", control / "progress.json"
    if events.exists():
        with events.open("rb") as lines:
            bad = [number for number, line in enumerate(lines, 1) if not _is_json(line)]
        if bad:
            what = f"{len(bad)} lines that are no JSON, the first is line {bad[0]}"
            yield Finding("events", "damage", events, what, "Repair removes these lines")
    if progress.exists():
        try:
            _read_object(progress)
        except _UnsoundError as error:
            yield Finding("progress", "leftover", progress, str(error), "Repair removes it")
    if _names_nobody(store):
        what = "a lock that names nobody"
        todo = "The next driver takes it over when it is a minute old"
        yield Finding("lock", "leftover", control / "lock", what, todo)


def _names_nobody(store: Store) -> bool:
    """Whether the lock is garbage. It is also empty for an instant while it is being taken."""
    lock = store.control / "lock"
    for wait in (0, 0.1):
        time.sleep(wait)
        if store._lease().owner is not None or not lock.exists():
            return False
    return True


def _stray(file: Path) -> Finding:
    if _TEMPORARY.fullmatch(file.name):
        what = "a temporary file of a writer that was killed, or is at work"
        return Finding("temporary", "leftover", file, what, "Repair removes it")
    return Finding("unknown", "note", file, "not of this program", "It is left alone")


def _part_of(name: str, suffix: str) -> Part | None:
    with suppress(ValueError):
        part = Part.from_name(name.removesuffix(suffix))
        return part if name == part.name + suffix else None
    return None


def _remove(file: Path) -> None:
    """Remove a file, or a folder with what is in it."""
    if file.is_dir() and not file.is_symlink():
        for inner in file.iterdir():
            _remove(inner)
        file.rmdir()
    else:
        file.unlink(missing_ok=True)


def _scan(folder: Path) -> Iterable[os.DirEntry[str]]:
    """List a folder, unsorted, without a stat of each file; nothing if there is none."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:
        return


def _size(store: Store) -> tuple[int, int]:
    files = size = 0
    for top in (store.path, store.control):
        for folder, _, names in os.walk(top):
            for name in names:
                with suppress(FileNotFoundError):
                    size += (Path(folder) / name).stat().st_size
                    files += 1
    return files, size
