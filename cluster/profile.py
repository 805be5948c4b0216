"""The cluster file: TOML in, a frozen and validated `Profile` out, every problem reported at once.

Memory and walltime have no default: a guess would be paid for in core-hours.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from dask.utils import parse_bytes
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

Kind = Literal["local", "slurm", "pbs", "sge", "lsf", "oar", "htcondor", "moab"]

_MEMORY = {"sge": "h_vmem", "oar": "memcore"}  # where a site may have another name for it
SILENT_SECONDS = 180
"""Of a worker that is replaced, unless a profile says otherwise. One that works speaks every second
or so, however long its part takes: NumPy lets other threads run meanwhile. To stop for a minute or
two and go on is in order: a file server that is restarted, a node that has to swap."""

_SILENT: Any = f"{SILENT_SECONDS // 60} min"  # as in a file

_WORKER_BYTES = 100_000_000  # Python, NumPy, SciPy and Dask before any work
_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class ProfileError(ValueError):
    """A profile that cannot be read, is not valid, or has no class for a size.

    Parameters
    ----------
    problems : list of str
        One line for each problem; the message of the error is these lines.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _seconds(value: object) -> object:
    """Read "2:00:00", "1-12:00:00", "2h" or "90 min"; queues count walltimes in whole minutes."""
    text = value if isinstance(value, str) else ""
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text.strip())
    plain = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]+)", text.strip())
    if clock:
        days, hours, minutes, rest = (int(group or 0) for group in clock.groups())
        seconds: float = ((24 * days + hours) * 60 + minutes) * 60 + rest
    elif plain and plain[2] in _UNITS:
        seconds = float(plain[1]) * _UNITS[plain[2]]
    else:
        raise ValueError('must be text such as "2:00:00", "1-12:00:00", "2h" or "90 min"')
    if seconds < 60 or seconds % 60:
        raise ValueError("must be whole minutes, at least one")
    return int(seconds)


def _bytes(value: object) -> object:
    """Read "2 GB" or "512 MiB"."""
    # Not by pydantic's ByteSize, which takes a bare 4, forgotten units, for four bytes.
    text = value if isinstance(value, str) else ""
    if not re.fullmatch(r"\d+(\.\d+)? *[kMGT]i?B", text.strip()):
        raise ValueError('must be text such as "2 GB" or "512 MiB"')
    if (number := parse_bytes(text)) < _WORKER_BYTES:
        raise ValueError("must be at least 100 MB, which an idle worker needs")
    return int(number)


def _path(value: object) -> object:
    # The directives and the command line of a job script quote nothing.
    if isinstance(value, str) and re.search(r"\s", value):
        raise ValueError("must have no blanks, which job scripts cannot quote")
    if not isinstance(value, str):
        return value
    path = os.path.expanduser(value)  # noqa: PTH111, which leaves the ~ of who has no home
    if path.startswith("~"):
        raise ValueError("must be written out, as there is no home for its ~")
    return Path(path)


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _line(value: str) -> str:
    if "\n" in value:
        raise ValueError("must be one line")
    return value


_Path = Annotated[Path, BeforeValidator(_path)]
_Lines = Annotated[
    tuple[Annotated[str, AfterValidator(_line)], ...], BeforeValidator(_tuple), Field(default=())
]
_Word = Annotated[str, Field(pattern=r"^\S+$")]


