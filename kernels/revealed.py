"""A Gaussian sensing matrix that is revealed only along what it is asked, exactly in law.

The matrix X acts through products alone. Given those that were taken, the rest of it is Gaussian
still (Bolthausen's conditioning; Lu, IEEE Trans. Inf. Theory 67, 5530, 2021). So what is kept is

    V (N, p), U (M, q)      orthonormal directions that were asked for, right and left
    A = X V, B = X^T U      what the matrix does to them, with U^T A = B^T V

and a new right direction v costs fresh numbers xi ~ N(0, 1/N):

    X v = U (B^T v) + (1 - U U^T) xi

and so does a left one, with the roles swapped. What is asked lies almost in the span of what was
asked before, as a descent is smooth: where less than the share `tolerance` of a query is outside,
that part is left out, and no direction is opened. So p and q grow with physical time, not with the
number of steps, and a product costs (N + M)(p + q) instead of N M.

What is asked is all that is ever known of the matrix: another order of the queries gives another
matrix, of the same law. So the descent alone may ask; whoever looks at it asks a `fork`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy.sparse import csc_array

from alphasweep.kernels.loss import Array
from alphasweep.kernels.sensing import Weigh

TOLERANCE = 1e-5
HEALTHY = 1e-4
"""A run whose `RevealedSensing.health` is larger gives no numbers."""

_BLOCK = 64  # columns that are allocated at once
_SLAB = 1 << 15  # rows that are summed in the precision of the columns, the rest in float64
_GROUP = 8  # slabs that a call of NumPy multiplies: of one it keeps other threads waiting
_BUCKETS = 1024  # the length of a residual is known to sqrt(2 / 1024) = 4 %
# More directions than expected by this factor are not opened: the memory was planned with it.
_ROOM = 1.5


class OutgrownError(Exception):
    """A query needs one direction more than the memory was planned for."""


class UnhealthyError(ArithmeticError):
    """Directions of a sensing are no longer orthonormal, or its products contradict themselves."""


class RevealedSensing:
    """A matrix (M, N) of entries iid N(0, 1/N), of which only products that were asked for exist.

    Parameters
    ----------
    stream : Generator
        Of the numbers that are revealed; forks have streams of their own, named after it.
    M, N : int
    dtype : dtype
        Of the columns that are kept, and of the products.
    tolerance : float
        Share of a query's norm below which its part outside of what is known is left out.
    most : (int, int), optional
        Right and left directions that there may be; by default as many as there are.
    threads : int
        Of this process, for the products; they change no bit.

    Raises
    ------
    ValueError
        If the tolerance is below `least_tolerance`.
    """

    remembers = True

    def __init__(
        self,
        stream: np.random.Generator,
        M: int,
        N: int,
        dtype: np.dtype[np.floating],
        *,
        tolerance: float = TOLERANCE,
        most: tuple[int, int] | None = None,
        threads: int = 1,
    ) -> None:
        if tolerance < (least := least_tolerance(dtype)):
            raise ValueError(f"tolerance must be >= {least:.2g} in {dtype}; got {tolerance:g}")
        self.shape, self.dtype, self.tolerance = (M, N), np.dtype(dtype), tolerance
        self.most = most or (N, M)
        self._seed: Any = stream.bit_generator.seed_seq
        self._stream = stream
        signs = [np.random.Generator(np.random.PCG64(child)) for child in _named(self._seed, 2)]
        pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.V, self.A = _Columns(N, dtype, pool, signs[0]), _Columns(M, dtype, pool)
        self.U, self.B = _Columns(M, dtype, pool, signs[1]), _Columns(N, dtype, pool)

    @property
    def ranks(self) -> tuple[int, int]:
        """Right and left directions that are open, ``(p, q)``."""
        return len(self.V), len(self.U)

    @property
    def nbytes(self) -> int:
        """Bytes of the columns that are kept."""
        M, N = self.shape
        return sum(self.ranks) * (M + N) * self.dtype.itemsize

    def fork(self) -> RevealedSensing:
        """Return a sensing that knows what this one does, and of which this one learns nothing.

        Its further numbers are those of a stream named by the ranks: who forks twice without a
        query in between gets the same matrix twice. It may open `look_ranks` directions more.
        """
        forked = object.__new__(RevealedSensing)
        (p, q), room = self.ranks, look_ranks(self.shape[1])
        forked.shape, forked.dtype, forked.tolerance = self.shape, self.dtype, self.tolerance
        forked.most = p + room, q + room
        (forked._seed,) = _named(self._seed, 1, *self.ranks)
        forked._stream = np.random.Generator(np.random.PCG64(forked._seed))
        forked.V, forked.A = self.V.fork(), self.A.fork()
        forked.U, forked.B = self.U.fork(), self.B.fork()
        return forked

    def forward(self, W: Array) -> Array:
        """``X W``, (M, R), for ``W`` of shape (N, R), column after column; (M,) for (N,)."""
        return _each(lambda w: self._ask(w, self.V, self.A, self.U, self.B, self.most[0]), W)

    def adjoint(self, F: Array) -> Array:
        """``X^T F``, (N, R), for ``F`` of shape (M, R), column after column."""
        return _each(lambda f: self._ask(f, self.U, self.B, self.V, self.A, self.most[1]), F)

    def round_trip(self, W: Array, weigh: Weigh, y_hat: Array, out: Array) -> None:
        """``X^T f(X W)`` into `out` (N, R); ``X W`` into `y_hat` (M, R)."""
        y_hat[...] = self.forward(W)
        out[...] = self.adjoint(weigh(y_hat, slice(0, len(y_hat))))

    def health(self) -> float:
        """Largest entry of ``V^T V - 1``, ``U^T U - 1`` and ``U^T A - B^T V``: rounding, 1e-6."""
        p, q = self.ranks
        wrong = (
            self.V.gram(self.V) - np.eye(p),
            self.U.gram(self.U) - np.eye(q),
            self.U.gram(self.A) - self.B.gram(self.V),
        )
        return max(float(np.abs(each).max(initial=0.0)) for each in wrong)

    def _ask(
        self, v: Array, V: _Columns, A: _Columns, U: _Columns, B: _Columns, most: int
    ) -> Array:
        """``X v``; with the roles of (V, A) and (U, B) swapped, ``X^T v``."""
        length = _norm(v)
        if not np.isfinite(length):  # the descent's own business: it ends as diverged
            return np.full(A.n, np.nan, self.dtype)
        c = V.dot(v)
        if len(V) < V.n and V.residual(v, c) > self.tolerance * length:
            outside = np.asarray(v - V.combine(c))
            again = V.dot(outside)  # once more, as what is subtracted is as large as v itself
            outside -= V.combine(again)
            left = _norm(outside)
            if left > self.tolerance * length:
                if len(V) == most:
                    raise OutgrownError(f"{most} directions")
                outside /= outside.dtype.type(left)
                self._reveal(outside, V, A, U, B)
                c = np.append(c + again, left)
        return A.combine(c)

    def _reveal(self, v: Array, V: _Columns, A: _Columns, U: _Columns, B: _Columns) -> None:
        """Open the unit direction v (n,), orthogonal to V."""
        fresh = self._stream.standard_normal(A.n, dtype=np.float32).astype(self.dtype, copy=False)
        fresh *= self.dtype.type(1 / np.sqrt(self.shape[1]))
        fresh += U.combine(B.dot(v) - U.dot(fresh))
        V.append(v)
        A.append(fresh)


def least_tolerance(dtype: np.dtype[np.floating]) -> float:
    """Return 16 roundings of a precision: below, what is left of a query is noise."""
    return 16 * float(np.finfo(dtype).eps)


def expected_ranks(t: float, N: int, tolerance: float = TOLERANCE) -> tuple[float, float]:
    """Expect so many right and left directions at time t of a descent, see `_GROWTH`."""
    digits = (-np.log10(tolerance) + 1) / 6
    right, left = (rate * digits * (t + 1) ** power for rate, power in _GROWTH)
    return min(right, float(N)), left


_GROWTH = ((20.0, 0.6), (35.0, 0.55))


def most_ranks(t: float, M: int, N: int, tolerance: float) -> tuple[int, int]:
    """Directions that a descent to time t may open: what its memory is planned with."""
    right, left = expected_ranks(t, N, tolerance)
    return min(N, int(_ROOM * right) + 10), min(M, int(_ROOM * left) + 10)


def is_cheaper(
    M: int, N: int, *, starts: int, t: float, round_trips: float, tolerance: float = TOLERANCE
) -> bool:
    """Say whether runs take less time by a matrix that is revealed than by one that is held.

    It is so where the held one would not fit `HELD_BYTES`, and else by what both took on a core
    with AVX-512 (`tests/benchmarks/revealed.py`). Stores hold what it chose, so it is for ever.

    Parameters
    ----------
    M, N, starts : int
        Measurements, dimension, and starts that would share a held matrix.
    t, round_trips : float
        Physical time that runs last, and how often they evaluate the gradient until then.
    tolerance : float
        Of the revealed sensing.
    """
    if 4.0 * M * N > HELD_BYTES:
        return True
    # However few the starts are, the matrix is read once a round trip.
    held = M * N * (_DRAWN / starts + (_READ / starts + 4 * _FLOP) * round_trips)
    return bool(revealed_seconds(M, N, t, round_trips, tolerance) < held)


HELD_BYTES = 8e9
_DRAWN, _READ, _FLOP = 1e-8, 6e-10, 1.9e-11


def revealed_seconds(
    M: int, N: int, t: float, round_trips: float, tolerance: float, looks: float = 0
) -> float:
    """Expect a run of one start by a revealed sensing to take so many seconds on a core.

    `looks` are those for lowest eigenvalues, of which each reveals its whole way on a fork.
    """
    right, left = expected_ranks(t, N, tolerance)
    ranks = right + left
    # Ranks grow with time: their mean is two thirds. To reveal one takes three more passes.
    passes = 0.65 * ranks * round_trips + 1.5 * ranks**2
    passes += looks * look_ranks(N) * 8 * (ranks + look_ranks(N))
    return _CALL * (round_trips + ranks) + (M + N) * (_ELEMENT * passes + _SAMPLE * round_trips)


_CALL, _ELEMENT, _SAMPLE = 3.5e-4, 4e-10, 3e-9


def look_ranks(N: int) -> int:
    """Directions of either side that a fork may open: what a look for eigenvalues needs.

    ARPACK asks for a new one at every product. For two eigenpairs it took 150 to 180 at N = 512,
    190 to 410 at 2048 and 260 to 610 at 8192 (alpha = 4, t = 0, 1 and 8); for rest 40 to 80.
    """
    return int(50 * N**0.3)


class _Columns:
    """Columns of length n, one after another, that grow without being copied.

    They lie in slabs of rows, and in each slab column after column. A slab is summed in the
    precision of the columns, the slabs in float64 and in their order: threads change no bit.

    With a stream of signs they have their sketch, too (Clarkson and Woodruff, STOC 2013): a sum of
    all rows, with random signs, in `_BUCKETS` buckets. It keeps lengths, whatever is sketched, so
    that what a query has outside of the columns is known without one more pass over them.
    """

    def __init__(
        self,
        n: int,
        dtype: np.dtype[np.floating],
        pool: ThreadPoolExecutor | None,
        signs: np.random.Generator | None = None,
    ) -> None:
        self.n, self._dtype, self._pool = n, dtype, pool
        self._number = -(-n // _SLAB)
        self._rows = -(-n // self._number)
        self._blocks: list[Array] = []  # (slabs, columns, rows) each
        self._room = self._no_room()  # the block that grows
        self._has_sketch, self._sketched = signs is not None, list[Array]()
        self._sketch: csc_array | None = None
        if signs is not None and n > _BUCKETS:
            plus = 1.0 - 2.0 * signs.integers(0, 2, n, dtype=np.int8)
            buckets = signs.integers(0, _BUCKETS, n, dtype=np.int32)
            ends = np.arange(n + 1, dtype=np.int32)
            self._sketch = csc_array((plus, buckets, ends), shape=(_BUCKETS, n))

    def __len__(self) -> int:
        return sum(block.shape[1] for block in self._blocks)

    def fork(self) -> _Columns:
        """Return columns that begin as these, and grow apart from them."""
        forked = object.__new__(_Columns)
        forked.__dict__ |= self.__dict__
        forked._blocks, forked._sketched = list(self._blocks), list(self._sketched)
        forked._room = self._no_room()
        return forked

    def append(self, column: Array) -> None:
        """Add a column (n,)."""
        used = self._blocks[-1].shape[1] if self._room.size else 0
        if used == self._room.shape[1]:
            # Not zeros: no page of memory is taken before there is a column on it.
            self._room = np.empty((self._number, _BLOCK, self._rows), self._dtype)
            self._blocks.append(self._room[:, :0])
            used = 0
        self._room[:, used] = self._by_slab(column)
        self._blocks[-1] = self._room[:, : used + 1]
        if self._has_sketch:
            self._sketched.append(self._sketch_of(column))

    def dot(self, v: Array) -> Array:
        """``C^T v``, (columns,), in float64."""
        slabs = self._by_slab(v)[:, :, None]

        def products(some: slice) -> Array:
            return np.concatenate(
                [(block[some] @ slabs[some])[..., 0] for block in self._blocks], 1
            )

        return self._sum(products, np.zeros(len(self)))

    def gram(self, other: _Columns) -> Array:
        """``C^T D``, in float64."""

        def products(some: slice) -> Array:
            mine, others = (np.concatenate([b[some] for b in c._blocks], 1) for c in (self, other))
            return np.asarray(mine @ others.transpose(0, 2, 1))

        return self._sum(products, np.zeros((len(self), len(other))))

    def combine(self, c: Array) -> Array:
        """``C c``, (n,), for c (columns,)."""
        out = np.zeros((self._number, self._rows), self._dtype)
        ends = np.cumsum([block.shape[1] for block in self._blocks], dtype=int)
        pieces = np.split(c.astype(self._dtype), ends[:-1])

        def add(some: slice) -> None:
            for block, piece in zip(self._blocks, pieces, strict=True):
                out[some] += piece @ block[some]

        for _ in self._mapped(add) if self._blocks else ():
            pass
        return out.reshape(-1)[: self.n]

    def residual(self, v: Array, c: Array) -> float:
        """Length of ``v - C c``, to 4 %."""
        left = self._sketch_of(v)
        if self._sketched:
            left = left - c @ np.array(self._sketched)
        return float(np.linalg.norm(left))

    def _sketch_of(self, v: Array) -> Array:
        real = v.astype(np.float64)
        return real if self._sketch is None else np.asarray(self._sketch @ real)

    def _sum(self, products: Callable[[slice], Array], total: Array) -> Array:
        for several in self._mapped(products) if total.size else ():
            for one in several:
                total += one
        return total

    def _mapped(self, function: Callable[[slice], Array | None]) -> Iterator[Any]:
        """Call a function for some slabs at a time."""
        groups = [slice(k, k + _GROUP) for k in range(0, self._number, _GROUP)]
        apply = map if self._pool is None or len(groups) == 1 else self._pool.map
        return iter(apply(function, groups))

    def _by_slab(self, v: Array) -> Array:
        """Return v (n,) as (slabs, rows), with zeros behind it."""
        if len(v) < self._number * self._rows:
            v = np.append(v, np.zeros(self._number * self._rows - len(v), v.dtype))
        return v.reshape(self._number, self._rows)

    def _no_room(self) -> Array:
        return np.empty((self._number, 0, self._rows), self._dtype)


def _named(seed: Any, number: int, *name: int) -> Iterator[np.random.SeedSequence]:
    """Yield so many seeds named after one, which is none of theirs."""
    for k in range(number):
        key = (*seed.spawn_key, *name, k)
        yield np.random.SeedSequence(seed.entropy, spawn_key=key)


def _each(ask: Callable[[Array], Array], W: Array) -> Array:
    if W.ndim == 1:
        return ask(W)
    return np.stack([ask(np.ascontiguousarray(w)) for w in W.T], axis=1)


def _norm(v: Array) -> float:
    """Length of v in float64, whatever its precision."""
    return float(np.sqrt(np.einsum("i,i->", v, v, dtype=np.float64)))
