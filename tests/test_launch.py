"""Job scripts of every queue, workers on this machine, and what is checked before they work."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from distributed import Client, Status

from alphasweep.cluster import launch as launch_module
from alphasweep.cluster import preflight as preflight_module
from alphasweep.cluster import workforce as workforce_module
from alphasweep.cluster.admission import missing_interface
from alphasweep.cluster.launch import (
    WALLTIME_END,
    ClusterError,
    driver_name,
    job_name,
    job_script,
    launch,
)
from alphasweep.cluster.local import local
from alphasweep.cluster.preflight import preflight, versions
from alphasweep.cluster.profile import Profile
from alphasweep.cluster.queue import Ended, Listed
from alphasweep.cluster.workforce import Workforce

SIZE = {"name": "one", "up_to_N": 100, "cores": 2, "memory": "3 GiB", "walltime": "1-02:30:00"}
QUEUES = {
    "slurm": ["#SBATCH -p long", "#SBATCH -A mine", "#SBATCH --cpus-per-task=2",
        "#SBATCH --mem=3G", "#SBATCH -t 26:30:00", "#SBATCH --no-requeue", "#SBATCH a=b"],
    "pbs": ["#PBS -q long", "#PBS -A mine", "#PBS -l select=1:ncpus=2:mem=3072MB",
        "#PBS -l walltime=26:30:00", "#PBS a=b"],
    "moab": ["#PBS -q long", "#PBS -A mine", "#PBS -l nodes=1:ppn=2,mem=3072mb",
        "#PBS -l walltime=26:30:00", "#PBS a=b"],
    "sge": ["#$ -q long", "#$ -P mine", "#$ -l h_rt=26:30:00", "#$ -l h_vmem=1792M",
        "#$ -pe smp 2", "#$ -S /bin/bash", "#$ -r n", "#$ a=b"],
    "lsf": ["#BSUB -q long", '#BSUB -P "mine"', "#BSUB -n 2", "#BSUB -M 3221226",
        "#BSUB -W 26:30", "#BSUB a=b"],
    "oar": ["#OAR -q long", "#OAR --project mine", "#OAR -l /nodes=1/core=2,walltime=26:30:00",
        "#OAR -p memcore>=1536", "#OAR a=b"],
    "htcondor": ["accounting_group = mine", "a = b",
        "RequestCpus = MY.DaskWorkerCores", "MY.DaskWorkerCores = 2",
        "RequestMemory = floor(MY.DaskWorkerMemory / 1048576)",
        "MY.DaskWorkerMemory = 3221225472",
        "periodic_remove = JobStatus == 2 && time() - EnteredCurrentStatus > 95400"],
}  # fmt: skip


def profile(kind: str, **changes: Any) -> Profile:
    """Return a profile with one class."""
    keys = {"kind": kind, "jobs": 4, "classes": [SIZE], "extra_directives": ["a=b"]}
    if kind == "sge":
        keys["parallel_environment"] = "smp"
    return Profile.model_validate(keys | changes)


def script(kind: str, **changes: Any) -> str:
    """Return the script of a job of the run in /runs/a."""
    partition = {} if kind == "htcondor" else {"partition": "long"}
    one = profile(kind, account="mine", prologue=["module load b"], **partition, **changes)
    return job_script(one, one.classes[0], run_directory=Path("/runs/a"))


@pytest.mark.parametrize("kind", QUEUES)
def test_header(kind: str) -> None:
    """Each queue is asked, in its own words, for what the class and the profile say."""
    lines = script(kind).splitlines()
    for line in QUEUES[kind]:
        assert line in lines


@pytest.mark.parametrize("kind", QUEUES)
def test_worker(kind: str) -> None:
    """In every queue a worker is one process, one thread, one BLAS thread, TLS, and knows its end.

    The end is noted first, and the prologue cannot change the number of threads.
    """
    text = script(kind)
    for words in (
        f"export {WALLTIME_END}=`date -d +95400sec +%s`",
        "module load b",
        "export OMP_NUM_THREADS=1",
        f"exec {sys.executable} -P -m distributed.cli.dask_worker tls://DRIVER:PORT",
    ):
        assert words in text
        text = text[text.index(words) :]
    command = text.split()
    assert command[command.index("--dashboard-address") + 1] == "127.0.0.1:0"
    last_nthreads = len(command) - 1 - command[::-1].index("--nthreads")
    assert command[last_nthreads + 1] == "1"
    assert "--no-nanny" in command
    folder = f"/runs/a/certificates-{job_name(Path('/runs/a'), 'TOKEN')}"
    assert command[command.index("--tls-key") + 1].startswith(f"{folder}/key.pem")


def test_script_makes_no_files(tmp_path: Path) -> None:
    """To show a script is not to begin a run: nothing is written, though the logs have a place."""
    one = profile("slurm")
    text = job_script(one, one.classes[0], run_directory=tmp_path / "run")
    assert f"#SBATCH -o {tmp_path}/run/logs/" in text
    assert not (tmp_path / "run").exists()


def test_choices_of_the_profile() -> None:
    """Directives can be left out, certificates kept elsewhere, and TLS switched off."""
    assert "#SBATCH --mem" not in script("slurm", skip_directives=["--mem="])
    assert "h_vmem" not in script("sge", skip_directives=["-l h_vmem"])
    assert "-l mem_free=1536M" in script("sge", memory_resource="mem_free")
    assert "memcore" not in script("oar", skip_directives=["-p memcore"])
    assert "-p mem_core>=1536" in script("oar", memory_resource="mem_core")
    assert "--tls-key /private/certificates-" in script("slurm", shared_directory="/private")
    plain = script("slurm", tls=False)
    assert "tcp://DRIVER:PORT" in plain
    assert "--tls" not in plain


def test_names_of_jobs() -> None:
    """A launch finds its jobs by name, and with what those of all begin, those of others."""
    assert job_name(Path("/runs/a"), "t") == job_name(Path("/runs/b/../a"), "t")
    assert job_name(Path("/runs/a"), "t") != job_name(Path("/runs/a"), "u")
    assert job_name(Path("/runs/a"), "t").startswith(job_name(Path("/runs/a")))
    assert not job_name(Path("/runs/b"), "t").startswith(job_name(Path("/runs/a")))


def test_the_driver_is_no_worker() -> None:
    """To cancel all jobs whose name begins like that of a worker spares the driver."""
    assert not driver_name(Path("/runs/a")).startswith(job_name(Path("/runs/a")))


def test_sigint_handler() -> None:
    """Ctrl-C stays KeyboardInterrupt, although dask-jobqueue makes it an exit with status 0."""
    code = (
        "import signal; before = signal.getsignal(signal.SIGINT)\n"
        "from tests.test_launch import script; script('slurm')\n"
        "import sys; assert 'dask_jobqueue' in sys.modules\n"
        "assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_too_many_jobs(tmp_path: Path) -> None:
    """More jobs than the profile allows are not submitted."""
    with (
        pytest.raises(ClusterError, match=r"may have jobs = 4 at once.*5 were asked for"),
        launch(profile("slurm"), {"one": 5}, run_directory=tmp_path, token="t"),
    ):
        pass


def test_no_queue_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SLURM's commands the error says what to do, and nothing is left behind."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(ClusterError, match="squeue must be on the PATH: run alphasweep on a login"),
        launch(profile("slurm"), {"one": 1}, run_directory=tmp_path / "run", token="t"),
    ):
        pass
    assert not list((tmp_path / "run").iterdir())


def test_blanks_in_the_path(tmp_path: Path) -> None:
    """A directory that job scripts cannot name is refused before anything is submitted."""
    with (
        pytest.raises(ClusterError, match=r"must have no blanks.*choose another store"),
        launch(profile("slurm"), {"one": 1}, run_directory=tmp_path / "a b", token="t"),
    ):
        pass


@pytest.mark.parametrize(
    ("interface", "what"),
    [("ib7", "ib7 does not exist"), ("dry0", "dry0 has no IPv4 address")],
)
def test_an_interface_that_is_not_there(
    interface: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named beside those that there are, before anything is started or made."""
    there = {
        "lo": [SimpleNamespace(family=socket.AF_INET, address="127.0.0.1")],
        "dry0": [SimpleNamespace(family=socket.AF_INET6, address="fe80::1")],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: there)
    with (
        pytest.raises(ClusterError, match=rf"{what}. Here are: lo \(127.0.0.1\). Name one"),
        launch(
            profile("pbs", interface=interface),
            {"one": 1},
            run_directory=tmp_path / "run",
            token="t",
        ),
    ):
        pass
    assert not (tmp_path / "run").exists()
    assert missing_interface(profile("pbs", interface="lo")) == ""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Launch one worker on this machine."""
    folder = tmp_path_factory.mktemp("local")
    with launch(profile("local"), {"one": 1}, run_directory=folder, token="t") as cluster:
        cluster.wait("one")
        cluster.check()
        state = cluster.state()["one"]
        assert (state["running"], state["workers"], state["died"]) == (1, 1, 0)
        yield cluster.client("one")


def test_workers_do_not_profile_themselves(client: Client) -> None:
    """A profile of a worker can freeze it under Python 3.11, see `cluster.launch`."""
    (does,) = client.run(lambda dask_worker: list(dask_worker.periodic_callbacks)).values()
    assert "heartbeat" in does
    assert "profile" not in does


def test_a_machine_that_stalls() -> None:
    """That Dask is late to close is no error, and then there is no process left."""
    with local(1) as client:
        cluster = client.cluster
        (pid,) = client.run(os.getpid).values()
        client.loop.add_callback(time.sleep, 4)
    assert cluster.status == Status.closed
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("stopped_after", [0, 1, 2])
def test_who_is_taken_over_while_it_tidies_up_spares_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    """A launch that may not go on cancels no job, and removes no certificate, that it finds."""
    theirs = job_name(tmp_path, "theirs")
    (folder := tmp_path / f"certificates-{theirs}").mkdir()
    cancelled: list[str] = []
    there = {"7": Listed(theirs, "RUNNING", "")}
    fake = SimpleNamespace(
        jobs=lambda prefix: {i: job for i, job in there.items() if job.name.startswith(prefix)},
        ended=lambda job: Ended("RUNNING"),
        cancel=lambda jobs: cancelled.extend(jobs),
    )
    monkeypatch.setattr(launch_module, "QUEUES", {"slurm": fake})
    if stopped_after == 2:  # nothing was there when it looked
        there.clear()
    checks = count()

    def check() -> None:
        if next(checks) >= min(stopped_after, 1):
            there["8"] = Listed(theirs, "RUNNING", "")
            raise RuntimeError("another has the store")

    with (
        pytest.raises(RuntimeError, match="another has the store"),
        launch(profile("slurm"), {"one": 1}, run_directory=tmp_path, token="mine", check=check),
    ):
        pass
    assert cancelled == []
    assert folder.exists()


def test_nobody_works_unexamined(tmp_path: Path) -> None:
    """A class gets work when its first worker has passed, and a problem stops the run."""
    problems = {"one": ["too slow"]}
    with launch(profile("local"), {"one": 1}, run_directory=tmp_path, token="t") as cluster:
        workforce = Workforce(cluster, {"one": 1}, lambda name, client: problems[name])
        cluster.wait("one")
        with pytest.raises(ClusterError, match="too slow"):
            examined(workforce)
        assert workforce.workers("one") == 0
        problems["one"] = []
        examined(workforce)
        assert workforce.workers("one") == 1


def test_an_examination_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is stopped, or has left, keeps the driver from nothing; another is examined."""
    released, calls = Event(), count(1)

    def examine(name: str, client: Client) -> list[str]:
        number = next(calls)
        if number == 1:
            released.wait(600)
            return ["too late to be heard"]
        if number == 2:
            raise LookupError("it has left")
        return []

    monkeypatch.setattr(workforce_module, "_PATIENCE_SECONDS", 0.0)
    with launch(profile("local"), {"one": 1}, run_directory=tmp_path, token="t") as cluster:
        workforce = Workforce(cluster, {"one": 1}, examine)
        cluster.wait("one")
        examined(workforce)
        assert workforce.workers("one") == 1
        released.set()
        workforce.check()
    assert next(calls) >= 4


