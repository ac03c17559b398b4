"""From frames to commits: what the collector has received and not yet stored, and the one who stores it.

A commit is due 250 ms after the last one, or a few ms after a closing frame, so that the candles of one
boundary share commits and each is on the disk within 20 ms. While the disk refuses (full, I/O error),
the batch is kept and tried again; the socket is read on, in bounded memory.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Container
from typing import Final

from marketfeed.binance.decode import Control, FrameDecoder, Reject
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.clock import boot_place, boottime_s
from marketfeed.counters import CollectorCounters, Lately, Trouble
from marketfeed.errors import JournalError, JournalWriteError
from marketfeed.grid import TimeRange
from marketfeed.ingest.freshness import Freshness, Seen
from marketfeed.journal.batch import Batch, Due, Stamp
from marketfeed.journal.coverage import Key
from marketfeed.journal.stamps import EVERY_MS
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, FundingRate, FundingSettled, MarkPrice, Record, RejectedFrame

log = logging.getLogger(__name__)

COMMIT_EVERY_S: Final = 0.25
CLOSED_COMMIT_AFTER_S: Final = 0.008
"""How long a closing frame waits for its neighbours; with the commit itself (p99 4 ms) under 20 ms."""
LAST_TRIES: Final = 3
"""How often a commit is tried again when the collector stops, before its records are given up."""
MAX_PENDING_RECORDS: Final = 500_000
"""Records held while the disk refuses: up to 300 MB. Mark prices give way first, closed candles last."""
STAMPS_APART_MS: Final = 100
"""A stamp less than this beyond the last one that the clock has taken in says nothing new of the time."""
REJECTED_FRAMES_PER_COMMIT: Final = 200
"""Rejected frames kept of each commit's worth; a flood of garbage is counted, not stored whole."""


