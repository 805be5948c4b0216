"""The sweep file says what is wanted, and `load` says everything that is wrong with it at once."""

from __future__ import annotations

import json
import pickle
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from alphasweep.kernels.instance import measurements
from alphasweep.kernels.loss import IntensityLoss
from alphasweep.kernels.methods import METHODS
from alphasweep.kernels.problem import Problem
from alphasweep.pipeline.messages import SweepError
from alphasweep.pipeline.sections import DESCENTS
from alphasweep.pipeline.spec import Sweep, as_document, load, preset_names, template
from alphasweep.pipeline.sweeps import differences, gains, union, widened

GOOD = """
name = "lap"
root_seed = 3
[grid]
alpha = [2.0, 3]
N = [16, 32]
seed = { from = 0, to = 2 }
start = [0, 1]
[descent]
a = 1
learning_rate = 0.03
t_max = 60
[record]
times = [1, 5, 20]
[probe]
times = [0, 2]
modes = 2
"""


def sweep(**changes: Any) -> Sweep:
    """Return the sweep of GOOD with some keys replaced, as in sweep(grid={"N": [8]})."""
    document = tomllib.loads(GOOD)
    for key, value in changes.items():
        document[key] = document[key] | value if isinstance(value, dict) else value
    return Sweep.from_document(document)


def lines(**changes: Any) -> list[str]:
    """Return what is wrong with the sweep that `sweep` would return."""
    with pytest.raises(SweepError) as caught:
        sweep(**changes)
    return caught.value.problems


def file(folder: Path, text: str) -> Path:
    """Write a sweep file."""
    path = folder / "lap.toml"
    path.write_text(text, encoding="utf-8")
    return path


def file_lines(folder: Path, text: str) -> list[str]:
    """Return what is wrong with a sweep file; each line has to begin with its path."""
    path = file(folder, text)
    with pytest.raises(SweepError) as caught:
        load(path)
    start = f"sweep file {path}"
    assert all(line.startswith(start) for line in caught.value.problems)
    return [line.removeprefix(start) for line in caught.value.problems]


