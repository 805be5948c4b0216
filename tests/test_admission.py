"""Why jobs wait, and what is said of it: the words of SLURM that mean for ever, and when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from alphasweep.cluster.slurm import remedy
from alphasweep.pipeline.run import _telling_why_jobs_wait


@pytest.mark.parametrize(
    ("reason", "ends"),
    [
        ("PartitionTimeLimit", "lower the walltime"),
        ("PartitionConfig", "lower the walltime"),
        ("AssocMaxWallDurationPerJobLimit", "lower the walltime"),
        ("AssocMaxJobsLimit", "start the driver on a machine"),
        ("QOSMaxJobsPerUserLimit", "start the driver on a machine"),
        ("MaxMemPerLimit", "ask for less memory"),
        ("QOSMaxCpuPerJobLimit", "ask for less memory, fewer cores"),
        ("InvalidAccount", "name another account"),
        ("InvalidQOS", "name another QOS"),
        ("AssocGrpCPUMinutesLimit", "used up"),
        ("JobHeldUser", "scontrol release"),
        ("Priority", ""),
        ("Resources", ""),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-4]", ""),
        ("BeginTime", ""),
        ("Dependency", ""),
        ("QOSGrpCpuLimit", ""),
    ],
)
def test_what_ends_a_wait(reason: str, ends: str) -> None:
    """Reasons that do not end by themselves have a remedy, and only these."""
    assert ends in remedy(reason)
    assert bool(remedy(reason)) == bool(ends)


def test_a_run_tells_why_its_jobs_wait() -> None:
    """After a minute, and when the reasons change; not again while they stay, or flicker."""
    now: dict[str, Any] = {"pending": 2, "reasons": {"None": 2}}
    workforce: Any = SimpleNamespace(state=lambda: {"small": now})
    seen: list[Any] = []
    telling = _telling_why_jobs_wait(seen.append, workforce)

    def at(elapsed: float, reasons: dict[str, int]) -> str:
        now.update(pending=sum(reasons.values()), reasons=reasons)
        where: Any = SimpleNamespace(elapsed=elapsed)
        seen.clear()
        telling(where)
        assert seen[0] is where
        return "".join(seen[1:])

    assert at(59, {"Priority": 2}) == ""
    assert at(60, {"None": 2}) == ""
    assert at(61, {"Priority": 2}) == "class small: 2 jobs wait: 2 Priority"
    assert at(62, {"Priority": 1}) == ""
    assert at(63, {"Resources": 1}) == ""  # so soon after the last
    assert at(64, {"Priority": 2}) == ""
    assert at(200, {"Priority": 3}) == ""
    said = at(201, {"Priority": 1, "AssocMaxJobsLimit": 2})
    assert said.startswith("class small: 3 jobs wait: 1 Priority; 2 AssocMaxJobsLimit, which does ")
    assert "does not end by itself: so many jobs are allowed and run, the driver's own" in said
    assert at(300, {}) == ""
