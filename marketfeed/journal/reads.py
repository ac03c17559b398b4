"""What is asked of an open journal: each question's SQL once, for its writer and for who reads beside it."""

import logging
import sqlite3
import zlib
from collections import Counter
from typing import Final, Literal

import msgspec

from marketfeed import schema
from marketfeed.grid import TimeRange, candles_in
from marketfeed.journal import quotes
from marketfeed.journal.coverage import Key
from marketfeed.journal.quotes import Unquoted
from marketfeed.records import CANDLE_GAP, Candle, CatalogEntry, Life, RejectedFrame

log = logging.getLogger(__name__)

READ_FIRST: Final = (
    "SELECT * FROM sequence",
    "SELECT * FROM catalog",
    "SELECT * FROM forming",
    f"""SELECT (SELECT close FROM candle WHERE pair_id = pair.id AND timeframe_ms = t.value
                ORDER BY open_time DESC LIMIT 1)
        FROM pair, json_each('{list(schema.TIMEFRAME_NAMES)}') AS t""",
    """SELECT (SELECT mark_price FROM mark_price WHERE pair_id = pair.id ORDER BY time DESC LIMIT 1),
              (SELECT rate FROM funding_rate WHERE pair_id = pair.id ORDER BY time DESC LIMIT 1)
       FROM pair""",
)
"""What reads every series' newest row."""

READ_AT_START: Final = (
    "SELECT * FROM document",
    "SELECT * FROM shipped",
    "SELECT * FROM gap WHERE state IN ('found', 'healing')",
    "SELECT * FROM gap LIMIT 1",
)
"""What a start reads, beside what opening reads by itself: pairs, the newest settled rates, counts."""

READ_AT_START_3: Final = (
    *READ_AT_START,
    "SELECT * FROM meta",
    "SELECT * FROM shipping",
    "SELECT * FROM coverage",
    # All of it: holes that the exchange answered without are among the gaps that are given up.
    "SELECT * FROM gap",
)
"""What a start reads of a journal from version 3 on."""


