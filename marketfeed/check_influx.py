"""`marketfeed check` and `setup`, as far as InfluxDB is concerned."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from marketfeed.aggregator.ledger import KIND as LEDGER
from marketfeed.check import Finding
from marketfeed.check_aggregator import is_configured
from marketfeed.errors import JournalError
from marketfeed.influxdb.admin import InfluxAdmin, InfluxError
from marketfeed.influxdb.writer import target_of
from marketfeed.journal.journal import KIND as JOURNAL
from marketfeed.settings.model import Duration, InfluxSettings, Settings
from marketfeed.storage.acknowledged import demand_again, withdraw
from marketfeed.storage.database import Kind, absence


async def check_influx(settings: Settings, session: aiohttp.ClientSession) -> list[Finding]:
    """Look at server, rights, bucket, mapping, and at what an older writer has left in the bucket."""
    influx = settings.influxdb
    admin = InfluxAdmin(influx, session)
    findings: list[Finding] = []
    try:
        version = await admin.version()
        findings.append(Finding("influxdb", "good", f"{influx.url} is InfluxDB {version}"))
    except InfluxError as error:
        return [Finding("influxdb", "bad", str(error))]
    if influx.api == "v2" and influx.token is None and influx.token_file is None:
        text = "neither influxdb.token nor token_file is set: v2 takes nothing without a token"
        findings.append(Finding("influxdb token", "warning", text))
    verdict = await admin.may_write()
    if verdict.action == "retry":
        text = f"whether it takes writes could not be seen: {verdict.text}"
        return [*findings, Finding("influxdb rights", "bad", text)]
    if verdict.action == "park":
        findings.append(Finding("influxdb rights", "bad", f"may not write: {verdict.text}"))
        findings.append(_advice(verdict.text, influx))
        return findings
    findings.append(Finding("influxdb rights", "good", f"may write to bucket {influx.bucket!r}"))
    try:
        if influx.bucket not in await admin.databases():
            text = (
                f"InfluxQL knows no database {influx.bucket!r} for this token, readers could not read: "
                "the mapping is missing (`marketfeed setup` creates it), or the right to read the bucket"
            )
            return [*findings, Finding("influxdb mapping", "bad", text)]
        clashes = await admin.clashes(
            settings.exchange.timeframes, aggregator=is_configured(settings.aggregator)
        )
    except InfluxError as error:
        return [*findings, Finding("influxdb mapping", "bad", f"may not read: {error}")]
    findings += [
        Finding(f"influxdb {c.measurement}", "bad" if c.refuses else "warning", c.text)
        for c in clashes
    ]
    if not clashes:
        text = f"what bucket {influx.bucket!r} holds fits what will be written"
        findings.append(Finding("influxdb schema", "good", text))
    findings += await _check_expiry(settings, admin)
    return findings


async def _check_expiry(settings: Settings, admin: InfluxAdmin) -> list[Finding]:
    bucket, wanted = settings.influxdb.bucket, settings.journal.retention.candles
    try:
        keeps_ms = await admin.keeps_ms()
    except InfluxError as error:
        text = f"for how long bucket {bucket!r} keeps its points could not be seen: {error}"
        return [Finding("influxdb retention", "warning", text)]
    if keeps_ms is None or keeps_ms >= wanted.ms:
        return []
    text = (
        f"bucket {bucket!r} keeps its points for {Duration(keeps_ms)}, the journal its candles for "
        f"{wanted} (journal.retention.candles): what is older is refused, put aside and not to be read "
        "there"
    )
    return [Finding("influxdb retention", "warning", text)]


def _advice(answer: str, influx: InfluxSettings) -> Finding:
    """What to do about an answer that is not about lines."""
    bucket = influx.bucket
    text = "look at influxdb.url, org and bucket"
    if answer.startswith("status 2"):
        text = "influxdb.url leads to something else than an InfluxDB"
    elif answer.startswith("status 401"):
        text = "the server does not know this token: look at influxdb.token or token_file"
    elif answer.startswith("status 403"):
        text = f"give the token the rights to write and to read bucket {bucket!r}"
    elif answer.startswith("status 404"):
        text = (
            f"`marketfeed setup` creates bucket {bucket!r} and its mapping where the token may; "
            "look at influxdb.org and bucket if they should be there"
        )
    return Finding("influxdb", "warning", text)


async def setup_influx(
    settings: Settings, session: aiohttp.ClientSession, *, ship_again: bool = False
) -> list[Finding]:
    """Create bucket and InfluxQL mapping where they are missing; says what was done.

    To a bucket that was missing, or on demand (`ship_again`), everything will be shipped again.
    """
    influx = settings.influxdb
    admin = InfluxAdmin(influx, session)
    done: list[Finding] = []
    what = "database" if influx.api == "v1" else "bucket"
    demanded: list[tuple[Kind, Path]] = []
    try:
        if influx.api == "v1":
            is_there = influx.bucket in await admin.databases()
        else:
            is_there = await admin.bucket_id() is not None
        if ship_again or not is_there:
            # First: killed in between, it must not leave a new bucket of which no shipper knows.
            found, demanded = await asyncio.to_thread(_demand_again, settings, ship_again)
            done += found
        if is_there:
            done.append(Finding(what, "good", f"{influx.bucket!r} is there"))
        elif influx.api == "v1":
            await admin.create_database()
            done.append(Finding(what, "good", f"{influx.bucket!r} created"))
        else:
            await admin.create_bucket()
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
            # Perhaps it is there, and the token may not see it: nothing was created, nothing is to be filled.
            done = await asyncio.to_thread(_withdraw, settings, demanded)
        done.append(Finding("influxdb", "bad", str(error)))
    return done


def _withdraw(settings: Settings, demanded: Sequence[tuple[Kind, Path]]) -> list[Finding]:
    findings = []
    for kind, path in demanded:
        try:
            withdraw(kind, path, target_of(settings.influxdb))
        except JournalError as error:
            text = f"everything in it is shipped again, that could not be taken back: {error}"
            findings.append(Finding(kind.name, "warning", text))
        else:
            findings.append(Finding(kind.name, "good", f"{path}: nothing in it is shipped again"))
    return findings


def _demand_again(settings: Settings, asked: bool) -> tuple[list[Finding], list[tuple[Kind, Path]]]:
    """Demand it of the journal and of the ledger, if there are such files; `asked`: by the user.

    Also returns the files of which it had not been demanded before.
    """
    findings: list[Finding] = []
    demanded: list[tuple[Kind, Path]] = []
    files = ((JOURNAL, settings.journal.path), (LEDGER, settings.aggregator.ledger.path))
    for kind, path in files:
        try:
            demand = demand_again(kind, path, target_of(settings.influxdb))
        except JournalError as error:
            text = f"it is not shipped again, say `marketfeed setup --ship-again`: {error}"
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
