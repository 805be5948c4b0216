"""What a run is composed of: `run` does what ``alphasweep run`` does, and prints nothing.

The only file, beside the command line, that knows both the pipeline and the cluster.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import xarray as xr

from alphasweep.pipeline.dataset import FAILED
from alphasweep.pipeline.plan import (
    MARGIN,
    SECONDS_PER_PART,
    CostModel,
    Plan,
    calibrate,
    lacking,
    make_plan,
)
from alphasweep.pipeline.spec import Sweep, load, preset_names
from alphasweep.pipeline.store import Store, StoreError, Writer, wider_sweep
from alphasweep.pipeline.words import duration, size

if TYPE_CHECKING:  # distributed takes a second to load
    from distributed import Client

    from alphasweep.cluster.placement import Placement
    from alphasweep.cluster.queue import Queue
    from alphasweep.cluster.workforce import Workforce
    from alphasweep.pipeline.drive import Lane, Progress

_SECONDS_PER_PART_QUEUED = 60.0
SUBMITTED = "driver.job"
"""File beside the store with the id of the job of a submitted driver."""

_HOW_OVER = {"PENDING": 1, "COMPLETING": 2}  # of the jobs of one driver, the first is shown
_WAIT_SECONDS = 60.0  # until jobs that wait are worth a line, and between two such lines
# What has to be the same on driver and workers, or numbers or messages would not be.
_SAME_VERSIONS = ("alphasweep", "numpy", "scipy", "distributed", "dask", "cloudpickle")
_SAME_FILES = ("alphasweep.kernels", "alphasweep.pipeline")


class RunError(RuntimeError):
    """A run that cannot be made as asked; the message says why and what to do."""


class Doubt(str):
    """A sentence about what may go wrong."""


Watch = Callable[["Plan | Progress | str"], object]
"""Told what happens in a run: first its plan; then sentences for who waits (a `Doubt` is one, too);
and about once a second where it is."""


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes
    ----------
    store : Path
    plan : Plan
        What there was to do when it began.
    progress : Progress or None
        Where it was at the end, and what it cost; None if there was nothing to do.
    failed, missing : int
        Cells of the store that failed, also in earlier runs, and that no run has computed.
    failures : list of dict
        Of each part that failed: ``part``, ``error``, ``traceback``, ``host``, ``attempts``,
        ``time``.
    """

    store: Path
    plan: Plan
    progress: Progress | None
    failed: int
    missing: int
    failures: list[dict[str, Any]]

    @property
    def computed(self) -> int:
        """Cells that this run computed."""
        return self.progress.cells_now if self.progress else 0

    @property
    def complete(self) -> bool:
        """Whether every cell of the store is done."""
        return not (self.failed or self.missing)

    def open(self) -> xr.Dataset:
        """Open the dataset, as `pipeline.open_sweep` does."""
        from alphasweep.pipeline.reading import open_sweep

        return open_sweep(self.store)


def run(
    sweep: Sweep | str | Path,
    store: str | Path | None = None,
    on: str | Path | None = None,
    workers: int | None = None,
    *,
    watch: Watch = lambda event: None,
    part_seconds: float | None = None,
    retry_failed: bool = False,
    other_numbers: bool = False,
    wait: bool = False,
) -> Result:
    """Compute what is missing in a store: on this machine, or where a cluster file says.

    It may be called in a script (which needs no ``if __name__ == "__main__"``), in a notebook, and
    in any thread; no handler of signals is installed. It is stopped by a KeyboardInterrupt, or by
    what `watch` raises; what was finished is kept, and to run again is to go on.

    Parameters
    ----------
    sweep : Sweep, str or Path
        A sweep; or a sweep file, the name of a preset, or a store to go on with.
    store : str or Path, optional
        Where the result is kept. By default NAME.zarr in the working directory, by the sweep's
        name, or the store to go on with. One that is there is resumed, or extended.
    on : str or Path, optional
        A cluster file: where the workers run.
    workers : int, optional
        Processes on this machine, >= 1. By default one a core, as far as the memory allows.
    watch : callable
        Told what happens, in this thread, see `Watch`; `print` will do.
    part_seconds : float, optional
        How long a part should take, > 0; by default 5, and 60 in a queue.
    retry_failed : bool
        Whether failed cells are computed again.
    other_numbers : bool
        Whether to go on although this code gives other numbers than the store's, and mix them.
    wait : bool
        Whether to wait for another driver of the store to end or die, instead of raising.

    Returns
    -------
    Result
        Also if cells failed: see there.

    Raises
    ------
    SweepError, ProfileError
        If the sweep, or the cluster file, is not as it must be. Nothing is written then.
    StoreError
        If the store is another sweep's, is in use, or cannot be written.
    ClusterError
        If workers do not start, or jobs cannot be submitted, or none lives.
    RunError
        If the other arguments are not as they must be, or the memory of this machine is too small.
    """
    if workers is not None and workers < 1:
        raise RunError(f"workers must be >= 1; got {workers}.")
    seconds = seconds_per_part(part_seconds, on)
    wanted, target = source(sweep, store)
    planned = partial(
        make_plan,
        wanted,
        cost_model(wanted, target),
        seconds_per_part=seconds,
        retry_failed=retry_failed,
    )
    again = 0
    if not target.exists() or wider_sweep(target, wanted) != target.sweep():
        # What does not fit is refused before anything is written.
        foreseen = planned(existing(target))
        again = foreseen.again
        staff(foreseen, workers, on)
        if on:
            _ask(placement(on, foreseen), on, target, watch)
    with target.lock(wait=wait) as writer:
        writer.prepare(wanted, mix=other_numbers)
        todo = planned(target)
        if again:
            watch(
                f"t_max is raised to {wanted.descent.t_max:g}: {again:,} cells, in which time had "
                "run out, are computed again"
            )
        watch(todo)
        end = None
        if any(todo.parts.values()):
            if todo.unstable:
                watch(Doubt(todo.unstable))
            end = _compute(wanted, writer, todo, workers, on, watch)
        # Workers of an earlier driver may have handed in what the plan then left to them.
        writer.collect()
        if lost := lacking(wanted, target):
            raise StoreError(
                f"store {target.path} must hold every cell that was computed; {lost:,} are not in "
                f"it: see alphasweep status --history {target.path}, and run again."
            )
    failed = int((target.status() == FAILED).sum())
    return Result(target.path, todo, end, failed, target.missing(), target.failures())


