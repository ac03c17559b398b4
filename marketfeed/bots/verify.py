"""Whether books, bots' databases and InfluxDB agree, trade by trade."""

import asyncio
import time
from typing import Any, Final

import aiohttp
import msgspec

from marketfeed import schema
from marketfeed.bots.books import Kept
from marketfeed.bots.books_reading import read_trades
from marketfeed.bots.books_schema import FROM_BEFORE, FROM_BOT, IMPORTED
from marketfeed.bots.bot_reader import PAGE, BotReader
from marketfeed.bots.buckets import influx_of
from marketfeed.bots.closed_trade import ClosedTrade
from marketfeed.bots.outbox import floats_of, texts_of
from marketfeed.bots.points import Point, Points
from marketfeed.bots.poll import OVERLAP
from marketfeed.bots.reading import Reading
from marketfeed.errors import MarketfeedError
from marketfeed.influxdb.admin import InfluxAdmin
from marketfeed.settings.bots import FleetBot
from marketfeed.settings.model import Settings

PAUSE_S: Final = 0.2
_OF_THE_BOT: Final = (
    *("opened_ms", "trade_id", "closed_ms", "pair", "side", "leverage", "open_rate", "close_rate"),
    *(
        "close_profit",
        "profit_abs",
        "fees",
        "funding_fees",
        "mae",
        "mfe",
        "enter_tag",
        "exit_reason",
    ),
)
"""What a bot's list says of a trade."""


class Verified(msgspec.Struct, frozen=True):
    """What was compared of one bot, and every difference in words; none: all is equal.

    `in_bot`, `in_books` and `in_influxdb` count trades: those of the bot's present database alone in the
    first two, all in the last (None: there is no InfluxDB). `before` and `imported` are in the books besides.
    """

    bot: str
    in_bot: int
    in_books: int
    in_influxdb: int | None
    before: int
    imported: int
    differences: list[str]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


async def verify(
    settings: Settings, session: aiohttp.ClientSession, pause_s: float = PAUSE_S
) -> list[Verified]:
    """Compare every bot of the fleet. Raises JournalError when there are no books."""
    return [
        await verify_bot(settings, name, bot, session, pause_s)
        for name, bot in settings.bots.fleet.items()
    ]


async def verify_bot(
    settings: Settings,
    name: str,
    bot: FleetBot,
    session: aiohttp.ClientSession,
    pause_s: float = PAUSE_S,
) -> Verified:
    """Compare one bot; what cannot be asked is a difference."""
    differences: list[str] = []
    in_bot: dict[tuple[int, int], ClosedTrade] = {}
    asked = True
    try:
        reading = await read_bot(BotReader(bot, session), pause_s)
    except MarketfeedError as error:
        asked = False
        differences.append(f"the bot could not be asked: {error}")
    else:
        in_bot = reading.trades
        differences += [f"{what} is refused: {why}" for what, why in reading.refused.items()]
        if not reading.is_consistent:
            differences.append(f"the bot lists {reading.read} trades and counts {reading.total}")
    kept, _ = await asyncio.to_thread(read_trades, settings.bots.books.path, name)
    own = {one.trade.key: one for one in kept if one.origin == FROM_BOT}
    if asked:
        differences += _against_bot(own, in_bot)
    points: list[Point] | None = None
    if settings.influxdb.url is not None:
        influx = influx_of(settings.influxdb, bot.bucket_of(name))
        try:
            source = Points(InfluxAdmin(influx, session), influx, bot.measurement)
            points = [point async for point in source.of(name)]
        except MarketfeedError as error:
            differences.append(f"InfluxDB could not be asked: {error}")
        else:
            differences += _against_influxdb(kept, points)
    return Verified(
        bot=name,
        in_bot=len(in_bot),
        in_books=len(own),
        in_influxdb=None if points is None else len(points),
        before=sum(one.origin == FROM_BEFORE for one in kept),
        imported=sum(one.origin == IMPORTED for one in kept),
        differences=differences,
    )


async def read_bot(reader: BotReader, pause_s: float = PAUSE_S) -> Reading:
    """All closed trades of a bot. Raises BotError."""
    reading, offset = Reading(), 0
    while True:
        now_ms = time.time_ns() // 1_000_000
        page = await reader.page(offset, now_ms)
        before = reading.read
        reading.take(page.rows, page.total, now_ms)
        if len(page.rows) < PAGE or (offset and reading.read == before):
            reading.whole = True
            return reading
        offset += PAGE - OVERLAP
        await asyncio.sleep(pause_s)


def _against_bot(
    own: dict[tuple[int, int], Kept], in_bot: dict[tuple[int, int], ClosedTrade]
) -> list[str]:
    found = [f"{_name(in_bot[key])} is not in the books" for key in in_bot if key not in own]
    found += [f"{_name(own[key].trade)} is not in the bot" for key in own if key not in in_bot]
    for key, kept in own.items():
        if (there := in_bot.get(key)) is None:
            continue
        other = [name for name in _OF_THE_BOT if getattr(kept.trade, name) != getattr(there, name)]
        if other:
            found.append(f"{_name(kept.trade)} differs from the bot in {', '.join(other)}")
    return found


def _against_influxdb(kept: list[Kept], points: list[Point]) -> list[str]:
    def place(point: Point) -> tuple[Any, ...]:
        return point["time"], point.get("pair"), point.get("side")

    there: dict[tuple[Any, ...], Point] = {place(point): point for point in points}
    found = []
    for one in kept:
        point = there.pop((one.point_ms, one.trade.pair, one.trade.side), None)
        if point is None:
            found.append(f"{_name(one.trade)} is not in InfluxDB")
            continue
        wanted: dict[str, Any] = {**floats_of(one.trade), **texts_of(one.trade)}
        names = (*schema.CLOSED_TRADE_FLOATS, *schema.CLOSED_TRADE_TEXTS)
        other = [name for name in names if point.get(name) != wanted.get(name)]
        if other:
            found.append(f"{_name(one.trade)} differs from InfluxDB in {', '.join(other)}")
    found += [f"InfluxDB has a point of {at} that no trade stands for" for at in there]
    return found


def _name(trade: ClosedTrade) -> str:
    return f"trade {trade.trade_id} ({trade.pair} {trade.side}, closed {trade.closed_ms})"
