"""The forwards of a side whose bot was taken out of the settings end, also if the disk refuses at first."""

import asyncio
import sqlite3
from pathlib import Path

import msgspec
from bot import CountingBot
from office import Office
from running import PAIR, Running, running, settings, states
from voting import LONG, RULES, SHORT, T0

from marketfeed.aggregator.aggregator import Aggregator
from marketfeed.aggregator.metrics import AggregatorCounters
from marketfeed.aggregator.timing import Pace
from marketfeed.aggregator.without_bot import Orphans
from tests.waiting import until

PACE = Pace(ledger_retry_s=0.01)
REFUSE = "BEFORE UPDATE ON forward BEGIN SELECT RAISE(ABORT, 'disk full'); END"


def test_an_order_that_could_not_be_ended_is_ended_later_and_its_pair_is_free(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    counters = AggregatorCounters()
    orphans = Orphans({"short"}, counters, PACE)

    async def scenario() -> None:
        async with Office(path, RULES, T0) as office:
            for feeder in SHORT:
                await office.post(feeder)
            await office.wait(0)
            await office.step(office.forwarded[0].window, "sending")
        long_only = msgspec.structs.replace(RULES, bots=("long",))
        async with Office(path, long_only, T0 + 400_000) as office:

            def now_ms() -> int:
                return office.now_ms

            await office.query(f"CREATE TEMP TRIGGER full {REFUSE}")
            assert not await orphans.end(office.ledger, now_ms, office.desk.heard)
            assert "disk full" in orphans.trouble.why
            again = asyncio.create_task(
                orphans.end_at_last(office.ledger, now_ms, office.desk.heard)
            )
            assert office.desk.held(PAIR, 0)
            await until(lambda: orphans.trouble.failures > 2, "another try")
            await office.query("DROP TRIGGER full")
            await asyncio.wait_for(again, 180)
            assert not orphans.trouble
            assert not office.desk.held(PAIR, 0)
            assert [state for _, state, _ in await office.states()] == ["lost"]
            assert len(orphans.lost()["short"]) == 1
            assert counters.forwards["short", "lost"] == 1
            # Once more, as a start would: it is named once.
            assert await orphans.end(office.ledger, now_ms, office.desk.heard)
            assert len(orphans.lost()["short"]) == 1
            for feeder in LONG:
                await office.post(feeder)
            await office.wait(60_000)
            found = await office.query("SELECT outcome FROM decision WHERE side = 'long'")
            assert found == [("forward",)]

    asyncio.run(scenario())


def test_health_says_so_until_it_is_done(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as long_bot, CountingBot() as short_bot:
            bots = {"long": long_bot.url, "short": short_bot.url}
            rules = {"window_s": 0.2, "min_agreements": 1, "expire_s": 60}
            await short_bot.stop()
            given = settings(tmp_path, bots, **rules)
            async with running(given) as aggregator:
                await aggregator.post("120", 0.9, side="short")
                await until(lambda: states(tmp_path) == ["queued"], "one that waits")
            with sqlite3.connect(tmp_path / "ledger.db") as db:
                db.execute(f"CREATE TRIGGER full {REFUSE}")
            db.close()
            given = settings(tmp_path, {"long": long_bot.url}, **rules)
            async with running(given) as aggregator:
                assert any("disk full" in it for it in about(aggregator))
                await free(aggregator.aggregator)
                await until(lambda: not about(aggregator), "its end")
                assert states(tmp_path) == ["expired"]

    asyncio.run(scenario())


def about(aggregator: Running) -> list[str]:
    return [it for it in aggregator.aggregator.reasons() if "a side without a bot" in it]


async def free(aggregator: Aggregator) -> None:
    await aggregator._ledger.call(lambda ledger: ledger.db.execute("DROP TRIGGER full") and None)
