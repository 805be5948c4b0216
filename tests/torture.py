"""Kill and suspend drivers, workers and extensions at random: what is done stays as computed.

    python tests/torture.py [ROUNDS] [SEED] [METHOD]

METHOD is a method of the descent, "flow" if it is left out. Round after round a run or an extension
of one sweep is started by the command line and killed at a random moment: the driver alone, a
worker alone, or all. Or the driver is stopped for longer than a lease, another one takes over, and
the first is resumed in the middle of what that one does. In
between, and in the middle of it, values are added to all three axes. Meanwhile plain readers load
the store again and again. After every
round each done cell must have the bits of a plain loop over `pipeline.part.compute`, no cell that
was done or handed in may be gone, and no process may be left over; in the end a last run must
complete the grid, to the bits of a fresh run. Then two drivers are started at once, again and
again: exactly one must run. A failure says how to repeat it.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from itertools import product
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import xarray as xr

from alphasweep.cluster import worker
from alphasweep.pipeline.dataset import COMPUTED, DONE, GRID
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.reading import open_sweep
from alphasweep.pipeline.spec import Sweep
from alphasweep.pipeline.store import Store

RACES = 50
STRIKES = ("driver", "suspend", "worker", "driver", "all")  # round after round
LEASE_SECONDS = 10.0  # of the processes that are started here
_ALONE = [sys.executable, "-P", "-m", "alphasweep.pipeline.cli"]
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_ORPHAN_SECONDS = 120.0
_RUN_SECONDS = 300.0  # by when a run that nobody kills must have ended
_PROCESSES = multiprocessing.get_context("spawn")

Cells = npt.NDArray[Any]


DESCENTS = {
    "gd": {"method": "gd", "learning_rate": 0.03, "t_max": 3.0},
    "flow": {"method": "flow", "t_max": 12.0},
}


def sweep_of(axes: dict[str, list[Any]], method: str) -> Sweep:
    """Return a sweep whose cells take 10 to 50 ms, with ten seeds a chunk."""
    return Sweep.from_document(
        {
            "name": "torture",
            "root_seed": 11,
            "grid": {**axes, "start": {"from": 0, "to": 99}},
            "problem": {"a": 1.0},
            "descent": DESCENTS[method],
            "record": {"times": [0.3, 1.0]},
            "probe": {"times": [1.0], "modes": 1},
        }
    )


def final_axes(rounds: int) -> dict[str, list[Any]]:
    """Return the axes that so many rounds grow to."""
    return {
        "alpha": [2.0 + 0.5 * k for k in range(3 + rounds // 8)],
        "N": [10 + 2 * k for k in range(3 + rounds // 20)],
        "seed": list(range(5 + rounds // 5)),
    }


# --- what must hold ---------------------------------------------------------------------------


def reference(sweep: Sweep) -> Cells:
    """Compute every cell by itself, (alpha, N, seed): no Dask, no files."""
    grid = sweep.grid
    cells = [
        compute(sweep.recipe, Part(alpha, N, seed, seed))
        for alpha, N, seed in product(grid.alpha, grid.N, grid.seed)
    ]
    return np.concatenate(cells).reshape(len(grid.alpha), len(grid.N), len(grid.seed))


def wrong(
    dataset: xr.Dataset, done: npt.NDArray[np.bool_], sweep: Sweep, cells: Cells
) -> list[str]:
    """Compare what a reader has loaded with the reference, to the bit.

    A done cell must equal it in every variable. Another one must, in each variable, equal it or
    be blank: its commit may be under way.
    """
    axes = [getattr(sweep.grid, axis) for axis in GRID]
    labels = [dataset[axis].values for axis in GRID]
    at = [np.searchsorted(axis, values) for axis, values in zip(axes, labels, strict=True)]
    expected = cells[np.ix_(*at)]
    found = []
    for name in set(cells.dtype.names or ()) - {"seconds"}:
        values = dataset[name].values
        blank = np.full_like(values, COMPUTED[name].fill)
        right = _same(values, expected[name])
        bad = ~(right | (~done & _same(values, blank)))
        found += [f"{name} of cell {i}, {j}, {k}" for i, j, k in np.argwhere(bad).tolist()]
    return found


def _same(one: Cells, other: Cells) -> npt.NDArray[np.bool_]:
    """Whether cells (alpha, N, seed, ...) agree in every bit."""
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    shape = (*one.shape[:3], -1)
    bits = [np.ascontiguousarray(x).reshape(shape).view(np.uint8) for x in (one, other)]
    equal: npt.NDArray[np.bool_] = (bits[0] == bits[1]).all(axis=-1)
    return equal


def safe_cells(store: Store, sweep: Sweep, cells: Cells) -> set[tuple[float, int, int]]:
    """Return the cells that are done, having compared them, and those that wait for a commit."""
    if not store.exists():
        return set()
    dataset = xr.open_zarr(store.path).load()
    done = dataset.status.values == DONE
    assert set(np.unique(dataset.status)) <= {0, DONE}, "no cell may fail"
    assert not (found := wrong(dataset, done, sweep, cells)), found[:10]
    labels = [dataset[axis].values.tolist() for axis in GRID]
    safe = {(labels[0][i], labels[1][j], labels[2][k]) for i, j, k in np.argwhere(done).tolist()}
    safe |= {(part.alpha, part.N, seed) for part in store.parts() for seed in part.seeds}
    return safe


# --- readers ----------------------------------------------------------------------------------


def read_on(
    path: Path, sweep: Sweep, cells: Cells, stop: Event, rounds: Any, report: Connection
) -> None:
    """Load the store again and again, as anyone would; report loads, done cells seen, and errors.

    What `status` says before the rest is loaded must hold for the rest. Every other time the store
    is opened by `open_sweep`, where a cell is there as a whole or not at all.

    A reader that was stopped for longer than a round does not count: who goes on reading what he
    opened before the grid was widened twice is not told the truth (`pipeline.layout`).
    """
    loads = seen = 0
    errors: list[str] = []
    while not errors and not (stop.is_set() and loads):
        if not (path / "zarr.json").exists():
            time.sleep(0.05)
            continue
        began, number = time.monotonic(), rounds.value
        found = []
        try:
            for opened in (xr.open_zarr(path), open_sweep(path)):
                done = opened.status.values == DONE
                found += wrong(opened.load(), done, sweep, cells)[:10]
                seen = max(seen, int(done.sum()))
                loads += 1
        except Exception as error:  # whatever it is, a reader must not see it
            found.append(repr(error))
        errors += found if rounds.value - number < 2 else []
        stop.wait(time.monotonic() - began)  # the cores are for those who compute
    report.send((loads, seen, errors))


@contextmanager
def readers(
    path: Path, sweep: Sweep, cells: Cells, rounds: Any, number: int
) -> Iterator[list[Any]]:
    """Have processes that read; on leaving, the list holds what they report."""
    stop, reports = _PROCESSES.Event(), []
    pipes = [_PROCESSES.Pipe(duplex=False) for _ in range(number)]
    processes = [
        _PROCESSES.Process(
            target=read_on, args=(path, sweep, cells, stop, rounds, sending), daemon=True
        )
        for _, sending in pipes
    ]
    for process in processes:
        process.start()
    try:
        yield reports
    finally:
        stop.set()
        reports += [receiving.recv() for receiving, _ in pipes if receiving.poll(300)]
        for process in processes:
            process.join(10)


# --- victims ----------------------------------------------------------------------------------


class Victim:
    """A command of alphasweep in a process group of its own."""

    def __init__(self, folder: Path, *arguments: str, output: str = "output.txt") -> None:
        self.what = " ".join(arguments)
        self.log = folder / output
        first = folder / "first"  # imported before all else
        first.mkdir(exist_ok=True)
        text = f"from alphasweep.pipeline import lease\nlease.LEASE_SECONDS = {LEASE_SECONDS}\n"
        (first / "sitecustomize.py").write_text(text)
        path = os.pathsep.join([str(first), *sys.path])
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*_ALONE, *arguments],
                cwd=folder,
                env=os.environ | _ONE_THREAD | {"PYTHONPATH": path},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Whether the command itself has ended."""
        return self.process.poll() is not None

    def group(self) -> list[psutil.Process]:
        """Return all that lives of it."""
        found = []
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, psutil.Error):
                if os.getpgid(process.pid) == self.process.pid:
                    found += [process] * (process.status() != psutil.STATUS_ZOMBIE)
        return found

    def workers(self) -> list[psutil.Process]:
        """Return its workers, of which an extension has none."""
        found = []
        for process in self.group():
            with suppress(psutil.Error):
                found += [process] * (worker.__name__ in process.cmdline())
        return found

    def kill(self, whom: str, rng: random.Random) -> str:
        """Kill the driver, a worker as soon as there is one, or all; return whom."""
        workers, late = self.workers(), time.monotonic() + 60
        while whom == "worker" and not (workers or self.ended) and time.monotonic() < late:
            time.sleep(0.05)
            workers = self.workers()
        if self.ended:
            whom = "nobody"
        elif whom == "worker" and workers:
            with suppress(psutil.NoSuchProcess):
                rng.choice(workers).kill()
        elif whom == "driver":
            self.process.kill()
        elif whom == "all":
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            whom = "nobody"
        return whom

    def suspend(self, rival: Callable[[], Victim], store: Store, rng: random.Random) -> str:
        """Stop the driver, have a rival take over, and resume it in the middle of that.

        Return whom that was done to: a driver may not have begun, or have ended.
        """
        late = time.monotonic() + 60
        while not (self.ended or _drives(store, self.process.pid)) and time.monotonic() < late:
            time.sleep(0.003)
        if self.ended:
            return "nobody"
        os.kill(self.process.pid, signal.SIGSTOP)
        drives = _drives(store, self.process.pid)
        other = rival()
        late = time.monotonic() + _RUN_SECONDS
        while not (other.ended or _drives(store, other.process.pid)):
            assert time.monotonic() < late, f"nobody took over:\n{other.log.read_text()}"
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 4))
        os.kill(self.process.pid, signal.SIGCONT)
        assert other.wait() == 0, f"{other.what} must succeed:\n{other.log.read_text()}"
        code = self.process.wait(_RUN_SECONDS)
        said = self.log.read_text()
        if drives:
            assert code == 1, f"it was taken over and must end with 1, not {code}:\n{said}"
            assert "it was taken over by" in said, said
        assert code in (0, 1), said
        assert "Traceback" not in said, said
        return "driver suspended" if drives else "idle driver suspended"

    def wait(self) -> int:
        """Wait for its end, and that of every process it started."""
        code = self.process.wait(_RUN_SECONDS)
        late = time.monotonic() + _ORPHAN_SECONDS
        while left := self.group():
            assert time.monotonic() < late, f"{self.what}: processes outlive it: {left}"
            time.sleep(0.1)
        return code


