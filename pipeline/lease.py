"""Who drives a store: a lock file beside it, whose holder shows signs of life.

A driver that is dead, or silent for `LEASE_SECONDS`, is taken over. One that was only stopped may
come back, and must find out before it changes anything: `Lease.check` reads the lock from the disk.
No clock is trusted: silence is measured by the one that times the lock, and then watched.
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

from alphasweep.pipeline.files import remove

LEASE_SECONDS = 60.0  # a driver that shows no sign of life for so long may be taken over
_SAME_BIRTH_SECONDS = 2.0  # the start of a machine is known to a second
_PID_NAMESPACE_OF_THE_HOST = 0xEFFFFFFC  # PID_NS_INIT_INO of Linux


class LeaseLostError(RuntimeError):
    """Another driver has taken over; the message says who."""


class Lease:
    """The lock of a store: to look at, and to hold.

    Parameters
    ----------
    control : Path
        The store's control folder; the lock is in it.
    said : callable
        Reads what a driver last published of itself, see `identity`.
    """

    def __init__(self, control: Path, said: Callable[[], Mapping[str, Any]]) -> None:
        self._lock, self._said = control / "lock", said
        self._lease = filelock.SoftFileLease(
            self._lock, lease_duration=LEASE_SECONDS, thread_local=False, timeout=0
        )
        self._since = 0.0

    @property
    def named(self) -> bool:
        """Whether the lock names a driver, dead or alive."""
        return self._lease.owner is not None

    @property
    def holder(self) -> str | None:
        """Who drives now, or None. Looking does not disturb the lock."""
        owner = self._lease.owner
        if owner is None or self._has_died(owner) or self._is_silent():
            return None
        return self.describe()

    @property
    def holder_here(self) -> int | None:
        """The process that drives, if it is one of this machine and certainly that one."""
        owner = self._lease.owner
        if owner is None or not _is_here(owner) or self._has_died(owner):
            return None
        return owner.pid if self._born(owner) is not None else None

    @property
    def token(self) -> str:
        """What tells this hold of the lock from every other, 8 hexadecimal digits; "" if free."""
        return _short(self._lease.token)

    def identity(self) -> dict[str, Any]:
        """Say what a holder has to publish, so that others know it: ``token``, ``pid``, ..."""
        pid = os.getpid()
        return {
            "token": self.token,
            "host": socket.gethostname(),
            "pid": pid,
            "born": _birth(pid),
            "since": self._since,
        }

    def take(self) -> bool:
        """Try to take the lock, also from one who is dead, and say whether that worked."""
        seen, silent = self._mark(), self._is_silent()
        try:
            # Who seems dead has to be watched for as long as a lease lasts before it is taken over.
            # And who has just taken it needs a moment to say who it is.
            self._lease.acquire(timeout=1.5 * LEASE_SECONDS if silent else 1)
        except filelock.Timeout:
            owner = self._lease.owner
            if self._mark() != seen or not (silent or (owner and self._has_died(owner))):
                return False
            # The library takes over by swapping two names, which network file systems cannot.
            self._put_aside(seen)
            with suppress(filelock.Timeout):
                self._lease.acquire(timeout=1)
        self._since = time.time()
        return self._lease.is_locked

    def check(self) -> None:
        """Make sure that the lock is still ours, by the disk.

        Raises
        ------
        LeaseLostError
            If another driver has taken over.
        """
        owner = self._lease.owner
        if owner is None or owner.token != self._lease.token:
            raise LeaseLostError(self.describe())

    def release(self) -> None:
        """Give the lock up."""
        self._lease.release()

    def describe(self) -> str:
        """Name the driver in the lock: process, host, since when, and its last sign of life."""
        owner = self._lease.owner
        if owner is None:
            return "a process that has just ended"
        host = owner.hostname.partition("?")[0]
        said = self._said_by(owner)
        since = f", since {_moment(said['since'])}" if "since" in said else ""
        silence = max(0.0, self._silence())
        return f"process {owner.pid} on {host}{since}, last sign of life {silence:.0f} s ago"

    def _said_by(self, owner: filelock.OwnerRecord) -> Mapping[str, Any]:
        said = self._said()
        return said if said.get("token") == _short(owner.token) else {}

    def _born(self, owner: filelock.OwnerRecord) -> float | None:
        born = self._said_by(owner).get("born")
        return born if isinstance(born, float) else None

    def _has_died(self, owner: filelock.OwnerRecord) -> bool:
        """Whether a lock's owner was a process here that is no more, whoever has its number now."""
        if not _is_here(owner):
            return False
        try:
            process = psutil.Process(owner.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return not psutil.pid_exists(owner.pid)  # there are systems that hide others' processes
        except psutil.Error:
            return False
        born, birth = self._born(owner), _birth(owner.pid)
        return bool(born and birth and abs(born - birth) > _SAME_BIRTH_SECONDS)

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

    def _is_silent(self) -> bool:
        # Also if it is refreshed in the future: a clock was set back, and who lives mends it soon.
        return abs(self._silence()) > LEASE_SECONDS

    def _silence(self) -> float:
        """Seconds since the lock was last refreshed; 0 if there is none."""
        try:
            # Opened: what `stat` alone says, a network file system may have known for a minute.
            with self._lock.open("rb") as file:
                refreshed = os.fstat(file.fileno()).st_mtime
        except OSError:
            return 0.0
        return self._now() - refreshed

    def _now(self) -> float:
        """Tell the time by the clock that times the lock: a file server's may not be ours."""
        folder = self._lock.parent
        try:
            os.utime(folder)
            return folder.stat().st_mtime
        except OSError:  # it is not ours to write
            return time.time()


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


def _birth(pid: int) -> float | None:
    """Seconds between the start of a machine and that of a process; None if that is not told.

    Unlike the time of day of its start, they stay the same when a clock is set.
    """
    try:
        boot = psutil.boot_time()  # first: `create_time` of older versions adds what this has read
        return float(psutil.Process(pid).create_time() - boot)
    except psutil.Error:
        return None


def _short(token: str | None) -> str:
    return (token or "")[:8]


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
