"""From a collector that does not know `taker_buy_quote_volume` to one that does, and to and fro.

On one journal and one bucket: nothing is missing or doubled at the end, and both readers give every
candle as the exchange has it.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pandas as pd
import pytest
from earlier import BEFORE_QUOTES, Earlier, obtain
from influxd import Influxd, InfluxdError
from proc_commands import Collecting, exchange, get, run_command, unlike, write_config

from marketfeed import schema
from reader import MarketReader
from tests.waiting import wait_until

SPEED: Final = 60.0
PAIRS: Final = 4
COLUMNS: Final = ("quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume")
OLD_READER: Final = """
import sys
from reader import MarketReader
with MarketReader.connect("sqlite:///" + sys.argv[1]) as reader:
    for info in reader.pairs():
        frame = reader.get_ohlcv(info.pair, "1m", 300, max_age_s=None)
        assert list(frame.columns) == ["date", "open", "high", "low", "close", "volume"], frame.columns
        print(info.pair, len(frame))
"""


@pytest.fixture(scope="module")
def earlier() -> Earlier:
    found = obtain(BEFORE_QUOTES)
    if found is None:
        pytest.skip(f"this repository does not have {BEFORE_QUOTES}")
    return found


@pytest.fixture(scope="module")
def influxd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Influxd]:
    try:
        server = Influxd(tmp_path_factory.mktemp("influxd"))
    except InfluxdError as error:
        pytest.skip(f"no influxd to test with: {error}")
    with server:
        yield server


def lacking(path: Path) -> tuple[int, int]:
    """How many candles of the journal lack the number, and how many there are."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        text = "SELECT count(*) FILTER (WHERE taker_buy_quote_volume IS NULL), count(*) FROM candle"
        found: tuple[int, int] = db.execute(text).fetchone()
        return found


@pytest.mark.long(50)
def test_an_older_collector_and_this_one_take_turns(
    tmp_path: Path, earlier: Earlier, influxd: Influxd
) -> None:
    path = tmp_path / "journal.db"
    with exchange(tmp_path, PAIRS, SPEED) as sim, influxd.database("market_data") as bucket:
        config = write_config(
            tmp_path,
            sim.ws_url,
            sim.rest_url,
            history={"days": 2, "weight_per_minute": 2_400},
            influxdb={"url": influxd.url, "api": "v1", "bucket": bucket},
        )
        runs = 0

        @contextlib.contextmanager
        def collecting(*, old: bool = False, killed: bool = False) -> Iterator[Collecting]:
            nonlocal runs
            runs += 1
            command = earlier.command("run", "--config", config) if old else run_command(config)
            env = earlier.environment if old else None
            with Collecting(command, tmp_path / f"{runs}.log", env) as collector:
                yield collector
                if killed:
                    collector.process.kill()
                    collector.wait()
                else:
                    assert collector.stop() == 0, collector.log
            assert "Traceback" not in collector.log

        def history(collector: Collecting) -> str:
            state = collector.status()["history"]
            return str(state and state["history"]["state"])

        def quotes(collector: Collecting) -> dict[str, object]:
            state = collector.status()["history"]
            found: dict[str, object] = {} if state is None else state["quote_volumes"]
            return found

        with collecting(old=True) as collector:
            begun = sim.published_number()
            wait_until(lambda: history(collector) == "complete" and collector.is_delivering())
            sim.wait_for_candles(2 * PAIRS)
        # Killed while it fills.
        with collecting(killed=True) as collector:
            wait_until(lambda: quotes(collector).get("filled", 0) != 0)
        left, every = lacking(path)
        assert 0 < every
        answered = earlier.python(OLD_READER, path).split()
        assert len(answered) == 2 * PAIRS
        # The older one goes on with the file, and stores rows without it.
        with collecting(old=True, killed=True) as collector:
            wait_until(collector.is_delivering)
            sim.wait_for_candles(4 * PAIRS)
        assert lacking(path)[0] > max(0, left - every)
        with collecting() as collector:
            wait_until(lambda: quotes(collector).get("state") == "complete")
            assert quotes(collector)["candles_left"] == 0
            sim.wait_for_candles(2 * PAIRS)
            wait_until(collector.is_delivering)
            ended = sim.published_number()
            sim.wait_for_candles(2 * PAIRS)
            wait_until(lambda: not collector.status()["missing_candles"])
        assert lacking(path)[0] == 0
        published = sim.published()[begun:ended]
        assert unlike(path, published) == []
        # As the exchange has them, from either store.
        ours = MarketReader.connect(f"sqlite:///{path}")
        theirs = MarketReader.connect(influxd.url, bucket=bucket)
        with ours, theirs:
            pairs = [info.pair for info in ours.pairs()]
            assert len(pairs) == PAIRS
            for pair in pairs:
                for timeframe in ("1m", "3m", "15m"):
                    frames = [
                        reader.get_ohlcv(pair, timeframe, since=0, columns=COLUMNS, max_age_s=None)
                        for reader in (ours, theirs)
                    ]
                    pd.testing.assert_frame_equal(*frames, check_exact=True)
                    assert len(frames[0]) > 2 * schema.DAY_MS // schema.TIMEFRAMES_MS["15m"] - 2
                    assert not frames[0].isna().any().any()
                symbol = pair.split(":")[0].replace("/", "")
                answer = get(
                    f"{sim.rest_url}/fapi/v1/klines?symbol={symbol}&interval=1m&limit=200"
                ).json
                rows = {row[0]: row for row in answer}
                frame = ours.get_ohlcv(pair, "1m", 50, columns=COLUMNS, max_age_s=None)
                opens = frame["date"].astype("int64") // (
                    10**6 if frame["date"].dt.unit == "ns" else 10**3
                )
                compared = 0
                for open_ms, *numbers in zip(
                    opens, *(frame[name] for name in COLUMNS), strict=True
                ):
                    row = rows.get(open_ms)
                    if row is not None:
                        wanted = [float(row[7]), float(row[8]), float(row[9]), float(row[10])]
                        assert numbers == wanted
                        compared += 1
                assert compared > 20
