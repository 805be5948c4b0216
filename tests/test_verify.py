"""Whatever happens to a file of a store: it is found, it is mended, and it is never data."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alphasweep.pipeline import layout, lease
from alphasweep.pipeline import repair as repair_module
from alphasweep.pipeline.dataset import DONE, MISSING, cell_variables
from alphasweep.pipeline.grid import Block
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.reading import open_sweep
from alphasweep.pipeline.repair import repair
from alphasweep.pipeline.store import Failure, Store, StoreError, hand_in
from alphasweep.pipeline.verify import Report, verify
from tests.conftest import bits, fill, parts_of, seen_by, tiny

# --- damages ----------------------------------------------------------------------------------


def truncate(file: Path) -> None:
    """Keep the first half."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flip(file: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def zero(file: Path) -> None:
    """Overwrite the middle third with zeros."""
    content = file.read_bytes()
    third = len(content) // 3
    file.write_bytes(content[:third] + bytes(third) + content[2 * third :])


def punch(file: Path) -> None:
    """Let the file system take the middle third away, as it does with blocks it has lost."""
    third = file.stat().st_size // 3
    keep_size_and_punch = 3
    with file.open("r+b") as opened:
        libc = ctypes.CDLL(None, use_errno=True)
        place = (ctypes.c_long(third), ctypes.c_long(third))
        if libc.fallocate(opened.fileno(), keep_size_and_punch, *place):
            pytest.skip(f"no holes here: {os.strerror(ctypes.get_errno())}")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "empty": lambda file: file.write_bytes(b""),
    "flipped": flip,
    "deleted": Path.unlink,
    "zeros": zero,
    "hole": punch,
    "garbage": lambda file: file.write_bytes(b"\x80\x04 no JSON, no zip, no chunk\n" * 20),
}


def damage(file: Path, how: str) -> None:
    """Damage a file, for sure."""
    before = file.read_bytes()
    DAMAGES[how](file)
    assert not file.exists() or file.read_bytes() != before


def chunk(store: Store, name: str, *place: int) -> Path:
    """Path of a chunk's file."""
    return layout.chunk_file(store.path, layout.open_arrays(store.path)[name], place)


def kinds(report: Report, *severities: str) -> set[str]:
    """Kinds of the findings of these severities."""
    return {finding.kind for finding in report.findings if finding.severity in severities}


def mend(store: Store) -> tuple[str, ...]:
    """Verify and repair."""
    with store.lock() as writer:
        return repair(writer, verify(store))


def finish(store: Store) -> int:
    """Compute the missing cells, as a run does, and return how many they were."""
    grid = tiny().grid
    missing = [
        Part(grid.alpha[i], grid.N[j], grid.seed[k], grid.seed[k])
        for i, j, k in np.argwhere(store.status() == MISSING)
    ]
    fill(store, tiny(), missing)
    return len(missing)


