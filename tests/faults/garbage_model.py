"""What may come out of a frame, read a second time with the standard library's JSON alone.

Slow and plain on purpose: nothing is shared with the decoder but the records' types.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from marketfeed.binance.decode import Decoded
from marketfeed.records import Candle, FundingRate, MarkPrice
from marketfeed.schema import TIMEFRAMES_MS

YEAR_2100_MS: Final = 4_102_444_800_000
_NOT_JSON: Final = re.compile(rb"NaN|Infinity|\\u[dD][89a-fA-F]")
_PLAIN: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?")


class WrongRowError(AssertionError):
    """A record came out that the frame does not say, or one did not that it does say."""


class _Keys(dict[str, Any]):
    """An object that knows whether a key came twice."""

    repeated = False


def _object(pairs: list[tuple[str, Any]]) -> _Keys:
    keys = _Keys(pairs)
    keys.repeated = len(keys) < len(pairs)
    return keys


_decode = json.JSONDecoder(object_pairs_hook=_object).decode
# Python refuses integers of more than 4,300 digits, JSON does not.
_decode_long = json.JSONDecoder(object_pairs_hook=_object, parse_int=float).decode


def read(frame: bytes) -> Any:
    """The frame as Python values, None if it is no JSON; bytes that are no text become `\ufffd`."""
    text = frame.decode("utf-8", "replace")
    for decode in (_decode, _decode_long):
        try:
            return decode(text)
        except (json.JSONDecodeError, RecursionError):
            return None
        except ValueError:
            continue
    return None


def events(document: Any) -> Iterator[_Keys]:
    """Every market event in a document: a combined frame's, a plain one's, an array's."""
    if isinstance(document, _Keys) and "data" in document:
        yield document
        document = document["data"]
    for event in document if isinstance(document, list) else (document,):
        if isinstance(event, _Keys):
            yield event


def require_sound(item: Decoded) -> None:
    """Raise WrongRowError for a record that no market could have."""
    if isinstance(item, Candle):
        length_ms = TIMEFRAMES_MS[item.timeframe]
        numbers = (
            item.open, item.high, item.low, item.close,
            item.volume, item.quote_volume, item.taker_buy_volume,
            0.0 if item.taker_buy_quote_volume is None else item.taker_buy_quote_volume,
        )  # fmt: skip
        sound = (
            all(type(n) is float and math.isfinite(n) and n >= 0 for n in numbers)
            and 0 < item.low <= min(item.open, item.close)
            and item.high >= max(item.open, item.close)
            and type(item.trades) is int
            and item.trades >= 0
            and item.open_time_ms % length_ms == 0
            and 0 < item.open_time_ms <= item.event_time_ms < YEAR_2100_MS
            and (not item.closed or item.event_time_ms >= item.open_time_ms + length_ms - 1)
        )
    elif isinstance(item, MarkPrice):
        sound = (
            0 < item.event_time_ms < YEAR_2100_MS
            and math.isfinite(item.mark_price)
            and item.mark_price > 0
            and (item.index_price is None or 0 < item.index_price < math.inf)
        )
    elif isinstance(item, FundingRate):
        sound = (
            0 < item.event_time_ms < YEAR_2100_MS
            and 0 < item.next_funding_time_ms < YEAR_2100_MS
            and -1 < item.rate < 1
        )
    else:
        return
    if not sound:
        raise WrongRowError(f"no market has {item}")


def require_published(item: Decoded, document: Any, pairs: Mapping[str, str]) -> None:
    """Raise WrongRowError for a record that stands nowhere in the document."""
    if isinstance(item, Candle | MarkPrice | FundingRate) and not any(
        _publishes(event, item, pairs) for event in events(document)
    ):
        raise WrongRowError(f"the frame does not say {item}")


