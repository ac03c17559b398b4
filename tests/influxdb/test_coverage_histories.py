"""Any history of a journal and of its bucket: what is said of the bucket is what it has.

The journal is a real file, with all that happens to one; the bucket is a set of candles, which takes, refuses
or loses what is sent. COVERAGE_HISTORIES says how many (200).
"""

import contextlib
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.influxdb import bucket_coverage, journal_outbox
from marketfeed.influxdb.bucket_coverage import Refused, Unacknowledged, interval
from marketfeed.influxdb.coverage_points import CoveragePoints
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.influxdb.outbox import key_of
from marketfeed.journal.coverage import Covered, Key
from marketfeed.journal.journal import KIND
from marketfeed.journal.refused_candles import candle_of
from marketfeed.journal.refused_lines import RefusedLines
from marketfeed.schema import MINUTE_MS
from marketfeed.storage import acknowledged
from marketfeed.storage.acknowledged import demand_again
from marketfeed.storage.ranges import Acknowledged
from tests.journal.test_coverage_file import HISTORIES, T0, History, length_of

TARGET: Final = "http://influx - market_data"
ANOTHER: Final = "http://another - market_data"


class BusyOutbox(JournalOutbox):
    """Something happens to the journal just before its rows are looked at, and just after."""

    happen: Callable[[], None]

    def look_at_candles(
        self, unacknowledged: Unacknowledged, acknowledged: Acknowledged, target: str
    ) -> Refused:
        self.happen()
        found = super().look_at_candles(unacknowledged, acknowledged, target)
        self.happen()
        return found


