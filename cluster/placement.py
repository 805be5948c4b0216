"""Which class of a profile computes which sizes N, and with how many jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alphasweep.cluster.admission import missing_interface, outlooks
from alphasweep.cluster.launch import job_script
from alphasweep.cluster.profile import Profile, ProfileError, SizeClass


@dataclass(frozen=True)
class Need:
    """What the parts of one size need.

    Attributes
    ----------
    parts : int
        How many there are, >= 1.
    seconds, longest : float
        Core-seconds of all of them, and how long one may take.
    memory : float
        Of a worker, in bytes.
    """

    parts: int
    seconds: float
    longest: float
    memory: float


@dataclass(frozen=True)
class Misfit:
    """A key of a class that is too small for a size; bytes, or seconds."""

    size_class: str
    key: Literal["memory", "walltime"]
    N: int
    need: float
    given: float


class Placement:
    """Each size in the smallest class whose ``up_to_N`` holds it.

    Parameters
    ----------
    profile : Profile
    needs : mapping of int to Need
        By N.

    Attributes
    ----------
    sizes : dict of str to list of int
        The N of each class in use.
    misfits : list of Misfit
        What does not fit all the same.

    Raises
    ------
    ProfileError
        If there is no class for a size.
    """

    def __init__(self, profile: Profile, needs: Mapping[int, Need]) -> None:
        self.profile, self._needs = profile, needs
        self.sizes: dict[str, list[int]] = {}
        self.misfits: list[Misfit] = []
        for N, need in needs.items():
            size = profile.class_for(N)
            self.sizes.setdefault(size.name, []).append(N)
            if need.memory > size.memory:
                self.misfits.append(Misfit(size.name, "memory", N, need.memory, size.memory))
            if need.longest > size.walltime:
                self.misfits.append(Misfit(size.name, "walltime", N, need.longest, size.walltime))

    @property
    def classes(self) -> list[SizeClass]:
        """The classes in use, ascending in size."""
        return [size for size in self.profile.classes if size.name in self.sizes]

    @property
    def jobs(self) -> dict[str, int]:
        """How many jobs each class starts with: as its share of the work, at least one."""
        needs = {name: [self._needs[N] for N in sizes] for name, sizes in self.sizes.items()}
        seconds = {name: sum(need.seconds for need in each) for name, each in needs.items()}
        parts = {name: sum(need.parts for need in each) for name, each in needs.items()}
        free = self.profile.jobs - len(seconds)
        shares = {name: int(free * s / sum(seconds.values())) for name, s in seconds.items()}
        return {name: min(1 + share, parts[name]) for name, share in shares.items()}

    @property
    def reserve(self) -> dict[str, int]:
        """The class above those in use, if there is one: for parts that need too much memory."""
        used = [k for k, size in enumerate(self.profile.classes) if size.name in self.sizes]
        return {size.name: 0 for size in self.profile.classes[used[-1] + 1 :][:1]}

    def ask(
        self, where: Path, *, run_directory: Path, driver: str = "", here: bool = True
    ) -> list[str]:
        """Ask this machine and the queue whether they would run the jobs; return their doubts.

        Parameters
        ----------
        where : Path
            The file of the profile, to be named.
        run_directory : Path
            See `launch.launch`.
        driver : str
            The script of the driver's own job, if it is to have one.
        here : bool
            Whether the driver runs on this machine.

        Raises
        ------
        ProfileError
            If some would never run; each is named.
        """
        if self.profile.kind == "local":
            return []
        scripts = {
            f"class {size.name}": job_script(self.profile, size, run_directory=run_directory)
            for size in self.classes
        }
        found = outlooks(self.profile, scripts | ({"[driver]": driver} if driver else {}))
        missing = missing_interface(self.profile)
        file = f"profile file {where}"
        doubts = [f"{file}, {what}: {one.doubt}" for what, one in found.items() if one.doubt]
        refused = [f"{file}, {what}: {one.refusal}" for what, one in found.items() if one.refusal]
        if missing:
            (refused if here else doubts).append(missing)
        if refused:
            raise ProfileError(refused)
        return doubts
