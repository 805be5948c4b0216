"""Workers as jobs of a real SLURM: they come, they are replaced, and nothing of them stays."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from secrets import token_hex
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import pytest
from distributed.security import Security

from alphasweep.cluster import queue
from alphasweep.cluster.fleet import Death, QueueFleet
from alphasweep.cluster.launch import (
    QUEUES,
    WALLTIME_END,
    Cluster,
    ClusterError,
    end,
    job_name,
    launch,
)
from alphasweep.cluster.preflight import preflight, versions
from alphasweep.cluster.profile import Profile
from tests.slurm.conftest import Slurm, profile, until

ROOT = Path(__file__).parents[2]
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def supervised(cluster: Cluster, condition: Callable[[], Any], *, what: str) -> Any:
    """Wait for a condition as a driver does, which calls `check` meanwhile."""

    def found() -> Any:
        cluster.check()
        return condition()

    return until(found, seconds=180, what=what)


def workers(cluster: Cluster) -> dict[str, str]:
    """Return the jobs of the workers that are there, by address."""
    client = cluster.client("one")
    found: dict[str, str] = client.run(os.getenv, "SLURM_JOB_ID", on_error="ignore")
    return found


def come(cluster: Cluster, *, workers: int = 1) -> None:
    """Wait, but not for ever, until so many workers are there."""
    supervised(cluster, lambda: cluster.workers("one") >= workers, what=f"{workers} workers")


def busy(cluster: Cluster) -> str:
    """Wait until a worker has a task, and return its address."""
    processing = cluster.client("one").processing

    def found() -> str | None:
        return next((worker for worker, keys in processing().items() if keys), None)

    address: str = until(found, what="a worker at work")
    return address


def gate(file: Path) -> Callable[[], str | None]:
    """Return a task that tells its job when there is such a file; workers know no test modules."""

    def task() -> str | None:
        while not file.exists():
            time.sleep(0.05)
        return os.getenv("SLURM_JOB_ID")

    return task


def replaced(cluster: Cluster, lost: str) -> None:
    """Wait until the class has two workers, and none of them is the lost job's."""
    supervised(
        cluster,
        lambda: len(there := workers(cluster)) == 2 and lost not in there.values(),
        what=f"a worker in the place of job {lost}",
    )


def verdict(cluster: Cluster, lost: str) -> Death:
    """Wait until the queue knows how a job ended."""
    found: Death = supervised(
        cluster,
        lambda: next((death for death in cluster.deaths if death.job == lost), None),
        what=f"the end of job {lost}",
    )
    return found


