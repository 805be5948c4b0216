"""What is in a store is exact and labelled, and no order, repetition or damage changes it."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from alphasweep.kernels.descent import Outcome
from alphasweep.pipeline import layout, lease
from alphasweep.pipeline import store as store_module
from alphasweep.pipeline.dataset import COMPUTED, COORDINATES, DONE, FAILED, KEPT, MISSING
from alphasweep.pipeline.grid import Block
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.provenance import code_version
from alphasweep.pipeline.store import Failure, Store, StoreError, hand_in
from alphasweep.pipeline.verify import verify
from tests.conftest import SWEEPS, bits, fill, parts_of, take_over, tiny

# --- the public contract ----------------------------------------------------------------------


def test_plain_xarray_opens_it_without_a_warning(full: Store) -> None:
    """`xr.open_zarr(path)` is all a reader needs, and nothing is said about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xr.open_zarr(full.path).load()
    assert dict(dataset.sizes) == {
        "alpha": 2, "N": 2, "seed": 3, "start": 2, "time": 4, "mode": 2
    }  # fmt: skip
    assert set(dataset.data_vars) == {*COMPUTED, *KEPT, "measurements"}
    assert set(dataset.coords) == set(COORDINATES)


def test_everything_is_labelled(full: Store) -> None:
    """Every variable and coordinate has a long_name and units; flags have their meanings."""
    dataset = xr.open_zarr(full.path)
    for name, variable in dataset.variables.items():
        assert variable.attrs["long_name"], name
        assert variable.attrs["units"], name
    assert dataset.status.attrs["flag_meanings"].split() == ["missing", "done", "failed"]
    meanings = dataset.outcome.attrs["flag_meanings"].split()
    assert [Outcome[m.upper()] for m in meanings] == dataset.outcome.attrs["flag_values"]
    assert {"sweep", "created", "versions", "code_versions"} <= set(dataset.attrs)


def test_it_holds_what_was_computed(full: Store) -> None:
    """Each cell of the dataset is, to the bit, the record that `compute` gives for it."""
    dataset = xr.open_zarr(full.path).load()
    cells = compute(tiny().recipe, Part(4.0, 12, 1, 1))
    found = dataset.sel(alpha=4.0, N=12, seed=1)
    for name in set(COMPUTED) - {"seconds"}:
        np.testing.assert_array_equal(found[name].values, cells[name][0], err_msg=name)
        assert found[name].dtype == cells[name].dtype
    assert float(found.measurements) == 48
    assert int(found.status) == DONE
    assert full.attributes()["code_versions"][int(found.code)] == code_version()


def test_a_new_store_is_all_missing(store: Store) -> None:
    """Before anything is computed, cells are missing, flags are 0 and numbers NaN."""
    with store.lock() as writer:
        writer.prepare(tiny())
    dataset = xr.open_zarr(store.path).load()
    assert (dataset.status == MISSING).all()
    assert (dataset.outcome == Outcome.MISSING).all()
    assert dataset.recovered.isnull().all()
    assert (dataset.code == -1).all()


def test_without_probes_there_are_no_modes(store: Store) -> None:
    """A sweep without [probe] has neither the dimension nor the variables of eigenpairs."""
    sweep = tiny().model_copy(update={"probe": None})
    fill(store, sweep, parts_of(sweep))
    dataset = xr.open_zarr(store.path)
    assert "mode" not in dataset.dims
    assert "lambda_min" not in dataset


# --- parts and commits ------------------------------------------------------------------------


@pytest.mark.parametrize("method", SWEEPS)
@pytest.mark.parametrize("seeds_per_part", [1, 3])
def test_part_size_and_order_change_no_bit(
    store: Store, tmp_path: Path, seeds_per_part: int, method: str
) -> None:
    """However a sweep is cut, and in whatever order parts come, the dataset is the same."""
    sweep = SWEEPS[method]()
    fill(store, sweep, parts_of(sweep))
    parts = parts_of(sweep, seeds_per_part)
    random.Random(1).shuffle(parts)
    other = Store(tmp_path / "other.zarr")
    for part in parts:  # a commit for each, as in a run that is stopped again and again
        fill(other, sweep, [part])
    assert bits(other.path) == bits(store.path)


