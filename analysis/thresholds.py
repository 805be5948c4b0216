"""Signal-to-noise ratios at which the Hessian's lowest eigenvector starts to see the signal."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from alphasweep.analysis.recovery import loss_of_sweep
from alphasweep.kernels import rates
from alphasweep.kernels.loss import IntensityLoss, Loss

#: Distance of the nodes in log z. The error falls like exp(-const/STEP), whatever ``a`` is:
#: 2e-8 at 0.2, 2e-11 at 0.15, below 1e-12 at 0.1.
STEP = 0.1

#: Sensings whose law is that of a matrix with Gaussian entries.
GAUSSIAN = ("gaussian", "revealed", "auto")


def loss_of(loss: Loss | float) -> Loss:
    """Return a loss as it is; a bare number is `a` of the intensity loss.

    Raises
    ------
    ValueError
        If a number is not positive and finite.
    """
    if isinstance(loss, Loss):
        return loss
    if not (math.isfinite(loss) and loss > 0):
        raise ValueError(f"a, the loss's regulariser, must be positive and finite; got a = {loss}.")
    return IntensityLoss(float(loss))


def is_blind(loss: Loss) -> bool:
    """Whether ell'' is the same for all samples, so that no Hessian knows anything of labels."""
    z = np.linspace(0.0, 5.0, 50)
    return not np.ptp(loss.second(z[None, :], z[:, None]))


def alpha_bbp_init(loss: Loss | float, *, step: float = STEP) -> float:
    """Smallest alpha at which the Hessian of a random start has an outlier, as N -> infinity.

    At a random start y and y_hat are independent N(0, 1). With t = -ell''(y_hat, y) and
    q = t gamma / (1 - t gamma), the edge of the bulk is where alpha E[q^2] = 1, and the
    signal's outlier leaves it where alpha E[q (y^2 - 1)] = 1. Both together leave one equation,
    E[q (y^2 - 1)] = E[q^2], free of alpha. It has no root below 1 / sup t when a is large
    (1/4 of the intensity loss): the edge is then hard, gamma = 1 / sup t, and the second condition
    alone gives alpha.

    Parameters
    ----------
    loss
        Or a bare number, `a` of the intensity loss, > 0 (dimensionless).
    step
        Distance of the quadrature's nodes in the logarithms of y and y_hat.

    Returns
    -------
    float
        alpha_BBP of the initial condition (dimensionless, alpha = M / N). Of the intensity loss it
        goes to 3 for a -> 0 and to (a + 3) / 2 for large a. It is inf for a loss whose -ell'' has
        no bound (quartic): the bulk then reaches the further down the more samples there are, and
        beyond any outlier as N -> infinity; and where ell'' is the same for all samples
        (amplitude), so that the Hessian knows nothing of labels.

    Raises
    ------
    ValueError
        If `a` is not positive and finite.

    Notes
    -----
    The transition is that of arXiv:2403.02418; the conditions are the deterministic equivalents
    of (N/M) X^T diag(t) X.
    """
    loss = loss_of(loss)
    if math.isinf(loss.sup_minus_second) or is_blind(loss):
        return math.inf
    z, weight = half_normal(step)
    y, y_hat = z[:, None], z[None, :]
    t = -loss.second(y_hat, y)

    def signal_and_noise(gamma: float) -> tuple[float, float]:
        q = t * gamma / (1.0 - t * gamma)
        return float(weight @ (q * (y**2 - 1.0)) @ weight), float(weight @ q**2 @ weight)

    def excess(gamma: float) -> float:
        signal, noise = signal_and_noise(gamma)
        return signal - noise

    gamma = 1.0 / loss.sup_minus_second
    if excess(gamma) < 0.0:
        # For gamma -> 0 the signal is of order gamma and the noise of order gamma^2.
        gamma = brentq(excess, 1e-6, gamma, xtol=1e-14)
    return 1.0 / signal_and_noise(gamma)[0]


def half_normal(step: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights of E[f(abs(z))], z ~ N(0, 1), equally spaced in log z.

    The integrands vary at y_hat ~ sqrt(a), as narrow as one likes. On a logarithmic scale that
    width is always the same, and the trapezoidal rule converges geometrically.
    """
    # Below exp(-30) lies a probability of 1e-13; exp(2.4) is eleven standard deviations.
    z = np.exp(np.arange(-30.0, 2.4, step))
    return z, step * z * np.exp(-(z**2) / 2) * math.sqrt(2 / math.pi)


def threshold_of(settings: Mapping[str, Any]) -> float | None:
    """`alpha_bbp_init` of a sweep; None where it is not known.

    Parameters
    ----------
    settings
        What `analysis.recovery.descent_of` returned. The threshold is known for every loss,
        Gaussian sensing, held or revealed, and uniform starts.
    """
    if settings["start"] != "uniform" or settings["sensing"] not in GAUSSIAN:
        return None
    found = alpha_bbp_init(loss_of_sweep(settings))
    return found if math.isfinite(found) else None


def too_large(settings: Mapping[str, Any], *, N: int, alpha: float) -> str:
    """`kernels.rates.too_large` for the learning_rate of a sweep.

    Parameters
    ----------
    settings
        What `analysis.recovery.descent_of` returned. The start is known where it is uniform.
    N, alpha
        The smallest alpha and the largest N of a sweep have the largest eigenvalue.
    """
    rate = settings["learning_rate"]
    if settings["start"] != "uniform" or settings["sensing"] not in GAUSSIAN:
        return f"learning_rate = {rate:g} is too large: lower it"
    return rates.too_large(loss_of_sweep(settings), rate, alpha, N)
