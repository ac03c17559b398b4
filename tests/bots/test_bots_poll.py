"""The books agree with a bot's database: whatever closes, changes or goes there, and whatever is wrong."""

import asyncio
import math
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from marketfeed.bots.books import Books, Kept
from marketfeed.bots.books_reading import read_trades
from marketfeed.bots.books_thread import BooksThread
from marketfeed.bots.bot_reader import BotReader
from marketfeed.bots.ledger_feeders import LedgerFeeders
from marketfeed.bots.poll import Poller, PollPace
from marketfeed.bots.verify import verify
from marketfeed.settings.model import Settings
from tests.bots.fleet import START_MS, RecordedBot, settings_for, trade
from tests.waiting import until

QUICK = PollPace(every_s=0.05, page_s=0.0, whole_s=1e9, again_s=0.0, exits=1000, exits_s=0.0)
BOT = "BOT1"
Scenario = Callable[[RecordedBot, Poller, Settings], Awaitable[None]]


def run(home: Path, bot: RecordedBot, scenario: Scenario, pace: PollPace = QUICK) -> None:
    async def main() -> None:
        async with bot.serving(), aiohttp.ClientSession() as session:
            settings = settings_for(home, {BOT: bot.url})
            reader = BotReader(settings.bots.fleet[BOT], session)
            async with BooksThread(settings.bots.books.path) as books:
                feeders = LedgerFeeders(settings.aggregator.ledger.path)
                poller = Poller(
                    BOT, reader, books, lambda: time.time_ns() // 1_000_000, pace, feeders.find
                )
                await scenario(bot, poller, settings)

    asyncio.run(main())


def kept(home: Path, origin: str = "bot") -> dict[int, Kept]:
    found, _ = read_trades(home / "books.db", BOT)
    return {one.trade.trade_id: one for one in found if one.origin == origin}


async def equal(settings: Settings) -> bool:
    async with aiohttp.ClientSession() as session:
        (found,) = await verify(settings, session, 0.0)
    assert found.equal, found.differences
    return found.equal


def test_it_is_filled_to_the_first_and_kept_equal(tmp_path: Path) -> None:
    async def scenario(bot: RecordedBot, poller: Poller, settings: Settings) -> None:
        await poller.look()
        assert len(kept(tmp_path)) == 250
        assert bot.pages == 3
        bot.trades.append(trade(251, START_MS + 90 * 86_400_000))
        await poller.look()
        # Back to a day before the newest close: the first page is enough.
        assert bot.pages == 4
        assert len(kept(tmp_path)) == 251
        await equal(settings)

    # The newest page alone spans more than a day.
    days = [trade(n, START_MS + n * 3_600_000) for n in range(1, 251)]
    run(tmp_path, RecordedBot(days), scenario)


def test_late_closed_reloaded_and_deleted_trades(tmp_path: Path) -> None:
    async def scenario(bot: RecordedBot, poller: Poller, settings: Settings) -> None:
        await poller.look()
        # It closed long ago by its time, and is seen now.
        bot.trades.append(trade(300, START_MS - 40 * 86_400_000))
        await poller.look()
        assert 300 in kept(tmp_path)
        # Reloaded: it is open again, and closes with another profit.
        bot.trades[0]["is_open"] = True
        await poller.look()
        assert 1 not in kept(tmp_path)
        changes = {"is_open": False, "close_profit_abs": 7.5}
        bot.trades[0] |= changes
        await poller.look()
        assert kept(tmp_path)[1].trade.profit_abs == 7.5
        bot.trades = [row for row in bot.trades if row["trade_id"] not in (2, 150)]
        await poller.look()
        assert not {2, 150} & kept(tmp_path).keys()
        await equal(settings)
        assert poller.databases == 0

    run(tmp_path, RecordedBot([trade(n, START_MS + n * 600_000) for n in range(1, 201)]), scenario)


def test_a_new_database_is_no_strike(tmp_path: Path) -> None:
    async def scenario(bot: RecordedBot, poller: Poller, settings: Settings) -> None:
        await poller.look()
        bot.trades = []
        await poller.look()
        assert len(kept(tmp_path, "before")) == 120
        bot.trades = [trade(n, START_MS + 10**8 + n) for n in range(1, 4)]
        await poller.look()
        assert len(kept(tmp_path)) == 3
        assert len(kept(tmp_path, "before")) == 120
        assert (poller.databases, poller.struck) == (1, 0)
        await equal(settings)

    run(tmp_path, RecordedBot([trade(n) for n in range(1, 121)]), scenario)


def test_a_new_database_that_has_filled_meanwhile(tmp_path: Path) -> None:
    async def scenario(bot: RecordedBot, poller: Poller, settings: Settings) -> None:
        await poller.look()
        # More than a page, and the same ids.
        bot.trades = [trade(n, START_MS + 10**8 + n) for n in range(1, 251)]
        await poller.look()
        assert len(kept(tmp_path, "before")) == 120
        assert len(kept(tmp_path)) == 250
        assert poller.struck == 0
        await equal(settings)

    run(tmp_path, RecordedBot([trade(n) for n in range(1, 121)]), scenario)


