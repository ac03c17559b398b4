"""A real Freqtrade (`installation.py`) as bots of a simulated exchange.

`Bot` alone needs nothing of marketfeed but an exchange's address: with `api=True` it answers Freqtrade's
REST API on loopback. `feeder_line` puts a simulator, a filled journal and a collector around it.
"""

import base64
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlencode

ROOT: Final = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests" / name) for name in ("faults", "influxdb", "freqtrade")]

from harness_config import (  # noqa: E402 - the directories have to be known first
    PASSWORD,
    USER,
    bot_config,
)
from proc_commands import (  # noqa: E402
    Collecting,
    Exchange,
    environment,
    exchange,
    get,
    run_command,
    write_config,
)

from marketfeed import schema  # noqa: E402
from marketfeed.journal.batch import Batch  # noqa: E402
from marketfeed.journal.journal import Journal  # noqa: E402
from marketfeed.records import Candle, FundingSettled, MarkPrice  # noqa: E402
from marketfeed.simulator.catalogue import choose_pairs  # noqa: E402
from tests.waiting import wait_until  # noqa: E402

STRATEGIES: Final = Path(__file__).parent / "strategies"
START_S: Final = 120.0
STOP_S: Final = 60.0
EXAMPLES: Final = ROOT / "examples"
BY_MODULE: Final = ("-m", "reader.freqtrade")
"""Freqtrade with the seam in place, whatever the strategy."""
REQUESTS: Final = ("klines", "fundingRate", "markPriceKlines")
"""What a feeder that reads the store must not ask for."""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class ApiAnswer(NamedTuple):
    """An answer of a bot's REST API; status 0 when there was none."""

    status: int
    body: Any


class Bot:
    """`freqtrade trade` in dry-run futures mode against the exchange at `rest_url`.

    `python` is that of Freqtrade's environment. `strategy` is the name of a class in `strategy_path`.
    `api` opens the REST API server. `config` is merged over the bot's own, section by section; `env` is
    added to its environment. `command` is what stands before `trade`. The strategy `Seen` never trades
    by itself: it does what it is forced to.
    """

    def __init__(
        self,
        python: Path,
        directory: Path,
        rest_url: str,
        pairs: Sequence[str],
        *,
        strategy: str = "Seen",
        strategy_path: Path = STRATEGIES,
        timeframe: str = "1m",
        api: bool = False,
        config: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = ("-m", "freqtrade"),
        arguments: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port() if api else 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / "freqtrade.log"
        user_data = directory / "user_data"
        (user_data / "data").mkdir(parents=True, exist_ok=True)
        self._config = directory / "config.json"
        self._config.write_text(
            json.dumps(
                _merged(bot_config(directory, rest_url, pairs, timeframe, self.port), config or {}),
                indent=2,
            )
        )
        self._command = [
            str(python), *command, "trade", "--dry-run",
            "--config", str(self._config), "--user-data-dir", str(user_data),
            "--strategy", strategy, "--strategy-path", str(strategy_path), *arguments,
        ]  # fmt: skip
        self._env = environment(
            PYTHONPATH="", SEEN_DIR=str(directory), HOME=str(directory), PYTHONUNBUFFERED="1"
        ) | dict(env or {})

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text("utf-8", "replace")

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; it is not waited for."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.directory,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def wait_log(self, pattern: str, timeout_s: float = START_S, count: int = 1) -> None:
        """Wait until `pattern` stands in its log `count` times."""
        compiled = re.compile(pattern)

        def found() -> bool:
            assert self._process is not None
            code = self._process.poll()
            assert code is None, f"freqtrade ended with {code}:\n{self.log[-6000:]}"
            return len(compiled.findall(self.log)) >= count

        try:
            wait_until(found, timeout_s=timeout_s)
        except TimeoutError:
            raise AssertionError(f"no {pattern!r} in:\n{self.log[-6000:]}") from None

    def wait_running(self, timeout_s: float = START_S) -> None:
        """Wait until it trades: its first pass over the pairs is done, and its API answers, if any."""
        self.wait_log(r"Bot heartbeat\. .*state='RUNNING'", timeout_s)
        if self.port:
            wait_until(lambda: self.api("GET", "ping").status == 200, timeout_s=timeout_s)

    def stop(self) -> int:
        """Ask it to stop (SIGINT) and return its exit code: Freqtrade ends with 130 then.

        Freqtrade's handler raises where it just is; seen once: it hung then. So it is asked again.
        """
        assert self._process is not None
        for _ in range(4):
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(STOP_S / 4)
        self._process.kill()
        return self._process.wait()

    # --- its REST API -----------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where its REST API is: the address to give to a client."""
        return f"http://127.0.0.1:{self.port}"

    def api(self, method: str, path: str, payload: object = None) -> ApiAnswer:
        """Call `/api/v1/<path>` with its user and password."""
        word = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        headers = {"Authorization": f"Basic {word}", "Content-Type": "application/json"}
        body = None if payload is None else json.dumps(payload)
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port, timeout=30.0)) as connection:
            try:
                connection.request(method, f"/api/v1/{path}", body, headers)
                answer = connection.getresponse()
                return ApiAnswer(answer.status, json.loads(answer.read()))
            except (OSError, HTTPException, ValueError) as error:
                return ApiAnswer(0, str(error))

    # --- what its strategy saw --------------------------------------------------------------------

    def frames(self) -> list[dict[str, Any]]:
        """The frames that the strategy `Seen` was shown: at_ms, pair, newest_ms, file, dtypes."""
        return _lines(self.directory / "frames.jsonl")

    def decisions(self) -> list[dict[str, Any]]:
        """The entries it was about to make: at_ms, pair, newest_ms."""
        return _lines(self.directory / "decisions.jsonl")

    def wait_candles(self, count: int, pairs: int, timeout_s: float) -> None:
        """Wait until so many pairs have been shown `count` different newest candles."""

        def shown() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log[-6000:]
            seen = Counter(pair for pair, _ in {(f["pair"], f["newest_ms"]) for f in self.frames()})
            return sum(number >= count for number in seen.values()) >= pairs

        wait_until(shown, timeout_s=timeout_s)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    # The last line may be half written.
    return [
        json.loads(line) for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"
    ]


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


