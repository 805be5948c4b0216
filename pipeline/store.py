"""The store of a sweep: many readers, workers that hand in parts, and one writer.

    results.zarr/        Zarr v3, consolidated: the dataset, and nothing else (`pipeline.layout`)
    results.zarr.run/    beside it: lock, parts/, errors/, progress.json, events.jsonl, a copy of
                         the root zarr.json, identity.json (whose folder it is), and what a cluster
                         needs

A worker hands in a part as one file, by an atomic rename. The writer, who holds the lock, commits a
block (one alpha, one N, the seeds of one chunk): it merges the block's parts over what is there and
writes ``status`` last, so a cell is done only when everything of it is on disk. Every step can be
killed and repeated: parts are deterministic, merging twice changes nothing, and parts are removed
only after the committed block was read back.

A store has a name for life, the attribute ``store_id``. A folder beside it that is another's (a
store was removed and made anew, moved, or copied) is not read, and the next driver puts it aside.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import socket
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import xarray as xr

from alphasweep.kernels.methods import out_of_time
from alphasweep.pipeline import layout
from alphasweep.pipeline.dataset import DONE, FAILED, MISSING, cell_variables
from alphasweep.pipeline.files import patient, remove, replace_text, sync
from alphasweep.pipeline.grid import Block, Bools, Geometry, wanted
from alphasweep.pipeline.inbox import DamagedError, ForeignError, HandedIn, Inbox
from alphasweep.pipeline.inbox import hand_in as hand_in
from alphasweep.pipeline.lease import Lease, LeaseLostError
from alphasweep.pipeline.messages import SweepError
from alphasweep.pipeline.part import Part
from alphasweep.pipeline.provenance import code_version, machine, other_numbers
from alphasweep.pipeline.spec import Sweep, as_document
from alphasweep.pipeline.sweeps import differences, raises_t_max, union


class StoreError(RuntimeError):
    """The store cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Failure:
    """Why a part has no result."""

    part: Part
    error: str
    traceback: str
    host: str
    attempts: int

    @classmethod
    def of(cls, part: Part, error: BaseException, *, attempts: int) -> Failure:
        """Keep what an exception says; its first note tells where it was raised."""
        text = "".join(traceback.format_exception(error))
        host = getattr(error, "__notes__", ["unknown"])[0].removeprefix("on ")
        return cls(part, f"{type(error).__name__}: {error}", text, host, attempts)


