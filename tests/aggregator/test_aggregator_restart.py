"""What a killed or stopped aggregator comes back with: open windows, decided ones, orders under way."""

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from bot import CountingBot
from running import (
    FLEET,
    FLEET_HASH,
    LONG,
    PAIR,
    QUICK,
    SHORT,
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
from marketfeed.aggregator.from_settings import require_complete
from marketfeed.aggregator.ledger import Ledger
from marketfeed.errors import JournalWriteError, SettingsError
from marketfeed.settings.load import load_settings
from tests.waiting import until


async def post(url: str, feeder: str, confidence: float, side: str = "long") -> None:
    body = {"pair": PAIR, "side": side, "enter_tag": f"from {feeder} conf={confidence}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/api/v1/forceenter", json=body, headers=basic(FLEET)) as response,
    ):
        assert response.status == 200, await response.text()


def test_killed_in_mid_window_it_forgets_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot:
            # It closes when all have voted: however slow the machine is, that is after both starts.
            file = config(tmp_path, {"long": bot.url}, window_s=600, expire_s=600)
            first = await asyncio.to_thread(Process, file)
            await post(first.url, "73", 0.85)
            await post(first.url, "74", 0.72)
            first.kill()
            async with running(load_settings(file, {})) as second:
                for feeder, confidence in (("75a", 0.7), ("79", 0.88), ("108", 0.8)):
                    assert (await second.post(feeder, confidence))[0] == 200
                await until(lambda: states(tmp_path) == ["accepted"], "an order and its answer")
            async with running(load_settings(file, {})) as third:
                for feeder in LONG:
                    await third.post(feeder, 0.9, pair="ETH/USDT:USDT")
                await until(lambda: len(bot.posts) > 1, "the next order")
            tags = [(p["pair"], p["entry_tag"]) for p in bot.posts]
            assert tags[0] == (PAIR, "long ensemble 5/5 conf=0.79 from=79")
            assert [pair for pair, _ in tags[1:]] == ["ETH/USDT:USDT"]
            ((opened, received),) = rows(
                tmp_path,
                "SELECT opened, (SELECT min(received) FROM signal) FROM decision WHERE pair = ?",
                (PAIR,),
            )
            assert opened == received

    asyncio.run(scenario())


@pytest.mark.parametrize("killed", [False, True])
def test_what_the_other_side_decides_after_an_early_decision_is_held_back(
    tmp_path: Path, killed: bool
) -> None:
    """All long feeders at once, decided at once; the short window closes more than a window later."""

    async def scenario() -> None:
        async with CountingBot() as long_bot, CountingBot() as short_bot:
            bots = {"long": long_bot.url, "short": short_bot.url}
            file = config(tmp_path, bots, 30, window_s=4, expire_s=600)
            process = await asyncio.to_thread(Process, file)
            try:
                await asyncio.gather(*(post(process.url, feeder, 0.9) for feeder in LONG))
                await until(lambda: states(tmp_path) == ["accepted"], "the long order")
                for feeder in SHORT[:3]:
                    await post(process.url, feeder, 0.9, "short")
                if killed:
                    process.kill()
                    process = await asyncio.to_thread(Process, file)
                await until(lambda: len(rows(tmp_path, "SELECT 1 FROM decision")) == 2, "short")
                shown = await asyncio.to_thread(command, "signals", "--json", "--config", file)
                # A forward would have been made in the commit of its decision.
                await asyncio.to_thread(process.stop)
            finally:
                process.kill()
            assert states(tmp_path) == ["accepted"]
            assert (len(long_bot.posts), len(short_bot.posts)) == (1, 0)
            (held,) = rows(
                tmp_path, "SELECT side, outcome, passed, reasons FROM decision WHERE window > 5"
            )
            assert held[:3] == ("short", "skip", 1)
            assert held[3].startswith("long was decided ")
            events = json.loads(shown.stdout)["events"]
            assert [event["what"] for event in events if event["side"] == "short"][-1] == "skipped"

    asyncio.run(scenario())


