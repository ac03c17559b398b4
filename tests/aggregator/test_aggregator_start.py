"""Every start asks the bots; a ledger that may lack orders waits; one that is taken away ends the service."""

import asyncio
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from bot import CountingBot
from running import (
    FLEET,
    PAIR,
    QUICK,
    QUICK_MARKETFEED,
    Process,
    Running,
    basic,
    config,
    rows,
    running,
    settings,
    states,
)

from marketfeed.aggregator.aggregator import Aggregator
from marketfeed.aggregator.ledger_beginning import OTHER
from marketfeed.aggregator.timing import DEFAULT_PACE
from marketfeed.errors import JournalWriteError
from marketfeed.settings.load import load_settings
from tests.waiting import until

ETH = "ETH/USDT:USDT"
OURS = "long ensemble 3/5 conf=0.82 from=79"
ONE: dict[str, Any] = {
    "window_s": 0.2,
    "min_agreements": 1,
    "cooldown_s": 300,
    "expire_s": 60,
    "unconfirmed_s": 6,
}
"""Each vote is a decision, at the end of a short window.

A vote and its decision fit into the time for which nothing goes, on a busy machine, too.
"""


async def post(url: str, pair: str = PAIR, side: str = "long") -> None:
    feeder = "73" if side == "long" else "120"
    body = {"pair": pair, "side": side, "enter_tag": f"from {feeder} conf=0.9"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/api/v1/forceenter", json=body, headers=basic(FLEET)) as response,
    ):
        assert response.status == 200, await response.text()


def decisions(path: Path, pair: str = PAIR) -> list[tuple[str, str]]:
    query = "SELECT outcome, reasons FROM decision WHERE pair = ? ORDER BY window"
    return rows(path, query, (pair,))


async def decided(path: Path, count: int = 1, pair: str = PAIR) -> tuple[str, str]:
    await until(lambda: len(decisions(path, pair)) >= count, f"decision {count} of {pair}")
    return decisions(path, pair)[count - 1]


async def reasons(aggregator: Running) -> list[str]:
    _, answer = await aggregator.status("health")
    found: list[str] = answer["reasons"]
    return found


def sent(bot: CountingBot) -> list[str]:
    return [post["pair"] for post in bot.posts]


async def forwarding(aggregator: Running) -> None:
    """Wait until orders go again: all that is asked and waited for is over."""

    def held() -> list[str]:
        return [it for it in aggregator.aggregator.reasons() if "nothing is forwarded" in it]

    await until(lambda: not held(), held)


async def well(aggregator: Running) -> None:
    await until(lambda: not aggregator.aggregator.reasons(), aggregator.aggregator.reasons)


# --- a fresh ledger ------------------------------------------------------------------------------------


def test_a_first_install_waits_and_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot:
            given = settings(tmp_path, {"long": bot.url}, fresh=True, **ONE)
            async with running(given) as aggregator:
                (reason,) = await reasons(aggregator)
                assert reason.startswith("a fresh ledger: nothing is forwarded for another ")
                await aggregator.post("73", 0.9)
                outcome, why = await decided(tmp_path)
                assert outcome == "skip"
                assert why.startswith("a fresh ledger: nothing is forwarded for another ")
                await well(aggregator)
                assert (await aggregator.status("health"))[0] == 200
                await aggregator.post("74", 0.9)
                await until(lambda: states(tmp_path) == ["accepted"], "an order")
            # It has been asked at the start and after the wait.
            assert bot.requests["trades"] == 2
            async with running(given) as aggregator:
                assert await reasons(aggregator) == []
                await aggregator.post("74", 0.9, pair=ETH)
                await until(lambda: states(tmp_path) == ["accepted"] * 2, "another order")
            assert bot.requests["trades"] == 3

    asyncio.run(scenario())


def test_a_restart_in_the_wait_waits_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot:
            file = config(tmp_path, {"long": bot.url}, fresh=True, **ONE)
            first = await asyncio.to_thread(Process, file, QUICK_MARKETFEED)
            first.kill()
            async with running(load_settings(file, {})) as aggregator:
                (reason,) = await reasons(aggregator)
                assert reason.startswith("a fresh ledger: nothing is forwarded for another ")
                await well(aggregator)

    asyncio.run(scenario())


def remove_the_file(path: Path) -> None:
    (path / "ledger.db").unlink()


def remove_all(path: Path) -> None:
    for file in path.glob("ledger.db*"):
        file.unlink()


def overwrite(path: Path) -> None:
    (path / "ledger.db").write_bytes(b"not an SQLite file at all" * 1_000)


