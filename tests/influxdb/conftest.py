"""A real influxd for all tests of a session, and a database of its own for each of them.

With `make test-influx` it is another server (`remote.py`).
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import remote
from front import Front
from influxd import Influxd, InfluxdError

# What a reader must answer is tested there, for a journal; the same is asked of an InfluxDB here.
READER_TESTS = Path(__file__).parents[1] / "reader"
sys.path.append(str(READER_TESTS))

from both import Both  # noqa: E402 - the directory has to be known first
from stored import START_MS  # noqa: E402

from reader import MarketReader  # noqa: E402

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Towards another server, skip what asks none."""
    if remote.is_asked_for():
        remote.skip_what_is_of_the_tests_own(items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Of another server say what ran there."""
    if remote.is_asked_for():
        remote.summary(terminalreporter)


@pytest.fixture(scope="session")
def influxd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Influxd]:
    """A running influxd. In CI there must be one; elsewhere tests are skipped without."""
    if remote.is_asked_for():
        yield remote.Another()
        return
    try:
        server = Influxd(tmp_path_factory.mktemp("influxd"))
    except InfluxdError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no influxd to test with: {error}")
    with server:
        yield server


@pytest.fixture(autouse=True)
def another(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Towards another server, give readers its token."""
    if remote.is_asked_for() and "influxd" in request.fixturenames:
        server: remote.Another = request.getfixturevalue("influxd")
        if server.token is not None:
            monkeypatch.setenv("MARKETFEED_TOKEN", server.token)


@pytest.fixture
def database(influxd: Influxd) -> Iterator[str]:
    """An empty database with a name that would break a query it became part of."""
    name = f"""{next(_numbers)} "o'clock", $p0; DROP = 币 &db=x"""
    if isinstance(influxd, remote.Another):
        name = influxd.own_name(next(_numbers))
    with influxd.database(name) as made:
        yield made


@pytest.fixture
def front(influxd: Influxd) -> Iterator[Front]:
    """A 2.x server with the bucket market_data."""
    if isinstance(influxd, remote.Another):
        with remote.AnotherFront(influxd) as other:
            yield other
        return
    with Front(influxd) as server:
        server.add_bucket("market_data")
        yield server


class Clock:
    """Exchange time that a test sets."""

    def __init__(self) -> None:
        self.ms = START_MS

    def now_ms(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connect(
    influxd: Influxd, database: str, clock: Clock, tmp_path: Path
) -> Iterator[Callable[..., MarketReader]]:
    """Write records into a journal, ship it, and return a reader of the InfluxDB."""
    readers: list[MarketReader] = []

    def made(*records: object) -> MarketReader:
        Both(influxd, database, tmp_path / "journal.db").add(*records)
        readers.append(MarketReader.connect(influxd.url, bucket=database, now_ms=clock.now_ms))
        return readers[-1]

    yield made
    for reader in readers:
        reader.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal will be."""
    return tmp_path / "journal.db"
