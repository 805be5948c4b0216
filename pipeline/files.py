"""Files that are whole and on the disk, or not there at all; and patience with a network's."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import tenacity

# What a network file system says when its server is busy, restarts, or answered twice. Not a full
# disk, a quota or a missing permission: these do not pass by themselves.
_HICCUPS = (
    errno.ESTALE,
    errno.EIO,
    errno.ETIMEDOUT,
    errno.ENOENT,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
)
_PATIENCE_SECONDS = 60.0


def _is_hiccup(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _HICCUPS


def _tell(state: tenacity.RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome is not None:
        logging.getLogger(__name__).warning(
            "%s; trying again for up to %.0f s", state.outcome.exception(), _PATIENCE_SECONDS
        )


patient = tenacity.retry(
    retry=tenacity.retry_if_exception(_is_hiccup),
    wait=tenacity.wait_exponential(multiplier=0.1, max=10),
    stop=tenacity.stop_after_delay(_PATIENCE_SECONDS),
    before_sleep=_tell,
    reraise=True,
)
"""Decorator of what can be repeated: tries again while a network file system has a hiccup."""


def replace(path: Path, write: Callable[[IO[bytes]], object], *, durable: bool = True) -> None:
    """Let `write` fill a file under another name, then rename it to `path`.

    Parameters
    ----------
    path : Path
    write : callable
        Gets the open binary file.
    durable : bool
        Whether a file that is at `path` after the machine's crash is whole, as it is after the
        process's. The crash may take the rename back, unless the folder is synced as well.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
            inode = os.fstat(file.fileno()).st_ino
        try:
            temporary.replace(path)
        except FileNotFoundError:
            # A network file system that lost the answer asked again, after it had succeeded.
            if not path.exists() or path.stat().st_ino != inode:
                raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file; see `replace`. If `durable`, the rename lasts, too."""
    replace(path, lambda file: file.write(text.encode()), durable=durable)
    if durable:
        _sync(path.parent)


def copy(source: Path, path: Path) -> None:
    """Copy a file, also from another file system, so that it is whole at `path`, or not there."""
    with source.open("rb") as content:
        replace(path, lambda file: shutil.copyfileobj(content, file), durable=False)


def remove(leftover: Path) -> bool:
    """Remove a file, or a folder and all in it, that is of no use; return whether it is gone.

    One that cannot be removed is no error: NFS keeps what a process has open under a name of its
    own (``.nfs...``), and refuses to remove that (EBUSY).
    """
    try:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
    except OSError:
        return not os.path.lexists(leftover)
    return True


def sync(paths: Iterable[Path]) -> None:
    """See files and folders onto the disk; at once, since most of an fsync is waiting."""
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(_sync, paths):
            pass


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
