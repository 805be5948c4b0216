"""How a start comes down: the methods of the descent, by the name that a sweep file calls them.

Each is called as

    method(instance, starts, *, loss, record, recovered_at, probe, **settings) -> Trajectory

with its own settings, and `record` and `probe` in its own count: steps of "gd", times of "flow".
"""

from __future__ import annotations

from collections.abc import Callable

from alphasweep.kernels.descent import Trajectory, descend
from alphasweep.kernels.flow import flow

METHODS: dict[str, Callable[..., Trajectory]] = {"gd": descend, "flow": flow}
