"""A fleet on a simulated exchange: its bots by version, what they reported, and whom they must not ask."""

import contextlib
import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from proc_commands import Exchange, get
from scripted import Scripted, http

from marketfeed import schema
from reader import MarketReader, ReaderError
from reader.feeder import FUNDING_RATE, FUTURES, MARK, Download, Feeder
from tests.waiting import wait_until

PROGRAM: Final = Path(__file__).with_name("fleet_bots.py")
LIMIT: Final = 100
SPEED: Final = float(os.environ.get("FLEET_SPEED", "20"))
"""The exchange's seconds per second: at 20 a minute is three."""
TIMEOUT_S: Final = 180.0 + 120.0 / SPEED
"""Wall seconds for whatever is waited for: far more than it takes."""
LASTS_S: Final = 900.0
"""Longer than all of it (wall s)."""

STAND_IN: Final = """
import http.client


def retrier_async(f):
    async def wrapper(*args, **kwargs):
        return await f(*args, **kwargs)
    return wrapper


class Exchange:
    id = "binance"

    def __init__(self, address, limit):
        self._klines = {}
        self._config = {"exchange": {"only_from_ccxt": True}}
        self.markets = {}
        self.address = address
        self.limit = limit

    def ohlcv_candle_limit(self, timeframe, candle_type, since_ms=None):
        return self.limit

    def _drop_incomplete_candle(self, candle_type):
        return candle_type != "funding_rate"

    @retrier_async
    async def _async_get_candle_history(self, pair, timeframe, candle_type, since_ms=None):
        connection = http.client.HTTPConnection(self.address, timeout=180)
        connection.request("GET", f"/{candle_type}/{timeframe}/" + pair.split("/")[0])
        connection.getresponse().read()
        connection.close()
        return pair, timeframe, candle_type, [], True


class Binance(Exchange):
    pass
"""
"""Freqtrade 2026.9's seam alone, before an exchange that answers over HTTP with nothing."""


class Report(NamedTuple):
    """What a bot reported of one round: good answers by kind, words of others, its closed candles."""

    good: Mapping[str, int]
    refused: list[str]
    wrong: list[str]
    closed: Mapping[str, list[float]]
    requests: int
    asked_ms: int
    reported_ms: int
    reported_s: float


class Bots:
    """The bots of one version: forks of one process, which ends with the block."""

    def __init__(
        self, python: str | Path, environment: Mapping[str, str], given: Mapping[str, Any]
    ) -> None:
        self.directory = Path(given["directory"])
        self.directory.mkdir(exist_ok=True)
        self.running: set[str] = set()
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(python), str(PROGRAM), json.dumps(given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=dict(environment),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def log(self) -> str:
        """What they have written."""
        return (self.directory / "log").read_text()

    def start(self, name: str) -> None:
        """Start a bot; its first round comes by itself."""
        self._tell(f"start {name}")
        self.running.add(name)

    def stop(self, name: str) -> None:
        """End a bot at once."""
        self._tell(f"stop {name}")
        self.running.discard(name)

    def reports(self, name: str) -> list[Report]:
        """What a bot has reported so far."""
        path = self.directory / f"{name}.jsonl"
        if not path.exists():
            return []
        # A line that is being written is not there yet.
        lines = path.read_text().split("\n")[:-1]
        return [Report(**json.loads(line)) for line in lines]

    def wait_for(self, name: str, condition: Callable[[Report], bool], since_ms: int) -> Report:
        """Wait for a round that began at `since_ms` or later and is so."""
        found: list[Report] = []

        def is_there() -> bool:
            found[:] = [
                one for one in self.reports(name) if one.asked_ms >= since_ms and condition(one)
            ]
            return bool(found)

        try:
            wait_until(is_there, timeout_s=TIMEOUT_S)
        except TimeoutError:
            last = self.reports(name)[-1:]
            raise AssertionError(f"bot {name}: {last}\n{self.log}") from None
        return found[0]

    def _tell(self, command: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert answer == command, f"{answer!r}\n{self.log}"


class Clock:
    """The exchange's time, without asking it again."""

    def __init__(self, sim: Exchange) -> None:
        asked_s = time.monotonic()
        self.origin_ms: int = get(f"{sim.rest_url}/simulator/state").json["exchange_time_ms"]
        self.origin_s = (asked_s + time.monotonic()) / 2
        self.speed = sim.speed

    def now_ms(self) -> int:
        passed_ms = (time.monotonic() - self.origin_s) * 1000 * self.speed
        return int(self.origin_ms + passed_ms)


@contextlib.contextmanager
def scripted_exchange() -> Iterator[Scripted]:
    """An exchange that counts what it is asked, and has nothing."""
    with Scripted(http("200 OK", b"[]"), keep=False) as server:
        yield server


def stand_in(directory: Path) -> Path:
    """Write the package `freqtrade`; returns the directory that PYTHONPATH takes."""
    package = directory / "standin" / "freqtrade"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "2026.9"\n')
    (package / "exceptions.py").write_text("class TemporaryError(Exception):\n    pass\n")
    (package / "exchange.py").write_text(STAND_IN)
    return package.parent


def is_full(pairs: Sequence[str]) -> Callable[[Report], bool]:
    """Whether everything was answered, and well."""

    def full(report: Report) -> bool:
        return sorted(report.good.values()) == [len(pairs)] * 4 and not report.wrong

    return full


def longest_without(reports: Sequence[Report], full: Callable[[Report], bool]) -> float:
    """The longest time (wall s) between the ends of two rounds in which everything was answered."""
    good_s = [report.reported_s for report in reports if full(report)]
    waits_s = (later_s - earlier_s for earlier_s, later_s in itertools.pairwise(good_s))
    return max(waits_s, default=0.0)


def mark_timeframe(clock: Clock) -> str:
    """Of which mark candles bots ask: of a day, unless that ends while the test runs.

    The mark price of its first minute alone shows where a mark candle opens: at speed a restart takes
    minutes, and a collector that is not there then leaves that candle to the exchange.
    """
    left_ms = schema.DAY_MS - clock.now_ms() % schema.DAY_MS
    return "1d" if left_ms > LASTS_S * SPEED * 1000 else "1h"


def wait_for_quiet(clock: Clock, mark: str) -> None:
    """Wait for a moment at which a collector may be restarted: all have asked, and no mark candle begins."""

    def is_quiet() -> bool:
        now_ms = clock.now_ms()
        asked = SPEED >= 2.0 or 14_000 < now_ms % schema.MINUTE_MS < 20_000
        return asked and (mark == "1d" or 1 <= now_ms % schema.HOUR_MS // schema.MINUTE_MS < 45)

    wait_until(is_quiet, timeout_s=LASTS_S)


def is_served(path: Path, clock: Clock, pairs: Sequence[str], mark: str) -> bool:
    """Whether the store has all that bots ask for, by its own word."""
    asks = [
        Download(pair, timeframe, kind, None, LIMIT)
        for timeframe, kind in (
            ("1m", FUTURES),
            ("3m", FUTURES),
            ("1h", FUNDING_RATE),
            (mark, MARK),
        )
        for pair in pairs
    ]
    with MarketReader.connect(f"sqlite:///{path}", now_ms=clock.now_ms) as market:
        return not any(
            isinstance(answer, ReaderError) for answer in Feeder(market, clock.now_ms).answer(asks)
        )