def source(sweep: Sweep | str | Path, store: str | Path | None = None) -> tuple[Sweep, Store]:
    """Return a sweep, and the store that it is kept in; see `run` for both.

    Raises
    ------
    SweepError, StoreError
        If there is no such sweep, or if something else is where the store is to be.
    """
    if isinstance(sweep, Sweep):
        wanted = sweep
    # os.path: of what cannot be a path, it says that there is none.
    elif sweep not in preset_names() and os.path.isfile(Path(sweep, "zarr.json")):  # noqa: PTH113
        wanted, store = Store(sweep).sweep(), store or sweep
    else:
        wanted = load(sweep)
    target = Store(store or f"{wanted.name}.zarr")
    target.exists()  # refuses what is there and no store, before anything is made beside it
    return wanted, target


def seconds_per_part(asked: float | None, on: str | Path | None) -> float:
    """Return how long a part should take, in seconds, by what was asked and where it runs."""
    if asked is not None and not 0 < asked < math.inf:
        raise RunError(f"part_seconds must be a number of seconds > 0; got {asked}.")
    # A worker of a queue is minutes old before it computes, and its driver has hundreds of them.
    return asked or (_SECONDS_PER_PART_QUEUED if on else SECONDS_PER_PART)


def cost_model(sweep: Sweep, store: Store) -> CostModel:
    """Measure what the cells of a sweep cost here; refuses the store of another sweep before."""
    there = existing(store)
    if there and wider_sweep(there, sweep).descent != there.sweep().descent:
        there = None  # what ran to a smaller t_max says too little
    return calibrate(sweep.recipe, there)


def existing(store: Store) -> Store | None:
    """Return a store if it is there."""
    return store if store.exists() else None


def staff(todo: Plan, workers: int | None, on: str | Path | None) -> dict[str, Any]:
    """Say who would compute a plan, and how long it takes; refuse what does not fit.

    Returns
    -------
    dict
        Empty if there is nothing to do. ``workers``, ``wall_seconds_least`` and
        ``wall_seconds_most``, without the time in a queue; with a cluster also a list of
        ``classes`` with their ``name``, ``sizes`` (N), ``jobs``, ``parts``, ``core_hours_least``,
        ``core_hours_most``, ``longest_part_seconds`` and ``memory_bytes`` of what they compute,
        and ``walltime_seconds`` and ``job_memory_bytes`` of their jobs.

    Raises
    ------
    RunError, ProfileError
        If it does not fit this machine, or the classes of the cluster file.
    """
    found: dict[str, Any] = {}
    if not any(todo.parts.values()):
        return found
    if on is None:
        groups = [(tuple(todo.parts), _workers(todo, workers))]
    else:
        placed = placement(on, todo)
        jobs = placed.jobs
        found["classes"] = [
            {
                "name": one.name,
                "sizes": placed.sizes[one.name],
                "jobs": jobs[one.name],
                **todo.of(placed.sizes[one.name]),
                "walltime_seconds": one.walltime,
                "job_memory_bytes": one.memory,
            }
            for one in placed.classes
        ]
        groups = [(row["sizes"], row["jobs"]) for row in found["classes"]]
    least, most = todo.wall(groups)
    number = sum(jobs for _, jobs in groups)
    return found | {"workers": number, "wall_seconds_least": least, "wall_seconds_most": most}


