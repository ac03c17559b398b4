"""Up to when a bucket is said to have settlements: what is stored and acknowledged, and not refused."""

import socket
from pathlib import Path

import msgspec
import pytest
from endpoint import Server, run, stored
from filled import MINUTE, PAIRS
from test_coverage_points import NOW_MS, OFTEN, candles, kept

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.influxdb.bucket_coverage import Refused, settled_parts
from marketfeed.influxdb.journal_outbox import KIND, JournalOutbox
from marketfeed.influxdb.line_protocol import coverage_text, escape_tag
from marketfeed.influxdb.shipper import Shipper
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.refused_candles import RefusedCandles, candle_of
from marketfeed.journal.refused_lines import RefusedLines
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import FundingSettled
from marketfeed.storage.ranges import Acknowledged, Piece
from tests.waiting import until

PAIR, OTHER, *_ = PAIRS
HOUR = schema.HOUR_MS
T0 = schema.floor_to(NOW_MS, HOUR)
SERIES = f"{schema.FUNDING_SETTLED},pair={escape_tag(PAIR)}"


def settle(*hours: int, pair: str = PAIR, kind: str = schema.REGULAR) -> Batch:
    batch = Batch()
    batch.extend(FundingSettled(pair, T0 + hour * HOUR, 0.1, 1.0, kind) for hour in hours)
    return batch


def answered(journal: Journal, **hours: int) -> None:
    """REST has answered until an hour, and the settlement of that hour."""
    ranges = {
        {"pair": PAIR, "other": OTHER}[name]: [TimeRange(T0 - 99 * HOUR, T0 + hour * HOUR + MINUTE)]
        for name, hour in hours.items()
    }
    journal.save_document(schema.SETTLED_DOCUMENT, msgspec.json.encode(ranges), NOW_MS)


def told(server: Server, pair: str = PAIR) -> float | None:
    """The hour of the last settlement that is said to be there."""
    series = f"feed_coverage,collector={socket.gethostname()},pair={escape_tag(pair)}"
    fields = server.points.get((series, str(T0)), "")
    found = [text for text in fields.split(",") if text.startswith("settled_to=")]
    if not found:
        return None
    to_ms = int(found[0].removeprefix("settled_to=").removesuffix("i"))
    return (to_ms - T0 - MINUTE) / HOUR if to_ms else -1e9


def test_it_follows_what_the_bucket_has(tmp_path: Path) -> None:
    """The settlement that a server does not take ends it, until it is taken."""
    bad = T0 - 4 * HOUR

    def answer(lines: list[str]) -> tuple[int, bytes, dict[str, str]]:
        if any(line.startswith(SERIES) and line.endswith(f" {bad}") for line in lines):
            return 422, b"partial write: field type conflict", {}
        return stored(lines)

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        await kept(writer, PAIR, OTHER)
        for pair in (PAIR, OTHER):
            await writer.call(lambda journal, pair=pair: journal.write(candles(-9, 0, pair)))
        await until(lambda: shipper.shipped_below() == writer.next_seq)
        assert told(server) is None
        await writer.call(lambda journal: journal.write(settle(-16, -8)))
        await writer.call(lambda journal: answered(journal, pair=-8))
        await until(lambda: told(server) == -8)
        assert told(server, OTHER) is None
        server.answer = answer
        await writer.call(lambda journal: journal.write(settle(-4, -2)))
        await writer.call(lambda journal: answered(journal, pair=-2, other=-8))
        await until(lambda: told(server) == (bad - MINUTE - T0) / HOUR)
        await until(lambda: told(server, OTHER) == -8)
        server.answer = stored
        with RefusedLines(writer.path, dropping=True) as table:
            table.drop(line.number for line in table.read())
        await until(lambda: told(server) == -2)
        # What cannot be read, the collector asks for anew.
        await writer.call(lambda j: j.save_document(schema.SETTLED_DOCUMENT, b"spoilt", NOW_MS))
        await until(lambda: told(server) == -1e9)

    run(tmp_path / "journal.db", scenario, OFTEN, now_ms=lambda: NOW_MS)


def test_what_is_not_acknowledged_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Journal.open(path) as journal:
        journal.write(settle(-16, -8))
        first = journal.next_seq - 1
        journal.write(settle(-16, -8, 0, pair=OTHER))
        second = journal.next_seq - 1
        journal.write(settle(0))
        answered(journal, pair=0, other=0)
        # A special one, of what was shipped.
        journal.write(settle(-8, kind=schema.SPECIAL))
        end = journal.next_seq
    outbox = JournalOutbox(path, "host")

    def found(*ranges: tuple[int, int]) -> dict[str, float]:
        acknowledged = Acknowledged.alike(KIND.measurements)
        for first, last in ranges:
            acknowledged.add(Piece(first, last, tuple(KIND.measurements)))
        told_ms = outbox.settled_to(acknowledged)
        return {pair: (to_ms - T0) / HOUR for pair, to_ms in told_ms.items()}

    try:
        later = MINUTE / HOUR
        assert found((1, end - 1)) == {PAIR: later, OTHER: later}
        assert found((1, first)) == {PAIR: -8, OTHER: -16}
        assert found((1, second), (end - 1, end - 1)) == {PAIR: 0, OTHER: later}
        assert found((1, second + 1)) == {PAIR: -8, OTHER: later}
        assert found() == {PAIR: -16, OTHER: -16}
    finally:
        outbox.close()


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        (Refused(), 900),
        (Refused({SERIES: [800, 700, 1_000]}), 700),
        (Refused({SERIES: [1_000]}), 900),
        (Refused({"ohlcv_1m,pair=x": [5]}), 900),
        # Pushed out by newer ones: which was the first is not known.
        (Refused({}, {SERIES: 100}), 0),
        (Refused(is_unknown=True), 0),
    ],
)
def test_what_was_refused_ends_it(refused: Refused, expected: int) -> None:
    names = {PAIR: SERIES, OTHER: f"{schema.FUNDING_SETTLED},pair={escape_tag(OTHER)}"}
    part = settled_parts({PAIR: 900}, refused, names, {PAIR})
    assert part == {(PAIR, schema.SETTLED_TO): TimeRange(expected, expected)}
    # Nothing is said where nothing was, and nothing is known.
    fresh = settled_parts({PAIR: 900}, refused, names, ())
    assert fresh == (part if expected else {})


def test_what_was_refused_long_ago_is_no_end() -> None:
    """A bucket with an expiry refuses all that is older, and readers do not look there."""
    names = {PAIR: SERIES}
    for refused in (Refused({SERIES: [100, 300]}), Refused({}, {SERIES: 300})):
        part = settled_parts({PAIR: 900}, refused, names, {PAIR}, since_ms=301)
        assert part == {(PAIR, schema.SETTLED_TO): TimeRange(900, 900)}


def test_refused_settlements_are_told_of_as_candles_are() -> None:
    line = f"{SERIES} rate=0.1 1700"
    assert candle_of(line) == (SERIES, 1_700)
    assert candle_of("funding_settled_more,pair=X rate=0.1 1700") is None
    document = RefusedCandles(counted=True, lines=0)
    document.push_out([(1, "t", line)])
    assert document.of["t"].gone == {SERIES: 1_700}


def test_its_field_is_a_whole_number() -> None:
    parts = {"3m": (1, 2), schema.SETTLED_TO: (7, 7)}
    text = coverage_text("P", "c", parts, 9)
    assert text == "feed_coverage,collector=c,pair=P from_3m=1i,until_3m=2i,settled_to=7i 9"
