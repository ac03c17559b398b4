"""What a bot is asked for while orders wait, and that the next order goes as soon as it may."""

import asyncio
import time
from pathlib import Path

import msgspec
import pytest
from bot import Behaviour, CountingBot
from forwards import decision, now_ms, record, working
from running import QUICK, end_states, rows, states

from marketfeed.aggregator.forwarder import Forwarder
from marketfeed.aggregator.ledger_tables import Forward
from marketfeed.aggregator.sending import Hooks
from marketfeed.aggregator.timing import Pace
from tests.waiting import until

NEVER_S = 3600.0


async def joins(worker: Forwarder, window: int) -> None:
    """A decision of now is recorded, as by the desk."""
    await worker._notes._ledger.call(lambda it: it.record([], [decision(window)], now_ms()))
    worker.wake()


def pauses(worker: Forwarder) -> bool:
    """Whether the bot is asked for nothing for long."""
    return worker._access.ask_at_s > time.monotonic() + NEVER_S / 2


@pytest.mark.parametrize("behaviour", ["full", "paused", "unauthorized"])
def test_the_first_signal_after_a_recovery_is_traded(tmp_path: Path, behaviour: Behaviour) -> None:
    """Nothing has waited for long, so that the bot was not asked: what joins asks at once."""

    async def scenario() -> None:
        # A busy machine, too, gets to it before it expires.
        record(tmp_path, decision(1, expire_ms=3_000))
        # The shipped pace, but that no test would wait for the question of an idle bot.
        pace = Pace(probe_s=NEVER_S)
        async with (
            CountingBot(behaviour) as bot,
            working(tmp_path, bot, Hooks(), pace=pace) as worker,
        ):
            await until(lambda: states(tmp_path)[0] in ("expired", "refused"), "an end")
            await until(lambda: pauses(worker), "a question that nothing waits for")
            assert worker._access.gate.shut
            bot.behaviour = "ok"
            await joins(worker, 2)
            await until(lambda: states(tmp_path)[1] == "accepted", "the next order")

    asyncio.run(scenario())


def test_a_bot_that_is_not_reached_is_asked_and_not_tried(tmp_path: Path) -> None:
    """An order that tries stands at `sending`, and holds its pair on both sides."""

    async def scenario() -> None:
        record(tmp_path, decision(1))
        heard: list[str] = []
        hooks = Hooks(heard=lambda forward: heard.append(forward.state))
        bot = CountingBot()
        bot.url = f"http://127.0.0.1:{bot._port}"
        async with working(tmp_path, bot, hooks) as worker:
            await until(lambda: worker.trouble.failures > 5, "questions")
            assert worker.waits_for[0] == "unreachable"
            assert heard == ["sending", "queued"]
            async with bot:
                assert await end_states(tmp_path) == ["accepted"]
                assert rows(tmp_path, "SELECT attempts FROM forward") == [(2,)]
                assert len(bot.posts) == 1
                assert bot.requests["show_config"] >= 1

    asyncio.run(scenario())


def test_one_that_is_not_reached_while_nothing_waits_gets_no_order_either(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path)
        bot = CountingBot()
        bot.url = f"http://127.0.0.1:{bot._port}"
        pace = Pace(probe_s=NEVER_S)
        async with working(tmp_path, bot, Hooks(), pace=pace) as worker:
            await until(lambda: pauses(worker), "a question")
            await joins(worker, 1)
            await until(lambda: worker.trouble.failures > 1, "another one")
            assert rows(tmp_path, "SELECT state, attempts FROM forward") == [("queued", 0)]
            async with bot:
                assert await end_states(tmp_path) == ["accepted"]

    asyncio.run(scenario())


def test_a_gateway_s_5xx_is_no_bot_that_is_reached(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path, decision(1))
        bot = CountingBot()
        bot.url = f"http://127.0.0.1:{bot._port}"
        pace = msgspec.structs.replace(QUICK, probe_s=NEVER_S)
        async with working(tmp_path, bot, Hooks(), pace=pace) as worker:
            await until(lambda: worker.waits_for[0] == "unreachable", "an order in vain")
            bot.denied["show_config"] = 502
            async with bot:
                await until(lambda: bot.requests["show_config"] > 2, "questions")
                assert bot.posts == []
                bot.denied["show_config"] = 404
                assert await end_states(tmp_path) == ["accepted"]

    asyncio.run(scenario())


# --- questions that are denied ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_bot_that_never_tells_its_turns_goes_on(tmp_path: Path, status: int) -> None:
    async def scenario() -> None:
        record(tmp_path, decision(1))
        async with CountingBot("cut_empty") as bot, working(tmp_path, bot, Hooks()) as worker:
            bot.denied["health"] = status
            await until(lambda: "lost" in states(tmp_path), "an order that is lost")
            bot.behaviour = "ok"
            await joins(worker, 2)
            assert await end_states(tmp_path, 2) == ["lost", "accepted"]

    asyncio.run(scenario())


@pytest.mark.parametrize(("path", "behaviour"), [("count", "full"), ("show_config", "paused")])
@pytest.mark.parametrize("status", [403, 503])
def test_where_a_question_is_denied_an_order_tells(
    tmp_path: Path, path: str, behaviour: Behaviour, status: int
) -> None:
    async def scenario() -> None:
        record(tmp_path, decision(1))
        async with CountingBot(behaviour) as bot, working(tmp_path, bot, Hooks()) as worker:
            bot.denied[path] = status
            await until(lambda: bot.requests[path] > 2, "questions")
            if (path, status) == ("count", 503):
                assert worker.waits_for[0] in ("room unknown", "")
            bot.behaviour = "ok"
            assert await end_states(tmp_path) == ["accepted"]

    asyncio.run(scenario())


def test_with_an_unknown_order_no_answer_means_no_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path, decision(1))
        async with (
            CountingBot("cut_empty") as bot,
            working(tmp_path, bot, Hooks(), unconfirmed_s=NEVER_S) as worker,
        ):
            bot.denied["count"] = 503
            await until(lambda: "unknown" in states(tmp_path), "an order of which nobody knows")
            bot.behaviour = "ok"
            await joins(worker, 2)
            await until(lambda: bot.requests["count"] > 8, "questions")
            assert worker.waits_for[0] == "room unknown"
            assert len(bot.posts) == 1
            del bot.denied["count"]
            await until(lambda: states(tmp_path) == ["unknown", "accepted"], "the next")

    asyncio.run(scenario())


# --- a fresh order, and what the bot is asked meanwhile -----------------------------------------------


def test_a_fresh_order_does_not_wait_for_the_answer_of_an_idle_bot(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path)
        sent: list[Forward] = []
        bot = CountingBot("freeze")
        async with bot, working(tmp_path, bot, Hooks(heard=sent.append)) as worker:
            await until(lambda: bot.requests["show_config"], "a question that is not answered")
            bot.behaviour = "ok"
            await joins(worker, 1)
            assert await end_states(tmp_path) == ["accepted"]
            assert not worker.trouble

    asyncio.run(scenario())
