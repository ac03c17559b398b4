"""What of the archive's settled rates is asked for, once, and what of it is stored."""

import asyncio
import io
import json
import zipfile
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final

import aiohttp
import pytest
from archive_server import ArchiveServer, archive_server

from marketfeed.binance.archive import Archive, funding_file
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.symbols import NEVER_MS, Instrument
from marketfeed.counters import CollectorCounters
from marketfeed.history.archive_rates import ASKED, ArchiveRates
from marketfeed.journal.batch import Batch
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import FundingSettled
from marketfeed.schema import DAY_MS, HOUR_MS

OCTOBER: Final = 1_790_812_800_000
SEPTEMBER: Final = OCTOBER - 30 * DAY_MS
AUGUST: Final = SEPTEMBER - 31 * DAY_MS
NOW_MS: Final = OCTOBER + 20 * DAY_MS
SYMBOL, PAIR = "BTCUSDT", "BTC/USDT:USDT"
OLDEST_MS: Final = SEPTEMBER + 10 * DAY_MS
"""The oldest rate that REST has given."""
SINCE_MS: Final = AUGUST + 20 * DAY_MS


class StillClock(ExchangeClock):
    """Exchange time that does not go on."""

    def now_ms(self) -> int:
        return NOW_MS


def packed(start_ms: int, days: int, rate: str = "0.0002") -> bytes:
    lines = ["calc_time,funding_interval_hours,last_funding_rate"]
    lines += [f"{ms + 3},8,{rate}" for ms in range(start_ms, start_ms + days * DAY_MS, 8 * HOUR_MS)]
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as files:
        files.writestr("rates.csv", "\n".join(lines))
    return body.getvalue()


class Line:
    """The archive, a journal that has rates of REST's from `OLDEST_MS` on, and who fills it."""

    def __init__(self, server: ArchiveServer, writer: JournalWriter, archive: Archive) -> None:
        self.server = server
        self.writer = writer
        self._archive = archive

    async def fill(self, since_ms: int = SINCE_MS, listed_ms: int = 0) -> bool:
        one = Instrument(SYMBOL, PAIR, "USDT", "TRADING", "PERPETUAL", listed_ms, NEVER_MS)
        clock = StillClock()
        counters, history_ms = CollectorCounters(), NOW_MS - since_ms
        rates = ArchiveRates(self._archive, self.writer, clock, counters, lambda: [one], history_ms)
        return await rates.fill()

    async def times(self) -> list[tuple[int, float]]:
        sql = "SELECT time, rate FROM funding_settled ORDER BY time"
        return await self.writer.call(lambda journal: journal.db.execute(sql).fetchall())

    async def asked(self) -> dict[str, list[int]]:
        known = await self.writer.call(lambda journal: journal.load_document(ASKED))
        assert known is not None
        months = json.loads(known[0])[PAIR]
        return {"done": sorted(months["done"]), "refused": [one[0] for one in months["refused"]]}

    def put(self, start_ms: int, body: bytes, checksum: str | None = None) -> None:
        self.server.put(funding_file(SYMBOL, start_ms).path, body, checksum)


def run(path: Path, check: Callable[[Line], Awaitable[None]], *, stored: bool = True) -> None:
    async def main() -> None:
        async with (
            archive_server() as server,
            aiohttp.ClientSession() as session,
            JournalWriter(path) as writer,
        ):
            if stored:
                batch = Batch()
                batch.add(FundingSettled(PAIR, OLDEST_MS, 0.0001, 10.0))
                await writer.call(lambda journal: journal.write(batch))
            await check(Line(server, writer, Archive(session, server.url)))

    asyncio.run(main())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_what_rest_does_not_give_is_filled_and_asked_for_once(path: Path) -> None:
    async def check(line: Line) -> None:
        line.put(SEPTEMBER, packed(SEPTEMBER, 30))
        line.put(AUGUST, packed(AUGUST, 31))
        assert await line.fill()
        # From where history begins to the oldest that REST has given, which stays as it is.
        wanted = [(ms, 0.0002) for ms in range(SINCE_MS, OLDEST_MS, 8 * HOUR_MS)]
        assert await line.times() == [*wanted, (OLDEST_MS, 0.0001)]
        assert await line.asked() == {"done": [AUGUST, SEPTEMBER], "refused": []}
        number = len(line.server.asked)
        assert number == 4
        assert await line.fill()
        assert len(line.server.asked) == number

    run(path, check)


def test_where_rest_gave_all_and_before_a_listing_nothing_is_asked(path: Path) -> None:
    async def check(line: Line) -> None:
        assert await line.fill(OLDEST_MS - 20 * HOUR_MS)
        assert await line.fill(listed_ms=OLDEST_MS - 7 * HOUR_MS)
        assert line.server.asked == []
        assert await line.fill(listed_ms=OLDEST_MS - 2 * DAY_MS)
        assert len(line.server.asked) == 1

    run(path, check)


def test_a_contract_of_which_rest_gave_nothing_has_all_of_its_months(path: Path) -> None:
    async def check(line: Line) -> None:
        line.put(SEPTEMBER, packed(SEPTEMBER, 30))
        assert await line.fill()
        assert len(await line.times()) == 90
        # August is not there, October is not published yet.
        assert await line.asked() == {"done": [AUGUST, SEPTEMBER], "refused": []}

    run(path, check, stored=False)


def test_what_is_refused_or_not_reachable_is_asked_for_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(line: Line) -> None:
        line.server.status = HTTPStatus.SERVICE_UNAVAILABLE
        assert not await line.fill()
        assert len(line.server.asked) == 1
        line.server.status = HTTPStatus.OK
        line.put(SEPTEMBER, packed(SEPTEMBER, 30), "0" * 64)
        line.put(AUGUST, packed(AUGUST, 31))
        assert await line.fill()
        # The others are fetched all the same.
        assert await line.asked() == {"done": [AUGUST], "refused": [SEPTEMBER]}
        assert (await line.times())[0][0] == SINCE_MS
        line.put(SEPTEMBER, packed(SEPTEMBER, 30, "7"))
        assert await line.fill()
        assert await line.asked() == {"done": [AUGUST], "refused": [SEPTEMBER]}
        # What is refused is no hole for ever, though older ones are stored meanwhile.
        line.put(SEPTEMBER, packed(SEPTEMBER, 30))
        number = len(line.server.asked)
        assert await line.fill()
        assert len(line.server.asked) == number + 2
        assert await line.asked() == {"done": [AUGUST, SEPTEMBER], "refused": []}
        times = await line.times()
        assert [ms for ms, _ in times] == list(range(SINCE_MS, OLDEST_MS + 1, 8 * HOUR_MS))
        assert (OLDEST_MS, 0.0001) in times

    run(path, check)
    assert "archive of settled rates cannot be fetched" in caplog.text
    assert "fundingRate-2026-09.zip: sha256" in caplog.text
    assert "fundingRate-2026-09.zip: line 2: interval of 8 h, rate 7.0" in caplog.text
