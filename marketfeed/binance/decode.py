"""Frame bytes -> records. A function of the frame alone, so a recording replays exactly.

Formats: Binance USD-M "Kline/Candlestick Streams" and "Mark Price Stream", in combined frames
(`{"stream": …, "data": …}`), unwrapped ones, and arrays of mark prices. Unknown extra fields are ignored:
Binance keeps adding some.
"""

import math
from collections.abc import Mapping
from typing import Final, TypeAlias

import msgspec

from marketfeed import schema
from marketfeed.records import Candle, FundingRate, MarkPrice

PURE = True

MAX_TIME_MS: Final = 4_102_444_800_000
"""The year 2100: a later time in a frame is a fault, not a time."""
_MAX_TRADES: Final = 2**53
_USD_M: Final = 1
_MAY_LACK: Final = frozenset({"i", "T"})
_EMPTY: Final = msgspec.Raw(b'""')
_INF: Final = math.inf

IGNORED_REASONS: Final = frozenset({"unknown_symbol", "coin_m"})
"""Reasons for which a row is normal and only counted; every other one is a fault worth keeping."""


class Reject(msgspec.Struct, frozen=True, gc=False):
    """A frame, or one row of an array, that gives no record.

    `reason` is one of a small set (a metric's label); `detail` is for people.
    """

    reason: str
    detail: str

    @property
    def ignored(self) -> bool:
        """Whether such rows are normal (another market's), so that they are counted but not kept."""
        return self.reason in IGNORED_REASONS


class Control(msgspec.Struct, frozen=True, gc=False):
    """The exchange's answer to a SUBSCRIBE or the like. An ACK proves nothing: only data does."""

    request_id: int | None
    error: str | None


Decoded: TypeAlias = Candle | MarkPrice | FundingRate | Reject | Control


# Numbers stand in frames as strings. msgspec's lax mode reads them as floats, exactly rounded and by
# JSON's own grammar, 2.5 times as fast as float() field by field; NaN and infinities, which it lets
# pass, fail the comparisons below.
class _Kline(msgspec.Struct, gc=False):
    t: int
    T: int
    s: str
    i: str
    o: float
    c: float
    h: float
    l: float  # noqa: E741 - the exchange's own name
    v: float
    n: int
    x: bool
    q: float
    V: float
    Q: float | None = None


class _KlineEvent(msgspec.Struct, gc=False, tag_field="e", tag="kline"):
    E: int
    s: str
    k: _Kline


class _MarkEvent(msgspec.Struct, gc=False, tag_field="e", tag="markPriceUpdate"):
    E: int
    s: str
    p: float
    # What a contract does not have is null or left out, or `""`: that is taken out by `_lacking`.
    i: float | None = None
    # Empty for contracts without funding, hence no float.
    r: str | None = None
    T: int | None = None
    # 1 USD-M, 2 COIN-M: rows of both are in the arrays since 2026-06-30.
    st: int = _USD_M


_Event: TypeAlias = _KlineEvent | _MarkEvent


class _Combined(msgspec.Struct, gc=False):
    data: _KlineEvent | _MarkEvent | list[msgspec.Raw]
    stream: str


class _Error(msgspec.Struct, gc=False):
    code: int = 0
    msg: str = ""


class _Answer(msgspec.Struct, gc=False):
    id: int | None = None
    error: _Error | None = None


_decode_combined = msgspec.json.Decoder(_Combined, strict=False).decode
_decode_event = msgspec.json.Decoder(_Event, strict=False).decode
_decode_rows = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode

