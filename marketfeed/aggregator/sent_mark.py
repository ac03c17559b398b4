"""`<ledger>.sent`: which ledger sent an order from here last, and how far it had come.

An older copy of a ledger does not know what was sent after it was made, and by itself looks like any
ledger. Held against the mark, it is told apart: it is behind, or it has another name.

The mark is no second truth. It is written after the commit of `sending` and before the POST, and never
synced: it has to outlive the process, not the machine. One that is gone, or cannot be read, makes a
ledger doubtful, which costs a pause and no order.
"""

import contextlib
import logging
import os
import re
from pathlib import Path
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

_FORM: Final = re.compile(rb"([0-9a-f]{16}) ([0-9]{19})\n")


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
        """The mark; None when there is none that can be read."""
        try:
            found = _FORM.fullmatch(self.path.read_bytes())
        except OSError:
            return None
        return None if found is None else Mark(found[1].decode(), int(found[2]))

    def write(self, mark: Mark) -> None:
        """Set it. Where that fails it is taken away, as far as that goes: a wrong one would vouch."""
        try:
            # In one write of the same length each time: a kill leaves the one or the other.
            text = f"{mark.ledger} {mark.next_seq:019d}\n".encode()
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                os.pwrite(descriptor, text, 0)
                os.ftruncate(descriptor, len(text))
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