def assert_honest(path: Path, reference: xr.Dataset) -> None:
    """Assert that plain xarray gives an error, a right number, or the sign for "not computed"."""
    try:
        found = xr.open_zarr(path)
    except Exception:  # whatever it says: it is no number
        return
    for name, variable in reference.data_vars.items():
        try:
            values = found[name].values
        except ValueError:
            continue
        missing = zarr.open_array(path / str(name), mode="r").fill_value
        same = np.equal(values, variable.values) | (values != values)
        assert (same | (values == missing)).all(), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A finished store of the tiny sweep, to be copied."""
    finished = Store(tmp_path_factory.mktemp("finished") / "tiny.zarr")
    fill(finished, tiny(), parts_of(tiny()))
    return finished


@pytest.fixture
def full(finished: Store, tmp_path: Path) -> Store:
    """A copy of it, to be damaged."""
    copy = Store(tmp_path / "tiny.zarr")
    shutil.copytree(finished.path, copy.path)
    shutil.copytree(finished.control, copy.control)
    return copy


@pytest.fixture(scope="module")
def reference(finished: Store) -> xr.Dataset:
    """The numbers of the finished store."""
    return cast(xr.Dataset, xr.open_zarr(finished.path).load())


@pytest.fixture(scope="module")
def expected(finished: Store) -> dict[str, Any]:
    """Bits of the finished store."""
    return bits(finished.path)


# --- a sound store ----------------------------------------------------------------------------


def test_a_finished_store_is_sound(full: Store) -> None:
    """Nothing is wrong with it, its cells and files are counted, and repair has nothing to do."""
    report = verify(full)
    assert report.ok
    assert kinds(report, "damage", "leftover") == set()
    assert report.cells == {"missing": 0, "done": 12, "failed": 0}
    files = [f for top in (full.path, full.control) for f in top.rglob("*") if f.is_file()]
    assert (report.files, report.bytes) == (len(files), sum(f.stat().st_size for f in files))
    before = bits(full.path)
    assert mend(full) == ()
    assert bits(full.path) == before


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_an_unfinished_store_is_sound(store: Store, parts: int) -> None:
    """Missing cells, and parts that wait for their commit, are no fault."""
    fill(store, tiny(), parts_of(tiny())[:parts])
    waiting = parts_of(tiny())[-1]
    hand_in(store.inbox(), waiting, compute(tiny().recipe, waiting))
    report = verify(store)
    assert kinds(report, "damage", "leftover") == set()
    assert mend(store) == ()
    assert store.parts() == [waiting]


def test_a_store_of_many_chunks_along_seed_is_sound(store: Store) -> None:
    """Blocks are told apart along seed, also after new seeds have moved them."""
    few = tiny(start=list(range(400)), seed=[4, 5, 6, 9, 10])  # two seeds a chunk
    each = [Part(alpha, 8, seed, seed) for alpha in (2.0, 4.0) for seed in few.grid.seed]
    fill(store, few, each)
    assert kinds(verify(store), "damage", "leftover") == set()
    flip(chunk(store, "steps", 0, 0, 1))
    (bad,) = [finding for finding in verify(store).findings if finding.severity == "damage"]
    assert bad.cells == Part(2.0, 8, 6, 9)
    mend(store)
    assert store.status()[0, 0].tolist() == [DONE, DONE, MISSING, MISSING, DONE]
    fill(store, tiny(start=list(range(400)), seed=list(range(12))), [])
    assert kinds(verify(store), "damage", "leftover") == set()


def test_a_store_that_is_being_written_is_sound(store: Store) -> None:
    """A run that commits meanwhile is not taken for damage, nor are its blocks for leftovers."""
    sweep = tiny(N=[8])
    fill(store, sweep, [])

    def run() -> None:
        for number, part in enumerate(parts_of(sweep, 1), 1):
            fill(store, sweep, [part])
            seen_by(counts, number)

    counts = [0]
    reports = []
    running = threading.Thread(target=run, daemon=True)
    running.start()
    while running.is_alive():
        reports.append(verify(store))
        counts.append(reports[-1].cells["done"])
    running.join()
    for report in reports:
        assert kinds(report, "damage", "leftover") <= {"temporary", "part"}, report.text()
        assert report.ok, report.text()
    assert set(counts) == set(range(7))


def test_it_tells_how_far_it_is(full: Store) -> None:
    """Progress rises from nothing to all."""
    seen: list[tuple[int, int]] = []
    verify(full, watch=lambda done, all: seen.append((done, all)))
    assert [done for done, _ in seen] == list(range(seen[0][1] + 1))


def test_no_store_is_an_error(tmp_path: Path) -> None:
    """Where nothing is, nothing is sound."""
    with pytest.raises(StoreError, match="there is no folder"):
        verify(Store(tmp_path / "none.zarr"))


# --- the corruption matrix --------------------------------------------------------------------


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["overlap", "outcome", "recovered", "seconds", "code", "status"])
def test_a_damaged_chunk(
    full: Store, reference: xr.Dataset, expected: dict[str, Any], name: str, how: str
) -> None:
    """It is found with its cells, never read, its block is forgotten and computed again."""
    file = chunk(full, name, 1, 0, 0)
    damage(file, how)
    assert_honest(full.path, reference)
    report = verify(full)
    lost_status = name == "status" and how == "deleted"
    assert report.ok == lost_status
    (found,) = [finding for finding in report.findings if finding.severity != "note"]
    assert found.kind == ("unfinished" if lost_status else "chunk")
    assert (found.where, found.cells) == (file, Part(4.0, 8, 0, 2))
    assert len(mend(full)) == 1
    assert kinds(verify(full), "damage", "leftover") == set()
    assert_honest(full.path, reference)
    assert finish(full) == 3  # the block, and no other cell
    assert bits(full.path) == expected


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["alpha", "N", "start", "time", "measurements"])
def test_a_damaged_coordinate(full: Store, expected: dict[str, Any], name: str, how: str) -> None:
    """It is found, refused by `open_sweep`, and written again from the sweep.

    Plain xarray refuses it too, unless the file is gone: Zarr reads that as zeros or NaN.
    """
    file = next((full.path / name).glob("c.*"))
    damage(file, how)
    with pytest.raises(StoreError, match="verify"):
        open_sweep(full.path)
    if how != "deleted":
        with pytest.raises(ValueError, match=r"checksum|buffer|size"):
            xr.open_zarr(full.path)[name].load()
    report = verify(full)
    assert kinds(report, "damage") == {"coordinate"}
    mend(full)
    assert verify(full).ok
    assert finish(full) == 0
    assert bits(full.path) == expected


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_part(full: Store, expected: dict[str, Any], how: str) -> None:
    """It is found and removed; its cells stay missing until they are computed again."""
    part = Part(2.0, 8, 0, 1)
    forget(full, part)
    hand_in(full.inbox(), part, compute(tiny().recipe, part))
    (file,) = full.parts_folder.glob("*.npz")
    damage(file, how)
    report = verify(full)
    assert kinds(report, "damage") == (set() if how == "deleted" else {"part"})
    mend(full)
    assert full.parts() == []
    assert finish(full) == 2
    assert bits(full.path) == expected


def forget(store: Store, part: Part) -> None:
    """Mark a part's cells missing, as if it had never come."""
    grid = tiny().grid
    status = layout.open_arrays(store.path, "r+")["status"]
    seeds = slice(grid.seed.index(part.first_seed), grid.seed.index(part.last_seed) + 1)
    status[grid.alpha.index(part.alpha), grid.N.index(part.N), seeds] = MISSING


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["overlap", "alpha"])
def test_damaged_metadata_of_an_array(
    full: Store, reference: xr.Dataset, expected: dict[str, Any], name: str, how: str
) -> None:
    """Readers do not even need it; it is found, and written again from the root's."""
    damage(full.path / name / "zarr.json", how)
    xr.testing.assert_identical(xr.open_zarr(full.path).load(), reference)
    assert kinds(verify(full), "damage") == {"metadata"}
    mend(full)
    assert verify(full).ok
    assert finish(full) == 0
    assert bits(full.path) == expected


