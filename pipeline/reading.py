"""The reader's door: what `xarray.open_zarr` shows, with what a reader derives from it anyway."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import xarray as xr

from alphasweep.kernels.descent import Outcome
from alphasweep.kernels.instance import measurements
from alphasweep.pipeline import layout
from alphasweep.pipeline.dataset import AXES, DONE, pair_variables
from alphasweep.pipeline.spec import Sweep
from alphasweep.pipeline.store import Store, StoreError


def open_sweep(path: str | Path) -> xr.Dataset:
    """Open a sweep's store, lazily; also while a run writes it.

    Numbers are those of ``xarray.open_zarr(path)``, with this in addition:

    - Cells that are not done, at the moment of the call, read as not computed, whatever a commit
      under way has written of them: so each cell is there as a whole or not at all.
    - ``is_done`` (alpha, N, seed), and ``is_recovered``, ``is_trapped``, ``is_undecided``,
      ``is_diverged`` (alpha, N, seed, start): masks, False where a cell is not done.
    - ``abs_overlap``: the sign of ``overlap`` is arbitrary.
    - Coordinates of size, to plot against: ``measurements`` and ``alpha_used`` (alpha, N), the
      ratio that M = round(alpha N) makes of alpha, and ``log_N`` (N).

    Parameters
    ----------
    path : str or Path
        Of a Zarr store that ``alphasweep run`` made.

    Returns
    -------
    xr.Dataset
        Of Dask arrays; ``status`` and the coordinates are in memory. The attribute ``sweep`` is the
        sweep file with all its values, as JSON text. The attributes ``flag_values`` are of the type
        of their variables, as CF wants (Zarr's own have no type).

    Notes
    -----
    ``to_netcdf`` writes it, or ``xarray.open_zarr(path)``; netCDF 3 makes 32-bit labels of 64-bit.
    Sweeps of other seeds, or alphas, or N, are put together by ``xarray.concat`` along that axis,
    with ``data_vars="minimal"``. The seeds of another root_seed are other matrices under the same
    names: give them other names first, as in ``other.assign_coords(seed=other.seed + 1000)``. The
    attributes are then those of the first sweep, also for what ``code`` points to.

    Raises
    ------
    StoreError
        If there is no sweep at the path, or its status or coordinates are damaged.
    """
    store = Store(path)
    attributes = store.attributes()
    try:
        # One reading of the metadata; and status without Dask, which takes thrice as long for it.
        dataset = cast(xr.Dataset, xr.open_zarr(store.path, chunks=None))
        attributes = layout.attributes_of({"attributes": dataset.attrs})
        sweep = Sweep.from_document(attributes["sweep"])
        _check_labels(dataset, sweep)
        # Before anything else: what is done here is whole on the disk.
        is_done = dataset.status.load() == DONE
    except (ValueError, KeyError) as error:  # of Zarr, for a damaged chunk; or of _check_labels
        raise StoreError(
            f"store {store.path} must have the status and coordinates of its sweep; {error}: "
            f"see alphasweep verify {store.path}."
        ) from None
    blocks = {"alpha": 1, "N": 1, "seed": attributes["seeds_per_chunk"]}
    names = [name for name in attributes["cell_variables"] if name != "status"]
    fills = {name: array.fill_value for name, array in layout.open_arrays(store.path).items()}
    computed = _computed(dataset, is_done, {name: fills[name] for name in names}, blocks)
    masks = {
        f"is_{outcome.name.lower()}": _labelled(
            computed.outcome == outcome, f"whether the start ended as {outcome.name.lower()}"
        )
        for outcome in Outcome
        if outcome != Outcome.MISSING
    }
    whole = (
        computed.assign(masks)
        .assign(
            is_done=_labelled(is_done, "whether the cell is done"),
            abs_overlap=_labelled(abs(computed.overlap), "absolute value of overlap"),
        )
        .set_coords(pair_variables(sweep.recipe))
        .assign_coords(
            alpha_used=_labelled(computed.measurements / computed.N, "M/N that was used"),
            log_N=_labelled(np.log(computed.N), "natural logarithm of N"),
        )
        .assign_attrs(layout.as_text(attributes))
    )
    for variable in whole.variables.values():
        if "flag_values" in variable.attrs:
            variable.attrs["flag_values"] = variable.dtype.type(variable.attrs["flag_values"])
    return whole


def _computed(
    dataset: xr.Dataset,
    is_done: xr.DataArray,
    fills: Mapping[str, Any],
    blocks: Mapping[str, int],
) -> xr.Dataset:
    """Blank what is of cells that are not done; types and attributes stay."""
    mask = is_done.chunk(blocks)
    blanked = {}
    for name, fill in fills.items():
        values = dataset[name].chunk(blocks)
        blanked[name] = values.where(mask, fill).assign_attrs(values.attrs)
    return dataset.assign(blanked)


def _labelled(values: xr.DataArray, long_name: str) -> xr.DataArray:
    # What it was derived from may have left its own: the flags of outcome are no mask's.
    return values.drop_attrs(deep=False).assign_attrs({"long_name": long_name, "units": "1"})


def _check_labels(dataset: xr.Dataset, sweep: Sweep) -> None:
    """Refuse labels that are not the sweep's: Zarr reads a chunk that is gone as zeros."""
    grid, recipe = sweep.grid, sweep.recipe
    labels: dict[str, npt.ArrayLike] = {
        "alpha": grid.alpha,
        "N": grid.N,
        "seed": grid.seed,
        "measurements": [[measurements(alpha, N) for N in grid.N] for alpha in grid.alpha],
        **{axis: values(recipe) for axis, values in AXES.items() if axis in dataset.dims},
    }
    for name, values in labels.items():
        if not np.array_equal(dataset[name].values, values):
            raise ValueError(f"those on the disk differ in {name}")
