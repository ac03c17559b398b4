"""Settlements of a simulated year: rhythms that change, special ones, and what is held of them.

The exchange settles each contract in its rhythm, changes that at any minute (1, 4 or 8 h), settles specially
in the minute of a regular settlement or alone, and publishes what it has settled seconds, minutes or, of
regular ones, hours later. Running rates announce the next settlement, where frames come. The collector asks
as `history/funding.py` does, by the pure functions of `history/awaited.py`; readers judge by those of
`reader/settlements.py`. Both stop, start and follow pairs as the year goes.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.grid import TimeRange, joined, subtract
from marketfeed.history.awaited import (
    EARLIER_MS,
    PAUSES_S,
    Awaited,
    FetchedRates,
    completed,
    is_certain,
)
from marketfeed.schema import HOUR_MS, MINUTE_MS, REGULAR, SETTLED_LATE_MS, SPECIAL
from marketfeed.simulator.catalogue import make_instrument
from marketfeed.simulator.funding import Funding
from reader import settlements
from reader.rows import Announced, FundingRow

LOOKS: Final = (0, 1, 2, 4, 7, 11, 12, 25, 40, 55)
"""Minutes of an hour at which frames are heard and the collector looks; also when a rhythm changes."""
HEARD_AFTER_MS: Final = 5_000
LOOK_AGAIN_MS: Final = SETTLED_LATE_MS + MINUTE_MS
LATER_MS: Final = SETTLED_LATE_MS + MINUTE_MS
"""So long before the end of what is complete special settlements may lack: the next request brings them."""
ASKED_EVERY_MS: Final = HOUR_MS + 2 * MINUTE_MS
"""What was published so long ago has been asked for: at the latest an hour after it was given up."""
KEPT_MS: Final = 16 * schema.DAY_MS
"""So far back all is held against the exchange: further than announcements are known."""
LAGS_MS: Final = HOUR_MS
"""So far `settled_to` may lie behind what is stored, while nothing is awaited."""
RHYTHMS: Final = (1, 4, 8)


class Settling(msgspec.Struct, eq=False):
    """One contract: how the exchange settles it, and what the collector holds and knows of it.

    `published` is when each settlement can be asked for, `stored` which have been; `announced` is what a
    store gives readers. `excused` are those that decision 052 lets go: published too late for who asks ten
    minutes of what nobody was sure of, or has a special one in its place, or was stopped meanwhile. What
    follows is what `SettledRates` keeps.
    """

    funding: Funding
    from_ms: int
    ended_ms: int | None
    published: dict[tuple[int, str], int]
    stored: set[tuple[int, str]]
    announced: list[Announced]
    covered: list[TimeRange]
    awaited: dict[int, Awaited]
    known_to_ms: int
    excused: set[int]
    heard_next_ms: int | None = None
    said_ms: int | None = None
    next_ms: int | None = None
    heard_ms: int | None = None
    last_said_ms: int = 0
    last_ms: int = 0
    live_from_ms: int = 0
    live_to_ms: int | None = None

    @property
    def settled_to_ms(self) -> int | None:
        """As readers are told."""
        return self.covered[-1].end_ms if self.covered else None

    def cover(self, part: TimeRange) -> None:
        """Note a part as complete."""
        self.covered = joined([*self.covered, part], MINUTE_MS, 0)


class Rhythms:
    """The settlements of what is followed; `changed` and `special` count what has happened.

    A contract's rhythm changes, or it settles specially, three times in `every_h` hours.
    """

    def __init__(self, rng: random.Random, start_ms: int, every_h: int = 1_200) -> None:
        self.rng = rng
        self._every_h = every_h
        self.start_ms = start_ms
        self.of: dict[int, Settling] = {}
        self.followed: dict[str, Settling] = {}
        self.look_ms: int | None = None
        self.down_until_ms = 0
        self.changed = self.special = self.settled = 0

    def pass_hour(
        self,
        start_ms: int,
        contracts: Mapping[str, tuple[object, int, int | None]],
        is_heard: Callable[[str, int], bool],
    ) -> None:
        """Let the hour from `start_ms` on pass.

        `contracts` are those that are collected, by pair, each as its own object, its listing and its end.
        """
        minutes = self._happen(start_ms)
        if self.rng.random() < 1 / 700:
            self.down_until_ms = start_ms + self.rng.randrange(1, 20) * HOUR_MS
            self._forget(list(self.followed))
        self._settle(start_ms + HOUR_MS)
        for minute in minutes:
            now_ms = start_ms + minute * MINUTE_MS + HEARD_AFTER_MS
            if now_ms < self.down_until_ms:
                continue
            self._follow(contracts, now_ms)
            for pair, one in self.followed.items():
                if is_heard(pair, now_ms):
                    _hear(one, now_ms)
            for one in self.followed.values():
                _notice(one, now_ms)
            self._ask(now_ms)

    # --- the exchange -----------------------------------------------------------------------------------

    def _happen(self, start_ms: int) -> list[int]:
        """Draw what changes within the hour; returns the minutes to look at."""
        rng, minutes = self.rng, set(LOOKS)
        for one in self.of.values():
            drawn = rng.random() * self._every_h
            if drawn < 1:
                minute = rng.randrange(1, 60)
                one.funding.change_rhythm(start_ms + minute * MINUTE_MS, rng.choice(RHYTHMS))
                minutes.add(minute)
                self.changed += 1
            elif drawn < 2:
                one.funding.settle_specially(start_ms + rng.randrange(1, 60) * MINUTE_MS, 0.01)
                self.special += 1
            elif drawn < 3:
                next_ms = one.funding.next_funding_ms(start_ms + HEARD_AFTER_MS)
                one.funding.settle_specially(next_ms, 0.01)
                self.special += 1
        return sorted(minutes)

    def _settle(self, end_ms: int) -> None:
        """What is settled before `end_ms`, drawn at an hour's start, is published some time."""
        rng = self.rng
        for one in self.of.values():
            until_ms = end_ms if one.ended_ms is None else min(end_ms, one.ended_ms)
            for at_ms, special in one.funding.times(one.known_to_ms, until_ms - 1):
                late_ms = rng.randrange(1_000, 20_000)
                drawn = rng.random()
                if drawn < 0.1:
                    late_ms = rng.randrange(MINUTE_MS, SETTLED_LATE_MS - MINUTE_MS)
                elif drawn < 0.12 and not special and _was_sure(one, at_ms):
                    # Longer than is waited for: such a one is asked for every hour.
                    late_ms = rng.randrange(SETTLED_LATE_MS, 6 * HOUR_MS)
                one.published[at_ms, SPECIAL if special else REGULAR] = at_ms + late_ms
                self.settled += 1
            one.known_to_ms = end_ms

    # --- the collector, as `SettledRates` ---------------------------------------------------------------

    def _follow(self, contracts: Mapping[str, tuple[object, int, int | None]], now_ms: int) -> None:
        for pair, (contract, listed_ms, ended_ms) in contracts.items():
            key = id(contract)
            if key not in self.of:
                made = make_instrument(f"C{len(self.of)}/USDT:USDT", 1.0)
                funding = Funding(made, len(self.of))
                first_ms = schema.floor_to(max(listed_ms, self.start_ms), MINUTE_MS)
                self.of[key] = Settling(
                    funding, first_ms, None, {}, set(), [], [], {}, first_ms, set()
                )
                self._settle(schema.floor_to(now_ms, HOUR_MS) + HOUR_MS)
            one = self.of[key]
            one.ended_ms = ended_ms
            if self.followed.get(pair) is not one:
                self._forget([pair])
                self.followed[pair] = one
                self._join(one, now_ms)
        self._forget([pair for pair in self.followed if pair not in contracts])

    def _forget(self, pairs: list[str]) -> None:
        for pair in pairs:
            one = self.followed.pop(pair, None)
            if one is not None:
                one.excused.update(one.awaited)
                one.heard_next_ms = one.said_ms = one.next_ms = one.heard_ms = one.live_to_ms = None
                one.last_ms = 0
                one.awaited.clear()

    def _join(self, one: Settling, now_ms: int) -> None:
        """A start: history up to what is published for sure, and a look eleven minutes later."""
        one.live_from_ms = max(one.from_ms, _published_ms(now_ms))
        self.look_ms = now_ms + LOOK_AGAIN_MS
        last_ms = None
        if one.announced:
            heard_ms, next_ms = one.announced[-1]
            one.heard_ms = max(heard_ms, one.last_said_ms)
            if next_ms >= one.live_from_ms:
                one.next_ms = next_ms
            last_ms = next_ms
        for part in subtract(TimeRange(one.from_ms, one.live_from_ms), one.covered):
            came = _fetch(one, TimeRange(part.start_ms - EARLIER_MS, now_ms + MINUTE_MS), now_ms)
            one.cover(_complete(one, part, last_ms, came, now_ms))

    def _ask(self, now_ms: int) -> None:
        now_s = now_ms / 1000
        every = list(self.followed.values())
        due = [
            (one, at_ms)
            for one in every
            for at_ms, item in one.awaited.items()
            if item.due_s <= now_s
        ]
        starts_ms = [
            at_ms if one.live_to_ms is None else min(one.live_to_ms, at_ms) for one, at_ms in due
        ]
        if looks := self.look_ms is not None and self.look_ms <= now_ms:
            self.look_ms = None
            young_ms = now_ms - HOUR_MS
            starts_ms += [
                one.live_to_ms
                for one in every
                if one.live_to_ms is not None and one.live_to_ms >= young_ms
            ]
        if not starts_ms:
            # Who joined lately has not been heard, as in a halt of all: else the look is for it.
            lately = [one for one in every if looks and one.live_from_ms >= now_ms - HOUR_MS]
            assert all(one.live_to_ms is None for one in lately)
            return
        end_ms = schema.to_minute(now_ms) + MINUTE_MS
        where = TimeRange(min(starts_ms) - EARLIER_MS, end_ms)
        for one in every:
            came = _fetch(one, where, now_ms)
            known = [
                at_ms for at_ms, item in one.awaited.items() if came.has(("", at_ms), item.waited)
            ]
            for at_ms in known:
                del one.awaited[at_ms]
                if not came.has(("", at_ms), False):
                    one.excused.add(at_ms)
            for other, at_ms in due:
                if other is one and at_ms not in known:
                    item = one.awaited[at_ms]
                    item.ask_again(now_s)
                    if item.given_up and item.is_over:
                        del one.awaited[at_ms]
                        one.excused.add(at_ms)
            if one.live_to_ms is not None:
                part = completed(one.live_to_ms, where, _published_ms(now_ms), known, one.awaited)
                if part is not None:
                    one.cover(part)
                    one.live_to_ms = part.end_ms

    # --- what is wrong ----------------------------------------------------------------------------------

    def wrong(self, now_ms: int) -> Iterator[str]:
        """What readers would be told wrongly at `now_ms` of what is followed."""
        if now_ms < self.down_until_ms + 2 * HOUR_MS:
            return
        for pair, one in self.followed.items():
            _forget_old(one, now_ms - KEPT_MS)
            if one.ended_ms is not None and one.ended_ms <= now_ms:
                continue
            for text in _wrong(one, now_ms):
                yield f"{pair}: {text}"


