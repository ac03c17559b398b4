"""Whether a ledger knows all that was sent from here: it may be fresh, an older copy, or another's.

It has a name, and the mark beside it (`sent_mark`) says which one sent an order last, and how far it had
come. One that may lack orders is held, over restarts, until the bots have been asked (`start`).
"""

import logging
import os
from typing import Final

from marketfeed.aggregator.sent_mark import Mark, SentMark
from marketfeed.errors import JournalWriteError
from marketfeed.storage.database import Database
from marketfeed.storage.numbered_file import NumberedFile

log = logging.getLogger(__name__)

OTHER: Final = (
    "this ledger is not the one that sent the last order from here, or is an older copy of it"
)
"""Why nothing may be forwarded by it: it does not know of what was sent since."""


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

    def hold(self, why: str) -> None:
        """Note, over restarts, that nothing may be forwarded before the bots have been asked once more."""
        self._save_beginning(self._name, why)
        self.held = why

    def release(self) -> None:
        """Note that the bots have been asked: what this ledger does not know of is known."""
        self.hold("")

    def begin(self) -> None:
        """Find out whether it knows all that was sent from here, and leave its mark."""
        mark = self._mark.read()
        self._name, self.held = known = self._beginning()
        if not self.held and self._is_doubtful(mark):
            self.held = OTHER
        name = self._name or os.urandom(8).hex()
        try:
            if (name, self.held) != known:
                self._save_beginning(name, self.held)
        except JournalWriteError as error:
            if error.damaged:
                raise
            # A full disk, most often. The mark stays as doubtful as it is, and the next start finds the same.
            log.warning("ledger not named, going on with it as it is error=%r", str(error))
            return
        # Last: until then, another's mark goes on saying that this is another one.
        self._name = name
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
        if not self._has_beginning():
            return "", ""
        found = self.db.execute("SELECT name, held FROM beginning").fetchone()
        return ("", "") if found is None else (str(found[0]), str(found[1]))

    def _save_beginning(self, name: str, held: str) -> None:
        if self._has_beginning():
            with self._transaction():
                self.db.execute("UPDATE beginning SET name = ?, held = ?", (name, held))

    def _has_beginning(self) -> bool:
        found = self.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'beginning'").fetchone()
        return found is not None
