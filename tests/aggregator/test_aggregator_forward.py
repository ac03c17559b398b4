"""What becomes of a forward with every sort of bot: the right end state, and never two orders."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
import pytest
from bot import Behaviour, CountingBot
from running import (
    PAIR,
    QUICK,
    Running,
    end_states,
    one_vote,
    rows,
    running,
    settings,
    settle,
    states,
)

from marketfeed.aggregator.ballots import Rules, Vote
from marketfeed.aggregator.forwarder import Forwarder, Terms
from marketfeed.aggregator.freqtrade_bot import Bot
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_tables import Forward, Receipt
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.metrics import AggregatorCounters
from marketfeed.aggregator.reasons import Kind
from marketfeed.aggregator.signals import Electorate, Signal
from marketfeed.aggregator.votes import Votes
from marketfeed.clock import HostClock
from tests.waiting import until

T = TypeVar("T")


async def looked_again(bot: CountingBot, times: int = 3) -> None:
    wanted = bot.requests["status"] + times
    await until(lambda: bot.requests["status"] >= wanted, "looks into the bot")


EVERY_SORT: dict[Behaviour, tuple[str, int | None, str]] = {
    "ok": ("accepted", 200, "trade 1"),
    "already_open": ("refused", 502, "position for BTC/USDT:USDT already open - id: 1"),
    "unauthorized": ("refused", 401, "Unauthorized"),
    "unknown_words": ("found", None, "trade 1 in the bot"),
    "garbage": ("found", None, "trade 1 in the bot"),
    "error_500": ("found", None, "trade 1 in the bot"),
    "gateway_timeout": ("found", None, "trade 1 in the bot"),
    "slow": ("found", None, "trade 1 in the bot"),
    "hang": ("found", None, "trade 1 in the bot"),
    "cut": ("found", None, "trade 1 in the bot"),
    "cut_body": ("found", None, "trade 1 in the bot"),
    "status_only": (
        "lost",
        None,
        "before that: it answered 200: Error entering long trade for pair",
    ),
    "redirect": ("lost", None, "before that: it answered 302: Found"),
    "error_500_empty": ("lost", None, "before that: it answered 500: Internal Server Error"),
    "bad_gateway": ("lost", None, "before that: it answered 502: <html>502 Bad Gateway</html>"),
    "error_json": ("lost", None, "before that: it answered 503: upstream"),
    "web_page": ("lost", None, "before that: it answered 200: <html>Welcome to nginx!</html>"),
    "hang_empty": ("lost", None, "no such trade in the bot"),
    "cut_empty": ("lost", None, "no such trade in the bot"),
    "freeze": ("lost", None, "the bot could not be asked"),
}
"""How a bot behaves -> state in which the forward ends, the bot's HTTP status, and words that are kept."""
IN_VAIN: set[Behaviour] = {"slow", "hang", "hang_empty", "freeze"}
"""Of these the answer does not come within the bot's time."""


def asked_enough(worker: Forwarder) -> bool:
    """Whether it is asked how it is for long no more."""
    return worker._access.ask_at_s > time.monotonic() + 1_000


