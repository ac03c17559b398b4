"""Which faults a soak starts and when: everything that the simulated exchange can do wrong, by a seed."""

import random
from collections.abc import Sequence
from typing import Final

from marketfeed.simulator.fault_kinds import (
    Close,
    Drop,
    Fault,
    HalfOpen,
    HangRest,
    Mute,
    MuteConnection,
    Refuse,
    RefuseRest,
    ShiftClock,
    ShrinkExchangeInfo,
    Spoil,
    StopListening,
    Which,
)

_OF_CONNECTIONS: Final = 0.25
"""Share of faults that cost connections; each of them costs some wall seconds to come back."""


class Schedule:
    """Draws faults. `symbols` and `timeframes` are those that are collected, `speed` the exchange's.

    Faults of frames last some minutes of the exchange, those of the transport some wall seconds: a
    client's patience does not run faster against a fast exchange.
    """

    def __init__(
        self, seed: int, symbols: Sequence[str], timeframes: Sequence[str], speed: float
    ) -> None:
        self._random = random.Random(seed)
        self._symbols = symbols
        self._timeframes = timeframes
        self._speed = speed

    def wait_s(self, mean_s: float) -> float:
        """Wall seconds until the next fault."""
        return min(self._random.expovariate(1.0 / mean_s), 4.0 * mean_s)

    def moments(self, count: int, lasts_s: float) -> list[float]:
        """So many moments of a time of `lasts_s`, in order; none in its last tenth."""
        return sorted(self._random.uniform(0.05, 0.9) * lasts_s for _ in range(count))

    def disconnect(self, connections: Sequence[int]) -> Fault:
        """Draw a connection, or all of them, that is cut."""
        draw = self._random
        which: Which = draw.choice(connections) if connections and draw.random() < 0.7 else "open"
        return draw.choice((Drop(which, count=1), Close(which, 1000, count=1), Drop(which)))

    def fault(self, connections: Sequence[int]) -> Fault:
        """Draw a fault; `connections` are the numbers of those that are open."""
        draw = self._random
        if draw.random() < _OF_CONNECTIONS:
            return self._of_connections(connections)
        return draw.choice((self._of_frames, self._of_frames, self._of_frames, self._of_rest))()

    def fault_of_streams(self, connections: Sequence[int]) -> Fault:
        """Draw a fault that ends with its end: lost frames, or connections that are cut."""
        if self._random.random() < _OF_CONNECTIONS:
            return self.disconnect(connections)
        return self._of_frames()

    def _of_frames(self) -> Fault:
        draw = self._random
        for_s = draw.uniform(20.0, 400.0)
        share = draw.uniform(0.01, 0.3)
        seed = draw.randrange(1_000_000)
        return draw.choice(
            (
                Mute(self._stream(), for_s=for_s),
                Mute(f"*@kline_{draw.choice(self._timeframes)}", for_s=for_s),
                Mute(self._stream(), closing_only=True, for_s=3_600.0, count=draw.randint(1, 5)),
                Mute("*", closing_only=True, for_s=3_600.0, count=draw.randint(1, 20)),
                Mute(for_s=for_s),
                Spoil(how="duplicate", share=share, seed=seed, for_s=for_s),
                Spoil(how="reorder", share=share, seed=seed, for_s=for_s),
                Spoil(how="garble", share=share, seed=seed, for_s=for_s),
                Spoil(how="truncate", share=share, seed=seed, for_s=for_s),
            )
        )

    def _of_connections(self, connections: Sequence[int]) -> Fault:
        draw = self._random
        for_s = draw.uniform(0.5, 3.0) * self._speed
        one: Which = draw.choice(connections) if connections else "new"
        which: Which = draw.choice((one, one, "all"))
        return draw.choice(
            (
                MuteConnection(one, for_s=for_s),
                MuteConnection("new", for_s=for_s, count=1),
                HalfOpen(one, for_s=for_s),
                HalfOpen("open", for_s=for_s),
                Drop(which, for_s=for_s, count=draw.randint(1, 3)),
                Close(which, 1000, for_s=for_s, count=draw.randint(1, 3)),
                Refuse(503, for_s=for_s, count=draw.randint(1, 3)),
                StopListening(for_s=for_s),
                Spoil(how="oversize", share=0.01, for_s=for_s, count=1),
            )
        )

    def _of_rest(self) -> Fault:
        draw = self._random
        for_s = draw.uniform(5.0, 20.0) * self._speed
        return draw.choice(
            (
                RefuseRest(None, draw.choice((429, 418)), 5, for_s=for_s),
                RefuseRest(None, draw.choice((403, 500, 503)), for_s=for_s),
                HangRest(for_s=for_s),
                ShrinkExchangeInfo(for_s=for_s),
                ShiftClock(offset_ms=draw.choice((-1, 1)) * 10_800_000, for_s=for_s),
            )
        )

    def _stream(self) -> str:
        draw = self._random
        channel = draw.choice((*(f"kline_{name}" for name in self._timeframes), "markPrice"))
        return f"{draw.choice(self._symbols).lower()}@{channel}"
