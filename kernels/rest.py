"""At rest: a local minimum of the loss on the sphere, proven, not a low speed.

A speed alone proves nothing: a saddle is passed slowly. A point w is at rest when the lowest
eigenvalue of its Riemannian Hessian is positive and the way to the minimum that this curvature
allows, ``speed / lambda_min``, is short.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.hessian import lowest_eigenpairs
from kernels.instance import Instance
from kernels.loss import Array, Loss, multiplier


@dataclass(frozen=True)
class Rest:
    """What is known of a point's rest.

    Attributes
    ----------
    lambda_min : float
        Lowest eigenvalue of the Riemannian Hessian; NaN if it is not known.
    speed : float
        ``|P grad L| / sqrt(N)``: rms velocity of a component.
    """

    lambda_min: float
    speed: float

    @property
    def way(self) -> float:
        """Longest Newton step that the curvature allows, rms a component; inf if none is proven."""
        return self.speed / self.lambda_min if self.lambda_min > 0 else np.inf


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
        return Rest(np.nan, np.nan)
    return Rest(float(lowest_eigenpairs(instance, w, loss=loss, modes=1).values[0]), speed)
