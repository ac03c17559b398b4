"""A journal as it stands, read beside its writer: from any thread or process, changing nothing.

Each question opens the file anew (a fraction of a millisecond), so that one that was set aside, replaced
or stopped meanwhile is no special case. Without a writer the file is opened as immutable: nothing is
created beside it.
"""

import contextlib
import logging
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, TypeVar
from urllib.parse import quote

from marketfeed import schema
from marketfeed.errors import JournalError
from marketfeed.grid import Stretch
from marketfeed.journal.journal import KIND, inspect_journal
from marketfeed.records import Candle, CatalogEntry
from marketfeed.storage.database import absence

log = logging.getLogger(__name__)

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
        if inspect_journal(self.path) is None:
            raise JournalError(absence(KIND, self.path))

    def catalog(self) -> list[CatalogEntry]:
        """What this journal collects, ordered by pair."""
        return self._ask(
            lambda db: [
                CatalogEntry(pair, symbol, tuple(frames.split(",")), since, listed, ended, changed)
                for pair, symbol, frames, since, listed, ended, changed in db.execute(
                    """SELECT pair, symbol, timeframes, since, listed, ended, changed
                       FROM catalog JOIN pair ON pair.id = pair_id ORDER BY pair"""
                )
            ]
        )

    def document(self, name: str) -> bytes | None:
        """What was last saved under `name`, or None: there is none, or it is spoilt."""
        row = self._ask(
            lambda db: db.execute("SELECT body FROM document WHERE name = ?", (name,)).fetchone()
        )
        try:
            return None if row is None else zlib.decompress(row[0])
        except zlib.error as error:
            log.error(
                "document cannot be read, going on without name=%s error=%r", name, str(error)
            )
            return None

    def candles(self, pair: str, timeframe: str, stretch: Stretch) -> list[Candle]:
        """The closed candles of a stretch, oldest first, all numbers; `event_time_ms` is the close."""
        length_ms = schema.TIMEFRAMES_MS[timeframe]
        return self._ask(
            lambda db: [
                Candle(pair, timeframe, at_ms, o, h, lo, c, v, q, b, n, True, at_ms + length_ms)
                for at_ms, o, h, lo, c, v, q, b, n in db.execute(
                    _CANDLES, (pair, length_ms, *stretch)
                )
            ]
        )

    def chart(self, pair: str, timeframe: str, limit: int) -> Chart | None:
        """The newest `limit` closed candles of a series and what belongs to them; None: no such pair.

        With each candle goes the last mark price and running funding rate that its time knows, if any.
        """
        length_ms = schema.TIMEFRAMES_MS[timeframe]

        def question(db: sqlite3.Connection) -> Chart | None:
            # One state of the journal for all questions.
            db.execute("BEGIN")
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

    def holes(self, pair: str, timeframe: str, stretch: Stretch) -> list[Stretch]:
        """What the journal lacks of a stretch, oldest first; found by SQLite, row by row nothing is kept."""
        length_ms = schema.TIMEFRAMES_MS[timeframe]
        if stretch.start_ms >= stretch.end_ms:
            return []

        def question(db: sqlite3.Connection) -> list[Stretch]:
            (count, first) = db.execute(_EXTENT, (pair, length_ms, *stretch)).fetchone()
            if count == 0:
                return [stretch]
            if count == (stretch.end_ms - stretch.start_ms) // length_ms:
                return []
            found = [Stretch(stretch.start_ms, first)] if first > stretch.start_ms else []
            within = db.execute(
                _HOLES, (length_ms, stretch.end_ms, pair, length_ms, *stretch, length_ms)
            )
            return found + [Stretch(start_ms, end_ms) for start_ms, end_ms in within]

        return self._ask(question)

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        error: sqlite3.Error | None = None
        for _ in range(_TRIES):
            wal = Path(f"{self.path}-wal")
            immutable = not wal.exists()
            options = "mode=ro&immutable=1" if immutable else "mode=ro"
            url = f"file:{quote(str(self.path))}?{options}"
            try:
                with contextlib.closing(sqlite3.connect(url, uri=True, timeout=5.0)) as db:
                    answer = question(db)
            except sqlite3.Error as found:
                error = found
                continue
            # A writer that has started meanwhile may have changed what was taken for immutable.
            if not immutable or not wal.exists():
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
_CHART_SETTLED: Final = """SELECT time, rate FROM funding_settled
    WHERE pair_id = ? AND time >= ? GROUP BY time ORDER BY time DESC LIMIT ?"""
_OF_SERIES: Final = """FROM candle
    WHERE pair_id = (SELECT id FROM pair WHERE pair = ?) AND timeframe_ms = ?
      AND open_time >= ? AND open_time < ?"""
_CANDLES: Final = f"""SELECT open_time, open, high, low, close, volume, quote_volume, taker_buy_volume,
    trades {_OF_SERIES} ORDER BY open_time"""
_EXTENT: Final = f"SELECT count(*), min(open_time) {_OF_SERIES}"
_HOLES: Final = f"""SELECT open_time + ?, next FROM (
        SELECT open_time, lead(open_time, 1, ?) OVER (ORDER BY open_time) AS next {_OF_SERIES}
    ) WHERE next > open_time + ? ORDER BY open_time"""  # noqa: S608
