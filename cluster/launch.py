"""A Dask client, and what is behind it, inside a context manager."""

from __future__ import annotations

import asyncio
import hashlib
import math
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import dask
from distributed import Client
from distributed.core import Status
from distributed.security import Security

from alphasweep.cluster import certificates, gridengine, slurm
from alphasweep.cluster.admission import missing_interface
from alphasweep.cluster.fleet import Death, Fleet, QueueFleet
from alphasweep.cluster.local import ONE_THREAD, TICK_LIMIT, close, local, quiet
from alphasweep.cluster.profile import Profile, SizeClass
from alphasweep.cluster.pulse import Pulse
from alphasweep.cluster.queue import OVER, Answer, ClusterError, Queue, command, job_id

QUEUES: Mapping[str, Queue] = {"slurm": slurm, "sge": gridengine}
"""By the kind of a profile. Of another queue's jobs only those are known whose worker is there."""

WALLTIME_END = "ALPHASWEEP_WALLTIME_END"
"""Variable in the environment of a worker in a queue: when the walltime of its job ends, in
seconds since the epoch, by the clock of its node."""

_WORKER = ONE_THREAD | {
    "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": TICK_LIMIT,
    # Nothing is kept that could be spilled, and a paused worker would never go on: the queue
    # ends a job that needs too much.
    "DASK_DISTRIBUTED__WORKER__MEMORY__TARGET": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__SPILL": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False",
    # A worker looks at itself a hundred times a second, which nobody reads: 3 % of a core, and once
    # a second 0.3 %. Under Python 3.11 the profile can also freeze it (dask/distributed#8616).
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
}
_SCHEDULER = {
    "distributed.admin.tick.limit": TICK_LIMIT,
    "distributed.scheduler.allowed-failures": 20,  # a long sweep loses many workers to walltimes
    "distributed.scheduler.worker-ttl": None,  # `Pulse` does that
    "distributed.scheduler.worker-saturation": 1.0,  # a worker that dies has one part in hand
    "distributed.deploy.lost-worker-timeout": "1000d",  # jobs are replaced by `Cluster.check`
}
_CLUSTERS = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "moab": "MoabCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "oar": "OARCluster",
    "htcondor": "HTCondorCluster",
}
# What each queue prints when it accepts a job, see `job_id`.
_SUBMITTED = {
    "slurm": slurm.SUBMITTED,
    "pbs": r"(\d+)(?:\.\S+)?",
    "moab": r"(?:\w+\.)?(\d+)",
    "sge": r"Your job (\d+) \(.*\) has been submitted",
    "lsf": r"Job <(\d+)> is submitted to .*",
    "oar": r"OAR_JOB_ID=(\d+)",
    "htcondor": r"\d+ job\(s\) submitted to cluster (\d+)\.",
}
_COMMANDS = ThreadPoolExecutor(8, "queue")  # of its own, as connections need that of the loop
# Of a worker, libraries that it maps and addresses that it sets aside, beyond the memory it uses:
# 270 MB were measured, most of them addresses for the heap of each thread.
_ADDRESSES = 512 * 2**20
_POLL_SECONDS = 3.0  # between two looks at the queue
_ENDS_AT_ONCE = 50  # jobs that the queue is asked about in one look: each takes a command
_CLOSE_SECONDS = 60.0
_RECORD = "queue"  # in the directory of a run: the kind of the queue that has its jobs


