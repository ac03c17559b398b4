"""How long `marketfeed run` takes to READY on a journal, cold (its pages dropped from memory) and warm.

`python -m tests.bench.start FILE…`. Another process drops the pages (POSIX_FADV_DONTNEED), and mincore
tells how many are left. The exchange does not answer: READY needs the journal alone. Nothing of the file
but a heartbeat and the weight of requests changes.
"""

import argparse
import contextlib
import ctypes
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

TIMEOUT_S: Final = 600.0
_DROP: Final = """
import os, sys
for name in sys.argv[1:]:
    file = os.open(name, os.O_RDONLY)
    os.fdatasync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
"""
_CONFIG: Final = """
exchange: {{pairs: [BTC/USDT:USDT], rest_url: "http://127.0.0.1:9", ws_url: "ws://127.0.0.1:9"}}
journal: {{path: "{journal}"}}
status: {{port: 0}}
"""


class Start(NamedTuple):
    """One start: wall seconds from the process's begin to READY, and the journal's own part of them.

    `resident` is the share of its pages that were in memory before.
    """

    ready_s: float
    open_s: float
    resident: float


def drop(path: Path) -> None:
    """Have another process drop the file's pages from memory."""
    names = [name for name in (str(path), f"{path}-wal") if Path(name).exists()]
    subprocess.run([sys.executable, "-c", _DROP, *names], check=True)


def resident(path: Path) -> float:
    """The share of a file's pages that are in memory, by mincore."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, contextlib.closing(mmap.mmap(file.fileno(), size)) as mapped:
        found = (ctypes.c_ubyte * pages)()
        begin = ctypes.c_char.from_buffer(mapped)
        code = libc.mincore(ctypes.c_void_p(ctypes.addressof(begin)), ctypes.c_size_t(size), found)
        del begin
        if code:
            raise OSError(ctypes.get_errno(), "mincore")
    return sum(one & 1 for one in found) / pages


def start(journal: Path, *, cold: bool) -> Start:
    """Start a collector on a journal, wait until it is ready, and stop it."""
    if cold:
        drop(journal)
    share = resident(journal)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        config = directory / "config.yaml"
        config.write_text(_CONFIG.format(journal=journal), "utf-8")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind(str(directory / "notify"))
            notified.settimeout(TIMEOUT_S)
            environment = {
                key: value for key, value in os.environ.items() if not key.startswith("MARKETFEED")
            }
            environment["NOTIFY_SOCKET"] = str(directory / "notify")
            began_s = time.perf_counter()
            with (directory / "log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "marketfeed", "run", "--config", str(config)],
                    env=environment,
                    stdout=log,
                    stderr=log,
                )
            try:
                while b"READY=1" not in notified.recv(1 << 16):
                    if process.poll() is not None:
                        break
                ready_s = time.perf_counter() - began_s
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(TIMEOUT_S)
        text = (directory / "log").read_text("utf-8")
    found = re.search(r"journal open seconds=([0-9.]+)", text)
    if found is None:
        raise RuntimeError(f"the collector did not start: {text[-2000:]}")
    return Start(ready_s, float(found[1]), share)


def main() -> None:
    """Measure the files that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    for path in options.files:
        size = path.stat().st_size / 1e9
        for cold in (True, False):
            for _ in range(options.times):
                one = start(path, cold=cold)
                how = "cold" if cold else "warm"
                size_and_how = f"{size:.2f} GB {how}"
                sys.stdout.write(
                    f"{path.name} {size_and_how}: READY {one.ready_s:.2f} s, "
                    f"journal {one.open_s:.2f} s, {one.resident:.1%} of it in memory before\n"
                )


if __name__ == "__main__":
    main()
