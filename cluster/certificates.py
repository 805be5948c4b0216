"""Certificates of a launch: files only for their owner, for as long as it runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed.security import Security


@contextmanager
def made(parent: Path, name: str) -> Iterator[Security]:
    """Make the certificates of a launch, by its name, and remove them when the body is left."""
    folder = _folder(parent, name)
    folder.mkdir(mode=0o700, parents=True)
    try:
        new = Security.temporary()
        for file, text in (("cert.pem", new.tls_ca_file), ("key.pem", new.tls_worker_key)):
            (folder / file).touch(mode=0o600)
            (folder / file).write_text(text)
        yield named(parent, name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # who took over has removed it


def named(parent: Path, name: str) -> Security:
    """Return the certificates of a launch by the names of their files, which need not be there."""
    # One certificate for all: who holds the key is of this run.
    folder = _folder(parent, name)
    files = {
        f"tls_{role}_{what}": str(folder / f"{what}.pem")
        for role in ("client", "scheduler", "worker")
        for what in ("cert", "key")
    }
    return Security(require_encryption=True, tls_ca_file=str(folder / "cert.pem"), **files)


def remove(parent: Path, prefix: str, check: Callable[[], object]) -> None:
    """Remove the certificates of all launches whose names begin so; `check` is called before each.

    For `check` see `launch.launch`.
    """
    for folder in parent.glob(f"certificates-{prefix}*"):
        check()
        shutil.rmtree(folder, ignore_errors=True)


def _folder(parent: Path, name: str) -> Path:
    return parent / f"certificates-{name}"
