"""Pairs outside a bot's whitelist: shown, sent or skipped as the settings say, and never a cool-down."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from bot import CountingBot
from decided import decide
from running import PAIR, QUICK, end_states, one_vote, rows, running

from marketfeed.aggregator.whitelists import KEPT, KEPT_MS, Whitelists
from tests.waiting import until

OTHER = "ETH/USDT:USDT"
WORDS = f"{PAIR} is not on the whitelist of the bot of long"


def test_of_a_bot_that_has_told_no_list_no_pair_is_outside() -> None:
    lists = Whitelists("skip")
    assert (lists.against(PAIR, "long"), lists.remark(PAIR, "long")) == (None, ())
    lists.take("short", {OTHER})
    assert lists.against(PAIR, "long") is None
    lists.take("short", None)
    assert lists.against(PAIR, "short") is None
    assert lists.waits("short")
    assert not Whitelists("send").waits("short")
    assert lists.size("short") is None


def test_with_skip_a_pair_outside_is_spoken_against() -> None:
    lists = Whitelists("skip")
    lists.take("long", {OTHER})
    assert lists.against(PAIR, "long") == WORDS
    assert lists.against(OTHER, "long") is None
    assert lists.size("long") == 1


def test_with_send_it_is_said() -> None:
    lists = Whitelists("send")
    lists.take("long", {OTHER})
    assert lists.against(PAIR, "long") is None
    assert lists.remark(PAIR, "long") == (f"sent though {WORDS}",)
    assert lists.remark(OTHER, "long") == ()


def test_what_is_decided_outside_is_counted_and_makes_it_be_asked_again() -> None:
    lists = Whitelists("skip")
    lists.take("long", {OTHER})
    skipped = msgspec.structs.replace(decide(1), pair=PAIR, side="long", outcome="skip")
    # For another reason: that it is outside did not matter.
    lists.decided(msgspec.structs.replace(skipped, reasons=("2 of 5 votes, 3 needed",)))
    assert not lists.in_doubt("long")
    lists.decided(msgspec.structs.replace(skipped, reasons=(WORDS,)))
    lists.decided(msgspec.structs.replace(skipped, outcome="forward"))
    lists.decided(msgspec.structs.replace(skipped, outcome="forward", pair=OTHER))
    assert lists.outside == {"long": 2}
    assert lists.in_doubt("long")
    at_ms = skipped.decided_ms
    assert lists.met("long", at_ms + KEPT_MS - 1) == [PAIR]
    assert lists.met("long", at_ms + KEPT_MS) == []
    # Its answer says whether it is so.
    lists.take("long", {OTHER, PAIR})
    assert not lists.in_doubt("long")
    assert lists.met("long", at_ms) == []


def test_no_more_names_are_kept_than_fit() -> None:
    lists = Whitelists()
    lists.take("long", {OTHER})
    for number in range(2 * KEPT):
        one = msgspec.structs.replace(decide(1), side="long", outcome="forward")
        lists.decided(msgspec.structs.replace(one, pair=f"P{number}/USDT:USDT"))
    met = lists.met("long", one.decided_ms)
    assert (len(met), met[0]) == (KEPT, f"P{2 * KEPT - 1}/USDT:USDT")
    assert lists.outside["long"] == 2 * KEPT


# --- with a bot -------------------------------------------------------------------------------------------


def test_as_shipped_it_is_sent_and_shown(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url)) as aggregator:
            bot.whitelist = [OTHER]
            bot.config = {"max_open_trades": 9}  # Whoever changes is asked for it anew.
            report = aggregator.aggregator.report
            await until(lambda: report().bots["long"].whitelist == 1, "the list")
            await aggregator.post("73", 0.9)
            assert await end_states(tmp_path) == ["accepted"]
            ((reasons,),) = rows(tmp_path, "SELECT reasons FROM decision")
            assert reasons.splitlines()[-1] == f"sent though {WORDS}"
            bot_report = (await aggregator.status())[1]["bots"]["long"]
            assert bot_report["outside_whitelist"] == 1
            assert bot_report["outside_pairs"] == [PAIR]
            assert aggregator.aggregator.warnings() == []
            await aggregator.post("73", 0.9, pair=OTHER)
            await end_states(tmp_path, 2)
            assert report().bots["long"].outside_whitelist == 1

    asyncio.run(scenario())


def test_with_skip_its_decision_says_so_and_the_next_goes_once_it_is_listed(tmp_path: Path) -> None:
    """With a cool-down of five minutes, which it has not begun."""

    async def scenario() -> None:
        pace = msgspec.structs.replace(QUICK, whitelist_again_s=0.1)
        async with CountingBot() as bot:
            bot.whitelist = [OTHER]
            given = one_vote(tmp_path, bot.url, outside_whitelist="skip", cooldown_s=300)
            async with running(given, pace) as aggregator:
                report = aggregator.aggregator.report
                await until(lambda: report().bots["long"].whitelist == 1, "the list")
                await aggregator.post("73", 0.9)
                await until(lambda: rows(tmp_path, "SELECT 1 FROM decision"), "a decision")
                assert rows(tmp_path, "SELECT outcome, passed, reasons FROM decision") == [
                    ("skip", 1, WORDS)
                ]
                assert bot.posts == []
                (warning,) = aggregator.aggregator.warnings()
                assert warning.startswith("bot of long: nothing is sent for pairs that are not on")
                assert PAIR in warning
                assert aggregator.aggregator.reasons() == []
                # The list has changed since, as of a bot that lists by volume.
                bot.whitelist = [OTHER, PAIR]
                await until(lambda: report().bots["long"].whitelist == 2, "the list again")
                assert aggregator.aggregator.warnings() == []
                await aggregator.post("74", 0.9)
                assert await end_states(tmp_path) == ["accepted"]

    asyncio.run(scenario())


def test_a_list_is_asked_for_once_an_hour(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot:
            bot.whitelist = [PAIR]
            async with running(one_vote(tmp_path, bot.url)) as aggregator:
                report = aggregator.aggregator.report
                await until(lambda: report().bots["long"].whitelist == 1, "the list")
                asked = bot.requests["show_config"]
                await until(lambda: bot.requests["show_config"] > asked + 6, "other questions")
                # And once each time it has come back, if an answer was late on a busy machine.
                assert bot.requests["whitelist"] <= 1 + caplog.text.count("bot in trouble")

    asyncio.run(scenario())


@pytest.mark.parametrize("whitelist", [None, []])
@pytest.mark.parametrize("rule", ["send", "skip"])
def test_a_bot_without_a_list_is_sent_all_but_with_skip(
    tmp_path: Path, whitelist: list[str] | None, rule: str
) -> None:
    """An empty one is what a bot has before its first turn."""

    async def scenario() -> None:
        async with CountingBot() as bot:
            bot.whitelist = whitelist
            given = one_vote(tmp_path, bot.url, outside_whitelist=rule, expire_s=1)
            async with running(given) as aggregator:
                await until(lambda: bot.requests["whitelist"], "the question")
                await aggregator.post("73", 0.9)
                if rule == "send":
                    assert await end_states(tmp_path) == ["accepted"]
                    assert aggregator.aggregator.reasons() == []
                    return
                assert await end_states(tmp_path) == ["expired"]
                ((answer,),) = rows(tmp_path, "SELECT answer FROM forward")
                assert answer.startswith("not sent before it expired: its whitelist is not known")
                assert bot.posts == []
                (warning,) = aggregator.aggregator.warnings()
                assert warning.startswith("bot of long: its whitelist is not known")

    asyncio.run(scenario())


def test_with_skip_an_order_waits_until_the_list_is_known(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot:
            given = one_vote(tmp_path, bot.url, outside_whitelist="skip", expire_s=120)
            async with running(given) as aggregator:
                await aggregator.post("73", 0.9)
                await aggregator.post("74", 0.9, pair=OTHER)
                report = aggregator.aggregator.report
                await until(lambda: report().waits_for["long"][0] == "whitelist", "it waits")
                asked = bot.requests["whitelist"]
                await until(lambda: bot.requests["whitelist"] > asked + 2, "it is asked again")
                assert bot.posts == []
                bot.whitelist = [OTHER]
                assert sorted(await end_states(tmp_path, 2)) == ["accepted", "expired"]
                assert rows(
                    tmp_path, "SELECT pair, answer FROM forwarded WHERE state = 'expired'"
                ) == [(PAIR, f"not sent before it expired: {WORDS}")]
                assert aggregator.aggregator.warnings() == []

    asyncio.run(scenario())


def test_with_skip_a_window_that_a_restart_decides_is_not_sent(tmp_path: Path) -> None:
    """It may be decided before the list is known: lists are in memory alone."""

    async def scenario() -> None:
        async with CountingBot() as bot:
            bot.whitelist = [OTHER]
            given = one_vote(tmp_path, bot.url, outside_whitelist="skip", window_s=2, expire_s=120)
            async with running(given) as aggregator:
                report = aggregator.aggregator.report
                await until(lambda: report().bots["long"].whitelist == 1, "the list")
                await aggregator.post("73", 0.9)
            async with running(given):
                await until(
                    lambda: rows(
                        tmp_path,
                        "SELECT 1 FROM decision WHERE outcome = 'skip' UNION "
                        "SELECT 1 FROM forward WHERE state NOT IN ('queued', 'sending')",
                    ),
                    "its end",
                )
                assert bot.posts == []

    asyncio.run(scenario())