@pytest.mark.long(20)
def test_every_sort_of_bot_has_its_end_state(tmp_path: Path) -> None:
    async def forwarded(path: Path, behaviour: Behaviour) -> dict[str, Any]:
        path.mkdir()  # noqa: ASYNC240 - a test's own
        # All at once: only who is waited for in vain has short limits, whatever else the machine does.
        timeout_s = 2.5 if behaviour in IN_VAIN else 60
        # A probe that is not let in keeps the order back: here it is to be the first that is not.
        barred = behaviour == "unauthorized"
        pace = msgspec.structs.replace(QUICK, probe_s=3600.0) if barred else QUICK
        unconfirmed_s = 4.0 if EVERY_SORT[behaviour][0] == "lost" else 180.0
        async with (
            CountingBot("ok" if barred else behaviour, slow_s=4.0) as bot,
            running(
                one_vote(
                    path,
                    bot.url,
                    bot_timeout_s=timeout_s,
                    expire_s=180,
                    unconfirmed_s=unconfirmed_s,
                ),
                pace,
            ) as aggregator,
        ):
            if barred:
                worker = aggregator.aggregator._parts.forwarders["long"]
                await until(lambda: bot.asked and asked_enough(worker), "the questions of a start")
                bot.behaviour = behaviour
            await aggregator.post("73", 0.9)
            (state,) = await end_states(path)
            ((status, words, attempts),) = rows(
                path, "SELECT status, answer, attempts FROM forward"
            )
            if state == "found":
                # By a look that was answered: that this ends its trouble comes after the note.
                reasons = aggregator.aggregator.reasons
                await until(lambda: not reasons(), lambda: f"{behaviour}: {reasons()}")
            health, answer = await aggregator.status("health")
            found = {"state": state, "status": status, "attempts": attempts, "health": health}
            found["words"] = EVERY_SORT[behaviour][2] in words or words
            found["posts"] = len(bot.posts)
            alarms = [reason for reason in answer["reasons"] if reason.startswith("forward lost")]
            found["alarms"] = len(alarms)
        # It ends there, even if the aggregator is started again. A vote that is decided late is no decision.
        async with (
            CountingBot(behaviour) as bot,
            running(one_vote(path, bot.url, expire_s=10)) as aggregator,
        ):
            await aggregator.post("73", 0.9, pair="ETH/USDT:USDT")
            # What was sent again would have been before the next one has ended.
            await end_states(path, 2)
            found["posts again"] = sum(post["pair"] == PAIR for post in bot.posts)
            found["state again"] = states(path)[:1]
        return found

    async def scenario() -> dict[str, dict[str, Any]]:
        found = await asyncio.gather(
            *(forwarded(tmp_path / behaviour, behaviour) for behaviour in EVERY_SORT)
        )
        return dict(zip(EVERY_SORT, found, strict=True))

    assert asyncio.run(scenario()) == {
        behaviour: {
            "state": state,
            "status": status,
            "words": True,
            "attempts": 1,
            "posts": 0 if behaviour == "unauthorized" else 1,
            "alarms": int(state == "lost"),
            "health": 503 if state == "lost" or behaviour == "unauthorized" else 200,
            "posts again": 0,
            "state again": [state],
        }
        for behaviour, (state, status, _) in EVERY_SORT.items()
    }


def test_a_dead_bot_is_asked_until_the_signal_expires(tmp_path: Path) -> None:
    async def scenario() -> None:
        bot = CountingBot()
        await bot.start()
        async with running(one_vote(tmp_path, bot.url)) as aggregator:
            await until(lambda: bot.requests["trades"], "the question of the start")
            await bot.stop()
            await aggregator.post("73", 0.9)
            assert await end_states(tmp_path) == ["expired"]
            ((answer, attempts),) = rows(tmp_path, "SELECT answer, attempts FROM forward")
            assert answer.startswith("not sent before it expired: not reachable: ")
            # By that one it was seen, or by a question before it.
            assert attempts <= 1
            status, health = await aggregator.status("health")
            assert status == 503
            assert "not reachable: " in str(health["reasons"])
            assert (await aggregator.status())[1]["expired"] == {"long": {"unreachable": 1}}

    asyncio.run(scenario())


def test_a_bot_that_comes_back_in_time_gets_the_order_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        bot = CountingBot()
        await bot.start()
        async with running(one_vote(tmp_path, bot.url, expire_s=60)) as aggregator:
            await until(lambda: bot.requests["trades"], "the question of the start")
            await bot.stop()
            await aggregator.post("73", 0.9)
            report = aggregator.aggregator.report
            await until(lambda: report().waits_for["long"][0] == "unreachable", "questions")
            async with bot:
                assert await end_states(tmp_path) == ["accepted"]
                assert len(bot.posts) == 1
                assert (await aggregator.status("health"))[0] == 200

    asyncio.run(scenario())


