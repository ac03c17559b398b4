"""The collector's status port as a browser and a script meet it: page, files, events, candles, token."""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from pydantic import SecretStr

from marketfeed.collector.collector import Collector
from marketfeed.collector.page import FILES, MAX_CANDLES
from marketfeed.collector.pair_states import State
from marketfeed.commands.status_client import NoCollectorError, fetch_status
from marketfeed.grid import TimeRange
from marketfeed.journal.view import JournalView
from marketfeed.schema import MINUTE_MS
from marketfeed.settings.model import Settings
from marketfeed.settings.secrets import SecretSource
from marketfeed.simulator.server import Simulator, SimulatorOptions
from tests.waiting import until

PAIRS = 3
PAIR = "BTC/USDT:USDT"
TOKEN = "an-invented-token-0123"  # noqa: S105
WAIT_S = 180.0


class Running:
    """A collector, its journal, and its status port."""

    def __init__(self, collector: Collector, path: Path, url: str) -> None:
        self.collector = collector
        self.path = path
        self.url = url

    async def until(self, condition: Callable[[], bool]) -> None:
        await until(condition, lambda: self.collector.report().reasons)


class _Url(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.url = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("status listening"):
            self.url = record.getMessage().partition("status_url=")[2]


@contextlib.asynccontextmanager
async def running(path: Path, status: dict[str, Any] | None = None) -> AsyncIterator[Running]:
    logger, handler = logging.getLogger("marketfeed.service.status_port"), _Url()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    stop = asyncio.Event()
    async with Simulator(SimulatorOptions(pairs=PAIRS, timeframes=("1m",), speed=60)) as sim:
        settings = Settings.model_validate(
            {
                "exchange": {
                    "ws_url": sim.ws_url,
                    "rest_url": sim.rest_url,
                    "pairs": [one.pair for one in sim.market.instruments],
                    "timeframes": ["1m"],
                },
                "journal": {"path": str(path)},
                "status": {"port": 0, **(status or {})},
                "history": {"days": 0},
            }
        )
        collector = Collector(settings)
        task = asyncio.create_task(collector.run(stop))
        try:
            running = Running(collector, path, "")
            await running.until(lambda: bool(handler.url))
            running.url = handler.url
            yield running
        finally:
            logger.removeHandler(handler)
            stop.set()
            await task


def delivering(collector: Collector) -> bool:
    report = collector.report()
    newest = all(one.pairs_with_newest == PAIRS for one in report.timeframes)
    ready = report.ready_pairs == PAIRS
    return report.healthy and report.mark_price_age_s is not None and newest and ready


def test_page_events_and_candles(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(tmp_path / "journal.db") as line, aiohttp.ClientSession() as session:
            await line.until(lambda: delivering(line.collector))
            await _files(line, session)
            await _events(line, session)
            await _candles(line, session)
            await _refusals(line, session)

    uvloop.run(run())


async def _files(line: Running, session: aiohttp.ClientSession) -> None:
    page = ""
    for path in FILES:
        async with session.get(line.url + path) as answer:
            assert answer.status == 200, path
            text = await answer.text()
            tag = answer.headers["ETag"]
            assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
        async with session.get(line.url + path, headers={"If-None-Match": tag}) as again:
            assert again.status == 304
        page = text if path == "/" else page
        if path.endswith((".html", ".js")) and "vendor" not in path:
            # Whatever comes from outside goes into the page as text, never as markup.
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", text
            )
    for name in re.findall(r'(?:src|href)="(/[^"]*)"', page):
        async with session.get(line.url + name) as answer:
            assert answer.status == 200, name
    assert "TradingView" in page
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page)


async def _events(line: Running, session: aiohttp.ClientSession) -> None:
    received: dict[str, Any] = {}
    async with session.get(line.url + "/events") as answer, asyncio.timeout(WAIT_S):
        name = ""
        # There is no lag before the first candle has come by its stream.
        while len(received) < 2 or received["now"]["close_lag_ms"] is None:
            key, _, value = (await answer.content.readline()).decode().rstrip("\n").partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                received[name] = json.loads(value)
    assert received["seldom"]["timeframes"] == ["1m"]
    assert PAIR in received["seldom"]["pairs"]
    assert [tile[0] for tile in received["now"]["tiles"]] == [State.FRESH] * PAIRS
    assert received["now"]["status"]["pairs"] == PAIRS
    assert received["now"]["close_lag_ms"] >= 0