def placement(on: str | Path, todo: Plan) -> Placement:
    """Say which class of a cluster file computes which N of a plan.

    Raises
    ------
    ProfileError
        If something does not fit; each is named, before anything is submitted.
    """
    from alphasweep.cluster.placement import Need, Placement
    from alphasweep.cluster.profile import ProfileError
    from alphasweep.cluster.profile import load as load_profile

    profile = load_profile(Path(on))
    needs = {
        N: Need(parts, todo.seconds[N], MARGIN * todo.longest[N], todo.bytes[N])
        for N, parts in todo.parts.items()
        if parts
    }
    placed = Placement(profile, needs)
    problems = []
    for one in placed.misfits:
        where = f"profile file {on}, class {one.size_class}"
        if one.key == "memory":
            problems.append(
                f"{where}: memory must be at least {size(one.need)}, which N = {one.N} "
                f"takes; got {size(one.given)}."
            )
        else:
            problems.append(
                f"{where}: walltime must be at least {duration(one.need)}, {MARGIN} times "
                f"the longest part of N = {one.N}; got {duration(one.given)}: raise it, "
                "or lower --part-seconds."
            )
    if len(placed.sizes) > profile.jobs:
        problems.append(
            f"profile file {on}, jobs: must be at least {len(placed.sizes)}, one for each class in "
            f"use; got {profile.jobs}."
        )
    if problems:
        raise ProfileError(problems)
    return placed


def run_directory(store: Store) -> Path:
    """Return the folder beside a store for what is the cluster's."""
    return store.control / "cluster"


def queue_of(store: Store) -> Queue | None:
    """Return the queue that has the jobs of a store, or had them last."""
    from alphasweep.cluster import launch, slurm

    if queue := launch.queue_of(run_directory(store)):
        return queue
    # Submitted by a version that kept no note of it, and not begun.
    submitted = (store.control / SUBMITTED).exists() and shutil.which("squeue")
    return slurm if submitted else None


def driver_name(store: Store) -> str:
    """Return the name of the job of a store's driver."""
    from alphasweep.cluster import launch

    return launch.driver_name(run_directory(store))


def driver_job(store: Store) -> dict[str, str] | None:
    """Tell of the driver's own job, if it was submitted and is not over."""
    if not (store.control / SUBMITTED).exists() or not (queue := queue_of(store)):
        return None
    if not store.has_own_folder():
        return None
    from alphasweep.cluster.queue import ClusterError

    try:
        jobs = queue.jobs(driver_name(store))
    except ClusterError as error:
        last = (store.control / SUBMITTED).read_text().strip()
        return {"id": last, "state": "UNKNOWN", "reason": str(error)}
    # One that ends may have submitted the next, which waits for that.
    for job, found in sorted(jobs.items(), key=lambda each: _HOW_OVER.get(each[1].state, 0)):
        return {"id": job, "state": found.state, "reason": found.reason}
    return None


def remedies(reasons: Iterable[str]) -> dict[str, str]:
    """Say what ends a wait, by its reason, for those that do not end by themselves."""
    from alphasweep.cluster.slurm import remedy

    return {reason: text for reason in reasons if (text := remedy(reason))}


def _ask(placed: Placement, on: str | Path, store: Store, watch: Watch) -> None:
    """Have a run refused that the queue would not run, and tell its doubts."""
    for doubt in placed.ask(Path(on), run_directory=run_directory(store)):
        watch(Doubt(doubt))


def _compute(
    sweep: Sweep,
    writer: Writer,
    todo: Plan,
    workers: int | None,
    on: str | Path | None,
    watch: Watch,
) -> Progress:
    from alphasweep.pipeline.drive import drive  # distributed takes a second to load

    there = _queue(writer, todo, on, watch) if on else _this_machine(todo, workers, watch)
    try:
        with there as (lanes, workforce):
            telling: Callable[[Progress], object] = watch
            if workforce:
                telling = _telling_why_jobs_wait(watch, workforce)
            return drive(sweep, writer, todo, lanes, watch=telling, workforce=workforce)
    except KeyboardInterrupt:
        with suppress(OSError, StoreError):  # the parts stay, and the next run commits them
            writer.collect()
        raise


