"""The reader's door shows what plain xarray shows, of done cells, and never half of one."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import alphasweep
from alphasweep.kernels.descent import Outcome
from alphasweep.pipeline import layout
from alphasweep.pipeline.dataset import DONE, KEPT, MISSING, cell_variables
from alphasweep.pipeline.grid import Block
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.reading import open_sweep
from alphasweep.pipeline.store import Failure, Store, StoreError, hand_in
from tests.conftest import fill, parts_of, seen_by, tiny


def test_numbers_are_those_of_plain_xarray(full: Store) -> None:
    """Every variable of the store has the same bits, type, labels and attributes."""
    plain, ours = xr.open_zarr(full.path).load(), open_sweep(full.path).load()
    for name in plain.variables:
        xr.testing.assert_identical(plain[name].variable, ours[name].variable)
        assert plain[name].dtype == ours[name].dtype
        np.testing.assert_equal(dict(ours[name].attrs), dict(plain[name].attrs))
    assert ours.attrs == plain.attrs
    assert json.loads(ours.attrs["sweep"])["descent"]["learning_rate"] == 0.03


def test_it_is_lazy_and_labelled(full: Store) -> None:
    """What is large stays on the disk, in the store's chunks; everything says what it is."""
    dataset = open_sweep(full.path)
    for kept in set(cell_variables(tiny().recipe)) - {"status"}:
        assert dataset[kept].chunks == xr.open_zarr(full.path)[kept].chunks, kept
    for derived in ("is_recovered", "abs_overlap"):
        assert dataset[derived].chunks is not None
    for name, variable in dataset.variables.items():
        assert variable.attrs["long_name"], name
        assert variable.attrs["units"], name
        assert ("flag_values" in variable.attrs) == (name in ("status", "outcome")), name


def test_what_is_derived(full: Store) -> None:
    """Masks partition the starts of done cells; sizes and overlaps follow their formulas."""
    dataset = open_sweep(full.path).load()
    masks = [f"is_{o.name.lower()}" for o in Outcome if o != Outcome.MISSING]
    assert (dataset[masks].to_array().sum("variable") == 1).all()
    for outcome in Outcome:
        if outcome != Outcome.MISSING:
            mask = dataset[f"is_{outcome.name.lower()}"]
            np.testing.assert_array_equal(mask, dataset.outcome == outcome)
    np.testing.assert_array_equal(dataset.is_recovered, dataset.recovered == 1)
    np.testing.assert_array_equal(dataset.is_done, dataset.status == DONE)
    np.testing.assert_array_equal(dataset.abs_overlap, np.abs(dataset.overlap))
    for alpha in (2.0, 4.0):
        for N in (8, 12):
            at = dataset.sel(alpha=alpha, N=N)
            assert float(at.alpha_used) == round(alpha * N) / N
            assert float(at.log_N) == np.log(N)
    assert {"alpha_used", "log_N", "measurements"} <= set(dataset.coords)


def test_cells_that_are_not_done_read_as_missing(full: Store) -> None:
    """Whatever a commit has already written of a cell, it is not there before its status is."""
    layout.open_arrays(full.path, "r+")["status"][0, 0, 1] = MISSING
    plain, ours = xr.open_zarr(full.path).load(), open_sweep(full.path).load()
    half = {"alpha": 2.0, "N": 8, "seed": 1}
    assert plain.sel(half).recovered.notnull().all()
    cell = ours.sel(half)
    assert not cell.is_done
    assert (cell.outcome == Outcome.MISSING).all()
    assert int(cell.code) == -1
    for name, variable in cell_variables(tiny().recipe).items():
        if name not in KEPT and name != "outcome":
            assert cell[name].isnull().all(), name
            assert np.isnan(variable.fill)
    assert not any(cell[name].any() for name in ours if str(name).startswith("is_"))
    rest = ours.where(ours.is_done, drop=False)
    np.testing.assert_array_equal(rest.energy, plain.energy.where(plain.status == DONE))


