"""Copies for the meta bot in the ledger: apart from what the two others, and older marketfeeds, look at."""

import contextlib
import sqlite3
import tempfile
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voting import T0

from marketfeed.aggregator.ballots import Decision
from marketfeed.aggregator.events import Flow, recent
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_forwards import PairAtWorkError
from marketfeed.aggregator.ledger_schema import COPIED, KIND
from marketfeed.aggregator.ledger_tables import META, STEPS, State
from marketfeed.aggregator.outbox import LedgerOutbox
from marketfeed.errors import LedgerError
from marketfeed.storage.ranges import Acknowledged
from marketfeed.storage.versions import change_version

DAY = 86_400_000
STATES: tuple[State, ...] = get_args(State)
PAIRS = ("BTC/USDT:USDT", "ETH/USDT:USDT")


def decision(window: int, pair: str = PAIRS[0], side: Any = "long", at_ms: int = T0) -> Decision:
    return Decision(
        window=window,
        pair=pair,
        side=side,
        opened_ms=at_ms,
        decided_ms=at_ms,
        expires_ms=at_ms + 30_000,
        outcome="forward",
        passed=True,
        reasons=("3 of 5 votes",),
        votes=3,
        electorate_size=5,
        confidence=0.9,
        primary="73",
        feeders=("73",),
        tag=f"{side} ensemble 3/5 conf=0.90 from=73",
        leverage=3.0,
        ordertype="market",
        price=None,
    )


def copied(path: Path, *decisions: Decision) -> None:
    with Ledger.open(path) as ledger:
        for one in decisions:
            ledger.record([], [one], one.decided_ms, copies=True)


