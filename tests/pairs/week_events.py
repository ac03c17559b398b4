"""What happens to contracts in a simulated week: drawn from a seed, and what became of each is remembered.

All kinds come by turns, from a shuffled deck, so that each comes equally often. What cannot be, for no
contract is fit for it, is put back. Times are ms of exchange time.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS, ceil_to, floor_to
from marketfeed.simulator.fault_kinds import Fault, Lack, Mute, RefuseRest, ShrinkExchangeInfo
from marketfeed.simulator.listings import (
    Delist,
    EndByStatus,
    Enlist,
    ListingChange,
    SetOnboard,
    SetRhythm,
    SetStatus,
    SettleSpecially,
    SetType,
    SpoilRow,
    Withdraw,
)

EVERY_MS: Final = 25 * MINUTE_MS
"""So far are two events apart on average."""
REST_FOR_MS: Final = 90 * MINUTE_MS
"""So long nothing happens to a contract after something has: what it led to is looked at in between."""
FINAL_AFTER_MS: Final = HOUR_MS
"""So long after its end everything of a contract is stored, and another may have its name."""
MOST_LIVE: Final = 12
FEWEST_LIVE: Final = 6
KEPT: Final = 3
"""So many contracts neither end nor halt, for what is compared at all times."""
ENDED: Final = ("SETTLING", "DELIVERED", "CLOSE", "DELIVERING")
HALTS: Final = ("TRADING_HALT", "BREAK", "HALT", "A_NEW_WORD", "", None)
TYPES: Final = ("TRADIFI_PERPETUAL", "HYPERPETUAL", "")
COIN: Final = "PERPETUAL"
HOURS: Final = (1, 2, 4, 8)


class Halt(msgspec.Struct):
    """A stretch without frames, of which the list tells, or has no row at all; `until_ms` None: it lasts."""

    from_ms: int
    until_ms: int | None = None


class Contract(msgspec.Struct):
    """One contract, as the exchange itself knows it."""

    pair: str
    listed_ms: int
    ended_ms: int | None = None
    by_status: bool = False
    first: bool = False
    """Whether it traded before the week."""
    halts: list[Halt] = []
    busy_until_ms: int = 0
    changed_ms: int = 0
    """When an end was announced, put off or taken back."""
    final: bool = False
    """Whether all of an ended one is compared: the exchange may forget it."""

    @property
    def symbol(self) -> str:
        """The exchange's name of it."""
        return f"{self.pair.partition('/')[0]}USDT"

    def is_live(self, now_ms: int) -> bool:
        """Whether it is listed, and not over."""
        return self.listed_ms <= now_ms and (self.ended_ms is None or now_ms < self.ended_ms)

    def halted_since(self, now_ms: int, for_ms: int = 0) -> int | None:
        """Since when it has halted, if it has, or had until `for_ms` ago."""
        for halt in self.halts:
            if halt.until_ms is None or halt.until_ms + for_ms > now_ms:
                return halt.from_ms
        return None

    def owned(self, length_ms: int) -> tuple[int, int]:
        """Which open times of a timeframe are its own: [first, end); far away while no end is known."""
        end_ms = 1 << 62 if self.ended_ms is None else floor_to(self.ended_ms, length_ms)
        return floor_to(self.listed_ms, length_ms), end_ms


class Play(Protocol):
    """The exchange that it is played on."""

    def change(self, change: ListingChange) -> int:
        """Carry out a change; when (ms) it takes effect."""

    def start(self, fault: Fault) -> None:
        """Start a fault."""


