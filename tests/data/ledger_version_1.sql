CREATE TABLE sequence(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    next INTEGER NOT NULL
);
INSERT INTO sequence VALUES (1, 1);
CREATE TABLE heartbeat(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    beats INTEGER NOT NULL
);
INSERT INTO heartbeat VALUES (1, 0);
CREATE TABLE signal(
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    received INTEGER NOT NULL, account TEXT NOT NULL, address TEXT NOT NULL,
    key TEXT, body BLOB NOT NULL, digest BLOB NOT NULL,
    pair TEXT NOT NULL, side TEXT NOT NULL, feeder TEXT NOT NULL, called TEXT NOT NULL,
    confidence REAL NOT NULL, leverage REAL, ordertype TEXT, price REAL, strength REAL,
    tag TEXT NOT NULL, defaulted TEXT NOT NULL,
    outcome TEXT NOT NULL, window INTEGER NOT NULL, answer TEXT NOT NULL, seq INTEGER NOT NULL
);
CREATE UNIQUE INDEX signal_key ON signal(account, key) WHERE key IS NOT NULL;
CREATE INDEX signal_window ON signal(window);
CREATE INDEX signal_received ON signal(received);
CREATE UNIQUE INDEX signal_seq ON signal(seq);
CREATE TABLE decision(
    window INTEGER PRIMARY KEY,
    pair TEXT NOT NULL, side TEXT NOT NULL,
    opened INTEGER NOT NULL, decided INTEGER NOT NULL, expires INTEGER NOT NULL,
    outcome TEXT NOT NULL, passed INTEGER NOT NULL, reasons TEXT NOT NULL,
    votes INTEGER NOT NULL, of INTEGER NOT NULL, confidence REAL NOT NULL,
    "primary" TEXT NOT NULL, feeders TEXT NOT NULL, tag TEXT NOT NULL,
    leverage REAL NOT NULL, ordertype TEXT NOT NULL, price REAL, seq INTEGER NOT NULL
);
CREATE INDEX decision_decided ON decision(decided);
CREATE UNIQUE INDEX decision_seq ON decision(seq);
CREATE TABLE forward(
    window INTEGER PRIMARY KEY,
    side TEXT NOT NULL, state TEXT NOT NULL, changed INTEGER NOT NULL,
    attempts INTEGER NOT NULL, sent INTEGER, answered INTEGER,
    status INTEGER, answer TEXT NOT NULL, seq INTEGER NOT NULL
);
CREATE INDEX forward_state ON forward(state);
CREATE UNIQUE INDEX forward_seq ON forward(seq);
CREATE VIEW vote AS
    SELECT * FROM signal WHERE outcome = 'voted';
CREATE VIEW forwarded AS
    SELECT forward.*, decision.pair, decision."primary", decision.decided, decision.expires,
           decision.tag, decision.leverage, decision.ordertype, decision.price
    FROM forward JOIN decision ON decision.window = forward.window;
CREATE TABLE shipped(
    target TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (target, first)
) WITHOUT ROWID;
CREATE TABLE refused_line(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    refused INTEGER NOT NULL, target TEXT NOT NULL, line TEXT NOT NULL, answer TEXT NOT NULL
);
