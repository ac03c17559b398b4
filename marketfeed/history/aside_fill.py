"""Takes over what a damaged journal that was set aside still gives: before REST is asked for any of it.

Candles fill holes. Mark prices, funding rates and gaps that have ended are added by their keys: nobody else
has them any more. When all of it has been read, the file may be deleted, and status says so.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar

import msgspec

from marketfeed import schema
from marketfeed.errors import JournalError, JournalWriteError
from marketfeed.grid import TimeRange
from marketfeed.history.aside_report import AsideReport
from marketfeed.journal import tables
from marketfeed.journal.aside import (
    TAKEN,
    AsideJournal,
    NothingReadableError,
    Progress,
    bytes_of,
    is_constraint,
    walk_of,
)
from marketfeed.journal.aside_rows import Row
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import Key
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle

log = logging.getLogger(__name__)

T = TypeVar("T")

DOCUMENT: Final = "aside"
"""In which a journal keeps the names of those that it has taken everything of."""
LOOK_EVERY_S: Final = 5.0
RETRY_S: Final = 60.0
UNREADABLE_S: Final = 3_600.0
"""Wall seconds until one of which nothing could be read is looked at again."""
_NAMED: Final = 20
"""So many lost places are kept with their names."""
ROOM_KEPT: Final = 0.9
"""Share of `journal.max_bytes` up to which is taken over: beyond it would soon be deleted again."""
_STOCK_EVERY: Final = 50
_FOR_EVER: Final[Mapping[str, int]] = MappingProxyType({})


class _Drained(msgspec.Struct, omit_defaults=True):
    """What a journal keeps of one that it has taken everything of; older versions keep its path alone."""

    path: str
    lost: int = 0
    lost_places: list[str] = []


_Drains: TypeAlias = list[str | _Drained]


class _Aside:
    """One of them, as it stands in this run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.state = "waiting"
        self.candles = 0
        self.rows = 0
        self.lost = 0
        self.lost_places: list[str] = []
        self.trouble = ""
        self.progress = Progress()
        self.again_at_s = 0.0
        """When (monotonic) one that is unreadable is looked at again."""

    @property
    def is_left(self) -> bool:
        """Whether something may still be taken of it."""
        if self.state == "unreadable":
            return time.monotonic() >= self.again_at_s
        return self.state in ("waiting", "reading")

    def note_lost(self) -> None:
        """Bring what is lost up to date."""
        self.lost = len(self.progress.lost)
        self.lost_places = [what for _, what in list(self.progress.lost)[:_NAMED]]

    def fail(self, error: Exception) -> None:
        """Nothing can be read of it, or nobody knows why it cannot be: later again."""
        self.state, self.trouble = "unreadable", str(error) or repr(error)
        self.again_at_s = time.monotonic() + UNREADABLE_S

    def report(self) -> AsideReport:
        return AsideReport(
            str(self.path),
            self.bytes,
            self.state,
            self.candles,
            self.rows,
            self.lost,
            self.trouble,
            self.lost_places,
        )


