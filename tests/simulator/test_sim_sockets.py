"""WebSocket behaviour, seen by a real client."""

import asyncio
import itertools
import json
import logging
import socket
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest
from simulator_client import CONTROL, START_MS, SYMBOLS, WAIT_S, Connect, with_sockets

from marketfeed.simulator.frames import combined_head
from marketfeed.simulator.server import Simulator
from marketfeed.simulator.sockets import Connection


def test_every_closing_frame_arrives_as_published() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        names = [f"{symbol}@kline_{name}" for symbol in SYMBOLS for name in ("1m", "3m")]
        client = await connect()
        await client.subscribe(*names)
        first = simulator.published_log.last_number
        got: list[dict[str, Any]] = []
        while len(got) < 30:
            text = await client.text()
            frame = json.loads(text)
            assert text.encode().startswith(combined_head(frame["stream"]))
            assert frame["stream"] in names
            if frame["data"]["k"]["x"]:
                got.append(frame["data"])
        published = simulator.published(first)[: len(got)]
        for data, entry in zip(got, published, strict=True):
            k = data["k"]
            assert data["E"] == entry.event_time_ms
            assert (data["s"], k["i"], k["t"], k["n"]) == (
                entry.symbol, entry.timeframe, entry.open_time_ms, entry.trades,
            )  # fmt: skip
            assert [float(k[key]) for key in "ohlcvqVQ"] == [
                entry.open, entry.high, entry.low, entry.close, entry.volume,
                entry.quote_volume, entry.taker_buy_volume, entry.taker_buy_quote_volume,
            ]  # fmt: skip
            assert entry.receivers == 1
        stamps = [entry.sent_monotonic_ns for entry in published]
        assert stamps == sorted(stamps)

    with_sockets(check, speed=600.0)


def test_frames_are_spread_in_time_as_trades_happen() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client = await connect()
        await client.subscribe("btcusdt@kline_1m")
        times = [json.loads(await client.text())["data"]["E"] for _ in range(8)]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert all(gap >= 250 for gap in gaps)
        assert len(set(gaps)) > 1

    with_sockets(check, speed=20.0, start_ms=START_MS + 5_000)


def test_unknown_and_upper_case_names_are_acknowledged_and_silent() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client, other = await connect(), await connect()
        names = ("BTCUSDT@kline_1m", "btcusdt@KLINE_1m", "btcusdt@kline_7m", "nosuch@kline_1m", "x")
        await client.subscribe(*names)
        await other.subscribe("btcusdt@kline_1m", "ethusdt@markPrice")
        for _ in range(50):
            await other.text()
        await client.assert_silent(*names)

    with_sockets(check, speed=200.0)


@pytest.mark.parametrize(
    "path", ["/stream", "/ws", "/public/stream", "/stream?streams=btcusdt@kline_1m"]
)
def test_unrouted_paths_acknowledge_and_stay_silent(path: str) -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client, other = await connect(path), await connect()
        names = ("btcusdt@kline_1m", "ethusdt@markPrice@1s")
        await client.subscribe(*names)
        await other.subscribe(*names)
        for _ in range(50):
            await other.text()
        await client.assert_silent(*names)

    with_sockets(check, speed=200.0)


def test_names_in_the_url_and_both_shapes() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        combined = await connect("/market/stream?streams=btcusdt@markPrice/ethusdt@markPrice")
        bare = await connect("/market/ws/btcusdt@markPrice")
        plain = await connect("/market/ws")
        await plain.subscribe("btcusdt@markPrice")
        await simulator.wait_until(lambda: simulator.hub.listeners("btcusdt@markPrice") == 3)
        simulator.resume()
        one, two = json.loads(await combined.text()), json.loads(await combined.text())
        assert (one["stream"], two["stream"]) == ("btcusdt@markPrice", "ethusdt@markPrice")
        assert json.loads(await bare.text()) == one["data"]
        assert json.loads(await plain.text()) == one["data"]

    with_sockets(check, paused=True, speed=100.0)


def test_mark_price_arrays() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client = await connect()
        await client.subscribe("!markPrice@arr", "!markPrice@arr@1s")
        seen = defaultdict(list)
        for _ in range(12):
            frame = json.loads(await client.text())
            seen[frame["stream"]].append(frame["data"])
        assert seen.keys() == {"!markPrice@arr", "!markPrice@arr@1s"}
        for rows in seen.values():
            assert {row["s"] for row in rows[0]} & {"BTCUSDT", "XAUUSDT"}

    with_sockets(check, speed=100.0)


def test_unsubscribing_ends_a_stream() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client, other = await connect(), await connect()
        await client.subscribe("btcusdt@kline_1m", "ethusdt@kline_1m", "nosuch@kline_1m")
        await client.ask("UNSUBSCRIBE", "btcusdt@kline_1m", "ethusdt@kline_1m", request_id=9)
        while json.loads(await client.text()) != {"result": None, "id": 9}:
            pass
        assert simulator.hub.streams_wanted == 0
        await other.subscribe("btcusdt@kline_1m")
        for _ in range(20):
            await other.text()
        await client.assert_silent("nosuch@kline_1m")

    with_sockets(check, speed=100.0)


