"""The desk between feeders, ledger and forwarders: what it hears of orders, and what it decides by that."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from office import Office
from voting import LONG, PAIR, RULES, SHORT, T0, WINDOW

from marketfeed.aggregator import inbox
from marketfeed.aggregator.ballots import Rules

ONE = msgspec.structs.replace(RULES, min_agreements=1, cooldown_ms=300_000)


@pytest.fixture
def offices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Office]:
    monkeypatch.setattr(inbox, "RETRY_S", 0.0)

    def open_office(now_ms: int = T0, rules: Rules = ONE) -> Office:
        return Office(tmp_path / "ledger.db", rules, now_ms)

    return open_office


Offices = Callable[..., Office]


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(180):
            await scene()

    asyncio.run(bounded())


async def decide(office: Office, *feeders: str, confidence: float = 0.9) -> None:
    for feeder in feeders:
        await office.post(feeder, confidence)
    await office.wait(WINDOW)


async def outcomes(office: Office) -> list[tuple[str, str]]:
    return await office.query("SELECT outcome, reasons FROM decision ORDER BY window")


def test_a_newer_decision_replaces_one_that_waits(offices: Offices) -> None:
    async def scene() -> None:
        async with offices() as office:
            await decide(office, "73")
            await decide(office, "74")
            assert await office.states() == [
                ("long", "expired", "replaced by window 2"),
                ("long", "queued", ""),
            ]
            assert office.counters.forwards["long", "expired"] == 1
            assert [decision.window for decision in office.forwarded] == [1, 2]

    play(scene)


def test_after_what_opened_nothing_the_pair_is_free_at_once(offices: Offices) -> None:
    async def scene() -> None:
        async with offices() as office:
            for window, ends in ((1, "refused"), (2, "expired")):
                await decide(office, LONG[window])
                await office.step(window, "sending")
                await office.step(window, ends)
        # After a restart, too.
        async with offices(office.now_ms) as office:
            await decide(office, "73")
            assert [outcome for outcome, _ in await outcomes(office)] == ["forward"] * 3
            await office.step(3, "sending")
            await office.step(3, "accepted")
            await decide(office, "74")
        async with offices(office.now_ms) as office:
            await decide(office, "79")
            assert (await outcomes(office))[3:] == [
                ("skip", "cool-down for another 240.0 s"),
                ("skip", "cool-down for another 180.0 s"),
            ]

    play(scene)


@pytest.mark.parametrize("state", ["sending", "accepted"])
def test_what_was_sent_while_it_was_decided_is_not_replaced(offices: Offices, state: str) -> None:
    """The step is in the ledger, and its news on their way to the desk."""

    async def scene() -> None:
        async with offices() as office:
            await decide(office, "73")
            await office.step(1, "sending", heard=False)
            if state == "accepted":
                await office.step(1, "accepted", heard=False)
            await decide(office, "74")
            assert [state_ for _, state_, _ in await office.states()] == [state]
            words = {
                "sending": "the order of window 1 (long) is being sent",
                "accepted": "cool-down for another 240.0 s",
            }
            assert (await outcomes(office))[1] == ("skip", words[state])
            assert [decision.window for decision in office.forwarded] == [1]
            assert office.counters.decisions["long", "skip"] == 1

    play(scene)


@pytest.mark.parametrize("failed", [False, True])
def test_everything_that_was_heard_outlives_a_failed_commit(offices: Offices, failed: bool) -> None:
    async def scene() -> None:
        rules = msgspec.structs.replace(ONE, on_conflict="both")
        async with offices(rules=rules) as office:
            for pair, feeder in (("A", "73"), ("B", "73"), ("C", "73")):
                await office.post(feeder, pair=f"{pair}/USDT:USDT")
            await office.wait(WINDOW)
            await office.step(1, "sending")
            await office.step(2, "sending")
            await office.step(2, "accepted")
            office.desk.merge_trades([("D/USDT:USDT", "long", office.now_ms)])
            await office.post("74", pair="B/USDT:USDT")
            if failed:
                await office.fail()
                assert (await office.post("74", pair="C/USDT:USDT")).status == 503
                await office.heal()
            for pair in ("A", "B", "C", "D", "E"):
                assert (await office.post("75", pair=f"{pair}/USDT:USDT")).status == 200
            await office.post("120", pair="A/USDT:USDT")
            assert office.desk.held("A/USDT:USDT", 2)
            assert not office.desk.held("A/USDT:USDT", 1)
            assert not office.desk.held("B/USDT:USDT", 1)
            await office.wait(WINDOW)
            found = await office.query(
                "SELECT pair, side, outcome, votes FROM decision WHERE window > 3 ORDER BY pair, side"
            )
            assert [(pair[0], *more) for pair, *more in found] == [
                ("A", "long", "skip", 1),
                ("A", "short", "skip", 1),
                ("B", "long", "skip", 2),
                ("C", "long", "forward", 1),
                ("D", "long", "skip", 1),
                ("E", "long", "forward", 1),
            ]

    play(scene)


def test_a_hold_of_all_outlives_a_failed_commit(offices: Offices) -> None:
    async def scene() -> None:
        async with offices() as office:
            office.desk.hold(T0 + 150_000, "nobody knows")
            await office.fail()
            assert (await office.post("73")).status == 503
            await office.heal()
            await decide(office, "73")
            await office.wait(60_000)
            await decide(office, "74")
            (held, went) = await outcomes(office)
            assert held[0] == "skip"
            assert held[1].startswith("nobody knows: ")
            assert held[1].endswith(" for another 90.0 s")
            assert went == ("forward", "1 of 5 votes, confidence 0.9000")

    play(scene)


def test_a_waiting_order_is_contested_by_the_other_side_s_later_decision(offices: Offices) -> None:
    async def scene() -> None:
        async with offices(rules=RULES) as office:
            for feeder in LONG:
                await office.post(feeder)
            await office.wait(100)
            queued = await office.forward(1)
            assert office.desk.contested(queued) is None
            for feeder in SHORT[:3]:
                await office.post(feeder)
            await office.wait(WINDOW)
            assert office.desk.contested(queued) == "short was decided since"
        # And at a start, when the clock has been set back.
        for now_ms in (office.now_ms, office.now_ms - 3_600_000):
            async with offices(now_ms, RULES) as office:
                assert office.desk.contested(queued) == "short was decided since"

    play(scene)


def test_a_trade_that_a_bot_names_counts_as_sent_and_as_decided(offices: Offices) -> None:
    async def scene() -> None:
        async with offices() as office:
            # Ahead of the clock: as of now.
            office.desk.merge_trades(
                [(PAIR, "long", T0 + 10_000), ("E/USDT:USDT", "short", T0 - 1)]
            )
            await office.post("73")
            await office.post("120", pair=PAIR)
            await office.post("120", pair="E/USDT:USDT")
            await office.wait(WINDOW)
            found = await office.query("SELECT pair, side, outcome FROM decision ORDER BY window")
            assert found == [
                (PAIR, "long", "skip"),
                (PAIR, "short", "skip"),
                ("E/USDT:USDT", "short", "skip"),
            ]

    play(scene)


def test_a_repeat_is_one_after_a_restart(offices: Offices) -> None:
    async def scene() -> None:
        rules: dict[str, Any] = {"on_conflict": "both"}
        both = msgspec.structs.replace(ONE, **rules)
        async with offices(rules=both) as office:
            for feeder in LONG:
                await office.post(feeder)
            await office.wait(0)
            assert len(office.forwarded) == 1
        async with offices(office.now_ms + 14_999, both) as office:
            assert "repeated" in (await office.post("73")).text
            # Another account's is none, and opens a window: the same joins it a moment later.
            assert "counted" in (await office.post("74", account="other")).text
            await office.wait(1)
            assert "counted" in (await office.post("73")).text
        async with offices(office.now_ms, both) as office:
            assert "repeated" in (await office.post("73")).text
            assert await office.query(
                "SELECT count(*), max(window) FROM vote WHERE window > 1"
            ) == [(2, 7)]

    play(scene)


def test_what_was_decided_early_is_not_opened_again_by_its_own_votes(offices: Offices) -> None:
    async def scene() -> None:
        both = msgspec.structs.replace(ONE, on_conflict="both")
        async with offices(rules=both) as office:
            for feeder in LONG:
                await office.post(feeder)
            await office.wait(WINDOW - 1)
        async with offices(office.now_ms, both) as office:
            assert "repeated" in (await office.post("73")).text
            await office.wait(1)
            assert "counted" in (await office.post("73")).text

    play(scene)
