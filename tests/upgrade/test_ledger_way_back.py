"""A ledger of the released aggregator: on with the new one, back, and on again, with orders under way."""

import asyncio
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import aiohttp
from bot import CountingBot
from proc_commands import run_marketfeed
from released import Released, own_environment
from running import FLEET, LONG, Process, basic, config, rows

from marketfeed.aggregator.ledger_schema import KIND, body_1
from marketfeed.storage.reading import require
from tests.faults.scoreboard import Row, Scoreboard
from tests.waiting import until

OPEN: Final = "OPEN/USDT:USDT"
"""Its window is open through all versions: a vote more in each."""


class Aggregators:
    """One aggregator after the other on one ledger, with one bot; `post` is how feeders reach it."""

    def __init__(self, directory: Path, bot: CountingBot, released: Released) -> None:
        self.directory = directory
        self.bot = bot
        # Windows are decided when all have voted, and nothing expires: no clock is in this.
        self.file = config(
            directory,
            {"long": bot.url},
            fresh=True,
            released=True,
            window_s=600,
            expire_s=600,
            on_conflict="both",
        )
        self._released = released
        self._process: Process | None = None

    @property
    def version(self) -> int:
        return require(KIND, self.directory / "ledger.db").version

    async def start(self, *, old: bool = False) -> None:
        """Start one of the released version, or of this one."""
        if old:
            command, environment = self._released.command(), own_environment()
            self._process = await asyncio.to_thread(Process, self.file, command, environment)
        else:
            self._process = await asyncio.to_thread(Process, self.file)

    async def stop(self) -> None:
        assert self._process is not None
        code = await asyncio.to_thread(self._process.stop)
        assert code == 0, "".join(self._process.lines)

    def kill(self) -> None:
        """End what still runs."""
        if self._process is not None and self._process.process.poll() is None:
            self._process.kill()

    async def post(self, pair: str, feeder: str) -> Any:
        """Post a signal under a key, as a feeder that posts again does; returns the answer."""
        assert self._process is not None
        body = {"pair": pair, "enter_tag": f"long from {feeder} conf=0.9", "leverage": 3}
        headers = basic(FLEET) | {"Idempotency-Key": f"{pair}-{feeder}"}
        url = f"{self._process.url}/api/v1/forceenter"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=body, headers=headers) as response,
        ):
            assert response.status == 200, await response.text()
            return await response.json()

    async def decide(self, pair: str) -> None:
        """Let all feeders vote for a pair."""
        for feeder in LONG:
            await self.post(pair, feeder)

    async def leave_under_way(self, name: str) -> None:
        """An order whose outcome nobody knows, as its bot is silent, and another one behind it."""
        self.bot.behaviour = "freeze"
        await self.decide(f"{name}A/USDT:USDT")
        await until(lambda: self.states().get(f"{name}A/USDT:USDT") == "unknown", "unknown")
        await self.decide(f"{name}B/USDT:USDT")
        assert self.states()[f"{name}B/USDT:USDT"] == "queued"

    async def settled(self, name: str) -> None:
        """Wait until both have ended: the bot answers again."""
        self.bot.behaviour = "ok"
        ends = {f"{name}A/USDT:USDT": "found", f"{name}B/USDT:USDT": "accepted"}
        await until(
            lambda: ends.items() <= self.states().items(), lambda: f"{name}: {self.states()}"
        )

    def states(self) -> dict[str, str]:
        """Pair -> the state of its forward."""
        return dict(rows(self.directory, "SELECT pair, state FROM forwarded"))


def test_of_a_body_that_is_taken_back_its_digest_is_left() -> None:
    digest = hashlib.sha256(b"{").digest()
    assert body_1(digest) == digest
    for body in (b'{"pair":"BTC/USDT:USDT"}', b'{"pair":"A/USDT:USDT","n":"123"}', b""):
        assert body_1(body) == hashlib.sha256(body).digest()


