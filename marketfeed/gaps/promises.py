"""Promises what is collected, and looks through rows of which it is not known whether they are whole."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from marketfeed import schema
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.symbols import Instrument
from marketfeed.clock import wait_at_most
from marketfeed.counters import Trouble
from marketfeed.errors import JournalError, backoff_s
from marketfeed.gaps.holes import CANDLE_DUE_MS, MARK_1H_LATE_MS
from marketfeed.gaps.supervisor import candle_due_ms
from marketfeed.grid import TILE_CANDLES
from marketfeed.journal.coverage import Key, Promise
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter

log = logging.getLogger(__name__)

LOOK_CANDLES: Final = 5_000
"""Rows that are looked through in one call: commits of new data pass in between."""
SERIES_AT_ONCE: Final = 20
"""Series whose newest rows are looked through in one call."""
NEW_FOR_MS: Final = schema.DAY_MS
"""A contract listed within this is promised from its first candle on, whatever the settings keep."""
RETRY_FIRST_S: Final = 1.0
RETRY_CAP_S: Final = 30.0
_NOTHING: Final[Mapping[Key, int]] = MappingProxyType({})


class Promises:
    """Keeps the promises of one collector; `run` goes on until it is cancelled.

    `instruments` gives what is collected, `keep_ms` how far back the settings ask for it. `on_promised` is
    called when something was promised, or found missing among stored rows. `ended` gives what is not
    collected any more, each with its end. `others` gives what is kept of a pair beside its timeframes:
    its mark candles, where the journal has a place for them. `aside_from_ms` gives from where on journals
    that were set aside, and are not taken over yet, promised each series: a fresh one promises as much.
    """

    def __init__(
        self,
        writer: JournalWriter,
        clock: ExchangeClock,
        instruments: Callable[[], Sequence[Instrument]],
        timeframes: Sequence[str],
        keep_ms: int,
        on_promised: Callable[[], None] = lambda: None,
        ended: Callable[[], Sequence[Instrument]] = lambda: (),
        others: Callable[[], Sequence[str]] = lambda: (),
        aside_from_ms: Callable[[], Awaitable[Mapping[Key, int]]] | None = None,
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._instruments = instruments
        self._timeframes = tuple(timeframes)
        self._keep_ms = keep_ms
        self._on_promised = on_promised
        self._ended = ended
        self._others = others
        self._aside_from_ms = aside_from_ms
        self._woken = asyncio.Event()
        self._anew = False
        # From where on each series was promised last.
        self._from_ms: dict[Key, int] = {}
        self._trouble = Trouble(
            log, "what is collected cannot be promised", "what is collected is promised"
        )

    def wake(self) -> None:
        """Promise at once what is not promised yet: pairs have changed, or the journal was replaced."""
        self._woken.set()

    def wake_anew(self) -> None:
        """Promise everything once more: the clock was ahead, and holes of the time to come are wrong."""
        self._anew = True
        self._woken.set()

    def unpromised(self) -> list[Key]:
        """What is collected, and of which nothing is promised yet."""
        known = self._writer.all_coverage
        return [
            (one.pair, timeframe)
            for one in self._instruments()
            for timeframe in self._series()
            if (one.pair, timeframe) not in known
        ]

    async def run(self) -> None:
        """Promise what is collected, and nothing else; then what joins it."""
        generation = 0
        while True:
            self._woken.clear()
            pause_s: float | None = None
            found = self._writer.generation
            anew, self._anew = self._anew or generation != found, False
            try:
                instruments = self._instruments()
                if anew:
                    # An earlier run may have promised others, and by other settings. What has ended in this
                    # one is still promised: its last candles may be missing.
                    await self._promise(instruments, only=generation == 0)
                    generation, anew = found, False
                elif unpromised := {pair for pair, _ in self.unpromised()}:
                    await self._promise([one for one in instruments if one.pair in unpromised])
                if over := [*self._promised_too_far(), *self._promised_too_early(instruments)]:
                    # Nobody would ask for what was due before the end was known. What was before a listing is
                    # another contract's, which had the name.
                    await self._promise(over)
                await look_through(self._writer)
                self._note_promised()
                self._on_promised()
                self._trouble.end()
            except JournalError as error:
                self._anew |= anew
                self._trouble.met(error)
                pause_s = backoff_s(self._trouble.failures, RETRY_FIRST_S, RETRY_CAP_S)
            await wait_at_most(pause_s, self._woken)

    def _promised_too_far(self) -> list[Instrument]:
        """What has ended before candles that are known to be due."""
        known = self._writer.all_coverage
        return [
            one
            for one in self._ended()
            if any(
                (covered := known.get((one.pair, timeframe))) is not None
                and one.ended_ms is not None
                and covered.holes
                and covered.holes[-1].end_ms > one.ended_ms
                for timeframe in self._series()
            )
        ]

    def _promised_too_early(self, instruments: Sequence[Instrument]) -> list[Instrument]:
        """What is collected and was promised from before its first candle: a name has become another's."""
        known, now_ms = self._writer.all_coverage, self._clock.certain_ms()
        return [
            one
            for one in instruments
            if any(
                (covered := known.get((one.pair, timeframe))) is not None
                and covered.from_ms
                < schema.floor_to(min(one.listed_ms, now_ms), schema.SERIES_MS[timeframe])
                for timeframe in self._series()
            )
        ]

    def _series(self) -> tuple[str, ...]:
        """What is kept of each pair."""
        return (*self._timeframes, *self._others())

    async def _promise(self, instruments: Sequence[Instrument], *, only: bool = False) -> None:
        aside_ms = _NOTHING
        if self._aside_from_ms is not None and any(
            (one.pair, timeframe) not in self._writer.all_coverage
            for one in instruments
            for timeframe in self._series()
        ):
            aside_ms = await self._aside_from_ms()
        every = promises(
            instruments,
            self._series(),
            self._clock.certain_ms(),
            self._keep_ms,
            candle_due_ms(self._clock.speed),
            self._from_ms,
            aside_ms,
        )
        await self._writer.call(lambda journal: journal.promise(every, only=only))

    def _note_promised(self) -> None:
        # A journal that was just replaced knows of none: these are what is due of it.
        self._from_ms.update((key, one.from_ms) for key, one in self._writer.all_coverage.items())


