"""A recording as a venue: its frames with their own timing, its symbols, its candles so far."""

import bisect
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.simulator.instrument import Instrument
from marketfeed.simulator.recording import Recorded, decimals
from marketfeed.simulator.venue import Event, FundingInfo, Premium, Settlement, Stream, Ticker

_QUOTES: Final = ("USDT", "USDC", "USD1")
# A longer silence is jumped over, in a second: a collection of single frames spans months.
_LONGEST_SILENCE_MS: Final = 60_000
_JUMP_MS: Final = 1_000
_NO_CANDLE: Final = ("0", "0", "0", "0", "0", 0, "0", 0)


class Replay:
    """Replays recorded frames. Implements `venue.Venue`.

    Time begins at the first frame and runs as it did in the recording, on past its end; only a silence
    of more than a minute is jumped over. exchangeInfo lists the USD-M symbols of the recording; REST
    knows the candles that have been shown so far, and no funding.
    """

    def __init__(self, frames: Sequence[Recorded]) -> None:
        self._frames = tuple(frames)
        # When each frame is due, in ms since the start, with long silences cut short.
        self._due_ms: list[int] = []
        due_ms = 0
        previous_ms = self._frames[0].time_ms
        for frame in self._frames:
            silence_ms = frame.time_ms - previous_ms
            due_ms += silence_ms if silence_ms <= _LONGEST_SILENCE_MS else _JUMP_MS
            previous_ms = frame.time_ms
            self._due_ms.append(due_ms)
        self._next = 0
        self.now_ms = self.start_ms = self._frames[0].time_ms
        self.timeframes = tuple(schema.TIMEFRAMES_MS)
        self._streams = {frame.stream: Stream(frame.stream) for frame in self._frames}
        self.listed = tuple(_instruments(self._frames))
        self._pairs = {instrument.symbol: instrument.pair for instrument in self.listed}
        # symbol, timeframe -> open time -> row of /fapi/v1/klines
        self._rows: dict[tuple[str, str], dict[int, bytes]] = {}
        self._last_mark: dict[str, Recorded] = {}

    @property
    def streams(self) -> Mapping[str, Stream]:
        """The streams of the recording, by name."""
        return self._streams

    @property
    def finished(self) -> bool:
        """Whether every frame has been sent."""
        return self._next == len(self._frames)

    def time_at(self, elapsed_ms: float) -> int:
        """Return the exchange time when `elapsed_ms` of it have run since the start."""
        at = max(0, bisect.bisect_right(self._due_ms, elapsed_ms) - 1)
        return self._frames[at].time_ms + int(elapsed_ms - self._due_ms[at])

    def advance(self, now_ms: int) -> list[Event]:
        """Go on to `now_ms` and return the frames up to it."""
        events: list[Event] = []
        while self._next < len(self._frames) and self._frames[self._next].time_ms <= now_ms:
            frame = self._frames[self._next]
            self._next += 1
            candle = frame.candle
            if candle is None:
                self._last_mark[frame.symbol] = frame
            else:
                rows = self._rows.setdefault((frame.symbol, candle.timeframe), {})
                rows[candle.open_time_ms] = frame.row
                pair = self._pairs.get(frame.symbol, "")
                candle = msgspec.structs.replace(candle, pair=pair) if frame.closed else None
            events.append(Event(frame.time_ms, self._streams[frame.stream], frame.data, candle))
        self.now_ms = max(self.now_ms, now_ms)
        return events

    def klines(
        self, symbol: str, timeframe: str, start_ms: int | None, end_ms: int | None, limit: int
    ) -> bytes:
        """Return the body of `/fapi/v1/klines`: the candles shown so far."""
        rows = self._rows.get((symbol, timeframe), {})
        chosen = [
            row
            for open_ms, row in sorted(rows.items())
            if (start_ms is None or open_ms >= start_ms) and (end_ms is None or open_ms <= end_ms)
        ]
        return b"[" + b",".join(chosen[-limit:] if start_ms is None else chosen[:limit]) + b"]"

    def mark_klines(
        self,
        instrument: Instrument,
        timeframe: str,
        start_ms: int | None,
        end_ms: int | None,
        limit: int,
    ) -> bytes:
        """Return nothing: a recording has no candles of mark prices."""
        return b"[]"

    def last_price(self, instrument: Instrument) -> float:
        """Return the close of the newest candle of a contract."""
        return float(self._newest(instrument.symbol)[3])

    def ticker(self, instrument: Instrument) -> Ticker:
        """Return the newest candle of a contract as if it were its last 24 hours."""
        open_, high, low, close, volume, _, quote, count = self._newest(instrument.symbol)
        return Ticker(
            symbol=instrument.symbol, price_change="0", price_change_percent="0.000",
            weighted_avg_price=close, last_price=close, last_qty="0", open_price=open_,
            high_price=high, low_price=low, volume=volume, quote_volume=quote,
            open_time=self.now_ms - schema.DAY_MS, close_time=self.now_ms, first_id=0, last_id=0,
            count=count,
        )  # fmt: skip

    def _newest(self, symbol: str) -> tuple[str, str, str, str, str, int, str, int]:
        found = [
            max(rows.items())
            for (name, _), rows in self._rows.items()
            if name == symbol
        ]  # fmt: skip
        if not found:
            return _NO_CANDLE
        row = msgspec.json.decode(max(found)[1])
        return row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8]

    def premium(self, instrument: Instrument) -> Premium:
        """Return the last mark price shown, or the last price without any funding."""
        frame = self._last_mark.get(instrument.symbol)
        if frame is None:
            close = self._newest(instrument.symbol)[3]
            return Premium(
                instrument.symbol, close, close, close, "0.00000000", "0", 0, self.now_ms
            )
        mark = msgspec.json.decode(frame.data)
        return Premium(
            instrument.symbol, mark["p"], mark["i"], mark["P"], mark["r"], "0.00010000",
            mark["T"], mark["E"],
        )  # fmt: skip

    def settlements(
        self,
        instrument: Instrument,
        start_ms: int,
        end_ms: int,
        limit: int,
        *,
        newest: bool,
    ) -> list[Settlement]:
        """Return nothing: a recording has no settlements."""
        return []

    def funding_infos(self) -> list[FundingInfo]:
        """Return nothing: a recording holds no intervals."""
        return []


def _instruments(frames: Sequence[Recorded]) -> list[Instrument]:
    """The USD-M contracts of the recording; names of others (`BTCUSD_PERP`) end differently."""
    found: dict[str, Instrument] = {}
    for frame in frames:
        quote = next((name for name in _QUOTES if frame.symbol.endswith(name)), None)
        if quote is None or frame.symbol in found:
            continue
        base = frame.symbol.removesuffix(quote)
        sample = next(
            (one for one in frames if one.symbol == frame.symbol and one.candle is not None), None
        )
        price, quantity = (2, 3) if sample is None else decimals(sample)
        typical = 1.0 if sample is None or sample.candle is None else sample.candle.close
        found[frame.symbol] = Instrument(
            symbol=frame.symbol,
            base=base,
            quote=quote,
            margin=quote,
            price_precision=price,
            tick_units=1,
            quantity_precision=quantity,
            typical_price=typical,
            typical_notional=1_000.0,
            trades_per_s=1.0,
            funding_hours=8,
            onboard_ms=1_569_398_400_000,
        )
    return list(found.values())