def keep_copy(store: Store) -> None:
    """Keep a copy of the root metadata where repair looks for it."""
    shutil.copy(store.path / "zarr.json", store.control / "zarr.json")


@pytest.mark.parametrize("how", [*DAMAGES, "other shape", "other seed", "another's"])
def test_damaged_root_metadata(
    full: Store, reference: xr.Dataset, expected: dict[str, Any], how: str
) -> None:
    """They are found, also when they are still JSON, and restored from their copy."""
    keep_copy(full)
    file = full.path / "zarr.json"
    document = json.loads(file.read_text())
    match how:
        case "other shape":
            document["consolidated_metadata"]["metadata"]["overlap"]["shape"][0] = 3
        case "other seed":
            sweep = json.loads(document["attributes"]["sweep"]) | {"root_seed": 6}
            document["attributes"]["sweep"] = json.dumps(sweep)
        case "another's":
            del document["attributes"]["sweep"]
    if how in DAMAGES:
        damage(file, how)
    else:
        file.write_text(json.dumps(document))
    assert kinds(verify(full), "damage") == {"root"}
    mend(full)
    assert verify(full).ok
    xr.testing.assert_identical(xr.open_zarr(full.path).load(), reference)
    assert finish(full) == 0
    assert bits(full.path) == expected


