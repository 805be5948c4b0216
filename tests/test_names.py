"""Names and paths of every kind work from `init` to `open`, or are refused before anything is made.

The commands are called in this process, so that there can be many of them.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alphasweep.pipeline.cli import app
from alphasweep.pipeline.spec import load
from alphasweep.pipeline.store import Store, StoreError
from tests.conftest import fill, parts_of
from tests.test_cli import TINY


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, with a small sweep file in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def call(*arguments: str) -> tuple[int, str]:
    """Run a command; return how it ended, and what it said."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def line_of(said: str, begin: str) -> list[str]:
    """Return the command that a text tells to type, as a shell would take it apart."""
    return shlex.split(said[said.index(begin) :])[1:]


def everything(folder: Path) -> list[str]:
    """Return all that there is in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "name",
    [
        "with blanks",
        'it\'s "quoted"',
        "a:b",
        "données №1 測定",
        "50% [x] $HOME; *",
        "-dash",
        "~",
        "back\\slash",
        "sub/../up",
        "slash/",
        "x" * 190,
    ],
)
def test_names_that_work(here: Path, name: str) -> None:
    """From a sweep file to the line of Python, through the very commands that are printed."""
    (here / "sub").mkdir()
    path = f"./{name}" if name == "~" else name
    code, said = call("init", "--", f"{path.rstrip('/')}.toml")
    assert code == 0, said
    source = line_of(said, "alphasweep plan")[1]
    assert load(source).grid == load("laptop").grid
    Path(source).write_text(TINY)

    asked = f"{path.rstrip('/')}.zarr{'/' if path.endswith('/') else ''}"
    store = Store(asked)
    fill(store, load(source), parts_of(load(source), 4))
    code, said = call("extend", "--seed", "0:5", "--", asked)
    assert code == 0, said
    assert "Adding seed 4; they take " in said
    assert call(*line_of(said, "alphasweep run"), "--part-seconds", "nan")[0] == 2
    again = line_of(said, "alphasweep run")[1]
    assert Store(again).path == store.path
    code, said = call("plan", source, f"--store={asked}")
    assert code == 0, said
    code, said = call("status", "--", asked)
    assert code == 0, said
    assert f"{store.path}: 24 of 30 cells done" in said
    code, said = call("open", "--", asked)
    assert code == 0, said
    scope: dict[str, Any] = {}
    exec(compile(said[said.index("import xarray") :], "printed", "exec"), scope)
    assert dict(scope["ds"].sizes) == dict(store.open().sizes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3://bucket/x.zarr", "a folder of this machine or of a shared file system"),
        ("file:///tmp/x.zarr", "a folder of this machine or of a shared file system"),
        ("zip::x.zarr", "a folder of this machine or of a shared file system"),
        ("a\nb.zarr", "be named in characters that can be printed, on one line"),
        ("a\tb.zarr", "be named in characters that can be printed"),
        ("bytes\udcff.zarr", "be named in characters that can be printed"),
        ("x" * 230 + ".zarr", "have a name of 1 to 200 bytes"),
        ("№" * 100 + ".zarr", "have a name of 1 to 200 bytes"),
        ("/", "have a name of 1 to 200 bytes"),
        (".", "something else is there"),
        ("", "something else is there"),
        ("folder", "something else is there"),
        ("tiny.toml", "something else is there"),
        ("folder/x.run", "must have a name that ends in none of"),
    ],
)
def test_names_that_are_refused(here: Path, name: str, expected: str) -> None:
    """By whatever takes a store; nothing is made, neither there nor beside it."""
    (here / "folder").mkdir()
    before = everything(here), everything(here.parent)
    commands = [
        ("run", "tiny.toml", "--store", name),
        ("plan", "tiny.toml", "--store", name),
        ("extend", name, "--seed", "7"),
        ("status", name),
        ("open", name),
    ]
    for command in commands:
        code, said = call(*command)
        assert code == 1, (command, said)
        assert expected in said, command
        assert len(said.splitlines()) == 1
    assert call("verify", name)[0] == 1  # which also looks at what may be a damaged store
    with pytest.raises(StoreError):
        Store(name).open()
    assert (everything(here), everything(here.parent)) == before


def test_a_store_that_is_not_there_is_not_begun_by_its_extension(here: Path) -> None:
    """Nor is a folder made beside it, or by values that are refused."""
    assert call("extend", "nothing.zarr", "--seed", "7")[0] == 1
    assert everything(here) == ["tiny.toml"]
    fill(Store("tiny.zarr"), load("tiny.toml"), [])
    before = everything(here)
    history = Store("tiny.zarr").history()
    code, said = call("extend", "tiny.zarr", "--seed", "0:20000000")
    assert code == 1
    assert "at most 1,000,000 values; got 0:20000000" in said
    code, said = call("extend", "tiny.zarr", "--seed", "0:4")
    assert code == 0
    assert said == f"Nothing to add: {here / 'tiny.zarr'} has all of these values.\n"
    assert everything(here) == before
    assert Store("tiny.zarr").history() == history


def test_an_extension_says_what_it_adds_and_costs(here: Path) -> None:
    """Values, cells, and the core-hours of the new cells alone, whatever else is missing."""
    sweep = load("tiny.toml")
    fill(Store("tiny.zarr"), sweep, [part for part in parts_of(sweep, 1) if part.first_seed == 0])
    seconds = Store("tiny.zarr").mean_seconds()
    code, said = call("extend", "tiny.zarr", "--seed", "0:5", "--alpha", "2:4:1")
    assert code == 0
    assert "6 cells were added." in said
    (found,) = re.findall(r"Adding seed 4; they take (\S+) to (\S+) core-hours", said)
    least, most = map(float, found)  # of two digits
    assert 0.95 * least < seconds.sum() / 3600 < 1.05 * most


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("nowhere/x.toml", "No such file or directory"),
        ("tiny.toml", "exists already"),
        ("x" * 300, "too long"),
    ],
)
def test_a_file_that_cannot_be_written(here: Path, path: str, expected: str) -> None:
    """One line that speaks of this file, and of no store."""
    code, said = call("init", path)
    assert code == 1
    assert expected in said
    assert "store" not in said
    assert everything(here) == ["tiny.toml"]


@pytest.mark.parametrize("name", ["quick", "-x"])
def test_a_file_that_is_named_like_something_else(name: str) -> None:
    """A preset, an option: the command that is printed means the file."""
    _, said = call("init", "--", name)
    assert line_of(said, "alphasweep plan") == ["plan", f"./{name}"]


@pytest.mark.parametrize("seconds", ["inf", "nan", "-inf", "0"])
def test_parts_of_no_length(here: Path, seconds: str) -> None:
    """A part has to end."""
    for command in ("plan", "run"):
        code, said = call(command, "tiny.toml", "--part-seconds", seconds)
        assert code == 2
        assert "--part-seconds" in said
    assert everything(here) == ["tiny.toml"]
