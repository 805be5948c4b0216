"""Is everything in a store sound? `verify` only reads, and needs no lock."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from alphasweep.pipeline import layout
from alphasweep.pipeline.dataset import DONE, FAILED, STATUS
from alphasweep.pipeline.grid import Place, wanted
from alphasweep.pipeline.inbox import DamagedError, ForeignError
from alphasweep.pipeline.integrity import (
    CHUNK,
    UnsoundError,
    View,
    copy_of_root,
    is_json,
    is_no_status,
    is_whole,
    own_metadata,
    part_of,
    read_object,
    scan,
    sound_sweep,
    states,
)
from alphasweep.pipeline.part import Part
from alphasweep.pipeline.store import Store, StoreError
from alphasweep.pipeline.sweeps import differences

Severity = Literal["damage", "leftover", "note"]

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}|.+\.partial")  # by `files.replace`, layout, and Zarr


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
        Number of wanted cells by status; empty if the metadata cannot be read.
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
        If there is nothing at the store's path, or what only a newer version can judge.
    OSError
        If a file cannot be read for reasons that are not its content, such as its permissions.
    """
    if not store.path.is_dir():
        raise StoreError(f"store {store.path} must be a sweep's Zarr store; there is no folder.")
    driver, files, size = store.holder(), *_size(store)
    findings = list(_beside(store))
    if store.has_own_folder():
        findings += _control_files(store)
    else:
        what = "the folder beside it is not its own, but another store's: it is not read"
        findings.append(
            Finding("folder", "note", store.control, what, "The next run puts it aside")
        )
    cells: dict[str, int] = {}
    try:
        view = View(store)
    except UnsoundError as error:
        findings.append(_bad_root(store, error))
    else:
        if store.has_own_folder():
            findings += compare_with_copy(store, view)
        findings += _metadata(view)
        check = _Check(view)
        findings += check.run(watch)
        mine = wanted(view.sweep.grid)
        cells = {name: int((mine & (check.status == k)).sum()) for k, name in enumerate(STATUS)}
    return Report(store.path, tuple(findings), files, size, cells, driver)


class _Check:
    """One pass over the arrays and the parts; ``status`` first, since it is written last."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.status = np.zeros(view.geometry.shape, np.int8)
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
            for place in view.geometry.places():
                yield from self._chunk(name, place, is_there=place in places)
        watch(len(names), len(names))
        waiting: set[Place] = set()
        is_own = view.store.has_own_folder()
        if is_own:
            yield from self._parts(waiting)
        yield from self._unstated(waiting)
        if is_own:
            yield from self._records()

    def _files(self, name: str, present: set[tuple[int, ...]]) -> Iterator[Finding]:
        """List an array's folder; chunks of the grid go to `present`."""
        view, array = self._view, self._view.arrays[name]
        counts = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
        is_default = array.metadata.encode_chunk_key((0,)).startswith("c")
        snapshot = []
        for entry in scan(view.path / name):
            file = view.path / name / entry.name
            match = CHUNK.fullmatch(entry.name)
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
                "that opened the grid before it grew",
                "Repair removes them: do so when no such reader is left",
            )

    def _chunk(self, name: str, place: Place, *, is_there: bool) -> Iterator[Finding]:
        view = self._view
        file, done = view.file(name, place), self._of(place) == DONE
        todo = "Repair marks all cells of the block missing"
        if not is_there:
            if done.any():
                what = "the chunk is lost, though cells of it are done"
                yield Finding("chunk", "damage", file, what, todo, view.geometry.cells(place))
            return
        try:
            values = view.read(name, place)
        except UnsoundError as error:
            yield Finding("chunk", "damage", file, str(error), todo, view.geometry.cells(place))
            return
        if name == "status":
            self.status[view.geometry.rows(place)] = values
            wrong = is_no_status(values)
            what, todo = "a status that does not exist", "Repair marks these cells missing"
            if (unexplained := view.without_record(place, values)).any():
                yield Finding(
                    "failure",
                    "damage",
                    file,
                    "failed cells without a record of why",
                    "Repair marks them missing, so that they are tried again",
                    view.geometry.cells(place, unexplained),
                )
        else:
            wrong = done & ~is_whole(name, values, len(view.codes))
            what, todo = "done cells without a value here", "Repair marks these cells missing"
        if wrong.any():
            yield Finding("cell", "damage", file, what, todo, view.geometry.cells(place, wrong))

    def _fixed(self, name: str) -> Iterator[Finding]:
        view, values = self._view, self._view.fixed[name]
        place = (0,) * values.ndim
        try:
            if np.array_equal(view.read(name, place), values):
                return
            what = "values that are not those of the sweep"
        except UnsoundError as error:
            what = str(error)
        todo = "Repair writes it again, from the sweep"
        yield Finding("coordinate", "damage", view.file(name, place), what, todo)

    def _parts(self, waiting: set[Place]) -> Iterator[Finding]:
        view, store = self._view, self._view.store
        for entry in scan(store.parts_folder):
            file = store.parts_folder / entry.name
            part = part_of(entry.name, ".npz")
            if part is None:
                yield _stray(file)
                continue
            whole, useless = view.geometry.whole(part), ""
            try:
                if not view.has_waiting(part):
                    continue  # committed meanwhile
            except DamagedError as error:
                todo = "Repair removes it, and the next run computes it again"
                yield Finding(
                    "part", "damage", file, f"a part that is damaged: {error}", todo, part
                )
                continue
            except ForeignError as error:
                useless = f"a part that is none of this store's: {error}"
            if whole is None:
                useless = "a part that this sweep has no place for"
            elif not useless and (states(view, part, self._of) == DONE).all():
                useless = "a part that is committed already"
            if useless:
                yield Finding("part", "leftover", file, useless, "Repair removes it")
            elif whole is not None:
                waiting.add(view.geometry.place(whole[0]))

    def _of(self, place: Place) -> npt.NDArray[np.int8]:
        return self.status[self._view.geometry.rows(place)]

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
                self._view.geometry.cells(place),
            )

    def _records(self) -> Iterator[Finding]:
        view, store = self._view, self._view.store
        for entry in scan(store.errors_folder):
            file, part = store.errors_folder / entry.name, part_of(entry.name, ".json")
            if part is None:
                yield _stray(file)
                continue
            try:
                read_object(file)
            except UnsoundError as error:
                todo = "Repair removes it, and has its cells tried again"
                yield Finding("record", "damage", file, str(error), todo, part)
                continue
            if FAILED not in states(view, part, self._of):
                what = "a record of failure for cells that have not failed"
                yield Finding("record", "leftover", file, what, "Repair removes it", part)