def test_nothing_else_is_sent_to_a_bot_that_hangs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot("freeze") as bot,
            running(one_vote(tmp_path, bot.url, bot_timeout_s=0.3)) as aggregator,
        ):
            await aggregator.post("73", 0.9, pair="BTC/USDT:USDT")
            await until(lambda: bot.posts, "an order")
            await aggregator.post("73", 0.9, pair="ETH/USDT:USDT")
            assert await end_states(tmp_path, 2) == ["lost", "expired"]
            assert [post["pair"] for post in bot.posts] == ["BTC/USDT:USDT"]

    asyncio.run(scenario())


def test_no_other_order_is_sent_while_one_is_unconfirmed(tmp_path: Path) -> None:
    """A bot that is busy with an order: it answers looks all the time, and its loop waits for the order."""

    async def scenario() -> None:
        pairs = [f"P{number}/USDT:USDT" for number in range(3)]
        async with (
            CountingBot("hang_empty") as bot,
            running(
                one_vote(tmp_path, bot.url, bot_timeout_s=0.3, expire_s=1.5, unconfirmed_s=600)
            ) as aggregator,
        ):
            bot.turn_s = 0
            await aggregator.post("73", 0.9, pair=pairs[0])
            await until(lambda: "unknown" in states(tmp_path), "an order without an answer")
            for pair in pairs[1:]:
                await aggregator.post("73", 0.9, pair=pair)
            await until(lambda: states(tmp_path) == ["unknown", "expired", "expired"], "the ends")
            assert len(bot.posts) == 1
            assert bot.requests["status"] > 1
            for (words,) in rows(tmp_path, "SELECT answer FROM forward WHERE state = 'expired'"):
                assert words.startswith(
                    "not sent before it expired: the outcome of another order is not known, "
                )
            # It comes to a trade after all: what is decided now is sent.
            bot._open(bot.posts[0])
            bot.behaviour = "ok"
            await until(lambda: states(tmp_path)[0] == "found", "the trade")
            await aggregator.post("73", 0.9, pair="P3/USDT:USDT")
            await until(lambda: states(tmp_path)[3:] == ["accepted"], "another order")

    asyncio.run(scenario())


def test_a_bot_whose_loop_turns_gets_the_next(tmp_path: Path) -> None:
    """What came of the order is not known, but the bot is not at it any more."""

    async def scenario() -> None:
        async with (
            CountingBot("error_500_empty") as bot,
            running(one_vote(tmp_path, bot.url, expire_s=30, unconfirmed_s=600)) as aggregator,
        ):
            await aggregator.post("73", 0.9, pair="BTC/USDT:USDT")
            await until(lambda: "unknown" in states(tmp_path), "an order that went wrong")
            bot.behaviour = "ok"
            await aggregator.post("73", 0.9, pair="ETH/USDT:USDT")
            await until(lambda: states(tmp_path) == ["unknown", "accepted"], "the next")

    asyncio.run(scenario())


def test_no_answer_of_a_bot_ends_the_aggregator(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot("nested") as bot,
            running(one_vote(tmp_path, bot.url, expire_s=60, unconfirmed_s=60)) as aggregator,
        ):
            trouble = ""
            async with asyncio.timeout(180):
                while "not well: " not in trouble:
                    trouble = " ".join((await aggregator.status("health"))[1]["reasons"])
            assert "RecursionError" in trouble
            await aggregator.post("73", 0.9)
            await until(lambda: "unknown" in states(tmp_path), "an answer that says nothing")
            await looked_again(bot)
            # And times that no trade has.
            bot.trades.insert(0, bot.trades[0] | {"open_timestamp": -(10**30), "trade_id": 10**30})
            bot.trades.insert(0, bot.trades[0] | {"open_timestamp": 10**30})
            bot.behaviour = "ok"
            assert await end_states(tmp_path) == ["found"]

    asyncio.run(scenario())


