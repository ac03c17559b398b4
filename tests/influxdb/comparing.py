"""A collector's shipper and its comparison at work on a journal, and servers that lose what they took."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
from aiohttp import web
from filled import QUICK
from influxd import Influxd
from shipped import shipping

from marketfeed.influxdb.admin import InfluxAdmin
from marketfeed.influxdb.both_sides import BothSides
from marketfeed.influxdb.bucket_numbers import BucketNumbers
from marketfeed.influxdb.pace import Pace
from marketfeed.influxdb.reconciler import ComparePace, Reconciler
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import target_of
from marketfeed.journal.batch import Batch
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, MarkPrice, Record
from marketfeed.schema import TIMEFRAMES_MS
from marketfeed.settings.model import InfluxSettings

SHIP = msgspec.structs.replace(QUICK, turn_s=0.05)
COMPARE = ComparePace(
    look_every_s=0.3,
    again_after_s=0.1,
    share=1.0,
    round_every_s=0.5,
    small_every_s=0.5,
    off_s=0.2,
    wait_s=0.05,
)


class Comparing(NamedTuple):
    """One collector's parts."""

    writer: JournalWriter
    shipper: Shipper
    reconciler: Reconciler

    async def write(self, records: Iterable[Record]) -> None:
        """Commit records at once."""
        batch = Batch()
        batch.extend(records)
        await self.writer.call(lambda journal: journal.write(batch))

    @property
    def is_shipped(self) -> bool:
        """Whether all is acknowledged, and nothing waits to be sent again."""
        done = self.shipper.shipped_below() == self.writer.next_seq
        return done and not self.shipper.mends and self.shipper.held.book.again is None

    def looked(self) -> Callable[[], bool]:
        """Whether everything has been compared twice, from now on."""
        before = self.reconciler.report()

        def have() -> bool:
            now = self.reconciler.report()
            return min(now.rounds - before.rounds, now.looks - before.looks) >= 2

        return have


@contextlib.asynccontextmanager
async def comparing(
    path: Path,
    settings: Mapping[str, Any],
    now_ms: Callable[[], int],
    ship: Pace = SHIP,
    compare: ComparePace = COMPARE,
) -> AsyncIterator[Comparing]:
    """A journal, its shipper, and the comparison with the bucket."""
    influx = InfluxSettings.model_validate(dict(settings))
    async with (
        aiohttp.ClientSession() as session,
        shipping(path, settings, ship, now_ms, holds=True) as (writer, shipper),
    ):
        target = target_of(influx)
        bucket = BucketNumbers(InfluxAdmin(influx, session), influx.bucket)
        sides = BothSides(writer, shipper, bucket, target, now_ms)
        reconciler = Reconciler(writer, shipper, sides, target, compare)
        task = asyncio.create_task(reconciler.run())
        try:
            yield Comparing(writer, shipper, reconciler)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


class Losing:
    """A proxy of a 1.x server: while `loses`, it answers writes with 204 and forgets them.

    With `delay_s`, the next write is passed on so late, and answered by nothing before.
    """

    def __init__(self, influxd: Influxd) -> None:
        self._influxd = influxd
        self.loses = False
        self.lost = 0
        self.delay_s = 0.0
        self._late: list[asyncio.Task[object]] = []
        self.url = ""

    async def pass_on(self, request: web.Request) -> web.Response:
        """Answer a request."""
        body = await request.read()
        if request.path == "/write" and self.loses:
            self.lost += body.count(b"\n") + 1
            return web.Response(status=204)
        if request.path == "/write" and self.delay_s:
            delay_s, self.delay_s = self.delay_s, 0.0
            # Whoever has sent it hangs up; what a server has in its buffers it carries out all the same.
            late = asyncio.create_task(self._later(delay_s, request, body))
            self._late.append(late)
            return await asyncio.shield(late)
        return await self._pass_on(request, body)

    async def _later(self, delay_s: float, request: web.Request, body: bytes) -> web.Response:
        await asyncio.sleep(delay_s)
        return await self._pass_on(request, body)

    async def _pass_on(self, request: web.Request, body: bytes) -> web.Response:
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                f"{self._influxd.url}{request.path_qs}",
                data=body,
                headers={k: v for k, v in request.headers.items() if k != "Host"},
            ) as answer,
        ):
            kept = ("Content-Type", "Content-Encoding", "X-Influxdb-Version")
            headers = {name: answer.headers[name] for name in kept if name in answer.headers}
            return web.Response(status=answer.status, body=await answer.read(), headers=headers)


@contextlib.asynccontextmanager
async def losing(influxd: Influxd) -> AsyncIterator[Losing]:
    """Such a server at work."""
    server = Losing(influxd)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", server.pass_on)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    server.url = f"http://{host}:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()


def candles(
    pairs: Iterable[str], start_ms: int, count: int, timeframe: str = "1m", trades: int = 5
) -> Iterator[Candle]:
    """So many candles of each pair."""
    length_ms = TIMEFRAMES_MS[timeframe]
    for pair in pairs:
        for at_ms in range(start_ms, start_ms + count * length_ms, length_ms):
            yield Candle(
                pair,
                timeframe,
                at_ms,
                *(1.5, 2.5, 1.0, 2.0, 3.0, 4.0, 1.0),
                trades,
                True,
                at_ms + length_ms,
            )


def marks(
    pairs: Iterable[str], start_ms: int, count: int, every_ms: int = 1_000, index: float = 8.0
) -> Iterator[MarkPrice]:
    """So many mark prices of each pair, whose sum depends on the order in which they are added."""
    for pair in pairs:
        for number in range(count):
            yield MarkPrice(pair, start_ms + number * every_ms, 7.1 + number * 0.013, index)
