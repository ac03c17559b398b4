"""What of the ledger has yet to be shipped, as lines: votes, decisions, and what became of forwards."""

from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType

from marketfeed import schema
from marketfeed.aggregator.ledger_schema import KIND
from marketfeed.influxdb import line_protocol as lines
from marketfeed.influxdb.outbox import Outbox, Row, Source, each, key_of


class LedgerOutbox(Outbox):
    """Reads a ledger for shipping; its lines name no collector."""

    def __init__(self, path: Path, collector: str) -> None:
        super().__init__(
            KIND,
            path,
            _COLUMNS,
            (
                Source("vote", schema.SIGNAL, each(_vote)),
                Source("decision", schema.ENSEMBLE, each(_decision)),
                Source("forwarded", schema.ENSEMBLE, each(_forward)),
            ),
        )

    def as_they_stand(self, texts: Iterable[str]) -> list[str | None]:
        """For each line that of the same point as the ledger holds it now: only forwards change."""
        with self._one_state():
            return [self._forward_as_it_stands(text) for text in texts]

    def _forward_as_it_stands(self, line: str) -> str:
        key = key_of(line)
        # A decision is a line of the same point, with other fields.
        if line[len(key) + 1 :].partition("=")[0] not in _FORWARD_FIELDS:
            return line
        rows = self._db.execute(
            # Constants but for the time.
            f"SELECT seq, {_COLUMNS['forwarded']} FROM forwarded WHERE decided = ? ORDER BY seq",  # noqa: S608
            (int(line.rpartition(" ")[2]),),
        )
        same = [text for text in map(_forward, rows) if key_of(text) == key]
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
    _, decided_ms, pair, side, primary, state, status, sent_ms, answered_ms, answer = row
    counts = {"status": status, "sent": sent_ms, "answered": answered_ms}
    return lines.decision_text(
        lines.escape_tag(pair),
        side,
        primary,
        decided_ms,
        {},
        {name: value for name, value in counts.items() if value is not None},
        {"state": state, "answer": answer},
    )


_FORWARD_FIELDS = frozenset({"status", "sent", "answered", "state"})
"""With which the fields of a forward may begin."""

_COLUMNS = MappingProxyType(
    {
        "vote": (
            "received, pair, side, feeder, called, tag, window, confidence, leverage, price, strength, "
            "strength_text, unknown_fields"
        ),
        "decision": (
            'decided, pair, side, "primary", outcome, reasons, votes, of, confidence, tag, leverage'
        ),
        "forwarded": 'decided, pair, side, "primary", state, status, sent, answered, answer',
    }
)
