"""What the run asks of a queue itself, beside what dask-jobqueue does; one small module a queue.

`QUEUES` of `cluster.launch` has those there are. Workers of any other queue are looked after by
their connections alone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

LIMIT_SECONDS = 30
"""Of a command of a queue. A busy one answers late."""

# Variables with which users change what SLURM's commands list and cancel when they are typed.
_PREFERENCES = ("SQUEUE_", "SCANCEL_")


class ClusterError(RuntimeError):
    """The queue, or what runs in it, fails the run; the message says what to do."""


class NoAnswerError(ClusterError):
    """A command of the queue that takes too long."""


@dataclass(frozen=True)
class Listed:
    """A job that waits or runs.

    Attributes
    ----------
    name : str
    state : str
        In the words of SLURM, whatever the queue: "PENDING"; "COMPLETING" while what is over is
        cleared away; "ERROR" if it failed to start, and waits for ever; "RUNNING" or any other
        word while the job holds a node.
    reason : str
        Why it waits, or what is wrong, in the words of its own queue; "" if that does not tell.
    """

    name: str
    state: str
    reason: str


@dataclass(frozen=True)
class Ended:
    """How a job ended, as far as the queue still knows; "" if it does not.

    Attributes
    ----------
    state : str
        In the words of SLURM, whatever the queue: "COMPLETED", "FAILED", "TIMEOUT",
        "OUT_OF_MEMORY", "CANCELLED", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL"; or that of a job which
        is not over.
    exit_code, node : str
        In the words of its own queue.
    """

    state: str = ""
    exit_code: str = ""
    node: str = ""


OVER = frozenset(
    {
        *("COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "CANCELLED", "PREEMPTED"),
        *("NODE_FAIL", "BOOT_FAIL", "DEADLINE"),
    }
)
"""States of jobs that will not run any more."""


@dataclass(frozen=True)
class Answer:
    """What a queue told when it was asked.

    Attributes
    ----------
    asked : float
        When, by the monotonic clock in seconds. The queue may tell of earlier: some sites answer
        from a cache.
    jobs : mapping of str to Listed
        As `Queue.jobs` returns them.
    ends : mapping of str to Ended
        As `Queue.ended` returns them, of those jobs that it was asked about.
    """

    asked: float
    jobs: Mapping[str, Listed]
    ends: Mapping[str, Ended]


@dataclass(frozen=True)
class Outlook:
    """What a queue says of a job before it is submitted.

    Attributes
    ----------
    refusal : str
        Why it would never run; "" if nothing speaks against it.
    doubt : str
        What is not sure, for instance since the queue did not answer; "" if nothing.
    """

    refusal: str = ""
    doubt: str = ""


class Queue(Protocol):
    """A queue; a module can be one."""

    def jobs(self, prefix: str) -> dict[str, Listed]:
        """Return this user's jobs that wait or run and whose name begins so, by id.

        Raises
        ------
        ClusterError
            If the queue does not answer.
        """

    def ended(self, job: str) -> Ended:
        """Say how a job ended, or how it is; some queues know it late, others forget.

        Raises
        ------
        NoAnswerError
            If the command takes too long; that the queue knows no such job is no error.
        """

    def cancel(self, jobs: Iterable[str]) -> None:
        """Cancel jobs by id, pending or running; one that is over already is fine too.

        Raises
        ------
        ClusterError
            If the queue does not answer, or refuses.
        """


def command(*words: str, script: str | None = None) -> str:
    """Run a command of a queue, with `script` as its standard input, and return what it printed.

    It may be called from any thread. A site may print lines of its own among those of the command:
    parse only what is sure to be its answer, see `job_id`.

    Raises
    ------
    ClusterError
        If there is no such command, or if it fails; `NoAnswerError` if it takes too long.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(_PREFERENCES)
    }
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE if script else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",  # what a site prints may be in any encoding
            env=environment,
            process_group=0,  # Ctrl-C is for the driver; and it may be a script, with children
        )
    except FileNotFoundError:
        raise ClusterError(
            f"{words[0]} must be on the PATH: run alphasweep on a login node of the cluster, or "
            'set kind = "local" in the profile.'
        ) from None
    except OSError as error:  # such as too many processes
        raise ClusterError(f"{words[0]} must start; got: {error}.") from None
    with process:
        try:
            printed, complaint = process.communicate(script, timeout=LIMIT_SECONDS)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise NoAnswerError(
                    f"{words[0]} must answer within {LIMIT_SECONDS} s and did not: the queue is "
                    "busy or down. Run again later: what was finished is kept."
                ) from None
            raise
    if process.returncode:
        raise ClusterError(
            f"`{' '.join(words)}` must succeed; it ended with {process.returncode}: "
            f"{complaint.strip() or printed.strip() or 'no message'}"
        )
    return printed


def job_id(pattern: str, printed: str) -> str:
    """Return the id of a job from what the command printed that submitted it.

    Parameters
    ----------
    pattern : str
        Regular expression of the whole line that tells, with the id as its only group. A site may
        print other lines before and after; of several that fit, the last tells.
    printed : str

    Raises
    ------
    ClusterError
        If no line fits.
    """
    found = [match[1] for line in printed.splitlines() if (match := re.fullmatch(pattern, line))]
    if not found:
        raise ClusterError(
            "the queue must tell the id of a job that it accepts; it printed: "
            f"{printed.strip() or 'nothing'}"
        )
    return found[-1]
