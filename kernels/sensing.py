"""The sensing matrix as an operator: the descent asks for products, never for the array.

Anything with the members of `Sensing` can be descended on. `DenseSensing` holds the matrix;
`kernels.revealed` has one that is drawn as it is asked. The descent asks the sensing itself; who
looks at a descent (probes, certificates of rest, what is recorded between its steps) asks a fork.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from alphasweep.kernels.loss import Array

Weigh = Callable[[Array, slice], Array]
"""``f(y_hat[rows], rows)``: acts on the pre-activations of a slice of samples, row by row."""

# Below a product of sizes m k R of 100^3, OpenBLAS multiplies (m, k) by (k, R) without packing its
# operands first; with few columns R, packing is most of the work. So products are cut into slabs
# below that size, a stack of which is one call of NumPy: 1.2 times faster for R = 32 and twice for
# R = 8. The kernel takes six rows at once. Where OpenBLAS always packs (without AVX-512) slabs of a
# few rows cost up to a fifth.
UNPACKED_PRODUCT = 1_000_000
ROWS_AT_ONCE = 6
# A block of X stays near the core, in the second-level cache and just beyond, between its two
# products. With fewer rows, adding up the N R numbers each block contributes to X^T F would show.
CACHED_BYTES = 3 << 19
FEWEST_ROWS = 192


class Sensing(Protocol):
    """A linear map X from estimates (N,) to pre-activations (M,), known by its products."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(M, N)``."""

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Precision of the products."""

    @property
    def remembers(self) -> bool:
        """Whether its products depend on those that were asked before."""

    def fork(self) -> Sensing:
        """Return a sensing of the same products so far, whose further ones change nothing here."""

    def forward(self, W: Array) -> Array:
        """``X W``, (M, R), for ``W`` of shape (N, R); (M,) for (N,)."""

    def adjoint(self, F: Array) -> Array:
        """``X^T F``, (N, R), for ``F`` of shape (M, R)."""

    def round_trip(self, W: Array, weigh: Weigh, y_hat: Array, out: Array) -> None:
        """``X^T f(X W)`` into `out` (N, R), in one pass over X; ``X W`` into `y_hat` (M, R)."""


class DenseSensing:
    """A sensing matrix held in memory.

    Parameters
    ----------
    X : (M, N), C-contiguous
        Entries iid N(0, 1/N) for Gaussian sensing; sets the precision of everything.
    """

    remembers = False

    def __init__(self, X: Array) -> None:
        self.X = np.ascontiguousarray(X)

    def fork(self) -> DenseSensing:
        """Return itself: its products are always the same."""
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """``(M, N)``."""
        M, N = self.X.shape
        return M, N

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Precision of the products."""
        return self.X.dtype

    def forward(self, W: Array) -> Array:
        """``X W``, (M, R); (M,) for W of shape (N,)."""
        return self.X @ W

    def adjoint(self, F: Array) -> Array:
        """``X^T F``, (N, R)."""
        return self.X.T @ F

    def round_trip(self, W: Array, weigh: Weigh, y_hat: Array, out: Array) -> None:
        """``X^T f(X W)`` into `out` (N, R), by blocks of rows; ``X W`` into `y_hat` (M, R)."""
        M, N = self.X.shape
        most = max(FEWEST_ROWS, CACHED_BYTES // (N * self.X.itemsize))
        size = -(-M // -(-M // most))  # as many blocks as it takes, of equal size
        product = out
        for first in range(0, M, size):
            rows = slice(first, min(first + size, M))
            block = self.X[rows]
            _multiply(block, W, y_hat[rows])
            _multiply(block.T, weigh(y_hat[rows], rows), product)
            if first == 0:
                product = np.empty_like(out)
            else:
                out += product


def gaussian_sensing(
    stream: np.random.Generator, M: int, N: int, dtype: np.dtype[np.floating]
) -> DenseSensing:
    """Draw a dense matrix of entries N(0, 1/N), row after row.

    It is drawn in single precision whatever `dtype`: both precisions see the same problem, up to
    the rounding of one multiplication by 1/sqrt(N).
    """
    X = stream.standard_normal((M, N), dtype=np.float32).astype(dtype, copy=False)
    X *= dtype.type(1 / np.sqrt(N))
    return DenseSensing(X)


def _multiply(A: Array, B: Array, out: Array) -> None:
    """Write ``A B``, (m, k) by (k, R), into `out`, slab of A by slab (see `UNPACKED_PRODUCT`)."""
    (m, k), R = A.shape, B.shape[1]
    size = UNPACKED_PRODUCT // (k * R) // ROWS_AT_ONCE * ROWS_AT_ONCE
    whole = m // size * size if size else 0
    if whole:
        slabs = A[:whole].reshape(-1, size, k)
        np.matmul(slabs, B, out=out[:whole].reshape(-1, size, R))
    if whole < m:
        np.matmul(A[whole:], B, out=out[whole:])
