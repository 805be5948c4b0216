"""The verbs of `alphasweep`; the only place that composes pipeline, cluster and analysis."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import psutil
import typer

from pipeline import terminal
from pipeline.dataset import DONE, FAILED, MISSING
from pipeline.files import replace_text
from pipeline.layout import figures_folder
from pipeline.plan import (
    MARGIN,
    SECONDS_PER_PART,
    CostModel,
    Plan,
    calibrate,
    lacking,
    make_plan,
)
from pipeline.provenance import code_version
from pipeline.spec import Sweep, SweepError, gains, load, preset_names, template, widened
from pipeline.store import Store, StoreError, Writer, wider_sweep
from pipeline.terminal import say

if TYPE_CHECKING:  # distributed takes a second to load
    from distributed import Client

    from analysis.study import Study
    from cluster.crew import Crew
    from cluster.queue import Queue
    from pipeline.drive import Lane, Progress

_SECONDS_PER_PART_QUEUED = 60.0
_WAIT_SECONDS = 60.0  # until jobs that wait are worth a line, and between two such lines
_SUBMITTED = "driver.job"  # beside the store: the id of the job of a submitted driver
_HOW_OVER = {"PENDING": 1, "COMPLETING": 2}  # of the jobs of one driver, the first is shown
_KILLED_AT = 0.95  # of its share of the memory, see cluster.launch.local
_REQUEUE_STATUS = 75  # EX_TEMPFAIL; cluster.submit's script then puts the job back
# What has to be the same on driver and workers, or numbers or messages would not be.
_SAME_VERSIONS = ("alphasweep", "numpy", "scipy", "distributed", "dask", "cloudpickle")
_SAME_FILES = ("kernels", "pipeline")

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

SweepArgument = Annotated[
    str,
    typer.Argument(
        help=f"A sweep file, a preset ({', '.join(preset_names())}), or a store to go on with."
    ),
]
StoreOption = Annotated[
    Path | None, typer.Option(help="Where the result is kept. Default: NAME.zarr in this folder.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Worker processes. Default: one a core.")
]
StoreArgument = Annotated[Path, typer.Argument(help="A store, for instance laptop.zarr.")]


def _finite(seconds: float | None) -> float | None:
    if seconds is not None and not math.isfinite(seconds):
        raise typer.BadParameter(f"must be a number of seconds; got {seconds}.")
    return seconds


PartOption = Annotated[
    float | None,
    typer.Option(
        "--part-seconds",
        min=0.001,
        callback=_finite,
        help="How long a part should take. Default: 5; 60 in a queue.",
    ),
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Compute failed cells again.")]
OnOption = Annotated[
    Path | None, typer.Option("--on", help="A cluster file: where the workers run.")
]
MixOption = Annotated[
    bool,
    typer.Option("--other-numbers", help="Go on with code that gives other numbers, and mix them."),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"alphasweep {code_version()}")
        raise typer.Exit


@app.callback()
def verbs(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Say which code this is.",
        ),
    ] = False,
) -> None:
    """Gradient descent on phase retrieval over a grid (alpha, N, seed), and its log N threshold.

    Start with: alphasweep run quick
    """


@app.command()
def init(
    path: Annotated[Path | None, typer.Argument(help="The file to write.")] = None,
    cluster: Annotated[
        str, typer.Option(help="Write a cluster file instead, for this queue, for instance slurm.")
    ] = "",
) -> None:
    """Write a commented sweep file, or cluster file, to start from."""
    path = path or Path(f"{cluster or 'sweep'}.toml")
    with _reported_errors():
        if cluster:
            from cluster import profile

            text, then = profile.template(cluster), "alphasweep plan SWEEP --on "
        else:
            text, then = template(path.stem), "alphasweep plan "
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            _fail(f"{path} exists already, and is left as it is: choose another name.")
        except OSError as error:
            _fail(f"{path} must be a file that can be written; got: {error.strerror}.")
    say(f"Wrote {path}. Edit it, then: {then}{_typed(path)}")


@app.command()
def plan(
    sweep: SweepArgument,
    store: StoreOption = None,
    on: OnOption = None,
    part_seconds: PartOption = None,
    workers: WorkersOption = None,
    retry_failed: RetryOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: the numbers of the tables.")
    ] = False,
) -> None:
    """Show what a run would do and cost, without running it. Exits 1 if it does not fit."""
    wanted, place = _sweep_and_store(sweep, store)
    with _reported_errors():
        model = _cost_model(wanted, place)
        todo = _plan(wanted, place, model, _part_seconds(part_seconds, on), retry_failed)
        found = {"store": str(place.path)} | todo.numbers()
        try:
            found |= _staff(todo, workers, on)
        finally:
            print(json.dumps(found)) if as_json else terminal.show_plan(found)
        if on and "classes" in found:
            placement = _Placement(on, todo)
            if not as_json:
                _show_jobs(placement, found["classes"], place)
            submits = placement.profile.kind == "slurm" and placement.profile.driver
            driver = _driver_script(placement, place, []) if submits else ""
            placement.ask(place, driver=driver, here=False)
    _end_if_lost()


@app.command()
def run(
    sweep: SweepArgument,
    store: StoreOption = None,
    on: OnOption = None,
    workers: WorkersOption = None,
    part_seconds: PartOption = None,
    retry_failed: RetryOption = False,
    other_numbers: MixOption = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for another driver of the store to end or die.")
    ] = False,
) -> None:
    """Compute what is missing, then draw the figures. Running again resumes."""
    wanted, place = _sweep_and_store(sweep, store)
    seconds = _part_seconds(part_seconds, on)
    with _reported_errors(), _signals():
        model = _cost_model(wanted, place)
        if not place.exists() or wider_sweep(place, wanted) != place.sweep():
            # What does not fit is refused before anything is written.
            foreseen = _plan(wanted, place, model, seconds, retry_failed)
            _staff(foreseen, workers, on)
            if on:
                _Placement(on, foreseen).ask(place)
        with terminal.hurried(), place.lock(wait=wait) as writer:
            writer.prepare(wanted, mix=other_numbers)
            todo = _plan(wanted, place, model, seconds, retry_failed)
            if any(todo.parts.values()):
                _compute(wanted, writer, todo, workers, on)
            else:
                say(f"{wanted.name}: nothing is to be computed; the figures are drawn again.")
            # Workers of an earlier driver may have handed in what the plan then left to them.
            writer.collect()
            if lost := lacking(wanted, place):
                raise StoreError(
                    f"store {place.path} must hold every cell that was computed; {lost:,} are not "
                    f"in it: see alphasweep status --history {place.path}, and run again."
                )
        _conclude(place)


@app.command()
def submit(
    sweep: SweepArgument,
    on: Annotated[Path, typer.Option("--on", help="A cluster file of SLURM.")],
    store: StoreOption = None,
    part_seconds: PartOption = None,
    retry_failed: RetryOption = False,
    other_numbers: MixOption = False,
) -> None:
    """Let the driver itself be a job of SLURM, which resumes until all is done."""
    from cluster.launch import record_queue
    from cluster.queue import command as ask_command
    from cluster.submit import submit as submit_job

    wanted, place = _sweep_and_store(sweep, store)
    seconds = _part_seconds(part_seconds, on)
    with _reported_errors():
        model = _cost_model(wanted, place)
        placement = _Placement(on, _plan(wanted, place, model, seconds, retry_failed))
        command = [sys.executable, "-m", "pipeline.cli", "run", str(place.path), "--wait"]
        command += ["--on", str(on.absolute()), "--part-seconds", str(seconds)]
        command += ["--retry-failed"] * retry_failed + ["--other-numbers"] * other_numbers
        script = _driver_script(placement, place, command)
        ask_command("sbatch", "--version")
        placement.ask(place, driver=script, here=False)
        with place.lock() as writer:
            writer.prepare(wanted, mix=other_numbers)
        record_queue(_run_directory(place), placement.profile.kind)
        job = submit_job(script)
        replace_text(place.control / _SUBMITTED, job)
    say(
        f"Submitted the driver of {place.path} as job {job}; its log: {_driver_log(place)}\n"
        f"See how it goes:  alphasweep status {_typed(place.path)} --watch\n"
        f"Stop it:          alphasweep cancel {_typed(place.path)}"
    )


@app.command()
def cancel(store: StoreArgument) -> None:
    """End the driver of a store and its workers; what was finished is kept."""
    from cluster.launch import end
    from cluster.queue import ClusterError

    place = Store(store)
    with _reported_errors():
        place.sweep()
        queue = _queue_of(place)
        name, pid = _driver_name(place), place.holder_here()
        try:
            jobs = queue.jobs(name) if queue else {}
        except ClusterError:
            if not pid:
                raise
            jobs = {}  # the driver here is ended all the same, and the error is told by `end`
        if queue and jobs:
            queue.cancel(jobs)
        elif pid:
            os.kill(pid, signal.SIGTERM)
        elif driver := place.holder():
            _fail(f"{place.path} is driven by {driver}; it is no job: stop it there.")
        try:
            with place.lock(wait=True) as writer:
                end(_run_directory(place), queue=queue, check=writer.check)
                writer.collect()
        except OSError as error:  # a full disk, say: what costs core-hours ends all the same
            end(_run_directory(place), queue=queue)
            _fail(
                f"the driver and the workers of {place.path} are ended, but the store must be "
                f"writable to commit what they had finished; got: {error.strerror or error}. That "
                "is kept: make room, and run again."
            )
    terminal.show_status(_status(place))


@app.command()
def extend(
    store: StoreArgument,
    alpha: Annotated[
        str, typer.Option(help="More values: 3.1,3.2, or 3:4:0.25 (3 to 3.75, without the end)")
    ] = "",
    N: Annotated[str, typer.Option("--N", help="More values: 1024,2048")] = "",
    seed: Annotated[
        str, typer.Option(help="More values: 7,9, or 8:64 (8 to 63, without the end, as in Python)")
    ] = "",
    other_numbers: MixOption = False,
) -> None:
    """Add values to the axes of a store, anywhere; `run STORE` then computes them.

    A range first:end leaves its end out, unlike { from, to } in a sweep file, which includes it.
    """
    place, asked = Store(store), {"alpha": alpha, "N": N, "seed": seed}
    with _reported_errors():
        widened(place.sweep(), asked)  # before anything is written, also beside the store
        with place.lock() as writer:
            before = place.sweep()
            wanted = widened(before, asked)
            cells = wanted.cells - before.cells
            if not cells:
                say(f"Nothing to add: {place.path} has all of these values.")
                return
            model = calibrate(wanted.recipe, place)
            new, old = (make_plan(sweep, model, place) for sweep in (wanted, before))
            least, most = (
                (sum(more.values()) - sum(less.values())) / 3600
                for more, less in ((new.least, old.least), (new.most, old.most))
            )
            cost = terminal.between(least, most)
            say(f"Adding {gains(before, wanted)}; they take {cost} core-hours.")
            writer.prepare(wanted, mix=other_numbers)
    say(f"{cells:,} cells were added. Compute them: alphasweep run {_typed(store)}")


@app.command()
def status(
    store: StoreArgument,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    failures: Annotated[
        bool, typer.Option("--failures", help="Show the tracebacks of failed cells.")
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="List runs, extensions and code versions.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every few seconds.")
    ] = False,
) -> None:
    """Say how far a sweep is; also while it runs, from another terminal."""
    place = Store(store)
    with _reported_errors():
        if watch:
            terminal.watch(lambda: _status(place))
            return
        found = _status(place)
        if failures:
            found["failures"] = place.failures()
        if history:
            found |= {"history": place.history(), "versions": place.versions()}
        if as_json:
            print(json.dumps(found))
        else:
            terminal.show_status(found)
    _end_if_lost()


@app.command()
def verify(
    store: StoreArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Forget what is not sound; `run` then mends it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Read every byte of a store, and say what is not sound in it. Exits 1 if anything is."""
    from pipeline.repair import repair as mend
    from pipeline.verify import verify as examine

    place = Store(store)
    with _reported_errors():
        report = examine(place)
        if repair:
            with place.lock() as writer:
                done = mend(writer, report)
            print("\n".join(done), file=sys.stderr if as_json else sys.stdout)
            report = examine(place)
    print(report.to_json() if as_json else report.text())
    _end_if_lost()
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def figure(
    store: StoreArgument,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Which: recovery, one_run ... Default: all."),
    ] = None,
    format_: Annotated[
        list[str] | None,
        typer.Option("--format", help="png, pdf or svg; may be given twice. Default: png, pdf."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder. Default: STORE.figures, beside the store.")
    ] = None,
) -> None:
    """Draw figures of a store, all or those that are named. Exits 1 if one could not be drawn."""
    place = Store(store)
    with _reported_errors():
        folder = out or figures_folder(place.path)
        problems = _draw(_study(place), folder, names or [], format_ or [])
    _end_if(problems)


