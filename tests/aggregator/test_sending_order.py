"""What goes before what: orders before the ends of others, one side's order before the other's question."""

import asyncio
from pathlib import Path

import msgspec
from aiohttp import web
from bot import CountingBot
from forwards import decision, record, working
from running import PAIR, QUICK, end_states, one_vote, rows, running, states

from marketfeed.aggregator.sending import Hooks
from tests.waiting import until


def test_a_good_order_goes_before_those_that_expired_are_noted(tmp_path: Path) -> None:
    async def scenario() -> None:
        over = [decision(number, votes=5, expire_ms=0) for number in range(2, 30)]
        record(tmp_path, decision(1, votes=2), *over)
        heard: list[tuple[int, str]] = []
        hooks = Hooks(heard=lambda forward: heard.append((forward.window, forward.state)))
        async with CountingBot() as bot, working(tmp_path, bot, hooks):
            assert await end_states(tmp_path, 29) == ["accepted"] + ["expired"] * 28
            assert heard[:2] == [(1, "sending"), (1, "accepted")]

    asyncio.run(scenario())


class Snapshot(CountingBot):
    """Reads its trades, and answers with them when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.answers.set()
        self.waiting = 0

    async def _status(self, request: web.Request) -> web.StreamResponse:
        found = list(self._open_trades())
        self.waiting += 1
        await self.answers.wait()
        return web.json_response(found)


def test_an_order_that_overtakes_the_question_is_seen(tmp_path: Path) -> None:
    """The other bot has read its trades, gets an order of the pair, and only then answers: it has none."""

    async def scenario() -> None:
        async with CountingBot() as long, Snapshot() as short:
            given = one_vote(
                tmp_path,
                long.url,
                bots={"short": short.url},
                on_conflict="both",
                opposite_open="skip",
                expire_s=60,
                bot_timeout_s=60,
            )
            async with running(given) as aggregator:
                await until(lambda: short.asked and long.asked, "the questions of the start")
                short.answers.clear()
                waiting = short.waiting
                await aggregator.post("73", 0.9)
                await until(lambda: short.waiting > waiting, "a question")
                await aggregator.post("120", 0.9, side="short")
                await until(lambda: "accepted" in states(tmp_path), "the other side's order")
                short.answers.set()
                assert await end_states(tmp_path, 2) == ["expired", "accepted"]
            assert long.posts == []
            assert len(short.posts) == 1
            query = "SELECT answer FROM forward ORDER BY window"
            assert rows(tmp_path, query)[0] == (f"the bot of short holds {PAIR}: trade 1",)

    asyncio.run(scenario())


def test_one_that_is_sent_back_frees_its_pair_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        pair = {"pair": PAIR}
        record(
            tmp_path,
            msgspec.structs.replace(decision(1), **pair),
            msgspec.structs.replace(decision(2), side="short", **pair),
        )
        # Nobody looks again by himself.
        pace = msgspec.structs.replace(QUICK, again_s=3600.0)
        async with CountingBot() as long, CountingBot() as short:
            long.max_open_trades = 0
            long.lock.clear()
            short.denied["status"] = 503
            given = one_vote(
                tmp_path,
                long.url,
                bots={"short": short.url},
                on_conflict="both",
                bot_timeout_s=60,
            )
            async with running(given, pace) as aggregator:
                await until(lambda: long.posts, "the first order")
                # Its start has been answered, and it waits for the pair.
                del short.denied["status"]
                report = aggregator.aggregator.report
                await until(lambda: report().waits_for["short"] == ("", ""), "the other side")
                assert report().waiting["short"] == 1
                long.lock.set()
                await until(lambda: states(tmp_path)[1] == "accepted", "its order")
                assert states(tmp_path)[0] == "queued"

    asyncio.run(scenario())


def test_what_expires_while_the_other_bot_is_asked_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as long, CountingBot() as short:
            given = one_vote(
                tmp_path,
                long.url,
                bots={"short": short.url},
                opposite_open="skip",
                expire_s=0.5,
                bot_timeout_s=60,
            )
            async with running(given) as aggregator:
                await until(lambda: short.asked and long.asked, "the questions of the start")
                short.look_s = 1.0
                await aggregator.post("73", 0.9)
                assert await end_states(tmp_path) == ["expired"]
                ((words,),) = rows(tmp_path, "SELECT answer FROM forward")
                assert words == (
                    "not sent before it expired: the other side's bot took too long to say whether it "
                    "holds the pair"
                )
                assert (await aggregator.status())[1]["expired"] == {
                    "long": {"other bot": 1},
                    "short": {},
                }

    asyncio.run(scenario())


def test_a_stop_is_no_trouble_of_the_bot_s(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path)
        bot = CountingBot("freeze")
        async with bot, working(tmp_path, bot, Hooks()) as worker:
            await until(lambda: bot.requests["show_config"], "a question that is not answered")
        assert not worker.trouble

    asyncio.run(scenario())
