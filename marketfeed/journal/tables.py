"""The journal's tables and the statements that fill them. SQL as text; `journal/journal.py` runs it.

Tables are clustered by (pair, …, time) instead of by `seq`: 500 candles lie on a dozen neighbouring
pages, and "the latest" is one seek, so that no second copy of the latest values can disagree.
Each upsert says in its WHERE what counts as news: a repeat changes nothing and takes no new `seq`.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final

from marketfeed import schema

PURE = True

CREATE_META: Final = """
CREATE TABLE meta(
    version INTEGER NOT NULL, readers_from INTEGER NOT NULL, writers_from INTEGER NOT NULL
)"""
CANDLE_DELETED: Final = """
CREATE TRIGGER candle_deleted AFTER DELETE ON candle BEGIN
    UPDATE sequence SET deleted = deleted + 1;
END"""
"""Whoever deletes candles, a hand too: what is derived from them, and kept, can tell that by the count."""
CREATE_COVERAGE: Final = """
CREATE TABLE coverage(
    pair_id INTEGER NOT NULL, timeframe_ms INTEGER NOT NULL, life INTEGER NOT NULL DEFAULT 0,
    "from" INTEGER NOT NULL, looked INTEGER NOT NULL, promised INTEGER NOT NULL,
    released INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (pair_id, timeframe_ms, life)
) WITHOUT ROWID"""
"""What is promised of each series of candles; its holes are rows of `gap` (`coverage.py`)."""
ADD_QUOTES: Final = (
    "ALTER TABLE candle ADD COLUMN taker_buy_quote_volume REAL",
    "ALTER TABLE forming ADD COLUMN taker_buy_quote_volume REAL",
    "ALTER TABLE sequence ADD COLUMN quoted INTEGER",
    "ALTER TABLE sequence ADD COLUMN doubted_from INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE sequence ADD COLUMN doubted_until INTEGER NOT NULL DEFAULT 0",
)
CREATE_QUOTE_ASKED: Final = """
CREATE TABLE quote_asked(
    pair_id INTEGER NOT NULL, timeframe_ms INTEGER NOT NULL, down_to INTEGER NOT NULL,
    PRIMARY KEY (pair_id, timeframe_ms)
) WITHOUT ROWID"""
"""Down to where a series has been asked for again, of what older versions did not store (`quotes.py`)."""
CREATE_LIFE: Final = """
CREATE TABLE IF NOT EXISTS life(
    pair_id INTEGER NOT NULL, symbol TEXT NOT NULL, listed INTEGER NOT NULL, ended INTEGER,
    evidence TEXT NOT NULL,
    PRIMARY KEY (pair_id, listed)
) WITHOUT ROWID"""
"""The contracts that a pair has been the name of (`records.Life`); `listed` is 0 where it is not known."""
CREATE_MARK_1H: Final = (
    """CREATE TABLE mark_1h(
    pair_id INTEGER NOT NULL, open_time INTEGER NOT NULL,
    open REAL NOT NULL, high REAL NOT NULL, low REAL NOT NULL, close REAL NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (pair_id, open_time)
) WITHOUT ROWID""",
    "CREATE INDEX mark_1h_seq ON mark_1h(seq)",
    """CREATE TABLE series_coverage(
    pair_id INTEGER NOT NULL, series TEXT NOT NULL, life INTEGER NOT NULL DEFAULT 0,
    "from" INTEGER NOT NULL, looked INTEGER NOT NULL, promised INTEGER NOT NULL,
    released INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (pair_id, series, life)
) WITHOUT ROWID""",
    """CREATE TABLE series_deleted(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    deleted INTEGER NOT NULL, covered INTEGER NOT NULL
)""",
    "INSERT INTO series_deleted (id, deleted, covered) VALUES (1, 0, 0)",
    """CREATE TRIGGER mark_1h_deleted AFTER DELETE ON mark_1h BEGIN
    UPDATE series_deleted SET deleted = deleted + 1;
