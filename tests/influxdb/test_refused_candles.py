"""Which candles a bucket has refused is known for good: from the lines put aside, and of those pushed out."""

from pathlib import Path

import pytest
from filled import T0

from marketfeed.influxdb.bucket_coverage import Refused, Unacknowledged
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.journal import refused_candles
from marketfeed.journal.journal import KIND, Journal
from marketfeed.storage import acknowledged
from marketfeed.storage.acknowledged import demand_again
from marketfeed.storage.ranges import Acknowledged

A, B = "ohlcv_1m,pair=BTC/USDT:USDT", "ohlcv_3m,pair=ETH/USDT:USDT"


def line(series: str, number: int) -> tuple[str, str]:
    return f"{series} open=1.0,trades=5i {T0 + number}", "status 422"


def refused(path: Path, target: str = "x") -> Refused:
    outbox = JournalOutbox(path, "here")
    try:
        nothing = Acknowledged.alike(KIND.measurements)
        found = outbox.look_at_candles(Unacknowledged(), nothing, target)
        assert outbox.look_at_candles(Unacknowledged(), nothing, target) == found
        return found
    finally:
        outbox.close()


@pytest.fixture(autouse=True)
def few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acknowledged, "REFUSED_LINES_KEPT", 4)


def test_of_lines_that_are_too_many_the_newest_of_each_series_is_known(path: Path) -> None:
    with Journal.open(path) as journal:
        assert refused(path) == Refused()
        journal.put_aside(
            "x", [line(A, 7), line(A, 3), line(B, 5), ("mark_price,pair=A a=1 9", "")], 1
        )
        assert refused(path) == Refused({A: [T0 + 7, T0 + 3], B: [T0 + 5]})
        assert journal.load_document(refused_candles.DOCUMENT) is None
        assert refused(path, "y") == Refused()
        assert journal.put_aside("y", [line(B, 1), line(B, 2)], 1) == 2
        assert refused(path) == Refused({B: [T0 + 5]}, {A: T0 + 7})
        assert refused(path, "y") == Refused({B: [T0 + 1, T0 + 2]})
        journal.put_aside("x", [line(A, 4), line(A, 5), line(A, 6)], 1)
        assert refused(path) == Refused({A: [T0 + 4, T0 + 5, T0 + 6]}, {A: T0 + 7, B: T0 + 5})
        assert refused(path, "y") == Refused({B: [T0 + 2]}, {B: T0 + 1})
    with Journal.open(path):
        assert refused(path).gone_ms == {A: T0 + 7, B: T0 + 5}, "after a start, too"


def test_what_is_shipped_again_is_refused_again_or_not(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.put_aside("x", [line(A, number) for number in range(6)], 1)
        journal.put_aside("y", [line(B, 1)], 1)
        demand_again(KIND, path, "x")
        assert refused(path).gone_ms == {A: T0 + 2}, "until it is taken up"
        journal.forget_if_demanded("x")
        assert refused(path) == Refused()
        assert refused(path, "y") == Refused({B: [T0 + 1]})
        journal.put_aside("x", [line(A, 9)], 1)
        assert refused(path) == Refused({A: [T0 + 9]})


def test_lines_that_an_older_version_has_lost_are_unknown_until_all_is_shipped_again(
    path: Path,
) -> None:
    with Journal.open(path) as journal:
        journal.put_aside("x", [line(A, number) for number in range(6)], 1)
        with journal._transaction():
            journal.db.execute("DELETE FROM document")
        assert refused(path).is_unknown
        journal.put_aside("x", [line(A, 7)], 1)
        assert refused(path).is_unknown, "one that is known makes the others no better known"
        assert refused(path, "y").is_unknown
        demand_again(KIND, path, "x")
        journal.forget_if_demanded("x")
        assert refused(path) == Refused()
        assert refused(path, "y").is_unknown


@pytest.mark.parametrize(
    "body", [b"", b"null", b'{"counted": 7}', b"\xff", b'{"counted":true,"lines":0,"of":[]}']
)
def test_a_document_that_cannot_be_read_tells_nothing(path: Path, body: bytes) -> None:
    with Journal.open(path) as journal:
        journal.save_document(refused_candles.DOCUMENT, body, 1)
        assert refused(path).is_unknown
        demand_again(KIND, path, "x")
        journal.forget_if_demanded("x")
        assert refused(path) == Refused()