def test_nothing_is_struck_while_the_bot_lists_fewer_than_it_counts(tmp_path: Path) -> None:
    async def scenario(bot: RecordedBot, poller: Poller, _settings: Settings) -> None:
        await poller.look()
        gone, bot.trades = bot.trades[:3], bot.trades[3:]
        bot.total_more = 3
        await poller.look()
        assert poller.lacking == 3
        assert len(kept(tmp_path)) == 20
        bot.trades, bot.total_more = gone + bot.trades, 0
        await poller.look()
        assert poller.lacking == 0

    run(tmp_path, RecordedBot([trade(n) for n in range(1, 21)]), scenario)


def test_what_cannot_be_recorded_is_named_and_costs_itself(tmp_path: Path) -> None:
    ahead_ms = time.time_ns() // 1_000_000 + 7 * 3_600_000
    wrong = [
        trade(101, close_profit=math.nan),
        trade(102, ahead_ms),
        trade(103, close_profit=2.0, close_profit_pct=2.0),
    ]

    async def scenario(bot: RecordedBot, poller: Poller, _settings: Settings) -> None:
        await poller.look()
        assert set(poller.refused) == {"trade 101", "trade 102", "trade 103"}
        assert "h ahead, as a local time" in poller.refused["trade 102"]
        assert len(kept(tmp_path)) == 5
        assert (poller.lacking, poller.trouble.why) == (0, "")
        pages = bot.pages
        await poller.look()
        # It agrees with the bot's count, those included: all is not read every time.
        assert bot.pages == pages + 1
        bot.trades[5] = trade(101)
        await poller.look()
        assert 101 in kept(tmp_path)

    run(tmp_path, RecordedBot([*(trade(n) for n in range(1, 6)), *wrong]), scenario)


def test_exits_are_asked_for_once(tmp_path: Path) -> None:
    async def scenario(bot: RecordedBot, poller: Poller, _settings: Settings) -> None:
        bot.custom[2] = {"stop": -0.0148, "target": 0.01, "source": "bin"}
        bot.custom[3] = {"stop": -1.48}
        await poller.look()
        await poller.look()
        assert sorted(bot.asked_custom) == [1, 2, 3]
        found = kept(tmp_path)[2].trade
        assert (found.stop, found.target, found.source) == (-0.0148, 0.01, "bin")
        assert kept(tmp_path)[3].trade.stop is None
        # The trade is there: all is not read again for it.
        assert (list(poller.refused_exits), poller.refused) == (["exits of trade 3"], {})

    run(tmp_path, RecordedBot([trade(n) for n in range(1, 4)]), scenario)


def test_a_bot_that_is_down_is_asked_again(tmp_path: Path) -> None:
    async def scenario(bot: RecordedBot, poller: Poller, _settings: Settings) -> None:
        bot.down = True
        await poller.look()
        assert "503" in poller.trouble.why
        bot.down = False
        await poller.look()
        assert not poller.trouble
        assert len(kept(tmp_path)) == 3

    run(tmp_path, RecordedBot([trade(n) for n in range(1, 4)]), scenario)


def test_feeders_come_from_the_ledger(tmp_path: Path) -> None:
    from marketfeed.aggregator.ledger import Ledger  # noqa: PLC0415

    row = trade(2)
    with Ledger.open(tmp_path / "ledger.db"):
        pass
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        decided = row["open_timestamp"] - 4_000
        for window, at, feeders in ((1, decided - 10**6, "1,2,3"), (2, decided, "73,74,79")):
            db.execute(
                """INSERT INTO decision VALUES (?, 'p', 'long', ?, ?, 0, 'forward', 1, '', 3, 5, 0.8,
                   '79', ?, ?, 1, 'market', NULL, ?)""",
                (window, at, at, feeders, row["enter_tag"], window),
            )
    db.close()

    async def scenario(_bot: RecordedBot, poller: Poller, _settings: Settings) -> None:
        await poller.look()
        assert kept(tmp_path)[2].trade.feeders == "73,74,79"

    run(tmp_path, RecordedBot([row]), scenario)


def test_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    async def scenario(_bot: RecordedBot, poller: Poller, _settings: Settings) -> None:
        def limit(books: Books, pages: int) -> None:
            books.db.execute(f"PRAGMA max_page_count = {pages}")

        await poller._books.call(lambda books: limit(books, 1))
        task = asyncio.create_task(poller.run())
        await until(lambda: poller.unstored, "the refusal")
        assert "full" in poller.unstored.why
        await poller._books.call(lambda books: limit(books, 1_000_000))
        await until(lambda: len(kept(tmp_path)) == 500 or task.done(), "all trades")
        await until(lambda: not poller.unstored or task.done(), "the end of it")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(tmp_path, RecordedBot([trade(n) for n in range(1, 501)]), scenario)
