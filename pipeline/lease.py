"""Who drives a store: a lock file beside it, whose holder shows signs of life.

A driver that is dead, or silent for `LEASE_SECONDS`, is taken over. One that was only stopped may
come back, and must find out before it changes anything: `Lease.check` reads the lock from the disk.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import psutil

from pipeline.files import remove

LEASE_SECONDS = 60.0  # a driver that shows no sign of life for so long may be taken over
_PID_NAMESPACE_OF_THE_HOST = 0xEFFFFFFC  # PID_NS_INIT_INO of Linux


class LeaseLostError(RuntimeError):
    """Another driver has taken over; the message says who."""


class Lease:
    """The lock of a store: to look at, and to hold.

    Parameters
    ----------
    control : Path
        The store's control folder; the lock is in it.
    """

    def __init__(self, control: Path) -> None:
        self._lock = control / "lock"
        self._lease = filelock.SoftFileLease(
            self._lock, lease_duration=LEASE_SECONDS, thread_local=False, timeout=0
        )

    @property
    def named(self) -> bool:
        """Whether the lock names a driver, dead or alive."""
        return self._lease.owner is not None

    def holder(self, said: Mapping[str, Any]) -> str | None:
        """Say who drives now, or None. Looking does not disturb the lock.

        Parameters
        ----------
        said : mapping
            What a driver last published, see `describe`.
        """
        owner = self._lease.owner
        if owner is None or _has_died(owner) or self._silence() > LEASE_SECONDS:
            return None
        return self.describe(said)

    def holder_here(self) -> int | None:
        """Return the process that drives, if it is one of this machine."""
        owner = self._lease.owner
        return owner.pid if owner and _is_here(owner) and not _has_died(owner) else None

    @property
    def token(self) -> str:
        """What tells this hold of the lock from every other, 8 hexadecimal digits; "" if free."""
        return (self._lease.token or "")[:8]

    def take(self) -> bool:
        """Try to take the lock, also from one who is dead, and say whether that worked."""
        seen, silent = self._mark(), self._silence() > LEASE_SECONDS
        try:
            # Who seems dead has to be watched for as long as a lease lasts before it is taken over.
            # And who has just taken it needs a moment to say who it is.
            self._lease.acquire(timeout=1.5 * LEASE_SECONDS if silent else 1)
        except filelock.Timeout:
            if self._mark() != seen or not (silent or _has_died(self._lease.owner)):
                return False
            # The library takes over by swapping two names, which network file systems cannot.
            self._put_aside(seen)
            with suppress(filelock.Timeout):
                self._lease.acquire(timeout=1)
        return self._lease.is_locked

    def check(self, said: Callable[[], Mapping[str, Any]]) -> None:
        """Make sure that the lock is still ours, by the disk.

        Parameters
        ----------
        said : callable
            Reads what a driver last published, see `describe`; called if the lock is lost.

        Raises
        ------
        LeaseLostError
            If another driver has taken over.
        """
        owner = self._lease.owner
        if owner is None or owner.token != self._lease.token:
            raise LeaseLostError(self.describe(said()))

    def release(self) -> None:
        """Give the lock up."""
        self._lease.release()

    def describe(self, said: Mapping[str, Any]) -> str:
        """Name the driver in the lock: process, host, since when, and its last sign of life.

        Parameters
        ----------
        said : mapping
            What a driver last published: ``host``, ``pid`` and ``since``. It is used if it is this
            one's.
        """
        owner = self._lease.owner
        if owner is None:
            return "a process that has just ended"
        host = owner.hostname.partition("?")[0]
        is_its_own = (said.get("host"), said.get("pid")) == (host, owner.pid)
        since = f", since {_moment(said['since'])}" if is_its_own and "since" in said else ""
        silence = max(0.0, self._silence())
        return f"process {owner.pid} on {host}{since}, last sign of life {silence:.0f} s ago"

    def _put_aside(self, dead: tuple[int, int] | None) -> None:
        """Remove a dead driver's lock, and no other."""
        aside = self._lock.with_name(f".lock.{uuid.uuid4().hex[:8]}")
        with suppress(FileNotFoundError):
            self._lock.rename(aside)
            if _mark_of(aside) != dead:  # another was quicker, and this is his: he does not notice
                with suppress(FileExistsError):
                    os.link(aside, self._lock)
            remove(aside)

    def _mark(self) -> tuple[int, int] | None:
        return _mark_of(self._lock)

    def _silence(self) -> float:
        """Seconds since the lock was last refreshed, by this host's clock; 0 if there is none."""
        try:
            return time.time() - self._lock.stat().st_mtime
        except OSError:
            return 0.0


def _mark_of(lock: Path) -> tuple[int, int] | None:
    """Tell locks, and signs of life, apart; None if there is no lock."""
    try:
        found = lock.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _is_here(owner: filelock.OwnerRecord) -> bool:
    """Whether a lock's owner is, or was, a process that this one can see."""
    try:  # to the name of the host filelock adds the PID namespace, in a container
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        namespace = _PID_NAMESPACE_OF_THE_HOST
    suffix = "" if namespace == _PID_NAMESPACE_OF_THE_HOST else f"?pidns-{namespace:x}"
    return bool(owner.hostname == socket.gethostname() + suffix)


def _has_died(owner: filelock.OwnerRecord | None) -> bool:
    """Whether a lock's owner was a process here that is no more."""
    return owner is not None and _is_here(owner) and not psutil.pid_exists(owner.pid)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
