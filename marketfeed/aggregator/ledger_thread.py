"""The ledger on a thread of its own."""

from pathlib import Path

from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_schema import KIND
from marketfeed.clock import ClockBase
from marketfeed.storage.file_thread import FileThread
from marketfeed.storage.in_place import InPlace


class LedgerThread(FileThread[Ledger]):
    """The thread of the ledger at `path`; entering raises what `Ledger.open` raises.

    One file for as long as this runs: a damaged one ends the service, and is set aside at the start. `clock`
    is what the times of this run are counted from; None: they are not held against those before.
    """

    def __init__(self, path: Path, clock: ClockBase | None = None) -> None:
        super().__init__(KIND, path)
        self._clock = clock
        self.loss = ""
        """What became of a ledger that should stand here; empty when nothing is known to be lost."""
        self.held = ""
        """Why nothing may be forwarded before the bots have been asked, as it was when it was opened."""
        self.copies_held = ""
        """The same of the meta bot alone, of an earlier run."""
        self.keeps_copies = True
        """Whether the file has a place for copies."""
        self.first_window = 1
        """What was decided in an earlier run has a lower number, as windows are numbered."""
        self._in_place: InPlace | None = None

    def gone(self) -> str:
        """What of the open file is not in its place any more, in words; empty: all of it is.

        From any thread, and quick enough for the event loop: see `InPlace`.
        """
        return "" if self._in_place is None else self._in_place.gone()

    def _open(self) -> None:
        # A predecessor that was killed may take a moment to go.
        self._file = ledger = Ledger.open(self.path, self._clock, wait_lock_s=2.0)
        self.generation += 1
        self.loss = ledger.loss
        self.held = ledger.loss or ledger.held
        self.copies_held = ledger.copies_held
        self.keeps_copies = ledger.keeps_copies
        self.first_window = ledger.next_number()
        self._in_place = ledger.in_place
        self.next_seq = ledger.next_seq
        self._look_beside()