# --- the line around it ---------------------------------------------------------------------------


class Line(NamedTuple):
    """A simulated exchange, the journal filled from it, and the collector that goes on with it."""

    exchange: Exchange
    journal: Path
    pairs: tuple[str, ...]
    collector: Collecting

    @property
    def reader_url(self) -> str:
        """`MARKETFEED_URL` of the journal."""
        return f"sqlite:///{self.journal}"

    def requests(self) -> dict[str, int]:
        """How often each REST endpoint was asked so far, by others than the collector (it heals, too)."""
        while True:
            own: dict[str, int] = self.collector.status()["rest"]["requests"]
            # What it has counted has arrived, and nothing has been asked in between.
            time.sleep(0.5)
            asked: dict[str, int] = get(self.exchange.rest_url + "/simulator/state").json[
                "requests"
            ]
            if self.collector.status()["rest"]["requests"] == own:
                return {name: count - own.get(name, 0) for name, count in asked.items()}


@contextlib.contextmanager
def feeder_line(
    directory: Path,
    pairs: int = 20,
    *,
    timeframes: Sequence[str] = ("1m", "1h"),
    candles: int = 600,
    mark_hours: int = 48,
    speed: float = 1.0,
    **sections: dict[str, Any],
) -> Iterator[Line]:
    """Run simulator and collector; the journal holds the last `candles` of each timeframe already.

    And `mark_hours` of mark prices, 40 days of settled funding rates. `sections` are merged into the
    collector's settings.
    """
    names = choose_pairs(pairs)
    directory.mkdir(parents=True, exist_ok=True)
    with exchange(directory, pairs, speed, "1m,3m,5m,15m,1h") as sim:
        journal = directory / "journal.db"
        _wait_for_early_minute()
        fill(journal, sim.rest_url, names, dict.fromkeys(timeframes, candles), mark_hours)
        chosen = {"pairs": list(names), "timeframes": list(timeframes)}
        sections["exchange"] = chosen | sections.get("exchange", {})
        config = write_config(directory, sim.ws_url, sim.rest_url, journal, **sections)
        with Collecting(run_command(config), directory / "collector.log") as collector:
            wait_until(collector.is_delivering, timeout_s=START_S)
            yield Line(sim, journal, names, collector)
            assert collector.stop() == 0, collector.log


