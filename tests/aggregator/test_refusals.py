"""A bot that refuses what it should not does not look well, nor one that opens the other side."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from bot import CountingBot
from running import LONG, PAIR, end_states, one_vote, running, states

from marketfeed.aggregator.bot_answers import COUNTS, PREFIX, Count, Meaning
from marketfeed.aggregator.reasons import Kind
from marketfeed.aggregator.refusals import LATELY_S, SEVERAL, WRONG_SIDE_S, Refusals
from marketfeed.commands.check_aggregator import check_aggregator

P = "P1/USDT:USDT"
NO_SYMBOL = PREFIX + "Symbol does not exist or market is not active."
NOT_ENABLED = PREFIX + "Force_entry not enabled."


def test_several_of_them_are_a_reason_for_a_while() -> None:
    refusals = Refusals()
    for number in range(SEVERAL):
        assert refusals.several(0.0) is None
        refusals.refused(NO_SYMBOL, P, float(number))
    assert refusals.several(4.0) == (5, NO_SYMBOL)
    assert refusals.several(LATELY_S) is None


def test_what_is_refused_in_service_is_none() -> None:
    refusals = Refusals()
    for words in (f"position for {P} already open - id: 7", f"Failed to enter position for {P}."):
        for _ in range(9):
            refusals.refused(PREFIX + words, P, 0.0)
    assert refusals.several(0.0) is None
    assert refusals.of_all(0.0) == ""


def test_an_accepted_order_ends_it() -> None:
    refusals = Refusals()
    refusals.refused(NOT_ENABLED, P, 0.0)
    assert refusals.of_all(0.0) == NOT_ENABLED
    refusals.accepted()
    assert refusals.of_all(0.0) == ""


def test_so_does_the_bot_s_word_of_later_that_it_takes_them() -> None:
    refusals = Refusals()
    refusals.refused(NOT_ENABLED, P, 10.0)
    # It was asked before.
    refusals.takes_all(9.0)
    assert refusals.of_all(10.0) == NOT_ENABLED
    refusals.takes_all(11.0)
    assert refusals.of_all(11.0) == ""
    assert refusals.of_all(10.0 + LATELY_S) == ""


@pytest.mark.parametrize(
    ("meaning", "words", "counted"),
    [
        ("full", PREFIX + "Maximum number of trades is reached.", "full"),
        ("paused", PREFIX + "trader is not running", "paused"),
        ("barred", "Unauthorized", "rights"),
        ("refused", NOT_ENABLED, "force entry off"),
        ("refused", PREFIX + f"position for {P} already open - id: 7", "already open"),
        (
            "refused",
            PREFIX + f"position for {P} already open - id: 7 and has open order 3",
            "already open",
        ),
        ("refused", PREFIX + f"Failed to enter position for {P}.", "not entered"),
        ("refused", NO_SYMBOL, "other"),
        ("accepted", "trade 1", None),
        ("unknown", "502 Bad Gateway", None),
    ],
)
def test_every_answer_that_is_no_trade_is_counted_by_why(
    meaning: Meaning, words: str, counted: Count | None
) -> None:
    refusals = Refusals()
    refusals.answered(meaning, words, P)
    assert refusals.counts == ({} if counted is None else {counted: 1})
    assert counted is None or counted in COUNTS


def test_a_trade_of_the_other_side_stays_in_sight() -> None:
    refusals = Refusals()
    refusals.wrong_side("it opened the other side", 0.0)
    refusals.accepted()
    assert refusals.other_side(WRONG_SIDE_S - 1) == "it opened the other side"
    assert refusals.other_side(WRONG_SIDE_S) == ""


def test_a_bot_that_is_set_up_to_take_no_order_is_not_well(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot, aiohttp.ClientSession() as session:
            bot.refuses = "Force_entry not enabled."
            bot.config = {"force_entry_enable": None}
            given = one_vote(tmp_path, bot.url, unconfirmed_s=11)
            async with running(given) as aggregator:
                await aggregator.post("73", 0.9)
                assert await end_states(tmp_path) == ["refused"]
                status, health = await aggregator.status("health")
                assert status == 503
                assert health["reasons"] == [
                    str(Kind.FORCE_OFF.reason(SIDE="long", more=NOT_ENABLED))
                ]
                bot.refuses = None
                await aggregator.post("74", 0.9)
                assert await end_states(tmp_path, 2) == ["refused", "accepted"]
                assert (await aggregator.status("health"))[0] == 200
            (found,) = [
                it for it in await check_aggregator(given, session) if it.subject == "bot long"
            ]
            assert found.verdict == "good"

    asyncio.run(scenario())


def test_a_bot_that_opens_the_other_side_is_not_well(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url)) as aggregator:
            bot.opens_short = True
            await aggregator.post(LONG[0], 0.9)
            assert await end_states(tmp_path) == ["accepted"]
            assert states(tmp_path) == ["accepted"]
            status, health = await aggregator.status("health")
            assert status == 503
            assert health["reasons"] == [
                f"bot of long: it opened {PAIR} trade 1 short, ordered long (until 15 min after the last)"
            ]

    asyncio.run(scenario())
