"""The contract with every reader: pairs, timeframes, measurements, fields and SQL names.

Standard library only: this is the one module of marketfeed that `reader` imports, so it has to load
in any feeder's environment. Times are exchange time in integer milliseconds since the epoch (UTC),
prices are quote per base, volumes base, rates fractions per funding interval, unless a name has
another unit.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

PURE = True

SCHEMA_VERSION: Final = 3
"""Newest version of the journal's tables (`PRAGMA user_version`)."""

DROPPED_FROM: Final = 3
"""The version from which on a journal's catalog has a column `dropped`: see `dropped_column`."""

COVERAGE_FROM: Final = 3
"""The version from which on a journal keeps what is promised of each series."""

OLDEST_READ: Final = 2
"""The oldest version of a journal that `reader` reads."""

APPLICATION_ID: Final = 0x4D4B5446
"""`PRAGMA application_id` of a journal: the bytes "MKTF". Marks a journal among SQLite files."""

# --- timeframes -----------------------------------------------------------------------------------

SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000

TIMEFRAMES_MS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "1m": MINUTE_MS,
        "3m": 3 * MINUTE_MS,
        "5m": 5 * MINUTE_MS,
        "15m": 15 * MINUTE_MS,
        "30m": 30 * MINUTE_MS,
        "1h": HOUR_MS,
        "2h": 2 * HOUR_MS,
        "4h": 4 * HOUR_MS,
        "6h": 6 * HOUR_MS,
        "8h": 8 * HOUR_MS,
        "12h": 12 * HOUR_MS,
        "1d": DAY_MS,
    }
)
"""Timeframe name -> length in ms, ascending. Each starts on a multiple of its length since the epoch.

Binance's 3d, 1w and 1M are left out: they do not start on such multiples, and feeders do not use them.
"""

TIMEFRAME_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {length_ms: name for name, length_ms in TIMEFRAMES_MS.items()}
)
"""Timeframe length in ms -> name."""

MARK_1H: Final = "mark_1h"
"""The hourly candles of the mark price: a series, a measurement and a table, and no timeframe.

They are the exchange's own (`markPriceKlines`): nothing is traded in them.
"""

SERIES_MS: Final[Mapping[str, int]] = MappingProxyType({**TIMEFRAMES_MS, MARK_1H: HOUR_MS})
"""The series that a pair's coverage is told of -> the length of their candles in ms."""


def floor_to(time_ms: int, step_ms: int) -> int:
    """Return the greatest multiple of `step_ms` that is not after `time_ms`."""
    return time_ms - time_ms % step_ms


