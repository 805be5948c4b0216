"""The driver itself as a batch job of SLURM, which goes back into the queue before its walltime.

A driver on a login node ends with the session, or with the patience of the administrators.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from alphasweep.cluster import slurm
from alphasweep.cluster.profile import Profile
from alphasweep.cluster.queue import ClusterError, command, job_id

REQUEUE_STATUS = 75
"""With this exit status (EX_TEMPFAIL) a driver says that there is more to do."""


def driver_script(
    profile: Profile,
    driver: list[str],
    *,
    log: Path,
    record: Path,
    job_name: str,
    notice: int = 120,
) -> str:
    """Return the batch script that runs a driver, again and again until it is through.

    Before its walltime, or when it is preempted, the driver gets SIGUSR1. If it then ends with
    `REQUEUE_STATUS`, the job goes back into the queue and the same command runs again; it has to
    resume. Where SLURM does not requeue jobs, another job of the same name and script goes on after
    this one. With any other status the job is over. SIGTERM is forwarded too.

    Parameters
    ----------
    profile : Profile
        Of kind "slurm", with a [driver]: partition, account, prologue, and directives are those of
        the workers.
    driver : list of str
        The driver and its arguments.
    log : Path
        Of all generations of the job, one after the other.
    record : Path
        A file for the id of the job that goes on, if it is another one.
    job_name : str
        Of the driver of this run alone, see `launch.driver_name`.
    notice : int
        Seconds before its walltime at which the driver is told, at most a quarter of it; SLURM may
        do so a minute earlier.

    Raises
    ------
    ClusterError
        If the profile is of another queue, or has no [driver].
    """
    if profile.kind != "slurm":
        raise ClusterError(
            f'the driver can be a job of SLURM only; the profile has kind = "{profile.kind}": use '
            "`alphasweep run` on a machine that stays up."
        )
    if profile.driver is None:
        raise ClusterError(
            "a profile must have a [driver] with the memory and walltime of the driver's own job; "
            "got none: add it, as in the file that `alphasweep init --cluster slurm` writes."
        )
    walltime, memory = profile.driver.walltime, profile.driver.memory
    directives = [
        f"-J {job_name}",
        f"-o {log}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{min(notice, walltime // 4)}",
        f"-t {walltime // 60}",
        f"--mem={-(-memory // 2**20)}M",
        "-n 1",
        *([f"-p {profile.partition}"] if profile.partition else []),
        *([f"-A {profile.account}"] if profile.account else []),
    ]
    kept = [d for d in directives if not any(text in d for text in profile.skip_directives)]
    header = "\n".join(f"#SBATCH {d}" for d in [*kept, *profile.extra_directives])
    prologue = "\n".join(profile.prologue)
    return _SCRIPT.format(
        header=header,
        prologue=prologue,
        command=shlex.join(driver),
        again=REQUEUE_STATUS,
        name=job_name,
        record=shlex.quote(str(record)),
    )


# The shell waits in `wait`, which a signal interrupts; the last one tells how the driver ended.
# Some sites let SLURM's commands print notices, too: an id has a mark, or a line of its own.
_SCRIPT = """\
#!/usr/bin/env bash
{header}
{prologue}
trap 'kill -USR1 $!' USR1
trap 'kill -TERM $! || exit 143' TERM
{command} &
driver=$!
while kill -0 $driver 2>/dev/null; do wait $driver; done
wait $driver
status=$?
if [ $status -ne {again} ]; then exit $status; fi
# Where jobs are not requeued, another goes on after this one. If there is one already, an answer of
# sbatch was lost.
hand_over() {{
  next=$(squeue -h -u $(id -u) -n {name} -t PD,R -o job=%A | sed -n 's/^job=//p' |
    grep -vx $SLURM_JOB_ID | tail -n 1)
  [ "$next" ] || next=$(sbatch --parsable --dependency=afterany:$SLURM_JOB_ID "$0" |
    grep -xE '[0-9]+(;.*)?' | tail -n 1)
  next=${{next%%;*}}
  [ "$next" ] || return 1
  echo $next >{record}.new && mv {record}.new {record}
  echo "alphasweep: SLURM does not put this job back into the queue: job $next goes on after it."
}}
# SLURM's controller may be busy or away for a moment; the walltime is the limit.
until scontrol requeue $SLURM_JOB_ID || hand_over; do sleep 5; done
"""


def submit(script: str) -> str:
    """Submit a batch script, and return the id of its job.

    Raises
    ------
    ClusterError
        If there is no sbatch, if it refuses, or if it does not say the id.
    """
    return job_id(slurm.SUBMITTED, command("sbatch", "--parsable", script=script))
