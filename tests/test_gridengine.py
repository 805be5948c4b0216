"""What `cluster.gridengine` makes of commands that are slow or odd; see tests/gridengine too."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from alphasweep.cluster import gridengine
from alphasweep.cluster import queue as commands
from alphasweep.cluster.queue import Ended, NoAnswerError

EMPTY = "echo '<job_info><queue_info></queue_info><job_info></job_info></job_info>'"
Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return what makes a command of Grid Engine do something of a test's own."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def one(program: str, text: str) -> None:
        (tmp_path / program).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / program).chmod(0o755)

    return one


def test_a_slow_account_is_no_silence(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site whose account of all jobs takes long to read still supervises those that run."""
    monkeypatch.setattr(commands, "LIMIT_SECONDS", 3)
    write("qstat", EMPTY)
    write("qacct", "sleep 1000")
    assert gridengine.ended("7") == Ended()
    write("qstat", "sleep 1000")
    with pytest.raises(NoAnswerError):
        gridengine.ended("7")


def test_the_last_job_of_a_number(write: Write) -> None:
    """Numbers of jobs begin anew after millions: the last account is that of the job."""
    write("qstat", EMPTY)
    record = "printf '%s\\nhostname     {}   \\nfailed       {}\\nexit_status  {}\\n' ====="
    write("qacct", record.format("a", "0", "0") + "\n" + record.format("b", "0", "7"))
    assert gridengine.ended("7") == Ended("FAILED", "7", "b")


@pytest.mark.parametrize(
    ("ran", "limit", "expected"),
    [("61s", "h_rt=60,h_vmem=1G", "TIMEOUT"), ("12", "h_rt=60,h_vmem=1G", "OUT_OF_MEMORY")],
)
def test_a_limit_that_was_enforced(write: Write, ran: str, limit: str, expected: str) -> None:
    """Grid Engine has one number for several limits: the walltime is told by how long it ran."""
    write("qstat", EMPTY)
    failed = "37  : qmaster enforced h_rt, h_cpu, or h_vmem limit"
    lines = [f"failed       {failed}", "exit_status  137      (Killed)", f"ru_wallclock {ran}"]
    lines += [f"category     -l {limit}"]
    write("qacct", "\n".join(f"echo '{line}'" for line in ["=====", *lines]))
    assert gridengine.ended("7").state == expected