class _Table(BaseModel):
    # strict: the text "3" is not a number, and true is not 1
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class SizeClass(_Table):
    """What one job of this class asks the queue for; a job is one worker.

    Attributes
    ----------
    name : str
        Of letters, digits, ``_`` and ``-``.
    up_to_N : int
        The largest N whose parts fit, >= 2.
    cores : int
        Of a job, >= 1. A worker computes with one thread; more cores are for queues that hand out
        memory by the core.
    memory : int
        Of a job, in bytes. In a file text such as "2 GB".
    walltime : int
        Of a job, in seconds, whole minutes. In a file text such as "2:00:00" or "2h".
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    up_to_N: int = Field(ge=2)  # noqa: N815
    cores: int = Field(default=1, ge=1)
    memory: Annotated[int, BeforeValidator(_bytes)]
    walltime: Annotated[int, BeforeValidator(_seconds)]


class Driver(_Table):
    """What the job of a submitted driver asks for.

    Attributes
    ----------
    memory, walltime : int
        As of a `SizeClass`. Before its walltime the driver goes back into the queue, and resumes.
    """

    memory: Annotated[int, BeforeValidator(_bytes)]
    walltime: Annotated[int, BeforeValidator(_seconds)]


class Profile(_Table):
    """Where workers run, and what a job of each size asks for.

    Attributes
    ----------
    kind : str
        The queue, or "local" for processes on this machine.
    partition : str or None
        Partition or queue; None is the queue's own default. HTCondor has none.
    account : str or None
        What the jobs are charged to.
    jobs : int
        How many jobs there may be at once, all classes together.
    prologue : tuple of str
        Lines of shell before a worker starts: modules, environments.
    local_directory : Path or None
        A fast disk of the node, for the worker's scratch files.
    shared_directory : Path or None
        Where workers find the run's certificates; None is the run's own directory.
    memory_resource : str or None
        What Grid Engine or OAR calls the memory of a job, see `memory_name`. Others know no names.
    parallel_environment : str or None
        What Grid Engine hands out several cores by; required there if a class has more than one.
    extra_directives, skip_directives : tuple of str
        Lines to add to the header of the job script, without the prefix of the queue, and texts
        whose lines are left out of it.
    interface : str or None
        Network interface of driver and workers, such as "ib0".
    tls : bool
        Whether everything is encrypted and authenticated; without it, whoever reaches the port of
        the driver runs code as its user.
    python : Path
        The interpreter of the workers.
    early_deaths : int
        How many jobs may die young before the run is stopped, >= 1; see `launch.Cluster.check`.
    silent_worker : int
        After how many seconds without a sign of life a connected worker is replaced. In a file text
        such as "3 min", whole minutes.
    driver : Driver or None
        Required by `alphasweep submit`.
    classes : tuple of SizeClass
        Ascending in `up_to_N`, at least one.

    See Also
    --------
    load : from a file, with every problem reported at once.
    """

    kind: Kind
    partition: _Word | None = None
    account: _Word | None = None
    jobs: int = Field(ge=1)
    prologue: _Lines
    local_directory: _Path | None = None
    shared_directory: _Path | None = None
    memory_resource: Annotated[str | None, Field(pattern=r"^\w+$")] = None
    parallel_environment: _Word | None = None
    extra_directives: _Lines
    skip_directives: _Lines
    interface: _Word | None = None
    tls: bool = True
    python: _Path = Path(sys.executable)
    early_deaths: int = Field(default=5, ge=1)
    silent_worker: Annotated[int, BeforeValidator(_seconds)] = _SILENT
    driver: Driver | None = None
    classes: Annotated[tuple[SizeClass, ...], BeforeValidator(_tuple), Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len({c.name for c in self.classes}) < len(self.classes):
            raise ValueError("[[classes]] must differ in name")
        sizes = [c.up_to_N for c in self.classes]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"[[classes]] must ascend in up_to_N; got {sizes}")
        if self.memory_resource and self.kind not in _MEMORY:
            raise ValueError(f"memory_resource is for kind = {' or '.join(_MEMORY)} only")
        if self.parallel_environment and self.kind != "sge":
            raise ValueError("parallel_environment is for kind = sge only")
        several = [size.name for size in self.classes if size.cores > 1]
        if self.kind == "sge" and several and not self.parallel_environment:
            raise ValueError(
                "Grid Engine hands out several cores by a parallel environment, whose name is the "
                "site's own (`qconf -spl` lists them): parallel_environment must be one, as class "
                f"{several[0]} has cores > 1"
            )
        if self.kind == "htcondor" and self.partition:
            raise ValueError("HTCondor has no partitions: use extra_directives for requirements")
        if self.kind == "htcondor" and any("=" not in line for line in self.extra_directives):
            raise ValueError('extra_directives of HTCondor must be "key = value"')
        return self

    @property
    def memory_name(self) -> str:
        """What the queue calls memory: by default h_vmem in Grid Engine, memcore in OAR.

        h_vmem is what most sites hand out, and the only name that Grid Engine itself enforces.
        """
        return self.memory_resource or _MEMORY[self.kind]

    def class_for(self, N: int) -> SizeClass:
        """Return the smallest class that holds N.

        Raises
        ------
        ProfileError
            If none does.
        """
        for size in self.classes:
            if size.up_to_N >= N:
                return size
        last = self.classes[-1]
        raise ProfileError(
            [
                f"N = {N} must fit one of the profile's [[classes]]; the largest, {last.name}, has "
                f"up_to_N = {last.up_to_N}: add a class, with the memory and walltime it needs."
            ]
        )


def load(path: Path) -> Profile:
    """Read a profile file.

    Raises
    ------
    ProfileError
        If it cannot be read, is not TOML, or is not valid; it names every problem.
    """
    where = f"profile file {path}"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        rule = "no such file; `alphasweep init --cluster slurm` writes one."
        raise ProfileError([f"{where}: {rule}"]) from None
    except OSError as error:
        raise ProfileError([f"{where}: cannot be read: {error.strerror}."]) from None
    except ValueError as error:  # also text that is not UTF-8
        raise ProfileError([f"{where}: must be TOML; {error}."]) from None
    try:
        return Profile.model_validate(document)
    except ValidationError as error:
        raise ProfileError([f"{where}, {problem}." for problem in _problems(error)]) from None


def _problems(error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False):
        place, kind = item["loc"], item["type"]
        if place[:1] == ("classes",) and len(place) > 1:
            section, keys = f"[[classes]] number {int(place[1]) + 1}", place[2:]
        else:
            section, keys = "", place
        where = " ".join([section, *(str(key) for key in keys if isinstance(key, str))]).strip()
        if kind == "missing":
            text = "required, but missing"
        elif kind == "extra_forbidden":
            model = SizeClass if section else Driver if place[0] == "driver" else Profile
            text = f"unknown key; allowed: {', '.join(model.model_fields)}"
        else:
            rule = item["msg"].removeprefix("Value error, ")
            rule = re.sub("^(Input|String) should", "must", rule)
            text = f"{rule}; got {item['input']!r}" if place else rule
        yield f"{where}: {text}" if where else text


def template(kind: str) -> str:
    """Return a commented profile to start from.

    Parameters
    ----------
    kind : str
        One of `Kind`.
    """
    if kind not in get_args(Kind):
        raise ProfileError([f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}."])
    partition, directive = _EXAMPLES[kind]
    line = f'# partition = "{partition}"\n' if partition else ""
    return _TEMPLATE.format(
        kind=kind,
        partition=line,
        directive=directive,
        names=_NAMES.get(kind, ""),
        driver=_DRIVER_TEMPLATE if kind == "slurm" else "",
    )


# What the comments of the template show: a partition, an extra directive.
_EXAMPLES: Mapping[str, tuple[str, str]] = {
    "local": ("", ""),
    "slurm": ("normal", "--constraint=avx2"),
    "pbs": ("workq", "-l place=scatter"),
    "moab": ("batch", "-l feature=avx2"),
    "sge": ("all.q", "-l mem_free=2G"),
    "lsf": ("normal", "-x"),
    "oar": ("default", "-t besteffort"),
    "htcondor": ("", 'Requirements = (Arch == \\"X86_64\\")'),
}

# Names that a site may have changed.
_NAMES: Mapping[str, str] = {
    "sge": """\
