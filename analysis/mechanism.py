"""How runs find the signal: the growth of the overlap, and whether the outlier was still there.

The paper's explanation (arXiv:2403.02418) is a race: at the start the Hessian has an outlier that
points to the signal, the overlap grows, and at some time the outlier is lost in the bulk, the BBP
transition: the door closes. A run *escapes* when abs(overlap) passes `SMALL_OVERLAP`, beyond which
the equations of the outlier do not hold.
"""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from alphasweep.analysis.recovery import is_done, matrix_by_matrix

#: The large-N spectrum assumes a small overlap; beyond this it means nothing.
SMALL_OVERLAP = 0.3

_RESAMPLED = 200


def escapes(ds: xr.Dataset) -> xr.Dataset:
    """Time when each run escaped, and when the door closed for it.

    Parameters
    ----------
    ds
        A sweep's dataset with a signal; ``overlap``, ``outlier`` and ``recovered`` are used.

    Returns
    -------
    xr.Dataset, (alpha, N, seed, start)
        ``escape``: when abs(overlap) passed `SMALL_OVERLAP`, interpolated between records in the
        logarithms; NaN if it did not. ``door``: the middle (geometric) of the last record with an
        outlier and the first without one, 0 if there was none at the start; NaN if the run escaped
        before. ``recovered``, boolean; False of cells that are not done.
    """
    ds = matrix_by_matrix(ds)
    ds = ds[["status", "overlap", "outlier", "recovered"]].load()
    time, done = ds["time"].values, is_done(ds)
    size = abs(ds["overlap"]).transpose("alpha", "N", "seed", "start", "time").values
    outlier = ds["outlier"].transpose("alpha", "N", "seed", "start", "time").notnull().values
    known = np.isfinite(size)
    large = known & (size > SMALL_OVERLAP)
    gone = known & ~outlier & (np.cumsum(large, axis=-1) == 0)

    def first(which: np.ndarray) -> np.ndarray:
        return np.where(which.any(axis=-1), which.argmax(axis=-1), -1)

    k, closed = first(large), first(gone)
    before = np.maximum(k - 1, 0)
    at, earlier = (np.take_along_axis(size, i[..., None], -1)[..., 0] for i in (k, before))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.log(SMALL_OVERLAP / earlier) / np.log(at / earlier)
        # The first interval begins at t = 0, which has no logarithm.
        between = np.where(
            before > 0,
            time[before] * (time[k] / time[before]) ** share,
            time[before] + share * (time[k] - time[before]),
        )
        alive = time[np.maximum(closed - 1, 0)]
        last = np.where(alive > 0, np.sqrt(alive * time[closed]), time[closed] / 2)
    escape = np.where(k > 0, between, np.where(k == 0, 0.0, np.nan))
    door = np.where(closed > 0, last, np.where(closed == 0, 0.0, np.nan))
    dims = ("alpha", "N", "seed", "start")
    keep = done.transpose("alpha", "N", "seed").values[..., None]
    found = (ds["recovered"].transpose(*dims) == 1).values & keep
    return xr.Dataset(
        {
            "escape": (dims, np.where(keep, escape, np.nan)),
            "door": (dims, np.where(keep, door, np.nan)),
            "recovered": (dims, found),
        },
        coords={name: ds[name] for name in dims},
    )


def ways_out(escaped: xr.Dataset) -> xr.Dataset:
    """Share of the runs that recovered which had escaped before the door closed.

    Parameters
    ----------
    escaped
        As `escapes` returns.

    Returns
    -------
    xr.Dataset, (alpha, N)
        ``before`` and its ``standard_error``, matrices as clusters; ``late``, the share that
        escaped more than three times as late as the door closed; ``recovered``, how many runs the
        shares are of. NaN where that is 0.
    """
    found = escaped["recovered"]
    early = found & (escaped["door"].isnull() | (escaped["door"] > escaped["escape"]))
    late = found & ~early & ~(escaped["escape"] <= 3 * escaped["door"])
    each, all_of = early.sum("start"), found.sum("start")
    total = all_of.sum("seed")
    share = (each.sum("seed") / total).where(total > 0)
    matrices = (all_of > 0).sum("seed")
    spread = ((each - share * all_of) ** 2).sum("seed") * matrices / (matrices - 1)
    error: xr.DataArray = spread.where(matrices > 1) ** 0.5 / total.where(total > 0)
    return xr.Dataset(
        {
            "before": share,
            "standard_error": error,
            "late": (late.sum(["seed", "start"]) / total).where(total > 0),
            "recovered": total,
        }
    )


