"""Which order goes next, and when: the best one, when the bot takes orders, if nothing speaks against it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from bot import CountingBot
from forwards import decision, now_ms, record, working
from running import LONG, PAIR, QUICK, end_states, one_vote, rows, running, states

from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_tables import Forward
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.sending import Hooks
from marketfeed.aggregator.standing import Standing
from tests.waiting import until

T = TypeVar("T")


def answers(path: Path) -> list[str]:
    return [answer for (answer,) in rows(path, "SELECT answer FROM forward ORDER BY window")]


def pairs_of(posts: list[dict[str, Any]]) -> list[str]:
    return [post["pair"] for post in posts]


# --- the best first ---------------------------------------------------------------------------------


def test_the_best_go_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        # The older, the fewer votes: by age they would go the other way round.
        record(tmp_path, *(decision(number, votes=number) for number in (1, 2, 3, 4, 5)))
        async with CountingBot() as bot, working(tmp_path, bot, Hooks()):
            assert await end_states(tmp_path, 5) == ["accepted"] * 5
            assert pairs_of(bot.posts) == [f"P{number}/USDT:USDT" for number in (5, 4, 3, 2, 1)]

    asyncio.run(scenario())


class LateJoin(LedgerThread):
    """A ledger into which a better decision comes right before the first `sending` is committed."""

    joined = 0

    async def call(self, function: Callable[[Ledger], T]) -> T:
        if getattr(function, "__name__", "") == "commit" and not self.joined:
            self.joined = 9
            await super().call(lambda ledger: ledger.record([], [decision(9, votes=5)], now_ms()))
        return await super().call(function)


def test_one_that_joins_before_the_commit_goes_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path, decision(1, votes=4), decision(2, votes=3))
        ledger = LateJoin(tmp_path / "ledger.db")
        async with CountingBot() as bot, working(tmp_path, bot, Hooks(), ledger):
            assert await end_states(tmp_path, 3) == ["accepted"] * 3
            assert pairs_of(bot.posts) == [f"P{number}/USDT:USDT" for number in (9, 1, 2)]
            assert [row for (row,) in rows(tmp_path, "SELECT attempts FROM forward")] == [1, 1, 1]

    asyncio.run(scenario())


class Replaced(LedgerThread):
    """A ledger in which a decision is replaced right before its `sending` is committed."""

    done = False

    async def call(self, function: Callable[[Ledger], T]) -> T:
        if getattr(function, "__name__", "") == "commit" and not self.done:
            self.done = True
            words = "replaced by window 2"
            await super().call(lambda ledger: ledger.step(1, "long", "expired", now_ms(), words))
        return await super().call(function)


def test_one_that_was_replaced_is_not_sent(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path, decision(1, votes=4), decision(2, votes=3))
        ledger = Replaced(tmp_path / "ledger.db")
        async with CountingBot() as bot, working(tmp_path, bot, Hooks(), ledger):
            assert await end_states(tmp_path, 2) == ["expired", "accepted"]
            assert answers(tmp_path)[0] == "replaced by window 2"
            assert pairs_of(bot.posts) == ["P2/USDT:USDT"]

    asyncio.run(scenario())


# --- a bot that is full, paused, or does not let us in ----------------------------------------------


def test_a_full_bot_gets_the_best_when_it_has_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path, *(decision(number, votes=number) for number in (1, 2, 3)))
        async with CountingBot() as bot, working(tmp_path, bot, Hooks()):
            bot.max_open_trades = 1
            await until(lambda: len(bot.posts) == 2, "an order that is sent back")
            asked = bot.requests["count"]
            await until(lambda: bot.requests["count"] > asked + 2, "questions for room")
            # Nothing is tried while it says that it is full.
            assert pairs_of(bot.posts) == ["P3/USDT:USDT", "P2/USDT:USDT"]
            assert rows(tmp_path, "SELECT state, attempts, status, answer, sent FROM forward") == [
                ("queued", 0, None, "", None),
                (
                    "queued",
                    1,
                    502,
                    "Error querying /api/v1/forceenter: Maximum number of trades is reached.",
                    None,
                ),
                ("accepted", 1, 200, "trade 1", pytest.approx(now_ms(), abs=60_000)),
            ]
            # One better than both has come meanwhile.
            await until(lambda: bot.requests["count"] > asked + 3, "a question for room")
            bot.close_trades()
            await until(lambda: states(tmp_path)[1] == "accepted", "the one that was sent back")
            bot.close_trades()
            assert await end_states(tmp_path, 3) == ["accepted"] * 3

    asyncio.run(scenario())


def test_an_order_that_has_no_room_expires_with_that_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot("full") as bot,
            running(one_vote(tmp_path, bot.url, expire_s=1)) as aggregator,
        ):
            await aggregator.post("73", 0.9)
            await until(lambda: bot.posts, "an order")
            status = (await aggregator.status())[1]
            if status["waiting"]["long"]:
                assert status["waits_for"]["long"][0] == "no room"
            assert await end_states(tmp_path) == ["expired"]
            (words,) = answers(tmp_path)
            assert words.startswith("not sent before it expired: no room: ")
            assert (await aggregator.status())[1]["expired"] == {"long": {"no room": 1}}
            # A full bot is as it should be.
            assert (await aggregator.status("health"))[0] == 200
            assert len(bot.posts) == 1

    asyncio.run(scenario())


def test_a_paused_bot_gets_it_when_it_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot("paused") as bot,
            running(one_vote(tmp_path, bot.url, expire_s=60)) as aggregator,
        ):
            await aggregator.post("73", 0.9)
            await until(lambda: bot.requests["show_config"] > 2, "questions for its state")
            # It is asked, and not tried: but once, if the order came before the first question.
            tried = len(bot.posts)
            assert tried <= 1
            status, health = await aggregator.status("health")
            assert status == 503
            assert any("it is not running: " in reason for reason in health["reasons"])
            assert (await aggregator.status())[1]["waits_for"]["long"][0] == "paused"
            bot.behaviour = "ok"
            assert await end_states(tmp_path) == ["accepted"]
            assert len(bot.posts) == tried + 1
            assert (await aggregator.status("health"))[0] == 200

    asyncio.run(scenario())


def test_only_the_first_is_refused_by_a_bot_that_does_not_let_us_in(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path, *(decision(number, votes=number) for number in (1, 2, 3)))
        async with CountingBot("unauthorized") as bot, working(tmp_path, bot, Hooks()) as worker:
            await until(lambda: "refused" in states(tmp_path), "a refusal")
            asked = bot.requests["show_config"]
            await until(
                lambda: bot.requests["show_config"] > asked + 2, "questions with the password"
            )
            assert states(tmp_path) == ["queued", "queued", "refused"]
            assert worker.why is not None
            assert worker.why.cause == "password"
            bot.behaviour = "ok"
            assert await end_states(tmp_path, 3) == ["accepted", "accepted", "refused"]
            assert worker.why is None

    asyncio.run(scenario())


# --- behind an order of which nobody knows what became ----------------------------------------------


def test_one_proxy_s_page_costs_the_others_nothing(tmp_path: Path) -> None:
    """Nothing of their time: the search takes longer than they have. A busy machine needs what is left."""

    async def scenario() -> None:
        async with (
            CountingBot("bad_gateway") as bot,
            running(
                one_vote(tmp_path, bot.url, expire_s=12, unconfirmed_s=60),
                msgspec.structs.replace(QUICK, settle_s=12.5),
            ) as aggregator,
        ):
            await aggregator.post("73", 0.9)
            await until(lambda: "unknown" in states(tmp_path), "an order of which nobody knows")
            bot.behaviour = "ok"
            pairs = [f"P{number}/USDT:USDT" for number in range(5)]
            await asyncio.gather(*(aggregator.post("73", 0.9, pair=pair) for pair in pairs))
            await until(lambda: states(tmp_path)[1:] == ["accepted"] * 5, "all others")
            assert states(tmp_path)[0] == "unknown"
            assert rows(tmp_path, "SELECT count(*) FROM forwarded WHERE sent > expires") != [(0,)]

    asyncio.run(scenario())


def test_after_a_second_one_in_a_row_nothing_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path, *(decision(number, votes=number) for number in (1, 2, 3)))
        bot = CountingBot("bad_gateway")

        def hear(forward: Forward) -> None:
            if (forward.window, forward.state) == (2, "lost"):
                # From here on the third may go.
                bot.behaviour = "ok"

        async with bot, working(tmp_path, bot, Hooks(heard=hear)) as worker:
            await until(lambda: len(bot.posts) == 2, "another order")
            asked = bot.requests["health"]
            await until(lambda: "lost" in states(tmp_path), "the first is lost")
            assert bot.requests["health"] > asked
            found: list[str] = []
            while states(tmp_path)[1] == "unknown":
                found = pairs_of(bot.posts)
                # Nothing keeps them back once both are given up, a moment before the ledger has it.
                assert worker.why is not None or not worker.unconfirmed
                await asyncio.sleep(0.01)
            assert found == ["P3/USDT:USDT", "P2/USDT:USDT"]
            await until(lambda: states(tmp_path)[0] == "accepted", "the third")

    asyncio.run(scenario())


def test_an_unknown_order_takes_up_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path, *(decision(number, votes=number) for number in (1, 2, 3)))
        bot = CountingBot()
        bot.max_open_trades = 2

        def hear(forward: Forward) -> None:
            if forward.state == "accepted":
                # The second one's.
                bot.behaviour = "cut_empty"

        async with bot, working(tmp_path, bot, Hooks(heard=hear)) as worker:

            def no_room() -> bool:
                return worker.why is not None and worker.why.cause == "no room"

            await until(no_room, "no room")
            assert worker.why is not None
            assert worker.why.words == "no room: 1 trades of 2, and 1 unknown"
            bot.behaviour = "ok"
            # Once it is lost, its place is free.
            assert await end_states(tmp_path, 3) == ["accepted", "lost", "accepted"]
            assert len(bot.posts) == 3

    asyncio.run(scenario())


# --- what the desk says -----------------------------------------------------------------------------


def test_what_is_heard_has_been_committed(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path, decision(1), decision(2))
        heard: list[tuple[int, str]] = []

        def hear(forward: Forward) -> None:
            query = "SELECT state FROM forward WHERE window = ?"
            assert rows(tmp_path, query, (forward.window,)) == [(forward.state,)]
            heard.append((forward.window, forward.state))

        async with CountingBot("paused") as bot, working(tmp_path, bot, Hooks(heard=hear)):
            await until(lambda: bot.requests["show_config"], "a question")
            bot.behaviour = "bad_gateway"
            await until(lambda: "lost" in states(tmp_path), "an order that is lost")
            bot.behaviour = "ok"
            await end_states(tmp_path, 2)
        assert heard == [
            (1, "sending"),
            (1, "queued"),
            (1, "sending"),
            (1, "unknown"),
            *heard[4:-1],
            heard[-1],
        ]
        assert (1, "lost") in heard
        assert (2, "sending") in heard

    asyncio.run(scenario())


def test_a_contested_one_is_not_sent(tmp_path: Path) -> None:
    """Neither if it was before the commit, nor if it is right after it."""

    async def scenario() -> None:
        record(tmp_path, decision(1), decision(2), decision(3))
        sending: set[int] = set()

        def contested(forward: Forward) -> str | None:
            after = forward.window == 2 and forward.state == "sending"
            return "short was decided since" if forward.window == 1 or after else None

        def hear(forward: Forward) -> None:
            if forward.state == "sending":
                sending.add(forward.window)

        hooks = Hooks(heard=hear, contested=contested)
        async with CountingBot() as bot, working(tmp_path, bot, hooks):
            assert await end_states(tmp_path, 3) == ["expired", "expired", "accepted"]
            assert answers(tmp_path) == ["short was decided since"] * 2 + ["trade 1"]
            assert pairs_of(bot.posts) == ["P3/USDT:USDT"]
            assert sending == {2, 3}

    asyncio.run(scenario())


def test_a_pair_that_is_held_waits_and_others_go(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path, decision(1, votes=5), decision(2), decision(3))
        held = {"P1/USDT:USDT"}
        sending: list[int] = []

        def hear(forward: Forward) -> None:
            if forward.state == "sending":
                sending.append(forward.window)
                if len(sending) == 1:
                    # The other side's order of this pair was committed first.
                    held.add(forward.pair)

        hooks = Hooks(heard=hear, held=lambda pair, _: pair in held)
        async with CountingBot() as bot, working(tmp_path, bot, hooks) as worker:
            await until(lambda: states(tmp_path)[2] == "accepted", "one that is free")
            assert states(tmp_path)[:2] == ["queued", "queued"]
            assert sending == [2, 3]
            held.clear()
            worker.wake()
            assert await end_states(tmp_path, 3) == ["accepted"] * 3
            assert pairs_of(bot.posts) == [f"P{number}/USDT:USDT" for number in (3, 1, 2)]

    asyncio.run(scenario())


class OtherFirst(LedgerThread):
    """A ledger in which the other side's order of the pair is `sending` right before a first commit."""

    done = False

    async def call(self, function: Callable[[Ledger], T]) -> T:
        if getattr(function, "__name__", "") == "commit" and not self.done:
            self.done = True
            await super().call(lambda ledger: ledger.step(7, "short", "sending", now_ms()))
        return await super().call(function)