@pytest.mark.parametrize("how", ["truncated", "empty", "deleted", "zeros", "hole", "garbage"])
def test_root_metadata_that_are_lost_are_an_error(full: Store, how: str) -> None:
    """No reader sees numbers; repair changes nothing, and says what is lost and what to do."""
    (full.control / "zarr.json").unlink(missing_ok=True)
    damage(full.path / "zarr.json", how)
    with pytest.raises((OSError, ValueError)):
        xr.open_zarr(full.path)
    before = {f: f.read_bytes() for f in full.path.rglob("*") if f.is_file()}
    with pytest.raises(StoreError, match="from a backup, or run the sweep into"):
        mend(full)
    assert before == {f: f.read_bytes() for f in full.path.rglob("*") if f.is_file()}


def test_everything_is_found_when_the_root_is_back(full: Store, expected: dict[str, Any]) -> None:
    """What could not be judged without the root is judged and mended in the same repair."""
    keep_copy(full)
    damage(full.path / "zarr.json", "empty")
    damage(chunk_without_root(full, "overlap"), "flipped")
    mend(full)
    assert kinds(verify(full), "damage", "leftover") == set()
    assert finish(full) == 3
    assert bits(full.path) == expected


def chunk_without_root(store: Store, name: str) -> Path:
    """Any chunk's file of an array."""
    return next((store.path / name).glob("c.*"))


def test_garbage_in_the_log_of_events(full: Store, expected: dict[str, Any]) -> None:
    """Its lines are found by number and removed; the others stay as they are."""
    with full.lock() as writer:
        writer.log("run", cells=12)
        with (full.control / "events.jsonl").open("ab") as file:
            file.write(b'\x80\xff\n{"torn": \n[1]\n')
        writer.log("end", done=12)
    before = (full.control / "events.jsonl").read_bytes().splitlines()
    (found,) = [f for f in verify(full).findings if f.kind == "events"]
    good = [*before[:-4], before[-1]]
    assert f"3 lines that are no JSON, the first is line {len(good)}" in found.what
    mend(full)
    assert (full.control / "events.jsonl").read_bytes().splitlines() == good
    assert bits(full.path) == expected


def test_garbage_in_progress(full: Store) -> None:
    """It is found, never shown, and written again by who takes the lock."""
    (full.control / "progress.json").write_bytes(b"\xff\xfe{")
    assert kinds(verify(full), "leftover") == {"progress"}
    assert full.progress() == {}
    mend(full)
    assert kinds(verify(full), "leftover") == set()
    assert full.progress()["pid"] == os.getpid()


