"""What is descended on, and from where, as one value; its names are entries of tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from alphasweep.kernels.instance import (
    ONE_A_START,
    SENSINGS,
    Instance,
    Signal,
    draw_instance,
)
from alphasweep.kernels.loss import LOSSES, Array, Loss
from alphasweep.kernels.revealed import TOLERANCE, is_cheaper
from alphasweep.kernels.starts import BLIND, STARTS

__all__ = ["AUTO", "LOSSES", "SENSINGS", "STARTS", "Problem"]

AUTO = "auto"
"""The sensing that is "gaussian" or "revealed", whichever is cheaper for a cell: `Problem.at`."""


@dataclass(frozen=True)
class Problem:
    """A loss, labels and sensing, and the law of the starts.

    Attributes
    ----------
    loss : Loss
        With its parameters.
    signal : {"planted", "null"}
        Labels made by a signal, or labels independent of the sensing.
    sensing : str
        A name in `SENSINGS`, or `AUTO`.
    start : str
        A name in `STARTS`.
    sensing_tolerance : float
        Share of a query that is left out rather than opens a direction, of a revealed sensing.
    start_overlap : float
        Overlap with the signal, in (0, 1), at which starts of "overlap" begin.

    Raises
    ------
    ValueError
        If a name is in no table, or if starts are made from a matrix that is not there yet.
    """

    loss: Loss
    signal: Signal = "planted"
    sensing: str = "gaussian"
    start: str = "uniform"
    sensing_tolerance: float = TOLERANCE
    start_overlap: float = 0.0

    def __post_init__(self) -> None:
        for key, known in (
            ("signal", get_args(Signal)),
            ("sensing", (*SENSINGS, AUTO)),
            ("start", STARTS),
        ):
            if getattr(self, key) not in known:
                got = getattr(self, key)
                raise ValueError(f"{key} must be one of {', '.join(known)}; got {got}")
        if self.may_reveal and self.start not in BLIND:
            raise ValueError(
                f"start must be {' or '.join(sorted(BLIND))} where sensing is {self.sensing}, as "
                f"others are made from the whole matrix; got {self.start}"
            )

    @property
    def one_a_start(self) -> bool:
        """Whether each start has a sensing of its own, as it remembers what it was asked."""
        return self.sensing in ONE_A_START

    @property
    def may_reveal(self) -> bool:
        """Whether there can be a start with a sensing of its own."""
        return self.one_a_start or self.sensing == AUTO

    def at(self, M: int, N: int, *, starts: int, t: float, round_trips: float) -> Problem:
        """Return the problem of runs at one size, whose sensing is no longer `AUTO`.

        Parameters
        ----------
        M, N, starts : int
            Measurements, dimension, and starts that would share a matrix.
        t : float
            Physical time that runs are expected to last.
        round_trips : float
            How often they evaluate the gradient until then.
        """
        if self.sensing != AUTO:
            return self
        revealed = is_cheaper(
            M, N, starts=starts, t=t, round_trips=round_trips, tolerance=self.sensing_tolerance
        )
        return replace(self, sensing="revealed" if revealed else "gaussian")

    def instance(
        self,
        root_seed: int,
        N: int,
        seed: int,
        *,
        M: int,
        precision: Literal["float32", "float64"] = "float32",
        start: int = 0,
        most: tuple[int, int] | None = None,
    ) -> Instance:
        """Draw sensing, signal and labels: `kernels.instance.draw_instance`.

        `most` are the directions that a revealed sensing may open: `kernels.revealed`.
        """
        settings: dict[str, Any] = {}
        if self.one_a_start:
            settings = {"start": start, "tolerance": self.sensing_tolerance, "most": most}
        return draw_instance(
            root_seed,
            N,
            seed,
            M=M,
            signal=self.signal,
            sensing=self.sensing,
            precision=precision,
            **settings,
        )

    def starts(
        self,
        root_seed: int,
        N: int,
        seed: int,
        start: Sequence[int],
        *,
        instance: Instance,
        precision: str = "float32",
    ) -> Array:
        """Draw starts (N, R), each named by a number, on the instance of (root_seed, N, seed)."""
        return STARTS[self.start](
            root_seed,
            N,
            seed,
            start,
            precision=precision,
            instance=instance,
            loss=self.loss,
            overlap=self.start_overlap,
        )
