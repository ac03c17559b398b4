CREATE TABLE pair(
    id INTEGER PRIMARY KEY,
    pair TEXT NOT NULL UNIQUE
);
CREATE TABLE sequence(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    next INTEGER NOT NULL
);
INSERT INTO sequence VALUES (1, 1);
CREATE TABLE candle(
    pair_id INTEGER NOT NULL, timeframe_ms INTEGER NOT NULL, open_time INTEGER NOT NULL,
    open REAL NOT NULL, high REAL NOT NULL, low REAL NOT NULL, close REAL NOT NULL,
    volume REAL NOT NULL, quote_volume REAL NOT NULL, taker_buy_volume REAL NOT NULL,
    trades INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (pair_id, timeframe_ms, open_time)
) WITHOUT ROWID;
CREATE INDEX candle_seq ON candle(seq);
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
    seq INTEGER NOT NULL
);
CREATE TABLE gap(
    kind TEXT NOT NULL, pair_id INTEGER NOT NULL, start INTEGER NOT NULL, "end" INTEGER,
    healed INTEGER NOT NULL, reason TEXT NOT NULL, state TEXT NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (kind, pair_id, start)
) WITHOUT ROWID;
CREATE INDEX gap_seq ON gap(seq);
CREATE INDEX gap_open ON gap(kind, start) WHERE state IN ('found', 'healing');
CREATE TABLE dead_letter(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    received INTEGER NOT NULL, reason TEXT NOT NULL, frame BLOB NOT NULL
);
CREATE TABLE document(
    name TEXT PRIMARY KEY, saved INTEGER NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE shipped(
    target TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (target, first)
) WITHOUT ROWID;
CREATE TABLE refused_line(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    refused INTEGER NOT NULL, target TEXT NOT NULL, line TEXT NOT NULL, answer TEXT NOT NULL
);
