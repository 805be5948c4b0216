"""Grid Engine (Sun's, Son of, Open, Univa's, Altair's) as a `cluster.queue.Queue`.

Only XML is read of what qstat prints, so that a site's notice lines around it do no harm.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable
from xml.etree import ElementTree

from alphasweep.cluster.queue import ClusterError, Ended, Listed, NoAnswerError, command

_ASKED_WHY = 10  # jobs of a run wait for the same things, and the answer may be long
_REASONS = 3  # of one job: Grid Engine has one for each queue and node
_LIMIT = "37"  # "qmaster enforced h_rt, h_cpu, or h_vmem limit", see sge_status(5)


def jobs(prefix: str) -> dict[str, Listed]:
    """See `Queue.jobs`; the state of a job that failed to start, and never will, is "ERROR"."""
    found = {job: one for job, one in _listed().items() if one.name.startswith(prefix)}
    waiting = [job for job, one in found.items() if one.state == "PENDING"]
    wrong = [job for job, one in found.items() if one.state == "ERROR"]
    why = _why([*wrong, *waiting[:_ASKED_WHY]])
    return {
        job: Listed(one.name, one.state, why.get(job, one.reason)) for job, one in found.items()
    }


def ended(job: str) -> Ended:
    """See `Queue.ended`; Grid Engine tells it seconds late."""
    try:
        if shown := _listed().get(job):
            if shown.state != "ERROR":
                return Ended(shown.state)
            return Ended("FAILED", _why([job]).get(job, shown.reason))
    except NoAnswerError:
        raise
    except ClusterError:
        return Ended()
    try:
        text = command("qacct", "-j", job)
    except ClusterError:
        # Also if it takes too long: it reads a file of all jobs there ever were, which says nothing
        # of those that run, and some sites let nobody read it.
        return Ended()
    # Numbers of jobs begin anew some day: the last of several is it.
    field = dict(re.findall(r"^(\w+) +(.*?) *$", text.rpartition("=====")[2], re.MULTILINE))
    failed, _, what = (part.strip() for part in field.get("failed", "").partition(":"))
    status = field.get("exit_status", "").split(" ")[0]
    if failed == "0":
        state = "COMPLETED" if status == "0" else "FAILED"
    elif failed == _LIMIT:
        state = "TIMEOUT" if _came_to_its_walltime(field) else "OUT_OF_MEMORY"
    elif field.get("deleted_by", "NONE") != "NONE":  # only newer ones tell
        state = "CANCELLED"
    else:
        state = "FAILED" if failed else ""
    return Ended(state, f"{status} ({what})" if what else status, field.get("hostname", ""))


def cancel(jobs: Iterable[str]) -> None:
    """See `Queue.cancel`."""
    if not (ids := set(jobs)):
        return
    try:
        command("qdel", *sorted(ids))
    except ClusterError:  # also if one of them is over already
        if any(one.state != "COMPLETING" for job, one in _listed().items() if job in ids):
            raise


def _listed() -> dict[str, Listed]:
    """Return this user's jobs, with Grid Engine's letters for their state as the reason."""
    shown = _xml("qstat", "-xml", "-u", pwd.getpwuid(os.getuid()).pw_name).iter("job_list")
    return {
        job.findtext("JB_job_number", ""): Listed(
            job.findtext("JB_name", ""),
            _state(letters := job.findtext("state", "")),
            letters,
        )
        for job in shown
    }


def _state(letters: str) -> str:
    """Translate such as "qw", "hqw", "Eqw", "t", "r", "S", "dr", see qstat(1)."""
    if "d" in letters:
        return "COMPLETING"
    if "E" in letters:
        return "ERROR"
    return "PENDING" if "q" in letters else "RUNNING"


def _why(jobs: list[str]) -> dict[str, str]:
    """Return why jobs wait, or what was wrong when they should have started, as far as is told."""
    if not jobs:
        return {}
    try:
        shown = _xml("qstat", "-xml", "-j", ",".join(jobs))
    except ClusterError:  # one of them is over: next time, then
        return {}
    errors = {
        one.findtext("JB_job_number", ""): [
            # Without the time and the process that it begins with.
            re.sub(r"^[\d/]+ [\d:]+ \[\d+:\d+\]: ", "", message.text or "")
            for message in one.iter("QIM_message")
        ]
        for one in shown.iterfind("djob_info/element")
    }
    for message in shown.iterfind("messages/element/SME_message_list/element"):
        for job in message.iterfind("MES_job_number_list/ulong_sublist/ULNG_value"):
            errors.setdefault(job.text or "", []).append(message.findtext("MES_message", ""))
    return {
        job: "; ".join([*texts[:_REASONS], *["..."][: len(texts) > _REASONS]])
        for job, texts in errors.items()
        if texts
    }


def _came_to_its_walltime(field: dict[str, str]) -> bool:
    asked = re.search(r"\bh_rt=(\d+)", field.get("category", ""))
    ran = re.match(r"\d+", field.get("ru_wallclock", ""))
    return not asked or not ran or int(ran[0]) >= int(asked[1])


def _xml(*words: str) -> ElementTree.Element:
    text = command(*words)
    whole = re.search(r"<(\w+job_info|job_info|unknown_jobs)\b.*</\1>", text, re.DOTALL)
    try:
        return ElementTree.fromstring(whole[0] if whole else text)
    except ElementTree.ParseError as error:
        raise ClusterError(
            f"`{' '.join(words)}` must print XML; {error}. It printed: {text.strip()[:200]!r}"
        ) from None
