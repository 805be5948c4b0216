"""The verbs of `alphasweep`; the only place that composes pipeline, cluster and analysis."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline import plan as planning
from pipeline.dataset import DONE, FAILED
from pipeline.spec import Sweep, SweepError, load, preset_names, template
from pipeline.store import Store, StoreError, Writer, wider_sweep

if TYPE_CHECKING:  # distributed takes a second to load
    from pipeline.drive import Progress as Where

app = typer.Typer(
    help="Gradient descent on phase retrieval over a grid (alpha, N, seed), and its log N "
    "threshold. Start with: alphasweep run quick",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_out = Console()
_PLAIN_EVERY = 10.0  # seconds between lines when there is no terminal

SweepArgument = Annotated[
    str,
    typer.Argument(help=f"A sweep file, or a preset: {', '.join(preset_names())}."),
]
StoreOption = Annotated[
    Path | None, typer.Option(help="Where the result is kept. Default: NAME.zarr in this folder.")
]
StoreArgument = Annotated[Path, typer.Argument(help="A store, for instance laptop.zarr.")]
PartOption = Annotated[
    float, typer.Option("--part-seconds", min=0.01, help="How long one part should take.")
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Compute failed cells again.")]


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
    _out.print(f"Wrote {path}. Edit it, then: alphasweep plan {path}", highlight=False)


@app.command()
def plan(
    sweep: SweepArgument,
    store: StoreOption = None,
    part_seconds: PartOption = planning.SECONDS_PER_PART,
    retry_failed: RetryOption = False,
) -> None:
    """Show what a run would do and cost, without running it."""
    wanted, place = _sweep_and_store(sweep, store)
    _show_plan(wanted, _plan(wanted, place, part_seconds, retry_failed))


@app.command()
def run(
    sweep: SweepArgument,
    store: StoreOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes. Default: one a core.")
    ] = None,
    part_seconds: PartOption = planning.SECONDS_PER_PART,
    retry_failed: RetryOption = False,
) -> None:
    """Compute what is missing, then draw the figures. Running again resumes."""
    wanted, place = _sweep_and_store(sweep, store)
    with _reported_errors(), _terminated_as_interrupted(), place.lock() as writer:
        writer.prepare(wanted)
        todo = _plan(wanted, place, part_seconds, retry_failed)
        if any(todo.parts.values()):
            _compute(wanted, writer, todo, workers)
    with _reported_errors():
        _conclude(place)


@app.command()
def status(
    store: StoreArgument,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say how far a sweep is; also while it runs, from another terminal."""
    with _reported_errors():
        found = _status(Store(store))
    if as_json:
        typer.echo(json.dumps(found))
        return
    _out.print(
        f"{store}: {found['done']} of {found['cells']} cells done, {found['running']} running, "
        f"{found['failed']} failed, {found['missing']} missing",
        highlight=False,
    )
    if found["driver"]:
        left = (found["missing"] + found["running"]) / found["rate"] if found["rate"] else None
        _out.print(
            f"driven by {found['driver']}: {found['rate']:.2g} cells a second"
            + (f", about {_duration(left)} left" if left is not None else ""),
            highlight=False,
        )
    for failure in Store(store).failures():
        _out.print(f"failed: {failure['part']}: {failure['error']}", highlight=False, markup=False)


@app.command("open")
def open_(store: StoreArgument) -> None:
    """Print the dataset, and the line of Python that loads it."""
    with _reported_errors():
        dataset = Store(store).open()
    typer.echo(dataset)
    typer.echo(f'\nimport xarray as xr\nds = xr.open_zarr("{store}")')


def _sweep_and_store(source: str, store: Path | None) -> tuple[Sweep, Store]:
    try:
        sweep = load(source)
    except SweepError as error:
        _fail(str(error))
    return sweep, Store(store or f"{sweep.name}.zarr")


def _plan(sweep: Sweep, store: Store, seconds: float, retry_failed: bool) -> planning.Plan:
    with _reported_errors():
        there = store if store.exists() else None
        if there:
            wider_sweep(there, sweep)  # refuses the store of another sweep before it is measured
        model = planning.calibrate(sweep.recipe, there)
        return planning.make_plan(
            sweep, model, there, seconds_per_part=seconds, retry_failed=retry_failed
        )


def _show_plan(sweep: Sweep, plan: planning.Plan) -> None:
    table = Table(title=f"{sweep.name}: what is missing", title_justify="left")
    for column in ("N", "cells", "runs", "parts", "core-hours, at most", "peak memory a worker"):
        table.add_column(column, justify="right")
    starts = len(sweep.grid.start)
    for N in sweep.grid.N:
        table.add_row(
            str(N),
            f"{plan.missing[N]:,}",
            f"{plan.missing[N] * starts:,}",
            f"{plan.parts[N]:,}",
            f"{plan.seconds[N] / 3600:.3g}",
            _bytes(plan.bytes[N]),
        )
    table.add_section()
    table.add_row(
        "all",
        f"{sum(plan.missing.values()):,}",
        f"{sum(plan.missing.values()) * starts:,}",
        f"{sum(plan.parts.values()):,}",
        f"{sum(plan.seconds.values()) / 3600:.3g}",
        _bytes(max(plan.bytes.values())),
    )
    _out.print(table)
    _out.print(
        f"{plan.cells:,} cells in all: {plan.done:,} done, {plan.handed_in:,} waiting for their "
        f"commit, {plan.failed:,} failed. The finished store: {plan.files:,} files, at most "
        f"{_bytes(plan.disk)} (before compression).",
        highlight=False,
    )


