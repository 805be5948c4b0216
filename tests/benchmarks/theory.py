"""Thresholds and the initial Hessian's outlier, against dense Hessians of random starts.

    python tests/benchmarks/theory.py [N] [SEEDS]

For each a the table gives both thresholds. Below alpha_BBP_init, at 0.75 of it, it compares the
mean of the lowest 1 % of the eigenvalues with that of the theory's density, and gives the squared
overlap of the lowest eigenvector with the signal, which falls like 1/N; above, at 1.5 of it, the
lowest eigenvalue with the outlier, and its overlap. Differences are in standard errors over seeds;
each has a matrix, a signal and a start of its own, but the same ones at every a. In brackets, too,
the difference to the outlier of the very labels of each seed, which leaves out how labels differ.
"""

import sys

import numpy as np
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from alphasweep.analysis.initial import initial_hessian
from alphasweep.analysis.threshold_states import thresholds
from alphasweep.analysis.thresholds import half_normal
from alphasweep.kernels.density import density
from alphasweep.kernels.hessian import RiemannianHessian
from alphasweep.kernels.instance import draw_instance, uniform_starts
from alphasweep.kernels.loss import IntensityLoss
from alphasweep.kernels.spectrum import spectrum

A = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0)
LOWEST = 0.01


def sampled(a: float, alpha: float, N: int, seeds: int) -> np.ndarray:
    """Mean of the lowest 1 %, the lowest eigenvalue, its squared overlap: (seeds, 5).

    Then what is to be added to the last two for those of the seed's labels.
    """
    rows = []
    for seed in range(seeds):
        instance = draw_instance(11, N, seed, M=round(alpha * N))
        w = uniform_starts(11, N, seed, [0])[:, 0]
        hessian = RiemannianHessian(instance, w, loss=IntensityLoss(a))
        values, vectors = eigh(hessian.dense(), subset_by_index=(0, round(LOWEST * N) - 1))
        y_hat = instance.sensing.forward(w[:, None])
        mine = spectrum(y_hat, instance.y, loss=IntensityLoss(a), N=N, mu=np.array([hessian.mu]))
        overlap = (vectors[:, 0] @ instance.w_star.astype(float)) ** 2 / N
        off = mine.outlier[0] - values[0], mine.outlier_overlap[0] - overlap
        rows.append([values.mean(), values[0], overlap, *off])
    return np.array(rows)


def lowest_share(a: float, alpha: float) -> float:
    """Mean of the lowest 1 % of the eigenvalues by the density of the exact law."""
    loss = IntensityLoss(a)
    z, weight = half_normal(0.1)
    p = weight[:, None] * weight
    c = loss.second(z[None, :], z[:, None])
    mu = float(np.sum(p * loss.prime(z[None, :], z[:, None]) * z[None, :]))
    order = np.argsort(c, axis=None)
    share = np.cumsum(p.ravel()[order]) - p.ravel()[order] / 2
    levels = (np.arange(6000) + 0.5) / 6000
    found = density(np.interp(levels, share, c.ravel()[order]), alpha, mu=mu, points=4000)
    at = np.linspace(0, LOWEST, 400)
    return float(np.interp(at, found.cumulative, found.eigenvalue).mean())


def main(N: int = 1500, seeds: int = 8) -> None:
    """Print the table."""
    table = thresholds(A)
    print(
        "     a  init    TS      error  | below: lowest 1 %, theory (s.e.)  overlap^2 | "
        "above: outlier, theory (s.e.)  overlap^2, theory (s.e.)"
    )
    for a in A:
        row = table.sel(a=a)
        init = float(row["alpha_bbp_init"])
        with threadpool_limits(limits=1, user_api="blas"):
            below, above = (sampled(a, share * init, N, seeds) for share in (0.75, 1.5))
        expected = initial_hessian(round(1.5 * init * N) / N, a)
        tail = lowest_share(a, round(0.75 * init * N) / N)

        def against(values: np.ndarray, theory: float) -> str:
            error = values.std(ddof=1) / np.sqrt(len(values))
            off = (values.mean() - theory) / error
            return f"{values.mean():9.4f} {theory:9.4f} ({off:+.1f})"

        def paired(values: np.ndarray) -> str:
            here = values[np.isfinite(values)]
            error = here.std(ddof=1) / np.sqrt(len(here))
            return f"({-here.mean() / error:+.1f})"

        print(
            f"{a:6g}  {init:.4f}  {float(row['alpha_bbp_ts']):.4f}  {float(row['error']):.0e} | "
            f"{against(below[:, 0], tail)}  {below[:, 2].mean():.4f} | "
            f"{against(above[:, 1], expected.outlier)} {paired(above[:, 3])}  "
            f"{against(above[:, 2], expected.overlap)} {paired(above[:, 4])}",
            flush=True,
        )


if __name__ == "__main__":
    main(*(int(number) for number in sys.argv[1:]))
