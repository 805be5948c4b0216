"""Losses and their derivatives: the only home of their conventions.

A sample with label ``y = abs(x . w_star)`` and pre-activation ``y_hat = x . w`` costs
``ell(y_hat, y)``. The energy ``E = mean_i ell_i`` is intensive and is what is recorded; what is
descended is ``L(w) = N E(w)``, so that its gradient has norm O(sqrt N), like ``w`` itself, and its
Hessian ``hess L = (N/M) X^T diag(ell'') X`` has eigenvalues O(1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Loss(ABC):
    """What a sample costs; arguments of its functions broadcast.

    A loss is a frozen dataclass whose fields are its parameters, numbers > 0, and an entry of
    `LOSSES`. It has to give `ell`, its two derivatives in ``y_hat``, and `sup_minus_second`;
    `label_terms` and `slope_in_place` may be given, too, for speed.
    """

    def __post_init__(self) -> None:
        for name, value in self.parameters.items():
            if not 0 < value < np.inf:
                raise ValueError(f"{name} must be finite and > 0; got {value}")

    @property
    def parameters(self) -> dict[str, float]:
        """Values of the fields, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def name(self) -> str:
        """Its name in `LOSSES`."""
        return next(name for name, kind in LOSSES.items() if kind is type(self))

    @abstractmethod
    def ell(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """Loss of each sample."""

    @abstractmethod
    def prime(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """First derivative of `ell` in ``y_hat``."""

    @abstractmethod
    def second(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """Second derivative of `ell` in ``y_hat``."""

    @property
    @abstractmethod
    def sup_minus_second(self) -> float:
        """Supremum of ``-second`` over all ``y_hat`` and ``y >= 0``."""

    def label_terms(self, y: Array, factor: float) -> tuple[Array, ...]:
        """Return what `slope_in_place` has to know of the labels y (M,), each (M, 1)."""
        return y[:, None], np.full_like(y[:, None], factor)

    def slope_in_place(self, y_hat: Array, terms: tuple[Array, ...], out: Array) -> Array:
        """Write ``factor * prime`` into `out` and return it; `y_hat` is not changed.

        Parameters
        ----------
        y_hat, out : (rows, R)
        terms : tuple of (rows, 1) or (rows, R)
            These rows of `label_terms`.
        """
        y, factor = terms
        return np.multiply(self.prime(y_hat, y), factor, out=out)


@dataclass(frozen=True)
class IntensityLoss(Loss):
    """``ell = (y_hat^2 - y^2)^2 / (a + y^2)``; source: arXiv:2403.02418, section 2.

    Attributes
    ----------
    a : float
        Regularisation, > 0.
    """

    a: float

    def ell(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """``(y_hat^2 - y^2)^2 / (a + y^2)``."""
        y2 = np.square(y)
        return np.asarray(np.square(np.square(y_hat) - y2) / (self.a + y2))

    def prime(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """``4 y_hat (y_hat^2 - y^2) / (a + y^2)``."""
        y2 = np.square(y)
        return np.asarray(4 * np.asarray(y_hat) * (np.square(y_hat) - y2) / (self.a + y2))

    def second(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """``4 (3 y_hat^2 - y^2) / (a + y^2)``."""
        y2 = np.square(y)
        return np.asarray(4 * (3 * np.square(y_hat) - y2) / (self.a + y2))

    @property
    def sup_minus_second(self) -> float:
        """4, approached where y grows and y_hat vanishes."""
        return 4.0

    def label_terms(self, y: Array, factor: float) -> tuple[Array, Array]:
        """``y^2`` and ``factor * 4 / (a + y^2)``."""
        y2 = np.square(y[:, None])
        return y2, np.asarray(4 / (self.a + y2) * factor, dtype=y.dtype)

    def slope_in_place(self, y_hat: Array, terms: tuple[Array, ...], out: Array) -> Array:
        """``scale y_hat (y_hat^2 - y^2)`` without a temporary."""
        y2, scale = terms
        np.multiply(y_hat, y_hat, out=out)
        np.subtract(out, y2, out=out)
        np.multiply(out, y_hat, out=out)
        return np.multiply(out, scale, out=out)


@dataclass(frozen=True)
class QuarticLoss(Loss):
    """``ell = (y_hat^2 - y^2)^2``: the intensity loss times a, as a -> infinity.

    Source: Candes, Li and Soltanolkotabi, IEEE Trans. Inf. Theory 61, 1985 (2015), Wirtinger flow.
    """

    def ell(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """``(y_hat^2 - y^2)^2``."""
        return np.asarray(np.square(np.square(y_hat) - np.square(y)))

    def prime(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """``4 y_hat (y_hat^2 - y^2)``."""
        return np.asarray(4 * np.asarray(y_hat) * (np.square(y_hat) - np.square(y)))

    def second(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """``4 (3 y_hat^2 - y^2)``."""
        return np.asarray(4 * (3 * np.square(y_hat) - np.square(y)))

    @property
    def sup_minus_second(self) -> float:
        """Infinite: it grows with y."""
        return np.inf


@dataclass(frozen=True)
class AmplitudeLoss(Loss):
    """``ell = (abs(y_hat) - y)^2``: a parabola on either side of ``y_hat = 0``.

    Where no ``y_hat`` is 0 the Hessian is that of ``2 (N/M) X^T X``, which knows nothing of the
    signal. The ridge at 0 repels, so that no minimum lies on it.

    Source: Wang, Giannakis and Eldar, IEEE Trans. Inf. Theory 64, 773 (2018), amplitude flow.
    """

    def ell(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """``(abs(y_hat) - y)^2``."""
        return np.asarray(np.square(np.abs(y_hat) - y))

    def prime(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """``2 (y_hat - sign(y_hat) y)``."""
        return np.asarray(2 * (np.asarray(y_hat) - np.copysign(y, y_hat)))

    def second(self, y_hat: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """2, without the ridge."""
        return np.full_like(np.asarray(np.add(y_hat, y)), 2)

    @property
    def sup_minus_second(self) -> float:
        """-2."""
        return -2.0

    def slope_in_place(self, y_hat: Array, terms: tuple[Array, ...], out: Array) -> Array:
        """Two sweeps, without a temporary."""
        y, factor = terms
        np.copysign(y, y_hat, out=out)
        np.subtract(y_hat, out, out=out)
        return np.multiply(out, 2 * factor, out=out)


LOSSES: dict[str, type[Loss]] = {
    "intensity": IntensityLoss,
    "quartic": QuarticLoss,
    "amplitude": AmplitudeLoss,
}
"""Losses by the name that a sweep file calls them; their numbers belong to it for ever."""


def energy(y_hat: Array, y: Array, loss: Loss) -> Array:
    """Energy ``E = mean_i ell_i`` of each start.

    Parameters
    ----------
    y_hat : (M, R)
        Pre-activations ``X w`` of R starts.
    y : (M,)
        Labels, >= 0.
    loss : Loss

    Returns
    -------
    (R,), float64
    """
    return np.asarray(loss.ell(y_hat, y[:, None]).mean(axis=0, dtype=np.float64))


def multiplier(y_hat: Array, y: Array, loss: Loss) -> Array:
    """Lagrange multiplier ``mu = w . grad L / N = mean_i ell'_i y_hat_i`` of each start.

    Shapes as in `energy`. The Riemannian Hessian on the sphere is ``P (hess L - mu) P``.
    """
    return np.asarray((loss.prime(y_hat, y[:, None]) * y_hat).mean(axis=0, dtype=np.float64))
