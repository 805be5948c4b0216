"""The sensing matrix as an operator: the descent asks for products, never for the array.

Anything with the members of `Sensing` can be descended on. `DenseSensing` holds the matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from kernels.loss import Array

Weigh = Callable[[Array, slice], Array]
"""``f(y_hat[rows], rows)``: acts on the pre-activations of a slice of samples, row by row."""

# OpenBLAS multiplies without packing its operands when rows * N * R is at most 100^3, which is two
# to four times faster for few starts; above that, blocks of 256 rows keep a block of X in the
# cache between its two products (tests/benchmarks/descent.py shows both).
UNPACKED_PRODUCT = 1_000_000
CACHED_ROWS = 256


class Sensing(Protocol):
    """A linear map X from estimates (N,) to pre-activations (M,), known by its products."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(M, N)``."""

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Precision of the products."""

    def forward(self, W: Array) -> Array:
        """``X W``, (M, R), for ``W`` of shape (N, R)."""

    def adjoint(self, F: Array) -> Array:
        """``X^T F``, (N, R), for ``F`` of shape (M, R)."""

    def round_trip(self, W: Array, weigh: Weigh, y_hat: Array, out: Array) -> None:
        """``X^T f(X W)`` into `out` (N, R) in one pass over X; ``X W`` is left in `y_hat` (M, R)."""


class DenseSensing:
    """A sensing matrix held in memory.

    Parameters
    ----------
    X : (M, N), C-contiguous
        Entries iid N(0, 1/N) for Gaussian sensing; sets the precision of everything.
    """

    def __init__(self, X: Array) -> None:
        self.X = np.ascontiguousarray(X)

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
        """``X W``, (M, R)."""
        return self.X @ W

    def adjoint(self, F: Array) -> Array:
        """``X^T F``, (N, R)."""
        return self.X.T @ F

    def round_trip(self, W: Array, weigh: Weigh, y_hat: Array, out: Array) -> None:
        """``X^T f(X W)`` into `out` (N, R) by blocks of rows; ``X W`` is left in `y_hat` (M, R)."""
        M = len(self.X)
        size = self._rows_per_block(W)
        if size >= M:
            rows = slice(0, M)
            np.matmul(self.X, W, out=y_hat)
            np.matmul(self.X.T, weigh(y_hat, rows), out=out)
            return
        out.fill(0)
        product = np.empty_like(out)
        for first in range(0, M, size):
            rows = slice(first, min(first + size, M))
            block = self.X[rows]
            np.matmul(block, W, out=y_hat[rows])
            np.matmul(block.T, weigh(y_hat[rows], rows), out=product)
            np.add(out, product, out=out)

    def _rows_per_block(self, W: Array) -> int:
        if self.X.size * W.shape[1] <= UNPACKED_PRODUCT:
            return len(self.X)
        unpacked = UNPACKED_PRODUCT // (16 * W.size) * 16
        return unpacked if unpacked >= 32 else CACHED_ROWS
