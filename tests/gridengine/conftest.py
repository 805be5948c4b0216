"""A real Grid Engine for the tests of this folder, see cluster.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from alphasweep.cluster.profile import Profile
from tests.slurm.conftest import free_ports

_SCRIPT = Path(__file__).with_name("cluster.sh")
_PROGRAMS = ("sge_qmaster", "sge_execd", "qsub", "qstat", "qdel", "qacct")


def _missing() -> str:
    """Say what is not installed, and how to install it; "" if all is there."""
    places = os.environ["PATH"] + ":/usr/sbin:/sbin"  # where Debian keeps daemons
    missing = [program for program in _PROGRAMS if not shutil.which(program, path=places)]
    return f"no {', '.join(missing)} here; as root: {_SCRIPT} install" if missing else ""


class GridEngine:
    """A running Grid Engine: what a user would type."""

    kind = "sge"

    def do(self, *words: str) -> str:
        """Run a command, and return what it printed."""
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout} {done.stderr}"
        return done.stdout

    def jobs(self, *, name: str = "", state: str | None = None) -> list[str]:
        """Return ids of jobs that wait or run, the oldest first; `name` is how theirs begins."""
        short = {"PENDING": "qw", "RUNNING": "r", None: None}[state]
        listed = ElementTree.fromstring(self.do("qstat", "-xml", "-u", "*")).iter("job_list")
        found = [
            int(job.findtext("JB_job_number", ""))
            for job in listed
            if job.findtext("JB_name", "").startswith(name)
            and short in (None, job.findtext("state"))
        ]
        return [str(id_) for id_ in sorted(found)]

    def cancel(self, *, name: str) -> None:
        """Delete all jobs whose name begins so."""
        if jobs := self.jobs(name=name):
            subprocess.run(["qdel", *jobs], capture_output=True)  # some may be over by now

    def processes(self, job: str) -> list[int]:
        """Return the processes of a job on this machine, its shell first."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                variables = (place / "environ").read_bytes().split(b"\0")
            except OSError:  # it has just ended, or is another user's
                continue
            own = (f"JOB_ID={job}", f"SGE_ROOT={os.environ['SGE_ROOT']}")
            if all(variable.encode() in variables for variable in own):
                found.append(int(place.name))
        return sorted(found)


def profile(**changes: Any) -> Profile:
    """Return a profile of the test Grid Engine with one small class, called one."""
    size = {"name": "one", "up_to_N": 100, "memory": "300 MB", "walltime": "10 min"}
    size |= {key: changes.pop(key) for key in ("memory", "walltime") if key in changes}
    return Profile.model_validate({"kind": "sge", "jobs": 16, "classes": [size]} | changes)


@pytest.fixture(scope="session")
def gridengine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GridEngine]:
    """Start the Grid Engine of ALPHASWEEP_GRIDENGINE_ROOT and leave it, or one of this session.

    Without Grid Engine the tests are skipped; they fail if ALPHASWEEP_REQUIRE_GRIDENGINE is 1.
    """
    if missing := _missing():
        if os.environ.get("ALPHASWEEP_REQUIRE_GRIDENGINE") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with pytest.MonkeyPatch.context() as environment:
        own = "ALPHASWEEP_GRIDENGINE_ROOT" not in os.environ
        if own:
            root = tmp_path_factory.mktemp("gridengine")
            environment.setenv("ALPHASWEEP_GRIDENGINE_ROOT", str(root))
            environment.setenv("ALPHASWEEP_GRIDENGINE_PORT", str(free_ports(2)))
        try:
            subprocess.run([_SCRIPT, "start"], check=True)
            said = subprocess.run([_SCRIPT, "env"], check=True, capture_output=True, text=True)
            for line in said.stdout.splitlines():
                name, value = line.removeprefix("export ").split("=", 1)
                environment.setenv(name, value)
            yield GridEngine()
        finally:
            if own:
                subprocess.run([_SCRIPT, "stop"], check=True)