def _publishes(
    event: _Keys, item: Candle | MarkPrice | FundingRate, pairs: Mapping[str, str]
) -> bool:
    try:
        if pairs.get(event["s"]) != item.pair or float(event["E"]) != item.event_time_ms:
            return False
        if isinstance(item, MarkPrice):
            index = 0.0 if item.index_price is None else item.index_price
            return (float(event["p"]), _or_none(event.get("i"))) == (item.mark_price, index)
        if isinstance(item, FundingRate):
            return (float(event["r"]), float(event["T"])) == (item.rate, item.next_funding_time_ms)
        k = event["k"]
        return (
            k["i"] == item.timeframe
            and float(k["t"]) == item.open_time_ms
            and [float(k[name]) for name in "ohlcvqVn"]
            == [
                item.open, item.high, item.low, item.close,
                item.volume, item.quote_volume, item.taker_buy_volume, item.trades,
            ]
            and _quote(k.get("Q")) == item.taker_buy_quote_volume
            and str(k["x"]).lower() == str(item.closed).lower()
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return False


def must_give(
    frame: bytes, document: Any, pairs: Mapping[str, str]
) -> list[Candle | MarkPrice | FundingRate]:
    """The records that have to come out: of events that are written and valued as documented.

    Of anything that is not clean all through (a key that comes twice, bytes that are no text, what only
    Python takes for JSON) nothing is expected.
    """
    found: list[Candle | MarkPrice | FundingRate] = []
    if (
        not isinstance(document, _Keys)
        or document.repeated
        or "e" in document
        or type(document.get("stream")) is not str
    ):
        return found
    for event in events(document.get("data")):
        pair = pairs.get(event["s"]) if type(event.get("s")) is str else None
        if pair is not None and not event.repeated:
            found += _documented(event, pair)
    return found if found and _is_clean(frame) else []


def _is_clean(frame: bytes) -> bool:
    try:
        frame.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return _NOT_JSON.search(frame) is None


def _documented(event: _Keys, pair: str) -> Iterable[Candle | MarkPrice | FundingRate]:
    if event.get("e") == "kline":
        k = event.get("k")
        if not isinstance(k, _Keys) or k.repeated or k.get("s") != event["s"]:
            return
        if not _are(int, event, "E") or not _are(int, k, "t", "T", "n") or not _are(bool, k, "x"):
            return
        if (
            not all(_is_plain(k.get(name)) for name in "ohlcvqV")
            or not (k.get("Q") is None or _is_plain(k["Q"]))
            or str(k.get("i")) not in TIMEFRAMES_MS
        ):
            return
        o, h, low, c, v, q, buy = (float(k[name]) for name in "ohlcvqV")
        candle = Candle(
            pair, k["i"], k["t"], o, h, low, c, v, q, buy, k["n"], k["x"], event["E"], _quote(k.get("Q"))
        )  # fmt: skip
        if k["T"] == k["t"] + TIMEFRAMES_MS[k["i"]] - 1 and k["n"] < 2**53 and _is_sound(candle):
            yield candle
    elif event.get("e") == "markPriceUpdate":
        if (
            not _are(int, event, "E")
            or event.get("st", 1) != 1
            or type(event.get("st", 1)) is not int
        ):
            return
        index, next_ms, running = event.get("i"), event.get("T"), event.get("r")
        if next_ms not in (None, "") and not (type(next_ms) is int and 0 <= next_ms < YEAR_2100_MS):
            return
        if not _is_plain(event.get("p")) or not (index in (None, "") or _is_plain(index)):
            return
        if running is not None and type(running) is not str:
            return
        mark = MarkPrice(pair, event["E"], float(event["p"]), _or_none(index) or None)
        if not _is_sound(mark):
            return
        yield mark
        if next_ms and _is_plain(running):
            rate = FundingRate(pair, event["E"], float(running), next_ms)
            if _is_sound(rate):
                yield rate


def _are(kind: type, keys: Mapping[str, Any], *names: str) -> bool:
    return all(type(keys.get(name)) is kind and abs(keys[name]) < 2**62 for name in names)


def _quote(value: Any) -> float | None:
    """What a candle may lack: None then. Raises ValueError or TypeError for what is neither."""
    return None if value is None or str(value).lower() == "null" else float(value)


def _or_none(value: Any) -> float:
    """A number that may be lacking: 0.0 then. Raises ValueError or TypeError for what is neither."""
    is_lacking = value is None or value == "" or str(value).lower() == "null"
    return 0.0 if is_lacking else float(value)


def _is_plain(value: object) -> bool:
    return type(value) is str and _PLAIN.fullmatch(value) is not None


def _is_sound(item: Candle | MarkPrice | FundingRate) -> bool:
    try:
        require_sound(item)
    except WrongRowError:
        return False
    return True
