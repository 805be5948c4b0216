"""A real SLURM for the tests of this folder, see cluster.sh."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alphasweep.cluster.profile import Profile

_SCRIPT = Path(__file__).with_name("cluster.sh")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")


def _missing() -> str:
    """Say what is not installed, and how to install it; "" if all is there."""
    places = os.environ["PATH"] + ":/usr/sbin:/sbin"  # where Debian keeps daemons
    missing = [program for program in _PROGRAMS if not shutil.which(program, path=places)]
    return f"no {', '.join(missing)} here; as root: {_SCRIPT} install" if missing else ""


class Slurm:
    """A running SLURM: what a user and an administrator would type."""

    kind = "slurm"

    def do(self, *words: str) -> str:
        """Run a command, and return what it printed."""
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def admin(self, *words: str) -> None:
        """Run a verb of cluster.sh, such as ``kill-node n2``."""
        subprocess.run([_SCRIPT, *words], check=True)

    def jobs(self, *, name: str = "", state: str | None = None) -> list[str]:
        """Return ids of jobs that wait or run, the oldest first; `name` is how theirs begins."""
        lines = self.do("squeue", "-h", "-o", "@ %A %T %j").splitlines()
        shown = (line.split()[1:] for line in lines if line.startswith("@ "))  # see `write`
        found = [int(id_) for id_, s, n in shown if n.startswith(name) and state in (None, s)]
        return [str(id_) for id_ in sorted(found)]

    def cancel(self, *, name: str) -> None:
        """Cancel all jobs whose name begins so."""
        for job in self.jobs(name=name):
            self.do("scancel", "--quiet", job)

    def shows(self, job: str) -> dict[str, str]:
        """Return what scontrol says of a job, by field."""
        words = self.do("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def processes(self, job: str) -> list[int]:
        """Return the processes of a job on this machine, its shell first."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                variables = (place / "environ").read_bytes().split(b"\0")
            except OSError:  # it has just ended, or is another user's
                continue
            own = (f"SLURM_JOB_ID={job}", f"SLURM_CONF={os.environ['SLURM_CONF']}")
            if all(variable.encode() in variables for variable in own):
                found.append(int(place.name))
        return sorted(found)

    def write(self, folder: Path, program: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put a shell script before a command of SLURM; it calls the real one as $REAL."""
        real = shutil.which(program)
        folder.mkdir(exist_ok=True)
        (folder / program).write_text(f"#!/bin/sh\nREAL={real}\n{text}\n")
        (folder / program).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def until(condition: Callable[[], Any], *, what: str, seconds: float = 120) -> Any:
    """Wait for a condition, and return its first true value. Machines that others use may stall."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
    return found


def profile(**changes: Any) -> Profile:
    """Return a profile of the test SLURM with one small class, called one."""
    size = {"name": "one", "up_to_N": 100, "memory": "300 MB", "walltime": "10 min"}
    size |= {key: changes.pop(key) for key in ("memory", "walltime") if key in changes}
    return Profile.model_validate({"kind": "slurm", "jobs": 70, "classes": [size]} | changes)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Start the SLURM of ALPHASWEEP_SLURM_ROOT and leave it running, or one of this session.

    Without SLURM the tests are skipped; they fail if ALPHASWEEP_REQUIRE_SLURM is 1.
    """
    if missing := _missing():
        if os.environ.get("ALPHASWEEP_REQUIRE_SLURM") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with pytest.MonkeyPatch.context() as environment:
        own = "ALPHASWEEP_SLURM_ROOT" not in os.environ
        if own:
            environment.setenv("ALPHASWEEP_SLURM_ROOT", str(tmp_path_factory.mktemp("slurm")))
            environment.setenv("ALPHASWEEP_SLURM_PORT", str(free_ports(5)))
        environment.setenv(
            "SLURM_CONF", str(Path(os.environ["ALPHASWEEP_SLURM_ROOT"]) / "etc" / "slurm.conf")
        )
        running = Slurm()
        try:
            running.admin("start")
            yield running
        finally:
            if own:
                running.admin("stop")


def free_ports(number: int) -> int:
    """Find consecutive free ports on loopback, and return the first."""
    # Not all from the same: others may look for some at this moment.
    for first in range(16817 + os.getpid() % 1000 * 10, 32000, 10):
        sockets = [socket.socket() for _ in range(number)]
        try:
            for port, each in enumerate(sockets, first):
                each.bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
        return first
    raise AssertionError(f"no {number} consecutive ports are free")
