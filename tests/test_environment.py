"""The commands where the environment is poor: no user, no home, no terminal, nobody who reads.

Nothing that is only printing or drawing may cost a result, or hide it.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from alphasweep.analysis.figures import FIGURES
from alphasweep.pipeline.spec import load
from alphasweep.pipeline.store import Store
from tests.conftest import fill, parts_of
from tests.test_cli import COMMAND, TINY
from tests.test_figures import with_something_to_show

pytestmark = pytest.mark.long

RUN = ("run", "tiny.toml", "--workers", "1")
ROOT = Path(__file__).parents[1]

# What a container does that runs under a number without an entry in its /etc/passwd.
NOBODY = """
import pwd
def nobody(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")
pwd.getpwuid = nobody
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, with a small sweep file in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


@pytest.fixture
def finished(here: Path) -> Path:
    """A store of which all is done: `run` only concludes."""
    fill(Store("tiny.zarr"), load("tiny.toml"), parts_of(load("tiny.toml"), 4))
    return here / "tiny.zarr"


def shell(line: str, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which "$@" is a command of alphasweep."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **settings,
    )


def is_done(path: str | Path = "tiny.zarr") -> bool:
    """Whether every cell is computed, and the figures are drawn."""
    drawn = len(list(Path().rglob("*.p[nd][gf]")))
    ds = xr.open_zarr(path)
    return bool((ds.status == 1).all()) and drawn == 2 * len(with_something_to_show(ds))


# --- nobody reads -----------------------------------------------------------------------------

FULL = "alphasweep: what was printed could not be written: No space left on device.\n"


@pytest.mark.parametrize(
    ("line", "lines", "told"),
    [
        ('"$@" | head -1; exit ${PIPESTATUS[0]}', 1, ""),
        ('"$@" >&- 2>&-', 0, ""),
        ('"$@" >/dev/full', 0, FULL),
    ],
    ids=["the reader has gone", "closed", "full"],
)
def test_a_run_that_nobody_reads_ends_as_any_other(line: str, lines: int, told: str) -> None:
    """It computes all, draws all, and says that it did."""
    done = shell(line, *RUN)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == lines
    assert done.stderr == told
    assert is_done()


@pytest.mark.parametrize("verb", ["status", "open"])
def test_an_answer_that_is_lost_is_an_error(finished: Path, verb: str) -> None:
    """What only answers has failed if the answer cannot be written, but not if nobody wants it."""
    lost = shell('"$@" >/dev/full', verb, "tiny.zarr")
    assert (lost.returncode, lost.stderr) == (1, FULL)
    unread = shell('"$@" | true; exit ${PIPESTATUS[0]}', verb, "tiny.zarr")
    assert (unread.returncode, unread.stderr) == (0, "")


def test_a_reader_who_does_not_read_stops_no_run(here: Path) -> None:
    """As after Ctrl-S, or in a pager: cells are computed, and the table waits for the reader."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    filled = 0
    with suppress(BlockingIOError):
        while True:
            filled += os.write(writer, b"x" * 512)
    os.set_blocking(writer, True)
    run = subprocess.Popen([*COMMAND, *RUN], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    end = time.monotonic() + 120
    store = Store("tiny.zarr")
    while not store.exists() or (store.status() != 1).any():
        assert run.poll() is None
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    with os.fdopen(reader, "rb") as file:
        said = file.read()[filled:].decode()
    assert run.communicate(timeout=120)[1] == b""
    assert run.returncode == 0
    assert "alpha_half" in said
    assert is_done()


@pytest.mark.parametrize("arguments", [("--help",), ("status", "--nonsense"), ("run", "no.toml")])
def test_words_that_cannot_be_written_are_no_traceback(arguments: tuple[str, ...]) -> None:
    """Help and errors go the same way as all else."""
    done = shell('"$@" 2>/dev/full | true', *arguments)
    assert (done.stdout, done.stderr) == ("", "")
    full = shell('"$@" >/dev/full', *arguments)
    assert "Traceback" not in full.stderr
    assert "Exception" not in full.stderr


# --- nobody in particular ---------------------------------------------------------------------


def test_a_run_in_a_container(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without name and home, in a folder that cannot be written, with ASCII alone."""
    (here / "patch").mkdir()
    (here / "patch" / "sitecustomize.py").write_text(NOBODY)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(here / "patch"), str(ROOT)]),
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
    }
    elsewhere = "/proc" if Path("/proc").is_dir() else "/dev"
    store = here / "données :x: №1.zarr"
    done = shell(
        '"$@"', "run", str(here / "tiny.toml"), "--workers", "1", "--store", str(store),
        env=environment, cwd=elsewhere,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert is_done(store)
    assert "donn\\xe9es :x: \\u21161.zarr" in done.stdout
    assert {event["user"] for event in Store(store).history()} == {str(os.getuid())}


# --- drawing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            b"text.usetex: True\ntext.parse_math: False\nsavefig.format: svg\nbackend: nonsense\n",
            "",
        ),
        (b"text.usetex: \xff", "UnicodeDecodeError"),
    ],
    ids=["LaTeX", "not text"],
)
def test_settings_of_matplotlib_cost_no_result(
    finished: Path, monkeypatch: pytest.MonkeyPatch, settings: bytes, told: str
) -> None:
    """Figures are drawn with our own; if that fails, it is one line, and the table is there."""
    Path("matplotlibrc").write_bytes(settings)
    monkeypatch.setenv("MATPLOTLIBRC", str(Path("matplotlibrc").absolute()))
    monkeypatch.setenv("HOME", str(finished / "zarr.json" / "home"))  # nor can it have one
    done = shell('"$@"', "run", "tiny.zarr")
    assert done.returncode == bool(told), done.stderr
    assert "alpha_half" in done.stdout
    assert "xarray.open_zarr" in done.stdout
    if told:
        (line,) = done.stderr.splitlines()
        assert line.startswith("alphasweep: no figure could be drawn: ")
        assert told in line
    else:
        assert done.stderr == ""
        assert is_done()


def test_figures_that_cannot_be_saved_are_told_in_one_line(finished: Path) -> None:
    """A file where their folder would be."""
    Path("tiny.zarr.figures").touch()
    done = shell('"$@"', "run", "tiny.zarr")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    shown = with_something_to_show(xr.open_zarr("tiny.zarr"))
    names = ", ".join(name for name in FIGURES if name in shown)
    assert f"{names}: FileExistsError" in line
    assert "Figures:" not in done.stdout
    assert "xarray.open_zarr" in done.stdout