def test_one_request_at_a_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot("slow", slow_s=0.05) as bot,
            running(one_vote(tmp_path, bot.url, expire_s=60)) as aggregator,
        ):
            pairs = [f"P{number}/USDT:USDT" for number in range(8)]
            await asyncio.gather(*(aggregator.post("73", 0.9, pair=pair) for pair in pairs))
            assert await end_states(tmp_path, 8) == ["accepted"] * 8
            assert sorted(post["pair"] for post in bot.posts) == pairs
            assert bot.most_at_once == 1

    asyncio.run(scenario())


def test_an_unknown_one_is_found_among_closed_trades_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot("freeze") as bot,
            running(one_vote(tmp_path, bot.url, bot_timeout_s=0.5)) as aggregator,
        ):
            await aggregator.post("73", 0.9)
            await until(lambda: bot.posts, "an order")
            bot.close_trades()
            bot.behaviour = "ok"
            assert await end_states(tmp_path) == ["found"]
            assert len(bot.posts) == 1

    asyncio.run(scenario())


def test_a_closed_one_is_found_among_more_than_are_looked_through(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot("freeze") as bot,
            running(one_vote(tmp_path, bot.url, bot_timeout_s=0.5)) as aggregator,
        ):
            for number in range(150):
                bot._open({"pair": f"P{number}/USDT:USDT"})
            await aggregator.post("73", 0.9)
            await until(lambda: bot.posts, "an order")
            bot.close_trades()
            bot.behaviour = "ok"
            assert await end_states(tmp_path) == ["found"]

    asyncio.run(scenario())


def test_a_slow_look_does_not_make_a_trade_older(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot("cut") as bot,
            running(one_vote(tmp_path, bot.url, bot_timeout_s=30)) as aggregator,
        ):
            await until(lambda: bot.requests["trades"], "the question of the start")
            bot.look_s = 4.0
            await aggregator.post("73", 0.9)
            assert await end_states(tmp_path) == ["found"]
            # At the first look (after the question of the start), which took longer than an outcome may be
            # unknown here.
            assert bot.requests["status"] == 2

    asyncio.run(scenario())


def test_an_order_that_enlarged_a_trade_is_found(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot("cut_adding") as bot,
            running(one_vote(tmp_path, bot.url)) as aggregator,
        ):
            bot._open({"pair": PAIR, "side": "long", "entry_tag": "by hand"})
            bot.trades[0]["open_timestamp"] -= 86_400_000
            await aggregator.post("73", 0.9)
            assert await end_states(tmp_path) == ["found"]
            ((words,),) = rows(tmp_path, "SELECT answer FROM forward")
            assert words.startswith("trade 1 in the bot, enlarged at ")

    asyncio.run(scenario())


def test_a_lost_one_that_turns_up_late_is_found(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot("freeze") as bot,
            running(one_vote(tmp_path, bot.url, bot_timeout_s=0.5)) as aggregator,
        ):
            await aggregator.post("73", 0.9)
            await until(lambda: "lost" in states(tmp_path), "the alarm")
            bot.behaviour = "ok"
            await until(lambda: states(tmp_path) == ["found"], "the trade")
            # The alarm is over as soon as the trade is noted.
            async with asyncio.timeout(180):
                while (await aggregator.status("health"))[0] != 200:
                    await asyncio.sleep(0.02)

    asyncio.run(scenario())


@pytest.mark.parametrize("ahead_ms", [-10_800_000, 10_800_000])
def test_a_bot_s_wrong_clock_does_not_hide_its_trade(tmp_path: Path, ahead_ms: int) -> None:
    async def scenario() -> None:
        async with CountingBot("cut") as bot:
            bot.clock_ahead_ms = ahead_ms
            async with running(one_vote(tmp_path, bot.url)) as aggregator:
                await aggregator.post("73", 0.9)
                assert await end_states(tmp_path) == ["found"]

    asyncio.run(scenario())


