"""Make a store for the tests of later versions: `python tests/stores/make.py METHOD`, in a clone.

It writes ``tests/stores/COMMIT-METHOD.tar.xz``, named by the commit that is checked out and the
method of the descent. In it are ``old.zarr`` and the folder beside it, with four cells that are not
yet computed.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # this file is a script, and imports the tests

from alphasweep.pipeline.part import Part
from alphasweep.pipeline.spec import Sweep
from alphasweep.pipeline.store import Store
from tests.conftest import fill

OLD = {
    "name": "old",
    "root_seed": 11,
    "grid": {"alpha": [1.3, 6.0], "N": [16, 24], "seed": [0, 1, 2, 3], "start": [0, 1]},
    "problem": {"a": 0.1},
    "record": {"times": [0.3, 1.0, 3.0, 10.0]},
    "probe": {"times": [0.0, 1.0, 10.0], "modes": 2},
}
DESCENTS = {
    "gd": {"method": "gd", "learning_rate": 0.03, "t_max": 30.0},
    "flow": {"method": "flow", "t_max": 30.0},
}
PARTS = [Part(alpha, N, 0, 3) for alpha, N in ((1.3, 16), (1.3, 24), (6.0, 16))]


def make(folder: Path, method: str) -> Store:
    """Compute three quarters of the sweep in a folder."""
    store = Store(folder / "old.zarr")
    fill(store, Sweep.from_document(OLD | {"descent": DESCENTS[method]}), PARTS)
    return store


def main(method: str) -> None:
    """Make the store, and pack it with what is beside it."""
    name = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip()
    with tempfile.TemporaryDirectory() as folder:
        store = make(Path(folder), method)
        print(store.open().outcome.values.reshape(4, -1), store.attributes()["code_versions"])
        file = Path(__file__).with_name(f"{name}-{method}.tar.xz")
        with tarfile.open(file, "w:xz") as archive:
            for kept in (store.path, store.control):
                archive.add(kept, kept.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
