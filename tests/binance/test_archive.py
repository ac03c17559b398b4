"""The public archive's files: read exactly, or refused whole."""

import asyncio
import io
import zipfile
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar

import aiohttp
import pytest
from archive_server import ArchiveServer, archive_server

from marketfeed import schema
from marketfeed.binance.archive import (
    Archive,
    day_file,
    funding_file,
    month_file,
    month_of,
    unpack,
)
from marketfeed.binance.archive_rows import parse_rates, parse_rows
from marketfeed.binance.symbols import Instrument
from marketfeed.errors import ArchiveAbsentError, ArchiveError, ExchangeError
from marketfeed.grid import TimeRange
from marketfeed.records import FundingSettled
from marketfeed.simulator.dataset import made_zip

T = TypeVar("T")

DAY_MS = 1_735_776_000_000  # 2025-01-02
DAY = TimeRange(DAY_MS, DAY_MS + schema.DAY_MS)
PAIR = "BTC/USDT:USDT"
NAMES = b"open_time,open,high,low,close,volume,close_time,quote_volume,count,tbv,tbqv,ignore\n"


def instrument(symbol: str = "BTCUSDT", pair: str = PAIR) -> Instrument:
    return Instrument(symbol, pair, "USDT", "TRADING", "PERPETUAL", 0, 4_133_404_800_000)


def row(
    open_ms: int = DAY_MS, prices: str = "2,4,1,3", rest: str = "5,{last},7.5,9,2,3,0"
) -> bytes:
    return f"{open_ms},{prices},{rest.format(last=open_ms + 59_999)}\n".encode()


def ask(check: Callable[[ArchiveServer, Archive], Awaitable[T]]) -> T:
    async def run() -> T:
        async with archive_server() as server, aiohttp.ClientSession() as session:
            return await check(server, Archive(session, server.url))

    return asyncio.run(run())


def packed(*files: tuple[str, bytes]) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files:
            archive.writestr(name, text)
    return body.getvalue()


def test_names_of_files() -> None:
    day = day_file("BTCUSDT", "3m", DAY_MS + 5)
    assert day.path == ("data/futures/um/daily/klines/BTCUSDT/3m/BTCUSDT-3m-2025-01-02.zip")
    assert day.time_range == DAY
    month = month_file("BTCUSDT", "1h", DAY_MS)
    assert month.path == "data/futures/um/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2025-01.zip"
    assert month.time_range == month_of(DAY_MS) == TimeRange(1_735_689_600_000, 1_738_368_000_000)
    december = month_of(1_734_000_000_000)
    assert december.end_ms == month.time_range.start_ms


def test_a_day_is_read_exactly() -> None:
    async def check(server: ArchiveServer, archive: Archive) -> None:
        file = day_file("BTCUSDT", "1m", DAY_MS)
        server.put(file.path, made_zip())
        candles = await archive.candles(instrument(), file)
        assert [c.open_time_ms for c in candles] == list(range(*DAY, schema.MINUTE_MS))
        first, last = candles[0], candles[-1]
        assert (first.open, first.high, first.low, first.close) == (
            94500.00, 94513.90, 94460.30, 94460.40,
        )  # fmt: skip
        assert (first.volume, first.quote_volume, first.taker_buy_volume, first.trades) == (
            129.224, 12209555.18760, 12.922, 2228,
        )  # fmt: skip
        assert first.taker_buy_quote_volume == float(
            unpack(made_zip()).split(b"\n")[1].split(b",")[10]
        )
        assert last.close == 94397.60
        assert all(c.closed and c.pair == PAIR for c in candles)

    ask(check)


def test_a_file_without_the_line_of_names_is_read_the_same() -> None:
    text = unpack(made_zip())
    with_names = parse_rows(text, PAIR, "1m", DAY)
    assert parse_rows(text.partition(b"\n")[2], PAIR, "1m", DAY) == with_names
    assert parse_rows(text.replace(b"\n", b"\r\n"), PAIR, "1m", DAY) == with_names


BOM = b"\xef\xbb\xbf"
RATE_NAMES = b"calc_time,funding_interval_hours,last_funding_rate\n"
JANUARY = month_of(DAY_MS)


def rate(hour: int, value: str = "0.0001", hours: str = "8", jitter_ms: int = 4) -> bytes:
    return f"{DAY_MS + hour * schema.HOUR_MS + jitter_ms},{hours},{value}\n".encode()