class Cluster:
    """The workers of one run, by size class. `launch` makes it."""

    def __init__(
        self, fleets: Mapping[str, Fleet], *, queue: Queue | None = None, prefix: str = ""
    ) -> None:
        self._fleets, self._queue, self._prefix = fleets, queue, prefix
        self._next = 0.0
        # The queue is asked beside the driver's own work: it may take its time.
        self._asker = ThreadPoolExecutor(1, "ask")
        self._asking: Future[Answer] | None = None
        self._answered = time.monotonic()
        self._strangers: set[str] = set()

    @property
    def deaths(self) -> list[Death]:
        """Jobs that ended although they were wanted, as far as `check` has seen, by class."""
        return [death for fleet in self._fleets.values() for death in fleet.deaths]

    @property
    def dashboards(self) -> dict[str, str]:
        """Web pages by class. They listen on loopback of this machine only."""
        servers: dict[str, Any] = {n: f.scheduler.http_server for n, f in self._fleets.items()}
        return {name: f"http://127.0.0.1:{server.port}/status" for name, server in servers.items()}

    def client(self, size_class: str) -> Client:
        """Return the client whose tasks run on this class."""
        return self._fleets[size_class].client

    def workers(self, size_class: str) -> int:
        """Return how many workers of this class are there now."""
        return len(self._fleets[size_class].scheduler.workers)

    def wait(self, size_class: str, *, workers: int = 1) -> None:
        """Wait until so many workers of a class are there, however long the queue takes.

        Raises what `check` raises.
        """
        while self.workers(size_class) < workers:
            self.check()
            time.sleep(0.1)

    def check(self) -> None:
        """Replace jobs that are gone. To be called every second or so; most calls do nothing.

        A job is gone when it ended, when the queue refused it, or when its worker left and did not
        come back; but not while its worker is connected, whatever the queue says. The queue is
        asked in another thread. While it does not answer, nothing is done.

        Raises
        ------
        ClusterError
            If as many jobs of a class died young as the profile's `early_deaths`: before their
            worker joined, or within a minute and with no task finished, and not because they were
            cancelled, preempted, or on a node that failed. A job that ends later and finished
            something makes up for one. Also if a class has no job, and the queue refused as many
            attempts in a row.
        """
        now = time.monotonic()
        if self._asking and self._asking.done():
            asking, self._asking = self._asking, None
            try:
                answer = asking.result()
            except ClusterError:
                return
            self._answered = answer.asked
            for fleet in self._fleets.values():
                fleet.supervise(answer)
        elif not self._asking and now >= self._next:
            self._next = now + _POLL_SECONDS
            if self._queue:
                self._asking = self._asker.submit(self._ask, self._queue)
                return
            for fleet in self._fleets.values():
                fleet.supervise(None)

    def _ask(self, queue: Queue) -> Answer:
        asked, fleets = time.monotonic(), self._fleets.values()
        settled = not any(fleet.submitting for fleet in fleets)
        jobs = queue.jobs(self._prefix)
        # The queue may accept a job, and its command fail for all that.
        strangers = {job for job in jobs if not any(fleet.knows(job) for fleet in fleets)}
        if settled:
            queue.cancel(strangers & self._strangers)
        self._strangers = strangers if settled else set()
        doubtful = [job for fleet in fleets for job in fleet.doubtful(jobs)]
        return Answer(asked, jobs, {job: queue.ended(job) for job in doubtful[:_ENDS_AT_ONCE]})

    def state(self) -> dict[str, dict[str, Any]]:
        """Say how each class is, as of the last `check`.

        Returns
        -------
        dict
            By class: ``wanted``, ``pending`` and ``running`` jobs; ``reasons`` why jobs are
            pending, in the queue's words, with their numbers; ``workers``; jobs that ``died``;
            ``core_seconds`` that jobs have held so far, to a few seconds a job; and the
            ``answer_age`` of what the queue said last, in seconds.
        """
        age = time.monotonic() - self._answered if self._queue else 0.0
        return {name: fleet.state() | {"answer_age": age} for name, fleet in self._fleets.items()}

    def want(self, size_class: str, jobs: int) -> None:
        """Have another number of jobs of a class from the next `check` on.

        Of too many jobs, those that still wait are withdrawn, and workers that have nothing to do
        are ended; the others work on, and are not replaced. On this machine alone the number of
        workers stays.
        """
        self._fleets[size_class].jobs = jobs

    def retire(self, worker: str) -> None:
        """Give a worker nothing more to do, and end its job when it has finished what it has.

        The job is replaced.

        Parameters
        ----------
        worker : str
            Its address; one that is gone already is no error.
        """
        for fleet in self._fleets.values():
            if worker in fleet.scheduler.workers:
                fleet.retire(worker)