def _was_sure(one: Settling, at_ms: int) -> bool:
    """Whether a settlement was announced until a few minutes before it."""
    said_ms = one.said_ms or 0
    return said_ms >= at_ms - 6 * MINUTE_MS and one.heard_next_ms == at_ms


def _published_ms(now_ms: int) -> int:
    return schema.floor_to(now_ms - SETTLED_LATE_MS, MINUTE_MS)


def _hear(one: Settling, now_ms: int) -> None:
    """A running rate comes: it is stored, and names the next settlement."""
    next_ms = one.funding.next_funding_ms(now_ms)
    one.heard_next_ms, one.said_ms, one.last_said_ms = next_ms, now_ms, now_ms
    if not one.announced or one.announced[-1].next_ms != next_ms:
        one.announced.append(Announced(schema.floor_to(now_ms, MINUTE_MS), next_ms))
        kept_ms = now_ms - settlements.KNOWN_FOR_MS
        while len(one.announced) > 1 and one.announced[1].from_ms <= kept_ms:
            del one.announced[0]


def _notice(one: Settling, now_ms: int) -> None:
    """Await what has passed since the last look."""
    if one.heard_next_ms is None:
        return
    next_ms, said_ms = one.heard_next_ms, one.said_ms
    before_ms = next_ms if one.next_ms is None else one.next_ms
    heard_ms = said_ms if one.heard_ms is None else one.heard_ms
    one.next_ms, one.heard_ms = next_ms, said_ms
    if one.live_to_ms is None:
        one.live_to_ms = one.live_from_ms
    for time_ms, until_ms in ((before_ms, heard_ms), (next_ms, said_ms)):
        passed = time_ms <= now_ms or (time_ms < next_ms and time_ms <= now_ms + 5_000)
        if passed and time_ms > one.last_ms:
            one.last_ms = time_ms
            one.awaited[schema.to_minute(time_ms)] = Awaited(
                now_ms / 1000 + 3.0, is_certain(time_ms, until_ms)
            )