def test_subscriptions_are_listed_as_on_the_exchange() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client = await connect()
        await client.subscribe("btcusdt@kline_1m", "ethusdt@markPrice@1s")
        await client.ask("LIST_SUBSCRIPTIONS", request_id=2)
        assert await client.text() == CONTROL[1]

    with_sockets(check, paused=True)


def test_wrong_requests_are_answered_as_on_the_exchange() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client = await connect()
        await client.ask("NOT_A_METHOD", request_id=4)
        assert await client.text() == CONTROL[2]
        for text in ("{", "[]", '{"params":[]}', '{"method":"SUBSCRIBE","params":[1],"id":1}'):
            await client.socket.send_str(text)
            assert json.loads(await client.text())["error"]["code"] == 3
        await client.socket.send_str('{"method":"SUBSCRIBE","params":[],"id":"abc"}')
        assert await client.text() == '{"result":null,"id":"abc"}'

    with_sockets(check, paused=True)


def test_a_connection_has_1024_streams_at_most() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client = await connect()
        names = [f"btcusdt@kline_1m{at or ''}" for at in range(1_024)]
        for at in range(0, 1_024, 200):
            await client.subscribe(*names[at : at + 200])
        # Known names take no new place.
        await client.subscribe(*names[:10])
        await client.ask("SUBSCRIBE", "one@more", request_id=3)
        assert await client.text() == CONTROL[3]
        assert await client.closed_with() == 1008
        await simulator.wait_connections(0)
        assert simulator.hub.streams_wanted == 0

    with_sockets(check, paused=True)


def test_an_eleventh_message_in_a_second_ends_the_connection() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client = await connect()
        for at in range(40):
            await client.ask("LIST_SUBSCRIPTIONS", request_id=at)
        answers = 0
        while True:
            message = await client.socket.receive(WAIT_S)
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            answers += 1
        assert answers == 10
        assert client.socket.close_code == 1008

    with_sockets(check, paused=True)


def test_pings_go_both_ways() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client = await connect(autoping=False)
        await client.socket.ping(b"hello")
        message = await client.socket.receive(WAIT_S)
        assert (message.type, message.data) == (aiohttp.WSMsgType.PONG, b"hello")
        (connection,) = simulator.hub.connections
        before_s = connection.last_pong_s
        connection.ping()
        message = await client.socket.receive(WAIT_S)
        assert message.type is aiohttp.WSMsgType.PING
        await client.socket.pong(message.data)
        await simulator.wait_until(lambda: connection.last_pong_s > before_s)

    with_sockets(check, paused=True)


def test_a_client_without_pongs_is_cut() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        await connect()
        (connection,) = simulator.hub.connections
        connection.last_pong_s -= 601.0
        connection.ping()
        await simulator.wait_connections(0)

    with_sockets(check, paused=True)


def test_compression_is_declined_and_frames_are_whole() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client = await connect(compress=15)
        assert client.socket.compress == 0
        await client.subscribe("!markPrice@arr")
        assert json.loads(await client.text())["stream"] == "!markPrice@arr"

    # 200 rows are more than 65,535 bytes: the long form of a frame's length.
    with_sockets(check, speed=20.0, pairs=400)


def test_a_client_that_does_not_read_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", simulator.port))
        names = "/".join(f"{one.symbol.lower()}@kline_1m" for one in simulator.market.instruments)
        request = (
            f"GET /market/stream?streams={names} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await loop.sock_sendall(raw, request.encode())
        await simulator.wait_connections(1)
        await simulator.wait_connections(0)
        raw.close()

    with caplog.at_level(logging.WARNING, "marketfeed.simulator.sockets"):
        with_sockets(check, pairs=30, speed=5_000.0, max_buffer_bytes=100_000)
    assert "slow_consumer_closed" in caplog.text


def test_every_frame_passes_the_gate() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        held: list[bytes] = []

        def gate(_: Connection, stream: str | None, payload: bytes) -> Sequence[bytes]:
            if stream is None:
                return [payload]
            if b'"x":true' in payload:
                held.append(payload)
                return []
            return [payload, payload]

        simulator.hub.gate = gate
        client = await connect()
        await client.subscribe("btcusdt@kline_1m")
        simulator.resume()
        await simulator.wait_until(lambda: len(held) >= 2)
        for _ in range(20):
            first = await client.text()
            assert await client.text() == first
            assert '"x":false' in first
        bitcoin = [entry for entry in simulator.published() if entry.symbol == "BTCUSDT"]
        assert {entry.receivers for entry in bitcoin} == {0}
        simulator.hub.gate = None
        while '"x":true' not in await client.text():
            pass

    with_sockets(check, speed=300.0, paused=True)
