"""Claims about a sensing that is revealed as it is asked, against a matrix that is held."""

import json
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from alphasweep.analysis.recovery import alpha_half, recovery_probability
from alphasweep.analysis.times import recovery_times
from alphasweep.kernels import revealed
from alphasweep.kernels.descent import Outcome, Trajectory, descend
from alphasweep.kernels.flow import flow
from alphasweep.kernels.hessian import lowest_eigenpairs
from alphasweep.kernels.instance import Instance, draw_instance, uniform_starts
from alphasweep.kernels.loss import Array, IntensityLoss
from alphasweep.kernels.rest import rest
from alphasweep.kernels.revealed import OutgrownError, RevealedSensing
from alphasweep.pipeline import part
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.plan import REFERENCE, CostModel, make_plan
from alphasweep.pipeline.provenance import fingerprint
from alphasweep.pipeline.spec import Sweep
from alphasweep.pipeline.sweeps import raises_t_max
from tests.conftest import TINY

LOSS = IntensityLoss(1.0)


def drawn(M: int, N: int, seed: int = 0, precision: str = "float64", **given: Any) -> Any:
    """Draw a revealed sensing from a stream of its own."""
    return RevealedSensing(np.random.default_rng(seed), M, N, np.dtype(precision), **given)


def columns(sensing: RevealedSensing) -> tuple[Array, Array, Array, Array]:
    """Read V, A, U, B by what they do to unit vectors."""
    p, q = sensing.ranks
    V, A = (np.stack([c.combine(e) for e in np.eye(p)], 1) for c in (sensing.V, sensing.A))
    U, B = (np.stack([c.combine(e) for e in np.eye(q)], 1) for c in (sensing.U, sensing.B))
    return V, A, U, B


# Lengths in one slab and in several, with and without a sketch, with a last slab that is padded.
@pytest.mark.parametrize(("M", "N"), [(40, 17), (2500, 1100), (70_001, 33_000)])
def test_what_is_revealed_is_one_matrix(M: int, N: int) -> None:
    """X V = A, X^T U = B, both bases orthonormal, U^T A = B^T V: to rounding, whatever is asked."""
    sensing, rng = drawn(M, N), np.random.default_rng(1)
    w, f = rng.standard_normal(N), rng.standard_normal(M)
    first = sensing.forward(w)
    for scale in (1.0, 1e-2, 1e-4):  # queries that are nearly what was asked before
        f = np.square(sensing.forward(w)) + scale * f
        w = w + scale * sensing.adjoint(f)
    V, A, U, B = columns(sensing)
    assert sensing.ranks == (3, 3)
    np.testing.assert_allclose(V.T @ V, np.eye(V.shape[1]), atol=1e-12)
    np.testing.assert_allclose(U.T @ U, np.eye(U.shape[1]), atol=1e-12)
    np.testing.assert_allclose(U.T @ A, B.T @ V, atol=1e-11)
    assert sensing.health() < 1e-11
    np.testing.assert_allclose(sensing.forward(V), A, atol=1e-11)
    np.testing.assert_allclose(sensing.adjoint(U), B, atol=1e-11)
    w0 = np.random.default_rng(1).standard_normal(N)
    np.testing.assert_allclose(sensing.forward(w0), first, rtol=0, atol=1e-10)


