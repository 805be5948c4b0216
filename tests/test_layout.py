"""Attributes on the disk: what every format holds, in new stores and in those of older versions."""

from __future__ import annotations

import json
from typing import Any

import pytest
import xarray as xr

from pipeline import layout
from pipeline.provenance import code_version
from pipeline.reading import open_sweep
from pipeline.repair import repair
from pipeline.spec import as_document
from pipeline.store import Store, StoreError
from pipeline.verify import verify
from tests.conftest import bits, fill, parts_of, tiny


def as_before(store: Store) -> None:
    """Give a store the root attributes of version 0.1.0: nested values, and fewer of them."""
    for file in (store.path / "zarr.json", store.control / "zarr.json"):
        root = json.loads(file.read_text())
        held = layout.attributes_of(root)
        names = ("title", "source", "seeds_per_chunk", "code_versions", "fingerprint", "created")
        root["attributes"] = {name: held[name] for name in (*names, "versions", "sweep")}
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
    before = bits(full.path)
    as_before(full)
    assert full.sweep() == tiny()
    assert open_sweep(full.path).sizes["seed"] == 3
    assert verify(full).findings == ()
    wider = tiny(alpha=[2.0, 3.0, 4.0])
    fill(full, wider, parts_of(tiny(alpha=[3.0])))
    assert bits(full.path, alpha=[2.0, 4.0]) == before
    assert full.sweep() == wider
    assert verify(full).ok
    assert isinstance(xr.open_zarr(full.path).attrs["sweep"], str)


def test_a_store_of_the_older_form_gets_another_version_of_code(
    full: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of one attribute keeps all others, and writes all in the form of today."""
    as_before(full)
    before = full.attributes()
    monkeypatch.setattr("pipeline.store.code_version", lambda: "9.9.9+new")
    fill(full, tiny(), [])
    after = full.attributes()
    assert after.pop("code_versions") == [*before.pop("code_versions"), "9.9.9+new"]
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
