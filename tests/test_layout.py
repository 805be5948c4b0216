"""Attributes on the disk: what every format holds, in new stores and in those of older versions."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from threadpoolctl import threadpool_info

from alphasweep.analysis.recovery import descent_of, recovery_probability
from alphasweep.pipeline import layout
from alphasweep.pipeline.provenance import code_version, machine
from alphasweep.pipeline.reading import open_sweep
from alphasweep.pipeline.repair import repair
from alphasweep.pipeline.spec import as_document
from alphasweep.pipeline.store import Store, StoreError
from alphasweep.pipeline.verify import verify
from tests.conftest import bits, fill, parts_of, tiny


def as_before(store: Store) -> None:
    """Give a store the root attributes of version 0.1.0: nested values, and fewer of them."""
    for file in (store.path / "zarr.json", store.control / "zarr.json"):
        root = json.loads(file.read_text())
        held = layout.attributes_of(root)
        names = ("title", "source", "seeds_per_chunk", "code_versions", "fingerprint", "created")
        root["attributes"] = {name: held[name] for name in (*names, "versions", "sweep")}
        added = set(held["cell_variables"]) - set(layout.attributes_of(root)["cell_variables"])
        for name in added:
            del root["consolidated_metadata"]["metadata"][name]
            shutil.rmtree(store.path / name, ignore_errors=True)
        file.write_text(json.dumps(root, indent=2))


def is_held_everywhere(value: Any) -> bool:
    """Whether netCDF, too, can hold a value: text, a number, or a list of numbers."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(number, int | float) for number in value)
    return isinstance(value, str | int | float)


def test_attributes_are_text_or_numbers(full: Store) -> None:
    """Of the group and of every array; and what is nested comes back as it was."""
    root = json.loads((full.path / "zarr.json").read_text())
    for where in (root, *root["consolidated_metadata"]["metadata"].values()):
        for name, value in where["attributes"].items():
            assert is_held_everywhere(value), (name, value)
    assert full.attributes()["sweep"] == as_document(tiny())
    assert full.attributes()["code_versions"] == [code_version()]
    assert set(full.attributes()["fingerprint"]) >= {"overlap", "energy"}


def test_a_store_of_the_older_form_goes_on(full: Store) -> None:
    """It opens, is sound, and is continued and extended with its numbers; then it is of text."""
    as_before(full)
    before = bits(full.path)
    assert full.sweep() == tiny()
    assert open_sweep(full.path).sizes["seed"] == 3
    assert verify(full).findings == ()
    wider = tiny(alpha=[2.0, 3.0, 4.0])
    fill(full, wider, parts_of(tiny(alpha=[3.0])))
    after = bits(full.path, alpha=[2.0, 4.0])
    assert {name: after[name] for name in before} == before
    assert full.sweep() == wider
    assert verify(full).ok
    assert isinstance(xr.open_zarr(full.path).attrs["sweep"], str)


