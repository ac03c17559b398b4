"""The books: one SQLite file of every closed trade of every bot. Durable when a call returns.

A trade is known by its bot, opening time and id. Its point in InfluxDB stands at the time of its close; of
equal closes of a bot the n-th, ranked by opening time and id, stands n ms later. What was a point and is none
any more, or has lost a field, stands in `gone_point` until a bucket has let go of it (`gone.py`).
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from marketfeed.bots.books_schema import FIELDS, FROM_BEFORE, FROM_BOT, IMPORTED, KIND, QUOTED
from marketfeed.bots.closed_trade import ClosedTrade, Exits
from marketfeed.storage.numbered_file import NumberedFile

log = logging.getLogger(__name__)

Key = tuple[int, int]
"""(opened_ms, trade_id)."""
EQUAL_SPAN_MS: Final = 10_000
"""Trades that close so near to each other are looked at together: it would take as many equal closes."""
PARTNER_MS: Final = 5_000
"""A foreign point is of a trade of its pair and side that closed at most so far from it."""
_OPTIONAL: Final = (
    "fees",
    "funding_fees",
    "mae",
    "mfe",
    "stop",
    "target",
    "votes",
    "of",
    "confidence",
)
_ASKED_FOR: Final = ("stop", "target", "source", "feeders")
"""What a bot's list of trades does not say: it stays what it was."""


class Kept(msgspec.Struct, frozen=True):
    """A trade as it stands in the books: whose, where from, and at which time its point is."""

    bot: str
    origin: str
    point_ms: int
    trade: ClosedTrade


class GonePoint(msgspec.Struct, frozen=True):
    """A point that is to go from a bucket, as it was numbered."""

    number: int
    bot: str
    pair: str
    side: str
    point_ms: int
    seq: int