def labels(low: int) -> st.SearchStrategy[list[int]]:
    """Draw the values of an integer axis, in any order."""
    return st.lists(st.integers(low, 10_000), min_size=1, max_size=8, unique=True)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the document of a valid sweep."""
    t_max = draw(st.floats(0.01, 1e4))
    times = st.lists(st.floats(0, t_max), min_size=1, max_size=8)
    sizes = draw(labels(2))
    probe = st.fixed_dictionaries({"times": times, "modes": st.integers(1, min(sizes) - 1)})
    alphas = st.lists(st.floats(0.51, 100), min_size=1, max_size=8, unique=True)
    return {
        "name": draw(st.from_regex(r"[A-Za-z0-9._-]+", fullmatch=True)),
        "root_seed": draw(st.integers(0, 2**128)),
        "grid": {
            "alpha": draw(alphas),
            "N": sizes,
            "seed": draw(labels(0)),
            "start": draw(labels(0)),
        },
        "problem": {
            "loss": "intensity",
            "a": draw(st.floats(1e-6, 1e6)),
            "signal": draw(st.sampled_from(["planted", "null"])),
        },
        "descent": {
            "learning_rate": t_max / draw(st.floats(1, 1e4)),
            "t_max": t_max,
            "recovered_at": draw(st.floats(0.01, 0.999)),
            "trapped_below": draw(st.floats(0, 1)),
            "precision": draw(st.sampled_from(["float32", "float64"])),
        },
        "record": {"times": draw(times)},
        "probe": draw(st.none() | probe),
    }


# --- what a sweep holds ---------------------------------------------------------------------


@given(documents())
def test_round_trip(document: dict[str, Any]) -> None:
    """A sweep survives the way through its document and JSON unchanged."""
    one = Sweep.from_document(document)
    stored = json.loads(json.dumps(as_document(one)))
    assert Sweep.from_document(stored) == one
    assert as_document(Sweep.from_document(stored)) == stored
    assert differences(one, Sweep.from_document(stored)) == []


@given(documents())
def test_steps(document: dict[str, Any]) -> None:
    """Steps ascend from 0 to the last one, lie within half a step of each time, and hold probes."""
    one = Sweep.from_document(document)
    recipe = one.recipe
    rate, steps = one.descent.own["learning_rate"], np.array(recipe.steps)
    assert steps[0] == 0
    assert steps[-1] >= 1
    assert np.all(np.diff(steps) > 0)
    assert set(recipe.probe_steps) <= set(recipe.steps)
    assert recipe.times.dtype == np.float64
    np.testing.assert_array_equal(recipe.times, rate * steps)
    wanted = [0, one.descent.t_max, *one.record.times, *(one.probe.times if one.probe else ())]
    for time in wanted:
        assert np.min(np.abs(recipe.times - time)) <= 0.5 * rate * (1 + 1e-9)


def test_last_step_is_rounded() -> None:
    """60 / 0.03 makes 2000 steps, 0.3 / 0.1 (2.9999999999999996 in floats) makes 3."""
    assert sweep().recipe.steps[-1] == 2000
    short = {"t_max": 0.3, "learning_rate": 0.1}
    assert sweep(descent=short, record={"times": []}, probe=None).recipe.steps == (0, 3)


def test_steps_of_an_example() -> None:
    """Record times, probe times, 0 and t_max are all recorded, at the nearest steps."""
    recipe = sweep().recipe
    assert recipe.steps == (0, 33, 67, 167, 667, 2000)
    assert recipe.probe_steps == (0, 67)
    assert sweep(probe=None).recipe.probe_steps == ()


def test_axes_are_ascending() -> None:
    """A list in any order gives an ascending axis of the right type."""
    grid = sweep(grid={"alpha": [3, 1.5, 2], "N": [64, 16]}).grid
    assert grid.alpha == (1.5, 2.0, 3.0)
    assert all(type(v) is float for v in grid.alpha)
    assert grid.N == (16, 64)


def test_decimal_range() -> None:
    """The range 2.0 .. 6.0 by 0.1 holds the floats that a reader would type, both ends included."""
    alpha = sweep(grid={"alpha": {"from": 2.0, "to": 6.0, "step": 0.1}}).grid.alpha
    assert alpha == tuple(float(f"{i // 10}.{i % 10}") for i in range(20, 61))


@given(st.integers(1, 500), st.integers(0, 200), st.integers(1, 50), st.integers(0, 4))
def test_any_decimal_range(first: int, count: int, step: int, digits: int) -> None:
    """A range of decimals equals the list of the same decimals as typed."""
    typed = [Decimal(first + i * step).scaleb(-digits) for i in range(count + 1)]
    ends = {"from": float(typed[0]), "to": float(typed[-1])}
    by = float(Decimal(step).scaleb(-digits))
    large = {"N": [100_000]}  # so that M >= 1 for the smallest alpha
    ranged = sweep(grid={"alpha": ends | {"step": by}, **large})
    assert ranged == sweep(grid={"alpha": [float(str(v)) for v in typed], **large})


def test_integer_range() -> None:
    """An integer range includes its end, and its step is 1 unless it is given."""
    grid = sweep(grid={"seed": {"from": 0, "to": 3}, "N": {"from": 16, "to": 48, "step": 16}}).grid
    assert grid.seed == (0, 1, 2, 3)
    assert grid.N == (16, 32, 48)


def test_log_spaced_times() -> None:
    """A table of times has exactly the ends that were typed, and constant ratios between."""
    times = np.array(sweep(record={"times": {"from": 0.03, "to": 60, "count": 40}}).record.times)
    assert (times[0], times[-1], len(times)) == (0.03, 60, 40)
    np.testing.assert_allclose(times[1:] / times[:-1], 2000 ** (1 / 39))


def test_defaults() -> None:
    """Left out of a file: the planted model, float32, recovered at 0.99, trapped below 1e-3."""
    descent, problem = sweep().descent, sweep().problem
    assert problem == Problem(IntensityLoss(1.0), "planted", "gaussian", "uniform")
    assert descent.precision == "float32"
    assert (descent.method, descent.recovered_at) == ("gd", 0.99)
    assert descent.own == {"learning_rate": 0.03, "trapped_below": 1e-3}


def flow(**settings: Any) -> Sweep:
    """Return the sweep of GOOD by the method flow."""
    settings = {"a": 1, "t_max": 60, "method": "flow"} | settings
    return Sweep.from_document(tomllib.loads(GOOD) | {"descent": settings})


def test_flow_is_recorded_at_the_very_times() -> None:
    """Its counts are times, and its settings have defaults; a document keeps them."""
    one = flow(rest_within=0)
    assert one.descent.own == {"tolerance": 1e-3, "rest_within": 0}
    assert one.recipe.steps == (0, 1, 2, 5, 20, 60)
    assert one.recipe.probe_steps == (0, 2)
    np.testing.assert_array_equal(one.recipe.times, one.recipe.steps)
    assert Sweep.from_document(json.loads(json.dumps(as_document(one)))) == one
    assert pickle.loads(pickle.dumps(one.recipe)) == one.recipe
    assert '[descent] method = "gd" in the store, "flow" in this sweep' in differences(sweep(), one)
    assert set(METHODS) == set(DESCENTS)


@pytest.mark.parametrize(
    ("descent", "expected"),
    [
        (
            {"method": "flow", "learning_rate": 0.1},
            '[descent] learning_rate: is a setting of method = "gd", and this descent has method = '
            '"flow": leave it out, or choose the other method.',
        ),
        (
            {"learning_rate": 0.03, "tolerance": 1e-3},
            '[descent] tolerance: is a setting of method = "flow", and this descent has method = '
            '"gd": leave it out, or choose the other method.',
        ),
        ({"method": "euler"}, '[descent] method: must be one of gd, flow; got "euler".'),
        ({"method": 3}, "[descent] method: must be text; got 3."),
        ({"learning_rate": "fast"}, 'learning_rate: must be numeric, or "auto"; got "fast".'),
        ({"learning_rate": True}, 'learning_rate: must be numeric, or "auto"; got true.'),
        ({"learning_rate": 0}, "learning_rate: must be finite and > 0; got 0."),
        ({"method": "flow", "tolerence": 1}, "unknown key; did you mean tolerance?"),
        ({"method": "flow", "tolerance": 0}, "[descent] tolerance: must be > 0; got 0."),
        ({"method": "flow", "rest_within": -1}, "[descent] rest_within: must be >= 0; got -1."),
        ({"method": "flow", "t_max": 10}, "[record] times: must lie in [0, t_max = 10]; got 20"),
    ],
)
def test_settings_belong_to_a_method(descent: dict[str, Any], expected: str) -> None:
    """One of another method, or a method that is not there, is one line that says so."""
    document = tomllib.loads(GOOD) | {"descent": {"a": 1, "t_max": 60} | descent}
    with pytest.raises(SweepError) as caught:
        Sweep.from_document(document)
    (line,) = caught.value.problems
    assert expected in line


def test_measurements() -> None:
    """M is alpha N rounded to a whole number."""
    assert measurements(2.3, 64) == 147
    assert measurements(4, 100) == 400


def test_frozen() -> None:
    """A sweep cannot be changed after it was validated."""
    with pytest.raises(ValidationError):
        sweep().name = "other"  # type: ignore[misc]


def test_built_in_python() -> None:
    """A sweep that is built without a file is checked across its sections, too."""
    good = sweep()
    with pytest.raises(ValidationError, match=r"\[record\] times: must lie in \[0, t_max = 60\]"):
        Sweep(
            name="x",
            root_seed=0,
            grid=good.grid,
            problem=good.problem,
            descent=good.descent,
            record=good.record.model_copy(update={"times": (1.0, 61.0)}),
        )


# --- files and presets ----------------------------------------------------------------------


def test_load_a_file(tmp_path: Path) -> None:
    """A file is read by its Path or its name, with or without a byte-order mark."""
    path = file(tmp_path, GOOD)
    assert load(path) == load(str(path)) == sweep()
    assert load(file(tmp_path, "\ufeff" + GOOD)) == sweep()


@pytest.mark.parametrize("name", preset_names())
def test_presets_load(name: str) -> None:
    """Every preset that ships is valid and carries its own name."""
    assert load(name).name == name


def test_presets_hold_what_they_promise() -> None:
    """N <= 64 in quick; laptop has >= 9 alphas and 8 x 16 runs; paper 24 alphas and 64 x 16."""
    assert {"quick", "laptop", "paper"} <= set(preset_names())
    quick, laptop, paper = (load(name).grid for name in ("quick", "laptop", "paper"))
    assert max(quick.N) <= 64
    assert laptop.N == (64, 128, 256, 512)
    assert len(laptop.alpha) >= 9
    assert (len(laptop.seed), len(laptop.start)) == (8, 16)
    assert paper.N == (64, 128, 256, 512, 1024, 2048, 4096)
    assert len(paper.alpha) == 24
    assert (len(paper.seed), len(paper.start)) == (64, 16)


def test_template(tmp_path: Path) -> None:
    """What `alphasweep init` writes is the preset laptop, with a comment on each key."""
    assert load(file(tmp_path, template())) == load("laptop")
    for line in template().splitlines():
        assert not line or "#" in line or line.startswith(("[", "times"))


def test_preset_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder called laptop, as a run may leave behind, does not hide the preset."""
    (tmp_path / "laptop").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load("laptop").name == "laptop"


