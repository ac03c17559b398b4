"""What of the journal has yet to be shipped, as lines; some of it is shipped apart from its numbers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.influxdb import bucket_coverage
from marketfeed.influxdb import line_protocol as lines
from marketfeed.influxdb.bucket_coverage import Look, Refused, Unacknowledged
from marketfeed.influxdb.outbox import Outbox, Place, Row, Source, Write, each, key_of
from marketfeed.journal import refused_candles, tables
from marketfeed.journal.coverage import HISTORY_GAP, Key
from marketfeed.journal.journal import KIND
from marketfeed.journal.reads import JournalReads
from marketfeed.storage.acknowledged import notes_of
from marketfeed.storage.ranges import Acknowledged

_OHLCV: Final = {ms: schema.ohlcv_measurement(n) for ms, n in schema.TIMEFRAME_NAMES.items()}
_FORMING: Final = {ms: schema.forming_measurement(n) for ms, n in schema.TIMEFRAME_NAMES.items()}
_CANDLE_COLUMNS: Final = (
    "pair_id, timeframe_ms, open_time, open, high, low, close, volume, quote_volume, "
    "taker_buy_volume, {taker_buy_quote}, trades"
)
_TIME: Final = {
    "candle": "open_time",
    "mark_1h": "open_time",
    "mark_price": "time",
    "funding_rate": "time",
    "funding_settled": "time",
    "gap": "start",
    "catalog": "changed",
}
_COLUMNS: Final = {
    "candle": _CANDLE_COLUMNS,
    "mark_price": f"pair_id, time, mark_price, {schema.INDEX_PRICE}",
    "mark_1h": "pair_id, open_time, open, high, low, close",
    "funding_rate": "pair_id, time, rate, settled_rate, next_funding_time",
    "funding_settled": "pair_id, time",
    "gap": 'pair_id, kind, start, "end", healed, state',
    "catalog": "pair_id, ltrim(timeframes, ','), {dropped}, listed, ended, changed",
}


_CANDLE_KEYS: Final = """SELECT pair_id, timeframe_ms, open_time, seq FROM candle
    WHERE seq BETWEEN ? AND ? ORDER BY seq DESC LIMIT ?"""
_MARK_KEYS: Final = """SELECT pair_id, 3600000, open_time, seq FROM mark_1h
    WHERE seq BETWEEN ? AND ? ORDER BY seq DESC LIMIT ?"""
LOOKED_AT_ONCE: Final = 200_000
"""So many candles that have not been acknowledged are looked at in one go, without their values."""


class JournalOutbox(Outbox):
    """Reads a journal for shipping; `collector` names this host in gaps."""

    def __init__(self, path: Path, collector: str) -> None:
        super().__init__(
            KIND,
            path,
            _COLUMNS,
            (
                Source("candle", "ohlcv", self._candles),
                Source("mark_price", schema.MARK_PRICE, self._mark_prices),
                Source("funding_rate", schema.FUNDING_RATE, each(self._funding_rate)),
                Source("funding_settled", schema.FUNDING_SETTLED, each(self._funding_settled)),
                Source("gap", schema.FEED_GAP, self._gaps),
                Source("catalog", schema.FEED_CATALOG, each(self._catalog)),
            ),
        )
        with self._one_state():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            (has_quotes,) = self._db.execute(schema.HAS_TAKER_BUY_QUOTE).fetchone()
            (self._has_marks,) = self._db.execute(schema.HAS_MARK_1H).fetchone()
        if self._has_marks:
            marks = Source(schema.TABLE_MARK_1H, schema.MARK_1H, each(self._mark_candle))
            self._sources = (*self._sources, marks)
        differing = {
            "dropped": schema.dropped_column(version),
            "taker_buy_quote": schema.taker_buy_quote_column(has_quotes),
        }
        self._columns = {table: text.format(**differing) for table, text in _COLUMNS.items()}
        self._collector = collector
        # What was read of refused lines, and by what it is seen that there are others.
        self._refused: tuple[tuple[Any, ...], Refused] | None = None
        self._names: dict[int, str] = {}
        self._tags: dict[int, str] = {tables.NO_PAIR: lines.escape_tag(lines.ALL_PAIRS)}
        self._of = {source.measurement: source for source in self._sources}

    def forming(self, after_seq: int) -> tuple[list[str], int]:
        """The forming candles that have changed since `after_seq`; returns the highest seq of them."""
        with self._one_state():
            rows = self._db.execute(
                f"SELECT seq, {self._columns['candle']} FROM forming WHERE seq > ?", (after_seq,)
            ).fetchall()
            texts = self._candle_texts(_FORMING, rows) if rows else []
        return texts, max((row[0] for row in rows), default=after_seq)

    def catalog_changed(self, after_seq: int, until_ms: int) -> bool:
        """Whether a row of the catalog that is newer than `after_seq` changed by `until_ms`."""
        with self._one_state():
            text = "SELECT EXISTS (SELECT 1 FROM catalog WHERE seq > ? AND changed <= ?)"
            (found,) = self._db.execute(text, (after_seq, until_ms)).fetchone()
        return bool(found)

    def catalog_as_of(self, time_ms: int) -> tuple[list[str], int]:
        """The whole catalog as points at `time_ms`; returns the highest seq of its rows, too."""
        with self._one_state():
            rows = self._db.execute(
                f"SELECT seq, {self._columns['catalog']} FROM catalog"
            ).fetchall()
            texts = [self._catalog((*row[:-1], time_ms)) for row in rows]
        return texts, max((row[0] for row in rows), default=0)

    def look_at_candles(
        self, unacknowledged: Unacknowledged, acknowledged: Acknowledged, target: str
    ) -> Refused:
        """Look at the rows of candles that are not `acknowledged`, LOOKED_AT_ONCE of them; see `Outbox`."""
        with self._one_state():
            most = LOOKED_AT_ONCE
            left = unacknowledged.left(acknowledged["ohlcv"], self._next_seq())
            self._look_at(unacknowledged, left, most, _CANDLE_KEYS, schema.TIMEFRAME_NAMES)
            return self._refused_candles(target)

    def settled_to(self, acknowledged: Acknowledged) -> dict[str, int]:
        """Up to when (ms, exclusive) the settlements of each pair are stored and `acknowledged`."""
        with self._one_state():
            # What it says is stored is among the rows of the same state.
            found = JournalReads(self._db).settled_to()
            for first, last in acknowledged[schema.FUNDING_SETTLED].gaps(self._next_seq()):
                # The index on `seq` holds the key, too: no row is read.
                for pair, time_ms in self._db.execute(
                    """SELECT pair.pair, min(s.time) FROM funding_settled AS s
                       JOIN pair ON pair.id = s.pair_id WHERE s.seq BETWEEN ? AND ?
                       GROUP BY s.pair_id""",
                    (first, last),
                ):
                    if pair in found:
                        found[pair] = min(found[pair], time_ms)
        return found

    def look_at_marks(self, unacknowledged: Unacknowledged, acknowledged: Acknowledged) -> None:
        """As `look_at_candles`, at those of mark prices."""
        if not self._has_marks:
            return
        with self._one_state():
            left = unacknowledged.left(acknowledged[schema.MARK_1H], self._next_seq())
            names = {schema.HOUR_MS: schema.MARK_1H}
            self._look_at(unacknowledged, left, LOOKED_AT_ONCE, _MARK_KEYS, names)

    def _look_at(
        self,
        unacknowledged: Unacknowledged,
        left: list[tuple[int, int]],
        most: int,
        text: str,
        names: Mapping[int, str],
    ) -> None:
        while left and most > 0:
            look, count = self._look(*left[0], text, names)
            most -= max(count, 1)
            unacknowledged.add([look])
            left[:1] = [(left[0][0], look.first - 1)] if look.first > left[0][0] else []

    def _look(self, first: int, last: int, text: str, names: Mapping[int, str]) -> tuple[Look, int]:
        """The candles of the highest numbers of a range, and how many they are."""
        # The index on `seq` holds the key, too: no row is read.
        found = self._db.execute(text, (first, last, bucket_coverage.CANDLES)).fetchall()
        opens: dict[tuple[int, int], list[int]] = {}
        for pair_id, length_ms, open_ms, _ in found:
            opens.setdefault((pair_id, length_ms), []).append(open_ms)
        pairs = self._pairs(pair_id for pair_id, _ in opens)
        by_key: dict[Key, list[int]] = {
            (pairs[pair_id], names[length_ms]): times
            for (pair_id, length_ms), times in opens.items()
        }
        low = found[-1][3] if len(found) == bucket_coverage.CANDLES else first
        return Look(low, last, by_key), len(found)

    def _pairs(self, wanted: Iterable[int]) -> dict[int, str]:
        if not self._names.keys() >= set(wanted):
            self._names = dict(self._db.execute("SELECT id, pair FROM pair"))
        return self._names

    def _refused_candles(self, target: str) -> Refused:
        count, last = self._db.execute("SELECT count(*), max(id) FROM refused_line").fetchone()
        gone = notes_of(self._kind, self._db).lines_gone()
        stands = self._db.execute(
            "SELECT body FROM document WHERE name = ?", (refused_candles.DOCUMENT,)
        ).fetchone()
        state = (target, count, last, gone, stands)
        if self._refused is not None and self._refused[0] == state:
            return self._refused[1]
        # Read only when it has changed: one that is spoilt is logged.
        found = JournalReads(self._db).load_document(refused_candles.DOCUMENT)
        document = refused_candles.decode(None if found is None else found[0], lines_gone=gone)
        told, is_all = document.of_target(target)
        opens: dict[str, list[int]] = {}
        for (line,) in self._db.execute(
            "SELECT line FROM refused_line WHERE target = ? AND id > ?", (target, told.after)
        ):
            candle = refused_candles.candle_of(line)
            if candle is not None:
                opens.setdefault(candle[0], []).append(candle[1])
        refused = Refused(opens, told.gone, is_unknown=not is_all)
        self._refused = state, refused
        return refused

    def between(
        self, measurement: str | None, span: TimeRange, place: Place, max_lines: int
    ) -> tuple[list[str], Place | None]:
        """Rows of a measurement (None: of all) in `span` as lines, the newest of a series first."""
        found: list[str] = []
        with self._one_state():
            pair_ids = sorted({tables.NO_PAIR, *self._all_tags()})
            series = self._series(measurement)
            for number, (table, where, keys, write) in enumerate(
                series[place.table :], place.table
            ):
                # All of a pair at once where rows of one time are not one point: they are few.
                is_paged = table not in ("gap", "catalog")
                for pair_id in pair_ids:
                    if (number, pair_id) < (place.table, place.pair_id):
                        continue
                    is_here = (number, pair_id) == (place.table, place.pair_id)
                    before_ms = min(span.end_ms, place.before_ms if is_here else span.end_ms)
                    if len(found) >= max_lines:
                        return found, Place(number, pair_id, before_ms)
                    room = max_lines - len(found) if is_paged else -1
                    rows = self._db.execute(
                        f"SELECT seq, {self._columns[table]} FROM {table} WHERE {where} pair_id = ? "
                        f"AND {_TIME[table]} >= ? AND {_TIME[table]} < ? "
                        f"ORDER BY {_TIME[table]} DESC LIMIT ?",
                        (*keys, pair_id, span.start_ms, before_ms, room),
                    ).fetchall()
                    found += write(rows) if rows else []
                    if is_paged and len(rows) == room:
                        (last_ms,) = self._db.execute(
                            f"SELECT {_TIME[table]} FROM {table} WHERE seq = ?", (rows[-1][0],)
                        ).fetchone()
                        return found, Place(number, pair_id, last_ms)
        return found, None

    def _series(self, measurement: str | None) -> list[tuple[str, str, tuple[int, ...], Write]]:
        """Table, condition with its values, and writer, of the rows that make a measurement (None: any)."""
        found: list[tuple[str, str, tuple[int, ...], Write]] = []
        for source in self._sources:
            if source.table == "candle":
                found += [
                    ("candle", "timeframe_ms = ? AND", (length_ms,), source.write)
                    for length_ms, name in _OHLCV.items()
                    if measurement in (None, name)
                ]
            elif measurement in (None, source.measurement):
                found.append((source.table, "", (), source.write))
        return found

    def as_they_stand(self, texts: Iterable[str]) -> list[str | None]:
        """For each line that of the same point as the file holds it now; None where it holds none.

        Lines of `forming` measurements are none of these.
        """
        with self._one_state():
            ids = {tag: number for number, tag in self._all_tags().items()}
            kinds = {
                lines.escape_tag(kind): kind
                for (kind,) in self._db.execute("SELECT DISTINCT kind FROM gap")
            }
            return [self._as_it_stands(text, ids, kinds) for text in texts]

    def _as_it_stands(
        self, line: str, ids: Mapping[str, int], kinds: Mapping[str, str]
    ) -> str | None:
        key, time_ms = key_of(line), line.rpartition(" ")[2]
        measurement, _, tags = key.partition(",")
        tags, _, pair_tag = tags.rpartition("pair=")
        table, _, write = self._of.get(measurement, self._of["ohlcv"])
        where = ""
        keys: tuple[Any, ...] = ()
        # The keys of these tables begin with it: without, all rows of the pair would be read.
        if table == "candle":
            name = measurement.removeprefix(schema.OHLCV_PREFIX)
            where, keys = "timeframe_ms = ? AND", (schema.TIMEFRAMES_MS.get(name, 0),)
        elif table == "gap":
            kind = tags.partition(",kind=")[2].removesuffix(",")
            where, keys = "kind = ? AND", (kinds.get(kind),)
        rows = self._db.execute(
            f"SELECT seq, {self._columns[table]} FROM {table} "
            f"WHERE {where} pair_id = ? AND {_TIME[table]} = ? ORDER BY seq",
            (*keys, ids.get(pair_tag, -1), int(time_ms)),
        ).fetchall()
        same = [text for text in write(rows) if key_of(text) == key] if rows else []
        return same[-1] if same else None

    def _tag(self, pair_id: int) -> str:
        tag = self._tags.get(pair_id)
        return self._all_tags()[pair_id] if tag is None else tag

    def _all_tags(self) -> dict[int, str]:
        self._tags |= {
            number: lines.escape_tag(pair)
            for number, pair in self._db.execute("SELECT id, pair FROM pair")
        }
        return self._tags

    # --- rows to lines ----------------------------------------------------------------------------

    def _candles(self, rows: list[Row]) -> list[str]:
        return self._candle_texts(_OHLCV, rows)

    def _candle_texts(self, measurements: dict[int, str], rows: list[Row]) -> list[str]:
        _, pair_ids, lengths_ms, times_ms, *numbers, quotes, trades = zip(*rows, strict=True)
        names = map(measurements.__getitem__, lengths_ms)
        tags = map(self._tag, pair_ids)
        return lines.candle_texts(names, tags, numbers, quotes, trades, times_ms)

    def _mark_prices(self, rows: list[Row]) -> list[str]:
        _, pair_ids, times_ms, marks, indexes = zip(*rows, strict=True)
        return lines.mark_price_texts(map(self._tag, pair_ids), times_ms, marks, indexes)

    def _mark_candle(self, row: Row) -> str:
        _, pair_id, time_ms, o, high, low, c = row
        return lines.mark_candle_text(self._tag(pair_id), o, high, low, c, time_ms)

    def _funding_rate(self, row: Row) -> str:
        _, pair_id, time_ms, rate, settled_rate, next_ms = row
        return lines.funding_rate_text(self._tag(pair_id), time_ms, rate, settled_rate, next_ms)

    def _funding_settled(self, row: Row) -> str:
        # Of all that was settled at this time: in InfluxDB it is one point.
        _, pair_id, time_ms = row
        settled = self._db.execute(
            """SELECT kind, rate, mark_price FROM funding_settled
               WHERE pair_id = ? AND time = ? ORDER BY kind""",
            (pair_id, time_ms),
        ).fetchall()
        return lines.settlements_text(self._tag(pair_id), time_ms, settled)

    def _gaps(self, rows: list[Row]) -> list[str]:
        # What is missing of a first filling is this journal's own affair.
        return [
            lines.gap_text(
                self._tag(pair_id), kind, self._collector, start_ms, end_ms, bool(healed), state
            )
            for _, pair_id, kind, start_ms, end_ms, healed, state in rows
            if not kind.startswith(HISTORY_GAP)
        ]

    def _catalog(self, row: Row) -> str:
        _, pair_id, timeframes, dropped, listed_ms, ended_ms, changed_ms = row
        return lines.catalog_text(
            self._tag(pair_id), timeframes, listed_ms, ended_ms, changed_ms, dropped=bool(dropped)
        )
