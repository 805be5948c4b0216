"""The verbs of `alphasweep`; the only place that composes pipeline, cluster and analysis."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import psutil
import typer

from pipeline import terminal
from pipeline.dataset import DONE, FAILED
from pipeline.plan import SECONDS_PER_PART, Plan, calibrate, make_plan
from pipeline.spec import Sweep, SweepError, load, preset_names, template, widened
from pipeline.store import Store, StoreError, Writer, wider_sweep
from pipeline.terminal import say

app = typer.Typer(
    help="Gradient descent on phase retrieval over a grid (alpha, N, seed), and its log N "
    "threshold. Start with: alphasweep run quick",
    no_args_is_help=True,
    add_completion=False,
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
PartOption = Annotated[
    float, typer.Option("--part-seconds", min=0.01, help="How long one part should take.")
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Compute failed cells again.")]
MixOption = Annotated[
    bool,
    typer.Option("--other-numbers", help="Go on with code that gives other numbers, and mix them."),
]


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("sweep.toml"),
) -> None:
    """Write a commented sweep file to start from."""
    try:
        with path.open("x") as file:
            file.write(template().replace('name = "laptop"', f"name = {json.dumps(path.stem)}"))
    except FileExistsError:
        _fail(f"{path} exists already, and is left as it is: choose another name.")
    except OSError as error:
        _fail(f"{path} cannot be written: {error.strerror}.")
    say(f"Wrote {path}. Edit it, then: alphasweep plan {path}")


@app.command()
def plan(
    sweep: SweepArgument,
    store: StoreOption = None,
    part_seconds: PartOption = SECONDS_PER_PART,
    retry_failed: RetryOption = False,
) -> None:
    """Show what a run would do and cost, without running it."""
    wanted, place = _sweep_and_store(sweep, store)
    with _reported_errors():
        terminal.show_plan(wanted, _plan(wanted, place, part_seconds, retry_failed))


@app.command()
def run(
    sweep: SweepArgument,
    store: StoreOption = None,
    workers: WorkersOption = None,
    part_seconds: PartOption = SECONDS_PER_PART,
    retry_failed: RetryOption = False,
    other_numbers: MixOption = False,
) -> None:
    """Compute what is missing, then draw the figures. Running again resumes."""
    wanted, place = _sweep_and_store(sweep, store)
    _run(wanted, place, workers, part_seconds, retry_failed, other_numbers)


@app.command()
def extend(
    store: StoreArgument,
    alpha: Annotated[str, typer.Option(help="More values, for instance 3.1,3.2")] = "",
    N: Annotated[str, typer.Option("--N", help="More values, for instance 1024")] = "",
    seed: Annotated[str, typer.Option(help="More values, for instance 0:64 (0 to 63)")] = "",
    workers: WorkersOption = None,
    part_seconds: PartOption = SECONDS_PER_PART,
    other_numbers: MixOption = False,
) -> None:
    """Add values to the axes of a store, anywhere, and compute what is missing."""
    place = Store(store)
    with _reported_errors():
        wanted = widened(place.sweep(), {"alpha": alpha, "N": N, "seed": seed})
    _run(wanted, place, workers, part_seconds, False, other_numbers)


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
) -> None:
    """Say how far a sweep is; also while it runs, from another terminal."""
    place = Store(store)
    with _reported_errors():
        found = _status(place)
        if failures:
            found["failures"] = place.failures()
        if history:
            found |= {"history": place.history(), "versions": place.versions()}
        if as_json:
            typer.echo(json.dumps(found))
        else:
            terminal.show_status(found)


@app.command("open")
def open_(store: StoreArgument) -> None:
    """Print the dataset, and the line of Python that loads it."""
    with _reported_errors():
        dataset = Store(store).open()
    typer.echo(dataset)
    typer.echo(f'\nimport xarray as xr\nds = xr.open_zarr("{store}")')


def _sweep_and_store(source: str, store: Path | None) -> tuple[Sweep, Store]:
    with _reported_errors():
        if source not in preset_names() and Path(source, "zarr.json").exists():
            return Store(source).sweep(), Store(store or source)
        sweep = load(source)
    return sweep, Store(store or f"{sweep.name}.zarr")


def _run(
    sweep: Sweep, store: Store, workers: int | None, seconds: float, retry_failed: bool, mix: bool
) -> None:
    with _reported_errors(), _terminated_as_interrupted():
        with store.lock() as writer:
            writer.prepare(sweep, mix=mix)
            todo = _plan(sweep, store, seconds, retry_failed)
            if any(todo.parts.values()):
                _compute(sweep, writer, todo, workers)
        _conclude(store)


def _plan(sweep: Sweep, store: Store, seconds: float, retry_failed: bool) -> Plan:
    there = store if store.exists() else None
    if there:
        wider_sweep(there, sweep)  # refuses the store of another sweep before it is measured
    model = calibrate(sweep.recipe, there)
    return make_plan(sweep, model, there, seconds_per_part=seconds, retry_failed=retry_failed)


def _compute(sweep: Sweep, writer: Writer, todo: Plan, workers: int | None) -> None:
    from cluster.launch import local  # distributed takes a second to load: only when it is needed
    from pipeline.drive import Lane, drive

    number = _workers(todo, workers)
    say(
        f"{sweep.name}: {sum(todo.missing.values()):,} cells to compute on {number} workers, at "
        f"most {terminal.duration(sum(todo.seconds.values()) / number)}; {todo.done:,} of "
        f"{todo.cells:,} are done."
    )
    try:
        with local(number) as client, terminal.progress(todo) as watch:
            lane = Lane(client, sweep.grid.N, lambda: number)
            end = drive(sweep, writer, todo, [lane], watch=watch)
    except KeyboardInterrupt:
        with suppress(OSError, StoreError):  # the parts stay, and the next run commits them
            writer.collect()
        raise
    busy = end.kernel_seconds / (number * end.elapsed) if end.elapsed else 0.0
    say(
        f"{end.cells_now:,} cells in {terminal.duration(end.elapsed)}, workers busy in the "
        f"kernels for {busy:.0%} of it."
    )


def _workers(todo: Plan, asked: int | None) -> int:
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fitting = int(0.8 * psutil.virtual_memory().available / max(todo.bytes.values()))
    return max(1, min(cores or 1, fitting, sum(todo.parts.values())))


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
    predicted, begun = said.get("predicted_seconds", 0.0), said.get("predicted_done", 0.0)
    left = (predicted / begun - 1) * said["elapsed"] if begun else None
    return {
        "store": str(store.path),
        "name": sweep.name,
        "cells": cells.size,
        "done": done,
        "running": running,
        "failed": failed,
        "missing": cells.size - done - failed - running,
        "rate": float(said.get("rate", 0.0)),
        "seconds_left": left,
        "driver": holder,
        "errors": [f"{failure['part']}: {failure['error']}" for failure in store.failures()],
    }


def _conclude(store: Store) -> None:
    """Draw the figures next to the store, and print alpha_half(N)."""
    from analysis import figures, recovery, scaling
    from analysis.thresholds import alpha_bbp_init

    dataset = store.open()
    probability = recovery.recovery_probability(dataset)
    half = recovery.alpha_half(dataset)
    laws = scaling.fit_log_laws(half)
    a = store.sweep().descent.a
    folder = store.path.with_suffix(".figures")
    folder.mkdir(exist_ok=True)
    figures.save(figures.recovery_curves(dataset, probability, half), folder / "recovery")
    figures.save(figures.alpha_half_against_log_N(half, laws, a=a), folder / "alpha_half")
    figures.save(figures.one_run(dataset), folder / "one_run")
    terminal.show_alpha_half(half)
    say(f"outlier at the random start from alpha_BBP_init = {alpha_bbp_init(a):.4f}")
    say(scaling.describe(laws))
    say(f"Figures: {folder}")
    say(f'Data:    xarray.open_zarr("{store.path}")')
    failed = int((store.status() == FAILED).sum())
    if failed:
        _fail(f"{failed} cells failed; alphasweep status {store.path} --failures says why.")


@contextmanager
def _reported_errors() -> Iterator[None]:
    try:
        yield
    except (StoreError, SweepError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'the store'} must be writable; got: {error.strerror or error}.")
    except KeyboardInterrupt:
        say("Stopped. What was finished is kept; run again to go on.")
        sys.stdout.flush()
        raise typer.Exit(130) from None


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str) -> NoReturn:
    typer.echo(f"alphasweep: {message}", err=True)
    raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