@pytest.mark.parametrize("change", ["older", "other_pair", "other_tag", "other_side"])
def test_a_trade_that_is_another_one_resolves_nothing(tmp_path: Path, change: str) -> None:
    async def scenario() -> None:
        async with (
            CountingBot("cut") as bot,
            running(one_vote(tmp_path, bot.url)) as aggregator,
        ):
            # It is there before the look: what it opens is changed at once.
            opened = bot._open

            def open_another(body: dict[str, Any]) -> dict[str, Any]:
                trade = opened(body)
                trade |= {
                    "older": {"open_timestamp": trade["open_timestamp"] - 60_000},
                    "other_pair": {"pair": "ETH/USDT:USDT"},
                    "other_tag": {"enter_tag": "force_entry"},
                    "other_side": {"is_short": True},
                }[change]
                return trade

            bot._open = open_another  # type: ignore[method-assign]
            await aggregator.post("73", 0.9)
            assert await end_states(tmp_path) == ["lost"]

    asyncio.run(scenario())


class SlowDisk(LedgerThread):
    """A ledger on a disk that takes two minutes, by the clock that goes with it, to note `sending`."""

    late_ms = 0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.late_ms

    async def call(self, function: Callable[[Ledger], T]) -> T:
        found = await super().call(function)
        match found:
            case (_, Forward(state="sending")):
                self.late_ms = 120_000
        return found


def test_a_ledger_that_takes_too_long_ends_an_order_unsent(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_forward(tmp_path, expire_ms=60_000)
        async with (
            CountingBot() as bot,
            aiohttp.ClientSession() as session,
            SlowDisk(tmp_path / "ledger.db") as ledger,
        ):
            to_bot = Bot(one_vote(tmp_path, bot.url).aggregator.bots.long, session)
            forwarder = Forwarder(
                "long",
                to_bot,
                ledger,
                ledger.now_ms,
                AggregatorCounters(),
                Terms(60_000, 40.0),
                pace=QUICK,
            )
            working = asyncio.create_task(forwarder.run())
            assert await end_states(tmp_path) == ["expired"]
            forwarder.end()
            await working
            ((words, sent, attempts),) = rows(
                tmp_path, "SELECT answer, sent, attempts FROM forward"
            )
            assert words == (
                "not sent before it expired: the ledger took too long to note that it is sent"
            )
            assert (sent, attempts) == (None, 1)
            assert bot.posts == []

    asyncio.run(scenario())


def test_another_decision_s_trade_does_not_resolve_a_lost_one(tmp_path: Path) -> None:
    """One feeder, one confidence: both orders have the same tag."""

    async def scenario() -> None:
        async with (
            CountingBot("cut_empty") as bot,
            running(one_vote(tmp_path, bot.url, bot_timeout_s=10)) as aggregator,
        ):
            await aggregator.post("73", 0.9)
            await until(lambda: states(tmp_path) == ["lost"], "the alarm")
            bot.behaviour = "ok"
            await aggregator.post("73", 0.9, signal_strength=2)
            await until(lambda: states(tmp_path)[1:] == ["accepted"], "another order")
            await looked_again(bot)
            # Sent without an answer, it goes before the older one as well.
            bot.behaviour = "cut"
            await aggregator.post("73", 0.9, signal_strength=3)
            await until(lambda: states(tmp_path)[2:] == ["found"], "its trade")
            await looked_again(bot)
            assert states(tmp_path) == ["lost", "accepted", "found"]
            words = [words for (words,) in rows(tmp_path, "SELECT answer FROM forward")]
            assert words[1] == "trade 1"
            assert words[2].startswith("trade 2 in the bot")
            reasons = (await aggregator.status("health"))[1]["reasons"]
            assert [reason.startswith("forward lost: ") for reason in reasons] == [True]
            # Its own one at last, which nobody else names.
            tag = bot.posts[0]["entry_tag"]
            bot._open({"pair": PAIR, "side": "long", "entry_tag": tag})
            await until(lambda: states(tmp_path)[0] == "found", "the first one's trade")

    asyncio.run(scenario())


def test_the_trade_of_a_moment_before_resolves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot() as bot,
            running(one_vote(tmp_path, bot.url, bot_timeout_s=10)) as aggregator,
        ):
            await aggregator.post("73", 0.9)
            await until(lambda: states(tmp_path) == ["accepted"], "an order")
            # Within what the clocks may differ by.
            bot.trades[0]["open_timestamp"] += 60_000
            bot.behaviour = "cut_empty"
            await aggregator.post("73", 0.9, signal_strength=2)
            await until(lambda: states(tmp_path)[1:] == ["lost"], "the alarm")

    asyncio.run(scenario())


