"""A small disk: a tmpfs that one process alone sees, in a mount namespace of its own.

The test reaches it as `/proc/<pid>/root/…`. Needs no privileges where users may make namespaces. In a
container or chroot where nobody may, tests that ask for one are skipped with that reason; in CI they fail.
"""

import errno
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

import pytest

BALLAST: Final = "ballast"
_CHUNK_BYTES: Final = 1 << 16


@cache
def namespace_command() -> tuple[str, ...]:
    """What to run a command with, for a mount namespace of its own; skips the test where there is none."""
    output = ""
    for command in (("unshare", "--map-root-user", "--mount"), ("unshare", "--mount")):
        try:
            probe = [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
            done = subprocess.run(probe, capture_output=True, text=True, check=False)
        except OSError as error:
            output = str(error)
            continue
        if done.returncode == 0:
            return command
        output = " ".join(done.stderr.split())
    why = f"this machine lets nobody mount a tmpfs in a namespace: {output}"
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


def on_small_disk(directory: Path, size_bytes: int, options: str = "") -> list[str]:
    """What to put before a command so that `directory` is a tmpfs of that size for it alone."""
    script = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
    chosen = f"size={size_bytes}{options}"
    return [*namespace_command(), "sh", "-c", script, "sh", chosen, str(directory)]


class SmallDisk:
    """The tmpfs at `directory` of a running process."""

    def __init__(self, pid: int | str, directory: Path) -> None:
        self.path = Path(f"/proc/{pid}/root{directory}")

    def fill(self) -> None:
        """Leave no room at all."""
        with (self.path / BALLAST).open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(_CHUNK_BYTES))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def make_room(self) -> None:
        """Take away what `fill` has put there."""
        (self.path / BALLAST).unlink()