@app.command("open")
def open_(store: StoreArgument) -> None:
    """Print the dataset, and the line of Python that loads it."""
    place = Store(store)
    with _reported_errors():
        dataset = place.open()
    print(dataset)
    print(f"\nimport xarray as xr\nds = xr.open_zarr({str(place.path)!r})")
    _end_if_lost()


def _sweep_and_store(source: str, store: Path | None) -> tuple[Sweep, Store]:
    with _reported_errors():
        # os.path: of what cannot be a path, it says that there is none.
        if source not in preset_names() and os.path.isfile(Path(source, "zarr.json")):  # noqa: PTH113
            sweep, place = Store(source).sweep(), Store(store or source)
        else:
            sweep = load(source)
            place = Store(store or f"{sweep.name}.zarr")
        place.exists()  # refuses what is there and no store, before anything is made beside it
    return sweep, place


def _typed(path: Path) -> str:
    """Write a path so that a shell takes it for a path."""
    text = str(path)
    is_other = text.startswith("-") or text in preset_names()  # an option, another sweep
    return shlex.quote(f"./{text}" if is_other else text)


def _cost_model(sweep: Sweep, store: Store) -> CostModel:
    there = store if store.exists() else None
    if there:
        wider_sweep(there, sweep)  # refuses the store of another sweep before it is measured
    return calibrate(sweep.recipe, there)


