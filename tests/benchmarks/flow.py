"""What the gradient flow may be trusted with: against plain steps, and whether trapped is for ever.

    python tests/benchmarks/flow.py agree [MATRICES]
    python tests/benchmarks/flow.py cost [MATRICES]
    python tests/benchmarks/flow.py certificates [MATRICES]

a = 1, float32, 16 starts a matrix, tolerance 1e-3. `agree` runs the same starts by the flow, by the
flow with a tolerance of 1e-4, and by plain steps of 0.03 and of 0.01 until each is decided:
recovered, at rest (of the flow proven, of plain steps a speed below 1e-5), or still moving at
t = 2000. P is compared by McNemar's exact test of the runs that ended differently, which is how far
from 1/2 the share is that only one of both recovers. Plain steps of 0.03 against those of 0.01 are
the yardstick: that is how much the runs of plain steps themselves depend on the step. Products and
processor seconds are those of one run; the looks for rest are in the seconds. `cost` follows all
runs that do not recover to t = 500, by the flow and by plain steps of 0.03.

`certificates` goes on from where each run was called trapped, to ten times its time, and counts
those that recover; and runs of before once more, without an end, and counts those that were
recovered and leave. The last column is the share of the processor time that the looks took.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from scipy import stats
from threadpoolctl import threadpool_limits

from alphasweep.kernels import flow as module
from alphasweep.kernels.descent import Outcome, descend
from alphasweep.kernels.flow import flow
from alphasweep.kernels.instance import Instance, draw_instance, uniform_starts
from alphasweep.kernels.loss import Array, IntensityLoss

LOSS, STARTS, RECOVERED_AT, REST_WITHIN = IntensityLoss(1.0), 16, 0.99, 0.01
AGREE = {128: (2.5, 3.0, 3.5), 256: (2.7, 3.2, 3.7), 512: (2.8, 3.3, 3.8)}
T_AGREE, AT_REST, T_COST = 2000.0, 1e-5, 500.0
CERTIFIED, T_CERTIFIED, LONGER = {64: 2.0, 128: 2.5, 256: 2.7, 512: 2.8}, 20000.0, 10


def problem(N: int, alpha: float, seed: int) -> tuple[Instance, Array]:
    """Return a problem and its starts."""
    return draw_instance(1, N, seed, M=round(alpha * N)), uniform_starts(1, N, seed, range(STARTS))


def by_flow(tolerance: float, instance: Instance, W: Array) -> Any:
    """Follow the flow until every start is decided."""
    end = {"record": (0.0, T_AGREE), "rest_within": REST_WITHIN}
    return flow(instance, W, loss=LOSS, tolerance=tolerance, **end)


def by_steps(rate: float, instance: Instance, W: Array) -> Any:
    """Take plain steps until every start has recovered or is slow."""
    return descend(
        instance,
        W,
        loss=LOSS,
        learning_rate=rate,
        record=(0, round(T_AGREE / rate)),
        trapped_below=AT_REST,
    )


METHODS = {
    "flow": partial(by_flow, 1e-3),
    "fine flow": partial(by_flow, 1e-4),
    "0.03": partial(by_steps, 0.03),
    "0.01": partial(by_steps, 0.01),
}
PAIRS = (("flow", "0.03"), ("flow", "0.01"), ("flow", "fine flow"), ("0.03", "0.01"))


def compare(N: int, alpha: float, seed: int) -> list[tuple[Array, Array, float]]:
    """Return outcomes, products and seconds of all starts by each of the methods."""
    instance, W = problem(N, alpha, seed)
    found = []
    with threadpool_limits(limits=1, user_api="blas"):
        for method in METHODS.values():
            began = time.process_time()
            run = method(instance, W)
            found.append((run.outcome, run.products, time.process_time() - began))
    return found


def mcnemar(one: Array, other: Array) -> float:
    """Return how likely it is that two methods with the same P differ by so much."""
    only = int((one & ~other).sum()), int((~one & other).sum())
    return float(stats.binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0


def agree(over: Callable[..., Any], matrices: int) -> None:
    """Print a row for each N and alpha."""
    pairs = " | ".join(f"{one}, {other}" for one, other in PAIRS)
    print(
        f"| N | alpha | runs | P {' / '.join(METHODS)} | undecided "
        f"| ended differently (p): {pairs} | products flow / 0.03 | seconds flow / 0.03 |"
    )
    print("|" + "---|" * (7 + len(PAIRS)))
    for N, alphas in AGREE.items():
        for alpha in alphas:
            cells = list(over(partial(compare, N, alpha), range(matrices)))
            by = {
                name: [np.array([cell[k][i] for cell in cells]) for i in range(3)]
                for k, name in enumerate(METHODS)
            }
            recovered = {name: found[0] == Outcome.RECOVERED for name, found in by.items()}
            moving = [(found[0] == Outcome.UNDECIDED).mean() for found in by.values()]
            pairs = " | ".join(
                f"{(recovered[a] != recovered[b]).mean():.1%} "
                f"({mcnemar(recovered[a], recovered[b]):.2f})"
                for a, b in PAIRS
            )
            spent = [
                (each["flow"], each["0.03"], each["0.03"] / each["flow"])
                for each in ({n: found[i].sum() for n, found in by.items()} for i in (1, 2))
            ]
            runs = recovered["flow"].size
            costs = " | ".join(
                f"{us / runs:.3g} / {them / runs:.3g} = 1/{ratio:.1f}" for us, them, ratio in spent
            )
            print(
                f"| {N} | {alpha:g} | {runs} | "
                f"{' / '.join(f'{each.mean():.3f}' for each in recovered.values())} | "
                f"{' / '.join(f'{each:.3f}' for each in moving)} | {pairs} | {costs} |",
                flush=True,
            )


def to_the_same_time(N: int, alpha: float, seed: int) -> tuple[Array, float, Array, float]:
    """Return products and seconds of all starts to T_COST, by flow and by plain steps of 0.03."""
    instance, W = problem(N, alpha, seed)
    with threadpool_limits(limits=1, user_api="blas"):
        began = time.process_time()
        ours = flow(instance, W, loss=LOSS, record=(0.0, T_COST), rest_within=0)
        between = time.process_time()
        steps = descend(
            instance,
            W,
            loss=LOSS,
            learning_rate=0.03,
            record=(0, round(T_COST / 0.03)),
            trapped_below=0,
        )
        done = time.process_time()
    return ours.products, between - began, steps.products, done - between


def cost(over: Callable[..., Any], matrices: int) -> None:
    """Print a row for each N and alpha."""
    print(f"| N | alpha | products to t = {T_COST:g}: flow / 0.03 | seconds flow / 0.03 |")
    print("|" + "---|" * 4)
    for N, alphas in AGREE.items():
        for alpha in alphas:
            cells = list(over(partial(to_the_same_time, N, alpha), range(matrices)))
            each = [np.mean([cell[i] for cell in cells]) for i in range(4)]
            print(
                f"| {N} | {alpha:g} | {each[0]:.0f} / {each[2]:.0f} = 1/{each[2] / each[0]:.1f} | "
                f"{each[1] / STARTS:.3f} / {each[3] / STARTS:.3f} = 1/{each[3] / each[1]:.1f} |",
                flush=True,
            )


def go_on(N: int, alpha: float, seed: int) -> tuple[int, int, int, int, int, float, float]:
    """Count runs: trapped, of these recovered later; recovered, left later; undecided; seconds."""
    instance, W = problem(N, alpha, seed)
    looked, ends = 0.0, []
    look = module.rest

    def watched(instance: Instance, w: Array, **settings: Any) -> Any:
        nonlocal looked
        began = time.process_time()
        seen = look(instance, w, **settings)
        looked += time.process_time() - began
        if seen.way < REST_WITHIN:
            ends.append(w.copy())
        return seen

    with threadpool_limits(limits=1, user_api="blas"):
        module.rest = watched  # type: ignore[assignment]
        began = time.process_time()
        run = flow(instance, W, loss=LOSS, record=(0.0, T_CERTIFIED), rest_within=REST_WITHIN)
        spent = time.process_time() - began
        module.rest = look
        trapped, recovered = (run.outcome == o for o in (Outcome.TRAPPED, Outcome.RECOVERED))
        ends = ends[: trapped.sum()]  # the last look is at runs that are undecided
        late = left = 0
        if ends:
            more = (0.0, (LONGER - 1) * run.end_time[trapped].max())
            on = flow(instance, np.stack(ends, 1), loss=LOSS, record=more, rest_within=0)
            late = int((on.outcome == Outcome.RECOVERED).sum())
        if recovered.any():
            times = (0.0, *np.geomspace(0.1, LONGER * run.recovery_time[recovered].max(), 200))
            on = flow(instance, W, loss=LOSS, record=times, rest_within=0, recovered_at=2.0)
            there = np.abs(on.overlap) > RECOVERED_AT
            left = int((there.any(1) & ~there[:, -1]).sum())
            left += int((np.diff(there.astype(int), axis=1) < 0).any(1).sum())
    undecided = int((run.outcome == Outcome.UNDECIDED).sum())
    return int(trapped.sum()), late, int(recovered.sum()), left, undecided, looked, spent


def certificates(over: Callable[..., Any], matrices: int) -> None:
    """Print a row for each N."""
    print(
        "| N | alpha | trapped | of these recover later | recovered | of these leave | "
        "undecided | looks |"
    )
    print("|" + "---|" * 8)
    for N, alpha in CERTIFIED.items():
        cells = np.array(list(over(partial(go_on, N, alpha), range(matrices))))
        trapped, late, recovered, left, undecided = cells[:, :5].sum(0).astype(int)
        share = cells[:, 5].sum() / cells[:, 6].sum()
        print(
            f"| {N} | {alpha:g} | {trapped} | {late} | {recovered} | {left} | {undecided} | "
            f"{share:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    which = {"agree": (agree, 16), "cost": (cost, 4), "certificates": (certificates, 80)}
    function, default = which[sys.argv[1]]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        function(pool.map, int(sys.argv[2]) if len(sys.argv) > 2 else default)
