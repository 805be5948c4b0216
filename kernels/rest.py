"""At rest: a local minimum of the loss on the sphere, proven, not a low speed.

A speed alone proves nothing: a saddle is passed slowly. A point w is at rest when the lowest
eigenvalue of its Riemannian Hessian is positive and the way to the minimum that this curvature
allows, ``speed / lambda_min``, is short.

With M < N - 1 there are other minima, too: the points of energy 0 form a manifold, along which the
lowest eigenvalues are 0 up to rounding. There energy proves the minimum, as no loss is negative,
and the way is ``2 E / speed``: what is left of an energy that falls as fast as now for its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.hessian import lowest_eigenpairs
from kernels.instance import Instance
from kernels.loss import Array, Loss, energy, multiplier

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
    y_hat = instance.sensing.forward(w[:, None])
    slope = loss.prime(y_hat, instance.y[:, None]) * (instance.N / instance.M)
    gradient = instance.sensing.adjoint(slope.astype(instance.sensing.dtype))[:, 0]
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