def _plan(sweep: Sweep, store: Store, model: CostModel, seconds: float, retry_failed: bool) -> Plan:
    there = store if store.exists() else None
    return make_plan(sweep, model, there, seconds_per_part=seconds, retry_failed=retry_failed)


def _staff(todo: Plan, workers: int | None, on: Path | None) -> dict[str, Any]:
    """Say who would compute the plan, and how long it takes; refuse what does not fit.

    Returns
    -------
    dict
        Empty if there is nothing to do. ``workers``, ``wall_seconds_least`` and
        ``wall_seconds_most``, without the time in a queue; with a cluster also a list of
        ``classes`` with their ``name``, ``sizes`` (N), ``jobs``, ``parts``, ``core_hours_least``,
        ``core_hours_most``, ``longest_part_seconds`` and ``memory_bytes`` of what they compute,
        and ``walltime_seconds`` and ``job_memory_bytes`` of their jobs.
    """
    found: dict[str, Any] = {}
    if not any(todo.parts.values()):
        return found
    if on is None:
        groups = [(tuple(todo.parts), _workers(todo, workers))]
    else:
        placement = _Placement(on, todo)
        found["classes"] = placement.classes()
        groups = [(row["sizes"], row["jobs"]) for row in found["classes"]]
    least, most = todo.wall(groups)
    number = sum(jobs for _, jobs in groups)
    return found | {"workers": number, "wall_seconds_least": least, "wall_seconds_most": most}