@pytest.mark.parametrize(
    ("lose", "words"),
    [
        (remove_the_file, "was gone, a fresh one was begun"),
        (remove_all, "a fresh ledger"),
        (overwrite, "the ledger was damaged and set aside as"),
    ],
)
def test_after_a_lost_ledger_the_bots_know(
    tmp_path: Path, lose: Callable[[Path], None], words: str
) -> None:
    """What was sent before is not known: a signal that is repeated must not become a second order."""

    async def scenario() -> None:
        async with CountingBot() as bot:
            given = settings(tmp_path, {"long": bot.url}, **ONE)
            async with running(given) as aggregator:
                await aggregator.post("73", 0.9)
                await until(lambda: states(tmp_path) == ["accepted"], "an order")
            lose(tmp_path)
            async with running(given) as aggregator:
                await until(lambda: bot.requests["trades"] == 2, "the question")
                await until(
                    lambda: any("trades of ours" in it for it in aggregator.aggregator.reasons()),
                    "what it found",
                )
                held, named = (await reasons(aggregator))[-2:]
                assert words in held
                assert "nothing is forwarded for another" in held
                assert "the bot of long has trades of ours that the ledger does not know" in named
                assert f"{PAIR} trade 1 'long ensemble 1/5 conf=0.90 from=73', opened 20" in named
                for pair in (PAIR, ETH):
                    await aggregator.post("73", 0.9, pair=pair)
                    outcome, why = await decided(tmp_path, 1, pair)
                    assert outcome == "skip"
                assert words in why
                await until(lambda: bot.requests["trades"] == 3, "the second question")
                await until(
                    lambda: (
                        not any(
                            words in it
                            for it in aggregator.aggregator.reasons()
                            if "for another" in it
                        )
                    ),
                    "the end of the wait",
                )
                await aggregator.post("74", 0.9, pair=ETH)
                await until(lambda: states(tmp_path) == ["accepted"], "the other pair")
                await aggregator.post("74", 0.9)
                outcome, why = await decided(tmp_path, 2)
                assert (outcome, why[:22]) == ("skip", "cool-down for another ")
            assert sent(bot) == [PAIR, ETH]

    asyncio.run(scenario())


# --- an older copy -------------------------------------------------------------------------------------


def restore(path: Path, *, all_files: bool) -> None:
    for old in path.glob("ledger.db*"):
        if all_files or old.name in {"ledger.db-wal", "ledger.db-shm"}:
            old.unlink()
    shutil.copy(path / "copy.db", path / "ledger.db")


@pytest.mark.parametrize("in_the_lock", [False, True])
@pytest.mark.parametrize("all_files", [False, True])
def test_a_restored_older_copy_sends_nothing_twice(
    tmp_path: Path, in_the_lock: bool, all_files: bool
) -> None:
    """In the lock: the bot has the order, and opens its trade only after the bots have been asked."""

    async def scenario() -> None:
        async with CountingBot() as bot:
            file = config(tmp_path, {"long": bot.url}, 30, **ONE)
            shutil.copy(tmp_path / "ledger.db", tmp_path / "copy.db")
            first = await asyncio.to_thread(Process, file, QUICK_MARKETFEED)
            if in_the_lock:
                bot.lock.clear()
            await post(first.url)
            await until(lambda: bot.posts, "an order")
            if not in_the_lock:
                await until(lambda: states(tmp_path) == ["accepted"], "its answer")
            first.kill()
            # All files away, the copy in their place; or the ledger's alone, as the documentation says.
            restore(tmp_path, all_files=all_files)
            async with running(load_settings(file, {})) as aggregator:
                assert any(
                    it.startswith(f"{OTHER}: nothing is forwarded")
                    for it in await reasons(aggregator)
                )
                await aggregator.post("73", 0.9)
                assert (await decided(tmp_path))[0] == "skip"
                bot.lock.set()
                await until(lambda: bot.requests["trades"] >= 3, "the second question")
                await forwarding(aggregator)
                assert any("trade 1 " in it for it in await reasons(aggregator))
                await aggregator.post("74", 0.9)
                outcome, why = await decided(tmp_path, 2)
                assert (outcome, why[:22]) == ("skip", "cool-down for another ")
                await aggregator.post("74", 0.9, pair=ETH)
                await until(lambda: states(tmp_path) == ["accepted"], "the other pair")
            assert sent(bot) == [PAIR, ETH]

    asyncio.run(scenario())


