"""A journal as it stands, read beside its writer: from any thread or process, changing nothing.

Each question opens the file anew (a fraction of a millisecond), so that one that was set aside, replaced
or stopped meanwhile is no special case. Without a writer the file is opened as immutable: nothing is
created beside it.
"""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, TypeVar

from marketfeed import schema
from marketfeed.errors import JournalError, JournalNewerError
from marketfeed.grid import TimeRange
from marketfeed.journal import marks
from marketfeed.journal.coverage import Covered, Key
from marketfeed.journal.covering import read_coverage
from marketfeed.journal.journal import KIND
from marketfeed.journal.quotes import Unquoted
from marketfeed.journal.reads import JournalReads
from marketfeed.records import Candle, CatalogEntry, RejectedFrame
from marketfeed.storage.database import recognise
from marketfeed.storage.files import connect_read_only, is_stopped
from marketfeed.storage.reading import require

T = TypeVar("T")

_TRIES: Final = 5


ChartRow: TypeAlias = tuple[int, float, float, float, float, float, float | None, float | None]
"""open time (ms), open, high, low, close, volume, mark price, running funding rate."""


class Chart(NamedTuple):
    """What a chart shows. `settled`: settlement time (ms) and rate. Oldest first, all of it."""

    candles: list[ChartRow]
    forming: ChartRow | None
    settled: list[tuple[int, float]]


class JournalView:
    """The journal at `path`. Every question raises JournalError when there is none, or no readable one."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    def require(self) -> None:
        """Raise JournalError unless there is a journal of ours that can be read."""
        require(KIND, self.path)

    def catalog(self) -> list[CatalogEntry]:
        """What this journal collects, ordered by pair."""
        return self._ask(JournalReads.catalog)

    def document(self, name: str) -> bytes | None:
        """What was last saved under `name`, or None: there is none, or it is spoilt."""
        found = self._ask(lambda journal: journal.load_document(name))
        return None if found is None else found[0]

    def candles(self, pair: str, timeframe: str, time_range: TimeRange) -> list[Candle]:
        """The closed candles of a range, oldest first, all numbers; `event_time_ms` is the close."""
        return self._ask(lambda journal: journal.candles(pair, timeframe, *time_range))

    def chart(self, pair: str, timeframe: str, limit: int) -> Chart | None:
        """The newest `limit` closed candles of a series and what belongs to them; None: no such pair.

        With each candle goes the last mark price and running funding rate that its time knows, if any.
        """
        length_ms = schema.TIMEFRAMES_MS[timeframe]

        def question(journal: JournalReads) -> Chart | None:
            db = journal.db
            found = db.execute("SELECT id FROM pair WHERE pair = ?", (pair,)).fetchone()
            if found is None:
                return None
            candles = db.execute(_CHART, (found[0], length_ms, limit)).fetchall()[::-1]
            forming = db.execute(_CHART_FORMING, (found[0], length_ms)).fetchone()
            starts = [row[0] for row in (*candles, *([forming] if forming else []))]
            settled = (
                db.execute(_CHART_SETTLED, (found[0], starts[0], limit)).fetchall()[::-1]
                if starts
                else []
            )
            return Chart(candles, forming, settled)

        return self._ask(question)

    def holes(self, pair: str, timeframe: str, time_range: TimeRange) -> list[TimeRange]:
        """What the journal lacks of a range, oldest first."""
        return self._ask(lambda journal: journal.holes(pair, timeframe, time_range))

    def coverage(self) -> dict[Key, Covered]:
        """What is promised of each series, and missing; empty in a journal of before version 3.

        Mark candles are among them where the journal has any.
        """

        def question(journal: JournalReads) -> dict[Key, Covered]:
            (version,) = journal.db.execute("PRAGMA user_version").fetchone()
            if version < schema.COVERAGE_FROM:
                return {}
            found = read_coverage(journal)[0]
            if marks.has_table(journal.db):
                found |= marks.read_coverage(journal)[0]
            return found

        return self._ask(question)

    def quotes_asked(self) -> dict[Key, int]:
        """Down to where (ms) each series has been asked for the `taker_buy_quote_volume` it lacked."""
        return self._ask(JournalReads.quotes_asked)

    def newest_without_quote(self, key: Key, below_ms: int | None) -> Unquoted | None:
        """The newest candles of a series, below what has been asked for, that lack it; None: none does."""
        return self._ask(lambda journal: journal.newest_without_quote(key, below_ms))

    def rejected_frames(self) -> list[RejectedFrame]:
        """The frames kept that could not be used, oldest first."""
        return self._ask(JournalReads.rejected_frames)

    def _ask(self, question: Callable[[JournalReads], T]) -> T:
        error: sqlite3.Error | None = None
        for _ in range(_TRIES):
            immutable = is_stopped(self.path)
            try:
                with contextlib.closing(connect_read_only(self.path, immutable=immutable)) as db:
                    # One state of the journal for all questions.
                    db.execute("BEGIN")
                    recognise(KIND, self.path, db)
                    answer = question(JournalReads(db))
            except sqlite3.Error as found:
                error = found
                continue
            except JournalNewerError:
                # Of a file that is being migrated, half may have been read as immutable.
                if immutable and not is_stopped(self.path):
                    continue
                raise
            # A writer that has started meanwhile may have changed what was taken for immutable.
            if not immutable or is_stopped(self.path):
                return answer
        raise JournalError(f"journal {self.path}: {error or 'is being started and stopped'}")


_OF_CHART: Final = """open_time, open, high, low, close, volume,
    (SELECT mark_price FROM mark_price AS m WHERE m.pair_id = c.pair_id
        AND m.time >= c.open_time AND m.time < c.open_time + c.timeframe_ms
        ORDER BY m.time DESC LIMIT 1),
    (SELECT rate FROM funding_rate AS f WHERE f.pair_id = c.pair_id
        AND f.time >= c.open_time AND f.time < c.open_time + c.timeframe_ms
        ORDER BY f.time DESC LIMIT 1)"""
# By seeks: a row costs the same, however many mark prices are kept.
_CHART: Final = f"""SELECT {_OF_CHART} FROM candle AS c
    WHERE pair_id = ? AND timeframe_ms = ? ORDER BY open_time DESC LIMIT ?"""  # noqa: S608
_CHART_FORMING: Final = f"""SELECT {_OF_CHART} FROM forming AS c
    WHERE pair_id = ? AND timeframe_ms = ?"""  # noqa: S608
# Both kinds of one time are paid.
_CHART_SETTLED: Final = """SELECT time, sum(rate) FROM funding_settled
    WHERE pair_id = ? AND time >= ? GROUP BY time ORDER BY time DESC LIMIT ?"""