def _bad_root(store: Store, error: UnsoundError) -> Finding:
    try:
        sound_sweep(read_object(copy_of_root(store)))
        todo = f"Repair restores it from {copy_of_root(store)}"
    except UnsoundError:
        todo = lost_root(store)
    what = f"{error}; nothing else can be judged without it"
    return Finding("root", "damage", store.path / "zarr.json", what, todo)


def lost_root(store: Store) -> str:
    """Say what to do where the root metadata and their copy are both lost."""
    return (
        f"There is no sound copy of it at {copy_of_root(store)}. Chunks are not touched: put "
        "zarr.json back from a backup, or run the sweep into another --store"
    )


def compare_with_copy(store: Store, view: View) -> Iterator[Finding]:
    """Compare the root metadata with their copy: damage may leave a document that looks sound."""
    file = copy_of_root(store)
    try:
        copy = read_object(file)
        wrong = differences(sound_sweep(copy), view.sweep)
    except UnsoundError as error:
        todo = "The next run writes it again"
        yield Finding("copy", "note", file, f"no copy of the root metadata: {error}", todo)
        return
    if wrong and not layout.is_under_way(view.root, copy):
        # They are renewed together; else a change of shape, which may be torn, changes no recipe.
        what = f"it is not what its copy {file} says: {'; '.join(wrong)}"
        yield Finding("root", "damage", view.path / "zarr.json", what, "Repair restores the copy")


def _metadata(view: View) -> Iterator[Finding]:
    for name, meta in own_metadata(view.root).items():
        file = view.path / name / "zarr.json"
        try:
            if read_object(file) == meta:
                continue
            what = "it is not what the root's zarr.json says: damaged, or of a killed widening"
        except UnsoundError as error:
            what = str(error)
        todo = "Readers do not need it; repair writes it again, from the root's"
        yield Finding("metadata", "damage", file, what, todo)
    known = {"zarr.json", *view.arrays}
    for entry in scan(view.path):
        if entry.name not in known:
            yield _stray(view.path / entry.name)


def _beside(store: Store) -> Iterator[Finding]:
    for file in sorted(store.path.parent.glob(f".{store.path.name}.*")):
        if _TEMPORARY.fullmatch(file.name):
            yield _stray(file)


def _control_files(store: Store) -> Iterator[Finding]:
    control = store.control
    for entry in scan(control):
        if _TEMPORARY.fullmatch(entry.name):
            yield _stray(control / entry.name)
    events, progress = control / "events.jsonl", control / "progress.json"
    if events.exists():
        with events.open("rb") as lines:
            bad = [number for number, line in enumerate(lines, 1) if not is_json(line)]
        if bad:
            what = f"{len(bad)} lines that are no JSON, the first is line {bad[0]}"
            yield Finding("events", "damage", events, what, "Repair removes these lines")
    if progress.exists():
        try:
            read_object(progress)
        except UnsoundError as error:
            todo = "Repair, or the next driver, writes it again"
            yield Finding("progress", "leftover", progress, str(error), todo)
    if _names_nobody(store):
        what = "a lock that names nobody"
        todo = "The next driver takes it over when it is a minute old"
        yield Finding("lock", "leftover", control / "lock", what, todo)


def _names_nobody(store: Store) -> bool:
    """Whether the lock is garbage. It is also empty for an instant while it is being taken."""
    lock = store.control / "lock"
    for wait in (0, 0.1):
        time.sleep(wait)
        if store._lease().named or not lock.exists():
            return False
    return True


def _stray(file: Path) -> Finding:
    if _TEMPORARY.fullmatch(file.name):
        what = "a temporary file of a writer that was killed, or is at work"
        return Finding("temporary", "leftover", file, what, "Repair removes it")
    return Finding("unknown", "note", file, "not of this program", "It is left alone")


def _size(store: Store) -> tuple[int, int]:
    files = size = 0
    for top in (store.path, store.control):
        for folder, _, names in os.walk(top):
            for name in names:
                with suppress(FileNotFoundError):
                    size += (Path(folder) / name).stat().st_size
                    files += 1
    return files, size
