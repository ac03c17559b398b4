"""The aggregator: wires API, inbox, ledger, forwarders and shipping together, and ends them in order.

One TaskGroup holds every task, so that a dead one ends the process instead of going unnoticed. A stop goes
with the data: the API first, then the last commit, then the requests to the bots that are under way;
what has not been sent stays in the ledger.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

import aiohttp

from marketfeed import __version__
from marketfeed.aggregator.api import Api
from marketfeed.aggregator.auth import Doorkeeper
from marketfeed.aggregator.ballots import OTHER
from marketfeed.aggregator.forwarder import Forwarder, Terms
from marketfeed.aggregator.freqtrade_bot import Bot
from marketfeed.aggregator.from_settings import require_complete, rules_of, spans_of, without_bot
from marketfeed.aggregator.hearing import forbids, hear, wake
from marketfeed.aggregator.inbox import Desk
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_schema import KIND
from marketfeed.aggregator.ledger_tables import META, BotName, Forward
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.meta import Meta
from marketfeed.aggregator.metrics import AggregatorCounters, AggregatorExposition
from marketfeed.aggregator.outbox import LedgerOutbox
from marketfeed.aggregator.page import AggregatorPage
from marketfeed.aggregator.reasons import Kind, Reason
from marketfeed.aggregator.refused_notes import RefusedNotes
from marketfeed.aggregator.sending import Hooks
from marketfeed.aggregator.signals import SIDES, Defaults, Side
from marketfeed.aggregator.silence import Silence
from marketfeed.aggregator.start import Start
from marketfeed.aggregator.status_report import AggregatorReport
from marketfeed.aggregator.timing import DEFAULT_PACE, Pace
from marketfeed.aggregator.whitelists import Whitelists
from marketfeed.aggregator.without_bot import Orphans
from marketfeed.clock import HostClock
from marketfeed.counters import cpu_s, rss_bytes
from marketfeed.errors import JournalError, JournalWriteError
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.service.status_port import StatusServer
from marketfeed.service.systemd import SystemdNotifier
from marketfeed.settings.model import Settings
from marketfeed.storage.damage import aside_advice
from marketfeed.storage.versions import about_version

log = logging.getLogger(__name__)

RETENTION_EVERY_S: Final = 600.0
LOOK_BESIDE_EVERY_S: Final = 3.0
SHIPPING_TROUBLE_S: Final = 60.0
"""For so long shipping may fail before `/health` reports it: the ledger keeps everything meanwhile."""
CLOCK_TROUBLE_S: Final = 2.0
FORWARDER_STUCK_S: Final = 300.0
"""Monotonic seconds: a look takes three requests of 60 s at the most, and a pause is far shorter."""


class _AggregatorParts(NamedTuple):
    """What runs."""

    desk: Desk
    forwarders: dict[Side, Forwarder]
    meta: Meta | None
    start: Start
    doorkeeper: Doorkeeper
    shipper: Shipper | None


class Aggregator:
    """One run of the aggregator, from settings to a clean stop.

    Raises SettingsError when the settings lack something that it needs.
    """

    def __init__(self, settings: Settings, pace: Pace = DEFAULT_PACE) -> None:
        require_complete(settings.aggregator, pace.searched_s)
        self._settings = settings
        self._pace = pace
        self._rules = rules_of(settings.aggregator)
        # Never set by a server: the host's time at the start, carried on by the monotonic clock, so that
        # a jump of the wall clock neither closes nor extends a window.
        self._clock = HostClock()
        feeders = settings.aggregator.feeders
        self._silence = Silence((*feeders.long, *feeders.short), self._clock.now_ms())
        self._whitelists = Whitelists(settings.aggregator.outside_whitelist)
        self._counters = AggregatorCounters(self._silence.heard)
        self._ledger = LedgerThread(settings.aggregator.ledger.path, self._clock.base())
        accounts = (account.username for account in settings.aggregator.accounts)
        self._refused = RefusedNotes(self._ledger, self._clock.now_ms, accounts)
        self._orphans = Orphans(without_bot(self._rules), self._counters, pace)
        self._parts: _AggregatorParts | None = None
        self._listening = asyncio.Event()
        self._turns_proven = -1
        self.url = ""
        self.status_url = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises JournalError and its children, and whatever kills a task."""
        settings = self._settings.aggregator
        exposition = AggregatorExposition(self._counters, self.report)
        page = AggregatorPage(
            self.report,
            self._ledger.path,
            lambda: self._ledger.next_seq + self._refused.stored,
        )
        doorkeeper = Doorkeeper(settings.accounts, self._clock.elapsed_s)
        # Fresh connections only: a POST must not meet one that the bot has just closed.
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            self._ledger,
            aiohttp.ClientSession(connector=connector) as to_bots,
            aiohttp.ClientSession() as to_influx,
            StatusServer(settings.status, self.report, exposition, page) as port,
            SystemdNotifier(self._prove_alive, self.headline, stop),
        ):
            self.status_url = port.url
            forwarders: dict[Side, Forwarder] = {}
            desk = Desk(
                self._rules,
                self._ledger,
                self._clock.now_ms,
                self._counters,
                lambda decision: wake(forwarders, meta, decision),
                self._whitelists,
            )
            bots = self._bots(to_bots)
            meta = self._meta(to_bots, desk)
            heard = partial(hear, desk, forwarders)
            start = Start(
                {side: bot for side, bot in bots.items()},  # noqa: C416 - of a wider type
                self._ledger,
                desk,
                self._clock.now_ms,
                spans_of(self._settings.aggregator),
                self._pace,
                self._counters,
                heard,
            )
            forwarders |= self._forwarders(bots, desk, start, heard)
            shipper = None
            if self._settings.influxdb.url is not None:
                influx = InfluxWriter(self._settings.influxdb, to_influx)
                shipper = Shipper(self._ledger, influx, open_outbox=LedgerOutbox)
            self._parts = _AggregatorParts(desk, forwarders, meta, start, doorkeeper, shipper)
            try:
                await self._serve(self._parts, stop)
            finally:
                doorkeeper.close()
        log.info("stopped commits=%d", self._counters.commits)

    async def _serve(self, parts: _AggregatorParts, stop: asyncio.Event) -> None:
        settings = self._settings.aggregator
        desk, forwarders, shipper = parts.desk, parts.forwarders, parts.shipper
        now_ms, heard = self._clock.now_ms, partial(hear, desk, forwarders)
        ended = await self._orphans.end(self._ledger, now_ms, heard)
        # After it: an order that nobody can ask about would hold its pair. If the disk refuses, the other
        # side's orders do not wait for it.
        await desk.open()
        parts.start.begin()
        confidence = settings.missing_confidence
        pairs = self._settings.exchange.pairs
        api = Api(
            settings.host,
            settings.port,
            desk,
            parts.doorkeeper,
            self._rules.electorate,
            Defaults(
                None if confidence == "reject" else confidence,
                None if settings.missing_feeder == "reject" else settings.missing_feeder,
            ),
            pairs if isinstance(pairs, tuple) else (),
            self._counters,
            self.reasons,
            self._refused,
        )
        async with asyncio.TaskGroup() as group:
            deciding = group.create_task(desk.run(), name="desk")
            for side, forwarder in forwarders.items():
                group.create_task(forwarder.run(), name=f"forward {side}")
            ending = [
                group.create_task(parts.start.run(side, forwarder.wake), name=f"ask {side}")
                for side, forwarder in forwarders.items()
            ]
            if not ended:
                again = self._orphans.end_at_last(self._ledger, now_ms, heard)
                ending.append(group.create_task(again, name="sides without a bot"))
            if parts.meta is not None:
                parts.meta.begin(group)
            if shipper is not None:
                group.create_task(shipper.run(), name="ship")
            ending += [
                group.create_task(self._keep_ledger(shipper), name="retention"),
                group.create_task(self._look_beside(), name="set aside"),
                group.create_task(self._stay_in_place(), name="in place"),
                group.create_task(self._silence.look_back(self._ledger), name="silent feeders"),
                group.create_task(self._refused.run(), name="refused posts"),
            ]
            try:
                async with api:
                    self.url = api.url
                    self._listening.set()
                    await stop.wait()
                    log.info("stopping")
                desk.end()
                await deciding
                await self._refused.store()
            finally:
                for forwarder in forwarders.values():
                    forwarder.end()
                if parts.meta is not None:
                    parts.meta.end()
                for task in ending:
                    task.cancel()
                if shipper is not None:
                    shipper.end()

    def _bots(self, session: aiohttp.ClientSession) -> dict[Side, Bot]:
        bots = self._settings.aggregator.bots
        return {
            side: Bot(settings, session)
            for side, settings in zip(SIDES, (bots.long, bots.short), strict=True)
            if settings.url
        }

    def _meta(self, session: aiohttp.ClientSession, desk: Desk) -> Meta | None:
        own, quote = self._settings.aggregator, self._settings.exchange.quote
        if not self._rules.copies:
            return None
        bot, clock = Bot(own.bots.meta, session), self._clock
        given = (own, quote, desk.contested, clock.now_ms, self._pace, self._counters)
        return Meta(bot, self._ledger, self._rules, *given)

    def _forwarders(
        self,
        bots: dict[Side, Bot],
        desk: Desk,
        start: Start,
        heard: Callable[[Forward], None],
    ) -> dict[Side, Forwarder]:
        settings = self._settings.aggregator
        return {
            side: Forwarder(
                side,
                bot,
                self._ledger,
                self._clock.now_ms,
                self._counters,
                Terms(
                    self._rules.expire_ms,
                    settings.unconfirmed_s,
                    bots.get(OTHER[side]) if settings.opposite_open == "skip" else None,
                    self._whitelists,
                    self._settings.exchange.quote,
                ),
                Hooks(
                    heard=heard,
                    contested=desk.contested,
                    forbids=partial(forbids, start, self._whitelists),
                    held=desk.held,
                    waits=partial(start.waits, side),
                    may_send=partial(start.may_not_send, side),
                ),
                self._pace,
            )
            for side, bot in bots.items()
        }

    async def _stay_in_place(self) -> None:
        """Raises JournalWriteError when the ledger is not where it was opened: see `InPlace`."""
        while True:
            await asyncio.sleep(self._pace.place_s)
            if words := self._ledger.gone():
                log.critical("ledger taken away while in use, ending what=%r", words)
                raise JournalWriteError(f"{KIND.name} {self._ledger.path}: {words}", damaged=True)

    async def _keep_ledger(self, shipper: Shipper | None) -> None:
        """Raises JournalWriteError when the ledger is damaged or gone: nothing may rest on it any more."""
        retain_at_s = 0.0
        while True:
            await self._ledger.call(Ledger.require_whole)
            if (now_s := time.monotonic()) >= retain_at_s:
                retain_at_s = now_s + RETENTION_EVERY_S
                await self._delete_old(shipper)
            await asyncio.sleep(self._pace.whole_s)

    async def _look_beside(self) -> None:
        """Know of damaged ledgers that were set aside, by this run or an earlier, until they are removed."""
        while True:
            await asyncio.sleep(LOOK_BESIDE_EVERY_S)
            await self._ledger.look_beside()

    async def _delete_old(self, shipper: Shipper | None) -> None:
        keep_ms = self._settings.aggregator.ledger.keep.ms
        try:
            below = None if shipper is None else shipper.shipped_below()
            delete = partial(Ledger.delete_old, keep_ms=keep_ms, below_seq=below)
            # Call by call, so that commits of new votes pass in between.
            while await self._ledger.call(delete):
                pass
        except JournalError as error:
            log.warning("retention failed, trying again later error=%r", str(error))

    # --- its report -----------------------------------------------------------------------------------

    async def _prove_alive(self) -> str:
        """Commit a heartbeat; name what has not turned since the last one. Raises JournalError.

        Returns for the first time when feeders can post.
        """
        await self._listening.wait()
        await self._ledger.call(Ledger.beat)
        if (parts := self._parts) is None:
            return ""
        stuck = "desk" if parts.desk.turns == self._turns_proven else ""
        self._turns_proven = parts.desk.turns
        parts.desk.wake()
        for side, forwarder in parts.forwarders.items():
            if time.monotonic() - forwarder.turned_s > FORWARDER_STUCK_S:
                stuck = f"forwarder of {side}"
        return stuck

    def headline(self) -> str:
        """How it fares, in a line for `systemctl status`."""
        feeders, reasons = self._settings.aggregator.feeders, self.reasons()
        state = f"not well: {'; '.join(reasons[:2])}" if reasons else "well"
        more = f" (and {len(reasons) - 2} more, see /health)" if len(reasons) > 2 else ""
        count = len(feeders.long) + len(feeders.short)
        bots = len(self._rules.bots) + self._rules.copies
        return f"{count} feeders, {bots} bots, {state}{more}"

    def reasons(self) -> list[str]:
        """Why the aggregator is not well, each with its end; nothing: it is."""
        return [str(reason) for reason in self._reasons()]

    def _reasons(self) -> Iterator[Reason]:
        if len(beside := self._ledger.beside) == 1:
            yield Kind.SET_ASIDE.reason(more=aside_advice(beside))
        elif beside:
            yield Kind.SETS_ASIDE.reason(N=len(beside), more=aside_advice(beside))
        if abs(ahead_s := self._clock.offset_ms() / 1000) > CLOCK_TROUBLE_S:
            way = "back" if ahead_s > 0 else "forward"
            yield Kind.CLOCK_SET.reason(BACK=way, N=f"{abs(ahead_s):.0f}")
        if (parts := self._parts) is None:
            yield Kind.STARTING.reason()
            return
        if parts.desk.trouble:
            yield Kind.UNSTORED.reason(more=parts.desk.trouble.why)
        for forwarder in parts.forwarders.values():
            yield from forwarder.reasons()
        yield from parts.start.reasons()
        if parts.meta is not None:
            yield from parts.meta.reasons()
        if self._orphans.trouble:
            yield Kind.ORPHANS.reason(more=self._orphans.trouble.why)
        for lost in self._lost().values():
            yield from (Kind.LOST.reason(more=words) for words in lost)
        if parts.shipper is not None:
            shipping = parts.shipper.report()
            if shipping.trouble_for_s > SHIPPING_TROUBLE_S:
                yield Kind.SHIPPING.reason(STATE=shipping.state, more=shipping.trouble)

    def warnings(self) -> list[str]:
        """What asks for a hand, though the aggregator is well: of bots, of silent feeders, of senders."""
        of_bots = [words for worker in self._workers().values() for words in worker.warnings()]
        of_feeders = self._silence.warnings(self._clock.now_ms())
        of_senders = [*self._counters.often_missing(time.monotonic()), *self._refused.warnings()]
        return of_bots + of_feeders + of_senders

    def _lost(self) -> dict[str, list[str]]:
        found = self._orphans.lost()
        for side, worker in self._workers().items():
            found[side] = list(worker.lost.values())
        return found

    def _workers(self) -> dict[BotName, Forwarder]:
        if (parts := self._parts) is None:
            return {}
        found: dict[BotName, Forwarder] = {}
        found.update((side, worker) for side, worker in parts.forwarders.items())
        if parts.meta is not None:
            found[META] = parts.meta.worker
        return found

    def report(self) -> AggregatorReport:
        """All that `/status` and `/metrics` show."""
        reasons, parts, counters = self.reasons(), self._parts, self._counters
        forwarders = self._workers()
        return AggregatorReport(
            version=__version__,
            healthy=not reasons,
            reasons=reasons,
            uptime_s=time.time() - counters.started_s,
            url=self.url,
            open_windows=0 if parts is None else parts.desk.open_windows,
            pending=0 if parts is None else parts.desk.pending,
            commits=counters.commits,
            ledger_schema=about_version(KIND, self._ledger.version),
            signals={" ".join(key): count for key, count in counters.signals.items()},
            strength_texts=dict(counters.strength_texts),
            contradictions={" ".join(key): n for key, n in counters.contradictions.items()},
            refused=dict(counters.refused),
            decisions={" ".join(key): count for key, count in counters.decisions.items()},
            forwards={" ".join(key): count for key, count in counters.forwards.items()},
            waiting={side: worker.waiting for side, worker in forwarders.items()},
            waits_for={side: worker.waits_for for side, worker in forwarders.items()},
            expired={side: dict(worker.expired.counts) for side, worker in forwarders.items()},
            unsettled={side: worker.unconfirmed for side, worker in forwarders.items()},
            lost=self._lost(),
            bot_trouble={side: worker.trouble.why for side, worker in forwarders.items()},
            limited_addresses=0 if parts is None else parts.doorkeeper.limited(),
            shipping=None if parts is None or parts.shipper is None else parts.shipper.report(),
            rss_bytes=rss_bytes(),
            cpu_s=cpu_s(),
            bots={side: worker.report() for side, worker in forwarders.items()},
            silent_s={
                feeder: ms / 1000
                for feeder, ms in self._silence.silent_ms(self._clock.now_ms()).items()
            },
            warnings=self.warnings(),
            refused_by_account=self._refused.by_account(),
        )
