"""How much a run slows down on a file system whose metadata calls take a millisecond more.

    python tests/benchmarks/metadata.py [PRESET-OR-SWEEP] [ROUNDS]

Runs `alphasweep run` (default: laptop) without and with a preloaded library (`slow_metadata.c`,
compiled here by `cc`; Linux only) that makes every open, stat, rename, link, unlink, mkdir and so
on of a path in the store's folder sleep for a millisecond, as a busy network file system would.
Compared is the wall time of the phase that computes and commits, in turns, the least of ROUNDS
(default 2): on cores that are shared with others it varies by more than what is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_SLOW = "slow-metadata"  # in the path of the store
_MICROSECONDS = 1000


def main(sweep: str = "laptop", rounds: str = "2") -> None:
    """Run the sweep in turns and print the table."""
    if Path(sweep).exists():
        sweep = str(Path(sweep).resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = folder / "slow_metadata.so"
        source = Path(__file__).with_name("slow_metadata.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        slow = {"LD_PRELOAD": str(library), "SLOW_PATH": _SLOW}
        slow["SLOW_MICROSECONDS"] = str(_MICROSECONDS)
        each = _call_milliseconds(folder, slow) - _call_milliseconds(folder, {})
        print(f"a metadata call in the store takes {each:.2f} ms more", flush=True)
        best = [float("inf")] * 2
        for number in range(int(rounds)):
            for k, environment in enumerate(({}, slow)):
                seconds = _run(sweep, folder / f"{_SLOW}-{number}-{k}", environment)
                best[k] = min(best[k], seconds)
                print(f"{sweep} {'with' if k else 'without'}: {seconds:.1f} s", flush=True)
    print(f"{sweep}: {best[0]:.1f} s, with it {best[1]:.1f} s: {best[1] / best[0] - 1:+.1%}")


def _run(sweep: str, folder: Path, environment: dict[str, str]) -> float:
    folder.mkdir()
    command = ["alphasweep", "run", sweep, "--store", str(folder / "sweep.zarr")]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} must succeed; it exited {done.returncode}:\n{done.stderr}")
    progress = json.loads((folder / "sweep.zarr.run" / "progress.json").read_text())
    return float(progress["elapsed"])


def _call_milliseconds(folder: Path, environment: dict[str, str]) -> float:
    """Time `stat` of a path in a slow folder, to see that the library does what it should."""
    code = f"""
import os, time
began = time.perf_counter()
for _ in range(100):
    os.path.exists({str(folder / _SLOW)!r})
print(10 * (time.perf_counter() - began))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
