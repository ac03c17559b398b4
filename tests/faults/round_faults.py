"""Which faults a round of `fault_rounds.py` has, and when: two or three at once, by a seed."""

import random
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import msgspec

from marketfeed.schema import HOUR_MS, MINUTE_MS
from marketfeed.simulator.fault_kinds import (
    Fault,
    HalfOpen,
    HangRest,
    Lag,
    Mute,
    MuteConnection,
    RefuseRest,
    ShiftClock,
)

PURE = True

ROUND_S: Final = 300.0
"""Wall seconds of a whole round. In a shorter one, faults are as much shorter."""
FIRST_S: Final = (5.0, 60.0)
"""Between these a fault begins: all of a round are at work at once."""
ENDED_BY: Final = 0.75
"""Share of the round by which its faults are over."""
LAG_S: Final = 600.0
"""By how much frames lag. A round with a lag begins so much earlier: until then nothing comes at all."""
KILLED_S: Final = 60.0
"""A collector that was killed is started again within this; the longest other fault lasts longer."""
LAG: Final = "lag"
ROLLOVER: Final = "rollover"
KINDS: Final = (
    "kill",
    "stop",
    "429",
    "418",
    "full disk",
    "REST hangs",
    "disk hangs",
    "half-open",
    "mute",
    LAG,
    "clock shift",
    ROLLOVER,
)
_OFFSETS_MS: Final = tuple(sign * by for by in (10 * MINUTE_MS, 3 * HOUR_MS) for sign in (-1, 1))


class Planned(msgspec.Struct, frozen=True):
    """One fault of a round: `at_s` wall seconds after its begin, for `for_s` wall seconds.

    `fault` is what the simulated exchange is told; None for what happens to the collector's process or disk.
    """

    kind: str
    at_s: float
    for_s: float
    detail: str = ""
    fault: Fault | None = None

    @property
    def text(self) -> str:
        """In words."""
        words = f"{self.kind} {self.detail}".rstrip()
        if self.kind == ROLLOVER:
            # They come by the age of the connections, again and again.
            return words
        return f"{words} ({self.at_s:.0f} s + {self.for_s:.0f} s)"


def draw_kinds(seed: int, rounds: int, kinds: Sequence[str]) -> list[list[str]]:
    """The kinds of each round, two or three different ones; all kinds come equally often."""
    draw = random.Random(seed)
    waiting: list[str] = []
    drawn = []
    for _ in range(rounds):
        taken: list[str] = []
        count = min(draw.choice((2, 3)), len(kinds))
        while len(taken) < count:
            if not any(kind not in taken for kind in waiting):
                waiting += draw.sample(kinds, len(kinds))
            taken.append(waiting.pop(next(n for n, k in enumerate(waiting) if k not in taken)))
        drawn.append(taken)
    return drawn


def lead_s(kinds: Sequence[str], round_s: float) -> float:
    """Wall seconds by which a round is longer than `round_s`: until what lags begins to come."""
    return LAG_S * round_s / ROUND_S if LAG in kinds else 0.0


def plan(
    kinds: Sequence[str],
    seed: str,
    round_s: float,
    speed: float,
    symbols: Sequence[str],
    timeframes: Sequence[str],
) -> list[Planned]:
    """When each fault of a round begins and ends, and what it strikes; the earliest first.

    `round_s` is as asked for: `lead_s` comes before it.
    """
    draw, scale = random.Random(seed), round_s / ROUND_S
    before_s = lead_s(kinds, round_s)

    def one(kind: str) -> Planned:
        at_s = before_s + draw.uniform(*FIRST_S) * scale
        lasts_s = {"stop": 120.0, "kill": draw.uniform(1.0, KILLED_S)}
        for_s = lasts_s.get(kind, draw.uniform(30.0, 165.0)) * scale
        for_s = min(for_s, before_s + ENDED_BY * round_s - at_s)
        if kind == LAG:
            at_s, for_s = 0.0, at_s + for_s
            fault = Lag(by_s=before_s * speed, for_s=for_s * speed)
            return Planned(kind, at_s, for_s, f"of {fault.by_s / 60:.0f} min", fault)
        make = _MAKERS.get(kind)
        if make is None:
            return Planned(kind, at_s, for_s)
        detail, made = make(draw, for_s * speed, symbols, timeframes)
        return Planned(kind, at_s, for_s, detail, made)

    return sorted((one(kind) for kind in kinds), key=lambda planned: planned.at_s)


_Maker: TypeAlias = Callable[
    [random.Random, float, Sequence[str], Sequence[str]], tuple[str, Fault]
]


def _refused(status: int) -> _Maker:
    def make(
        draw: random.Random, for_s: float, _: Sequence[str], __: Sequence[str]
    ) -> tuple[str, Fault]:
        # What it demands goes on after the last answer of that kind.
        retry_s = max(1, round(draw.uniform(0.1, 0.5) * for_s))
        return f"Retry-After {retry_s}", RefuseRest(None, status, retry_s, for_s=for_s)

    return make


def _rest_hangs(
    _: random.Random, for_s: float, __: Sequence[str], ___: Sequence[str]
) -> tuple[str, Fault]:
    return "", HangRest(for_s=for_s)


def _half_open(
    _: random.Random, for_s: float, __: Sequence[str], ___: Sequence[str]
) -> tuple[str, Fault]:
    return "", HalfOpen("open", for_s=for_s)


def _mute(
    draw: random.Random, for_s: float, symbols: Sequence[str], timeframes: Sequence[str]
) -> tuple[str, Fault]:
    symbol, timeframe = draw.choice(symbols).lower(), draw.choice(timeframes)
    stream = draw.choice(
        (f"{symbol}@*", f"{symbol}@kline_{timeframe}", f"*@kline_{timeframe}", "*@kline_*", None)
    )
    if stream is None:
        return "connections", MuteConnection("open", for_s=for_s)
    return stream, Mute(stream, for_s=for_s)


def _clock_shift(
    draw: random.Random, for_s: float, _: Sequence[str], __: Sequence[str]
) -> tuple[str, Fault]:
    offset_ms = draw.choice(_OFFSETS_MS)
    return f"by {offset_ms / MINUTE_MS:+.0f} min", ShiftClock(offset_ms=offset_ms, for_s=for_s)


_MAKERS: Final[dict[str, _Maker]] = {
    "429": _refused(429),
    "418": _refused(418),
    "REST hangs": _rest_hangs,
    "half-open": _half_open,
    "mute": _mute,
    "clock shift": _clock_shift,
}