# RecursionError: thousands of nested brackets.
_BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class FrameDecoder:
    """Decodes frames of the symbols it knows; `pairs` maps `BTCUSDT` to `BTC/USDT:USDT`, as it stands.

    It holds no state and never raises, whatever the bytes.
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self._pairs = pairs

    def decode(self, frame: bytes | str) -> tuple[Decoded, ...]:
        """Return the records of one frame: usually one candle, or a mark price with its funding rate."""
        try:
            data = _decode_combined(frame).data
        except _BROKEN as error:
            return self._decode_unusual(frame, error)
        if isinstance(data, _KlineEvent):
            return (self._candle(data),)
        if isinstance(data, _MarkEvent):
            return self._mark(data)
        return self._rows(data)

    def _candle(self, event: _KlineEvent) -> Candle | Reject:
        pair = self._pairs.get(event.s)
        if pair is None:
            return Reject("unknown_symbol", event.s[:32])
        k = event.k
        if (
            (length_ms := schema.TIMEFRAMES_MS.get(k.i)) is not None
            and k.s == event.s
            and 0 < k.t <= event.E < MAX_TIME_MS
            and k.t % length_ms == 0
            and k.T == k.t + length_ms - 1
            and 0.0 < k.l <= k.o <= k.h < _INF
            and k.l <= k.c <= k.h
            and 0.0 <= k.v < _INF
            and 0.0 <= k.q < _INF
            and 0.0 <= k.V < _INF
            and (k.Q is None or 0.0 <= k.Q < _INF)
            and 0 <= k.n < _MAX_TRADES
            and (not k.x or event.E >= k.T)
        ):
            return Candle(
                pair, k.i, k.t, k.o, k.h, k.l, k.c, k.v, k.q, k.V, k.n, k.x, event.E, k.Q
            )  # fmt: skip
        return _why_no_candle(event)

    def _mark(self, event: _MarkEvent) -> tuple[Decoded, ...]:
        if event.st != _USD_M:
            return (Reject("coin_m", event.s[:32]),)
        pair = self._pairs.get(event.s)
        if pair is None:
            return (Reject("unknown_symbol", event.s[:32]),)
        # 0 is none of either.
        index, next_ms = event.i or None, event.T or 0
        if not (0 < event.E < MAX_TIME_MS and 0 <= next_ms < MAX_TIME_MS):
            return (Reject("bad_time", f"E={event.E} T={event.T}"),)
        if not (0.0 < event.p < _INF and (index is None or 0.0 < index < _INF)):
            return (Reject("bad_number", f"p={event.p} i={event.i}"),)
        mark = MarkPrice(pair, event.E, event.p, index)
        if next_ms == 0 or not event.r:
            # No funding is scheduled for this contract.
            return (mark,)
        try:
            rate = float(event.r)
        except ValueError:
            return (mark, Reject("bad_number", f"r={event.r[:32]!r}"))
        if not -1.0 < rate < 1.0:
            return (mark, Reject("bad_number", f"r={event.r[:32]!r}"))
        return (mark, FundingRate(pair, event.E, rate, next_ms))

    def _event(self, raw: bytes | str | msgspec.Raw) -> tuple[Decoded, ...]:
        try:
            event = _decode_event(raw)
        except _BROKEN as error:
            return self._lacking(raw, error)
        return (self._candle(event),) if isinstance(event, _KlineEvent) else self._mark(event)

    def _lacking(self, raw: bytes | str | msgspec.Raw, error: Exception) -> tuple[Decoded, ...]:
        """Read a mark price that is no event because of an empty index or settlement: it has none."""
        whole = _without_empty(raw)
        return (_why_no_event(raw, error),) if whole is None else self._event(whole)

    def _rows(self, rows: list[msgspec.Raw]) -> tuple[Decoded, ...]:
        # Row by row, so that a bad one costs itself only.
        return tuple(item for row in rows for item in self._event(row))

    def _decode_unusual(self, frame: bytes | str, error: Exception) -> tuple[Decoded, ...]:
        """Sort out what is no combined frame: answers, unwrapped frames, arrays, garbage."""
        try:
            keys = _decode_keys(frame)
        except _BROKEN:
            try:
                return self._rows(_decode_rows(frame))
            except _BROKEN:
                return (Reject("not_json", str(error)[:200]),)
        if "e" in keys:
            return self._event(frame)
        if "data" in keys:
            return self._lacking(keys["data"], error)
        if "error" in keys or "result" in keys:
            try:
                answer = _decode_answer(frame)
            except _BROKEN as answer_error:
                return (Reject("bad_shape", str(answer_error)[:200]),)
            failure = answer.error
            text = None if failure is None else f"code {failure.code}: {failure.msg[:200]}"
            return (Control(answer.id, text),)
        return (Reject("bad_shape", str(error)[:200]),)


def candle_problem(candle: Candle, last_ms: int) -> str:
    """Why a closed candle from elsewhere than a frame makes no sense; empty when it does.

    `last_ms` is its close time as Binance gives it: the last ms of the candle.
    """
    length_ms = schema.SERIES_MS[candle.timeframe]
    if not 0 < candle.open_time_ms < MAX_TIME_MS or candle.open_time_ms % length_ms:
        return f"open time {candle.open_time_ms} is none of {candle.timeframe}"
    if not (
        0.0 < candle.low <= candle.open <= candle.high < _INF
        and candle.low <= candle.close <= candle.high
    ):
        return f"prices o={candle.open} h={candle.high} l={candle.low} c={candle.close}"
    numbers = (
        candle.volume,
        candle.quote_volume,
        candle.taker_buy_volume,
        candle.taker_buy_quote_volume or 0.0,
    )
    if not all(0.0 <= number < _INF for number in numbers) or not 0 <= candle.trades < _MAX_TRADES:
        return f"volumes {numbers} trades {candle.trades}"
    return "" if last_ms + 1 == candle.close_time_ms else f"close time {last_ms}"


def _why_no_candle(event: _KlineEvent) -> Reject:
    k = event.k
    length_ms = schema.TIMEFRAMES_MS.get(k.i)
    if length_ms is None:
        return Reject("unknown_timeframe", k.i[:32])
    if k.s != event.s:
        return Reject("bad_shape", f"s={event.s[:32]} k.s={k.s[:32]}")
    if not (0 < k.t <= event.E < MAX_TIME_MS):
        return Reject("bad_time", f"t={k.t} E={event.E}")
    if k.t % length_ms or k.T != k.t + length_ms - 1:
        return Reject("bad_time", f"t={k.t} T={k.T} i={k.i}")
    numbers = (k.o, k.h, k.l, k.c, k.v, k.q, k.V, k.Q or 0.0)
    if not all(0.0 <= number < _INF for number in numbers) or not 0 <= k.n < _MAX_TRADES:
        return Reject("bad_number", f"o h l c v q V Q={numbers} n={k.n}")
    if k.x and event.E < k.T:
        return Reject("closed_early", f"E={event.E} T={k.T}")
    return Reject("bad_prices", f"o={k.o} h={k.h} l={k.l} c={k.c}")


def _without_empty(raw: bytes | str | msgspec.Raw) -> bytes | None:
    """An event without those of its keys that may be lacking and are `""`; None if it has none such."""
    try:
        keys = _decode_keys(raw)
    except _BROKEN:
        return None
    kept = {key: value for key, value in keys.items() if key not in _MAY_LACK or value != _EMPTY}
    return msgspec.json.encode(kept) if len(kept) < len(keys) else None


class _Kind(msgspec.Struct, gc=False):
    e: str = ""


_decode_kind = msgspec.json.Decoder(_Kind).decode
_KNOWN_EVENTS: Final = frozenset({"kline", "markPriceUpdate"})


def _why_no_event(raw: bytes | str | msgspec.Raw, error: Exception) -> Reject:
    try:
        kind = _decode_kind(raw).e
    except _BROKEN:
        return Reject("bad_shape", str(error)[:200])
    if kind not in _KNOWN_EVENTS:
        return Reject("unknown_event", kind[:32])
    return Reject("bad_shape", str(error)[:200])