def test_a_trade_of_the_other_side_is_a_conflict(tmp_path: Path) -> None:
    """The long order was sent by what is lost: a short one of its time is not sent."""

    async def scenario() -> None:
        async with CountingBot() as long_bot, CountingBot() as short_bot:
            long_bot.add(PAIR, OURS, 0.5)
            bots = {"long": long_bot.url, "short": short_bot.url}
            changes = {"window_s": 8, "cooldown_s": 0, "unconfirmed_s": 0.1}
            given = settings(tmp_path, bots, **(ONE | changes))
            async with running(given) as aggregator:
                await until(lambda: long_bot.requests["trades"] == 1, "the question")
                await aggregator.post("120", 0.9, side="short")
                outcome, why = await decided(tmp_path)
                assert outcome == "skip"
                assert "long was decided" in why
            assert short_bot.posts == []

    asyncio.run(scenario())


def test_trades_that_the_ledger_knows_hold_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot:
            # Nobody's, and one of ours from long ago.
            bot.add("A/USDT:USDT", "force_entry")
            bot.add("B/USDT:USDT", OURS, 4_000)
            given = settings(tmp_path, {"long": bot.url}, **ONE)
            for count, pair in enumerate((PAIR, ETH, "C/USDT:USDT"), 1):
                async with running(given) as aggregator:
                    await until(lambda n=count: bot.requests["trades"] == n, "the question")
                    await aggregator.post("73", 0.9, pair=pair)
                    await until(lambda n=count: states(tmp_path) == ["accepted"] * n, pair)
                    assert await reasons(aggregator) == []
            assert bot.requests["trades"] == 3

    asyncio.run(scenario())


# --- a bot that does not answer at the start -----------------------------------------------------------


def test_a_bot_gets_nothing_before_it_has_been_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot("unauthorized", asked=True) as long_bot,
            CountingBot() as short_bot,
        ):
            bots = {"long": long_bot.url, "short": short_bot.url}
            given = settings(tmp_path, bots, **(ONE | {"expire_s": 3, "cooldown_s": 0}))
            async with running(given) as aggregator:
                await aggregator.post("73", 0.9)
                await aggregator.post("120", 0.9, pair=ETH, side="short")
                await until(lambda: sorted(states(tmp_path)) == ["accepted", "expired"], "both")
                ((why,),) = rows(tmp_path, "SELECT answer FROM forward WHERE state = 'expired'")
                assert "it has to be asked first what it has opened: status 401" in why
                assert any(
                    "nothing is forwarded to the bot of long: it has to be asked first" in it
                    for it in await reasons(aggregator)
                )
                long_bot.behaviour = "ok"
                await forwarding(aggregator)
                await aggregator.post("74", 0.9)
                await until(lambda: states(tmp_path).count("accepted") == 2, "the next signal")
            assert sent(long_bot) == [PAIR]

    asyncio.run(scenario())


def test_what_waited_for_the_answer_is_held_against_it(tmp_path: Path) -> None:
    """Decided before the bot could say that it has such a trade, and sent to neither bot."""

    async def scenario() -> None:
        async with CountingBot() as long_bot, CountingBot() as short_bot:
            bots = {"long": long_bot.url, "short": short_bot.url}
            given = settings(tmp_path, bots, **(ONE | {"cooldown_s": 2, "unconfirmed_s": 0.8}))
            long_bot.add(PAIR, OURS, 1)
            await long_bot.stop()
            async with running(given) as aggregator:
                await aggregator.post("73", 0.9)
                await aggregator.post("73", 0.9, pair=ETH)
                await until(lambda: states(tmp_path) == ["queued"] * 2, "two that wait")
                await long_bot.start()
                await until(lambda: states(tmp_path) == ["expired", "accepted"], "both")
                ((why,),) = rows(tmp_path, "SELECT answer FROM forward WHERE state = 'expired'")
                assert f"the bot of long has {PAIR} trade 1 '{OURS}'" in why
                assert (await aggregator.status("health"))[0] == 503
                # What is named has an end.
                await well(aggregator)
            assert sent(long_bot) == [ETH]

    asyncio.run(scenario())


def test_a_late_answer_holds_the_other_side_too(tmp_path: Path) -> None:
    """Only then it is seen that the ledger is an older copy, of both sides."""

    async def scenario() -> None:
        async with CountingBot() as long_bot, CountingBot() as short_bot:
            bots = {"long": long_bot.url, "short": short_bot.url}
            given = settings(tmp_path, bots, **ONE)
            await long_bot.stop()
            async with running(given) as aggregator:
                await aggregator.post("120", 0.9, pair=ETH, side="short")
                await until(lambda: states(tmp_path) == ["accepted"], "the short order")
                long_bot.add(PAIR, OURS, 1)
                await long_bot.start()
                await until(lambda: long_bot.requests["trades"], "the question")
                await aggregator.post("121", 0.9, pair="C/USDT:USDT", side="short")
                outcome, why = await decided(tmp_path, 1, "C/USDT:USDT")
                assert outcome == "skip"
                assert "trades of ours in the bots that this ledger does not know" in why
                await until(lambda: short_bot.requests["trades"] == 2, "the second question")
                # Both were asked again, and it is noted.
                await until(
                    lambda: rows(tmp_path, "SELECT held FROM beginning") == [("",)], "the note"
                )
                assert long_bot.requests["trades"] >= 2

    asyncio.run(scenario())


