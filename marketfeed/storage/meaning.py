"""What SQLite's errors say of a file: it is damaged, a read of it failed, or something else refuses.

| code | meaning |
|---|---|
| NOTADB, IOERR_SHORT_READ, extended codes of CORRUPT (an index that lacks a row) | damage |
| CORRUPT as it is | unclear: damage, or a read that failed with EIO |
| IOERR_READ, IOERR_CORRUPTFS (EIO, ENXIO), IOERR_DATA (a checksum) | a failed read |
| every other: BUSY, LOCKED, FULL, PERM, READONLY, CANTOPEN, NOMEM, other IOERR, … | refused |

SQLite gives IOERR_CORRUPTFS for EIO, and a running statement turns that into CORRUPT (`unixRead` in
os_unix.c, `abort_due_to_error` in vdbe.c). So nobody can tell from CORRUPT alone.
"""

import re
from enum import Enum
from typing import Final

PURE = True

_CORRUPT: Final = 11
_NOTADB: Final = 26
_IOERR_READ: Final = 266
_IOERR_SHORT_READ: Final = 522
_IOERR_DATA: Final = 8202
_IOERR_CORRUPTFS: Final = 8458
_FAILED_READS: Final = (_IOERR_READ, _IOERR_CORRUPTFS, _IOERR_DATA)
_PRIMARY: Final = 0xFF
_CODE: Final = re.compile(r"error code[ =](\d+)")
_NO_PAGE: Final = ("unable to get the page", "failed to get page", "failed to read ptrmap")


class Meaning(Enum):
    """What an error says of the file that it was met in."""

    DAMAGE = "damage"
    """Its bytes were read, and are not those of a whole file."""
    UNCLEAR = "unclear"
    """Damage, or a failed read."""
    FAILED_READ = "failed read"
    """The disk refused to read: the file may be whole."""
    REFUSED = "refused"
    """Nothing is said of its bytes: it is busy, the disk full, a limit reached, a right missing."""

    @property
    def is_of_reading(self) -> bool:
        """Whether the file, or its disk, is at fault: asking once more from the disk can tell."""
        return self is not Meaning.REFUSED


def meaning_of_code(code: int) -> Meaning:
    """What an extended result code of SQLite says."""
    if code in (_NOTADB, _IOERR_SHORT_READ):
        return Meaning.DAMAGE
    if code & _PRIMARY == _CORRUPT:
        return Meaning.UNCLEAR if code == _CORRUPT else Meaning.DAMAGE
    return Meaning.FAILED_READ if code in _FAILED_READS else Meaning.REFUSED


def meaning_of_verdict(verdict: str) -> Meaning | None:
    """What an answer of `quick_check` or `integrity_check` says; None: all is well.

    A page that could not be had is told as a text, mostly with the code.
    """
    if verdict == "ok":
        return None
    if found := _CODE.search(verdict):
        # "btreeInitPage() returns error code 11": the page was read, and is none.
        code = int(found[1])
        return Meaning.DAMAGE if code == _CORRUPT else meaning_of_code(code)
    if any(words in verdict.lower() for words in _NO_PAGE):
        return Meaning.UNCLEAR
    return Meaning.DAMAGE