def test_garbage_in_the_lock(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found; after a minute it keeps nobody out, and before that it may be a beginning."""
    lock = full.control / "lock"
    lock.write_bytes(b"\x80 no lease\n")
    assert kinds(verify(full), "leftover") == {"lock"}
    monkeypatch.setattr(lease, "LEASE_SECONDS", 3600.0)  # which it takes to look at it
    lock.write_bytes(b"")  # with a line in it, filelock would take 2 s for an age
    with pytest.raises(StoreError, match="one driver at a time"), full.lock():
        pass
    lock.write_bytes(b"\x80 no lease\n")
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    os.utime(lock, (time.time() - 100,) * 2)
    mend(full)
    assert kinds(verify(full), "leftover") == set()


def test_a_held_lock_is_no_finding(full: Store) -> None:
    """The driver is named, so that nobody takes its files for leftovers."""
    with full.lock():
        report = verify(full)
    assert kinds(report, "damage", "leftover") == set()
    assert f"In use by process {os.getpid()}" in report.text()


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_flipped_bit_of_any_chunk_is_found(full: Store, data: st.DataObject) -> None:
    """A checksum of 32 bits misses no single bit, wherever it is."""
    files = sorted(full.path.glob("*/c.*"))
    file = data.draw(st.sampled_from(files))
    content = file.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    report = verify(full)
    file.write_bytes(content)
    assert [f.where for f in report.findings if f.severity == "damage"] == [file]


# --- cells that do not hold together -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("outcome", 0),
        ("outcome", 9),
        ("recovered", np.nan),
        ("recovered", 0.5),
        ("code", -1),
        ("code", 7),
        ("seconds", np.nan),
        ("status", 5),
    ],
)
def test_a_done_cell_that_is_not_whole(
    full: Store, expected: dict[str, Any], name: str, value: float
) -> None:
    """A value that no computed cell has, with a valid checksum: this cell is computed again."""
    layout.open_arrays(full.path, "r+")[name][0, 1, 1] = value
    report = verify(full)
    assert kinds(report, "damage") == {"cell"}
    (found,) = [finding for finding in report.findings if finding.severity == "damage"]
    assert found.cells == Part(2.0, 12, 1, 1)
    mend(full)
    assert finish(full) == 1
    assert bits(full.path) == expected


def fail(store: Store, part: Part) -> None:
    """Commit a part as failed."""
    failure = Failure.of(part, ZeroDivisionError("no luck"), attempts=3)
    with store.lock() as writer:
        writer.prepare(tiny())
        writer.commit(Block(part.alpha, part.N, 0), [], [failure])


@pytest.mark.parametrize("how", DAMAGES)
def test_a_failed_cell_without_its_record(store: Store, how: str) -> None:
    """Nobody could say why it failed, so it is tried again."""
    fail(store, Part(2.0, 8, 1, 2))
    assert kinds(verify(store), "damage", "leftover") == set()
    (record,) = store.errors_folder.glob("*.json")
    damage(record, how)
    if how in ("flipped", "zeros") and not kinds(verify(store), "damage"):
        return  # the text of the traceback has changed, and it is still a record
    assert kinds(verify(store), "damage") >= {"failure"}
    mend(store)
    assert kinds(verify(store), "damage", "leftover") == set()
    assert (store.status() == MISSING).all()
    assert store.failures() == []


def test_a_record_of_cells_that_have_not_failed(full: Store) -> None:
    """It is left over, from a commit that was killed, and goes."""
    fail(full, Part(2.0, 8, 0, 2))  # all of it is done, and stays so
    assert kinds(verify(full), "leftover") == {"record"}
    mend(full)
    assert full.failures() == []
    assert (full.status() == DONE).all()


# --- what is left over ------------------------------------------------------------------------


def test_leftovers_are_removed_and_unknown_files_are_not(
    full: Store, expected: dict[str, Any]
) -> None:
    """Temporary files, parts without a place and stray chunks go; what is not ours stays."""
    temporary = [
        full.path.with_name(f".{full.path.name}.0a1b2c3d"),
        full.path / ".zarr.json.0a1b2c3d",
        full.path / "overlap" / ".zarr.json.0a1b2c3d",
        full.path / "overlap" / "c.0.0.0.0.0a1b2c3d4e5f.partial",
        full.control / ".progress.json.0a1b2c3d",
        full.parts_folder / ".alpha=2.0_N=8_seed=0-1.npz.0a1b2c3d",
    ]
    for file in temporary[1:]:
        file.write_bytes(b"begun")
    (temporary[0] / "overlap").mkdir(parents=True)
    (temporary[0] / "overlap" / "zarr.json").write_text("{}")
    orphan = full.path / "overlap" / "c.7.0.0.0.0"
    shutil.copy(full.path / "overlap" / "c.0.0.0.0.0", orphan)
    for part in (Part(2.0, 8, 0, 1), Part(9.0, 8, 0, 1)):  # committed already; of no block
        hand_in(full.inbox(), part, compute(tiny().recipe, part))
    mine = [full.path / "notes.txt", full.path / "overlap" / "mine", full.parts_folder / "a.npz"]
    for file in mine:
        file.write_text("keep me")
    report = verify(full)
    assert report.ok
    left = {finding.where for finding in report.findings if finding.severity == "leftover"}
    assert left == {*temporary, orphan, *full.parts_folder.glob("alpha=*")}
    assert {finding.where for finding in report.findings if finding.kind == "unknown"} == {*mine}
    mend(full)
    assert not any(map(os.path.lexists, left))
    assert all(file.read_text() == "keep me" for file in mine)
    assert bits(full.path) == expected


def test_the_snapshot_of_an_older_grid(full: Store) -> None:
    """What a widening keeps for its readers is a note with its size; repair takes it away."""
    sweep = tiny(alpha=[2.0, 3.0, 4.0], N=[6, 8, 12])
    fill(full, sweep, [])
    before = bits(full.path)
    report = verify(full)
    assert kinds(report, "damage", "leftover") == set()
    notes = [finding for finding in report.findings if finding.kind == "snapshot"]
    assert {f.where.name for f in notes} == {
        *cell_variables(tiny().recipe), "alpha", "N", "seed", "measurements"
    }  # fmt: skip
    assert all(
        f.what.startswith("4 chunks") for f in notes if f.where.name in ("overlap", "status")
    )
    mend(full)
    assert verify(full).files == report.files - sum(int(f.what.split()[0]) for f in notes)
    assert kinds(verify(full)) == set()
    assert "snapshot" not in {finding.kind for finding in verify(full).findings}
    assert bits(full.path) == before


# --- repair itself ----------------------------------------------------------------------------


def test_an_old_report_harms_nothing(full: Store, expected: dict[str, Any]) -> None:
    """Everything is looked at again: what was mended meanwhile is not forgotten."""
    damage(chunk(full, "overlap", 0, 0, 0), "flipped")
    damage(full.path / "mu" / "zarr.json", "empty")
    old = verify(full)
    mend(full)
    finish(full)
    with full.lock() as writer:
        done = repair(writer, old)
    assert not any("marked missing" in line for line in done)
    assert bits(full.path) == expected


def test_a_repair_that_breaks_off_leaves_no_done_cell_unsound(
    full: Store, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status is written before the chunk, so a repair can be killed and done again."""
    damage(chunk(full, "overlap", 0, 0, 0), "flipped")

    def killed(paths: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as broken:
        broken.setattr(repair_module, "sync", killed)
        with pytest.raises(RuntimeError):
            mend(full)
    assert full.status()[0, 0].tolist() == [MISSING] * 3
    assert kinds(verify(full), "damage") == {"chunk"}
    mend(full)
    assert finish(full) == 3
    assert bits(full.path) == expected


def test_the_report_is_readable_and_is_json(full: Store) -> None:
    """Both say the same: what, where, which cells, and what to do."""
    damage(chunk(full, "overlap", 0, 0, 0), "flipped")
    report = verify(full)
    text, document = report.text(), json.loads(report.to_json())
    assert "DAMAGED" in text
    assert "1 damages, 0 leftovers" in text
    (found,) = [f for f in document["findings"] if f["severity"] == "damage"]
    assert not document["ok"]
    assert document["cells"]["done"] == 12
    assert found["cells"] == {"alpha": 2.0, "N": 8, "first_seed": 0, "last_seed": 2}
    assert found["where"] in text
    assert found["todo"] in text
    assert "alpha = 2, N = 8, seed 0 to 2" in text
