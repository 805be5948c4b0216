"""A network file system that has a hiccup costs time, and nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenacity

from alphasweep.pipeline.files import patient, replace, replace_text
from alphasweep.pipeline.inbox import Inbox
from alphasweep.pipeline.part import compute
from alphasweep.pipeline.store import Store, hand_in
from alphasweep.pipeline.verify import verify
from tests.conftest import bits, fill, parts_of, tiny


def stumble(real: Callable[..., Any], code: int, times: int = 1, only: str = "") -> Any:
    """Return a function that fails so many times (with paths that hold `only`) before it works."""
    failures = iter(range(times))

    def function(*args: Any, **keywords: Any) -> Any:
        if only in str(args[0]) and next(failures, None) is not None:
            stumbled.append(code)
            raise OSError(code, os.strerror(code), str(args[0]))
        return real(*args, **keywords)

    return function


stumbled: list[int] = []


@pytest.fixture(autouse=True)
def steady() -> None:
    """Forget the failures of other tests."""
    stumbled.clear()


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOENT])
def test_a_hiccup_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """A part is handed in when the file system is back: whole, alone, with one line about it."""
    sweep = tiny()
    part = parts_of(sweep)[0]
    monkeypatch.setattr(os, "fsync", stumble(os.fsync, code, times=3))
    hand_in(Inbox(tmp_path, "", sweep.recipe), part, compute(sweep.recipe, part))
    assert [file.name for file in tmp_path.iterdir()] == [f"{part.name}.npz"]
    with np.load(tmp_path / f"{part.name}.npz") as file:
        assert len(file["cells"]) == len(part.seeds)
    assert len(caplog.messages) == 1
    assert f"{os.strerror(code)}" in caplog.messages[0]
    assert "trying again" in caplog.messages[0]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_what_does_not_pass_is_told_at_once(code: int) -> None:
    """A full disk, a quota or a missing permission is for people."""
    tried = []

    @patient
    def write() -> None:
        tried.append(code)
        raise OSError(code, os.strerror(code))

    with pytest.raises(OSError, match=os.strerror(code)):
        write()
    assert tried == [code]


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that does not come back is an error, and the one that it gave."""
    now = [0.0]
    monkeypatch.setattr(tenacity.time, "monotonic", lambda: now[0])
    tried = []

    @patient
    def write() -> None:
        tried.append(now[0])
        raise OSError(errno.ESTALE, "Stale file handle")

    write.retry.sleep = lambda seconds: now.__setitem__(0, now[0] + seconds)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="Stale file handle"):
        write()
    assert 60 <= tried[-1] < 75
    assert len(tried) < 20  # a server that restarts is not helped by being asked all the time


def test_a_rename_whose_answer_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked a second time, the file system says that there is no such file: it was renamed."""
    real = Path.replace

    def twice(self: Path, target: Path) -> None:
        real(self, target)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))

    monkeypatch.setattr(Path, "replace", twice)
    replace_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"

    def never(self: Path, target: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))

    monkeypatch.setattr(Path, "replace", never)
    with pytest.raises(FileNotFoundError):
        replace(tmp_path / "file", lambda file: file.write(b"newer"))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("what", ["a part", "a chunk", "the folder"])
def test_a_commit_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Wherever it stumbles, the commit that is repeated is that of a sound file system."""
    sweep = tiny()
    fill(reference := Store(tmp_path / "reference.zarr"), sweep, parts_of(sweep))
    store = Store(tmp_path / "store.zarr")
    with store.lock() as writer:
        writer.prepare(sweep)
        for part in parts_of(sweep):
            hand_in(store.inbox(), part, compute(sweep.recipe, part))
        if what == "a part":
            read = stumble(Path.read_bytes, errno.EIO, times=2, only=".npz")
            monkeypatch.setattr(Path, "read_bytes", lambda path: read(path))
        elif what == "a chunk":
            rename = stumble(Path.replace, errno.ESTALE, times=2, only="overlap")
            monkeypatch.setattr(Path, "replace", lambda path, target: rename(path, target))
        else:
            monkeypatch.setattr(os, "fsync", stumble(os.fsync, errno.ESTALE, times=2))
        writer.collect()
    assert len(stumbled) == 2
    assert bits(store.path) == bits(reference.path)
    assert store.parts() == []


def test_a_part_that_cannot_be_read_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file system does not show may be sound: it is not removed, and `verify` tells."""
    sweep = tiny()
    store = Store(tmp_path / "store.zarr")
    with store.lock() as writer:
        writer.prepare(sweep)
        part = parts_of(sweep)[0]
        hand_in(store.inbox(), part, compute(sweep.recipe, part))
        read = stumble(Path.read_bytes, errno.EIO, times=10**6, only=".npz")
        monkeypatch.setattr(Path, "read_bytes", lambda path: read(path))
        with pytest.raises(OSError, match="Input/output error"):
            writer.collect.__wrapped__(writer)  # without patience
        assert store.parts() == [part]
        kinds = [(finding.kind, finding.severity) for finding in verify(store).findings]
        assert kinds == [("part", "damage")]
        monkeypatch.undo()
        writer.collect()
    assert int((store.status() == 1).sum()) == len(part.seeds)