def _part_seconds(asked: float | None, on: Path | None) -> float:
    # A worker of a queue is minutes old before it computes, and its driver has hundreds of them.
    return asked or (_SECONDS_PER_PART_QUEUED if on else SECONDS_PER_PART)


class _Placement:
    """Which class of a profile computes which N, and with how many jobs.

    Raises ClusterError or ProfileError, naming what does not fit, before anything is submitted.
    """

    def __init__(self, path: Path, todo: Plan) -> None:
        from cluster.profile import ProfileError
        from cluster.profile import load as load_profile

        self.path, self.profile = path, load_profile(path)
        self.todo = todo
        self.sizes: dict[str, list[int]] = {}
        problems = []
        for N, parts in todo.parts.items():
            if not parts:
                continue
            size = self.profile.class_for(N)
            self.sizes.setdefault(size.name, []).append(N)
            where = f"profile file {path}, class {size.name}"
            longest = MARGIN * todo.longest[N]
            if todo.bytes[N] > size.memory:
                problems.append(
                    f"{where}: memory must be at least {terminal.size(todo.bytes[N])}, which N = "
                    f"{N} takes; got {terminal.size(size.memory)}."
                )
            if longest > size.walltime:
                problems.append(
                    f"{where}: walltime must be at least {terminal.duration(longest)}, {MARGIN} "
                    f"times the longest part of N = {N}; got {terminal.duration(size.walltime)}: "
                    "raise it, or lower --part-seconds."
                )
        if len(self.sizes) > self.profile.jobs:
            problems.append(
                f"profile file {path}, jobs: must be at least {len(self.sizes)}, one for each "
                f"class in use; got {self.profile.jobs}."
            )
        if problems:
            raise ProfileError(problems)

    def ask(self, store: Store, *, driver: str = "", here: bool = True) -> None:
        """Ask this machine and the queue whether they would run the jobs, and warn of doubts.

        Parameters
        ----------
        store : Store
        driver : str
            The script of the driver's own job, if it is to have one.
        here : bool
            Whether the driver runs on this machine.

        Raises
        ------
        ProfileError
            If some would never run; each is named.
        """
        from cluster.admission import missing_interface, outlooks
        from cluster.launch import job_script
        from cluster.profile import ProfileError

        if self.profile.kind == "local":
            return
        directory = _run_directory(store)
        scripts = {
            f"class {size.name}": job_script(self.profile, size, run_directory=directory)
            for size in self.profile.classes
            if size.name in self.sizes
        }
        found = outlooks(self.profile, scripts | ({"[driver]": driver} if driver else {}))
        where, missing = f"profile file {self.path}", missing_interface(self.profile)
        for what, outlook in found.items():
            if outlook.doubt:
                terminal.warn(f"{where}, {what}: {outlook.doubt}")
        refused = [f"{where}, {k}: {each.refusal}" for k, each in found.items() if each.refusal]
        if missing and here:
            refused.append(missing)
        elif missing:
            terminal.warn(missing)
        if refused:
            raise ProfileError(refused)

    @property
    def jobs(self) -> dict[str, int]:
        """How many jobs each class starts with: as its share of the work, at least one."""
        seconds = {name: self.seconds(name) for name in self.sizes}
        free = self.profile.jobs - len(seconds)
        shares = {name: int(free * s / sum(seconds.values())) for name, s in seconds.items()}
        return {name: min(1 + share, self.parts(name)) for name, share in shares.items()}

    @property
    def reserve(self) -> dict[str, int]:
        """The class above those in use, if there is one: for parts that need too much memory."""
        used = [k for k, size in enumerate(self.profile.classes) if size.name in self.sizes]
        return {size.name: 0 for size in self.profile.classes[used[-1] + 1 :][:1]}

    def seconds(self, name: str) -> float:
        """Predicted core-seconds of a class."""
        return sum(self.todo.seconds[N] for N in self.sizes[name])

    def parts(self, name: str) -> int:
        """Parts of a class."""
        return sum(self.todo.parts[N] for N in self.sizes[name])

    def classes(self) -> list[dict[str, Any]]:
        """Say what each class in use computes, and what its jobs ask for, see `_staff`."""
        return [
            {
                "name": size.name,
                "sizes": self.sizes[size.name],
                "jobs": self.jobs[size.name],
                **self.todo.of(self.sizes[size.name]),
                "walltime_seconds": size.walltime,
                "job_memory_bytes": size.memory,
            }
            for size in self.profile.classes
            if size.name in self.sizes
        ]