@contextmanager
def launched(slurm: Slurm, run: Path, one: Profile, jobs: int = 2) -> Iterator[Cluster]:
    """Launch, and on leaving claim that nothing stays: no job, no certificate, no process."""
    name = job_name(run)
    seen: set[str] = set()
    try:
        with launch(one, {"one": jobs}, run_directory=run, token=token_hex(4)) as cluster:
            try:
                yield cluster
            finally:
                seen.update(slurm.jobs(name=name))
    finally:
        assert not slurm.jobs(name=name, state="RUNNING")
        assert not slurm.jobs(name=name, state="PENDING")
        assert not list(run.glob("certificates-*"))
        until(
            lambda: not any(slurm.processes(job) for job in seen),
            what="the end of all processes",
        )
        until(lambda: not slurm.jobs(name=name), what="an empty queue")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of `pair`."""
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def pair(slurm: Slurm, run: Path) -> Iterator[Cluster]:
    """Launch two workers, which the tests of faults wear out in turn."""
    with launched(slurm, run, profile()) as cluster:
        cluster.wait("one", workers=2)
        yield cluster


def test_a_worker_is_one_thread_that_knows_its_end(pair: Cluster, slurm: Slurm) -> None:
    """A job is a worker with one thread, one BLAS thread, and the end of its walltime in sight."""
    client = pair.client("one")
    state = pair.state()["one"]
    assert (state["wanted"], state["workers"]) == (2, 2)
    assert set(client.nthreads().values()) == {1}
    for name in ONE_THREAD:
        assert set(client.run(os.getenv, name).values()) == {"1"}
    for address, job in workers(pair).items():
        (ends,) = client.run(os.getenv, WALLTIME_END, workers=[address]).values()
        end = datetime.fromisoformat(slurm.shows(job)["EndTime"]).timestamp()
        assert end <= float(ends) < end + 60  # a moment later, as the script has to start


def test_cancelled_job(pair: Cluster, slurm: Slurm, tmp_path: Path) -> None:
    """A job that someone cancels is replaced, its task is done elsewhere, and nobody is blamed."""
    task = pair.client("one").submit(gate(tmp_path / "open"), key="task")
    address = busy(pair)
    lost = workers(pair)[address]
    slurm.do("scancel", lost)
    replaced(pair, lost)
    death = verdict(pair, lost)
    assert (death.state, death.young) == ("CANCELLED", False)
    assert (death.worker, death.tasks) == (address, ("task",))
    (tmp_path / "open").touch()
    assert task.result(timeout=120) != lost


def test_killed_worker(pair: Cluster, slurm: Slurm) -> None:
    """A job whose worker is killed is replaced."""
    pids: dict[str, int] = pair.client("one").run(os.getpid)
    address, pid = next(iter(pids.items()))
    lost = workers(pair)[address]
    os.kill(pid, signal.SIGKILL)
    replaced(pair, lost)
    assert verdict(pair, lost).exit_code == "0:9"


def test_retired_worker(pair: Cluster, tmp_path: Path) -> None:
    """A worker that is retired finishes what it has and is replaced, and that is no death."""
    before = len(pair.deaths)
    client = pair.client("one")
    tasks = [client.submit(os.getenv, "SLURM_JOB_ID", pure=False) for _ in range(2)]
    client.gather(tasks)
    slow = client.submit(gate(tmp_path / "open"), pure=False)
    address = busy(pair)
    lost = workers(pair)[address]
    pair.retire(address)
    (tmp_path / "open").touch()
    assert slow.result(timeout=120) == lost
    del slow, tasks
    replaced(pair, lost)
    assert len(pair.deaths) == before


def greeting(address: str, context: ssl.SSLContext | None) -> bytes:
    """Connect to a server of Dask, and return what it says first; b"" if it hangs up."""
    host, port = address.removeprefix("tls://").rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=60) as plain:
            if context is None:
                plain.sendall(bytes(64))
                answer = plain.recv(100)
                return b"" if answer.startswith(b"\x15\x03") else answer  # an alert of TLS
            with context.wrap_socket(plain) as encrypted:
                return encrypted.recv(100)
    except (ssl.SSLError, ConnectionError):
        return b""


def client_context(certificate: Path | None = None) -> ssl.SSLContext:
    """Return a client that trusts every server and shows a certificate, if it has one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate:
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


def test_only_the_run_can_connect(pair: Cluster, run: Path, tmp_path: Path) -> None:
    """Scheduler and workers talk to the run's certificate, and hang up on all else.

    All else: no certificate, a certificate of another run, and a connection without TLS.
    """
    foreign = Security.temporary()
    (tmp_path / "cert.pem").write_text(foreign.tls_client_cert)
    (tmp_path / "key.pem").write_text(foreign.tls_client_key)
    (own,) = run.glob("certificates-*")
    client = pair.client("one")
    for address in (client.scheduler.address, *client.nthreads()):
        assert greeting(address, client_context(own))
        assert not greeting(address, client_context())
        assert not greeting(address, client_context(tmp_path))
        assert not greeting(address, None)


def test_certificates_are_private(run: Path, pair: Cluster) -> None:
    """Nobody else can look into the folder of the certificates, or read the key."""
    (folder,) = run.glob("certificates-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_web_pages_on_loopback(pair: Cluster) -> None:
    """The web pages of scheduler and workers, which TLS does not cover, listen on loopback only."""
    client = pair.client("one")
    host, _ = client.scheduler.address.removeprefix("tls://").rsplit(":", 1)
    ports = client.run(lambda dask_worker: dask_worker.http_server.port)
    for port in (urlsplit(pair.dashboards["one"]).port, *ports.values()):
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), timeout=60)


