"""What happens on the exchange while two versions of the collector write to one bucket, and when.

All times are ms of exchange time, on full minutes. `begin` is when both collectors deliver at the latest;
all that is planned happens within `minutes` from there on:

- a lone special settlement, with no regular one in its minute, long before the next regular one;
- a contract ends, and another one begins under its symbol: it costs a hundred times as much;
- another contract ends for good;
- regular settlements of all, and with that of one contract a special one in the same minute;
- the settings of every collector drop a pair: each is stopped, and started again without it.
"""

import math
from typing import Final

import msgspec

from marketfeed.schema import HOUR_MS, MINUTE_MS, floor_to

PURE = True

STEADY, HOURLY, SPECIAL, BOTH, REUSED, ENDING, DROPPED = PAIRS = tuple(
    f"{base}/USDT:USDT" for base in ("BTC", "ETH", "XRP", "BNB", "SOL", "DOGE", "ADA")
)
TIMEFRAMES: Final = ("1m", "5m")
AGAIN_PRICE: Final = 15_000.0
"""What the second contract of REUSED costs (quote): the first is far below a thousand."""
LONE_RATE: Final = -0.0071
"""The lone special settlement's rate; no other is so."""
BOTH_RATE: Final = 0.0093
"""That of the special settlement beside a regular one."""
SINCE_MS: Final = 2 * HOUR_MS
"""So much of the time before `begin` is compared, too: history has filled it."""
ANNOUNCED_MS: Final = 8 * MINUTE_MS
"""So long before they end or begin contracts are announced: collectors ask every three minutes.

Where a machine is busy the exchange may stand still for one of them.
"""
_EIGHT_H_MS: Final = 8 * HOUR_MS
_A_FULL_ONE_MS: Final = floor_to(1_790_000_000_000, _EIGHT_H_MS)


class Plan(msgspec.Struct, frozen=True):
    """The plan of one run of `minutes` at `speed`, after `lead_s` wall seconds for the collectors' start."""

    minutes: int
    speed: float
    lead_s: float

    def _at(self, sixtieth: float) -> int:
        return self.begin_ms + round(sixtieth * self.minutes / 60) * MINUTE_MS

    @property
    def full_ms(self) -> int:
        """The regular settlement of all, and BOTH's special one."""
        return _A_FULL_ONE_MS

    @property
    def begin_ms(self) -> int:
        """From here on both collectors are watched."""
        return self.full_ms - round(27 * self.minutes / 60) * MINUTE_MS

    @property
    def start_ms(self) -> int:
        """When the exchange's time begins."""
        return self.begin_ms - max(2, math.ceil(self.lead_s * self.speed / 60)) * MINUTE_MS

    @property
    def since_ms(self) -> int:
        """From here on candles are compared."""
        return floor_to(self.start_ms - SINCE_MS, HOUR_MS)

    @property
    def special_ms(self) -> int:
        """SPECIAL's lone special settlement."""
        return self._at(12)

    @property
    def reused_end_ms(self) -> int:
        """REUSED's first contract ends."""
        return self._at(14)

    @property
    def ending_ms(self) -> int:
        """ENDING ends."""
        return self._at(20)

    @property
    def again_ms(self) -> int:
        """REUSED's second contract begins."""
        return self._at(24)

    @property
    def drop_ms(self) -> int:
        """From here on collectors are started again without DROPPED, one after another."""
        return self._at(33)

    @property
    def end_ms(self) -> int:
        """What has closed by then is compared."""
        return self._at(60)


def problem(plan: Plan) -> str:
    """Why a plan cannot be carried out; empty if it can."""
    if not 24 <= plan.minutes <= 90:
        return "minutes: 24 to 90 are expected: a settlement is due ten minutes after it"
    if not 0.5 <= plan.speed <= 60:
        return "speed: 0.5 to 60 is expected: collectors ask and retry in wall seconds, too"
    return ""
