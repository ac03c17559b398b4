"""What a row of a journal that was set aside has to be like, to be taken over: pages have no checksum.

Every column is held against its type, times against the clock and their grid, names of pairs against others.
"""

import math
from collections.abc import Container, Sequence
from typing import Final, NamedTuple, TypeAlias

from marketfeed import schema
from marketfeed.records import Candle

PURE = True

Row: TypeAlias = tuple[object, ...]


class Shape(NamedTuple):
    """What is read of a table: `columns` in this order, the first `keys` of them after the pair are its key.

    Times lie `grid_ms` apart; `step_ms` is how far apart rows are looked for behind a bad page.
    """

    columns: str
    keys: str
    grid_ms: int
    step_ms: int


SHAPES: Final = {
    "mark_price": Shape(
        "time, offset_ms, mark_price, index_price", "time", schema.SECOND_MS, schema.SECOND_MS
    ),
    "funding_rate": Shape(
        "time, offset_ms, rate, settled_rate, next_funding_time",
        "time",
        schema.MINUTE_MS,
        schema.MINUTE_MS,
    ),
    "funding_settled": Shape(
        "time, kind, rate, mark_price", "time, kind", schema.MINUTE_MS, schema.HOUR_MS
    ),
    "gap": Shape('start, "end", healed, reason, state', "start", 1, schema.MINUTE_MS),
}
_ENDED: Final = ("healed", "unresolvable")


def is_row(table: str, row: Row, until_ms: int) -> bool:
    """Whether a row, as `SHAPES` reads it, can be one that was stored before `until_ms` (exchange time)."""
    at_ms = row[0]
    if not isinstance(at_ms, int) or not 0 <= at_ms < until_ms or at_ms % SHAPES[table].grid_ms:
        return False
    match table, row[1:]:
        case "mark_price", (int(offset_ms), price, index):
            return 0 <= offset_ms < schema.SECOND_MS and is_number(price) and is_number(index)
        case "funding_rate", (int(offset_ms), rate, settled, int(next_ms)):
            is_settled = settled is None or is_number(settled)
            in_step = 0 <= offset_ms < schema.MINUTE_MS
            return in_step and is_number(rate) and is_settled and next_ms >= 0
        case "funding_settled", (str(kind), rate, price):
            return kind.isalpha() and is_number(rate) and (price is None or is_number(price))
        case "gap", (end, 0 | 1, str(), str(state)):
            return state in _ENDED and (end is None or (isinstance(end, int) and end >= at_ms))
    return False


def is_possible(candle: Candle) -> bool:
    """Whether a candle's numbers can be those of one."""
    prices = (candle.open, candle.high, candle.low, candle.close)
    amounts = (candle.volume, candle.quote_volume, candle.taker_buy_volume)
    return (
        all(is_number(one) for one in (*prices, *amounts))
        and isinstance(candle.trades, int)
        and isinstance(candle.open_time_ms, int)
        and candle.open_time_ms % schema.SERIES_MS[candle.timeframe] == 0
        and 0.0 < candle.low <= min(candle.open, candle.close)
        and max(candle.open, candle.close) <= candle.high
        and min(*amounts, candle.trades) >= 0
        and (candle.taker_buy_quote_volume is None or is_number(candle.taker_buy_quote_volume))
    )


def is_name(pair: object, known: Container[str], symbols: Sequence[object]) -> bool:
    """Whether a name is that of a pair: one that is `known`, or one that its `symbols` say, too.

    A bad byte makes another name of it, and would make another pair.
    """
    if not isinstance(pair, str) or not schema.is_pair(pair):
        return False
    symbol = pair.split(":")[0].replace("/", "")
    return pair in known or any(isinstance(one, str) and one.startswith(symbol) for one in symbols)


def is_number(value: object) -> bool:
    """Whether a value is a number, and finite."""
    return isinstance(value, float | int) and math.isfinite(value)
