"""What went through the aggregator: event by event, and the newest; read beside the ledger's writer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
from msgspec.json import encode

from marketfeed.aggregator.ledger_refused import KEPT, Refused, refused_in
from marketfeed.aggregator.ledger_schema import COPIED, KIND, columns_beside, has_copies
from marketfeed.aggregator.mean import confidence_text
from marketfeed.aggregator.refused_posts import RefusedPost
from marketfeed.storage.reading import reading

NEWEST: Final = 200
"""Votes that a first look goes back by default."""
_FORWARD: Final = "window, bot, pair, side, state, changed, sent, answered, status, answer, tag"


class Event(msgspec.Struct, frozen=True):
    """One thing that happened to a signal or a decision, at `time_ms` (ms since the epoch).

    `what`: received (a repeat, which counts once), voted, refused (a post that was no signal), decided,
    skipped, sent, answered, unknown, or another state of a forward. `who`: the feeder as it called itself,
    the primary one of a decision, or the bot: its side, or meta. A refused post has no window, pair and side.
    """

    time_ms: int
    what: str
    window: int
    pair: str
    side: str
    who: str
    confidence: float | None
    text: str


class Flow:
    """Reads on from where it stood. Raises JournalError when there is no ledger, or it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._after_seq: int | None = None
        self._after_change = 0
        self._sent: set[tuple[int, str, int]] = set()

    def read(self, newest: int = NEWEST) -> list[Event]:
        """What is new since the last call, in its order; at the first call what followed the newest votes."""
        events: list[Event] = []
        with reading(KIND, self._path) as db:
            kept, is_cut = KEPT, False
            if self._after_seq is None:
                rows = db.execute(
                    "SELECT seq FROM signal ORDER BY seq DESC LIMIT ?", (newest,)
                ).fetchall()
                self._after_seq = min((row[0] for row in rows), default=1) - 1
                kept, is_cut = newest, len(rows) == newest
            after = self._after_seq
            (next_seq,) = db.execute("SELECT next FROM sequence").fetchone()
            signals = db.execute(
                # One of two constants.
                f"""SELECT received, CASE outcome WHEN 'voted' THEN 'voted' ELSE 'received' END,
                           window, pair, side, called, confidence, answer, {columns_beside(db)}
                    FROM signal WHERE seq > ?""",  # noqa: S608
                (after,),
            )
            for row in signals:
                *_, answer, strength_text, unknown_fields = row
                beside = _beside(strength_text, unknown_fields)
                text = "; ".join(filter(None, (answer, beside)))
                events.append(Event(*(*row[:7], text)))
            decisions = db.execute(
                """SELECT decided, CASE outcome WHEN 'forward' THEN 'decided' ELSE 'skipped' END,
                          window, pair, side, "primary", confidence,
                          replace(tag || ': ' || reasons, char(10), '; ')
                   FROM decision WHERE seq > ?""",
                (after,),
            )
            events.extend(Event(*row) for row in decisions)
            refused = refused_in(db, kept, self._after_change)
            self._after_change = max((row.change for row in refused), default=self._after_change)
            # No older ones than the votes that a first look goes back to.
            since_ms = min(event.time_ms for event in events) if is_cut else 0
            events.extend(_of_refused(row) for row in refused if row.post.last_ms >= since_ms)
            forwards = ["forwarded", *([COPIED] if has_copies(db) else [])]
            for table in forwards:
                found = db.execute(f"SELECT {_FORWARD} FROM {table} WHERE seq > ?", (after,))  # noqa: S608
                events.extend(event for row in found for event in self._of_forward(*row))
        self._after_seq = next_seq - 1
        return sorted(events, key=lambda event: (event.time_ms, event.window))

    def _of_forward(
        self,
        window: int,
        bot: str,
        pair: str,
        side: str,
        state: str,
        changed_ms: int,
        sent_ms: int | None,
        answered_ms: int | None,
        status: int | None,
        answer: str,
        tag: str,
    ) -> Iterator[Event]:
        if sent_ms is not None and (window, bot, sent_ms) not in self._sent:
            self._sent.add((window, bot, sent_ms))
            yield Event(sent_ms, "sent", window, pair, side, bot, None, tag)
        if state in ("queued", "sending"):
            return
        what = "answered" if state in ("accepted", "refused") else state
        text = f"{state} {status}: {answer}" if status is not None else answer
        at_ms = changed_ms if answered_ms is None else answered_ms
        yield Event(at_ms, what, window, pair, side, bot, None, text)


