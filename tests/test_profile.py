"""The profile says where workers run, and `load` says everything that is wrong with it at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from alphasweep.cluster.profile import (
    SILENT_SECONDS,
    Kind,
    Profile,
    ProfileError,
    SizeClass,
    load,
    template,
)

SMALL = {"name": "small", "up_to_N": 100, "memory": "2 GB", "walltime": "1h"}
LARGE = SMALL | {"name": "large", "up_to_N": 200}
GOOD = {"kind": "slurm", "jobs": 3, "classes": [SMALL, LARGE]}


def problems(folder: Path, text: str) -> list[str]:
    """Return what is wrong with a profile; each line has to begin with its path."""
    path = folder / "p.toml"
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        load(path)
    start = f"profile file {path}"
    assert all(line.startswith(start) for line in caught.value.problems)
    return [line.removeprefix(start) for line in caught.value.problems]


def wrong(**changes: Any) -> str:
    """Return the message about a profile that is right but for some keys."""
    with pytest.raises(ValidationError) as caught:
        Profile.model_validate(GOOD | changes)
    return str(caught.value)


def size(**changes: Any) -> SizeClass:
    """Return a class with some keys replaced."""
    return SizeClass.model_validate(SMALL | changes)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_template_is_valid(kind: str, tmp_path: Path) -> None:
    """The file that is written to start from is a profile, also with its examples made keys."""
    (tmp_path / "p.toml").write_text(template(kind))
    assert load(tmp_path / "p.toml").kind == kind
    examples = re.sub(r"^# (\w+ = |\[)", r"\1", template(kind), flags=re.MULTILINE)
    (tmp_path / "p.toml").write_text(examples)
    assert load(tmp_path / "p.toml").account == "my-project"


def test_template_of_an_unknown_queue() -> None:
    """A queue that nobody knows is an error that lists those that are known."""
    with pytest.raises(ProfileError, match=r"local, slurm, pbs.*got 'slrum'"):
        template("slrum")


def test_every_problem_at_once(tmp_path: Path) -> None:
    """A message says the file, the place, what must hold, and what was there; for all problems."""
    text = """
kind = "slrum"
partiton = "normal"
[[classes]]
name = "one"
up_to_N = 1
memory = 4
[[classes]]
name = "two"
up_to_N = 100
memory = "2 GB"
walltime = "90 s"
cores = "2"
"""
    found = problems(tmp_path, text)
    starts = (
        ", kind: must be 'local', 'slurm',",
        ", jobs: required, but missing.",
        ", partiton: unknown key; allowed: kind, partition,",
        ", [[classes]] number 1 up_to_N: must be greater than or equal to 2; got 1.",
        ', [[classes]] number 1 memory: must be text such as "2 GB" or "512 MiB"; got 4.',
        ", [[classes]] number 1 walltime: required, but missing.",
        ", [[classes]] number 2 walltime: must be whole minutes, at least one; got '90 s'.",
        ", [[classes]] number 2 cores: must be a valid integer; got '2'.",
    )
    assert len(found) == len(starts)
    for start in starts:
        assert any(line.startswith(start) for line in found), (start, found)


def test_no_file_and_no_toml(tmp_path: Path) -> None:
    """A file that is not there, or that is no TOML, is an error that says so."""
    with pytest.raises(ProfileError, match="no such file; `alphasweep init --cluster slurm`"):
        load(tmp_path / "none.toml")
    assert problems(tmp_path, "kind = ")[0].startswith(": must be TOML; ")


@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 59))
def test_walltimes_agree(days: int, hours: int, minutes: int) -> None:
    """All ways to write a walltime give the same seconds; less than a minute is refused."""
    total = (days * 24 + hours) * 60 + minutes
    spellings = (f"{days}-{hours}:{minutes:02}:00", f"{total // 60}:{total % 60:02}:00")
    for text in (*spellings, f"{total} min", f"{total}m", f"{60 * total} s"):
        if total:
            assert size(walltime=text).walltime == 60 * total
        else:
            with pytest.raises(ValidationError, match="at least one"):
                size(walltime=text)


@pytest.mark.parametrize("text", ["", "1:00", "60", "1:60:00", "2 weeks", "-1h", "1:00:30", 60])
def test_wrong_walltime(text: object) -> None:
    """Seconds, half minutes, and what queues read differently are no walltime."""
    with pytest.raises(ValidationError):
        size(walltime=text)


def test_silence() -> None:
    """A worker may be silent for three minutes, or for what the profile says."""
    assert Profile.model_validate(GOOD).silent_worker == SILENT_SECONDS == 180
    assert Profile.model_validate(GOOD | {"silent_worker": "10 min"}).silent_worker == 600


def test_memory() -> None:
    """Memory is text with a unit, of 1000 or of 1024, and enough for Python itself."""
    assert size(memory="2 GB").memory == 2 * 1000**3
    assert size(memory="1.5GiB").memory == 3 * 1024**3 // 2
    for text in ("2", "2 gb", "99 MB", 2_000_000_000, "two GB"):
        with pytest.raises(ValidationError):
            size(memory=text)


@given(st.integers(1, 250))
def test_class_for_a_size(N: int) -> None:
    """A size gets the smallest class that holds it; beyond the largest it is an error."""
    profile = Profile.model_validate(GOOD)
    if N <= 200:
        assert profile.class_for(N).name == ("small" if N <= 100 else "large")
    else:
        with pytest.raises(ProfileError, match=f"N = {N} must fit.*large, has up_to_N = 200"):
            profile.class_for(N)


def test_classes_are_in_order() -> None:
    """Classes ascend in size and differ in name."""
    assert "must ascend in up_to_N; got [200, 100]" in wrong(classes=[LARGE, SMALL])
    assert "must ascend in up_to_N; got [100, 100]" in wrong(
        classes=[SMALL, LARGE | SMALL | {"name": "b"}]
    )
    assert "must differ in name" in wrong(classes=[SMALL, LARGE | {"name": "small"}])
    assert "at least 1 item" in wrong(classes=[])


def test_what_scripts_cannot_quote() -> None:
    """Paths with blanks, partitions with blanks, and lines of several lines are refused."""
    assert "must have no blanks" in wrong(shared_directory="/a b")
    assert "must have no blanks" in wrong(python="/a b/python")
    assert "pattern" in wrong(partition="a b")
    assert "must be one line" in wrong(prologue=["a\nb"])


def test_a_home_that_is_not_known() -> None:
    """A path in it is refused like any other that cannot be used."""
    assert "as there is no home for its ~" in wrong(local_directory="~no-such-user/scratch")


def test_htcondor_is_different() -> None:
    """HTCondor has no partitions, and its directives are assignments."""
    assert "no partitions" in wrong(kind="htcondor", partition="p")
    assert "key = value" in wrong(kind="htcondor", extra_directives=["--x"])


def test_names_that_only_a_site_knows() -> None:
    """Several cores of Grid Engine need the name of a parallel environment; others have none."""
    several = [SMALL | {"cores": 2}]
    assert "qconf -spl" in wrong(kind="sge", classes=several)
    assert Profile.model_validate(GOOD | {"kind": "sge"}).memory_name == "h_vmem"
    Profile.model_validate(GOOD | {"kind": "sge", "classes": several, "parallel_environment": "x"})
    assert "kind = sge only" in wrong(kind="slurm", parallel_environment="smp")
    assert "kind = sge or oar only" in wrong(kind="slurm", memory_resource="h_vmem")
    assert "should match" in wrong(kind="sge", memory_resource="h_vmem=3G")
