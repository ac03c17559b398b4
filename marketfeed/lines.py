"""Records -> InfluxDB line protocol, as the schema says. Times in ms.

Syntax: InfluxDB 2 "Line protocol". A NaN or an infinity has no spelling in it, and one such line would
cost its whole batch on InfluxDB 2: it is refused here, before it becomes a line.
"""

import math
from collections.abc import Mapping
from typing import Final

from marketfeed import schema
from marketfeed.records import Candle, CatalogEntry, FundingRate, FundingSettled, Gap, MarkPrice

_TAG: Final = str.maketrans(
    {",": r"\,", "=": r"\=", " ": r"\ ", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
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


def _check(**fields: float) -> None:
    for name, value in fields.items():
        if not math.isfinite(value):
            raise LineError(f"{name}: found {value!r}, expected a finite number")


def _string(name: str, value: str) -> str:
    return f'{name}="{value.translate(_STRING)}"'


# The functions ending in `_text` take plain values and a tag that is escaped already: they turn rows of
# the journal into lines, hundreds of thousands a second while a backlog is shipped.


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
) -> str:
    """The line of one candle, closed or forming as `measurement` says."""
    # One look at the sum tells whether any of them is not finite.
    if not math.isfinite(o + high + low + c + volume + quote_volume + taker_buy_volume):
        _check(open=o, high=high, low=low, close=c, volume=volume)
        _check(quote_volume=quote_volume, taker_buy_volume=taker_buy_volume)
    return (
        f"{measurement},pair={pair_tag} open={o!r},high={high!r},low={low!r},close={c!r},"
        f"volume={volume!r},quote_volume={quote_volume!r},taker_buy_volume={taker_buy_volume!r},"
        f"trades={trades}i {open_time_ms}"
    )


def mark_price_text(pair_tag: str, time_ms: int, mark_price: float, index_price: float) -> str:
    """The line of one mark price at a whole second."""
    if not math.isfinite(mark_price + index_price):
        _check(mark_price=mark_price, index_price=index_price)
    return (
        f"{schema.MARK_PRICE},pair={pair_tag} mark_price={mark_price!r},"
        f"index_price={index_price!r} {time_ms}"
    )


def funding_rate_text(
    pair_tag: str, time_ms: int, rate: float, settled_rate: float | None, next_time_ms: int
) -> str:
    """The line of one running funding rate at its grid time.

    `predicted_rate` repeats `rate` for panels made for the older writer; `settled_rate` is left out
    until one is known.
    """
    settled = ""
    if settled_rate is not None:
        _check(settled_rate=settled_rate)
        settled = f"settled_rate={settled_rate!r},"
    _check(rate=rate)
    return (
        f"{schema.FUNDING_RATE},pair={pair_tag} rate={rate!r},predicted_rate={rate!r},{settled}"
        f"next_funding_time={next_time_ms}i {time_ms}"
    )


def funding_settled_text(pair_tag: str, time_ms: int, rate: float, mark_price: float | None) -> str:
    """The line of one settled funding rate."""
    mark = ""
    if mark_price is not None:
        _check(mark_price=mark_price)
        mark = f",mark_price={mark_price!r}"
    _check(rate=rate)
    return f"{schema.FUNDING_SETTLED},pair={pair_tag} rate={rate!r}{mark} {time_ms}"


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
) -> str:
    """The line of what is collected of a pair; `timeframes` are comma-separated."""
    listed = "" if listed_ms is None else f",listed={listed_ms}i"
    ended = "" if ended_ms is None else f",ended={ended_ms}i"
    return (
        f"{schema.FEED_CATALOG},pair={pair_tag} {_string('timeframes', timeframes)}"
        f"{listed}{ended} {changed_ms}"
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
) -> str:
    """The line of one vote; `numbers` that are None are left out."""
    return (
        f"{schema.SIGNAL},feeder={escape_tag(feeder)},pair={pair_tag},side={side} "
        f"{_numbers(numbers)}{_string('called', called)},{_string('tag', _one_line(tag))},"
        f"window={window}i {received_ms}"
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


def _numbers(numbers: Mapping[str, float | None]) -> str:
    there = {name: value for name, value in numbers.items() if value is not None}
    _check(**there)
    return "".join(f"{name}={value!r}," for name, value in there.items())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def candle_line(candle: Candle) -> str:
    """One closed candle for `ohlcv_<timeframe>`, or a forming one for `forming_<timeframe>`."""
    name = schema.ohlcv_measurement if candle.closed else schema.forming_measurement
    return candle_text(
        name(candle.timeframe),
        escape_tag(candle.pair),
        candle.open,
        candle.high,
        candle.low,
        candle.close,
        candle.volume,
        candle.quote_volume,
        candle.taker_buy_volume,
        candle.trades,
        candle.open_time_ms,
    )


def mark_price_line(mark: MarkPrice) -> str:
    """One mark price; its time is floored to the second."""
    time_ms = schema.floor_to(mark.event_time_ms, schema.SECOND_MS)
    return mark_price_text(escape_tag(mark.pair), time_ms, mark.mark_price, mark.index_price)


def funding_rate_line(funding: FundingRate, every_ms: int, settled_rate: float | None) -> str:
    """One running funding rate; its time is floored to `every_ms`."""
    time_ms = schema.floor_to(funding.event_time_ms, every_ms)
    tag = escape_tag(funding.pair)
    return funding_rate_text(tag, time_ms, funding.rate, settled_rate, funding.next_funding_time_ms)


def funding_settled_line(settled: FundingSettled) -> str:
    """One settled funding rate."""
    tag = escape_tag(settled.pair)
    return funding_settled_text(tag, settled.time_ms, settled.rate, settled.mark_price)


def gap_line(gap: Gap, collector: str) -> str:
    """One gap. A gap of all pairs has the tag `pair=*`."""
    tag = escape_tag(gap.pair or ALL_PAIRS)
    return gap_text(tag, gap.kind, collector, gap.start_ms, gap.end_ms, gap.healed, gap.state)


def catalog_line(entry: CatalogEntry) -> str:
    """What is collected of a pair, at the time when that changed."""
    return catalog_text(
        escape_tag(entry.pair),
        ",".join(entry.timeframes),
        entry.listed_ms,
        entry.ended_ms,
        entry.changed_ms,
    )
