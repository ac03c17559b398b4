"""Bots of a fleet: each asks through the seam of Freqtrade after each close, and reports what it got.

Run as a program by the interpreter of one version or another, with a stand-in for Freqtrade on PYTHONPATH;
the standard library and `reader` are all that is imported. It takes commands on standard input, `start NAME`
and `stop NAME`, and answers each with a line. A bot is a fork of it: imports are paid for once.

Settings are one JSON argument: `url` of the store, `exchange`, the address to which a download goes that the
store has not the data for, `pairs`, `limit`, `directory` for reports, `after_ms` for how long after a close
they ask, `mark`, the timeframe of mark candles, and the exchange's clock: `origin_ms` at `origin_s`
(monotonic), `speed`.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, Final

from freqtrade.exchange import Binance

from reader import MarketReader
from reader.feeder import Feeder
from reader.freqtrade import install

MINUTE_MS: Final = 60_000
STEPS_MS: Final = {"1h": 60 * MINUTE_MS, "1d": 1_440 * MINUTE_MS}
PR_SET_PDEATHSIG: Final = 1
ABSENT: Final = "ABSENT/USDT:USDT"
"""What a bot asks for, too, whose name begins with "blind": no collector has it."""


class Clock:
    """The exchange's time."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._origin_ms, self._origin_s = given["origin_ms"], given["origin_s"]
        self.speed = given["speed"]

    def now_ms(self) -> int:
        passed_ms = (time.monotonic() - self._origin_s) * 1000 * self.speed
        return int(self._origin_ms + passed_ms)

    def wait_until(self, at_ms: float) -> None:
        time.sleep(max(0.0, (at_ms - self.now_ms()) / 1000 / self.speed))


def feed(name: str, given: dict[str, Any]) -> None:
    """Be a bot until killed."""
    clock = Clock(given)
    market = MarketReader.connect(given["url"], now_ms=clock.now_ms)
    installed = install(reader=market, missing="exchange")
    assert installed is not None
    # A bot's clock is the exchange's.
    installed._feeder = Feeder(market, clock.now_ms)
    exchange = Binance(given["exchange"], given["limit"])
    pairs = given["pairs"] + ([ABSENT] if name.startswith("blind") else [])
    # A fleet does not ask at one moment.
    after_ms = given["after_ms"] + sum(name.encode()) % 12 * 1_000
    with (Path(given["directory"]) / f"{name}.jsonl").open("w", buffering=1) as file:
        while True:
            asked_ms = clock.now_ms()
            report = ask(exchange, pairs, clock, given["mark"])
            report["requests"] = sum(installed.requests.values())
            report |= {
                "asked_ms": asked_ms,
                "reported_ms": clock.now_ms(),
                "reported_s": time.monotonic(),
            }
            file.write(json.dumps(report) + "\n")
            next_ms = clock.now_ms() // MINUTE_MS * MINUTE_MS + MINUTE_MS
            clock.wait_until(next_ms + after_ms)


def ask(exchange: Any, pairs: list[str], clock: Clock, mark: str) -> dict[str, Any]:
    """Ask for everything once; report the good answers by kind, what was refused, and what was wrong."""
    good: Counter[str] = Counter()
    refused: list[str] = []
    wrong: list[str] = []
    closed: dict[str, list[float]] = {}
    asks = (
        ("1m", "futures", MINUTE_MS),
        ("3m", "futures", 3 * MINUTE_MS),
        ("1h", "funding_rate", 0),
        (mark, "mark", STEPS_MS[mark]),
    )
    for timeframe, kind, step_ms in asks:
        before_ms = clock.now_ms()
        for pair, answer in zip(pairs, download(exchange, pairs, timeframe, kind), strict=True):
            what = f"{pair} {timeframe} {kind}"
            if isinstance(answer, Exception):
                refused.append(f"{what}: {answer}")
                continue
            rows = answer[3]
            if pair == ABSENT:
                continue
            # In the first moments of a candle there is no mark price of it yet.
            since_ms = before_ms - MINUTE_MS if kind == "mark" else before_ms
            problem = flaw(rows, step_ms, since_ms, exchange.limit if kind == "futures" else 1)
            if problem:
                wrong.append(f"{what}: {problem}")
                continue
            good[f"{timeframe} {kind}"] += 1
            if timeframe == "1m":
                closed[pair] = rows[-2]
    return {"good": good, "refused": refused, "wrong": wrong, "closed": closed}


def flaw(rows: list[list[float]], step_ms: int, asked_ms: int, at_least: int) -> str:
    """What is wrong with rows that a bot was given: stale, with a hole, too few. Empty if nothing is."""
    if len(rows) < at_least:
        return f"{len(rows)} rows"
    times = [row[0] for row in rows]
    if step_ms and any(later - earlier != step_ms for earlier, later in zip(times, times[1:])):  # noqa: B905, RUF007
        return "a hole"
    if step_ms and times[-1] < asked_ms // step_ms * step_ms:
        return f"stale: asked at {asked_ms}, the last opens at {times[-1]}"
    return ""


def download(exchange: Any, pairs: list[str], timeframe: str, kind: str) -> list[Any]:
    """As Freqtrade does it: all pairs in one turn of its loop."""

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(
            *(exchange._async_get_candle_history(pair, timeframe, kind) for pair in pairs),
            return_exceptions=True,
        )

    return asyncio.run(all_of_them())


def start(name: str, given: dict[str, Any]) -> int:
    """Fork a bot; it ends with this process."""
    pid = os.fork()
    if pid == 0:
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            feed(name, given)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid


def main() -> None:
    """See the module's docstring."""
    given = json.loads(sys.argv[1])
    running: dict[str, int] = {}
    for line in sys.stdin:
        command, name = line.split()
        if command == "start":
            running[name] = start(name, given)
        else:
            pid = running.pop(name)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        sys.stdout.write(f"{command} {name}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