def _wait_for_early_minute() -> None:
    """Leave the collector time to subscribe before the next candle closes: none may be missed."""
    second = time.time() % 60
    if second > 25:
        time.sleep(60.5 - second)


def fill(
    path: Path,
    rest_url: str,
    pairs: Sequence[str],
    candles: Mapping[str, int],
    mark_hours: int = 48,
    settled_days: int = 40,
) -> None:
    """Write the past into a journal, as a collector that ran before would have it.

    `candles`: how many of each timeframe. A mark price a minute, and the settled funding rates.
    """
    with Journal.open(path) as journal:
        now_ms = _ask(rest_url, "time")["serverTime"]
        for pair in pairs:
            symbol = _symbol(pair)
            batch = Batch()
            for timeframe, count in candles.items():
                batch.extend(_past(rest_url, pair, symbol, timeframe, count, now_ms))
            since_ms = schema.floor_to(now_ms, schema.HOUR_MS) - mark_hours * schema.HOUR_MS
            for row in _rows(rest_url, "markPriceKlines", symbol, "1m", since_ms, now_ms):
                batch.add(MarkPrice(pair, row[0], float(row[1]), float(row[1])))
            since_ms = now_ms - settled_days * schema.DAY_MS
            for one in _ask(rest_url, "fundingRate", symbol=symbol, startTime=since_ms, limit=1000):
                time_ms = schema.floor_to(one["fundingTime"], schema.MINUTE_MS)
                mark = float(one["markPrice"]) if one["markPrice"] else None
                batch.add(FundingSettled(pair, time_ms, float(one["fundingRate"]), mark))
            journal.write(batch)


def _past(
    rest_url: str, pair: str, symbol: str, timeframe: str, count: int, now_ms: int
) -> Iterator[Candle]:
    length_ms = schema.TIMEFRAMES_MS[timeframe]
    since_ms = schema.floor_to(now_ms, length_ms) - count * length_ms
    for row in _rows(rest_url, "klines", symbol, timeframe, since_ms, now_ms):
        if row[6] < now_ms:
            open_, high, low, close, volume = map(float, row[1:6])
            yield Candle(
                pair, timeframe, row[0], open_, high, low, close, volume, float(row[7]),
                float(row[9]), row[8], True, row[6] + 1,
            )  # fmt: skip


def _rows(
    rest_url: str, endpoint: str, symbol: str, timeframe: str, since_ms: int, until_ms: int
) -> Iterator[list[Any]]:
    length_ms = schema.TIMEFRAMES_MS[timeframe]
    while since_ms <= until_ms:
        # No more than there is: the weight goes by the limit.
        limit = min(1500, (until_ms - since_ms) // length_ms + 2)
        rows = _ask(
            rest_url, endpoint, symbol=symbol, interval=timeframe, startTime=since_ms, limit=limit
        )
        if not rows:
            return
        yield from rows
        since_ms = rows[-1][0] + length_ms


def _ask(rest_url: str, endpoint: str, **query: object) -> Any:
    while True:
        answer = get(f"{rest_url}/fapi/v1/{endpoint}?{urlencode(query)}")
        if answer.status == 200:
            return answer.json
        # The address's weight of this minute is used up; the harness shares it with its bots.
        assert answer.status == 429, answer
        time.sleep(1.0)


def past_rows(
    rest_url: str, pair: str, timeframe: str, since_ms: int, endpoint: str = "klines"
) -> list[list[Any]]:
    """The exchange's own candles of a pair, the forming one included."""
    now_ms = _ask(rest_url, "time")["serverTime"]
    return list(_rows(rest_url, endpoint, _symbol(pair), timeframe, since_ms, now_ms))


def settled_rows(rest_url: str, pair: str, since_ms: int) -> dict[int, list[float]]:
    """The exchange's own settled rates of a pair by their minute (ms); a thousand at most."""
    rows = _ask(rest_url, "fundingRate", symbol=_symbol(pair), startTime=since_ms, limit=1000)
    return {
        schema.floor_to(row["fundingTime"], schema.MINUTE_MS): [float(row["fundingRate"])]
        for row in rows
    }


def _symbol(pair: str) -> str:
    return pair.partition(":")[0].replace("/", "")