def test_handing_in_again_changes_nothing(full: Store) -> None:
    """A task that ran twice, or outlived its driver, leaves the dataset as it was."""
    before = bits(full.path)
    fill(full, tiny(), [parts_of(tiny())[0]])
    assert bits(full.path) == before
    assert full.parts() == []


def test_parts_survive_until_they_are_committed(store: Store) -> None:
    """What was handed in before a kill is committed by the next driver, not computed again."""
    part = Part(2.0, 8, 0, 1)
    with store.lock() as writer:
        writer.prepare(tiny())
    hand_in(store.inbox(), part, compute(tiny().recipe, part))
    assert store.parts() == [part]
    with store.lock() as writer:
        writer.prepare(tiny())
    assert store.status()[0, 0].tolist() == [DONE, DONE, MISSING]
    assert store.parts() == []


def flip(content: bytes) -> bytes:
    """Flip one bit in the middle."""
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "flipped": flip,
    "hole": lambda content: content[:200] + bytes(len(content) - 400) + content[-200:],
    "garbage": lambda content: b"\x80\x04garbage" * 50,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_never_data(store: Store, damage: str) -> None:
    """A part whose file is not whole is removed, and its cells stay missing."""
    part = Part(2.0, 8, 0, 2)
    with store.lock() as writer:
        writer.prepare(tiny())
        hand_in(store.inbox(), part, compute(tiny().recipe, part))
        (file,) = store.parts_folder.glob("*.npz")
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
        writer.collect()
    assert (store.status() == MISSING).all()
    assert store.parts() == []


def test_a_part_of_another_recipe_is_never_data(store: Store) -> None:
    """A part with other fields or shapes, from a foreign sweep, is removed."""
    part = Part(2.0, 8, 0, 2)
    foreign = tiny(start=[0, 1, 2])
    with store.lock() as writer:
        writer.prepare(tiny())
        hand_in(store.inbox(), part, compute(foreign.recipe, part))
        writer.collect()
    assert (store.status() == MISSING).all()
    assert store.parts() == []


def test_a_flipped_bit_in_a_chunk_is_an_error_not_a_number(full: Store) -> None:
    """Every chunk carries a checksum."""
    file = next((full.path / "overlap").glob("c.0.0.0.*"))
    file.write_bytes(flip(file.read_bytes()))
    with pytest.raises(ValueError, match="checksum"):
        xr.open_zarr(full.path).overlap.load()


def test_failed_cells(store: Store) -> None:
    """A failed part is marked and keeps its error; its neighbours are done; done stays done."""
    good, bad = Part(2.0, 8, 0, 0), Part(2.0, 8, 1, 2)
    error = ZeroDivisionError("no luck")
    error.add_note("on node7")
    failure = Failure.of(bad, error, attempts=3)
    with store.lock() as writer:
        writer.prepare(tiny())
        hand_in(store.inbox(), good, compute(tiny().recipe, good))
        writer.commit(Block(2.0, 8, 0), [good], [failure])
        writer.commit(Block(2.0, 8, 0), [], [Failure.of(good, error, attempts=3)])
    assert store.status()[0, 0].tolist() == [DONE, FAILED, FAILED]
    assert xr.open_zarr(store.path).recovered.sel(alpha=2.0, N=8, seed=1).isnull().all()
    record = next(r for r in store.failures() if r["part"] == str(bad))
    assert record["error"] == "ZeroDivisionError: no luck"
    assert (record["host"], record["attempts"]) == ("node7", 3)
    assert "ZeroDivisionError" in record["traceback"]


def test_a_failed_cell_that_succeeds_later_is_done(store: Store) -> None:
    """Its record of failure goes when its result comes."""
    part = Part(2.0, 8, 0, 2)
    with store.lock() as writer:
        writer.prepare(tiny())
        failure = Failure.of(part, ZeroDivisionError("no luck"), attempts=3)
        writer.commit(Block(2.0, 8, 0), [], [failure])
        writer.commit(Block(2.0, 8, 0), [], [Failure.of(Part(2.0, 8, 1, 1), OSError(), attempts=3)])
        writer.commit(
            Block(2.0, 12, 0), [], [Failure.of(Part(2.0, 12, 1, 1), OSError(), attempts=3)]
        )
    fill(store, tiny(), [part])
    assert store.status()[0, 0].tolist() == [DONE] * 3
    assert [record["part"] for record in store.failures()] == ["alpha = 2, N = 12, seed 1"]


