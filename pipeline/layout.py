"""The dataset on disk: a Zarr group for a sweep, and how it grows along alpha, N, seed and time.

Readers trust one file, the root ``zarr.json`` with its consolidated metadata, which is replaced by
one rename: that is the commit point of every change of shape.

A chunk's file is named by its place in the grid. A value inserted in the middle of an axis changes
places, and a reader that opened the old grid must not find other numbers under its names. So an
array whose chunks move gets them under the other of two spellings of a chunk key (``c.1.0.0`` and
``1.0.0``, both standard), as hard links: no data is copied, and who has the old grid open goes on
reading the old names, as they were. They are removed by the next widening that needs the spelling.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from alphasweep.pipeline.dataset import (
    AXES,
    COORDINATES,
    GRID,
    OF_PAIRS,
    Variable,
    cell_variables,
    pair_variables,
)
from alphasweep.pipeline.files import copy, replace_text, sync
from alphasweep.pipeline.grid import Geometry, Ints, Place, positions
from alphasweep.pipeline.messages import SweepError
from alphasweep.pipeline.provenance import code_version, fingerprint, machine
from alphasweep.pipeline.spec import Sweep, as_document
from alphasweep.pipeline.sweeps import differences, raises_t_max

#: How the names of the folders beside a store end, after the whole name of the store. No store's
#: name may end so: the folders of two stores would else be one, or one be the other's store.
BESIDE = (".run", ".figures")
_LONGEST_NAME = 200  # bytes; file systems take 255, and what is beside a store has longer names
_UNREADABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are no text, ends of lines

Array = zarr.Array[Any]

_RUNS_PER_CHUNK = 1000
_MOST_BLOCKS = 10_000
_SPELLINGS = ("default", "v2")
_PACKAGES = ("alphasweep", "numpy", "scipy", "xarray", "zarr")
# Nested: text on the disk.
_AS_JSON = (
    "sweep", "fingerprint", "versions", "code_versions", "other_numbers", "machine",
    "cell_variables",
)  # fmt: skip
FORMAT = 2
"""The highest format of stores that this code knows, see `_format`."""
# The variables of a cell in stores that do not list them.
_OF_SWEEPS = (
    "outcome", "recovered", "recovery_time", "steps", "final_overlap", "final_energy", "overlap",
    "energy", "mu", "bulk_edge", "outlier", "outlier_overlap", "seconds", "code", "status",
)  # fmt: skip
_OF_PROBES = ("lambda_min", "signal_overlap")
IDENTITY = "identity.json"
"""In the folder beside a store: whose it is."""


def seeds_per_chunk(sweep: Sweep) -> int:
    """Length of a chunk along seed in a new store, which keeps it for ever.

    A chunk holds one alpha and one N. About a thousand runs in each keep the number of files low,
    and a sweep of millions of cells still has no more than some ten thousand chunks a variable.
    """
    grid = sweep.grid
    for_large = len(grid.alpha) * len(grid.N) * len(grid.seed) // _MOST_BLOCKS
    return max(1, _RUNS_PER_CHUNK // len(grid.start), for_large)


def build(
    path: Path,
    sweep: Sweep,
    *,
    variables: Sequence[str] = (),
    check: Callable[[], object] = lambda: None,
) -> None:
    """Create the Zarr group of a sweep at `path`, whole or not at all; for `check` see `widen`.

    It gets the variables that are named, or else all that this code gives a cell.
    """
    attributes = {
        "format": 1,
        "cell_variables": list(variables or cell_variables(sweep.recipe)),
        "store_id": uuid.uuid4().hex,
        "title": f"alphasweep {sweep.name}: gradient descent on phase retrieval",
        "source": "arXiv:2403.02418",
        "seeds_per_chunk": seeds_per_chunk(sweep),
        "code_versions": [code_version()],
        "fingerprint": fingerprint(sweep.recipe),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in _PACKAGES},
        "machine": machine(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    building = _beside(path)
    try:
        _write_group(building, sweep, attributes, {})
        check()
        _keep(path, read_root(building))
        building.rename(path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def widen(path: Path, sweep: Sweep, *, check: Callable[[], object] = lambda: None) -> None:
    """Make the group at `path` that of a wider sweep, whose axes contain the old ones.

    Until its root file comes into force nothing has happened for any reader, and a widening that
    was killed can be done again. `check` is called before each step that changes what is there;
    what it raises breaks off.
    """
    attributes = attributes_of(read_root(path))
    old = Sweep.from_document(attributes["sweep"]).grid
    moves = {axis: positions(getattr(old, axis), getattr(sweep.grid, axis)) for axis in GRID}
    moved = {axis for axis, at in moves.items() if not np.array_equal(at, np.arange(len(at)))}
    cells = attributes["cell_variables"] if moved else []

    def carry(name: str, building: Path, chunks: list[Path], spelling: str) -> None:
        if "seed" in moved:
            _copy_rows(_open(path, name), _open(building, name, "r+"), chunks, moves)
        else:
            for chunk in chunks:
                check()
                os.link(chunk, path / name / _renamed(chunk.name, spelling, moves))

    _reshape(path, sweep, (*GRID, *OF_PAIRS), cells, carry, check)


def raise_t_max(
    path: Path,
    sweep: Sweep,
    again: npt.NDArray[np.bool_],
    *,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Make the group at `path` that of a sweep which `raises_t_max`, and blank some of its cells.

    They read as missing from then on, in every variable; all others keep every bit. Records at
    times that the sweep no longer has, which can only be the old t_max, go; at new ones, which are
    later, nothing is known, as of any run after its end. For readers and `check` see `widen`.

    Parameters
    ----------
    path : Path
    sweep : Sweep
        With the axes of the group.
    again : (alpha, N, seed)
        Cells that are to be computed again.
    """
    attributes = attributes_of(read_root(path))
    old, new = Sweep.from_document(attributes["sweep"]).recipe.steps, sweep.recipe.steps
    _, there, here = np.intersect1d(old, new, return_indices=True)
    geometry = Geometry(sweep.grid, attributes["seeds_per_chunk"])

    def carry(name: str, building: Path, chunks: list[Path], spelling: str) -> None:
        held, becoming = _open(path, name), _open(building, name, "r+")
        dims = becoming.metadata.dimension_names or ()  # type: ignore[union-attr]
        for chunk in chunks:
            rows = geometry.rows(_place(chunk))
            blank = again[rows]
            if not blank.any() and "time" not in dims:
                check()
                os.link(chunk, path / name / _spelled(chunk.name, spelling))
                continue
            values = np.asarray(held[rows])
            if "time" in dims:
                along = dims.index("time") - 2
                shape = (*values.shape[:along], len(new), *values.shape[along + 1 :])
                later = np.full(shape, becoming.fill_value, becoming.dtype)
                np.moveaxis(later, along, 0)[here] = np.moveaxis(values, along, 0)[there]
                values = later
            values[blank] = becoming.fill_value
            becoming[rows] = values

    _reshape(path, sweep, ("time",), attributes["cell_variables"], carry, check)


