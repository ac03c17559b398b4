"""`marketfeed …` as processes, each with its log in a file, and what tests ask of them over HTTP."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

import msgspec

from marketfeed.journal.journal import Journal
from marketfeed.records import differing_fields
from marketfeed.simulator.published import Published
from tests.waiting import wait_until

TIMEOUT_S: Final = 180.0
"""For whatever is waited for: far more than it takes."""
LOOK_EVERY_S: Final = 0.02
MARKETFEED: Final = (sys.executable, "-m", "marketfeed")


def environment(**more: str) -> dict[str, str]:
    """The environment of these tests without any settings of ours, and `more`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MARKETFEED_")}
    return kept | {"COLUMNS": "200", "NO_COLOR": "1"} | more


class Answer(NamedTuple):
    """An HTTP answer: `status` 0 when there was none."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)


def get(url: str, method: str = "GET") -> Answer:
    """Fetch a URL; whatever the status."""
    parts = urlsplit(url)
    with contextlib.closing(HTTPConnection(parts.netloc, timeout=TIMEOUT_S)) as connection:
        try:
            connection.request(method, f"{parts.path}?{parts.query}")
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        except (OSError, HTTPException) as error:
            return Answer(0, str(error).encode())


def post(url: str) -> Answer:
    """POST nothing to a URL."""
    return get(url, "POST")


class Process:
    """A process that runs beside the test; its standard error goes to a file."""

    def __init__(
        self, arguments: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                list(map(str, arguments)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env=environment() if env is None else env,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text("utf-8", "replace")

    def logged(self, pattern: str) -> re.Match[str] | None:
        """The first such text in its log, if it is there by now."""
        return re.search(pattern, self.log)

    def line(self, pattern: str) -> re.Match[str]:
        """Wait for text in its log. Raises AssertionError when it ends, or nothing comes."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            ended = self.process.poll() is not None
            if match := self.logged(pattern):
                return match
            assert not ended, (
                f"no {pattern!r}, it ended with {self.process.returncode}:\n{self.log}"
            )
            assert time.monotonic() < deadline_s, f"no {pattern!r} in:\n{self.log}"
            time.sleep(LOOK_EVERY_S)

    def stop(self, timeout_s: float = TIMEOUT_S) -> int:
        """Ask it to stop (SIGTERM) and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Wait until it ends by itself; return its exit code."""
        return self.process.wait(timeout_s)


class Collecting(Process):
    """`marketfeed run`, and its report."""

    _url = ""

    @property
    def url(self) -> str:
        """Its status address; waits until it listens."""
        self._url = self._url or self.line(r"status_url=(\S+)")[1]
        return self._url

    def status(self) -> dict[str, Any]:
        """Its status report."""
        report: dict[str, Any] = get(self.url + "/status").json
        return report

    def health(self) -> Answer:
        """Its `/health`."""
        return get(self.url + "/health")

    def is_delivering(self) -> bool:
        """Whether it is healthy, and every pair has a mark price and its newest candles."""
        report = self.status()
        # A released version does not tell which pairs are ready.
        ready = report.get("ready_pairs", report["pairs"]) == report["pairs"]
        return bool(report["healthy"]) and ready and report["mark_price_age_s"] is not None


class Exchange(NamedTuple):
    """A simulated exchange in a process of its own."""

    ws_url: str
    rest_url: str
    speed: float

    def published_number(self) -> int:
        """How many closing candles it has sent."""
        number: int = get(self.rest_url + "/simulator/state").json["published"]
        return number

    def wait_for_candles(self, count: int) -> None:
        """Let so many more candles close."""
        target = self.published_number() + count
        wait_until(lambda: self.published_number() >= target)

    def published(self, after: int = 0) -> list[Published]:
        """The closing candles it has sent."""
        body = get(f"{self.rest_url}/simulator/published?after={after}").body
        return msgspec.json.decode(body, type=list[Published])


@contextlib.contextmanager
def exchange(
    directory: Path, pairs: int = 6, speed: float = 60.0, timeframes: str = "1m,3m"
) -> Iterator[Exchange]:
    """Run `marketfeed simulate`; its log is in `directory`."""
    command = [
        *MARKETFEED, "simulate", f"--pairs={pairs}", f"--speed={speed}", "--port=0",
        f"--timeframes={timeframes}",
    ]  # fmt: skip
    with exchange_of(command, directory, speed) as running:
        yield running


@contextlib.contextmanager
def exchange_of(command: Sequence[str], directory: Path, speed: float = 1.0) -> Iterator[Exchange]:
    """Run a command that simulates an exchange, as `exchange` does."""
    with Process(command, directory / "simulate.log") as process:
        found = process.line(r"ws_url=(\S+) rest_url=(\S+)")
        yield Exchange(found[1], found[2], speed)
        assert process.stop() == 0, process.log


def write_config(
    directory: Path,
    ws_url: str,
    rest_url: str,
    journal_path: Path | None = None,
    **sections: dict[str, Any],
) -> Path:
    """Write config.yaml for a collector of that exchange; YAML is a superset of JSON."""
    plain: dict[str, dict[str, Any]] = {
        "exchange": {
            "ws_url": ws_url,
            "rest_url": rest_url,
            "pairs": {"top": 6},
            "timeframes": ["1m", "3m"],
        },
        "journal": {"path": str(journal_path or directory / "journal.db"), "max_bytes": "1GB"},
        "status": {"port": 0},
        "history": {"days": 0},
    }
    for name, section in sections.items():
        plain[name] = plain.get(name, {}) | section
    path = directory / "config.yaml"
    path.write_text(json.dumps(plain))
    return path


def run_command(config: Path) -> list[str]:
    """`marketfeed run` with these settings."""
    return [*MARKETFEED, "run", "--config", str(config)]


def run_marketfeed(
    *arguments: str | Path, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*prefix, *MARKETFEED, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env=environment() if env is None else env,
    )


def unlike(path: Path, published: Sequence[Published]) -> list[Published]:
    """Those of `published` that the journal at `path` does not hold with exactly their numbers."""
    with Journal.open(path) as journal:
        assert journal.set_aside is None
        stored = {
            (candle.pair, candle.timeframe, candle.open_time_ms): candle
            for pair, timeframe in {(item.pair, item.timeframe) for item in published}
            for candle in journal.candles(pair, timeframe, 0, 2**62)
        }
    return [
        item
        for item in published
        if (candle := stored.get((item.pair, item.timeframe, item.open_time_ms))) is None
        or differing_fields(item, candle)
    ]
