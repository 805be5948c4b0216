"""How short the remaining way must be: trapped runs that recover after all, by `rest_within`.

    python tests/benchmarks/rest.py [MATRICES]

Each start runs by itself, so that the run that is not stopped goes on bit for bit from where the
one that was stopped ended.
"""

import sys

import numpy as np

from kernels.descent import Outcome
from kernels.flow import flow
from kernels.instance import draw_instance, uniform_starts
from kernels.loss import IntensityLoss

ALPHA, T_STOP, T_ON, STARTS = 2.9, 1000.0, 10000.0, 8
LOSS = IntensityLoss(1.0)
WITHIN = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)


def main(matrices: int) -> None:
    """Print one row for each N and threshold."""
    print(f"alpha = {ALPHA}, stopped by t = {T_STOP:g}, continued to t = {T_ON:g}, float32")
    print("| N | rest_within | runs | trapped | undecided | recover after all | products a run |")
    print("|---|---|---|---|---|---|---|")
    for N in (64, 128, 256):
        outcome = np.zeros((len(WITHIN), matrices, STARTS), int)
        products = np.zeros(outcome.shape)
        recover = np.zeros((matrices, STARTS), bool)
        for seed in range(matrices):
            instance = draw_instance(7, N, seed, M=round(ALPHA * N))
            for s in range(STARTS):
                w = uniform_starts(7, N, seed, [s])
                for i, within in enumerate(WITHIN):
                    run = flow(instance, w, loss=LOSS, record=(0.0, T_STOP), rest_within=within)
                    outcome[i, seed, s] = run.outcome[0]
                    products[i, seed, s] = run.products[0]
                if (outcome[:, seed, s] == Outcome.TRAPPED).any():
                    on = flow(instance, w, loss=LOSS, record=(0.0, T_ON), rest_within=0)
                    recover[seed, s] = on.outcome[0] == Outcome.RECOVERED
        for i, within in enumerate(WITHIN):
            trapped, undecided = (outcome[i] == o for o in (Outcome.TRAPPED, Outcome.UNDECIDED))
            print(
                f"| {N} | {within:g} | {trapped.size} | {trapped.sum()} | {undecided.sum()} "
                f"| {(trapped & recover).sum()} | {products[i].mean():.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 32)