@contextmanager
def launch(
    profile: Profile,
    jobs: Mapping[str, int],
    *,
    run_directory: Path,
    token: str,
    check: Callable[[], object] = lambda: None,
) -> Iterator[Cluster]:
    """Start workers of each size class, as the profile says, for as long as the body runs.

    On leaving, however that happens, every job of this launch is cancelled, also those that wait
    in the queue, and its certificates are removed. What other launches left of either in the same
    directory is removed on entering.

    Parameters
    ----------
    profile : Profile
        Where, and what a job of each class asks for.
    jobs : mapping of str to int
        How many jobs of each class, by its name; a job is one worker.
    run_directory : Path
        A directory of this store alone, for logs and certificates, seen by every node. Only one
        launch at a time may use it: whoever holds the lock of the store.
    token : str
        Letters and digits of this launch alone: jobs, certificates and logs have it in their names.
    check : callable
        Raises a RuntimeError once another launch may use the directory. Called from any thread,
        before what other launches left is removed, and before each job is submitted.

    Raises
    ------
    ClusterError
        If this machine has no such queue or no such network interface, if the profile allows fewer
        jobs, or if the path cannot be used; also from the end, if jobs could not be cancelled.
    """
    sizes = {size.name: size for size in profile.classes}
    if (number := sum(jobs.values())) > profile.jobs:
        raise ClusterError(
            f"a run may have jobs = {profile.jobs} at once, by its profile; {number} were asked "
            "for: ask for fewer, or change the profile."
        )
    with ExitStack() as stack:
        if profile.kind == "local":

            def workers(number: int) -> Client:
                return stack.enter_context(local(number, silent=profile.silent_worker))

            yield Cluster({size: Fleet(sizes[size], n, workers(n)) for size, n in jobs.items()})
            return
        if problem := missing_interface(profile):
            raise ClusterError(problem)
        directory = _usable(run_directory)
        queue, name = QUEUES.get(profile.kind), job_name(directory, token)
        check()
        if queue:
            # A job that does not go, as on a node that is lost, is not to keep the others waiting.
            _cancelled(queue, job_name(directory), check)
            stack.callback(_end_jobs, queue, name)
        record_queue(directory, profile.kind)
        place = profile.shared_directory or directory
        certificates.remove(place, job_name(directory), check)
        if profile.tls:
            security = stack.enter_context(certificates.made(place, name))
        else:
            security = None
            warnings.warn(
                "tls = false in the profile: anyone who can reach a port of the driver or of a "
                "worker can read the traffic, and run programs as you.",
                stacklevel=3,
            )
        stack.enter_context(dask.config.set(_SCHEDULER))
        stack.enter_context(quiet())
        fleets = {
            size: stack.enter_context(
                _fleet(profile, sizes[size], n, directory, name, security, check)
            )
            for size, n in jobs.items()
        }
        if queue:
            # Dask, which ends one worker after the other, has less to do then.
            stack.callback(lambda: queue.cancel(queue.jobs(name)))
        yield Cluster(fleets, queue=queue, prefix=name)


def record_queue(run_directory: Path, kind: str) -> None:
    """Note which queue has the jobs of a run, for `queue_of`."""
    run_directory.mkdir(parents=True, exist_ok=True)
    new = run_directory / f"{_RECORD}.new"
    new.write_text(kind)
    new.replace(run_directory / _RECORD)


def queue_of(run_directory: Path) -> Queue | None:
    """Return the queue that has the jobs of a run; None if none has, or cannot be asked.

    No other is to be asked: that its commands are installed does not mean that it answers.
    """
    try:
        kind = (run_directory / _RECORD).read_text()
    except FileNotFoundError:
        # Of a version that kept no note; there only the jobs of SLURM were known.
        return slurm if (run_directory / "logs").exists() and shutil.which("squeue") else None
    return QUEUES.get(kind)


def end(
    run_directory: Path, *, queue: Queue | None, check: Callable[[], object] = lambda: None
) -> None:
    """Remove what drivers that are gone left: jobs, also those of the next driver; certificates.

    Certificates in a `shared_directory` are removed by the next `launch`. For `check` see there.
    """
    directory = run_directory.resolve()
    if queue:
        _end_jobs(queue, driver_name(directory), check)
        _end_jobs(queue, job_name(directory), check)
    certificates.remove(directory, job_name(directory), check)


def job_name(run_directory: Path, token: str = "") -> str:
    """Return the name of the worker jobs of a launch; without its token, how those of all begin."""
    name = f"alphasweep-{_digest(run_directory)}"
    return f"{name}-{token}" if token else name


def driver_name(run_directory: Path) -> str:
    """Return the name of the driver's job, which does not begin like that of its workers."""
    return f"alphasweep-driver-{_digest(run_directory)}"


def _digest(run_directory: Path) -> str:
    return hashlib.sha256(str(run_directory.resolve()).encode()).hexdigest()[:12]


