"""An aggregator with short windows, in this process or as one of its own, and how feeders post to it."""

import asyncio
import base64
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from bot import PASSWORD

from marketfeed.aggregator.aggregator import Aggregator
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_schema import KIND
from marketfeed.aggregator.timing import DEFAULT_PACE, Pace
from marketfeed.settings.load import load_settings
from marketfeed.settings.model import Settings
from marketfeed.storage.reading import reading
from tests.waiting import until

Login = tuple[str, str]
FLEET: Login = ("fleet", "invented-fleet-password")


def quick_hash(password: str) -> str:
    """A hash as settings take it that costs nothing: tests start many aggregators."""
    salt = os.urandom(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, n=2, r=8, p=1, dklen=32)
    return f"scrypt$2$8$1${salt.hex()}${digest.hex()}"


FLEET_HASH = quick_hash(FLEET[1])
PAIR = "BTC/USDT:USDT"
LONG = ("73", "74", "75", "79", "108")
SHORT = ("120", "121", "122", "123", "124")
QUICK = Pace(
    retry_first_s=0.02,
    retry_cap_s=0.1,
    again_s=0.05,
    look_s=0.05,
    settle_s=0.2,
    # An order is lost before its answer is late: tests have bots that hang, and no time.
    searched_s=-60.0,
    look_lost_s=0.2,
    probe_s=0.3,
    ledger_retry_s=0.05,
    place_s=0.1,
)
QUICK_MARKETFEED = (sys.executable, str(Path(__file__).with_name("quick_marketfeed.py")))
DEADLINE_S = 180.0


def basic(auth: Login | None) -> dict[str, str]:
    """The header that shows a name and a password."""
    if auth is None:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(":".join(auth).encode()).decode()}


def settle(ledger: Path) -> Path:
    """Have a ledger there that has been in use for long: a fresh one forwards nothing for a while."""
    if not ledger.exists():
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with Ledger.open(ledger) as opened:
            opened.release()
    return ledger


def config(
    path: Path,
    bots: Mapping[str, str | dict[str, Any]],
    bot_timeout_s: float = 1,
    *,
    fresh: bool = False,
    released: bool = False,
    **changes: Any,
) -> Path:
    """Write a config.yaml into `path`: ten feeders, `bots` by side, windows of 1 s unless changed.

    A bot is the url of a `CountingBot`, or all of its settings. `fresh`: no ledger is made. `released`: no
    key that released versions refuse.
    """
    longest_s = (
        max(
            bot_timeout_s if isinstance(bot, str) else bot.get("timeout_s", 20)
            for bot in bots.values()
        )
        if bots
        else bot_timeout_s
    )
    aggregator: dict[str, Any] = {
        "port": 0,
        "status": {"port": 0},
        "ledger": {"path": str(path / "ledger.db")},
        "feeders": {
            "long": list(LONG),
            "short": list(SHORT),
            "aliases": {"75": ["75a", "75b", "75c"]},
        },
        "accounts": [{"username": FLEET[0], "hash": FLEET_HASH}],
        "window_s": 1,
        "cooldown_s": 0,
        # As short as a process of its own allows.
        "unconfirmed_s": longest_s + DEFAULT_PACE.searched_s,
        "bots": {
            side: {
                "url": bot,
                "password_file": str(path / "bot_word"),
                "timeout_s": bot_timeout_s,
            }
            if isinstance(bot, str)
            else bot
            for side, bot in bots.items()
        },
    }
    if released:
        del aggregator["unconfirmed_s"]
    else:
        aggregator["early_grace_s"] = 0
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(aggregator.get(name), dict):
            aggregator[name] |= value
        else:
            aggregator[name] = value
    (path / "bot_word").write_text(PASSWORD)
    (path / "bot_word").chmod(0o600)
    if not fresh:
        settle(Path(aggregator["ledger"]["path"]))
    file = path / "config.yaml"
    file.write_text(yaml.safe_dump({"aggregator": aggregator}))
    return file


def settings(
    path: Path, bots: dict[str, str], bot_timeout_s: float = 1, **changes: Any
) -> Settings:
    given = {"unconfirmed_s": 0.8} | changes
    return load_settings(config(path, bots, bot_timeout_s, **given), {})


