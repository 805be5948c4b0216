"""What a person reads on the terminal: tables, progress, and numbers with their units."""

from __future__ import annotations

import errno
import io
import math
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from uncertainties import ufloat

from alphasweep.pipeline.plan import Plan
from alphasweep.pipeline.run import Doubt, Watch
from alphasweep.pipeline.words import between, duration, size, under_way

if TYPE_CHECKING:  # distributed takes a second to load
    from alphasweep.pipeline.drive import Progress as Where

_PLAIN_EVERY = 10.0  # seconds between lines when there is no terminal
_WATCH_SECONDS = 3.0
_PATIENCE = 1.0  # seconds, with a reader who does not read, while a run goes on
_ERRORS = 10  # failed cells that are listed without being asked for
_NO_ANSWER_SECONDS = 60.0  # of a queue: some take half of that

console = Console(emoji=False)  # or a path with :x: in it would be shown as another


def say(text: str) -> None:
    """Print a line as it is, however long."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a line as `say` does, to stderr."""
    print(f"alphasweep: {text}", file=sys.stderr)


class _Output(io.RawIOBase):
    """A descriptor that can be written to without an error, whatever becomes of it.

    A full disk, a terminal that is closed, a reader that has gone (``alphasweep run ... | head``)
    take the rest of what is printed, and nothing else.
    """

    patience: float | None = None
    """Seconds to wait for a reader who does not read; None: as long as it takes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.lost: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        try:
            while self.lost is None and self._has_room():
                with suppress(BlockingIOError):  # the room was another process's, too
                    # No more than what a pipe with room takes at once, without waiting.
                    return os.write(self._descriptor, data[: select.PIPE_BUF])
        except OSError as error:
            self.lost = error
        return len(data)

    def _has_room(self) -> bool:
        found = bool(select.select([], [self._descriptor], [], self.patience)[1])
        if self.patience is not None:
            self.patience = _PATIENCE if found else 0
        return found


_outputs: list[_Output] = []


def protect_output() -> None:
    """Have what is printed to stdout and stderr never raise; to be called once, at the start.

    What an encoding lacks is escaped. A stream that is closed is opened to nowhere, or the next
    file or socket would get its number, and what is printed.
    """
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(nowhere, True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        output = _Output(stream.fileno() if stream else nowhere)
        text = io.TextIOWrapper(
            io.BufferedWriter(output),
            encoding=stream.encoding if stream else "utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )
        setattr(sys, name, text)
        _outputs.append(output)


def lost_output() -> str:
    """Say why something that was printed could not be written; "" if all was, or nobody reads."""
    errors = [output.lost for output in _outputs if output.lost]
    return next((str(e.strerror) for e in errors if e.errno != errno.EPIPE), "")


@contextmanager
def hurried() -> Iterator[None]:
    """Rather lose what is printed meanwhile than wait for a reader: Ctrl-S must stop no run."""
    for output in _outputs:
        output.patience = _PATIENCE
    try:
        yield
    finally:
        for output in _outputs:
            output.patience = None


def show_plan(found: Mapping[str, Any]) -> None:
    """Print what `plan --json` prints, for a person."""
    table = Table(title=f"{found['name']}: what is missing", title_justify="left")
    for column in ("N", "cells", "runs", "parts", "core-hours", "peak memory a worker"):
        table.add_column(column, justify="right")
    for row in [*found["sizes"], found]:
        if row is found:
            table.add_section()
        table.add_row(
            str(row.get("N", "all")),
            f"{row['missing']:,}",
            f"{row['runs']:,}",
            f"{row['parts']:,}",
            between(row["core_hours_least"], row["core_hours_most"]),
            size(row["memory_bytes"]),
        )
    console.print(table)
    say(
        f"{found['cells']:,} cells in all: {found['done']:,} done, {found['handed_in']:,} waiting "
        f"for their commit, {found['failed']:,} failed. The finished store: {found['files']:,} "
        f"files, at most {size(found['disk_bytes'])} (before compression)."
    )
    if found["again"]:
        say(
            f"t_max is raised to {found['t_max']:g}: {found['again']:,} of the missing cells were "
            "done, but time had run out in them; they are computed again, and all others keep "
            "every bit."
        )
    if not found["parts"]:
        say("Nothing is to be computed.")
        return
    if "workers" in found:
        least, most = duration(found["wall_seconds_least"]), duration(found["wall_seconds_most"])
        where = "once their jobs run" if "classes" in found else "on this machine"
        say(f"It takes {least} to {most} with {found['workers']} workers, {where}.")
    say(
        "These are estimates, for cores that do nothing else: from starts that recover at once to "
        "starts that all last to t_max or, of flow, as long as was measured at N = 64 to 512 for "
        "a = 1. Cells like those that were run are predicted by them."
    )
    if "revealed" in found["sensing"]:
        at = [row for row in found["sizes"] if "revealed" in row["sensing"]]
        some = ", ".join(f"{row['N']}{' (some alpha)' if row['sensing'][1:] else ''}" for row in at)
        say(
            f"The sensing matrix is revealed as it is asked at N = {some}, one for each start; of "
            '"auto" that is where it takes less time than one that is held, or where that one '
            "would not fit 8 GB."
        )
    if found["unstable"]:
        warn(found["unstable"])
    if short := [row for row in found["sizes"] if row["decided_by"] > found["t_max"]]:
        say(
            f"t_max = {found['t_max']:g} cuts off runs that are not decided: all but 1 % are by "
            f"t = {short[-1]['decided_by']:.0f} at N = {short[-1]['N']} (as measured for a = 1)."
        )


def show_outcomes(outcomes: xr.Dataset) -> None:
    """Print how the runs ended, by what `analysis.recovery.outcomes` returned."""
    table = Table(title="how the runs ended", title_justify="left")
    ways = ("recovered", "trapped", "undecided", "diverged")
    for column in ("N", "runs", *ways):
        table.add_column(column, justify="right")
    for N in outcomes.N.values:
        at = outcomes.sel(N=N)
        table.add_row(str(N), f"{int(at['runs']):,}", *(_share(at, how) for how in ways))
    console.print(table)


def show_alpha_half(half: xr.Dataset, end: xr.Dataset) -> None:
    """Print the table of alpha_half(N); where it is unknown, between which alphas it is.

    Parameters
    ----------
    half, end : xr.Dataset
        What `analysis.recovery.alpha_half` returned by the time that is looked at, and in the end.
    """
    time = float(half["by"])
    when = "in the end" if math.isinf(time) else f"by t = {time:g}"
    table = Table(title=f"alpha_half, where P(recovery {when}) = 1/2", title_justify="left")
    columns = ["N", "alpha_half", f"{100 * half.attrs['confidence']:g} % interval"]
    columns += [] if math.isinf(time) else ["in the end"]
    for column in (*columns, "matrices"):
        table.add_column(column, justify="right")
    for N in half.N.values:
        at = half.sel(N=N)
        last = [] if math.isinf(time) else [_between(end.sel(N=N))]
        table.add_row(str(N), *_value_and_interval(at), *last, str(int(at["matrices"])))
    console.print(table)
    for result in [half] if math.isinf(time) else [half, end]:
        where = "in the end " * (result is end and end is not half)
        for N, note in zip(result.N.values, result.note.values, strict=True):
            if note and not (result is end and note == half.note.sel(N=N)):
                say(f"N = {N}: {where}{note}.")


def _share(outcomes: xr.Dataset, how: str) -> str:
    """Write the share of the runs that ended so."""
    number, runs = int(outcomes[how]), int(outcomes["runs"])
    if not number:
        return "0" if runs else "-"
    return f"{number / runs:.1%}" if number >= 0.001 * runs else "< 0.1%"


def _value_and_interval(at: xr.Dataset) -> tuple[str, str]:
    """Write one alpha_half with its error, and its interval, with two digits of the error.

    Where it is unknown it is "-", or the alphas between which it is.
    """
    value, error, low, high = (
        float(at[name]) for name in ("alpha_half", "standard_error", "none_up_to", "all_from")
    )
    if math.isnan(value):
        return ("-" if math.isnan(low + high) else f"{low} to {high}"), "-"
    if math.isnan(error):
        return f"{value:.3f}", "-"
    text = f"{ufloat(value, error):.2ufP}"
    digits = len(text.rpartition(".")[2]) if "." in text else 0
    return text, f"{float(at['lower']):.{digits}f} to {float(at['upper']):.{digits}f}"


def _between(at: xr.Dataset) -> str:
    """Write between which alphas undecided runs leave alpha_half."""
    least, most = float(at["least"]), float(at["most"])
    if math.isnan(least) and math.isnan(most):
        return "-"
    if math.isnan(least):
        return f"at most {most:.2f}"
    if math.isnan(most):
        return f"at least {least:.2f}"
    return f"{least:.2f} to {most:.2f}"


@contextmanager
def telling() -> Iterator[Watch]:
    """Print what a run tells; how far it is as a bar on a terminal, in plain lines elsewhere."""
    with ExitStack() as stack:
        show: Callable[[Where], None] | None = None

        def watch(event: Plan | Where | str) -> None:
            nonlocal show
            if isinstance(event, Plan) and not any(event.parts.values()):
                say(f"{event.name}: nothing is to be computed; the figures are drawn again.")
            elif isinstance(event, Doubt):
                warn(event)
            elif isinstance(event, Plan | str):
                say(str(event))
            else:
                if show is None:
                    is_bar = console.is_terminal
                    show = stack.enter_context(_bar(event)) if is_bar else _PlainLines()
                show(event)

        yield watch


@contextmanager
def _bar(where: Where) -> Iterator[Callable[[Where], None]]:
    with Progress(BarColumn(), TextColumn("{task.fields[note]}"), console=console) as bar:
        # In predicted seconds, not parts: the long ones come first.
        task = bar.add_task("", total=where.predicted_seconds, note="starting workers")

        def watch(where: Where) -> None:
            bar.update(task, completed=where.predicted_begun, note=str(where))

        yield watch


class _PlainLines:
    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, where: Where) -> None:
        if where.elapsed >= self._next or where.parts_done == where.parts:
            self._next = where.elapsed + _PLAIN_EVERY
            say(str(where))


def show_status(found: Mapping[str, Any]) -> None:
    """Print what `status --json` prints, for a person."""
    say(
        f"{found['store']}: {found['done']:,} of {found['cells']:,} cells done, "
        f"{found['running']:,} running, {found['failed']:,} failed, {found['missing']:,} missing"
    )
    if shares := found["outcomes"]:
        each = ", ".join(f"{share:.1%} {outcome}" for outcome, share in shares.items())
        say(f"of the starts: {each}")
    for error in found["errors"][:_ERRORS]:
        say(f"failed: {error}")
    if len(found["errors"]) > _ERRORS:
        say(f"... and {len(found['errors']) - _ERRORS} more; --failures shows all")
    for failure in found.get("failures", []):
        say(
            f"\n{failure['part']}: {failure['attempts']} attempts, the last on {failure['host']} "
            f"at {failure['time']}\n{failure['traceback']}"
        )
    for event in found.get("history", []):
        what = f", {event['cells']:,} cells" if "cells" in event else ""
        if event["event"] == "raise":
            before, now = event["t_max"]
            what = f", t_max from {before:g} to {now:g}, {event['again']:,} cells computed again"
        say(
            f"{event['time']}  {event['event']:6} by {event['user']} on {event['host']}{what}, "
            f"code {event['version']}"
        )
    for version, cells in found.get("versions", {}).items():
        say(f"{cells:,} cells were computed by code {version}")
    if sum(cells > 0 for cells in found.get("versions", {}).values()) > 1:
        say("The cells are of several versions of the code: compare by the variable `code`.")
    if job := found["driver_job"]:
        why = f" ({job['reason']})" if job["state"] == "PENDING" else ""
        say(f"the driver is job {job['id']}: {job['state'].lower()}{why}")
    for reason, ends in found.get("remedies", {}).items():
        say(f"{reason} does not end by itself: {ends}")
    if not found["driver"]:
        return
    left = f", about {duration(found['seconds_left'])} left" if found["seconds_left"] else ""
    if found["stalled_seconds"]:
        left = f", nothing finished for {duration(found['stalled_seconds'])}"
    efficiency = f", efficiency {found['efficiency']:.0%}" if found["efficiency"] else ""
    say(
        f"driven by {found['driver']}: {60 * found['rate']:.3g} cells a minute"
        f"{under_way(found)}{left}{efficiency}"
    )
    if found["silent_workers"]:
        say(
            f"Workers that say nothing: {found['silent_workers']}, the longest for "
            f"{duration(found['silent_seconds'])}. Stopped, or on a busy node? They are "
            "replaced after a while (silent_worker in the profile)."
        )
    age = max((state.get("answer_age", 0.0) for state in found["cluster"].values()), default=0.0)
    if age > _NO_ANSWER_SECONDS:
        say(
            f"The queue has not answered for {duration(age)}: workers that are there work on, and "
            "none is replaced until it does."
        )
    for name, state in found["cluster"].items():
        why = ", ".join(f"{number} {reason}" for reason, number in state["reasons"].items())
        say(
            f"class {name}: {state['workers']} workers; jobs: {state['running']} running, "
            f"{state['pending']} pending{f' ({why})' if why else ''}, {state['died']} died"
        )
    if found["cluster"]:
        say(
            f"{found['core_hours_used']:.3g} core-hours used, about "
            f"{found['core_hours_left']:.3g} left"
        )


def show_classes(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what each class of jobs computes, beside what its jobs ask for."""
    table = Table(title="jobs", title_justify="left")
    for column in ("class", "N", "jobs", "parts", "core-hours", "longest part", "memory"):
        table.add_column(column, justify="right")
    for row in rows:
        longest, walltime = row["longest_part_seconds"], row["walltime_seconds"]
        table.add_row(
            row["name"],
            ", ".join(map(str, row["sizes"])),
            str(row["jobs"]),
            f"{row['parts']:,}",
            between(row["core_hours_least"], row["core_hours_most"]),
            f"{duration(longest)} of {duration(walltime)}",
            f"{size(row['memory_bytes'])} of {size(row['job_memory_bytes'])}",
        )
    console.print(table)


def show_cost(end: Where, plan: Plan) -> None:
    """Print what a run cost, against its plan."""
    held = end.core_seconds
    efficiency = end.kernel_seconds / held if held else 0.0
    planned = plan.numbers()
    say(
        f"{end.cells_now:,} cells in {duration(end.elapsed)} for {held / 3600:.3g} core-hours, "
        f"{efficiency:.0%} of them in the kernels: {end.kernel_seconds / 3600:.3g} (estimated: "
        f"{between(planned['core_hours_least'], planned['core_hours_most'])})."
    )


def watch(look: Callable[[], Mapping[str, Any]]) -> None:
    """Show a status again and again, until all is done or Ctrl-C."""
    while True:
        found = look()
        if console.is_terminal:
            console.clear()
        show_status(found)
        if not (found["driver"] or found["driver_job"]):
            return
        time.sleep(_WATCH_SECONDS)
