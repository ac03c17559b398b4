"""Records -> InfluxDB line protocol, as the schema says. Times in ms.

Syntax: InfluxDB 2 "Line protocol". A NaN or an infinity has no spelling in it, and one such line would
cost its whole batch on InfluxDB 2: it is refused here, before it becomes a line.
"""

import math
from typing import Final

from marketfeed import schema
from marketfeed.records import Candle, CatalogEntry, FundingRate, FundingSettled, Gap, MarkPrice

_TAG: Final = str.maketrans(
    {",": r"\,", "=": r"\=", " ": r"\ ", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
)
_STRING: Final = str.maketrans({'"': r"\"", "\\": r"\\"})


class LineError(ValueError):
    """A record has a number that line protocol cannot carry. The text names the field."""


def escape_tag(value: str) -> str:
    r"""Escape a tag's value.

    A line end becomes the two characters `\n`; a trailing backslash, which would escape the comma or
    blank after it, gets a blank of its own behind it.
    """
    text = value.translate(_TAG)
    return text + r"\ " if text.endswith("\\") else text


def _float(name: str, value: float) -> str:
    if not math.isfinite(value):
        raise LineError(f"{name}: found {value!r}, expected a finite number")
    return f"{name}={value!r}"


def _string(name: str, value: str) -> str:
    return f'{name}="{value.translate(_STRING)}"'


def candle_line(candle: Candle) -> str:
    """One closed candle for `ohlcv_<timeframe>`, or a forming one for `forming_<timeframe>`."""
    name = schema.ohlcv_measurement if candle.closed else schema.forming_measurement
    return (
        f"{name(candle.timeframe)},pair={escape_tag(candle.pair)} "
        f"{_float('open', candle.open)},{_float('high', candle.high)},"
        f"{_float('low', candle.low)},{_float('close', candle.close)},"
        f"{_float('volume', candle.volume)},{_float('quote_volume', candle.quote_volume)},"
        f"{_float('taker_buy_volume', candle.taker_buy_volume)},trades={candle.trades}i "
        f"{candle.open_time_ms}"
    )


def mark_price_line(mark: MarkPrice) -> str:
    """One mark price; its time is floored to the second."""
    time_ms = schema.floor_to(mark.event_time_ms, schema.SECOND_MS)
    return (
        f"{schema.MARK_PRICE},pair={escape_tag(mark.pair)} "
        f"{_float('mark_price', mark.mark_price)},{_float('index_price', mark.index_price)} {time_ms}"
    )


def funding_rate_line(funding: FundingRate, every_ms: int, settled_rate: float | None) -> str:
    """One running funding rate; its time is floored to `every_ms`.

    `predicted_rate` repeats `rate` for panels made for the older writer; `settled_rate` is left out
    until one is known.
    """
    time_ms = schema.floor_to(funding.event_time_ms, every_ms)
    settled = "" if settled_rate is None else "," + _float("settled_rate", settled_rate)
    return (
        f"{schema.FUNDING_RATE},pair={escape_tag(funding.pair)} "
        f"{_float('rate', funding.rate)},{_float('predicted_rate', funding.rate)}{settled},"
        f"next_funding_time={funding.next_funding_time_ms}i {time_ms}"
    )


def funding_settled_line(settled: FundingSettled) -> str:
    """One settled funding rate."""
    mark = "" if settled.mark_price is None else "," + _float("mark_price", settled.mark_price)
    return (
        f"{schema.FUNDING_SETTLED},pair={escape_tag(settled.pair)} "
        f"{_float('rate', settled.rate)}{mark} {settled.time_ms}"
    )


def gap_line(gap: Gap, collector: str) -> str:
    """One gap as `collector` (a host's name) saw it. A gap of all pairs has the tag `pair=*`."""
    end = "" if gap.end_ms is None else f"end={gap.end_ms}i,"
    return (
        f"{schema.FEED_GAP},collector={escape_tag(collector)},kind={escape_tag(gap.kind)},"
        f"pair={escape_tag(gap.pair or '*')} {end}healed={'true' if gap.healed else 'false'} "
        f"{gap.start_ms}"
    )


def catalog_line(entry: CatalogEntry) -> str:
    """What is collected of a pair, at the time when that changed."""
    listed = "" if entry.listed_ms is None else f",listed={entry.listed_ms}i"
    ended = "" if entry.ended_ms is None else f",ended={entry.ended_ms}i"
    return (
        f"{schema.FEED_CATALOG},pair={escape_tag(entry.pair)} "
        f"{_string('timeframes', ','.join(entry.timeframes))}{listed}{ended} {entry.changed_ms}"
    )