@pytest.mark.parametrize("names", [b"", NAMES])
@pytest.mark.parametrize("before", [b"", BOM, b"\n", b" \r\n\n", BOM + b"\n \n", b"  ", b"\t"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n \n"])
def test_marks_and_blanks_eat_no_line(names: bytes, before: bytes, end: bytes) -> None:
    text = before + names + row() + row(DAY_MS + 60_000).rstrip() + end
    opens = [c.open_time_ms for c in parse_rows(text, PAIR, "1m", DAY)]
    assert opens == [DAY_MS, DAY_MS + 60_000]


XML = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code>'
    b"<Message>The specified key does not exist.</Message></Error>"
)


@pytest.mark.parametrize(
    "text",
    [
        XML,
        XML.replace(b"\n", b""),
        b"<html>busy</html>",
        b'{"code": -1003}',
        b"",
        b"\n\n",
        BOM,
        NAMES,
        b"Access denied\n" + row(),
        b",".join(b'"%s"' % part for part in row().strip().split(b",")),
        NAMES + b",".join(b'"%s"' % part for part in row().strip().split(b",")),
        b",".join(b'"%s"' % part for part in (NAMES + row()).strip().split(b",")),
        row().decode().encode("utf-16"),
        NAMES + NAMES + row(),
        row() + NAMES,
        RATE_NAMES + rate(0),
    ],
)
def test_what_is_no_file_of_rows_is_no_file_without_candles(text: bytes) -> None:
    with pytest.raises(ArchiveError, match=r"no row|columns|invalid literal"):
        parse_rows(text, PAIR, "1m", DAY)


@pytest.mark.parametrize("before", [b"", RATE_NAMES, BOM + RATE_NAMES, BOM, b"\n \n"])
def test_funding_rates_of_a_month(before: bytes) -> None:
    text = before + rate(0) + rate(8, "-0.00032", "4") + rate(9, "2e-05", "1", jitter_ms=-3)
    assert parse_rates(text, PAIR, JANUARY) == [
        FundingSettled(PAIR, DAY_MS, 0.0001, None),
        FundingSettled(PAIR, DAY_MS + 8 * schema.HOUR_MS, -0.00032, None),
        FundingSettled(PAIR, DAY_MS + 9 * schema.HOUR_MS, 0.00002, None),
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (XML, "no row of numbers"),
        (b"", "holds no row"),
        (RATE_NAMES, "holds no row"),
        (rate(0).replace(b",", b'","'), "line 1: invalid literal"),
        (rate(0, "nan"), "rate nan"),
        (rate(0, "1.5"), "rate 1.5"),
        (rate(0, ""), "could not convert"),
        (rate(0, hours="0"), "interval of 0 h"),
        (rate(0, hours="25"), "interval of 25 h"),
        (rate(0)[:13] + b",8\n", "columns"),
        (rate(8) + rate(0), "out of order"),
        # A Special beside the Regular: which is which nobody tells.
        (rate(0) + rate(0, "0.009", jitter_ms=9), "of a minute that was"),
        (rate(-48), "not of the file"),
        (rate(31 * 24), "not of the file"),
    ],
)
def test_rates_that_make_no_sense_refuse_the_file(text: bytes, why: str) -> None:
    with pytest.raises(ArchiveError, match=why):
        parse_rates(text, PAIR, JANUARY)


