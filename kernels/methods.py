"""How a start comes down: the methods of the descent, by the name that a sweep file calls them.

Each is called as

    method(instance, starts, *, loss, record, recovered_at, probe, **settings) -> Trajectory

with its own settings, and `record` and `probe` in its own count: steps of "gd", times of "flow".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from alphasweep.kernels.descent import Outcome, Trajectory, descend
from alphasweep.kernels.flow import flow

METHODS: dict[str, Callable[..., Trajectory]] = {"gd": descend, "flow": flow}


def out_of_time(
    method: str, outcome: npt.ArrayLike, steps: npt.ArrayLike, *, last: npt.ArrayLike
) -> npt.NDArray[np.bool_]:
    """Say which starts ended since time ran out: a later end would have made their numbers others.

    All others keep every bit, but of flow ``products``, which counts what was recorded up to the
    end of the last step: there a later end has other times.

    Parameters
    ----------
    method : str
    outcome, steps : (...)
        As in `Trajectory`.
    last : float, or (...)
        The last of `record`.
    """
    found = np.isin(outcome, Outcome.UNDECIDED)
    if method == "gd":  # which looks at the last step beside the usual looks
        found |= np.isin(outcome, (Outcome.TRAPPED, Outcome.DIVERGED)) & np.equal(steps, last)
    return found