def test_preflight_finds_nothing(pair: Cluster, run: Path) -> None:
    """A worker of the same environment on a shared disk passes, and no token stays there."""
    client = pair.client("one")
    same = versions(["numpy", "dask", "distributed"])
    assert preflight(client, expected=same, files=["alphasweep.cluster"], token_directory=run) == []
    assert not list(run.glob(".preflight*"))


def test_dead_node(pair: Cluster, slurm: Slurm) -> None:
    """The worker of a node that loses its power is replaced on another node, without blame."""
    address, lost = next(iter(workers(pair).items()))
    node = slurm.shows(lost)["NodeList"]
    slurm.admin("kill-node", node)
    try:
        replaced(pair, lost)
        death = verdict(pair, lost)
        assert (death.worker, death.young) == (address, False)
        assert node not in {slurm.shows(job)["NodeList"] for job in workers(pair).values()}
    finally:
        slurm.admin("revive-node", node)


LATE = 12
"""Seconds; four looks at the queue."""


def test_a_queue_seen_through_a_cache(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that a late list does not show are kept, and one that it still shows is replaced."""
    kept = tmp_path / "kept"
    kept.mkdir()
    late = f"""
        case "$*" in *alphasweep*) ;; *) exec $REAL "$@" ;; esac
        cd {kept}; now=$(date +%s); last=/dev/null
        $REAL "$@" >$now
        for at in *; do [ $at -le $((now - {LATE})) ] && last=$at; done
        cat $last
    """
    slurm.write(tmp_path / "bin", "squeue", late, monkeypatch)
    first = int(slurm.do("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "true"))
    with launched(slurm, tmp_path, profile()) as cluster:
        come(cluster, workers=2)
        end = time.monotonic() + 2 * LATE
        while time.monotonic() < end:
            cluster.check()
            time.sleep(0.1)
        assert cluster.deaths == []
        assert max(map(int, slurm.jobs())) - first == 2, "jobs were submitted anew"
        lost = next(iter(workers(cluster).values()))
        slurm.do("scancel", lost)
        replaced(cluster, lost)
        assert verdict(cluster, lost).state == "CANCELLED"


def test_a_queue_that_hangs(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it does, nobody is replaced, the state says for how long, and workers work."""
    monkeypatch.setattr(queue, "LIMIT_SECONDS", 3)
    hang = tmp_path / "hang"
    slurm.write(
        tmp_path / "bin",
        "squeue",
        f'case "$*" in *alphasweep*) [ -e {hang} ] && sleep 600 ;; esac\nexec $REAL "$@"',
        monkeypatch,
    )
    with launched(slurm, tmp_path, profile()) as cluster:
        come(cluster, workers=2)
        hang.touch()
        address, lost = next(iter(workers(cluster).items()))
        slurm.do("scancel", lost)
        supervised(cluster, lambda: cluster.workers("one") == 1, what="one worker")
        supervised(
            cluster,
            lambda: cluster.state()["one"]["answer_age"] > 20,
            what="a queue that has not answered for 20 s",
        )
        assert cluster.deaths == []
        assert cluster.client("one").submit(os.getenv, "SLURM_JOB_ID").result(timeout=120) != lost
        hang.unlink()
        replaced(cluster, lost)
        assert verdict(cluster, lost).worker == address