def test_of_two_sides_at_once_one_waits_in_the_ledger(tmp_path: Path) -> None:
    """Both workers saw the pair free; what the other one has noted is not heard of yet."""

    async def scenario() -> None:
        short = msgspec.structs.replace(decision(7), pair="P1/USDT:USDT", side="short")
        record(tmp_path, decision(1, votes=5), decision(2), short)
        standing = Standing(0)
        hooks = Hooks(
            heard=lambda forward: standing.heard(forward, now_ms()),
            held=lambda pair, window: standing.held(pair, but_window=window),
        )
        ledger = OtherFirst(tmp_path / "ledger.db")
        async with CountingBot() as bot, working(tmp_path, bot, hooks, ledger) as worker:
            await until(lambda: states(tmp_path)[1] == "accepted", "one that is free")
            query = "SELECT state, attempts, sent FROM forward ORDER BY window"
            assert rows(tmp_path, query)[0] == ("queued", 0, None)
            assert pairs_of(bot.posts) == ["P2/USDT:USDT"]
            words = "no room"
            hooks.heard(
                await ledger.call(lambda it: it.step(7, "short", "refused", now_ms(), words))
            )
            worker.wake()
            assert await end_states(tmp_path, 3) == ["accepted", "accepted", "refused"]
            assert pairs_of(bot.posts) == ["P2/USDT:USDT", "P1/USDT:USDT"]

    asyncio.run(scenario())