def ceil_to(time_ms: int, step_ms: int) -> int:
    """Return the smallest multiple of `step_ms` that is not before `time_ms`."""
    return -(-time_ms // step_ms) * step_ms


def resampling_source(timeframe: str, collected: Iterable[str]) -> str | None:
    """Return the timeframe of `collected` from which `timeframe` is answered, or None.

    That is `timeframe` itself if it is collected, else the largest collected one that divides it.
    """
    wanted_ms = TIMEFRAMES_MS[timeframe]
    fitting = [
        name for name in collected if name in TIMEFRAMES_MS and wanted_ms % TIMEFRAMES_MS[name] == 0
    ]
    return max(fitting, key=TIMEFRAMES_MS.__getitem__, default=None)


# --- pairs ----------------------------------------------------------------------------------------

_PAIR = re.compile(r"[^\W_]{1,32}/[A-Z0-9]{1,16}:[A-Z0-9]{1,16}")
PAIR_EXAMPLE: Final = "BTC/USDT:USDT"


def is_pair(text: object) -> bool:
    """Whether `text` is written as Freqtrade writes a futures pair: `BASE/QUOTE:SETTLE`.

    BASE is 1-32 letters or digits of any script (five Binance symbols have Chinese names), QUOTE and
    SETTLE upper-case ASCII. Anything else, quotes, blanks and line ends included, is no pair.
    """
    return isinstance(text, str) and _PAIR.fullmatch(text) is not None


# --- InfluxDB -------------------------------------------------------------------------------------

OHLCV_PREFIX: Final = "ohlcv_"
FORMING_PREFIX: Final = "forming_"
MARK_PRICE: Final = "mark_price"
FUNDING_RATE: Final = "funding_rate"
FUNDING_SETTLED: Final = "funding_settled"
FEED_GAP: Final = "feed_gap"
FEED_CATALOG: Final = "feed_catalog"
FEED_COVERAGE: Final = "feed_coverage"
DROPPED: Final = ""
"""The catalog's first timeframe of a pair that the settings name no more (`,3m,1h`): the collector has ended
it, not the exchange. What is stored of it can be read, and grows as stale as that of a pair that lives. So it
stands in InfluxDB, beside the field `dropped`, and in journals up to version 2."""
CLOSED_TRADES: Final = "closed_trades"
"""The closed trades of one bot, in a bucket of their own. Only points with the tag `bot` and the field
`position_profit` are ours: others stood there before."""
SIGNAL: Final = "signal"
ENSEMBLE: Final = "ensemble"

CANDLE_FIELDS: Final[Mapping[str, type]] = MappingProxyType(
    {
        "open": float,
        "high": float,
        "low": float,
        "close": float,
        "volume": float,
        "quote_volume": float,
        "taker_buy_volume": float,
        "taker_buy_quote_volume": float,
        "trades": int,
    }
)
"""Fields of a candle in the order in which every line has them."""

TAKER_BUY_QUOTE: Final = "taker_buy_quote_volume"
"""The one field of a candle that may be absent: collectors of before it do not store it."""

MEASUREMENT_FIELDS: Final[Mapping[str, Mapping[str, type]]] = MappingProxyType(
    {
        MARK_PRICE: {"mark_price": float, "index_price": float},
        FUNDING_RATE: {
            "rate": float,
            "predicted_rate": float,
            "settled_rate": float,
            "next_funding_time": int,
        },
        FUNDING_SETTLED: {
            "rate": float,
            "special_rate": float,
            "mark_price": float,
            "kinds": str,
        },
        MARK_1H: {"open": float, "high": float, "low": float, "close": float},
        FEED_GAP: {"end": int, "healed": bool, "state": str},
        FEED_CATALOG: {"timeframes": str, "listed": int, "ended": int, "dropped": bool},
    }
)
"""Fields of each measurement that is not a candle. Every one has the tag `pair`."""

AGGREGATOR_FIELDS: Final[Mapping[str, Mapping[str, type]]] = MappingProxyType(
    {
        SIGNAL: {
            "confidence": float,
            "leverage": float,
            "price": float,
            "strength": float,
            "strength_text": str,
            "unknown_fields": str,
            "called": str,
            "tag": str,
            "window": int,
        },
        ENSEMBLE: {
            "confidence": float,
            "votes": int,
            "of": int,
            "outcome": str,
            "reasons": str,
            "tag": str,
            "leverage": float,
            "state": str,
            "status": int,
            "answer": str,
            "sent": int,
            "answered": int,
            "meta_state": str,
            "meta_status": int,
            "meta_answer": str,
            "meta_sent": int,
            "meta_answered": int,
        },
    }
)
"""Fields of the aggregator's measurements, which have the tags `pair` and `side`.

`signal` has the tag `feeder` and the time of receipt; `ensemble` the tag `primary` and the time of the
decision. What became of a decision's forward is added to the decision's point, and in `meta_…` what became of
its copy for the meta bot.
"""


CLOSED_TRADE_FLOATS: Final = (
    "trade_id",
    "leverage",
    "open_rate",
    "close_rate",
    "close_profit",
    "position_profit",
    "profit_abs",
    "fees",
    "funding_fees",
    "duration_s",
    "opened",
    "mae",
    "mfe",
    "stop",
    "target",
    "votes",
    "of",
    "confidence",
)
CLOSED_TRADE_TEXTS: Final = ("enter_tag", "exit_reason", "source", "primary", "feeders")
CLOSED_TRADE_TAGS: Final = ("bot", "pair", "side")
"""Fields and tags of `closed_trades`. Profits, stop, target, `mae` and `mfe` are fractions, `close_profit`
alone with leverage in it; `opened` is ms since the epoch. What is not known is absent, but for texts."""


def ohlcv_measurement(timeframe: str) -> str:
    """Name of the measurement of closed candles, for example `ohlcv_3m`."""
    return OHLCV_PREFIX + timeframe


def coverage_fields(series: str) -> tuple[str, str]:
    """Names of the two fields of `feed_coverage` that tell of a series, for example of `3m`."""
    return f"from_{series}", f"until_{series}"


SETTLED_TO: Final = "settled_to"
"""The field of `feed_coverage` up to when (ms, exclusive) a pair's settlements are stored; 0: unknown."""


LIVES: Final = "lives"
"""The field of `feed_coverage` that tells of a pair's lives, as JSON: `[[listed_ms, ended_ms, "SYMBOL"], …]`.

The oldest comes first. A life's beginning is 0 where it is not known; one that lasts has `null` for
its end.
"""


def forming_measurement(timeframe: str) -> str:
    """Name of the measurement of forming candles, for example `forming_3m`."""
    return FORMING_PREFIX + timeframe


# --- settlements ----------------------------------------------------------------------------------

REGULAR: Final = "Regular"
"""The usual kind of settlement (Binance's `rateType`)."""
SPECIAL: Final = "Special"
"""The kind of one out of turn. It may share its minute with a regular one: both are paid."""

SETTLED_LATE_MS: Final = 10 * MINUTE_MS
"""So long after its time a settlement may be on its way before it counts as missing."""

LONGEST_INTERVAL_MS: Final = 8 * HOUR_MS
"""No two regular settlements of a contract that trades are further apart."""

SETTLED_DOCUMENT: Final = "settled_funding"
"""The journal's document of what REST has answered of settlements: pair -> ranges [start, end) in ms, JSON.

A range holds every settlement that was announced for a time in it. See `settled_to`.
"""


def settled_to(answered: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, int]:
    """Up to when (ms, exclusive) the settlements of each pair are stored, by the document above.

    That is the end of the last range; a pair of which nothing was answered is absent.
    """
    return {pair: max(end for _, end in ranges) for pair, ranges in answered.items() if ranges}


def to_minute(time_ms: int) -> int:
    """The minute of a settlement: its time is off by some ms."""
    return floor_to(time_ms + MINUTE_MS // 2, MINUTE_MS)


# --- the journal ----------------------------------------------------------------------------------

READERS_FROM: Final = "SELECT readers_from FROM meta LIMIT 2"
WRITERS_FROM: Final = "SELECT max(readers_from, writers_from) FROM meta LIMIT 2"
"""Which version the table `meta` asks of readers and of writers, who read as well. One row.

A journal or ledger of a newer version has `meta(version, readers_from, writers_from)` if older versions may
use it: it has nothing more than tables and columns (nullable, or with a default) that they do not know.
"""


def version_asked(version: int, rows: Sequence[tuple[object, ...]]) -> int:
    """The version that a file of `version` asks for, by the rows of one of the statements above.

    Where they give none (no table, no row or several, no whole number above 0): its own.
    """
    match rows:
        case [(int(asked),)] if asked > 0:
            return asked
    return version


CANDLE_GAP: Final = "candle_"
"""A gap of candles is of this kind, followed by the timeframe."""
HISTORY_GAP: Final = "history_"
"""A hole of a first filling is a gap of this kind, followed by the timeframe; it is not shipped."""


def gap_kind(series: str) -> str:
    """The kind of a gap of a series: `candle_3m`, `mark_1h`. Those of a first filling: `HISTORY_GAP`."""
    return series if series == MARK_1H else CANDLE_GAP + series


def dropped_column(version: int) -> str:
    """SQL for whether the settings have dropped a pair of `catalog`, in a journal of `version`."""
    return "dropped" if version >= DROPPED_FROM else "timeframes LIKE ',%'"


HAS_TAKER_BUY_QUOTE: Final = (
    "SELECT count(*) FROM pragma_table_info('candle') WHERE name = 'taker_buy_quote_volume'"
)
"""Whether the tables of candles have that column: not up to version 2, nor before a writer that knows it has
opened the file."""


def taker_buy_quote_column(has_it: object) -> str:
    """SQL for that column, by what the statement above answers."""
    return TAKER_BUY_QUOTE if has_it else f"NULL AS {TAKER_BUY_QUOTE}"


HAS_LIVES: Final = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'life'"
"""Whether a journal has the table `life`: not up to version 2, nor before a writer that knows it has opened
the file."""
HAS_MARK_1H: Final = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'mark_1h'"
"""Whether a journal has the table: not up to version 2, nor before a writer that knows it has opened it."""

HAS_CLOCK: Final = "SELECT count(*) FROM pragma_table_info('sequence') WHERE name = 'clock_ms'"
"""Whether a journal's commits are stamped, as HAS_LIVES."""
CLOCK: Final = "SELECT clock_ms, clock_boot, clock_boot_ms FROM sequence WHERE clock_ms IS NOT NULL"
"""The last stamp of a commit: exchange time, which run of a host that was (boot_id and time namespace), and
CLOCK_BOOTTIME there, both in ms. No row before the first."""

TABLE_PAIR: Final = "pair"
TABLE_CANDLE: Final = "candle"
TABLE_FORMING: Final = "forming"
TABLE_MARK_PRICE: Final = "mark_price"
TABLE_FUNDING_RATE: Final = "funding_rate"
TABLE_FUNDING_SETTLED: Final = "funding_settled"
TABLE_MARK_1H: Final = MARK_1H
TABLE_CATALOG: Final = "catalog"
TABLE_GAP: Final = "gap"
TABLE_DEAD_LETTER: Final = "dead_letter"

INDEX_PRICE: Final = "nullif(index_price, 0)"
"""SQL for the index price of a row of `mark_price`: NULL where the exchange gave none.

The column is NOT NULL since the first version, so that this stands in it as 0, which is no price. A table
with another column would take a copy of 33 million rows, and readers of then do not know NULL.
"""