def await_moment(victim: Victim, store: Store, rng: random.Random) -> str:
    """Wait for a moment to strike: any, while it changes the shape, or while it computes."""
    extends = victim.what.startswith("extend")
    kind = rng.choice(["any", "widening"] if extends else ["any", "widening", *2 * ["computing"]])
    runs = _runs(store)
    late = time.monotonic() + (rng.uniform(0, 2 if extends else 8) if kind == "any" else 30)
    while time.monotonic() < late and not victim.ended:
        if kind == "computing" and _runs(store) > runs:
            time.sleep(rng.uniform(0, 2))
            break
        if kind == "widening" and any(store.path.parent.glob(f".{store.path.name}.*")):
            time.sleep(rng.uniform(0, 0.15))
            break
        time.sleep(0.003)
    return kind


def _drives(store: Store, pid: int) -> bool:
    """Whether the lock is that of a process of this machine, dead or alive."""
    with suppress(FileNotFoundError):
        return f"pid={pid}\n" in (store.control / "lock").read_text()
    return False


def _runs(store: Store) -> int:
    return sum(event["event"] == "run" for event in store.history())


# --- the test ---------------------------------------------------------------------------------


class Growth:
    """Axes that grow, by random values anywhere, from one in the middle to the final ones."""

    def __init__(self, final: dict[str, list[Any]], rng: random.Random) -> None:
        self._rng = rng
        self.now = {axis: values[1:3] for axis, values in final.items()}
        self._left = {axis: [v for v in final[axis] if v not in self.now[axis]] for axis in final}

    def grow(self) -> dict[str, list[Any]]:
        """Add to one axis or more; return what was added."""
        added = {}
        for axis in self._rng.sample(GRID, self._rng.choice([1, 1, 2])):
            if values := self._left[axis]:
                added[axis] = [self._rng.choice(values)]
                self.add(axis, added[axis])
        return added

    def add(self, axis: str, values: list[Any]) -> None:
        """Add values to an axis."""
        self._left[axis] = [v for v in self._left[axis] if v not in values]
        self.now[axis] = sorted({*self.now[axis], *values})


