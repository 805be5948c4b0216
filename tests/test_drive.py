"""A run ends with every cell done or failed, whatever its tasks do."""

from __future__ import annotations

import errno
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from threading import Event, Lock, Thread
from types import SimpleNamespace
from typing import Any

import dask
import pytest
import xarray as xr
from distributed import Client, LocalCluster, get_worker

from alphasweep.pipeline import tasks, terminal
from alphasweep.pipeline.dataset import DONE, FAILED, MISSING
from alphasweep.pipeline.drive import ATTEMPTS, TIMEOUTS, Lane, Progress, _Traffic, drive
from alphasweep.pipeline.inbox import Inbox
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.plan import REFERENCE, CostModel, make_plan
from alphasweep.pipeline.provenance import environment
from alphasweep.pipeline.recipe import Recipe
from alphasweep.pipeline.status import status
from alphasweep.pipeline.store import Store, StoreError
from alphasweep.pipeline.tasks import NoTimeLeftError
from tests.conftest import bits, take_over, tiny

MODEL = CostModel(REFERENCE)
BAD = Part(2.0, 8, 1, 1)
WAITING: dict[str, Any] = {
    "wanted": 1, "pending": 0, "reasons": {}, "running": 1, "workers": 1, "died": 0,
    "core_seconds": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two workers in this process, so that a test can change what they compute."""
    # The profile can freeze a process of Python 3.11, see cluster.launch.
    with dask.config.set({"distributed.worker.profile.enabled": False}):
        cluster = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            memory_limit=None,  # both would count all that this process has
        )
    with cluster, Client(cluster) as client:
        yield client


def run(store: Store, client: Client, **settings: Any) -> Progress:
    """Run the tiny sweep, one seed a part, all on one client."""
    with store.lock() as writer:
        writer.prepare(tiny())
        retry_failed = settings.pop("retry_failed", False)
        model = settings.pop("model", MODEL)
        plan = make_plan(tiny(), model, store, seconds_per_part=1e-9, retry_failed=retry_failed)
        lanes = settings.pop("lanes", [Lane(client, tiny().grid.N, lambda: 2)])
        watch = settings.pop("watch", lambda progress: None)
        return drive(tiny(), writer, plan, lanes, watch=watch, **settings)


def test_dask_gives_what_a_loop_gives(store: Store, full: Store, client: Client) -> None:
    """Through Dask, in whatever order, the dataset has the bits of a plain loop's."""
    other = Store(store.path.with_name("other.zarr"))
    end = run(other, client)
    assert bits(other.path) == bits(full.path)
    assert (end.done, end.failed, end.parts_done, end.running) == (12, 0, 12, 0)
    assert end.runs_now == 24
    assert 0 < end.kernel_seconds < 2 * end.elapsed
    assert other.parts() == []


def test_each_size_goes_to_its_lane(store: Store, full: Store, client: Client) -> None:
    """With a lane a size the result is the same."""
    other = Store(store.path.with_name("other.zarr"))
    lanes = [Lane(client, (8,), lambda: 1), Lane(client, (12,), lambda: 1)]
    run(other, client, lanes=lanes)
    assert bits(other.path) == bits(full.path)


def test_a_part_of_minutes_is_part_of_the_progress(
    store: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it runs, what passed of it counts; what only waits at a worker does not."""
    go_on, seen = Event(), list[Progress]()
    known = {(alpha, N): 600.0 for alpha in (2.0, 4.0) for N in (8, 12)}

    def held(recipe: Recipe, part: Part) -> Any:
        assert go_on.wait(300)
        return compute(recipe, part)

    def watch(progress: Progress) -> None:
        seen.append(replace(progress))
        if progress.predicted_running > 0:
            go_on.set()

    monkeypatch.setattr(tasks, "compute", held)
    monkeypatch.setattr(Progress, "seconds_left", property(lambda self: 77.0))
    end = run(store, client, watch=watch, model=CostModel(REFERENCE, known=known))
    held_up = [progress for progress in seen if progress.parts_done == 0][-1]
    assert held_up.parts_running == 2
    assert held_up.running > 2
    assert held_up.predicted_seconds == 12 * 600
    assert held_up.longest_predicted == 600
    assert 0 < held_up.longest_seconds <= held_up.predicted_running <= 2 * held_up.longest_seconds
    assert (end.predicted_begun, end.predicted_running, end.parts_running) == (7200, 0, 0)
    assert store.progress()["seconds_left"] == 77.0


def test_the_time_left() -> None:
    """What is left of the plan at the speed so far; nothing where there is no speed, or no end."""
    where = Progress(9, 0, 0, 0, 3, 0, 2, predicted_seconds=100.0, elapsed=8.0)
    assert where.seconds_left is None
    where.predicted_running = 10.0
    assert where.seconds_left == pytest.approx(72.0)
    where.predicted_done = 10.0
    assert where.seconds_left == pytest.approx(32.0)
    where.predicted_done = 90.0
    assert where.seconds_left is None


def test_a_part_begins_when_a_worker_is_free_for_it(client: Client) -> None:
    """Of the parts that were sent only as many run as there are workers, the first ones."""
    plan = make_plan(tiny(), CostModel(REFERENCE), seconds_per_part=1e-9)
    traffic = _Traffic(Lane(client, (8,), lambda: 1), plan)
    one, two = (part for work in list(plan.work([8]))[:1] for part in work.parts[:2])
    traffic.running = dict.fromkeys((one, two))  # type: ignore[assignment]
    assert traffic.in_hand(5.0) == {one: 5.0}
    assert traffic.in_hand(7.0) == {one: 5.0}
    del traffic.running[one]
    assert traffic.in_hand(9.0) == {two: 9.0}
    assert traffic.in_hand(11.0) == {two: 9.0}


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Counter[Part]:
    """Make the part BAD fail, always; count how often each part is tried."""
    tried: Counter[Part] = Counter()

    def failing(recipe: Recipe, part: Part) -> Any:
        tried[part] += 1
        if part == BAD:
            raise ZeroDivisionError("no luck")
        return compute(recipe, part)

    monkeypatch.setattr(tasks, "compute", failing)
    return tried


def test_a_failing_part_is_recorded_and_the_rest_goes_on(
    store: Store, client: Client, attempts: Counter[Part]
) -> None:
    """After its attempts it is failed, with its traceback; the neighbours in its block are done."""
    end = run(store, client)
    assert (end.done, end.failed) == (11, 1)
    assert attempts[BAD] == ATTEMPTS
    assert set(attempts.values()) == {1, ATTEMPTS}
    assert store.status()[0, 0].tolist() == [DONE, FAILED, DONE]
    (record,) = store.failures()
    assert record["error"] == "ZeroDivisionError: no luck"
    assert record["attempts"] == ATTEMPTS
    assert 'raise ZeroDivisionError("no luck")' in record["traceback"]
    dataset = xr.open_zarr(store.path).load()
    assert int(dataset.recovered.isnull().sum()) == 2


def test_failed_cells_are_retried_on_request(
    store: Store, full: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then the dataset is as if nothing had happened."""
    other = Store(store.path.with_name("other.zarr"))
    with monkeypatch.context() as broken:
        broken.setattr(tasks, "compute", lambda recipe, part: 1 / 0)
        run(other, client)
    assert (other.status() == FAILED).all()
    run(other, client)
    assert (other.status() == FAILED).all()
    run(other, client, retry_failed=True)
    assert bits(other.path) == bits(full.path)
    assert other.failures() == []


def test_a_part_that_fails_once_is_no_failure(
    store: Store, full: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hiccup that outlasts all patience costs a second attempt, not a cell."""
    tried: Counter[Part] = Counter()
    real = tasks.hand_in

    def hiccup(inbox: Inbox, part: Part, cells: Any) -> None:
        tried[part] += 1
        if tried[part] == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        real(inbox, part, cells)

    monkeypatch.setattr(tasks, "hand_in", hiccup)
    other = Store(store.path.with_name("other.zarr"))
    end = run(other, client)
    assert (end.done, end.failed) == (12, 0)
    assert bits(other.path) == bits(full.path)


def test_a_full_disk_stops_the_run_and_loses_nothing(
    store: Store, full: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No part is called failed; with room again, the next run finishes."""
    other = Store(store.path.with_name("other.zarr"))
    real, handed, one = tasks.hand_in, [], Lock()

    def no_room(inbox: Inbox, part: Part, cells: Any) -> None:
        with one:
            if len(handed) >= 5:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(inbox, part, cells)
            handed.append(part)

    with monkeypatch.context() as broken:
        broken.setattr(tasks, "hand_in", no_room)
        with pytest.raises(StoreError, match=r"No space left on device.*make room"):
            run(other, client)
    assert not (other.status() == FAILED).any()
    assert int((other.status() == DONE).sum()) + len(other.parts()) >= len(handed) == 5
    end = run(other, client)
    assert end.cells_now <= 12 - len(handed)
    assert bits(other.path) == bits(full.path)


def test_who_was_taken_over_stops_and_writes_nothing(store: Store, client: Client) -> None:
    """A driver that was stopped for long, and resumed, leaves what is another's as it is."""
    with store.lock() as writer:
        writer.prepare(tiny())
    before: list[bytes] = []

    def others() -> list[bytes]:
        files = [store.control / "progress.json", store.control / "events.jsonl"]
        return [file.read_bytes() for file in (*files, *sorted(store.path.rglob("c.*")))]

    def resume(progress: Progress) -> None:
        """Be stopped when a report is out, and come back when all is another's."""
        if not before:
            take_over(store)
            before.extend(others())

    with pytest.raises(StoreError, match="taken over by process"):
        run(store, client, watch=resume)
    assert before == others()


def test_progress_is_published(store: Store, client: Client) -> None:
    """The watcher, and `status` in another process, see the counts."""
    seen: list[tuple[int, int]] = []
    run(store, client, watch=lambda progress: seen.append((progress.done, progress.parts_done)))
    assert seen[0] == (0, 0)
    assert seen[-1] == (12, 12)
    said = store.progress()
    assert (said["done"], said["failed"], said["running"], said["cells"]) == (12, 0, 0, 12)
    assert said["rate"] > 0
    events = [json.loads(x) for x in (store.control / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["create", "run", "end"]


# --- workers that come and go -----------------------------------------------------------------


@dataclass(frozen=True)
class Gone:
    """A death, as a cluster tells of it."""

    job: str
    state: str
    tasks: tuple[str, ...]


class Workforce:
    """A workforce that does what a test says at each look."""

    def __init__(self, at_each_look: Callable[[Workforce], None]) -> None:
        self.deaths: list[Gone] = []
        self.retired: list[str] = []
        self._look = at_each_look

    def check(self) -> None:
        """Look."""
        self._look(self)

    def retire(self, worker: str) -> None:
        """Note whom the driver retires."""
        self.retired.append(worker)

    def state(self) -> dict[str, Any]:
        """Say something."""
        return {"only": {"died": len(self.deaths), "core_seconds": 0.0}}

    def lose(self, key: str, state: str) -> None:
        """Report one more worker dead with this task in hand."""
        self.deaths.append(Gone(str(len(self.deaths)), state, (key,)))


class Hang:
    """Makes BAD hang until it is released, as on a worker that was lost."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.released = Event()

    def compute(self, recipe: Recipe, part: Part) -> Any:
        """Compute a part, sooner or later."""
        if part == BAD:
            self.keys.append(str(get_worker().get_current_task()))
            self.released.wait(600)
        return compute(recipe, part)

    def lose(self, workforce: Workforce, state: str, times: int) -> None:
        """Let BAD lose its worker so often, once it runs; then let go of the threads."""
        if len(workforce.deaths) == times:
            self.released.set()
        elif self.keys:
            workforce.lose(self.keys[-1], state)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hang]:
    """The part BAD, hanging."""
    hang = Hang()
    monkeypatch.setattr(tasks, "compute", hang.compute)
    yield hang
    hang.released.set()


def test_results_that_are_lost_before_they_are_noticed(
    store: Store, full: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue answers late; meanwhile parts are finished and all workers die. The run goes on.

    It neither waits for a result that only a new worker could compute again, nor computes it again.
    """
    other = Store(store.path.with_name("other.zarr"))
    computed: Counter[Part] = Counter()
    queued, ended = Event(), []

    def held(recipe: Recipe, part: Part) -> Any:
        queued.wait(600)
        computed[part] += 1
        return compute(recipe, part)

    monkeypatch.setattr(tasks, "compute", held)

    def look(workforce: Workforce) -> None:
        tasks = cluster.scheduler.tasks
        if queued.is_set():
            cluster.scale(1)
        elif tasks:
            queued.set()
            until(lambda: {task.state for task in list(tasks.values())} == {"memory"})
            cluster.scale(0)
            until(lambda: not cluster.scheduler.workers)

    def until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)

    with (
        dask.config.set({"distributed.worker.profile.enabled": False}),
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            memory_limit=None,
        ) as cluster,
        Client(cluster) as client,
    ):
        lanes = [Lane(client, tiny().grid.N, lambda: len(cluster.scheduler.workers))]
        driver = Thread(
            target=lambda: ended.append(run(other, client, lanes=lanes, workforce=Workforce(look))),
            daemon=True,
        )
        driver.start()
        driver.join(120)
        assert ended, "the driver hangs"
    assert ended[0].done == 12
    assert set(computed.values()) == {1}
    assert bits(other.path) == bits(full.path)


def test_what_does_not_move_has_no_time_left(
    store: Store, client: Client, stuck: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once nothing is finished for too long, that is said, and who is silent; later it goes on."""
    monkeypatch.setattr("alphasweep.pipeline.drive._STALLED_SECONDS", 2.0)
    said: list[dict[str, Any]] = []

    def watch(progress: Progress) -> None:
        said.append(store.progress())
        if progress.stalled:
            stuck.released.set()

    lane = Lane(client, (8, 12), lambda: 2, silences=lambda: {"a": 20.0, "b": 70.0})
    end = run(store, client, watch=watch, lanes=[lane])
    (stalled, *_) = (one for one in said if one["stalled"])
    assert stalled["seconds_left"] is None
    half = replace(end, predicted_done=1.0, predicted_seconds=2.0, elapsed=10.0)
    assert half.seconds_left == 10.0
    assert replace(half, stalled=5.0).seconds_left is None
    assert (stalled["silent"], stalled["silence"]) == (2, 70.0)
    assert (end.done, end.stalled) == (12, 0.0)


def test_status_tells_who_is_silent(
    store: Store, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """A silent worker, a run that has stalled, and a queue that does not answer are told of."""
    run(store, client)
    said = store.progress()
    with store.lock() as writer:
        own = ("token", "host", "pid", "born")
        document = {key: value for key, value in said.items() if key not in own} | {
            "stalled": 300.0,
            "seconds_left": None,
            "silent": 1,
            "silence": 240.0,
            "cluster": {"one": WAITING | {"answer_age": 600.0}},
        }
        writer.say(**document)
        terminal.show_status(asdict(status(store.path)))
    told = " ".join(capsys.readouterr().out.split())
    assert "nothing finished for 5 min" in told
    assert " left, " not in told
    assert "say nothing: 1, the longest for 4 min" in told
    assert "The queue has not answered for 10 min" in told


def test_what_check_raises_ends_the_run(store: Store, client: Client) -> None:
    """A cluster that has died ends the run with its own error; the store stays resumable."""

    def dead(workforce: Workforce) -> None:
        raise LookupError("the cluster is gone")

    with pytest.raises(LookupError, match="the cluster is gone"):
        run(store, client, workforce=Workforce(dead))
    assert (store.status() == MISSING).all()
    assert run(store, client).done == 12


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Client, Part]]:
    """Note which part goes where."""
    noted: list[tuple[Client, Part]] = []
    real = tasks.submit_parts

    def note(client: Client, inbox: Inbox, parts: Any, **kwargs: Any) -> Any:
        noted.extend((client, part) for part in parts)
        return real(client, inbox, parts, **kwargs)

    monkeypatch.setattr("alphasweep.pipeline.drive.submit_parts", note)
    return noted


def test_a_part_that_is_refused_memory_gets_a_larger_worker(
    store: Store,
    client: Client,
    sent: list[tuple[Client, Part]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a queue limits addresses instead of killing, the next attempts are in the next lane."""

    def greedy(recipe: Recipe, part: Part) -> Any:
        if part == BAD:
            raise MemoryError("Unable to allocate 700 MiB")
        return compute(recipe, part)

    monkeypatch.setattr(tasks, "compute", greedy)
    with Client(client.cluster) as larger:
        lanes = [Lane(client, (8,), lambda: 2), Lane(larger, (12,), lambda: 2)]
        end = run(store, client, lanes=lanes)
    assert (end.done, end.failed) == (11, 1)
    assert [to for to, part in sent if part == BAD] == [client, *[larger] * (ATTEMPTS - 1)]
    assert store.failures()[0]["error"].startswith("MemoryError")


def test_a_part_that_kills_its_worker_gets_a_larger_one_then_fails(
    store: Store, client: Client, stuck: Hang, sent: list[tuple[Client, Part]]
) -> None:
    """It is tried once more in the next lane, and then named as failed; the rest is done."""

    def look(workforce: Workforce) -> None:
        """Lose two workers to the first attempt, as Dask is quicker than a queue; then another."""
        if len(workforce.deaths) == 3:
            stuck.released.set()
        elif len(stuck.keys) > (attempt := (0, 0, 1)[len(workforce.deaths)]):
            workforce.lose(stuck.keys[attempt], "OUT_OF_MEMORY")

    workforce = Workforce(look)
    with Client(client.cluster) as larger:
        lanes = [Lane(client, (8,), lambda: 2), Lane(larger, (12,), lambda: 2)]
        end = run(store, client, workforce=workforce, lanes=lanes)
    assert (end.done, end.failed) == (11, 1)
    assert [to for to, part in sent if part == BAD] == [client, larger]
    (record,) = store.failures()
    assert record["part"] == str(BAD)
    # Not job 1: by its death, Dask had long run the part again, with another key.
    assert "killed two workers; the job of the last, 2, ended as OUT_OF_MEMORY" in record["error"]


def test_a_part_no_walltime_is_long_enough_for_fails(
    store: Store, client: Client, stuck: Hang
) -> None:
    """After TIMEOUTS workers that came to their walltime with it in hand; not before."""
    workforce = Workforce(lambda workforce: stuck.lose(workforce, "TIMEOUT", times=TIMEOUTS))
    end = run(store, client, workforce=workforce)
    assert (end.done, end.failed) == (11, 1)
    assert "came to their walltime" in store.failures()[0]["error"]


def test_a_death_counts_once(store: Store, client: Client, stuck: Hang) -> None:
    """However often it is looked at; a part that one worker fewer than TIMEOUTS lost goes on."""
    looks = 0

    def look(workforce: Workforce) -> None:
        nonlocal looks
        if len(workforce.deaths) < TIMEOUTS - 1:
            stuck.lose(workforce, "TIMEOUT", times=TIMEOUTS)
        else:
            looks += 1
            if looks > TIMEOUTS:
                stuck.released.set()

    end = run(store, client, workforce=Workforce(look))
    assert looks > TIMEOUTS
    assert (end.done, end.failed) == (12, 0)


def test_a_part_that_silences_its_workers_fails(store: Store, client: Client, stuck: Hang) -> None:
    """After as many workers that were lost though their job ran on; not after two."""
    workforce = Workforce(lambda workforce: stuck.lose(workforce, "RUNNING", times=TIMEOUTS))
    end = run(store, client, workforce=workforce)
    assert (end.done, end.failed) == (11, 1)
    assert store.failures()[0]["attempts"] == TIMEOUTS
    assert "fell silent" in store.failures()[0]["error"]


@pytest.mark.parametrize("state", ["PREEMPTED", "CANCELLED", "NODE_FAIL", ""])
def test_lost_workers_cost_a_part_nothing(
    store: Store, client: Client, stuck: Hang, state: str
) -> None:
    """However often the infrastructure takes its worker away, a part is not blamed."""
    workforce = Workforce(lambda workforce: stuck.lose(workforce, state, times=6))
    end = run(store, client, workforce=workforce)
    assert len(workforce.deaths) == 6
    assert (end.done, end.failed) == (12, 0)


def test_no_part_starts_that_its_worker_cannot_finish(
    store: Store, full: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker near its walltime declines all but a first part, and is replaced."""
    monkeypatch.setattr(tasks, "_begun", set())
    monkeypatch.setenv(tasks.WALLTIME_END, "1")  # over since 1970

    workers = set(client.scheduler_info()["workers"])

    def replace(workforce: Workforce) -> None:
        if set(workforce.retired) == workers:
            monkeypatch.delenv(tasks.WALLTIME_END, raising=False)

    workforce = Workforce(replace)
    other = Store(store.path.with_name("other.zarr"))
    end = run(other, client, workforce=workforce)
    assert (end.done, end.failed) == (12, 0)
    assert set(workforce.retired) == workers
    assert bits(other.path) == bits(full.path)


def test_the_first_part_of_a_worker_is_never_declined(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later worker would have more time for it; the second part of the same one is."""
    worker = SimpleNamespace(address="first")
    monkeypatch.setattr(tasks, "get_worker", lambda: worker)
    monkeypatch.setattr(tasks, "_begun", set())
    monkeypatch.setenv(tasks.WALLTIME_END, str(time.time() + 60))
    with store.lock() as writer:
        writer.prepare(tiny())
    compute_part = partial(tasks.compute_part, inbox=store.inbox(), expected=environment())
    first, second, third = (Part(2.0, 8, seed, seed) for seed in range(3))
    compute_part(first, 1e6)
    with pytest.raises(NoTimeLeftError) as declined:
        compute_part(second, 1e6)
    assert declined.value.worker == "first"
    compute_part(third, 1.0)
    worker.address = "another"
    compute_part(second, 1e6)
    assert store.parts() == [first, second, third]


def test_a_part_is_sent_with_the_time_that_it_takes_at_most(
    store: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what workers decline, parts take half as long again as predicted."""
    noted: dict[Part, float] = {}
    real = tasks.submit_parts

    def note(client: Client, inbox: Inbox, parts: Any, *, seconds: Any) -> Any:
        noted.update(zip(parts, seconds, strict=True))
        return real(client, inbox, parts, seconds=seconds)

    monkeypatch.setattr("alphasweep.pipeline.drive.submit_parts", note)
    run(store, client)
    assert len(noted) == 12
    for part, seconds in noted.items():
        bound = REFERENCE.bound(tiny().recipe, part.alpha, part.N)
        assert seconds == pytest.approx(1.5 * bound * len(part.seeds))
