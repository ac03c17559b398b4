"""The service of the bots' records: its report, what it says when something is wrong, and its commands."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from typer.testing import CliRunner

from marketfeed.bots.poll import PollPace
from marketfeed.bots.reasons import Kind
from marketfeed.bots.service import BotsService
from marketfeed.cli import app
from marketfeed.errors import SettingsError
from marketfeed.settings.load import describe, load_settings
from marketfeed.settings.model import Settings
from tests.bots.fleet import PASSWORD, RecordedBot, settings_for, trade
from tests.waiting import until

QUICK = PollPace(every_s=0.05, page_s=0.0, again_s=0.0, exits_s=0.0)


@contextlib.asynccontextmanager
async def running(settings: Settings, pace: PollPace = QUICK) -> AsyncIterator[BotsService]:
    service, stop = BotsService(settings, pace), asyncio.Event()
    task = asyncio.create_task(service.run(stop))
    try:
        await until(lambda: service.status_url or task.done(), "the status port")
        yield service
    finally:
        stop.set()
        async with asyncio.timeout(60.0):
            await task


async def get(service: BotsService, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{service.status_url}{path}") as answer,
    ):
        return answer.status, await answer.text()


def config_of(home: Path, settings: Settings) -> Path:
    """A config.yaml of these settings."""
    plain = describe(settings)
    wanted: dict[str, Any] = {name: plain[name] for name in ("influxdb", "bots")}
    wanted["bots"]["status"].pop("token")
    wanted["influxdb"].pop("token")
    wanted["aggregator"] = {"ledger": {"path": str(home / "ledger.db")}}
    file = home / "config.yaml"
    file.write_text(yaml.safe_dump(wanted))
    return file


def test_three_bots_without_influxdb(tmp_path: Path) -> None:
    async def scenario() -> Path:
        fleet = {f"BOT{n}": RecordedBot([trade(i) for i in range(1, 20 * n)]) for n in (1, 2, 3)}
        async with contextlib.AsyncExitStack() as stack:
            for bot in fleet.values():
                await stack.enter_async_context(bot.serving())
            settings = settings_for(tmp_path, {name: bot.url for name, bot in fleet.items()})
            async with running(settings) as service:
                await until(lambda: sum(service._counts.values()) == 19 + 39 + 59, "all trades")
                status, text = await get(service, "/health")
                assert (status, json.loads(text)["state"]) == (200, "well")
                _, text = await get(service, "/metrics")
                assert 'marketfeed_bots_trades{bot="BOT3",from="bot"} 59.0' in text
                _, text = await get(service, "/status")
                assert json.loads(text)["bots"]["BOT2"]["total"] == 39
                assert PASSWORD not in text

                file = config_of(tmp_path, settings)
                runner = CliRunner()

                def command(*words: str) -> Any:
                    return runner.invoke(app, ["bots", *words, "--config", str(file)])

                done = await asyncio.to_thread(command, "verify", "--json")
                assert (done.exit_code, json.loads(done.stdout)["equal"]) == (0, True), done.output
                fleet["BOT1"].trades.append(trade(1000))
                await until(lambda: sum(service._counts.values()) == 118, "the new trade")
                done = await asyncio.to_thread(command, "trades", "--bot", "BOT1", "--json")
                assert len(json.loads(done.stdout)["trades"]) == 20
                done = await asyncio.to_thread(command, "trades", "--bot", "BOT9")
                assert done.exit_code == 2
            # Nobody asks any more: the books lack what closes now.
            fleet["BOT1"].trades.append(trade(1001))
            done = await asyncio.to_thread(command, "verify")
            assert done.exit_code == 1
            assert "is not in the books" in " ".join(done.stdout.split())
            return file

    asyncio.run(scenario())


def test_reasons_come_and_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        bot = RecordedBot([trade(n) for n in range(1, 5)])
        async with bot.serving(), running(settings_for(tmp_path, {"BOT1": bot.url})) as service:

            async def says(kind: Kind, *, yes: bool = True) -> None:
                await until(
                    lambda: any(it.kind is kind for it in service._reasons()) is yes, kind.name
                )

            bot.config = {"dry_run": False, "stoploss_on_exchange": False}
            await says(Kind.NO_STOP)
            bot.config["stoploss_on_exchange"] = True
            await says(Kind.NO_STOP, yes=False)
            bot.total_more = 2
            await says(Kind.LACKING)
            bot.total_more = 0
            await says(Kind.LACKING, yes=False)
            bot.trades.append(trade(9, leverage=0))
            await says(Kind.REFUSED)
            bot.trades.pop()
            await says(Kind.REFUSED, yes=False)
            bot.down = True
            await says(Kind.UNREACHABLE)
            status, text = await get(service, "/health")
            assert status == 503
            assert "(until it answers)" in text
            bot.down = False
            await says(Kind.UNREACHABLE, yes=False)
            wanted = "1 bots, 4 trades, well"
            await until(lambda: service.headline() == wanted, "the books' count")

    asyncio.run(scenario())


def test_a_fleet_is_needed() -> None:
    with pytest.raises(SettingsError, match=r"bots\.fleet: expected at least one bot"):
        BotsService(Settings())


def test_mistakes_of_a_fleet_are_named_where_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "bots:\n  fleet:\n    BOT1: {url: ftp://x, sid: long}\n    B?T: {url: http://b.example}\n"
        "    BOT3: {username: x}\n    BOT4: {url: http://b.example, measurement: Trades}\n"
    )
    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})
    text = str(caught.value)
    assert "bots.fleet.BOT1.url: expected http://host[:port] or https://" in text
    assert "bots.fleet.BOT1.sid: unknown key, did you mean side?" in text
    assert "bots.fleet.BOT3.url: expected a value; found nothing" in text
    assert "bots.fleet.BOT4.measurement: expected a measurement of small letters" in text
    file.write_text("bots:\n  fleet:\n    B?T: {url: http://b.example}\n")
    with pytest.raises(SettingsError, match="expected a bot's name"):
        load_settings(file, {})
