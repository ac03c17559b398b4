"""A private authority's certificate, for what a collector and its commands ask of an InfluxDB."""

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
import uvloop
from aiohttp import web
from pydantic import ValidationError

from marketfeed.influxdb.admin import InfluxAdmin, InfluxError
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.settings.model import InfluxSettings
from marketfeed.simulator.tls import self_signed, server_context


async def _taken(_: web.Request) -> web.Response:
    return web.Response(status=204, headers={"X-Influxdb-Version": "v2.7.12"})


async def _no_buckets(_: web.Request) -> web.Response:
    return web.json_response({"buckets": []})


def served(
    context: ssl.SSLContext, ask: Callable[[str, aiohttp.ClientSession], Awaitable[None]]
) -> None:
    async def run() -> None:
        app = web.Application()
        app.add_routes(
            [
                web.get("/ping", _taken),
                web.post("/api/v2/write", _taken),
                web.get("/api/v2/buckets", _no_buckets),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        async with aiohttp.ClientSession() as session:
            await ask(f"https://127.0.0.1:{runner.addresses[0][1]}", session)
        await runner.cleanup()

    uvloop.run(run())


def test_a_private_authority_is_trusted_where_it_is_set_and_named_where_not(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)

    async def ask(url: str, session: aiohttp.ClientSession) -> None:
        without = InfluxSettings(url=url, org="fleet")
        verdict = await InfluxWriter(without, session).write(["m f=1 1"])
        assert verdict.action == "retryable"
        assert "influxdb.ca_file names a private authority's certificate" in verdict.text
        with pytest.raises(InfluxError, match=r"influxdb\.ca_file"):
            await InfluxAdmin(without, session).version()

        trusted = InfluxSettings(url=url, org="fleet", ca_file=certificate)
        assert (await InfluxWriter(trusted, session).write(["m f=1 1"])).action == "acknowledged"
        admin = InfluxAdmin(trusted, session)
        assert await admin.version() == "v2.7.12"
        # influxdb-client asks this one.
        with pytest.raises(InfluxError, match="this token does not see the bucket"):
            await admin.keeps_ms()

    served(server_context(certificate, key), ask)


def test_a_file_without_a_certificate_is_a_mistake_in_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "empty.pem"
    path.touch()
    for file in (path, tmp_path / "missing.pem"):
        with pytest.raises(ValidationError, match="a file of certificates"):
            InfluxSettings(ca_file=file)
