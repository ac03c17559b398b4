"""`marketfeed check`: what is wrong with settings, journal and exchange, before a user finds out."""

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import aiohttp

from marketfeed import schema
from marketfeed.binance.archive import TERMS
from marketfeed.binance.budget import KEPT_FREE, klines_weight
from marketfeed.binance.decode import FrameDecoder
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rest_queue import UNNAMED
from marketfeed.binance.symbols import (
    ExchangeInfo,
    Selection,
    parse_exchange_info,
    stream_name,
)
from marketfeed.commands.check_wal import WalCheck
from marketfeed.commands.finding import Finding
from marketfeed.errors import ExchangeError, JournalError, words_of
from marketfeed.grid import TILE_CANDLES
from marketfeed.history.background import kept_ms, uses_archive
from marketfeed.journal.aside import bytes_of
from marketfeed.journal.journal import KIND
from marketfeed.pairs.selection import NONE_COLLECTED, Listing, left_out, select
from marketfeed.records import MarkPrice
from marketfeed.settings.model import ExchangeSettings, Settings
from marketfeed.storage.damage import check_whole, set_aside_beside
from marketfeed.storage.database import Kind
from marketfeed.storage.reading import inspect
from marketfeed.storage.versions import about_version

CLOCK_TOLERANCE_MS: Final = 1_000.0
"""Beyond this, readers on this host would misjudge the age of data."""
FIRST_DATA_S: Final = 10.0
_COMPACT: Final = {
    "journal": "marketfeed backup --compact",
    "ledger": "marketfeed backup --ledger --compact",
}
NAMED: Final = 10
"""So many rows that could not be understood are named."""


LiveCheck = Callable[[Listing], Awaitable[list[Finding]]]
StoreCheck = Callable[[Settings, aiohttp.ClientSession], Awaitable[list[Finding]]]


async def check(
    settings: Settings,
    live: LiveCheck | None = None,
    store: StoreCheck | None = None,
    aggregator: StoreCheck | None = None,
    bots: StoreCheck | None = None,
    *,
    whole: bool = False,
) -> list[Finding]:
    """Look at everything that a collector with these settings needs; changes nothing.

    `live` looks at all streams; without it one stream is tried. `store` looks at InfluxDB, `aggregator`
    and `bots` at what `marketfeed aggregate` and `bots run` need. `whole`: all of the journal's file is read.
    """
    findings = check_journal(settings, whole=whole)
    reading = WalCheck(settings.journal.path)
    findings += await _check_others(settings, live, store, aggregator, bots)
    return findings + await reading.findings()


async def _check_others(
    settings: Settings,
    live: LiveCheck | None,
    store: StoreCheck | None,
    aggregator: StoreCheck | None,
    bots: StoreCheck | None,
) -> list[Finding]:
    findings: list[Finding] = []
    async with aiohttp.ClientSession() as session:
        for look in (store, aggregator, bots):
            if look is not None:
                findings += await look(settings, session)
        rest = BinanceRest(session, settings.exchange.rest_url)
        findings.append(await _check_clock(rest))
        try:
            info = parse_exchange_info(await rest.exchange_info())
            selection = await select(settings.exchange, rest, info)
        except ExchangeError as error:
            return [*findings, Finding("exchange", "bad", str(error))]
        findings += check_pairs(settings.exchange, info, selection)
        findings += check_history(settings, len(selection.instruments))
        if selection.instruments and live is not None:
            findings += await live(Listing(selection, info))
        elif selection.instruments:
            findings.append(await _check_stream(session, settings, selection))
    return findings


def check_journal(settings: Settings, *, whole: bool = False) -> list[Finding]:
    """Look at the journal's file, its directory and the room on its disk; `whole`: at every page, too."""
    path = settings.journal.path.absolute()
    finding, used_bytes = check_file(KIND, path)
    if finding.verdict == "bad":
        return [finding]
    findings = [finding, _check_room(path, settings.journal.max_bytes, used_bytes)]
    return [*findings, check_pages(KIND, path)] if whole and path.exists() else findings


def check_pages(kind: Kind, path: Path) -> Finding:
    """Have SQLite look over every page of a durable file, beside its writer: minutes for a large one."""
    started_s = time.monotonic()
    try:
        found = check_whole(kind.name, path)
    except JournalError as error:
        return Finding(kind.name, "bad", str(error))
    if found is None:
        text = f"{path}: every page is in order ({time.monotonic() - started_s:.0f} s)"
        return Finding(kind.name, "good", text)
    meaning, words = found
    return Finding(kind.name, "bad", f"{path}: {meaning.value}: {words}")


def check_file(kind: Kind, path: Path) -> tuple[Finding, int]:
    """Look at a durable file and its directory; also returns how many bytes it has."""
    path = path.absolute()
    try:
        found = inspect(kind, path, writing=True)
    except JournalError as error:
        return Finding(kind.name, "bad", str(error)), 0
    if found is None:
        place = next(parent for parent in path.parents if parent.exists())
        if not os.access(place, os.W_OK | os.X_OK):
            text = f"{path} cannot be created: {place} is not writable for this user"
            return Finding(kind.name, "bad", text), 0
        return Finding(kind.name, "good", f"{path} will be created"), 0
    held = f", in use by process {found.holder}" if found.holder else ""
    text = f"{path}: {found.bytes_used:,} bytes{held}, {about_version(kind, found.version)}"
    if found.free_bytes and kind.name in _COMPACT:
        text += (
            f"; {found.free_bytes:,} bytes of it are free, and used again: `{_COMPACT[kind.name]}` and a "
            "swap give them back to the disk"
        )
    return Finding(kind.name, "good", text), found.bytes_used


