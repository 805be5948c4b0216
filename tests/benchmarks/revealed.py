"""What a sensing costs that is revealed as it is asked, and what its tolerance does.

    python tests/benchmarks/revealed.py large [N]
    python tests/benchmarks/revealed.py growth [FIGURE]
    python tests/benchmarks/revealed.py tolerance [RUNS]
    python tests/benchmarks/revealed.py law [RUNS] [N]
    python tests/benchmarks/revealed.py auto
    python tests/benchmarks/revealed.py null [N] [T]

alpha = 4, a = 1, float32, one start. `large` descends to t = 8 at N = 10^6 by plain steps of 0.02
and by the flow, each in a process of its own, on both cores, and prints beside it what a dense
matrix would take: its bytes, and its products at the speed of a matrix-vector product here, which
reads memory. `growth` runs N = 10^3 to 3 x 10^5 to times up to 16, on one core, and fits powers to
seconds and bytes; with a name it draws that figure. `tolerance` compares the law of energy and
overlap at t = 2.6, N = 1024 with that of 1e-7 in float64: how far the means are apart, and the p
value of Kolmogorov and Smirnov. Single runs cannot be compared: who opens another direction draws
another matrix. `law` compares runs to t = 20 with those on a matrix that is held, each run on one
of its own, at alpha = 3.5 and 5 by both methods: the p values of Kolmogorov and Smirnov for energy,
overlap and mu at ten times, and of Fisher for how many recovered; at N = 256 those of 1e-7 in
float64 too, which opens all directions. `auto` times both sensings at N = 128 to 16384 and
says what sensing = "auto" chooses. `null` goes on to t = 200 at N = 10^5 without a signal, and
prints the ranks on the way.
"""

import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from threadpoolctl import threadpool_limits

from alphasweep.kernels.descent import Outcome, Trajectory, descend
from alphasweep.kernels.flow import flow, round_trips
from alphasweep.kernels.instance import draw_instance, uniform_starts
from alphasweep.kernels.loss import IntensityLoss
from alphasweep.kernels.revealed import RevealedSensing, is_cheaper, revealed_seconds

LOSS, ALPHA, T = IntensityLoss(1.0), 4.0, 8.0
RATE, RATE_SMALL = 0.02, 0.03  # stable to N = 10^6, and to 10^4
TIMES, NONE = np.geomspace(0.05, T, 10), np.empty(0)


