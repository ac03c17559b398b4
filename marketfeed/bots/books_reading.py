"""The books as they stand, read beside their writer."""

from pathlib import Path

from marketfeed.bots.books import Kept
from marketfeed.bots.books_schema import KIND, QUOTED
from marketfeed.bots.closed_trade import ClosedTrade
from marketfeed.storage.reading import reading


def read_trades(
    path: Path, bot: str | None = None, since_ms: int = 0, after_seq: int = 0
) -> tuple[list[Kept], int]:
    """Trades by the time of their points, and the highest number that was read, to go on after it.

    Of one `bot` or of all, that closed since then (ms), with greater numbers than `after_seq`. Raises
    JournalError when there are no books, or they cannot be read.
    """
    with reading(KIND, path) as db:
        rows = db.execute(
            f"""SELECT seq, bot, "from", point_ms, {QUOTED} FROM trade
                WHERE (? IS NULL OR bot = ?) AND closed_ms >= ? AND seq > ?
                ORDER BY point_ms, bot, opened_ms, trade_id""",
            (bot, bot, since_ms, after_seq),
        ).fetchall()
    kept = [Kept(row[1], row[2], row[3], ClosedTrade(*row[4:])) for row in rows]
    return kept, max((row[0] for row in rows), default=after_seq)