class Store:
    """A sweep's store at a path, to read. Cheap to make; nothing is kept open between calls.

    Through whatever links it is named, it is the one at the place where they end, and so is what is
    beside it: a store has one lock.
    """

    def __init__(self, path: str | Path) -> None:
        self._named = str(path)
        self.path = layout.resolved(os.path.expanduser(path))  # noqa: PTH111, a user may have none
        self.control = layout.control_folder(self.path)
        self.parts_folder = self.control / "parts"
        self.errors_folder = self.control / "errors"

    def exists(self) -> bool:
        """Whether a sweep was created here.

        Raises
        ------
        StoreError
            If something else is at the path, or it is the name of a folder beside a store.
        """
        self._check_name()
        if not os.path.lexists(self.path):
            return False
        if not layout.read_root(self.path):
            raise StoreError(
                f"store {self.path} must be a sweep's Zarr store or not exist; something else is "
                "there, or its zarr.json is damaged: choose another --store, or restore it with "
                f"alphasweep verify --repair {self.path}."
            )
        return True

    def sweep(self) -> Sweep:
        """Read the sweep that the store holds."""
        try:
            return Sweep.from_document(self.attributes()["sweep"], f"store {self.path}")
        except SweepError as error:
            raise StoreError(str(error)) from None

    def attributes(self) -> dict[str, Any]:
        """Read the root attributes; nested ones as values, though they are text on the disk."""
        if not self.exists():
            raise StoreError(f"store {self.path} must be a sweep's Zarr store; there is none.")
        root = layout.read_root(self.path)
        if problem := layout.too_new(root):
            raise StoreError(f"store {self.path} must {problem}.")
        return layout.attributes_of(root)

    def status(self) -> npt.NDArray[np.int8]:
        """Status of every cell, (alpha, N, seed): 0 missing, 1 done, 2 failed."""
        return np.asarray(layout.open_arrays(self.path)["status"][...])

    def missing(self) -> int:
        """Count the cells that are wanted, and that no run has computed."""
        return int((wanted(self.sweep().grid) & (self.status() == MISSING)).sum())

    def geometry(self) -> Geometry:
        """Return where cells lie in the arrays."""
        return Geometry(self.sweep().grid, int(self.attributes()["seeds_per_chunk"]))

    def out_of_time(self) -> Bools:
        """Whether a cell is done, and a larger t_max would change it, (alpha, N, seed).

        Raises
        ------
        StoreError
            If the outcomes cannot be read.
        """
        sweep, arrays = self.sweep(), layout.open_arrays(self.path)
        descent, loss = sweep.descent, sweep.problem.loss
        end = float(sweep.recipe.times[-1])
        found = np.asarray(self.status() == DONE)
        for i in np.flatnonzero(found.any(axis=(1, 2))):  # one alpha at a time: a store is large
            with self._sound_or_told():
                outcome, steps = (np.asarray(arrays[name][int(i)]) for name in ("outcome", "steps"))
            settings = [descent.at(loss, sweep.grid.alpha[i], N) for N in sweep.grid.N]
            last = np.array([each.count(loss, end) for each in settings])[:, None, None]
            found[i] &= out_of_time(descent.method, outcome, steps, last=last).any(axis=2)
        return found

    def mean_seconds(self) -> npt.NDArray[np.float64]:
        """Mean seconds of a cell, (alpha, N), in the first chunk with any; NaN where none is."""
        array = layout.open_arrays(self.path)["seconds"]
        mean = np.full(array.shape[:2], np.nan)
        for i, j in np.ndindex(mean.shape):
            for first in range(0, array.shape[2], array.chunks[2]):
                seconds = np.asarray(array[i, j, first : first + array.chunks[2]])
                if np.isfinite(seconds).any():
                    mean[i, j] = np.nanmean(seconds)
                    break
        return mean

    def has_own_folder(self) -> bool:
        """Whether the folder beside the store is its own; another's is not read."""
        return layout.has_own_folder(self.path)

    def inbox(self) -> Inbox:
        """Return where workers hand in parts of this store, and what these have to be."""
        store_id = self.attributes().get("store_id", "")
        return Inbox(self.parts_folder, store_id, self.sweep().recipe)

    def parts(self) -> list[Part]:
        """List parts that were handed in and are not yet committed, in order of their names."""
        if not self.has_own_folder():
            return []
        inbox = self.inbox()
        return [part for part in self._named_parts() if inbox.is_waiting(part)]

    def failures(self) -> list[dict[str, Any]]:
        """Read the records of failed parts, as `Writer.commit` wrote them."""
        found: list[dict[str, Any]] = []
        if not self.has_own_folder():
            return found
        for file in sorted(self.errors_folder.glob("*.json")):
            with suppress(ValueError, FileNotFoundError):  # garbage is for `verify` to tell of
                found.append(json.loads(file.read_text()))
        return found

    def history(self) -> list[dict[str, Any]]:
        """Read who created, extended and ran the sweep, when, where, and with which code."""
        found: list[dict[str, Any]] = []
        if not self.has_own_folder():
            return found
        with suppress(FileNotFoundError):
            for line in (self.control / "events.jsonl").read_text(errors="replace").splitlines():
                with suppress(ValueError):  # a line that a crash cut off
                    found.append(json.loads(line))
        return found

    def versions(self) -> dict[str, int]:
        """Count the done cells that each version of the code computed."""
        attributes, code = self.attributes(), layout.open_arrays(self.path)["code"][...]
        numbers = np.bincount(np.asarray(code).ravel() + 1, minlength=1)[1:]
        return dict(zip(attributes["code_versions"], map(int, numbers), strict=False))

    def progress(self) -> dict[str, Any]:
        """Read what the last driver said of itself; see `holder` for whether it lives."""
        if not self.has_own_folder():
            return {}
        try:
            found = json.loads((self.control / "progress.json").read_text())
            return cast(dict[str, Any], found)
        except (OSError, ValueError):
            return {}

    def open(self) -> xr.Dataset:
        """Open the dataset, lazily; the same as ``xarray.open_zarr(path)``."""
        self.attributes()
        return cast(xr.Dataset, xr.open_zarr(self.path))

    def holder(self) -> str | None:
        """Say who drives the store now, or None. Looking does not disturb the lock."""
        return self._lease().holder

    def holder_here(self) -> int | None:
        """Return the process that drives the store, if it is one of this machine."""
        if layout.path_of_folder(self.control) not in ("", str(self.path)):
            return None  # the folder was copied or moved here, with the lock of a driver elsewhere
        return self._lease().holder_here

    @contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[Writer]:
        """Hold the store as its only writer.

        A dead driver on this host is taken over at once; one on another host, or one that is
        stopped, after it gave no sign of life for `lease.LEASE_SECONDS`.

        Parameters
        ----------
        wait : bool
            Whether to wait for another driver to end, or to die, instead of raising.

        Raises
        ------
        StoreError
            If another driver holds it; it is named. Or if no store may have that name.
        """
        self._check_name()
        self.control.mkdir(parents=True, exist_ok=True)
        lease = self._lease()
        while not lease.take():
            if not wait:
                raise StoreError(
                    f"store {self.path} must have one driver at a time; it is in use by "
                    f"{lease.describe()}: wait for it, or stop it first."
                )
        try:
            aside = self._put_another_aside()
            layout.claim_folder(self.path)
            for folder in (self.parts_folder, self.errors_folder):
                folder.mkdir(exist_ok=True)
            writer = Writer(self, lease)
            with suppress(OSError):  # a full disk: who drives is then told without since when
                writer.say()
            if aside:
                writer.log("aside", folder=str(aside))
                logging.getLogger(__name__).warning(
                    "%s was another store's; what was in it is now in %s", self.control, aside
                )
            yield writer
            writer.check()  # what follows is for who drove to the end
        finally:
            lease.release()

    @contextmanager
    def _sound_or_told(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:  # of Zarr, for a damaged chunk
            raise StoreError(
                f"store {self.path} must be sound for t_max to be raised; {error}: "
                f"alphasweep verify --repair {self.path}."
            ) from None

    def _check_name(self) -> None:
        # os.path: a name may be too long to ask whether there is anything of that name.
        problem = layout.unfit(self._named, self.path)
        if problem and not os.path.isdir(self.path / "status"):  # noqa: PTH112
            raise StoreError(f"store {self._named!r} must {problem}: choose another name.")
        # A store of an older version may have such a name, and has arrays.
        is_beside = self.path.suffix.lower() in layout.BESIDE
        if is_beside and not (self.path / "status").is_dir():
            raise StoreError(
                f"store {self.path} must have a name that ends in none of "
                f"{', '.join(layout.BESIDE)}, as the folders beside a store do: name the store "
                f"itself, {self.path.with_suffix('')}, or choose another --store."
            )
        if (self.control / "status").is_dir():
            raise StoreError(
                f"store {self.path} must have {self.control} for what is beside it; that is a "
                "store itself: rename one of them, or choose another --store."
            )

    def _named_parts(self) -> list[Part]:
        """Parts that there are files of, whatever is in them."""
        found = []
        for file in sorted(self.parts_folder.glob("*.npz")):
            with suppress(ValueError):
                found.append(Part.from_name(file.name.removesuffix(".npz")))
        return found

    def _put_another_aside(self) -> Path | None:
        """Move what another store has left in the folder beside this one, and say where to.

        The lock stays, since it is held; what says whose the folder is goes last, or after a kill
        in between the rest would be taken for this store's.
        """
        if self.has_own_folder():
            return None
        left = [file for file in self.control.iterdir() if not _is_of_no_worth(file)]
        if not left:
            return None
        whose = layout.name_of_folder(self.control)[:8] or "unknown"
        name = f"{self.control.name}.of-another-store-{whose}"
        aside = next(
            free
            for number in count(1)
            if not (free := self.control.with_name(f"{name}-{number}")).exists()
        )
        aside.mkdir()
        for file in sorted(left, key=lambda file: file.name in (layout.IDENTITY, "zarr.json")):
            file.rename(aside / file.name)
        return aside

    def _lease(self) -> Lease:
        return Lease(self.control, self.progress)


class Writer:
    """The one who may change a store; made by `Store.lock`."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self.store = store
        self._lease = lease
        self._arrays: _Arrays | None = None
        self._mix = True  # what waits was computed with consent, if consent was needed

    def prepare(self, sweep: Sweep, *, mix: bool = False) -> None:
        """Create the store, or make sure that it has a place for every cell of the sweep.

        Parameters
        ----------
        sweep : Sweep
        mix : bool
            Whether to go on although this code gives other numbers than the store's.

        Raises
        ------
        StoreError
            If the store was made for another sweep (the differences are named), or by code that
            gives other numbers, or by newer code that gives others besides.
        """
        self.check()
        self._arrays = None
        path = self.store.path
        if not self.store.exists():
            layout.build(path, sweep, check=self.check)
            self.log("create", cells=sweep.cells)
            return
        wider = wider_sweep(self.store, sweep)
        news = self._check_numbers(sweep, mix)
        if problem := layout.unknown_variables(layout.read_root(path)):
            raise StoreError(f"store {path} must {problem}.")
        layout.settle(path)
        parts, locks = self.store.parts_folder.glob(".*"), self.store.control.glob(".lock.*")
        for leftover in (*parts, *locks, *path.glob("*/*.partial")):
            remove(leftover)
        held = self.store.attributes()["cell_variables"]
        if lacking := [name for name in cell_variables(sweep.recipe) if name not in held]:
            layout.add_variables(path, lacking, check=self.check)
            self.log("add", variables=lacking)
        self.collect()  # before the store gets a name: parts of before have none
        if news:
            self.check()
            layout.change_attributes(path, **news)
            self._arrays = None
        before = self.store.sweep()
        if wider.descent != before.descent:
            again = self.store.out_of_time()
            held = as_document(wider) | {"grid": as_document(before)["grid"]}
            with self.store._sound_or_told():
                layout.raise_t_max(path, Sweep.from_document(held), again, check=self.check)
            self._arrays = None
            ends = [before.descent.t_max, wider.descent.t_max]
            self.log("raise", t_max=ends, again=int(again.sum()))
        if wider.grid != before.grid:
            layout.widen(path, wider, check=self.check)
            self._arrays = None
            self.log("extend", cells=wider.cells - before.cells)

    @patient
    def collect(self) -> None:
        """Commit every part that waits for it; one that is not whole, or has no place, goes."""
        arrays = self._opened()
        waiting: dict[Block, list[Part]] = {}
        for part in self.store._named_parts():
            found = arrays.geometry.whole(part)
            if found is None:
                self._refuse(part, "the sweep has no place for it")
            elif self._read(part) is not None:
                waiting.setdefault(found[0], []).append(part)
        for block, parts in waiting.items():
            self.commit(block, parts)

    @patient
    def commit(
        self, block: Block, parts: Sequence[Part], failures: Sequence[Failure] = ()
    ) -> float:
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
        float
            Seconds that the merged cells took to compute.

        Raises
        ------
        StoreError
            If another driver has taken the store over.
        """
        self.check()
        arrays = self._opened()
        loaded = [found for part in parts if (found := self._read(part)) is not None]
        rows = [arrays.rows(block, found.part) for found in loaded]
        status = arrays.read(block, "status")
        anything = (status == DONE).any()
        merged: dict[str, npt.NDArray[Any]] = {}
        if loaded:
            for name in arrays.names:
                held = arrays.read_kept if anything else arrays.blank
                merged[name] = held(block, name)
                for at, found in zip(rows, loaded, strict=True):
                    is_code = name == "code"
                    merged[name][at] = arrays.code(found) if is_code else found.cells[name]
        self.check()
        for failure in failures:
            self._record(failure)
            at = arrays.rows(block, failure.part)
            status[at] = np.where(status[at] == DONE, DONE, FAILED)
        for at in rows:
            status[at] = DONE
        arrays.write(block, merged, self.check)
        arrays.write(block, {"status": status}, self.check)
        for found in loaded:
            arrays.inbox.file(found.part).unlink(missing_ok=True)
        self._forget_failures([found.part for found in loaded])
        return sum(float(found.cells["seconds"].sum()) for found in loaded)

    def discard(self, part: Part) -> None:
        """Remove a part's file: it was committed, or is of no use."""
        self.check()
        self._opened().inbox.file(part).unlink(missing_ok=True)

    def _read(self, part: Part) -> HandedIn | None:
        """Read a part that is data here; any other goes, and the history says why."""
        arrays = self._opened()
        try:
            return arrays.inbox.read(part, arrays.all_codes if self._mix else arrays.codes)
        except (DamagedError, ForeignError) as error:
            self._refuse(part, str(error))
            return None

    def _refuse(self, part: Part, why: str) -> None:
        self.log("refuse", part=str(part), why=why)
        self.discard(part)

    @patient
    def say(self, **progress: Any) -> None:
        """Publish who drives the store, and how far, for `status` in another terminal."""
        self.check()
        said = {**self._lease.identity(), "time": time.time(), **progress}
        replace_text(self.store.control / "progress.json", json.dumps(said), durable=False)

    @patient
    def log(self, event: str, **details: Any) -> None:
        """Append one line to the history."""
        self.check()
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "event": event,
            "host": socket.gethostname(),
            "user": _user(),
            "token": self.token,
            "version": code_version(),
            "machine": machine(),
            **details,
        }
        with (self.store.control / "events.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _forget_failures(self, parts: Sequence[Part]) -> None:
        cells = {(part.alpha, part.N, seed) for part in parts for seed in part.seeds}
        for file in self.store.errors_folder.glob("*.json") if cells else ():
            failed = Part.from_name(file.name.removesuffix(".json"))
            if all((failed.alpha, failed.N, seed) in cells for seed in failed.seeds):
                file.unlink(missing_ok=True)

    def _record(self, failure: Failure) -> None:
        record = {
            "part": str(failure.part),
            "error": failure.error,
            "traceback": failure.traceback,
            "attempts": failure.attempts,
            "host": failure.host,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        file = self.store.errors_folder / f"{failure.part.name}.json"
        replace_text(file, json.dumps(record, indent=1))

    def _check_numbers(self, sweep: Sweep, mix: bool) -> dict[str, Any]:
        """Refuse code that gives other numbers, unless they are to be mixed.

        Returns
        -------
        dict
            Attributes that the store needs before this code adds to it.
        """
        attributes = self.store.attributes()
        here, news = code_version(), dict[str, Any]()
        changed = other_numbers(sweep.recipe, attributes["fingerprint"])
        if changed and not mix:
            raise StoreError(
                f"store {self.store.path} must be continued by code that gives its numbers; it was "
                f"computed by {', '.join(attributes['code_versions'])}, and this is "
                f"{code_version()}, which gives other ones ({', '.join(changed)}): use the old "
                "version, choose another --store, or mix them with --other-numbers."
            )
        self._mix = mix
        if "store_id" not in attributes:
            news["store_id"] = uuid.uuid4().hex
        if here not in attributes["code_versions"]:
            news["code_versions"] = [*attributes["code_versions"], here]
        others = attributes.get("other_numbers", [])
        if changed and here not in others:
            news["other_numbers"] = [*others, here]
        return news

    def _opened(self) -> _Arrays:
        if self._arrays is None:
            self._arrays = _Arrays(self.store)
        return self._arrays

    @property
    def token(self) -> str:
        """What tells this driver's jobs, certificates and records from those of any other."""
        return self._lease.token

    def check(self) -> None:
        """Make sure that this is still the store's driver, by the lock on the disk.

        One that was stopped for minutes finds out before it writes.

        Raises
        ------
        StoreError
            If another driver has taken the store over; it is named.
        """
        try:
            self._lease.check()
        except LeaseLostError as lost:
            raise StoreError(
                f"store {self.store.path} must have one driver at a time; it was taken over by "
                f"{lost} while this process gave no sign of life. "
                "Nothing was lost: let that one go on, or stop it and run again."
            ) from None


def _is_of_no_worth(file: Path) -> bool:
    """Whether a file of a control folder is the lock, or tells nothing of any store."""
    is_empty = file.is_dir() and not any(file.iterdir())
    return is_empty or file.name in ("lock", "progress.json") or file.name.startswith(".")


class _Arrays:
    """The arrays of a store, opened once, by blocks."""

    def __init__(self, store: Store) -> None:
        attributes = store.attributes()
        self._path = store.path
        self._arrays = layout.open_arrays(store.path, "r+")
        self.geometry = store.geometry()
        self.inbox = store.inbox()
        self.all_codes: list[str] = attributes["code_versions"]
        others = attributes.get("other_numbers", [])
        self.codes = [code for code in self.all_codes if code not in others]
        self.names = [name for name in attributes["cell_variables"] if name != "status"]

    def code(self, found: HandedIn) -> int:
        """Index of the code that computed a part; of the last driver's, if the part is silent."""
        return self.all_codes.index(found.code or self.all_codes[-1])

    def read(self, block: Block, name: str) -> npt.NDArray[Any]:
        """Read the block's values, (seed, ...)."""
        try:
            return np.array(self._arrays[name][self._selection(block)])
        except ValueError as error:
            raise self._unsound(block, name, str(error)) from None

    def read_kept(self, block: Block, name: str) -> npt.NDArray[Any]:
        """Read values that must be there: Zarr reads a chunk that is lost as fill values."""
        if not layout.chunk_file(
            self._path, self._arrays[name], self.geometry.place(block)
        ).exists():
            raise self._unsound(block, name, "the chunk is lost")
        return self.read(block, name)

    def _unsound(self, block: Block, name: str, what: str) -> StoreError:
        return StoreError(
            f"store {self._path} must be sound where a run adds to it; {name} at alpha = "
            f"{block.alpha:g}, N = {block.N}: {what}: alphasweep verify --repair {self._path}."
        )

    def blank(self, block: Block, name: str) -> npt.NDArray[Any]:
        """Make values of a block that nothing is known of, (seed, ...)."""
        array, seeds = self._arrays[name], self._selection(block)[2]
        shape = (seeds.stop - seeds.start, *array.shape[3:])
        return np.full(shape, array.fill_value, array.dtype)

    def write(
        self, block: Block, values: Mapping[str, npt.NDArray[Any]], check: Callable[[], object]
    ) -> None:
        """Write the block's chunks, each after a check; read them back, and see them onto the disk.

        Zarr itself never calls fsync; the folder's makes sure of the rename.
        """
        written = []
        for name, content in values.items():
            array = self._arrays[name]
            check()
            array[self._selection(block)] = content
            if not _are_same(self.read(block, name), content):
                raise StoreError(
                    f"store {self._path} must hold what is written to it; {name} at alpha = "
                    f"{block.alpha:g}, N = {block.N} reads back otherwise: look after the disk, "
                    "and run again."
                )
            file = layout.chunk_file(self._path, array, self.geometry.place(block))
            written += [file, file.parent]
        sync(written)

    def rows(self, block: Block, part: Part) -> slice:
        """Find the rows of the block that hold a part."""
        found = self.geometry.whole(part)
        if found is None or found[0] != block:
            raise ValueError(f"a part must be of the block that it is committed to; got {part}.")
        return found[1]

    def _selection(self, block: Block) -> tuple[int, int, slice]:
        return self.geometry.rows(self.geometry.place(block))


def _are_same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two arrays are the same, a NaN like any other value."""
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))


def wider_sweep(store: Store, sweep: Sweep) -> Sweep:
    """Return the store's sweep with the values of another one added to its axes.

    Its t_max is the larger one.

    Raises
    ------
    StoreError
        If the store was made for a sweep whose numbers are others; the differences are named. Or if
        its t_max is larger.
    """
    stored = store.sweep()
    if raises_t_max(sweep, stored):
        here, there = sweep.descent.t_max, stored.descent.t_max
        raise StoreError(
            f"store {store.path} must not have a larger t_max than its sweep; it has {there:g}, "
            f"and this sweep {here:g}: P(recovery) by t = {here:g} needs no new run, see "
            f"Study(ds, by={here:g}); to go on, set t_max = {there:g}."
        )
    wrong = differences(stored, sweep)
    if wrong and not raises_t_max(stored, sweep):
        raise StoreError(
            f"store {store.path} was made for another sweep: {'; '.join(wrong)}: "
            "choose another --store, or set these keys as in the store."
        )
    return union(stored, sweep)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return str(os.getuid())
