"""What has been acknowledged of each measurement is a set of numbers; a file's notes hold it."""

import contextlib
import itertools
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketfeed.storage import acknowledged
from marketfeed.storage.acknowledged import (
    CREATE_SHIPPED,
    Notes,
    OlderNotes,
    name_measurements,
    name_no_measurements,
)
from marketfeed.storage.ranges import Acknowledged, Piece, Ranges
from tests.older_versions import shipped

A, B, C = NAMES = ("ohlcv", "mark_price", "gap")
LATER = "open_interest"
"""A measurement that a later version has added."""
TARGETS = ("http://a x", "http://b x", "ship again")
OLDER_TABLE = """CREATE TABLE shipped(
    target TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (target, first)
) WITHOUT ROWID"""
Held = dict[str, set[int]]

ends = st.integers(1, 70)
spans = st.tuples(st.integers(1, 60), st.integers(0, 12)).map(lambda s: (s[0], s[0] + s[1]))
pieces = st.builds(
    lambda span, names: Piece(*span, tuple(name for name in NAMES if name in names)),
    spans,
    st.sets(st.sampled_from(NAMES), min_size=1),
)


def numbers(ranges: Iterable[tuple[int, int]]) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


def ranges_of(held: set[int]) -> list[tuple[int, int]]:
    """Sorted ranges that do not touch."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(held):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


# --- Acknowledged ----------------------------------------------------------------------------------------


def added(all_pieces: Iterable[Piece]) -> tuple[Acknowledged, Held]:
    """Equal pieces in an `Acknowledged` and in plain sets; what `add` returns is looked at."""
    real, model = Acknowledged.alike(NAMES), {name: set[int]() for name in NAMES}
    for piece in all_pieces:
        grown = real.add(piece)
        assert [name for name, *_ in grown] == list(piece.measurements)
        for name, first, last in grown:
            model[name] |= set(range(piece.first, piece.last + 1))
            assert first <= piece.first <= piece.last <= last
            assert (first, last) in ranges_of(model[name])
    return real, model


@given(st.lists(pieces, max_size=12), ends)
def test_pieces_are_what_each_measurement_lacks(done: list[Piece], end: int) -> None:
    real, model = added(done)
    assert {name: list(real[name]) for name in NAMES} == {
        name: ranges_of(model[name]) for name in NAMES
    }
    found = list(real.pieces(end))
    lacking: Held = {name: set() for name in NAMES}
    for piece in found:
        assert 1 <= piece.first <= piece.last < end
        assert piece.measurements == tuple(n for n in NAMES if n in piece.measurements) != ()
        for name in piece.measurements:
            # Nothing twice.
            assert not lacking[name] & set(range(piece.first, piece.last + 1))
            lacking[name] |= set(range(piece.first, piece.last + 1))
    assert lacking == {name: set(range(1, end)) - model[name] for name in NAMES}
    # From the top down, and no piece could be one with the next.
    for above, below in itertools.pairwise(found):
        assert below.last < above.first
        assert below.last < above.first - 1 or below.measurements != above.measurements
    every = set.intersection(*model.values())
    assert real.first_gap(end) == min({*range(1, end)} - every | {end})
    # Once all of them have been added, nothing lacks.
    for piece in found:
        real.add(piece)
    assert list(real.pieces(end)) == []
    assert real.first_gap(end) == end


@given(st.lists(pieces, max_size=8), st.lists(pieces, min_size=1, max_size=4), ends)
def test_a_copy_is_its_own(before: list[Piece], after: list[Piece], end: int) -> None:
    real, model = added(before)
    copy = real.copy()
    assert list(copy.pieces(end)) == list(real.pieces(end))
    for piece in after:
        copy.add(piece)
    assert {name: list(real[name]) for name in NAMES} == {
        name: ranges_of(model[name]) for name in NAMES
    }
    assert list(copy.pieces(end)) == list(added([*before, *after])[0].pieces(end))


@given(st.lists(spans, max_size=8), ends)
def test_alike_is_a_copy_for_each(given_: list[tuple[int, int]], end: int) -> None:
    ranges = Ranges(given_)
    real = Acknowledged.alike(NAMES, ranges)
    assert list(real.pieces(end)) == [Piece(*gap, NAMES) for gap in ranges.gaps(end)]
    real.add(Piece(1, 99, (A,)))
    assert (list(real[B]), list(real[C])) == (list(ranges), list(ranges))
    assert list(ranges) == list(Ranges(given_))


def test_of_no_measurements_nothing_lacks() -> None:
    """As a shipper begins, before it has looked into its file."""
    nothing = Acknowledged({})
    assert list(nothing.pieces(9)) == []
    assert nothing.first_gap(9) == 1
    assert list(nothing.copy().pieces(9)) == []


# --- Notes -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(tables: str = CREATE_SHIPPED) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.executescript(tables)
        if "refused_line" not in tables:
            db.executescript(CREATE_SHIPPED.split(";")[2])
        db.execute("CREATE TABLE sequence(next INTEGER NOT NULL)")
        db.execute("INSERT INTO sequence (next) VALUES (100)")
        yield db


class Step(NamedTuple):
    """One call on the notes of a file."""

    what: str
    target: str
    span: tuple[int, int]


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(
            ("note", "note", "note", "demand", "withdraw", "forget", "take", "gone", "aside")
        ),
        st.sampled_from(TARGETS),
        spans,
    ),
    max_size=20,
)


class Model:
    """The notes as plain sets, for all measurements alike."""

    def __init__(self) -> None:
        self.held: Held = {}
        self.again: set[str] = set()
        self.gone: dict[str, int] = {}
        self.lines = 0

    def do(self, step: Step) -> object:
        """Do a step; returns what the call has to return."""
        what, target, span = step
        match what:
            case "note":
                self.held.setdefault(target, set()).update(numbers([span]))
            case "demand":
                self.again.add(target)
            case "withdraw":
                self.again.discard(target)
            case "take" if target not in self.again:
                return False
            case "forget" | "take":
                self.again.discard(target)
                self.gone.pop(target, None)
                return bool(self.held.pop(target, None))
            case "gone":
                self.gone[target] = self.gone.get(target, 0) + span[1]
            case "aside":
                self.lines += 5
                gone = max(0, self.lines - KEPT)
                self.lines -= gone
                if gone:
                    self.gone[target] = self.gone.get(target, 0) + gone
                return gone
        return None


KEPT = 12


def do(notes: Notes, step: Step) -> object:
    """Take a step on the notes of a file."""
    what, target, span = step
    match what:
        case "note":
            # As a shipper notes: what has grown together.
            shipped_now = notes.shipped(target)
            return notes.note(target, shipped_now.add(Piece(*span, NAMES)))
        case "demand":
            return notes.demand(target)
        case "withdraw":
            return notes.withdraw(target)
        case "forget":
            return notes.forget(target)
        case "take":
            return notes.take_demand(target)
        case "gone":
            return notes.count_gone(target, span[1])
    return len(notes.put_aside(target, [(f"line {n}", "no") for n in range(5)], 1))


def held_by(notes: Notes, model: Model) -> None:
    """Hold that the notes agree with the model."""
    for target in TARGETS:
        found = notes.shipped(target)
        held = ranges_of(model.held.get(target, set()))
        assert {name: list(found[name]) for name in NAMES} == dict.fromkeys(NAMES, held)
        assert notes.has_shipped(target) == bool(held)
        assert notes.is_demanded(target) == (target in model.again)
    assert notes.lines_gone() == sum(model.gone.values())


@given(steps)
@settings(max_examples=60)
def test_notes_of_either_version_are_read_as_they_were_noted(done: list[Step]) -> None:
    with pytest.MonkeyPatch.context() as patch, opened() as db, opened(OLDER_TABLE) as older_db:
        patch.setattr(acknowledged, "REFUSED_LINES_KEPT", KEPT)
        notes, older, model = Notes(db, NAMES), OlderNotes(older_db, NAMES), Model()
        for step in done:
            expected = model.do(step)
            assert do(notes, step) == do(older, step) == expected
        held_by(notes, model)
        held_by(older, model)
        rows = "SELECT target, line FROM refused_line ORDER BY id"
        assert db.execute(rows).fetchall() == older_db.execute(rows).fetchall()
        # In one row each: what has grown together replaces what it covers.
        (count,) = db.execute("SELECT count(*) FROM shipped").fetchone()
        assert count == sum(3 * len(ranges_of(held)) for held in model.held.values())


# --- from one version to the next ------------------------------------------------------------------------


@given(steps)
@settings(max_examples=60)
def test_naming_measurements_and_back_is_the_identity(done: list[Step]) -> None:
    with opened(OLDER_TABLE) as db:
        older, model = OlderNotes(db, NAMES), Model()
        for step in done:
            if step.what != "aside":
                model.do(step)
                do(older, step)
        before = db.execute("SELECT * FROM shipped ORDER BY 1, 2").fetchall()
        name_measurements(db, NAMES)
        held_by(Notes(db, NAMES), model)
        assert shipped(db) == before
        name_no_measurements(db, NAMES)
        held_by(OlderNotes(db, NAMES), model)
        assert db.execute("SELECT * FROM shipped ORDER BY 1, 2").fetchall() == before
        tables = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1"
        assert [name for (name,) in db.execute(tables)] == [
            *("refused_line", "sequence", "shipped", "sqlite_sequence"),
        ]


@given(st.dictionaries(st.sampled_from(TARGETS), st.lists(pieces, max_size=8)))
def test_back_is_what_all_measurements_have(noted: dict[str, list[Piece]]) -> None:
    with opened() as db:
        notes = Notes(db, NAMES)
        models: dict[str, Held] = {}
        for target, all_pieces in noted.items():
            _, models[target] = added(all_pieces)
            current = notes.shipped(target)
            for piece in all_pieces:
                notes.note(target, current.add(piece))
            # A later version's measurement counts for nothing: this version ships no row of it.
            notes.note(target, [(LATER, 2, 3)])
        name_no_measurements(db, NAMES)
        older = OlderNotes(db, NAMES)
        for target in TARGETS:
            every = set.intersection(*models[target].values()) if target in models else set()
            assert list(older.shipped(target)[A]) == ranges_of(every)


@given(st.lists(pieces, max_size=8), st.lists(spans, max_size=4))
def test_what_a_later_version_noted_stays_until_all_is_shipped_again(
    done: list[Piece], later: list[tuple[int, int]]
) -> None:
    with opened() as db:
        newer, notes = Notes(db, (*NAMES, LATER)), Notes(db, NAMES)
        target, other = TARGETS[:2]
        for given_to in (target, other):
            for first, last in Ranges(later):
                newer.note(given_to, [(LATER, first, last)])
        current = notes.shipped(target)
        assert list(current.pieces(9)) == [Piece(1, 8, NAMES)]
        for piece in done:
            notes.note(target, current.add(piece))
        notes.demand(target)
        notes.withdraw(target)
        assert not notes.take_demand(target)
        assert list(newer.shipped(target)[LATER]) == list(Ranges(later))
        assert {name: list(newer.shipped(target)[name]) for name in NAMES} == {
            name: list(current[name]) for name in NAMES
        }
        # Everything means what this version does not know, too: the bucket has lost it.
        notes.demand(target)
        assert notes.take_demand(target) == bool(done or later)
        assert list(newer.shipped(target)[LATER]) == []
        assert list(newer.shipped(other)[LATER]) == list(Ranges(later))


def rows(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return db.execute("SELECT measurement, first, last FROM shipped ORDER BY 1, 2").fetchall()


def test_a_measurement_is_noted_alone() -> None:
    with opened() as db:
        notes = Notes(db, NAMES)
        notes.note("x", [(A, 1, 5), (B, 1, 5), (A, 7, 7)])
        notes.note("x", [(A, 1, 7)])
        assert rows(db) == [(B, 1, 5), (A, 1, 7)]
        assert notes.shipped("x").first_gap(99) == 1
        assert notes.has_shipped("x")


def test_pieces_that_grow_together_are_one_row() -> None:
    """As of one batch of which measurements lack different numbers."""
    with opened() as db, opened(OLDER_TABLE) as older_db:
        notes, current = Notes(db, NAMES), Acknowledged.alike(NAMES)
        sent = [Piece(8, 9, NAMES), Piece(5, 7, (A, B)), Piece(1, 4, (A,))]
        notes.note("x", [grown for piece in sent for grown in current.add(piece)])
        assert rows(db) == [(C, 8, 9), (B, 5, 9), (A, 1, 9)]
        older = OlderNotes(older_db, NAMES)
        older.note("x", [(name, *span) for span in ((8, 9), (6, 9), (1, 9)) for name in NAMES])
        assert older_db.execute("SELECT first, last FROM shipped").fetchall() == [(1, 9)]
