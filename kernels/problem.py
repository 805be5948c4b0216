"""What is descended on, and from where, as one value; its names are entries of tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from alphasweep.kernels.instance import STARTS, Instance, Signal, draw_instance
from alphasweep.kernels.loss import LOSSES, Array, Loss
from alphasweep.kernels.sensing import SENSINGS

__all__ = ["LOSSES", "SENSINGS", "STARTS", "Problem"]


@dataclass(frozen=True)
class Problem:
    """A loss, labels and sensing, and the law of the starts.

    Attributes
    ----------
    loss : Loss
        With its parameters.
    signal : {"planted", "null"}
        Labels made by a signal, or labels independent of the sensing.
    sensing, start : str
        Names in `SENSINGS` and `STARTS`.

    Raises
    ------
    ValueError
        If a name is in no table.
    """

    loss: Loss
    signal: Signal = "planted"
    sensing: str = "gaussian"
    start: str = "uniform"

    def __post_init__(self) -> None:
        for key, known in (
            ("signal", get_args(Signal)),
            ("sensing", SENSINGS),
            ("start", STARTS),
        ):
            if getattr(self, key) not in known:
                got = getattr(self, key)
                raise ValueError(f"{key} must be one of {', '.join(known)}; got {got}")

    def instance(
        self,
        root_seed: int,
        N: int,
        seed: int,
        *,
        M: int,
        precision: Literal["float32", "float64"] = "float32",
    ) -> Instance:
        """Draw sensing, signal and labels: `kernels.instance.draw_instance`."""
        return draw_instance(
            root_seed,
            N,
            seed,
            M=M,
            signal=self.signal,
            sensing=self.sensing,
            precision=precision,
        )

    def starts(
        self, root_seed: int, N: int, seed: int, start: Sequence[int], *, precision: str = "float32"
    ) -> Array:
        """Draw starts (N, R), each named by a number: as `kernels.instance.uniform_starts`."""
        return STARTS[self.start](root_seed, N, seed, start, precision=precision)
