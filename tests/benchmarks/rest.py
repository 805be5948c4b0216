"""How short the remaining way must be: trapped runs that recover after all, by `rest_within`.

    python tests/benchmarks/rest.py [MATRICES] [N ...]

All starts of a matrix run together, and each ends at the loosest threshold that is asked; where it
is then, and whether it has recovered by ten times T_STOP, is that of the same runs without an end.
The last column is the share of the time that the looks took.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from alphasweep.kernels import flow as module
from alphasweep.kernels.descent import Outcome
from alphasweep.kernels.flow import flow
from alphasweep.kernels.instance import draw_instance, uniform_starts
from alphasweep.kernels.loss import IntensityLoss

ALPHA, T_STOP, T_ON, STARTS = 3.0, 1000.0, 10000.0, 16
LOSS = IntensityLoss(1.0)
WITHIN = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)


class Timed:
    """A function, and the seconds of this process that it took."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Call it."""
        began = time.process_time()
        result = self.function(*arguments, **settings)
        self.seconds += time.process_time() - began
        return result


def main(matrices: int, *sizes: int) -> None:
    """Print one row for each N and threshold."""
    looks = module.rest = Timed(module.rest)  # type: ignore[assignment]
    print(f"alpha = {ALPHA:g}, stopped by t = {T_STOP:g}, continued to t = {T_ON:g}, float32")
    print("| N | rest_within | runs | trapped | undecided | recover after all | products | looks |")
    print("|---|---|---|---|---|---|---|---|")
    for N in sizes or (64, 128):
        outcome = np.zeros((len(WITHIN), matrices, STARTS), int)
        products, spent, looked = np.zeros(outcome.shape), np.zeros(6), np.zeros(6)
        recovered = np.zeros((matrices, STARTS), bool)
        for seed in range(matrices):
            instance = draw_instance(7, N, seed, M=round(ALPHA * N))
            W = uniform_starts(7, N, seed, range(STARTS))
            on = flow(instance, W, loss=LOSS, record=(0.0, T_ON), rest_within=0)
            recovered[seed] = on.outcome == Outcome.RECOVERED
            for i, within in enumerate(WITHIN):
                before, began = looks.seconds, time.process_time()
                run = flow(instance, W, loss=LOSS, record=(0.0, T_STOP), rest_within=within)
                spent[i] += time.process_time() - began
                looked[i] += looks.seconds - before
                outcome[i, seed], products[i, seed] = run.outcome, run.products
        for i, within in enumerate(WITHIN):
            trapped, undecided = (outcome[i] == o for o in (Outcome.TRAPPED, Outcome.UNDECIDED))
            print(
                f"| {N} | {within:g} | {trapped.size} | {trapped.sum()} | {undecided.sum()} | "
                f"{(trapped & recovered).sum()} | {products[i].mean():.0f} | "
                f"{looked[i] / spent[i]:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] or ("8",)))