# --- restarts ---------------------------------------------------------------------------------------


def write_forward(path: Path, *steps: str, age_ms: int = 0, expire_ms: int = 2_000) -> int:
    """A ledger in which one decision stands where a killed aggregator left it; returns when it was sent."""
    electorate = Electorate.of(("73",), ())
    rules = Rules(200, 1, 0.7, "both", 0, expire_ms, 1.0, 5.0, ("market",), electorate)
    now_ms = time.time_ns() // 1_000_000 - age_ms
    with Ledger.open(settle(path / "ledger.db")) as ledger:
        votes = Votes(rules)
        signal = Signal(PAIR, "long", "73", "73", 0.9)
        vote = Vote(1, now_ms, signal, signal.digest())
        counted = votes.add(vote)
        receipt = Receipt(vote, "fleet", "127.0.0.1", None, b"", counted.outcome, 1, "counted")
        ledger.record([receipt], votes.due(now_ms), now_ms)
        for step in steps:
            ledger.step(1, "long", step, now_ms)  # type: ignore[arg-type]
    return now_ms


def test_queued_at_the_crash_is_sent_after_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_forward(tmp_path)
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url)):
            assert await end_states(tmp_path) == ["accepted"]
            assert len(bot.posts) == 1

    asyncio.run(scenario())


def test_queued_too_long_ago_is_not_sent_any_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_forward(tmp_path, age_ms=5_000)
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url)):
            assert await end_states(tmp_path) == ["expired"]
            assert bot.posts == []

    asyncio.run(scenario())


@pytest.mark.parametrize("steps", [("sending",), ("sending", "unknown")])
@pytest.mark.parametrize("there", [True, False])
def test_sending_at_the_crash_is_looked_for_and_never_sent_again(
    tmp_path: Path, steps: tuple[str, ...], there: bool
) -> None:
    async def scenario() -> None:
        write_forward(tmp_path, *steps)
        async with CountingBot() as bot:
            if there:
                ((tag,),) = rows(tmp_path, "SELECT tag FROM decision")
                bot._open({"pair": PAIR, "side": "long", "entry_tag": tag})
            async with running(one_vote(tmp_path, bot.url)):
                assert await end_states(tmp_path) == ["found" if there else "lost"]
            assert bot.posts == []

    asyncio.run(scenario())


AHEAD_MS = 7_200_000


def test_what_a_clock_that_was_ahead_decided_is_not_sent(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_forward(tmp_path, age_ms=-AHEAD_MS)
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url)) as aggregator:
            assert await end_states(tmp_path) == ["expired"]
            ((words,),) = rows(tmp_path, "SELECT answer FROM forward")
            assert words == (
                "not sent before it expired: it was decided by a clock that was ahead, "
                "nobody knows how long ago"
            )
            assert bot.posts == []
            # What is decided now has the right time.
            await aggregator.post("73", 0.9, pair="ETH/USDT:USDT")
            assert await end_states(tmp_path, 2) == ["expired", "accepted"]

    asyncio.run(scenario())