async def _candles(line: Running, session: aiohttp.ClientSession) -> None:
    question = {"pair": PAIR, "timeframe": "1m", "limit": "2"}
    since_ms = line.collector.report().exchange_time_ms
    async with asyncio.timeout(WAIT_S):
        while True:
            async with session.get(line.url + "/candles", params=question) as answer:
                assert answer.status == 200
                body = await answer.json()
            # One that was collected from its first moment on: those before were fetched.
            if body["candles"][-1][0] >= since_ms:
                break
            await asyncio.sleep(0.05)
    assert (body["pair"], body["timeframe"], body["length_ms"]) == (PAIR, "1m", MINUTE_MS)
    assert 1 <= len(body["candles"]) <= 2
    rows = [row[:6] for row in body["candles"]]
    view = JournalView(line.path)
    stored = view.candles(PAIR, "1m", TimeRange(rows[0][0], rows[-1][0] + MINUTE_MS))
    assert rows == [[c.open_time_ms, c.open, c.high, c.low, c.close, c.volume] for c in stored]
    # A range that was collected whole has mark prices, near the candle.
    *_, low, close, _, mark, rate = body["candles"][-1]
    assert abs(mark / close - 1) < 0.05, low
    assert abs(rate) < 0.05
    if body["forming"] is not None:
        assert body["forming"][0] > rows[-1][0]


async def _refusals(line: Running, session: aiohttp.ClientSession) -> None:
    hostile = "<img src=x onerror=alert(1)>'; DROP TABLE candle; --"
    for question, status in (
        ({"timeframe": "1m"}, 404),
        ({"pair": hostile, "timeframe": "1m"}, 404),
        ({"pair": PAIR}, 400),
        ({"pair": PAIR, "timeframe": "3m"}, 400),
        ({"pair": PAIR, "timeframe": hostile}, 400),
        *(
            ({"pair": PAIR, "timeframe": "1m", "limit": limit}, 400)
            for limit in ("0", "-1", "x", "1e3", "", "٣", str(MAX_CANDLES + 1), "9" * 5000)
        ),
    ):
        async with session.get(line.url + "/candles", params=question) as answer:
            assert answer.status == status, question
            assert answer.content_type == "application/json"
            assert hostile not in await answer.text()
    async with session.post(line.url + "/candles") as answer:
        assert answer.status == 405
    questions = (
        session.get(line.url + "/candles", params={"pair": PAIR, "timeframe": "1m"})
        for _ in range(60)
    )
    statuses = [answer.status for answer in await asyncio.gather(*questions)]
    assert set(statuses) <= {200, 503}
    assert 200 in statuses


def test_with_a_token_status_is_shown_to_who_knows_it(tmp_path: Path) -> None:
    token = SecretSource(SecretStr(TOKEN), None)

    async def run() -> None:
        async with (
            running(tmp_path / "journal.db", {"token": TOKEN}) as line,
            aiohttp.ClientSession() as session,
        ):
            await line.until(lambda: delivering(line.collector))
            for path in (*FILES, "/status", "/metrics", "/events", "/candles"):
                async with session.get(line.url + path) as answer:
                    assert answer.status == 401, path
            async with session.get(line.url + "/health") as answer:
                health = {"state": "well", "healthy": True, "ready_pairs": PAIRS}
                assert await answer.json() == health
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with session.get(line.url + "/health", headers=headers) as answer:
                assert await answer.json() == {**health, "reasons": []}
            assert (await fetch_status(line.url, token)).pairs == PAIRS
            with pytest.raises(NoCollectorError, match=r"it asks for status\.token"):
                await fetch_status(line.url)
            with pytest.raises(NoCollectorError, match=r"no other than status\.token"):
                await fetch_status(line.url, SecretSource(SecretStr("wrong"), None))
            with pytest.raises(NoCollectorError, match="cannot be read"):
                await fetch_status(line.url, SecretSource(None, tmp_path / "none"))

    uvloop.run(run())
