"""The batch script of a driver, and what is said when it cannot be submitted."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alphasweep.cluster.profile import Profile
from alphasweep.cluster.queue import ClusterError
from alphasweep.cluster.submit import REQUEUE_STATUS, driver_script, submit

SIZE = {"name": "one", "up_to_N": 100, "memory": "2 GB", "walltime": "1h"}


def script(folder: Path, code: str, **changes: Any) -> str:
    """Return the script of a driver that runs Python code."""
    driver = {"memory": "2 GB", "walltime": "2h"}
    keys = {"kind": "slurm", "jobs": 1, "driver": driver, "classes": [SIZE]} | changes
    profile = Profile.model_validate(keys)
    return driver_script(
        profile,
        [sys.executable, "-c", code],
        log=folder / "driver.log",
        record=folder / "driver.job",
        job_name="driver",
        notice=90,
    )


def run(
    folder: Path, code: str, send: int | None = None, **answers: str
) -> tuple[int, str, list[str]]:
    """Run a script without SLURM; return its status, its output, and what SLURM was asked.

    `answers` are lines of shell by the command of SLURM; without one, it prints nothing.
    """
    asked = folder / "asked"
    asked.touch()
    for name in ("scontrol", "squeue", "sbatch"):
        lines = f'echo "{name} $@" >> {asked}\n{answers.get(name, "")}\n'
        (folder / name).write_text(f"#!/bin/sh\n{lines}")
        (folder / name).chmod(0o755)
    (folder / "slurm_script").write_text(script(folder, code))
    path = f"{folder}:/usr/bin:/bin"
    with subprocess.Popen(
        ["bash", folder / "slurm_script"],
        env={"PATH": path, "SLURM_JOB_ID": "7"},
        stdout=subprocess.PIPE,
        text=True,
    ) as shell:
        assert shell.stdout
        first = shell.stdout.readline()
        if send is not None:
            shell.send_signal(send)
        output = first + shell.stdout.read()
    return shell.returncode, output, asked.read_text().splitlines()


def test_directives(tmp_path: Path) -> None:
    """The header asks for what is given, and for what makes the job come back."""
    extra = {"extra_directives": ["--constraint=a"], "skip_directives": ["--mem"]}
    lines = script(tmp_path, "", partition="long", account="mine", **extra).splitlines()
    for directive in (
        "-J driver", f"-o {tmp_path}/driver.log", "--open-mode=append", "--requeue",
        "--signal=B:USR1@90", "-t 120", "-n 1", "-p long", "-A mine", "--constraint=a",
    ):  # fmt: skip
        assert f"#SBATCH {directive}" in lines
    assert not any("--mem" in line for line in lines)
    assert "#SBATCH --mem=1908M" in script(tmp_path, "").splitlines()


def test_short_walltime(tmp_path: Path) -> None:
    """A driver is not told of its end before it began, however short its walltime."""
    short = {"memory": "2 GB", "walltime": "4 min"}
    assert "#SBATCH --signal=B:USR1@60" in script(tmp_path, "", driver=short).splitlines()


@pytest.mark.parametrize("status", [0, 1, 3])
def test_end(status: int, tmp_path: Path) -> None:
    """The job ends with the status of the driver, and does not come back."""
    assert run(tmp_path, f"print('on'); exit({status})") == (status, "on\n", [])


MORE = f"print('on'); exit({REQUEUE_STATUS})"
FORBIDDEN = "echo Requested operation is presently disabled for job $2 >&2; exit 1"


def test_more_to_do(tmp_path: Path) -> None:
    """A driver that has more to do is put back into the queue."""
    status, _, asked = run(tmp_path, MORE)
    assert (status, asked) == (0, ["scontrol requeue 7"])
    assert not (tmp_path / "driver.job").exists()


def test_a_controller_that_is_away(tmp_path: Path) -> None:
    """A driver is put back into the queue when SLURM's controller answers again."""
    down = tmp_path / "down"
    down.touch()
    away = f"test ! -e {down} || exit 1"
    back = f"rm {down}; exit 1"  # too late for this question
    status, _, asked = run(tmp_path, MORE, scontrol=away, squeue=away, sbatch=back)
    assert status == 0
    assert [line.split()[0] for line in asked] == ["scontrol", "squeue", "sbatch", "scontrol"]