# --- taken away while it runs --------------------------------------------------------------------------


def remove(file: Path) -> None:
    file.unlink()


def put_another(file: Path) -> None:
    shutil.copy(file, f"{file}.copy")
    Path(f"{file}.copy").replace(file)


@pytest.mark.parametrize("suffix", ["", "-wal", ".lock"])
@pytest.mark.parametrize("harm", [remove, put_another])
def test_a_ledger_that_is_taken_away_ends_it(
    tmp_path: Path, suffix: str, harm: Callable[[Path], None]
) -> None:
    """And the next start trades nothing twice, whatever is left."""

    async def scenario() -> None:
        async with CountingBot() as bot:
            given = settings(tmp_path, {"long": bot.url}, **ONE)
            pace = msgspec.structs.replace(DEFAULT_PACE, searched_s=QUICK.searched_s)
            aggregator = Aggregator(given, pace)
            task = asyncio.create_task(aggregator.run(asyncio.Event()))
            await until(lambda: aggregator.url, "the door")
            await post(aggregator.url)
            await until(lambda: states(tmp_path) == ["accepted"], "an order")
            harm(tmp_path / f"ledger.db{suffix}")
            await until(task.done, "the end")
            error = task.exception()
            assert isinstance(error, ExceptionGroup)
            assert isinstance(error.exceptions[0], JournalWriteError)
            assert f"ledger.db{suffix}" in str(error.exceptions[0])
            async with running(given) as again:
                await until(lambda: bot.requests["trades"] >= 2, "the question")
                await forwarding(again)
                before = len(decisions(tmp_path))
                await again.post("74", 0.9)
                outcome, why = await decided(tmp_path, before + 1)
                assert (outcome, why[:22]) == ("skip", "cool-down for another ")
                await again.post("74", 0.9, pair=ETH)
                await until(lambda: ETH in sent(bot), "the other pair")
            assert sent(bot) == [PAIR, ETH]

    asyncio.run(scenario())


@pytest.mark.parametrize("suffix", ["", "-wal", ".lock"])
def test_no_order_follows_a_note_in_a_file_that_is_gone(tmp_path: Path, suffix: str) -> None:
    """Looked at between the commit of `sending` and its POST, however long ago the last look was."""

    async def scenario() -> None:
        async with CountingBot() as bot:
            given = settings(tmp_path, {"long": bot.url}, **ONE)
            pace = msgspec.structs.replace(QUICK, place_s=3_600.0)
            async with running(given, pace) as aggregator:
                await until(lambda: bot.requests["trades"], "the question")
                (tmp_path / f"ledger.db{suffix}").unlink()
                await aggregator.post("73", 0.9)
                counters = aggregator.aggregator.report
                await until(lambda: counters().forwards.get("long expired"), "its end")
            assert bot.posts == []
            if suffix:
                ((state, words),) = rows(tmp_path, "SELECT state, answer FROM forward")
                assert state == "expired"
                assert f"ledger.db{suffix} is gone" in words

    asyncio.run(scenario())


def test_a_real_process_ends_and_its_successor_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot:
            file = config(tmp_path, {"long": bot.url}, 30, **ONE)
            first = await asyncio.to_thread(Process, file, QUICK_MARKETFEED)
            try:
                bot.lock.clear()
                await post(first.url)
                await until(lambda: bot.posts, "an order")
                remove_all(tmp_path)
                await asyncio.to_thread(first.process.wait, 60)
            finally:
                first.kill()
            assert first.process.returncode not in {0, -signal.SIGKILL}
            assert any("ledger taken away while in use" in line for line in first.lines)
            async with running(load_settings(file, {})) as again:
                bot.lock.set()
                await until(lambda: bot.requests["trades"] >= 3, "the second question")
                await until(lambda: bot.trades, "the trade")
                await forwarding(again)
                await again.post("74", 0.9)
                outcome, why = await decided(tmp_path)
                assert (outcome, why[:22]) == ("skip", "cool-down for another ")
            assert sent(bot) == [PAIR]

    asyncio.run(scenario())