def test_a_store_of_the_older_form_gets_another_version_of_code(
    full: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of one attribute keeps all others, and writes all in the form of today."""
    as_before(full)
    before = full.attributes()
    monkeypatch.setattr("alphasweep.pipeline.store.code_version", lambda: "9.9.9+new")
    fill(full, tiny(), [])
    after = full.attributes()
    assert after.pop("code_versions") == [*before.pop("code_versions"), "9.9.9+new"]
    assert set(before.pop("cell_variables")) <= set(after.pop("cell_variables"))
    assert before.items() <= after.items()
    assert isinstance(xr.open_zarr(full.path).attrs["fingerprint"], str)


def test_a_lost_root_of_the_older_form_is_restored(full: Store) -> None:
    """Its copy, of the same form, is sound."""
    as_before(full)
    (full.path / "zarr.json").unlink()
    with full.lock() as writer:
        repair(writer, verify(full))
    assert full.sweep() == tiny()
    assert verify(full).ok


@pytest.mark.parametrize("name", ["sweep", "code_versions"])
def test_text_that_is_no_json_is_damage(full: Store, name: str) -> None:
    """Whoever opens such a store is told what to do, and `verify` finds it."""
    file = full.path / "zarr.json"
    root = json.loads(file.read_text())
    root["attributes"][name] = root["attributes"][name][:-1]
    file.write_text(json.dumps(root))
    with pytest.raises(StoreError, match=r"zarr.json is damaged: .*verify --repair"):
        full.attributes()
    assert not verify(full).ok
    with full.lock() as writer:
        repair(writer, verify(full))
    assert full.sweep() == tiny()


def in_netcdf(dataset: xr.Dataset, file: Path, engine: str) -> xr.Dataset:
    """Write a dataset as netCDF, and read it."""
    dataset.to_netcdf(file, engine=engine)  # type: ignore[call-overload]
    with xr.open_dataset(file, engine=engine) as found:
        return found.load()


@pytest.mark.parametrize("engine", ["netcdf4", "scipy"])
@pytest.mark.parametrize("door", [xr.open_zarr, open_sweep])
def test_netcdf_holds_a_store(full: Store, door: Any, engine: str) -> None:
    """Every number, label and attribute comes back; by our door flags have their variable's type.

    netCDF 3, which is SciPy's, has no 64-bit integers: those labels come back as 32-bit ones.
    """
    dataset = door(full.path).load()
    found = in_netcdf(dataset, full.path.with_name("tiny.nc"), engine)
    assert set(found.variables) == set(dataset.variables)
    assert found.attrs == dataset.attrs
    for name, variable in dataset.variables.items():
        np.testing.assert_array_equal(found[name].values, variable.values, err_msg=str(name))
        if engine == "netcdf4":
            assert found[name].dtype == variable.dtype, name
        np.testing.assert_equal(dict(found[name].attrs), dict(variable.attrs))
        if door is open_sweep and "flag_values" in variable.attrs:
            assert found[name].attrs["flag_values"].dtype == variable.dtype, name


def test_netcdf_holds_a_sweep_of_many_seeds(store: Store) -> None:
    """The text of a sweep may be longer than HDF5's 64 kB for an attribute."""
    sweep = tiny(alpha=[2.0], N=[8], seed=list(range(20_000)), start=[0])
    fill(store, sweep, [])
    dataset = xr.open_zarr(store.path)[["measurements"]]
    assert len(dataset.attrs["sweep"]) > 100_000
    found = in_netcdf(dataset, store.path.with_name("tiny.nc"), "netcdf4")
    assert found.attrs["sweep"] == dataset.attrs["sweep"]


def test_stores_can_be_put_together(full: Store, tmp_path: Path) -> None:
    """By `xr.concat` and `xr.merge`, of other seeds: the analysis sees all runs of both, once."""
    other = Store(tmp_path / "other.zarr")
    wide = tiny(seed=[7, 8])
    fill(other, wide, parts_of(wide))
    one, two = open_sweep(full.path), open_sweep(other.path)
    counted = {
        "concat": xr.concat([one, two], "seed", data_vars="minimal"),
        "merge": xr.merge([one, two], join="outer", compat="no_conflicts"),
    }
    for how, both in counted.items():
        probability = recovery_probability(both)
        assert (probability["matrices"] == 5).all(), how
        assert (probability["runs"] == 10).all(), how
        assert descent_of(both)["a"] == 1.0
    with pytest.raises(ValueError, match=r"seed must name .* got 0, 1, 2 more than once"):
        recovery_probability(xr.concat([one, one], "seed", data_vars="minimal"))
    renamed = one.assign_coords(seed=one.seed + 1000)
    twice = recovery_probability(xr.concat([one, renamed], "seed", data_vars="minimal"))
    assert (twice["runs"] == 12).all()


def test_pandas_and_csv_hold_the_numbers(full: Store, tmp_path: Path) -> None:
    """A table has every number; with the attributes given back, the analysis gives the same."""
    dataset = open_sweep(full.path)[["status", "recovered", "recovery_time", "outcome"]].load()
    dataset = dataset.drop_vars(["measurements", "alpha_used", "log_N"])
    table = dataset.to_dataframe()
    assert len(table) == 2 * 2 * 3 * 2
    table.to_csv(tmp_path / "tiny.csv")
    read = pd.read_csv(tmp_path / "tiny.csv").set_index(list(table.index.names))
    found = xr.Dataset.from_dataframe(read).transpose(*dataset.dims)
    for name in dataset:
        np.testing.assert_array_equal(
            found[name].isel(start=0) if "start" not in dataset[name].dims else found[name],
            dataset[name],
            err_msg=str(name),
        )
    found = found.assign(status=found["status"].isel(start=0, drop=True))
    with pytest.raises(ValueError, match="must have the attributes flag_values"):
        recovery_probability(found)
    for name in dataset.variables:
        found[name].attrs = dataset[name].attrs
    xr.testing.assert_allclose(recovery_probability(found), recovery_probability(dataset))


def test_a_store_names_the_machine_that_made_it(full: Store) -> None:
    """Python, BLAS with its kernel, and processor, which can change bits; so does each event."""
    named = full.attributes()["machine"]
    assert named == machine()
    assert named["python"] == ".".join(map(str, sys.version_info[:3]))
    for library in threadpool_info():
        if library["user_api"] == "blas":
            assert f"{library['internal_api']} {library['version']}" in named["blas"]
            assert library.get("architecture", "") in named["blas"]
    assert named["cpu"]
    assert all(event["machine"] == named for event in full.history())
