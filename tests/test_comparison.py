"""Claims about sweeps that are compared."""

import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from alphasweep.analysis.comparison import compare, comparison, describe
from alphasweep.analysis.study import Study
from alphasweep.analysis.style import why_empty
from alphasweep.pipeline.cli import app
from tests.test_figures import null_model, sweep, texts


def studies(**more: xr.Dataset) -> dict[str, Study]:
    """Two sweeps whose thresholds differ by a fifth at N = 64 and more at 256, and others."""
    return {
        name: Study(ds)
        for name, ds in ({"one": sweep(), "other": sweep(growth=0.6)} | more).items()
    }


def test_differences_are_to_the_first_sweep() -> None:
    """With the errors of both, as of sweeps that share nothing."""
    both = studies()
    found = compare(both)
    assert found["difference"].isel(sweep=0).isnull().all()
    halves = [one.half for one in both.values()]
    for N in (64, 128, 256):
        one, other = (half.sel(N=N) for half in halves)
        at = found.sel(sweep="other", N=N)
        assert float(at["difference"]) == pytest.approx(float(other.alpha_half - one.alpha_half))
        error = math.hypot(float(one.standard_error), float(other.standard_error))
        assert float(at["difference_error"]) == pytest.approx(error)
    assert float(found["difference"].sel(sweep="other", N=256)) > 0.3
    told = describe(found)
    assert "in brackets its difference to that of one:" in told
    assert "N = 256: one 2." in told


def test_an_N_that_one_sweep_lacks_has_no_difference() -> None:
    """It is told as "-", and has no panel."""
    found = compare(studies(small=sweep(N=[64])))
    assert found["difference"].sel(sweep="small", N=[128, 256]).isnull().all()
    assert "small -" in describe(found)
    figure = comparison(studies(small=sweep(N=[64])))
    assert [t.get_text() for axis in figure.axes for t in axis.texts] == ["$N = 64$"]


def test_the_figure_shows_every_sweep_at_every_shared_N() -> None:
    """A panel an N, points at the shares, a legend of the names; all texts inside."""
    both = studies()
    figure = comparison(both)
    for axis, N in zip(figure.axes, (64, 128, 256), strict=False):
        points = [np.asarray(c.lines[0].get_ydata()) for c in axis.containers]
        for mine, one in zip(points, both.values(), strict=True):
            np.testing.assert_allclose(mine, one.probability["probability"].sel(N=N))
    seen = texts(figure)
    assert {"one", "other"} <= {text.get_text() for text in seen}
    for box in (text.get_window_extent() for text in seen):
        assert figure.bbox.padded(1).containsx(box.x0)
        assert figure.bbox.padded(1).containsx(box.x1)
    assert "no N in common" in why_empty(comparison(studies(far=sweep(N=[512]))))
    assert "no signal" in why_empty(comparison(studies(null=null_model())))


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["a.zarr"], "STORE must be two stores or more of different names; got a.zarr."),
     (["a.zarr", "b/a.zarr"], "of different names; got a.zarr, b/a.zarr."),
     (["a.zarr", "b.zarr"], "a.zarr")],
)  # fmt: skip
def test_wrong_words_are_refused(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One store, two of one name, or none that is there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        app(["compare", *words])
    assert ended.value.code == 1
    assert expected in " ".join(capsys.readouterr().err.split())
