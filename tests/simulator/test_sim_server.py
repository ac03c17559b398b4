"""The simulator as a whole: controls, start and stop, TLS, options."""

import asyncio
import json
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from simulator_client import PAIRS, Client, Connect, with_sockets

from marketfeed.errors import SettingsError
from marketfeed.simulator import tls
from marketfeed.simulator.server import Simulator, SimulatorOptions
from marketfeed.simulator.sockets import Connection


def test_pause_and_resume_over_http() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        client = await connect()
        await client.subscribe("btcusdt@kline_1m")
        await client.text()
        async with aiohttp.ClientSession(simulator.rest_url) as session:
            async with session.post("/simulator/pause") as response:
                state = await response.json()
            assert state["paused"]
            await client.ask("LIST_SUBSCRIPTIONS", request_id=5)
            while json.loads(await client.text()) != {"result": ["btcusdt@kline_1m"], "id": 5}:
                pass
            await client.assert_silent("btcusdt@kline_1m")
            async with session.get("/fapi/v1/time") as response:
                assert (await response.json())["serverTime"] == state["exchange_time_ms"]
            async with session.post("/simulator/resume") as response:
                assert not (await response.json())["paused"]
            await client.text()
            async with session.get("/simulator/state") as response:
                state = await response.json()
            assert state["connections"] == state["streams"] == 1
            assert state["pairs"] == len(PAIRS)
            assert state["frames_sent"] >= 5
            assert state["requests"] == {"time": 1}

    with_sockets(check, speed=100.0)


def test_published_over_http() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        await simulator.wait_published(10)
        simulator.pause()
        async with aiohttp.ClientSession(simulator.rest_url) as session:
            async with session.get("/simulator/published", params={"after": 4}) as response:
                rest = await response.json()
            async with session.get("/simulator/published?after=4&limit=2") as response:
                two = await response.json()
            async with session.get("/simulator/published?after=x") as response:
                assert response.status == 400
        assert rest[:2] == two
        assert [entry["number"] for entry in two] == [5, 6]
        entry = simulator.published(4)[0]
        assert two[0] == {name: getattr(entry, name) for name in entry.__struct_fields__}
        assert simulator.published(10**6) == []

    with_sockets(check, speed=600.0)


def test_another_speed_over_http() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        async with aiohttp.ClientSession(simulator.rest_url) as session:
            async with session.get("/fapi/v1/time") as response:
                before = await response.json()
            assert before["speed"] == 600.0
            async with session.post("/simulator/speed", json={"speed": 2}) as response:
                state = await response.json()
            assert state["speed"] == 2.0
            async with session.get("/fapi/v1/time") as response:
                after = await response.json()
            assert after["speed"] == 2.0
            # No answer goes back behind another.
            assert after["serverTime"] >= state["exchange_time_ms"] >= before["serverTime"]
            for body in ({"speed": 0}, {"speed": "x"}, {"sped": 1}):
                async with session.post("/simulator/speed", json=body) as response:
                    assert response.status == 400
        assert simulator.speed == 2.0
        simulator.pause()
        simulator.set_speed(600.0)
        assert simulator.paused
        paused_ms = simulator.now_ms()
        simulator.resume()
        await simulator.wait_until(lambda: simulator.now_ms() > paused_ms + 60_000)

    with_sockets(check, speed=600.0)


def test_only_the_newest_published_candles_are_kept() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        await simulator.wait_published(12)
        simulator.pause()
        last = simulator.published_log.last_number
        assert [entry.number for entry in simulator.published()] == list(range(last - 4, last + 1))

    with_sockets(check, speed=600.0, published_kept=5)


def test_stopping_closes_connections_politely() -> None:
    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            async with Simulator(SimulatorOptions(pairs=3)) as simulator:
                clients = [
                    await session.ws_connect(simulator.ws_url + "/market/stream") for _ in range(3)
                ]
                reading = [asyncio.create_task(Client(one).closed_with()) for one in clients]
                await simulator.wait_connections(3)
            assert await asyncio.gather(*reading) == [1001, 1001, 1001]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with pytest.raises(OSError, match=r"Connect call failed|refused"):
            await asyncio.open_connection("127.0.0.1", simulator.port)

    asyncio.run(run())


def test_what_ends_the_simulator_is_not_lost() -> None:
    def gate(_: Connection, __: str | None, ___: bytes) -> Sequence[bytes]:
        raise ZeroDivisionError

    async def check(simulator: Simulator, connect: Connect) -> None:
        client = await connect()
        await client.subscribe("btcusdt@kline_1m")
        simulator.hub.gate = gate
        with pytest.raises(ZeroDivisionError):
            await simulator.wait_published(10**9)

    with pytest.raises(ZeroDivisionError):
        with_sockets(check, speed=100.0)


def test_waiting_has_an_end() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        with pytest.raises(TimeoutError):
            await simulator.wait_connections(1, timeout_s=0.01)

    with_sockets(check, paused=True)


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def test_tls_with_a_certificate_that_can_be_trusted() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        assert simulator.certificate is not None
        assert simulator.ws_url.startswith("wss://")
        context = trusting(simulator.certificate)
        client = await connect(ssl=context)
        await client.subscribe("btcusdt@kline_1m")
        for _ in range(5):
            assert json.loads(await client.text())["stream"] == "btcusdt@kline_1m"
        address = simulator.rest_url + "/fapi/v1/time"
        async with aiohttp.ClientSession() as session:
            async with session.get(address, ssl=context) as response:
                assert response.status == 200
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                async with session.get(address):
                    pass

    with_sockets(check, tls=True, speed=50.0)


def test_the_openssl_command_makes_such_a_certificate_too(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    try:
        tls._with_openssl(certificate, key)
    except RuntimeError as error:
        pytest.skip(str(error))
    tls.server_context(certificate, key)
    assert trusting(certificate).cert_store_stats()["x509"] >= 1


@pytest.mark.parametrize("options", [{"speed": 0.0}, {"pairs": 0}, {"timeframes": ("2s",)}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Simulator(SimulatorOptions(**options))


def test_a_port_in_use_is_an_error_and_leaves_nothing() -> None:
    async def check(simulator: Simulator, connect: Connect) -> None:
        with pytest.raises(OSError, match="in use"):
            async with Simulator(SimulatorOptions(pairs=1, port=simulator.port)):
                pass

    with_sockets(check, paused=True)