def test_submission_that_fails_once(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that the queue refuses is submitted again."""
    flag = tmp_path / "flag"
    slurm.write(
        tmp_path / "bin",
        "sbatch",
        f'[ -e {flag} ] && exec $REAL "$@"; touch {flag}; echo Socket timed out >&2; exit 1',
        monkeypatch,
    )
    with launched(slurm, tmp_path, profile(), jobs=1) as cluster:
        come(cluster)
        assert flag.exists()
        assert cluster.deaths == []


def test_notices_of_the_site(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a site prints with every command, numbers too, is taken for no job and no answer."""
    for program in ("sbatch", "squeue", "scontrol", "scancel"):
        text = (
            'echo 12 nodes are down; echo "13|RUNNING|None|9"; $REAL "$@"; s=$?; echo 14; exit $s'
        )
        text = text.replace("echo 14", "echo until 15:00") if program == "sbatch" else text
        slurm.write(tmp_path / "bin", program, text, monkeypatch)
    with launched(slurm, tmp_path, profile(), jobs=2) as cluster:
        come(cluster, workers=2)
        jobs = slurm.jobs(name=job_name(tmp_path))
        assert sorted(workers(cluster).values()) == jobs
        lost = jobs[0]
        slurm.do("scancel", lost)
        replaced(cluster, lost)
        assert verdict(cluster, lost).state == "CANCELLED"
        assert len(slurm.jobs(name=job_name(tmp_path), state="RUNNING")) == 2


def test_submission_that_fails(slurm: Slurm, tmp_path: Path) -> None:
    """After the allowed number of refusals in a row, the run stops with the words of sbatch."""
    one = profile(partition="nowhere", early_deaths=2)
    with launched(slurm, tmp_path, one) as cluster, pytest.raises(ClusterError) as caught:
        come(cluster)
    assert "invalid partition specified: nowhere" in str(caught.value)


def test_broken_prologue(slurm: Slurm, tmp_path: Path) -> None:
    """When the allowed number of jobs died young, the run stops and shows the log of the last."""
    one = profile(prologue=["echo no such module >&2; exit 3"], early_deaths=3)
    with launched(slurm, tmp_path, one, jobs=1) as cluster, pytest.raises(ClusterError) as caught:
        come(cluster)
    assert "no such module" in str(caught.value)
    assert "FAILED, exit code 3:0" in str(caught.value)
    assert len(cluster.deaths) == 3


def test_interrupt(slurm: Slurm, tmp_path: Path) -> None:
    """Ctrl-C leaves nothing either: jobs that run, and jobs that wait, which the state explains."""
    one = profile(partition="wide", memory="3 GB")  # there is room for one on each of four nodes
    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt),
        launched(slurm, tmp_path, one, jobs=5) as cluster,
    ):
        come(cluster, workers=4)
        supervised(
            cluster,
            lambda: (
                (one := cluster.state()["one"])["running"] == 4
                and one["reasons"] == {"Resources": 1}
            ),
            what="4 of 5 jobs, and the reason of the fifth",
        )
        raise KeyboardInterrupt


def test_fewer_jobs_are_wanted(slurm: Slurm, tmp_path: Path) -> None:
    """When fewer jobs are wanted, those that wait are withdrawn, and those that work finish first.

    A worker that has nothing to do ends then, without blame.
    """
    one = profile(partition="wide", memory="3 GB")
    with launched(slurm, tmp_path, one, jobs=5) as cluster:
        come(cluster, workers=4)
        client = cluster.client("one")
        tasks = [client.submit(gate(tmp_path / "open"), pure=False) for _ in range(4)]
        before = workers(cluster)
        cluster.want("one", 2)
        supervised(
            cluster,
            lambda: len(slurm.jobs(name=job_name(tmp_path))) == 4,
            what="the end of the job that waits",
        )
        assert workers(cluster) == before
        (tmp_path / "open").touch()
        client.gather(tasks)
        supervised(cluster, lambda: cluster.workers("one") == 2, what="two workers")
        assert workers(cluster).items() <= before.items()
        assert cluster.deaths == []