@pytest.mark.parametrize("steps", [("sending",), ("sending", "unknown")])
@pytest.mark.parametrize(("opened_ago_s", "end"), [(600, "found"), (90_000, "lost")])
def test_what_a_clock_that_was_ahead_sent_is_found(
    tmp_path: Path, steps: tuple[str, ...], opened_ago_s: int, end: str
) -> None:
    async def scenario() -> None:
        write_forward(tmp_path, *steps, age_ms=-AHEAD_MS)
        async with CountingBot() as bot:
            ((tag,),) = rows(tmp_path, "SELECT tag FROM decision")
            trade = bot._open({"pair": PAIR, "side": "long", "entry_tag": tag})
            trade["open_timestamp"] -= opened_ago_s * 1000
            async with running(one_vote(tmp_path, bot.url)):
                assert await end_states(tmp_path) == [end]
            assert bot.posts == []

    asyncio.run(scenario())


@pytest.mark.parametrize(("set_s", "words"), [(7_200, "back by 7200 s"), (-60, "forward by 60 s")])
def test_a_clock_that_was_set_is_reported(tmp_path: Path, set_s: int, words: str) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url)) as aggregator:
            assert (await aggregator.status("health"))[0] == 200
            now_ms = time.time_ns() // 1_000_000
            aggregator.aggregator._clock = HostClock(now_ms + 1000 * set_s)
            status, health = await aggregator.status("health")
            assert status == 503
            (reason,) = health["reasons"]
            assert reason == (
                f"this host's clock has been set {words} since the start: times are by the old one "
                "(until a restart)"
            )

    asyncio.run(scenario())


def test_an_alarm_is_not_put_off_by_restarts(tmp_path: Path) -> None:
    """`unknown` for longer than it may take is lost at the first look."""

    async def scenario() -> None:
        write_forward(tmp_path, "sending", age_ms=1_300)
        # The second look is not due before the test is over.
        pace = msgspec.structs.replace(QUICK, look_lost_s=600)
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url), pace):
            assert await end_states(tmp_path) == ["lost"]
            # And the question of the start.
            assert bot.requests["status"] <= 2

    asyncio.run(scenario())


async def reasons_of(aggregator: Running) -> list[str]:
    found = (await aggregator.status("health"))[1]["reasons"]
    return [reason for reason in found if reason.startswith("forward lost: ")]


def test_an_alarm_stays_while_the_bot_cannot_be_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        pace = msgspec.structs.replace(QUICK, forget_s=0.0, look_lost_s=0.02)
        async with (
            CountingBot("freeze") as bot,
            running(one_vote(tmp_path, bot.url, bot_timeout_s=0.3), pace) as aggregator,
        ):
            await aggregator.post("73", 0.9)
            await until(lambda: states(tmp_path) == ["lost"], "the alarm")
            await looked_again(bot)
            assert len(await reasons_of(aggregator)) == 1
            # It was there all the time.
            bot.behaviour = "ok"
            await until(lambda: states(tmp_path) == ["found"], "the trade")

    asyncio.run(scenario())


def test_an_alarm_ends_when_the_bot_has_answered_for_long_enough(tmp_path: Path) -> None:
    async def scenario() -> None:
        pace = msgspec.structs.replace(QUICK, forget_s=0.5, look_lost_s=0.02)
        async with (
            CountingBot("cut_empty") as bot,
            running(one_vote(tmp_path, bot.url), pace) as aggregator,
        ):
            await aggregator.post("73", 0.9)
            await until(lambda: states(tmp_path) == ["lost"], "the alarm")
            async with asyncio.timeout(180):
                while await reasons_of(aggregator):
                    await asyncio.sleep(0.02)
            assert (await aggregator.status("health"))[0] == 200
            assert states(tmp_path) == ["lost"]

    asyncio.run(scenario())