def overlap_growth(ds: xr.Dataset) -> xr.Dataset:
    """Growth of the overlap from the start: median abs(overlap) against time.

    Parameters
    ----------
    ds
        As of `escapes`. Runs that ended keep the last overlap that was recorded.

    Returns
    -------
    xr.Dataset, (alpha, N, time)
        ``growth``: the median over the runs, over that at t = 0; ``scaled``: the median times
        sqrt(N), which is the same for all N as long as overlaps are small and N is large;
        ``standard_error`` of both, relative, by 200 bootstraps of the matrices; ``median``.
        ``pull``, minus the outlier (0 without one) integrated over time, the mean over the runs:
        what log(growth) would be if all of the overlap grew along the outlier's eigenvector.
    """
    ds = matrix_by_matrix(ds)
    ds = ds[["status", "overlap", "outlier"]].load()
    dims = ("alpha", "N", "seed", "start", "time")
    size = abs(ds["overlap"]).where(is_done(ds)).transpose(*dims)
    recorded = np.where(np.isfinite(size.values), np.arange(size.sizes["time"]), 0)
    kept = np.take_along_axis(size.values, np.maximum.accumulate(recorded, axis=-1), -1)
    size = size.copy(data=kept)
    rng = np.random.default_rng(0)
    values = size.values
    drawn = np.stack(
        [
            _median(values[:, :, rng.integers(0, values.shape[2], values.shape[2])])
            for _ in range(_RESAMPLED if values.shape[2] > 1 else 0)
        ]
        or [np.full((*values.shape[:2], values.shape[-1]), np.nan)]
    )
    outer = ("alpha", "N", "time")
    median = xr.DataArray(_median(values), dims=outer)
    rate = (-ds["outlier"].transpose(*dims)).fillna(0).where(size.notnull()).mean(["seed", "start"])
    pull = rate.cumulative_integrate("time") if rate.sizes["time"] > 1 else 0 * rate
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.std(np.log(drawn), axis=0)
    return xr.Dataset(
        {
            "median": median,
            "growth": median / median.isel(time=0),
            "scaled": median * np.sqrt(ds["N"]),
            "standard_error": (outer, error),
            "pull": pull.transpose(*outer),
        },
        coords={name: ds[name] for name in outer},
    )


def _median(values: np.ndarray) -> np.ndarray:
    """Median over the runs, (alpha, N, time); NaN without any."""
    flat = values.reshape(*values.shape[:2], -1, values.shape[-1])
    some = np.isfinite(flat).any(axis=2)
    found = np.nanmedian(np.where(some[:, :, None], flat, 0.0), axis=2)
    return np.where(some, found, np.nan)


def describe(escaped: xr.Dataset, half: xr.Dataset) -> str:
    """Say, at the alpha nearest to alpha_half(N), how the runs that recovered had escaped.

    Parameters
    ----------
    escaped
        As `escapes` returns.
    half
        As `analysis.recovery.alpha_half` returns.

    Returns
    -------
    str
        A line for each N at which alpha_half is known; "" if there is none.
    """
    shares = ways_out(escaped)
    lines = []
    for N in half["N"].values:
        middle = float(half["alpha_half"].sel(N=N))
        if math.isnan(middle) or not (escaped["door"].sel(N=N) != 0).any():
            continue  # there was never an outlier, as with the amplitude loss
        at = shares.sel(N=N).sel(alpha=middle, method="nearest")
        number = int(at["recovered"])
        if not number:
            continue
        before, late = float(at["before"]), float(at["late"])
        lines.append(
            f"  N = {N}, alpha = {float(at['alpha']):g}: of {number} runs that recovered "
            f"{before:.0%} had escaped before the outlier was gone, {late:.0%} more than three "
            "times later"
        )
    if not lines:
        return ""
    head = f"escape is |m| > {SMALL_OVERLAP:g}; the door closes when the outlier is gone:"
    return "\n".join([head, *lines])
