"""`install()` where there is no Freqtrade: what it refuses, and what its coroutine does in Freqtrade's place.

The package that stands in has the seam alone, written as Freqtrade 2026.9 has it. A real one is driven by
`make test-freqtrade`.
"""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from stored import M1, OTHER, PAIR, START_MS, candle, entry, store, url

ROOT = Path(__file__).parents[2]

EXCHANGE = """
def retrier_async(f):
    async def wrapper(*args, **kwargs):
        return await f(*args, **kwargs)
    return wrapper


class Exchange:
    id = "binance"

    def __init__(self):
        self._klines = {}
        self._config = {"exchange": {"only_from_ccxt": True}}
        self.markets = {}
        self.asked = []

    def ohlcv_candle_limit(self, timeframe, candle_type, since_ms=None):
        return 20

    def _drop_incomplete_candle(self, candle_type):
        return candle_type != "funding_rate"

    @retrier_async
    async def _async_get_candle_history(self, pair, timeframe, candle_type, since_ms=None):
        self.asked.append((pair, timeframe, candle_type, since_ms))
        return pair, timeframe, candle_type, ["the exchange's"], True


class Binance(Exchange):
    pass
"""

DRIVER = """
import asyncio, os, sys, time
from freqtrade.exceptions import TemporaryError
from freqtrade.exchange import Binance, Exchange
from reader import ReaderError
from reader.freqtrade import UnsupportedFreqtradeError, install

PAIR, OTHER, ABSENT = "BTC/USDT:USDT", "ETH/USDT:USDT", "SOL/USDT:USDT"


def download(exchange, *pairs, timeframe="1m", kind="futures", since_ms=None):
    async def all_of_them():
        return await asyncio.gather(
            *(exchange._async_get_candle_history(p, timeframe, kind, since_ms=since_ms) for p in pairs),
            return_exceptions=True,
        )
    return asyncio.run(all_of_them())

"""


@pytest.fixture
def freqtrade(tmp_path: Path) -> Path:
    """A directory with a package `freqtrade` that has the seam."""
    package = tmp_path / "standin" / "freqtrade"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "2026.9"\n')
    (package / "exceptions.py").write_text("class TemporaryError(Exception):\n    pass\n")
    (package / "exchange.py").write_text(EXCHANGE)
    return package


