"""The books: what is recorded stays, and every point of a trade has a place of its own."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.bots.books import Books
from marketfeed.bots.books_reading import read_trades
from marketfeed.bots.books_schema import FROM_BEFORE, IMPORTED
from marketfeed.bots.closed_trade import ClosedTrade, Exits, closed_trade
from marketfeed.bots.outbox import BooksOutbox, line_of
from marketfeed.storage.ranges import Acknowledged
from tests.bots.fleet import START_MS, trade

BOT = "BOT1"


def made(number: int, closed_ms: int = START_MS, **changes: object) -> ClosedTrade:
    row = trade(number, closed_ms, pair="BTC/USDT:USDT", is_short=False, close_profit_pct=None)
    row |= {"close_rate": 101.0, "open_rate": 100.0, "close_profit": 0.027} | changes
    return closed_trade(row, START_MS + 10**9)


def gone(books: Books) -> list[tuple[str, str, int]]:
    found = books.gone_points([BOT], books.next_seq, 1000)
    return [(point.pair, point.side, point.point_ms - START_MS) for point in found]


def places(books: Books) -> dict[int, int]:
    return {one.trade.trade_id: one.point_ms - START_MS for one in books.kept(BOT)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "books.db"


def test_a_trade_is_recorded_once_and_read_again(path: Path) -> None:
    with Books.open(path) as books:
        assert books.record(BOT, [made(1), made(2)]) == 2
        assert books.record(BOT, [made(1), made(2)]) == 0
        assert books.record("BOT2", [made(1)]) == 1
        kept = books.kept(BOT)
    with Books.open(path) as books:
        assert books.kept(BOT) == kept
    assert read_trades(path, BOT)[0] == kept
    everything, seq = read_trades(path)
    assert len(everything) == 3
    assert read_trades(path, after_seq=seq)[0] == []


def test_equal_closes_stand_ms_apart_by_opening_and_id(path: Path) -> None:
    with Books.open(path) as books:
        books.record(BOT, [made(3), made(1), made(2, open_timestamp=START_MS - 1)])
        assert places(books) == {1: 0, 3: 1, 2: 2}
        assert gone(books) == []
        books.strike(BOT, [made(1).key])
        # What moved leaves its place, too.
        assert places(books) == {3: 0, 2: 1}
        found = gone(books)
        assert sorted(at for *_, at in found) == [0, 1, 2]


def test_a_corrected_trade_leaves_its_place_only_if_it_moves(path: Path) -> None:
    with Books.open(path) as books:
        books.record(BOT, [made(1)])
        seq = books.next_seq
        assert books.record(BOT, [made(1, close_profit=0.028)]) == 1
        assert books.next_seq == seq + 1
        assert gone(books) == []
        books.record(BOT, [made(1, close_profit=0.028, funding_fees=None)])
        assert gone(books) == [("BTC/USDT:USDT", "long", 0)]
        later = made(1, START_MS + 5, open_timestamp=made(1).opened_ms)
        books.record(BOT, [later])
        assert [at for *_, at in gone(books)] == [0, 0]
        assert places(books) == {1: 5}


def test_exits_and_feeders_outlast_a_correction(path: Path) -> None:
    with Books.open(path) as books:
        books.record(BOT, [made(1)])
        assert books.exits_not_asked(BOT, 9) == [made(1).key]
        assert books.feeders_not_asked(BOT, 9) == [(made(1).key, made(1).enter_tag)]
        books.note_exits(BOT, [(made(1).key, Exits(-0.01, 0.02, "bin"))])
        books.note_feeders(BOT, [(made(1).key, "73,74")])
        assert books.exits_not_asked(BOT, 9) == books.feeders_not_asked(BOT, 9) == []
        books.record(BOT, [made(1, close_profit=0.028)])
        (kept,) = books.kept(BOT)
        assert (kept.trade.stop, kept.trade.source, kept.trade.feeders) == (-0.01, "bin", "73,74")
        assert books.exits_not_asked(BOT, 9) == [made(1).key]
        # It is asked again, and has none any more: the fields must not stay in its point.
        books.note_exits(BOT, [(made(1).key, Exits())])
        assert gone(books) == [("BTC/USDT:USDT", "long", 0)]


def test_a_new_database_of_a_bot_takes_nothing_away(path: Path) -> None:
    with Books.open(path) as books:
        books.record(BOT, [made(1), made(2)])
        books.begin_database(BOT, books.known(BOT))
        assert books.known(BOT) == {}
        books.record(BOT, [made(1, START_MS + 60_000)])
        assert [one.origin for one in books.kept(BOT)] == [FROM_BEFORE, FROM_BEFORE, "bot"]
        assert gone(books) == []


def test_an_imported_trade_gives_way_to_its_bots(path: Path) -> None:
    foreign = msgspec.structs.replace(made(1, START_MS + 3_000), opened_ms=START_MS, trade_id=-1)
    with Books.open(path) as books:
        assert books.record(BOT, [foreign], IMPORTED) == 1
        assert books.record(BOT, [foreign], IMPORTED) == 0
        books.record(BOT, [made(1)])
        assert [one.trade.trade_id for one in books.kept(BOT)] == [1]
        assert gone(books) == [("BTC/USDT:USDT", "long", 3_000)]


def test_a_trade_at_a_place_that_was_cleared_is_shipped_again(path: Path) -> None:
    with Books.open(path) as books:
        books.record(BOT, [made(1), made(2)])
        books.strike(BOT, [made(1).key])
        points = books.gone_points([BOT], books.next_seq, 9)
        seq = books.next_seq
        books.note_gone_points(points)
        # Trade 2 stands where trade 1 stood.
        assert books.next_seq == seq + 1
        assert gone(books) == []


def test_only_the_bots_of_a_bucket_are_shipped_there(path: Path) -> None:
    with Books.open(path) as books:
        books.record(BOT, [made(1), made(2)])
        books.record("BOT2", [made(3)])
        outbox = BooksOutbox({BOT: "closed_trades"}, path, "")
        nothing = Acknowledged.alike(books.kind.measurements)
        batch = outbox.newest(nothing, 100)
        assert outbox.count_unshipped(nothing) == len(batch.lines) == 2
        expected = [line_of("closed_trades", BOT, it.trade, it.point_ms) for it in books.kept(BOT)]
        assert sorted(batch.lines) == sorted(expected)
        assert outbox.as_they_stand(expected) == expected
        books.strike(BOT, [made(2).key])
        assert outbox.as_they_stand(expected) == [expected[0], None]
        outbox.close()


@given(
    st.lists(
        st.tuples(st.sampled_from(["record", "strike"]), st.integers(1, 6), st.integers(0, 3)),
        max_size=20,
    )
)
def test_a_bucket_that_is_brought_up_to_date_holds_what_the_books_hold(
    steps: list[tuple[str, int, int]],
) -> None:
    """Rows are shipped and points taken out as `GonePoints` does it, at any moments."""
    import tempfile  # noqa: PLC0415

    bucket: dict[tuple[str, int], str] = {}
    with (
        tempfile.TemporaryDirectory() as home,
        Books.open(Path(home) / "books.db") as books,
    ):
        outbox = BooksOutbox({BOT: "closed_trades"}, books.path, "")
        acknowledged = Acknowledged.alike(books.kind.measurements)

        def ship() -> None:
            batch = outbox.newest(acknowledged, 100)
            for line in batch.lines:
                bucket[line.split(" ")[0], int(line.rpartition(" ")[2])] = line
            for piece in batch.covers:
                acknowledged.add(piece)

        def take_out() -> None:
            below = acknowledged.first_gap(books.next_seq)
            for point in books.gone_points([BOT], below, 100):
                name = f"closed_trades,bot={BOT},pair={point.pair},side={point.side}"
                bucket.pop((name, point.point_ms), None)
                books.note_gone_points([point])

        for what, number, at in steps:
            opened_ms = START_MS - 1_000_000
            row = made(number, START_MS + at, open_timestamp=opened_ms)
            if what == "record":
                books.record(BOT, [row])
            else:
                books.strike(BOT, [row.key])
            if at % 2:
                ship()
            if number % 2:
                take_out()
        for _ in range(2):
            ship()
            take_out()
        wanted = {line_of("closed_trades", BOT, it.trade, it.point_ms) for it in books.kept(BOT)}
        assert set(bucket.values()) == wanted
        assert len({it.point_ms for it in books.kept(BOT)}) == len(wanted)
        outbox.close()
