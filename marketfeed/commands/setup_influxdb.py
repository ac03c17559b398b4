"""`marketfeed setup`: makes buckets and mappings, or has everything shipped again."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from marketfeed.aggregator.ledger_schema import KIND as LEDGER
from marketfeed.commands.finding import Finding
from marketfeed.errors import JournalError
from marketfeed.influxdb.admin import InfluxAdmin, InfluxError
from marketfeed.influxdb.writer import target_of
from marketfeed.journal.journal import KIND as JOURNAL
from marketfeed.settings.model import InfluxSettings, Settings
from marketfeed.storage.acknowledged import demand_again, withdraw
from marketfeed.storage.database import Kind, absence

Files = Sequence[tuple[Kind, Path]]
"""Durable files, each with its kind."""


async def setup_influx(
    settings: Settings, session: aiohttp.ClientSession, *, ship_again: bool = False
) -> list[Finding]:
    """Create bucket and InfluxQL mapping where they are missing; return what was done.

    To a bucket that was missing, or on demand (`ship_again`), everything will be shipped again.
    """
    files = ((JOURNAL, settings.journal.path), (LEDGER, settings.aggregator.ledger.path))
    return await setup_bucket(settings.influxdb, files, session, ship_again=ship_again)


async def setup_bucket(
    influx: InfluxSettings, files: Files, session: aiohttp.ClientSession, *, ship_again: bool
) -> list[Finding]:
    """The same of one bucket, into which these files are shipped."""
    admin = InfluxAdmin(influx, session)
    done: list[Finding] = []
    org_id = ""
    what = "database" if influx.api == "v1" else "bucket"
    demanded: list[tuple[Kind, Path]] = []
    try:
        if influx.api == "v1":
            is_there = influx.bucket in await admin.databases()
        else:
            is_there = await admin.is_there()
            org_id = "" if is_there else await admin.org_id()
        if ship_again or not is_there:
            # First: killed in between, it must not leave a new bucket of which no shipper knows.
            found, demanded = await asyncio.to_thread(_demand_again, influx, files, ship_again)
            done += found
        if is_there:
            done.append(Finding(what, "good", f"{influx.bucket!r} is there"))
        elif influx.api == "v1":
            await admin.create_database()
            done.append(Finding(what, "good", f"{influx.bucket!r} created"))
        else:
            await admin.create_bucket(org_id)
            done.append(Finding(what, "good", f"{influx.bucket!r} created, without expiry"))
        demanded = []
        if influx.api == "v1":
            return done
        if influx.bucket in await admin.databases():
            done.append(Finding("mapping", "good", f"InfluxQL knows {influx.bucket!r}"))
        else:
            await admin.create_mapping()
            done.append(Finding("mapping", "good", f"{influx.bucket!r} created for InfluxQL"))
    except InfluxError as error:
        if demanded and error.refused and not ship_again:
            # Nothing was created, nothing is to be filled. (Without an answer it may have been: then it is.)
            done = await asyncio.to_thread(_withdraw, influx, demanded)
        done.append(Finding("influxdb", "bad", str(error)))
    return done


def _withdraw(influx: InfluxSettings, demanded: Sequence[tuple[Kind, Path]]) -> list[Finding]:
    findings = []
    for kind, path in demanded:
        try:
            withdraw(kind, path, target_of(influx))
        except JournalError as error:
            text = f"everything in it is shipped again, that could not be taken back: {error}"
            findings.append(Finding(kind.name, "warning", text))
        else:
            findings.append(Finding(kind.name, "good", f"{path}: nothing in it is shipped again"))
    return findings


def _demand_again(
    influx: InfluxSettings, files: Files, asked: bool
) -> tuple[list[Finding], list[tuple[Kind, Path]]]:
    """Demand it of these files, as far as they are there; `asked`: by the user.

    Also returns the files of which it had not been demanded before.
    """
    findings: list[Finding] = []
    demanded: list[tuple[Kind, Path]] = []
    for kind, path in files:
        try:
            demand = demand_again(kind, path, target_of(influx))
        except JournalError as error:
            text = f"it is not shipped again, run `marketfeed setup --ship-again`: {error}"
            findings.append(Finding(kind.name, "bad" if asked else "warning", text))
            continue
        if demand is not None and not demand.known:
            demanded.append((kind, path))
        if demand is not None and (asked or demand.shipped_before):
            who = f"process {demand.holder} begins" if demand.holder else "its next writer begins"
            text = f"{path}: everything in it is shipped again, {who} with the newest"
            findings.append(Finding(kind.name, "good", text))
        elif demand is None and asked and kind is JOURNAL:
            findings.append(Finding(kind.name, "warning", absence(kind, path)))
    return findings, demanded
