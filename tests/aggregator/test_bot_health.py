"""What is wrong with a bot shows while nothing is sent to it, each with its end, and never slows an order."""

import asyncio
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from bot import CountingBot
from forwards import decision, record, working
from running import QUICK, Running, end_states, one_vote, running, settings, states

from marketfeed.aggregator.bot_config import BotConfig, config_of, unsuited, whitelist_of
from marketfeed.aggregator.sending import Hooks
from marketfeed.aggregator.signals import Side
from marketfeed.commands.check_aggregator import check_aggregator
from tests.waiting import until

TOLD = {
    "state": "running",
    "force_entry_enable": True,
    "max_open_trades": 5,
    "stake_currency": "USDT",
    "trading_mode": "futures",
}


# --- what a bot says of itself --------------------------------------------------------------------------


def test_what_a_bot_says_is_read() -> None:
    assert config_of(TOLD) == BotConfig("running", True, 5, "USDT", "futures")
    assert config_of(TOLD).not_running == ""


@pytest.mark.parametrize(
    "answer", [None, [], "running", {}, {name: [1] for name in TOLD}, {"state": None}]
)
def test_of_what_it_does_not_say_nothing_follows(answer: object) -> None:
    config = config_of(answer)
    assert config == BotConfig()
    assert config.not_running == ""
    assert unsuited(config, "short", "USDT") == []


@pytest.mark.parametrize("state", ["paused", "stopped", "reload_config"])
def test_every_other_state_of_freqtrade_s_is_not_running(state: str) -> None:
    assert config_of({"state": state}).not_running == f"its state is {state}"


@pytest.mark.parametrize(
    ("told", "side", "words"),
    [
        ({"trading_mode": "spot"}, "short", "its trading_mode is spot: it opens no shorts and"),
        ({"trading_mode": "spot"}, "long", "its trading_mode is spot: it does not know pairs such"),
        (
            {"stake_currency": "USDC"},
            "long",
            "its stake_currency is USDC: it refuses pairs in USDT",
        ),
        ({"max_open_trades": 0}, "long", "its max_open_trades is 0"),
    ],
)
def test_what_does_not_suit_is_said_in_a_sentence(
    told: dict[str, Any], side: Side, words: str
) -> None:
    (found,) = unsuited(config_of(TOLD | told), side, "USDT")
    assert found.startswith(words)


def test_what_suits_says_nothing() -> None:
    for most in (-1, 1, 15.0):
        assert unsuited(config_of(TOLD | {"max_open_trades": most}), "short", "USDT") == []


@pytest.mark.parametrize(
    "answer", [None, {}, {"whitelist": None}, {"whitelist": [1]}, {"whitelist": []}]
)
def test_a_whitelist_that_says_nothing_is_none(answer: object) -> None:
    assert whitelist_of(answer) is None


# --- each reason appears, and ends ----------------------------------------------------------------------


async def holds(aggregator: Running, *reasons: str) -> None:
    """Wait until these are the reasons, and no others; what they go on with does not matter."""

    def found() -> bool:
        now = aggregator.aggregator.reasons()
        return len(now) == len(reasons) and all(map(str.startswith, now, reasons))

    await until(found, aggregator.aggregator.reasons)
    status, health = await aggregator.status("health")
    assert status == (503 if reasons else 200), health


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": {"state": "paused"}}, "it is not running: its state is paused (until its state is"),
        ({"config": {"state": "stopped"}}, "it is not running: its state is stopped ("),
        ({"config": {"state": "reload_config"}}, "it is not running: its state is reload_config ("),
        (
            {"config": {"force_entry_enable": False}},
            "it refuses every order: force_entry_enable is false in its config (until force_entry_",
        ),
        ({"denied": {"show_config": 401}}, "it does not let us in: status 401: denied (until it ans"),
        ({"denied": {"show_config": 403, "version": 403}}, "it does not let us in: status 403: den"),
        ({"denied": {"show_config": 404, "version": 404}}, "it does not let us in: status 404: den"),
        ({"denied": {"show_config": 502}}, "not well: status 502: denied ("),
        # However full it is, and what is asked for that.
        ({"behaviour": "full", "config": {"state": "stopped"}}, "it is not running: "),
    ],
)  # fmt: skip
def test_each_reason_appears_and_ends(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url)) as aggregator:
            await until(lambda: bot.requests["show_config"], "a question")
            await holds(aggregator)
            was = {name: getattr(bot, name) for name in change}
            for name, value in change.items():
                setattr(bot, name, value)
            await holds(aggregator, f"bot of long: {reason}")
            for name, value in was.items():
                setattr(bot, name, value)
            await holds(aggregator)
            # That was seen by questions alone.
            assert bot.posts == []

    asyncio.run(scenario())


def test_a_bot_that_goes_away_and_comes_back_is_seen(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url)) as aggregator:
            await until(lambda: bot.requests["show_config"], "a question")
            await bot.stop()
            await holds(aggregator, "bot of long: not reachable: ")
            await bot.start()
            await holds(aggregator)

    asyncio.run(scenario())


