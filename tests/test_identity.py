"""What was computed for another store, or by other code, never becomes data of this one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alphasweep.pipeline import layout
from alphasweep.pipeline.dataset import DONE, FAILED, MISSING
from alphasweep.pipeline.grid import Block
from alphasweep.pipeline.inbox import Inbox, hand_in
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.plan import REFERENCE, CostModel, make_plan
from alphasweep.pipeline.provenance import code_version
from alphasweep.pipeline.repair import repair
from alphasweep.pipeline.spec import Sweep
from alphasweep.pipeline.store import Failure, Store
from alphasweep.pipeline.verify import verify
from tests.conftest import bits, fill, parts_of, tiny

PART, OTHER = Part(2.0, 8, 0, 1), Part(4.0, 12, 0, 1)


def killed(store: Store, sweep: Sweep) -> None:
    """Leave what a driver leaves that is killed: a part waits, one has failed, progress is told."""
    with store.lock() as writer:
        writer.prepare(sweep)
        failure = Failure.of(OTHER, ZeroDivisionError("theirs"), attempts=3)
        writer.commit(Block(4.0, 12, 0), [], [failure])
        writer.say(done=7)
    hand_in(store.inbox(), PART, compute(sweep.recipe, PART))
    assert (store.parts(), len(store.failures()), store.progress()["done"]) == ([PART], 1, 7)


def reseeded() -> Sweep:
    """Return the tiny sweep with other random numbers, and nothing else that differs."""
    return tiny().model_copy(update={"root_seed": 6})


def assert_nothing_is_theirs(store: Store) -> None:
    """Assert that no door shows what another store has left beside this one."""
    assert store.parts() == []
    assert store.failures() == []
    assert store.progress().get("done") != 7
    assert all(event["event"] in ("create", "aside") for event in store.history())
    plan = make_plan(store.sweep(), CostModel(REFERENCE), store)
    assert (plan.handed_in, sum(plan.missing.values())) == (0, 12)


def asides(store: Store) -> list[Path]:
    """Folders of other stores that were put aside."""
    return sorted(store.path.parent.glob(f"{store.path.name}.run.of-another-store-*"))


# --- the folder beside a store ----------------------------------------------------------------


@pytest.mark.parametrize("other", [tiny(), reseeded()], ids=["the same sweep", "another sweep"])
def test_parts_of_a_removed_store_are_not_the_new_ones(store: Store, other: Sweep) -> None:
    """A store is removed, and made anew at its place: it begins with nothing."""
    killed(store, tiny())
    before = (store.parts_folder / f"{PART.name}.npz").read_bytes()
    shutil.rmtree(store.path)
    with store.lock() as writer:
        writer.prepare(other)
    assert (store.status() == MISSING).all()
    assert_nothing_is_theirs(store)
    (aside,) = asides(store)
    assert (aside / "parts" / f"{PART.name}.npz").read_bytes() == before
    assert {"errors", "events.jsonl", "zarr.json"} <= {file.name for file in aside.iterdir()}
    fill(store, other, parts_of(other))
    fresh = Store(store.path.with_name("fresh.zarr"))
    fill(fresh, other, parts_of(other))
    assert bits(store.path) == bits(fresh.path)
    assert verify(store).ok


def test_a_store_beside_the_folder_of_another(store: Store, tmp_path: Path) -> None:
    """A store is put where another one was: the folder there is not read, and then put aside."""
    killed(store, reseeded())
    shutil.rmtree(store.path)
    other = Store(tmp_path / "other.zarr")
    with other.lock() as writer:
        writer.prepare(tiny())
    other.path.rename(store.path)
    assert_nothing_is_theirs(store)
    report = verify(store)
    assert {(f.kind, f.severity) for f in report.findings} == {("folder", "note")}
    assert "another store's" in report.text()
    with store.lock() as writer:
        repair(writer, report)
        writer.collect()
    assert (store.status() == MISSING).all()
    assert_nothing_is_theirs(store)
    assert len(asides(store)) == 1
    assert verify(store).findings == ()


def test_another_store_is_not_restored_from_the_copy(store: Store, tmp_path: Path) -> None:
    """The copy of metadata beside a store mends that store, not one that was put there."""
    killed(store, reseeded())
    shutil.rmtree(store.path)
    other = Store(tmp_path / "other.zarr")
    fill(other, tiny(), parts_of(tiny()))
    before = bits(other.path)
    other.path.rename(store.path)
    with store.lock() as writer:
        repair(writer, verify(store))
    assert bits(store.path) == before
    assert store.sweep() == tiny()


@pytest.mark.parametrize("how", ["moved", "copied"])
@pytest.mark.parametrize("whole", [True, False], ids=["with its folder", "without its folder"])
def test_a_store_goes_on_elsewhere(store: Store, tmp_path: Path, how: str, whole: bool) -> None:
    """What waits goes with its folder, and only with it."""
    killed(store, tiny())
    place = Store(tmp_path / "elsewhere" / "renamed.zarr")
    place.path.parent.mkdir()
    for there, here in [(store.path, place.path), (store.control, place.control)][: 1 + whole]:
        (shutil.copytree if how == "copied" else shutil.move)(there, here)
    assert place.parts() == [PART] * whole
    assert len(place.failures()) == whole
    fill(place, tiny(), [])
    assert int((place.status() == DONE).sum()) == 2 * whole
    assert int((place.status() == FAILED).sum()) == 2
    assert asides(place) == []
    if how == "copied":
        assert store.parts() == [PART]  # the original is as it was
    elif not whole:
        with store.lock() as writer:  # and a new one in the old place does not take it up
            writer.prepare(tiny())
        assert_nothing_is_theirs(store)


def test_the_lock_in_a_copied_folder_is_no_driver_of_the_copy(store: Store, tmp_path: Path) -> None:
    """`cancel` on a copy does not end the driver of the original."""
    with store.lock() as writer:
        writer.prepare(tiny())
        copy = Store(tmp_path / "copy.zarr")
        for there, here in ((store.path, copy.path), (store.control, copy.control)):
            shutil.copytree(there, here)
        assert store.holder_here() == os.getpid()
        assert copy.holder_here() is None


def test_a_lost_note_of_whose_a_folder_is(store: Store) -> None:
    """The copy of the metadata says it, too."""
    killed(store, tiny())
    (store.control / layout.IDENTITY).write_text("{garbage")
    assert store.parts() == [PART]
    (store.control / "zarr.json").unlink()
    assert store.parts() == []
    fill(store, tiny(), [])
    assert (store.status()[0, 0] == MISSING).all()
    assert len(asides(store)) == 1


def test_a_folder_that_is_put_aside_in_two_goes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in between leaves the rest another's."""
    killed(store, reseeded())
    shutil.rmtree(store.path)
    real, done = Path.rename, []

    def once(self: Path, target: Path) -> Path:
        if self.parent == store.control and (done or done.append(self)):
            raise RuntimeError("killed")
        return real(self, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", once)
        with pytest.raises(RuntimeError), store.lock():
            pass
    with store.lock() as writer:
        writer.prepare(tiny())
    assert_nothing_is_theirs(store)
    assert len(asides(store)) == 2


# --- parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["store", "recipe", "code"])
def test_a_part_that_workers_of_another_store_hand_in(store: Store, wrong: str) -> None:
    """Workers that outlive their store may hand in a part under any name: it is refused, told."""
    with store.lock() as writer:
        writer.prepare(tiny())
    inbox, sweep = store.inbox(), tiny()
    if wrong == "store":
        inbox = Inbox(inbox.folder, "0123456789abcdef", inbox.recipe)
    elif wrong == "recipe":
        sweep = reseeded()
        inbox = Inbox(inbox.folder, inbox.store_id, sweep.recipe)
    with pytest.MonkeyPatch.context() as patch:
        if wrong == "code":
            patch.setattr("alphasweep.pipeline.inbox.code_version", lambda: "9.9.9+wrong")
        hand_in(inbox, PART, compute(sweep.recipe, PART))
    assert store.parts() == ([PART] if wrong == "code" else [])
    (found,) = verify(store).findings
    assert (found.kind, found.severity) == ("part", "leftover")
    assert wrong in found.what
    with store.lock() as writer:
        writer.commit(Block(2.0, 8, 0), [PART])
    assert (store.status() == MISSING).all()
    assert list(store.parts_folder.iterdir()) == []
    refused = store.history()[-1]
    assert (refused["event"], refused["part"]) == ("refuse", str(PART))
    assert wrong in refused["why"]


def as_of(version: str) -> Any:
    """Be another version of the code, for a while."""
    patch = pytest.MonkeyPatch()
    for module in ("inbox", "store", "layout"):
        patch.setattr(f"alphasweep.pipeline.{module}.code_version", lambda: version)
    return patch


def test_a_part_keeps_the_version_that_computed_it(store: Store) -> None:
    """What waits was computed by older code, and is not labelled as that of who commits it."""
    old = as_of("0.0.9+older")
    killed(store, tiny())
    old.undo()
    fill(store, tiny(), [Part(2.0, 8, 2, 2)])
    codes = layout.open_arrays(store.path)["code"][0, 0]
    assert store.attributes()["code_versions"] == ["0.0.9+older", code_version()]
    assert np.asarray(codes).tolist() == [0, 0, 1]


@pytest.mark.parametrize("again", ["mixed", "not mixed", "collected"])
def test_parts_of_code_with_other_numbers(
    store: Store, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """They were computed with --other-numbers, and wait: only with it are they committed."""
    with store.lock() as writer:
        writer.prepare(tiny())
    new = as_of("9.9.9+new")
    with monkeypatch.context() as changed:
        found = ["mu by up to 1"]
        changed.setattr("alphasweep.pipeline.store.other_numbers", lambda recipe, expected: found)
        with store.lock() as writer:
            writer.prepare(tiny(), mix=True)
        hand_in(store.inbox(), PART, compute(tiny().recipe, PART))
    new.undo()
    assert store.attributes()["other_numbers"] == ["9.9.9+new"]
    with store.lock() as writer:
        if again == "collected":  # by `cancel`, which computes nothing
            writer.collect()
        else:
            writer.prepare(tiny(), mix=again == "mixed")
    done = MISSING if again == "not mixed" else DONE
    assert store.status()[0, 0].tolist() == [done, done, MISSING]
    if done == DONE:
        assert store.versions() == {code_version(): 0, "9.9.9+new": 2}


# --- stores of before -------------------------------------------------------------------------


def as_before(store: Store) -> None:
    """Make a store, and what is beside it, what they were before stores had names."""
    root = layout.read_root(store.path)
    del root["attributes"]["store_id"]
    for folder in (store.path, store.control):
        (folder / "zarr.json").write_text(json.dumps(root))
    (store.control / layout.IDENTITY).unlink()
    for file in store.parts_folder.glob("*.npz"):
        with np.load(file) as content:
            cells = content["cells"]
        with file.open("wb") as opened:
            np.savez(opened, cells=cells)


def test_a_store_of_before_goes_on_with_what_waits(store: Store) -> None:
    """It gets a name; what waits was computed by the last code that it knows."""
    old = as_of("0.0.9+older")
    killed(store, tiny())
    old.undo()
    as_before(store)
    assert store.parts() == [PART]
    assert verify(store).ok
    fill(store, tiny(), [Part(2.0, 8, 2, 2)])
    assert store.status()[0, 0].tolist() == [DONE] * 3
    assert np.asarray(layout.open_arrays(store.path)["code"][0, 0]).tolist() == [0, 0, 1]
    assert len(store.failures()) == 1
    assert len(store.attributes()["store_id"]) == 32
    assert asides(store) == []


def test_a_store_of_before_that_is_collected_only(store: Store) -> None:
    """`cancel` commits what waits, under the code that computed it, and changes nothing else."""
    old = as_of("0.0.9+older")
    killed(store, tiny())
    old.undo()
    as_before(store)
    with store.lock() as writer:
        writer.collect()
    assert store.versions() == {"0.0.9+older": 2}


@pytest.mark.parametrize("new", ["named", "of before"])
def test_parts_of_before_beside_another_store(store: Store, tmp_path: Path, new: str) -> None:
    """They do not say whose they are: only where their folder is the store's are they data."""
    killed(store, reseeded())
    as_before(store)
    shutil.rmtree(store.path)
    other = Store(tmp_path / "other.zarr")
    with other.lock() as writer:
        writer.prepare(tiny())
    if new == "of before":
        as_before(other)
    other.path.rename(store.path)
    assert_nothing_is_theirs(store)
    fill(store, tiny(), [])
    assert (store.status() == MISSING).all()
    assert_nothing_is_theirs(store)
    assert len(asides(store)) == 1


def test_a_store_of_before_that_was_killed_while_it_got_its_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder beside it has the name already, and is still its own."""
    killed(store, tiny())
    as_before(store)

    def kill(path: Path, text: str) -> None:
        if path.parent == store.path:
            raise RuntimeError("killed")
        path.write_text(text)

    with monkeypatch.context() as broken:
        broken.setattr(layout, "replace_text", kill)
        with pytest.raises(RuntimeError), store.lock() as writer:
            writer.prepare(tiny())
    assert "store_id" not in store.attributes()
    assert layout.name_of_folder(store.control)
    assert len(store.failures()) == 1
    fill(store, tiny(), [])
    assert len(store.failures()) == 1
    assert asides(store) == []
