"""The batch script of a driver, and what is said when it cannot be submitted."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.profile import Profile
from cluster.queue import ClusterError
from cluster.submit import REQUEUE_STATUS, driver_script, submit

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
        job_name="driver",
        notice=90,
    )


def run(
    folder: Path, code: str, send: int | None = None, answer: str = ""
) -> tuple[int, str, list[str]]:
    """Run a script without SLURM; return its status, its output, and what scontrol was asked."""
    asked = folder / "asked"
    asked.touch()
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n{answer}\nexit 0\n')
    (folder / "scontrol").chmod(0o755)
    path = f"{folder}:/usr/bin:/bin"
    with subprocess.Popen(
        ["bash", "-c", script(folder, code)],
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


def test_more_to_do(tmp_path: Path) -> None:
    """A driver that has more to do is put back into the queue."""
    status, _, asked = run(tmp_path, f"print('on'); exit({REQUEUE_STATUS})")
    assert (status, asked) == (0, ["requeue 7"])


def test_a_controller_that_is_away(tmp_path: Path) -> None:
    """A driver is put back into the queue when SLURM's controller answers again."""
    down = tmp_path / "down"
    down.touch()
    status, _, asked = run(
        tmp_path,
        f"print('on'); exit({REQUEUE_STATUS})",
        answer=f"test -e {down} && rm {down} && exit 1",
    )
    assert (status, asked) == (0, ["requeue 7", "requeue 7"])


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


def test_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When sbatch refuses, the error has its words."""
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho Invalid account >&2; exit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ClusterError, match=r"`sbatch --parsable`.*ended with 1: Invalid account"):
        submit("#!/bin/sh\n")
