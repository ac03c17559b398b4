"""Recorded files, replayed."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest

from marketfeed.errors import SettingsError
from marketfeed.simulator.recording import Recorded, read_recording
from marketfeed.simulator.replay import Replay
from marketfeed.simulator.server import Simulator, SimulatorOptions

DATA = Path(__file__).parents[1] / "data"
RAW = DATA / "recorded_mainnet_2021-07.raw"
CLOSING = DATA / "closing_frames.jsonl"
WAIT_S = 180.0


def recorded_klines() -> list[str]:
    """Payloads of the kline frames, as they stand in the file."""
    payloads = [line.partition(": ")[2] for line in RAW.read_text("utf-8").splitlines()]
    return [payload for payload in payloads if '"data":{"e":"kline"' in payload]


Connect: TypeAlias = Callable[[str], Awaitable[aiohttp.ClientWebSocketResponse]]


def with_replay(
    path: Path,
    check: Callable[[Simulator, aiohttp.ClientSession, Connect], Awaitable[None]],
    **options: Any,
) -> None:
    async def run() -> None:
        chosen = {"replay": path, "paused": True, **options}
        async with contextlib.AsyncExitStack() as stack:
            simulator = await stack.enter_async_context(Simulator(SimulatorOptions(**chosen)))
            session = aiohttp.ClientSession(simulator.rest_url)
            await stack.enter_async_context(session)

            async def connect(path: str) -> aiohttp.ClientWebSocketResponse:
                socket = await session.ws_connect(path)
                stack.push_async_callback(socket.close)
                return socket

            await check(simulator, session, connect)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


async def subscribed(
    simulator: Simulator, connect: Connect, names: list[str]
) -> aiohttp.ClientWebSocketResponse:
    socket = await connect("/market/stream")
    await socket.send_json({"method": "SUBSCRIBE", "params": names, "id": 1})
    assert await socket.receive_json(timeout=WAIT_S) == {"result": None, "id": 1}
    await simulator.wait_subscribed(names[0])
    return socket


async def finished(simulator: Simulator) -> Replay:
    replay = simulator.venue
    assert isinstance(replay, Replay)
    await simulator.wait_until(lambda: replay.finished)
    return replay


def test_a_raw_recording_is_delivered_byte_for_byte() -> None:
    symbols = ("sushiusdt", "akrousdt", "keepusdt", "ctkusdt")

    async def check(simulator: Simulator, session: aiohttp.ClientSession, connect: Connect) -> None:
        names = [f"{symbol}@kline_1m" for symbol in symbols]
        socket = await subscribed(simulator, connect, names)
        simulator.resume()
        expected = recorded_klines()
        assert len(expected) == 67
        got = [await socket.receive_str(timeout=WAIT_S) for _ in expected]
        assert got == expected
        replay = await finished(simulator)

        published = simulator.published()
        assert [entry.pair for entry in published] == [
            "SUSHI/USDT:USDT", "CTK/USDT:USDT", "AKRO/USDT:USDT", "KEEP/USDT:USDT",
        ]  # fmt: skip
        assert [entry.trades for entry in published] == [113, 86, 29, 14]
        assert published[0].close == 7.617
        assert {entry.receivers for entry in published} == {1}
        assert simulator.now_ms() >= replay.start_ms + 28_000

    with_replay(RAW, check, speed=100.0)


def test_others_get_only_what_they_subscribed_to() -> None:
    async def check(simulator: Simulator, session: aiohttp.ClientSession, connect: Connect) -> None:
        one = await subscribed(simulator, connect, ["keepusdt@kline_1m"])
        bare = await connect("/market/ws/keepusdt@kline_1m")
        await simulator.wait_until(lambda: simulator.hub.listeners("keepusdt@kline_1m") == 2)
        simulator.resume()
        expected = [text for text in recorded_klines() if "keepusdt" in text]
        for text in expected:
            assert await one.receive_str(timeout=WAIT_S) == text
            data = await bare.receive_str(timeout=WAIT_S)
            assert text == f'{{"stream":"keepusdt@kline_1m","data":{data}}}'
        await finished(simulator)
        await one.send_json({"method": "LIST_SUBSCRIPTIONS", "params": [], "id": 2})
        assert (await one.receive_json(timeout=WAIT_S))["result"] == ["keepusdt@kline_1m"]

    with_replay(RAW, check, speed=200.0)


def test_rest_follows_the_recording() -> None:
    async def check(simulator: Simulator, session: aiohttp.ClientSession, connect: Connect) -> None:
        async def get(path: str) -> Any:
            async with session.get("/fapi/v1/" + path) as response:
                assert response.status == 200
                return await response.json()

        first_ms = simulator.venue.time_at(0.0)
        assert (await get("time"))["serverTime"] == first_ms
        info = await get("exchangeInfo")
        listed = {one["symbol"]: one for one in info["symbols"]}
        assert listed.keys() == {"SUSHIUSDT", "AKROUSDT", "KEEPUSDT", "CTKUSDT"}
        keep = listed["KEEPUSDT"]
        assert (keep["baseAsset"], keep["quoteAsset"], keep["pricePrecision"]) == (
            "KEEP", "USDT", 4,
        )  # fmt: skip
        assert await get("klines?symbol=KEEPUSDT&interval=1m") == []
        simulator.resume()
        await finished(simulator)
        rows = await get("klines?symbol=KEEPUSDT&interval=1m")
        assert [row[0] for row in rows] == [1_626_992_700_000, 1_626_992_760_000]
        assert rows[0] == [
            1_626_992_700_000, "0.2463", "0.2466", "0.2458", "0.2466", "8464", 1_626_992_759_999,
            "2082.4799", 14, "344", "84.7670", "0",
        ]  # fmt: skip
        assert await get("klines?symbol=KEEPUSDT&interval=1m&limit=1") == rows[1:]
        assert await get("klines?symbol=KEEPUSDT&interval=1m&startTime=0&limit=1") == rows[:1]
        assert await get("klines?symbol=KEEPUSDT&interval=3m") == []
        tickers = await get("ticker/24hr")
        assert {row["symbol"]: row["lastPrice"] for row in tickers}["KEEPUSDT"] == rows[1][4]
        premium = await get("premiumIndex?symbol=KEEPUSDT")
        assert (premium["markPrice"], premium["nextFundingTime"]) == (rows[1][4], 0)
        assert await get("fundingRate") == []
        assert await get("fundingInfo") == []

    with_replay(RAW, check, speed=500.0)


def test_a_replay_starts_by_itself_after_the_first_subscription() -> None:
    async def check(simulator: Simulator, session: aiohttp.ClientSession, connect: Connect) -> None:
        nothing = await connect("/market/stream?streams=nosuch@kline_1m")
        socket = await subscribed(simulator, connect, ["ctkusdt@kline_1m"])
        first = next(text for text in recorded_klines() if "ctkusdt" in text)
        assert simulator.state().paused
        assert await socket.receive_str(timeout=WAIT_S) == first
        assert not simulator.state().paused
        assert not nothing.closed

    with_replay(RAW, check, speed=100.0, paused=False)


def test_closing_frames_are_delivered_in_the_order_of_time() -> None:
    lines = CLOSING.read_text("utf-8").splitlines()

    async def check(simulator: Simulator, session: aiohttp.ClientSession, connect: Connect) -> None:
        assert [one.symbol for one in simulator.venue.listed] == ["BTCUSDT"]
        socket = await subscribed(simulator, connect, ["btcusdt@kline_1m", "btcusd_perp@kline_1m"])
        simulator.resume()
        expected = [
            text if text.startswith('{"stream"')
            # One line was recorded on the path without the wrapping.
            else f'{{"stream":"btcusdt@kline_1m","data":{text}}}'
            for text in lines
        ]  # fmt: skip
        expected.sort(key=lambda text: int(json.loads(text)["data"]["E"]))
        got = [await socket.receive_str(timeout=WAIT_S) for _ in expected]
        assert got == expected
        last_ms = json.loads(got[-1])["data"]["E"]
        assert simulator.now_ms() >= last_ms

    with_replay(CLOSING, check, speed=50.0)


def frame(time_ms: int) -> Recorded:
    return Recorded(time_ms, "a@kline_1m", "AUSDT", b"{}")


def test_long_silences_are_jumped_over_and_time_never_goes_back() -> None:
    replay = Replay([frame(0), frame(60_000), frame(10**9), frame(10**9 + 5)])
    times = [replay.time_at(elapsed) for elapsed in range(0, 70_000, 5)]
    assert times == sorted(times)
    assert replay.time_at(0) == 0
    assert replay.time_at(60_500) == 60_500
    assert replay.time_at(61_000) == 10**9
    assert replay.time_at(61_105) == 10**9 + 105
    assert len(replay.advance(59_999)) == 1
    assert len(replay.advance(10**9)) == 2
    assert not replay.finished
    assert len(replay.advance(10**9 + 5)) == 1
    assert replay.finished


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no kline or mark price frame"),
        ('{"e":"aggTrade","E":1}\n', "no kline or mark price frame"),
        ('{"e":"kline","E":1}\nnonsense\n', "line 2"),
        ('1.5: {"stream":"x","data":{"e":7}}\n', "line 1"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "recording"
    path.write_text(text, "utf-8")
    with pytest.raises(SettingsError, match=problem):
        read_recording(path)


def test_a_missing_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no-such-file"):
        Simulator(SimulatorOptions(replay=tmp_path / "no-such-file"))


def test_a_recording_has_no_market() -> None:
    with pytest.raises(TypeError):
        _ = Simulator(SimulatorOptions(replay=RAW)).market
