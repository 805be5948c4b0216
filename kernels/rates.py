"""The learning rate of plain steps: where they become unstable, and one that is safe.

At a random start labels and pre-activations are independent normals, so the largest eigenvalue of
hess L is the upper edge of ``(N/M) X^T diag(ell'') X`` (`kernels.spectrum`), or not far above it,
along w and the signal. The largest ell'' of M samples makes it grow with N, about as log M, and
with 1/a; it falls with alpha.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from alphasweep.kernels.instance import measurements
from alphasweep.kernels.loss import Array, Loss
from alphasweep.kernels.spectrum import upper_edge

# Of random labels. Of many samples fewer will do, as the largest ell'' of them varies less.
_DRAWS, _FEWEST, _SAMPLES = 64, 8, 2**16
# Of 2 / (largest eigenvalue), which is exceeded at one start of ten; see `safe_rate`.
_SHARE, _QUANTILE = 0.7, 0.9
_COARSEST = 0.25


@cache
def stable_rate(loss: Loss, alpha: float, N: int) -> float:
    """2 / (largest eigenvalue of hess L) at a random start, the median over starts.

    Above it the descent is unstable at half of the starts. A start may get over it to where the
    curvature is smaller. At N = 32 and 128, a = 0.01 to 10, alpha = 1.5 to 10 the median is within
    a factor of 1.4 of that of the eigenvalues of matrices.
    """
    return 2 / float(np.median(_start_curvatures(loss, alpha, N)))


def too_large(loss: Loss, rate: float, alpha: float, N: int) -> str:
    """Say that a learning rate is too large, and which one would do: half of `stable_rate`."""
    stable = stable_rate(loss, alpha, N)
    most = min(stable, rate) / 2
    digit = 10.0 ** math.floor(math.log10(most))
    return (
        f"learning_rate = {rate:g} is too large: {math.floor(most / digit) * digit:g} would "
        f'do, or "auto", as 2 / (largest eigenvalue of the Hessian at the start) is {stable:.2g} '
        f"at N = {N}, alpha = {alpha:g}"
    )


@cache
def safe_rate(loss: Loss, alpha: float, N: int) -> float:
    """Learning rate at which the descent is stable at all but the rarest random starts.

    It is a power of 2, at most `time_unit`, and at most the share 0.7 of the rate above which one
    random start of ten is unstable. Stores hold what was descended by it, so it is for ever.

    Of 5,120 starts at a = 0.01, 0.1, 1 and 10, at N = 32 and 128 for alpha = 1.5, 3 and 8, and at
    N = 512 for alpha = 3, none diverged within t = 3 to 30; at 4 times this rate 7 % did, at 8
    times 63 %, at 16 times 93 %.
    """
    large = float(np.quantile(_start_curvatures(loss, alpha, N), _QUANTILE))
    return min(_power_of_two(_SHARE * 2 / large), time_unit(loss))


@cache
def time_unit(loss: Loss) -> float:
    """Power of 2 of which every `safe_rate` of a loss is a whole fraction.

    The runs of all alpha and N have steps at its multiples, which no rounding moves. The largest
    eigenvalue is never below the mean of ell'', so this is the share `_COARSEST` of the largest
    rate that there could be, which no sweep reaches.
    """
    mean = float(loss.second(*_labels(_SAMPLES, 1)).mean())
    return _power_of_two(_COARSEST / abs(mean))


def recorded_unit(loss: Loss, t_max: float) -> float:
    """`time_unit`, of which t_max holds at least one."""
    return min(time_unit(loss), _power_of_two(t_max))


def _start_curvatures(loss: Loss, alpha: float, N: int) -> Array:
    """Largest eigenvalue of hess L at random starts on random matrices, (draws,)."""
    M = measurements(alpha, N)
    return upper_edge(loss.second(*_labels(M, max(_FEWEST, min(_DRAWS, _SAMPLES // M)))), N)


def _labels(M: int, draws: int) -> Array:
    """Pre-activations and labels of random starts, (2, M, draws)."""
    y_hat, y = np.random.default_rng(0).standard_normal((2, M, draws))
    return np.array([y_hat, np.abs(y)])


def _power_of_two(most: float) -> float:
    return 2.0 ** math.floor(math.log2(most))
