"""The verbs of `alphasweep`: what they print, and how they end. A run itself is `pipeline.run`."""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from alphasweep.pipeline import terminal
from alphasweep.pipeline.dataset import FAILED
from alphasweep.pipeline.files import replace_text
from alphasweep.pipeline.layout import figures_folder
from alphasweep.pipeline.messages import SweepError
from alphasweep.pipeline.plan import Plan, make_plan
from alphasweep.pipeline.provenance import code_version
from alphasweep.pipeline.run import (
    SUBMITTED,
    RunError,
    cost_model,
    driver_name,
    existing,
    placement,
    queue_of,
    run_directory,
    seconds_per_part,
    source,
    staff,
)
from alphasweep.pipeline.run import run as compose
from alphasweep.pipeline.spec import Sweep, preset_names, template
from alphasweep.pipeline.status import status as look
from alphasweep.pipeline.store import Store, StoreError, wider_sweep
from alphasweep.pipeline.sweeps import gains, widened
from alphasweep.pipeline.terminal import say
from alphasweep.pipeline.words import between

if TYPE_CHECKING:  # distributed takes a second to load
    from alphasweep.analysis.study import Study
    from alphasweep.cluster.placement import Placement
    from alphasweep.cluster.profile import Profile

_REQUEUE_STATUS = 75  # EX_TEMPFAIL; cluster.submit's script then puts the job back

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
            from alphasweep.cluster import profile

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
    with _reported_errors():
        wanted, target = source(sweep, store)
        todo = _plan(wanted, target, part_seconds, on, retry_failed)
        found = {"store": str(target.path)} | todo.numbers()
        try:
            found |= staff(todo, workers, on)
        finally:
            print(json.dumps(found)) if as_json else terminal.show_plan(found)
        if on and "classes" in found:
            placed = placement(on, todo)
            if not as_json:
                _show_jobs(placed, found["classes"], target)
            submits = placed.profile.kind == "slurm" and placed.profile.driver
            driver = _driver_script(placed.profile, target, []) if submits else ""
            _ask(placed, on, target, driver)
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
    with _reported_errors(), _signals():
        with terminal.hurried(), terminal.telling() as watch:
            result = compose(
                sweep,
                store,
                on,
                workers,
                watch=watch,
                part_seconds=part_seconds,
                retry_failed=retry_failed,
                other_numbers=other_numbers,
                wait=wait,
            )
        if result.progress:
            terminal.show_cost(result.progress, result.plan)
        _conclude(Store(result.store))


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
    from alphasweep.cluster.launch import record_queue
    from alphasweep.cluster.queue import command as ask_command
    from alphasweep.cluster.submit import submit as submit_job

    with _reported_errors():
        wanted, target = source(sweep, store)
        seconds = seconds_per_part(part_seconds, on)
        placed = placement(on, _plan(wanted, target, seconds, on, retry_failed))
        command = [sys.executable, "-P", "-m", "alphasweep.pipeline.cli"]
        command += ["run", str(target.path), "--wait"]
        command += ["--on", str(on.absolute()), "--part-seconds", str(seconds)]
        command += ["--retry-failed"] * retry_failed + ["--other-numbers"] * other_numbers
        script = _driver_script(placed.profile, target, command)
        ask_command("sbatch", "--version")
        _ask(placed, on, target, script)
        with target.lock() as writer:
            writer.prepare(wanted, mix=other_numbers)
        record_queue(run_directory(target), placed.profile.kind)
        job = submit_job(script)
        replace_text(target.control / SUBMITTED, job)
    say(
        f"Submitted the driver of {target.path} as job {job}; its log: {_driver_log(target)}\n"
        f"See how it goes:  alphasweep status {_typed(target.path)} --watch\n"
        f"Stop it:          alphasweep cancel {_typed(target.path)}"
    )