def test_missing_file(tmp_path: Path) -> None:
    """A missing file or unknown preset names the presets, and the command that writes a file."""
    with pytest.raises(SweepError) as caught:
        load("labtop")
    message = str(caught.value)
    assert message.startswith("sweep file labtop: ")
    assert "alphasweep init" in message
    assert all(name in message for name in preset_names())


def test_unreadable(tmp_path: Path) -> None:
    """A folder, or bytes that are no text, are refused in one line."""
    with pytest.raises(SweepError, match=r"cannot be read: Is a directory\."):
        load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"name = \xff")
    with pytest.raises(SweepError, match="must be UTF-8 text; byte 7 is not"):
        load(tmp_path / "binary.toml")


# --- everything that can be wrong -------------------------------------------------------------


def test_everything_at_once(tmp_path: Path) -> None:
    """A file with a fault in every section shows all of them, each with key, value and place."""
    text = """
        name = "a b"
        root_seed = true
        colour = "red"
        [grid]
        alpha = [1.0, "2", -1.5]
        N = { from = 1, too = 4 }
        seed = { from = 0, to = 5, step = 2 }
        start = [1, 2, 1]
        [descent]
        a = nan
        learnin_rate = 0.03
        t_max = 60
        precision = "float16"
        [record]
        times = [1, 2, 3, 4, 80, -1]
        [probe]
        times = { from = 1, to = 70, count = 4 }
        modes = 2.0
    """
    allowed = "name, root_seed, grid, problem, descent, record, probe"
    assert set(file_lines(tmp_path, text)) == {
        """, name: must consist of letters, digits, '.', '_' and '-'; got "a b".""",
        ", root_seed: must be integer; got true.",
        f", colour: unknown key; allowed: {allowed}.",
        ', [grid] alpha: values must be numeric; got "2" (second value).',
        ", [grid] alpha: values must be > 0; got -1.5 (third value).",
        ", [grid] N.to: required, but missing.",
        ", [grid] N.too: unknown key; did you mean to?",
        ", [grid] seed: `to` must be reached in whole steps; "
        "got from = 0, to = 5, step = 2: set to = 4.",
        ", [grid] start: values must differ; got 1 more than once.",
        ", [descent] a: must be finite; got NaN.",
        ", [descent] learning_rate: required, but missing.",
        ", [descent] learnin_rate: unknown key; did you mean learning_rate?",
        """, [descent] precision: must be 'float32' or 'float64'; got "float16".""",
        ", [record] times: must lie in [0, t_max = 60]; got 80 (fifth value).",
        ", [record] times: must lie in [0, t_max = 60]; got -1 (sixth value).",
        ", [probe] times.to: must lie in [0, t_max = 60]; got 70.",
        ", [probe] modes: must be integer; got 2.0.",
    }