def test_a_month_of_rates_is_fetched_and_verified() -> None:
    async def check(server: ArchiveServer, archive: Archive) -> None:
        file = funding_file("BTCUSDT", DAY_MS + 5)
        assert file.path == (
            "data/futures/um/monthly/fundingRate/BTCUSDT/BTCUSDT-fundingRate-2025-01.zip"
        )
        assert file.time_range == JANUARY
        with pytest.raises(ArchiveAbsentError):
            await archive.funding_rates(PAIR, file)
        body = packed(("BTCUSDT-fundingRate-2025-01.csv", RATE_NAMES + rate(0)))
        server.put(file.path, body, "0" * 64)
        with pytest.raises(ArchiveError, match=r"fundingRate-2025-01\.zip: sha256"):
            await archive.funding_rates(PAIR, file)
        server.put(file.path, body)
        assert await archive.funding_rates(PAIR, file) == [
            FundingSettled(PAIR, DAY_MS, 0.0001, None)
        ]

    ask(check)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (row(prices="2,4,1,nan"), "prices"),
        (row(prices="2,4,1,inf"), "prices"),
        (row(prices="2,4,2.5,3"), "prices"),
        (row(prices="2,2.5,1,3"), "prices"),
        (row(prices="0,4,0,3"), "prices"),
        (row(prices="2,4,x,3"), "could not convert"),
        (row(prices="1_0,40,1,3"), "columns"),
        (row(rest="-5,{last},7.5,9,2,3,0"), "volumes"),
        (row(rest="5,{last},7.5,-9,2,3,0"), "volumes"),
        (row(rest="5,{last},7.5,9.5,2,3,0"), "invalid literal"),
        (row(rest="5,17,7.5,9,2,3,0"), "close time 17"),
        (row(DAY_MS + 1), "is none of 1m"),
        (row(DAY_MS - 60_000), "not of the file"),
        (row(DAY_MS + schema.DAY_MS), "not of the file"),
        (row(DAY_MS * 1_000), "open time"),  # microseconds, as spot files have
        (row() + row(), "out of order"),
        (row(DAY_MS + 60_000) + row(), "out of order"),
        (b"1,2,3\n", "columns"),
        (row()[:40], "columns"),
        (b"\x00\xff\n" + b"\xfe,,,,,,,,,,,", "line 2"),
    ],
)
def test_a_row_that_makes_no_sense_refuses_the_file(text: bytes, why: str) -> None:
    with pytest.raises(ArchiveError, match=why):
        parse_rows(NAMES + text, PAIR, "1m", DAY)


def test_an_absent_file_and_one_that_is_not_to_be_trusted() -> None:
    async def check(server: ArchiveServer, archive: Archive) -> None:
        file = day_file("BTCUSDT", "1m", DAY_MS)
        good = made_zip()
        with pytest.raises(ArchiveAbsentError):
            await archive.candles(instrument(), file)
        for body, checksum, why in (
            (good, "0" * 64, "sha256 .* expected 000"),
            (good[:30_000] + b"x" + good[30_001:], None, "no readable zip"),
            (good[:20_000], None, "no readable zip"),
            (b"<html>", None, "no readable zip"),
            (packed(("a.csv", b""), ("b.csv", b"")), None, "2 files within"),
            (packed(("a.csv", NAMES + row(DAY_MS - 60_000))), None, "not of the file"),
            (good, "no checksum", "its checksum file says"),
        ):
            server.put(file.path, body, checksum)
            with pytest.raises(ArchiveError, match=why) as caught:
                await archive.candles(instrument(), file)
            assert not isinstance(caught.value, ArchiveAbsentError)
        # The right sum of another file.
        server.put(file.path, good)
        sums = server.files[file.path + ".CHECKSUM"]
        server.files[file.path + ".CHECKSUM"] = sums.replace(b"BTCUSDT", b"ETHUSDT")
        with pytest.raises(ArchiveError, match="its checksum file says"):
            await archive.candles(instrument(), file)

    ask(check)


def test_a_byte_that_was_changed_on_the_way_is_noticed() -> None:
    async def check(server: ArchiveServer, archive: Archive) -> None:
        file = day_file("BTCUSDT", "1m", DAY_MS)
        good = made_zip()
        server.put(file.path, good)
        for at in (0, 100, len(good) // 2, len(good) - 1):
            server.files[file.path] = good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :]
            with pytest.raises(ArchiveError, match="sha256"):
                await archive.candles(instrument(), file)

    ask(check)


def test_a_zip_bomb_is_not_unpacked() -> None:
    bomb = packed(("a.csv", b"0" * 50_000_000))
    assert len(bomb) < 60_000
    with pytest.raises(ArchiveError, match="more than"):
        unpack(bomb)


def test_chinese_symbols_are_encoded() -> None:
    async def check(server: ArchiveServer, archive: Archive) -> None:
        one = instrument("币安人生USDT", "币安人生/USDT:USDT")
        file = day_file(one.symbol, "1m", DAY_MS)
        server.put(file.path, packed(("a.csv", row())))
        (candle,) = await archive.candles(one, file)
        assert candle.pair == "币安人生/USDT:USDT"
        assert server.asked[-1] == file.path

    ask(check)


def test_an_archive_that_fails_is_no_bad_file() -> None:
    async def check(server: ArchiveServer, archive: Archive) -> None:
        server.status = HTTPStatus.SERVICE_UNAVAILABLE
        with pytest.raises(ExchangeError, match="status 503") as caught:
            await archive.candles(instrument(), day_file("BTCUSDT", "1m", DAY_MS))
        assert not isinstance(caught.value, ArchiveError)

    ask(check)