def promises(
    instruments: Iterable[Instrument],
    timeframes: Sequence[str],
    now_ms: int,
    keep_ms: int,
    due_after_ms: int = CANDLE_DUE_MS,
    from_ms: Mapping[Key, int] = _NOTHING,
    aside_ms: Mapping[Key, int] = _NOTHING,
) -> list[Promise]:
    """What to keep of instruments: `keep_ms` back, and of a new listing all of it.

    `from_ms` is from where on series were promised when their journal had to be replaced: as many of
    these as a feeder asks for are still due. `aside_ms` is the same of journals that were set aside: all of
    it is.
    """
    found = []
    for one in instruments:
        for timeframe in timeframes:
            length_ms = schema.SERIES_MS[timeframe]
            reach_ms = 0
            if now_ms - one.listed_ms <= NEW_FOR_MS:
                # Its first candle opens before it.
                reach_ms = now_ms - schema.floor_to(one.listed_ms, length_ms)
            before_ms = from_ms.get((one.pair, timeframe))
            if before_ms is not None:
                reach_ms = max(reach_ms, min(now_ms - before_ms, TILE_CANDLES * length_ms))
            if (one.pair, timeframe) in aside_ms:
                reach_ms = max(reach_ms, now_ms - aside_ms[one.pair, timeframe])
            found.append(
                Promise(
                    one.pair,
                    timeframe,
                    now_ms,
                    keep_ms,
                    one.listed_ms,
                    reach_ms,
                    MARK_1H_LATE_MS if timeframe == schema.MARK_1H else due_after_ms,
                    one.ended_ms,
                )
            )
    return found


async def look_through(writer: JournalWriter) -> None:
    """Look through what is still to be: the newest rows of all series first, as feeders wait for these.

    Raises JournalError.
    """

    def unlooked() -> list[Key]:
        return [key for key, known in writer.all_coverage.items() if not known.is_looked_through]

    def looking(keys: Sequence[Key], candles: int) -> Callable[[Journal], None]:
        return lambda journal: journal.look_through(keys, candles)

    keys = unlooked()
    if not keys:
        return
    log.info("stored candles are looked through series=%d", len(keys))
    for start in range(0, len(keys), SERIES_AT_ONCE):
        await writer.call(looking(keys[start : start + SERIES_AT_ONCE], TILE_CANDLES))
    while keys := unlooked():
        for key in keys:
            await writer.call(looking([key], LOOK_CANDLES))
    log.info("stored candles have been looked through")
