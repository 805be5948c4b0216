"""One worker of this machine, in a process of its own, which `cluster.local` starts.

As `python -m`, and not by multiprocessing: that imports the script of the driver once more in every
process, and a script without ``if __name__ == "__main__"`` would run itself again in each.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from threading import Thread

from distributed import Worker


def main() -> None:
    """Work for the scheduler at an address, under a name, with so many bytes of memory."""
    address, name, memory = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which then ends us
    Thread(target=_end_with_driver, daemon=True).start()
    asyncio.run(_work(address, name, int(memory)))


async def _work(address: str, name: str, memory: int) -> None:
    async with Worker(
        address,
        name=name,
        nthreads=1,
        memory_limit=memory,
        host="127.0.0.1",
        dashboard=False,
        silence_logs=logging.CRITICAL,
    ) as worker:
        await worker.finished()


def _end_with_driver() -> None:
    """End at once when the driver does, however that ends: it holds the other side of stdin."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
