"""SLURM as a `cluster.queue.Queue`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from alphasweep.cluster.queue import ClusterError, Ended, Listed, NoAnswerError, Outlook, command

SUBMITTED = r"(\d+)(?:;\S+)?"
"""What ``sbatch --parsable`` prints, see `job_id` of `cluster.queue`; ``;`` is for federations."""

# Why a job waits, in SLURM's words, where that does not end by itself, and what ends it.
_ENDLESS = {
    r"PartitionTimeLimit|PartitionConfig|(Assoc|QOS)MaxWall.*": "lower the walltime, or choose "
    "another partition or account",
    r"(Assoc|QOS)MaxJobs.*|(Assoc|QOS)(Grp|Max)Submit.*": "so many jobs are allowed and run, the "
    "driver's own among them if it was submitted; if no worker runs, start the driver on a machine "
    "that stays up, with `alphasweep run`",
    r"MaxMemPerLimit|(Assoc|QOS)Max(Cpu|Node|Mem|GRES|Billing).*PerJob.*|PartitionNodeLimit"
    r"|BadConstraints": "ask for less memory, fewer cores or other nodes in the profile",
    r"InvalidAccount|AccountNotAllowed|AccountingPolicy": "name another account in the profile",
    r"InvalidQOS|QOSNotAllowed|QOSJobLimit": "name another QOS in extra_directives",
    r"(Assoc|QOS)Grp\w*Minutes.*": "what the account may use is used up: name another",
    r"Partition(Down|Inactive)": "the administrators have closed the partition: choose another",
    r"JobHeld(User|Admin)|job_?requeued_?in_?held_?state": "it is held: `scontrol release` ends "
    "that",
    r"DependencyNeverSatisfied": "cancel it",
}
# A refusal that time does not change; others are of a controller that is busy, or of limits that
# are reached for the moment.
_FINAL = re.compile(r"[Ii]nvalid(?!.*credential)|not permitted|unrecognized|can ?not be satisfied")
_NO_SUCH_NODE = "node configuration is not available"
_IN_SERVICE = ("idle", "mix", "alloc", "comp", "plnd", "resv")

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


def remedy(reason: str) -> str:
    """Say what ends a wait that does not end by itself; "" if it does, or is not known.

    Parameters
    ----------
    reason : str
        As in `Listed`.
    """
    return next((text for words, text in _ENDLESS.items() if re.fullmatch(words, reason)), "")


def outlook(script: str) -> Outlook:
    """Ask whether a job could ever run, without submitting it.

    Parameters
    ----------
    script : str
        Of the job, with its directives.

    Raises
    ------
    ClusterError
        If SLURM does not answer.
    """
    asked = _asked(script)
    offers, refusal = _offers(asked.get("p")), _test(script)
    longest = max((offer.minutes for offer in offers), default=math.inf)
    # With a quality of service of its own a job may have other limits than those of the partition.
    if "q" not in asked and (minutes := _minutes(asked.get("t", "0"))) > longest:
        return Outlook(
            f"its walltime must be at most {longest:g} min, the longest in partition "
            f"{', '.join(sorted({offer.partition for offer in offers}))}; got {minutes:g} min: "
            "lower it, or choose another partition."
        )
    said = f'SLURM must be able to run it, and says: "{refusal}"'
    mend = "mend partition, account, memory, cores, walltime or extra_directives in the profile."
    if _NO_SUCH_NODE in refusal:
        largest = max((offer.megabytes for offer in offers), default=math.inf)
        if (memory := _megabytes(asked.get("m", "0"))) > largest:
            return Outlook(
                f"its memory must be at most {largest:g} MiB, that of the largest node of the "
                f"partition; got {memory:g} MiB: lower it, or choose another partition."
            )
        if not all(offer.in_service for offer in offers):
            return Outlook(
                doubt=f'SLURM says: "{refusal}". Some nodes are out of service, and it may be that '
                "the job will run when they are back; or that no node is as it asks."
            )
        return Outlook(f"{said}: {mend}")
    if refusal and _FINAL.search(refusal):
        return Outlook(f"{said}: {mend}")
    return Outlook(doubt=f'SLURM says: "{refusal}".' if refusal else "")


@dataclass(frozen=True)
class _Offer:
    """Some nodes of a partition: what a job may have there."""

    partition: str
    minutes: float
    megabytes: float
    in_service: bool


def _test(script: str) -> str:
    """Return what SLURM has against a job; "" if nothing."""
    try:
        command("sbatch", "--test-only", script=script)
    except NoAnswerError:
        raise
    except ClusterError as error:
        said = re.findall(r"(?:allocation failure|sbatch(?:: error)?): *(.+)", str(error))
        if not said:
            raise
        return str(said[-1]).strip()
    return ""


def _offers(partitions: str | None) -> list[_Offer]:
    """Ask for the nodes of some partitions, with commas between them; None: of the default one."""
    printed = command("sinfo", "-h", "--all", "-e", "-o", "alphasweep|%P|%a|%l|%m|%t")
    found = re.findall(r"alphasweep\|(\S+)\|(\w+)\|(\S+)\|(\d+)\+?\|(\w+)(\S*)", printed)
    return [
        _Offer(
            name.rstrip("*"),
            _minutes(limit),
            float(memory),
            open_ == "up" and state in _IN_SERVICE and "*" not in marks,
        )
        for name, open_, limit, memory, state, marks in found
        if (name.rstrip("*") in partitions.split(",") if partitions else name.endswith("*"))
    ]


def _asked(script: str) -> dict[str, str]:
    """Read partition, time, memory and quality of service, by their letter; the last one holds."""
    words = r"^#SBATCH +(?:-([ptq]) *|--(?:(p)artition|(t)ime|(m)em|(q)os)[= ] *)(\S+)"
    return {
        next(filter(None, letters)): value
        for *letters, value in re.findall(words, script, re.MULTILINE)
    }


def _minutes(text: str) -> float:
    """Read a time span of SLURM: "90", "1:30:00", "1-12", "infinite"."""
    days, dash, clock = text.rpartition("-")
    if not re.fullmatch(r"\d+(:\d+){0,2}", clock):
        return math.inf
    fields = [int(field) for field in clock.split(":")]
    if dash or len(fields) == 3:
        hours, minutes, seconds = (*fields, 0, 0)[:3]
        return (24 * int(days or 0) + hours) * 60 + minutes + seconds / 60
    return fields[0] + (fields[1] / 60 if len(fields) == 2 else 0)


def _megabytes(text: str) -> float:
    """Read an amount of memory of SLURM: "3G", "1908M", "500"."""
    read = re.match(r"(\d+)([KMGT]?)", text)
    return int(read[1]) * 1024.0 ** ("KMGT".index(read[2] or "M") - 1) if read else 0.0