def test_killed_between_the_order_and_its_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot("slow", slow_s=20) as bot:
            file = config(
                tmp_path, {"long": bot.url}, 30, window_s=0.2, min_agreements=1, expire_s=600
            )
            first = await asyncio.to_thread(Process, file)
            await post(first.url, "75b", 0.89)
            await until(lambda: bot.posts, "an order")
            first.kill()
            assert states(tmp_path) == ["sending"]
            async with running(load_settings(file, {})):
                await until(lambda: states(tmp_path) == ["found"], "the trade")
            assert len(bot.posts) == 1

    asyncio.run(scenario())


def test_a_clean_stop_in_mid_window_and_in_mid_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot("slow", slow_s=0.5) as bot:
            given = settings(
                tmp_path, {"long": bot.url}, 20, window_s=0.3, min_agreements=1, expire_s=600
            )
            async with running(given) as aggregator:
                await aggregator.post("73", 0.9)
                await until(lambda: bot.posts, "an order")
                await aggregator.post("74", 0.9, pair="ETH/USDT:USDT")
            # The answer of what was under way has been waited for; the other window has not been decided.
            assert states(tmp_path)[0] == "accepted"
            async with running(given):
                await until(lambda: len(bot.posts) == 2, "the second order")
            assert [p["pair"] for p in bot.posts] == [PAIR, "ETH/USDT:USDT"]

    asyncio.run(scenario())


def test_a_window_that_ended_long_ago_is_skipped_with_the_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot:
            # Its window is open for long enough to stop in it, on a busy machine, too.
            given: dict[str, Any] = {"window_s": 3, "min_agreements": 1, "expire_s": 0.5}
            async with running(settings(tmp_path, {"long": bot.url}, **given)) as aggregator:
                await aggregator.post("73", 0.9)
            assert rows(tmp_path, "SELECT count(*) FROM decision") == [(0,)]
            await asyncio.sleep(3.6)
            async with running(settings(tmp_path, {"long": bot.url}, **given)):
                await until(lambda: rows(tmp_path, "SELECT 1 FROM decision"), "a decision")
            ((outcome, reasons),) = rows(tmp_path, "SELECT outcome, reasons FROM decision")
            assert outcome == "skip"
            assert reasons.startswith("expired: the window closed ")
            assert bot.posts == []

    asyncio.run(scenario())


def move(path: Path) -> None:
    path.rename(f"{path}.bak")


def put_another(path: Path) -> None:
    Ledger.open(path.with_name("other.db")).close()
    path.with_name("other.db").rename(path)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(8192))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (move, "the file is gone"),
        (put_another, "another file stands in its place"),
        (overwrite, "file is not a database"),
    ],
)
def test_a_ledger_that_is_taken_away_is_noticed(
    tmp_path: Path, harm: Callable[[Path], None], words: str
) -> None:
    """It ends, and the start after it opens what stands there then."""

    async def scenario() -> None:
        async with CountingBot() as bot:
            given = settings(tmp_path, {"long": bot.url}, window_s=0.2, min_agreements=1)
            # Whether it is in its place is looked at elsewhere: here it is read.
            pace = msgspec.structs.replace(QUICK, whole_s=0.05, place_s=3_600.0)
            aggregator = Aggregator(given, pace)
            task = asyncio.create_task(aggregator.run(asyncio.Event()))
            await until(lambda: aggregator.url, "the door")
            async with aiohttp.ClientSession() as session:
                await Running(aggregator, session).post("73", 0.9)
            await until(lambda: states(tmp_path) == ["accepted"], "an order")
            # So that what is read is the file, as after some minutes of service.
            with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            assert not task.done()
            harm(tmp_path / "ledger.db")
            await until(task.done, "the end")
            error = task.exception()
            assert isinstance(error, ExceptionGroup)
            (found,) = error.exceptions
            assert isinstance(found, JournalWriteError)
            assert words in str(found)
            async with running(given, pace) as again:
                assert (await again.post("74", 0.9))[0] == 200

    asyncio.run(scenario())


