"""The day that the simulator makes: always the same, and as the public archive would serve it."""

import hashlib
import subprocess
import sys
from pathlib import Path

from marketfeed.binance.archive import unpack
from marketfeed.binance.archive_rows import parse_rows
from marketfeed.grid import TimeRange
from marketfeed.schema import DAY_MS, MINUTE_MS
from marketfeed.simulator import dataset


def test_the_day_is_the_same_on_every_machine() -> None:
    text = dataset.made_csv().encode()
    assert (
        hashlib.sha256(text).hexdigest()
        == "80a6de2b630e1bf337c21eead36803cd521e574338c4a59be60643b8fb625f67"
    )


def test_the_script_writes_a_file_of_the_archive_and_its_checksum(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "marketfeed.simulator.dataset", str(tmp_path)]
    subprocess.run(command, check=True)
    name = dataset.FILE_NAME
    body = (tmp_path / name).read_bytes()
    checksum = (tmp_path / f"{name}.CHECKSUM").read_text()
    assert checksum == f"{hashlib.sha256(body).hexdigest()}  {name}\n"
    day = TimeRange(dataset.DAY_MS, dataset.DAY_MS + DAY_MS)
    candles = parse_rows(unpack(body), "BTC/USDT:USDT", "1m", day)
    assert [candle.open_time_ms for candle in candles] == list(range(*day, MINUTE_MS))
    for candle in candles:
        # What a candle is worth lies between its prices; takers bought some of it.
        assert candle.low <= candle.quote_volume / candle.volume <= candle.high
        assert 0 < candle.taker_buy_volume < candle.volume
        assert candle.trades >= 200