def test_bad_toml(tmp_path: Path) -> None:
    """A syntax error names the file, the line and the column."""
    (line,) = file_lines(tmp_path, 'name = "lap"\nroot_seed 3\n')
    assert line.startswith(": must be TOML; ")
    assert "line 2, column 11" in line


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"grid": {"alpha": [0, 2]}}, "[grid] alpha: values must be > 0; got 0 (first value)."),
        ({"grid": {"alpha": [-1e300]}}, "values must be > 0; got -1e+300 (first value)."),
        ({"grid": {"alpha": []}}, "[grid] alpha: must have at least one value; got []."),
        ({"grid": {"alpha": 3.0}}, "[grid] alpha: must be a list or a table; got 3.0."),
        (
            {"grid": {"alpha": [2, 2.0]}},
            "[grid] alpha: values must differ; got 2.0 more than once.",
        ),
        ({"grid": {"alpha": {"from": 1, "to": 2}}}, "[grid] alpha.step: required, but missing."),
        (
            {"grid": {"alpha": {"from": 2, "to": 1, "step": 1}}},
            "[grid] alpha: must have from <= to",
        ),
        ({"grid": {"alpha": {"from": 1, "to": 2, "step": 1e-9}}}, "at most 1000000 values; got"),
        ({"grid": {"alpha": {"from": 1, "to": 2, "step": 0}}}, "alpha.step: must be > 0; got 0."),
        (
            {"grid": {"alpha": [2, 0.01]}},
            "[grid] alpha: must give round(alpha N) >= 1 measurements at N = 16; "
            "got 0.01 (second value).",
        ),
        (
            {"grid": {"alpha": {"from": 0.01, "to": 0.05, "step": 0.01}}},
            "[grid] alpha.from: must give round(alpha N) >= 1 measurements at N = 16; got 0.01.",
        ),
        ({"grid": {"N": [16, 1]}}, "[grid] N: values must be >= 2; got 1 (second value)."),
        ({"grid": {"N": [16.0]}}, "[grid] N: values must be integer; got 16.0 (first value)."),
        ({"grid": {"N": []}}, "[grid] N: must have at least one value; got []."),
        ({"grid": {"seed": [*range(11), -1]}}, "values must be >= 0; got -1 (value 12)."),
        ({"grid": {"start": [True]}}, "[grid] start: values must be integer; got true"),
        ({"grid": 3}, "sweep, [grid]: must be a table; got 3."),
        ({"root_seed": -1}, "sweep, root_seed: must be >= 0; got -1."),
        ({"name": 3}, "sweep, name: must be text; got 3."),
        ({"descent": {"a": 0}}, "[descent] a: must be > 0; got 0."),
        ({"descent": {"recovered_at": 1}}, "[descent] recovered_at: must be < 1; got 1."),
        ({"descent": {"trapped_below": -1}}, "[descent] trapped_below: must be >= 0; got -1."),
        ({"descent": {"signal": "nul"}}, "signal: must be 'planted' or 'null'; got \"nul\"."),
        ({"descent": {"t_max": float("inf")}}, "[descent] t_max: must be finite; got Infinity."),
        (
            {"descent": {"learning_rate": 61}},
            "[descent] learning_rate: must reach t_max = 60 in 1 to 1000000000 steps; got 61.",
        ),
        ({"descent": {"learning_rate": 1e-320}}, "in 1 to 1000000000 steps; got 9.99989e-321."),
        (
            {"record": {"times": {"from": 0, "to": 9, "count": 5}}},
            "times.from: must be > 0; got 0.",
        ),
        (
            {"record": {"times": {"from": 1, "to": 9, "count": 1}}},
            "times.count: must be >= 2; got 1.",
        ),
        (
            {"record": {"times": {"from": 9, "to": 1, "count": 5}}},
            "times: must have from < to; got",
        ),
        (
            {"record": {"times": {"form": 9}}},
            "[record] times.form: unknown key; did you mean from?",
        ),
        ({"probe": {"times": []}}, "[probe] times: must have at least one value; got []."),
        ({"probe": {"modes": 0}}, "[probe] modes: must be >= 1; got 0."),
        ({"probe": {"modes": 16}}, "[probe] modes: must be < the smallest N = 16; got 16."),
    ],
)
def test_wrong_values(changes: dict[str, Any], expected: str) -> None:
    """One wrong value is refused with what must hold, what was received, and where."""
    found = lines(**changes)
    assert any(expected in line for line in found), found