def _telling_why_jobs_wait(watch: Watch, workforce: Workforce) -> Callable[[Progress], None]:
    """Also tell why jobs wait: after a minute, and when that changes, once a minute at most."""
    from alphasweep.cluster.slurm import remedy

    told: dict[str, set[str]] = {}
    quiet_until = _WAIT_SECONDS

    def telling(where: Progress) -> None:
        nonlocal quiet_until
        watch(where)
        if where.elapsed < quiet_until:
            return
        for name, state in workforce.state().items():
            reasons = state["reasons"].keys() - {"None", "unknown"}  # it has not looked at them yet
            if reasons and reasons != told.get(name):
                told[name] = reasons
                quiet_until = where.elapsed + _WAIT_SECONDS
                watch(_why_jobs_wait(name, state, remedy))

    return telling


def _why_jobs_wait(name: str, state: Mapping[str, Any], remedy: Callable[[str], str]) -> str:
    """Say why jobs of a class wait, and what ends a wait that does not end by itself."""
    why = [
        f"{number} {reason}"
        + (f", which does not end by itself: {ends}" if (ends := remedy(reason)) else "")
        for reason, number in state["reasons"].items()
    ]
    return f"class {name}: {state['pending']} jobs wait: {'; '.join(why)}"


@contextmanager
def _this_machine(
    todo: Plan, workers: int | None, watch: Watch
) -> Iterator[tuple[list[Lane], None]]:
    from alphasweep.cluster.local import check, local, present
    from alphasweep.cluster.pulse import silences
    from alphasweep.pipeline.drive import Lane

    number = _workers(todo, workers)
    watch(f"{number} workers on this machine")
    with local(number) as client:
        yield (
            [
                Lane(
                    client,
                    tuple(todo.parts),
                    partial(present, client),
                    lambda parts: check(client),
                    partial(silences, client),
                )
            ],
            None,
        )


@contextmanager
def _queue(
    writer: Writer, todo: Plan, on: str | Path, watch: Watch
) -> Iterator[tuple[list[Lane], Workforce]]:
    from alphasweep.cluster.launch import launch
    from alphasweep.cluster.preflight import preflight, versions
    from alphasweep.cluster.pulse import silences
    from alphasweep.cluster.workforce import Workforce
    from alphasweep.pipeline.drive import Lane

    store, placed = writer.store, placement(on, todo)
    _ask(placed, on, store, watch)
    profile, jobs = placed.profile, placed.jobs
    if profile.kind != "local":
        jobs |= placed.reserve
    memory = {one.name: one.memory for one in profile.classes}
    expected = versions(_SAME_VERSIONS)

    def examine(size_class: str, client: Client) -> list[str]:
        return preflight(
            client,
            expected=expected,
            files=_SAME_FILES,
            token_directory=store.control,
            memory=memory[size_class] if profile.kind != "local" else 0,
        )

    with launch(
        profile,
        jobs,
        run_directory=run_directory(store),
        token=writer.token,
        check=writer.check,
    ) as cluster:
        for name, number in placed.jobs.items():
            watch(f"{number} jobs of class {name} submitted to {profile.kind}")
        for name, page in cluster.dashboards.items():
            port = page.split(":")[2].split("/")[0]
            host = socket.gethostname()
            tunnel = f"ssh -L {port}:127.0.0.1:{port} {host}"
            watch(f"dashboard of {name}: {page} (from elsewhere: {tunnel})")
        workforce = Workforce(cluster, jobs, examine)
        yield (
            [
                Lane(
                    cluster.client(name),
                    tuple(placed.sizes.get(name, ())),
                    partial(workforce.workers, name),
                    partial(workforce.want, name),
                    partial(silences, cluster.client(name)),
                )
                for name in jobs
            ],
            workforce,
        )


def _workers(todo: Plan, asked: int | None) -> int:
    """Return how many workers there are to be on this machine; refuse what it has no memory for."""
    from dask.system import CPU_COUNT  # a container may use less than there is
    from distributed.system import MEMORY_LIMIT

    from alphasweep.cluster.local import KILLED_AT

    bytes_of = {N: todo.bytes[N] for N, parts in todo.parts.items() if parts}
    largest = max(bytes_of, key=bytes_of.__getitem__)
    # Each worker has its share, and is killed when it holds nearly all of that.
    most = int(KILLED_AT * MEMORY_LIMIT / bytes_of[largest])
    if most < (asked or 1):
        need, limit = size(bytes_of[largest]), size(KILLED_AT * MEMORY_LIMIT)
        remedy = f"lower --workers to {most}" if most else "leave out the largest N or alpha"
        raise RunError(
            f"{asked or 1} workers on this machine must have {need} each, which N = {largest} "
            f"takes; they can have {limit} in all: {remedy}, or use a cluster, --on PROFILE."
        )
    fitting = int(0.8 * min(MEMORY_LIMIT, psutil.virtual_memory().available) / bytes_of[largest])
    return asked or max(1, min(int(CPU_COUNT), fitting, sum(todo.parts.values())))