def write_sweep(folder: Path, axes: dict[str, list[Any]], method: str) -> str:
    """Write the sweep file of these axes; return its name."""
    document = sweep_of(axes, method).model_dump(mode="json", by_alias=True)
    lines = []
    for key, value in document.items():
        if not isinstance(value, dict):
            lines.insert(0, f"{key} = {json.dumps(value)}")
    for key, table in document.items():
        if isinstance(table, dict):
            lines += [f"[{key}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
    (folder / "torture.toml").write_text("\n".join(lines))
    return "torture.toml"


def torture(
    folder: Path, rounds: int, seed: int, method: str, say: Callable[[str], object] = print
) -> None:
    """Do so many rounds; AssertionError if anything does not hold."""
    rng = random.Random(seed)
    final = final_axes(rounds)
    whole = sweep_of(final, method)
    cells = reference(whole)
    say(f"{whole.cells} cells, {cells['seconds'].sum() / whole.cells * 1e3:.0f} ms each")
    store, growth = Store(folder / "torture.zarr"), Growth(final, rng)
    common = ("--store", str(store.path), "--part-seconds", "0.1", "--workers", "2")
    safe: set[tuple[float, int, int]] = set()
    counts: Counter[str] = Counter()
    began = time.monotonic()
    begun = _PROCESSES.Value("i")
    with readers(store.path, whole, cells, begun, 2) as reports:
        for number in range(rounds):
            begun.value += 1
            whom = STRIKES[number % len(STRIKES)]
            added = growth.grow() if number and rng.random() < 0.4 else {}
            if added and store.exists() and whom != "worker" and rng.random() < 0.6:
                options = [f"--{k}={','.join(map(str, v))}" for k, v in added.items()]
                victim = Victim(folder, "extend", str(store.path), *options)
            else:
                victim = Victim(folder, "run", write_sweep(folder, growth.now, method), *common)
            moment = await_moment(victim, store, rng)
            if whom != "suspend":
                whom = victim.kill(whom, rng)
            else:
                again = ("run", write_sweep(folder, growth.now, method), *common, "--wait")
                rival = partial(Victim, folder, *again, output="rival.txt")
                whom = victim.suspend(rival, store, rng)
            code = victim.wait()
            if whom in ("nobody", "worker"):  # which is replaced
                assert code == 0, f"{victim.what} must succeed:\n{victim.log.read_text()}"
            known = safe_cells(store, whole, cells)
            assert not safe - known, f"cells were lost: {sorted(safe - known)}"
            safe = known
            counts[f"{victim.what.split()[0]}, {whom} struck"] += 1
            say(
                f"round {number + 1}: {victim.what.split()[0]} (added {added or 'nothing'}); "
                f"struck: {whom} ({moment}); exit {code}; {len(safe)} cells safe"
            )
        begun.value += 1
        last = Victim(folder, "run", write_sweep(folder, final, method), *common)
        assert last.wait() == 0, last.log.read_text()
        known = safe_cells(store, whole, cells)
        assert len(known) == whole.cells
    assert len(reports) == 2, "a reader died"
    for loads, seen, errors in reports:
        say(f"a reader: {loads} loads, up to {seen} done cells, errors: {errors or 'none'}")
        assert not errors, errors
        assert loads
    fresh = Victim(folder, "run", "torture.toml", "--store", "fresh.zarr", *common[2:])
    assert fresh.wait() == 0, fresh.log.read_text()
    left, right = (xr.open_zarr(folder / n).load() for n in ("torture.zarr", "fresh.zarr"))
    xr.testing.assert_equal(*(d.drop_vars(["seconds", "code"]) for d in (left, right)))
    assert not safe_cells(Store(folder / "fresh.zarr"), whole, cells) ^ known
    widened = sum(event["event"] == "extend" for event in store.history())
    say(f"all {whole.cells} cells done, as in a fresh run; {widened} extensions took effect")
    say(f"{dict(sorted(counts.items()))} in {time.monotonic() - began:.0f} s")


# --- two drivers at once ----------------------------------------------------------------------


def contend(barrier: Barrier, orders: Connection, refused: Event) -> None:
    """Run the commands that are ordered, each at the moment that another process runs its own.

    Whoever has the store computes when the other was refused: he may not even have begun.
    """
    from alphasweep.pipeline import run as run_module
    from alphasweep.pipeline.cli import app

    real = run_module._compute

    def held(*arguments: Any) -> Any:
        refused.wait(_RUN_SECONDS)
        return real(*arguments)

    run_module._compute = held
    while arguments := orders.recv():
        said = io.StringIO()
        barrier.wait(_RUN_SECONDS)
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            try:
                app(arguments)
                code: Any = 0
            except SystemExit as end:
                code = end.code
        if code:
            refused.set()
        orders.send((code, said.getvalue()))


def look_on(path: Path, stop: Event) -> None:
    """Look at the lock of a store again and again, as `alphasweep status` does."""
    store = Store(path)
    while not stop.is_set():
        store.holder()
        store.progress()


def leave_dead_lock(path: Path) -> None:
    """Take the lock of a store, and die with it."""
    with Store(path).lock():
        os.kill(os.getpid(), signal.SIGKILL)


def race(folder: Path, times: int, say: Callable[[str], object] = print) -> None:
    """Start two drivers at once; exactly one must run, and the other be told who does.

    In turn: on a path where nothing is, on the lock of a driver that was killed, and while others
    look at the lock without a pause. AssertionError if it is not so.
    """
    name = write_sweep(folder, {"alpha": [2.0], "N": [10], "seed": [0, 1]}, "gd")
    barrier = _PROCESSES.Barrier(2)
    refused = _PROCESSES.Event()
    pipes = [_PROCESSES.Pipe() for _ in range(2)]
    drivers = [_PROCESSES.Process(target=contend, args=(barrier, far, refused)) for _, far in pipes]
    for driver in drivers:
        driver.start()
    won: Counter[int] = Counter()
    try:
        for number in range(times):
            store, stop = Store(folder / f"race{number}.zarr"), _PROCESSES.Event()
            kind = ("new", "dead lock", "watched")[number % 3]
            if kind == "dead lock":
                dying = _PROCESSES.Process(target=leave_dead_lock, args=(store.path,))
                dying.start()
                dying.join()
                assert (store.control / "lock").exists()
            looking = _PROCESSES.Process(target=look_on, args=(store.path, stop), daemon=True)
            if kind == "watched":
                looking.start()
            refused.clear()
            for here, _ in pipes:
                here.send(["run", str(folder / name), "--store", str(store.path), "--workers=1"])
            assert all(here.poll(2 * _RUN_SECONDS) for here, _ in pipes), "no answer"
            ends = [here.recv() for here, _ in pipes]
            stop.set()
            codes = [code for code, _ in ends]
            assert sorted(codes) == [0, 1], (kind, ends)
            loser = codes.index(1)
            assert "one driver at a time" in ends[loser][1], ends
            assert str(drivers[1 - loser].pid) in ends[loser][1], ends
            events = Counter(event["event"] for event in store.history())
            assert (events["create"], events["run"], events["end"]) == (1, 1, 1), events
            assert (store.status() == DONE).all()
            won[1 - loser] += 1
    finally:
        for here, _ in pipes:
            here.send(None)
        for driver in drivers:
            driver.join(10)
            driver.kill()
    say(
        f"two drivers at once, {times} times: exactly one ran; they won {won[0]} and {won[1]} times"
    )


def main(rounds: str = "60", seed: str = "1", method: str = "flow") -> None:
    """Do the long form."""
    print(f"torture: {rounds} rounds, random seed {seed}, method {method}", flush=True)
    say = partial(print, flush=True)
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        try:
            torture(Path(folder), int(rounds), int(seed), method, say)
            race(Path(folder), RACES, say)
        except BaseException:
            say(f"To repeat it: python tests/torture.py {rounds} {seed} {method}")
            raise


if __name__ == "__main__":
    main(*sys.argv[1:])
