"""The ledger: what is stored, in which state a forward may be, what a restart finds, what is deleted."""

import contextlib
import itertools
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketfeed.aggregator.ballots import Decision, Rules, Vote
from marketfeed.aggregator.events import Flow
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_forwards import PairAtWorkError
from marketfeed.aggregator.ledger_schema import KIND
from marketfeed.aggregator.ledger_tables import STEPS, Receipt, State
from marketfeed.aggregator.signals import Electorate, Signal
from marketfeed.aggregator.votes import Votes
from marketfeed.clock import ClockBase
from marketfeed.commands.check import check_file
from marketfeed.errors import (
    JournalError,
    JournalForeignError,
    JournalLockedError,
    JournalNewerError,
    JournalWriteError,
    LedgerError,
)
from marketfeed.journal.journal import Journal
from marketfeed.storage.backup import back_up
from marketfeed.storage.reading import inspect
from tests.newer_version import VERSION, added, grow, upgrade
from tests.shipped_ranges import of_all

PAIR = "BTC/USDT:USDT"
T0 = 1_795_000_000_000
DAY = 86_400_000
RULES = Rules(
    60_000, 1, 0.7, "both", 0, 30_000, 1.0, 5.0, ("market",), Electorate.of(("73", "74"), ("120",))
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.db") as opened:
        yield opened


def receive(
    ledger: Ledger,
    votes: Votes,
    feeder: str = "73",
    at_ms: int = T0,
    key: str | None = None,
    pair: str = PAIR,
    confidence: float = 0.9,
) -> Receipt:
    side = RULES.electorate.side_of[feeder]
    signal = Signal(pair, side, feeder, feeder, confidence, 3.0, "market", None, 1.5, "tag")
    vote = Vote(ledger.next_number(), at_ms, signal, signal.digest(), "fleet")
    counted = votes.add(vote)
    receipt = Receipt(
        vote, "fleet", "127.0.0.1", key, b"body", counted.outcome, counted.window, "counted"
    )
    ledger.record([receipt], [], at_ms)
    return receipt


def decide(ledger: Ledger, votes: Votes, at_ms: int) -> list[Decision]:
    decisions = votes.due(at_ms)
    ledger.record([], decisions, at_ms)
    return decisions


def test_votes_and_decisions_come_back_as_they_were(tmp_path: Path) -> None:
    votes = Votes(RULES)
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        first = receive(ledger, votes, "73")
        (decision,) = decide(ledger, votes, T0 + 60_000)
        second = receive(ledger, votes, "120", T0 + 70_000)
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        assert ledger.undecided() == [second.vote]
        assert ledger.passed_since(T0) == [decision]
        assert ledger.passed_since(T0 + 1) == []
        vote, account = first.vote, first.account
        assert ledger.counted_since(T0) == [
            (account, vote.digest, T0, 1, T0),
            (account, second.vote.digest, T0 + 70_000, 2, T0 + 70_000),
        ]
        assert [earlier.window for earlier in ledger.counted_since(T0 + 1)] == [2]
        assert ledger.next_number() == 3
        (forward,) = ledger.forwards()
        assert (forward.window, forward.tag, forward.state) == (1, decision.tag, "queued")


def test_a_window_is_decided_once_and_forwarded_once(ledger: Ledger) -> None:
    votes = Votes(RULES)
    receive(ledger, votes)
    (decision,) = decide(ledger, votes, T0 + 60_000)
    with pytest.raises(JournalWriteError, match="UNIQUE"):
        ledger.record([], [decision], T0)
    assert len(ledger.forwards()) == 1


def test_a_turn_is_stored_whole_or_not_at_all(ledger: Ledger) -> None:
    votes = Votes(RULES)
    receipt = receive(ledger, votes)
    before = ledger.next_seq
    other = Receipt(
        Vote(2, T0, receipt.vote.signal, b"x"), "fleet", "::1", None, b"", "voted", 1, "counted"
    )
    with pytest.raises(JournalWriteError):
        ledger.record([other, receipt], [], T0)
    assert ledger.undecided() == [receipt.vote]
    assert ledger.next_seq == before


def test_an_idempotency_key_is_one_account_s(ledger: Ledger) -> None:
    votes = Votes(RULES)
    receive(ledger, votes, key="k1")
    found = ledger.answered([("fleet", "k1"), ("fleet", "k2"), ("other", "k1")])
    assert list(found) == [("fleet", "k1")]
    assert (found["fleet", "k1"].kept_body, found["fleet", "k1"].answer) == (b"body", "counted")
    with pytest.raises(JournalWriteError, match="UNIQUE"):
        receive(ledger, votes, key="k1")


# --- states -------------------------------------------------------------------------------------------

WAYS: dict[State, tuple[State, ...]] = {
    "queued": (),
    "sending": ("sending",),
    "unknown": ("sending", "unknown"),
    "accepted": ("sending", "accepted"),
    "refused": ("sending", "refused"),
    "expired": ("expired",),
    "found": ("sending", "unknown", "found"),
    "lost": ("sending", "unknown", "lost"),
}


@pytest.mark.parametrize(("start", "step"), [*itertools.product(WAYS, get_args(State))])
def test_only_the_steps_that_are_drawn_are_taken(tmp_path: Path, start: State, step: State) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        votes = Votes(RULES)
        receive(ledger, votes)
        decide(ledger, votes, T0 + 60_000)
        for state in WAYS[start]:
            ledger.step(1, "long", state, T0 + 60_001)
        if start in STEPS[step]:
            assert ledger.step(1, "long", step, T0 + 60_002, "words").state == step
        else:
            with pytest.raises(LedgerError):
                ledger.step(1, "long", step, T0 + 60_002)
            (forward,) = ledger.forwards(tuple(WAYS))
            assert forward.state == start


def test_nothing_leads_from_an_answer_or_an_unknown_back_to_sending() -> None:
    def reachable(state: State) -> set[State]:
        found: set[State] = set()
        todo = [state]
        while todo:
            at = todo.pop()
            for step, origins in STEPS.items():
                if at in origins and step not in found:
                    found.add(step)
                    todo.append(step)
        return found

    for state in ("accepted", "refused", "unknown", "found", "lost", "expired"):
        assert "sending" not in reachable(state)  # type: ignore[arg-type]


@pytest.mark.parametrize("at_work", ["sending", "unknown"])
def test_of_a_pair_one_order_is_at_work(ledger: Ledger, at_work: State) -> None:
    """Whatever the two workers believe: the other one stays queued, on either side."""
    votes = Votes(RULES)
    receive(ledger, votes, "73")
    receive(ledger, votes, "120")
    receive(ledger, votes, "73", pair="ETH/USDT:USDT")
    decide(ledger, votes, T0 + 60_000)
    for state in dict.fromkeys(("sending", at_work)):
        ledger.step(1, "long", state, T0 + 60_001)
    with pytest.raises(PairAtWorkError, match=f"order of window 1 .long. is {at_work}") as raised:
        ledger.step(2, "short", "sending", T0 + 60_002)
    assert (raised.value.forward.window, raised.value.forward.state) == (1, at_work)
    assert [it.state for it in ledger.forwards()] == [at_work, "queued", "queued"]
    assert ledger.step(3, "long", "sending", T0 + 60_003).state == "sending"
    ledger.step(1, "long", "accepted" if at_work == "sending" else "lost", T0 + 60_004)
    assert ledger.step(2, "short", "sending", T0 + 60_005).attempts == 1


def test_a_forward_knows_when_it_was_sent_and_answered(ledger: Ledger) -> None:
    votes = Votes(RULES)
    receive(ledger, votes)
    decide(ledger, votes, T0 + 60_000)
    ledger.step(1, "long", "sending", T0 + 1)
    back = ledger.step(1, "long", "queued", T0 + 2, "refused")
    assert (back.sent_ms, back.attempts, back.answer) == (None, 1, "refused")
    assert ledger.step(1, "long", "sending", T0 + 3).sent_ms == T0 + 3
    done = ledger.step(1, "long", "refused", T0 + 4, "already open", 502)
    assert (done.sent_ms, done.answered_ms, done.attempts) == (T0 + 3, T0 + 4, 2)
    assert (done.status, done.answer) == (502, "already open")


def test_what_expired_was_not_sent(ledger: Ledger) -> None:
    votes = Votes(RULES)
    receive(ledger, votes)
    decide(ledger, votes, T0 + 60_000)
    ledger.step(1, "long", "sending", T0 + 1)
    expired = ledger.step(1, "long", "expired", T0 + 2, "too late")
    assert (expired.sent_ms, expired.answered_ms, expired.attempts) == (None, None, 1)


def test_whose_trade_it_is(ledger: Ledger) -> None:
    """Forwards of one tag: accepted days ago; lost; accepted; refused; lost; lost, of another pair."""
    sent_ms = {}
    for number, (days, pair, answer) in enumerate(
        [(-3, PAIR, "trade 7"), (0, PAIR, ""), (0, PAIR, "trade 8"), (0, PAIR, "-"), (0, PAIR, ""),
         (0, "A/USDT:USDT", "")], start=1,
    ):  # fmt: skip
        at_ms = T0 + days * DAY + number * 10_000
        votes = Votes(RULES)
        window = receive(ledger, votes, at_ms=at_ms, pair=pair).window
        decide(ledger, votes, at_ms + 60_000)
        sent_ms[number] = ledger.step(window, "long", "sending", at_ms).sent_ms or 0
        if answer:
            done: State = "refused" if answer == "-" else "accepted"
            trade_id = None if answer == "-" else int(answer.removeprefix("trade "))
            ledger.step(window, "long", done, at_ms + 1, answer, trade_id=trade_id)
        else:
            ledger.step(window, "long", "unknown", at_ms + 1)
            ledger.step(window, "long", "lost", at_ms + 2)
    forwards = {forward.window: forward for forward in ledger.forwards(get_args(State))}

    def owners(trade_id: int, opened_by_ms: int, *, added: bool = False) -> list[int]:
        return [
            window
            for window, forward in forwards.items()
            if forward.state == "lost"
            and forward.pair == PAIR
            and not ledger.is_another_s(
                forward, trade_id, opened_by_ms, forward.sent_ms or 0, added=added
            )
        ]

    # Its number was another trade's, days ago; the one that was sent next has 8 as its own.
    assert owners(7, sent_ms[2] + 1) == [2, 5]
    assert owners(7, sent_ms[3] + 1) == [2, 5]
    assert owners(8, sent_ms[3] + 1) == []
    assert owners(9, sent_ms[4] + 1) == [2, 5]
    # The newest one that had been sent; what was refused has none.
    assert owners(9, sent_ms[5]) == [5]
    # An order that enlarged a trade has no number.
    assert owners(8, sent_ms[3] - 1, added=True) == [2, 5]
    assert owners(8, sent_ms[3], added=True) == [5]


@pytest.mark.parametrize("before_s", [590, 610])
def test_whose_trade_it_is_of_a_bot_that_counts_anew(ledger: Ledger, before_s: int) -> None:
    """What had its answer long before another order was sent has no trade that opened after that."""
    for at_ms in (T0 - before_s * 1_000, T0):
        votes = Votes(RULES)
        window = receive(ledger, votes, at_ms=at_ms).window
        decide(ledger, votes, at_ms + 60_000)
        ledger.step(window, "long", "sending", at_ms)
        if window == 1:
            # No two orders of a pair are under way.
            ledger.step(1, "long", "accepted", at_ms, trade_id=1)
    lost = ledger.step(2, "long", "unknown", T0 + 5_000)
    assert ledger.is_another_s(lost, 1, T0 + 100, T0, added=False) == (before_s < 600)


# --- the file ---------------------------------------------------------------------------------------


def test_a_journal_is_no_ledger_and_a_ledger_no_journal(tmp_path: Path) -> None:
    Journal.open(tmp_path / "journal.db").close()
    Ledger.open(tmp_path / "ledger.db").close()
    with pytest.raises(JournalForeignError):
        Ledger.open(tmp_path / "journal.db")
    with pytest.raises(JournalForeignError):
        Journal.open(tmp_path / "ledger.db")
    found = inspect(KIND, tmp_path / "ledger.db")
    assert found is not None
    assert found.version == KIND.version


def test_a_second_aggregator_refuses(ledger: Ledger) -> None:
    with pytest.raises(JournalLockedError, match="give this one a ledger of its own"):
        Ledger.open(ledger.path)


def test_a_damaged_ledger_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not an SQLite file at all" * 100)
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        assert "damaged and set aside as " in ledger.loss
        assert ledger.undecided() == []


def test_the_disk_has_it_before_record_returns(tmp_path: Path) -> None:
    """What another connection sees, and what is left when the process is gone without closing."""
    votes = Votes(RULES)
    ledger = Ledger.open(tmp_path / "ledger.db")
    (mode,) = ledger.db.execute("PRAGMA synchronous").fetchone()
    assert mode == 2
    receive(ledger, votes)
    copy = sqlite3.connect(tmp_path / "ledger.db")
    assert copy.execute("SELECT count(*) FROM signal").fetchone() == (1,)
    copy.close()
    ledger.close()


# --- retention ---------------------------------------------------------------------------------------


def test_what_is_old_goes_what_is_open_or_unshipped_stays(ledger: Ledger) -> None:
    votes = Votes(RULES)
    receive(ledger, votes, at_ms=T0, key="old", pair="A/USDT:USDT")
    receive(ledger, votes, at_ms=T0, pair="B/USDT:USDT")
    decide(ledger, votes, T0 + 60_000)
    ledger.step(1, "long", "sending", T0 + 60_001)
    ledger.step(1, "long", "accepted", T0 + 60_002)
    ledger.step(2, "long", "sending", T0 + 60_003)
    for day in (10, 20, 31):
        receive(ledger, votes, at_ms=T0 + day * DAY, pair=f"C{day}/USDT:USDT")
    assert ledger.delete_old(40 * DAY) == 0
    # The days that count are those on which something came.
    assert ledger.delete_old(3 * DAY) == 0
    assert ledger.delete_old(2 * DAY, below_seq=1) == 0
    while ledger.delete_old(2 * DAY):
        pass
    left = [row[0] for row in ledger.db.execute("SELECT pair FROM decision")]
    assert left == ["B/USDT:USDT"]
    assert [forward.state for forward in ledger.forwards()] == ["sending"]
    assert ledger.answered([("fleet", "old")]) == {}
    waiting = ["C10/USDT:USDT", "C20/USDT:USDT", "C31/USDT:USDT"]
    assert [vote.signal.pair for vote in ledger.undecided()] == waiting
    assert ledger.next_number() == 6


@given(
    days=st.lists(st.integers(0, 12), min_size=1, max_size=30).map(sorted),
    keep_days=st.integers(1, 10),
)
@settings(max_examples=30)
def test_nothing_younger_than_it_is_kept_for_goes(days: list[int], keep_days: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        left = kept(Path(directory), [T0 + day * DAY for day in days], keep_days)
    young = {day for day in days if day >= days[-1] - keep_days}
    assert young <= {(received - T0) // DAY for received in left}


@pytest.mark.parametrize("ahead_days", [1, 31, 365])
def test_a_clock_that_was_ahead_deletes_no_history(tmp_path: Path, ahead_days: int) -> None:
    past = [T0 + day * DAY for day in range(40)]
    newest = past[-1]
    ahead = [newest + ahead_days * DAY + hour * 3_600_000 for hour in range(3)]
    # While it is ahead, and when it has been set right.
    left = kept(tmp_path, [*past, *ahead], 30)
    assert set(past[-28:]) | set(ahead) <= set(left)
    assert past[0] not in left
    later = [newest + 3_600_000, newest + 7_200_000]
    assert set(later) | set(past[-28:]) <= set(kept(tmp_path, later, 30))


def kept(path: Path, received_ms: list[int], keep_days: int) -> list[int]:
    """Receive, decide and send a vote at each of these times, in this order; what retention leaves."""
    with Ledger.open(path / "ledger.db") as ledger:
        for at_ms in received_ms:
            votes = Votes(RULES)
            window = receive(ledger, votes, at_ms=at_ms).window
            decide(ledger, votes, at_ms + 60_000)
            ledger.step(window, "long", "sending", at_ms + 60_001)
            ledger.step(window, "long", "accepted", at_ms + 60_002)
        while ledger.delete_old(keep_days * DAY):
            pass
        found = ledger.db.execute("SELECT received FROM signal ORDER BY number").fetchall()
        counts = ledger.db.execute(
            "SELECT (SELECT count(*) FROM decision), (SELECT count(*) FROM forward)"
        ).fetchone()
        assert counts == (len(found), len(found))
    return [received for (received,) in found]


# --- what people see --------------------------------------------------------------------------------


def test_room_for_a_vote_is_more_than_room_for_a_heartbeat(ledger: Ledger) -> None:
    (pages,) = ledger.db.execute("PRAGMA page_count").fetchone()
    ledger.db.execute(f"PRAGMA max_page_count = {pages}")
    ledger.beat()
    with pytest.raises(JournalWriteError, match="full"):
        ledger.prove_room()
    ledger.db.execute("PRAGMA max_page_count = 1000000")
    # A crash between its two commits leaves the table.
    ledger.db.execute("CREATE TABLE room(filler)")
    ledger.prove_room()
    assert not ledger.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'room'").fetchall()


def test_the_flow_shows_what_happened_and_goes_on_from_there(ledger: Ledger) -> None:
    votes, flow = Votes(RULES), Flow(ledger.path)
    receive(ledger, votes, "73", T0)
    assert [(e.what, e.who) for e in flow.read()] == [("voted", "73")]
    receive(ledger, votes, "73", T0 + 5)
    receive(ledger, votes, "74", T0 + 10)
    decide(ledger, votes, T0 + 60_000)
    assert [(e.what, e.who) for e in flow.read()] == [
        ("received", "73"),
        ("voted", "74"),
        ("decided", "73"),
    ]
    ledger.step(1, "long", "sending", T0 + 60_010)
    assert [(e.what, e.who, e.time_ms) for e in flow.read()] == [("sent", "long", T0 + 60_010)]
    ledger.step(1, "long", "refused", T0 + 60_200, "Maximum number of trades is reached.", 502)
    (event,) = flow.read()
    assert (event.what, event.time_ms) == ("answered", T0 + 60_200)
    assert event.text == "refused 502: Maximum number of trades is reached."
    assert flow.read() == []
    again = [event.what for event in Flow(ledger.path).read()]
    assert again == ["voted", "received", "voted", "decided", "sent", "answered"]
    assert [event.what for event in Flow(ledger.path).read(newest=1)] == [
        "voted",
        "decided",
        "sent",
        "answered",
    ]


def test_no_ledger_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is none"):
        Flow(tmp_path / "none.db").read()


def test_a_thousand_signals_are_one_commit(ledger: Ledger) -> None:
    votes = Votes(RULES)
    receipts = []
    for number in range(1, 1_001):
        signal = Signal(f"P{number}/USDT:USDT", "long", "73", "73", 0.9)
        vote = Vote(number, T0, signal, signal.digest())
        counted = votes.add(vote)
        receipts.append(
            Receipt(vote, "fleet", "::1", None, b"", counted.outcome, counted.window, "counted")
        )
    ledger.record(receipts, [], T0)
    ledger.record([], votes.due(T0 + 60_000), T0 + 60_000)
    assert len(ledger.forwards()) == 1_000


# --- a ledger of a newer version ------------------------------------------------------------------


def test_a_newer_ledger_is_written_on_and_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    votes = Votes(RULES)
    with Ledger.open(path, ClockBase("a boot", T0)) as ledger:
        receive(ledger, votes, key="k1")
        (decision,) = decide(ledger, votes, T0 + 60_000)
        ledger.note_shipped("bucket", of_all([(1, 2)], KIND))
        ledger.put_aside("bucket", [("line", "odd")], T0)
    flow = Flow(path)
    assert [event.what for event in flow.read()] == ["voted", "decided"]
    upgrade(path, (VERSION, 2, 2))
    assert flow.read() == []
    with Ledger.open(path, ClockBase("a boot", T0 + 1_000)) as ledger:
        assert ledger.loss == ""
        assert ledger.passed_since(T0) == [decision]
        ledger.beat()
        ledger.prove_room()
        ledger.step(1, "long", "sending", T0 + 60_001)
        ledger.step(1, "long", "accepted", T0 + 60_002, "trade 1", 200)
        second = receive(ledger, votes, "120", T0 + 70_000, pair="ETH/USDT:USDT")
        decide(ledger, votes, T0 + 130_000)
        ledger.note_shipped("bucket", of_all([(1, 5)], KIND))
        assert list(ledger.answered([("fleet", "k1")])) == [("fleet", "k1")]
        assert [forward.state for forward in ledger.forwards(("accepted", "queued"))] == [
            "accepted",
            "queued",
        ]
    assert second.vote.number == 2
    # In signal, decision and forward a row of each version; all that stood there is as it was left.
    rows = dict.fromkeys(("signal", "decision", "forward"), (1, 1))
    alone = dict.fromkeys(("sequence", "heartbeat", "refused_line", "beginning"), (1, 0))
    alone |= {"shipped": (len(KIND.measurements), 0), "shipping": (0, 0), "clock": (1, 0)}
    alone |= {"meta_forward": (0, 0), "meta_start": (1, 0)}
    alone |= {"refused_post": (0, 0)}
    assert added(path) == rows | alone
    events = ["sent", "answered", "voted", "decided"]
    assert [event.what for event in flow.read()] == events
    assert check_file(KIND, path)[0].verdict == "good"
    assert back_up(KIND, path, tmp_path / "copy.db", lambda *_: None).schema_version == VERSION
    assert added(tmp_path / "copy.db") == rows | alone


def test_a_flow_that_is_read_while_the_ledger_is_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    votes = Votes(RULES)
    with Ledger.open(path) as ledger:
        receive(ledger, votes)
    flow = Flow(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        grow(db, (VERSION, 2, 2))
        assert [event.what for event in flow.read()] == ["voted"]
        db.execute("COMMIT")
        assert flow.read() == []
    with Ledger.open(path) as ledger:
        receive(ledger, votes, "74", T0 + 1)
        assert [event.what for event in flow.read()] == ["voted"]


def test_a_newer_ledger_that_asks_for_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    votes = Votes(RULES)
    with Ledger.open(path) as ledger:
        receive(ledger, votes)
    upgrade(path, (VERSION, 2, 3))
    with pytest.raises(
        JournalNewerError, match=r"version 4: writing it takes version 3, this one is version 2"
    ):
        Ledger.open(path)
    assert "writing it takes version 3" in check_file(KIND, path)[0].text
    assert len(Flow(path).read()) == 1
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE meta SET readers_from = 3")
    for use in (
        Ledger.open,
        lambda path: Flow(path).read(),
        lambda path: back_up(KIND, path, tmp_path / "copy.db", lambda *_: None),
    ):
        with pytest.raises(JournalNewerError, match="takes version 3, this one is version 2"):
            use(path)
    assert list(tmp_path.glob("*.corrupt-*")) == []
