"""Two bots, a proxy in front of each, the aggregator as a process, and feeders: what all proofs of it share.

Bots are real Freqtrades in dry-run on a simulated exchange, or scripted ones (`scripted_freqtrade.py`), which
start at once. Everything but the processes runs in one event loop.
"""

import asyncio
import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import (
    AsyncIterator,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import Any, Final

import aiohttp

from marketfeed.settings.aggregator import AggregatorSettings
from marketfeed.simulator.catalogue import choose_pairs
from tests.freqtrade.command import require
from tests.freqtrade.harness import ROOT, Bot, exchange
from tests.freqtrade.harness_config import PASSWORD, USER
from tests.freqtrade.judge import Decided, Opened, Posted
from tests.freqtrade.order_proxy import OrderProxy
from tests.ports import held_port
from tests.waiting import until

sys.path.append(str(ROOT / "tests" / "aggregator"))

import running as helpers
from running import FLEET, FLEET_HASH, LONG, SHORT, Process, basic, rows

PAIRS: Final = 164
SIDES: Final = ("long", "short")
FEEDERS: Final[Mapping[str, tuple[str, ...]]] = {"long": LONG, "short": SHORT}
GIVE_UP_S: Final = 90.0
"""A feeder posts a vote again for so long: while the aggregator is killed, stopped or asleep."""
_UNRESOLVED: Final = """
SELECT (SELECT count(*) FROM vote WHERE window NOT IN (SELECT window FROM decision)),
       (SELECT count(*) FROM forward WHERE state IN ('queued', 'sending', 'unknown'))"""
_DECIDED: Final = """
SELECT d.window, d.pair, d.side, d.opened, d.decided, d.outcome, d.reasons, d.votes, d.of, d.confidence,
       d.tag, coalesce(f.state, ''), f.sent, f.changed, coalesce(f.answer, ''), f.trade_id
FROM decision d LEFT JOIN forward f ON f.window = d.window ORDER BY d.window"""


_NOTES: Final = itertools.count(1)


# --- bots -----------------------------------------------------------------------------------------


class RealBot(Bot):
    """A real Freqtrade; its stake is small, so that it can open as many trades as a proof takes."""

    def __init__(
        self, python: Path, directory: Path, rest_url: str, *, max_open: int, **more: Any
    ) -> None:
        over = {
            "max_open_trades": max_open,
            "stake_amount": 100,
            "dry_run_wallet": 10_000_000,
            # What is forced in needs no place on the list; few pairs leave the core to the orders.
            "exchange": {"pair_whitelist": list(choose_pairs(2))},
        }
        super().__init__(
            python, directory, rest_url, choose_pairs(2), api=True, config=over, **more
        )

    def is_running(self) -> bool:
        """Whether it takes orders."""
        answer = self.api("GET", "show_config")
        return answer.status == 200 and answer.body["state"] == "running"


class ScriptedBot:
    """A scripted one, as a process of its own; its trades outlive it."""

    def __init__(self, directory: Path, *, max_open: int, order_s: float = 0.05) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.lock = directory / "lock"
        self._port = held_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._command = [
            sys.executable, "-m", "tests.freqtrade.scripted_freqtrade", f"--port={self._port}",
            f"--trades={directory / 'trades.jsonl'}", f"--max-open-trades={max_open}",
            f"--order-s={order_s}", f"--lock={self.lock}",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; it is not waited for."""
        self._process = subprocess.Popen(self._command, cwd=ROOT, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        """End it at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def is_running(self) -> bool:
        """Whether it takes orders."""
        return self.api("GET", "show_config").body.get("state") == "running"

    api = Bot.api

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port


AnyBot = RealBot | ScriptedBot


@contextlib.contextmanager
def _exchange(directory: Path, kind: str) -> Any:
    directory.mkdir(parents=True, exist_ok=True)
    if kind == "scripted":
        yield ""
        return
    with exchange(directory, pairs=PAIRS, speed=1.0, timeframes="1m,3m,5m,15m,1h") as sim:
        yield sim.rest_url


def trades_of(bot: AnyBot, name: str) -> list[Opened]:
    """All trades of a bot, open and closed. Raises Broken when it does not answer."""
    answer = bot.api("GET", "status")
    require(answer.status == 200, f"bot {name}: {answer}")
    found: list[dict[str, Any]] = list(answer.body)
    offset, total = 0, 1
    while offset < total:
        answer = bot.api("GET", f"trades?limit=500&offset={offset}")
        require(answer.status == 200, f"bot {name}: {answer}")
        total = answer.body["total_trades"]
        found += answer.body["trades"]
        offset += 500
    return [
        Opened(
            bot=name,
            trade_id=trade["trade_id"],
            pair=trade["pair"],
            side="short" if trade["is_short"] else "long",
            tag=trade["enter_tag"] or "",
            opened_ms=trade["open_timestamp"],
            closed_ms=trade.get("close_timestamp"),
        )
        for trade in {trade["trade_id"]: trade for trade in found}.values()
    ]


# --- the stage ------------------------------------------------------------------------------------


def settings_that_are(**changes: Any) -> dict[str, Any]:
    """Those of `changes` that this version of the aggregator has."""
    return {
        name: value for name, value in changes.items() if name in AggregatorSettings.model_fields
    }


class Stage:
    """Bots, proxies and the aggregator; `settings` are those of `aggregator`, else all are as shipped."""

    def __init__(
        self,
        directory: Path,
        bots: Mapping[str, AnyBot],
        proxies: Mapping[str, OrderProxy],
        *,
        bot_settings: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.home = directory / "aggregator"
        self.home.mkdir(parents=True, exist_ok=True)
        self.bots = bots
        self.proxies = proxies
        self.port, self.status_port = held_port(), held_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: Process | None = None
        self.starts_ms: list[int] = []
        self.log: list[str] = []
        self.password = self.home / "bot_password"
        self.password.write_text(PASSWORD)
        self.password.chmod(0o600)
        own = {"username": USER, "password_file": str(self.password)} | dict(bot_settings or {})
        given = {side: {"url": proxy.url} | own for side, proxy in proxies.items()}
        self.ledger = self.home / "ledger.db"
        aggregator: dict[str, Any] = {
            "port": self.port,
            "status": {"port": self.status_port},
            "ledger": {"path": str(self.ledger)},
            "feeders": {"long": LONG, "short": SHORT, "aliases": {"75": ["75a", "75b", "75c"]}},
            "accounts": [{"username": FLEET[0], "hash": FLEET_HASH}],
            "bots": given,
        }
        self._file = self.home / "config.yaml"
        # YAML is a superset of JSON.
        self._file.write_text(json.dumps({"aggregator": aggregator | settings}))
        # A fresh ledger forwards nothing for a while: this one has been in use.
        if (settle := getattr(helpers, "settle", None)) is not None:
            settle(self.ledger)

    async def start(self) -> None:
        """Start the aggregator, and wait until feeders can post."""
        self.process = await asyncio.to_thread(Process, self._file)
        self.starts_ms.append(time.time_ns() // 1_000_000)

    async def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.log += self.process.lines
        await asyncio.to_thread(self.process.kill)

    async def stop(self) -> None:
        """SIGTERM. Raises Broken when it does not end well."""
        assert self.process is not None
        code = await asyncio.to_thread(self.process.stop)
        self.log += self.process.lines
        require(code == 0, f"the aggregator ended with {code}: {''.join(self.process.lines[-20:])}")

    def signal(self, number: int) -> None:
        """Send the aggregator a signal."""
        assert self.process is not None
        os.kill(self.process.process.pid, number)

    @property
    def is_alive(self) -> bool:
        """Whether the aggregator's process runs."""
        return self.process is not None and self.process.process.poll() is None

    async def health(self) -> tuple[int, dict[str, Any]]:
        """The status port's /health; status 0 when nobody answers."""
        timeout = aiohttp.ClientTimeout(total=5.0)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"http://127.0.0.1:{self.status_port}/health") as answer,
            ):
                return answer.status, await answer.json()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return 0, {}

    # --- what its ledger and its bots hold ------------------------------------------------------------

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a query of the ledger finds."""
        return rows(self.home, query, values)

    def decisions(self) -> list[Decided]:
        """All decisions of the ledger."""
        names = Decided.__struct_fields__
        return [Decided(**dict(zip(names, row, strict=True))) for row in self.rows(_DECIDED)]

    def posts(self) -> list[Posted]:
        """All orders that the proxies saw."""
        return [post for proxy in self.proxies.values() for post in proxy.posts]

    async def trades(self) -> list[Opened]:
        """All trades of both bots."""
        found = []
        for name, bot in self.bots.items():
            found += await asyncio.to_thread(trades_of, bot, name)
        return found

    def unresolved(self) -> int:
        """Windows that are not decided, and forwards that have not ended."""
        ((undecided, underway),) = self.rows(_UNRESOLVED)
        return int(undecided + underway) + sum(proxy.open_posts for proxy in self.proxies.values())

    async def settled(self, timeout_s: float = 240.0) -> None:
        """Wait until everything is decided, and every forward has ended."""
        await until(
            lambda: not self.unresolved(), lambda: f"{self.unresolved()} ends", timeout_s=timeout_s
        )

    def ended(self, pair: str, side: str = "long") -> Decided | None:
        """The newest decision of a pair and side, once its forward has ended."""
        found = [one for one in self.decisions() if (one.pair, one.side) == (pair, side)]
        if found and (
            not found[-1].forwarded
            or found[-1].state in ("accepted", "found", "refused", "expired", "lost")
        ):
            return found[-1]
        return None


@contextlib.asynccontextmanager
async def staged(
    directory: Path,
    kind: str,
    *,
    max_open: int = 1_000,
    sides: Sequence[str] = SIDES,
    bot: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Stage]:
    """Run bots of `kind` ("real" or "scripted") and proxies; the aggregator is not started yet.

    `bot` is what else a bot of that kind takes, `settings` are the aggregator's, `bot_settings` among them
    those of its bots.
    """
    more = dict(bot or {})
    with contextlib.ExitStack() as stack:
        rest_url = stack.enter_context(_exchange(directory, kind))
        bots: dict[str, AnyBot] = {}
        for side in sides:
            place = directory / side
            if kind == "scripted":
                bots[side] = ScriptedBot(place, max_open=max_open, **more)
            else:
                bots[side] = RealBot(
                    await asyncio.to_thread(freqtrade_python),
                    place,
                    rest_url,
                    max_open=max_open,
                    **more,
                )
            stack.callback(_end, bots[side])
            bots[side].start()
        for each in bots.values():
            await running(each)
        proxies = {side: OrderProxy(each.url) for side, each in bots.items()}
        async with contextlib.AsyncExitStack() as more_stack:
            for proxy in proxies.values():
                await more_stack.enter_async_context(proxy)
            stage = Stage(directory, bots, proxies, **settings)
            try:
                yield stage
            finally:
                if stage.is_alive:
                    stage.signal(signal.SIGCONT)
                    await stage.kill()
                (directory / "aggregator.log").write_text("".join(stage.log))


async def running(bot: AnyBot, timeout_s: float = 180.0) -> None:
    """Wait until a bot takes orders."""
    deadline_s = time.monotonic() + timeout_s
    while not await asyncio.to_thread(_answers, bot):
        require(time.monotonic() < deadline_s, f"{bot.directory.name}: the bot does not come up")
        await asyncio.sleep(0.1)


def _answers(bot: AnyBot) -> bool:
    try:
        return bot.is_running()
    except (KeyError, AttributeError, TypeError):
        return False


def _end(bot: AnyBot) -> None:
    with contextlib.suppress(AssertionError, OSError):
        os.kill(bot.pid, signal.SIGCONT)
        bot.kill()


@functools.cache
def freqtrade_python() -> Path:
    """The Python that has Freqtrade, installed at the first call."""
    from tests.freqtrade.installation import freqtrade_home  # noqa: PLC0415 - influxd's place is known now

    return freqtrade_home() / "bin" / "python"


# --- feeders --------------------------------------------------------------------------------------


class Feeders:
    """Posts votes, each until it is answered; a vote is told from every other by its `note`."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = f"{url}/api/v1/forceenter"
        self._session = session
        self.answered = 0

    async def vote(self, pair: str, side: str, feeder: str, confidence: float, **more: Any) -> bool:
        """Post one; whether it was counted. Posts it again, with its key, while nobody answers."""
        note = next(_NOTES)
        tag = f"{side} from {feeder} conf={confidence:.2f} (DQ: profit={note / 100:.2f}%)"
        body = {
            "pair": pair,
            "side": side,
            "ordertype": "market",
            "leverage": 3,
            "enter_tag": tag,
        } | more
        headers = basic(FLEET) | {"Idempotency-Key": f"{note}_{feeder}"}
        give_up_s = time.monotonic() + GIVE_UP_S
        while time.monotonic() < give_up_s:
            try:
                async with self._session.post(self._url, json=body, headers=headers) as answer:
                    text = await answer.text()
                    status = answer.status
            except (aiohttp.ClientError, OSError, TimeoutError):
                status, text = 0, ""
            if status == 200:
                self.answered += 1
                return True
            require(status in (0, 503), f"a vote was answered {status}: {text[:200]}")
            await asyncio.sleep(0.05)
        return False

    async def votes(
        self,
        pair: str,
        side: str = "long",
        count: int = 5,
        confidence: float = 0.9,
        over_s: float = 0.0,
        feeders: Sequence[str] | None = None,
    ) -> None:
        """Let so many feeders of a side vote, spread over `over_s` seconds, all equally sure."""
        names = (feeders or FEEDERS[side])[:count]
        await self.vote(pair, side, names[0], confidence)
        pause_s = over_s / max(len(names) - 1, 1)
        for name in names[1:]:
            await asyncio.sleep(pause_s)
            await self.vote(pair, side, name, confidence)


@contextlib.asynccontextmanager
async def feeding(stage: Stage) -> AsyncIterator[Feeders]:
    """Feeders of the stage's aggregator."""
    timeout = aiohttp.ClientTimeout(total=60.0)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        yield Feeders(stage.url, session)
