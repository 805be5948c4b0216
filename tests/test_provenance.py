"""A store knows which code computed it, and refuses code that gives other numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xarray as xr

from kernels import descent
from pipeline import provenance
from pipeline.part import compute
from pipeline.provenance import code_version, fingerprint, other_numbers
from pipeline.spec import Sweep, as_document
from pipeline.store import Store, StoreError, hand_in
from tests.conftest import bits, fill, parts_of, tiny

RECIPE = tiny().recipe


def test_a_fingerprint_is_json_and_repeats() -> None:
    """It survives JSON unchanged, and the same code gives it again, to the bit."""
    first = fingerprint(RECIPE)
    assert json.loads(json.dumps(first)) == first == fingerprint(RECIPE)
    assert other_numbers(RECIPE, first) == []
    assert np.shape(first["overlap"]) == (2, 3)


def test_rounding_is_not_another_number() -> None:
    """What another BLAS does to the last digits is let pass."""
    nearby = {name: (np.array(v) * (1 + 1e-6)).tolist() for name, v in fingerprint(RECIPE).items()}
    assert other_numbers(RECIPE, nearby) == []


@pytest.mark.parametrize("setting", ["a", "learning_rate", "signal"])
def test_a_fingerprint_knows_the_settings(setting: str) -> None:
    """Each setting that changes numbers changes the fingerprint."""
    value: Any = {"a": 1.1, "learning_rate": 0.031, "signal": "null"}[setting]
    document = as_document(tiny())
    section = "descent" if setting in document["descent"] else "problem"
    other = Sweep.from_document(document | {section: document[section] | {setting: value}})
    assert other_numbers(RECIPE, fingerprint(other.recipe)) != []


def broken_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the kernels give energies that are wrong by one part in a thousand."""
    real = descent.energy
    monkeypatch.setattr(descent, "energy", lambda *arguments: 1.001 * real(*arguments))


def test_a_kernel_with_other_numbers_is_refused(
    full: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is left alone, and the message says what differs and what to do."""
    before = bits(full.path)
    broken_energy(monkeypatch)
    wider = tiny(alpha=[2.0, 3.0, 4.0])
    with pytest.raises(StoreError, match=r"energy by up to 0\.0.*--other-numbers"):
        fill(full, wider, parts_of(wider))
    assert bits(full.path) == before


def test_numbers_are_mixed_only_on_request_and_it_shows(
    full: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable `code` tells which cells are whose."""
    broken_energy(monkeypatch)
    for module in ("store", "inbox"):
        monkeypatch.setattr(f"pipeline.{module}.code_version", lambda: "9.9.9+new")
    with full.lock() as writer:
        writer.prepare(tiny(alpha=[2.0, 3.0, 4.0]), mix=True)
        for part in parts_of(tiny(alpha=[3.0])):
            hand_in(full.inbox(), part, compute(RECIPE, part))
        writer.collect()
    dataset = xr.open_zarr(full.path).load()
    assert json.loads(dataset.attrs["code_versions"]) == [code_version(), "9.9.9+new"]
    assert (dataset.code.sel(alpha=3.0) == 1).all()
    assert (dataset.code.sel(alpha=[2.0, 4.0]) == 0).all()
    assert full.versions() == {code_version(): 12, "9.9.9+new": 6}


def test_the_version_names_the_files_that_compute() -> None:
    """It is that of the package, and a digest of its kernels: a local change shows."""
    version, _, digest = code_version().partition("+")
    assert version
    assert len(digest) == 8
    provenance.code_version.cache_clear()
    assert code_version() == f"{version}+{digest}"


def test_history_tells_who_did_what(full: Store) -> None:
    """Creation and extension are kept with time, user, host, version and cells added."""
    fill(full, tiny(alpha=[2.0, 3.0, 4.0]), [])
    created, extended = full.history()
    assert (created["event"], created["cells"]) == ("create", 12)
    assert (extended["event"], extended["cells"]) == ("extend", 6)
    for event in (created, extended):
        assert event["version"] == code_version()
        assert {"time", "user", "host"} <= set(event)


def test_a_torn_line_in_the_history_hides_no_other(full: Store) -> None:
    """A crash in the middle of a line costs that line."""
    with (full.control / "events.jsonl").open("ab") as file:
        file.write(b'{"time": "20\xff')
    assert [event["event"] for event in full.history()] == ["create"]