def _compute(sweep: Sweep, writer: Writer, todo: planning.Plan, workers: int | None) -> None:
    from cluster.launch import local  # distributed takes a second to load: only when it is needed
    from pipeline.drive import Lane, drive

    number = _workers(todo, workers)
    seconds = sum(todo.seconds.values())
    _out.print(
        f"{sweep.name}: {sum(todo.missing.values()):,} cells to compute on {number} workers, at "
        f"most {_duration(seconds / number)}; {todo.done:,} of {todo.cells:,} are done.",
        highlight=False,
    )
    try:
        with local(number) as client, _display(todo) as watch:
            lane = Lane(client, sweep.grid.N, lambda: number)
            end = drive(sweep, writer, todo, [lane], watch=watch)
    except KeyboardInterrupt:
        with suppress(OSError, StoreError):  # the parts stay, and the next run commits them
            writer.collect()
        raise
    busy = end.kernel_seconds / (number * end.elapsed) if end.elapsed else 0.0
    _out.print(
        f"{end.cells_now:,} cells in {_duration(end.elapsed)}, workers busy in the kernels for "
        f"{busy:.0%} of it.",
        highlight=False,
    )


def _workers(todo: planning.Plan, asked: int | None) -> int:
    import psutil

    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fitting = int(0.8 * psutil.virtual_memory().available / max(todo.bytes.values()))
    parts = sum(todo.parts.values())
    return max(1, min(cores or 1, fitting, max(1, parts)))


@contextmanager
def _display(todo: planning.Plan) -> Iterator[Any]:
    if _out.is_terminal:
        with _bar(todo) as watch:
            yield watch
    else:
        yield _PlainLines()


@contextmanager
def _bar(todo: planning.Plan) -> Iterator[Any]:
    columns = (
        BarColumn(),
        TextColumn("{task.fields[note]},"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=_out) as bar:
        # In predicted seconds, not parts: the long ones come first.
        task = bar.add_task("", total=sum(todo.seconds.values()), note="starting workers")

        def watch(where: Where) -> None:
            bar.update(task, completed=where.predicted_done, note=_note(where))

        yield watch


class _PlainLines:
    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, where: Where) -> None:
        if where.elapsed >= self._next or where.parts_done == where.parts:
            self._next = where.elapsed + _PLAIN_EVERY
            _out.print(f"{_note(where)}{_left(where)}", highlight=False, soft_wrap=True)


def _note(where: Where) -> str:
    rate = where.runs_now / where.elapsed if where.elapsed else 0.0
    return f"{where.parts_done}/{where.parts} parts, {rate:.3g} runs/s, {where.failed} failed"


def _left(where: Where) -> str:
    if not 0 < where.predicted_done < where.predicted_seconds:
        return ""
    speed = where.predicted_done / where.elapsed
    return f", about {_duration((where.predicted_seconds - where.predicted_done) / speed)} left"


def _status(store: Store) -> dict[str, Any]:
    sweep = store.sweep()
    cells = store.status()
    done = int((cells == DONE).sum()) + sum(len(part.seeds) for part in store.parts())
    failed = int((cells == FAILED).sum())
    holder = store.holder()
    said = store.progress() if holder else {}
    running = int(said.get("running", 0))
    return {
        "store": str(store.path),
        "name": sweep.name,
        "cells": cells.size,
        "done": done,
        "running": running,
        "failed": failed,
        "missing": max(0, cells.size - done - failed - running),
        "rate": float(said.get("rate", 0.0)),
        "driver": holder,
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

    table = Table(title="alpha_half(N), where half of the runs recover", title_justify="left")
    for column in ("N", "alpha_half", "error"):
        table.add_column(column, justify="right")
    for N in half.N.values:
        at = half.sel(N=N)
        table.add_row(str(N), f"{float(at.alpha_half):.3f}", f"{float(at.standard_error):.3f}")
    _out.print(table)
    _out.print(f"outlier at the random start from alpha_BBP_init = {alpha_bbp_init(a):.4f}")
    _out.print(scaling.describe(laws), highlight=False, soft_wrap=True)
    _out.print(f"Figures: {folder}", highlight=False, soft_wrap=True)
    _out.print(f'Data:    xarray.open_zarr("{store.path}")', highlight=False, soft_wrap=True)
    failed = int((store.status() == FAILED).sum())
    if failed:
        _fail(f"{failed} cells failed; alphasweep status {store.path} says why.")


@contextmanager
def _reported_errors() -> Iterator[None]:
    try:
        yield
    except (StoreError, SweepError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'the store'} must be writable; got: {error.strerror or error}.")
    except KeyboardInterrupt:
        _out.print("Stopped. What was finished is kept; run again to go on.")
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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
