"""Keeps the coverage of a journal's series: what its transactions do to it, and how it is read again."""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from marketfeed import schema
from marketfeed.grid import TILE_CANDLES, TimeRange
from marketfeed.journal import coverage, rows, tables
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import HISTORY_GAP, Covered, Hole, Key, Promise
from marketfeed.journal.reads import JournalReads
from marketfeed.records import CANDLE_GAP, Candle, Gap

log = logging.getLogger(__name__)


class Change:
    """What one transaction does to coverage. It counts once that is committed: `Covering.publish`."""

    def __init__(self, known: Mapping[Key, Covered], *, saves_all: bool = False) -> None:
        self.grown: dict[Key, Covered] = {}
        """Series of which the next candles were stored, and nothing else changes."""
        self.after: dict[Key, Covered | None] = {}
        """The other ones that change; None when a series is released."""
        self.gaps: list[tuple[Gap, Hole | None]] = []
        """The rows of gaps that change, each with its hole if that is open; the last of one counts."""
        self.gap_states: Counter[str] = Counter()
        """How many gaps come into each state, those of a first filling apart."""
        self._known = known
        self._saves_all = saves_all

    def get(self, key: Key) -> Covered | None:
        """What is known of a series by now."""
        if key in self.after:
            return self.after[key]
        return self.grown.get(key) or self._known.get(key)

    def become(self, key: Key, covered: Covered | None, open_rows: Sequence[Hole] = ()) -> None:
        """Take in what is known from here on; of `open_rows` gaps tell already, of no known series."""
        before = self.get(key)
        if covered is not before:
            self.grown.pop(key, None)
            self.after[key] = covered
        if covered is not before or open_rows:
            rows = coverage.changed_gaps(key, before, covered, open_rows)
            if rows:
                self.gaps += rows
                self._count(rows, before)

    def _count(self, rows: Iterable[tuple[Gap, Hole | None]], before: Covered | None) -> None:
        """Count those that say more than a new end, or when the exchange has answered without them."""
        known = {hole.start_ms: hole for hole in (() if before is None else before.holes)}
        for gap, _ in rows:
            was = known.get(gap.start_ms)
            before_state = None if was is None else "unresolvable" if was.is_absent else "found"
            if not gap.kind.startswith(HISTORY_GAP) and gap.state != before_state:
                self.gap_states[gap.state] += 1

    def changed_promises(self) -> list[tuple[Key, Covered, bool]]:
        """Each series of which more changes than its end and its holes, and whether it is released."""
        found: list[tuple[Key, Covered, bool]] = []
        if self._saves_all:
            found += [(key, old, False) for key, old in self._known.items()]
        for key, new in self.after.items():
            old = self._known.get(key)
            if new is None:
                if old is not None:
                    found.append((key, old, True))
            elif (
                old is None
                or old.from_ms != new.from_ms
                or old.looked_ms != new.looked_ms
                or old.promised_ms != new.promised_ms
            ):
                found.append((key, new, False))
        return found