def _show_jobs(placement: _Placement, classes: list[dict[str, Any]], store: Store) -> None:
    from cluster.launch import job_script

    profile = placement.profile
    terminal.show_classes(classes)
    say("N goes to the smallest class whose up_to_N holds it.")
    if profile.kind != "local":
        for size in profile.classes:
            if size.name in placement.sizes:
                say(f"\nThe script of a job of class {size.name}:\n")
                say(job_script(profile, size, run_directory=_run_directory(store)))


def _run_directory(store: Store) -> Path:
    return store.control / "cluster"


def _queue_of(store: Store) -> Queue | None:
    """Return the queue that has the jobs of a store, or had them last."""
    from cluster import slurm
    from cluster.launch import queue_of

    if queue := queue_of(_run_directory(store)):
        return queue
    # Submitted by a version that kept no note of it, and not begun.
    submitted = (store.control / _SUBMITTED).exists() and shutil.which("squeue")
    return slurm if submitted else None


def _driver_name(store: Store) -> str:
    from cluster.launch import driver_name

    return driver_name(_run_directory(store))


def _driver_log(store: Store) -> Path:
    return store.control / "driver.log"


def _driver_script(placement: _Placement, store: Store, command: list[str]) -> str:
    from cluster.submit import driver_script

    return driver_script(
        placement.profile,
        command,
        log=_driver_log(store),
        record=store.control / _SUBMITTED,
        job_name=_driver_name(store),
    )


