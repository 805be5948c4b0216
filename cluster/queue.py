"""What the run asks of a queue itself, beside what dask-jobqueue does; one small module a queue.

`QUEUES` of `cluster.launch` has those there are. Workers of any other queue are looked after by
their connections alone.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

_TIMEOUT_SECONDS = 60  # a busy queue answers late; one that does not answer is an error


class ClusterError(RuntimeError):
    """The queue, or what runs in it, fails the run; the message says what to do."""


@dataclass(frozen=True)
class Listed:
    """A job that waits or runs.

    Attributes
    ----------
    name : str
    state : str
        In the words of SLURM, whatever the queue: "PENDING"; "COMPLETING" while what is over is
        cleared away; "RUNNING" or any other word while the job holds a node.
    reason : str
        Why it waits, in the words of its own queue; "" if that does not tell.
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
        """Say how a job ended; queues forget it after a while. Nothing is raised."""

    def cancel(self, jobs: Iterable[str]) -> None:
        """Cancel jobs by id, pending or running; one that is over already is fine too.

        Raises
        ------
        ClusterError
            If the queue does not answer, or refuses.
        """


def command(*words: str, script: str | None = None) -> str:
    """Run a command of a queue, with `script` as its standard input, and return what it printed.

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
            f"{words[0]} must answer within {_TIMEOUT_SECONDS} s and did not: the queue is busy or "
            "down. Run again later: what was finished is kept."
        ) from None
    if done.returncode:
        raise ClusterError(
            f"`{' '.join(words)}` must succeed; it ended with {done.returncode}: "
            f"{done.stderr.strip() or done.stdout.strip() or 'no message'}"
        )
    return done.stdout
