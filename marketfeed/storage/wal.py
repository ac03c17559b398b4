"""The `-wal` beside a durable file: how large it is, and who keeps it from being folded back.

A read transaction that stays open keeps what is behind it in the `-wal`, which grows by all that is
committed meanwhile. SQLite notes readers in the `-shm`: a lock on one of its bytes 123 to 127, and how much
of the `-wal` that reader sees. Linux lists locks in /proc/locks.
"""

import contextlib
import os
import pwd
import struct
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

WAL_BOUND_BYTES: Final = 256 * 10**6
"""A `-wal` above this is no burst of commits any more: somebody holds it, or the disk is slow."""
HELD_S: Final = 5.0
"""A reader that is seen in two looks so far apart (wall seconds) holds a transaction."""

_READ_LOCKS: Final = range(123, 128)
# Behind two headers of 48 bytes and a count: what each of the five sees.
_MARKS: Final = struct.Struct("=5I")
_MARKS_AT: Final = 100
_READ_MARKS: Final = f"""
import sys
with open(sys.argv[1], "rb") as file:
    file.seek({_MARKS_AT})
    sys.stdout.buffer.write(file.read({_MARKS.size}))
"""
_READ_S: Final = 5.0
_LOCKS: Final = Path("/proc/locks")
_PROC: Final = Path("/proc")


class Held(NamedTuple):
    """A lock of a reader: its process, and how much of the `-wal` it sees (None where that is not known)."""

    pid: int
    byte: int
    frames: int | None


def wal_bytes(path: Path) -> int:
    """The size of the `-wal` of the file at `path`; 0 without one, or where it cannot be looked at."""
    try:
        return Path(f"{path}-wal").stat().st_size
    except OSError:
        return 0


def readers(path: Path, locks: Path = _LOCKS, *, marks: bool = False) -> set[Held] | None:
    """Who has a transaction open on the file at `path`; None where this process may not see locks.

    Not that of a stopped file, which has no `-shm`: nobody is in anybody's way there. `marks` tells what each
    of them sees; that takes a process of its own.
    """
    try:
        shm = Path(f"{path}-shm").stat()
    except OSError:
        return set()
    try:
        text = locks.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    frames = _frames(path) if marks else None
    lines = [line for line in map(_parsed, text.splitlines()) if line is not None]
    mine = [line for line in lines if line.inode == shm.st_ino]
    device = os.major(shm.st_dev), os.minor(shm.st_dev)
    # The kernel names the file system's device; of some file systems stat tells another one.
    on_device = [line for line in mine if line.device == device] or mine
    return {
        Held(line.pid, byte, None if frames is None else frames[byte - _READ_LOCKS.start])
        for line in on_device
        for byte in _READ_LOCKS
        if line.first <= byte <= line.last
    }


def held_by(before: Collection[Held], now: Collection[Held]) -> list[int]:
    """The processes that were in one transaction at both looks, by their numbers.

    One that comes and goes sees more of the `-wal` the next time, if something was committed.
    """
    return sorted({one.pid for one in set(before) & set(now)})


def process(pid: int, proc: Path = _PROC) -> str:
    """What can be told of a process without showing its arguments, in which secrets may stand."""
    place = proc / str(pid)
    try:
        status = dict(
            line.split(":", 1)
            for line in (place / "status")
            .read_text(encoding="utf-8", errors="replace")
            .splitlines()
            if ":" in line
        )
    except OSError:
        with contextlib.suppress(PermissionError):
            # It is not there, or is not of this namespace. Else it is there, hidden from this user.
            return f"process {pid}" if _exists(pid) else "a process of a container"
        return f"process {pid} (of another user)"
    name = status.get("Name", "").strip()
    told = [name, *_user(status.get("Uid", ""))]
    if status.get("State", "").strip().startswith(("T", "t")):
        told.append("stopped")
    about = ", ".join(filter(None, told))
    if len(status.get("NSpid", "").split()) > 1:
        return f"a process of a container ({pid} on this host: {about})"
    return f"process {pid} ({about})"


def _exists(pid: int) -> bool:
    """Whether there is such a process. Raises PermissionError: there is, of another user."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _user(uids: str) -> Iterator[str]:
    with contextlib.suppress(ValueError, IndexError):
        uid = int(uids.split(maxsplit=1)[0])
        try:
            yield f"user {pwd.getpwuid(uid).pw_name}"
        except KeyError:
            yield f"user {uid}"


def _frames(path: Path) -> tuple[int, ...] | None:
    """What each of the five locks' readers sees of the `-wal`; None where that cannot be read."""
    # By another process: closing a descriptor of the -shm ends all POSIX locks that this one has on it,
    # those of an open file's writer among them.
    command = [sys.executable, "-I", "-S", "-c", _READ_MARKS, f"{path}-shm"]
    try:
        done = subprocess.run(  # noqa: S603 - our own words, and a path
            command, capture_output=True, check=True, timeout=_READ_S
        )
        return _MARKS.unpack(done.stdout)
    except (OSError, subprocess.SubprocessError, struct.error):
        return None


class _Lock(NamedTuple):
    pid: int
    device: tuple[int, int]
    inode: int
    first: int
    last: int


def _parsed(line: str) -> _Lock | None:
    """A line such as `7: POSIX  ADVISORY  READ 4242 fe:00:131 124 124`; None of what waits, or is no lock."""
    fields = line.split()
    if len(fields) != 8 or fields[1] not in ("POSIX", "OFDLCK"):
        return None
    try:
        major, minor, inode = fields[5].split(":")
        last = int(fields[7]) if fields[7] != "EOF" else 1 << 62
        device = int(major, 16), int(minor, 16)
        return _Lock(int(fields[4]), device, int(inode), int(fields[6]), last)
    except ValueError:
        return None