class Books(NumberedFile):
    """The one writer of a file of books."""

    kind = KIND

    def beat(self) -> None:
        """Commit something: proof that the file takes what is written."""
        with self._transaction():
            self.db.execute("UPDATE heartbeat SET beats = beats + 1")

    # --- what is known -----------------------------------------------------------------------------

    def known(self, bot: str) -> dict[Key, int]:
        """When each trade closed that the bot's present database has: key -> ms."""
        rows = self.db.execute(
            'SELECT opened_ms, trade_id, closed_ms FROM trade WHERE bot = ? AND "from" = ?',
            (bot, FROM_BOT),
        )
        return {(opened, number): closed for opened, number, closed in rows}

    def kept(self, bot: str) -> list[Kept]:
        """All trades of a bot, by the time of their points."""
        return [_kept(row) for row in self.db.execute(f"{_SELECT} WHERE bot = ? {_ORDER}", (bot,))]

    def counts(self) -> dict[tuple[str, str], int]:
        """How many trades there are by bot and where from."""
        text = 'SELECT bot, "from", count(*) FROM trade GROUP BY bot, "from"'
        return {(bot, origin): count for bot, origin, count in self.db.execute(text)}

    def exits_not_asked(self, bot: str, most: int) -> list[Key]:
        """The newest trades whose exits the bot has not been asked for."""
        return self._not_asked(bot, "exits_asked", most)

    def feeders_not_asked(self, bot: str, most: int) -> list[tuple[Key, str]]:
        """The newest trades of an aggregator's orders that were not looked for in its ledger: key, tag."""
        rows = self.db.execute(
            """SELECT opened_ms, trade_id, enter_tag FROM trade
               WHERE bot = ? AND votes IS NOT NULL AND NOT feeders_asked
               ORDER BY closed_ms DESC LIMIT ?""",
            (bot, most),
        )
        return [((opened, number), tag) for opened, number, tag in rows]

    def _not_asked(self, bot: str, column: str, most: int) -> list[Key]:
        rows = self.db.execute(
            f"""SELECT opened_ms, trade_id FROM trade
                WHERE bot = ? AND "from" = ? AND NOT {column} ORDER BY closed_ms DESC LIMIT ?""",
            (bot, FROM_BOT, most),
        )
        return [(opened, number) for opened, number in rows]

    # --- what is noted -----------------------------------------------------------------------------

    def record(self, bot: str, trades: Iterable[ClosedTrade], origin: str = FROM_BOT) -> int:
        """Take in trades as a bot reports them; returns how many are new or have changed.

        One that has changed is asked for its exits again, and keeps what is known of them until then.
        """
        with self._transaction():
            seq, changed, closes = self._next_seq, 0, set[int]()
            for trade in trades:
                before = self._find(bot, trade.key)
                new = trade
                if before is not None and origin == FROM_BOT:
                    asked = {name: getattr(before.trade, name) for name in _ASKED_FOR}
                    new = msgspec.structs.replace(trade, **asked)
                if before is not None and before.trade == new:
                    if before.origin != origin:
                        self._set(bot, trade.key, '"from" = ?', origin)
                    continue
                if before is None and origin == FROM_BOT:
                    seq = self._strike_imported(bot, trade, seq)
                if before is not None:
                    closes.add(before.trade.closed_ms)
                    if _is_another_point(before.trade, new):
                        seq = self._leave_point(before, seq)
                self._insert(bot, new, origin, seq)
                seq, changed = seq + 1, changed + 1
                closes.add(new.closed_ms)
            seq = self._place(bot, closes, seq)
            self._save_seq(seq)
        self._next_seq = seq
        return changed

    def strike(self, bot: str, keys: Iterable[Key]) -> int:
        """Take out trades that their bot does not have any more; returns how many."""
        with self._transaction():
            seq, struck, closes = self._next_seq, 0, set[int]()
            for key in keys:
                if (before := self._find(bot, key)) is None:
                    continue
                seq = self._leave_point(before, seq)
                self.db.execute(f"DELETE FROM trade WHERE {_KEY}", (bot, *key))
                closes.add(before.trade.closed_ms)
                struck += 1
            seq = self._place(bot, closes, seq)
            self._save_seq(seq)
        self._next_seq = seq
        return struck

    def begin_database(self, bot: str, keys: Iterable[Key]) -> None:
        """Note that the bot has another database: these trades stay, and are of the one before."""
        with self._transaction():
            for key in keys:
                self._set(bot, key, '"from" = ?', FROM_BEFORE)

    def note_exits(self, bot: str, found: Sequence[tuple[Key, Exits]]) -> None:
        """Note what trades' custom data says of their exits, nothing included."""
        self._amend(bot, "exits_asked", [(key, _exits_of(exits)) for key, exits in found])

    def note_feeders(self, bot: str, found: Sequence[tuple[Key, str | None]]) -> None:
        """Note which feeders the ledger names for trades; None: it does not know the order."""
        self._amend(
            bot,
            "feeders_asked",
            [(key, {} if names is None else {"feeders": names}) for key, names in found],
        )

    def _amend(self, bot: str, asked: str, found: Sequence[tuple[Key, dict[str, Any]]]) -> None:
        with self._transaction():
            seq = self._next_seq
            for key, values in found:
                if (before := self._find(bot, key)) is None:
                    continue
                new = msgspec.structs.replace(before.trade, **values)
                if new != before.trade:
                    if _is_another_point(before.trade, new):
                        seq = self._leave_point(before, seq)
                    for name in values:
                        self._set(bot, key, f'"{name}" = ?', getattr(new, name))
                    self._set(bot, key, "seq = ?", seq)
                    seq += 1
                self._set(bot, key, f"{asked} = ?", 1)
            self._save_seq(seq)
        self._next_seq = seq

    # --- points that are to go ---------------------------------------------------------------------

    def gone_points(self, bots: Sequence[str], below_seq: int, most: int) -> list[GonePoint]:
        """Points of these bots that are to go, of which all rows up to then have been shipped."""
        marks = ",".join("?" * len(bots))
        rows = self.db.execute(
            f"""SELECT id, bot, pair, side, point_ms, seq FROM gone_point
                WHERE bot IN ({marks}) AND seq < ? ORDER BY id LIMIT ?""",
            (*bots, below_seq, most),
        )
        return [GonePoint(*row) for row in rows]

    def count_gone_points(self) -> int:
        """How many points are to go yet."""
        (count,) = self.db.execute("SELECT count(*) FROM gone_point").fetchone()
        return int(count)

    def note_gone_points(self, gone: Sequence[GonePoint]) -> None:
        """Note that a bucket has let go of points. A trade that stands at such a place is shipped again."""
        with self._transaction():
            seq = self._next_seq
            for point in gone:
                self.db.execute("DELETE FROM gone_point WHERE id = ?", (point.number,))
                place = (point.bot, point.point_ms, point.pair, point.side)
                changed = self.db.execute(
                    """UPDATE trade SET seq = ?
                       WHERE bot = ? AND point_ms = ? AND pair = ? AND side = ?""",
                    (seq, *place),
                ).rowcount
                seq += changed > 0
            self._save_seq(seq)
        self._next_seq = seq

    def ship_again(self, bot: str, points: Iterable[int]) -> None:
        """Have the trades at these times shipped once more, as a bucket lacks them."""
        with self._transaction():
            seq = self._next_seq
            for point_ms in points:
                for key in self.db.execute(
                    "SELECT opened_ms, trade_id FROM trade WHERE bot = ? AND point_ms = ?",
                    (bot, point_ms),
                ).fetchall():
                    self._set(bot, key, "seq = ?", seq)
                    seq += 1
            self._save_seq(seq)
        self._next_seq = seq

    def forget_points(self, points: Iterable[tuple[str, str, str, int]]) -> None:
        """Have points (bot, pair, side, ms) go from a bucket that no trade stands for."""
        with self._transaction():
            seq = self._next_seq
            for point in points:
                self._insert_gone(point, seq)
                seq += 1
            self._save_seq(seq)
        self._next_seq = seq

    def _strike_imported(self, bot: str, trade: ClosedTrade, seq: int) -> int:
        """Take out what was imported of a trade before its bot was heard of it."""
        for pair, side, opened_ms, number, point_ms in self.db.execute(
            """SELECT pair, side, opened_ms, trade_id, point_ms FROM trade
               WHERE bot = ? AND "from" = ? AND closed_ms BETWEEN ? AND ?""",
            (bot, IMPORTED, trade.closed_ms - PARTNER_MS, trade.closed_ms + PARTNER_MS),
        ).fetchall():
            if (pair, side) == (trade.pair, trade.side):
                self._insert_gone((bot, pair, side, point_ms), seq)
                self.db.execute(f"DELETE FROM trade WHERE {_KEY}", (bot, opened_ms, number))
                return seq + 1
        return seq

    # --- inside --------------------------------------------------------------------------------------

    def _find(self, bot: str, key: Key) -> Kept | None:
        row = self.db.execute(f"{_SELECT} WHERE {_KEY}", (bot, *key)).fetchone()
        return None if row is None else _kept(row)

    def _set(self, bot: str, key: Key, what: str, value: object) -> None:
        self.db.execute(f"UPDATE trade SET {what} WHERE {_KEY}", (value, bot, *key))

    def _insert(self, bot: str, trade: ClosedTrade, origin: str, seq: int) -> None:
        values = msgspec.structs.astuple(trade)
        self.db.execute(
            f"""INSERT OR REPLACE INTO trade
                (bot, {QUOTED}, "from", point_ms, exits_asked, feeders_asked, seq)
                VALUES (?, {",".join("?" * len(FIELDS))}, ?, ?, ?, ?, ?)""",
            (bot, *values, origin, trade.closed_ms, origin == IMPORTED, origin == IMPORTED, seq),
        )

    def _leave_point(self, before: Kept, seq: int) -> int:
        trade = before.trade
        self._insert_gone((before.bot, trade.pair, trade.side, before.point_ms), seq)
        return seq + 1

    def _insert_gone(self, point: tuple[str, str, str, int], seq: int) -> None:
        self.db.execute(
            "INSERT INTO gone_point (bot, pair, side, point_ms, seq) VALUES (?, ?, ?, ?, ?)",
            (*point, seq),
        )

    def _place(self, bot: str, closes: Iterable[int], seq: int) -> int:
        """Give the trades around these closes the times of their points; returns the next number."""
        for closed_ms in sorted(closes):
            last_ms = 0
            rows = self.db.execute(
                f"""{_SELECT} WHERE bot = ? AND closed_ms BETWEEN ? AND ?
                    ORDER BY closed_ms, opened_ms, trade_id""",
                (bot, closed_ms - EQUAL_SPAN_MS, closed_ms + EQUAL_SPAN_MS),
            ).fetchall()
            for kept in map(_kept, rows):
                last_ms = max(kept.trade.closed_ms, last_ms + 1)
                if kept.point_ms != last_ms:
                    if not self._is_new(bot, kept):
                        seq = self._leave_point(kept, seq)
                    self._set(bot, kept.trade.key, "point_ms = ?", last_ms)
                    self._set(bot, kept.trade.key, "seq = ?", seq)
                    seq += 1
        return seq

    def _is_new(self, bot: str, kept: Kept) -> bool:
        """Whether it was inserted in this transaction: then it has no point yet."""
        row = self.db.execute(f"SELECT seq FROM trade WHERE {_KEY}", (bot, *kept.trade.key))
        return bool(row.fetchone()[0] >= self._next_seq)


_KEY: Final = "bot = ? AND opened_ms = ? AND trade_id = ?"
_SELECT: Final = f'SELECT bot, "from", point_ms, {QUOTED} FROM trade'
_ORDER: Final = "ORDER BY point_ms, opened_ms, trade_id"


def _kept(row: tuple[Any, ...]) -> Kept:
    return Kept(row[0], row[1], row[2], ClosedTrade(*row[3:]))


def _exits_of(exits: Exits) -> dict[str, Any]:
    return {"stop": exits.stop, "target": exits.target, "source": exits.source}


def _is_another_point(before: ClosedTrade, new: ClosedTrade) -> bool:
    """Whether the point of before has to go: another place, or a field that would stay in it."""
    if (before.closed_ms, before.pair, before.side) != (new.closed_ms, new.pair, new.side):
        return True
    return any(
        getattr(before, name) is not None and getattr(new, name) is None for name in _OPTIONAL
    )
