"""Compares stored candles with the exchange's own, number by number: what was parsed is equal or not."""

from collections.abc import Sequence

import msgspec

from marketfeed.grid import TimeRange
from marketfeed.records import Candle, differing_fields

PURE = True


class Different(msgspec.Struct, frozen=True, gc=False):
    """A candle that is stored with other numbers than the exchange has; `truth` None: it has none."""

    stored: Candle
    truth: Candle | None

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that differ."""
        return () if self.truth is None else differing_fields(self.stored, self.truth)

    def __str__(self) -> str:
        candle = self.stored
        head = f"{candle.pair} {candle.timeframe} {candle.open_time_ms}"
        if self.truth is None:
            return f"{head}: the exchange has no such candle"
        values = (
            f"{name} stored {getattr(candle, name)!r}, exchange {getattr(self.truth, name)!r}"
            for name in self.fields
        )
        return f"{head}: {'; '.join(values)}"


class CandleComparison(msgspec.Struct, frozen=True):
    """What came of it: how many that are stored were compared, and what is wrong."""

    stored: int
    missing: list[Candle]
    """Candles that the exchange has and the journal does not."""
    different: list[Different]
    lacking: list[Candle]
    """The exchange's candles for those that are equal, but lack a number that it has: they are not wrong."""

    @property
    def good(self) -> bool:
        """Whether everything is there, and equal."""
        return not self.missing and not self.different

    @property
    def mending(self) -> list[Candle]:
        """The exchange's candles that would put it right, but for what is `lacking`."""
        return [*self.missing, *(d.truth for d in self.different if d.truth is not None)]


def compare(
    stored: Sequence[Candle], truth: Sequence[Candle], unclear: Sequence[TimeRange] = ()
) -> CandleComparison:
    """Compare the candles of one series and range; all numbers count, the trades too.

    One that either of them does not have is no difference.

    What is stored of `unclear` ranges is left out: nothing is known of it.
    """
    ours = {
        candle.open_time_ms: candle
        for candle in stored
        if not any(part.start_ms <= candle.open_time_ms < part.end_ms for part in unclear)
    }
    theirs = {candle.open_time_ms: candle for candle in truth}
    missing = [candle for open_ms, candle in theirs.items() if open_ms not in ours]
    different = [
        Different(candle, other)
        for open_ms, candle in ours.items()
        if (other := theirs.get(open_ms)) is None or differing_fields(candle, other)
    ]
    lacking = [
        other
        for open_ms, candle in ours.items()
        if candle.taker_buy_quote_volume is None
        and (other := theirs.get(open_ms)) is not None
        and other.taker_buy_quote_volume is not None
        and not differing_fields(candle, other)
    ]
    return CandleComparison(len(ours), missing, different, lacking)
