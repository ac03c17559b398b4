"""The meta bot beside the two others, each a bot on loopback: what it gets, and that they do not notice."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest
from bot import CountingBot
from running import (
    END_STATES,
    PAIR,
    Running,
    config,
    end_states,
    rows,
    running,
    settings,
    settle,
    states,
)

from marketfeed.aggregator.aggregator import Aggregator
from marketfeed.aggregator.events import Flow, recent
from marketfeed.aggregator.forwarder import Forwarder
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.outbox import LedgerOutbox
from marketfeed.errors import SettingsError
from marketfeed.settings.load import load_settings
from marketfeed.settings.model import Settings
from marketfeed.storage.ranges import Acknowledged
from tests.waiting import until

NUMBERS = itertools.count()
COPIES = "SELECT state FROM meta_forward ORDER BY window"
ANSWERS = "SELECT answer FROM meta_forward ORDER BY window"


def three(path: Path, bots: dict[str, CountingBot], **changes: Any) -> Settings:
    """One vote decides at once; both sides may be sent."""
    rules = {"min_agreements": 1, "window_s": 0.1, "expire_s": 60, "on_conflict": "both"} | changes
    # On a busy machine an answer takes its time, and is no time-out for that.
    return settings(path, {name: bot.url for name, bot in bots.items()}, 60, **rules)


def copies(path: Path) -> list[str]:
    return [state for (state,) in rows(path, COPIES)]


def waits_for(aggregator: Running) -> str:
    """What keeps its copies back, in a word."""
    return aggregator.aggregator.report().waits_for["meta"][0]


def says(aggregator: Running, words: str) -> bool:
    """Whether a reason of `/health` has these words."""
    return any(words in reason for reason in aggregator.aggregator.reasons())


async def decide(aggregator: Running, path: Path, side: str = "long", pair: str = PAIR) -> None:
    """Post a vote, and wait for its decision."""
    # While an order of its side is under way, a pair is skipped.
    await until(lambda: {*states(path)} <= {*END_STATES}, "no order under way")
    (before,) = rows(path, "SELECT count(*) FROM decision")
    # Another one than any before: the same would be a repeat.
    confidence = round(0.8 + next(NUMBERS) / 1_000, 3)
    feeder = "73" if side == "long" else "120"
    assert (await aggregator.post(feeder, confidence, side=side, pair=pair))[0] == 200
    await until(lambda: rows(path, "SELECT count(*) FROM decision") > [before], "a decision")


def test_it_gets_both_sides_and_may_refuse(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as long, CountingBot() as short, CountingBot() as meta:
            given = three(tmp_path, {"long": long, "short": short, "meta": meta})
            async with running(given) as aggregator:
                await decide(aggregator, tmp_path)
                await until(lambda: copies(tmp_path) == ["accepted"], "the copy")
                meta.refuses = "Failed to enter position for ETH/USDT:USDT."
                await decide(aggregator, tmp_path, "short", "ETH/USDT:USDT")
                await until(lambda: copies(tmp_path) == ["accepted", "refused"], "the second")
                assert await end_states(tmp_path, 2) == ["accepted", "accepted"]
                _, status = await aggregator.status()
                assert status["forwards"]["meta refused"] == 1
                assert status["waiting"] == {"long": 0, "short": 0, "meta": 0}
                # It is the strategy's own matter: nothing is wrong.
                assert status["reasons"] == []
                # Copies, which wait on purpose, are not counted among them.
                assert sum(aggregator.aggregator._counters.close_to_send.counts) == 2
                assert aggregator.aggregator.headline().startswith("10 feeders, 3 bots, well")
            # The orders are the very same.
            assert meta.posts == [*long.posts, *short.posts]
            assert [trade["pair"] for trade in meta.trades] == [PAIR]

    asyncio.run(scenario())
    path = tmp_path / "ledger.db"
    said = [event for event in Flow(path).read() if event.who == "meta"]
    assert sorted(event.what for event in said) == ["answered", "answered", "sent", "sent"]
    assert said[-1].text == (
        "refused 502: Error querying /api/v1/forceenter: Failed to enter position for ETH/USDT:USDT."
    )
    shown = recent(path, 10).decided
    assert [(one.state, one.meta_state, one.meta_status) for one in shown] == [
        ("accepted", "refused", 502),
        ("accepted", "accepted", 200),
    ]


def test_in_influxdb_it_stands_in_the_decision_s_point(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as long, CountingBot() as meta:
            meta.refuses = f"Failed to enter position for {PAIR}."
            async with running(three(tmp_path, {"long": long, "meta": meta})) as aggregator:
                await decide(aggregator, tmp_path)
                await until(lambda: copies(tmp_path) == ["refused"], "the copy")
                assert await end_states(tmp_path) == ["accepted"]

    asyncio.run(scenario())
    outbox = LedgerOutbox(tmp_path / "ledger.db", "")
    everything = Acknowledged.alike(("signal", "ensemble"))
    lines = [line for line in outbox.newest(everything, 100).lines if line.startswith("ensemble")]
    # Three lines of one point.
    assert len(lines) == 3
    assert len({(line.partition(" ")[0], line.rpartition(" ")[2]) for line in lines}) == 1
    (line,) = [line for line in lines if "meta_" in line]
    assert "meta_status=502i,meta_sent=" in line
    assert ",meta_answered=" in line
    assert 'meta_state="refused",meta_answer="' in line
    # What a late request would undo is known again: of the copy, and of the forward.
    assert outbox.as_they_stand(lines) == lines
    key, time = line.partition(" ")[0], line.rpartition(" ")[2]
    assert outbox.as_they_stand([f'{key} meta_state="queued",meta_answer="" {time}']) == [line]
    outbox.close()


@pytest.mark.parametrize("behaviour", ["hang", "freeze", "hang_empty"])
def test_while_it_hangs_the_others_trade(
    tmp_path: Path, behaviour: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So long a stop waits for it.
    monkeypatch.setattr("marketfeed.aggregator.meta.END_S", 0.1)
    pairs = [f"P{number}/USDT:USDT" for number in range(6)]

    async def scenario() -> None:
        async with CountingBot() as long, CountingBot() as meta:
            given = three(tmp_path, {"long": long, "meta": meta}, expire_s=600)
            meta.behaviour = behaviour
            async with running(given) as aggregator:
                await decide(aggregator, tmp_path, pair=pairs[0])
                # One that answers nothing hangs at the question before the order.
                frozen = behaviour == "freeze"
                await until(lambda: meta.posts or (frozen and meta.requests["status"]), "it hangs")
                for pair in pairs[1:]:
                    await decide(aggregator, tmp_path, pair=pair)
                assert await end_states(tmp_path, 6) == ["accepted"] * 6
                # No answer has come all the while, and it got nothing else.
                first = "queued" if frozen else "sending"
                assert copies(tmp_path) == [first] + ["queued"] * 5
                assert len(meta.posts) == (0 if frozen else 1)
            # The stop has not waited for the answer, which has a minute.
            assert copies(tmp_path)[0] == first

    asyncio.run(scenario())


def test_it_gets_what_the_others_refuse_and_cools_down_by_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot("already_open") as long, CountingBot() as meta:
            given = three(tmp_path, {"long": long, "meta": meta}, cooldown_s=600)
            async with running(given) as aggregator:
                await decide(aggregator, tmp_path)
                await until(lambda: copies(tmp_path) == ["accepted"], "the copy")
                assert await end_states(tmp_path) == ["refused"]
                # That has opened nothing: the next one goes, and the copy is too early for its own bot.
                long.behaviour = "ok"
                await decide(aggregator, tmp_path)
                await until(lambda: copies(tmp_path) == ["accepted", "expired"], "the second")
                assert await end_states(tmp_path, 2) == ["refused", "accepted"]
                assert len(meta.posts) == 1
                ((_,), (answer,)) = rows(tmp_path, ANSWERS)
                assert answer.startswith("cool-down for another ")
                # By now it is the other way round: the first bot cools down, and nothing is forwarded.
                await decide(aggregator, tmp_path)
                assert rows(tmp_path, "SELECT outcome FROM decision")[-1] == ("skip",)
                assert len(copies(tmp_path)) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("is_open", [True, False])
def test_a_pair_is_open_on_one_side_at_a_time(tmp_path: Path, is_open: bool) -> None:
    """Freqtrade would refuse the other side, or with `position_adjustment_enable` enlarge what it has."""

    async def scenario() -> None:
        async with CountingBot() as long, CountingBot() as short, CountingBot() as meta:
            given = three(tmp_path, {"long": long, "short": short, "meta": meta})
            async with running(given) as aggregator:
                await decide(aggregator, tmp_path)
                await until(lambda: copies(tmp_path) == ["accepted"], "the copy")
                if not is_open:
                    meta.close_trades()
                await decide(aggregator, tmp_path, "short")
                second = "expired" if is_open else "accepted"
                await until(lambda: copies(tmp_path) == ["accepted", second], "the second")
                assert await end_states(tmp_path, 2) == ["accepted", "accepted"]
                # Of the same side it is sent, as to any bot.
                await decide(aggregator, tmp_path, "long" if is_open else "short")
                await until(lambda: copies(tmp_path)[2:] == ["accepted"], "the third")
        sides = [post["side"] for post in meta.posts]
        assert sides == (["long", "long"] if is_open else ["long", "short", "short"])
        if is_open:
            answer = rows(tmp_path, ANSWERS)[1][0]
            assert answer == f"it holds {PAIR} on the other side: trade 1"

    asyncio.run(scenario())


@pytest.mark.parametrize("opened", [True, False])
def test_what_was_under_way_at_a_kill_is_never_sent_again(tmp_path: Path, opened: bool) -> None:
    async def scenario() -> None:
        async with CountingBot() as long, CountingBot() as meta:
            given = three(tmp_path, {"long": long, "meta": meta})
            # As a kill leaves it: the other one has been answered.
            meta.behaviour = "hang" if opened else "hang_empty"
            async with running(given) as aggregator:
                await decide(aggregator, tmp_path)
                await until(lambda: len(meta.posts) == 1, "an order that hangs")
                assert await end_states(tmp_path) == ["accepted"]
                task = next(it for it in asyncio.all_tasks() if it.get_name() == "forward meta")
                task.cancel()
            assert copies(tmp_path) == ["sending"]
            async with running(given):
                end = "found" if opened else "lost"
                await until(lambda: copies(tmp_path) == [end], end)
            assert len(meta.posts) == 1
            assert len(long.posts) == 1

    asyncio.run(scenario())


def test_a_worker_that_dies_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = Forwarder._fetch
    failed: list[str] = []

    async def failing(self: Forwarder) -> None:
        if self.side == "meta" and len(failed) < 2:
            failed.append(self.side)
            raise RuntimeError("odd")
        await fetch(self)

    monkeypatch.setattr(Forwarder, "_fetch", failing)

    async def scenario() -> None:
        async with CountingBot() as long, CountingBot() as meta:
            async with running(three(tmp_path, {"long": long, "meta": meta})) as aggregator:
                await decide(aggregator, tmp_path)
                assert await end_states(tmp_path) == ["accepted"]
                await until(lambda: copies(tmp_path) == ["accepted"], "the copy")
                assert says(aggregator, "bot of meta: its worker failed, and was started again: ")
            assert len(meta.posts) == 1

    asyncio.run(scenario())


def test_a_trade_that_nobody_knows_holds_the_meta_bot_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as long, CountingBot() as meta:
            meta.add("ETH/USDT:USDT", "short ensemble 3/5 conf=0.82 from=79", 1.0)
            rules = {"unconfirmed_s": 600, "cooldown_s": 600}
            given = three(tmp_path, {"long": long, "meta": meta}, **rules)
            async with running(given) as aggregator:
                await until(lambda: meta.requests["status"] > 0, "the question")
                await decide(aggregator, tmp_path)
                assert await end_states(tmp_path) == ["accepted"]
                await until(lambda: waits_for(aggregator) == "start", "the copy")
                named = "the bot of meta has trades of ours that the ledger does not know: ETH/USDT"
                await until(lambda: says(aggregator, named), "the reason")
            assert meta.posts == []
            assert rows(tmp_path, "SELECT held FROM beginning") == [("",)]
            assert "does not know" in rows(tmp_path, "SELECT held FROM meta_start")[0][0]
            # A start that does not find it any more still holds: nobody knows what is under way.
            meta.trades.clear()
            async with running(given) as aggregator:
                await decide(aggregator, tmp_path, pair="NEXT/USDT:USDT")
                assert await end_states(tmp_path, 2) == ["accepted"] * 2
                await until(lambda: waits_for(aggregator) == "start", "the second copy")
                # What an earlier run left is not sent: it may have been.
                await until(lambda: copies(tmp_path) == ["expired", "queued"], "the first copy")
            assert meta.posts == []

    asyncio.run(scenario())


def test_the_others_do_not_wait_for_its_answers_at_a_start(tmp_path: Path) -> None:
    """Of a fresh ledger the two others are released, whatever the meta bot does not say."""

    async def scenario() -> None:
        async with CountingBot() as long, CountingBot() as meta:
            await meta.stop()
            rules = {"fresh": True, "unconfirmed_s": 0.1}
            given = three(tmp_path, {"long": long, "meta": meta}, **rules)
            async with running(given) as aggregator:
                await until(lambda: rows(tmp_path, "SELECT held FROM beginning") == [("",)], "it")
                await decide(aggregator, tmp_path)
                assert await end_states(tmp_path) == ["accepted"]
                await until(lambda: says(aggregator, "forwarded to the bot of meta"), "the reason")
            assert rows(tmp_path, "SELECT held FROM meta_start") == [("a fresh ledger",)]
            await meta.start()
            async with running(given) as aggregator:
                await until(lambda: rows(tmp_path, "SELECT held FROM meta_start") == [("",)], "it")
                await decide(aggregator, tmp_path, pair="NEXT/USDT:USDT")
                await until(lambda: copies(tmp_path) == ["expired", "accepted"], "the copy")

    asyncio.run(scenario())


def test_copies_of_a_bot_that_is_set_no_more_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as long, CountingBot("hang") as meta:
            async with running(three(tmp_path, {"long": long, "meta": meta})) as aggregator:
                await decide(aggregator, tmp_path)
                await until(lambda: len(meta.posts) == 1, "an order that hangs")
                await decide(aggregator, tmp_path, pair="NEXT/USDT:USDT")
                assert await end_states(tmp_path, 2) == ["accepted"] * 2
                task = next(it for it in asyncio.all_tasks() if it.get_name() == "forward meta")
                task.cancel()
            assert copies(tmp_path) == ["sending", "queued"]
            async with running(three(tmp_path, {"long": long})) as aggregator:
                assert copies(tmp_path) == ["lost", "expired"]
                _, status = await aggregator.status()
                assert list(status["lost"]) == ["meta", "long"]
                # Nothing of it holds the pair.
                await decide(aggregator, tmp_path)
                assert await end_states(tmp_path, 3) == ["accepted"] * 3
            assert len(copies(tmp_path)) == 2

    asyncio.run(scenario())


def test_its_settings(tmp_path: Path) -> None:
    settle(tmp_path / "ledger.db")
    bots: dict[str, Any] = {"long": "http://localhost:8081", "meta": "http://127.0.0.1:8081/api/v1"}
    with pytest.raises(SettingsError) as raised:
        Aggregator(load_settings(config(tmp_path, bots), {}))
    assert str(raised.value).splitlines()[1:] == [
        (
            "  aggregator.bots.meta.url: expected a third bot, as one of the two would get its orders twice; "
            "found http://127.0.0.1:8081/api/v1"
        )
    ]
    bots["meta"] = {"url": "http://127.0.0.1:8083"}
    with pytest.raises(SettingsError, match=r"aggregator\.bots\.meta: expected a password"):
        Aggregator(load_settings(config(tmp_path, bots), {}))


def test_without_it_nothing_is_copied(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as long:
            async with running(three(tmp_path, {"long": long})) as aggregator:
                await decide(aggregator, tmp_path)
                assert await end_states(tmp_path) == ["accepted"]
                _, status = await aggregator.status()
                assert "meta" not in status["waiting"]
            assert copies(tmp_path) == []
            assert states(tmp_path) == ["accepted"]

    asyncio.run(scenario())
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        assert ledger.forwards(("queued",), "meta") == []
