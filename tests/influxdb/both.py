"""Rows in a journal and in an InfluxDB, equal, as shipping brings them there."""

from pathlib import Path
from typing import Any

from influxd import Influxd
from stored import write

from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.journal.journal import KIND, Journal
from marketfeed.storage.ranges import Acknowledged

COLLECTOR = "test host"
_ALL = 1 << 40


class Both:
    """A journal at `path`, and `database`, into which `add` ships what is new or has changed."""

    def __init__(self, influxd: Influxd, database: str, path: Path) -> None:
        self.path = path
        self.database = database
        self.influxd = influxd
        self._shipped = Acknowledged.alike(KIND.measurements)
        self._forming_seq = 0

    def add(self, *records: Any) -> None:
        """Write records in one commit, stop cleanly, ship."""
        with Journal.open(self.path) as journal:
            write(journal, *records)
        outbox = JournalOutbox(self.path, COLLECTOR)
        try:
            forming, self._forming_seq = outbox.forming(self._forming_seq)
            lines, covers = outbox.newest(self._shipped, _ALL)
        finally:
            outbox.close()
        for piece in covers:
            self._shipped.add(piece)
        if forming or lines:
            self.influxd.write(self.database, [*forming, *lines])
