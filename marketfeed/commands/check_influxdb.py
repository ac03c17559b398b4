"""`marketfeed check` and `setup`, as far as InfluxDB is concerned."""

import aiohttp

from marketfeed.commands.check_aggregator import is_configured
from marketfeed.commands.finding import Finding
from marketfeed.influxdb.admin import InfluxAdmin, InfluxError
from marketfeed.settings.model import Duration, InfluxSettings, Settings


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
    if verdict.action in ("retryable", "throttled"):
        text = f"whether it takes writes could not be seen: {verdict.text}"
        return [*findings, Finding("influxdb rights", "bad", text)]
    if verdict.action == "misconfigured":
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
        f"{wanted} (journal.retention.candles): what is older is not sent, and not to be read there"
    )
    return [Finding("influxdb retention", "warning", text)]


def _advice(answer: str, influx: InfluxSettings) -> Finding:
    """What to do about an answer that is not about lines."""
    bucket = influx.bucket
    by_status = {
        "status 2": "influxdb.url leads to something else than an InfluxDB",
        "status 401": "the server does not know this token: look at influxdb.token or token_file",
        "status 403": f"give the token the rights to write and to read bucket {bucket!r}",
        "status 404": (
            f"`marketfeed setup` creates bucket {bucket!r} and its mapping where the token may; "
            "look at influxdb.org and bucket if they should be there"
        ),
    }
    fitting = (text for status, text in by_status.items() if answer.startswith(status))
    text = next(fitting, "look at influxdb.url, org and bucket")
    return Finding("influxdb", "warning", text)
