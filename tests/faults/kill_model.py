"""What a journal must hold after a kill: everything that was reported as committed, numbered once."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeAlias

from kill_child import Committed, Deleting, Message, Opened, Saved, Saving

from marketfeed import schema
from marketfeed.journal.journal import Journal
from marketfeed.records import Candle, CatalogEntry, FundingRate, Gap, MarkPrice
from tests.coverage_check import check_coverage

NUMBERED: Final = {
    "candle": ("pair_id", "timeframe_ms", "open_time"),
    "forming": ("pair_id", "timeframe_ms"),
    "mark_price": ("pair_id", "time"),
    "mark_1h": ("pair_id", "open_time"),
    "funding_rate": ("pair_id", "time"),
    "funding_settled": ("pair_id", "time", "kind"),
    "gap": ("kind", "pair_id", "start"),
    "catalog": ("pair_id",),
}
"""Tables whose rows carry a `seq`, and what must be unique in each."""
FUNDING_EVERY_MS: Final = schema.MINUTE_MS
NUMBERS: Final = tuple(schema.CANDLE_FIELDS)
PRICES: Final = ("open", "high", "low", "close")
Row: TypeAlias = dict[str, Any]
Rows: TypeAlias = dict[tuple[Any, ...], Row]


class LostError(AssertionError):
    """The journal does not hold what it must, or holds what it must not."""


class Known:
    """What has been reported, and every number that was ever given; `look` compares a file with that."""

    def __init__(self) -> None:
        self.commits = 0
        self.rows_checked = 0
        self.rows_numbered = 0
        self.series_checked = 0
        """Series whose coverage was computed anew, after each kill, and their holes."""
        self.holes_checked = 0
        self._next_seq = 1
        self._floor = 1
        self._owners: dict[int, int] = {}
        self._candles: dict[tuple[str, int, int], Candle] = {}
        self._forming: dict[tuple[str, int], Candle] = {}
        self._marks: dict[tuple[str, int], MarkPrice] = {}
        self._funding: dict[tuple[str, int], FundingRate] = {}
        self._hours: dict[tuple[str, int], tuple[Candle, int]] = {}
        self._gaps: dict[tuple[str, str | None, int], tuple[Gap, int]] = {}
        self._catalog: dict[str, CatalogEntry] = {}
        self._documents: dict[str, Saving] = {}
        self._saving: Saving | None = None

    # --- what is reported ---------------------------------------------------------------------------

    def note(self, message: Message) -> None:
        """Take in one message. Raises LostError for a file set aside, or numbers that go back."""
        if isinstance(message, Committed):
            self._commit(message)
        elif isinstance(message, Saving):
            self._saving = message
        elif isinstance(message, Saved):
            self._note_saved()
        elif isinstance(message, Deleting):
            self._forget(message)
        elif isinstance(message, Opened):
            if message.set_aside is not None:
                raise LostError(f"set aside: {message.set_aside}")
            self._require_next("after opening", message.next_seq)

    def _note_saved(self) -> None:
        if self._saving is not None:
            self._documents[self._saving.name] = self._saving
        self._saving = None

    def _commit(self, reported: Committed) -> None:
        self.commits += 1
        self._require_next("after a commit", reported.next_seq)
        lengths = schema.TIMEFRAMES_MS
        for candle in reported.candles:
            key = (candle.pair, lengths[candle.timeframe], candle.open_time_ms)
            known = self._candles.get(key)
            if known is None or candle.trades >= known.trades:
                self._candles[key] = candle
        for candle in reported.forming:
            self._forming[candle.pair, lengths[candle.timeframe]] = candle
        for mark in reported.mark_prices:
            at = (mark.pair, schema.floor_to(mark.event_time_ms, schema.SECOND_MS))
            first = self._marks.get(at)
            if first is None or mark.event_time_ms < first.event_time_ms:
                self._marks[at] = mark
        for rate in reported.funding_rates:
            at = (rate.pair, schema.floor_to(rate.event_time_ms, FUNDING_EVERY_MS))
            earliest = self._funding.get(at)
            if earliest is None or rate.event_time_ms < earliest.event_time_ms:
                self._funding[at] = rate
        for hour in reported.mark_candles:
            self._hours[hour.pair, hour.open_time_ms] = hour, reported.next_seq
        for gap in reported.gaps:
            self._gaps[gap.kind, gap.pair, gap.start_ms] = (gap, reported.next_seq)
        self._catalog.update((entry.pair, entry) for entry in reported.catalog)

    def _forget(self, reported: Deleting) -> None:
        tables: dict[str, dict[Any, Any]] = {
            "candle": self._candles,
            "mark_price": self._marks,
            "funding_rate": self._funding,
            "mark_1h": self._hours,
        }
        known = tables[reported.table]
        for key in [k for k in known if k[0] == reported.pair and k[-1] < reported.before_ms]:
            del known[key]

    def _require_next(self, when: str, next_seq: int) -> None:
        if next_seq < self._next_seq:
            raise LostError(f"seq went back {when}: {next_seq} after {self._next_seq}")
        self._next_seq = next_seq

    # --- what is there -----------------------------------------------------------------------------

    def look(self, path: Path, scratch: Path) -> None:
        """Compare the files as the kill has left them, in a copy: the next collector recovers them itself.

        Raises LostError.
        """
        if list(path.parent.glob("*.corrupt-*")):
            raise LostError("a journal was set aside")
        copy = scratch / "copy.db"
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").unlink(missing_ok=True)
            if (file := Path(f"{path}{suffix}")).exists():
                shutil.copyfile(file, f"{copy}{suffix}")
        with Journal.open(copy) as journal:
            if journal.set_aside is not None:
                raise LostError("the file cannot be read")
            self._require_next("after the kill", journal.next_seq)
            self._check_documents(journal)
        with closing(sqlite3.connect(copy)) as db:
            db.row_factory = _as_dict
            (verdict,) = db.execute("PRAGMA integrity_check").fetchone().values()
            if verdict != "ok":
                raise LostError(f"integrity_check: {verdict}")
            pairs = {row["id"]: row["pair"] for row in db.execute("SELECT * FROM pair")}
            tables = {name: self._take_table(db, name, key) for name, key in NUMBERED.items()}
        self._check_numbers(tables)
        self._check_rows(
            {
                name: {
                    tuple(
                        pairs.get(value) if column == "pair_id" else value
                        for column, value in zip(NUMBERED[name], key, strict=True)
                    ): row
                    for key, row in found.items()
                }
                for name, found in tables.items()
            }
        )
        self._check_coverage(copy)

    def _check_coverage(self, path: Path) -> None:
        checked = check_coverage(path)
        self.series_checked += checked.series
        self.holes_checked += checked.holes
        if checked.mistakes or not checked.trusted:
            raise LostError(f"coverage, trusted {checked.trusted}: {checked.mistakes[:5]}")

    def _check_documents(self, journal: Journal) -> None:
        # By the order in which they were saved, not by their times: before a run has learnt the exchange's
        # time it has that of this host, which may be an earlier one.
        saving = self._saving
        if saving is not None and _is_there(saving, journal):
            self._note_saved()
        self._saving = None
        for known in self._documents.values():
            if not _is_there(known, journal):
                raise LostError(f"document {known.name} of {known.saved_ms} is gone, or another")

    def _take_table(self, db: sqlite3.Connection, name: str, key: tuple[str, ...]) -> Rows:
        found: Rows = {}
        for row in db.execute(f"SELECT * FROM {name}"):  # noqa: S608 - one of the constants above
            identity = tuple(row[column] for column in key)
            if identity in found:
                raise LostError(f"{name} {identity} is there twice")
            found[identity] = row
        self.rows_checked += len(found)
        return found

    def _check_numbers(self, tables: dict[str, Rows]) -> None:
        here: set[int] = set()
        for name, found in tables.items():
            for identity, row in found.items():
                seq = row["seq"]
                if seq in here or not 0 < seq < self._next_seq:
                    raise LostError(
                        f"{name} {identity}: seq {seq} twice, or beyond {self._next_seq}"
                    )
                here.add(seq)
                content = hash((name, *row.values()))
                owner = self._owners.get(seq)
                if owner is None:
                    # New since the last look: numbered above all that was there, deleted or not.
                    if seq < self._floor:
                        raise LostError(
                            f"{name} {identity}: new, but seq {seq} is below {self._floor}"
                        )
                    self._owners[seq] = content
                elif owner != content:
                    raise LostError(f"{name} {identity}: seq {seq} was another row's")
        self._floor = self._next_seq
        self.rows_numbered = len(self._owners)

    def _check_rows(self, tables: dict[str, Rows]) -> None:
        candles, forming = tables["candle"], tables["forming"]
        for key, candle in self._candles.items():
            _compare("candle", key, _numbers(candle), candles.get(key), NUMBERS)
        for series, candle in self._forming.items():
            state = (candle.open_time_ms, candle.event_time_ms)
            row = forming.get(series)
            if row is not None and (row["open_time"], row["event_time"]) == state:
                _compare("forming", series, _numbers(candle), row, NUMBERS)
            elif row is None or (row["open_time"], row["event_time"]) < state:
                newest = max((k[2] for k in candles if k[:2] == series), default=0)
                if newest < candle.open_time_ms:
                    raise LostError(f"forming {series}: {state} was known, {row} is there")
        for at, mark in self._marks.items():
            _compare_first(
                "mark_price",
                at,
                (mark.event_time_ms - at[1], mark.mark_price, mark.index_price),
                tables["mark_price"].get(at),
                ("offset_ms", "mark_price", "index_price"),
            )
        for at, rate in self._funding.items():
            _compare_first(
                "funding_rate",
                at,
                (rate.event_time_ms - at[1], rate.rate, rate.next_funding_time_ms),
                tables["funding_rate"].get(at),
                ("offset_ms", "rate", "next_funding_time"),
            )
        for at, (hour, next_seq) in self._hours.items():
            row = tables["mark_1h"].get(at)
            # It may have given way since to another, in a commit that was not reported.
            if row is None or row["seq"] < next_seq:
                prices = tuple(getattr(hour, name) for name in PRICES)
                _compare("mark_1h", at, prices, row, PRICES)
        for time_range, (gap, next_seq) in self._gaps.items():
            row = tables["gap"].get(time_range)
            # It may have healed since, in a commit that was not reported.
            if row is None or row["seq"] < next_seq:
                reported = (gap.end_ms, gap.healed, gap.reason, gap.state)
                _compare("gap", time_range, reported, row, ("end", "healed", "reason", "state"))
        for pair, entry in self._catalog.items():
            _compare("catalog", pair, (entry.symbol,), tables["catalog"].get((pair,)), ("symbol",))


def _is_there(document: Saving, journal: Journal) -> bool:
    return journal.load_document(document.name) == (document.body, document.saved_ms)


def _as_dict(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> Row:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


def _numbers(candle: Candle) -> tuple[Any, ...]:
    return tuple(getattr(candle, name) for name in NUMBERS)


def _compare(
    table: str, key: object, reported: tuple[Any, ...], row: Row | None, columns: tuple[str, ...]
) -> None:
    if row is None:
        raise LostError(f"{table} {key} was committed and is gone")
    found = tuple(row[name] for name in columns)
    if found != reported:
        raise LostError(f"{table} {key}: {reported} was committed, {found} is there")


def _compare_first(
    table: str, key: object, reported: tuple[Any, ...], row: Row | None, columns: tuple[str, ...]
) -> None:
    # A grid step holds its earliest event; an earlier one may have been committed, but not reported.
    if row is None or row["offset_ms"] >= reported[0]:
        _compare(table, key, reported, row, columns)