def test_times_without_t_max() -> None:
    """Negative times are reported even if t_max itself is wrong."""
    found = lines(descent={"t_max": "long"}, record={"times": [-1]})
    assert found[-1] == "sweep, [record] times: must lie in [0, t_max]; got -1 (first value)."


def test_missing_sections() -> None:
    """An empty file names all that is required."""
    with pytest.raises(SweepError) as caught:
        Sweep.from_document({})
    where = ["name", "root_seed", "[grid]", "[problem]", "[descent]", "[record]"]
    assert caught.value.problems == [f"sweep, {key}: required, but missing." for key in where]


# --- may this sweep use that store? -----------------------------------------------------------


def test_no_differences() -> None:
    """The name, more alphas, sizes and seeds, and times on the same steps change no number."""
    wider = {"alpha": [1.0, 2.0, 3.0, 4.0], "N": [8, 16, 32], "seed": [0, 1, 2, 9]}
    other = sweep(name="wide", grid=wider, record={"times": [0, 1.001, 5, 20, 60]})
    assert differences(sweep(), other) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"root_seed": 4}, "root_seed = 3 in the store, 4 in this sweep"),
        ({"descent": {"a": 0.5}}, "[problem] a = 1.0 in the store, 0.5 in this sweep"),
        (
            {"descent": {"signal": "null"}},
            '[problem] signal = "planted" in the store, "null" in this sweep',
        ),
        (
            {"grid": {"start": [1, 2]}},
            "[grid] start: [0] only in the store, [2] only in this sweep",
        ),
        (
            {"record": {"times": [1, 6, 20]}},
            "[record] times: [5.0] only in the store, [6.0] only in this sweep",
        ),
        ({"probe": {"modes": 3}}, "[probe] modes = 2 in the store, 3 in this sweep"),
    ],
)
def test_one_difference(changes: dict[str, Any], expected: str) -> None:
    """Whatever would change a number is named with both values."""
    assert differences(sweep(), sweep(**changes)) == [expected]