def _check_room(path: Path, max_bytes: int, used_bytes: int) -> Finding:
    place = next(parent for parent in path.parents if parent.exists())
    free_bytes = shutil.disk_usage(place).free
    more_bytes = max(max_bytes - used_bytes, 0)
    text = f"{free_bytes:,} bytes free, the journal may still grow by {more_bytes:,}"
    # They lie there until somebody deletes them, and what is taken over of them is there twice.
    if beside := _bytes_aside(path):
        text += f", and {beside:,} more lie in damaged ones that were set aside"
    enough = free_bytes >= more_bytes
    return Finding("disk", "good" if enough else "warning", text)


def _bytes_aside(path: Path) -> int:
    try:
        return sum(bytes_of(Path(name)) for name in set_aside_beside(path))
    except OSError:
        return 0


async def _check_clock(rest: BinanceRest) -> Finding:
    try:
        answer = await rest.server_time()
    except ExchangeError as error:
        return Finding("clock", "bad", str(error))
    offset_ms = answer.time_ms + answer.round_trip_s / 2 * 1000 - time.time() * 1000
    text = f"the exchange's clock is {offset_ms:+.0f} ms from this host's"
    if answer.speed != 1.0:
        return Finding("clock", "warning", f"a simulator: its time runs {answer.speed:g} x")
    if abs(offset_ms) > CLOCK_TOLERANCE_MS:
        return Finding("clock", "warning", text + ": set the clock (NTP), readers judge ages by it")
    return Finding("clock", "good", text)


def check_pairs(
    exchange: ExchangeSettings, info: ExchangeInfo, selection: Selection
) -> list[Finding]:
    """Report what of the exchange's list will be collected, what will not, and why."""
    findings = [
        Finding("pairs", "warning", f"{pair} is left out: {reason}")
        for pair, reason in selection.refused.items()
    ]
    count = len(selection.instruments)
    if count == 0:
        findings.append(Finding("pairs", "bad", NONE_COLLECTED))
    else:
        findings.append(Finding("pairs", "good", f"{count} pairs will be collected"))
    if others := left_out(exchange, info):
        findings.append(Finding("pairs", "good", others))
    if info.not_understood:
        named = "; ".join(
            f"{name or UNNAMED}: {why}" for name, why in list(info.odd.items())[:NAMED]
        )
        text = f"{info.not_understood} rows of exchangeInfo could not be understood: {named}"
        findings.append(Finding("exchange", "warning", text))
    return findings


def check_history(settings: Settings, pairs: int) -> list[Finding]:
    """Report how long the history of so many pairs takes by REST, into a journal that has none of it."""
    wanted_ms = kept_ms(settings)
    if not wanted_ms or not pairs:
        return []
    if uses_archive(settings):
        return [Finding("history", "warning", f"exchange.archive is true; {TERMS}")]
    per_minute = settings.history.weight_per_minute * (1.0 - KEPT_FREE)

    def time_for(weight: int) -> str:
        return f"{max(0.1, weight / per_minute):,.1f} min"

    findings: list[Finding] = []
    all_weight = 0
    for timeframe in (*settings.exchange.timeframes, schema.MARK_1H):
        full, rest = divmod(wanted_ms // schema.SERIES_MS[timeframe], TILE_CANDLES)
        requests = pairs * (full + bool(rest))
        weight = pairs * (full * klines_weight(TILE_CANDLES) + (klines_weight(rest) if rest else 0))
        all_weight += weight
        text = (
            f"{timeframe}: {wanted_ms / schema.DAY_MS:g} days of {pairs:,} pairs by REST are {requests:,} "
            f"requests of weight {weight:,}: {time_for(weight)}"
        )
        findings.append(Finding("history", "good", text))
    text = (
        f"all of them: weight {all_weight:,}, {time_for(all_weight)} at {per_minute:,.0f} of weight a "
        "minute, if the journal has none of it"
    )
    return [*findings, Finding("history", "good", text)]


async def _check_stream(
    session: aiohttp.ClientSession, settings: Settings, selection: Selection
) -> Finding:
    """Subscribe one mark price: an ACK proves nothing, only data does."""
    instrument = selection.instruments[0]
    stream = stream_name(instrument, schema.MARK_PRICE, settings.exchange.mark_price_every.ms)
    url = settings.exchange.ws_url + "/market/stream"
    decoder = FrameDecoder({instrument.symbol: instrument.pair})
    try:
        async with (
            asyncio.timeout(FIRST_DATA_S),
            session.ws_connect(url, max_msg_size=1 << 20) as socket,
        ):
            await socket.send_json({"method": "SUBSCRIBE", "params": [stream], "id": 1})
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                for item in decoder.decode(message.data):
                    if isinstance(item, MarkPrice):
                        text = f"{url} delivers: {item.pair} mark price {item.mark_price}"
                        return Finding("stream", "good", text)
            return Finding("stream", "bad", f"{url} closed the connection without data")
    except TimeoutError:
        text = f"{url}: no data of {stream} in {FIRST_DATA_S:.0f} s"
    except (aiohttp.ClientError, OSError) as error:
        text = f"{url}: {words_of(error)}"
    return Finding("stream", "bad", text)
