"""How fast the descent is: against the machine's sgemm, and against the same descent in JAX.

    python tests/benchmarks/descent.py [--cpu] [--decide]

a = 1, float32, alpha = 5 if nothing else is said. The first table is the sustained rate of
`kernels.descent.descend` with R = 32 starts on one thread, counted as 4 M N R flops a step
(whatever else a step does is loss), and the rate of a large square sgemm.

The second table is the time of one step of one run. JAX compiles the loop (jit, scan) and
differentiates the same loss: of one start, or of 32 (vmap); or it is given the gradient of 32
starts as two matrix products, in the better of both layouts. Both sides have the same cores: one;
or two, which JAX takes by its own threads and we, like `alphasweep run`, by a process each. Before
a time is taken, both sides must have reached the same overlaps.

The third table is the time of a whole run by plain steps: t = 60 at a learning rate of 0.03, with
40 records, and every start leaves the batch when it has recovered or is trapped. A compiled loop of
fixed length takes all 2,000 steps, at the time a step of the second table. At
alpha = 5 nearly all runs recover.

With `--decide` (half an hour) it is what matters that is timed instead, at alpha = 3, where half of
the runs of N = 128 recover: one run until it is decided. The flow runs until each start has
recovered or is proven to be at rest; ``sgemm`` is its rate, looks and all, over that of the sgemm.
Plain steps of 0.03 take, for each start, as many steps as reach the same time, a compiled loop as
many as reach the time of the last: both count at the time of their step, which is measured.

Measurements are short, take turns, and count with the best of many: on a shared machine compare
the columns of one table, not figures of different hours. Where others keep the cores busy, `--cpu`
counts processor seconds instead of the clock's: of one core they are the same when nobody
disturbs; of two, half of them count, as if JAX kept both cores busy. Ours is clocked from one
product to the next (`Clocked`): all of a step, without the records of its beginning and end. A
minute on an idle machine; Linux only (it binds processes to cores).
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from alphasweep.kernels.descent import Outcome, descend
from alphasweep.kernels.flow import flow
from alphasweep.kernels.instance import Instance, draw_instance, uniform_starts
from alphasweep.kernels.loss import Array, IntensityLoss
from alphasweep.kernels.sensing import DenseSensing, Weigh

ALPHA, A, STARTS, REPEATS = 5, 1.0, 32, 10
SIZES = (128, 512, 1024, 2048)
DECIDED_ALPHA, DECIDED_SIZES, T_MAX = 3, (128, 512, 2048, 4096), 20000.0
SQUARE = 1024  # of the sgemm
FLOPS, FEWEST_STEPS = 4e9, 3  # of one measurement; one start gets a tenth of them
TIMED_RATE = 1e-5  # of learning: so short that no start ends while it is timed
CHECKED_RATE, CHECKED_STEPS, AGREEMENT = 0.03, 60, 1e-4

WHOLE_SIZES, WHOLE_STEPS, WHOLE_RATE, RECORDS = (128, 512), 2000, 0.03, 40

CLOCK = time.process_time if "--cpu" in sys.argv else time.perf_counter

Run = Callable[[int, float], tuple[Array, float]]
"""``run(steps, learning_rate)`` returns the overlaps at its end, and the seconds of a step."""


class Problem(NamedTuple):
    """Asks a process to prepare one."""

    N: int
    alpha: int


class Clocked(DenseSensing):
    """A sensing matrix that keeps the time at which each product with it began."""

    def __init__(self, X: Array) -> None:
        super().__init__(X)
        self.began: list[float] = []

    def round_trip(self, W: Array, weigh: Weigh, y_hat: Array, out: Array) -> None:
        """See `kernels.sensing.Sensing`."""
        self.began.append(CLOCK())
        super().round_trip(W, weigh, y_hat, out)


def problem(N: int, alpha: int) -> tuple[Instance, Array]:
    """Return a problem and its sensing matrix (M, N)."""
    instance = draw_instance(0, N, 0, M=alpha * N)
    assert isinstance(instance.sensing, DenseSensing)
    return instance, instance.sensing.X


def flops_a_step(N: int, alpha: int, starts: int) -> int:
    """Return the flops of the two products with the sensing matrix."""
    return 4 * alpha * N * N * starts


def ours(N: int, alpha: int) -> dict[str, Run]:
    """Return the descent as the pipeline runs it."""
    instance, X = problem(N, alpha)
    clocked = Clocked(X)
    instance = replace(instance, sensing=clocked)
    W = uniform_starts(0, N, 0, range(STARTS))

    def run(steps: int, learning_rate: float) -> tuple[Array, float]:
        clocked.began.clear()
        end = descend(
            instance,
            W,
            loss=IntensityLoss(A),
            learning_rate=learning_rate,
            record=(0, steps + 1),
            recovered_at=2.0,
            trapped_below=0.0,
        )
        return end.overlap[:, -1], (clocked.began[-1] - clocked.began[1]) / steps

    def whole(steps: int, learning_rate: float) -> tuple[Array, float]:
        record = np.unique(np.geomspace(1, steps, RECORDS).astype(int)).tolist()
        began = CLOCK()
        end = descend(
            instance, W, loss=IntensityLoss(A), learning_rate=learning_rate, record=(0, *record)
        )
        return end.final_overlap, (CLOCK() - began) / steps

    return {"ours": run, "whole": whole}


def rival(N: int, alpha: int) -> dict[str, Run]:
    """Return the same descent in JAX, in every form that was found worth a try."""
    import jax
    import jax.numpy as jnp

    instance, matrix = problem(N, alpha)
    X, XT = jnp.asarray(matrix), jnp.asarray(np.ascontiguousarray(matrix.T))
    y2, w_star = jnp.square(instance.y), instance.w_star
    scale = 4 / (alpha * (A + y2))
    columns = uniform_starts(0, N, 0, range(STARTS))
    rows = columns.T.copy()

    def loss(w: Any) -> Any:
        return jnp.sum(jnp.square(jnp.square(X @ w) - y2) / (A + y2)) / alpha

    def one(w: Any, learning_rate: float) -> Any:
        _, gradient = jax.value_and_grad(loss)(w)
        u = w - learning_rate * gradient
        return u * jnp.sqrt(N / jnp.sum(u * u))

    def by_columns(W: Any, learning_rate: float) -> Any:
        y_hat = X @ W
        slope = scale[:, None] * y_hat * (y_hat * y_hat - y2[:, None])
        U = W - learning_rate * (X.T @ slope)
        return U * jnp.sqrt(N / jnp.sum(U * U, axis=0))

    def by_rows(W: Any, learning_rate: float) -> Any:
        y_hat = W @ XT
        U = W - learning_rate * ((scale * y_hat * (y_hat * y_hat - y2)) @ X)
        return U * jnp.sqrt(N / jnp.sum(U * U, axis=1))[:, None]

    def compiled(step: Callable[[Any, float], Any], start: Array, starts_axis: int) -> Run:
        def descent(W: Any, learning_rate: float, steps: int) -> Any:
            return jax.lax.scan(lambda W, _: (step(W, learning_rate), None), W, length=steps)[0]

        run_compiled = jax.jit(descent, static_argnames="steps")
        W = jnp.asarray(start)

        def run(steps: int, learning_rate: float) -> tuple[Array, float]:
            began = CLOCK()
            end = run_compiled(W, learning_rate, steps=steps).block_until_ready()
            seconds = CLOCK() - began
            end = np.atleast_2d(end if starts_axis == 0 else end.T)
            return end @ w_star / N, seconds / steps

        return run

    return {
        "one start": compiled(one, columns[:, 0], 0),
        "vmap": compiled(jax.vmap(one, in_axes=(0, None)), rows, 0),
        "by rows": compiled(by_rows, rows, 0),
        "by columns": compiled(by_columns, columns, 1),
    }


def serve(pipe: Connection, cores: set[int], side: Callable[[int, int], dict[str, Run]]) -> None:
    """Bind this process to cores, then run what the pipe asks for until it says stop."""
    os.sched_setaffinity(0, cores)  # before JAX counts them
    runs: dict[str, Run] = {}
    with threadpool_limits(limits=1, user_api="blas"):
        while (request := pipe.recv()) is not None:
            if isinstance(request, Problem):
                runs = side(*request)
                pipe.send(list(runs))
            else:
                form, steps, learning_rate = request
                overlap, seconds = runs[form](steps, learning_rate)
                shared = len(cores) if CLOCK is time.process_time else 1
                pipe.send((overlap, seconds / shared))


@contextmanager
def process(cores: set[int], side: Callable[[int, int], dict[str, Run]]) -> Iterator[Connection]:
    """Keep a process that serves one side."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there, cores, side))
    server.start()
    try:
        yield here
    finally:
        here.send(None)
        server.join()


