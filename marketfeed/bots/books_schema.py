"""The tables of the books: the trades of every bot, and points that are to go from a bucket."""

from types import MappingProxyType
from typing import Final

from marketfeed import schema
from marketfeed.bots.closed_trade import ClosedTrade
from marketfeed.storage import acknowledged
from marketfeed.storage.database import Kind

FIELDS: Final[tuple[str, ...]] = ClosedTrade.__struct_fields__
"""The columns of a trade that are fields of its record, in their order."""
QUOTED: Final = ", ".join(f'"{name}"' for name in FIELDS)
FROM_BOT: Final = "bot"
"""Where a trade is from: the database that its bot has now."""
FROM_BEFORE: Final = "before"
"""A database that the bot had before; nobody has the trade but the books."""
IMPORTED: Final = "imported"
"""A foreign point of InfluxDB that has no partner in the bot's database."""

_TEXTS: Final = ("pair", "side", "enter_tag", "exit_reason", "source", "primary", "feeders")
_WHOLE: Final = ("opened_ms", "trade_id", "closed_ms")
_NEEDED: Final = ("leverage", "open_rate", "close_rate", "close_profit", "profit_abs")


def _column(name: str) -> str:
    kind = "TEXT" if name in _TEXTS else "INTEGER" if name in _WHOLE else "REAL"
    needed = " NOT NULL" if name in (*_TEXTS, *_WHOLE, *_NEEDED) else ""
    return f'"{name}" {kind}{needed}'


_CREATE: Final = f"""
CREATE TABLE meta(
    version INTEGER NOT NULL, readers_from INTEGER NOT NULL, writers_from INTEGER NOT NULL
);
INSERT INTO meta (version, readers_from, writers_from) VALUES (1, 1, 1);
CREATE TABLE sequence(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    next INTEGER NOT NULL,
    commits INTEGER NOT NULL DEFAULT 0
);
INSERT INTO sequence (id, next) VALUES (1, 1);
CREATE TABLE heartbeat(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    beats INTEGER NOT NULL
);
INSERT INTO heartbeat (id, beats) VALUES (1, 0);
CREATE TABLE trade(
    bot TEXT NOT NULL,
    {", ".join(map(_column, FIELDS))},
    "from" TEXT NOT NULL,
    point_ms INTEGER NOT NULL,
    exits_asked INTEGER NOT NULL,
    feeders_asked INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (bot, opened_ms, trade_id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX trade_seq ON trade(seq);
CREATE INDEX trade_closed ON trade(bot, closed_ms);
CREATE INDEX trade_point ON trade(bot, point_ms);
CREATE TABLE gone_point(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    bot TEXT NOT NULL, pair TEXT NOT NULL, side TEXT NOT NULL, point_ms INTEGER NOT NULL,
    seq INTEGER NOT NULL
);
{acknowledged.CREATE_SHIPPED.strip().removesuffix(";")};
"""

KIND: Final = Kind(
    name="books",
    setting="bots.books.path",
    application_id=0x4D4B424B,
    version=1,
    kept=1,
    create=_CREATE,
    migrations=MappingProxyType({}),
    ways_back=MappingProxyType({}),
    measurements=(schema.CLOSED_TRADES,),
)
