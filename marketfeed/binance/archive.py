"""The public archive (https://data.binance.vision): zip files of a day or a month, without weight.

Layout: `data/futures/um/{daily,monthly}/klines/SYM/3m/SYM-3m-YYYY-MM[-DD].zip`, beside each a `.CHECKSUM`
(`<sha256>  <name>`). A day's file is there by the next morning (UTC), a month's some days into the next one.
Settled funding rates are monthly only: `data/futures/um/monthly/fundingRate/SYM/SYM-fundingRate-YYYY-MM.zip`.
Nothing of a file is taken before its checksum agrees; what it unpacks to is bounded.
"""

import asyncio
import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final, NamedTuple, TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

from marketfeed import schema
from marketfeed.binance.archive_rows import parse_rates, parse_rows
from marketfeed.binance.rest import whole_body
from marketfeed.binance.symbols import Instrument
from marketfeed.errors import ArchiveAbsentError, ArchiveError, ExchangeError, words_of
from marketfeed.grid import TimeRange
from marketfeed.records import Candle, FundingSettled

R = TypeVar("R")

TERMS: Final = (
    "the public archive's files are under CC BY-NC-SA 4.0 and further terms (of 2026-08-26), which forbid "
    "their use for live trading and in trading bot platforms: they are for research, with attribution"
)
"""What whoever takes candles from the archive has to know; binance/binance-public-data has the terms."""
TIMEOUT_S: Final = 60.0
MAX_ZIP_BYTES: Final = 16 * 1024 * 1024
MAX_CSV_BYTES: Final = 32 * 1024 * 1024
"""What a file may unpack to: a month of 1m candles has 5 MB."""
_MAX_CHECKSUM_BYTES: Final = 1_024
_RATES: Final = "fundingRate"
_METHODS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_CHECKSUM: Final = re.compile(rb"\s*([0-9a-fA-F]{64})\s+\*?(\S+)\s*")


class ArchiveFile(NamedTuple):
    """One file: what it should hold (`time_range`, a UTC day or month) and where it lies.

    `timeframe` is that of its candles; funding rates have none.
    """

    timeframe: str
    time_range: TimeRange
    path: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.rpartition("/")[2]


def day_file(symbol: str, timeframe: str, time_ms: int) -> ArchiveFile:
    """The file of the UTC day in which `time_ms` lies."""
    start_ms = schema.floor_to(time_ms, schema.DAY_MS)
    return _file(
        symbol, timeframe, TimeRange(start_ms, start_ms + schema.DAY_MS), "daily", "%Y-%m-%d"
    )


def month_file(symbol: str, timeframe: str, time_ms: int) -> ArchiveFile:
    """The file of the UTC month in which `time_ms` lies."""
    return _file(symbol, timeframe, month_of(time_ms), "monthly", "%Y-%m")


def funding_file(symbol: str, time_ms: int) -> ArchiveFile:
    """The file of the funding rates that were settled in the UTC month in which `time_ms` lies."""
    month = month_of(time_ms)
    name = f"{symbol}-{_RATES}-{_date(month.start_ms):%Y-%m}.zip"
    return ArchiveFile("", month, f"data/futures/um/monthly/{_RATES}/{symbol}/{name}")


def _date(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def month_of(time_ms: int) -> TimeRange:
    """The UTC month in which `time_ms` lies."""
    date = _date(time_ms)
    start = datetime(date.year, date.month, 1, tzinfo=UTC)
    end = datetime(date.year + date.month // 12, date.month % 12 + 1, 1, tzinfo=UTC)
    return TimeRange(int(start.timestamp()) * 1000, int(end.timestamp()) * 1000)


def _file(
    symbol: str, timeframe: str, time_range: TimeRange, folder: str, pattern: str
) -> ArchiveFile:
    name = f"{symbol}-{timeframe}-{_date(time_range.start_ms):{pattern}}.zip"
    path = f"data/futures/um/{folder}/klines/{symbol}/{timeframe}/{name}"
    return ArchiveFile(timeframe, time_range, path)


class Archive:
    """A client of one archive, on a session of the caller's. `timeout_s` are wall seconds a file."""

    def __init__(
        self, session: aiohttp.ClientSession, archive_url: str, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._session = session
        self._base = archive_url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, connect=min(timeout_s, 10.0))

    async def candles(self, instrument: Instrument, file: ArchiveFile) -> list[Candle]:
        """Fetch, verify and read a file: its candles, oldest first.

        Raises ArchiveAbsentError when there is none, ArchiveError when it is not to be trusted, and
        ExchangeError when the archive does not answer.
        """
        pair, timeframe = instrument.pair, file.timeframe
        return await self._rows(
            file, lambda text: parse_rows(text, pair, timeframe, file.time_range)
        )

    async def funding_rates(self, pair: str, file: ArchiveFile) -> list[FundingSettled]:
        """Fetch, verify and read a file of settled funding rates, oldest first. Raises as `candles`."""
        return await self._rows(file, lambda text: parse_rates(text, pair, file.time_range))

    async def _rows(self, file: ArchiveFile, read: Callable[[bytes], list[R]]) -> list[R]:
        published = await self._get(file.path + ".CHECKSUM", _MAX_CHECKSUM_BYTES)
        expected = _checksum(published, file)
        body = await self._get(file.path, MAX_ZIP_BYTES)
        # Beside the event loop: hashing, unpacking and reading take up to a second for a month.
        try:
            return await asyncio.to_thread(lambda: read(_verified(body, expected)))
        except ArchiveError as error:
            raise ArchiveError(f"{file.name}: {error}") from error

    async def _get(self, path: str, max_bytes: int) -> bytes:
        # Some symbols are Chinese.
        url = URL(f"{self._base}/{quote(path)}", encoded=True)
        try:
            async with self._session.get(url, timeout=self._timeout) as response:
                if response.status == HTTPStatus.NOT_FOUND:
                    raise ArchiveAbsentError(f"{path}: there is none")
                if response.status != HTTPStatus.OK:
                    raise ExchangeError(f"{url}: status {response.status}")
                return await whole_body(
                    response, max_bytes, ArchiveError(f"{path}: larger than {max_bytes} bytes")
                )
        except TimeoutError as error:
            raise ExchangeError(f"{url}: no answer in {self._timeout.total} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ExchangeError(f"{url}: {words_of(error)}") from error


def _checksum(published: bytes, file: ArchiveFile) -> str:
    found = _CHECKSUM.fullmatch(published)
    if found is None or found[2] != file.name.encode():
        raise ArchiveError(f"{file.name}: its checksum file says {published[:100]!r}")
    return found[1].decode().lower()


def _verified(body: bytes, expected: str) -> bytes:
    found = hashlib.sha256(body).hexdigest()
    if found != expected:
        raise ArchiveError(f"sha256 {found}, expected {expected}")
    return unpack(body)


def unpack(body: bytes, max_bytes: int = MAX_CSV_BYTES) -> bytes:
    """Return the one file within a zip. Raises ArchiveError when it is broken, or larger than that."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as files:
            entries = files.infolist()
            if len(entries) != 1 or entries[0].compress_type not in _METHODS:
                raise ArchiveError(f"{len(entries)} files within, expected one, deflated")
            with files.open(entries[0]) as unpacked:
                # However small the size in its directory.
                text = unpacked.read(max_bytes + 1)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise ArchiveError(f"no readable zip: {error}") from error
    if len(text) > max_bytes:
        raise ArchiveError(f"unpacks to more than {max_bytes} bytes")
    return text
