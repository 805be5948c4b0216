"""The workers of a run: examined before they get work, and as many as there is work for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distributed import Client

from cluster.fleet import Death
from cluster.launch import Cluster
from cluster.queue import ClusterError

Examine = Callable[[str, Client], Sequence[str]]
"""``examine(size_class, client)`` returns what is wrong with a worker of a class, in words."""


class Crew:
    """A cluster whose classes get work when their first worker has passed an examination.

    Parameters
    ----------
    cluster : Cluster
    jobs : mapping of str to int
        How many jobs each class starts with; together they are as many as there may be.
    examine : callable
    """

    def __init__(self, cluster: Cluster, jobs: Mapping[str, int], examine: Examine) -> None:
        self._cluster, self._examine = cluster, examine
        self._jobs = dict(jobs)
        self._total = sum(jobs.values())
        self._passed: set[str] = set()

    @property
    def deaths(self) -> Sequence[Death]:
        """See `Cluster.deaths`."""
        return self._cluster.deaths

    def workers(self, size_class: str) -> int:
        """How many workers of a class may be given work."""
        return self._cluster.workers(size_class) if size_class in self._passed else 0

    def check(self) -> None:
        """Look after the jobs, and examine the first worker of each class.

        Raises
        ------
        ClusterError
            What `Cluster.check` raises, or what an examination found.
        """
        self._cluster.check()
        for name in self._jobs.keys() - self._passed:
            if self._cluster.workers(name):
                problems = self._examine(name, self._cluster.client(name))
                if problems:
                    raise ClusterError("\n".join(problems))
                self._passed.add(name)

    def want(self, size_class: str, parts: int) -> None:
        """Keep no more jobs of a class than it has parts left; others may have the rest."""
        others = sum(number for name, number in self._jobs.items() if name != size_class)
        number = min(parts, self._total - others)
        if number != self._jobs[size_class]:
            self._jobs[size_class] = number
            self._cluster.want(size_class, number)

    def retire(self, worker: str) -> None:
        """See `Cluster.retire`."""
        self._cluster.retire(worker)

    def state(self) -> dict[str, Any]:
        """See `Cluster.state`."""
        return self._cluster.state()
