"""What of the books has yet to be shipped into one bucket, as lines."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from marketfeed import schema
from marketfeed.bots.books_schema import KIND, QUOTED
from marketfeed.bots.closed_trade import ClosedTrade
from marketfeed.influxdb import line_protocol as lines
from marketfeed.influxdb.outbox import Outbox, Row, Source, each, key_of

_COLUMNS: Final = f"bot, point_ms, {QUOTED}"


class BooksOutbox(Outbox):
    """Reads the trades of some bots for shipping; `measurements` says of each bot where they go.

    Their lines name no collector.
    """

    def __init__(self, measurements: Mapping[str, str], path: Path, _collector: str) -> None:
        self._measurements = measurements
        # Names of bots are of letters, digits, _ and - alone.
        names = ",".join(repr(name) for name in measurements)
        self._table = f"(SELECT * FROM trade WHERE bot IN ({names}))"
        write = partial(line_of_row, measurements)
        source = Source(self._table, schema.CLOSED_TRADES, each(write))
        super().__init__(KIND, path, {self._table: _COLUMNS}, [source])

    def as_they_stand(self, texts: Iterable[str]) -> list[str | None]:
        """For each line that of the same point as the books hold it now; None where they hold none."""
        with self._one_state():
            return [self._as_it_stands(text) for text in texts]

    def _as_it_stands(self, line: str) -> str | None:
        rows = self._db.execute(
            f"SELECT seq, {_COLUMNS} FROM {self._table} WHERE point_ms = ?",
            (int(line.rpartition(" ")[2]),),
        )
        now = [line_of_row(self._measurements, row) for row in rows]
        return next((text for text in now if key_of(text) == key_of(line)), None)


def line_of_row(measurements: Mapping[str, str], row: Row) -> str:
    """The line of a row (seq, bot, point_ms, fields of the trade)."""
    _, bot, point_ms, *fields = row
    return line_of(measurements[bot], bot, ClosedTrade(*fields), point_ms)


def line_of(measurement: str, bot: str, trade: ClosedTrade, point_ms: int) -> str:
    """The line of a trade at the time of its point (ms)."""
    return lines.closed_trade_text(
        measurement, bot, trade.pair, trade.side, floats_of(trade), texts_of(trade), point_ms
    )


def floats_of(trade: ClosedTrade) -> dict[str, float]:
    """The number fields of a trade's point: those that are known."""
    imported = trade.trade_id < 0
    values: dict[str, float | None] = {
        name: getattr(trade, name)
        for name in schema.CLOSED_TRADE_FLOATS
        if name not in ("trade_id", "opened", "duration_s")
    }
    if not imported:
        values |= {
            "trade_id": float(trade.trade_id),
            "opened": float(trade.opened_ms),
            "duration_s": trade.duration_s,
        }
    return {
        name: value
        for name in schema.CLOSED_TRADE_FLOATS
        if (value := values.get(name)) is not None
    }


def texts_of(trade: ClosedTrade) -> dict[str, str]:
    """The text fields of a trade's point, each on one line."""
    return {name: " ".join(getattr(trade, name).split()) for name in schema.CLOSED_TRADE_TEXTS}
