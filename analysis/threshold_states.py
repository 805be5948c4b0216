"""Threshold states, where the descent is stuck at last, by one step of replica-symmetry breaking.

Without overlap with the signal (m = 0, q_0 = 0) the typical marginal minima of the energy have two
parameters: ``chi``, the response of a pre-activation, and ``s``, which selects their energy. The
pre-activation of a sample with label y and field h is

    x(h) = argmin_x V,    V(x; h, y) = ell(x, y) + (x - h)^2 / (2 chi),

where y is the absolute value of a normal variable, and h is normal, reweighted by exp(-s V) and
normalised for each y. E[.] over both, with ``q = -chi ell''/(1 + chi ell'')`` at x:

    saddle                 chi / (chi + s) = alpha E[(x - h)^2]                    (1)
    marginal stability     1 = alpha E[q^2]                                        (2)
    outlier at the edge    1 = alpha E[q (y^2 - 1)]                                (3)

(2) says that the lower edge of the Riemannian Hessian is 0, at gamma = chi in the equations of
`kernels.spectrum`; (3) that an outlier leaves it. (1) and (2) give the state of an alpha, all three
alpha_BBP_TS. The states are those of arXiv:2403.02418; as the true breaking of symmetry is a full
one, the result approximates where the dynamics ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr
from scipy.optimize import brentq, root
from scipy.special import expit

from alphasweep.analysis.thresholds import STEP, alpha_bbp_init, half_normal, is_blind, loss_of
from alphasweep.kernels.density import Density, density
from alphasweep.kernels.loss import Array, Loss

#: Largest error of the equations, relative, at which a solution is one.
TOLERANCE = 1e-9

# The search, in log chi and log s, begins at those of alpha = 7, a = 1, times these.
_BEGIN = (0.1557, 0.2802)
_FACTORS = ((1.0, 1.0), (0.5, 0.7), (2.0, 1.6), (0.25, 0.5), (7.0, 5.0), (20.0, 13.0))
_NEWTON = 100


class NoThresholdStateError(ArithmeticError):
    """The equations of threshold states were not solved; the message says what was tried."""


@dataclass(frozen=True)
class ThresholdState:
    """Marginal states of one loss at one alpha, see the module.

    Attributes
    ----------
    loss : Loss
    alpha, chi, s : float
        All dimensionless.
    energy : float
        Mean loss of a sample.
    residual : float
        Largest relative error of the equations that were solved.
    step : float
        Of the quadrature.
    """

    loss: Loss
    alpha: float
    chi: float
    s: float
    energy: float
    residual: float
    step: float = STEP

    @cached_property
    def law(self) -> tuple[Array, Array, Array]:
        """Joint law of labels and pre-activations: y, x and probability, each (n,); x >= 0.

        It is even in x.
        """
        means = _Means(self.loss, self.step)
        y, x, weight = means.law(self.chi, self.s)
        y = np.broadcast_to(y, x.shape)
        keep = weight > 1e-14
        return y[keep], x[keep], weight[keep] / weight[keep].sum()

    @property
    def mu(self) -> float:
        """Lagrange multiplier, ``E[ell'(x, y) x]``."""
        y, x, weight = self.law
        return float(weight @ (self.loss.prime(x, y) * x))

    def density(self, nodes: int = 4000) -> Density:
        """Density of the Riemannian Hessian's eigenvalues, whose lower edge is 0.

        Parameters
        ----------
        nodes
            At how many evenly spaced shares of the law the curvature is taken.
        """
        y, x, weight = self.law
        c = self.loss.second(x, y)
        order = np.argsort(c)
        share = np.cumsum(weight[order]) - weight[order] / 2
        levels = (np.arange(nodes) + 0.5) / nodes
        return density(np.interp(levels, share, c[order]), self.alpha, mu=self.mu)


def threshold_state(alpha: float, loss: Loss | float, *, step: float = STEP) -> ThresholdState:
    """Solve (1) and (2) of the module for the marginal states at an alpha.

    Parameters
    ----------
    alpha
        M/N, > 0.
    loss
        Even in ``y_hat``, with ell' convex at ``y_hat > 0``, as all of `LOSSES`; a bare number is
        `a` of the intensity loss.
    step
        Distance of the quadrature's nodes in the logarithms of y and h.

    Returns
    -------
    ThresholdState
        By Newton's method with Broyden's updates in log chi and log s (MINPACK's hybrd), to
        `TOLERANCE`.

    Raises
    ------
    ValueError
        If alpha or `a` is not positive and finite.
    NoThresholdStateError
        If no beginning leads to a solution; at small alpha there is none with an energy. Also if
        ell'' falls anywhere as y_hat grows.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha must be positive and finite; got {alpha}")
    loss = loss_of(loss)
    means = _Means(loss, step)

    def wrong(u: Array) -> list[float]:
        chi, s = np.exp(u)
        found = means.at(chi, s)
        return [math.log(alpha * found.way * (chi + s) / chi), math.log(alpha * found.noise)]

    chi, s, residual = _solved(wrong, f"alpha = {alpha:g}, {loss}")
    return ThresholdState(loss, alpha, chi, s, means.at(chi, s).energy, residual, step)


def threshold_at_bbp(loss: Loss | float, *, step: float = STEP) -> ThresholdState:
    """Solve (1), (2) and (3): the threshold states whose outlier is just at the edge.

    Parameters and errors are those of `threshold_state`; alpha is part of the solution.
    """
    loss = loss_of(loss)
    if is_blind(loss):
        raise NoThresholdStateError(f"ell'' must depend on the label; that of {loss} does not")
    means = _Means(loss, step)

    def wrong(u: Array) -> list[float]:
        chi, s = np.exp(u)
        found = means.at(chi, s)
        return [
            math.log(found.way / found.noise * (chi + s) / chi),
            found.signal / found.noise - 1,
        ]

    chi, s, residual = _solved(wrong, f"alpha_BBP_TS, {loss}")
    found = means.at(chi, s)
    return ThresholdState(loss, 1 / found.noise, chi, s, found.energy, residual, step)


def alpha_bbp_ts(loss: Loss | float, *, step: float = STEP) -> float:
    """Smallest alpha at which the threshold states' Hessian has an outlier; `threshold_at_bbp`.

    It is inf where ell'' is the same for all samples (amplitude loss).
    """
    loss = loss_of(loss)
    return math.inf if is_blind(loss) else threshold_at_bbp(loss, step=step).alpha


def thresholds(a: Iterable[float] | float) -> xr.Dataset:
    """Return both thresholds of the intensity loss for one or many a.

    Returns
    -------
    xr.Dataset, (a,)
        ``alpha_bbp_init`` and ``alpha_bbp_ts``; chi, s and energy of the threshold states there;
        and ``error``, the largest relative change of any of them with nodes half as far apart
        again (numerical, not of the theory).
    """
    values = np.atleast_1d(np.asarray(a, dtype=float))
    names = ("alpha_bbp_init", "alpha_bbp_ts", "chi", "s", "energy")

    def row(each: float, step: float) -> list[float]:
        state = threshold_at_bbp(each, step=step)
        return [alpha_bbp_init(each, step=step), state.alpha, state.chi, state.s, state.energy]

    fine, coarse = (np.array([row(v, step) for v in values]) for step in (STEP, 1.5 * STEP))
    found = {name: ("a", column) for name, column in zip(names, fine.T, strict=True)}
    error = np.abs(coarse / fine - 1).max(axis=1)
    return xr.Dataset(found | {"error": ("a", error)}, coords={"a": values})


@dataclass(frozen=True)
class _Found:
    """E[(x - h)^2], E[q^2], E[q (y^2 - 1)] and E[ell]."""

    way: float
    noise: float
    signal: float
    energy: float


class _Means:
    """E[.] of the module by the trapezoidal rule in log h, and in log y where that is smooth.

    Both are > 0, by symmetry. Once chi > 1 / sup(-ell'') there is a label y_c where x(h) begins to
    jump at h = 0, with q as large as ``1 / (|y - y_c| + h^(2/3))`` about it: E[q^2] exists, and
    nodes have to crowd there.
    """

    def __init__(self, loss: Loss, step: float) -> None:
        self._z, self._weight = half_normal(step)
        self.loss, self._step, self._h = loss, step, self._z[None, :]
        curved = loss.second(self._z[None, :], self._z[:, None])
        if np.any(np.diff(curved, axis=1) < -1e-9 * np.abs(curved).max()):
            raise NoThresholdStateError(
                f"ell'' must not fall with y_hat > 0, so that every sample has one minimum; that "
                f"of {loss} does"
            )

    def law(self, chi: float, s: float) -> tuple[Array, Array, Array]:
        """Y (y, 1), x (y, h) and probability (y, h)."""
        y, weight = self._labels(chi)
        x = self._minimum(y, chi)
        V = self.loss.ell(x, y) + (x - self._h) ** 2 / (2 * chi)
        p = np.exp(-s * (V - V.min(axis=1, keepdims=True))) * self._weight
        return y, x, weight * p / p.sum(axis=1, keepdims=True)

    def at(self, chi: float, s: float) -> _Found:
        y, x, P = self.law(chi, s)
        t = -chi * self.loss.second(x, y)
        q = t / (1 - t)
        integrands = ((x - self._h) ** 2, q**2, q * (y**2 - 1), self.loss.ell(x, y))
        return _Found(*(float(np.sum(P * f)) for f in integrands))

    def _labels(self, chi: float) -> tuple[Array, Array]:
        """Nodes and weights in y, (y, 1) each."""

        def excess(y: float) -> float:
            return float(self.loss.second(0.0, y)) + 1 / chi

        if excess(self._z[-1]) >= 0:
            return self._z[:, None], self._weight[:, None]
        at = brentq(excess, 0.0, self._z[-1], xtol=1e-15)
        # Below by the double exponential rule (Takahasi and Mori 1974), above in log(y - y_c).
        u = np.arange(-3.0, 3.0, self._step / 2)
        share = expit(np.pi * np.sinh(u))
        below = at * share
        slope = below * (1 - share) * np.pi * np.cosh(u) * self._step / 2
        beyond = np.exp(np.arange(-30.0, 2.4, self._step))
        y = np.concatenate([below, at + beyond])[:, None]
        width = np.concatenate([slope, beyond * self._step])[:, None]
        return y, width * np.exp(-(y**2) / 2) * math.sqrt(2 / math.pi)

    def _minimum(self, y: Array, chi: float) -> Array:
        """x(h): as ell is even and h > 0, it is the one root of V' at x > 0.

        V' is convex there and >= 0 at max(h, y), so that Newton's steps go down to it.
        """
        x = np.maximum(self._h, y)
        for _ in range(_NEWTON):
            slope = self.loss.prime(x, y) + (x - self._h) / chi
            step = slope / (self.loss.second(x, y) + 1 / chi)
            x = x - np.maximum(step, 0.0)
            if np.all(step <= 1e-15 * x):
                break
        return np.asarray(x)


def _solved(wrong: Callable[[Array], list[float]], what: str) -> tuple[float, float, float]:
    tried = []
    for factors in _FACTORS:
        begin = np.log(np.multiply(_BEGIN, factors))
        with np.errstate(all="ignore"):
            try:
                found = root(wrong, begin, tol=1e-12)
            except (ValueError, OverflowError) as error:  # of a logarithm, on the way
                tried.append(f"chi, s = {np.exp(begin).round(3)}: {error}")
                continue
        residual = float(np.abs(found.fun).max())
        if residual < TOLERANCE:
            chi, s = np.exp(found.x)
            return float(chi), float(s), residual
        tried.append(f"chi, s = {np.exp(begin).round(3)}: left {residual:.1g}")
    raise NoThresholdStateError(
        f"the equations of threshold states must have a solution to {TOLERANCE:g}; for {what} none "
        f"was found from {'; '.join(tried)}"
    )