@pytest.mark.parametrize("at", range(0, 40, 3))
def test_a_commit_that_breaks_off_anywhere_leaves_no_half_done_cell(
    store: Store, full_bits: dict[str, Any], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Whichever write is the last one before a crash: what is done is whole, and the rest comes."""
    part = Part(2.0, 8, 0, 2)
    with store.lock() as writer:
        writer.prepare(tiny())
        hand_in(store.inbox(), part, compute(tiny().recipe, part))
    writes = 0
    real = os.replace

    def crash(*arguments: Any, **settings: Any) -> None:
        nonlocal writes
        writes += 1
        if writes > at:
            raise OSError(28, "No space left on device")
        real(*arguments, **settings)

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", crash)
        broken.setattr(Path, "replace", crash)
        with suppress(OSError), store.lock() as writer:
            writer.collect()
    if store.status()[0, 0, 0] == DONE:
        assert bits(store.path, alpha=2.0, N=8) == full_bits
    with store.lock() as writer:
        writer.prepare(tiny())
    assert store.status()[0, 0].tolist() == [DONE] * 3
    assert bits(store.path, alpha=2.0, N=8) == full_bits


@pytest.fixture(scope="module")
def full_bits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Bits of one (alpha, N) of a finished store."""
    store = Store(tmp_path_factory.mktemp("full") / "tiny.zarr")
    fill(store, tiny(), parts_of(tiny()))
    return bits(store.path, alpha=2.0, N=8)


def test_a_run_does_not_build_on_a_lost_chunk(store: Store) -> None:
    """Zarr reads it as NaN: merged with new cells, it would become sound, and empty, for ever."""
    fill(store, tiny(), [Part(2.0, 8, 0, 1)])
    (lost,) = (store.path / "overlap").glob("c.0.0.0.*")
    lost.unlink()
    with pytest.raises(StoreError, match=r"overlap at alpha = 2, N = 8: .* lost: .*--repair"):
        fill(store, tiny(), [Part(2.0, 8, 2, 2)])
    assert not lost.exists()
    assert store.parts() == [Part(2.0, 8, 2, 2)]


def test_who_is_taken_over_between_data_and_status_ends_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data are on the disk, and the cells not done: the other driver commits the part."""
    part = Part(2.0, 8, 0, 2)
    with store.lock() as writer:
        writer.prepare(tiny())
    real = store_module.sync

    def sync(paths: Any) -> None:
        real(paths)
        if any(path.parent.name == "overlap" for path in paths):
            take_over(store)

    def drive_on() -> None:
        with store.lock() as writer:
            hand_in(store.inbox(), part, compute(tiny().recipe, part))
            monkeypatch.setattr(store_module, "sync", sync)
            writer.collect()

    with pytest.raises(StoreError, match="taken over by process"):
        drive_on()
    dataset = store.open().sel(alpha=2.0, N=8)
    assert np.isfinite(dataset.overlap.isel(time=0)).all()
    assert (dataset.status == MISSING).all()
    assert store.parts() == [part]


def test_a_part_stays_until_its_chunks_are_read_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that says it has written, and has not, costs no result."""
    real = layout.open_arrays

    class Deaf:
        """An array that takes nothing in."""

        def __init__(self, array: Any) -> None:
            self._array = array

        def __getattr__(self, name: str) -> Any:
            return getattr(self._array, name)

        def __getitem__(self, at: Any) -> Any:
            return self._array[at]

        def __setitem__(self, at: Any, values: Any) -> None:
            pass

    before, part = Part(2.0, 8, 0, 0), Part(2.0, 8, 1, 2)
    fill(store, tiny(), [before])  # so that there are chunks, of which only the content is old
    with store.lock() as writer:
        writer.prepare(tiny())
        hand_in(store.inbox(), part, compute(tiny().recipe, part))
        with monkeypatch.context() as there:
            there.setattr(
                layout, "open_arrays", lambda *a: (found := real(*a)) | {"mu": Deaf(found["mu"])}
            )
            writer._arrays = None
            with pytest.raises(StoreError, match="mu at alpha = 2, N = 8 reads back otherwise"):
                writer.collect()
        assert store.status()[0, 0].tolist() == [DONE, MISSING, MISSING]
        assert store.parts() == [part]
        writer._arrays = None
        writer.collect()
    assert (store.status()[0, 0] == DONE).all()


def test_a_lost_coordinate_is_no_label(full: Store) -> None:
    """A reader sees labels that cannot be, not zeros."""
    for name in ("alpha", "N", "seed"):
        (full.path / name / "c.0").unlink()
    dataset = xr.open_zarr(full.path)
    assert dataset.alpha.isnull().all()
    assert (dataset.N == -1).all()
    assert (dataset.seed == -1).all()


def test_metadata_of_an_array_are_restored_from_the_root(full: Store) -> None:
    """Garbage in an array's own zarr.json, or none, does not stop a run."""
    before = (full.path / "mu" / "zarr.json").read_text()
    (full.path / "mu" / "zarr.json").write_text("{garbage")
    (full.path / "energy" / "zarr.json").unlink()
    fill(full, tiny(), [])
    assert json.loads((full.path / "mu" / "zarr.json").read_text()) == json.loads(before)
    assert (full.path / "energy" / "zarr.json").exists()


# --- growing ----------------------------------------------------------------------------------

WIDER = {
    "alpha at the end": {"alpha": [2.0, 4.0, 5.0]},
    "alpha in the middle and before": {"alpha": [1.0, 2.0, 3.0, 4.0]},
    "N in the middle": {"N": [8, 10, 12]},
    "seeds at the end": {"seed": [0, 1, 2, 3, 4]},
    "everything at once": {"alpha": [2.0, 3.0, 4.0], "N": [6, 8, 12, 16], "seed": [0, 1, 2, 3]},
}


@pytest.mark.parametrize("wider", WIDER)
def test_widening_changes_no_old_bit(full: Store, wider: str) -> None:
    """Old cells keep their bits, new ones are missing, and the axes are sorted."""
    old = tiny().grid
    at = {"alpha": list(old.alpha), "N": list(old.N), "seed": list(old.seed)}
    before = bits(full.path, **at)
    fill(full, tiny(**WIDER[wider]), [])
    assert bits(full.path, **at) == before
    dataset = xr.open_zarr(full.path).load()
    grid = tiny(**WIDER[wider]).grid
    for axis in at:
        assert dataset[axis].values.tolist() == list(getattr(grid, axis))
    assert int((dataset.status == DONE).sum()) == 12
    np.testing.assert_array_equal(
        dataset.measurements, [[round(alpha * N) for N in grid.N] for alpha in grid.alpha]
    )


@pytest.mark.parametrize("method", SWEEPS)
@pytest.mark.parametrize("wider", WIDER)
def test_a_widened_store_ends_as_one_made_at_once(
    store: Store, tmp_path: Path, wider: str, method: str
) -> None:
    """Widening and computing the rest gives, to the bit, what a fresh sweep gives."""
    begun, sweep = SWEEPS[method](), SWEEPS[method](**WIDER[wider])
    fill(store, begun, parts_of(begun))
    fill(store, sweep, parts_of(sweep))
    fresh = Store(tmp_path / "fresh.zarr")
    fill(fresh, sweep, parts_of(sweep))
    assert bits(store.path) == bits(fresh.path)


def test_seeds_before_old_ones(store: Store, tmp_path: Path) -> None:
    """Seeds that sort between and before old ones find their place, across chunks."""
    few = tiny(start=list(range(400)), seed=[4, 5, 6, 9, 10])  # two seeds a chunk
    wide = tiny(start=list(range(400)), seed=list(range(12)))
    assert layout.seeds_per_chunk(few) == 2
    each = [Part(alpha, 8, seed, seed) for alpha in (2.0, 4.0) for seed in few.grid.seed]
    fill(store, few, each)
    before = bits(store.path, seed=list(few.grid.seed))
    fill(store, wide, [])
    assert bits(store.path, seed=list(few.grid.seed)) == before
    assert int((store.status() == DONE).sum()) == 10


def test_what_waits_for_its_commit_survives_a_widening(store: Store, tmp_path: Path) -> None:
    """Parts handed in before the grid grew are committed, at their new places."""
    part = Part(4.0, 12, 0, 1)
    with store.lock() as writer:
        writer.prepare(tiny())
    hand_in(store.inbox(), part, compute(tiny().recipe, part))
    fill(store, tiny(alpha=[1.0, 2.0, 3.0, 4.0]), [])
    assert store.status()[3, 1].tolist() == [DONE, DONE, MISSING]


def test_widening_copies_no_chunk(full: Store) -> None:
    """A chunk in the middle of the widened grid is the very file (inode) that it was."""
    before = {f.stat().st_ino for f in (full.path / "overlap").glob("c.*")}
    fill(full, tiny(alpha=[2.0, 3.0, 4.0], N=[8, 10, 12]), [])
    sweep = tiny(alpha=[2.0, 3.0, 4.0], N=[8, 10, 12])
    array = layout.open_arrays(full.path)["overlap"]
    places = [(i, j, 0) for i in (0, 2) for j in (0, 2)]
    after = {layout.chunk_file(full.path, array, place).stat().st_ino for place in places}
    assert len(sweep.grid.alpha) == 3
    assert after == before


def test_a_reader_of_the_old_grid_is_not_confused(full: Store) -> None:
    """A dataset opened before the axes moved loads the old numbers under the old labels after."""
    early = xr.open_zarr(full.path)
    expected = xr.open_zarr(full.path).load()
    sweep = tiny(alpha=[1.0, 2.0, 3.0, 4.0], N=[6, 8, 12])
    fill(full, sweep, parts_of(sweep))
    xr.testing.assert_identical(early.load(), expected)


def test_a_narrower_sweep_uses_the_store_as_it_is(full: Store) -> None:
    """A sweep of fewer values does not take the others away."""
    before = bits(full.path)
    fill(full, tiny(alpha=[4.0], seed=[1]), [])
    assert bits(full.path) == before


@pytest.mark.parametrize("at", range(0, 120, 7))
def test_a_widening_that_breaks_off_anywhere_can_be_done_again(
    full: Store, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Readers see the old grid or the new one, whole; and doing it again finishes it."""
    old = tiny().grid
    labels = {"alpha": list(old.alpha), "N": list(old.N), "seed": list(old.seed)}
    before = bits(full.path, **labels)
    sweep = tiny(alpha=[2.0, 3.0, 4.0], N=[6, 8, 12])
    done = 0

    def breaking(real: Any) -> Any:
        def call(*arguments: Any, **settings: Any) -> Any:
            nonlocal done
            done += 1
            if done > at:
                raise RuntimeError("killed")
            return real(*arguments, **settings)

        return call

    with monkeypatch.context() as broken:
        for owner, name in ((os, "link"), (os, "replace"), (Path, "replace"), (Path, "unlink")):
            broken.setattr(owner, name, breaking(getattr(owner, name)))
        try:
            layout.widen(full.path, sweep)
        except RuntimeError:
            broken.undo()
            assert bits(full.path, **labels) == before
    fill(full, sweep, [])
    assert bits(full.path, **labels) == before
    assert xr.open_zarr(full.path).alpha.values.tolist() == [2.0, 3.0, 4.0]
    for name in layout.open_arrays(full.path):
        own = json.loads((full.path / name / "zarr.json").read_text())
        consolidated = layout.read_root(full.path)["consolidated_metadata"]["metadata"][name]
        assert own == consolidated


# --- whose store is it? -----------------------------------------------------------------------


def test_another_sweep_is_refused_with_its_differences(full: Store) -> None:
    """A store is never mixed with numbers of another recipe, and the message names the keys."""
    other = tiny().model_copy(update={"root_seed": 6})
    before = bits(full.path)
    with pytest.raises(StoreError, match="root_seed = 5 in the store, 6 in this sweep"):
        fill(full, other, [])
    assert bits(full.path) == before


@pytest.mark.parametrize("kind", ["folder", "file", "foreign", "damaged"])
def test_something_else_at_the_path_is_refused(store: Store, kind: str) -> None:
    """A folder, a file, a foreign Zarr group or a damaged root file is left alone."""
    if kind == "file":
        store.path.write_text("mine")
    else:
        store.path.mkdir()
    if kind == "foreign":
        xr.Dataset({"x": ("t", [1])}).to_zarr(store.path, mode="w", consolidated=False)
    if kind == "damaged":
        (store.path / "zarr.json").write_text('{"attributes": {"swee')
    with pytest.raises(StoreError, match="something else is there"):
        fill(store, tiny(), [])


@pytest.mark.parametrize("name", ["tiny.zarr.run", "tiny.zarr.figures", "new.zarr.RUN"])
def test_a_folder_beside_a_store_is_no_store(full: Store, name: str) -> None:
    """Neither where it is there (it holds a copy of the root), nor where it is not yet."""
    other = Store(full.path.with_name(name))
    before = sorted(full.path.parent.iterdir())
    for use in (other.exists, other.sweep, lambda: fill(other, tiny(), [])):
        with pytest.raises(StoreError, match=r"ends in none of \.run, \.figures.*zarr, or choose"):
            use()
    assert sorted(full.path.parent.iterdir()) == before


def test_a_store_that_is_in_the_place_of_the_folder_beside_is_left_alone(
    full: Store, tmp_path: Path
) -> None:
    """An older version made stores of any name: such a one is read, and is no one's folder."""
    old = Store(full.path.rename(tmp_path / "new.zarr.run"))
    assert old.sweep() == tiny()
    before = sorted(old.path.iterdir())
    with pytest.raises(StoreError, match=r"new\.zarr\.run for what is beside it; that is a store"):
        fill(Store(tmp_path / "new.zarr"), tiny(), [])
    assert sorted(old.path.iterdir()) == before


def test_one_driver_at_a_time(full: Store) -> None:
    """A second one is told who has the store, where, since when, and when it was last heard of."""
    began = time.time()
    with full.lock():
        assert f"process {os.getpid()}" in str(full.holder())
        script = (
            "from alphasweep.pipeline.store import Store\n"
            f"with Store({str(full.path)!r}).lock(): pass"
        )
        second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert second.returncode != 0
        told = re.search(
            rf"it is in use by process {os.getpid()} on {re.escape(socket.gethostname())}, "
            r"since (\S+ \S+) UTC, last sign of life (\d+) s ago",
            second.stderr,
        )
        assert told, second.stderr
        since = datetime.strptime(told[1], "%Y-%m-%d %H:%M").replace(tzinfo=UTC).timestamp()
        assert began - 60 <= since <= time.time()
        assert int(told[2]) <= 60
    assert full.holder() is None
    with full.lock():
        pass


def test_a_lock_that_lives_is_put_back(full: Store) -> None:
    """Who was quicker to take a dead driver's lock keeps his, though it was moved for a moment."""
    with full.lock() as writer:
        mine = (full.control / "lock").stat().st_ino
        full._lease()._put_aside((1, 1))
        assert (full.control / "lock").stat().st_ino == mine
        writer.prepare(tiny())
    assert list(full.parts_folder.iterdir()) == []


@pytest.fixture(params=["on a disk", "on a network file system"])
def anywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that can swap two names in one step, which filelock wants, or cannot."""
    if request.param == "on a network file system":
        places = [
            module
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] == "filelock" and hasattr(module, "exchange_names")
        ]
        for module in places:  # where they are depends on the version
            monkeypatch.setattr(module, "exchange_names", lambda source, target: False)


@pytest.mark.usefixtures("anywhere")
def test_a_dead_driver_is_taken_over(full: Store) -> None:
    """A driver that was killed holds nothing."""
    script = (
        "import time\nfrom alphasweep.pipeline.store import Store\n"
        f"with Store({str(full.path)!r}).lock(): print('mine', flush=True); time.sleep(600)"
    )
    first = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert first.stdout is not None
    first.stdout.readline()
    assert f"process {first.pid}" in str(full.holder())
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert full.holder() is None
    with full.lock() as writer:
        writer.prepare(tiny())


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\xff\x00"])
@pytest.mark.usefixtures("anywhere")
def test_an_old_lock_that_names_nobody_is_taken_over(
    full: Store, garbage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a driver left that was killed while it made its lock, or a disk that was full."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    lock = full.control / "lock"
    lock.write_bytes(garbage)
    os.utime(lock, (0, 0))
    with full.lock() as writer:
        writer.prepare(tiny())


@pytest.mark.usefixtures("anywhere")
def test_a_stalled_driver_that_comes_back_does_not_write(
    full: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that gave no sign of life is taken over, and stops before it writes again."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    script = f"""
import os, signal
from alphasweep.pipeline import lease, store
from alphasweep.pipeline.grid import Block
lease.LEASE_SECONDS = 0.5
with store.Store({str(full.path)!r}).lock() as writer:
    print("mine", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        writer.commit(Block(2.0, 8, 0), [])
    except store.StoreError as error:
        print(error, flush=True)
"""
    first = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "mine\n"
    os.waitpid(first.pid, os.WUNTRACED)
    lock = full.control / "lock"
    os.utime(lock, (0, 0))  # as if it had been silent for long
    with full.lock(wait=True):
        first.send_signal(signal.SIGCONT)
        said, _ = first.communicate(timeout=120)
    assert "it was taken over by process" in said
    assert f"process {os.getpid()}" in said


# --- one store, many names --------------------------------------------------------------------


def linked(path: Path, place: Path) -> Path:
    """Put what is at a path, if anything, somewhere else, and a link to it in its place."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        shutil.move(path, place)
    path.symlink_to(place)
    return path


@pytest.mark.parametrize("what", ["the store", "a folder above", "a link to a link"])
@pytest.mark.parametrize("when", ["it exists", "it is to be made"])
def test_a_store_has_one_lock_whatever_its_names(tmp_path: Path, what: str, when: str) -> None:
    """Through a link to it, or to a folder above it, a second driver meets the first one's lock."""
    (tmp_path / "real").mkdir()
    store = Store(tmp_path / "real" / "tiny.zarr")
    if when == "it exists":
        fill(store, tiny(), [])
    if what == "a folder above":
        other = linked(tmp_path / "folder", tmp_path / "real") / "tiny.zarr"
    else:
        other = linked(tmp_path / "link.zarr", store.path)
        if what == "a link to a link":
            other = linked(tmp_path / "other.zarr", other)
    with store.lock(), pytest.raises(StoreError, match="one driver at a time"), Store(other).lock():
        pass
    fill(Store(other), tiny(), parts_of(tiny()))
    assert (store.status() == DONE).all()
    assert store.history() == Store(other).history()
    there = {file.name for folder in (tmp_path, tmp_path / "real") for file in folder.iterdir()}
    assert there <= {"real", "tiny.zarr", "tiny.zarr.run", "folder", "link.zarr", "other.zarr"}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than that of `tmp_path`."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is only one file system here")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    "links", [["."], ["overlap"], ["seed", "status"], [".run"], [".run/parts"], [".", ".run/parts"]]
)
def test_links_into_another_file_system(full: Store, elsewhere: Path, links: list[str]) -> None:
    """The store, the folder of an array or one beside it may be such a link: it works as ever."""
    before = bits(full.path)
    named = full.path
    for link in links:
        at = full.control / link[5:] if link.startswith(".run") else full.path / link
        linked(at, elsewhere / (link if link != "." else named.name))
    store = Store(named)
    sweep = tiny(alpha=[1.0, 2.0, 3.0, 4.0], seed=[0, 1, 2, 4])
    fill(store, sweep, [])
    assert bits(named, alpha=[2.0, 4.0], seed=[0, 1, 2]) == before
    fill(store, sweep, [Part(1.0, 8, 0, 2), Part(1.0, 8, 4, 4)])
    assert store.status()[0, 0].tolist() == [DONE] * 4
    assert verify(store).ok
    with store.lock() as writer:
        store._lease()._put_aside((1, 1))
        writer.prepare(sweep)


def test_a_leftover_that_cannot_be_removed_is_no_error(
    full: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stopped process has open is on NFS a file that nobody can remove."""
    busy = full.parts_folder / ".nfs000000000000004200000001"
    busy.touch()
    unlink = Path.unlink

    def refuse(path: Path, *, missing_ok: bool = False) -> None:
        if path.name.startswith(".nfs"):
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with full.lock() as writer:
        writer.prepare(tiny())
        assert (full.status() == DONE).all()
    assert busy.exists()