def _compute(
    sweep: Sweep, writer: Writer, todo: Plan, workers: int | None, on: Path | None
) -> None:
    from pipeline.drive import drive  # distributed takes a second to load

    found = todo.numbers()
    cost = terminal.between(found["core_hours_least"], found["core_hours_most"])
    say(
        f"{sweep.name}: {found['missing']:,} cells to compute, {cost} core-hours; {todo.done:,} of "
        f"{todo.cells:,} are done."
    )
    crew = _queue(writer, todo, on) if on else _this_machine(todo, workers)
    try:
        with crew as (lanes, workforce), terminal.progress(todo) as watch:
            if workforce:
                watch = _telling_why_jobs_wait(watch, workforce)
            end = drive(sweep, writer, todo, lanes, watch=watch, workforce=workforce)
    except KeyboardInterrupt:
        with suppress(OSError, StoreError):  # the parts stay, and the next run commits them
            writer.collect()
        raise
    terminal.show_cost(end, todo)


def _telling_why_jobs_wait(
    watch: Callable[[Progress], None], crew: Crew
) -> Callable[[Progress], None]:
    """Also tell why jobs wait: after a minute, and when that changes, once a minute at most."""
    from cluster.slurm import remedy

    told: dict[str, set[str]] = {}
    quiet_until = _WAIT_SECONDS

    def telling(where: Progress) -> None:
        nonlocal quiet_until
        watch(where)
        if where.elapsed < quiet_until:
            return
        for name, state in crew.state().items():
            reasons = state["reasons"].keys() - {"None", "unknown"}  # it has not looked at them yet
            if reasons and reasons != told.get(name):
                told[name] = reasons
                quiet_until = where.elapsed + _WAIT_SECONDS
                say(terminal.why_jobs_wait(name, state, remedy))

    return telling


@contextmanager
def _this_machine(todo: Plan, workers: int | None) -> Iterator[tuple[list[Lane], None]]:
    from cluster.launch import local
    from cluster.pulse import silences
    from pipeline.drive import Lane

    number = _workers(todo, workers)
    say(f"{number} workers on this machine")
    with local(number) as client:
        heard = partial(silences, client)
        yield [Lane(client, tuple(todo.parts), lambda: number, silences=heard)], None


@contextmanager
def _queue(writer: Writer, todo: Plan, on: Path) -> Iterator[tuple[list[Lane], Crew]]:
    from cluster.crew import Crew
    from cluster.launch import launch
    from cluster.preflight import preflight, versions
    from cluster.pulse import silences
    from pipeline.drive import Lane

    store, placement = writer.store, _Placement(on, todo)
    placement.ask(store)
    profile, jobs = placement.profile, placement.jobs
    if profile.kind != "local":
        jobs |= placement.reserve
    memory = {size.name: size.memory for size in profile.classes}
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
        run_directory=_run_directory(store),
        token=writer.token,
        check=writer.check,
    ) as cluster:
        for name, number in placement.jobs.items():
            say(f"{number} jobs of class {name} submitted to {profile.kind}")
        for name, page in cluster.dashboards.items():
            port = page.split(":")[2].split("/")[0]
            host = socket.gethostname()
            tunnel = f"ssh -L {port}:127.0.0.1:{port} {host}"
            say(f"dashboard of {name}: {page} (from elsewhere: {tunnel})")
        crew = Crew(cluster, jobs, examine)
        yield (
            [
                Lane(
                    cluster.client(name),
                    tuple(placement.sizes.get(name, ())),
                    partial(crew.workers, name),
                    partial(crew.want, name),
                    partial(silences, cluster.client(name)),
                )
                for name in jobs
            ],
            crew,
        )


