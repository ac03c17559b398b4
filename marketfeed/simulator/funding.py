"""Mark prices and funding rates of a simulated contract, as functions of time."""

import hashlib
import math
from typing import Final, NamedTuple

import numpy as np

from marketfeed import schema
from marketfeed.simulator import frames
from marketfeed.simulator.history import Floats, Ints
from marketfeed.simulator.instrument import Instrument
from marketfeed.simulator.venue import FundingInfo, Premium, Settlement

PURE = True

_INTEREST: Final = 0.0001
_FIRST_MARK_PRICE_MS: Final = 1_698_796_800_000
"""Before November 2023 settlements carry no mark price."""


class Mark(NamedTuple):
    """Mark, index and estimated settle price (quote), the running rate (None: no funding) and `T`."""

    mark_price: float
    index_price: float
    settle_price: float
    rate: float | None
    next_funding_ms: int


class Funding:
    """How one contract's mark price stands to its last price, and how its funding rate drifts.

    Nothing is remembered: both are sums of slow waves, different for every symbol, so that the rate
    settled at any past time is known, and is the one that runs at that instant. Only changes of the rhythm
    and special settlements are kept, as they are made.
    """

    def __init__(self, instrument: Instrument, seed: int) -> None:
        digest = hashlib.blake2b(f"{seed}/{instrument.symbol}/funding".encode()).digest()
        turns = [byte / 256.0 * math.tau for byte in digest[:5]]
        self._spread_phase, self._basis_phase, self._fast_phase, self._slow_phase, _ = turns
        self._rate_swing = 0.00005 + 0.0004 * digest[5] / 256.0
        self._symbol = instrument.symbol
        self._interval_ms = instrument.funding_hours * schema.HOUR_MS
        self._rhythms = [(-1, self._interval_ms)]
        self._specials: dict[int, float] = {}
        self.cap = 0.003 if instrument.base in {"BTC", "ETH"} else 0.02
        self._jitter = digest[6]

    def rate(self, time_ms: int) -> float:
        """Return the rate that runs at `time_ms`, a fraction per interval."""
        hours = time_ms / schema.HOUR_MS
        drift = 0.6 * math.sin(hours / 5.3 + self._fast_phase)
        drift += math.sin(hours / 31.0 + self._slow_phase)
        return max(-self.cap, min(self.cap, round(_INTEREST + self._rate_swing * drift, 8)))

    def change_rhythm(self, after_ms: int, hours: int) -> None:
        """Settle every `hours` after `after_ms`, later than earlier changes; it is announced then."""
        self._rhythms.append((after_ms, hours * schema.HOUR_MS))

    def settle_specially(self, time_ms: int, rate: float) -> None:
        """Settle out of turn at a full minute, unannounced, beside a regular settlement or not."""
        self._specials[time_ms] = rate

    def next_funding_ms(self, time_ms: int) -> int:
        """Return the next settlement after `time_ms` as it is announced then; 0 without funding."""
        interval_ms = next(every for after, every in reversed(self._rhythms) if after <= time_ms)
        if not interval_ms:
            return 0
        return schema.floor_to(time_ms, interval_ms) + interval_ms

    def mark(self, last_price: float, time_ms: int) -> Mark:
        """Return the mark price and its companions while the last trade was at `last_price`."""
        seconds = time_ms / 1_000.0
        spread = 0.0003 * math.sin(seconds / 47.0 + self._spread_phase)
        basis = 0.0002 * math.sin(seconds / 190.0 + self._basis_phase)
        index = last_price * (1.0 + spread)
        rate = self.rate(time_ms) if self._interval_ms else None
        return Mark(
            mark_price=index * (1.0 + basis),
            index_price=index,
            settle_price=index * (1.0 + 0.3 * spread),
            rate=rate,
            next_funding_ms=self.next_funding_ms(time_ms),
        )

    def mark_prices(self, last_prices: Floats, times_ms: Ints) -> Floats:
        """Return the mark prices at many times: those that `mark` gives at each."""
        seconds = times_ms / 1_000.0
        spread = 0.0003 * np.sin(seconds / 47.0 + self._spread_phase)
        basis = 0.0002 * np.sin(seconds / 190.0 + self._basis_phase)
        marks: Floats = last_prices * (1.0 + spread) * (1.0 + basis)
        return marks

    def frame(self, last_price: float, time_ms: int, family: int = frames.USD_M) -> bytes:
        """Return the `markPriceUpdate` of `time_ms`."""
        return frames.mark_price(self._symbol, time_ms, *self.mark(last_price, time_ms), family)

    def premium(self, last_price: float, time_ms: int) -> Premium:
        """Return the row of `/fapi/v1/premiumIndex`."""
        mark = self.mark(last_price, time_ms)
        return Premium(
            symbol=self._symbol,
            mark_price=f"{mark.mark_price:.8f}",
            index_price=f"{mark.index_price:.8f}",
            estimated_settle_price=f"{mark.settle_price:.8f}",
            last_funding_rate="" if mark.rate is None else f"{mark.rate:.8f}",
            interest_rate="" if mark.rate is None else f"{_INTEREST:.8f}",
            next_funding_time=mark.next_funding_ms,
            time=time_ms,
        )

    def times(self, start_ms: int, end_ms: int) -> list[tuple[int, bool]]:
        """Return the settlements from `start_ms` to `end_ms`, both inclusive: when, and whether specially."""
        found = [(at, True) for at in self._specials if start_ms <= at <= end_ms]
        ends = [after for after, _ in self._rhythms[1:]]
        for (after, interval_ms), until in zip(self._rhythms, [*ends, end_ms], strict=True):
            if interval_ms:
                first_ms = schema.ceil_to(max(start_ms, after + 1), interval_ms)
                times = range(first_ms, min(end_ms, until) + 1, interval_ms)
                found += [(at, False) for at in times]
        return sorted(found)

    def settlement(self, time_ms: int, last_price: float, *, special: bool = False) -> Settlement:
        """Return what was settled at `time_ms`; as on the exchange, the time is off by some ms."""
        mark = self.mark(last_price, time_ms).mark_price
        return Settlement(
            symbol=self._symbol,
            funding_time=time_ms + (time_ms // schema.HOUR_MS + self._jitter) % 5 + special,
            funding_rate=f"{self._specials[time_ms] if special else self.rate(time_ms):.8f}",
            mark_price=f"{mark:.8f}" if time_ms >= _FIRST_MARK_PRICE_MS else "",
            rate_type="Special" if special else "Regular",
        )

    def info(self) -> FundingInfo:
        """Return the row of `/fapi/v1/fundingInfo`."""
        return FundingInfo(
            symbol=self._symbol,
            adjusted_funding_rate_cap=f"{self.cap:.8f}",
            adjusted_funding_rate_floor=f"{-self.cap:.8f}",
            funding_interval_hours=self._rhythms[-1][1] // schema.HOUR_MS,
        )