def test_failed_cells_are_in_no_mean(store: Store) -> None:
    """A failed cell has no outcome, and P(recovery) is that of the done ones."""
    good, bad = Part(2.0, 8, 0, 0), Part(2.0, 8, 1, 2)
    with store.lock() as writer:
        writer.prepare(tiny())
        hand_in(store.inbox(), good, compute(tiny().recipe, good))
        failure = Failure.of(bad, ZeroDivisionError("no luck"), attempts=3)
        writer.commit(Block(2.0, 8, 0), [good], [failure])
    dataset = open_sweep(store.path).load()
    assert dataset.recovered.notnull().sum() == 2  # the starts of one cell
    assert dataset.is_done.sum() == 1


def test_without_probes_and_without_results(store: Store) -> None:
    """A sweep without [probe], of which nothing is computed yet, opens as well."""
    fill(store, tiny().model_copy(update={"probe": None}), [])
    dataset = open_sweep(store.path).load()
    assert not dataset.is_done.any()
    assert "lambda_min" not in dataset


@pytest.mark.parametrize("kind", ["nothing", "folder", "file", "foreign", "garbage"])
def test_a_path_that_is_no_sweep_is_an_error(tmp_path: Path, kind: str) -> None:
    """The message names the path, and what it should be."""
    path = tmp_path / "it"
    if kind == "file":
        path.write_text("mine")
    elif kind != "nothing":
        path.mkdir()
    if kind == "foreign":
        xr.Dataset({"x": ("t", [1])}).to_zarr(path, mode="w", consolidated=False)
    if kind == "garbage":
        (path / "zarr.json").write_text("\x00{")
    with pytest.raises(StoreError, match=f"store {path} must be a sweep's Zarr store"):
        open_sweep(path)


LABELS = ("alpha", "N", "seed", "start", "time", "mode", "measurements")


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_are_not_the_sweeps_are_refused(full: Store, name: str) -> None:
    """Labels that are lost, or are others than the sweep's, are never put to numbers."""
    array = layout.open_arrays(full.path, "r+")[name]
    array[...] = array[...] + 1
    with pytest.raises(StoreError, match=f"differ in {name}: see alphasweep verify"):
        open_sweep(full.path)


@pytest.mark.long
def test_reading_while_a_run_commits(store: Store, tmp_path: Path) -> None:
    """Never an error, never a done cell without its numbers, and these are the final ones."""
    other = Store(tmp_path / "final.zarr")
    fill(other, tiny(), parts_of(tiny()))
    final = open_sweep(other.path).load()
    with store.lock() as writer:
        writer.prepare(tiny())
    failed: list[BaseException] = []

    def run() -> None:
        try:
            for number, part in enumerate(parts_of(tiny(), 1), 1):  # each rewrites its block
                fill(store, tiny(), [part])
                seen_by(counts, number)
        except BaseException as error:
            failed.append(error)

    counts = [0]
    running = threading.Thread(target=run, daemon=True)
    running.start()
    while counts[-1] < final.is_done.size and not failed:
        seen = open_sweep(store.path).load()
        counts.append(int(seen.is_done.sum()))
        assert seen.recovered.notnull().all("start").equals(seen.is_done)
        expected = final.where(seen.is_done)
        for name in ("energy", "overlap", "recovered", "steps", "lambda_min"):
            np.testing.assert_array_equal(seen[name], expected[name], err_msg=name)
    running.join()
    assert not failed
    assert counts == sorted(counts)
    assert set(counts) == set(range(final.is_done.size + 1))


def test_opened_before_a_block_was_committed(store: Store) -> None:
    """A dataset shows what was done when it was opened, also when it is loaded later."""
    parts = parts_of(tiny())
    fill(store, tiny(), parts[:1])
    early = open_sweep(store.path)
    fill(store, tiny(), parts)
    assert int(early.is_done.sum()) == 2
    assert int(early.recovered.notnull().all("start").sum()) == 2
    assert open_sweep(store.path).recovered.notnull().all()


def test_the_package_is_imported_at_once(full: Store) -> None:
    """`import alphasweep` loads neither xarray nor Zarr; `alphasweep.open` does, when used."""
    script = (
        "import sys, alphasweep\n"
        "assert not {'numpy', 'xarray', 'zarr'} & set(sys.modules)\n"
        "assert 'open' in alphasweep.__all__\n"
        f"assert int(alphasweep.open({str(full.path)!r}).is_done.sum()) == 12"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert alphasweep.open is open_sweep
    with pytest.raises(AttributeError, match="no attribute 'opens'"):
        alphasweep.opens  # noqa: B018
