"""Deleting old rows of a journal as retention does, without the pauses in between."""

from collections.abc import Iterable, Sequence

from marketfeed.journal.journal import Journal
from marketfeed.journal.retention import Sweep


def sweep_out(journal: Journal, sweeps: Iterable[Sweep]) -> int:
    """Delete all that they name; returns how many rows."""
    rows = 0
    for sweep in sweeps:
        while not sweep.is_done:
            rows += journal.sweep(sweep)
        assert sweep.rows <= rows
    return rows


def delete(
    journal: Journal,
    table: str,
    pair_ids: int | Sequence[int],
    before_ms: int,
    below_seq: int | None = None,
) -> int:
    """Delete rows of some pairs that are older than `before_ms`; returns how many."""
    ids = [pair_ids] if isinstance(pair_ids, int) else list(pair_ids)
    return sweep_out(journal, [Sweep(table, before_ms, 0, ids, below_seq)])
