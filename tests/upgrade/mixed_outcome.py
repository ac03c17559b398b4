"""What came of one combination of `mixed_collectors`."""

from collections.abc import Sequence

import msgspec

PURE = True


class Mixed(msgspec.Struct, frozen=True):
    """What came of one run. Complaints name who was asked and when (exchange minutes from `begin`)."""

    version: str
    order: str
    minutes: int
    speed: float
    wall_s: float
    looks: int
    candles: int
    settled: int
    complaints: Sequence[str]
