"""What went through the aggregator: event by event, and the newest; read beside the ledger's writer."""

from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
from msgspec.json import encode

from marketfeed.aggregator.ledger_schema import KIND, columns_beside
from marketfeed.aggregator.mean import confidence_text
from marketfeed.storage.reading import reading

NEWEST: Final = 200
"""Votes that a first look goes back by default."""


class Event(msgspec.Struct, frozen=True):
    """One thing that happened to a signal or a decision, at `time_ms` (ms since the epoch).

    `what`: received (a repeat, which counts once), voted, decided, skipped, sent, answered, unknown, or
    another state of a forward. `who`: the feeder as it called itself, the primary one of a decision, or
    the bot's side.
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
        self._sent: set[tuple[int, int]] = set()

    def read(self, newest: int = NEWEST) -> list[Event]:
        """What is new since the last call, in its order; at the first call what followed the newest votes."""
        events: list[Event] = []
        with reading(KIND, self._path) as db:
            if self._after_seq is None:
                rows = db.execute("SELECT seq FROM signal ORDER BY seq DESC LIMIT ?", (newest,))
                self._after_seq = min((row[0] for row in rows), default=1) - 1
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
            for (
                window,
                pair,
                side,
                state,
                changed,
                sent,
                answered,
                status,
                answer,
                tag,
            ) in db.execute(
                """SELECT window, pair, side, state, changed, sent, answered, status, answer, tag
                   FROM forwarded WHERE seq > ?""",
                (after,),
            ):
                if sent is not None and (window, sent) not in self._sent:
                    self._sent.add((window, sent))
                    events.append(Event(sent, "sent", window, pair, side, side, None, tag))
                if state in ("queued", "sending"):
                    continue
                what = "answered" if state in ("accepted", "refused") else state
                text = f"{state} {status}: {answer}" if status is not None else answer
                at_ms = changed if answered is None else answered
                events.append(Event(at_ms, what, window, pair, side, side, None, text))
        self._after_seq = next_seq - 1
        return sorted(events, key=lambda event: (event.time_ms, event.window))


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
    """A decision and how its forward stands; `state` None: there is none."""

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


class Recent(NamedTuple):
    """The newest signals and decisions, newest first."""

    posted: list[Posted]
    decided: list[Decided]


def recent(path: Path, limit: int) -> Recent:
    """What the ledger at `path` holds last, read beside its writer. Raises JournalError."""
    with reading(KIND, path) as db:
        posted = db.execute(
            f"""SELECT number, received, pair, side, feeder, confidence, outcome, window,
                       {columns_beside(db)}
                FROM signal ORDER BY number DESC LIMIT ?""",  # noqa: S608
            (limit,),
        ).fetchall()
        decided = db.execute(
            """SELECT decision.window, decided, pair, decision.side, outcome, reasons, votes, of,
                      confidence, "primary", state, changed, attempts, status
               FROM decision LEFT JOIN forward ON forward.window = decision.window
               ORDER BY decided DESC, decision.window DESC LIMIT ?""",
            (limit,),
        ).fetchall()
    return Recent(
        [_rounded(Posted(*(*row[:8], _beside(*row[8:])))) for row in posted],
        [_rounded(Decided(*row)) for row in decided],
    )


_S = TypeVar("_S", Posted, Decided)


def _rounded(shown: _S) -> _S:
    return msgspec.structs.replace(shown, confidence=float(confidence_text(shown.confidence)))


def _beside(strength_text: str | None, unknown_fields: str | None) -> str:
    # As JSON, so that nothing in it moves a terminal's cursor.
    strength = "" if strength_text is None else f"strength {encode(strength_text).decode()}"
    unread = "" if unknown_fields is None else f"not read {unknown_fields}"
    return ", ".join(filter(None, (strength, unread)))