def test_a_restart_does_not_end_an_alarm(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_forward(tmp_path, "sending", "unknown", "lost", age_ms=1_000_000)
        async with CountingBot("freeze", asked=True) as bot:
            ((tag,),) = rows(tmp_path, "SELECT tag FROM decision")
            given = one_vote(tmp_path, bot.url, bot_timeout_s=0.3)
            async with running(given) as aggregator:
                # For longer ago than it is looked for: the bot has not been asked since the start.
                await looked_again(bot)
                assert len(await reasons_of(aggregator)) == 1
            async with running(given) as aggregator:
                await looked_again(bot)
                assert len(await reasons_of(aggregator)) == 1
                trade = bot._open({"pair": PAIR, "side": "long", "entry_tag": tag})
                trade["open_timestamp"] -= 1_000_000
                bot.behaviour = "ok"
                await until(lambda: states(tmp_path) == ["found"], "the trade")
            assert bot.posts == []

    asyncio.run(scenario())


def test_a_lost_one_of_long_ago_is_looked_for_as_long_after_a_start(tmp_path: Path) -> None:
    """The bot may have been frozen all the time: one answer proves nothing."""

    async def scenario() -> None:
        write_forward(tmp_path, "sending", "unknown", "lost", age_ms=1_000_000)
        pace = msgspec.structs.replace(QUICK, forget_s=1.0, look_lost_s=0.05)
        async with CountingBot() as bot, running(one_vote(tmp_path, bot.url), pace) as aggregator:
            await looked_again(bot)
            assert len(await reasons_of(aggregator)) == 1
            async with asyncio.timeout(180):
                while await reasons_of(aggregator):
                    await asyncio.sleep(0.02)

    asyncio.run(scenario())


def test_after_a_lost_one_of_long_ago_others_wait_for_the_bot_s_loop(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_forward(tmp_path, "sending", "unknown", "lost", age_ms=1_000_000)
        async with CountingBot() as bot:
            # It has just been thawed, and the order waits for its lock.
            bot.turn_s = 0
            async with running(one_vote(tmp_path, bot.url, expire_s=60)) as aggregator:
                await aggregator.post("73", 0.9, pair="ETH/USDT:USDT")
                await until(lambda: len(states(tmp_path)) == 2, "another decision")
                asked = bot.requests["health"]
                await until(lambda: bot.requests["health"] > asked + 8, "looks")
                assert bot.posts == []
                bot.turn_s = 0.01
                await until(lambda: states(tmp_path) == ["lost", "accepted"], "the other order")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("steps", "end", "words"),
    [
        ((), "expired", "not sent before it expired: no bot is set for long"),
        (("sending",), "lost", "no bot is set for long that could be asked; before that: the agg"),
        (
            ("sending", "unknown"),
            "lost",
            "no bot is set for long that could be asked; before that:",
        ),
        (("sending", "unknown", "lost"), "lost", ""),
    ],
)
def test_a_side_whose_bot_is_gone_leaves_nothing_open(
    tmp_path: Path, steps: tuple[str, ...], end: str, words: str
) -> None:
    async def scenario() -> None:
        write_forward(tmp_path, *steps)
        async with (
            CountingBot() as bot,
            running(settings(tmp_path, {"short": bot.url})) as aggregator,
        ):
            assert states(tmp_path) == [end]
            ((answer,),) = rows(tmp_path, "SELECT answer FROM forward")
            assert answer.startswith(words)
            lost = await reasons_of(aggregator)
            assert len(lost) == int(end == "lost")
            told = (await aggregator.status())[1]["lost"].get("long", [])
            assert [str(Kind.LOST.reason(more=words)) for words in told] == lost
            assert bot.posts == []

    asyncio.run(scenario())
