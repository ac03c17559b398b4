"""A reader of a journal that the test fills, on a clock that the test sets."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stored import START_MS, store, url

from reader import MarketReader


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
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def connect(path: Path, clock: Clock) -> Iterator[Callable[..., MarketReader]]:
    """Write records into the journal and return a reader of it."""
    readers: list[MarketReader] = []

    def made(*records: object) -> MarketReader:
        store(path, *records)
        readers.append(MarketReader.connect(url(path), now_ms=clock.now_ms))
        return readers[-1]

    yield made
    for reader in readers:
        reader.close()
