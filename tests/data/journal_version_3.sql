CREATE TABLE meta(
    version INTEGER NOT NULL, readers_from INTEGER NOT NULL, writers_from INTEGER NOT NULL
);
INSERT INTO meta (version, readers_from, writers_from) VALUES (3, 3, 3);
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
    covered_deleted INTEGER NOT NULL DEFAULT 0
);
INSERT INTO sequence (id, next) VALUES (1, 1);
CREATE TABLE candle(
    pair_id INTEGER NOT NULL, timeframe_ms INTEGER NOT NULL, open_time INTEGER NOT NULL,
    open REAL NOT NULL, high REAL NOT NULL, low REAL NOT NULL, close REAL NOT NULL,
    volume REAL NOT NULL, quote_volume REAL NOT NULL, taker_buy_volume REAL NOT NULL,
    trades INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (pair_id, timeframe_ms, open_time)
) WITHOUT ROWID;
CREATE INDEX candle_seq ON candle(seq);
CREATE TRIGGER candle_deleted AFTER DELETE ON candle BEGIN
    UPDATE sequence SET deleted = deleted + 1;
END;
CREATE TABLE forming(
    pair_id INTEGER NOT NULL, timeframe_ms INTEGER NOT NULL, open_time INTEGER NOT NULL,
    open REAL NOT NULL, high REAL NOT NULL, low REAL NOT NULL, close REAL NOT NULL,
    volume REAL NOT NULL, quote_volume REAL NOT NULL, taker_buy_volume REAL NOT NULL,
    trades INTEGER NOT NULL, event_time INTEGER NOT NULL, seq INTEGER NOT NULL,
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
CREATE TABLE coverage(
    pair_id INTEGER NOT NULL, timeframe_ms INTEGER NOT NULL, life INTEGER NOT NULL DEFAULT 0,
    "from" INTEGER NOT NULL, looked INTEGER NOT NULL, promised INTEGER NOT NULL,
    released INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (pair_id, timeframe_ms, life)
) WITHOUT ROWID;
CREATE TABLE dead_letter(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    received INTEGER NOT NULL, reason TEXT NOT NULL, frame BLOB NOT NULL
);
CREATE TABLE document(
    name TEXT PRIMARY KEY, saved INTEGER NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE shipped(
    target TEXT NOT NULL, measurement TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (target, measurement, first)
) WITHOUT ROWID;
CREATE TABLE shipping(
    target TEXT PRIMARY KEY, again INTEGER NOT NULL, lines_gone INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE refused_line(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    refused INTEGER NOT NULL, target TEXT NOT NULL, line TEXT NOT NULL, answer TEXT NOT NULL
);
