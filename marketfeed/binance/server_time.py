"""Takes over the exchange's time."""

from collections.abc import Callable
from typing import Final

from marketfeed.binance.rest import BinanceRest
from marketfeed.clock import ExchangeClock
from marketfeed.errors import ExchangeError

PRECISE_S: Final = 2.0
"""Wall seconds that an answer of `time` may take: half of it is what a clock set by it may be off."""


async def sync_clock(
    rest: BinanceRest, clock: ExchangeClock, contradicts: Callable[[int], bool] = lambda _: False
) -> None:
    """Take over the exchange's time, unless something `contradicts` it. Raises ExchangeError.

    An answer that took long says little of the time; a clock that is known better is not set by it.
    """
    answer = await rest.server_time()
    error_ms = answer.round_trip_s / 2 * 1000 * answer.speed
    known_ms = clock.error_ms
    # Not "worse than known": where all answers take long, the clock would be left to itself.
    if answer.round_trip_s > PRECISE_S and known_ms is not None and error_ms > 2 * known_ms:
        raise ExchangeError(f"time: the answer took {answer.round_trip_s:.1f} s: not taken")
    if contradicts(answer.time_ms):
        off_s = (answer.time_ms - clock.now_ms()) / 1000
        raise ExchangeError(
            f"time: {off_s:+.0f} s from what all frames are stamped with: not taken"
        )
    clock.set_server_time(answer.time_ms, answer.round_trip_s, answer.speed)
