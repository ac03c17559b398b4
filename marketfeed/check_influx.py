"""`marketfeed check` and `setup`, as far as InfluxDB is concerned."""

import aiohttp

from marketfeed.check import Finding
from marketfeed.config import Settings
from marketfeed.influx_admin import InfluxAdmin, InfluxError


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
    if verdict.action == "park":
        findings.append(Finding("influxdb rights", "bad", f"may not write: {verdict.text}"))
        findings.append(_advice(influx.bucket))
        return findings
    findings.append(Finding("influxdb rights", "good", f"may write to bucket {influx.bucket!r}"))
    try:
        if influx.bucket not in await admin.databases():
            text = f"InfluxQL knows no database {influx.bucket!r}: readers could not read"
            return [*findings, Finding("influxdb mapping", "bad", text), _advice(influx.bucket)]
        clashes = await admin.clashes(settings.exchange.timeframes)
    except InfluxError as error:
        return [*findings, Finding("influxdb mapping", "bad", f"may not read: {error}")]
    findings += [
        Finding(f"influxdb {c.measurement}", "bad" if c.refuses else "warning", c.text)
        for c in clashes
    ]
    if not clashes:
        text = f"what bucket {influx.bucket!r} holds fits what will be written"
        findings.append(Finding("influxdb schema", "good", text))
    return findings


def _advice(bucket: str) -> Finding:
    text = f"`marketfeed setup` creates bucket and mapping {bucket!r} where the token may"
    return Finding("influxdb", "warning", text)


async def setup_influx(settings: Settings, session: aiohttp.ClientSession) -> list[Finding]:
    """Create bucket and InfluxQL mapping where they are missing; says what was done."""
    influx = settings.influxdb
    admin = InfluxAdmin(influx, session)
    done: list[Finding] = []
    try:
        if influx.api == "v1":
            if influx.bucket in await admin.databases():
                return [Finding("database", "good", f"{influx.bucket!r} is there")]
            await admin.create_database()
            return [Finding("database", "good", f"{influx.bucket!r} created")]
        if await admin.bucket_id() is None:
            await admin.create_bucket()
            done.append(Finding("bucket", "good", f"{influx.bucket!r} created, without expiry"))
        else:
            done.append(Finding("bucket", "good", f"{influx.bucket!r} is there"))
        if influx.bucket in await admin.databases():
            done.append(Finding("mapping", "good", f"InfluxQL knows {influx.bucket!r}"))
        else:
            await admin.create_mapping()
            done.append(Finding("mapping", "good", f"{influx.bucket!r} created for InfluxQL"))
    except InfluxError as error:
        done.append(Finding("influxdb", "bad", str(error)))
    return done