class AsideFill:
    """Takes over from the journals that lie beside that of `writer`, within its disk budget `max_bytes`.

    `are_promised` says whether the journal's promises are made: before that nobody knows its holes. `keep_ms`
    is for how long rows are kept, by table: older ones are not taken.
    """

    def __init__(
        self,
        writer: JournalWriter,
        max_bytes: int,
        now_ms: Callable[[], int],
        are_promised: Callable[[], bool],
        keep_ms: Mapping[str, int] = _FOR_EVER,
    ) -> None:
        self._keep_ms = keep_ms
        self._writer = writer
        self._now_ms = now_ms
        self._max_bytes = max_bytes
        self._are_promised = are_promised
        self._known: dict[str, _Aside] = {}
        self._generation = 0
        self._filling = asyncio.Lock()
        self._writes = 0

    def report(self) -> list[AsideReport]:
        """Those that lie there, oldest first."""
        beside = self._writer.beside
        return [one.report() for path, one in sorted(self._known.items()) if path in beside]

    async def promised_from_ms(self) -> Mapping[Key, int]:
        """From where on they promised each series: what their successor is to promise, too."""
        found: dict[Key, int] = {}
        for one in await self._left():
            try:
                theirs = await asyncio.to_thread(
                    _promised_from_ms, one.path, self._writer.again_after_s
                )
            except JournalError as error:
                log.warning("journal set aside cannot be read error=%r", str(error))
                continue
            except Exception:
                # Nobody knows what a bad page gives: promises are made without it.
                log.exception("journal set aside gives what nobody expects path=%s", one.path)
                continue
            for key, from_ms in theirs.items():
                found[key] = min(from_ms, found.get(key, from_ms))
        return found

    async def fill(self) -> None:
        """Fill the holes of candles that there are now. Never raises for what a disk does."""
        async with self._filling:
            for one in await self._left():
                await self._take(one, with_rows=False)

    async def run(self) -> None:
        """Take over what comes to lie there, until cancelled."""
        while True:
            pause_s = LOOK_EVERY_S
            if self._are_promised():
                async with self._filling:
                    for one in await self._left():
                        if await self._take(one, with_rows=True):
                            await self._note_drained(one)
                        elif one.state != "unreadable":
                            pause_s = RETRY_S
            await asyncio.sleep(pause_s)

    # --- inside -----------------------------------------------------------------------------------

    async def _left(self) -> list[_Aside]:
        """Those of which something may still be taken."""
        if self._generation != self._writer.generation:
            # What was taken over into the one before may be lost with it.
            self._known, self._generation = {}, self._writer.generation
            for found in await self._drained():
                known = _Drained(found) if isinstance(found, str) else found
                one = self._known[known.path] = _Aside(Path(known.path))
                one.state, one.lost, one.lost_places = "drained", known.lost, known.lost_places
        for name in self._writer.beside:
            one = self._known.setdefault(name, _Aside(Path(name)))
            if not one.bytes:
                one.bytes = await asyncio.to_thread(_size, one.path)
        beside = self._writer.beside
        return [one for name, one in sorted(self._known.items()) if name in beside and one.is_left]

    async def _drained(self) -> _Drains:
        try:
            known = await self._writer.call(
                lambda journal: journal.load_document(DOCUMENT), self._generation
            )
            return [] if known is None else msgspec.json.decode(known[0], type=_Drains)
        except (JournalError, msgspec.DecodeError):
            # They are taken over once more, which changes nothing.
            return []

    async def _note_drained(self, one: _Aside) -> None:
        if self._writer.generation != self._generation:
            # Its rows went with the journal that they were taken into.
            return
        one.state = "drained"
        drained: _Drains = [
            _Drained(name, other.lost, other.lost_places) if other.lost else name
            for name, other in sorted(self._known.items())
            if other.state == "drained"
        ]
        body = msgspec.json.encode(drained)
        try:
            # Not as a document of the writer, and into that journal only: a fresh one has nothing of it.
            await self._writer.call(
                lambda journal: journal.save_document(DOCUMENT, body, 0), self._generation
            )
        except JournalError as error:
            log.warning("not noted that a journal was taken over error=%r", str(error))
        log.warning(
            "journal set aside was taken over as far as it can be read path=%s candles=%d rows=%d lost=%d%s",
            *(one.path, one.candles, one.rows, one.lost),
            f" lost_places={one.lost_places!r}" if one.lost else "",
        )

    async def _take(self, one: _Aside, *, with_rows: bool) -> bool:
        """Take candles, and then rows, too; returns whether that came to its end. Never raises."""
        try:
            if not (now_ms := self._now_ms()):
                raise JournalError(
                    "the exchange's time is not certain yet: nothing tells a wrong row"
                )
            await self._take_once(one, now_ms, with_rows=with_rows)
            # What a disk did not give for a moment may be there by now.
            if with_rows and one.progress.read_again():
                await self._take_once(one, now_ms, with_rows=True)
        except NothingReadableError as error:
            one.fail(error)
            log.error("nothing can be taken of a journal set aside error=%r", str(error))
            return False
        except JournalError as error:
            one.trouble = str(error)
            log.warning("taking over waits, trying again error=%r", str(error))
            return False
        except Exception as error:
            # Nobody knows what a bad page gives: it is shown, and collecting goes on.
            one.fail(error)
            log.exception("a journal set aside gives what nobody expects path=%s", one.path)
            return False
        finally:
            one.note_lost()
        one.trouble = ""
        return True

    async def _take_once(self, one: _Aside, now_ms: int, *, with_rows: bool) -> None:
        generation = self._generation
        known = await self._writer.call(_pairs, generation)
        aside = AsideJournal(one.path, one.progress, known, self._writer.again_after_s)
        try:
            await asyncio.to_thread(aside.__enter__)
            one.state = "reading"
            await self._take_candles(one, aside, generation, all_rows=with_rows)
            if with_rows:
                await self._take_rows(one, aside, generation, now_ms)
        finally:
            aside.stop()
            await asyncio.to_thread(aside.close)

    async def _take_candles(
        self, one: _Aside, aside: AsideJournal, generation: int, *, all_rows: bool
    ) -> None:
        for key in aside.series():
            if key[1] == schema.MARK_1H and not self._writer.has_marks:
                continue
            walk, length_ms = walk_of(key), schema.SERIES_MS[key[1]]
            older, holes = self._wanted(key)
            for time_range in [*(older if all_rows else ()), *holes]:
                is_older = time_range in older
                start_ms, end_ms = time_range
                if is_older and (place := one.progress.done.get(walk)):
                    # An attempt before this one came so far.
                    start_ms = max(start_ms, int(place[0]))
                async for page in _in_thread(aside.candles(key, TimeRange(start_ms, end_ms))):
                    one.candles += await self._add_candles(one, generation, page)
                    if is_older:
                        one.progress.done[walk] = (page[-1].open_time_ms + length_ms,)

    async def _add_candles(self, one: _Aside, generation: int, page: list[Candle]) -> int:
        try:
            batch = Batch(candles=page)
            await self._write(generation, lambda journal: journal.write(batch))
        except JournalWriteError as error:
            if not is_constraint(error):
                raise
            if len(page) == 1:
                walk = walk_of((page[0].pair, page[0].timeframe))
                one.progress.lose(walk, f"{walk} at {page[0].open_time_ms}: {error.__cause__}")
                return 0
            return sum([await self._add_candles(one, generation, [candle]) for candle in page])
        return len(page)

    async def _take_rows(
        self, one: _Aside, aside: AsideJournal, generation: int, now_ms: int
    ) -> None:
        for table, upsert in TAKEN.items():
            async for pair, rows in _in_thread(aside.rows(table, now_ms, self._since_ms(table))):
                one.rows += await self._add_rows(one, generation, upsert, pair, rows)

    async def _add_rows(
        self, one: _Aside, generation: int, upsert: tables.Upsert, pair: str | None, rows: list[Row]
    ) -> int:
        try:
            return await self._write(
                generation, lambda journal: journal.add_rows(upsert, pair, rows)
            )
        except JournalWriteError as error:
            if not is_constraint(error):
                raise
            if len(rows) == 1:
                what = f"{pair or 'all pairs'} at {rows[0][0]}: {error.__cause__}"
                one.progress.lose("refused", what)
                return 0
            return sum([await self._add_rows(one, generation, upsert, pair, [row]) for row in rows])

    def _wanted(self, key: Key) -> tuple[list[TimeRange], list[TimeRange]]:
        """What of a series is promised to nobody, and its holes."""
        since_ms = self._since_ms(schema.TABLE_CANDLE)
        covered = self._writer.all_coverage.get(key)
        if covered is None:
            return [TimeRange(since_ms, self._now_ms())], []
        return [TimeRange(since_ms, covered.from_ms)], [hole.time_range for hole in covered.holes]

    def _since_ms(self, table: str) -> int:
        keep_ms = self._keep_ms.get(table)
        return 0 if keep_ms is None else max(0, self._now_ms() - keep_ms)

    async def _write(self, generation: int, write: Callable[[Journal], int]) -> int:
        used, most = self._writer.bytes_used, self._max_bytes
        if used > ROOM_KEPT * most:
            raise JournalError(f"no room for more: {used:,} of journal.max_bytes {most:,} are used")
        changed = await self._writer.call(write, generation)
        self._writes += 1
        if self._writes % _STOCK_EVERY == 0:
            await self._writer.take_stock()
        return changed


async def _in_thread(pages: Iterator[T]) -> AsyncIterator[T]:
    """An iterator's items, each made beside the event loop."""
    while True:
        item = await asyncio.to_thread(next, pages, None)
        if item is None:
            return
        yield item


def _promised_from_ms(path: Path, again_after_s: Sequence[float]) -> dict[Key, int]:
    # A start waits for it: one place is enough to be patient for.
    with AsideJournal(path, again_after_s=again_after_s, patience=1) as aside:
        return aside.promised_from_ms()


def _pairs(journal: Journal) -> set[str]:
    return {pair for (pair,) in journal.db.execute("SELECT pair FROM pair")}


def _size(path: Path) -> int:
    try:
        return bytes_of(path)
    except OSError:
        return 0
