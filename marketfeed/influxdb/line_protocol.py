"""Rows of the journal and the ledger -> InfluxDB line protocol, as the schema says. Times in ms.

Syntax: InfluxDB 2 "Line protocol". A NaN or an infinity has no spelling in it, and one such line would
cost its whole batch on InfluxDB 2: it is refused here, before it becomes a line.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from marketfeed import schema

PURE = True

_TAG: Final = str.maketrans(
    {",": r"\,", "=": r"\=", " ": r"\ ", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
)
_CANDLE_FLOATS: Final = tuple(
    name for name in schema.CANDLE_FIELDS if name not in {"trades", schema.TAKER_BUY_QUOTE}
)
_STRING: Final = str.maketrans({'"': r"\"", "\\": r"\\"})


ALL_PAIRS: Final = "*"
"""The tag `pair` of what concerns all pairs."""


class LineError(ValueError):
    """A record has a number that line protocol cannot carry. The text names the field."""


def escape_tag(value: str) -> str:
    r"""Escape a tag's value.

    A line end becomes the two characters `\n`; a trailing backslash, which would escape the comma or
    blank after it, gets a blank of its own behind it.
    """
    text = value.translate(_TAG)
    return text + r"\ " if text.endswith("\\") else text


def _string(name: str, value: str) -> str:
    return f'{name}="{value.translate(_STRING)}"'


def _spelled(name: str, column: Sequence[float]) -> list[str]:
    """Spell floats, shortest first and exactly; several times faster than `repr` one by one."""
    text = msgspec.json.encode(column).decode()
    if "null" in text:
        found = next(value for value in column if not math.isfinite(value))
        raise LineError(f"{name}: found {found!r}, expected a finite number")
    return text[1:-1].split(",")


def _spelled_fields(name: str, column: Sequence[float | None]) -> list[str]:
    """Spell a field of floats with its name and a comma behind it, as nothing where there is none."""
    text = msgspec.json.encode(column).decode()
    if "null" in text:
        wrong = [value for value in column if value is not None and not math.isfinite(value)]
        if wrong:
            raise LineError(f"{name}: found {wrong[0]!r}, expected a finite number or none")
    return [f"{name}={number}," if number != "null" else "" for number in text[1:-1].split(",")]


def _number(name: str, value: float) -> str:
    (text,) = _spelled(name, (value,))
    return text


def _fields(name: str, column: Sequence[float | None]) -> list[str]:
    """Spell floats as fields that follow others, each with its comma; nothing where there is none."""
    there = iter(_spelled(name, [value for value in column if value is not None]))
    return ["" if value is None else f",{name}={next(there)}" for value in column]


# The functions ending in `_text` and `_texts` take plain values and tags that are escaped already: they
# turn rows of the journal into lines. Those ending in `_texts` take columns of the same length, for the
# tables of which there are hundreds of thousands of rows to ship after an outage.


def candle_texts(
    measurements: Iterable[str],
    pair_tags: Iterable[str],
    numbers: Iterable[Sequence[float]],
    taker_buy_quotes: Sequence[float | None],
    trades: Iterable[int],
    open_times_ms: Iterable[int],
) -> list[str]:
    """The lines of candles, closed or forming by their measurements.

    `numbers` are the columns of `schema.CANDLE_FIELDS` before `taker_buy_quote_volume`, which may be None.
    """
    spelled = [_spelled(name, column) for name, column in zip(_CANDLE_FLOATS, numbers, strict=True)]
    spelled.append(_spelled_fields(schema.TAKER_BUY_QUOTE, taker_buy_quotes))
    rows = zip(measurements, pair_tags, *spelled, trades, open_times_ms, strict=True)
    return [
        f"{measurement},pair={tag} open={o},high={high},low={low},close={c},volume={volume},"
        f"quote_volume={quote},taker_buy_volume={taker},{taker_quote}trades={count}i {time_ms}"
        for measurement, tag, o, high, low, c, volume, quote, taker, taker_quote, count, time_ms in rows
    ]


def candle_text(
    measurement: str,
    pair_tag: str,
    o: float,
    high: float,
    low: float,
    c: float,
    volume: float,
    quote_volume: float,
    taker_buy_volume: float,
    trades: int,
    open_time_ms: int,
    taker_buy_quote_volume: float | None = None,
) -> str:
    """The line of one candle, closed or forming by its `measurement`."""
    floats = ((value,) for value in (o, high, low, c, volume, quote_volume, taker_buy_volume))
    (text,) = candle_texts(
        (measurement,),
        (pair_tag,),
        floats,
        (taker_buy_quote_volume,),
        (trades,),
        (open_time_ms,),
    )
    return text


def mark_candle_text(
    pair_tag: str, o: float, high: float, low: float, c: float, open_time_ms: int
) -> str:
    """The line of an hourly candle of the mark price."""
    prices = {"open": o, "high": high, "low": low, "close": c}
    fields = ",".join(f"{name}={_number(name, value)}" for name, value in prices.items())
    return f"{schema.MARK_1H},pair={pair_tag} {fields} {open_time_ms}"


def mark_price_texts(
    pair_tags: Iterable[str],
    times_ms: Iterable[int],
    mark_prices: Sequence[float],
    index_prices: Sequence[float | None],
) -> list[str]:
    """The lines of mark prices at whole seconds; `index_price` is left out where there is none."""
    marks = _spelled("mark_price", mark_prices)
    indexes = _fields("index_price", index_prices)
    return [
        f"{schema.MARK_PRICE},pair={tag} mark_price={mark}{index} {time_ms}"
        for tag, time_ms, mark, index in zip(pair_tags, times_ms, marks, indexes, strict=True)
    ]


def mark_price_text(
    pair_tag: str, time_ms: int, mark_price: float, index_price: float | None
) -> str:
    """The line of one mark price at a whole second."""
    (text,) = mark_price_texts((pair_tag,), (time_ms,), (mark_price,), (index_price,))
    return text


def funding_rate_text(
    pair_tag: str, time_ms: int, rate: float, settled_rate: float | None, next_time_ms: int
) -> str:
    """The line of one running funding rate at its grid time.

    `predicted_rate` repeats `rate` for panels made for the older writer; `settled_rate` is left out
    until one is known.
    """
    settled = (
        "" if settled_rate is None else f"settled_rate={_number('settled_rate', settled_rate)},"
    )
    running = _number("rate", rate)
    return (
        f"{schema.FUNDING_RATE},pair={pair_tag} rate={running},predicted_rate={running},{settled}"
        f"next_funding_time={next_time_ms}i {time_ms}"
    )


def funding_settled_text(
    pair_tag: str,
    time_ms: int,
    rate: float,
    mark_price: float | None,
    *,
    special_rate: float | None = None,
    kinds: str = schema.REGULAR,
) -> str:
    """The line of what was settled at one time, of all `kinds` (separated by commas).

    `rate` is the regular one; where there is none, the other. Older readers know it alone.
    """
    special = (
        "" if special_rate is None else f",special_rate={_number('special_rate', special_rate)}"
    )
    mark = "" if mark_price is None else f",mark_price={_number('mark_price', mark_price)}"
    return (
        f"{schema.FUNDING_SETTLED},pair={pair_tag} rate={_number('rate', rate)}{special}{mark},"
        f"{_string('kinds', kinds)} {time_ms}"
    )


def settlements_text(
    pair_tag: str, time_ms: int, settled: Sequence[tuple[str, float, float | None]]
) -> str:
    """The line of all that was settled of a pair at one time: kind, rate and mark price of each.

    There is room for a regular one and one that is not.
    """
    regular = [one for one in settled if one[0] == schema.REGULAR]
    special = [one for one in settled if one[0] != schema.REGULAR]
    chosen = [*regular[:1], *special[:1]]
    _, rate, mark_price = chosen[0]
    return funding_settled_text(
        pair_tag,
        time_ms,
        rate,
        mark_price,
        special_rate=special[0][1] if special else None,
        kinds=",".join(kind for kind, *_ in chosen),
    )


def gap_text(
    pair_tag: str,
    kind: str,
    collector: str,
    start_ms: int,
    end_ms: int | None,
    healed: bool,
    state: str,
) -> str:
    """The line of one gap as `collector` (a host's name) saw it."""
    end = "" if end_ms is None else f"end={end_ms}i,"
    return (
        f"{schema.FEED_GAP},collector={escape_tag(collector)},kind={escape_tag(kind)},"
        f"pair={pair_tag} {end}healed={'true' if healed else 'false'},{_string('state', state)} {start_ms}"
    )


def catalog_text(
    pair_tag: str,
    timeframes: str,
    listed_ms: int | None,
    ended_ms: int | None,
    changed_ms: int,
    *,
    dropped: bool,
) -> str:
    """The line of what is collected of a pair; `timeframes` are comma-separated.

    That the settings have dropped it stands in it twice: readers of the first version know the comma alone.
    """
    listed = "" if listed_ms is None else f",listed={listed_ms}i"
    ended = "" if ended_ms is None else f",ended={ended_ms}i"
    return (
        f"{schema.FEED_CATALOG},pair={pair_tag} "
        f"{_string('timeframes', f'{schema.DROPPED},{timeframes}' if dropped else timeframes)}"
        f"{listed}{ended},dropped={'true' if dropped else 'false'} {changed_ms}"
    )


def coverage_text(
    pair_tag: str,
    collector: str,
    parts: Mapping[str, tuple[int, int]],
    time_ms: int,
    lives: str = "",
) -> str:
    """The line of what a bucket has of a pair's candles: by timeframe from where, and up to where.

    Of `schema.SETTLED_TO` the end alone. `lives` is text as `schema.LIVES` says, empty where nothing is
    known of them.
    """
    fields: list[str] = []
    for series, (from_ms, until_ms) in parts.items():
        if series == schema.SETTLED_TO:
            fields.append(f"{series}={until_ms}i")
        else:
            first, last = schema.coverage_fields(series)
            fields += [f"{first}={from_ms}i", f"{last}={until_ms}i"]
    if lives:
        fields.append(f'{schema.LIVES}="{lives.translate(_STRING)}"')
    return (
        f"{schema.FEED_COVERAGE},collector={escape_tag(collector)},pair={pair_tag} "
        f"{','.join(fields)} {time_ms}"
    )


def signal_text(
    pair_tag: str,
    side: str,
    feeder: str,
    received_ms: int,
    numbers: Mapping[str, float | None],
    called: str,
    tag: str,
    window: int,
    texts: Mapping[str, str | None],
) -> str:
    """The line of one vote; `numbers` and `texts` that are None are left out."""
    there = {"called": called, "tag": _one_line(tag)}
    there |= {name: _one_line(text) for name, text in texts.items() if text is not None}
    strings = "".join(f"{_string(name, text)}," for name, text in there.items())
    return (
        f"{schema.SIGNAL},feeder={escape_tag(feeder)},pair={pair_tag},side={side} "
        f"{_numbers(numbers)}{strings}window={window}i {received_ms}"
    )


def decision_text(
    pair_tag: str,
    side: str,
    primary: str,
    decided_ms: int,
    numbers: Mapping[str, float | None],
    counts: Mapping[str, int],
    texts: Mapping[str, str],
) -> str:
    """The line of a decision, or of what became of its forward: both are fields of one point."""
    fields = _numbers(numbers)
    fields += "".join(f"{name}={count}i," for name, count in counts.items())
    fields += ",".join(_string(name, _one_line(text)) for name, text in texts.items())
    return (
        f"{schema.ENSEMBLE},pair={pair_tag},primary={escape_tag(primary)},side={side} "
        f"{fields} {decided_ms}"
    )


def closed_trade_text(
    measurement: str,
    bot: str,
    pair: str,
    side: str,
    numbers: Mapping[str, float | None],
    texts: Mapping[str, str],
    time_ms: int,
) -> str:
    """The line of a bot's closed trade; `numbers` that are None are left out."""
    fields = _numbers(numbers) + ",".join(_string(name, text) for name, text in texts.items())
    tags = f"bot={escape_tag(bot)},pair={escape_tag(pair)},side={escape_tag(side)}"
    return f"{measurement},{tags} {fields} {time_ms}"


def _numbers(numbers: Mapping[str, float | None]) -> str:
    there = {name: value for name, value in numbers.items() if value is not None}
    return "".join(f"{name}={_number(name, value)}," for name, value in there.items())


def _one_line(text: str) -> str:
    return " ".join(text.split())