def test_end_of_an_orphaned_run(slurm: Slurm, tmp_path: Path) -> None:
    """What a killed driver left can be removed without a new one: jobs and certificates."""
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, tmp_path], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as driver:
        assert driver.stdout
        assert driver.stdout.readline() == "ready\n"
        stop(slurm, job_name(tmp_path))
        driver.kill()
    assert list(tmp_path.glob("certificates-*/key.pem"))
    assert slurm.jobs(name=job_name(tmp_path))
    end(tmp_path, queue=QUEUES["slurm"])
    assert not list(tmp_path.glob("certificates-*"))
    until(lambda: not slurm.jobs(name=job_name(tmp_path)), what="an empty queue")


def stop(slurm: Slurm, name: str) -> None:
    """Stop what jobs of a name do: a worker would leave as soon as its driver is gone."""
    for job in slurm.jobs(name=name):
        for process in slurm.processes(job):
            os.kill(process, signal.SIGSTOP)


DRIVER = """
import sys, time
from pathlib import Path
from alphasweep.cluster.launch import launch
from tests.slurm.conftest import profile
with launch(profile(), {"one": 1}, run_directory=Path(sys.argv[1]), token="dead") as cluster:
    cluster.wait("one")
    print("ready", flush=True)
    time.sleep(300)
"""


def test_killed_driver(slurm: Slurm, tmp_path: Path) -> None:
    """What a killed driver leaves behind is gone when the next one is there, and after it."""
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, tmp_path], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as driver:
        assert driver.stdout
        assert driver.stdout.readline() == "ready\n"
        stop(slurm, job_name(tmp_path))
        driver.kill()
    (key,) = tmp_path.glob("certificates-*/key.pem")
    old = slurm.jobs(name=job_name(tmp_path))
    assert old
    with launched(slurm, tmp_path, profile(), jobs=1) as cluster:
        come(cluster)
        assert not key.exists()
        assert not set(old) & set(workers(cluster).values())
        until(lambda: not slurm.processes(old[0]), what="the end of the old worker")


def test_no_job_for_who_may_not_go_on(slurm: Slurm, tmp_path: Path) -> None:
    """Once `check` raises, nothing is submitted, whatever ended; and nobody else's job is touched.

    So it is with a driver that was suspended: all its threads go on at once.
    """
    lost = Event()

    def check() -> None:
        if lost.is_set():
            raise RuntimeError("another has the store")

    theirs = job_name(tmp_path, "theirs")
    words = ("-J", theirs, "-o", "/dev/null", "--wrap", "sleep 1000")
    folder = tmp_path / f"certificates-{theirs}"
    with launch(
        profile(), {"one": 1}, run_directory=tmp_path, token="mine", check=check
    ) as cluster:
        come(cluster)
        (mine,) = workers(cluster).values()
        lost.set()
        other = slurm.do("sbatch", "--parsable", *words).strip()
        folder.mkdir()
        slurm.do("scancel", mine)
        supervised(cluster, lambda: cluster.deaths, what="the end of the job")
        supervised(cluster, lambda: refused(cluster), what="an attempt to submit another")
        assert slurm.jobs(name=job_name(tmp_path)) == [other]
    assert slurm.jobs(name=job_name(tmp_path)) == [other]
    assert folder.exists()
    with (
        pytest.raises(RuntimeError, match="another has the store"),
        launch(profile(), {"one": 1}, run_directory=tmp_path, token="mine", check=check),
    ):
        pass
    assert slurm.jobs(name=job_name(tmp_path)) == [other]
    assert folder.exists()
    slurm.do("scancel", other)


def refused(cluster: Cluster) -> bool:
    """Whether a job was refused since the last that was accepted."""
    fleet = cluster._fleets["one"]
    assert isinstance(fleet, QueueFleet)
    return fleet._refusals > 0


def test_two_runs(slurm: Slurm, tmp_path: Path) -> None:
    """Two runs of one user do not disturb each other."""
    with launched(slurm, tmp_path / "a", profile(), jobs=1) as first:
        come(first)
        with launched(slurm, tmp_path / "b", profile(), jobs=1) as second:
            come(second)
        task = first.client("one").submit(os.getpid)
        assert task.result(timeout=120)
        first.check()
        assert first.deaths == []
