"""Settled funding rates: fetched after each settlement, and their history, within the pool for funding.

A settlement is noticed by the running rates: their next one becomes another. One request returns the rates of
all contracts of a time; history is asked that way too, or contract by contract, whichever needs fewer
requests. What is complete is kept as a document in the journal, so that a restart goes on from there.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.binance.budget import Priority
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.symbols import TRADING, ExchangeInfo, Instrument
from marketfeed.counters import CollectorCounters, Trouble
from marketfeed.errors import ExchangeError, JournalError, backoff_s
from marketfeed.grid import TimeRange, joined, subtract
from marketfeed.history.archive_rates import ArchiveRates
from marketfeed.history.awaited import (
    EARLIER_MS,
    LATE_PAUSE_S,
    PAUSES_S,
    Apart,
    Awaited,
    FetchedRates,
    completed,
    is_certain,
)
from marketfeed.history.funding_plan import REPORTED_WITHIN_MS, STEP_MS, asked, requests, untold
from marketfeed.history.settled_fetch import SettledFetch
from marketfeed.ingest.intake import Intake
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
"""Exchange seconds between two looks for settlements; never closer than `WALL_AT_LEAST_S` wall seconds."""
SETTLED_AFTER_S: Final = 3.0
"""Exchange seconds after which a settled rate is asked for."""
FAILURE_PAUSE_S: Final = 1.0
FAILURE_CAP_S: Final = 60.0
"""Exchange seconds until the next attempt when the exchange does not answer: first, and at most."""
LOOK_AGAIN_S: Final = (schema.SETTLED_LATE_MS + schema.MINUTE_MS) / 1000
"""Exchange seconds from when pairs join to the time at which all that was settled before is published."""
ODD_PAUSE_S: Final = 60.0
"""Exchange seconds until what odd rows have left of history is asked for again, at first."""
COVERED: Final = schema.SETTLED_DOCUMENT
SAVE_EVERY: Final = 20
"""Answers of history between two times that what is complete is saved."""


class SettledRatesReport(msgspec.Struct, frozen=True):
    """Settled rates fetched since the start, settlements awaited, pairs whose history is not complete yet.

    `given_up` were settled by the clock and not published within ten minutes, nor since; `trouble` is
    why none can be fetched, or empty.
    """

    rates: int
    awaited: int
    history_pairs: int
    given_up: int
    trouble: str


class SettledRates:
    """Fetches settled rates of `instruments`; `run` goes on until it is cancelled.

    `history_ms` is how far back they are fetched (exchange time; 0: from the start on). `listed` returns
    what the exchange lists now: one request can return the rates of all that trades. `older` fills what REST
    does not give, where there is an archive.
    """

    def __init__(
        self,
        rest: BinanceRest,
        intake: Intake,
        writer: JournalWriter,
        clock: ExchangeClock,
        counters: CollectorCounters,
        listed: Callable[[], ExchangeInfo],
        instruments: Iterable[Instrument],
        history_ms: int,
        older: ArchiveRates | None = None,
    ) -> None:
        self._rest = rest
        self._rates = SettledFetch(rest, writer, counters, lambda: self._pairs)
        self._intake = intake
        self._writer = writer
        self._older = older
        self._clock = clock
        self._counters = counters
        self._listed = listed
        self._history_ms = history_ms
        self._since_ms = schema.to_minute(clock.now_ms())
        self._pairs: dict[str, str] = {}
        # From when on a pair's rates are fetched as they are settled: those before are history.
        self._live_from_ms: dict[str, int] = {}
        self._next_ms: dict[str, int] = {}
        # When that was announced last.
        self._heard_ms: dict[str, int] = {}
        # The next settlement as it was announced last before this began.
        self._announced_ms: dict[str, int] = {}
        self._last_ms: dict[str, int] = {}
        self._awaited: dict[tuple[str, int], Awaited] = {}
        # Up to when the rates that were settled while this runs are stored.
        self._live_to_ms: dict[str, int] = {}
        # Whom an answer for all contracts may leave out.
        self._apart = Apart()
        self._covered: dict[str, list[TimeRange]] = {}
        # When what may have been published since the start is asked for, announced or not.
        self._look_s: float | None = None
        self._generation = -1
        self._look_back = asyncio.Event()
        self._incomplete = 0
        self._given_up = 0
        self._trouble = Trouble(log, "settled rates not fetched", "settled rates fetched again")
        self._past_trouble = Trouble(
            log, "settled history not fetched", "settled history fetched again"
        )
        self.set_instruments(instruments)

    @property
    def trouble(self) -> Trouble:
        """What fails now, if anything: rates that were just settled, else those of before."""
        return self._trouble or self._past_trouble

    def report(self) -> SettledRatesReport:
        """What was fetched, and what is awaited."""
        return SettledRatesReport(
            rates=self._counters.records["funding_settled"],
            awaited=sum(not item.given_up for item in self._awaited.values()),
            history_pairs=self._incomplete,
            given_up=self._given_up,
            trouble=self.trouble.why,
        )

    def set_instruments(self, instruments: Iterable[Instrument]) -> None:
        """Fetch the rates of these from now on; of new ones the history, too."""
        chosen = list(instruments)
        pairs = {instrument.symbol: instrument.pair for instrument in chosen}
        before, from_ms = set(self._pairs.values()), self._published_ms()
        for pair in before.difference(pairs.values()):
            # Should it come back, it comes anew: what it left here is of the time before.
            of_frames = (self._intake.next_funding_ms, self._intake.announced_ms)
            of_before = (self._next_ms, self._heard_ms, self._announced_ms)
            for known in (self._live_from_ms, self._live_to_ms, *of_before, *of_frames):
                known.pop(pair, None)
            self._apart.leave(pair)
        new = [pair for pair in pairs.values() if pair not in before]
        self._live_from_ms.update(dict.fromkeys(new, from_ms))
        if new:
            self._look_s = self._clock.elapsed_s() + LOOK_AGAIN_S
        self._pairs = pairs
        self._look_back.set()

    async def run(self) -> None:
        """Fetch until cancelled. Raises nothing that REST or the journal is the cause of."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_history(), name="settled rates history")
            while True:
                self._notice()
                try:
                    await self._fetch_awaited()
                    await self._fetch_apart()
                    self._trouble.end()
                    pause_s = LOOK_EVERY_S
                except (ExchangeError, JournalError) as error:
                    self._trouble.met(error)
                    pause_s = backoff_s(self._trouble.failures, FAILURE_PAUSE_S, FAILURE_CAP_S)
                await asyncio.sleep(self._clock.wall_s(pause_s))

    # --- after each settlement --------------------------------------------------------------------

    def _notice(self) -> None:
        """Await the settlements that have passed since the last look."""
        now_ms, now_s = self._clock.now_ms(), self._clock.elapsed_s()
        followed = set(self._pairs.values())
        for pair, next_ms in self._intake.next_funding_ms.items():
            if pair not in followed:
                continue
            before_ms = self._next_ms.get(pair, next_ms)
            said_ms = self._intake.announced_ms.get(pair)
            heard_ms = self._heard_ms.get(pair, said_ms)
            self._next_ms[pair] = next_ms
            if said_ms is not None:
                self._heard_ms[pair] = said_ms
            self._live_to_ms.setdefault(pair, self._live_from_ms[pair])
            for time_ms, until_ms in ((before_ms, heard_ms), (next_ms, said_ms)):
                # The frames may be a little ahead of the clock.
                passed = time_ms <= now_ms or (time_ms < next_ms and time_ms <= now_ms + 5_000)
                if passed and time_ms > self._last_ms.get(pair, 0):
                    self._last_ms[pair] = time_ms
                    awaited = Awaited(now_s + SETTLED_AFTER_S, is_certain(time_ms, until_ms))
                    self._awaited[pair, schema.to_minute(time_ms)] = awaited

    async def _fetch_awaited(self) -> None:
        """Ask for what is awaited and due; what is not published yet is asked for again."""
        now_s = self._clock.elapsed_s()
        self._apart.join(self._untold(), now_s)
        due = [key for key, item in self._awaited.items() if item.due_s <= now_s]
        # Not weeks of all contracts for one that has halted for so long.
        starts_ms = [
            at if pair in self._apart else min(self._live_to_ms.get(pair, at), at)
            for pair, at in due
        ]
        look_s = self._look_s
        if looks := look_s is not None and look_s <= now_s:
            young_ms = self._clock.now_ms() - REPORTED_WITHIN_MS
            starts_ms += [at for at in self._live_to_ms.values() if at >= young_ms]
        if starts_ms:
            end_ms = schema.to_minute(self._clock.now_ms()) + STEP_MS
            where = TimeRange(min(starts_ms) - EARLIER_MS, end_ms)
            published_ms = self._published_ms()
            fetched = await self._rates.fetch(None, where, Priority.SETTLED)
            # They may have halted meanwhile.
            self._apart.join(self._untold(), now_s)
            known = self._came(fetched)
            for key in dict.fromkeys([*due, *known]):
                self._take_answer(key, key in known)
            for pair in self._live_to_ms:
                if pair not in self._apart:
                    self._go_on(pair, where, published_ms, fetched, known)
            await self._save()
        if looks and self._look_s == look_s:
            self._look_s = None

    async def _fetch_apart(self) -> None:
        """Ask for one pair by its symbol that an answer for all may leave out, if it is time.

        One in each look: they are no burst, however many have halted, and nobody else waits for them.
        """
        now_s = self._clock.elapsed_s()
        pair = self._apart.next(now_s)
        if pair is None:
            return
        symbol = next(symbol for symbol, whose in self._pairs.items() if whose == pair)
        from_ms = self._live_to_ms.setdefault(pair, self._live_from_ms[pair])
        end_ms = schema.to_minute(self._clock.now_ms()) + STEP_MS
        where = TimeRange(from_ms - EARLIER_MS, end_ms)
        published_ms = self._published_ms()
        self._apart.ask_again(pair, now_s)
        fetched = await self._rates.fetch(symbol, where, Priority.SETTLED)
        if pair not in self._live_to_ms:
            # It has left, or the journal had to be replaced.
            return
        known = self._came(fetched)
        for key in known:
            self._take_answer(key, True)
        self._go_on(pair, where, published_ms, fetched, known)
        await self._save()
        if pair not in self._untold():
            self._apart.leave(pair)

    def _came(self, fetched: FetchedRates) -> set[tuple[str, int]]:
        """What was awaited and came."""
        return {key for key, one in self._awaited.items() if fetched.has(key, one.waited)}

    def _go_on(
        self,
        pair: str,
        where: TimeRange,
        published_ms: int,
        fetched: FetchedRates,
        known: Iterable[tuple[str, int]],
    ) -> None:
        """Note what an answer about `where` has completed of a pair."""
        came_ms, awaited_ms = (
            [time_ms for whose, time_ms in keys if whose == pair] for keys in (known, self._awaited)
        )
        to_ms = self._live_to_ms[pair]
        if part := completed(to_ms, where, published_ms, came_ms, awaited_ms):
            self._cover(pair, part, fetched)
            self._live_to_ms[pair] = part.end_ms

    def _untold(self) -> set[str]:
        return untold(self._listed(), self._pairs, self._clock.now_ms())

    def _published_ms(self) -> int:
        """Up to when, on the minute, what was settled has been published."""
        return schema.floor_to(self._clock.now_ms() - schema.SETTLED_LATE_MS, STEP_MS)

    def _take_answer(self, key: tuple[str, int], fetched: bool) -> None:
        item = self._awaited[key]
        if fetched:
            del self._awaited[key]
            if item.given_up:
                self._given_up -= 1
                log.info("settled rate was published after all pair=%s time_ms=%d", *key)
            return
        was_given_up = item.given_up
        item.ask_again(self._clock.elapsed_s())
        if item.given_up and (item.is_over or key[0] not in self._pairs.values()):
            del self._awaited[key]
        if item.given_up and not was_given_up:
            if not item.certain:
                log.info("a settlement was taken back unheard pair=%s time_ms=%d", *key)
            else:
                self._given_up += 1
                log.warning("no settled rate was published pair=%s time_ms=%d", *key)

    # --- history ----------------------------------------------------------------------------------

    async def _keep_history(self) -> None:
        """Fill what is missing: at the start, of new pairs, and when the journal had to be replaced.

        What odd rows have left is asked for again, less and less often.
        """
        odd_rounds = 0
        while True:
            self._look_back.clear()
            try:
                await self._load()
                await self._fill()
                is_whole = self._older is None or await self._older.fill()
                self._past_trouble.end()
            except (ExchangeError, JournalError) as error:
                self._past_trouble.met(error)
                pause_s = backoff_s(self._past_trouble.failures, FAILURE_PAUSE_S, FAILURE_CAP_S)
                await asyncio.sleep(self._clock.wall_s(pause_s))
                continue
            is_whole &= not self._incomplete
            odd_rounds = 0 if is_whole else odd_rounds + 1
            again_s = self._clock.elapsed_s() + backoff_s(odd_rounds, ODD_PAUSE_S, LATE_PAUSE_S)
            while not self._look_back.is_set() and self._writer.generation == self._generation:
                await asyncio.sleep(self._clock.wall_s(LOOK_EVERY_S))
                if not is_whole and self._clock.elapsed_s() >= again_s:
                    break

    async def _load(self) -> None:
        if self._writer.generation == self._generation:
            return
        generation = self._writer.generation
        # Not by the writer's own way: what it remembers is carried into a fresh journal, and there that
        # would be wrong.
        known, announced_ms = await self._writer.call(
            lambda journal: (journal.load_document(COVERED), journal.announced(self._since_ms))
        )
        self._covered = {}
        if known is not None:
            with contextlib.suppress(msgspec.DecodeError):
                self._covered = msgspec.json.decode(known[0], type=dict[str, list[TimeRange]])
        if self._generation >= 0:
            # A fresh file: what was fetched while this runs is gone, too.
            self._since_ms = schema.to_minute(self._clock.now_ms())
            self._live_from_ms = dict.fromkeys(self._live_from_ms, self._published_ms())
            self._live_to_ms.clear()
        else:
            for pair, (heard_ms, next_ms) in announced_ms.items():
                self._announced_ms[pair] = next_ms
                self._heard_ms.setdefault(pair, heard_ms)
                if next_ms >= self._live_from_ms.get(pair, next_ms):
                    # It may have passed while nothing ran, or just now.
                    self._next_ms.setdefault(pair, next_ms)
        self._generation = generation

    def _wanted(self) -> dict[str, list[TimeRange]]:
        """What history is missing, by symbol. Without any it is what was settled before a pair joined."""
        first_ms = self._since_ms
        if self._history_ms:
            first_ms = schema.to_minute(self._clock.now_ms() - self._history_ms)
        wanted = {}
        for symbol, pair in self._pairs.items():
            where = TimeRange(first_ms, max(first_ms, self._live_from_ms[pair]))
            if parts := subtract(where, self._covered.get(pair, ())):
                wanted[symbol] = parts
        return wanted

    async def _fill(self) -> None:
        wanted = self._wanted()
        self._incomplete = len(wanted)
        if not wanted:
            return
        hours = await self._rest.funding_info(Priority.HISTORY)
        listed = self._listed().instruments.values()
        trading = [i.symbol for i in listed if i.status == TRADING]
        untold_now = self._untold()
        alone = {symbol for symbol in wanted if self._pairs.get(symbol) in untold_now}
        steps = requests(wanted, alone, hours, trading)
        singly = sum(step.symbol is not None for step in steps)
        log.info(
            "settled rates missing pairs=%d requests=%d by_symbol=%d",
            *(len(wanted), len(steps), singly),
        )
        ends_ms = {known.end_ms for parts in self._covered.values() for known in parts}
        for number, (one, symbols, part) in enumerate(steps, 1):
            where = asked(part, ends_ms, self._clock.now_ms())
            fetched = await self._rates.fetch(one, where, Priority.HISTORY)
            # They may have halted meanwhile.
            left_out = self._untold() if one is None else ()
            for symbol in symbols:
                pair = self._pairs.get(symbol)
                if pair is not None and pair not in left_out:
                    self._cover(pair, self._complete(pair, part, fetched.rates), fetched)
            if number % SAVE_EVERY == 0 or number == len(steps):
                await self._save()
            self._incomplete = len(self._wanted())

    def _complete(self, pair: str, part: TimeRange, fetched: set[tuple[str, int]]) -> TimeRange:
        """What of a part of history is complete; a last settlement that is not published yet is awaited."""
        last_ms = schema.to_minute(self._announced_ms.get(pair, 0))
        is_young = self._clock.now_ms() - last_ms <= REPORTED_WITHIN_MS
        if (
            not is_young
            or not part.start_ms <= last_ms < part.end_ms
            or (pair, last_ms) in fetched
            or not is_certain(last_ms, self._heard_ms.get(pair))
        ):
            return part
        due_s = self._clock.elapsed_s() + PAUSES_S[0]
        self._awaited.setdefault((pair, last_ms), Awaited(due_s))
        # As if it had been settled while this runs.
        self._live_from_ms[pair] = self._live_to_ms[pair] = last_ms
        return TimeRange(part.start_ms, last_ms)

    # --- both -------------------------------------------------------------------------------------

    def _cover(self, pair: str, part: TimeRange, fetched: FetchedRates) -> None:
        """Note a part as complete, but for what odd rows stand for."""
        clear = fetched.clear(pair, part)
        self._covered[pair] = joined([*self._covered.get(pair, ()), *clear], STEP_MS, 0)

    async def _save(self) -> None:
        body, now_ms = msgspec.json.encode(self._covered), self._clock.now_ms()
        generation = self._generation

        def save(journal: Journal) -> None:
            # What an earlier file held is not in this one.
            if self._writer.generation == generation:
                journal.save_document(COVERED, body, now_ms)

        await self._writer.call(save)
