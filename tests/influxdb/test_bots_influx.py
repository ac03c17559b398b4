"""Bots' trades in a real InfluxDB: shipped, corrected, struck; foreign points named and imported."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
from influxd import Influxd

from marketfeed.bots.importing import import_foreign
from marketfeed.bots.poll import PollPace
from marketfeed.bots.service import BotsService
from marketfeed.bots.verify import verify
from marketfeed.commands.check_bots import check_bots, setup_bots
from marketfeed.errors import JournalError
from marketfeed.influxdb.pace import Pace
from marketfeed.settings.model import Settings
from tests.bots.fleet import RecordedBot, settings_for, trade
from tests.waiting import until

QUICK = PollPace(every_s=0.05, page_s=0.0, again_s=0.0, exits_s=0.0)
SHIPPING = Pace(turn_s=0.05, backoff_first_s=0.05, backoff_cap_s=0.2, recheck_after_s=0.2)


def settings_of(
    home: Path, influxd: Influxd, database: str, bot: RecordedBot, **of_each: Any
) -> Settings:
    influx = {"url": influxd.url, "api": "v1"}
    return settings_for(home, {"BOT1": bot.url}, influx, bucket=database, **of_each)


async def is_equal(settings: Settings) -> bool:
    async with aiohttp.ClientSession() as session:
        try:
            (found,) = await verify(settings, session, 0.0)
        except JournalError:
            # Before the first commit there are no books.
            return False
    return found.equal


async def until_equal(settings: Settings) -> None:
    async with asyncio.timeout(120.0):
        while not await is_equal(settings):
            await asyncio.sleep(0.05)


async def recorded(settings: Settings, stop: asyncio.Event) -> None:
    service = BotsService(settings, QUICK, SHIPPING)
    for_gone = service._make_targets

    def quick(session: aiohttp.ClientSession) -> Any:
        found = for_gone(session)
        for target in found:
            target.gone._every_s = 0.05
        return found

    service._make_targets = quick  # type: ignore[method-assign]
    await service.run(stop)


def test_bot_books_and_influxdb_are_equal_whatever_happens(
    tmp_path: Path, influxd: Influxd, database: str
) -> None:
    async def scenario() -> None:
        # Three that close at once, of one pair and side.
        alike = {"pair": "BTC/USDT:USDT", "is_short": False}
        at = trade(30)["close_timestamp"]
        bot = RecordedBot([trade(n) for n in range(1, 30)])
        bot.trades += [trade(n, at, **alike, close_profit_pct=None) for n in (31, 33, 35)]
        bot.custom[3] = {"stop": -0.0148, "target": 0.01, "source": "bin"}
        async with bot.serving():
            settings = settings_of(tmp_path, influxd, database, bot)
            stop = asyncio.Event()
            task = asyncio.create_task(recorded(settings, stop))
            await until(lambda: (tmp_path / "books.db").exists() or task.done(), "the books")
            await until_equal(settings)
            influxd.stop()
            bot.trades = [row for row in bot.trades if row["trade_id"] not in (2, 31)]
            bot.trades.append(trade(40))
            bot.trades[0] |= {"close_profit_abs": 9.0, "funding_fees": None}
            await until(lambda: bot.pages > 10, "looks without InfluxDB")
            influxd.start()
            await until_equal(settings)
            stop.set()
            await task
        found = influxd.query('SELECT * FROM "closed_trades"', database)
        assert sum(len(series["values"]) for series in found) == 31

    asyncio.run(scenario())


def foreign(row: dict[str, Any], **changes: Any) -> str:
    """A point as the old strategies wrote them: no tag `bot`, profit_pct always 0."""
    values = {
        "close_profit": row["close_profit"],
        "profit_pct": 0.0,
        "leverage": row["leverage"],
        "open_rate": row["open_rate"],
        "close_rate": row["close_rate"],
    } | changes
    time_ms = values.pop("time", row["close_timestamp"] + 2_000)
    fields = ",".join(f"{name}={value}" for name, value in values.items())
    side = "short" if row["is_short"] else "long"
    return f"closed_trades,pair={row['pair']},side={side} {fields} {time_ms}"


def test_foreign_points_are_named_imported_and_counted_apart(
    tmp_path: Path, influxd: Influxd, database: str
) -> None:
    lines = [foreign(trade(n)) for n in range(1, 11)]
    # Without a partner, in the time of UTC+7, and in percent.
    lines += [foreign(trade(n)) for n in range(101, 105)]
    lines += [foreign(trade(11), time=trade(11)["close_timestamp"] + 7 * 3_600_000)]
    lines += [foreign(trade(110), close_profit=200.0 * trade(110)["close_profit"])]
    influxd.write(database, lines)

    async def scenario() -> None:
        bot = RecordedBot([trade(n) for n in range(1, 12)])
        async with bot.serving(), aiohttp.ClientSession() as session:
            settings = settings_of(tmp_path, influxd, database, bot)
            found = await check_bots(settings, session)
            words = " ".join(it.text for it in found if it.verdict == "warning")
            assert "16 foreign points" in words
            stop = asyncio.Event()
            task = asyncio.create_task(recorded(settings, stop))
            await until(lambda: (tmp_path / "books.db").exists() or task.done(), "the books")
            await until_equal(settings)
            stop.set()
            await task
            for new in (4, 0):
                (done,) = await import_foreign(settings, session)
                assert (done.points, done.partners, done.other_zone) == (16, 10, 1)
                assert (done.trades, done.new) == (4, new)
                assert sum(done.refused.values()) == 1
                assert "close_profit" in next(iter(done.refused))
            stop = asyncio.Event()
            task = asyncio.create_task(recorded(settings, stop))
            await until_equal(settings)
            (compared,) = await verify(settings, session, 0.0)
            assert (compared.in_bot, compared.in_books, compared.imported) == (11, 11, 4)
            assert compared.in_influxdb == 15
            stop.set()
            await task

    asyncio.run(scenario())


def test_an_integer_field_is_named_with_the_way_out(
    tmp_path: Path, influxd: Influxd, database: str
) -> None:
    influxd.write(database, ["closed_trades,pair=A/USDT:USDT leverage=3i 1764547200000"])

    async def scenario() -> None:
        bot = RecordedBot([trade(n) for n in range(1, 4)])
        async with bot.serving(), aiohttp.ClientSession() as session:
            settings = settings_of(tmp_path, influxd, database, bot)
            for found in (
                await check_bots(settings, session),
                await setup_bots(settings, session),
            ):
                (bad,) = [it.text for it in found if it.verdict == "bad"]
                assert 'field "leverage" of closed_trades is integer' in bad
                assert bad.endswith("bots.fleet.BOT1.measurement: closed_trades_v2")
            settings = settings_of(tmp_path, influxd, database, bot, measurement="closed_trades_v2")
            stop = asyncio.Event()
            task = asyncio.create_task(recorded(settings, stop))
            await until(lambda: (tmp_path / "books.db").exists() or task.done(), "the books")
            await until_equal(settings)
            stop.set()
            await task

    asyncio.run(scenario())