def test_a_ledger_that_was_set_aside_is_a_reason_while_it_lies_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "ledger.db").write_bytes(b"not an SQLite file at all" * 1_000)
        async with CountingBot() as bot:
            given = settings(tmp_path, {"long": bot.url}, window_s=0.2, min_agreements=1)
            async with running(given):
                (kept,) = tmp_path.glob("ledger.db.corrupt-*")  # noqa: ASYNC240
            # A later run, which has lost nothing itself.
            async with running(given) as aggregator:
                status, answer = await aggregator.status("health")
                assert status == 503
                # The other one is that a fresh ledger forwards nothing for a while.
                reason = answer["reasons"][0]
                assert "a damaged ledger was set aside" in reason
                assert str(kept) in reason
                kept.unlink()
                await until(lambda: not aggregator.aggregator.reasons(), "a clean directory")
                assert (await aggregator.status("health"))[0] == 200

    asyncio.run(scenario())


# --- the commands -----------------------------------------------------------------------------------


def command(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "marketfeed", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def test_aggregate_says_all_that_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("aggregator: {bots: {long: {url: 'http://bot1.example:8080'}}}\n")
    done = command("aggregate", "--config", file)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "2 mistakes in the settings:",
        (
            "  aggregator.accounts: expected at least one, or nobody may post (`marketfeed hash-password` "
            "makes its hash); found none"
        ),
        (
            "  aggregator.bots.long: expected a password, as a file in password_file or in "
            "MARKETFEED_AGGREGATOR__BOTS__LONG__PASSWORD; found none"
        ),
    ]