def ask(pipes: list[Connection], request: object) -> list[Any]:
    """Return the answers of all processes, asked at once."""
    for pipe in pipes:
        pipe.send(request)
    return [pipe.recv() for pipe in pipes]


def microseconds(
    we: list[Connection], they: list[Connection], N: int, alpha: int = ALPHA
) -> dict[str, float]:
    """Return the shortest times of a step of one run, for every form of both sides."""
    wanted = Problem(N, alpha)
    sides = {
        form: pipes for pipes in (we, they) for form in ask(pipes, wanted)[0] if form != "whole"
    }
    batch = {form: 1 if form == "one start" else STARTS for form in sides}
    # `ours` goes one step further than it is asked to, so that its last step has an end.
    expected, _ = ask(we, ("ours", CHECKED_STEPS - 1, CHECKED_RATE))[0]
    steps = {}
    for form, pipes in sides.items():
        work = FLOPS if batch[form] > 1 else FLOPS / 10
        steps[form] = max(FEWEST_STEPS, round(work / flops_a_step(N, alpha, batch[form])))
        ask(pipes, (form, steps[form], TIMED_RATE))  # compiles, and warms the caches
        if form == "ours":
            continue
        reached, _ = ask(pipes, (form, CHECKED_STEPS, CHECKED_RATE))[0]
        apart = np.abs(reached - expected[: batch[form]]).max()
        if not apart < AGREEMENT:
            sys.exit(
                f"both sides must reach the same overlaps; at N = {N} those of JAX ({form}) are "
                f"{apart:.1e} from ours after {CHECKED_STEPS} steps: one of them is wrong"
            )
    best = dict.fromkeys(sides, math.inf)
    for _ in range(REPEATS):
        for form, pipes in sides.items():
            answers = ask(pipes, (form, steps[form], TIMED_RATE))
            rate = sum(batch[form] / seconds for _, seconds in answers)
            best[form] = min(best[form], 1e6 / rate)
    if N in WHOLE_SIZES and alpha == ALPHA:
        answers = ask(we, ("whole", WHOLE_STEPS, WHOLE_RATE))
        best["whole"] = 1e6 / sum(STARTS / seconds for _, seconds in answers)
    return best