class JournalReads:
    """Questions to the journal that `db` is open on. Raises SQLite's errors as they are."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def load_document(self, name: str) -> tuple[bytes, int] | None:
        """Return what was last saved under `name` and when (ms), or None: there is none, or it is spoilt."""
        row = self.db.execute("SELECT body, saved FROM document WHERE name = ?", (name,)).fetchone()
        try:
            return None if row is None else (zlib.decompress(row[0]), row[1])
        except zlib.error as error:
            # It can be fetched anew; the candles beside it cannot.
            log.error(
                "document cannot be read, going on without name=%s error=%r", name, str(error)
            )
            return None

    def newest_candles(self) -> dict[tuple[str, str], int]:
        """The newest closed candle's open time (ms) of each series (pair, timeframe)."""
        return self._outermost("max")

    def _outermost(self, which: Literal["min", "max"]) -> dict[tuple[str, str], int]:
        names = schema.TIMEFRAME_NAMES
        return {
            (pair, names[length_ms]): open_time
            for pair, length_ms, open_time in self.db.execute(
                f"""SELECT pair.pair, t.value, (
                       SELECT {which}(open_time) FROM candle
                       WHERE pair_id = pair.id AND timeframe_ms = t.value
                   ) AS outermost
                   FROM pair, json_each(?) AS t WHERE outermost IS NOT NULL""",
                (str(list(names)),),
            )
        }

    def newest_marks(self) -> dict[Key, int]:
        """The newest mark candle's open time (ms) of each series. Only where there is such a table."""
        return {
            (pair, schema.MARK_1H): open_time
            for pair, open_time in self.db.execute(
                """SELECT pair.pair, (
                       SELECT max(open_time) FROM mark_1h WHERE pair_id = pair.id
                   ) AS newest FROM pair WHERE newest IS NOT NULL"""
            )
        }

    def newest_candle(self, pair: str, timeframe: str) -> int | None:
        """The open time (ms) of a series' newest closed candle; None without any."""
        return self._edge("max", pair, timeframe)

    def oldest_candle(self, pair: str, timeframe: str) -> int | None:
        """The open time (ms) of a series' oldest closed candle; None without any."""
        return self._edge("min", pair, timeframe)

    def open_gaps(self, *, marks: bool = False) -> list[tuple[str, str, TimeRange]]:
        """The gaps of candles that are neither healed nor given up: pair, timeframe and where.

        Those of a first filling are none of these. With `marks` those of mark candles, and no others.
        """
        of_kind = {
            schema.gap_kind(series): series
            for series in ((schema.MARK_1H,) if marks else schema.TIMEFRAMES_MS)
        }
        return [
            (pair, of_kind[kind], TimeRange(start_ms, end_ms))
            for pair, kind, start_ms, end_ms in self.db.execute(
                """SELECT pair, kind, start, "end" FROM gap JOIN pair ON pair.id = pair_id
                   WHERE state IN ('found', 'healing') AND "end" IS NOT NULL ORDER BY start"""
            )
            if kind in of_kind
        ]

    def holes(self, pair: str, timeframe: str, time_range: TimeRange) -> list[TimeRange]:
        """What is not stored of a range, oldest first; found by SQLite, row by row nothing is kept."""
        length_ms = schema.SERIES_MS[timeframe]
        of_series = _of_series(timeframe)
        if time_range.start_ms >= time_range.end_ms:
            return []
        extent = _EXTENT.format(of_series=of_series)
        (count, first) = self.db.execute(extent, (pair, length_ms, *time_range)).fetchone()
        if count == 0:
            return [time_range]
        if count == candles_in(time_range, length_ms):
            return []
        found = [TimeRange(time_range.start_ms, first)] if first > time_range.start_ms else []
        within = self.db.execute(
            _HOLES.format(of_series=of_series),
            (length_ms, time_range.end_ms, pair, length_ms, *time_range, length_ms),
        )
        return found + [TimeRange(start_ms, end_ms) for start_ms, end_ms in within]

    def newest_settled(self) -> dict[str, tuple[int, float]]:
        """Time (ms) and rate of each pair's newest settled funding rate."""
        return {
            pair: (time_ms, rate)
            for pair, time_ms, rate in self.db.execute(
                """SELECT pair.pair, s.time, s.rate FROM pair CROSS JOIN funding_settled AS s
                   ON s.pair_id = pair.id AND (s.time, s.kind) = (
                       SELECT time, kind FROM funding_settled WHERE pair_id = pair.id
                       ORDER BY time DESC, kind LIMIT 1
                   )"""
            )
        }

    def settled_to(self) -> dict[str, int]:
        """Up to when (ms, exclusive) the settlements of each pair are stored, as far as REST has answered."""
        known = self.load_document(schema.SETTLED_DOCUMENT)
        if known is None:
            return {}
        try:
            answered = msgspec.json.decode(known[0], type=dict[str, list[TimeRange]])
        except msgspec.DecodeError:
            # The collector asks for it anew.
            return {}
        return schema.settled_to(answered)

    def announced(self, before_ms: int) -> dict[str, tuple[int, int]]:
        """Of each pair when (ms) before a time its next settlement was announced last, and for when."""
        return {
            pair: (time_ms, next_ms)
            for pair, time_ms, next_ms in self.db.execute(
                """SELECT pair.pair, f.time, f.next_funding_time FROM pair CROSS JOIN funding_rate AS f
                   ON f.pair_id = pair.id
                   AND f.time = (
                       SELECT max(time) FROM funding_rate WHERE pair_id = pair.id AND time < ?
                   )""",
                (before_ms,),
            )
        }

    def candles(self, pair: str, timeframe: str, since_ms: int, until_ms: int) -> list[Candle]:
        """The closed candles with since_ms <= open time < until_ms, oldest first, all numbers.

        `event_time_ms` is not kept of closed candles: it is the close time here.
        """
        length_ms = schema.SERIES_MS[timeframe]
        if timeframe == schema.MARK_1H:
            return self._mark_candles(pair, since_ms, until_ms)
        (has_quotes,) = self.db.execute(schema.HAS_TAKER_BUY_QUOTE).fetchone()
        text = _CANDLES.format(
            of_series=_of_series(timeframe), quote=schema.taker_buy_quote_column(has_quotes)
        )
        return [
            Candle(pair, timeframe, at_ms, o, h, lo, c, v, q, b, n, True, at_ms + length_ms, tq)
            for at_ms, o, h, lo, c, v, q, b, n, tq in self.db.execute(
                text, (pair, length_ms, since_ms, until_ms)
            )
        ]

    def _mark_candles(self, pair: str, since_ms: int, until_ms: int) -> list[Candle]:
        of_series = _of_series(schema.MARK_1H)
        rows = self.db.execute(
            f"SELECT open_time, open, high, low, close {of_series} ORDER BY open_time",
            (pair, schema.HOUR_MS, since_ms, until_ms),
        )
        none, hour_ms = (0.0, 0.0, 0.0, 0), schema.HOUR_MS
        return [
            Candle(pair, schema.MARK_1H, at_ms, o, h, lo, c, *none, True, at_ms + hour_ms, 0.0)
            for at_ms, o, h, lo, c in rows
        ]

    def quotes_asked(self) -> dict[Key, int]:
        """Down to where (ms) each series has been asked for the `taker_buy_quote_volume` it lacked.

        A series that has not been asked for is absent.
        """
        return quotes.asked(self.db)

    def newest_without_quote(self, key: Key, below_ms: int | None) -> Unquoted | None:
        """The newest candles of a series, below what has been asked for, that lack it; None: none does."""
        return quotes.newest_without(self.db, key, below_ms)

    def catalog(self) -> list[CatalogEntry]:
        """What this journal collects, ordered by pair."""
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        return [
            CatalogEntry(
                pair, symbol, tuple(frames.split(",")), since, listed, ended, changed, bool(gone)
            )
            for pair, symbol, frames, since, listed, ended, changed, gone in self.db.execute(
                f"""SELECT pair, symbol, ltrim(timeframes, ','), since, listed, ended, changed,
                          {schema.dropped_column(version)}
                   FROM catalog JOIN pair ON pair.id = pair_id ORDER BY pair"""
            )
        ]

    def has_lives(self) -> bool:
        """Whether the file has a table for lives: from version 3 on, once a writer of today has opened it."""
        (found,) = self.db.execute(schema.HAS_LIVES).fetchone()
        return bool(found)

    def lives(self) -> dict[str, tuple[Life, ...]]:
        """Which contracts each pair has been the name of, oldest first; none where the file has no table."""
        if not self.has_lives():
            return {}
        found: dict[str, tuple[Life, ...]] = {}
        for pair, *life in self.db.execute(
            """SELECT pair, symbol, listed, ended, evidence FROM life JOIN pair ON pair.id = pair_id
               ORDER BY pair, listed"""
        ):
            found[pair] = (*found.get(pair, ()), Life(pair, *life))
        return found

    def newest_close_before(self, pair: str, before_ms: int) -> int | None:
        """When the newest stored candle of a pair closed that closed by `before_ms`; None without any."""
        closes_ms = [
            newest_ms + length_ms
            for length_ms in schema.TIMEFRAME_NAMES
            for (newest_ms,) in self.db.execute(
                """SELECT max(open_time) FROM candle WHERE pair_id = (SELECT id FROM pair WHERE pair = ?)
                   AND timeframe_ms = ? AND open_time <= ?""",
                (pair, length_ms, before_ms - length_ms),
            )
            if newest_ms is not None
        ]
        return max(closes_ms, default=None)

    def oldest_candles(self) -> dict[tuple[str, str], int]:
        """The oldest closed candle's open time (ms) of each series (pair, timeframe)."""
        return self._outermost("min")

    def oldest_settled(self) -> dict[str, int]:
        """When the oldest stored rate of each pair was settled (ms)."""
        rows = self.db.execute(
            "SELECT pair, (SELECT min(time) FROM funding_settled WHERE pair_id = pair.id) AS oldest "
            "FROM pair WHERE oldest IS NOT NULL"
        )
        return dict(rows.fetchall())

    def settled_times(self, pair: str, time_range: TimeRange) -> set[int]:
        """When the stored rates of a pair within a range were settled (ms)."""
        rows = self.db.execute(
            "SELECT time FROM funding_settled WHERE time >= ? AND time < ? "
            "AND pair_id = (SELECT id FROM pair WHERE pair = ?)",
            (*time_range, pair),
        )
        return {time_ms for (time_ms,) in rows}

    def row_counts(self) -> dict[str, int]:
        """How many rows each table of records holds. Reads every row: for reports, not for a timer."""
        return {
            table: self.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in (
                schema.TABLE_CANDLE,
                schema.TABLE_FORMING,
                schema.TABLE_MARK_PRICE,
                schema.TABLE_FUNDING_RATE,
                schema.TABLE_FUNDING_SETTLED,
                schema.TABLE_GAP,
                schema.TABLE_DEAD_LETTER,
            )
        }

    def rejected_frames(self) -> list[RejectedFrame]:
        """The frames kept that could not be used, oldest first."""
        text = f"SELECT received, reason, frame FROM {schema.TABLE_DEAD_LETTER} ORDER BY id"
        return [RejectedFrame(*row) for row in self.db.execute(text)]

    def gaps_by_state(self) -> Counter[str]:
        """How many gaps of candles there are of each state, those of a first filling apart."""
        text = "SELECT state, count(*) FROM gap WHERE substr(kind, 1, ?) = ? GROUP BY state"
        return Counter(dict(self.db.execute(text, (len(CANDLE_GAP), CANDLE_GAP))))

    def counts(self) -> dict[str, int]:
        """Bytes in use and rejected frames; cheap enough for every scrape of the metrics."""
        page_bytes, pages, free = (
            self.db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_size", "page_count", "freelist_count")
        )
        (frames,) = self.db.execute("SELECT count(*) FROM dead_letter").fetchone()
        (refused,) = self.db.execute("SELECT count(*) FROM refused_line").fetchone()
        return {
            "bytes": page_bytes * (pages - free),
            "rejected_frames": frames,
            "refused_lines": refused,
        }

    def _edge(self, function: str, pair: str, timeframe: str) -> int | None:
        # One seek: both edges in one statement would read the whole series.
        found: int | None = self.db.execute(
            f"SELECT {function}(open_time) {_all_of_series(timeframe)}",
            (pair, schema.SERIES_MS[timeframe]),
        ).fetchone()[0]
        return found


def _all_of_series(timeframe: str) -> str:
    """The rows of a series: parameters are its pair and the length of its candles."""
    is_mark = timeframe == schema.MARK_1H
    table, column = ("mark_1h", str(schema.HOUR_MS)) if is_mark else ("candle", "timeframe_ms")
    return f"FROM {table} WHERE pair_id = (SELECT id FROM pair WHERE pair = ?) AND {column} = ?"


def _of_series(timeframe: str) -> str:
    """Those of a range: its ends are parameters, too."""
    return _all_of_series(timeframe) + " AND open_time >= ? AND open_time < ?"


_CANDLES: Final = """SELECT open_time, open, high, low, close, volume, quote_volume, taker_buy_volume,
    trades, {quote} {of_series} ORDER BY open_time"""
_EXTENT: Final = "SELECT count(*), min(open_time) {of_series}"
_HOLES: Final = """SELECT open_time + ?, next FROM (
        SELECT open_time, lead(open_time, 1, ?) OVER (ORDER BY open_time) AS next {of_series}
    ) WHERE next > open_time + ? ORDER BY open_time"""
