"""SLURM as a `cluster.queue.Queue`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from cluster.queue import ClusterError, Ended, Listed, command


def jobs(prefix: str) -> dict[str, Listed]:
    """See `Queue.jobs`."""
    lines = command("squeue", "-h", "-u", str(os.getuid()), "-o", "%A|%T|%r|%j").splitlines()
    fields = (line.split("|", 3) for line in lines)  # the last, a name, may hold anything
    return {
        job: Listed(name, state, reason)
        for job, state, reason, name in fields
        if name.startswith(prefix)
    }


def ended(job: str) -> Ended:
    """See `Queue.ended`; SLURM forgets it after a few minutes."""
    try:
        shown = command("scontrol", "show", "job", "--oneliner", job)
    except ClusterError:
        return Ended()
    field = dict(re.findall(r"(?:^|\s)(JobState|ExitCode|NodeList)=(\S*)", shown))
    return Ended(field.get("JobState", ""), field.get("ExitCode", ""), field.get("NodeList", ""))


def cancel(jobs: Iterable[str]) -> None:
    """See `Queue.cancel`."""
    if ids := list(jobs):
        command("scancel", "--quiet", *ids)