def job_script(profile: Profile, size: SizeClass, *, run_directory: Path) -> str:
    """Return the script of a job, with placeholders for what only a launch knows.

    Parameters
    ----------
    profile : Profile
        Of a queue; its kind is not "local".
    """
    directory = run_directory.resolve()
    name = job_name(directory, "TOKEN")
    settings = _settings(profile, size, directory, name)
    protocol = "tls" if profile.tls else "tcp"
    if profile.tls:
        place = profile.shared_directory or directory
        settings |= {"security": certificates.named(place, name), "protocol": "tls://"}
    # dask-jobqueue makes the folder of the logs as soon as it hears of it.
    with tempfile.TemporaryDirectory() as scratch:
        logs = settings.pop("log_directory")
        job = _job_class(profile)(
            f"{protocol}://DRIVER:PORT", name="NAME", log_directory=scratch, **settings
        )
        script: str = job.job_script()
    return script.replace(scratch, logs)


@contextmanager
def _fleet(
    profile: Profile,
    size: SizeClass,
    jobs: int,
    directory: Path,
    name: str,
    security: Security | None,
    check: Callable[[], object],
) -> Iterator[QueueFleet]:
    submitting: set[str] = set()
    submitted: dict[str, str] = {}
    refused: dict[str, str] = {}
    number = count()

    class Job(_job_class(profile)):  # type: ignore[misc]
        """Says which job is whose, and takes a refusal for an answer instead of raising it."""

        async def start(self) -> None:
            submitting.add(self.name)
            try:
                # Not in the event loop: a network file system may be slow to answer.
                await asyncio.to_thread(check)
                await super().start()
            except (RuntimeError, ValueError, OSError) as error:
                refused[self.name] = str(error)
                self.status = Status.running
            else:
                submitted[self.job_id] = self.name
            finally:
                submitting.discard(self.name)

    class Jobs(_dask_jobqueue().JobQueueCluster):  # type: ignore[misc]
        """Gives no name twice, so that a new job is never taken for the one it replaces."""

        def _new_worker_name(self, worker_number: int) -> str:
            return f"{name}-{size.name}-{next(number)}"

    cluster = Jobs(
        job_cls=Job,
        security=security,
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
        **_settings(profile, size, directory, name),
    )
    try:
        client = Client(cluster)
        Pulse(cluster.scheduler, profile.silent_worker)
        try:
            yield QueueFleet(
                size,
                jobs,
                client,
                early_deaths=profile.early_deaths,
                logs=directory / "logs",
                submitting=submitting,
                submitted=submitted,
                refused=refused,
            )
        finally:
            close(client)
    finally:
        close(cluster)