def test_a_proxy_that_denies_that_question_alone_is_no_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url)) as aggregator:
            bot.denied["show_config"] = 403
            await until(lambda: bot.requests["version"] > 2, "questions")
            await holds(aggregator)
            await aggregator.post("73", 0.9)
            assert await end_states(tmp_path) == ["accepted"]

    asyncio.run(scenario())


def test_a_bot_of_the_wrong_kind_warns_until_it_is_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as long, CountingBot() as short:
            short.config = {"trading_mode": "spot"}
            long.config = {"stake_currency": "BNFCR", "max_open_trades": 0}
            given = settings(tmp_path, {"long": long.url, "short": short.url}, unconfirmed_s=11)
            async with running(given) as aggregator:
                warned = aggregator.aggregator.warnings
                await until(lambda: len(warned()) == 3, warned)
                status, health = await aggregator.status("health")
                assert status == 200
                assert [it.partition(":")[0] for it in health["warnings"]] == [
                    "bot of long",
                    "bot of long",
                    "bot of short",
                ]
                assert "opens no shorts" in health["warnings"][2]
                async with aiohttp.ClientSession() as session:
                    found = {
                        it.subject: (it.verdict, it.text)
                        for it in await check_aggregator(given, session)
                    }
                assert found["bot short"][0] == found["bot long"][0] == "bad"
                assert "trading_mode is spot" in found["bot short"][1]
                assert "stake_currency is BNFCR" in found["bot long"][1]
                long.config = short.config = {}
                await until(lambda: not warned(), warned)
                report = (await aggregator.status())[1]["bots"]["short"]
                assert (report["state"], report["trading_mode"]) == ("running", "futures")
                assert report["max_open_trades"] == -1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("config", "verdict", "words"),
    [
        ({}, "good", "answers, and knows user and password"),
        ({"state": "stopped"}, "warning", "takes no orders: its state is stopped"),
        ({"force_entry_enable": False}, "bad", "set force_entry_enable to true in its config"),
    ],
)
def test_check_says_the_same(
    tmp_path: Path, config: dict[str, Any], verdict: str, words: str
) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot, aiohttp.ClientSession() as session:
            bot.config = config
            found = await check_aggregator(one_vote(tmp_path, bot.url, unconfirmed_s=11), session)
            (one,) = [it for it in found if it.subject == "bot long"]
            assert (one.verdict, words in one.text) == (verdict, True)

    asyncio.run(scenario())


# --- orders go first --------------------------------------------------------------------------------------


def test_a_bot_that_is_known_to_be_stopped_is_asked_and_not_tried(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot() as bot,
            running(one_vote(tmp_path, bot.url, expire_s=60)) as aggregator,
        ):
            bot.config = {"state": "stopped"}
            await holds(aggregator, "bot of long: it is not running: ")
            await aggregator.post("73", 0.9)
            await holds(aggregator, "bot of long: it is not running: its state is stopped, 1 wait")
            assert bot.posts == []
            bot.config = {}
            assert await end_states(tmp_path) == ["accepted"]
            await holds(aggregator)

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["show_config", "whitelist"])
def test_no_order_waits_for_what_an_idle_bot_is_asked(tmp_path: Path, path: str) -> None:
    """Neither answer comes at all: the bot would be given a minute for each."""

    async def scenario() -> None:
        async with CountingBot() as bot:
            bot.hung.add(path)
            given = one_vote(tmp_path, bot.url, bot_timeout_s=60, expire_s=30)
            async with running(given) as aggregator:
                await until(lambda: bot.requests[path], "a question")
                await aggregator.post("73", 0.9)
                assert await end_states(tmp_path) == ["accepted"]
                assert aggregator.aggregator.reasons() == []

    asyncio.run(scenario())


def test_a_bot_that_is_sent_orders_all_the_time_is_asked_in_between(tmp_path: Path) -> None:
    """Each answer to an order shows that it is there, and nothing of what else there is to know."""

    async def scenario() -> None:
        record(tmp_path)
        pace = msgspec.structs.replace(QUICK, probe_s=0.05)
        async with CountingBot() as bot, working(tmp_path, bot, Hooks(), pace=pace) as worker:
            for window in range(1, 100):
                new = decision(window)
                await worker._notes._ledger.call(
                    lambda it, new=new: it.record([], [new], new.decided_ms)
                )
                worker.wake()
                await until(lambda: states(tmp_path)[-1] == "accepted", "the order")
                if worker._access.config.max_open_trades == 7:
                    break
                bot.max_open_trades = 7
            else:
                pytest.fail("it was not asked again")

    asyncio.run(scenario())


# --- what is counted ----------------------------------------------------------------------------------------


def test_a_full_bot_and_open_positions_are_counted_and_no_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url)) as aggregator:
            for number in range(6):
                bot.refuses = f"position for P{number}/USDT:USDT already open - id: 1"
                await aggregator.post("73", 0.9, pair=f"P{number}/USDT:USDT")
                await end_states(tmp_path, number + 1)
            bot.refuses, bot.behaviour = None, "full"
            for number in range(6, 12):
                await aggregator.post("73", 0.9, pair=f"P{number}/USDT:USDT")
            assert await end_states(tmp_path, 12) == ["refused"] * 6 + ["expired"] * 6
            await holds(aggregator)
            told = (await aggregator.status())[1]
            refusals = told["bots"]["long"]["refusals"]
            assert (refusals["already open"], refusals["full"] > 0) == (6, True)
            assert told["expired"] == {"long": {"no room": 6}}
            assert told["bots"]["long"]["expired_with_room"] == 0

    asyncio.run(scenario())