@app.command()
def cancel(store: StoreArgument) -> None:
    """End the driver of a store and its workers; what was finished is kept."""
    from alphasweep.cluster.launch import end
    from alphasweep.cluster.queue import ClusterError

    target = Store(store)
    with _reported_errors():
        target.sweep()
        queue = queue_of(target)
        name, pid = driver_name(target), target.holder_here()
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
        elif driver := target.holder():
            _fail(f"{target.path} is driven by {driver}; it is no job: stop it there.")
        try:
            with target.lock(wait=True) as writer:
                end(run_directory(target), queue=queue, check=writer.check)
                writer.collect()
        except OSError as error:  # a full disk, say: what costs core-hours ends all the same
            end(run_directory(target), queue=queue)
            _fail(
                f"the driver and the workers of {target.path} are ended, but the store must be "
                f"writable to commit what they had finished; got: {error.strerror or error}. That "
                "is kept: make room, and run again."
            )
    terminal.show_status(asdict(look(store)))


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
    t_max: Annotated[
        float | None,
        typer.Option(
            "--t-max",
            min=0,
            callback=_finite,
            help="A larger t_max: cells in which time ran out are computed again, no others.",
        ),
    ] = None,
    other_numbers: MixOption = False,
) -> None:
    """Add values to the axes of a store, anywhere, or time; `run STORE` then computes them.

    A range first:end leaves its end out, unlike { from, to } in a sweep file, which includes it.
    """
    target, asked = Store(store), {"alpha": alpha, "N": N, "seed": seed}
    with _reported_errors():
        # Before anything is written, also beside the store.
        wider_sweep(target, widened(target.sweep(), asked, t_max))
        with target.lock() as writer:
            before = target.sweep()
            wanted = wider_sweep(target, widened(before, asked, t_max))
            if wanted == before:
                say(f"Nothing to add: {target.path} has all of these values.")
                return
            model = cost_model(wanted, target)
            new, old = (make_plan(sweep, model, target) for sweep in (wanted, before))
            least, most = (
                (sum(more.values()) - sum(less.values())) / 3600
                for more, less in ((new.least, old.least), (new.most, old.most))
            )
            cost = between(least, most)
            say(f"Adding {gains(before, wanted)}; they take {cost} core-hours.")
            writer.prepare(wanted, mix=other_numbers)
    cells = f"{wanted.cells - before.cells:,} cells were added"
    if new.again:
        cells += f", and {new.again:,}, in which time ran out, are to be computed again"
    say(f"{cells}. Compute them: alphasweep run {_typed(store)}")


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
    target = Store(store)
    with _reported_errors():
        if watch:
            terminal.watch(lambda: asdict(look(store)))
            return
        found = asdict(look(store))
        if failures:
            found["failures"] = target.failures()
        if history:
            found |= {"history": target.history(), "versions": target.versions()}
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
    from alphasweep.pipeline.repair import repair as mend
    from alphasweep.pipeline.verify import verify as examine

    target = Store(store)
    with _reported_errors():
        report = examine(target)
        if repair:
            with target.lock() as writer:
                done = mend(writer, report)
            print("\n".join(done), file=sys.stderr if as_json else sys.stdout)
            report = examine(target)
    print(report.to_json() if as_json else report.text())
    _end_if_lost()
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def figure(
    store: StoreArgument,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="Which; a name that is none lists them. Default: all."
        ),
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
    target = Store(store)
    with _reported_errors():
        folder = out or figures_folder(target.path)
        problems = _draw(_study(target), folder, names or [], format_ or [])
    _end_if(problems)


@app.command()
def compare(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE STORE...", help="Two or more.")],
    out: Annotated[
        Path, typer.Option(help="The figure: a path ending in .png, .pdf or .svg.")
    ] = Path("comparison.png"),
) -> None:
    """Compare sweeps with other starts, losses, methods or a: alpha_half(N) and P(recovery)."""
    if len(stores) < 2 or len({path.stem for path in stores}) < len(stores):
        got = ", ".join(map(str, stores))
        _fail(f"STORE must be two stores or more of different names; got {got}.")
    with _reported_errors():
        studies = {path.stem: _study(Store(path)) for path in stores}
        from alphasweep.analysis import comparison
        from alphasweep.analysis.style import FORMATS, save

        kind = out.suffix.removeprefix(".")
        if kind not in FORMATS:
            _fail(f"--out must end in .{', .'.join(FORMATS)}; got {out}.")
        say(comparison.describe(comparison.compare(studies)))
        (drawn,) = save(comparison.comparison(studies), out.with_suffix(""), [kind])
        say(f"Figure: {drawn}")