def _settings(profile: Profile, size: SizeClass, directory: Path, name: str) -> dict[str, Any]:
    """Say to dask-jobqueue what a job needs; each queue has words of its own for it."""
    kind = profile.kind
    hours, minutes = divmod(size.walltime // 60, 60)
    settings: dict[str, Any] = {
        "job_name": name,
        "log_directory": str(directory / "logs"),
        # In the place of the shell: else the shell dies first of a cancelled job, and a queue that
        # follows parents loses sight of the worker.
        "python": f"exec {profile.python} -P",  # nothing of the working directory is imported
        "cores": size.cores,
        "memory": f"{size.memory} B",
        "processes": 1,  # with more, dask-jobqueue loses count of jobs
        "nanny": False,  # a job is one process: if it dies, the job does, and is replaced
        "interface": profile.interface,
        "local_directory": str(profile.local_directory) if profile.local_directory else None,
        "death_timeout": 60,
        "job_script_prologue": [
            # First of all, when the job has just begun; in backticks, as HTCondor expands $().
            f"export {WALLTIME_END}=`date -d +{size.walltime}sec +%s`",
            *profile.prologue,
            *(f"export {name}={value}" for name, value in _WORKER.items()),
        ],
        # A worker's own web page is not covered by TLS.
        "worker_extra_args": ["--nthreads", "1", "--dashboard-address", "127.0.0.1:0"],
        "job_directives_skip": list(profile.skip_directives),
        "job_extra_directives": list(profile.extra_directives),
    }
    if kind == "htcondor":
        over = f"JobStatus == 2 && time() - EnteredCurrentStatus > {size.walltime}"
        own = {"periodic_remove": over}
        if profile.account:
            own["accounting_group"] = profile.account
        pairs = (line.split("=", 1) for line in profile.extra_directives)
        settings["job_extra_directives"] = own | {k.strip(): v.strip() for k, v in pairs}
        settings["disk"] = "1 GB"
        return settings
    seconds = "" if kind == "lsf" else ":00"
    settings["walltime"] = f"{hours:02}:{minutes:02}{seconds}"
    settings["queue"] = profile.partition
    settings["project" if kind in ("sge", "lsf", "oar") else "account"] = profile.account
    if kind == "slurm":
        # A job that SLURM starts again behind our back is one too many.
        settings["job_extra_directives"].insert(0, "--no-requeue")
    elif kind == "moab":
        # The words of Torque; dask-jobqueue has those of PBS Pro, which Moab does not know.
        settings["resource_spec"] = f"nodes=1:ppn={size.cores},mem={_mebibytes(size.memory)}mb"
    elif kind == "oar":
        unwanted = any(text in f"-p {profile.memory_name}>=" for text in profile.skip_directives)
        settings["memory_per_core_property_name"] = (
            "not_applicable" if unwanted else profile.memory_name
        )
    elif kind == "sge":
        settings["job_extra_directives"][:0] = _gridengine_directives(profile, size)
    return settings


def _gridengine_directives(profile: Profile, size: SizeClass) -> list[str]:
    """What dask-jobqueue leaves out: memory, cores, that bash reads the script, and only once."""
    memory = size.memory
    if profile.memory_name.endswith("_vmem"):
        memory += _ADDRESSES
    wanted = [
        "-r n",
        "-S /bin/bash",
        # Grid Engine counts it for each core.
        f"-l {profile.memory_name}={_mebibytes(memory / size.cores)}M",
        *([f"-pe {profile.parallel_environment} {size.cores}"] if size.cores > 1 else []),
    ]
    return [one for one in wanted if not any(text in one for text in profile.skip_directives)]


def _mebibytes(number: float) -> int:
    return math.ceil(number / 2**20)


def _job_class(profile: Profile) -> type[Any]:
    base: Any = getattr(_dask_jobqueue(), _CLUSTERS[profile.kind]).job_cls

    class Job(base):  # type: ignore[misc]
        """Its commands have a limit, and only what is sure to be the id of a job is taken for it.

        dask-jobqueue waits for ever, and takes the first digits that are printed.
        """

        if profile.kind == "slurm":
            submit_command = f"{base.submit_command} --parsable"

        @staticmethod
        async def _call(words: list[str], *, shell: bool = False) -> str:
            words = ["/bin/sh", "-c", *words] if shell else words
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(_COMMANDS, command, *words)

        def _job_id_from_submit_output(self, printed: str) -> str:
            found = job_id(_SUBMITTED[profile.kind], printed)
            return f"{found}.0" if profile.kind == "htcondor" else found

    return Job


def _dask_jobqueue() -> ModuleType:
    """Import it without the SIGINT handler that it installs, which exits with 0.

    Outside the main thread, where no handler can be installed, its import would fail.
    """
    with patch.object(signal, "signal"):
        import dask_jobqueue
    return dask_jobqueue


def _usable(directory: Path) -> Path:
    directory = directory.resolve()
    if any(letter.isspace() for letter in str(directory)):
        raise ClusterError(
            f"the path of a run in a queue must have no blanks, which job scripts cannot quote; "
            f"got {directory}: choose another store."
        )
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _end_jobs(queue: Queue, prefix: str, check: Callable[[], object] = lambda: None) -> None:
    """Cancel what is left, and make sure that the queue has nothing that runs or waits."""
    if jobs := _cancelled(queue, prefix, check):
        raise ClusterError(
            f"all jobs of the run must be gone from the queue; still there: {', '.join(jobs)}: "
            "cancel them."
        )


def _cancelled(queue: Queue, prefix: str, check: Callable[[], object]) -> list[str]:
    """Cancel jobs, wait until none of them runs or waits, and return those that do not go."""
    until = time.monotonic() + _CLOSE_SECONDS
    cancelled: set[str] = set()
    while True:
        listed = queue.jobs(prefix).items()
        jobs = [job for job, shown in listed if shown.state != "COMPLETING"]
        # What lists jobs may be a cache, and tell of those that have long been over.
        jobs = [j for j in jobs if j not in cancelled or queue.ended(j).state not in OVER]
        if not jobs or time.monotonic() > until:
            return jobs
        check()  # ours still, so it was when these were listed: none is of who took over
        queue.cancel(jobs)
        cancelled.update(jobs)
        time.sleep(0.2)
