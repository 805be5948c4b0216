"""What a real SLURM says of jobs before they are submitted, and what the commands make of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alphasweep.cluster.admission import outlooks
from alphasweep.cluster.launch import job_script
from alphasweep.cluster.queue import Outlook
from alphasweep.cluster.slurm import outlook, remedy
from tests.slurm.conftest import Slurm, profile, until
from tests.test_cli import TINY

COMMAND = [sys.executable, "-P", "-m", "alphasweep.pipeline.cli"]


def job(*directives: str) -> str:
    """Return the script of a job."""
    return "\n".join(["#!/bin/sh", *(f"#SBATCH {line}" for line in directives), "true\n"])


@pytest.mark.parametrize(
    "directives",
    [
        (),
        ("-t 60",),
        ("-t 01:00:00", "--mem=3G"),
        ("-t 5", "-p short,normal"),
        ("-t 5", "-p short", "--partition=normal"),
        ("-p nowhere", "-p wide"),
        ("-t 2-0:00:00", "--qos=long"),  # which may have limits of its own
    ],
)
def test_jobs_that_can_run(slurm: Slurm, directives: tuple[str, ...]) -> None:
    """Nothing is said of them, and nothing is submitted."""
    before = slurm.jobs()
    assert outlook(job(*directives)) == Outlook()
    assert slurm.jobs() == before


@pytest.mark.parametrize(
    ("directives", "words"),
    [
        (("-t 1441",), "must be at most 1440 min, the longest in partition normal; got 1441"),
        (("-t 1-00:00:00", "-p wide"), "at most 60 min, the longest in partition wide; got 1440"),
        (("-t 5", "-p normal", "--partition=short"), "at most 2 min, the longest in partition sho"),
        (("-t 90", "-p short,wide"), "at most 60 min, the longest in partition short, wide; got"),
        (("-p nowhere",), '"Invalid partition name specified"'),
        (("--mem=100T",), "of the largest node of the partition; got 1.04858e+08 MiB"),
        (("-n 2000",), '"Requested node configuration is not available"'),
        (("--constraint=fast",), '"Invalid feature specification"'),
        (("--gres=gpu:1",), '"Invalid generic resource (gres) specification"'),
        (("--no-such-option",), "unrecognized option '--no-such-option'"),
    ],
)
def test_jobs_that_never_run(slurm: Slurm, directives: tuple[str, ...], words: str) -> None:
    """Each is refused with what does not fit; SLURM itself would let some wait for ever."""
    said = outlook(job(*directives))
    assert words in said.refusal
    assert not said.doubt


def test_nodes_that_come_back(slurm: Slurm) -> None:
    """While nodes are drained SLURM refuses what it would run later: a doubt, no refusal."""
    slurm.do("scontrol", "update", "nodename=n[1-4]", "state=drain", "reason=test")
    try:
        said = outlook(job())
        too_much = outlook(job("--mem=100T"))
    finally:
        slurm.do("scontrol", "update", "nodename=n[1-4]", "state=resume")
    assert not said.refusal
    assert "Some nodes are out of service" in said.doubt
    assert "largest node" in too_much.refusal


def test_a_reason_that_does_not_end(slurm: Slurm) -> None:
    """SLURM's own word for a walltime that its partition never gives is one that we know."""
    waiting = slurm.do(
        "sbatch", "--parsable", "-p", "wide", "-t", "61", "-o", "/dev/null", "--wrap", "true"
    )
    try:
        reason = until(
            lambda: (word := slurm.shows(waiting.strip())["Reason"]) != "None" and word,
            what="a reason",
        )
    finally:
        slurm.do("scancel", waiting.strip())
    assert remedy(reason).startswith("lower the walltime")
    assert remedy("Resources") == remedy("Priority") == ""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a sweep, where a refused command may leave nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    yield tmp_path
    assert not list(tmp_path.glob("*.zarr*"))


def cluster_file(folder: Path, **keys: Any) -> None:
    """Write p.toml for the test SLURM; [driver] has the longest walltime that is allowed."""
    keys = {"kind": "slurm", "jobs": 2, "partition": "wide"} | keys
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    text += '[driver]\nmemory = "300 MB"\nwalltime = "1h"\n'
    text += '[[classes]]\nname = "one"\nup_to_N = 99\nmemory = "400 MB"\nwalltime = "2h"\n'
    (folder / "p.toml").write_text(text)


def refused(*words: str) -> str:
    """Run a command that must end with an error, and return what it complains of."""
    done = subprocess.run(
        [*COMMAND, *words, "tiny.toml", "--on", "p.toml"], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("verb", ["plan", "run", "submit"])
def test_a_walltime_that_pends_for_ever(slurm: Slurm, desk: Path, verb: str) -> None:
    """One line says what to change, before there is a job or a store."""
    before = slurm.jobs()
    cluster_file(desk)
    (line,) = refused(verb).splitlines()
    assert line.startswith("alphasweep: profile file p.toml, class one: its walltime must be at mo")
    assert line.endswith("got 120 min: lower it, or choose another partition.")
    assert slurm.jobs() == before


def test_an_account_that_is_none(slurm: Slurm, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question tells at once, for workers and driver; this SLURM has no accounts, so we say it.

    As SLURM 22.05 does where accounts are enforced.
    """
    refusal = "allocation failure: Invalid account or account/partition combination specified"
    slurm.write(
        desk / "bin",
        "sbatch",
        f"test $1 = --test-only || exec $REAL \"$@\"\ngrep -q 'SBATCH -A nobody' || exit 0\n"
        f'echo "{refusal}" >&2; exit 1',
        monkeypatch,
    )
    cluster_file(desk, account="nobody", extra_directives=["-t 5"])
    workers, driver = refused("submit").splitlines()
    assert "class one: SLURM must be able to run it, and says" in workers
    assert "[driver]: SLURM must be able" in driver
    for line in (workers, driver):
        assert '"Invalid account or account/partition combination specified": mend' in line


def test_a_queue_that_does_not_answer(
    slurm: Slurm, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is one warning, and no refusal."""
    slurm.write(
        desk / "bin", "sinfo", "echo Unable to contact slurm controller >&2; exit 1", monkeypatch
    )
    one = profile()
    script = job_script(one, one.classes[0], run_directory=desk / "run")
    ((name, said),) = outlooks(one, {"class one": script, "[driver]": script}).items()
    assert name == "class one"
    assert not said.refusal
    assert "Unable to contact slurm controller" in said.doubt
    cluster_file(desk)
    done = subprocess.run(
        [*COMMAND, "plan", "tiny.toml", "--on", "p.toml"], capture_output=True, text=True
    )
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "class one: whether it could run is not known" in line


def test_a_file_without_a_driver(slurm: Slurm, desk: Path) -> None:
    """Nothing is made for a driver that cannot be submitted."""
    cluster_file(desk)
    classes = (desk / "p.toml").read_text().partition("[[classes]]")[2]
    (desk / "p.toml").write_text(f'kind = "slurm"\njobs = 2\n[[classes]]{classes}')
    assert "must have a [driver]" in refused("submit")
