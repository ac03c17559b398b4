"""`<ledger>.sent`: which ledger sent an order from here last, and how far it had come.

An older copy of a ledger does not know what was sent after it was made, and by itself looks like any
ledger. Held against the mark, it is told apart: it is behind, or it has another name. A mark that came with
the copy is told by its place: it is another file than the one in which it was written.

The mark is no second truth. It is written after the commit of `sending` and before the POST, and never
synced: it has to outlive the process, not the machine. One that is gone, or cannot be read, makes a
ledger doubtful, which costs a pause and no order.
"""

import array
import contextlib
import fcntl
import logging
import os
import re
from pathlib import Path
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

_FORM: Final = re.compile(rb"([0-9a-f]{16}) ([0-9]{19}) ([0-9]{20}\.[0-9]{10})\n")
_LENGTH: Final = 69
_GENERATION: Final = 0x80087601
"""FS_IOC_GETVERSION: what distinguishes a file from an earlier one of the same inode number."""


class Mark(NamedTuple):
    """The name of a ledger, and the number that its next row was to get."""

    ledger: str
    next_seq: int


class SentMark:
    """The mark beside the ledger at `path`. Its writer holds the ledger's lock."""

    def __init__(self, path: Path) -> None:
        self.path = Path(f"{path}.sent")
        self._failed = False

    def read(self) -> Mark | None:
        """The mark; None when there is none that can be read and was written in this place."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = _FORM.fullmatch(os.pread(descriptor, _LENGTH + 1, 0))
                place = _place(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            return None
        if found is None or found[3].decode() != place:
            return None
        return Mark(found[1].decode(), int(found[2]))

    def write(self, mark: Mark) -> None:
        """Set it. Where that fails it is taken away, as far as that goes: an old one would vouch."""
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                # In one write of the same length each time: a kill leaves the one or the other.
                text = f"{mark.ledger} {mark.next_seq:019d} {_place(descriptor)}\n".encode()
                os.pwrite(descriptor, text, 0)
                if os.fstat(descriptor).st_size != _LENGTH:
                    os.ftruncate(descriptor, _LENGTH)
            finally:
                os.close(descriptor)
        except OSError as error:
            if not self._failed:
                log.warning(
                    "no note of what was sent beside the ledger: the next start forwards nothing for a "
                    "while path=%s error=%r",
                    self.path,
                    error.strerror,
                )
            self._failed = True
            with contextlib.suppress(OSError):
                self.path.unlink()
        else:
            self._failed = False


def _place(descriptor: int) -> str:
    """What a copy of an open file does not have: its inode's number and, where there is one, generation."""
    generation = array.array("L", [0])
    with contextlib.suppress(OSError):
        # tmpfs has none, and gives no number twice.
        fcntl.ioctl(descriptor, _GENERATION, generation)
    return f"{os.fstat(descriptor).st_ino:020d}.{generation[0] & 0xFFFFFFFF:010d}"