def one_vote(path: Path, url: str, **changes: Any) -> Settings:
    """One vote decides, after 0.2 s; the bot has 1 s to answer, a decision 2 s to be sent."""
    given: dict[str, Any] = {"min_agreements": 1, "window_s": 0.2, "expire_s": 2} | changes
    bots = {"long": url} | given.pop("bots", {})
    return settings(path, bots, **given)


class Running:
    """An aggregator that runs in this process."""

    def __init__(self, aggregator: Aggregator, session: aiohttp.ClientSession) -> None:
        self.aggregator = aggregator
        self.session = session

    @property
    def url(self) -> str:
        return self.aggregator.url + "/api/v1"

    async def post(
        self,
        feeder: str,
        confidence: float | None = None,
        *,
        pair: str = PAIR,
        side: str = "long",
        auth: Login | None = FLEET,
        path: str = "forceenter",
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> tuple[int, Any]:
        """Post as a feeder does today, with everything in the tag."""
        conf = "" if confidence is None else f" conf={confidence}"
        body = {
            "pair": pair,
            "side": side,
            "leverage": 3,
            "ordertype": "market",
            "enter_tag": f"{side} from {feeder}{conf} (DQ: profit=3.05%, safety=0.39%)",
        } | more
        return await self.send(body, auth=auth, path=path, headers=headers)

    async def send(
        self,
        body: Any,
        *,
        auth: Login | None = FLEET,
        path: str = "forceenter",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        data = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.session.post(
            f"{self.url}/{path}", headers=(headers or {}) | basic(auth), **data
        ) as response:
            return response.status, await response.json()

    async def get(self, path: str, auth: Login | None = FLEET) -> tuple[int, Any]:
        async with self.session.get(f"{self.url}/{path}", headers=basic(auth)) as response:
            return response.status, await response.json()

    async def status(self, path: str = "status") -> tuple[int, Any]:
        async with self.session.get(f"{self.aggregator.status_url}/{path}") as response:
            return response.status, await response.json()


@contextlib.asynccontextmanager
async def running(given: Settings, pace: Pace = QUICK) -> AsyncIterator[Running]:
    """Run an aggregator until the block ends, then stop it cleanly."""
    aggregator = Aggregator(given, pace)
    stop = asyncio.Event()
    task = asyncio.create_task(aggregator.run(stop))
    try:
        while not aggregator.url and not task.done():
            await asyncio.sleep(0.005)
        if task.done():
            await task
        async with aiohttp.ClientSession() as session:
            yield Running(aggregator, session)
    finally:
        stop.set()
        async with asyncio.timeout(DEADLINE_S):
            await task


def rows(path: Path, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """What a query of the ledger in `path` finds, beside its writer."""
    with reading(KIND, path / "ledger.db") as db:
        return db.execute(query, values).fetchall()


def states(path: Path) -> list[str]:
    return [state for (state,) in rows(path, "SELECT state FROM forward ORDER BY window")]


END_STATES = ("accepted", "refused", "expired", "found", "lost")


async def end_states(path: Path, count: int = 1) -> list[str]:
    """Wait until so many forwards, and all that there are, have ended; how."""

    def ended() -> bool:
        found = states(path)
        return len(found) >= count and all(state in END_STATES for state in found)

    await until(ended, f"end states, found {states(path)}")
    return states(path)


class Process:
    """`marketfeed aggregate` as a process of its own; what it logs is read all the time, into `lines`.

    `marketfeed` and `environment` are those of another version.
    """

    def __init__(
        self,
        config_file: Path,
        marketfeed: Sequence[str] = (sys.executable, "-m", "marketfeed"),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MARKETFEED_")}
        self.process = subprocess.Popen(
            [*marketfeed, "aggregate", "--config", str(config_file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=kept if environment is None else dict(environment),
        )
        self.lines: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        # A full pipe would bring the service to a stand.
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        if not self._ready.wait(DEADLINE_S) or not self.url:
            self.kill()
            raise AssertionError("".join(self.lines))

    def _read(self) -> None:
        assert self.process.stderr is not None
        mark = "aggregator listening url="
        for line in self.process.stderr:
            self.lines.append(line)
            if mark in line:
                self.url = line.split(mark)[1].strip()
                self._ready.set()
        self.process.stderr.close()
        self._ready.set()

    def kill(self) -> None:
        self.process.kill()
        self._ended()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self._ended()
        return self.process.returncode

    def _ended(self) -> None:
        self.process.wait(DEADLINE_S)
        self._reading.join(DEADLINE_S)
