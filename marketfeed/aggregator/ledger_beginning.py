"""Whether a ledger knows all that was sent from here: it may be fresh, an older copy, or another's.

It has a name, and the mark beside it (`sent_mark`) says which one sent an order last, and how far it had
come. One that may lack orders is held, over restarts, until the bots have been asked (`start`). So is one
whose clock was set between two starts: how long ago something was, its times do not tell.
"""

import logging
import os
from typing import Final

from marketfeed.aggregator.sent_mark import Mark, SentMark
from marketfeed.clock import ClockBase
from marketfeed.errors import JournalWriteError
from marketfeed.storage.database import Database
from marketfeed.storage.numbered_file import NumberedFile

log = logging.getLogger(__name__)

OTHER: Final = (
    "this ledger is not the one that sent the last order from here, or is an older copy of it"
)
"""Why nothing may be forwarded by it: it does not know of what was sent since."""
CLOCK_SET: Final = "this host's clock was set between two starts"
"""The same: how long ago orders were sent, and windows opened, is not known."""
CLOCK_TOLERANCE_MS: Final = 2_000
"""So much is no matter: conflicts and cool-downs are a moment longer or shorter."""


class BegunFile(NumberedFile):
    """The part of a ledger that knows its own beginning."""

    held = ""
    """Why nothing may be forwarded before the bots have been asked what they opened: see `hold`."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.in_place = database.in_place()
        """What tells whether it is still where it was opened; may be asked from any thread."""
        self._mark = SentMark(self.path)
        self._name = ""
        self._clock: ClockBase | None = None

    def hold(self, why: str) -> None:
        """Note, over restarts, that nothing may be forwarded before the bots have been asked once more."""
        self._save_beginning(self._name, why, self._clock)
        self.held = why

    @property
    def copies_held(self) -> str:
        """Why nothing may be sent to the meta bot, by an earlier run; empty: nothing speaks against it."""
        if not self._has("meta_start"):
            return ""
        found = self.db.execute("SELECT held FROM meta_start").fetchone()
        return "" if found is None else str(found[0])

    def hold_copies(self, why: str) -> None:
        """The same as `hold`, of the meta bot alone: it is asked in its own time."""
        if self._has("meta_start"):
            with self._transaction():
                self.db.execute("UPDATE meta_start SET held = ?", (why,))

    def release(self) -> None:
        """Note that the bots have been asked: what this ledger does not know of is known."""
        self.hold("")

    def begin(self, clock: ClockBase | None = None) -> None:
        """Find out whether it knows all that was sent from here, and leave its mark.

        `clock` is what the times of this run are counted from; None: they are not held against those before.
        """
        mark = self._mark.read()
        self._name, known = stored = self._beginning()
        self._clock = clock
        reasons = [known] if known else []
        if self._is_doubtful(mark):
            # Another name: the copy that this one comes from, and the ledger that it took the place of, are
            # others from now on, should they be put here again.
            self._name = _new_name()
            reasons = reasons or [OTHER]
        self._name = self._name or _new_name()
        before = self._clock_before()
        if clock is not None and _was_set(before, clock) and CLOCK_SET not in known:
            log.warning(
                "the clock was set between two starts by_ms=%d",
                clock.booted_ms - (before or clock).booted_ms,
            )
            reasons.append(CLOCK_SET)
        self.held = ", and ".join(reasons)
        try:
            if (self._name, self.held) != stored or clock not in (None, before):
                self._save_beginning(self._name, self.held, clock)
        except JournalWriteError as error:
            if error.damaged:
                raise
            # A full disk, most often. The mark stays as doubtful as it is, and the next start finds the same.
            log.warning("ledger not named, going on with it as it is error=%r", str(error))
            return
        # Last: until then, another's mark goes on saying that this is another one.
        self.leave_mark()

    def _is_doubtful(self, mark: Mark | None) -> bool:
        """Whether it may lack what was sent from here, by the mark that was left."""
        if mark is None:
            # A file of before has no name, and none of that time left a mark: an upgrade.
            return bool(self._name)
        return self._name not in ("", mark.ledger) or mark.next_seq > self._next_seq

    def leave_mark(self) -> None:
        """Note beside the file how far it has come: after the commit of `sending`, before its POST."""
        if self._name:
            self._mark.write(Mark(self._name, self._next_seq))

    def _beginning(self) -> tuple[str, str]:
        """Its name, and why it is held. A file that could not be grown has neither."""
        if not self._has("beginning"):
            return "", ""
        found = self.db.execute("SELECT name, held FROM beginning").fetchone()
        return ("", "") if found is None else (str(found[0]), str(found[1]))

    def _save_beginning(self, name: str, held: str, clock: ClockBase | None = None) -> None:
        """In one commit: a clock that is noted without its doubt would hide it."""
        if not self._has("beginning"):
            return
        with self._transaction():
            self.db.execute("UPDATE beginning SET name = ?, held = ?", (name, held))
            if clock is not None and self._has("clock"):
                # Whatever else a newer version keeps in the row stays.
                self.db.execute(
                    """INSERT INTO clock (id, boot, booted) VALUES (1, ?, ?)
                       ON CONFLICT (id) DO UPDATE SET boot = excluded.boot, booted = excluded.booted""",
                    clock,
                )

    def _clock_before(self) -> ClockBase | None:
        """What the times of the last start are counted from, as far as it was noted."""
        if not self._has("clock"):
            return None
        found = self.db.execute("SELECT boot, booted FROM clock").fetchone()
        return None if found is None else ClockBase(*found)

    def _has(self, table: str) -> bool:
        found = self.db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        return found is not None


def _new_name() -> str:
    return os.urandom(8).hex()


def _was_set(before: ClockBase | None, clock: ClockBase) -> bool:
    """Whether the wall clock was set since, in one run of the host. Over its restart nobody can tell."""
    return (
        before is not None
        and before.boot == clock.boot != ""
        and abs(clock.booted_ms - before.booted_ms) > CLOCK_TOLERANCE_MS
    )