def test_what_expires_at_a_bot_with_room_stays_a_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url)) as aggregator:
            await until(lambda: bot.requests["trades"], "the question of the start")
            await bot.stop()
            await aggregator.post("73", 0.9)
            assert await end_states(tmp_path) == ["expired"]
            await bot.start()
            words = "1 expired unsent within 15 min, though it was not full: unreachable 1"
            end = "(until 15 min after the last)"
            await holds(aggregator, f"bot of long: {words} {end}")
            assert (await aggregator.status())[1]["bots"]["long"]["expired_with_room"] == 1

    asyncio.run(scenario())


def test_what_was_replaced_is_no_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot() as bot,
            running(one_vote(tmp_path, bot.url, expire_s=60)) as aggregator,
        ):
            bot.config = {"state": "stopped"}
            await holds(aggregator, "bot of long: it is not running: ")
            await aggregator.post("73", 0.9)
            await until(lambda: len(states(tmp_path)) == 1, "a decision")
            await aggregator.post("74", 0.9)
            await until(lambda: states(tmp_path) == ["expired", "queued"], "a newer one")
            bot.config = {}
            assert await end_states(tmp_path, 2) == ["expired", "accepted"]
            await holds(aggregator)
            assert (await aggregator.status())[1]["expired"] == {"long": {}}

    asyncio.run(scenario())


def test_nor_is_what_the_other_side_was_decided_after(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path, decision(1))
        hooks = Hooks(contested=lambda _: "short was decided since")
        async with CountingBot() as bot, working(tmp_path, bot, hooks) as worker:
            assert await end_states(tmp_path) == ["expired"]
            assert worker.reasons() == []
            assert worker.expired.with_room == 0

    asyncio.run(scenario())


def test_a_barred_bot_shows_in_metrics(tmp_path: Path) -> None:
    async def scenario() -> None:
        # No probe keeps the order back.
        pace = msgspec.structs.replace(QUICK, probe_s=3600.0)
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url), pace) as aggregator:
            access = aggregator.aggregator._parts.forwarders["long"]._access
            asked = lambda: bot.asked and access.ask_at_s > time.monotonic() + 1_000  # noqa: E731
            await until(asked, "the questions of the start")
            bot.behaviour = "unauthorized"
            await aggregator.post("73", 0.9)
            assert await end_states(tmp_path) == ["refused"]
            await holds(aggregator, "bot of long: it does not let us in: ")
            text = await _metrics(aggregator)
            assert 'marketfeed_aggregator_bot_barred{side="long"} 1.0' in text
            assert (
                'marketfeed_aggregator_refused_orders_total{side="long",why="rights"} 1.0' in text
            )
            assert 'marketfeed_aggregator_refused_orders_total{side="long",why="full"} 0.0' in text
            bot.behaviour = "ok"
            await holds(aggregator)
            assert 'marketfeed_aggregator_bot_barred{side="long"} 0.0' in await _metrics(aggregator)

    asyncio.run(scenario())


def test_no_order_tries_a_bot_that_did_not_let_a_probe_in(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url, expire_s=120)) as it:
            await until(lambda: bot.requests["show_config"] > 0, "a probe")
            bot.behaviour = "unauthorized"
            report = it.aggregator.report
            await until(lambda: report().bots["long"].barred, "a probe that is not let in")
            await it.post("73", 0.9)
            await until(lambda: report().waits_for["long"][0] == "password", "it waits")
            assert states(tmp_path) == ["queued"]
            bot.behaviour = "ok"
            assert await end_states(tmp_path) == ["accepted"]
            assert len(bot.posts) == 1
            assert it.aggregator.reasons() == []

    asyncio.run(scenario())


def test_after_it_was_barred_once_an_order_s_time_out_is_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot:
            given = one_vote(tmp_path, bot.url, unconfirmed_s=120)
            async with running(given) as it:
                report = it.aggregator.report
                await until(lambda: bot.requests["show_config"] > 0, "a probe")
                bot.behaviour = "unauthorized"
                await until(lambda: report().bots["long"].barred, "a probe that is not let in")
                bot.behaviour = "ok"
                await until(lambda: not report().bot_trouble["long"], "it lets us in")
                bot.behaviour = "freeze"
                await it.post("73", 0.9)
                await until(lambda: "its answer did not come" in report().bot_trouble["long"], "so")
                assert not report().bots["long"].barred
                assert report().bot_trouble["long"].startswith("not well: its answer did not come")

    asyncio.run(scenario())


async def _metrics(aggregator: Running) -> str:
    async with aggregator.session.get(f"{aggregator.aggregator.status_url}/metrics") as response:
        return await response.text()
