"""Whether this machine and the queue would take a run's jobs: asked before any is submitted."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import psutil

from alphasweep.cluster import slurm
from alphasweep.cluster.profile import Profile
from alphasweep.cluster.queue import ClusterError, Outlook


def missing_interface(profile: Profile) -> str:
    """Say that this machine has not the network interface of the profile; "" if it has.

    A driver that is submitted runs on another machine, which may have it.
    """
    there = {
        name: [each.address for each in addresses if each.family == socket.AF_INET]
        for name, addresses in psutil.net_if_addrs().items()
    }
    if profile.interface is None or there.get(profile.interface):
        return ""
    usable = ", ".join(f"{name} ({', '.join(ip)})" for name, ip in there.items() if ip)
    what = "has no IPv4 address" if profile.interface in there else "does not exist"
    return (
        f"interface of the profile must be a network of this machine, {socket.gethostname()}, and "
        f"of the nodes, with an IPv4 address; {profile.interface} {what}. Here are: {usable}. Name "
        "one of them, or leave interface out."
    )


def outlooks(profile: Profile, scripts: Mapping[str, str]) -> dict[str, Outlook]:
    """Ask the queue of a profile whether it could ever run some jobs, without submitting them.

    Other queues than SLURM have no such question. One that does not answer is asked no more.

    Parameters
    ----------
    profile : Profile
    scripts : mapping of str to str
        The scripts of the jobs, by what they are for.
    """
    found: dict[str, Outlook] = {}
    if profile.kind == "slurm":
        for name, script in scripts.items():
            try:
                found[name] = slurm.outlook(script)
            except ClusterError as error:
                found[name] = Outlook(doubt=f"whether it could run is not known: {error}")
                break
    return found
