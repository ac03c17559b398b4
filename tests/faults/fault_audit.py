"""An exchange's candles by REST against those that a journal holds: complete or not, value by value."""

import contextlib
import json
import sqlite3
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.grid import TimeRange, tiles

PAGE: Final = 1_500
_TRIES: Final = 200
_PAUSE_S: Final = 0.2
_COLUMNS: Final = ", ".join(schema.CANDLE_FIELDS)


class Audit(msgspec.Struct, frozen=True):
    """How many candles there are, and which are missing, different or stored though there are none."""

    expected: int
    missing: list[str]
    different: list[str]
    extra: list[str]
    empty: int
    """Candles without any trade."""

    @property
    def good(self) -> bool:
        """Whether every candle is stored as REST answers it, and no other."""
        return not (self.missing or self.different or self.extra)


def audit(
    path: Path,
    rest_url: str,
    symbols: Mapping[str, str],
    timeframes: Iterable[str],
    since_ms: int,
    until_ms: int,
) -> Audit:
    """Compare a journal with REST, of candles that lie in since_ms..until_ms wholly.

    `symbols` are the exchange's names by pair. The exchange may limit requests: it is waited for.
    """
    expected = empty = 0
    missing: list[str] = []
    different: list[str] = []
    extra: list[str] = []
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        for pair, symbol in symbols.items():
            for timeframe in timeframes:
                length_ms = schema.TIMEFRAMES_MS[timeframe]
                first_ms = schema.ceil_to(since_ms, length_ms)
                where = TimeRange(first_ms, schema.floor_to(until_ms, length_ms))
                stored = {
                    open_ms: tuple(numbers)
                    for open_ms, *numbers in db.execute(
                        f"""SELECT open_time, {_COLUMNS} FROM candle JOIN pair ON pair.id = pair_id
                            WHERE pair.pair = ? AND timeframe_ms = ? AND open_time >= ?
                              AND open_time < ?""",  # noqa: S608 - constants
                        (pair, length_ms, *where),
                    )
                }
                returned = rest_candles(rest_url, symbol, timeframe, where)
                expected += len(returned)
                empty += sum(numbers[-1] == 0 for numbers in returned.values())
                for open_ms, numbers in returned.items():
                    found = stored.pop(open_ms, None)
                    if found is None:
                        missing.append(f"{pair} {timeframe} {open_ms}")
                    elif found != numbers:
                        different.append(f"{pair} {timeframe} {open_ms}: {found} is {numbers}")
                extra += [f"{pair} {timeframe} {open_ms}" for open_ms in stored]
    return Audit(expected, missing, different, extra, empty)


def rest_candles(
    rest_url: str, symbol: str, timeframe: str, where: TimeRange
) -> dict[int, tuple[float, ...]]:
    """An exchange's candles of a range by open time: numbers in the order of `schema.CANDLE_FIELDS`."""
    length_ms = schema.TIMEFRAMES_MS[timeframe]
    found: dict[int, tuple[float, ...]] = {}
    for tile in reversed(list(tiles(where, length_ms, PAGE))):
        query = urllib.parse.urlencode(
            {
                "symbol": symbol,
                "interval": timeframe,
                "startTime": tile.start_ms,
                "endTime": tile.end_ms - 1,
                "limit": PAGE,
            }
        )
        for row in json.loads(get_patiently(f"{rest_url}/fapi/v1/klines?{query}")):
            o, high, low, c, volume, _, quote, trades, *taker = row[1:11]
            numbers = *map(float, (o, high, low, c, volume, quote, *taker)), trades
            found[row[0]] = numbers
    return found


def get_patiently(url: str) -> bytes:
    """A body. Raises TimeoutError when the exchange limits requests for too long."""
    for _ in range(_TRIES):
        try:
            with urllib.request.urlopen(url, timeout=180.0) as response:  # noqa: S310 - loopback
                body: bytes = response.read()
                return body
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.TOO_MANY_REQUESTS:
                raise
        time.sleep(_PAUSE_S)
    raise TimeoutError(url)