def adversarial(sensing: Any, N: int, M: int) -> tuple[Array, Array]:
    """Ask what depends on the answers as strongly as it can; return the last answers."""
    w = np.full(N, 1.0)
    for _ in range(3):
        answer = sensing.forward(w)
        f = np.sign(answer) * (np.abs(answer) > np.median(np.abs(answer)))
        w = sensing.adjoint(f) + 0.3 * w
        w[: N // 2] *= 0.1
    return sensing.forward(w / np.linalg.norm(w)), sensing.adjoint(f / np.linalg.norm(f))


def test_queries_that_depend_on_answers_see_the_law_of_a_matrix() -> None:
    """Norms and overlaps of what correlated queries find are those on a matrix that is held.

    400 of each, by the two-sample test of Kolmogorov and Smirnov: of four tests one is below 1e-4
    in 1 of 2,500 choices of the seeds.
    """
    M, N = 60, 25
    found: dict[str, list[list[float]]] = {"revealed": [], "gaussian": []}
    for seed in range(400):
        held = draw_instance(seed, N, 0, M=M, precision="float64").sensing
        for kind, sensing in (("revealed", drawn(M, N, seed)), ("gaussian", held)):
            forward, adjoint = adversarial(sensing, N, M)
            found[kind].append(
                [np.sum(forward**2), np.sum(adjoint**2), np.sum(forward**4), adjoint.sum()]
            )
    for mine, others in zip(*(np.array(rows).T for rows in found.values()), strict=True):
        assert stats.ks_2samp(mine, others).pvalue > 1e-4


@pytest.mark.parametrize("axis", ["forward", "adjoint"])
def test_first_moments_of_answers(axis: str) -> None:
    """|X v|^2 = M/N and |X^T u|^2 = 1 on average for unit v, u that were asked before or not.

    What is in part known is so, too: v halfway between a known direction and a new one. Means of
    300 by a t-test at 1e-4.
    """
    M, N, norms = 50, 20, []
    for seed in range(300):
        sensing, rng = drawn(M, N, seed), np.random.default_rng(seed + 1)
        ask = sensing.forward if axis == "forward" else sensing.adjoint
        old, new = rng.standard_normal((2, N if axis == "forward" else M))
        sensing.adjoint(sensing.forward(np.ones(N)) ** 2)
        ask(old)
        both = old / np.linalg.norm(old) + new / np.linalg.norm(new)
        norms.append(np.sum(ask(both / np.linalg.norm(both)) ** 2))
    expected = M / N if axis == "forward" else 1.0
    assert stats.ttest_1samp(norms, expected).pvalue > 1e-4


def test_a_query_that_is_nearly_known_opens_nothing() -> None:
    """A residual below the tolerance is left out, one above opens a direction: on both sides."""
    for M, N in ((90, 40), (5000, 2100)):
        sensing, rng = drawn(M, N, tolerance=1e-3), np.random.default_rng(0)
        w, f = rng.standard_normal(N), rng.standard_normal(M)
        before = sensing.forward(w), sensing.adjoint(f)
        assert sensing.ranks == (1, 1)
        # One component: it is wherever, and as small as can be.
        spike_w, spike_f = np.eye(1, N, 5)[0], np.eye(1, M, 7)[0]
        for share, ranks in ((5e-4, (1, 1)), (2e-3, (2, 2))):
            again = (
                sensing.forward(w + share * np.linalg.norm(w) * spike_w),
                sensing.adjoint(f + share * np.linalg.norm(f) * spike_f),
            )
            assert sensing.ranks == ranks
        for old, new in zip(before, again, strict=True):
            assert 0 < np.linalg.norm(new - old) < 0.01 * np.linalg.norm(old)


def problem(
    sensing: str, N: int, seed: int, alpha: float = 4.0, R: int = 1, **given: Any
) -> tuple[Instance, Array]:
    """Draw an instance and its starts."""
    instance = draw_instance(5, N, seed, M=round(alpha * N), sensing=sensing, **given)
    return instance, uniform_starts(5, N, seed, range(R))


def by(method: str, instance: Instance, W: Array, t: float, **given: Any) -> Trajectory:
    """Descend to a time, recorded at ten times before."""
    times = [0.0, *np.geomspace(0.3, t, 9)]
    if method == "flow":
        return flow(instance, W, loss=LOSS, record=times, **given)
    steps = sorted({round(time / 0.03) for time in times})
    return descend(instance, W, loss=LOSS, learning_rate=0.03, record=steps, **given)


@pytest.mark.parametrize("method", ["gd", "flow"])
def test_probes_change_no_bit(method: str) -> None:
    """Whether one looks at a run, by ARPACK, certificates or records, does not change it."""

    def looked(instance: Instance, W: Array, **given: Any) -> Trajectory:
        def probe(_: int, w: Array) -> None:
            pairs = lowest_eigenpairs(instance, w, loss=LOSS, modes=2, dense_up_to=1)
            again = lowest_eigenpairs(instance, w, loss=LOSS, modes=2, dense_up_to=1)
            np.testing.assert_array_equal(pairs.values, again.values)
            assert np.isfinite(pairs.values).all()
            rest(instance, w, loss=LOSS)

        return by(method, instance, W, 6.0, probe=probe, **given)

    plain, watched = (problem("revealed", 150, 3) for _ in range(2))
    given = {"rest_within": 0.0} if method == "flow" else {}
    expected, found = by(method, *plain, 6.0, **given), looked(*watched)
    for field in fields(Trajectory):
        if field.name not in ("final_lambda_min",):
            np.testing.assert_array_equal(
                getattr(expected, field.name), getattr(found, field.name), field.name
            )
    assert plain[0].sensing.ranks == watched[0].sensing.ranks  # type: ignore[attr-defined]


def test_times_that_are_recorded_change_no_bit_of_the_flow() -> None:
    """Between its steps the flow asks a fork."""
    few, many = problem("revealed", 150, 3), problem("revealed", 150, 3)
    end = {"loss": LOSS, "rest_within": 0.0}
    one = flow(*few, record=[0.0, 5.0], **end)  # type: ignore[arg-type]
    other = flow(*many, record=[0.0, *np.linspace(0.1, 4.9, 40), 5.0], **end)  # type: ignore[arg-type]
    assert one.final_energy == other.final_energy
    assert one.final_overlap == other.final_overlap
    assert few[0].sensing.ranks == many[0].sensing.ranks  # type: ignore[attr-defined]


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs are summed in their order, however many at once."""
    monkeypatch.setattr(revealed, "_SLAB", 64)
    monkeypatch.setattr(revealed, "_GROUP", 2)
    runs = [by("gd", *problem("revealed", 700, 1, threads=n), 3.0) for n in (1, 3)]
    np.testing.assert_array_equal(runs[0].energy, runs[1].energy)
    np.testing.assert_array_equal(runs[0].final_overlap, runs[1].final_overlap)


@pytest.mark.long
@pytest.mark.parametrize("method", ["gd", "flow"])
def test_law_of_runs(method: str) -> None:
    """Energy, overlap and mu at the end, and recovery, have the law of a matrix that is held.

    120 runs of each; of the three tests of Kolmogorov and Smirnov and Fisher's, one is below 1e-4
    in 1 of 2,500 choices of the seeds.
    """
    ended: dict[str, list[list[float]]] = {"revealed": [], "gaussian": []}
    for kind, rows in ended.items():
        for seed in range(120):
            run = by(method, *problem(kind, 64, seed + 1000 * (kind == "revealed"), 3.5), 12.0)
            k = 5  # before any has recovered
            rows.append(
                [run.energy[0, k], abs(run.overlap[0, k]), run.mu[0, k],
                 run.outcome[0] == Outcome.RECOVERED]
            )  # fmt: skip
    mine, others = (np.array(rows) for rows in ended.values())
    for column in range(3):
        assert stats.ks_2samp(mine[:, column], others[:, column]).pvalue > 1e-4
    table = [[each[:, 3].sum(), 120 - each[:, 3].sum()] for each in (mine, others)]
    assert min(map(min, table)) > 10
    assert stats.fisher_exact(table).pvalue > 1e-4


@pytest.mark.parametrize(("method", "most"), [("gd", (20, 200)), ("flow", (200, 60))])
def test_a_run_that_outgrows_its_memory_is_undecided(method: str, most: tuple[int, int]) -> None:
    """It ends where it was, and the rest of its record is missing; no number is made up."""
    whole = by(method, *problem("revealed", 200, 2), 8.0)
    cut = by(method, *problem("revealed", 200, 2, most=most), 8.0)
    assert cut.outcome == Outcome.UNDECIDED
    assert 0 < cut.end_time[0] < 8.0
    recorded = np.isfinite(cut.energy[0])
    assert 2 < recorded.sum() < recorded.size
    np.testing.assert_array_equal(cut.energy[0, recorded], whole.energy[0, recorded])
    with pytest.raises(OutgrownError, match="1 directions"):
        drawn(20, 10, most=(1, 1)).forward(np.eye(10))


def test_float32_is_as_good_as_its_rounding() -> None:
    """Directions stay orthonormal to 1e-5 in single precision over hundreds of queries."""
    instance, W = problem("revealed", 3000, 0)
    by("gd", instance, W, 8.0)
    assert instance.sensing.health() < 1e-5  # type: ignore[attr-defined]
    assert 40 < instance.sensing.ranks[0] < 120  # type: ignore[attr-defined]


DOCUMENT: dict[str, Any] = TINY | {
    "grid": {"alpha": [3.0, 4.0], "N": [24], "seed": [0, 1], "start": [0, 4]},
    "problem": {"a": 1.0, "sensing": "revealed", "sensing_tolerance": 1e-4},
    "descent": {"t_max": 3.0, "learning_rate": 0.03},
}


def test_a_start_has_a_matrix_of_its_own() -> None:
    """Its bits depend on no other start, nor on alphas; null labels differ by start, too."""
    recipe = Sweep.from_document(DOCUMENT).recipe
    both = compute(recipe, Part(4.0, 24, 0, 1))
    grid = DOCUMENT["grid"] | {"start": [4], "alpha": [4.0]}
    alone = compute(Sweep.from_document(DOCUMENT | {"grid": grid}).recipe, Part(4.0, 24, 1, 1))
    for name in ("energy", "overlap", "final_energy", "right_rank", "left_rank", "health"):
        np.testing.assert_array_equal(both[1][name][1:], alone[0][name])
    energies = [cell["energy"][k, 0] for cell in both for k in range(2)]
    assert len(set(energies)) == 4
    instances = [
        draw_instance(0, 24, 0, M=96, signal="null", sensing="revealed", start=s) for s in (0, 1)
    ]
    assert not np.array_equal(instances[0].y, instances[1].y)
    np.testing.assert_array_equal(instances[0].w_star, instances[1].w_star)


def test_what_was_revealed_is_told() -> None:
    """Ranks and health are variables where something can be revealed, and only there."""
    cell = compute(Sweep.from_document(DOCUMENT).recipe, Part(3.0, 24, 0, 0))[0]
    assert np.all(cell["right_rank"] > 5)
    assert np.all(cell["right_rank"] <= 24)
    assert np.all(cell["health"] < 1e-5)
    held = DOCUMENT | {"problem": {"a": 1.0}}
    assert (
        "health" not in compute(Sweep.from_document(held).recipe, Part(3.0, 24, 0, 0)).dtype.names
    )
    either = DOCUMENT | {"problem": {"a": 1.0, "sensing": "auto"}}
    cell = compute(Sweep.from_document(either).recipe, Part(3.0, 24, 0, 0))[0]
    assert np.isnan(cell["health"]).all()  # so small a matrix is held


def test_a_run_whose_health_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a failed cell with the reason, never a number."""
    monkeypatch.setattr(part, "HEALTHY", 1e-9)
    with pytest.raises(ArithmeticError, match="must be orthonormal to 1e-09"):
        compute(Sweep.from_document(DOCUMENT).recipe, Part(3.0, 24, 0, 0))


def test_auto_holds_small_matrices_and_reveals_large_ones() -> None:
    """By size, by time, by how many starts would share a matrix, and by what memory holds."""

    def chosen(N: int, t: float, starts: int = 1) -> bool:
        trips = t / 0.03
        return revealed.is_cheaper(4 * N, N, starts=starts, t=t, round_trips=trips)

    assert [chosen(N, 8.0) for N in (128, 512, 4096, 16384)] == [False, False, True, True]
    assert not chosen(1500, 8.0, starts=64)
    assert chosen(1500, 8.0)
    assert not chosen(4096, 2000.0, starts=16)
    assert chosen(30_000, 2000.0, starts=16)  # 14 GB


def test_each_start_is_a_cluster() -> None:
    """Errors know that starts share no matrix: as those of as many seeds with a start each."""
    rng, shape = np.random.default_rng(0), (5, 1, 4, 6)
    alpha = np.linspace(2, 5, 5)
    recovered = rng.random(shape) < 1 / (1 + np.exp(-3 * (alpha - 3.5)))[:, None, None, None]
    flags = {"flag_values": [0, 1, 2], "flag_meanings": "missing done failed"}

    def dataset(values: Array, sensing: str) -> xr.Dataset:
        _, _, seeds, starts = values.shape
        problem = {"sensing": sensing, "signal": "planted"}
        sweep = {"descent": {"t_max": 9.0}, "problem": problem}
        return xr.Dataset(
            {
                "status": (("alpha", "N", "seed"), np.ones((5, 1, seeds), int), flags),
                "recovered": (("alpha", "N", "seed", "start"), values.astype(float)),
            },
            coords={
                "alpha": alpha, "N": [64], "seed": np.arange(seeds), "start": np.arange(starts)
            },
            attrs={"sweep": json.dumps(sweep)},
        )  # fmt: skip

    mine = dataset(recovered, "revealed")
    alone = dataset(recovered.reshape(5, 1, 24, 1), "gaussian")
    for function in (alpha_half, recovery_probability):
        found, expected = function(mine), function(alone)
        assert int(found["matrices"].max()) == 24
        xr.testing.assert_allclose(found, expected)
    assert int(alpha_half(dataset(recovered, "gaussian"))["matrices"][0]) == 4


def planned(N: list[int], **descent: Any) -> dict[int, dict[str, Any]]:
    """Plan a sweep at alpha = 4 with "auto"; what is said by N."""
    unprobed = {key: value for key, value in DOCUMENT.items() if key != "probe"}
    sweep = Sweep.from_document(
        unprobed
        | {
            "grid": DOCUMENT["grid"] | {"N": N, "alpha": [4.0]},
            "problem": {"a": 1.0, "sensing": "auto"},
            "descent": descent,
        }
    )
    numbers = make_plan(sweep, CostModel(REFERENCE)).numbers()
    return {row["N"]: row for row in numbers["sizes"]}


def test_a_plan_knows_what_is_revealed() -> None:
    """Which sizes are, and their time and memory, which grow with N, not with its square."""
    sizes = [64, 2**12, 2**15, 2**20]
    by_gd = planned(sizes, t_max=8.0, learning_rate=0.02)
    assert [by_gd[N]["sensing"] for N in sizes] == [["gaussian"], *[["revealed"]] * 3]
    hours = [by_gd[N]["core_hours_most"] for N in sizes[2:]]
    assert hours[1] / hours[0] == pytest.approx(32, rel=0.3)
    assert 4e9 < by_gd[2**20]["memory_bytes"] < 8e9
    by_flow = planned(sizes, method="flow", t_max=8.0, rest_within=0.0)
    assert by_flow[2**20]["core_hours_most"] < hours[1]
    # To t = 4000 ranks would be thousands: one that is held takes less, while it fits 8 GB.
    decided = planned(sizes, method="flow", t_max=4000.0)
    assert [decided[N]["sensing"][0] for N in sizes[:3]] == ["gaussian", "gaussian", "revealed"]


def test_expected_ranks_are_those_of_runs() -> None:
    """Ranks and memory of runs to t = 2 and 8, by both methods, are below what is planned for."""
    for method in ("gd", "flow"):
        for t in (2.0, 8.0):
            instance, W = problem("revealed", 2000, 0)
            given = {"rest_within": 0.0} if method == "flow" else {}
            by(method, instance, W, t, **given)
            expected = revealed.expected_ranks(t, 2000)
            most = revealed.most_ranks(t, 8000, 2000, revealed.TOLERANCE)
            for rank, likely, bound in zip(
                instance.sensing.ranks,  # type: ignore[attr-defined]
                expected,
                most,
                strict=True,
            ):
                assert 0.6 * likely < rank < bound


def test_a_look_that_needs_more_room_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork is bounded as the plan counts it: eigenpairs are NaN then, and the run is the same."""
    instance, W = problem("revealed", 600, 0)
    by("gd", instance, W, 2.0)
    before, w = instance.sensing.ranks, W[:, 0]  # type: ignore[attr-defined]
    assert np.isfinite(lowest_eigenpairs(instance, w, loss=LOSS, modes=2).values).all()
    monkeypatch.setattr(revealed, "look_ranks", lambda N: 30)
    pairs = lowest_eigenpairs(instance, w, loss=LOSS, modes=2)
    assert np.isnan(pairs.values).all()
    assert np.isnan(pairs.vectors).all()
    assert np.isnan(rest(instance, w, loss=LOSS).lambda_min)
    assert instance.sensing.ranks == before  # type: ignore[attr-defined]


def test_a_plan_counts_the_memory_of_the_alpha_that_needs_most() -> None:
    """Of "auto" a smaller alpha can be held, and take more than a larger one that is revealed."""

    def memory(alpha: list[float]) -> int:
        unprobed = {key: value for key, value in DOCUMENT.items() if key != "probe"}
        sweep = Sweep.from_document(
            unprobed
            | {
                "grid": DOCUMENT["grid"] | {"N": [30_000], "alpha": alpha, "start": [*range(16)]},
                "problem": {"a": 1.0, "sensing": "auto"},
                "descent": {"method": "flow", "t_max": 4000.0, "rest_within": 0.0},
            }
        )
        (row,) = make_plan(sweep, CostModel(REFERENCE)).numbers()["sizes"]
        kinds.append(row["sensing"])
        return int(row["memory_bytes"])

    kinds: list[list[str]] = []
    held, shown, both = memory([2.0]), memory([4.0]), memory([2.0, 4.0])
    assert kinds == [["gaussian"], ["revealed"], ["gaussian", "revealed"]]
    assert held > shown
    assert both == held


def test_t_max_is_raised_where_auto_chooses_as_before() -> None:
    """What is chosen depends on t_max; a decided cell keeps its bits only if it is the same."""

    def sweep(t_max: float, N: int) -> Sweep:
        grid = DOCUMENT["grid"] | {"N": [N], "alpha": [4.0], "start": list(range(16))}
        unprobed = {key: value for key, value in DOCUMENT.items() if key != "probe"}
        descent = {"method": "flow", "t_max": t_max}
        problem = {"a": 1.0, "sensing": "auto"}
        changed = {"grid": grid, "problem": problem, "descent": descent}
        return Sweep.from_document(unprobed | changed)

    kinds = [sweep(t, 4096).recipe.problem_at(4.0, 4096).sensing for t in (8.0, 4000.0)]
    assert kinds == ["revealed", "gaussian"]
    assert not raises_t_max(sweep(8.0, 4096), sweep(4000.0, 4096))
    assert raises_t_max(sweep(8.0, 64), sweep(4000.0, 64))
    assert raises_t_max(sweep(8.0, 4096), sweep(9.0, 4096))
    before, after = (fingerprint(sweep(t, 4096).recipe) for t in (8.0, 4000.0))
    assert before["which are revealed"] == after["which are revealed"] == [0.0, 0.0, 1.0, 1.0]


def test_recovery_times_know_that_each_start_is_a_cluster() -> None:
    """Their errors and their number of matrices are those of as many seeds with a start each."""
    rng = np.random.default_rng(1)
    times = rng.lognormal(size=(1, 1, 4, 6))
    flags = {"flag_values": [0, 1, 2], "flag_meanings": "missing done failed"}

    def dataset(values: Array, sensing: str) -> xr.Dataset:
        _, _, seeds, starts = values.shape
        run = ("alpha", "N", "seed", "start")
        problem = {"sensing": sensing, "signal": "planted"}
        return xr.Dataset(
            {
                "status": (run[:3], np.ones((1, 1, seeds), int), flags),
                "recovered": (run, np.ones(values.shape)),
                "recovery_time": (run, values),
            },
            coords={
                "alpha": [3.0], "N": [64], "seed": np.arange(seeds), "start": np.arange(starts)
            },
            attrs={"sweep": json.dumps({"descent": {"t_max": 99.0}, "problem": problem})},
        )  # fmt: skip

    found = recovery_times(dataset(times, "revealed"))
    assert int(found["matrices"].item()) == 24
    alone = dataset(times.reshape(1, 1, 24, 1), "gaussian")
    xr.testing.assert_allclose(found, recovery_times(alone))