class RefusedFlow:
    """The same of refused posts alone. Raises JournalError as `Flow` does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._after_change = 0

    def read(self, newest: int = KEPT) -> list[RefusedPost]:
        """The rows that are new or have risen since the last call, oldest first; at most so many."""
        with reading(KIND, self._path) as db:
            found = refused_in(db, newest, self._after_change)
        self._after_change = max((row.change for row in found), default=self._after_change)
        return [row.post for row in reversed(found)]


def _of_refused(row: Refused) -> Event:
    post = row.post
    text = f"{post.who()}: {post.why()}"
    if post.times > 1:
        text += f" ({post.times} times)"
    return Event(post.last_ms, "refused", 0, "", "", post.feeder, None, text)


class Posted(msgspec.Struct, frozen=True):
    """A signal as it was taken down, without what may identify its sender.

    Its confidence, and that of a decision, is rounded to two decimals, half up.
    """

    number: int
    received_ms: int
    pair: str
    side: str
    feeder: str
    confidence: float
    outcome: str
    window: int
    beside: str
    """A strength that is a text, and fields that are not read, in words."""


class Decided(msgspec.Struct, frozen=True):
    """A decision and how its forward stands; `state` None: there is none.

    `meta_state` and `meta_status` are those of its copy for the meta bot.
    """

    window: int
    decided_ms: int
    pair: str
    side: str
    outcome: str
    reasons: str
    votes: int
    of: int
    confidence: float
    primary: str
    state: str | None
    changed_ms: int | None
    attempts: int | None
    status: int | None
    meta_state: str | None = None
    meta_status: int | None = None


class NotTaken(msgspec.Struct, frozen=True):
    """Refused posts that are alike, in words."""

    last_ms: int
    first_ms: int
    times: int
    who: str
    feeder: str
    status: int
    request: str
    sentence: str


class Recent(NamedTuple):
    """The newest signals, decisions and refused posts, newest first."""

    posted: list[Posted]
    decided: list[Decided]
    refused: list[NotTaken]


def recent(path: Path, limit: int) -> Recent:
    """What the ledger at `path` holds last, read beside its writer. Raises JournalError."""
    with reading(KIND, path) as db:
        posted = db.execute(
            f"""SELECT number, received, pair, side, feeder, confidence, outcome, window,
                       {columns_beside(db)}
                FROM signal ORDER BY number DESC LIMIT ?""",  # noqa: S608
            (limit,),
        ).fetchall()
        copies = has_copies(db)
        meta = "copy.state, copy.status" if copies else "NULL, NULL"
        join = "LEFT JOIN meta_forward AS copy ON copy.window = decision.window" if copies else ""
        decided = db.execute(
            # Constants alone.
            f"""SELECT decision.window, decided, pair, decision.side, outcome, reasons, votes, of,
                      confidence, "primary", forward.state, forward.changed, forward.attempts,
                      forward.status, {meta}
               FROM decision LEFT JOIN forward ON forward.window = decision.window {join}
               ORDER BY decided DESC, decision.window DESC LIMIT ?""",  # noqa: S608
            (limit,),
        ).fetchall()
        refused = [
            NotTaken(
                it.last_ms,
                it.first_ms,
                it.times,
                it.who(),
                it.feeder,
                it.status,
                it.request,
                it.sentence,
            )
            for it in (row.post for row in refused_in(db, limit))
        ]
    return Recent(
        [_rounded(Posted(*(*row[:8], _beside(*row[8:])))) for row in posted],
        [_rounded(Decided(*row)) for row in decided],
        refused,
    )


_S = TypeVar("_S", Posted, Decided)


def _rounded(shown: _S) -> _S:
    return msgspec.structs.replace(shown, confidence=float(confidence_text(shown.confidence)))


def _beside(strength_text: str | None, unknown_fields: str | None) -> str:
    # As JSON, so that nothing in it moves a terminal's cursor.
    strength = "" if strength_text is None else f"strength {encode(strength_text).decode()}"
    unread = "" if unknown_fields is None else f"not read {unknown_fields}"
    return ", ".join(filter(None, (strength, unread)))