class Shipped(History):
    """A journal that is shipped: `bucket` are the candles there, `told` what was last said of each series."""

    def __init__(self, path: Path, seed: int) -> None:
        super().__init__(path, seed)
        self.bucket: set[tuple[str, int]] = set()
        self.told: dict[Key, TimeRange] = {}
        self.looks = 0
        self.is_calm = False
        self.begin()

    def begin(self) -> None:
        """Begin to ship, as a collector's start does."""
        self.outbox = BusyOutbox(self.path, "here")
        self.outbox.happen = self.happen
        self.shipped = self.journal.shipped(TARGET)
        self.points = CoveragePoints(TARGET, 0.0, self.stored, lambda: T0 + self.now * MINUTE_MS)

    def take_up(self) -> None:
        """Look whether everything is to be shipped again: the bucket was emptied before."""
        if self.outbox.is_demanded_again(TARGET):
            self.bucket.clear()
            self.told.clear()
            self.journal.forget_if_demanded(TARGET)
            self.shipped = self.journal.shipped(TARGET)
            self.points.begin_anew()

    def run_shipped(self, steps: int) -> None:
        weighted = [
            (3, self.promise),
            (8, self.write),
            (2, self.pass_time),
            (2, self.delete),
            (1, self.repair),
            (1, self.release),
            (4, self.look_through),
            (1, self.reopen),
            (1, self.meddle),
            (1, self.fail),
            (0.4, self.convert),
            (9, self.ship),
            (7, self.look),
            (0.5, self.demand),
            (1, self.resend),
        ]
        events = [event for _, event in weighted]
        try:
            self.promise()
            for _ in range(steps):
                (event,) = self.rng.choices(events, [weight for weight, _ in weighted])
                self.on_event(event.__name__)
                event()
            self.calm_down()
        finally:
            self.outbox.close()
            self.journal.close()

    # --- events ---------------------------------------------------------------------------------------

    def ship(self) -> None:
        rng = self.rng
        batch = self.outbox.newest(self.shipped, rng.choice((3, 20, 1_000)))
        if rng.random() < 0.3 and not self.is_calm:
            # While it travels.
            rng.choice((self.write, self.repair, self.delete))()
        outcome = (
            "stored" if self.is_calm else rng.choice(("stored", "stored", "odd", "old", "lost"))
        )
        if outcome == "lost":
            return
        refused = [line for line in batch.lines if self.refuses(line, outcome)]
        self.bucket |= {
            candle for line in batch.lines if line not in refused and (candle := candle_of(line))
        }
        if refused:
            self.journal.put_aside(TARGET, [(line, "no") for line in refused], 1)
        if rng.random() < 0.1:
            self.journal.put_aside(ANOTHER, [(line, "no") for line in batch.lines], 1)
        grown = [one for piece in batch.covers for one in self.shipped.add(piece)]
        if rng.random() < 0.8 or self.is_calm:
            self.journal.note_shipped(TARGET, grown)

    def refuses(self, line: str, outcome: str) -> bool:
        candle = candle_of(line)
        if candle is None or outcome == "stored":
            return False
        if outcome == "odd":
            return self.rng.random() < 0.1
        return candle[1] < T0 + (self.now - 60) * MINUTE_MS

    def stored(self) -> Mapping[Key, Covered]:
        """What is stored by now; the mapping shows what happens next, too."""
        self.happen()
        return self.journal.coverage

    def happen(self) -> None:
        if not self.is_calm and self.rng.random() < 0.3:
            self.rng.choice((self.write, self.repair, self.delete, self.look_through))()

    def look(self) -> None:
        self.take_up()
        self.points.look(self.outbox, self.shipped)
        before = self.points._before
        for line in self.points.lines(0.0):
            self.hold(line, before)
        if self.rng.random() < 0.9:
            self.points.written(0.0)

    def hold(self, line: str, before: Mapping[Key, Covered]) -> None:
        """What a line says is so."""
        tags, fields, _ = line.split(" ")
        assert key_of(line) == tags
        pair = tags.partition("pair=")[2]
        said = {name: int(value[:-1]) for name, value in (f.split("=") for f in fields.split(","))}
        for name, from_ms in said.items():
            if not name.startswith("from_"):
                continue
            key = pair, name.removeprefix("from_")
            until_ms = said["until_" + key[1]]
            assert from_ms <= until_ms
            self.told[key] = TimeRange(from_ms, until_ms)
            absent = [hole for hole in before[key].holes if hole.is_absent]
            series = f"{schema.ohlcv_measurement(key[1])},pair={pair}"
            for at_ms in range(from_ms, until_ms, length_of(key)):
                if not any(hole.start_ms <= at_ms < hole.end_ms for hole in absent):
                    assert (series, at_ms) in self.bucket, (
                        f"{key} {(at_ms - T0) // MINUTE_MS}: {line}"
                    )
            self.looks += until_ms > from_ms

    def reopen(self) -> None:
        self.outbox.close()
        super().reopen()
        self.begin()

    def convert(self) -> None:
        self.outbox.close()
        super().convert()
        self.begin()

    def meddle(self) -> None:
        """A hand deletes rows; or another version, which does not know of coverage, writes some."""
        self.outbox.close()
        self.journal.close()
        rng = self.rng
        with contextlib.closing(sqlite3.connect(self.path)) as db, db:
            if rng.random() < 0.5:
                db.execute(
                    "DELETE FROM candle WHERE open_time / 60000 % ? = 0", (rng.randint(2, 5),)
                )
            else:
                for key in self.some():
                    db.execute(
                        """INSERT OR IGNORE INTO candle (
                               pair_id, timeframe_ms, open_time, open, high, low, close,
                               volume, quote_volume, taker_buy_volume, trades, seq
                           ) SELECT pair.id, ?, ?, 1, 1, 1, 1, 1, 1, 1, 1, next FROM pair, sequence
                           WHERE pair = ?""",
                        (length_of(key), self.due(key) - length_of(key), key[0]),
                    )
                    db.execute("UPDATE sequence SET next = next + 1")
                with contextlib.suppress(sqlite3.OperationalError):
                    db.execute("UPDATE sequence SET commits = commits + 1")
        self.journal = self.opened()
        self.begin()

    def demand(self) -> None:
        demand_again(KIND, self.path, TARGET)

    def resend(self) -> None:
        """As `marketfeed deadletter --resend` does: what is taken is forgotten."""
        with RefusedLines(self.path, dropping=True) as table:
            items = [item for item in table.read() if item.target == TARGET]
            if not self.is_calm:
                items = items[: self.rng.randint(0, len(items))]
            self.bucket |= {candle for item in items if (candle := candle_of(item.line))}
            table.drop(item.number for item in items)

    # --- in the end -----------------------------------------------------------------------------------

    def ship_all(self) -> None:
        self.take_up()
        while any(self.shipped.pieces(self.journal.next_seq)):
            self.ship()

    def calm_down(self) -> None:
        """When all is shipped, and looked through, all that is there is said."""
        self.is_calm = True
        keys = list(self.journal.coverage)
        while any(not known.is_looked_through for known in self.journal.coverage.values()):
            self.journal.look_through(keys, 50)
        self.ship_all()
        self.resend()
        if self.journal.db.execute("SELECT count(*) FROM document").fetchone()[0]:
            # Some of what was refused is told no more, or had to be shipped again.
            self.demand()
            self.ship_all()
        for _ in range(200):
            self.look()
            if self.points._unacknowledged.is_whole:
                break
        expected = {key: interval(known, []) for key, known in self.journal.coverage.items()}
        assert {key: self.told[key] for key in expected} == expected
        assert list(self.shipped.pieces(self.journal.next_seq)) == []


@pytest.mark.parametrize("part", range(4))
def test_any_history_of_a_bucket(tmp_path: Path, part: int) -> None:
    said = 0
    for seed in range(part, HISTORIES, 4):
        history = Shipped(tmp_path / str(seed) / "journal.db", seed)
        small = history.rng.random() < 0.7
        with pytest.MonkeyPatch.context() as patch:
            if small:
                patch.setattr(bucket_coverage, "CANDLES", 7)
                patch.setattr(bucket_coverage, "MOST_LOOKS", 4)
                patch.setattr(journal_outbox, "LOOKED_AT_ONCE", 40)
                patch.setattr(acknowledged, "REFUSED_LINES_KEPT", 9)
            try:
                history.run_shipped(history.rng.randint(3, 60))
            except BaseException as error:
                error.add_note(f"seed {seed}: {history.done}")
                raise
        said += history.looks
    # It was no walk in the park: on the average each has said something twice.
    assert said > HISTORIES // 2