def _reshape(
    path: Path,
    sweep: Sweep,
    fixed: Iterable[str],
    cells: Iterable[str],
    carry: Callable[[str, Path, list[Path], str], None],
    check: Callable[[], object],
) -> None:
    """Build the metadata of a group that has become another's beside it, and bring them into force.

    Parameters
    ----------
    path : Path
    sweep : Sweep
    fixed, cells : iterable of str
        Arrays whose chunks change; those in `cells` get theirs by `carry`.
    carry : callable
        Told an array, the group that is built, the chunks that there are, and the spelling of the
        new ones; it links them into the array's folder, or writes them into the group.
    check : callable
        See `widen`.
    """
    root = read_root(path)
    before = {name: _spelling(meta) for name, meta in _arrays(root).items()}
    cells = list(cells)
    moving = before.keys() & {*fixed, *cells}
    after = {name: _other(at) if name in moving else at for name, at in before.items()}
    building = _beside(path)
    try:
        _write_group(building, sweep, attributes_of(root), after)
        for name in moving:
            for leftover in _chunks(path / name, after[name]):
                check()
                leftover.unlink()
        for name in moving.intersection(cells):
            carry(name, building, _chunks(path / name, before[name]), after[name])
        # By copies, not renames: an array's folder may be a link into another file system.
        copies = {
            chunk: path / name / chunk.name
            for name in moving
            for chunk in _chunks(building / name, after[name])
        }
        for chunk, target in copies.items():
            check()
            copy(chunk, target)
        sync([*copies.values(), *(path / name for name in moving)])
        check()
        _commit(path, read_root(building))
        settle(path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def add_variables(
    path: Path, names: Iterable[str], *, check: Callable[[], object] = lambda: None
) -> None:
    """Give the group at `path` variables that it lacks, which come into force with its root file.

    Wherever a cell may be done they get chunks, of fill values: a chunk that is not there was lost.
    For `check` see `widen`.
    """
    root = read_root(path)
    attributes, before = attributes_of(root), _arrays(root)
    names, sweep = list(names), Sweep.from_document(attributes["sweep"])
    geometry = Geometry(sweep.grid, attributes["seeds_per_chunk"])
    attributes["cell_variables"] = [*names, *attributes["cell_variables"]]  # status stays the last
    building = _beside(path)
    try:
        spellings = {name: _spelling(meta) for name, meta in before.items()}
        _write_group(building, sweep, attributes, spellings)
        new = {n: a for n, a in open_arrays(building, "r+").items() if n not in before}
        begun = [_place(chunk) for chunk in _chunks(path / "status", spellings["status"])]
        for name in names:
            array = new[name]
            for place in begun:
                array[geometry.rows(place)] = array.fill_value
        for name in new:
            check()
            # Of an adding that was killed, before the grid became what it is now.
            shutil.rmtree(path / name, ignore_errors=True)
            (path / name).mkdir()
            files = list((building / name).iterdir())
            for file in files:
                check()
                copy(file, path / name / file.name)
            sync([*(path / name / file.name for file in files), path / name, path])
        check()
        _commit(path, read_root(building))
        settle(path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def is_under_way(root: Mapping[str, Any], copy: Mapping[str, Any]) -> bool:
    """Whether a copy of a root differs from it since `raise_t_max` was killed between the two.

    All chunks are then there under both spellings; in a root that is damaged they have those of
    the copy.
    """
    sweeps = (Sweep.from_document(attributes_of(each)["sweep"]) for each in (root, copy))
    is_moved = _spelling(_arrays(root)["time"]) != _spelling(_arrays(copy)["time"])
    return is_moved and raises_t_max(*sweeps)


def settle(path: Path) -> None:
    """Give every array the metadata that the root says, as a killed `widen` may not have."""
    for name, meta in _arrays(read_root(path)).items():
        file = path / name / "zarr.json"
        try:
            is_right = json.loads(file.read_bytes()) == meta
        except (FileNotFoundError, ValueError):
            is_right = False
        if not is_right:
            replace_text(file, json.dumps(meta, indent=2))


def read_root(path: Path) -> dict[str, Any]:
    """Read the root metadata of a sweep's group; an empty dict if it is none."""
    try:
        root = json.loads((path / "zarr.json").read_text())
        attributes = attributes_of(root)
        is_one = "sweep" in attributes and isinstance(attributes["format"], int)
        return cast(dict[str, Any], root) if is_one else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def attributes_of(root: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a root document; what is JSON text on the disk comes as its values.

    Of a group, netCDF and others hold only text, numbers and lists of numbers. Stores of alphasweep
    before that was so hold the values themselves: they are text after the next change. Those before
    ``format`` and ``cell_variables`` are of format 1, and have the variables that all had then.

    Raises
    ------
    KeyError, TypeError, AttributeError, ValueError
        If the document has no such attributes, or their text is no JSON.
    """
    attributes = dict(root["attributes"])
    for name in _AS_JSON:
        if isinstance(attributes.get(name), str):
            attributes[name] = json.loads(attributes[name])
    if "sweep" in attributes:
        probed = _OF_PROBES if attributes["sweep"].get("probe") else ()
        attributes = {"format": 1, "cell_variables": [*probed, *_OF_SWEEPS]} | attributes
    return attributes


def too_new(root: Mapping[str, Any]) -> str:
    """Say why a store, whose root this is, needs a newer alphasweep; "" if it needs none."""
    attributes = attributes_of(root)
    if attributes["format"] <= FORMAT:
        return ""
    return (
        f"be of format {FORMAT} or lower for this alphasweep; it has format "
        f"{attributes['format']}: use the version that wrote it, {attributes['code_versions'][-1]},"
        " or a newer one"
    )


def unknown_variables(root: Mapping[str, Any]) -> str:
    """Say what a store has that this code does not compute; "" if there is nothing."""
    attributes = attributes_of(root)
    known = cell_variables(Sweep.from_document(attributes["sweep"]).recipe)
    unknown = [name for name in attributes["cell_variables"] if name not in known]
    if not unknown:
        return ""
    return (
        f"have only variables that this alphasweep knows; it has {', '.join(unknown)}: use the "
        f"version that added them, {attributes['code_versions'][-1]}, or a newer one"
    )


def as_text(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes, as `attributes_of` gives them, in the form they have on the disk."""
    return {
        name: json.dumps(value) if name in _AS_JSON else value for name, value in attributes.items()
    }


def open_arrays(path: Path, mode: Literal["r", "r+"] = "r") -> dict[str, Array]:
    """Open the arrays that the root metadata names.

    They write every chunk they are told to: a block of fill values is data, whose chunk Zarr would
    by default not write, or delete.
    """
    group = zarr.open_group(path, mode=mode, use_consolidated=True)
    arrays = cast(Iterable[tuple[str, Array]], group.arrays())
    return {name: array.with_config({"write_empty_chunks": True}) for name, array in arrays}


def change_attributes(path: Path, **attributes: Any) -> None:
    """Set root attributes by one rename."""
    root = read_root(path)
    root["attributes"] = as_text(attributes_of(root) | attributes)
    _commit(path, root)


def resolved(path: str | Path) -> Path:
    """Return where a path leads to through all links, whether or not anything is there."""
    return Path(os.path.realpath(path))


def unfit(named: str, path: Path) -> str:
    """Say what must hold of the path of a store, and does not; "" if it may be one.

    Parameters
    ----------
    named : str
        As the user wrote it.
    path : Path
        Where that leads.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", named) or "://" in str(path) or "::" in str(path):
        return "be a folder of this machine or of a shared file system, and no address"
    if any(unicodedata.category(character) in _UNREADABLE for character in str(path)):
        return "be named in characters that can be printed, on one line"
    if not 0 < len(os.fsencode(path.name)) <= _LONGEST_NAME:
        return f"have a name of 1 to {_LONGEST_NAME} bytes"
    return ""


def control_folder(path: Path) -> Path:
    """Return the folder beside a store, for all that is not the dataset; it may be a link, too."""
    return resolved(path.parent / (path.name + BESIDE[0]))


def figures_folder(path: Path) -> Path:
    """Return the folder beside a store for what is drawn of it."""
    return path.parent / (path.name + BESIDE[1])


def has_own_folder(path: Path) -> bool:
    """Whether the folder beside a store, if there is any, is its own.

    It may be that of a store that was here before, or that was put there with another one. A store
    that was made before stores had names knows its folder by the copy of its metadata there. Of
    one whose metadata are damaged, nothing is known against it.
    """
    root, control = read_root(path), control_folder(path)
    if not root:
        return os.path.lexists(path)
    store_id = attributes_of(root).get("store_id")
    if store_id and _identity(control).get("store_id") == store_id:
        return True
    copy = read_root(control)
    return bool(copy) and _are_of_one_store(attributes_of(root), attributes_of(copy))


def path_of_folder(control: Path) -> str:
    """Return where the store of a control folder was last seen; "" if it does not say."""
    return str(_identity(control).get("path", ""))


def name_of_folder(control: Path) -> str:
    """Return the `store_id` of the store of a control folder; "" if it does not say."""
    copy = read_root(control)
    known = [_identity(control), attributes_of(copy) if copy else {}]
    return next((str(each["store_id"]) for each in known if each.get("store_id")), "")


def claim_folder(path: Path) -> None:
    """Note in the folder beside a store whose it is, and where that is now."""
    root, control = read_root(path), control_folder(path)
    if not root:
        return
    if not (control / "zarr.json").exists():  # else it may know better than a damaged root
        _keep(path, root)
    elif _identity(control) != _identity_of(path, root):
        replace_text(control / IDENTITY, json.dumps(_identity_of(path, root)))


def _are_of_one_store(attributes: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    names = {each["store_id"] for each in (attributes, others) if "store_id" in each}
    if len(names) > 1 or attributes.get("created") != others.get("created"):
        return False
    try:
        sweep, other = (Sweep.from_document(each["sweep"]) for each in (attributes, others))
    except (SweepError, ValueError, TypeError):
        return False
    return not differences(sweep, other)


def chunk_file(path: Path, array: Array, place: tuple[int, ...]) -> Path:
    """Return the file of an array's chunk of a block, or at the place along its own axes."""
    key = (*place, *(0 for _ in array.shape[len(place) :]))
    return path / array.path / array.metadata.encode_chunk_key(key)


def _commit(path: Path, root: dict[str, Any]) -> None:
    _keep(path, root)
    replace_text(path / "zarr.json", json.dumps(root, indent=2))


def _keep(path: Path, root: dict[str, Any]) -> None:
    """Keep a copy of the root beside the store: without it, chunks are but files.

    First, so that a copy which differs from the root is what the root was about to become.
    """
    control = control_folder(path)
    control.mkdir(exist_ok=True)
    replace_text(control / "zarr.json", json.dumps(root, indent=2))
    replace_text(control / IDENTITY, json.dumps(_identity_of(path, root)))


def _identity_of(path: Path, root: Mapping[str, Any]) -> dict[str, str]:
    return {"store_id": attributes_of(root).get("store_id", ""), "path": str(path)}


def _identity(control: Path) -> dict[str, Any]:
    """Read whose a control folder is; nothing if it does not say."""
    try:
        found = json.loads((control / IDENTITY).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def _write_group(
    path: Path, sweep: Sweep, attributes: Mapping[str, Any], spellings: Mapping[str, str]
) -> None:
    """Write all but what is computed: the variables of the attributes, and the axes they need.

    An array has the given spelling of its chunks, or else the first.
    """
    recipe, grid, known = sweep.recipe, sweep.grid, cell_variables(sweep.recipe)
    variables = {name: known[name] for name in attributes["cell_variables"]}
    needed = {axis for variable in variables.values() for axis in variable.dims}
    coordinates = {
        "alpha": np.array(grid.alpha, dtype=np.float64),
        "N": np.array(grid.N, dtype=np.int64),
        "seed": np.array(grid.seed, dtype=np.int64),
        **{axis: labels(recipe) for axis, labels in AXES.items() if axis in needed},
    }
    sizes = {name: len(values) for name, values in coordinates.items()}
    chunks = sizes | {"alpha": 1, "N": 1, "seed": attributes["seeds_per_chunk"]}
    held = {**attributes, "sweep": as_document(sweep), "format": _format(sweep)}
    group = zarr.create_group(path, zarr_format=3, attributes=as_text(held))

    def create(name: str, variable: Variable, *, whole: bool) -> Array:
        shape = tuple(sizes[d] for d in variable.dims)
        return group.create_array(
            name,
            shape=shape,
            dtype=variable.dtype(recipe),
            chunks=shape if whole else tuple(chunks[d] for d in variable.dims),
            fill_value=variable.fill,
            dimension_names=variable.dims,
            # One directory a variable; a checksum, or a flipped bit would be read as a number.
            chunk_key_encoding={"name": spellings.get(name, _SPELLINGS[0]), "separator": "."},
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
            attributes={
                "long_name": variable.long_name,
                "units": variable.units,
                **variable.attrs,
            },
        )

    for name, values in coordinates.items():
        # If its chunk is ever lost, no reader takes the fill value for a label.
        nowhere = -1 if values.dtype.kind == "i" else float("nan")
        coordinate = Variable((name,), values.dtype.str, *COORDINATES[name], fill=nowhere)
        create(name, coordinate, whole=True)[...] = values
    for name, variable in variables.items():
        create(name, variable, whole=False)
    for name in pair_variables(recipe):
        variable, value = OF_PAIRS[name]
        table = [[value(recipe, alpha, N) for N in grid.N] for alpha in grid.alpha]
        create(name, variable, whole=True)[...] = np.array(table)
    with warnings.catch_warnings():
        # "Consolidated metadata is not yet part of Zarr 3": readers have it, and need it for speed.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(path)


def _format(sweep: Sweep) -> int:
    """Return how the store of a sweep is written: a root attribute.

    Of format 2 are stores of which only some cells are wanted: older code, to which all of them
    are, refuses these. All others are of format 1, which every version reads.
    """
    return 2 if sweep.grid.only else 1


def _arrays(root: Mapping[str, Any]) -> dict[str, Any]:
    return cast(dict[str, Any], root["consolidated_metadata"]["metadata"])


def _spelling(meta: Mapping[str, Any]) -> str:
    return str(meta["chunk_key_encoding"]["name"])


def _other(spelling: str) -> str:
    return _SPELLINGS[1 - _SPELLINGS.index(spelling)]


def _chunks(folder: Path, spelling: str) -> list[Path]:
    """Chunk files of an array in one spelling."""
    is_default = spelling == "default"
    return [
        file
        for file in folder.iterdir()
        if file.name.replace("c.", "", 1).replace(".", "").isdigit()
        and file.name.startswith("c.") == is_default
    ]


def _place(chunk: Path) -> Place:
    """Return the place of the block that a chunk of a cell variable is of."""
    i, j, k = map(int, chunk.name.removeprefix("c.").split(".")[:3])
    return i, j, k


def _spelled(chunk: str, spelling: str) -> str:
    """Name of a chunk in a spelling."""
    return ("c." if spelling == "default" else "") + chunk.removeprefix("c.")


def _renamed(chunk: str, spelling: str, moves: Mapping[str, Ints]) -> str:
    """Name of an old grid's chunk in the wider grid."""
    i, j, *rest = chunk.removeprefix("c.").split(".")
    key = (str(moves["alpha"][int(i)]), str(moves["N"][int(j)]), *rest)
    return _spelled(".".join(key), spelling)


def _copy_rows(old: Array, new: Array, chunks: Iterable[Path], moves: Mapping[str, Ints]) -> None:
    """Copy to rows of the wider grid: new seeds between old ones go into the old ones' chunks."""
    for i, j in {_place(chunk)[:2] for chunk in chunks}:
        at = (int(moves["alpha"][i]), int(moves["N"][j]))
        rows = np.array(new[at])
        rows[moves["seed"]] = old[i, j]
        new[at] = rows


def _open(path: Path, name: str, mode: Literal["r", "r+"] = "r") -> Array:
    return open_arrays(path, mode)[name]