END""",
)
"""Hourly candles of the mark price, and what is promised of them (`marks.py`)."""
_MARK_1H: Final = "".join(f"{statement};\n" for statement in CREATE_MARK_1H)
META_3: Final = "INSERT INTO meta (version, readers_from, writers_from) VALUES (3, 3, 3)"

CREATE: Final = f"""
{CREATE_META};
{META_3};
CREATE TABLE pair(
    id INTEGER PRIMARY KEY,
    pair TEXT NOT NULL UNIQUE
);
CREATE TABLE sequence(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    next INTEGER NOT NULL,
    commits INTEGER NOT NULL DEFAULT 0,
    deleted INTEGER NOT NULL DEFAULT 0,
    covered_commits INTEGER NOT NULL DEFAULT 0,
    covered_deleted INTEGER NOT NULL DEFAULT 0,
    quoted INTEGER,
    doubted_from INTEGER NOT NULL DEFAULT 0,
    doubted_until INTEGER NOT NULL DEFAULT 0,
    clock_ms INTEGER, clock_boot TEXT, clock_boot_ms INTEGER
);
INSERT INTO sequence (id, next, quoted) VALUES (1, 1, 1);
CREATE TABLE candle(
    pair_id INTEGER NOT NULL, timeframe_ms INTEGER NOT NULL, open_time INTEGER NOT NULL,
    open REAL NOT NULL, high REAL NOT NULL, low REAL NOT NULL, close REAL NOT NULL,
    volume REAL NOT NULL, quote_volume REAL NOT NULL, taker_buy_volume REAL NOT NULL,
    trades INTEGER NOT NULL, seq INTEGER NOT NULL, taker_buy_quote_volume REAL,
    PRIMARY KEY (pair_id, timeframe_ms, open_time)
) WITHOUT ROWID;
CREATE INDEX candle_seq ON candle(seq);
{CANDLE_DELETED};
CREATE TABLE forming(
    pair_id INTEGER NOT NULL, timeframe_ms INTEGER NOT NULL, open_time INTEGER NOT NULL,
    open REAL NOT NULL, high REAL NOT NULL, low REAL NOT NULL, close REAL NOT NULL,
    volume REAL NOT NULL, quote_volume REAL NOT NULL, taker_buy_volume REAL NOT NULL,
    trades INTEGER NOT NULL, event_time INTEGER NOT NULL, seq INTEGER NOT NULL,
    taker_buy_quote_volume REAL,
    PRIMARY KEY (pair_id, timeframe_ms)
) WITHOUT ROWID;
CREATE TABLE mark_price(
    pair_id INTEGER NOT NULL, time INTEGER NOT NULL, offset_ms INTEGER NOT NULL,
    mark_price REAL NOT NULL, index_price REAL NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (pair_id, time)
) WITHOUT ROWID;
CREATE INDEX mark_price_seq ON mark_price(seq);
CREATE TABLE funding_rate(
    pair_id INTEGER NOT NULL, time INTEGER NOT NULL, offset_ms INTEGER NOT NULL,
    rate REAL NOT NULL, settled_rate REAL, next_funding_time INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (pair_id, time)
) WITHOUT ROWID;
CREATE INDEX funding_rate_seq ON funding_rate(seq);
CREATE TABLE funding_settled(
    pair_id INTEGER NOT NULL, time INTEGER NOT NULL, kind TEXT NOT NULL,
    rate REAL NOT NULL, mark_price REAL, seq INTEGER NOT NULL,
    PRIMARY KEY (pair_id, time, kind)
) WITHOUT ROWID;
CREATE INDEX funding_settled_seq ON funding_settled(seq);
CREATE TABLE catalog(
    pair_id INTEGER PRIMARY KEY, symbol TEXT NOT NULL, timeframes TEXT NOT NULL,
    since INTEGER NOT NULL, listed INTEGER, ended INTEGER, changed INTEGER NOT NULL,
    seq INTEGER NOT NULL, dropped INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE gap(
    kind TEXT NOT NULL, pair_id INTEGER NOT NULL, start INTEGER NOT NULL, "end" INTEGER,
    healed INTEGER NOT NULL, reason TEXT NOT NULL, state TEXT NOT NULL, seq INTEGER NOT NULL,
    empty_1 INTEGER, empty_2 INTEGER,
    PRIMARY KEY (kind, pair_id, start)
) WITHOUT ROWID;
CREATE INDEX gap_seq ON gap(seq);
CREATE INDEX gap_open ON gap(kind, start) WHERE state IN ('found', 'healing');
{CREATE_COVERAGE};
{CREATE_QUOTE_ASKED};
{CREATE_LIFE};
{_MARK_1H}
CREATE TABLE dead_letter(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    received INTEGER NOT NULL, reason TEXT NOT NULL, frame BLOB NOT NULL
);
CREATE TABLE document(
    name TEXT PRIMARY KEY, saved INTEGER NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
"""

FROM_1_TO_2: Final = (
    # A gap has a state. What the disk budget took is gone; a candle that did not come may be fetched yet.
    "ALTER TABLE gap RENAME TO gap_1",
    "DROP INDEX gap_seq",
    """CREATE TABLE gap(
        kind TEXT NOT NULL, pair_id INTEGER NOT NULL, start INTEGER NOT NULL, "end" INTEGER,
        healed INTEGER NOT NULL, reason TEXT NOT NULL, state TEXT NOT NULL, seq INTEGER NOT NULL,
        PRIMARY KEY (kind, pair_id, start)
    ) WITHOUT ROWID""",
    """INSERT INTO gap (kind, pair_id, start, "end", healed, reason, state, seq)
       SELECT kind, pair_id, start, "end", healed, reason,
        CASE WHEN healed THEN 'healed'
             WHEN substr(kind, 1, 11) = 'disk_budget' THEN 'unresolvable'
             ELSE 'found' END, seq
       FROM gap_1""",
    "DROP TABLE gap_1",
    "CREATE INDEX gap_seq ON gap(seq)",
    "CREATE INDEX gap_open ON gap(kind, start) WHERE state IN ('found', 'healing')",
)
"""From version 1 of the journal to 2, statement by statement."""

FROM_2_TO_3: Final = (
    CREATE_META,
    META_3,
    "ALTER TABLE sequence ADD COLUMN commits INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE sequence ADD COLUMN deleted INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE sequence ADD COLUMN covered_commits INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE sequence ADD COLUMN covered_deleted INTEGER NOT NULL DEFAULT 0",
    CANDLE_DELETED,
    CREATE_COVERAGE,
    CREATE_LIFE,
    "ALTER TABLE gap ADD COLUMN empty_1 INTEGER",
    "ALTER TABLE gap ADD COLUMN empty_2 INTEGER",
    # That the settings have dropped a pair stood in front of its timeframes, as a comma.
    "ALTER TABLE catalog ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0",
    """UPDATE catalog SET dropped = 1, timeframes = ltrim(timeframes, ',')
       WHERE timeframes LIKE ',%'""",
)
"""From version 2 to 3, but for what was shipped (`name_measurements`). No large table is read."""

FROM_3_TO_2: Final = (
    "DROP TRIGGER candle_deleted",
    "DROP TABLE meta",
    "ALTER TABLE sequence DROP COLUMN commits",
    "ALTER TABLE sequence DROP COLUMN deleted",
    "ALTER TABLE sequence DROP COLUMN covered_commits",
    "ALTER TABLE sequence DROP COLUMN covered_deleted",
    "DROP TABLE coverage",
    # A file that could not be grown has none.
    "DROP TABLE IF EXISTS life",
    "DELETE FROM gap WHERE substr(kind, 1, 8) = 'history_'",
    "ALTER TABLE gap DROP COLUMN empty_1",
    "ALTER TABLE gap DROP COLUMN empty_2",
    "UPDATE catalog SET timeframes = ',' || timeframes WHERE dropped",
    "ALTER TABLE catalog DROP COLUMN dropped",
)
"""Back from 3 to 2, but for what was shipped. The first release writes rows without naming their columns."""

MEASUREMENTS_3: Final = (
    "ohlcv",
    schema.MARK_PRICE,
    schema.FUNDING_RATE,
    schema.FUNDING_SETTLED,
    schema.FEED_GAP,
    schema.FEED_CATALOG,
)
"""Whose rows a journal of version 2 or 3 numbers from its first day: `ohlcv` is candles of all timeframes."""
MEASUREMENTS: Final = (*MEASUREMENTS_3, schema.MARK_1H)
"""Those, and what was added later."""

NO_PAIR: Final = 0
"""`pair_id` of a gap that concerns all pairs."""


class Upsert:
    """An INSERT of many rows in one statement, in a few fixed sizes so that SQLite compiles each once.

    One statement is one `sqlite3_step`: Python's lock is given up once for hundreds of rows. With a
    statement per row, a busy event loop makes the writer wait up to 5 ms *per row* to get it back.
    """

    SIZES: Final = (256, 64, 16, 4, 1)

    def __init__(self, table: str, columns: str, after: str) -> None:
        row = "(" + ",".join("?" * len(columns.split(","))) + ")"
        # Named, so that a table to which a newer version has added columns takes the row, too.
        before = f"INSERT INTO {table} ({columns}) SELECT * FROM"
        self._texts = {
            size: f"{before} (VALUES {','.join([row] * size)}) {after}" for size in self.SIZES
        }

    def statements(self, rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[str, list[Any]]]:
        """Yield the statements, each with its parameters, that write `rows` in their order."""
        start, left = 0, len(rows)
        for size in self.SIZES:
            text = self._texts[size]
            while left >= size:
                yield text, list(chain.from_iterable(rows[start : start + size]))
                start += size
                left -= size


_CANDLE_COLUMNS: Final = (
    "pair_id, timeframe_ms, open_time, open, high, low, close, volume, quote_volume, "
    "taker_buy_volume, trades"
)
_CANDLE_SET: Final = """
    open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
    volume = excluded.volume, quote_volume = excluded.quote_volume,
    taker_buy_volume = excluded.taker_buy_volume, trades = excluded.trades, seq = excluded.seq"""
_CANDLE_DIFFERS: Final = """(
        excluded.open, excluded.high, excluded.low, excluded.close, excluded.volume,
        excluded.quote_volume, excluded.taker_buy_volume, excluded.trades
    ) <> (
        candle.open, candle.high, candle.low, candle.close, candle.volume,
        candle.quote_volume, candle.taker_buy_volume, candle.trades
    )"""
# A value that was not known is news, a missing one never is: it leaves the value that is there.
_QUOTE_SET: Final = """,
    taker_buy_quote_volume = coalesce(
        excluded.taker_buy_quote_volume, candle.taker_buy_quote_volume)"""
_QUOTE_DIFFERS: Final = """(
        excluded.taker_buy_quote_volume IS NOT NULL
        AND excluded.taker_buy_quote_volume IS NOT candle.taker_buy_quote_volume)"""
_CANDLE_DIFFERS_ANYHOW: Final = f"({_CANDLE_DIFFERS} OR {_QUOTE_DIFFERS})"
CANDLE: Final = Upsert(
    "candle",
    f"{_CANDLE_COLUMNS}, seq, taker_buy_quote_volume",
    # A closed candle gives way only to one that counts at least as many trades, and is not the same:
    # a late repeat of a worse one (an abridged REST row) must not undo it.
    f"""WHERE true ON CONFLICT DO UPDATE SET {_CANDLE_SET}{_QUOTE_SET}
    WHERE excluded.trades >= candle.trades AND {_CANDLE_DIFFERS_ANYHOW}""",
)
CANDLE_REPAIR: Final = Upsert(
    "candle",
    f"{_CANDLE_COLUMNS}, seq, taker_buy_quote_volume",
    # On the operator's word: what the exchange has now, however many trades it counts.
    f"""WHERE true ON CONFLICT DO UPDATE SET {_CANDLE_SET}{_QUOTE_SET}
    WHERE {_CANDLE_DIFFERS_ANYHOW}""",
)
CANDLE_QUOTE: Final = Upsert(
    "candle",
    f"{_CANDLE_COLUMNS}, seq, taker_buy_quote_volume",
    # It brings what a stored candle lacks, and nothing else: one that differs is the audit's business.
    f"""WHERE EXISTS (
        SELECT 1 FROM candle
        WHERE candle.pair_id = column1 AND candle.timeframe_ms = column2
          AND candle.open_time = column3
    ) ON CONFLICT DO UPDATE SET
        taker_buy_quote_volume = excluded.taker_buy_quote_volume, seq = excluded.seq
    WHERE NOT {_CANDLE_DIFFERS} AND {_QUOTE_DIFFERS}""",
)
_FORMING_WHERE: Final = """WHERE NOT EXISTS (
        SELECT 1 FROM candle
        WHERE candle.pair_id = column1 AND candle.timeframe_ms = column2
          AND candle.open_time >= column3
    )"""
_FORMING_SET: Final = """
        open_time = excluded.open_time, open = excluded.open, high = excluded.high,
        low = excluded.low, close = excluded.close, volume = excluded.volume,
        quote_volume = excluded.quote_volume, taker_buy_volume = excluded.taker_buy_volume,
        trades = excluded.trades, event_time = excluded.event_time, seq = excluded.seq"""
_FORMING_IS_NEWER: Final = (
    "(excluded.open_time, excluded.event_time) > (forming.open_time, forming.event_time)"
)
FORMING: Final = Upsert(
    "forming",
    f"{_CANDLE_COLUMNS}, event_time, seq, taker_buy_quote_volume",
    f"""{_FORMING_WHERE} ON CONFLICT DO UPDATE SET {_FORMING_SET},
        taker_buy_quote_volume = excluded.taker_buy_quote_volume
    WHERE {_FORMING_IS_NEWER}""",
)
CANDLE_2: Final = Upsert(
    "candle",
    f"{_CANDLE_COLUMNS}, seq",
    f"""WHERE true ON CONFLICT DO UPDATE SET {_CANDLE_SET}
    WHERE excluded.trades >= candle.trades AND {_CANDLE_DIFFERS}""",
)
"""This and the next two: without `taker_buy_quote_volume`, for files that have no such column."""
CANDLE_REPAIR_2: Final = Upsert(
    "candle",
    f"{_CANDLE_COLUMNS}, seq",
    f"WHERE true ON CONFLICT DO UPDATE SET {_CANDLE_SET} WHERE {_CANDLE_DIFFERS}",
)
FORMING_2: Final = Upsert(
    "forming",
    f"{_CANDLE_COLUMNS}, event_time, seq",
    f"{_FORMING_WHERE} ON CONFLICT DO UPDATE SET {_FORMING_SET} WHERE {_FORMING_IS_NEWER}",
)
FORMING_CLOSED: Final = """
DELETE FROM forming WHERE EXISTS (
    SELECT 1 FROM candle
    WHERE candle.pair_id = forming.pair_id AND candle.timeframe_ms = forming.timeframe_ms
      AND candle.open_time >= forming.open_time
)"""
MARK_PRICE: Final = Upsert(
    "mark_price",
    "pair_id, time, offset_ms, mark_price, index_price, seq",
    """WHERE true ON CONFLICT DO UPDATE SET
        offset_ms = excluded.offset_ms, mark_price = excluded.mark_price,
        index_price = excluded.index_price, seq = excluded.seq
    WHERE excluded.offset_ms < mark_price.offset_ms""",
)
FUNDING_RATE: Final = Upsert(
    "funding_rate",
    "pair_id, time, offset_ms, rate, settled_rate, next_funding_time, seq",
    """WHERE true ON CONFLICT DO UPDATE SET
        offset_ms = excluded.offset_ms, rate = excluded.rate, settled_rate = excluded.settled_rate,
        next_funding_time = excluded.next_funding_time, seq = excluded.seq
    WHERE excluded.offset_ms < funding_rate.offset_ms""",
)
FUNDING_SETTLED: Final = Upsert(
    "funding_settled",
    "pair_id, time, kind, rate, mark_price, seq",
    """WHERE true ON CONFLICT DO UPDATE SET
        rate = excluded.rate, mark_price = coalesce(excluded.mark_price, funding_settled.mark_price),
        seq = excluded.seq
    WHERE excluded.rate <> funding_settled.rate OR (
        excluded.mark_price IS NOT NULL AND excluded.mark_price IS NOT funding_settled.mark_price
    )""",
)
MARK_1H: Final = Upsert(
    "mark_1h",
    "pair_id, open_time, open, high, low, close, seq",
    # It is the exchange's own word, by REST: a later one counts.
    """WHERE true ON CONFLICT DO UPDATE SET
        open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
        seq = excluded.seq
    WHERE (excluded.open, excluded.high, excluded.low, excluded.close)
        <> (mark_1h.open, mark_1h.high, mark_1h.low, mark_1h.close)""",
)
_GAP_COLUMNS: Final = 'kind, pair_id, start, "end", healed, reason, state, seq'
_GAP_SET: Final = """"end" = excluded."end", healed = excluded.healed, reason = excluded.reason,
        state = excluded.state, seq = excluded.seq"""
_GAP_DIFFERS: Final = """excluded."end" IS NOT gap."end" OR excluded.state <> gap.state
       OR excluded.reason <> gap.reason"""
GAP: Final = Upsert(
    "gap",
    f"{_GAP_COLUMNS}, empty_1, empty_2",
    f"""WHERE true ON CONFLICT DO UPDATE SET {_GAP_SET},
        empty_1 = excluded.empty_1, empty_2 = excluded.empty_2
    WHERE {_GAP_DIFFERS}
       OR excluded.empty_1 IS NOT gap.empty_1 OR excluded.empty_2 IS NOT gap.empty_2""",
)
GAP_2: Final = Upsert(
    "gap",
    _GAP_COLUMNS,
    f"WHERE true ON CONFLICT DO UPDATE SET {_GAP_SET} WHERE {_GAP_DIFFERS}",
)
"""Of a journal up to version 2."""
DOCUMENT: Final = """
INSERT INTO document (name, saved, body) VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET saved = excluded.saved, body = excluded.body"""
LIFE: Final = "INSERT INTO life (pair_id, symbol, listed, ended, evidence) VALUES (?, ?, ?, ?, ?)"
COVERAGE: Final = """
INSERT INTO coverage (pair_id, timeframe_ms, "from", looked, promised, released)
VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    "from" = excluded."from", looked = excluded.looked, promised = excluded.promised,
    released = excluded.released"""
COUNT_SAVED: Final = """
UPDATE sequence SET commits = commits + 1, covered_commits = commits + 1, covered_deleted = deleted"""
"""A commit that saves all of coverage: what others have changed before is to be looked through."""
COUNT_COVERED: Final = """
UPDATE sequence SET commits = commits + 1, covered_commits = commits + 1,
    covered_deleted = covered_deleted + ?"""
"""A commit of which coverage knows, with so many candles deleted; not of what a hand deletes meanwhile."""
_CATALOG_COLUMNS: Final = "pair_id, symbol, timeframes, since, listed, ended, changed, seq"
_CATALOG_SET: Final = """
        symbol = excluded.symbol, timeframes = excluded.timeframes, listed = excluded.listed,
        since = min(catalog.since, excluded.since),
        ended = excluded.ended, changed = excluded.changed, seq = excluded.seq"""
_CATALOG_DIFFERS: Final = """
    excluded.symbol <> catalog.symbol OR excluded.timeframes <> catalog.timeframes
       OR excluded.listed IS NOT catalog.listed OR excluded.ended IS NOT catalog.ended"""
CATALOG: Final = Upsert(
    "catalog",
    f"{_CATALOG_COLUMNS}, dropped",
    f"""WHERE true ON CONFLICT DO UPDATE SET {_CATALOG_SET}, dropped = excluded.dropped
    WHERE {_CATALOG_DIFFERS} OR excluded.dropped <> catalog.dropped""",
)
CATALOG_2: Final = Upsert(
    "catalog",
    _CATALOG_COLUMNS,
    f"WHERE true ON CONFLICT DO UPDATE SET {_CATALOG_SET} WHERE {_CATALOG_DIFFERS}",
)
"""Of a journal up to version 2: `timeframes` begins with a comma when the settings have dropped the pair."""