def compare_with_sgemm() -> None:
    """Print the first table."""
    print("Sustained, one thread, 32 starts, GFLOP/s")
    print("    N  descent    sgemm  ratio")
    for N in SIZES:
        run = ours(N, ALPHA)["ours"]
        steps = max(FEWEST_STEPS, round(FLOPS / flops_a_step(N, ALPHA, STARTS)))
        descent = sgemm = math.inf
        for _ in range(REPEATS):
            sgemm = min(sgemm, square_sgemm())
            descent = min(descent, run(steps, TIMED_RATE)[1])
        rate = 1e-9 * flops_a_step(N, ALPHA, STARTS) / descent
        peak = 1e-9 * 2 * SQUARE**3 / sgemm
        print(f"{N:5d} {rate:8.1f} {peak:8.1f} {rate / peak:6.2f}", flush=True)


def square_sgemm() -> float:
    """Return the seconds of a large product of square matrices."""
    began = CLOCK()
    np.matmul(_B, _B, out=_C)
    return CLOCK() - began


_B = np.random.default_rng(0).standard_normal((SQUARE, SQUARE), dtype=np.float32)
_C = np.empty_like(_B)


def decide() -> None:
    """Print what it takes to decide a run."""
    print(f"Milliseconds to decide a run, alpha = {DECIDED_ALPHA}, one core; in brackets over ours")
    print("    N   P  undecided  by t = mean, last  flow  sgemm    plain steps     JAX: best form")
    core = {min(os.sched_getaffinity(0))}
    os.sched_setaffinity(0, core)
    for N in DECIDED_SIZES:
        with threadpool_limits(limits=1, user_api="blas"):
            instance, _ = problem(N, DECIDED_ALPHA)
            W = uniform_starts(0, N, 0, range(STARTS))
            sgemm = min(square_sgemm() for _ in range(REPEATS))
            began = CLOCK()
            run = flow(instance, W, loss=IntensityLoss(A), record=(0.0, T_MAX))
            each = (CLOCK() - began) / STARTS
            sgemm = min(sgemm, *(square_sgemm() for _ in range(REPEATS)))
        flops = flops_a_step(N, DECIDED_ALPHA, 1) / 2 * run.products.mean()
        share = flops / each / (2 * SQUARE**3 / sgemm)
        with process(core, rival) as jax, process(core, ours) as us:
            step = microseconds([us], [jax], N, DECIDED_ALPHA)
        plain = 1e-6 * step["ours"] * run.end_time.mean() / WHOLE_RATE
        best = min(step[form] for form in ("vmap", "by rows", "by columns"))
        jax_ = 1e-6 * best * run.end_time.max() / WHOLE_RATE
        shares = [np.mean(run.outcome == o) for o in (Outcome.RECOVERED, Outcome.UNDECIDED)]
        print(
            f"{N:5d} {shares[0]:4.2f} {shares[1]:7.2f} {run.end_time.mean():11.0f} "
            f"{run.end_time.max():5.0f} {1e3 * each:9.1f} {share:5.2f} "
            f"{1e3 * plain:9.0f} ({plain / each:4.1f}) {1e3 * jax_:9.0f} ({jax_ / each:4.1f})",
            flush=True,
        )