class Covering:
    """The coverage of an open journal, as of its last commit; `series` may be read from any thread.

    In a journal of before version 3 it is kept in memory alone, and made anew at each start.
    """

    def __init__(self, reads: JournalReads, version: int) -> None:
        self.is_durable = version >= schema.COVERAGE_FROM
        self.is_saved = False
        """Whether the file tells of all that is known, but for what the next commit changes.

        It does not while somebody else has changed rows: were that commit counted as one of ours, the next
        start would believe the rest.
        """
        self.gap_states = Counter[str]()
        """How many gaps came into each state since the file was opened, those of a first filling apart."""
        self._reads = reads
        self._series: dict[Key, Covered] = {}
        self._released: set[Key] = set()
        self._open_gaps: dict[Key, list[TimeRange]] | None = None
        self._end_ms: int | None = None
        """When the newest candle of all closed, as the file was opened."""

    @property
    def series(self) -> Mapping[Key, Covered]:
        """What is known of each series that is promised. No series joins or leaves a mapping once given."""
        return MappingProxyType(self._series)

    def load(self) -> None:
        """Read it, as of the last commit. Raises sqlite3.Error."""
        if self._end_ms is None:
            lengths_ms = schema.SERIES_MS
            newest = self._newest()
            self._end_ms = max((at + lengths_ms[key[1]] for key, at in newest.items()), default=0)
        if not self.is_durable:
            return
        self._series, self._released = self._read()
        self.is_saved = self._is_trusted()

    def change(self) -> Change:
        """Begin a transaction."""
        self._open_gaps = None
        return Change(self._series, saves_all=not self.is_saved)

    def publish(self, change: Change) -> None:
        """Take over what a transaction has done: it is committed."""
        if change.gap_states:
            self.gap_states += change.gap_states
        for gap, hole in change.gaps:
            if hole is not None and hole.is_absent:
                log.warning(
                    "candles cannot be fetched pair=%s kind=%s first_ms=%d end_ms=%d reason=%r",
                    gap.pair,
                    gap.kind,
                    hole.start_ms,
                    hole.end_ms,
                    gap.reason,
                )
        series = self._series
        if None in change.after.values() or not change.after.keys() <= series.keys():
            # The event loop goes through the other one: a series that joins would end its loop.
            series = dict(series)
            gone = {key for key, covered in change.after.items() if covered is None}
            self._released = (self._released - change.after.keys()) | gone
        series.update(change.grown)
        for key, covered in change.after.items():
            if covered is None:
                series.pop(key, None)
            else:
                series[key] = covered
        self._series = series

    # --- events, within a transaction ---------------------------------------------------------------

    def take_batch(self, change: Change, batch: Batch) -> None:
        """Take in what a batch stores, what the exchange has answered without, and what is due."""
        known, grown, due = self._series, change.grown, batch.due
        lengths_ms, followed = schema.SERIES_MS, coverage.followed
        opens: defaultdict[Key, list[int]] = defaultdict(list)
        for candle in self._candles(batch):
            key = candle.pair, candle.timeframe
            covered = known.get(key)
            if covered is None:
                continue
            if candle.open_time_ms == covered.end_ms and not (due and key in due):
                # No gap changes by it. A minute's boundary has hundreds of these; one behind it in the same
                # batch is taken in below.
                grown[key] = followed(covered, lengths_ms[candle.timeframe])
            else:
                opens[key].append(candle.open_time_ms)
        for key, missing in due.items():
            # What had not come was missing, though it may be stored here.
            times = opens.pop(key, [])
            late = [at for at in times if missing.had_not_come(at)]
            self._store(change, key, [at for at in times if at not in late])
            covered = change.get(key)
            if covered is not None:
                change.become(key, coverage.expected(covered, missing.until_ms))
            self._store(change, key, late)
        for key, times in opens.items():
            self._store(change, key, times)
        for key, where, at_ms in batch.absent:
            covered = change.get(key)
            if covered is not None:
                change.become(key, coverage.answered_without(covered, where, at_ms))

    @staticmethod
    def _store(change: Change, key: Key, times: list[int]) -> None:
        covered = change.get(key)
        if covered is not None and times:
            times.sort()
            change.become(key, coverage.stored(covered, times, schema.SERIES_MS[key[1]]))

    def promise(self, change: Change, promise: Promise) -> None:
        """Take in what is to be kept of a series."""
        key = promise.pair, promise.timeframe
        length_ms = schema.SERIES_MS[promise.timeframe]
        known = change.get(key)
        newest_ms = self._reads.newest_candle(*key)
        if known is None and key in self._released:
            change.become(key, coverage.added_again(promise, newest_ms))
            return
        open_rows: list[Hole] = []
        if known is None:
            open_rows = [Hole(*gap) for gap in self._open_rows().get(key, ())]
            # Missing at the end, too: marked as healed, it would be shipped so.
            last_ms = max((hole.end_ms for hole in open_rows), default=0) - length_ms
            newest_ms = max(last_ms, newest_ms or 0) or None
            promise = self._reaching(promise, newest_ms, open_rows)
        covered = coverage.promised(
            known, promise, newest_ms, lambda where: self._reads.holes(*key, where)
        )
        if known is None:
            inside = [
                hole
                for hole in open_rows
                if covered.from_ms <= hole.start_ms
                and hole.end_ms <= covered.looked_ms
                and (hole.start_ms - covered.from_ms) % length_ms == 0
            ]
            covered = msgspec.structs.replace(covered, holes=(*disjoint(inside), *covered.holes))
        change.become(key, covered, open_rows)

    def _reaching(
        self, promise: Promise, newest_ms: int | None, open_rows: Sequence[Hole]
    ) -> Promise:
        """The promise of a series of which none is known, as far back as it was collected up to the end.

        Of a journal that keeps no promises that is every start: what an outage has left would be nobody's
        without history. A series that was dropped before the others end reaches no further than asked.
        """
        length_ms = schema.SERIES_MS[promise.timeframe]
        if newest_ms is None or newest_ms + 3 * length_ms < (self._end_ms or 0):
            return promise
        oldest_ms = self._reads.oldest_candle(promise.pair, promise.timeframe)
        starts = [
            hole.start_ms
            for hole in open_rows
            if hole.start_ms >= (oldest_ms or 0) and hole.start_ms % length_ms == 0
        ]
        if oldest_ms is not None:
            starts.append(max(oldest_ms, newest_ms - (TILE_CANDLES - 1) * length_ms))
        reach_ms = promise.now_ms - min(starts, default=promise.now_ms)
        # Nothing that is older than the settings keep, but a day.
        reach_ms = min(reach_ms, max(promise.keep_ms, schema.DAY_MS))
        return promise._replace(reach_ms=max(promise.reach_ms, reach_ms))

    def _open_rows(self) -> dict[Key, list[TimeRange]]:
        """The gaps that are open, read once a transaction."""
        if self._open_gaps is None:
            self._open_gaps = {}
            for pair, timeframe, gap in self._gaps():
                self._open_gaps.setdefault((pair, timeframe), []).append(gap)
        return self._open_gaps

    def look_through(self, change: Change, key: Key, candles: int) -> None:
        """Look through the newest rows of a series that are still to be, so many candles at most."""
        known = change.get(key)
        if known is None or known.is_looked_through:
            return
        length_ms = schema.SERIES_MS[key[1]]
        down_to_ms = max(known.looked_ms - candles * length_ms, known.from_ms)
        lacking = self._reads.holes(*key, TimeRange(down_to_ms, known.looked_ms))
        change.become(key, coverage.looked(known, down_to_ms, lacking))

    def delete(self, change: Change, deleted: Mapping[str, bool], before_ms: int) -> None:
        """Take in that candles of before `before_ms` were deleted; by pair, whether there were any."""
        for key in [key for key in self._series if key[0] in deleted]:
            known = self._series[key]
            kept_ms = schema.ceil_to(before_ms, schema.SERIES_MS[key[1]])
            if deleted[key[0]] or (known.holes and known.holes[0].start_ms < kept_ms):
                change.become(key, coverage.stored_before(known, kept_ms))

    def release(self, change: Change, keys: Iterable[Key]) -> None:
        """Promise no more of these series; their rows stay."""
        for key in keys:
            if key in self._series:
                change.become(key, None)

    def release_others(self, change: Change, keys: Collection[Key]) -> None:
        """Promise no more of all series but these, and of those of which open gaps alone tell."""
        self.release(change, [key for key in self._series if key not in keys])
        for key, gaps in self._open_rows().items():
            if key not in keys and change.get(key) is None and key not in change.after:
                # Dropped before this journal knew of promises: nobody else ends its gaps.
                change.become(key, None, [Hole(*gap) for gap in gaps])

    # --- the tables it is in ------------------------------------------------------------------------

    def write_promises(self, change: Change, ids: Mapping[str, int]) -> None:
        """Save what a change does to promises. In its transaction."""
        if promises := promise_rows(change, ids):
            self._reads.db.executemany(tables.COVERAGE, promises)

    def _newest(self) -> dict[Key, int]:
        return self._reads.newest_candles()

    def _read(self) -> tuple[dict[Key, Covered], set[Key]]:
        return read_coverage(self._reads)

    def _is_trusted(self) -> bool:
        return is_trusted(self._reads)

    def _gaps(self) -> list[tuple[str, str, TimeRange]]:
        return self._reads.open_gaps()

    def _candles(self, batch: Batch) -> Sequence[Candle]:
        return batch.candles


