"""The package's front: names, environment, addresses, errors, and the functions over a default reader."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from stored import M3, OTHER, PAIR, START_MS, candle, entry, store, url, write

import reader
from marketfeed.journal.journal import Journal
from marketfeed.records import FundingRate as FundingRecord
from marketfeed.records import MarkPrice as MarkRecord
from reader import MarketReader, ReaderError, StoreUnavailableError
from reader.errors import (
    ArgumentError,
    GapError,
    StaleDataError,
    StoreAuthError,
    UnknownPairError,
    UnknownTimeframeError,
)

NAMES = {
    "FundingRate",
    "GapError",
    "Life",
    "MarkPrice",
    "MarketReader",
    "ReaderError",
    "StaleDataError",
    "StoreAuthError",
    "StoreUnavailableError",
    "UnknownPairError",
    "UnknownTimeframeError",
    "get_all_pairs_funding_rates",
    "get_funding_rate",
    "get_mark_price",
    "get_ohlcv",
    "lives",
    "sum_settlements",
    "ready",
}


def test_the_public_names() -> None:
    assert set(reader.__all__) == NAMES
    assert sorted(reader.__all__) == reader.__all__
    assert all(getattr(reader, name).__doc__ for name in NAMES)


def test_the_error_tree() -> None:
    errors = [getattr(reader, name) for name in NAMES if name.endswith("Error")]
    assert all(issubclass(error, ReaderError) for error in errors)
    assert ReaderError.__bases__ == (Exception,)


@pytest.mark.parametrize(
    "error",
    [
        ReaderError("text"),
        ArgumentError("text"),
        UnknownPairError("text", PAIR, [OTHER]),
        UnknownTimeframeError("text", "7m", ["3m"]),
        StaleDataError("text", {PAIR: 1.0}),
        GapError("text", "3m", {PAIR: [pd.Timestamp(START_MS, unit="ms", tz="UTC")]}),
        StoreUnavailableError("text"),
        StoreAuthError("text"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_pass_between_processes(error: ReaderError) -> None:
    other = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(other) is type(error)
    assert str(other) == "text"
    assert vars(other) == vars(error)


def test_import_loads_no_store() -> None:
    code = (
        "import sys, reader\n"
        "print([m for m in ('reader.stores.sqlite', 'urllib3', 'msgspec', 'marketfeed.journal')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["journal.db", "a b.db", "100%.db", "what?.db", "no#1.db", "币安.db", "a:b&c=d;e.db", "'.db"],
)
def test_any_path_can_be_written(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "dir % ? #"
    store(folder / name, entry(), candle(START_MS))
    with MarketReader.connect(url(folder / name), now_ms=lambda: START_MS + M3) as opened:
        frame = opened.get_ohlcv(PAIR, "3m")
    assert len(frame) == 1
    with MarketReader.connect(frame.attrs["source"]) as again:
        assert [info.pair for info in again.pairs()] == [PAIR]


def test_a_path_that_is_no_text(tmp_path: Path) -> None:
    path = Path(str(tmp_path) + "/j\udcff.db")
    store(path, entry())
    with MarketReader.connect(f"sqlite:///{tmp_path}/j%FF.db") as opened:
        assert len(opened.pairs()) == 1


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path / "here.db", entry())
    monkeypatch.chdir(tmp_path)
    with MarketReader.connect("sqlite:///here.db") as opened:
        monkeypatch.chdir("/")
        assert len(opened.pairs()) == 1
        assert repr(opened) == f"<MarketReader sqlite:///{tmp_path}/here.db>"


def test_a_link_leads_to_the_journal_and_its_wal(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "journal.db")
    with Journal.open(tmp_path / "journal.db") as journal:
        write(journal, entry())
        with MarketReader.connect(url(tmp_path / "link.db")) as opened:
            assert len(opened.pairs()) == 1
            write(journal, entry(OTHER))
            assert len(opened.pairs()) == 2


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("http://:8086", "is expected, not"),
        ("http://[::1", "is expected: Invalid IPv6 URL"),
        ("https://user:hunter2@influxdb.example", "without a user or password in it"),
        ("journal.db", "another address was found"),
        ("/var/lib/journal.db", "another address was found"),
        ("postgresql://user:hunter2@host/db", "another address was found"),
        ("sqlite://journal.db", "three slashes"),
        ("sqlite:///", "three slashes"),
        ("sqlite:", "three slashes"),
        ("sqlite:////a.db?mode=rw", "%3F"),
        ("sqlite:////a.db#x", "%23"),
        ("sqlite:////a%00.db", "zero byte"),
    ],
)
def test_addresses_that_cannot_be_used(address: str, text: str) -> None:
    with pytest.raises(ReaderError, match=text) as caught:
        MarketReader.connect(address)
    assert "sqlite:////absolute/path/journal.db" in str(caught.value) or "zero byte" in text
    assert "hunter2" not in str(caught.value)
    assert "MARKETFEED_URL" in str(caught.value)


def test_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, ""):
        if value is None:
            monkeypatch.delenv("MARKETFEED_URL", raising=False)
        else:
            monkeypatch.setenv("MARKETFEED_URL", value)
        with pytest.raises(ReaderError, match=r"set MARKETFEED_URL.*sqlite:////absolute"):
            MarketReader.connect()


def test_a_closed_reader_says_so(connect) -> None:
    opened = connect(entry(), candle(START_MS))
    opened.close()
    opened.close()
    for call in (opened.pairs, lambda: opened.get_ohlcv(PAIR, "3m"), lambda: opened.newest("3m")):
        with pytest.raises(ReaderError, match="is closed"):
            call()


# --- the module's own functions ---------------------------------------------------------------------


@pytest.fixture
def environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MARKETFEED_URL", url(path))
    yield path
    for opened in reader.default._readers.values():
        opened.close()
    reader.default._readers.clear()


def test_functions_over_a_default_reader(environment: Path) -> None:
    with pytest.raises(StoreUnavailableError):
        reader.get_ohlcv(PAIR, "3m")
    store(
        environment,
        entry(),
        [candle(START_MS + n * M3) for n in range(4)],
        MarkRecord(PAIR, START_MS, 100.0, 99.0),
        FundingRecord(PAIR, START_MS, 0.25, START_MS),
    )
    frame = reader.get_ohlcv(PAIR, "3m", 2, max_age_s=None)
    assert len(frame) == 2
    assert len(reader.get_ohlcv(PAIR, "3m", since=START_MS, until=START_MS + M3)) == 1
    assert reader.get_mark_price(PAIR, max_age_s=None) == 100.0
    assert reader.get_funding_rate(PAIR, max_age_s=None) == 0.25
    assert reader.get_all_pairs_funding_rates(max_age_s=None) == {PAIR: 0.25}
    # By the host's clock this is long ago.
    for call in (
        lambda: reader.get_ohlcv(PAIR, "3m"),
        lambda: reader.get_mark_price(PAIR),
        lambda: reader.get_funding_rate(PAIR),
        reader.get_all_pairs_funding_rates,
    ):
        with pytest.raises(StaleDataError):
            call()
    assert len(reader.default._readers) == 1
