"""At rest: a local minimum of the loss on the sphere, proven, not a low speed.

A speed alone proves nothing: a saddle is passed slowly. A point w is at rest when the lowest
eigenvalue of its Riemannian Hessian is positive and the way to the minimum that this curvature
allows, ``speed / lambda_min``, is short.

With M < N - 1 there are other minima, too: the points of energy 0 form a manifold, along which the
lowest eigenvalues are 0 up to rounding. There energy proves the minimum, as no loss is negative,
and the way is ``2 E / speed``: what is left of an energy that falls as fast as now for its size.

How short the way must be was measured (`tests/benchmarks/rest.py`; alpha = 3, a = 1, 128 runs of 8
matrices each to t = 1000): trapped runs, and those of them that recover after all by t = 10000. All
runs had ended by then, but for one of 256 at 0.3. In brackets what the looks took of the time.

| ``rest_within`` | N = 64 | N = 128 |
|---|---|---|
| 1 | 67, of which 25 recover (54 %) | 72, of which 17 recover (64 %) |
| 0.3 | 43, of which 1 recovers (34 %) | 60, of which 6 recover (42 %) |
| 0.1 | 44, of which 2 recover (13 %) | 60, of which 5 recover (18 %) |
| 0.03 | 42, none (9 %) | 55, none (12 %) |
| 0.01 | 42, none (7 %) | 55, none (9 %) |
| 0.003 | 42, none (6 %) | 55, none (8 %) |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alphasweep.kernels.hessian import lowest_eigenpairs
from alphasweep.kernels.instance import Instance
from alphasweep.kernels.loss import Array, Loss, energy, multiplier

_DENSE_UP_TO = 128
_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Rest:
    """What is known of a point's rest.

    Attributes
    ----------
    lambda_min : float
        Lowest eigenvalue of the Riemannian Hessian; NaN if it is not known.
    speed : float
        ``|P grad L| / sqrt(N)``: rms velocity of a component.
    way : float
        Longest way to the minimum, rms a component; inf if none is proven.
    """

    lambda_min: float
    speed: float
    way: float


def rest(instance: Instance, w: Array, *, loss: Loss) -> Rest:
    """Look whether w is at rest.

    Parameters
    ----------
    instance : Instance
    w : (N,)
        Point of the sphere of radius sqrt(N).
    loss : Loss

    Returns
    -------
    Rest
        Deterministic: ARPACK starts from a fixed vector. An eigenvalue that did not converge, or
        a point that is not finite, is NaN, and so is not at rest.
    """
    sensing = instance.sensing.fork()
    y_hat = sensing.forward(w[:, None])
    slope = loss.prime(y_hat, instance.y[:, None]) * (instance.N / instance.M)
    gradient = sensing.adjoint(slope.astype(sensing.dtype))[:, 0]
    tangent = gradient.astype(np.float64) - multiplier(y_hat, instance.y, loss) * w
    speed = float(np.sqrt(np.mean(np.square(tangent))))
    if not np.isfinite(speed):
        return Rest(np.nan, np.nan, np.inf)
    # What still moves moves along the lowest eigenvectors: there ARPACK begins. A hundredth of the
    # eigenvalue as residual is an error of 1e-4 of it (N = 128 to 512), at 40 % of the products.
    pairs = lowest_eigenpairs(
        instance,
        w,
        loss=loss,
        modes=1,
        v0=tangent if speed else None,
        dense_up_to=_DENSE_UP_TO,
        tolerance=_TOLERANCE,
    )
    lambda_min = float(pairs.values[0])
    way = speed / lambda_min if lambda_min > 0 else np.inf
    if instance.M < instance.N - 1 and speed:
        way = min(way, 2 * float(energy(y_hat, instance.y, loss)[0]) / speed)
    return Rest(lambda_min, speed, way)