def compare_with_jax() -> None:
    """Print the second and the third table."""
    print("\nMicroseconds a step and run; in brackets JAX's time over ours")
    print("cores    N    ours      JAX: one start           vmap        by hand")
    cores = sorted(os.sched_getaffinity(0))[:2]
    whole: list[str] = []
    for number in range(1, len(cores) + 1):
        mine = cores[:number]
        with process(set(mine), rival) as jax, process({mine[0]}, ours) as first:
            if number == 1:
                whole += print_rows(number, [first], [jax])
                continue
            with process({mine[1]}, ours) as second:
                whole += print_rows(number, [first, second], [jax])
    print("\nMilliseconds a whole run; in brackets JAX's time over ours")
    print("cores    N    ours      JAX: one start           vmap        by hand")
    print("\n".join(whole))


def print_rows(number: int, we: list[Connection], they: list[Connection]) -> list[str]:
    """Print the rows of one number of cores; return those of whole runs."""
    whole = []
    for N in SIZES:
        best = microseconds(we, they, N)
        by_hand = min(best["by rows"], best["by columns"])
        rivals = best["one start"], best["vmap"], by_hand
        print(row(number, N, best["ours"], rivals), flush=True)
        if "whole" in best:
            scale = 1e-3 * WHOLE_STEPS
            whole.append(row(number, N, scale * best["whole"], [scale * t for t in rivals]))
    return whole


def row(number: int, N: int, ours: float, rivals: Iterable[float]) -> str:
    """Return a row of the second or the third table."""
    compared = "".join(f"{t:10.2f} ({t / ours:4.1f})" for t in rivals)
    return f"{number:5d} {N:4d} {ours:7.2f}     {compared}"


if __name__ == "__main__":
    if "--decide" in sys.argv:
        decide()
        sys.exit()
    with threadpool_limits(limits=1, user_api="blas"):
        compare_with_sgemm()
    compare_with_jax()
