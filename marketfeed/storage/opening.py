"""How a durable file is opened when its disk errs: again, and then set aside or left alone.

A file is damaged when two attempts in a row say so. What may be a failed read is asked for three times within
30 s. Even then a ledger stays, as nobody else has what it holds; a file that can be filled again (a journal)
gives way, provided that the disk takes and gives a fresh one.
"""

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from marketfeed.errors import JournalError, JournalWriteError
from marketfeed.storage.damage import meaning_of, put_aside, require_readable, unreadable
from marketfeed.storage.files import BESIDE, identity
from marketfeed.storage.meaning import Meaning

log = logging.getLogger(__name__)

T = TypeVar("T")

AGAIN_AFTER_S: Final = (1.0, 5.0)
"""Wall seconds until what may be a failed read is asked for again; what fails after all of them is lost.

Long enough for a disk that was away for a moment, and shorter than systemd's watchdog waits.
"""
_PROBE: Final = ".probe"


class Opening(NamedTuple):
    """How the file at `path` is opened, a `name` for people. `create` makes another, fresh one elsewhere."""

    name: str
    path: Path
    refillable: bool
    create: Callable[[Path], None]


def open_or_set_aside(
    opening: Opening,
    attempt: Callable[[], T],
    *,
    distrusted: bool,
    again_after_s: Sequence[float],
) -> tuple[T, Path | None]:
    """What `attempt` returns, of a fresh file where the old one had to go; and where that was put.

    `attempt` opens the file and reads what has to be whole. It raises sqlite3.Error or JournalWriteError, and
    has closed then what it opened. Raises JournalError: the file is as it was.
    """
    name, path = opening.name, opening.path
    found = "damage was seen while it was in use"
    try:
        if identity(path) is None and any(identity(Path(f"{path}{suffix}")) for suffix in BESIDE):
            # SQLite would delete them. That the file is gone has to be reported.
            distrusted, found = (
                True,
                "what SQLite keeps beside it is left alone, as by a kill in mid-move",
            )
        if not distrusted:
            try:
                return _attempted(opening, attempt, again_after_s), None
            except _IsToGoError as error:
                found = str(error)
        set_aside = put_aside(path)
        log.error(
            "%s damaged, set aside, starting a fresh one path=%s error=%r set_aside=%s",
            name,
            path,
            found,
            set_aside,
        )
        return attempt(), set_aside
    except sqlite3.Error as error:
        raise JournalError(f"{name} {path}: {error}") from error
    except OSError as error:
        raise JournalError(f"{name} {path}: {error.strerror or error}") from error


class _IsToGoError(Exception):
    """The file is to be set aside."""


def _attempted(opening: Opening, attempt: Callable[[], T], again_after_s: Sequence[float]) -> T:
    name, path = opening.name, opening.path
    left_s = list(again_after_s)
    certain_before = False
    while True:
        try:
            return attempt()
        except (sqlite3.Error, JournalWriteError) as error:
            meaning = meaning_of(error)
            is_certain = meaning is Meaning.DAMAGE
            if not meaning.is_of_reading:
                raise
            if (is_certain and certain_before) or not left_s:
                return _last_attempt(opening, attempt, error, meaning)
            log.warning(
                "%s could not be read, reading it again path=%s error=%r", name, path, str(error)
            )
        # Its bytes were read: a second look is enough, and need not wait.
        if not is_certain:
            time.sleep(left_s.pop(0))
        certain_before = is_certain


def _last_attempt(
    opening: Opening, attempt: Callable[[], T], error: Exception, meaning: Meaning
) -> T:
    """Raise _IsToGoError where a file that was found so to the end is to give way, else JournalError."""
    name, path = opening.name, opening.path
    if opening.refillable:
        if meaning is not Meaning.DAMAGE:
            # A disk that reads nothing at all would not read a fresh one either.
            _require_disk(opening)
        raise _IsToGoError(str(error)) from error
    if meaning is Meaning.FAILED_READ:
        raise unreadable(name, path, str(error)) from error
    if meaning is Meaning.UNCLEAR:
        # A read that failed looks like damage: only of a file whose every byte can be read it is none.
        require_readable(name, path)
        try:
            return attempt()
        except (sqlite3.Error, JournalWriteError) as again:
            if meaning_of(again) not in (Meaning.DAMAGE, Meaning.UNCLEAR):
                raise unreadable(name, path, str(again)) from again
    raise _IsToGoError(str(error)) from error


def _require_disk(opening: Opening) -> None:
    probe = Path(f"{opening.path}{_PROBE}")
    try:
        _remove(probe)
        opening.create(probe)
    except (sqlite3.Error, JournalError, OSError) as error:
        raise unreadable(opening.name, opening.path, str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            _remove(probe)


def _remove(path: Path) -> None:
    for suffix in ("", "-journal", *BESIDE):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