def _fetch(one: Settling, where: TimeRange, now_ms: int) -> FetchedRates:
    """Store what is published of a range."""
    found = set()
    # The newest first: they were settled in this order.
    for key, published_ms in reversed(one.published.items()):
        if key[0] < where.start_ms:
            break
        if key[0] < where.end_ms and published_ms <= now_ms:
            found.add(key)
    one.stored |= found
    regular, special = (
        {("", at_ms) for at_ms, kind in found if kind == wanted} for wanted in (REGULAR, SPECIAL)
    )
    return FetchedRates(regular, special, [])


def _complete(
    one: Settling, part: TimeRange, last_ms: int | None, came: FetchedRates, now_ms: int
) -> TimeRange:
    """What of a part of history is complete."""
    if (
        last_ms is None
        or now_ms - last_ms > HOUR_MS
        or not part.start_ms <= last_ms < part.end_ms
        or came.has(("", last_ms), False)
        or not is_certain(last_ms, one.heard_ms)
    ):
        return part
    one.awaited.setdefault(last_ms, Awaited(now_ms / 1000 + PAUSES_S[0]))
    one.live_from_ms = one.live_to_ms = last_ms
    return TimeRange(part.start_ms, last_ms)


def _forget_old(one: Settling, before_ms: int) -> None:
    for key in [key for key in one.published if key[0] < before_ms]:
        del one.published[key]
        one.stored.discard(key)