def test_two_bots_get_a_pair_one_after_the_other(tmp_path: Path) -> None:
    """Through the whole aggregator, decided for both sides at once: no two orders of a pair at a time."""

    async def scenario() -> None:
        async with CountingBot("slow", slow_s=0.1) as long, CountingBot() as short:
            given = one_vote(
                tmp_path,
                long.url,
                bots={"short": short.url},
                on_conflict="both",
                expire_s=60,
                bot_timeout_s=30,
            )
            async with running(given) as aggregator:
                pairs = [f"P{number}/USDT:USDT" for number in range(8)]
                await asyncio.gather(
                    *(
                        aggregator.post(feeder, 0.9, pair=pair, side=side)
                        for pair in pairs
                        for feeder, side in (("73", "long"), ("120", "short"))
                    )
                )
                await until(lambda: len(states(tmp_path)) == 16, "decisions of both sides")
                assert await end_states(tmp_path, 16) == ["accepted"] * 16
            query = "SELECT pair, sent, answered FROM forwarded ORDER BY pair, sent"
            found = rows(tmp_path, query)
            for first, second in zip(found[::2], found[1::2], strict=True):
                assert first[0] == second[0]
                assert first[2] <= second[1]

    asyncio.run(scenario())


def test_the_last_word_comes_after_the_commit(tmp_path: Path) -> None:
    async def scenario() -> None:
        record(tmp_path, decision(1, votes=4), decision(2))
        asked: list[list[str]] = []

        def may_send() -> str | None:
            asked.append(states(tmp_path))
            return "the ledger was replaced" if len(asked) == 1 else None

        hooks = Hooks(may_send=may_send)
        async with CountingBot() as bot, working(tmp_path, bot, hooks):
            assert await end_states(tmp_path, 2) == ["expired", "accepted"]
            assert asked == [["sending", "queued"], ["expired", "sending"]]
            assert answers(tmp_path)[0] == "not sent before it expired: the ledger was replaced"
            assert pairs_of(bot.posts) == ["P2/USDT:USDT"]

    asyncio.run(scenario())