def tables(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All that a marketfeed without a meta bot looks at, but the numbers of rows, which copies take, too."""
    columns = "window, bot, state, changed, attempts, sent, answered, status, answer, trade_id"
    with contextlib.closing(sqlite3.connect(path)) as db:
        return {
            **{
                name: db.execute(f"SELECT {columns} FROM {name} ORDER BY window").fetchall()  # noqa: S608
                for name in ("forward", "forwarded")
            },
            "decision": db.execute(
                "SELECT window, outcome, reasons FROM decision ORDER BY window"
            ).fetchall(),
        }


def test_a_copy_is_stored_with_its_decision_and_steps_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    copied(path, decision(1))
    with Ledger.open(path) as ledger:
        (copy,) = ledger.forwards(bot=META)
        (own,) = ledger.forwards()
        assert (copy.bot, own.bot) == ("meta", "long")
        assert msgspec.structs.replace(copy, bot="long") == own
        # Both at once: they are of different bots.
        ledger.step(1, "long", "sending", T0 + 1)
        ledger.step(1, META, "sending", T0 + 2)
        ledger.step(1, META, "refused", T0 + 3, "no", 502)
        with pytest.raises(LedgerError, match="not queued, so it cannot be sending"):
            ledger.step(1, META, "sending", T0 + 4)
        assert [one.state for one in ledger.forwards(("sending", "refused"))] == ["sending"]
        assert ledger.sent_since(META, T0)[0].status == 502
        assert [one.bot for one in ledger.standing_since(T0)] == ["long"]
        assert ledger.standing_since(T0, META) == []


def test_of_a_pair_one_copy_is_under_way_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    copied(path, decision(1), decision(2, side="short"))
    with Ledger.open(path) as ledger:
        ledger.step(1, META, "sending", T0)
        with pytest.raises(PairAtWorkError, match="order of window 1"):
            ledger.step(2, META, "sending", T0)
        # That is nothing to the two others, as their orders are nothing to it.
        ledger.step(2, "short", "sending", T0)
        with pytest.raises(PairAtWorkError, match="order of window 2"):
            ledger.step(1, "long", "sending", T0)
        ledger.step(1, META, "accepted", T0, "trade 1", 200, 1)
        ledger.step(2, META, "sending", T0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("decide"), st.sampled_from(PAIRS), st.sampled_from(["long", "short"])
            ),
            st.tuples(st.just("own"), st.integers(1, 8), st.sampled_from(STATES)),
            st.tuples(st.just("copy"), st.integers(1, 8), st.sampled_from(STATES)),
            st.tuples(st.just("end"), st.integers(1, 8), st.just("")),
        ),
        max_size=40,
    ),
    st.sampled_from([0, 5_000]),
)
def test_whatever_becomes_of_copies_the_two_others_are_as_without_them(
    history: list[tuple[Any, ...]], cooldown_ms: int
) -> None:
    """The same history with copies and without: decisions, forwards and refusals are the same."""
    with tempfile.TemporaryDirectory() as home:
        paths = Path(home) / "with.db", Path(home) / "without.db"
        with Ledger.open(paths[0]) as first, Ledger.open(paths[1]) as second:
            window, now_ms = 0, T0
            for what, which, how in history:
                now_ms += 1_000
                if what == "decide":
                    window += 1
                    one = decision(window, which, how, now_ms)
                    queued = [it.window for it in second.forwards(("queued",))]
                    both = [
                        ledger.record([], [one], now_ms, cooldown_ms, queued, copies=copies)
                        for ledger, copies in ((first, True), (second, False))
                    ]
                    assert both[0] == both[1]
                elif what == "own":
                    ends = []
                    for ledger in (first, second):
                        known = {it.window: it.bot for it in ledger.forwards(STATES)}
                        side = known.get(which, "long")
                        try:
                            ends.append(str(ledger.step(which, side, how, now_ms)))
                        except LedgerError as error:
                            ends.append(str(error))
                    assert ends[0] == ends[1]
                elif what == "copy":
                    before = [it for it in first.forwards(STATES, META) if it.window == which]
                    try:
                        after = first.step(which, META, how, now_ms)
                    except LedgerError:
                        assert before == [
                            it for it in first.forwards(STATES, META) if it.window == which
                        ]
                    else:
                        assert before[0].state in STEPS[how]
                        assert after.attempts == before[0].attempts + (how == "sending")
                else:
                    first.end_queued(which, now_ms, "over", META)
            assert first.at_start(0, 0, 0) == second.at_start(0, 0, 0)
        assert tables(paths[0]) == tables(paths[1])


def test_a_ledger_goes_back_to_version_1_and_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    copied(path, decision(1), decision(2, PAIRS[1]))
    with Ledger.open(path) as ledger:
        ledger.step(1, META, "sending", T0)
    own = tables(path)["forward"]
    change_version(KIND, path, 1)
    with contextlib.closing(sqlite3.connect(path)) as db:
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    assert not [name for name in names if "meta" in str(name)]
    change_version(KIND, path, 2)
    assert tables(path)["forward"] == own
    copied(path, decision(3))
    with Ledger.open(path) as ledger:
        assert [one.window for one in ledger.forwards(bot=META)] == [3]


def test_a_ledger_of_before_is_grown_unless_the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    Ledger.open(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("DROP TABLE meta_forward; DROP TABLE meta_start")
    # As it is read beside an aggregator of before.
    assert recent(path, 5).decided == []
    assert Flow(path).read() == []
    LedgerOutbox(path, "").close()
    # A disk that is too full to grow it: the two others go on without copies.
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "kind", KIND._replace(grow=None))
        with Ledger.open(path) as ledger:
            assert ledger.record([], [decision(1)], T0, copies=True).forwards == ledger.forwards()
            assert ledger.forwards(bot=META) == ledger.standing_since(0, META) == []
            ledger.hold_copies("why")
            assert ledger.copies_held == ""
            assert ledger.delete_old(DAY) == 0
    with Ledger.open(path) as ledger:
        assert ledger.copies_held == ""
        ledger.hold_copies("why")
    with Ledger.open(path) as ledger:
        assert ledger.copies_held == "why"
        assert ledger.held != "why"


def test_retention_takes_copies_with_their_decisions(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    copied(
        path, decision(1), decision(2, PAIRS[1]), decision(3, "SOL/USDT:USDT", at_ms=T0 + 10 * DAY)
    )
    with Ledger.open(path) as ledger:
        for day in range(4):
            _vote_of_day(ledger, day)
        for bot in ("long", META):
            ledger.step(1, bot, "expired", T0, "late")  # type: ignore[arg-type]
        ledger.step(2, "long", "expired", T0, "late")
        # A copy in an open state stays, and keeps its decision; so does one that has not been shipped.
        assert ledger.delete_old(DAY, below_seq=1) == 0
        while ledger.delete_old(DAY):
            pass
        assert [one.window for one in ledger.forwards(STATES, META)] == [2, 3]
        # An older marketfeed deletes a decision without its copy.
        ledger.db.execute("DELETE FROM forward WHERE window = 2")
        ledger.db.execute("DELETE FROM decision WHERE window = 2")
        assert ledger.delete_old(DAY) == 1
        ((count,),) = ledger.db.execute("SELECT count(*) FROM meta_forward").fetchall()
        assert count == 1


def _vote_of_day(ledger: Ledger, day: int) -> None:
    ledger.db.execute(
        """INSERT INTO signal (number, received, account, address, body, digest, pair, side, feeder, called,
               confidence, tag, defaulted, outcome, window, answer, seq)
           VALUES (?, ?, 'fleet', '', x'', x'', 'X', 'long', '73', '73', 0.9, '', '', 'voted', 1, '', ?)""",
        (100 + day, T0 + day * DAY, 1_000_000 + day),
    )


def test_lines_of_copies_are_found_by_their_numbers(tmp_path: Path) -> None:
    """An index is used: a ledger holds a month."""
    path = tmp_path / "ledger.db"
    copied(path, decision(1))
    with Ledger.open(path) as ledger:
        ledger.step(1, META, "expired", T0, "late")
    outbox = LedgerOutbox(path, "")
    lines = outbox.newest(Acknowledged.alike(KIND.measurements), 10).lines
    assert [line for line in lines if "meta_" in line] == [
        f'ensemble,pair={PAIRS[0]},primary=73,side=long meta_state="expired",meta_answer="late" {T0}'
    ]
    plan = " ".join(
        str(row)
        for row in outbox._db.execute(
            f"EXPLAIN QUERY PLAN SELECT seq FROM {COPIED} "  # noqa: S608
            "WHERE seq BETWEEN 1 AND 9 ORDER BY seq DESC LIMIT 5"
        )
    )
    assert "meta_forward_seq" in plan
    assert "TEMP B-TREE" not in plan
    outbox.close()
