"""What the commands of a queue are asked, and what is believed of their answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from alphasweep.cluster import queue, slurm
from alphasweep.cluster.launch import _SUBMITTED
from alphasweep.cluster.queue import ClusterError, Ended, Listed, NoAnswerError, command, job_id
from alphasweep.cluster.submit import submit

NOTICE = """\
*** 2 file systems are 97 % full; maintenance on 12|05 ***
4711 core-hours are left
JobState=RUNNING is what you want
\u00fcber 3 GB
"""

Fake = Callable[..., None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Return what puts a shell script in the place of a command; it prints notices first."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "notice").write_text(NOTICE, "latin-1")

    def write(name: str, text: str) -> None:
        (tmp_path / name).write_text(
            f"#!/bin/sh\ncat {tmp_path}/notice\n{text}\ncat {tmp_path}/notice\n"
        )
        (tmp_path / name).chmod(0o755)

    return write


def squeue(*lines: str) -> str:
    """Return a script that prints jobs in the format that it is asked for."""
    printed = "\n".join(
        f'echo "$format" | sed "s/%A/{i}/; s/%T/{t}/; s/%r/{r}/; s/%j/{j}/"'
        for i, t, r, j in (line.split(",") for line in lines)
    )
    return f"for format; do :; done\n{printed}"


def test_jobs_among_notices(fake: Fake) -> None:
    """Only lines with our mark are jobs, and of these those whose name begins as is asked."""
    fake(
        "squeue", squeue("11,RUNNING,None,a-1", "12,PENDING,Resources,a-2|b c", "13,RUNNING,None,b")
    )
    found = {
        "11": Listed("a-1", "RUNNING", "None"),
        "12": Listed("a-2|b c", "PENDING", "Resources"),
    }
    assert slurm.jobs("a-") == found
    assert slurm.jobs("a-2").keys() == {"12"}


def test_an_end_among_notices(fake: Fake) -> None:
    """How a job ended is read from its own line."""
    fake(
        "scontrol",
        'echo "JobId=$4 JobName=a JobState=FAILED ExitCode=3:0 NodeList=n1 BatchHost=n1"',
    )
    assert slurm.ended("11") == Ended("FAILED", "3:0", "n1")


def test_a_forgotten_end(fake: Fake) -> None:
    """A job that SLURM forgot is no error."""
    fake("scontrol", "echo Invalid job id specified >&2; exit 1")
    assert slurm.ended("11") == Ended()


def test_driver_job_among_notices(fake: Fake) -> None:
    """The id of a submitted driver is what --parsable prints, and nothing else."""
    fake("sbatch", 'case "$*" in *--parsable*) echo "77;federated";; *) echo wrong 5;; esac')
    assert submit("#!/bin/sh\n") == "77"


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("slurm", "77"),
        ("pbs", "77.server.site"),
        ("moab", "Moab.77"),
        ("sge", 'Your job 77 ("a-1") has been submitted'),
        ("lsf", "Job <77> is submitted to default queue <normal>."),
        ("oar", "OAR_JOB_ID=77"),
        ("htcondor", "1 job(s) submitted to cluster 77."),
    ],
)
def test_ids_among_notices(kind: str, line: str) -> None:
    """Of no queue is a number in a notice taken for a job."""
    notice = "12 jobs\nYour job quota is 5\nProject 2026.1 ends"
    assert job_id(_SUBMITTED[kind], f"{notice}\n{line}\n{notice}\n") == "77"
    with pytest.raises(ClusterError, match=r"must tell the id.*12 jobs"):
        job_id(_SUBMITTED[kind], notice)


def test_preferences_of_the_user(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """What users set for the commands that they type does not change what is listed."""
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    fake("squeue", '[ "$SQUEUE_STATES" ] && exit\n' + squeue("11,RUNNING,None,a"))
    assert slurm.jobs("a").keys() == {"11"}


def test_a_command_that_hangs(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error after the limit, and neither it nor what it started is left behind."""
    monkeypatch.setattr(queue, "LIMIT_SECONDS", 1)
    pid = tmp_path / "pid"
    fake("squeue", f"sleep 300 & echo $! > {pid}; wait")
    with pytest.raises(NoAnswerError, match=r"squeue must answer within 1 s"):
        command("squeue")
    end = time.monotonic() + 60
    while runs(int(pid.read_text())):
        assert time.monotonic() < end, "what squeue started is there still"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Say whether there is such a process which is no zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