# --- the other side's bot ---------------------------------------------------------------------------


def test_nothing_is_sent_for_a_pair_that_the_other_bot_holds(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as long, CountingBot() as short:
            given = one_vote(
                tmp_path, long.url, bots={"short": short.url}, opposite_open="skip", expire_s=60
            )
            short._open({"pair": PAIR, "side": "short"})
            async with running(given) as aggregator:
                await aggregator.post("73", 0.9)
                assert await end_states(tmp_path) == ["expired"]
                assert answers(tmp_path) == [f"the bot of short holds {PAIR}: trade 1"]
                short.close_trades()
                await aggregator.post("73", 0.9, signal_strength=2)
                assert await end_states(tmp_path, 2) == ["expired", "accepted"]
                assert len(long.posts) == 1
                assert short.posts == []
                # It was by no fault of the bot's.
                assert (await aggregator.status("health"))[0] == 200

    asyncio.run(scenario())


def test_nothing_is_sent_while_the_other_bot_does_not_say(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as long, CountingBot("unauthorized", asked=True) as short:
            given = one_vote(
                tmp_path, long.url, bots={"short": short.url}, opposite_open="skip", expire_s=60
            )
            async with running(given) as aggregator:
                await aggregator.post("73", 0.9)
                report = aggregator.aggregator.report
                await until(lambda: report().waits_for["long"][0] == "other bot", "a question")
                # And more of them: the start asks this bot for the same.
                asked = short.requests["status"]
                await until(lambda: short.requests["status"] > asked + 2, "questions")
                assert states(tmp_path) == ["queued"]
                short.behaviour = "ok"
                assert await end_states(tmp_path) == ["accepted"]

    asyncio.run(scenario())


# --- what is in sight, and a stop -------------------------------------------------------------------


def test_a_burst_that_expires_is_not_well(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot("slow", slow_s=0.5) as bot,
            running(one_vote(tmp_path, bot.url, expire_s=0.3)) as aggregator,
        ):
            pairs = [f"P{number}/USDT:USDT" for number in range(6)]
            await asyncio.gather(*(aggregator.post("73", 0.9, pair=pair) for pair in pairs))
            await end_states(tmp_path, 6)
            assert states(tmp_path).count("expired") >= 4
            status, health = await aggregator.status("health")
            assert status == 503
            count = states(tmp_path).count("expired")
            # One of them may have met a slow disk.
            assert (
                f"bot of long: {count} expired unsent within 15 min, though it was not full: busy "
                in str(health)
            )

    asyncio.run(scenario())


def test_a_stop_does_not_wait_for_what_is_asked(tmp_path: Path) -> None:
    """It has a minute to answer, and the run below half of that to end."""

    async def scenario() -> None:
        async with (
            CountingBot("freeze", asked=True) as bot,
            running(one_vote(tmp_path, bot.url, bot_timeout_s=60)),
        ):
            await until(lambda: bot.requests["show_config"], "a question")

    asyncio.run(scenario())


def test_the_votes_of_all_sorts_of_decisions_order_the_queue(tmp_path: Path) -> None:
    """Through the whole aggregator, as feeders post: a paused bot gets the best first once it runs.

    The windows are open for long enough that all votes of a pair fall into one, however busy the machine is.
    """

    async def scenario() -> None:
        async with (
            CountingBot("paused") as bot,
            running(one_vote(tmp_path, bot.url, window_s=6, expire_s=60)) as aggregator,
        ):
            await asyncio.gather(
                *(
                    aggregator.post(feeder, 0.8, pair=f"P{count}/USDT:USDT")
                    for count in (1, 2, 3, 4, 5)
                    for feeder in LONG[:count]
                )
            )
            await until(lambda: len(states(tmp_path)) == 5, "decisions")
            tried = len(bot.posts)
            bot.behaviour = "ok"
            assert await end_states(tmp_path, 5) == ["accepted"] * 5
            sent = pairs_of(bot.posts[tried:])
            assert sent == [f"P{count}/USDT:USDT" for count in (5, 4, 3, 2, 1)]

    asyncio.run(scenario())