def _workers(todo: Plan, asked: int | None) -> int:
    from dask.system import CPU_COUNT  # a container may use less than there is
    from distributed.system import MEMORY_LIMIT

    bytes_of = {N: todo.bytes[N] for N, parts in todo.parts.items() if parts}
    largest = max(bytes_of, key=bytes_of.__getitem__)
    # Each worker has its share, and is killed when it holds nearly all of that.
    most = int(_KILLED_AT * MEMORY_LIMIT / bytes_of[largest])
    if most < (asked or 1):
        need, limit = terminal.size(bytes_of[largest]), terminal.size(_KILLED_AT * MEMORY_LIMIT)
        remedy = f"lower --workers to {most}" if most else "leave out the largest N or alpha"
        raise _TooLargeError(
            f"{asked or 1} workers on this machine must have {need} each, which N = {largest} "
            f"takes; they can have {limit} in all: {remedy}, or use a cluster, --on PROFILE."
        )
    fitting = int(0.8 * min(MEMORY_LIMIT, psutil.virtual_memory().available) / bytes_of[largest])
    return asked or max(1, min(int(CPU_COUNT), fitting, sum(todo.parts.values())))


def _status(store: Store) -> dict[str, Any]:
    sweep, waiting, cells = store.sweep(), store.parts(), store.status()
    failed = int((cells == FAILED).sum())
    done = min(
        cells.size - failed,
        int((cells == DONE).sum()) + sum(len(part.seeds) for part in waiting),
    )
    holder = store.holder()
    said = store.progress() if holder else {}
    running = min(int(said.get("running", 0)), cells.size - done - failed)
    begun = said.get("predicted_done", 0.0) + said.get("predicted_running", 0.0)
    found = {
        "store": str(store.path),
        "name": sweep.name,
        "cells": cells.size,
        "done": done,
        "running": running,
        "failed": failed,
        "missing": cells.size - done - failed - running,
        "rate": float(said.get("rate", 0.0)),
        "parts": said.get("parts", 0),
        "parts_done": said.get("parts_done", 0),
        "parts_running": said.get("parts_running", 0),
        "longest_seconds": said.get("longest_seconds", 0.0),
        "longest_predicted": said.get("longest_predicted", 0.0),
        "seconds_left": said.get("seconds_left"),
        "stalled_seconds": said.get("stalled", 0.0),
        "silent_workers": said.get("silent", 0),
        "silent_seconds": said.get("silence", 0.0),
        "driver": holder,
        "driver_job": _driver_job(store),
        "cluster": said.get("cluster", {}),
        "core_hours_used": sum(c["core_seconds"] for c in said.get("cluster", {}).values()) / 3600,
        "core_hours_left": (said.get("predicted_seconds", 0.0) - begun) / 3600,
        "efficiency": _efficiency(said),
        "errors": [f"{failure['part']}: {failure['error']}" for failure in store.failures()],
    }
    if found["cluster"] or found["driver_job"]:
        from cluster.slurm import remedy

        waits = [reason for state in found["cluster"].values() for reason in state["reasons"]]
        waits += [found["driver_job"]["reason"]] if found["driver_job"] else []
        found["remedies"] = {reason: text for reason in waits if (text := remedy(reason))}
    return found


def _driver_job(store: Store) -> dict[str, str] | None:
    """Tell of the driver's own job, if it was submitted and is not over."""
    if not (store.control / _SUBMITTED).exists() or not (queue := _queue_of(store)):
        return None
    if not store.has_own_folder():
        return None
    from cluster.queue import ClusterError

    try:
        jobs = queue.jobs(_driver_name(store))
    except ClusterError as error:
        last = (store.control / _SUBMITTED).read_text().strip()
        return {"id": last, "state": "UNKNOWN", "reason": str(error)}
    # One that ends may have submitted the next, which waits for that.
    for job, found in sorted(jobs.items(), key=lambda each: _HOW_OVER.get(each[1].state, 0)):
        return {"id": job, "state": found.state, "reason": found.reason}
    return None


def _efficiency(said: dict[str, Any]) -> float | None:
    """Kernel seconds over the core-seconds that were held for them."""
    held = sum(c["core_seconds"] for c in said.get("cluster", {}).values())
    held = held or said.get("workers", 0) * said.get("elapsed", 0.0)
    return said["kernel_seconds"] / held if held else None


