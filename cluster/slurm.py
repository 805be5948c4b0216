"""The few commands of SLURM that are needed beside what dask-jobqueue does."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

_TIMEOUT_SECONDS = 60  # a busy slurmctld answers late; one that does not answer is an error


class ClusterError(RuntimeError):
    """The queue, or what runs in it, fails the run; the message says what to do."""


@dataclass(frozen=True)
class Listed:
    """A job as squeue shows it."""

    state: str
    reason: str


@dataclass(frozen=True)
class Ended:
    """How a job ended, as far as SLURM still knows; "" if it does not."""

    state: str = ""
    exit_code: str = ""
    node: str = ""


def command(*words: str, script: str | None = None) -> str:
    """Run a command of SLURM, with `script` as its standard input, and return what it printed.

    Raises
    ------
    ClusterError
        If there is no such command, or if it fails.
    """
    try:
        done = subprocess.run(
            words, input=script, text=True, capture_output=True, timeout=_TIMEOUT_SECONDS
        )
    except FileNotFoundError:
        raise ClusterError(
            f"{words[0]} must be on the PATH: run alphasweep on a login node of the cluster, or "
            'set kind = "local" in the profile.'
        ) from None
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"{words[0]} must answer within {_TIMEOUT_SECONDS} s and did not: SLURM is busy or "
            "down; `sinfo` says which. Run again later: what was finished is kept."
        ) from None
    if done.returncode:
        raise ClusterError(
            f"`{' '.join(words)}` must succeed; it ended with {done.returncode}: "
            f"{done.stderr.strip() or done.stdout.strip() or 'no message'}"
        )
    return done.stdout


def listed(*, name: str | None = None) -> dict[str, Listed]:
    """Return this user's jobs that are pending or running, by job id.

    Parameters
    ----------
    name : str, optional
        Only jobs of this name.
    """
    by_name = [f"--name={name}"] if name else []
    lines = command("squeue", "-h", "-u", str(os.getuid()), *by_name, "-o", "%A|%T|%r").splitlines()
    return {job: Listed(*rest) for job, *rest in (line.split("|", 2) for line in lines)}


def ended(job: str) -> Ended:
    """Say how a job ended; SLURM forgets it after a few minutes."""
    try:
        shown = command("scontrol", "show", "job", "--oneliner", job)
    except ClusterError:
        return Ended()
    field = dict(re.findall(r"(?:^|\s)(JobState|ExitCode|NodeList)=(\S*)", shown))
    return Ended(field.get("JobState", ""), field.get("ExitCode", ""), field.get("NodeList", ""))


def cancel(*, name: str) -> None:
    """Cancel this user's jobs of a name, pending or running; none is fine too."""
    command("scancel", "--quiet", "-u", str(os.getuid()), f"--name={name}")