class Events:
    """Draws what happens, and keeps the contracts, oldest first: `contracts` are those of the start.

    `new` are names to list; `every_ms` is how far two events are apart on average.
    """

    def __init__(
        self,
        seed: int,
        play: Play,
        contracts: Sequence[Contract],
        new: Sequence[str],
        every_ms: int = EVERY_MS,
    ) -> None:
        self.contracts = list(contracts)
        self.happened: Counter[str] = Counter()
        self.told: list[str] = []
        """Each in words, with when (ms)."""
        self._random = random.Random(seed)
        self._play = play
        self._new = list(new)
        self._every_ms = every_ms
        self._deck: list[str] = []
        self._next_ms = 0
        self._follow: list[tuple[int, int, Callable[[int], object]]] = []
        self._kept = {one.pair for one in contracts[:KEPT]}

    def newest(self) -> dict[str, Contract]:
        """The newest contract of each pair."""
        return {one.pair: one for one in self.contracts}

    def go_on(self, now_ms: int, *, may_begin: bool) -> None:
        """Let happen what is due; with `may_begin` something new as well."""
        while self._follow and self._follow[0][0] <= now_ms:
            heapq.heappop(self._follow)[2](now_ms)
        if not may_begin or now_ms < self._next_ms:
            return
        self._next_ms = now_ms + int(self._every_ms * self._random.uniform(0.6, 1.4))
        if len(self._deck) < len(KINDS):
            more = list(KINDS)
            self._random.shuffle(more)
            self._deck += more
        for number, kind in enumerate(self._deck):
            words = getattr(self, f"_{kind.replace(' ', '_')}")(now_ms)
            if words:
                del self._deck[number]
                self.happened[kind] += 1
                self.told.append(f"{now_ms} {kind}: {words}")
                return

    # --- inside -----------------------------------------------------------------------------------

    def _later(self, at_ms: int, what: Callable[[int], object]) -> None:
        heapq.heappush(self._follow, (at_ms, len(self.told) * 1_000 + len(self._follow), what))

    def _pick(
        self, now_ms: int, fit: Callable[[Contract], bool] = lambda _: True, *, kept: bool = False
    ) -> Contract | None:
        """One that trades and to which nothing happens now; those that are kept are asked for apart."""
        fitting = [
            one
            for one in self.newest().values()
            if one.is_live(now_ms)
            and one.ended_ms is None
            and one.busy_until_ms <= now_ms
            and now_ms >= one.listed_ms + REST_FOR_MS
            and (kept or one.pair not in self._kept)
            and fit(one)
        ]
        return self._random.choice(fitting) if fitting else None

    def _live(self, now_ms: int) -> int:
        return sum(one.is_live(now_ms) for one in self.newest().values())

    def _minutes(self, least: int, most: int) -> int:
        return self._random.randrange(least, most) * MINUTE_MS

    def _listing(self, now_ms: int) -> str:
        if not self._new or self._live(now_ms) >= MOST_LIVE:
            return ""
        return self._list(self._new.pop(0), now_ms)

    def _relisting(self, now_ms: int) -> str:
        over = [
            one
            for one in self.newest().values()
            if one.final
            # As on the exchange, where months lie between: of one day there is one contract of a name.
            and floor_to(one.listed_ms, DAY_MS) < floor_to(now_ms, DAY_MS)
        ]
        if not over or self._live(now_ms) >= MOST_LIVE:
            return ""
        return self._list(self._random.choice(over).pair, now_ms)

    def _list(self, pair: str, now_ms: int) -> str:
        price = self._random.choice((0.02, 0.8, 3.0, 47.0, 900.0))
        in_s = self._minutes(5, 90) / 1_000
        rate = self._random.choice((0.02, 0.05, 0.1))
        at_ms = self._play.change(Enlist(pair, in_s, rate, price))
        self.contracts.append(Contract(pair, at_ms, busy_until_ms=at_ms + REST_FOR_MS))
        return f"{pair} at {at_ms}"

    def _end_by_date(self, now_ms: int) -> str:
        return self._announce(now_ms, self._minutes(10, 300))

    def _announce(self, now_ms: int, in_ms: int, then: str = "") -> str:
        one = self._pick(now_ms) if self._live(now_ms) > FEWEST_LIVE else None
        if one is None:
            return ""
        one.ended_ms = self._play.change(Delist(one.pair, in_ms / 1_000))
        one.by_status, one.changed_ms = False, now_ms
        if then:
            self._later(now_ms + in_ms // 2, getattr(self, then)(one))
        return f"{one.pair} at {one.ended_ms}"

    def _end_by_status(self, now_ms: int) -> str:
        one = self._pick(now_ms) if self._live(now_ms) > FEWEST_LIVE else None
        if one is None:
            return ""
        status = self._random.choice(ENDED)
        one.ended_ms = self._play.change(EndByStatus(one.pair, status))
        one.by_status, one.changed_ms = True, now_ms
        return f"{one.pair} {status} at {one.ended_ms}"

    def _end_put_off(self, now_ms: int) -> str:
        return self._announce(now_ms, self._minutes(90, 240), "_putting_off")

    def _putting_off(self, one: Contract) -> Callable[[int], object]:
        in_s = self._minutes(120, 300) / 1_000

        def put_off(now_ms: int) -> None:
            if one.is_live(now_ms + 3 * MINUTE_MS):
                one.ended_ms, one.changed_ms = self._play.change(Delist(one.pair, in_s)), now_ms

        return put_off

    def _end_taken_back(self, now_ms: int) -> str:
        return self._announce(now_ms, self._minutes(90, 240), "_taking_back")

    def _taking_back(self, one: Contract) -> Callable[[int], object]:
        def take_back(now_ms: int) -> None:
            if one.is_live(now_ms + 3 * MINUTE_MS):
                self._play.change(Withdraw(one.pair))
                one.ended_ms, one.changed_ms = None, now_ms
                one.busy_until_ms = now_ms + REST_FOR_MS

        return take_back

    def _halt(self, now_ms: int) -> str:
        one = self._pick(now_ms)
        if one is None:
            return ""
        status = self._random.choice(HALTS)
        halt = Halt(self._play.change(SetStatus(one.pair, status)))
        one.halts = [*one.halts, halt]
        until_ms = now_ms + self._minutes(10, 200)
        one.busy_until_ms = until_ms + REST_FOR_MS

        def resume(_: int) -> None:
            halt.until_ms = self._play.change(SetStatus(one.pair, "TRADING"))

        self._later(until_ms, resume)
        return f"{one.pair} {status!r}"

    def _all_halt(self, now_ms: int) -> str:
        """All of them, as when the exchange is under maintenance; but not while one of them ends."""
        live = [one for one in self.newest().values() if one.is_live(now_ms)]
        if any(one.ended_ms is not None or one.halted_since(now_ms) is not None for one in live):
            return ""
        halts = []
        for one in live:
            halts.append(Halt(self._play.change(SetStatus(one.pair, "BREAK"))))
            one.halts = [*one.halts, halts[-1]]
        until_ms = now_ms + self._minutes(10, 40)
        for one in live:
            one.busy_until_ms = max(one.busy_until_ms, until_ms + REST_FOR_MS)

        def resume(_: int) -> None:
            for one, halt in zip(live, halts, strict=True):
                halt.until_ms = self._play.change(SetStatus(one.pair, "TRADING"))

        self._later(until_ms, resume)
        return f"{len(live)} contracts"

    def _type_change(self, now_ms: int) -> str:
        one = self._pick(now_ms, kept=True)
        if one is None:
            return ""
        kind = self._random.choice(TYPES)
        self._play.change(SetType(one.pair, kind))
        until_ms = now_ms + self._minutes(20, 200)
        one.busy_until_ms = until_ms + MINUTE_MS
        self._later(until_ms, lambda _: self._play.change(SetType(one.pair, COIN)))
        return f"{one.pair} {kind!r}"

    def _rhythm(self, now_ms: int) -> str:
        one = self._pick(now_ms, kept=True)
        if one is None:
            return ""
        hours = self._random.choice(HOURS)
        at_ms = self._play.change(SetRhythm(one.pair, hours, self._minutes(2, 60) / 1_000))
        one.busy_until_ms = at_ms
        return f"{one.pair} {hours} h from {at_ms}"

    def _special(self, now_ms: int) -> str:
        return self._settle(now_ms, now_ms + self._minutes(5, 60))

    def _special_beside_a_regular(self, now_ms: int) -> str:
        # All rhythms settle then.
        at_ms = ceil_to(now_ms + 5 * MINUTE_MS, 8 * HOUR_MS)
        return self._settle(now_ms, at_ms) if at_ms - now_ms < 4 * HOUR_MS else ""

    def _settle(self, now_ms: int, at_ms: int) -> str:
        one = self._pick(now_ms, kept=True)
        if one is None:
            return ""
        # Rounded up to the minute, by the exchange's clock, which goes on meanwhile.
        in_s = max(0.0, (at_ms - now_ms) / 1_000 - 55.0)
        rate = round(self._random.uniform(-0.01, 0.01), 8)
        at_ms = self._play.change(SettleSpecially(one.pair, rate, in_s))
        return f"{one.pair} at {at_ms}"

    def _missing_rows(self, now_ms: int) -> str:
        share, seed = self._random.uniform(0.1, 0.5), self._random.randrange(1_000)
        self._play.start(
            ShrinkExchangeInfo(share=share, seed=seed, for_s=self._minutes(5, 20) / 1_000)
        )
        return f"{share:.2f} of them"

    def _odd_row(self, now_ms: int) -> str:
        one = self._pick(now_ms, kept=True)
        if one is None:
            return ""
        key = self._random.choice(("onboardDate", "deliveryDate", "status", "baseAsset"))
        self._play.change(SpoilRow(one.pair, key))
        until_ms = now_ms + self._minutes(10, 60)
        one.busy_until_ms = until_ms + MINUTE_MS
        self._later(until_ms, lambda _: self._play.change(SpoilRow(one.pair, None)))
        return f"{one.pair} {key}"

    def _wrong_date(self, now_ms: int) -> str:
        """One that traded long before: a date within its first day would be no other on that day's grid."""
        one = self._pick(now_ms, lambda one: one.first, kept=True)
        if one is None:
            return ""
        self._play.change(SetOnboard(one.pair, self._random.uniform(0.1, 9.0)))
        until_ms = now_ms + self._minutes(30, 120)
        one.busy_until_ms = until_ms + MINUTE_MS
        self._later(until_ms, lambda _: self._play.change(SetOnboard(one.pair, None)))
        return one.pair

    def _mark_prices_lack(self, now_ms: int) -> str:
        one = self._pick(now_ms, kept=True)
        if one is None:
            return ""
        key, how = self._random.choice(("i", "T")), self._random.choice(("empty", "null", "absent"))
        stream = f"{one.symbol.lower()}@markPrice*"
        for_s = self._minutes(1, 5) / 1_000
        self._play.start(Lack(stream, key=key, how=how, for_s=for_s))  # type: ignore[arg-type]
        return f"{one.pair} {key} {how}"

    def _candles_lost(self, now_ms: int) -> str:
        """Streams of one bring no closed candle, and REST does not answer: something is missing for long."""
        one = self._pick(now_ms, kept=True)
        if one is None:
            return ""
        mute = Mute(f"{one.symbol.lower()}@kline_*", closing_only=True, for_s=15 * 60.0)
        self._play.start(mute)
        for_s = self._minutes(40, 60) / 1_000
        self._play.start(RefuseRest("klines", status=503, for_s=for_s))
        one.busy_until_ms = now_ms + REST_FOR_MS
        return f"{one.pair} for 900 s, REST for {for_s:.0f} s"


KINDS: Final = (
    *("listing", "listing", "relisting", "relisting", "end by date", "end by status"),
    *(
        "end put off",
        "end taken back",
        "halt",
        "halt",
        "all halt",
        "type change",
        "rhythm",
        "rhythm",
    ),
    *("special", "special beside a regular", "missing rows", "odd row", "wrong date"),
    *("mark prices lack", "candles lost"),
)
"""What happens in a week; what is named twice comes twice as often."""