def run(method: str, N: int, *, t: float = T, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Descend once; returns the trajectory, its cost, and what was revealed."""
    sensing, threads = options.pop("sensing", "revealed"), options.pop("threads", 1)
    alpha, R = options.pop("alpha", ALPHA), options.pop("starts", 1)
    times = options.pop("times", TIMES)
    rate = options.pop("rate", RATE)
    settings = {"threads": threads, **options} if sensing == "revealed" else options
    since, spent = time.perf_counter(), time.process_time()
    with threadpool_limits(limits=1, user_api="blas"):
        instance = draw_instance(1, N, seed, M=round(alpha * N), sensing=sensing, **settings)
        precision = options.get("precision", "float32")
        W = uniform_starts(1, N, seed, range(R), precision=precision)
        if method == "gd":
            steps = sorted({0, *(round(at / rate) for at in (*times[times < t], t))})
            result = descend(instance, W, loss=LOSS, learning_rate=rate, record=steps)
        else:
            record = (0.0, *times[times < t], t)
            result = flow(instance, W, loss=LOSS, record=record, rest_within=0.0)
    found = {
        "trajectory": result,
        "seconds": time.perf_counter() - since,
        "cpu": time.process_time() - spent,
    }
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if isinstance(instance.sensing, RevealedSensing):
        found |= {"ranks": instance.sensing.ranks, "bytes": instance.sensing.nbytes}
        found["health"] = instance.sensing.health()
    return found


def alone(method: str, N: int, **options: Any) -> dict[str, Any]:
    """Run in a process of its own, whose peak of memory is that of the run."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(run, method, N, **options).result()


def large(N: int = 10**6) -> None:
    """Print time, memory, ranks and health of a run to t = 8, and what a dense one would take."""
    block = np.ones((4096, 16384), np.float32)
    w = np.ones(16384, np.float32)
    best = min(_seconds(lambda: block @ w) for _ in range(5)) / block.size
    M = round(ALPHA * N)
    print(f"{'':8} seconds   peak GB  products  right  left   health  dense: hours      TB")
    for method in ("gd", "flow"):
        found = alone(method, N, threads=2)
        products = int(found["trajectory"].products[0])
        right, left = found["ranks"]
        print(
            f"{method:8} {found['seconds']:7.1f} {found['peak'] / 1e9:9.2f} {products:9d} "
            f"{right:6d} {left:5d} {found['health']:8.1g} "
            f"{best * M * N * products / 3600:13.1f} {4 * M * N / 1e12:7.2f}",
            flush=True,
        )


def _seconds(what: Any) -> float:
    since = time.perf_counter()
    what()
    return time.perf_counter() - since


def growth(figure: str | None = None) -> None:
    """Print seconds and bytes of runs against N and t, and the powers that fit."""
    rows = []
    for N in (1000, 3000, 10_000, 30_000, 100_000, 300_000):
        for t in (2.0, 4.0, 8.0, 16.0) if N <= 100_000 else (2.0, 4.0, 8.0):
            found = run("flow", N, t=t, times=NONE)
            products = float(found["trajectory"].products[0])
            rows.append((N, t, found["cpu"], found["bytes"], *found["ranks"], products))
            expected = revealed_seconds(4 * N, N, t, round_trips(N, t, 1e-3), 1e-5)
            print(
                f"N = {N:6d}, t = {t:4g}: {found['cpu']:7.2f} s (expected {expected:.2f}), "
                f"{found['bytes'] / 1e6:8.1f} MB, ranks {found['ranks']}, {products:.0f} products",
                flush=True,
            )
    table = np.array(rows)
    beyond = table[table[:, 0] >= 10_000]
    design = np.column_stack([np.ones(len(beyond)), np.log(beyond[:, :2])])
    for name, column in (("seconds", 2), ("bytes", 3), ("ranks", 4), ("products", 6)):
        _, in_N, in_t = np.linalg.lstsq(design, np.log(beyond[:, column]), rcond=None)[0]
        print(f"{name} grow as N^{in_N:.2f} t^{in_t:.2f} (N >= 10^4)")
    if figure:
        _draw(table, figure)


def _draw(table: np.ndarray, figure: str) -> None:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7, 3), layout="constrained")
    panels = drawn.subplots(1, 2)
    for axes, column, label, scale in zip(
        panels, (2, 3), ("core-seconds", "memory of the directions (GB)"), (1.0, 1e-9), strict=True
    ):
        for t in np.unique(table[:, 1]):
            rows = table[table[:, 1] == t]
            axes.loglog(rows[:, 0], scale * rows[:, column], "o-", ms=3, label=f"t = {t:g}")
        last = table[table[:, 1] == T][-1]
        guide = scale * last[column] * (table[:, 0] / last[0])
        axes.loglog(table[:, 0], guide, "k:", lw=1, label="∝ N")
        if column == 3:
            dense = 4 * ALPHA * table[:, 0] ** 2 * scale
            axes.loglog(table[:, 0], dense, "k--", lw=1, label="dense matrix")
        axes.set(xlabel="N", ylabel=label)
        axes.legend(fontsize=7)
    drawn.savefig(Path(figure), dpi=150)


def tolerance(runs: int = 400) -> None:
    """Print what a tolerance changes in the law of runs, against 1e-7 in float64."""
    N = 1024

    def several(**options: Any) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
        each = [run("gd", N, seed=s, rate=RATE_SMALL, **options) for s in range(runs)]
        ends = [found["trajectory"] for found in each]
        numbers = {
            "energy": np.array([one.energy[0, -3] for one in ends]),
            "overlap": np.array([abs(one.overlap[0, -3]) for one in ends]) * np.sqrt(N),
        }
        ranks = np.mean([found["ranks"] for found in each], axis=0)
        return numbers, ranks, float(np.mean([found["cpu"] for found in each]))

    fine, _, _ = several(precision="float64", tolerance=1e-7)
    print(
        "tolerance  ranks         energy off (p)    overlap off (p)   in standard errors; seconds"
    )
    for share in (1e-1, 3e-2, 1e-2, 1e-3, 1e-4, 1e-5, 3e-6):
        found, ranks, cpu = several(tolerance=share)
        off = []
        for name, expected in fine.items():
            mine = found[name]
            error = np.hypot(stats.sem(mine), stats.sem(expected))
            p = stats.ks_2samp(mine, expected).pvalue
            off.append(f"{(mine.mean() - expected.mean()) / error:8.1f} ({p:.2g})")
        print(
            f"{share:9.0e}  {ranks[0]:5.1f} {ranks[1]:6.1f}  {'  '.join(off)}  {cpu:7.3f}",
            flush=True,
        )