def promise_rows(change: Change, ids: Mapping[str, int]) -> rows.Rows:
    """The rows of the table `coverage` that a change is to write; `ids` are the pairs' numbers."""
    return [
        (
            *(ids[pair], schema.TIMEFRAMES_MS[timeframe]),
            *(covered.from_ms, covered.looked_ms, covered.promised_ms),
            released,
        )
        for (pair, timeframe), covered, released in change.changed_promises()
    ]


def read_coverage(reads: JournalReads) -> tuple[dict[Key, Covered], set[Key]]:
    """What a journal of version 3 says is promised and missing; and which series it promises no more.

    When the journal's counters tell that somebody else has changed rows, all are to be looked through.
    """
    names = schema.TIMEFRAME_NAMES
    promises = [
        (pair, names[length_ms], *others)
        for pair, length_ms, *others in reads.db.execute(
            """SELECT pair, timeframe_ms, "from", looked, promised, released
               FROM coverage JOIN pair ON pair.id = pair_id"""
        )
    ]
    if not promises:
        return {}, set()
    return covered_series(reads, promises, reads.newest_candles(), trusted=is_trusted(reads))


def covered_series(
    reads: JournalReads,
    promises: Iterable[tuple[str, str, int, int, int, int]],
    newest: Mapping[Key, int],
    *,
    trusted: bool,
) -> tuple[dict[Key, Covered], set[Key]]:
    """What is known of series by rows (pair, series, from, looked, promised, released) and their gaps."""
    holes: defaultdict[Key, list[Hole]] = defaultdict(list)
    for pair, kind, *hole in reads.db.execute(
        """SELECT pair, kind, start, "end", empty_1, empty_2 FROM gap JOIN pair ON pair.id = pair_id
           WHERE state IN ('found', 'healing') OR (state = 'unresolvable' AND empty_2 IS NOT NULL)
           ORDER BY start"""
    ):
        start_ms, end_ms, *empty = hole
        if kind == schema.MARK_1H and end_ms is not None:
            holes[pair, kind].append(Hole(start_ms, end_ms, False, *empty))
        for prefix in (CANDLE_GAP, HISTORY_GAP):
            if kind.startswith(prefix) and end_ms is not None:
                one = Hole(start_ms, end_ms, prefix == HISTORY_GAP, *empty)
                holes[pair, kind.removeprefix(prefix)].append(one)
    found: dict[Key, Covered] = {}
    gone: set[Key] = set()
    for pair, series, from_ms, looked_ms, keep_ms, released in promises:
        key = pair, series
        length_ms = schema.SERIES_MS[series]
        if released:
            gone.add(key)
            continue
        mine = disjoint(hole for hole in holes[key] if hole.start_ms >= from_ms)
        end_ms = max(
            from_ms,
            # What is still to be looked through was due, though neither row nor hole may tell of it now.
            looked_ms,
            newest[key] + length_ms if key in newest else from_ms,
            *(hole.end_ms for hole in mine[-1:]),
        )
        covered = Covered(from_ms, looked_ms, end_ms, keep_ms, tuple(mine))
        found[key] = covered if trusted else coverage.distrusted(covered)
    return found, gone


def is_trusted(reads: JournalReads) -> bool:
    """Whether a journal's counters tell that nobody else has changed rows since coverage was saved."""
    text = "SELECT commits = covered_commits AND deleted = covered_deleted FROM sequence"
    return bool(reads.db.execute(text).fetchone()[0])


def disjoint(holes: Iterable[Hole]) -> list[Hole]:
    """Holes in their order, without those that another one overlaps: a hand may have written such rows."""
    found: list[Hole] = []
    for hole in sorted(holes, key=lambda one: one[:2]):
        if hole.start_ms < hole.end_ms and (not found or hole.start_ms >= found[-1].end_ms):
            found.append(hole)
    return found