@app.command("open")
def open_(store: StoreArgument) -> None:
    """Print the dataset, and the line of Python that loads it."""
    target = Store(store)
    with _reported_errors():
        dataset = target.open()
    print(dataset)
    print(f"\nimport xarray as xr\nds = xr.open_zarr({str(target.path)!r})")
    _end_if_lost()


def _typed(path: Path) -> str:
    """Write a path so that a shell takes it for a path."""
    text = str(path)
    is_other = text.startswith("-") or text in preset_names()  # an option, another sweep
    return shlex.quote(f"./{text}" if is_other else text)


def _plan(
    sweep: Sweep, store: Store, seconds: float | None, on: Path | None, retry_failed: bool
) -> Plan:
    return make_plan(
        sweep,
        cost_model(sweep, store),
        existing(store),
        seconds_per_part=seconds_per_part(seconds, on),
        retry_failed=retry_failed,
    )


def _ask(placed: Placement, on: Path, store: Store, driver: str) -> None:
    """Have refused what the queue would not run, if the driver runs elsewhere; tell its doubts."""
    for doubt in placed.ask(on, run_directory=run_directory(store), driver=driver, here=False):
        terminal.warn(doubt)


def _show_jobs(placed: Placement, classes: list[dict[str, Any]], store: Store) -> None:
    from alphasweep.cluster.launch import job_script

    terminal.show_classes(classes)
    say("N goes to the smallest class whose up_to_N holds it.")
    if placed.profile.kind != "local":
        for size in placed.classes:
            say(f"\nThe script of a job of class {size.name}:\n")
            say(job_script(placed.profile, size, run_directory=run_directory(store)))


def _driver_log(store: Store) -> Path:
    return store.control / "driver.log"


def _driver_script(profile: Profile, store: Store, command: list[str]) -> str:
    from alphasweep.cluster.submit import driver_script

    return driver_script(
        profile,
        command,
        log=_driver_log(store),
        record=store.control / SUBMITTED,
        job_name=driver_name(store),
    )


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
    failed, missing = int((store.status() == FAILED).sum()), store.missing()
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
    from alphasweep.analysis.study import Study

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
        from alphasweep.analysis.figures import FIGURES, draw
        from alphasweep.analysis.style import FORMATS
    except Exception as error:  # of the user's settings of Matplotlib
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return [f"no figure could be drawn: {why}."]
    if unknown := [name for name in names if name not in FIGURES]:
        each = (f"\n  {name}: {inspect.getdoc(make)}" for name, make in FIGURES.items())
        known = "".join(text.partition("\n\n")[0] for text in each)
        return [f"NAME must be one of these; got {', '.join(unknown)}:{known}"]
    if unknown := [word for word in formats if word not in FORMATS]:
        return [f"--format must be one of {', '.join(FORMATS)}; got {', '.join(unknown)}."]
    named = dict[str, list[str]]()
    for name, why in draw(study, folder, names or None, formats or ("png", "pdf")).items():
        named.setdefault(why, []).append(name)
    if not named and folder.is_dir():  # which is made for the first figure that shows something
        say(f"Figures: {folder}")
    return [
        f"not every figure could be saved in {folder}: {', '.join(names)}: {why}."
        for why, names in named.items()
    ]


class _Requeue(KeyboardInterrupt):
    """The driver's own job is about to end: stop, and say that there is more to do."""


@contextmanager
def _reported_errors() -> Iterator[None]:
    try:
        yield
    except (StoreError, SweepError, RunError) as error:
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
        if not type(error).__module__.startswith("alphasweep.cluster."):
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
