"""The service of the bots' records: wires pollers, books, shipping and the status port together.

One TaskGroup holds every task, so that a dead one ends the process instead of going unnoticed. Without
InfluxDB the books are the store.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from functools import partial
from typing import Final, NamedTuple

import aiohttp

from marketfeed import __version__
from marketfeed.bots.books import Books
from marketfeed.bots.books_thread import BooksThread
from marketfeed.bots.bot_reader import BotReader
from marketfeed.bots.buckets import influx_of, measurements_by_bucket, require_fleet
from marketfeed.bots.foreign import Foreign
from marketfeed.bots.gone import GonePoints
from marketfeed.bots.ledger_feeders import LedgerFeeders
from marketfeed.bots.metrics import BotsExposition
from marketfeed.bots.outbox import BooksOutbox
from marketfeed.bots.poll import Poller, PollPace
from marketfeed.bots.reasons import NAMED, Kind, Reason
from marketfeed.bots.status_report import BotReport, BotsReport
from marketfeed.counters import cpu_s, rss_bytes
from marketfeed.influxdb.pace import DEFAULT_PACE, Pace
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.service.status_port import StatusServer
from marketfeed.service.systemd import SystemdNotifier
from marketfeed.settings.model import Settings
from marketfeed.storage.damage import aside_advice

log = logging.getLogger(__name__)

SHIPPING_TROUBLE_S: Final = 60.0
"""For so long shipping may fail before `/health` reports it: the books keep everything meanwhile."""
CLOCKS_APART_MS: Final = 60_000
STUCK_S: Final = 600.0
"""A look that has not turned for so long hangs: every request has a time-out of 60 s at the most."""
COUNT_EVERY_S: Final = 5.0


class Target(NamedTuple):
    """A bucket, and who ships to it."""

    bucket: str
    shipper: Shipper
    gone: GonePoints
    foreign: Foreign


class BotsService:
    """One run of the bots' records, from settings to a clean stop.

    Raises SettingsError when there is no bot.
    """

    def __init__(
        self, settings: Settings, pace: PollPace | None = None, shipping: Pace = DEFAULT_PACE
    ) -> None:
        require_fleet(settings.bots)
        self._settings = settings
        self._pace = pace or PollPace(every_s=settings.bots.poll.s)
        self._shipping = shipping
        self._books = BooksThread(settings.bots.books.path)
        self._pollers: dict[str, Poller] = {}
        self._targets: list[Target] = []
        self._counts: dict[tuple[str, str], int] = {}
        self._gone = 0
        self._started_s = time.time()
        self.status_url = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Record until `stop` is set. Raises JournalError and its children, and whatever kills a task."""
        exposition = BotsExposition(self.report)
        async with (
            self._books,
            aiohttp.ClientSession() as to_bots,
            aiohttp.ClientSession() as to_influx,
            StatusServer(self._settings.bots.status, self.report, exposition) as port,
            SystemdNotifier(self._prove_alive, self.headline, stop),
        ):
            self.status_url = port.url
            feeders = LedgerFeeders(self._settings.aggregator.ledger.path)
            for name, bot in self._settings.bots.fleet.items():
                reader = BotReader(bot, to_bots)
                given = (_now_ms, self._pace, feeders.find)
                self._pollers[name] = Poller(name, reader, self._books, *given)
            if self._settings.influxdb.url is not None:
                self._targets = self._make_targets(to_influx)
            await self._serve(stop)
        log.info("stopped recorded=%d", sum(one.recorded for one in self._pollers.values()))

    def _make_targets(self, session: aiohttp.ClientSession) -> list[Target]:
        found = []
        for bucket, measurements in measurements_by_bucket(self._settings.bots.fleet).items():
            influx = influx_of(self._settings.influxdb, bucket)
            shipper = Shipper(
                self._books,
                InfluxWriter(influx, session),
                self._shipping,
                open_outbox=partial(BooksOutbox, measurements),
            )
            gone = GonePoints(influx, measurements, self._books, shipper, session)
            found.append(Target(bucket, shipper, gone, Foreign(influx, measurements, session)))
        return found

    async def _serve(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            ending = [
                group.create_task(poller.run(), name=f"poll {name}")
                for name, poller in self._pollers.items()
            ]
            for target in self._targets:
                group.create_task(target.shipper.run(), name=f"ship {target.bucket}")
                ending.append(group.create_task(target.gone.run(), name=f"gone {target.bucket}"))
                ending.append(
                    group.create_task(target.foreign.watch(), name=f"foreign {target.bucket}")
                )
            ending.append(group.create_task(self._count(), name="count"))
            await stop.wait()
            log.info("stopping")
            for task in ending:
                task.cancel()
            for target in self._targets:
                target.shipper.end()

    async def _count(self) -> None:
        """Keep what reports show of the books. Raises JournalError when they cannot be read."""
        while True:
            self._counts, self._gone = await self._books.call(
                lambda books: (books.counts(), books.count_gone_points())
            )
            await self._books.look_beside()
            await asyncio.sleep(COUNT_EVERY_S)

    # --- its report -----------------------------------------------------------------------------------

    async def _prove_alive(self) -> str:
        """Commit a heartbeat; name the bot whose looks hang. Raises JournalError."""
        await self._books.call(Books.beat)
        now_s = time.monotonic()
        hung = [
            name
            for name, poller in self._pollers.items()
            if now_s - poller.turned_s > STUCK_S + self._pace.every_s
        ]
        return f"poller of {hung[0]}" if hung else ""

    def headline(self) -> str:
        """How it fares, in a line for `systemctl status`."""
        reasons = self.reasons()
        state = f"not well: {'; '.join(reasons[:2])}" if reasons else "well"
        more = f" (and {len(reasons) - 2} more, see /health)" if len(reasons) > 2 else ""
        return f"{len(self._pollers)} bots, {sum(self._counts.values())} trades, {state}{more}"

    def reasons(self) -> list[str]:
        """Why it is not well, each with its end; nothing: it is."""
        return [str(reason) for reason in self._reasons()]

    def _reasons(self) -> Iterator[Reason]:
        if beside := self._books.beside:
            yield Kind.SET_ASIDE.reason(more=aside_advice(beside))
        if not self._pollers:
            yield Kind.STARTING.reason()
        for name, poller in self._pollers.items():
            yield from _reasons_of(name, poller)
        for target in self._targets:
            yield from _reasons_of_bucket(target)

    def report(self) -> BotsReport:
        """All that `/status` and `/metrics` show."""
        reasons = self.reasons()
        return BotsReport(
            version=__version__,
            healthy=not reasons,
            reasons=reasons,
            uptime_s=time.time() - self._started_s,
            bots={name: self._report_of(name, one) for name, one in self._pollers.items()},
            shipping={target.bucket: target.shipper.report() for target in self._targets},
            gone_points=self._gone if self._targets else 0,
            erased=sum(target.gone.erased for target in self._targets),
            rss_bytes=rss_bytes(),
            cpu_s=cpu_s(),
        )

    def _report_of(self, name: str, poller: Poller) -> BotReport:
        return BotReport(
            trouble=poller.trouble.why,
            total=poller.total,
            recorded={origin: n for (bot, origin), n in self._counts.items() if bot == name},
            lacking=poller.lacking,
            refused=poller.refused | poller.refused_exits,
            struck=poller.struck,
            databases=poller.databases,
            looks=poller.looks,
            behind_ms=poller.behind_ms,
            no_stop_on_exchange=poller.no_stop_on_exchange,
        )


def _reasons_of(name: str, poller: Poller) -> Iterator[Reason]:
    if poller.unstored:
        yield Kind.UNSTORED.reason(BOT=name, more=poller.unstored.why)
    if poller.trouble:
        yield Kind.UNREACHABLE.reason(BOT=name, more=poller.trouble.why)
    if poller.lacking:
        yield Kind.LACKING.reason(BOT=name, N=poller.lacking)
    if refused := poller.refused | poller.refused_exits:
        named = [f"{what}: {why}" for what, why in list(refused.items())[:NAMED]]
        yield Kind.REFUSED.reason(BOT=name, N=len(refused), more="; ".join(named))
    if abs(poller.behind_ms) > CLOCKS_APART_MS:
        way = "behind" if poller.behind_ms > 0 else "ahead of"
        yield Kind.CLOCK.reason(BOT=name, N=f"{abs(poller.behind_ms) / 1000:.0f}", BACK=way)
    if poller.no_stop_on_exchange:
        yield Kind.NO_STOP.reason(BOT=name)


def _reasons_of_bucket(target: Target) -> Iterator[Reason]:
    shipping = target.shipper.report()
    if shipping.trouble_for_s > SHIPPING_TROUBLE_S:
        yield Kind.SHIPPING.reason(
            BUCKET=target.bucket, STATE=shipping.state, more=shipping.trouble
        )
    if shipping.refused:
        yield Kind.NOT_TAKEN.reason(
            BUCKET=target.bucket, N=shipping.refused, more=target.shipper.refusals.why
        )
    if target.gone.trouble.for_s > SHIPPING_TROUBLE_S:
        yield Kind.NOT_ERASED.reason(BUCKET=target.bucket, more=target.gone.trouble.why)
    for bot, words in target.foreign.still_writing().items():
        yield Kind.FOREIGN.reason(BOT=bot, BUCKET=target.bucket, more=words)


def _now_ms() -> int:
    """Time of this host: bots' trades are held against it."""
    return time.time_ns() // 1_000_000
