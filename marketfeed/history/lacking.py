"""What history is to fill, of which series: a view of the journal's holes."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.symbols import Instrument
from marketfeed.gaps.holes import Holes
from marketfeed.grid import TimeRange, candles_in, overlap
from marketfeed.history.plan import CandleSeries, Lacking, range_of
from marketfeed.journal.coverage import Hole


class HistoryHoles:
    """The holes of `series()` that history fills: all but those among the newest, which are healed.

    Those of what has `ended` while this runs are filled, too: nobody else would. They are left out of what
    is told of filling, as the exchange may not have them any more.

    With `newest_too` those among the newest as well: nobody else brings them. With `within` (exchange time)
    all that opens in it, the newest too, and nothing else.
    """

    def __init__(
        self,
        holes: Holes,
        clock: ExchangeClock,
        series: Callable[[], Sequence[tuple[Instrument, Sequence[str]]]],
        within: TimeRange | None = None,
        ended: Callable[[], Sequence[tuple[Instrument, Sequence[str]]]] = lambda: (),
        *,
        newest_too: bool = False,
    ) -> None:
        self.newest_too = newest_too or within is not None
        """Whether nobody else heals the newest candles."""
        self._holes = holes
        self._clock = clock
        self._series = series
        self._ended = ended
        self._within = within

    def series(self) -> list[CandleSeries]:
        """What is to be filled."""
        return _series_of(self._series())

    def have_ended(self, series: CandleSeries) -> bool:
        """Whether a series is of a pair that has ended while this runs."""
        return any(one.pair == series.instrument.pair for one, _ in self._ended())

    def are_known(self) -> bool:
        """Whether all series are promised, and all their rows have been looked through."""
        known = self._holes.series()
        found = (known.get(one.key) for one in self.series())
        return all(covered is not None and covered.is_looked_through for covered in found)

    def of(self, series: CandleSeries, part: TimeRange | None = None) -> tuple[TimeRange, ...]:
        """What is to be filled of a series now (the feed and healing fill holes, too), or of a part."""
        now_ms = self._clock.past().confirmed_ms
        holes = self._holes.for_history(series.key, now_ms, newest_too=self.newest_too)
        if self._within is not None:
            holes = tuple(overlap(holes, range_of(series, *self._within)))
        return holes if part is None else tuple(overlap(holes, part))

    def lacking(self) -> list[Lacking]:
        """What is to be filled of each series, if there is something; also of what has ended."""
        found = [Lacking(one, self.of(one)) for one in self._every()]
        return [one for one in found if one.time_ranges]

    def any_doubted(self) -> bool:
        """Whether the exchange has answered once without something that is to be filled."""
        return any(
            hole.empty_1_ms is not None and any(overlap(wanted, hole.time_range))
            for one in self._every()
            if (wanted := self.of(one))
            for hole in self._open(one)
        )

    def left(self) -> tuple[Counter[str], int]:
        """How many candles each pair lacks, and how many of these healing is to bring.

        Healing brings the newest of a first filling. What else is missing among the newest is its own to
        report.
        """
        now_ms = self._clock.past().confirmed_ms
        left = Counter[str]()
        healings = 0
        for one in self.series():
            holes = self._open(one)
            newest = self._holes.newest(one.key, now_ms)
            if self._within is None and self.newest_too:
                where, count = TimeRange(0, newest.end_ms), 0
            elif self._within is None:
                where = TimeRange(0, newest.start_ms)
                first = [hole for hole in holes if hole.is_first]
                count = _candles_of(first, newest, one.length_ms)
                healings += count
            else:
                where, count = range_of(one, *self._within), 0
            left[one.instrument.pair] += count + _candles_of(holes, where, one.length_ms)
        return left, healings

    def absent_ms(self, series: CandleSeries, parts: Iterable[TimeRange]) -> int:
        """How much of these parts of a series the exchange does not have, as far as is known."""
        covered = self._holes.series().get(series.key)
        return 0 if covered is None else sum(map(covered.absent_ms, parts))

    def _every(self) -> list[CandleSeries]:
        return [*self.series(), *_series_of(self._ended())]

    def _open(self, series: CandleSeries) -> list[Hole]:
        # As readers have it: what waits for its commit is not there yet.
        lacking = self._holes.lacking(series.key, self._clock.past().confirmed_ms, stored=True)
        return [hole for hole in lacking if not hole.is_absent]


def _series_of(chosen: Sequence[tuple[Instrument, Sequence[str]]]) -> list[CandleSeries]:
    return [CandleSeries(one, timeframe) for one, names in chosen for timeframe in names]


def _candles_of(holes: Iterable[Hole], part: TimeRange, length_ms: int) -> int:
    parts = overlap([hole.time_range for hole in holes], part)
    return sum(candles_in(one, length_ms) for one in parts)
