"""Settlements in a bucket that others write, too: what this reader makes of them, and an older one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from both import COLLECTOR, Both
from influxd import Influxd
from stored import D1, H1, M1, OTHER, PAIR, START_MS, entry
from test_reader_settlements import hour, running, settled

from marketfeed import schema
from marketfeed.influxdb import line_protocol as lines
from marketfeed.influxdb.bucket_rows import line_of, writer_of
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.journal.journal import KIND
from marketfeed.storage.ranges import Acknowledged
from reader import MarketReader

REGULAR, SPECIAL = schema.REGULAR, schema.SPECIAL


@pytest.fixture
def both(influxd: Influxd, database: str, tmp_path: Path) -> Both:
    return Both(influxd, database, tmp_path / "journal.db")


@pytest.fixture
def reader(both: Both, clock) -> Iterator[MarketReader]:
    with MarketReader.connect(both.influxd.url, bucket=both.database, now_ms=clock.now_ms) as made:
        yield made


def older(number: float, rate: float, pair: str = PAIR) -> str:
    """What an older collector writes."""
    return f"{schema.FUNDING_SETTLED},pair={pair} rate={rate},mark_price=1.0 {hour(number)}"


def found(reader: MarketReader, pair: str = PAIR) -> list[tuple[int, float, str]]:
    frame = reader.get_funding_history(pair)
    times_ms = [at.value // 1_000_000 for at in frame["date"]]
    return list(zip(times_ms, frame["rate"].tolist(), frame["kind"].tolist(), strict=True))


def as_older_readers_ask(both: Both) -> list[list[object]]:
    """`SELECT rate`, without a kind."""
    text = "SELECT rate FROM funding_settled WHERE pair = $pair"
    (series,) = both.influxd.query(text, both.database, pair=PAIR)
    return [list(row) for row in series["values"]]


def test_older_readers_see_the_rate_they_saw(both: Both, reader, clock) -> None:
    both.add(entry(), settled(-8, 0), settled(0, 2, kind=SPECIAL), settled(8))
    clock.ms = hour(9)
    rates = [0.0001 * (h + 50) for h in (-8, 0, 2, 8)]
    assert [rate for _, rate in as_older_readers_ask(both)] == rates
    assert [kind for *_, kind in found(reader)] == [REGULAR, REGULAR, SPECIAL, SPECIAL, REGULAR]


def test_what_older_collectors_wrote_is_taken_for_regular(both: Both, reader, clock) -> None:
    both.add(entry(), entry(OTHER), running((0, 1, 8)), running((0, 1, 4), pair=OTHER))
    both.influxd.write(
        both.database, [older(-8, 0.1), older(0, 0.2), older(-4, 0.3, OTHER), older(0, 0.4, OTHER)]
    )
    clock.ms = hour(1)
    assert found(reader) == [(hour(-8), 0.1, REGULAR), (hour(0), 0.2, REGULAR)]
    assert reader.get_funding_rate(PAIR, max_age_s=None).interval_h == 8.0
    rates = reader.get_all_pairs_funding_rates(max_age_s=None)
    assert [rate.interval_h for rate in rates.values()] == [8.0, 4.0]
    assert [rate.settled_rate for rate in rates.values()] == [0.2, 0.4]


@pytest.mark.parametrize("new_first", [True, False])
def test_an_older_collector_beside_a_new_one(both: Both, reader, clock, new_first: bool) -> None:
    """A lone special and a regular settlement are right in either order; so are two of one minute."""
    clock.ms = hour(9)
    new = (entry(), settled(-8, 0, 8), settled(0, 2, kind=SPECIAL))
    regular, special = 0.0001 * 50, 0.0001 * 52
    old = [older(-8, 0.0001 * 42), older(0, regular), older(2, special), older(8, 0.0001 * 58)]
    if new_first:
        both.add(*new)
        both.influxd.write(both.database, old)
    else:
        both.influxd.write(both.database, old)
        both.add(*new)
    assert found(reader) == [
        (hour(-8), 0.0001 * 42, REGULAR),
        (hour(0), regular, REGULAR),
        (hour(0), regular, SPECIAL),
        (hour(2), special, SPECIAL),
        (hour(8), 0.0001 * 58, REGULAR),
    ]


def test_what_is_told_to_be_answered_is_not_due(both: Both, reader, clock) -> None:
    """By the collector that reaches furthest; 0 is none."""
    both.add(entry(), settled(-8, 0), running((-8, 0, 0), (0, 1, 1), (1, 6, 6), (6, 7, 8)))
    clock.ms = hour(2)
    assert missing(both, clock) == [hour(1)]
    for to_ms, expected in ((0, [hour(1)]), (hour(1), [hour(1)]), (hour(1) + M1, [])):
        for collector in ("a", "b"):
            parts = {schema.SETTLED_TO: (to_ms, to_ms)} if collector == "a" else {"3m": (1, 2)}
            tag = lines.escape_tag(PAIR)
            both.influxd.write(
                both.database, [lines.coverage_text(tag, collector, parts, START_MS)]
            )
        assert missing(both, clock) == expected
    tag = lines.escape_tag(PAIR)
    parts = {schema.SETTLED_TO: (hour(-1), hour(-1))}
    both.influxd.write(both.database, [lines.coverage_text(tag, "c", parts, START_MS + H1)])
    assert missing(both, clock) == []
    clock.ms = hour(6.5)
    assert missing(both, clock) == [hour(6)]


def missing(both: Both, clock) -> list[int]:
    with MarketReader.connect(both.influxd.url, bucket=both.database, now_ms=clock.now_ms) as made:
        found: list[int] = made.get_funding_history(PAIR).attrs["missing"]
    return found


def test_the_comparison_of_both_stores_reads_a_point_as_it_was_written(both: Both) -> None:
    both.add(entry(), settled(-8, 0), settled(0, 2, kind=SPECIAL))
    outbox = JournalOutbox(both.path, COLLECTOR)
    written = outbox.newest(Acknowledged.alike(KIND.measurements), 2**40).lines
    outbox.close()
    (series,) = both.influxd.query(f"SELECT * FROM {schema.FUNDING_SETTLED}", both.database)  # noqa: S608
    write = writer_of(schema.FUNDING_SETTLED)
    assert write is not None
    found = {
        line_of("", write, dict(zip(series["columns"], values, strict=True)))
        for values in series["values"]
    }
    assert found == {line for line in written if line.startswith(schema.FUNDING_SETTLED)}


def test_kinds_decide_though_a_field_stays(both: Both, reader, clock) -> None:
    """No point is deleted, and no field of one."""
    both.add(entry(), settled(0), settled(0, kind=SPECIAL))
    both.influxd.write(
        both.database, [lines.funding_settled_text(lines.escape_tag(PAIR), hour(0), 0.5, None)]
    )
    clock.ms = hour(1)
    assert found(reader) == [(hour(0), 0.5, REGULAR)]


@pytest.mark.parametrize(("specials", "expected"), [(1, 8.0), (15, 8.0), (40, None)])
def test_the_regular_one_is_looked_for_behind_special_ones(
    both: Both, reader, clock, specials: int, expected: float | None
) -> None:
    both.add(
        [entry(pair) for pair in (PAIR, OTHER)],
        running((0, 4, 8)) + running((0, 4, 8), pair=OTHER),
        settled(-8, 0),
        settled(*(0.05 * (n + 1) for n in range(specials)), kind=SPECIAL),
        settled(0, 1, pair=OTHER, kind=SPECIAL),
    )
    clock.ms = hour(4)
    for _ in range(2):
        rates = reader.get_all_pairs_funding_rates(max_age_s=None)
        assert [rate.interval_h for rate in rates.values()] == [expected, None]


def test_many_pairs_are_asked_about_together(both: Both, reader, clock) -> None:
    """More than are named in a question, of several rhythms; what was found once is not asked again."""
    rhythms = {f"P{n:02d}/USDT:USDT": (1, 4, 8)[n % 3] for n in range(40)}
    both.add(
        [entry(pair) for pair in rhythms],
        *(running((8 - h, 8, 8), (8, 8.5, 8 + h), pair=pair) for pair, h in rhythms.items()),
        *(settled(8 - h, 8, pair=pair) for pair, h in rhythms.items()),
    )
    clock.ms = hour(8.5)
    for _ in range(2):
        rates = reader.get_all_pairs_funding_rates(max_age_s=None)
        assert {pair: rate.interval_h for pair, rate in rates.items()} == rhythms
    hourly = [pair for pair, h in rhythms.items() if h == 1]
    both.add(
        *(running((8.5, 9, 9), (9, 9.5, 10), pair=pair) for pair in hourly),
        *(settled(9, pair=pair) for pair in hourly),
    )
    clock.ms = hour(9.5)
    rates = reader.get_all_pairs_funding_rates(max_age_s=None)
    assert {pair: rate.interval_h for pair, rate in rates.items()} == rhythms


@pytest.mark.parametrize("count", [6, 40])
def test_soon_after_a_settlement_one_question_asks_what_was_announced_of_all(
    both: Both, reader, clock, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """One that has passed and is not stored, one that was put off, one that stands; by name or not."""
    rhythms = {f"P{n:02d}/USDT:USDT": (1, 4, 8)[n % 3] for n in range(count)}
    then = {1: (9, 10), 4: (8.75, 16), 8: (9, 16)}
    both.add(
        [entry(pair) for pair in rhythms],
        *(running((8 - h, 8, 8), (8, then[h][0], 8 + h), pair=p) for p, h in rhythms.items()),
        *(running((then[h][0], 9.5, then[h][1]), pair=p) for p, h in rhythms.items()),
        *(settled(8 - h, 8, pair=pair) for pair, h in rhythms.items()),
    )
    clock.ms = hour(9.5)
    asked: list[int] = []
    http = reader._store._http
    monkeypatch.setattr(
        http, "ask", lambda texts, *more, ask=http.ask: asked.append(1) or ask(texts, *more)
    )
    for _ in range(2):
        asked.clear()
        rates = reader.get_all_pairs_funding_rates(max_age_s=None)
        of_rhythm = {rhythms[pair]: rate.interval_h for pair, rate in rates.items()}
        assert of_rhythm == {1: None, 4: 8.0, 8: 8.0}
    assert len(rates) == count
    assert len(asked) <= 5
    # One pair alone is asked about in the same way.
    assert reader.get_funding_rate("P01/USDT:USDT", max_age_s=None).interval_h == 8.0


def test_two_weeks_of_announcements_are_enough(both: Both, reader, clock) -> None:
    """What was announced before is not read: settlements of then are held against 8 h alone."""
    start, end = -20 * 24, 0
    both.add(
        entry(),
        running(*((h, h + 8, h + 8) for h in range(start, end, 8)), every_ms=H1),
        settled(*(h for h in range(start, end + 1, 8) if h not in (-19 * 24, -24))),
    )
    clock.ms = START_MS + 11 * M1
    frame = reader.get_funding_history(PAIR)
    assert frame.attrs["missing"] == [START_MS - D1]
    assert frame.attrs["settled_to"] is None
