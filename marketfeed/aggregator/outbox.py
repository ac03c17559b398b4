"""What of the ledger has yet to be shipped, as lines: votes, decisions, and what became of forwards."""

from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Final

from marketfeed import schema
from marketfeed.aggregator.ledger_schema import COPIED, KIND, has_copies
from marketfeed.influxdb import line_protocol as lines
from marketfeed.influxdb.outbox import Outbox, Row, Source, each, key_of
from marketfeed.storage.reading import reading


class LedgerOutbox(Outbox):
    """Reads a ledger for shipping; its lines name no collector."""

    def __init__(self, path: Path, collector: str) -> None:
        sources = [
            Source("vote", schema.SIGNAL, each(_vote)),
            Source("decision", schema.ENSEMBLE, each(_decision)),
            Source("forwarded", schema.ENSEMBLE, each(_forward)),
        ]
        with reading(KIND, path) as db:
            # A file that could not be grown has none.
            if has_copies(db):
                sources.append(Source(COPIED, schema.ENSEMBLE, each(_copy)))
        super().__init__(KIND, path, _COLUMNS, sources)

    def as_they_stand(self, texts: Iterable[str]) -> list[str | None]:
        """For each line that of the same point as the ledger holds it now: only forwards change."""
        with self._one_state():
            return [self._forward_as_it_stands(text) for text in texts]

    def _forward_as_it_stands(self, line: str) -> str:
        key = key_of(line)
        # A decision is a line of the same point, with other fields.
        field = line[len(key) + 1 :].partition("=")[0]
        if field.removeprefix(_OF_COPY) not in _FORWARD_FIELDS:
            return line
        table, write = (COPIED, _copy) if field.startswith(_OF_COPY) else ("forwarded", _forward)
        rows = self._db.execute(
            # Constants but for the time.
            f"SELECT seq, {_COLUMNS[table]} FROM {table} WHERE decided = ? ORDER BY seq",  # noqa: S608
            (int(line.rpartition(" ")[2]),),
        )
        same = [text for text in map(write, rows) if key_of(text) == key]
        return line if line in same or not same else same[-1]


def _vote(row: Row) -> str:
    (
        _,
        received_ms,
        pair,
        side,
        feeder,
        called,
        tag,
        window,
        confidence,
        leverage,
        price,
        strength,
        strength_text,
        unknown_fields,
    ) = row
    numbers = {
        "confidence": confidence,
        "leverage": leverage,
        "price": price,
        "strength": strength,
    }
    pair_tag = lines.escape_tag(pair)
    texts = {"strength_text": strength_text, "unknown_fields": unknown_fields}
    return lines.signal_text(
        pair_tag, side, feeder, received_ms, numbers, called, tag, window, texts
    )


def _decision(row: Row) -> str:
    _, decided_ms, pair, side, primary, outcome, reasons, votes, of, confidence, tag, leverage = row
    return lines.decision_text(
        lines.escape_tag(pair),
        side,
        primary,
        decided_ms,
        {"confidence": confidence, "leverage": leverage},
        {"votes": votes, "of": of},
        {"outcome": outcome, "reasons": reasons.replace("\n", "; "), "tag": tag},
    )


def _forward(row: Row) -> str:
    return _of_forward(row, "")


def _copy(row: Row) -> str:
    return _of_forward(row, _OF_COPY)


def _of_forward(row: Row, prefix: str) -> str:
    _, decided_ms, pair, side, primary, state, status, sent_ms, answered_ms, answer = row
    counts = {"status": status, "sent": sent_ms, "answered": answered_ms}
    return lines.decision_text(
        lines.escape_tag(pair),
        side,
        primary,
        decided_ms,
        {},
        {f"{prefix}{name}": value for name, value in counts.items() if value is not None},
        {f"{prefix}state": state, f"{prefix}answer": answer},
    )


_FORWARD_FIELDS = frozenset({"status", "sent", "answered", "state"})
"""With which the fields of a forward may begin."""
_OF_COPY: Final = "meta_"
"""With which the names of a copy's fields begin."""
_FORWARD_COLUMNS: Final = 'decided, pair, side, "primary", state, status, sent, answered, answer'

_COLUMNS = MappingProxyType(
    {
        "vote": (
            "received, pair, side, feeder, called, tag, window, confidence, leverage, price, strength, "
            "strength_text, unknown_fields"
        ),
        "decision": (
            'decided, pair, side, "primary", outcome, reasons, votes, of, confidence, tag, leverage'
        ),
        "forwarded": _FORWARD_COLUMNS,
        COPIED: _FORWARD_COLUMNS,
    }
)
