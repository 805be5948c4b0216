"""The workers of a run: examined before they get work, and as many as there is work for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any

from distributed import Client

from alphasweep.cluster.fleet import Death
from alphasweep.cluster.launch import Cluster
from alphasweep.cluster.queue import ClusterError

_PATIENCE_SECONDS = 300.0  # with a worker that is examined; a slow disk takes it two minutes

Examine = Callable[[str, Client], Sequence[str]]
"""``examine(size_class, client)`` returns what is wrong with a worker of a class, in words."""


class Workforce:
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
        self._under_way: dict[str, tuple[Future[Sequence[str]], float]] = {}

    @property
    def deaths(self) -> Sequence[Death]:
        """See `Cluster.deaths`."""
        return self._cluster.deaths

    def workers(self, size_class: str) -> int:
        """How many workers of a class may be given work."""
        return self._cluster.workers(size_class) if size_class in self._passed else 0

    def check(self) -> None:
        """Look after the jobs, and examine the first worker of each class.

        An examination is not waited for: a worker may be stopped, or gone, before it answers.

        Raises
        ------
        ClusterError
            What `Cluster.check` raises, or what an examination found.
        """
        self._cluster.check()
        for name in self._jobs.keys() - self._passed:
            if name not in self._under_way:
                if self._cluster.workers(name) and not self._under_way:  # one after the other
                    examine = partial(self._examine, name, self._cluster.client(name))
                    self._under_way[name] = _begun(examine), time.monotonic()
                continue
            answer, since = self._under_way[name]
            if answer.done():
                del self._under_way[name]
                with suppress(LookupError):  # the worker has left: the next one is examined
                    if problems := answer.result():
                        raise ClusterError("\n".join(problems))
                    self._passed.add(name)
            elif time.monotonic() - since > _PATIENCE_SECONDS:
                del self._under_way[name]

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


def _begun(examine: Callable[[], Sequence[str]]) -> Future[Sequence[str]]:
    """Begin an examination in a thread of its own, which keeps no process from ending."""
    answer: Future[Sequence[str]] = Future()

    def run() -> None:
        try:
            answer.set_result(examine())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=run, name="examination", daemon=True).start()
    return answer
