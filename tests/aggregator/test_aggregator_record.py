"""How a turn's decisions are stored: what replaces what, and what was sent while it was decided."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from voting import LONG, PAIR, RULES, T0, forward_of

from marketfeed.aggregator.ballots import Decision, Vote
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_tables import Forward, Recorded, State, found_words, opened_ms_of
from marketfeed.aggregator.signals import Side, Signal
from marketfeed.aggregator.standing import Standing
from marketfeed.aggregator.votes import Votes

COOLDOWN_MS = 300_000


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.db") as opened:
        yield opened


def decision(window: int, side: Side = "long", pair: str = PAIR, **changes: Any) -> Decision:
    """A decision that is to be forwarded, made `window` seconds after T0."""
    votes = Votes(msgspec.structs.replace(RULES, min_agreements=1))
    feeder = LONG[0] if side == "long" else "120"
    signal = Signal(pair, side, feeder, feeder, 0.9)
    votes.add(Vote(window, T0 + 1_000 * window - 60_000, signal, signal.digest()))
    (made,) = votes.due(T0 + 1_000 * window)
    return msgspec.structs.replace(made, **changes)


def record(ledger: Ledger, *decisions: Decision, queued: tuple[int, ...] = ()) -> Recorded:
    now_ms = max(made.decided_ms for made in decisions)
    return ledger.record([], decisions, now_ms, COOLDOWN_MS, queued)


def states(ledger: Ledger) -> dict[int, str]:
    return dict(ledger.db.execute("SELECT window, state FROM forward"))


def take(ledger: Ledger, window: int, *way: State, bot: Side = "long") -> Forward:
    """Take a forward there, each step a second after its decision."""
    for state in way:
        forward = ledger.step(window, bot, state, T0 + 1_000 * window + 1_000)
    return forward


def test_a_newer_decision_replaces_what_has_not_been_sent(ledger: Ledger) -> None:
    recorded = record(ledger, decision(1))
    assert [(f.window, f.state) for f in recorded.forwards] == [(1, "queued")]
    record(ledger, decision(2, "short"), decision(3, pair="ETH/USDT:USDT"))
    recorded = record(ledger, decision(4), queued=(1,))
    assert [(f.window, f.state, f.answer) for f in recorded.forwards] == [
        (1, "expired", "replaced by window 4"),
        (4, "queued", ""),
    ]
    assert recorded.decisions == [decision(4)]
    # Of the other side and of another pair nothing is replaced.
    assert states(ledger) == {1: "expired", 2: "queued", 3: "queued", 4: "queued"}
    # Every row has a number of its own.
    numbers = [row[0] for row in ledger.db.execute("SELECT seq FROM forward")]
    numbers += [row[0] for row in ledger.db.execute("SELECT seq FROM decision")]
    assert len(set(numbers)) == len(numbers)
    assert max(numbers) + 1 == ledger.next_seq


def test_what_went_back_to_the_queue_is_replaced_too(ledger: Ledger) -> None:
    record(ledger, decision(1))
    take(ledger, 1, "sending", "queued")
    record(ledger, decision(2), queued=(1,))
    assert states(ledger) == {1: "expired", 2: "queued"}


def test_two_of_a_pair_and_side_in_one_turn(ledger: Ledger) -> None:
    recorded = record(ledger, decision(1), decision(2))
    assert states(ledger) == {1: "expired", 2: "queued"}
    assert [(f.window, f.state) for f in recorded.forwards] == [
        (1, "queued"),
        (1, "expired"),
        (2, "queued"),
    ]


@pytest.mark.parametrize("side", ["long", "short"])
@pytest.mark.parametrize(
    ("way", "words"),
    [
        (("sending",), "the order of window 1 (long) is being sent"),
        (("sending", "unknown"), "what became of the order of window 1 (long) is not known"),
    ],
)
def test_a_decision_that_comes_while_an_order_is_at_work_is_skipped(
    ledger: Ledger, side: Side, way: tuple[State, ...], words: str
) -> None:
    """Whoever decided believed that it had not been sent yet, or knew nothing of it."""
    record(ledger, decision(1))
    take(ledger, 1, *way)
    recorded = record(ledger, decision(2, side), queued=(1,) if side == "long" else ())
    (skipped,) = recorded.decisions
    assert (skipped.outcome, skipped.passed, skipped.reasons) == ("skip", True, (words,))
    assert recorded.forwards == []
    assert states(ledger) == {1: way[-1]}
    assert ledger.passed_since(T0 - 60_000)[-1] == skipped


@pytest.mark.parametrize(
    ("way", "goes"),
    [
        (("sending", "accepted"), False),
        (("sending", "unknown", "found"), False),
        (("sending", "unknown", "lost"), False),
        (("sending", "refused"), True),
        (("expired",), True),
    ],
)
def test_what_was_sent_and_answered_while_it_was_decided_cools_down(
    ledger: Ledger, way: tuple[State, ...], goes: bool
) -> None:
    record(ledger, decision(1))
    take(ledger, 1, *way)
    (stored,) = record(ledger, decision(10), queued=(1,)).decisions
    assert stored.outcome == ("forward" if goes else "skip")
    if not goes:
        # Sent 8 s before.
        assert stored.reasons == ("cool-down for another 292.0 s",)


def test_after_a_failed_commit_nothing_is_replaced(ledger: Ledger) -> None:
    record(ledger, decision(1))
    before = ledger.next_seq
    ledger.db.execute(
        "CREATE TEMP TRIGGER full BEFORE INSERT ON forward BEGIN SELECT RAISE(ABORT, 'full'); END"
    )
    with pytest.raises(Exception, match="full"):
        record(ledger, decision(2), queued=(1,))
    ledger.db.execute("DROP TRIGGER full")
    assert (states(ledger), ledger.next_seq) == ({1: "queued"}, before)
    record(ledger, decision(2), queued=(1,))
    assert states(ledger) == {1: "expired", 2: "queued"}


def test_a_start_makes_the_same_standing_of_the_ledger(ledger: Ledger) -> None:
    """As what was heard step by step."""
    heard = Standing(COOLDOWN_MS)
    now_ms = T0 + 100_000
    ways: list[tuple[State, ...]] = [
        (),
        ("sending",),
        ("sending", "queued"),
        ("sending", "accepted"),
        ("sending", "refused"),
        ("expired",),
        ("sending", "unknown"),
        ("sending", "unknown", "found"),
        ("sending", "unknown", "lost"),
        ("sending", "unknown", "lost", "found"),
    ]
    pairs = [f"P{number}/USDT:USDT" for number in range(1, len(ways) + 1)]
    for window, (pair, way) in enumerate(zip(pairs, ways, strict=True), start=1):
        for forward in record(ledger, decision(window, pair=pair)).forwards:
            heard.heard(forward, now_ms)
        for state in way:
            heard.heard(take(ledger, window, state), now_ms)
    stored = ledger.at_start(T0 - 60_000, T0, now_ms - COOLDOWN_MS)
    assert stored.next_number == 1
    built = Standing.of(stored.forwards, COOLDOWN_MS, now_ms)
    for at_ms in (now_ms, T0 + COOLDOWN_MS, T0 + COOLDOWN_MS + 9_000, T0 + COOLDOWN_MS + 60_000):
        for pair in pairs:
            for side in ("long", "short"):
                assert built.against(pair, side, at_ms) == heard.against(pair, side, at_ms)
                assert built.queued(pair, side) == heard.queued(pair, side)
            assert built.held(pair) == heard.held(pair)
        built.forget(at_ms)
        heard.forget(at_ms)


def test_when_the_trade_of_a_found_order_opened() -> None:
    for added in (False, True):
        words = found_words(7, T0 + 5, added=added)
        assert opened_ms_of(forward_of(decision(1), "found", answer=words)) == T0 + 5
    assert opened_ms_of(forward_of(decision(1), "found", answer="by hand")) is None
    assert opened_ms_of(forward_of(decision(1), "accepted", answer=words)) is None


def test_a_ledger_from_before_gets_the_index_and_goes_without_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"

    def indexes() -> list[str]:
        with contextlib.closing(sqlite3.connect(path)) as db:
            rows = db.execute("SELECT name FROM pragma_index_list('decision')")
            return [row[0] for row in rows]

    Ledger.open(path).close()
    assert "decision_opened" in indexes()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DROP INDEX decision_opened")
    with Ledger.open(path) as ledger:
        record(ledger, decision(1))
        plan = ledger.db.execute(
            "EXPLAIN QUERY PLAN SELECT window FROM decision WHERE opened >= 0 AND passed"
        ).fetchall()
    assert "decision_opened" in indexes()
    assert "decision_opened" in plan[0][3]


def test_the_leverage_of_a_decision_may_be_left_out(ledger: Ledger) -> None:
    (forward,) = record(ledger, decision(1, leverage=None)).forwards
    assert forward.leverage is None
    assert ledger.passed_since(0)[0].leverage is None


def test_what_is_heard_late_does_not_hold_a_pair_again(ledger: Ledger) -> None:
    standing = Standing(COOLDOWN_MS)
    (queued,) = record(ledger, decision(1)).forwards
    sending, refused = take(ledger, 1, "sending"), take(ledger, 1, "refused")
    for forward in (queued, sending, refused, sending, queued):
        standing.heard(forward, T0)
        standing.forget(T0)
    assert not standing.held(PAIR)
    assert standing.queued(PAIR, "long") == []
    assert standing.against(PAIR, "long", T0) is None
