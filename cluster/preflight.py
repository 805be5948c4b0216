"""What has to hold on a worker before it is given work: same code, one thread, same disk."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import secrets
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
from distributed import Client

_SKEW_SECONDS = 30.0
_SLOW_DISK_SECONDS = 60.0  # until a file of one node is seen by another, which NFS may cache


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Return the versions of distributions here, as `preflight` expects them."""
    return {name: importlib.metadata.version(name) for name in distributions}


def preflight(
    client: Client,
    *,
    expected: Mapping[str, str],
    files: Iterable[str],
    token_directory: Path,
    memory: int = 0,
) -> list[str]:
    """Compare one worker, the first that answers, with this process.

    Parameters
    ----------
    client : Client
        Of a class with at least one worker.
    expected : mapping of str to str
        Distributions and the versions that a worker must have, see `versions`.
    files : iterable of str
        Packages whose modules must be the same files, such as "alphasweep.kernels".
    token_directory : Path
        A directory which both must see and be able to write, such as the store's.
    memory : int
        What its job was promised, in bytes; 0 is not compared.

    Returns
    -------
    list of str
        What does not hold: worker, folder, what was found there and here, and what to do.

    Raises
    ------
    LookupError
        If the class has no worker any more.
    """
    workers = list(client.scheduler_info(n_workers=1)["workers"])
    if not workers:
        raise LookupError("a class must have a worker to be examined; it has left.")
    worker = workers[0]
    token = token_directory / f".preflight-{secrets.token_hex(8)}"
    answer = token.with_name(token.name + ".answer")
    token.write_text(token.name)
    packages = tuple(files)
    try:
        began = time.time()
        found = _ask(client, worker, tuple(expected), packages, str(token), str(answer))
        ended = time.time()
        if "error" in found:
            return [f"worker {worker} must be able to run the checks; it got {found['error']}."]
        back = _read(answer)
    finally:
        for file in (token, answer):
            file.unlink(missing_ok=True)

    where = f"worker {worker} on {found['host']}"
    problems = []
    for name, version in expected.items():
        if (there := found["versions"][name]) != version:
            problems.append(
                f"{where}, {found['python']}: {name} must be {version}, as here; it is "
                f"{there or 'not installed'}: set python or prologue in the profile to the same "
                f"environment as the driver's, {sys.prefix}."
            )
    for package, here in _hashes(packages).items():
        there = found["hashes"][package]
        if different := sorted(
            file for file in here.keys() | there.keys() if here.get(file) != there.get(file)
        ):
            problems.append(
                f"{where}, {found['folders'][package] or 'no such package'}: the modules of "
                f"{package} must be those of the driver; different: {', '.join(different[:5])}"
                f"{' ...' if different[5:] else ''}. Install the same version for both."
            )
    if found["threads"] != 1:
        problems.append(
            f"{where}: its BLAS must use 1 thread; it uses {found['threads']}: take settings of "
            "OMP_NUM_THREADS and the like out of the prologue."
        )
    if found["token"] != token.name or back != token.name:
        which = (
            "written here is not read there"
            if found["token"] != token.name
            else ("written there is not read here")
        )
        problems.append(
            f"{where}, {token_directory}: must be one and the same directory for driver and "
            f"workers, and writable; a file {which} ({found['token_error'] or 'no error'}): put "
            "the store on a file system that all nodes share."
        )
    skew = max(found["time"] - ended, began - found["time"], 0.0)
    if skew > _SKEW_SECONDS:
        problems.append(
            f"{where}: its clock must agree with the driver's; it is {skew:.0f} s off: tell the "
            f"administrators, and exclude {found['host']} in extra_directives."
        )
    if memory and found["memory"] < 0.9 * memory:
        problems.append(
            f"{where}: must have the {memory / 1e9:.3g} GB that its class asks for; it has "
            f"{found['memory'] / 1e9:.3g} GB: lower memory in the profile, or exclude the node."
        )
    return problems


def _ask(client: Client, worker: str, *arguments: Any) -> dict[str, Any]:
    # By value: the worker may have another version of this module, or none. That is to be told.
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        found = client.run(_examine, *arguments, workers=[worker], on_error="return")[worker]
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    return {"error": repr(found)} if isinstance(found, Exception) else dict(found)


def _examine(
    distributions: tuple[str, ...], packages: tuple[str, ...], token: str, answer: str
) -> dict[str, Any]:
    """Say what a worker is. Runs there, and only returns what plain Python can hold."""
    import numpy  # noqa: F401 (loads the BLAS whose threads are counted)
    import threadpoolctl
    from distributed.system import MEMORY_LIMIT

    now = time.time()
    found_versions = {}
    for name in distributions:
        try:
            found_versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found_versions[name] = ""
    blas = threadpoolctl.threadpool_info()
    error = ""
    read = _read(Path(token))
    try:
        Path(answer).write_text(read)
    except OSError as raised:
        error = str(raised)
    return {
        "host": socket.gethostname(),
        "python": sys.executable,
        "time": now,
        "versions": found_versions,
        "hashes": _hashes(packages),
        "folders": {package: _folder_of(package) for package in packages},
        "threads": max((pool["num_threads"] for pool in blas), default=1),
        "token": read,
        "token_error": error,
        "memory": MEMORY_LIMIT,
    }


def _folder_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    return next(iter(spec.submodule_search_locations or ()), "") if spec else ""


def _hashes(packages: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of the modules of each package, by path in the package."""
    found = {}
    for package in packages:
        folder = _folder_of(package)
        modules = sorted(Path(folder).rglob("*.py")) if folder else []
        found[package] = {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in modules
        }
    return found


def _read(file: Path) -> str:
    """Read what another machine has just written; "" if it does not come."""
    end = time.monotonic() + _SLOW_DISK_SECONDS
    while time.monotonic() < end:
        try:
            if text := file.read_text():
                return text
        except OSError:
            pass
        time.sleep(0.1)
    return ""