def test_a_ledger_goes_on_back_and_on_again(
    tmp_path: Path, released: Released, scoreboard: Scoreboard
) -> None:
    async def scenario() -> None:
        # The released version asks nothing at its start: frozen, the bot answers no look of it either.
        async with CountingBot(asked=True) as bot:
            line = Aggregators(tmp_path, bot, released)
            try:
                await run(line, bot)
            finally:
                line.kill()

    async def run(line: Aggregators, bot: CountingBot) -> None:
        await line.start(old=True)
        assert line.version == 1
        for pair, behaviour, state in (
            ("OK/USDT:USDT", "ok", "accepted"),
            ("FULL/USDT:USDT", "already_open", "refused"),
            ("LOOKED/USDT:USDT", "error_500", "found"),
        ):
            bot.behaviour = behaviour  # type: ignore[assignment]
            await line.decide(pair)
            await until(lambda p=pair, s=state: line.states().get(p) == s, f"{pair}: {state}")
        answers = [await line.post(OPEN, feeder) for feeder in LONG[:2]]
        await line.leave_under_way("FIRST")
        before = line.states()
        await line.stop()

        # It migrates at its start, with what was under way.
        bot.behaviour = "ok"
        await line.start()
        assert line.version == 2
        refused = await asyncio.to_thread(released.run, "signals", "--config", line.file)
        assert refused.returncode == 1
        assert "newer marketfeed" in refused.stderr
        await line.settled("FIRST")
        assert line.states() == before | line.states()
        opened = dict(
            rows(line.directory, "SELECT pair, trade_id FROM forwarded WHERE trade_id IS NOT NULL")
        )
        assert {trade["pair"]: trade["trade_id"] for trade in bot.trades} == opened
        # A signal that is posted again is the one that was stored, whichever version stored it.
        assert [await line.post(OPEN, feeder) for feeder in LONG[:2]] == answers
        answers.append(await line.post(OPEN, LONG[2]))
        await line.leave_under_way("SECOND")
        await line.stop()

        back = await asyncio.to_thread(
            run_marketfeed, "upgrade", "--ledger", "--to", "1", "--config", line.file
        )
        assert back.returncode == 0, back.stdout + back.stderr
        assert line.version == 1
        bot.behaviour = "ok"
        await line.start(old=True)
        await line.settled("SECOND")
        assert [await line.post(OPEN, feeder) for feeder in LONG[:3]] == answers
        answers.append(await line.post(OPEN, LONG[3]))
        shown = await asyncio.to_thread(released.run, "signals", "--json", "--config", line.file)
        assert shown.returncode == 0, shown.stderr
        await line.leave_under_way("THIRD")
        await line.stop()

        bot.behaviour = "ok"
        await line.start()
        assert line.version == 2
        await line.settled("THIRD")
        assert [await line.post(OPEN, feeder) for feeder in LONG[:4]] == answers
        await line.post(OPEN, LONG[4])
        await until(lambda: line.states().get(OPEN) == "accepted", "the last order")
        shown = await asyncio.to_thread(run_marketfeed, "signals", "--json", "--config", line.file)
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)["events"]
        await line.stop()

        # Each signal once, each decision of five votes, each order once.
        signals = Counter(rows(line.directory, "SELECT pair, feeder FROM signal"))
        assert set(signals.values()) == {1}
        decided = rows(line.directory, "SELECT pair, votes, outcome FROM decision")
        assert sorted(pair for pair, _, _ in decided) == sorted({pair for pair, _ in signals})
        assert {(votes, outcome) for _, votes, outcome in decided} == {(5, "forward")}
        ordered = Counter(post["pair"] for post in bot.posts)
        assert ordered == Counter(pair for pair, _, _ in decided)
        assert sum(signals.values()) == 5 * len(ordered) == 50
        scoreboard.add(
            Row(
                fault="a ledger of the released aggregator upgraded, taken back, upgraded again",
                lost=f"nothing: {sum(signals.values())} signals, {len(ordered)} orders, none twice",
            )
        )

    asyncio.run(scenario())
