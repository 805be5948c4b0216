"""Each size goes to a class that is large enough, and what does not fit is said before it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from alphasweep.cluster.placement import Misfit, Need, Placement
from alphasweep.cluster.profile import Profile, ProfileError
from alphasweep.pipeline.plan import REFERENCE, CostModel, make_plan
from alphasweep.pipeline.run import placement
from tests.conftest import tiny

PROFILE = """
kind = "slurm"
jobs = {jobs}
[[classes]]
name = "small"
up_to_N = 8
memory = "1 GB"
walltime = "1h"
[[classes]]
name = "large"
up_to_N = 12
memory = "1 GB"
walltime = "{walltime}"
"""


def size(name: str, up_to: int, gigabytes: int) -> dict[str, object]:
    """Return a class of a profile, with an hour."""
    return {"name": name, "up_to_N": up_to, "memory": f"{gigabytes} GB", "walltime": "1h"}


CLASSES = [size("one", 8, 1), size("two", 16, 2), size("three", 32, 4)]


def test_each_size_is_in_the_smallest_class_that_holds_it() -> None:
    """Jobs go by the work, at least one to a class and no more than it has parts."""
    profile = Profile.model_validate({"kind": "slurm", "jobs": 12, "classes": CLASSES})
    needs = {
        8: Need(50, 100.0, 9.0, 1e8),
        9: Need(3, 600.0, 9.0, 1e8),
        16: Need(1, 300.0, 9.0, 1e8),
    }
    placed = Placement(profile, needs)
    assert placed.sizes == {"one": [8], "two": [9, 16]}
    assert [one.name for one in placed.classes] == ["one", "two"]
    assert placed.jobs == {"one": 2, "two": 4}  # of ten besides one each: 1 and 9, of four parts
    assert placed.reserve == {"three": 0}
    assert placed.misfits == []
    with pytest.raises(ProfileError, match="33"):
        Placement(profile, {33: Need(1, 1.0, 1.0, 1e8)})


def test_a_class_that_is_too_small_is_a_misfit() -> None:
    """In memory or in walltime, each with what is needed and what is given."""
    profile = Profile.model_validate({"kind": "slurm", "jobs": 2, "classes": CLASSES})
    needs = {8: Need(1, 9.0, 9.0, 1.5e9), 16: Need(1, 9.0, 3601.0, 1.5e9)}
    assert Placement(profile, needs).misfits == [
        Misfit("one", "memory", 8, 1.5e9, 1e9),
        Misfit("two", "walltime", 16, 3601.0, 3600.0),
    ]


def test_a_walltime_holds_half_as_much_again_as_the_longest_part(tmp_path: Path) -> None:
    """A minute less is refused, with the class, the size, and what to do."""
    plan = replace(make_plan(tiny(), CostModel(REFERENCE)), longest={8: 60.0, 12: 600.0})
    file = tmp_path / "p.toml"
    file.write_text(PROFILE.format(jobs=2, walltime="15 min"))
    assert placement(file, plan).sizes == {"small": [8], "large": [12]}
    file.write_text(PROFILE.format(jobs=1, walltime="14 min"))
    with pytest.raises(ProfileError) as refused:
        placement(file, plan)
    told = str(refused.value)
    assert "p.toml, class large: walltime must be at least 15 min, 1.5 times the longest" in told
    assert "part of N = 12; got 14 min: raise it, or lower --part-seconds." in told
    assert "jobs: must be at least 2, one for each class in use; got 1." in told
    assert "class small" not in told