def run(code: str, package: Path | None, **env: str) -> str:
    """Run code in a process of its own, `DRIVER` before it where there is a Freqtrade."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MARKETFEED_")}
    path = [str(ROOT)] if package is None else [str(package.parent), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-c", ("" if package is None else DRIVER) + textwrap.dedent(code)],
        env=kept | {"PYTHONPATH": os.pathsep.join(path)} | env,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def filled(path: Path) -> str:
    """A journal with the candles of PAIR and OTHER up to now, and for the minute that comes."""
    now_ms = int(time.time() * 1000)
    current_ms = now_ms - now_ms % M1
    records = [
        candle(current_ms + n * M1, pair, "1m") for pair in (PAIR, OTHER) for n in range(-40, 1)
    ]
    return url(store(path, entry(PAIR, ("1m",)), entry(OTHER, ("1m",)), records))


def test_without_freqtrade_it_says_so() -> None:
    output = run(
        """
        from reader.freqtrade import UnsupportedFreqtradeError, install
        try:
            install()
        except UnsupportedFreqtradeError as error:
            print("refused:", error)
        """,
        None,
        MARKETFEED_URL="sqlite:////nowhere/journal.db",
    )
    assert "refused: no Freqtrade can be found" in output


def test_another_version_is_refused_unless_it_is_asked_for(freqtrade: Path, path: Path) -> None:
    (freqtrade / "__init__.py").write_text('__version__ = "2027.1"\n')
    output = run(
        """
        try:
            install()
        except UnsupportedFreqtradeError as error:
            print("refused:", error)
        exchange = Binance()
        print(download(exchange, PAIR)[0][3])
        assert install(any_version=True) is not None
        print(len(download(exchange, PAIR)[0][3]))
        """,
        freqtrade,
        MARKETFEED_URL=filled(path),
    )
    assert (
        "refused: Freqtrade 2027.1 is installed; reader.freqtrade was tested with 2026.9" in output
    )
    assert '["the exchange\'s"]\n20\n' in output


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (
            "candle_type, since_ms=None",
            "candle_type, since_ms=None, until_ms=None",
            "takes (self, pair",
        ),
        ("_async_get_candle_history", "_async_get_candles", "is not where it was"),
        ("    pass", "    async def _async_get_candle_history(self): ...", "is not where it was"),
    ],
)
def test_another_seam_is_refused(freqtrade: Path, before: str, after: str, why: str) -> None:
    source = freqtrade / "exchange.py"
    source.write_text(source.read_text().replace(before, after))
    output = run(
        """
        try:
            install(any_version=True)
        except UnsupportedFreqtradeError as error:
            print("refused:", error)
        """,
        freqtrade,
        MARKETFEED_URL="sqlite:////nowhere/journal.db",
    )
    assert "refused: Freqtrade 2026.9: Exchange._async_get_candle_history" in output
    assert why in output


def test_candles_come_from_the_store_and_other_things_from_the_exchange(
    freqtrade: Path, path: Path
) -> None:
    run(
        """
        counts = install()
        assert install() is counts  # a strategy's file is imported several times
        exchange = Binance()
        first, second = download(exchange, PAIR, OTHER)
        assert first[:3] == (PAIR, "1m", "futures") and first[4] is True
        assert len(first[3]) == len(second[3]) == 20
        now_ms = time.time() * 1000
        assert now_ms - 65_000 < first[3][-1][0] <= now_ms
        assert exchange.asked == []
        assert dict(counts.answered) == {"futures": 2} and not counts.requests
        # One timeframe after the next candle is due Freqtrade acts on none any more.
        assert exchange._config["exchange"]["outdated_offset"] == 0
        download(exchange, PAIR, kind="open_interest")
        download(exchange, "BTC/USDT", kind="spot")
        assert len(exchange.asked) == 2
        other = Exchange()
        other.id = "bybit"
        assert download(other, PAIR)[0][3] == ["the exchange's"]
        """,
        freqtrade,
        MARKETFEED_URL=filled(path),
    )


def test_what_is_not_stored_goes_to_the_exchange_or_nowhere(freqtrade: Path, path: Path) -> None:
    output = run(
        """
        counts = install()
        exchange = Binance()
        first, absent = download(exchange, PAIR, ABSENT)
        assert len(first[3]) == 20
        assert absent[3] == ["the exchange's"] and dict(counts.requests) == {"futures": 1}
        download(exchange, ABSENT)
        install(missing="raise")
        exchange._klines = {(ABSENT, "1m", "futures"): "old", (PAIR, "1m", "futures"): "new"}
        first, absent = download(exchange, PAIR, ABSENT)
        assert len(first[3]) == 20
        assert isinstance(absent, TemporaryError), absent
        assert exchange._klines == {(PAIR, "1m", "futures"): "new"}
        """,
        freqtrade,
        MARKETFEED_URL=filled(path),
    )
    assert (
        output.count("not in the store: SOL/USDT:USDT 1m futures: the pair is not collected") == 1
    )


def test_a_store_that_is_stale_or_down_is_never_answered_for_by_the_exchange(
    freqtrade: Path, path: Path
) -> None:
    store(
        path, entry(PAIR, ("1m",)), [candle(START_MS + n * M1, timeframe="1m") for n in range(40)]
    )
    output = run(
        """
        path = os.environ["MARKETFEED_URL"].removeprefix("sqlite:///")
        counts = install()
        exchange = Binance()
        exchange.markets = {PAIR: {"created": 1_700_000_000_000}}
        exchange._klines = {(PAIR, "1m", "futures"): "old"}
        (stale,) = download(exchange, PAIR)
        assert isinstance(stale, TemporaryError), stale
        assert exchange._klines == {} and exchange.asked == []
        os.rename(path, path + ".away")
        for _ in range(2):
            exchange._klines = {(PAIR, "1m", "futures"): "old"}
            (down,) = download(exchange, PAIR)
            assert isinstance(down, TemporaryError) and "is not there" in str(down), down
            assert exchange._klines == {}
        os.rename(path + ".away", path)
        download(exchange, PAIR)
        assert exchange.asked == [] and dict(counts.refused) == {"futures": 4}
        """,
        freqtrade,
        MARKETFEED_URL=url(path),
    )
    assert output.count("no candles from the store") == 1


def test_a_store_in_which_nothing_is_collected_sends_nobody_to_the_exchange(
    freqtrade: Path, path: Path
) -> None:
    """As a collector's journal is until it has spoken to the exchange."""
    store(path)
    output = run(
        """
        counts = install()
        exchange = Binance()
        for answer in download(exchange, PAIR, OTHER, ABSENT):
            assert isinstance(answer, TemporaryError) and "nothing is collected yet" in str(answer)
        assert exchange.asked == [] and not counts.requests and dict(counts.refused) == {"futures": 3}
        os.rename(os.environ["LATER"], os.environ["MARKETFEED_URL"].removeprefix("sqlite:///"))
        first, second, absent = download(exchange, PAIR, OTHER, ABSENT)
        assert (len(first[3]), len(second[3])) == (20, 20)
        assert absent[3] == ["the exchange's"] and dict(counts.requests) == {"futures": 1}
        """,
        freqtrade,
        MARKETFEED_URL=url(path),
        LATER=filled(path.with_name("later.db")).removeprefix("sqlite:///"),
    )
    assert output.count("no candles from the store: nothing is collected yet") == 1


def test_a_bot_may_start_before_its_store(freqtrade: Path, path: Path) -> None:
    output = run(
        """
        counts = install()
        exchange = Binance()
        (down,) = download(exchange, PAIR)
        assert isinstance(down, TemporaryError)
        os.rename(os.environ["LATER"], os.environ["MARKETFEED_URL"].removeprefix("sqlite:///"))
        (there,) = download(exchange, PAIR)
        assert len(there[3]) == 20
        """,
        freqtrade,
        LATER=filled(path).removeprefix("sqlite:///"),
        MARKETFEED_URL=url(path.with_name("later.db")),
    )
    assert "the store is not there yet" in output


def test_settings_that_cannot_be_used_are_refused(freqtrade: Path, path: Path) -> None:
    code = """
        try:
            print("installed:", install())
        except ReaderError as error:
            print("refused:", error)
        print(download(Binance(), PAIR)[0][3])
    """
    assert "refused: no store to read from: set MARKETFEED_URL" in run(code, freqtrade)
    wrong = run(code, freqtrade, MARKETFEED_URL=filled(path), MARKETFEED_MISSING="maybe")
    assert "refused: MARKETFEED_MISSING: exchange or raise is expected, found 'maybe'" in wrong
    off = run(code, freqtrade, MARKETFEED_FREQTRADE="off")
    assert "installed: None" in off
    for output in (wrong, off):
        assert '["the exchange\'s"]' in output