def _wrong(one: Settling, now_ms: int) -> Iterator[str]:
    to_ms = one.settled_to_ms
    times_ms = {at for at, kind in one.stored if to_ms is None or kind == REGULAR}
    due_ms = now_ms - SETTLED_LATE_MS
    said = set(settlements.passed(one.announced, now_ms))
    for key in one.stored - set(one.published):
        yield f"stored, and never settled: {key}"
    for (at_ms, kind), published_ms in one.published.items():
        is_stored = (at_ms, kind) in one.stored
        if is_stored or at_ms >= due_ms or at_ms in one.excused:
            continue
        if at_ms < (to_ms or 0) - (0 if kind == REGULAR else LATER_MS):
            yield f"{kind} of {at_ms} is not stored, and complete to {to_ms}; published {published_ms}"
        # All may have halted: then nobody asks.
        if at_ms in said and kind == REGULAR and published_ms + ASKED_EVERY_MS <= now_ms:
            yield f"{kind} of {at_ms} is not stored, published at {published_ms}"
    lacking = settlements.lacking(one.announced, times_ms, to_ms, now_ms)
    for at_ms in lacking:
        if (at_ms, REGULAR) not in one.published:
            yield f"bots are refused for {at_ms}, which never came: {one.announced[-3:]}, {to_ms}"
    # What was announced until it came, and is not there: whoever asks is told.
    told = {*times_ms, *lacking, *one.excused}
    for at_ms, kind in one.published:
        is_due = kind == REGULAR and at_ms in said and at_ms < due_ms - MINUTE_MS
        if is_due and at_ms not in told:
            yield f"{at_ms} is not stored, and passes as complete: {to_ms}"
    # Each answer goes on where any earlier one ended: whosever settlement was asked for.
    before_ms = now_ms - LAGS_MS
    regular = [at for at, kind in one.stored if kind == REGULAR and at in said and at < before_ms]
    newest_ms = max(regular, default=0)
    if not one.awaited and one.said_ms is not None and (to_ms or 0) <= newest_ms:
        yield f"complete to {to_ms}, and {newest_ms} is stored"
    yield from _wrong_interval(one)


def _wrong_interval(one: Settling) -> Iterator[str]:
    regular = [at_ms for at_ms, kind in one.stored if kind == REGULAR]
    if not regular or one.said_ms is None or one.heard_next_ms is None:
        return
    last_ms = max(regular)
    then = next(
        (told for told in one.announced if told.from_ms >= last_ms and told.next_ms > last_ms), None
    )
    row = FundingRow(
        *("", one.said_ms, 0.0, None, one.heard_next_ms),
        regular_ms=last_ms,
        then_ms=None if then is None else then.from_ms,
        then_next_ms=None if then is None else then.next_ms,
    )
    between: list[int] = []
    if row.then_next_ms != row.next_funding_time_ms:
        passed = settlements.passed(one.announced, row.time_ms)
        between = [at_ms for at_ms in passed if at_ms > last_ms]
    found = settlements.interval_h(row, one.settled_to_ms, between)
    # None where it halted before its first one, which is settled all the same.
    before = (at for at, kind in one.published if kind == REGULAR and at <= one.said_ms)
    true_ms = max(before, default=None)
    if found is not None and (true_ms is None or found * HOUR_MS != one.heard_next_ms - true_ms):
        yield f"an interval of {found} h: {row}, settled last at {true_ms}"
