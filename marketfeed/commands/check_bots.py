"""`marketfeed check` and `setup`, as far as the bots' records are concerned."""

import aiohttp

from marketfeed.bots.books_schema import KIND
from marketfeed.bots.bot_reader import BotReader
from marketfeed.bots.buckets import influx_of, measurements_by_bucket
from marketfeed.bots.foreign import ForeignFound, look, words_of_time
from marketfeed.bots.points import Points, clashes
from marketfeed.commands.check import check_file
from marketfeed.commands.finding import Finding
from marketfeed.commands.setup_influxdb import setup_bucket
from marketfeed.errors import MarketfeedError
from marketfeed.influxdb.admin import InfluxAdmin, InfluxError
from marketfeed.service.freqtrade_api import BotError
from marketfeed.settings.bots import FleetBot
from marketfeed.settings.model import Settings


async def check_bots(settings: Settings, session: aiohttp.ClientSession) -> list[Finding]:
    """Look at books, bots and buckets. A bot that is down is a warning: it is asked again."""
    findings = [check_file(KIND, settings.bots.books.path)[0]]
    for name, bot in settings.bots.fleet.items():
        findings.append(await _check_bot(name, bot, session))
        if settings.influxdb.url is not None:
            findings += await _check_bucket(settings, name, bot, session)
    return findings


async def _check_bot(name: str, bot: FleetBot, session: aiohttp.ClientSession) -> Finding:
    reader = BotReader(bot, session)
    try:
        page = await reader.page(0, 0)
        lacks_stop = await reader.lacks_stop_on_exchange()
    except BotError as error:
        return Finding(f"bot {name}", "warning", f"{reader.url}: {error}")
    count = "an unknown number of" if page.total is None else f"{page.total:,}"
    if lacks_stop:
        text = f"{reader.url} trades with money and has no stoploss_on_exchange: a stop is its own alone"
        return Finding(f"bot {name}", "warning", text)
    return Finding(f"bot {name}", "good", f"{reader.url} answers: {count} closed trades")


async def _check_bucket(
    settings: Settings, name: str, bot: FleetBot, session: aiohttp.ClientSession
) -> list[Finding]:
    influx = influx_of(settings.influxdb, bot.bucket_of(name))
    admin = InfluxAdmin(influx, session)
    subject = f"bucket {influx.bucket}"
    try:
        if influx.bucket not in await admin.databases():
            text = "InfluxQL knows no such database for this token: `marketfeed setup` makes it"
            return [Finding(subject, "bad", text)]
        found = await look(Points(admin, influx, bot.measurement))
    except InfluxError as error:
        return [Finding(subject, "bad", f"may not read: {error}")]
    findings = [_of_foreign(subject, bot, found)]
    findings += [
        Finding(
            subject,
            "bad",
            f'field "{field}" of {bot.measurement} is {held} there: new trades would be refused. Set '
            f"bots.fleet.{name}.measurement: {next_measurement(bot.measurement)}",
        )
        for field, held in clashes(found.types).items()
    ]
    return findings


def _of_foreign(subject: str, bot: FleetBot, found: ForeignFound) -> Finding:
    if found.first_ms is None or found.last_ms is None:
        return Finding(subject, "good", f"{bot.measurement}: no foreign points")
    types = ", ".join(f"{name} {'/'.join(held)}" for name, held in sorted(found.types.items()))
    text = (
        f"{bot.measurement}: {found.count:,} foreign points, the first of {words_of_time(found.first_ms)}, "
        f"the last of {words_of_time(found.last_ms)}; fields: {types}. `marketfeed bots import` takes over "
        "those whose trade no bot has"
    )
    return Finding(subject, "warning", text)


def next_measurement(name: str) -> str:
    """Another measurement than one whose fields clash: `closed_trades_v2`, then `_v3`."""
    base, mark, number = name.rpartition("_v")
    return f"{base}_v{int(number) + 1}" if mark and number.isdigit() else f"{name}_v2"


async def setup_bots(
    settings: Settings, session: aiohttp.ClientSession, *, ship_again: bool = False
) -> list[Finding]:
    """Create the bots' buckets and mappings where they are missing; return what was done, and what clashes.

    To a bucket that was missing, or on demand (`ship_again`), all trades of its bots will be shipped again.
    """
    done: list[Finding] = []
    files = ((KIND, settings.bots.books.path),)
    for bucket, bots in measurements_by_bucket(settings.bots.fleet).items():
        influx = influx_of(settings.influxdb, bucket)
        done += await setup_bucket(influx, files, session, ship_again=ship_again)
        for name, measurement in bots.items():
            try:
                types = await Points(
                    InfluxAdmin(influx, session), influx, measurement
                ).field_types()
            except MarketfeedError:
                # Said already, or seen by `check`.
                continue
            for field, held in clashes(types).items():
                text = (
                    f'field "{field}" of {measurement} is {held} there, new trades would be refused: set '
                    f"bots.fleet.{name}.measurement: {next_measurement(measurement)}"
                )
                done.append(Finding(f"bucket {bucket}", "bad", text))
    return done