def examined(workforce: Workforce) -> None:
    """Look after the workers, as a driver does, until the first has been examined."""
    end = time.monotonic() + 120
    while not workforce.workers("one"):
        assert time.monotonic() < end
        workforce.check()
        time.sleep(0.01)


def test_preflight_passes(client: Client, tmp_path: Path) -> None:
    """A worker that is as the driver passes, and leaves no file."""
    same = versions(["numpy", "dask"])
    files = ["alphasweep.cluster", "alphasweep.kernels"]
    found = preflight(client, expected=same, files=files, token_directory=tmp_path)
    assert found == []
    assert not list(tmp_path.iterdir())


def test_preflight_tells_differences(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other versions, other files, more threads and less memory are told: where, what, remedy."""
    client.run(_set_blas_threads, 2)
    (tmp_path / "only_here").mkdir()
    (tmp_path / "only_here" / "module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        versions_, files, threads, memory = preflight(
            client,
            expected={"numpy": "0.1"},
            files=["only_here"],
            token_directory=tmp_path,
            memory=10**15,
        )
    finally:
        client.run(_set_blas_threads, 1)
    (address,) = client.nthreads()
    for problem in (versions_, files, threads, memory):
        assert problem.startswith(f"worker {address} on ")
    assert "numpy must be 0.1, as here; it is" in versions_
    assert "no such package: the modules of only_here must be those of the driver" in files
    assert "different: module.py" in files
    assert "must use 1 thread; it uses 2" in threads
    assert "must have the 1e+06 GB" in memory


def test_preflight_needs_one_disk(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that does not see the files of the driver is told, and nothing stays."""
    monkeypatch.setattr(preflight_module, "_SLOW_DISK_SECONDS", 0.3)
    ask = preflight_module._ask

    def elsewhere(client: Client, worker: str, *arguments: Any) -> dict[str, Any]:
        *first, token, answer = arguments
        return ask(client, worker, *first, token.replace(str(tmp_path), "/nowhere"), answer)

    monkeypatch.setattr(preflight_module, "_ask", elsewhere)
    (problem,) = preflight(client, expected={}, files=[], token_directory=tmp_path)
    assert f"{tmp_path}: must be one and the same directory" in problem
    assert "a file written here is not read there" in problem
    assert not list(tmp_path.iterdir())


def _set_blas_threads(number: int) -> None:
    import threadpoolctl

    threadpoolctl.threadpool_limits(limits=number)