# memory_resource = "h_vmem"         # what memory is asked for by; others are mem_free, m_mem_free.
#                                    # h_vmem counts addresses: 512 MiB are added to what is asked
# parallel_environment = "smp"       # if a class has cores > 1; `qconf -spl` lists them
""",
    "oar": '# memory_resource = "memcore"        # property that tells the memory of a core\n',
}

_DRIVER_TEMPLATE = """\
# What the driver's own job asks for, if it is submitted: alphasweep submit SWEEP --on THIS_FILE
[driver]
memory = "2 GB"
walltime = "24:00:00"          # it goes back into the queue before, until all is done

"""

_TEMPLATE = """\
# Where the workers of a sweep run: alphasweep run SWEEP --on THIS_FILE
# A job of the queue is one worker: one process that computes with one thread.

kind = "{kind}"
jobs = 20                      # at most this many jobs at once, all classes together
{partition}# account = "my-project"       # what the jobs are charged to

# Lines of shell before a worker starts. The Python must be the one that has alphasweep.
prologue = [
  # "module load python/3.11",
]
# python = "/path/to/bin/python"     # of the workers; the default is the driver's own

# local_directory = "/scratch/me"    # a fast disk of the node
# shared_directory = "/home/me/.alphasweep"  # private to you, and seen by every node; the
#                                    # default is beside the store. The run's certificates go there.
# interface = "ib0"                  # network of driver and workers
# extra_directives = ["{directive}"]
{names}# skip_directives = ["--mem="]       # header lines that this queue does not accept
# early_deaths = 5                   # so many jobs may die young before the run stops
# silent_worker = "3 min"            # a worker that says nothing for so long is replaced

{driver}\
# What a job asks for, by the size N of its parts; `alphasweep plan SWEEP --on THIS_FILE` says what
# they need. Memory and walltime have no default. Walltimes are whole minutes.
[[classes]]
name = "small"
up_to_N = 1024
memory = "2 GB"
walltime = "1:00:00"

[[classes]]
name = "large"
up_to_N = 8192
memory = "8 GB"
walltime = "8:00:00"
"""
