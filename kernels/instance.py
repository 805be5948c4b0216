"""One problem: sensing, signal and labels, drawn from streams named by values.

Every random number belongs to a stream named by (root_seed, N, seed, purpose), never by a position
in a grid. So a wider grid, another order or a resume changes no number, and at one (N, seed) a
larger alpha extends the same sensing matrix by rows (common random numbers along alpha).

That holds of a matrix that is held. One that is revealed as it is asked belongs to the run that
asks: each start has one of its own, and so has each M.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from alphasweep.kernels.loss import Array
from alphasweep.kernels.revealed import RevealedSensing
from alphasweep.kernels.sensing import Sensing, gaussian_sensing

Signal = Literal["planted", "null"]

# What a stream is for; part of its name, so these numbers are for ever.
_SIGNAL, _SENSING, _NULL_LABELS, _START, _REVEALED = range(5)

SENSINGS: dict[str, Callable[..., Sensing]] = {
    "gaussian": gaussian_sensing,
    "revealed": RevealedSensing,
}
"""How a sensing is drawn, by the name in a sweep file: ``(stream, M, N, dtype, **settings)``.

Entries have mean 0 and variance 1/N. Of those that do not remember, more rows begin with the fewer.
"""

ONE_A_START = frozenset({"revealed"})
"""The sensings that remember what they were asked, so that each start has to have its own."""


@dataclass(frozen=True)
class Instance:
    """A phase-retrieval problem.

    Attributes
    ----------
    sensing : Sensing, shape (M, N)
    w_star : (N,)
        Signal, on the sphere of radius sqrt(N).
    y : (M,)
        Labels, >= 0: ``abs(X w_star)`` if planted, ``abs`` of iid N(0, 1) in the null model.
    """

    sensing: Sensing
    w_star: Array
    y: Array

    @property
    def N(self) -> int:
        """Dimension of the signal."""
        return self.sensing.shape[1]

    @property
    def M(self) -> int:
        """Number of measurements."""
        return self.sensing.shape[0]


def measurements(alpha: float, N: int) -> int:
    """Return the number of measurements, M = round(alpha N) (a half goes to even)."""
    return round(alpha * N)


def _stream(root_seed: int, *name: int) -> np.random.Generator:
    # A larger number would be spelt as two words, and could be read as another stream's name.
    if max(name) >= 2**32:
        raise ValueError(f"N, seed and start must be below 2^32; got {max(name)}")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(root_seed, spawn_key=name)))


def on_sphere(vector: Array, dtype: np.dtype[np.floating]) -> Array:
    """Scale a vector (N,) to norm sqrt(N)."""
    scaled = vector * (np.sqrt(len(vector)) / np.linalg.norm(vector.astype(np.float64)))
    return np.asarray(scaled, dtype=dtype)


def draw_instance(
    root_seed: int,
    N: int,
    seed: int,
    *,
    M: int,
    signal: Signal = "planted",
    sensing: str = "gaussian",
    precision: Literal["float32", "float64"] = "float32",
    start: int = 0,
    **settings: Any,
) -> Instance:
    """Draw sensing, signal and labels from the streams of (root_seed, N, seed).

    Parameters
    ----------
    root_seed, N, seed, M : int
    signal : {"planted", "null"}
    sensing : str
        A name in `SENSINGS`.
    precision : {"float32", "float64"}
    start : int
        Whose the instance is, if the sensing is in `ONE_A_START`: then sensing and null labels
        belong to (M, start), too.
    **settings
        Of the sensing.

    Raises
    ------
    ValueError
        If N < 2 or M < 1, or N or seed is 2^32 or more.
    """
    if N < 2 or M < 1:
        raise ValueError(f"an instance needs N >= 2 and M >= 1; got N = {N}, M = {M}")
    dtype = np.dtype(precision)
    mine = (M, start) if sensing in ONE_A_START else ()
    purpose = _REVEALED if mine else _SENSING
    X = SENSINGS[sensing](_stream(root_seed, N, seed, purpose, *mine), M, N, dtype, **settings)
    w_star = on_sphere(_stream(root_seed, N, seed, _SIGNAL).standard_normal(N), dtype)
    if signal == "planted":
        y = np.abs(X.forward(w_star))
    else:
        labels = _stream(root_seed, N, seed, _NULL_LABELS, *mine).standard_normal(
            M, dtype=np.float32
        )
        y = np.abs(labels).astype(dtype)
    return Instance(X, w_star, y)


def uniform_starts(
    root_seed: int, N: int, seed: int, start: Sequence[int], *, precision: str = "float32"
) -> Array:
    """Draw starts uniformly on the sphere of radius sqrt(N), one stream each.

    Parameters
    ----------
    start : R integers >= 0
        Which starts; start s is the same whatever the others are.

    Returns
    -------
    (N, R)

    Raises
    ------
    ValueError
        If N, seed or a start is 2^32 or more.
    """
    columns = [
        on_sphere(_stream(root_seed, N, seed, _START, s).standard_normal(N), np.dtype(precision))
        for s in start
    ]
    return np.ascontiguousarray(np.stack(columns, axis=1))