def _conclude(store: Store) -> None:
    """Print alpha_half(N), or what there is without a signal, and draw figures beside the store.

    What goes wrong in the analysis is told, ends with 1, and costs none of the rest.
    """
    study = _study(store)
    problems = []
    for show in (_show_outcomes, _show_half, _show_description):
        try:
            show(study)
        except Exception as error:  # of an analysis; what was computed is in the store
            problems.append(f"{type(error).__name__}: {error}")
    problems = [f"not all of the analysis could be made: {why}." for why in dict.fromkeys(problems)]
    if not problems and study.laws["raised"].any():
        problems.append("not every law of alpha_half(N) could be fitted; see above.")
    if not problems and study.is_void:
        problems.append("more than half of the runs diverged, so that nothing else can be said.")
    problems += _draw(study, figures_folder(store.path))
    say(f"Data:    xarray.open_zarr({str(store.path)!r})")
    status = store.status()
    failed, missing = int((status == FAILED).sum()), int((status == MISSING).sum())
    if missing:
        say(f"{missing:,} cells of the store are missing: alphasweep run {_typed(store.path)}")
    if failed:
        problems.append(
            f"{failed} cells failed; alphasweep status {_typed(store.path)} --failures says why."
        )
    _end_if(problems)


def _study(store: Store) -> Study:
    # Before lmfit loads it: a home that cannot be written is not worth a line.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from analysis.study import Study

    return Study(store.open())


def _show_outcomes(study: Study) -> None:
    if study.unstable:
        say(study.unstable)
    terminal.show_outcomes(study.outcomes)


def _show_half(study: Study) -> None:
    if study.has_signal:
        terminal.show_alpha_half(study.half, study.halves.sel(by=math.inf))


def _show_description(study: Study) -> None:
    say(study.describe())


def _draw(
    study: Study, folder: Path, names: Sequence[str] = (), formats: Sequence[str] = ()
) -> list[str]:
    """Draw figures into a folder; return a line for each thing that went wrong."""
    try:
        from analysis.figures import FIGURES, FORMATS, draw
    except Exception as error:  # of the user's settings of Matplotlib
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return [f"no figure could be drawn: {why}."]
    for what, asked, known in (("NAME", names, FIGURES), ("--format", formats, FORMATS)):
        if unknown := [word for word in asked if word not in known]:
            return [f"{what} must be one of {', '.join(known)}; got {', '.join(unknown)}."]
    named = dict[str, list[str]]()
    for name, why in draw(study, folder, names or FIGURES, formats or ("png", "pdf")).items():
        named.setdefault(why, []).append(name)
    if not named:
        say(f"Figures: {folder}")
    return [
        f"not every figure could be saved in {folder}: {', '.join(names)}: {why}."
        for why, names in named.items()
    ]


class _TooLargeError(RuntimeError):
    """A sweep that this machine has no memory for."""


class _Requeue(KeyboardInterrupt):
    """The driver's own job is about to end: stop, and say that there is more to do."""


@contextmanager
def _reported_errors() -> Iterator[None]:
    try:
        yield
    except (StoreError, SweepError, _TooLargeError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(
            f"{error.filename or 'the store'} must be writable; got: {error.strerror or error}. "
            "Nothing that was finished is lost: make room or choose another --store, and run again."
        )
    except _Requeue:
        say("Stopped before the end of this job. What was finished is kept; the next one goes on.")
        raise typer.Exit(_REQUEUE_STATUS) from None
    except KeyboardInterrupt:
        say("Stopped. What was finished is kept; run again to go on.")
        raise typer.Exit(130) from None
    except (RuntimeError, ValueError) as error:
        # The cluster's own, looked up without importing it: it may not have been needed.
        if type(error).__module__.partition(".")[0] != "cluster":
            raise
        _fail(str(error))


@contextmanager
def _signals() -> Iterator[None]:
    """Treat SIGTERM and a closed terminal like Ctrl-C, and SIGUSR1 as the end of this job."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    def requeue(*_: object) -> NoReturn:
        raise _Requeue

    wanted = {signal.SIGTERM: stop, signal.SIGUSR1: requeue, signal.SIGHUP: stop}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
        del wanted[signal.SIGHUP]
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str) -> NoReturn:
    terminal.warn(message)
    raise typer.Exit(1)


def _end_if(problems: Sequence[str]) -> None:
    """End with an error if there are any, after a line for each."""
    for problem in problems:
        terminal.warn(problem)
    if problems:
        raise typer.Exit(1)


def _end_if_lost() -> None:
    """End with an error if what was printed, which is all that the command does, was lost."""
    if terminal.lost_output():
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    terminal.protect_output()
    try:
        app()
    finally:
        if why := terminal.lost_output():
            terminal.warn(f"what was printed could not be written: {why}.")


if __name__ == "__main__":
    main()