@pytest.mark.parametrize(
    "urls",
    [
        ("http://BOT.example:8080", "http://bot.example:8080/api/v1/"),
        ("http://bot.example", "http://bot.example:80"),
        ("https://bot.example/1", "https://bot.example:443/1"),
        ("http://localhost:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "http://LOCALHOST:8080/api/v1"),
    ],
)
def test_one_bot_does_not_get_both_sides(tmp_path: Path, urls: tuple[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        require_complete(
            settings(tmp_path, dict(zip(("long", "short"), urls, strict=True))).aggregator,
            QUICK.searched_s,
        )
    assert (
        "aggregator.bots.long.url, aggregator.bots.short.url: expected two bots, as one would get the "
        "orders of both sides at once; found http"
    ) in str(caught.value)


@pytest.mark.parametrize(
    "urls",
    [
        ("http://bot.example:8080", "http://bot.example:8081"),
        ("http://bot.example/1", "http://bot.example/2"),
        ("http://bot1.example", "http://bot2.example"),
    ],
)
def test_two_bots_have_a_side_each(tmp_path: Path, urls: tuple[str, str]) -> None:
    given = settings(tmp_path, dict(zip(("long", "short"), urls, strict=True)))
    require_complete(given.aggregator, QUICK.searched_s)


def test_an_order_is_not_lost_before_it_can_be_found(tmp_path: Path) -> None:
    """Nor does the search end before others may go behind an unknown order."""
    bots = {
        "long": "http://bot1.example",
        "short": "http://bot2.example",
        "meta": "http://bot3.example",
    }
    file = config(tmp_path, bots, 29.5, unconfirmed_s=39.4)
    with pytest.raises(SettingsError) as caught:
        require_complete(load_settings(file, {}).aggregator)
    for side in bots:
        assert (
            f"aggregator.unconfirmed_s: expected at least 39.5, which is aggregator.bots.{side}.timeout_s "
            "(29.5) and 10 s to look for the trade; found 39.4"
        ) in str(caught.value)
    done = command("aggregate", "--config", file)
    assert done.returncode == 2
    assert "aggregator.unconfirmed_s: expected at least 39.5" in done.stderr
    # Of a side without a bot nothing is asked, and what just reaches is enough.
    for changed in (bots, {"long": bots["long"]}):
        require_complete(
            load_settings(config(tmp_path, changed, 29.5, unconfirmed_s=39.5), {}).aggregator
        )
    alone = config(tmp_path, {"long": bots["long"]}, 1, unconfirmed_s=11)
    require_complete(load_settings(alone, {}).aggregator)


def test_hash_password_is_what_settings_take(tmp_path: Path) -> None:
    done = command("hash-password", stdin="invented\n")
    assert done.returncode == 0
    file = config(
        tmp_path, {}, fresh=True, accounts=[{"username": "f", "hash": done.stdout.strip()}]
    )
    assert "ledger.db: there is none yet" in command("signals", "--config", file).stderr
    # A kill while it was made leaves a file without tables.
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
        db.execute("PRAGMA journal_mode = WAL")
    assert (tmp_path / "ledger.db").stat().st_size > 0
    assert "ledger.db: there is none yet" in command("signals", "--config", file).stderr
    assert "invented" not in done.stdout + done.stderr
    assert command("hash-password", stdin="\n").returncode == 2


def test_signals_shows_the_flow(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot("already_open") as bot,
            running(
                settings(tmp_path, {"long": bot.url}, window_s=0.2, min_agreements=1)
            ) as aggregator,
        ):
            await aggregator.post("75b", 0.89)
            await until(lambda: states(tmp_path) == ["refused"], "the answer")
            file = config(tmp_path, {"long": bot.url})
            table = await asyncio.to_thread(command, "signals", "--config", file)
            assert table.returncode == 0
            lines = table.stdout.splitlines()
            assert [line.split()[2] for line in lines[1:]] == [
                "voted",
                "decided",
                "sent",
                "answered",
            ]
            assert "long ensemble 1/5 conf=0.89 from=75b" in table.stdout
            assert "already open" in lines[4]
            shown = await asyncio.to_thread(command, "signals", "--json", "--config", file)
            events = json.loads(shown.stdout)["events"]
            assert [event["what"] for event in events] == ["voted", "decided", "sent", "answered"]

    asyncio.run(scenario())


def test_signals_follow(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot() as bot,
            running(
                settings(tmp_path, {"long": bot.url}, window_s=0.2, min_agreements=1)
            ) as aggregator,
        ):
            file = config(tmp_path, {"long": bot.url})
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "marketfeed",
                "signals",
                "--follow",
                "--json",
                "--config",
                str(file),
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            try:
                await aggregator.post("73", 0.9)
                whats = []
                async with asyncio.timeout(180):
                    while "answered" not in whats:
                        event = json.loads(await process.stdout.readline())
                        whats.append(event["what"])
                assert whats == ["voted", "decided", "sent", "answered"]
            finally:
                process.terminate()
                await process.wait()

    asyncio.run(scenario())


def test_no_secret_is_shown(tmp_path: Path) -> None:
    """Neither a feeder's nor a bot's password stands in logs, ledger or answers; a hash not in errors."""

    async def scenario() -> None:
        async with CountingBot(password="another") as bot:  # noqa: S106 - invented
            file = config(tmp_path, {"long": bot.url}, window_s=0.2, min_agreements=1, expire_s=1)
            process = await asyncio.to_thread(Process, file)
            await post(process.url, "73", 0.9)
            await until(lambda: states(tmp_path) == ["expired"], "the bot's 401")
            await asyncio.to_thread(process.stop)
            text = "".join(process.lines) + (tmp_path / "ledger.db").read_bytes().decode("latin-1")
            for secret in (FLEET[1], "invented-b0t-password", FLEET_HASH):
                assert secret not in text
            for header in (basic(FLEET), basic(("freqtrader", "invented-b0t-password"))):
                assert header["Authorization"].split()[1] not in text

    asyncio.run(scenario())
    broken = tmp_path / "broken.yaml"
    broken.write_text("aggregator: {accounts: [{username: fleet, hash: c4n4ry-pass}]}\n")
    done = command("check", "--config", broken)
    assert done.returncode == 2
    assert "c4n4ry" not in done.stdout + done.stderr
    assert (
        "aggregator.accounts[0].hash: expected a hash as `marketfeed hash-password` prints it"
        in done.stderr
    )
