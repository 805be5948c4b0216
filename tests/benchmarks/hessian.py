"""Where ARPACK becomes cheaper than a dense solve of the Hessian, and what a warm v0 saves.

    python tests/benchmarks/hessian.py

One BLAS thread, alpha = 4, a = 1, two modes, float32 sensing; seconds, the best of three. At two
times of a run ARPACK starts cold (no v0), and from the lowest eigenvector of an earlier point: one
step before, and one unit of time before.
"""

from __future__ import annotations

import math
import time

import numpy as np
from threadpoolctl import threadpool_limits

from alphasweep.kernels.descent import descend
from alphasweep.kernels.hessian import DENSE_UP_TO, lowest_eigenpairs
from alphasweep.kernels.instance import Instance, draw_instance, uniform_starts
from alphasweep.kernels.loss import Array, IntensityLoss

ALPHA, A, MODES, LEARNING_RATE = 4, 1.0, 2, 0.03
SIZES = (64, 128, 192, 256, 320, 384, 512, 768, 1024)
STEPS = (0, 1, 33, 65, 66)


def run(N: int) -> tuple[Instance, dict[int, Array]]:
    """Return a problem and the points (N,) that its first start passes at `STEPS`."""
    instance = draw_instance(0, N, 0, M=ALPHA * N)
    points: dict[int, Array] = {}
    descend(
        instance,
        uniform_starts(0, N, 0, [0]),
        loss=IntensityLoss(A),
        learning_rate=LEARNING_RATE,
        record=STEPS,
        probe=lambda k, w: points.update({STEPS[k]: w}),
    )
    return instance, points


def solve(instance: Instance, w: Array, v0: Array | None = None, *, dense: bool = False) -> Array:
    """Return the lowest eigenvector (N,) at w."""
    dense_up_to = instance.N if dense else 0
    pairs = lowest_eigenpairs(
        instance, w, loss=IntensityLoss(A), modes=MODES, v0=v0, dense_up_to=dense_up_to
    )
    assert np.isfinite(pairs.values).all()
    return pairs.vectors[:, 0]


def seconds(instance: Instance, w: Array, v0: Array | None = None, *, dense: bool = False) -> float:
    """Return the shortest of three times that `solve` takes."""
    best = math.inf
    for _ in range(3):
        began = time.perf_counter()
        solve(instance, w, v0, dense=dense)
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    """Print the table."""
    print("    N     t    dense     cold  a step before  a unit of time before")
    for N in SIZES:
        instance, points = run(N)
        for step, step_before, unit_before in ((1, 0, None), (66, 65, 33)):
            w = points[step]
            dense, cold = seconds(instance, w, dense=True), seconds(instance, w)
            warm = seconds(instance, w, solve(instance, points[step_before]))
            row = f"{N:5d} {LEARNING_RATE * step:5.2f} {dense:8.4f} {cold:8.4f} {warm:14.4f}"
            if unit_before is not None:
                row += f"{seconds(instance, w, solve(instance, points[unit_before])):24.4f}"
            print(row)
    print(f"kernels.hessian.DENSE_UP_TO = {DENSE_UP_TO}")


if __name__ == "__main__":
    with threadpool_limits(limits=1, user_api="blas"):
        main()
