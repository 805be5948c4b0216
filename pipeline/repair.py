"""What is done about what `verify` found.

`repair` forgets what is not sound: its cells become missing, and the next run computes them again.
Nothing is ever guessed from a damaged file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alphasweep.pipeline import layout
from alphasweep.pipeline.dataset import DONE, FAILED, MISSING
from alphasweep.pipeline.files import remove, replace, replace_text, sync
from alphasweep.pipeline.grid import Place
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
from alphasweep.pipeline.store import StoreError, Writer
from alphasweep.pipeline.verify import Finding, Report, compare_with_copy, lost_root, verify


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
        view = View(store)
        faults = [f.what for f in compare_with_copy(store, view) if f.kind == "root"]
    except UnsoundError as error:
        faults = [str(error)]
    if faults:
        _restore_root(writer, faults[0])
        again = repair(writer, verify(store))  # what could not be judged without the root
        return (f"{store.path / 'zarr.json'}: restored from its copy", *again)
    work = _Repair(writer, view)
    return tuple(
        f"{finding.where}: {done}" for finding in report.findings if (done := work.mend(finding))
    )


class _Repair:
    """What is done about each kind of finding, by the one who holds the lock."""

    def __init__(self, writer: Writer, view: View) -> None:
        self._writer, self._view = writer, view
        self._arrays = layout.open_arrays(view.path, "r+")

    def mend(self, finding: Finding) -> str:
        """Do what is to be done, and say it; "" if there is nothing."""
        self._writer.check()
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
        return f"marked missing: {self._view.geometry.cells(place)}"

    _unfinished = _chunk

    def _cell(self, finding: Finding) -> str:
        name, place = self._named(finding.where)
        if name is None or not (self._is_sound(name, place) and self._is_sound("status", place)):
            return ""  # its chunk is a finding of its own
        status, values = self._status(place), self._view.read(name, place)
        if name == "status":
            wrong = is_no_status(values)
        else:
            wrong = (status == DONE) & ~is_whole(name, values, len(self._view.codes))
        return self._forget(place, wrong)

    def _failure(self, finding: Finding) -> str:
        _, place = self._named(finding.where)
        return self._forget(place, self._view.without_record(place, self._status(place)))

    def _record(self, finding: Finding) -> str:
        part = finding.cells
        if part is None:
            return ""
        try:
            read_object(finding.where)
            if FAILED in states(self._view, part, self._status):
                return ""
        except UnsoundError:
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
        wanted = own_metadata(self._view.root)[finding.where.parent.name]
        finding.where.parent.mkdir(exist_ok=True)
        replace_text(finding.where, json.dumps(wanted, indent=2))
        return "written again, from the root's"

    def _part(self, finding: Finding) -> str:
        part = part_of(finding.where.name, ".npz")
        if part is None:
            return ""
        with suppress(DamagedError, ForeignError):
            is_of_use = self._view.has_waiting(part) and self._view.geometry.whole(part)
            if is_of_use and not (states(self._view, part, self._status) == DONE).all():
                return ""
        self._writer.discard(part)
        return "removed"

    def _orphan(self, finding: Finding) -> str:
        finding.where.unlink(missing_ok=True)
        return "removed"

    def _temporary(self, finding: Finding) -> str:
        return "removed" if remove(finding.where) else "left there: it cannot be removed now"

    def _snapshot(self, finding: Finding) -> str:
        array = self._arrays[finding.where.name]
        is_default = array.metadata.encode_chunk_key((0,)).startswith("c")
        count = 0
        for entry in scan(finding.where):
            match = CHUNK.fullmatch(entry.name)
            if match and bool(match[1]) != is_default:
                (finding.where / entry.name).unlink(missing_ok=True)
                count += 1
        return f"{count} chunks of an older grid removed"

    def _events(self, finding: Finding) -> str:
        lines = finding.where.read_bytes().splitlines(keepends=True)
        good = [line for line in lines if is_json(line)]
        replace(finding.where, lambda file: file.writelines(good))
        return f"{len(lines) - len(good)} lines removed"

    def _named(self, file: Path) -> tuple[str | None, Place]:
        """Variable and place of a chunk's file; None if the grid has no such file now."""
        name, match = file.parent.name, CHUNK.fullmatch(file.name)
        i, j, k, *_ = (int(key) for key in match[2].split(".")) if match else (-1, -1, -1)
        known = name in self._view.cell_variables and self._view.geometry.has((i, j, k))
        return (name if known and self._view.file(name, (i, j, k)) == file else None), (i, j, k)

    def _is_sound(self, name: str, place: Place) -> bool:
        try:
            self._view.read(name, place)
        except UnsoundError:
            return False
        return True

    def _status(self, place: Place) -> npt.NDArray[np.int8]:
        """Status of a block; all missing if it cannot be read."""
        try:
            return self._view.read("status", place)
        except UnsoundError:
            _, _, rows = self._view.geometry.rows(place)
            return np.full(rows.stop - rows.start, MISSING, np.int8)

    def _forget(self, place: Place, rows: npt.NDArray[np.bool_]) -> str:
        if not rows.any():
            return ""
        status = np.where(rows, MISSING, self._status(place)).astype(np.int8)
        if not self._is_sound("status", place):
            self._view.file("status", place).unlink(missing_ok=True)
        self._write("status", place, status)
        return f"marked missing: {self._view.geometry.cells(place, rows)}"

    def _write(self, name: str, place: Place, values: Any) -> None:
        self._arrays[name][self._view.geometry.rows(place)] = values
        file = self._view.file(name, place)
        sync([file, file.parent])


def _restore_root(writer: Writer, fault: str) -> None:
    store = writer.store
    path = store.path / "zarr.json"
    try:
        copy = read_object(copy_of_root(store))
        sound_sweep(copy)
    except UnsoundError:
        raise StoreError(
            f"{path} must hold the metadata of a sweep; {fault}. {lost_root(store)}."
        ) from None
    writer.check()
    replace_text(path, json.dumps(copy, indent=2))