def test_probe_added() -> None:
    """A sweep that wants probes cannot use a store without them."""
    assert differences(sweep(probe=None), sweep()) == [
        "[probe] times = null in the store, [0.0, 2.0] in this sweep",
        "[probe] modes = null in the store, 2 in this sweep",
    ]


# --- more values, as typed ---------------------------------------------------------------------


def grown(**typed: str) -> Sweep:
    """Return the sweep of GOOD with values added to its axes."""
    return widened(sweep(), typed)


@pytest.mark.parametrize(
    ("axis", "text", "expected", "said"),
    [
        ("seed", "0:8", tuple(range(8)), "seed 3 to 7"),
        ("seed", "4,7:9", (0, 1, 2, 4, 7, 8), "seed 4, 7, 8"),
        ("seed", "10:20:4", (0, 1, 2, 10, 14, 18), "seed 10, 14, 18"),
        ("seed", "10:30:2", (0, 1, 2, *range(10, 30, 2)), "seed 10 values from 10 to 28"),
        ("N", " 64, 128 ", (16, 32, 64, 128), "N 64, 128"),
        ("alpha", "2.5,4", (2.0, 2.5, 3.0, 4.0), "alpha 2.5, 4.0"),
        ("alpha", "3:3.4:0.1", (2.0, 3.0, 3.1, 3.2, 3.3), "alpha 3.1, 3.2, 3.3"),
        ("alpha", "3:3.35:0.1", (2.0, 3.0, 3.1, 3.2, 3.3), "alpha 3.1, 3.2, 3.3"),
        ("seed", "0:3", (0, 1, 2), ""),
        ("N", "", (16, 32), ""),
    ],
)
def test_values_are_added_as_typed(
    axis: str, text: str, expected: tuple[float, ...], said: str
) -> None:
    """A range leaves its end out, as in Python, and what is new is told."""
    assert getattr(grown(**{axis: text}).grid, axis) == expected
    assert gains(sweep(), grown(**{axis: text})) == said


