"""SLURM as a `cluster.queue.Queue`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from cluster.queue import ClusterError, Ended, Listed, NoAnswerError, command

SUBMITTED = r"(\d+)(?:;\S+)?"
"""What ``sbatch --parsable`` prints, see `job_id` of `cluster.queue`; ``;`` is for federations."""

# Lines of a site's own have no such mark. The name comes last, as it may hold anything.
_FORMAT = "alphasweep|%A|%T|%r|%j"
_LINE = re.compile(r"alphasweep\|(\d+)\|(\w+)\|([^|\n]*)\|(.*)")


def jobs(prefix: str) -> dict[str, Listed]:
    """See `Queue.jobs`."""
    # --all: without it, jobs in partitions that a site hides are left out.
    printed = command("squeue", "--all", "-h", "-u", str(os.getuid()), "-o", _FORMAT)
    return {
        job: Listed(name, state, reason)
        for job, state, reason, name in _LINE.findall(printed)
        if name.startswith(prefix)
    }


def ended(job: str) -> Ended:
    """See `Queue.ended`; SLURM forgets it after a few minutes."""
    try:
        printed = command("scontrol", "show", "job", "--oneliner", job)
    except NoAnswerError:
        raise
    except ClusterError:
        return Ended()
    shown = re.search(rf"JobId={job} .*", printed)
    field = dict(re.findall(r" (JobState|ExitCode|NodeList)=(\S*)", shown[0])) if shown else {}
    return Ended(field.get("JobState", ""), field.get("ExitCode", ""), field.get("NodeList", ""))


def cancel(jobs: Iterable[str]) -> None:
    """See `Queue.cancel`."""
    if ids := list(jobs):
        command("scancel", "--quiet", *ids)