def law(runs: int = 400, N: int = 0) -> None:
    """Print how likely differences are as large as those to a matrix that is held."""
    print(
        "     N  alpha  method  sensing      least of 30 p (times 30)   recovered, of; p",
        flush=True,
    )
    for size in (N,) if N else (256, 1024):
        for alpha in (3.5, 5.0):
            for method in ("gd", "flow"):
                held = _ended(method, size, alpha, runs, sensing="gaussian")
                kinds: dict[str, dict[str, Any]] = {"revealed": {}}
                if size == 256:
                    kinds["of full rank"] = {"tolerance": 1e-7, "precision": "float64"}
                for k, (kind, options) in enumerate(kinds.items(), start=1):
                    mine = _ended(method, size, alpha, runs, first=k * runs, **options)
                    p = stats.ks_2samp(mine[:, 1:], held[:, 1:]).pvalue
                    recovered = [int(each[:, 0].sum()) for each in (mine, held)]
                    same = stats.fisher_exact([[n, runs - n] for n in recovered]).pvalue
                    print(
                        f"{size:6d} {alpha:6g}  {method:6}  {kind:12} "
                        f"{p.min():8.2g} ({min(1.0, p.size * p.min()):.2g})"
                        f"{'':12}{recovered[0]}, {recovered[1]}; {same:.2g}",
                        flush=True,
                    )


def _ended(
    method: str, N: int, alpha: float, runs: int, first: int = 0, **options: Any
) -> np.ndarray:
    """Descend to t = 20; recovered, and energy, overlap and mu at ten times, of each run."""
    times, rows = np.geomspace(0.05, 20.0, 10)[:-1], []
    for seed in range(first, first + runs):
        found = run(method, N, t=20.0, seed=seed, alpha=alpha, rate=0.03, times=times, **options)
        one: Trajectory = found["trajectory"]
        recovered = one.outcome[0] == Outcome.RECOVERED
        found_at = (each[0, 1:] for each in (one.energy, abs(one.overlap), one.mu))
        rows.append([recovered, *np.concatenate(list(found_at))])
    return np.nan_to_num(np.array(rows), nan=-1.0)


def auto() -> None:
    """Time both sensings, and print what sensing = "auto" chooses and what it loses."""
    print("method    t  starts      N   dense  revealed (s a start)  auto      lost")
    for method, t, R in (("gd", 8.0, 1), ("gd", 8.0, 16), ("flow", 8.0, 16), ("flow", 60.0, 16)):
        for N in (128, 512, 1024, 2048, 4096, 8192, 16384):
            if R * N > 16 * 8192 or (t > 8 and N > 4096):
                continue
            trips = t / RATE if method == "gd" else round_trips(N, t, 1e-3)
            chosen = is_cheaper(4 * N, N, starts=R, t=t, round_trips=trips)
            held = _best(method, N, t, sensing="gaussian", starts=R) / R
            shown = _best(method, N, t)
            lost = (shown if chosen else held) / min(shown, held)
            print(
                f"{method:6} {t:4g} {R:7d} {N:6d} {held:7.3f} {shown:9.3f}"
                f"{'':15}{'revealed' if chosen else 'gaussian'} {lost:6.2f}",
                flush=True,
            )


def _best(method: str, N: int, t: float, **options: Any) -> float:
    repeats = 3 if N <= 2048 else 1
    return min(float(run(method, N, t=t, times=NONE, **options)["cpu"]) for _ in range(repeats))


def null(N: int = 10**5, t: float = 200.0) -> None:
    """Follow the flow without a signal, and print ranks against time."""
    for until in np.geomspace(1, t, 8) if t > 1 else (t,):
        found = run("flow", N, t=float(until), times=NONE, signal="null", threads=2)
        trajectory: Trajectory = found["trajectory"]
        print(
            f"t = {until:6.1f}: ranks {found['ranks']}, {found['bytes'] / 1e9:.2f} GB, "
            f"energy {trajectory.final_energy[0]:.4f}, {found['seconds']:.0f} s, "
            f"health {found['health']:.1g}",
            flush=True,
        )


if __name__ == "__main__":
    command, *numbers = sys.argv[1:] or ["large"]
    commands = {f.__name__: f for f in (large, growth, tolerance, law, auto, null)}
    commands[command](*(n if command == "growth" else int(float(n)) for n in numbers))
