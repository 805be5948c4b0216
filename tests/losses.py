"""A second loss, as a user would write it: the formulas, and nothing for speed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alphasweep.kernels.loss import Array, Loss


@dataclass(frozen=True)
class Welsch(Loss):
    """``ell = b^2 (1 - exp(-d^2 / 2 b^2))``, ``d = abs(y_hat) - y``: far samples count alike."""

    b: float

    def _parts(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Array, Array]:
        d = np.abs(y_hat) - np.asarray(y)
        return d, np.exp(-np.square(d / self.b) / 2)

    def ell(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """Loss of each sample."""
        return np.asarray(self.b**2 * (1 - self._parts(y_hat, y)[1]))

    def prime(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """First derivative."""
        d, weight = self._parts(y_hat, y)
        return np.asarray(d * weight * np.sign(y_hat))

    def second(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """Second derivative."""
        d, weight = self._parts(y_hat, y)
        return np.asarray((1 - np.square(d / self.b)) * weight)

    @property
    def sup_minus_second(self) -> float:
        """Reached at ``d^2 = 3 b^2``."""
        return float(2 * np.exp(-1.5))
