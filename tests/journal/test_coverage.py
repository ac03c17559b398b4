"""What is promised and what is missing, after any history of events: the invariant of `coverage`."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from marketfeed.grid import TimeRange, missing
from marketfeed.journal import coverage
from marketfeed.journal.coverage import Covered, Promise
from marketfeed.schema import MINUTE_MS

T0 = 1_760_000_040_000
SERIES = ("BTC/USDT:USDT", "1m")


def minute(number: int) -> int:
    return T0 - T0 % MINUTE_MS + number * MINUTE_MS


def promise(now: int, keep: int, listed: int = -10_000) -> Promise:
    return Promise(*SERIES, minute(now) + 7_000, keep * MINUTE_MS, minute(listed))


class Model:
    """A series as a set of stored minutes, and what the rows of gaps say: what coverage is held against."""

    def __init__(self) -> None:
        self.rows: set[int] = set()
        self.known: Covered | None = None
        self.gaps: dict[tuple[str, int], tuple[int | None, str]] = {}
        self.now = 0

    def become(self, known: Covered | None) -> None:
        for gap, hole in coverage.changed_gaps(SERIES, self.known, known):
            assert (hole is not None) == (gap.state == "found" or (hole is not None))
            self.gaps[gap.kind, gap.start_ms] = gap.end_ms, gap.state
        self.known = known
        self.check()

    def check(self) -> None:
        if self.known is None:
            return
        opens = sorted(minute(at) for at in self.rows)
        assert coverage.mistakes(self.known, opens, MINUTE_MS) == []
        # The rows of gaps that are open say what the holes say.
        told = {
            (kind, start_ms, end_ms)
            for (kind, start_ms), (end_ms, state) in self.gaps.items()
            if state == "found"
        }
        assert told == {
            (hole.kind("1m"), hole.start_ms, hole.end_ms)
            for hole in self.known.holes
            if not hole.is_absent
        }

    def check_due(self) -> None:
        """All that is due by now is stored or missing: nothing before the forming candle is unknown."""
        assert self.known is not None
        assert self.known.end_ms >= minute(self.now)

    def newest(self) -> int | None:
        return minute(max(self.rows)) if self.rows else None

    def lacking(self, where: TimeRange) -> list[TimeRange]:
        opens = sorted(minute(at) for at in self.rows)
        return missing([at for at in opens if at >= where.start_ms], where, MINUTE_MS)

    # --- events -----------------------------------------------------------------------------------

    def promise(self, keep: int, listed: int) -> None:
        made = promise(self.now, keep, min(listed, self.now))
        self.become(coverage.promised(self.known, made, self.newest(), self.lacking))
        self.check_due()

    def add_again(self, keep: int) -> None:
        if self.known is None:
            self.become(coverage.added_again(promise(self.now, keep), self.newest()))
            self.check_due()

    def pass_time(self, minutes: int) -> None:
        self.now += minutes
        if self.known is not None:
            self.become(coverage.expected(self.known, minute(self.now)))
            self.check_due()

    def set_clock_back(self, minutes: int) -> None:
        """The clock was ahead until now; what is collected is promised once more."""
        self.now -= minutes
        if self.known is None:
            return
        made = promise(self.now, self.known.promised_ms // MINUTE_MS)
        self.become(coverage.promised(self.known, made, self.newest(), self.lacking))
        known = self.known
        assert known.from_ms <= minute(self.now)
        # A hole in the future lies before what is stored there, or where it is still to be looked.
        until_ms = max(minute(self.now), known.looked_ms)
        assert not any(one.end_ms == known.end_ms > until_ms for one in known.holes[-1:])

    def store(self, ago: int, count: int, step: int) -> None:
        at = sorted({self.now - ago + step * n for n in range(count)})
        at = [one for one in at if one < self.now]
        self.rows.update(at)
        if self.known is not None and at:
            self.become(coverage.stored(self.known, [minute(one) for one in at], MINUTE_MS))

    def delete(self, ago: int) -> None:
        before = self.now - ago
        self.rows = {at for at in self.rows if at >= before}
        if self.known is not None:
            self.become(coverage.stored_before(self.known, minute(before)))

    def answer_without(self, ago: int, count: int) -> None:
        where = TimeRange(minute(self.now - ago), minute(self.now - ago + count))
        if self.known is not None:
            self.become(coverage.answered_without(self.known, where, minute(self.now)))

    def change_by_hand(self, ago: int) -> None:
        """Somebody deletes rows behind our back; it is noticed, and looked through later."""
        self.rows = {at for at in self.rows if at < self.now - ago or at % 3}
        if self.known is not None:
            self.become(coverage.distrusted(self.known))

    def look(self, candles: int) -> None:
        known = self.known
        if known is None or known.is_looked_through:
            return
        down_to = max(known.looked_ms - candles * MINUTE_MS, known.from_ms)
        where = TimeRange(down_to, known.looked_ms)
        self.become(coverage.looked(known, down_to, self.lacking(where)))

    def release(self) -> None:
        self.become(None)


def draw_event(draw: Callable[..., int], model: Model) -> None:
    small, many = (0, 12), (0, 60)
    events = (
        lambda: model.promise(draw(*many) + 1, draw(-40, 40)),
        lambda: model.add_again(draw(*many) + 1),
        lambda: model.pass_time(draw(1, 15)),
        lambda: model.pass_time(1),
        lambda: model.store(draw(*small) + 1, draw(1, 8), draw(1, 3)),
        lambda: model.store(1, 1, 1),
        lambda: model.store(draw(*many) + 1, draw(1, 30), 1),
        lambda: model.delete(draw(*many)),
        lambda: model.answer_without(draw(*many), draw(1, 30)),
        lambda: model.change_by_hand(draw(*many)),
        lambda: model.look(draw(1, 30)),
        model.release,
        lambda: model.set_clock_back(draw(1, 20)),
    )
    weights = (2, 1, 2, 3, 3, 3, 2, 1, 2, 1, 3, 1, 1)
    choice = draw(0, sum(weights) - 1)
    for event, weight in zip(events, weights, strict=True):
        if choice < weight:
            event()
            return
        choice -= weight


@settings(max_examples=2_000, deadline=None)
@given(st.data())
def test_any_history_of_events_keeps_the_invariant(data: st.DataObject) -> None:
    model = Model()
    for _ in range(data.draw(st.integers(1, 40))):
        draw_event(lambda low, high: data.draw(st.integers(low, high)), model)
