"""Faults on demand, seen by a real client."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from typing import Any

import aiohttp
import msgspec
import pytest
from simulator_client import PAIRS, WAIT_S, Connect, with_sockets

from marketfeed.simulator.fault_kinds import (
    OVERSIZE_BYTES,
    Close,
    Drop,
    Fault,
    HalfOpen,
    HangRest,
    Lack,
    Lag,
    Mute,
    MuteConnection,
    Refuse,
    RefuseRest,
    ShiftClock,
    ShiftStamps,
    ShrinkExchangeInfo,
    Spoil,
    StopListening,
)
from marketfeed.simulator.server import Simulator

STREAM = "btcusdt@kline_1m"
OTHER = "ethusdt@kline_1m"


def subscribe_text(*names: str) -> bytes:
    return json.dumps({"method": "SUBSCRIBE", "params": names, "id": 1}).encode()


# --- frames -------------------------------------------------------------------------------------------


def test_a_stream_is_mute_from_its_first_message_until_asked_otherwise() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        number = await simulator.faults.start(Mute(STREAM))
        client = await connect()
        await client.subscribe(STREAM, OTHER)
        simulator.resume()
        await simulator.wait_published(12)
        seen = {json.loads(await client.text())["stream"] for _ in range(30)}
        assert seen == {OTHER}
        first = [one for one in simulator.published() if one.timeframe == "1m"]
        assert {(one.symbol, one.receivers, one.withheld) for one in first} >= {
            ("BTCUSDT", 0, 1),
            ("ETHUSDT", 1, 0),
        }
        await simulator.faults.end(number)
        while json.loads(await client.text())["stream"] != STREAM:
            pass

    with_sockets(check, speed=300.0, paused=True)


def test_patterns_name_many_streams() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        await simulator.faults.start(Mute("*@kline_*"))
        client = await connect()
        await client.subscribe(STREAM, OTHER, "btcusdt@markPrice")
        simulator.resume()
        seen = {json.loads(await client.text())["stream"] for _ in range(10)}
        assert seen == {"btcusdt@markPrice"}

    with_sockets(check, speed=100.0, paused=True)


def test_one_closing_frame_is_lost_to_all_and_nothing_else() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        clients = [await connect(), await connect()]
        for client in clients:
            await client.subscribe(STREAM)
        await simulator.faults.start(Mute(STREAM, closing_only=True, count=1))
        simulator.resume()
        await simulator.wait_published(40)
        simulator.pause()
        closings = [one for one in simulator.published() if one.symbol == "BTCUSDT"]
        minutes = [one for one in closings if one.timeframe == "1m"]
        assert [(one.receivers, one.withheld) for one in minutes[:3]] == [(0, 2), (2, 0), (2, 0)]
        assert simulator.faults.active == []
        for client in clients:
            opens = [one.open_time_ms for one in minutes[1:]]
            while opens:
                k = json.loads(await client.text())["data"]["k"]
                if k["x"]:
                    assert k["t"] == opens.pop(0)

    with_sockets(check, speed=600.0, paused=True)


def test_frames_come_twice() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        await simulator.faults.start(Spoil(how="duplicate"))
        client = await connect()
        await client.subscribe(STREAM)
        simulator.resume()
        for _ in range(10):
            assert await client.text() == await client.text()
        await simulator.wait_published(5)
        assert all(one.withheld == 0 for one in simulator.published())

    with_sockets(check, speed=300.0, paused=True)


def test_frames_come_in_another_order_and_none_is_lost() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        first, second = await connect(), await connect()
        for client in (first, second):
            await client.subscribe(STREAM, OTHER)
        connections = simulator.hub.connections
        number = await simulator.faults.start(Spoil(how="reorder", share=0.3))
        simulator.resume()
        await simulator.wait_published(16)
        simulator.pause()
        await simulator.faults.end(number)
        (sent,) = {connection.frames_sent for connection in connections}
        # The first frame was the answer to SUBSCRIBE.
        one = [await first.text() for _ in range(sent - 1)]
        two = [await second.text() for _ in range(sent - 1)]
        assert Counter(one) == Counter(two)
        times = [json.loads(text)["data"]["E"] for text in two]
        assert times != sorted(times)

    with_sockets(check, speed=300.0, paused=True)


def test_frames_are_stamped_otherwise_and_hold_the_same() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        first, second = await connect(), await connect()
        await first.subscribe(STREAM, OTHER)
        simulator.resume()
        await simulator.faults.start(ShiftStamps(STREAM, offset_ms=3_600_000, count=1))
        await simulator.wait_until(lambda: not simulator.faults.active)
        await second.subscribe(STREAM)
        await simulator.wait_published(8)
        simulator.pause()
        ahead = 0
        while not ahead:
            frame = json.loads(await first.text())
            ahead = frame["data"]["E"] - simulator.now_ms()
            ahead = max(0, ahead)
        assert 3_000_000 < ahead < 3_600_000
        assert frame["stream"] == STREAM
        assert frame["data"]["k"]["t"] < simulator.now_ms()
        frame = json.loads(await second.text())
        assert frame["data"]["E"] < simulator.now_ms()

    with_sockets(check, speed=100.0, paused=True)


@pytest.mark.parametrize(("how", "value"), [("empty", ""), ("null", None), ("absent", ...)])
def test_a_mark_price_lacks_one_value_and_keeps_the_others(how: str, value: object) -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        for key, stream in (("i", "btcusdt@markPrice"), ("T", "ethusdt@markPrice")):
            lack = {"fault": "lack", "stream": stream, "key": key, "how": how}
            await simulator.faults.start(msgspec.convert(lack, Fault))
        # The timeframe of a kline is called `i`, too.
        await simulator.faults.start(Lack(STREAM))
        client = await connect()
        await client.subscribe("btcusdt@markPrice", "ethusdt@markPrice", STREAM)
        simulator.resume()
        found: dict[str, dict[str, Any]] = {}
        while len(found) < 3:
            frame = json.loads(await client.text())
            found[frame["stream"]] = frame["data"]
        assert found[STREAM]["k"]["i"] == "1m"
        bitcoin, ether = found["btcusdt@markPrice"], found["ethusdt@markPrice"]
        assert (bitcoin.get("i", ...), ether.get("T", ...)) == (value, value)
        assert float(bitcoin["r"]) < 1 < bitcoin["T"]
        assert min(float(ether["i"]), float(ether["p"]), float(bitcoin["p"])) > 0

    with_sockets(check, speed=100.0, paused=True)


def test_frames_come_late_as_they_were_and_the_truth_is_known_meanwhile() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client = await connect()
        await client.subscribe(STREAM, OTHER)
        number = await simulator.faults.start(Lag(STREAM, by_s=120.0))
        since_ms = simulator.now_ms()
        simulator.resume()
        late: list[int] = []
        closed = 0
        while not closed:
            frame = json.loads(await client.text())
            if frame["stream"] == STREAM:
                stamp_ms = frame["data"]["E"]
                late.append(stamp_ms)
                assert simulator.now_ms() >= stamp_ms + 120_000
                closed = frame["data"]["k"]["t"] if frame["data"]["k"]["x"] else 0
        assert late == sorted(late)
        assert late[0] < since_ms + 120_000
        published = [
            one for one in simulator.published() if (one.symbol, one.timeframe) == ("BTCUSDT", "1m")
        ]
        assert [one.withheld for one in published if one.open_time_ms == closed] == [1]
        assert max(one.open_time_ms for one in published) > closed
        simulator.pause()
        await simulator.faults.end(number)
        stamps = []
        while not stamps or stamps[-1] < simulator.now_ms() - 10_000:
            frame = json.loads(await client.text())
            if frame["stream"] == STREAM:
                stamps.append(frame["data"]["E"])
        # Each of them once, and in their order.
        assert stamps == sorted(stamps)
        assert stamps[0] > late[-1]

    with_sockets(check, speed=300.0, paused=True)


def test_as_many_frames_come_late_as_were_asked_for() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client = await connect()
        await client.subscribe("btcusdt@markPrice")
        await simulator.faults.start(Lag(by_s=30.0, count=2))
        simulator.resume()
        stamps = [json.loads(await client.text())["data"]["E"] for _ in range(30)]
        await simulator.wait_until(lambda: not simulator.faults.active)
        assert stamps != sorted(stamps)
        assert stamps.index(min(stamps)) > 5
        assert len(set(stamps)) == 30

    with_sockets(check, speed=100.0, paused=True)


@pytest.mark.parametrize("how", ["garble", "truncate"])
def test_spoilt_frames_are_no_json_and_count_as_withheld(how: Any) -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        await simulator.faults.start(Spoil(STREAM, how=how, share=0.5, seed=3))
        client = await connect(decode_text=False)
        await client.socket.send_bytes(b"")
        await client.socket.send_str(subscribe_text(STREAM, OTHER).decode())
        await client.socket.receive(WAIT_S)
        simulator.resume()
        good = bad = 0
        while bad < 20 or good < 20:
            message = await client.socket.receive(WAIT_S)
            assert message.type is aiohttp.WSMsgType.TEXT
            try:
                json.loads(message.data)
                good += 1
            except ValueError:
                bad += 1
        await simulator.wait_published(60)
        bitcoin = [one for one in simulator.published() if one.symbol == "BTCUSDT"]
        minutes = [one for one in bitcoin if one.timeframe == "1m"]
        assert {(one.receivers, one.withheld) for one in minutes} == {(0, 1), (1, 0)}

    with_sockets(check, speed=600.0, paused=True)


def test_faults_of_frames_strike_together() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        for seed in (1, 2):
            for how in ("truncate", "garble", "duplicate", "reorder"):
                await simulator.faults.start(Spoil(STREAM, how=how, seed=seed))
        # A frame that was cut to nothing passes all of them, too.
        await simulator.faults.start(Mute("nosuch@kline_1m"))
        client = await connect(decode_text=False)
        await client.socket.send_str(subscribe_text(STREAM, OTHER).decode())
        simulator.resume()
        await simulator.wait_published(40)
        bitcoin = [one for one in simulator.published() if one.symbol == "BTCUSDT"]
        assert {(one.receivers, one.withheld) for one in bitcoin if one.timeframe == "1m"} == {
            (0, 1)
        }
        while b"ethusdt" not in (await client.socket.receive(WAIT_S)).data:
            pass

    with_sockets(check, speed=600.0, paused=True)


def test_an_oversize_frame_ends_a_client_that_has_a_limit() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        await simulator.faults.start(Spoil(STREAM, how="oversize", count=1))
        client = await connect(max_msg_size=OVERSIZE_BYTES)
        patient = await connect(max_msg_size=2 * OVERSIZE_BYTES)
        for one in (client, patient):
            await one.subscribe(STREAM)
        simulator.resume()
        assert await client.closed_with() == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
        text = await patient.text()
        assert json.loads(text)["stream"] == STREAM
        assert len(text) < OVERSIZE_BYTES

    with_sockets(check, speed=100.0, paused=True)


# --- connections --------------------------------------------------------------------------------------


def test_all_data_is_mute_and_requests_are_answered() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        await simulator.faults.start(Mute())
        client = await connect()
        await client.subscribe(STREAM, OTHER)
        await simulator.wait_published(10)
        await client.assert_silent(STREAM, OTHER)

    with_sockets(check, speed=600.0)


def test_a_connection_is_mute_from_its_start_but_answers_pings() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        old = await connect()
        await simulator.faults.start(MuteConnection("new", count=1))
        mute, new = await connect(autoping=False), await connect()
        for client in (old, new):
            await client.subscribe(STREAM)
        await mute.socket.send_str(subscribe_text(STREAM).decode())
        await simulator.wait_until(lambda: simulator.hub.listeners(STREAM) == 3)
        simulator.resume()
        for client in (old, new):
            for _ in range(10):
                await client.text()
        await mute.socket.ping(b"there?")
        message = await mute.socket.receive(WAIT_S)
        assert (message.type, message.data) == (aiohttp.WSMsgType.PONG, b"there?")

    with_sockets(check, speed=100.0, paused=True)


def test_half_open_neither_reads_nor_writes_and_keeps_the_socket() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        victim, other = await connect(autoping=False), await connect()
        for client in (victim, other):
            await client.subscribe(STREAM)
        (first, _) = simulator.hub.connections
        await simulator.faults.start(HalfOpen(first.number))
        await victim.socket.ping(b"there?")
        simulator.resume()
        for _ in range(10):
            await other.text()
        assert first.frames_sent == 1
        with pytest.raises(TimeoutError):
            await victim.socket.receive(0.05)
        # Neither does the server notice that the client has left, nor does it send a close frame.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await victim.socket.close()
        await other.ask("LIST_SUBSCRIPTIONS", request_id=7)
        while json.loads(await other.text()).get("id") != 7:
            pass
        assert len(simulator.hub.connections) == 2
        await simulator.faults.end()
        await simulator.wait_connections(1)

    with_sockets(check, speed=100.0, paused=True)


def test_a_drop_is_a_tcp_reset() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
        writer.write(
            b"GET /market/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        await simulator.wait_connections(1)
        await simulator.faults.start(Drop())
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await simulator.wait_connections(0)
        await simulator.faults.tick(simulator.now_ms())
        assert simulator.faults.active == []

    with_sockets(check, paused=True)


def test_closing_at_once_with_a_code() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        await simulator.faults.start(Close("new", 1000, count=2))
        for _ in range(2):
            client = await connect()
            assert await client.closed_with() == 1000
        client = await connect()
        await client.subscribe(STREAM)
        await simulator.faults.start(Close("open", 1001))
        assert await client.closed_with() == 1001
        assert len(simulator.hub.handshakes_s) == 3

    with_sockets(check, paused=True)


def test_handshakes_are_refused() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        old = await connect()
        await simulator.faults.start(Refuse(503, count=2))
        for _ in range(2):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await connect()
            assert caught.value.status == 503
        await connect()
        await old.subscribe(STREAM)
        assert len(simulator.hub.handshakes_s) == 4

    with_sockets(check, paused=True)


def test_the_listening_socket_closes_and_opens_again() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        old = await connect()
        await simulator.faults.start(StopListening(for_s=100.0))
        with pytest.raises(OSError, match=r"Connect call failed|refused"):
            await asyncio.open_connection("127.0.0.1", simulator.port)
        await old.subscribe(STREAM)
        simulator.resume()
        await simulator.wait_until(lambda: not simulator.faults.active)
        client = await connect()
        await client.subscribe(STREAM)
        await client.text()

    with_sockets(check, speed=500.0, paused=True)


def test_stopping_amidst_faults_leaves_nothing() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        await connect(timeout=aiohttp.ClientWSTimeout(ws_close=0.05))
        await simulator.faults.start(HalfOpen())
        await simulator.faults.start(HangRest())
        await simulator.faults.start(Spoil(how="reorder"))
        await simulator.faults.start(StopListening(for_s=1e9))

    with_sockets(check, speed=100.0)


# --- REST ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "retry_after"), [(429, 7), (418, 120), (403, None), (503, None)]
)
def test_rest_refuses(status: int, retry_after: int | None) -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        await simulator.faults.start(RefuseRest("t*", status, retry_after, count=2))
        async with aiohttp.ClientSession(simulator.rest_url) as session:
            for _ in range(2):
                async with session.get("/fapi/v1/time") as response:
                    assert response.status == status
                    asked_control = response.headers.get("Retry-After")
                    assert asked_control == (None if retry_after is None else str(retry_after))
                    if status in {418, 429}:
                        assert (await response.json())["code"] == -1003
            for name in ("time", "premiumIndex?symbol=BTCUSDT"):
                async with session.get(f"/fapi/v1/{name}") as response:
                    assert response.status == 200
        assert [name for _, name in simulator.rest.asked] == ["time"] * 3 + ["premiumIndex"]

    with_sockets(check, paused=True)


def test_rest_hangs_until_the_end_of_it() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        number = await simulator.faults.start(HangRest("exchangeInfo", count=1))
        async with aiohttp.ClientSession(simulator.rest_url) as session:
            asking = asyncio.create_task(session.get("/fapi/v1/exchangeInfo"))
            await simulator.wait_until(lambda: simulator.rest.requests["exchangeInfo"] == 1)
            await simulator.faults.tick(simulator.now_ms())
            async with session.get("/fapi/v1/time") as response:
                assert response.status == 200
            assert not asking.done()
            await simulator.faults.end(number)
            async with await asking as response:
                assert response.status == 200

    with_sockets(check, paused=True)


def test_exchange_info_shrinks_and_the_clock_is_off() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        async with aiohttp.ClientSession(simulator.rest_url) as session:

            async def ask(name: str) -> Any:
                async with session.get(f"/fapi/v1/{name}") as response:
                    return await response.json()

            whole = len((await ask("exchangeInfo"))["symbols"])
            await simulator.faults.start(ShrinkExchangeInfo(0.5))
            await simulator.faults.start(ShiftClock(offset_ms=-10_800_000))
            assert len((await ask("exchangeInfo"))["symbols"]) == whole - round(whole / 2)
            assert (await ask("time"))["serverTime"] == simulator.now_ms() - 10_800_000
            await simulator.faults.end()
            assert len((await ask("exchangeInfo"))["symbols"]) == whole
            assert (await ask("time"))["serverTime"] == simulator.now_ms()

    with_sockets(check, paused=True)


# --- control ------------------------------------------------------------------------------------------


def test_faults_over_http() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client = await connect()
        async with aiohttp.ClientSession(simulator.rest_url) as session:

            async def asked_control(method: str, path: str, body: Any = None) -> Any:
                async with session.request(method, path, json=body) as response:
                    assert response.status == 200
                    return await response.json()

            path = "/simulator/faults"
            mute = {"fault": "mute", "stream": STREAM, "for_s": 30}
            one = await asked_control("POST", path, mute)
            two = await asked_control(
                "POST", path, {"fault": "close", "connections": "new", "count": 3}
            )
            report = await asked_control("GET", path)
            assert report["connections"] == [1]
            assert [fault["number"] for fault in report["faults"]] == [one["number"], two["number"]]
            kept = {"count": None, "closing_only": False, "new_connections": False}
            assert report["faults"][0]["fault"] == {**mute, **kept}
            assert report["faults"][0]["until_ms"] == simulator.now_ms() + 30_000
            left = await asked_control("DELETE", f"{path}/{one['number']}")
            assert [fault["number"] for fault in left["faults"]] == [two["number"]]
            await asked_control("POST", path, {"fault": "drop"})
            await client.closed_with()
            assert await asked_control("DELETE", path) == {"faults": [], "connections": []}
            for wrong in ({"fault": "nosuch"}, {"fault": "mute", "streem": "x"}, {}):
                async with session.post(path, json=wrong) as response:
                    assert response.status == 400
                    assert (await response.text()).strip()

    with_sockets(check, paused=True)


def test_a_fault_lasts_as_long_as_it_was_asked_to() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        started_ms = simulator.now_ms()
        await simulator.faults.start(Mute(for_s=120.0))
        client = await connect()
        await client.subscribe("btcusdt@markPrice")
        simulator.resume()
        # The clock goes on while the market does not, as on a busy machine: for 180 s of the exchange's.
        time.sleep(0.3)  # noqa: ASYNC251 - nothing else may run
        assert json.loads(await client.text())["data"]["E"] >= started_ms + 120_000

    with_sockets(check, speed=600.0, paused=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mute(for_s=0.0),
        lambda: Mute(count=0),
        lambda: Spoil(how="garble", share=0.0),
        lambda: Lag(by_s=0.0),
        StopListening,
    ],
)
def test_faults_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"expected"):
        make()


def test_the_same_seed_spoils_the_same_frames() -> None:
    texts: list[list[bytes]] = []

    async def check(simulator: Simulator, connect: Connect) -> None:
        await simulator.faults.start(Spoil(how="truncate", share=0.5, seed=5))
        client = await connect(decode_text=False)
        await client.socket.send_str(subscribe_text("btcusdt@markPrice").decode())
        simulator.resume()
        texts.append([(await client.socket.receive(WAIT_S)).data for _ in range(30)])

    for _ in range(2):
        with_sockets(check, speed=100.0, paused=True, pairs=PAIRS[:1])
    assert texts[0] == texts[1]
    assert len({len(text) for text in texts[0]}) > 5