@pytest.mark.parametrize(
    ("axis", "text", "expected"),
    [
        ("seed", "0:20000000", "a range must have first < end, step > 0, and at most 1,000,000"),
        ("seed", "0:" + "9" * 30, "at most 1,000,000 values; got 0:999"),
        ("seed", "8:8", "first < end"),
        ("seed", "8:4", "first < end"),
        ("seed", "0:8:0", "step > 0"),
        ("seed", "0:8:-1", "step > 0"),
        ("seed", "0:1:2:3", "must be numbers separated by commas, or first:end or"),
        ("seed", ":8", "must be numbers separated by commas"),
        ("seed", "-1:2", "[grid] seed: values must be >= 0; got -1"),
        ("seed", "1.5", "must be numbers separated by commas"),
        ("alpha", "3:4", "--alpha: a range must have a step, first:end:step; got 3:4"),
        ("alpha", "3:inf:1", "first < end"),
        ("alpha", "nan:4:1", "first < end"),
        ("alpha", "3:4:1e-9", "at most 1,000,000 values"),
        ("alpha", "nan", "[grid] alpha: values must be finite"),
        ("N", "1", "[grid] N: values must be >= 2; got 1"),
    ],
)
def test_values_that_cannot_be_added(axis: str, text: str, expected: str) -> None:
    """One line each, however large the numbers, and at once."""
    with pytest.raises(SweepError) as caught:
        grown(**{axis: text})
    (line,) = caught.value.problems
    assert expected in line


def test_a_product_of_axes_that_are_each_legal(tmp_path: Path) -> None:
    """More cells than a store stands are refused in a file, with what the axes have."""
    text = GOOD.replace("to = 2 }", "to = 999999 }").replace("[2.0, 3]", "[2, 3, 4, 5, 6, 7]")
    (line,) = file_lines(tmp_path, text)
    rule = "[grid]: must have at most 10,000,000 cells (alpha, N, seed) in one store"
    assert f"{rule}; got 12,000,000 (6 alpha x 2 N x 1,000,000 seeds): " in line


def test_what_a_store_stands_is_asked_of_what_grows() -> None:
    """Of an extension, and of a file for a store; a larger sweep that is there stays as it is."""
    axes = {"alpha": [float(v) for v in range(1, 11)], "seed": list(range(500_000))}
    most = sweep(grid=axes)
    assert most.cells == 10_000_000
    for larger in (
        lambda: widened(most, {"seed": "500000"}),
        lambda: union(most, sweep(grid={"seed": [500_000]})),
    ):
        with pytest.raises(SweepError, match="at most 10,000,000 cells"):
            larger()
    beyond = sweep(grid=axes | {"seed": list(range(500_001))})
    assert union(beyond, sweep()) == beyond
    assert widened(beyond, {"seed": "7"}) == beyond
    pairs = {"alpha": np.linspace(2, 3, 50_001).tolist(), "seed": [0]}
    with pytest.raises(SweepError, match=r"at most 100,000 pairs \(alpha, N\) .* got 100,002"):
        union(sweep(), sweep(grid=pairs))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mine", "mine"),
        ("my sweep", "my-sweep"),
        ("проба", "sweep"),
        ("a'b\nc", "a-b-c"),
        ("", "sweep"),
    ],
)
def test_a_template_has_a_name_that_a_sweep_may_have(
    tmp_path: Path, name: str, expected: str
) -> None:
    """Whatever the file is called."""
    assert load(file(tmp_path, template(name))).name == expected
