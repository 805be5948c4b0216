"""A part's cells are the kernels' own answers, whatever process and however many threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from alphasweep.kernels.descent import Outcome, descend
from alphasweep.kernels.flow import flow
from alphasweep.kernels.hessian import Eigenpairs, lowest_eigenpairs
from alphasweep.kernels.instance import draw_instance, uniform_starts
from alphasweep.kernels.loss import Array, IntensityLoss
from alphasweep.pipeline import part
from alphasweep.pipeline.dataset import COMPUTED
from alphasweep.pipeline.part import Part, compute
from alphasweep.pipeline.spec import Sweep
from tests.conftest import TINY, tiny

# No setting is a default, and M is not alpha N = 22.5.
STARTS = [0, 1, 5, 7]
DOCUMENT: dict[str, Any] = TINY | {
    "root_seed": 8,
    "grid": {"alpha": [2.5], "N": [9], "seed": [1, 2], "start": STARTS},
    "problem": {"a": 1.5},
    "record": {"times": [0.41]},
    "probe": {"times": [0.0, 1.0, 2.0], "modes": 3},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "gd": {"learning_rate": 0.04, "trapped_below": 0.02},
    "flow": {"tolerance": 2e-3, "rest_within": 0.02},
}
RECORD = {"gd": [0, 10, 25, 50, 300], "flow": [0.0, 0.41, 1.0, 2.0, 12.0]}
PROBED = (0, 2, 3)  # of these


def sweep_by(method: str, signal: str = "planted", precision: str = "float32") -> Sweep:
    """Return the sweep by a method of the descent."""
    ends = {"t_max": 12.0, "recovered_at": 0.9, "precision": precision}
    problem = DOCUMENT["problem"] | {"signal": signal}
    descent = SETTINGS[method] | ends | {"method": method}
    return Sweep.from_document(DOCUMENT | {"problem": problem, "descent": descent})


def answer(method: str, seed: int, signal: Any, precision: Any) -> dict[str, Any]:
    """Ask the kernels what the cell of a seed is."""
    instance = draw_instance(8, 9, seed, M=22, signal=signal, precision=precision)
    starts = uniform_starts(8, 9, seed, STARTS, precision=precision)
    loss, pairs = IntensityLoss(1.5), list[Eigenpairs]()
    values, overlaps = np.full((2, len(RECORD[method]), 3), np.nan)

    def probe(k: int, w: Array) -> None:
        if k in PROBED:
            v0 = pairs[-1].vectors[:, 0] if pairs else None
            pairs.append(lowest_eigenpairs(instance, w, loss=loss, modes=3, v0=v0))
            values[k] = pairs[-1].values
            overlaps[k] = pairs[-1].signal_overlap(instance.w_star)

    run = {"gd": descend, "flow": flow}[method](
        instance,
        starts,
        loss=loss,
        record=RECORD[method],
        recovered_at=0.9,
        probe=probe,
        **SETTINGS[method],
    )
    recovered = run.outcome == Outcome.RECOVERED
    return vars(run) | {"recovered": recovered, "lambda_min": values, "signal_overlap": overlaps}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("signal", ["planted", "null"])
@pytest.mark.parametrize("method", SETTINGS)
def test_a_cell_is_the_kernels_own_answer(method: str, signal: str, precision: str) -> None:
    """Field by field, to the bit, with every setting of the sweep."""
    recipe = sweep_by(method, signal, precision).recipe
    for cell, seed in zip(compute(recipe, Part(2.5, 9, 1, 2)), (1, 2), strict=True):
        expected = answer(method, seed, signal, precision)
        assert {*expected, "seconds"} == {*cell.dtype.names} == {*COMPUTED}
        for name, value in expected.items():
            np.testing.assert_array_equal(cell[name], np.array(value, cell[name].dtype), name)
        assert cell["seconds"] > 0


@pytest.mark.parametrize("method", SETTINGS)
def test_the_settings_of_that_cell_matter(method: str) -> None:
    """Some of its starts end by each of them."""
    cells = compute(sweep_by(method).recipe, Part(2.5, 9, 1, 2))
    ends = {Outcome(int(end)).name for end in cells["outcome"].ravel()}
    assert ends >= {"RECOVERED", "TRAPPED", "UNDECIDED"}


def test_a_probe_begins_at_the_vector_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest one; the first probe of a cell begins at none, whatever was computed before it."""
    began: list[Array | None] = []
    found: list[Eigenpairs] = []

    def probe(*args: Any, v0: Array | None, **more: Any) -> Eigenpairs:
        began.append(v0)
        found.append(lowest_eigenpairs(*args, v0=v0, **more))
        return found[-1]

    monkeypatch.setattr(part, "lowest_eigenpairs", probe)
    compute(tiny().recipe, Part(2.0, 8, 0, 1))  # two probes a cell
    expected = [None, found[0].vectors[:, 0], None, found[2].vectors[:, 0]]
    for one, other in zip(began, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_part_has_one_blas_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its process has: another number would sum in another order, and take a core."""
    seen: list[set[int]] = []
    real = part._compute_cell

    def blas() -> set[int]:
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    def look(*args: Any) -> Any:
        seen.append(blas())
        return real(*args)

    monkeypatch.setattr(part, "_compute_cell", look)
    with threadpool_limits(limits=2, user_api="blas"):
        assert blas() == {2}
        compute(tiny().recipe, Part(2.0, 8, 0, 0))
        assert blas() == {2}
    assert seen == [{1}]