class Intake:
    """Takes frames in on the event loop and commits their records through `writer`.

    `on_replaced` is called when the journal had to be replaced by a fresh one, to add what that must
    hold from the start. `retry_after_s` are wall seconds.
    """

    def __init__(
        self,
        writer: JournalWriter,
        decoder: FrameDecoder,
        counters: CollectorCounters,
        clock: ExchangeClock,
        funding_rate_every_ms: int,
        on_replaced: Callable[[], None],
        retry_after_s: float = 1.0,
    ) -> None:
        self.freshness = Freshness()
        self.received: dict[Key, set[int]] = {}
        """The open times (ms) of closed candles that have come and are not committed yet, by series."""
        self.next_funding_ms: dict[str, int] = {}
        """The next settlement of each pair as its frames last had it; 0 if none is scheduled."""
        self.announced_ms: dict[str, int] = {}
        """When that was: frames that schedule none announce nothing."""
        self.refused_stamps = Lately()
        """When a frame was refused last because its stamp is to come."""
        self.trouble = Trouble(
            log, "journal cannot be written", "journal writes again", logging.ERROR
        )
        self._writer = writer
        self._decoder = decoder
        self._counters = counters
        self._clock = clock
        self._funding_every_ms = funding_rate_every_ms
        self._on_replaced = on_replaced
        self._retry_after_s = retry_after_s
        self._damaged = False
        self._pending = Batch(funding_rate_every_ms)
        self._seen = Seen()
        self._not_live: set[tuple[str, str, int]] = set()
        self._known_until_ms = 0
        self._boot = boot_place()
        self._stamped_ms = -EVERY_MS
        self._urgent = asyncio.Event()
        self._ended = False

    @property
    def pending(self) -> int:
        """How many records wait for a commit."""
        return len(self._pending)

    def on_frame(self, frame: bytes) -> None:
        """Take in one frame. Never raises for what is in it."""
        counters = self._counters
        counters.frames += 1
        pending, seen = self._pending, self._seen
        for item in self._decoder.decode(frame):
            if isinstance(item, Candle):
                if self._is_ahead(item.event_time_ms, frame):
                    continue
                pending.add(item)
                if item.closed:
                    counters.records["candle"] += 1
                    seen.closed.append((item.pair, item.timeframe, item.open_time_ms))
                    self._note_received(item)
                    self._urgent.set()
                else:
                    counters.records["forming"] += 1
                    seen.forming[item.pair, item.timeframe] = item.open_time_ms
            elif isinstance(item, MarkPrice):
                if self._is_ahead(item.event_time_ms, frame):
                    continue
                pending.add(item)
                seen.marks.add(item.pair)
                counters.records["mark_price"] += 1
            elif isinstance(item, FundingRate):
                if self._is_ahead(item.event_time_ms, frame):
                    continue
                pending.add(item)
                self.next_funding_ms[item.pair] = item.next_funding_time_ms
                self.announced_ms[item.pair] = item.event_time_ms
                counters.records["funding_rate"] += 1
            elif isinstance(item, Reject):
                self._on_reject(item, frame)
            else:
                self._on_answer(item)

    def take_seen(self) -> Seen:
        """What has come since this was asked last."""
        seen, self._seen = self._seen, Seen()
        # Should the exchange set its clock back, its stamps are new from now on.
        self._known_until_ms = 0
        return seen

    def add(self, record: Record) -> None:
        """Take in a record that comes from elsewhere than a frame (a gap, a candle by REST)."""
        self._pending.add(record)
        if isinstance(record, Candle) and record.closed:
            self._counters.records["candle_fetched"] += 1
            self._seen.fetched.append(record)
            self._note_received(record)
            self._not_live.add((record.pair, record.timeframe, record.open_time_ms))
            self._urgent.set()
        elif isinstance(record, FundingSettled):
            self._counters.records["funding_settled"] += 1

    def expect(self, key: Key, due: Due) -> None:
        """Have it stored that candles of a series are due, and have not come."""
        self._pending.expect(key, due)

    def forget_due(self, pairs: Container[str]) -> None:
        """Have nothing stored as due of these pairs but what is found once more: their ends are known now."""
        self._pending.forget_due(pairs)

    def answered_without(self, key: Key, where: TimeRange) -> None:
        """Have it stored that the exchange has just answered without candles of a series."""
        self._pending.absent.append((key, where, self._clock.certain_ms()))

    def on_damage(self, error: JournalError) -> None:
        """Have the journal replaced before the next commit: its file was found damaged on the disk."""
        if not self._damaged:
            log.error("journal cannot be read any more, starting anew error=%r", str(error))
        self._damaged = True
        self._urgent.set()

    def end(self) -> None:
        """Say that nothing more comes: `run` commits what is there and returns."""
        self._ended = True
        self._urgent.set()

    async def run(self) -> None:
        """Commit until `end` was called and everything is stored, or cannot be stored any more."""
        last_tries = LAST_TRIES
        while True:
            await self._until_due()
            ended = self._ended
            if len(self._pending) or (self._damaged and not ended):
                batch, self._pending = self._pending, Batch(self._funding_every_ms)
                if not await self._commit(batch):
                    if ended and last_tries == 0:
                        log.error("stopping with records unsaved records=%d", len(self._pending))
                        return
                    last_tries -= ended
                    await asyncio.sleep(self._retry_after_s)
            if ended and not len(self._pending):
                return

    async def _until_due(self) -> None:
        if not self._ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(COMMIT_EVERY_S):
                    await self._urgent.wait()
                    await asyncio.sleep(CLOSED_COMMIT_AFTER_S)
        self._urgent.clear()

    async def _commit(self, batch: Batch) -> bool:
        started_s = time.monotonic()
        batch.stamp = self._stamp()
        try:
            if self._damaged:
                await self._writer.replace()
                self._damaged = False
                self._on_replaced()
            changed = await self._writer.call(lambda journal: journal.write(batch))
        except JournalError as error:
            self._damaged |= isinstance(error, JournalWriteError) and error.damaged
            self._keep(batch, error)
            return False
        counters = self._counters
        counters.commits += 1
        counters.commit_s += time.monotonic() - started_s
        counters.rows_changed += changed
        self.trouble.end()
        self.freshness.note(batch)
        now_ms = self._clock.now_ms()
        not_live = self._not_live
        for candle in batch.candles:
            self._forget_received(candle)
            key = (candle.pair, candle.timeframe, candle.open_time_ms)
            if key in not_live:
                not_live.discard(key)
            else:
                counters.close_lag.add(max(0, now_ms - candle.close_time_ms))
        return True

    def _stamp(self) -> Stamp | None:
        """What time it is, once a second while that is certain, and only where time passes as on the host."""
        boot_ms = round(boottime_s() * 1000.0)
        exchange_ms = self._clock.certain_ms()
        if not exchange_ms or not self._boot or self._clock.speed != 1.0:
            return None
        if boot_ms - self._stamped_ms < EVERY_MS:
            return None
        self._stamped_ms = boot_ms
        return Stamp(exchange_ms, self._boot, boot_ms)

    def _is_ahead(self, event_time_ms: int, frame: bytes) -> bool:
        """Refuse what is stamped far ahead: the newest row is what readers get and retention counts from."""
        if event_time_ms <= self._known_until_ms:
            return False
        if self._clock.on_stamp(event_time_ms):
            self._known_until_ms = event_time_ms + STAMPS_APART_MS
            return False
        reject = Reject("bad_time", f"E={event_time_ms} is to come")
        self.refused_stamps.met(reject.detail)
        self._on_reject(reject, frame)
        return True

    def _keep(self, batch: Batch, error: JournalError) -> None:
        self._counters.commit_failures += 1
        self.trouble.met(error)
        batch.merge(self._pending)
        self._pending = batch
        given_up = batch.shrink_to(MAX_PENDING_RECORDS)
        for kind, count in given_up.items():
            self._counters.records_given_up[kind] += count
        if "candle" in given_up:
            # What was given up is due again.
            self.received.clear()
            for candle in batch.candles:
                self._note_received(candle)

    def _note_received(self, candle: Candle) -> None:
        self.received.setdefault((candle.pair, candle.timeframe), set()).add(candle.open_time_ms)

    def _forget_received(self, candle: Candle) -> None:
        opens = self.received.get((candle.pair, candle.timeframe))
        if opens is not None:
            opens.discard(candle.open_time_ms)
            if not opens:
                del self.received[candle.pair, candle.timeframe]

    def _on_reject(self, reject: Reject, frame: bytes) -> None:
        self._counters.rejects[reject.reason] += 1
        if not reject.ignored and len(self._pending.rejected_frames) < REJECTED_FRAMES_PER_COMMIT:
            reason = f"{reject.reason}: {reject.detail}"
            self._pending.add(RejectedFrame(self._clock.now_ms(), reason, frame))

    def _on_answer(self, answer: Control) -> None:
        self._counters.answers += 1
        if answer.error is not None:
            self._counters.refused_requests += 1
            log.warning(
                "exchange refused a request id=%s error=%r", answer.request_id, answer.error
            )