NOTICES = "echo 12 nodes are down from 2026-12-01; echo; "


@pytest.mark.parametrize("answer", ["8", "8;north"])
def test_where_requeue_is_forbidden(answer: str, tmp_path: Path) -> None:
    """The same script is submitted once, to go on after this job, and its id is written down."""
    answer = f"{NOTICES} echo '{answer}'; echo Have a nice day"
    status, said, asked = run(tmp_path, MORE, scontrol=FORBIDDEN, squeue=NOTICES, sbatch=answer)
    assert status == 0
    assert asked[::2] == [
        "scontrol requeue 7",
        f"sbatch --parsable --dependency=afterany:7 {tmp_path}/slurm_script",
    ]
    assert len(asked) == 3
    assert (tmp_path / "driver.job").read_text() == "8\n"
    assert "SLURM does not put this job back into the queue: job 8 goes on after it.\n" in said


def test_an_answer_that_was_lost(tmp_path: Path) -> None:
    """A job that was submitted without our knowing of it goes on: there is no third one."""
    there = tmp_path / "there"
    status, said, asked = run(
        tmp_path,
        MORE,
        scontrol=FORBIDDEN,
        squeue=f"{NOTICES} echo job=7; if test -e {there}; then echo job=8; fi",
        sbatch=f"touch {there}; echo Socket timed out on send/recv operation >&2; exit 1",
    )
    assert status == 0
    assert len([line for line in asked if line.startswith("sbatch")]) == 1
    assert "-n driver -t PD,R" in asked[1]  # not one that is being cleared away
    assert "job 8 goes on" in said
    assert (tmp_path / "driver.job").read_text() == "8\n"


def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    """On a full disk, too, the driver hands over, once."""
    (tmp_path / "driver.job.new").mkdir()
    status, said, asked = run(tmp_path, MORE, scontrol=FORBIDDEN, sbatch="echo 8")
    assert (status, len(asked)) == (0, 3)
    assert "job 8 goes on" in said


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signals_reach_the_driver(number: signal.Signals, tmp_path: Path) -> None:
    """The driver hears what the shell is told, and has its time to end in its own way."""
    code = (
        "import signal, time\n"
        "def stop(number, _): time.sleep(0.3); print(signal.Signals(number).name); exit(4)\n"
        f"signal.signal({int(number)}, stop); print('on', flush=True); time.sleep(120)"
    )
    assert run(tmp_path, code, number) == (4, f"on\n{number.name}\n", [])


def test_only_slurm(tmp_path: Path) -> None:
    """Other queues cannot take the driver, and the error says what to do instead."""
    with pytest.raises(ClusterError, match='has kind = "pbs": use `alphasweep run`'):
        script(tmp_path, "", kind="pbs")


def test_no_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without sbatch the error says where to run."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="sbatch must be on the PATH: run alphasweep on a login"):
        submit("#!/bin/sh\n")


def sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """Let sbatch be a shell script."""
    (folder / "sbatch").write_text(f"#!/bin/sh\n{lines}\n")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When sbatch refuses, the error has its words."""
    sbatch(tmp_path, monkeypatch, "echo Invalid account >&2; exit 1")
    with pytest.raises(ClusterError, match=r"`sbatch --parsable`.*ended with 1: Invalid account"):
        submit("#!/bin/sh\n")


def test_notices_of_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither digits in a notice nor the name of a cluster are taken for the id of the job."""
    sbatch(tmp_path, monkeypatch, f"{NOTICES} echo '8;north'; echo 3 projects end soon")
    assert submit("#!/bin/sh\n") == "8"
    sbatch(tmp_path, monkeypatch, NOTICES)
    with pytest.raises(ClusterError, match=r"must tell the id.*12 nodes are down"):
        submit("#!/bin/sh\n")
