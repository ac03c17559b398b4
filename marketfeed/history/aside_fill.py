"""Takes over what a damaged journal that was set aside still gives: before REST is asked for any of it.

Candles fill holes. Mark prices, funding rates and gaps that have ended are added by their keys: nobody else
has them any more. When all of it has been read, the file may be deleted, and status says so.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

import msgspec

from marketfeed import schema
from marketfeed.errors import JournalError
from marketfeed.grid import TimeRange
from marketfeed.journal.aside import TAKEN, AsideJournal, bytes_of
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import Key
from marketfeed.journal.journal import Journal
from marketfeed.journal.writer import JournalWriter

log = logging.getLogger(__name__)

T = TypeVar("T")

DOCUMENT: Final = "aside"
"""In which a journal keeps the names of those that it has taken everything of."""
LOOK_EVERY_S: Final = 5.0
RETRY_S: Final = 60.0
ROOM_KEPT: Final = 0.9
"""Share of `journal.max_bytes` up to which is taken over: beyond it would soon be deleted again."""
_STOCK_EVERY: Final = 50
_FOR_EVER: Final[Mapping[str, int]] = MappingProxyType({})


class AsideReport(msgspec.Struct, frozen=True):
    """A journal that was set aside, and what has been taken of it by now.

    `state`: `waiting`, `reading`, `drained` (it may be deleted) or `unreadable` (nothing of it could be
    read). `lost` counts the places that could not be read.
    """

    path: str
    bytes: int
    state: str
    candles: int
    rows: int
    lost: int
    trouble: str


class _Aside:
    """One of them, as it stands in this run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.state = "waiting"
        self.candles = 0
        self.rows = 0
        self.lost = 0
        self.trouble = ""

    def report(self) -> AsideReport:
        return AsideReport(
            str(self.path),
            self.bytes,
            self.state,
            self.candles,
            self.rows,
            self.lost,
            self.trouble,
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
                theirs = await asyncio.to_thread(_promised_from_ms, one.path)
            except JournalError as error:
                log.warning("journal set aside cannot be read error=%r", str(error))
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
            for name in await self._drained():
                self._known[name] = _Aside(Path(name))
                self._known[name].state = "drained"
        for name in self._writer.beside:
            one = self._known.setdefault(name, _Aside(Path(name)))
            if not one.bytes:
                one.bytes = await asyncio.to_thread(_size, one.path)
        beside = self._writer.beside
        return [
            one
            for name, one in sorted(self._known.items())
            if name in beside and one.state in ("waiting", "reading")
        ]

    async def _drained(self) -> list[str]:
        try:
            known = await self._writer.call(lambda journal: journal.load_document(DOCUMENT))
            return [] if known is None else msgspec.json.decode(known[0], type=list[str])
        except (JournalError, msgspec.DecodeError):
            # They are taken over once more, which changes nothing.
            return []

    async def _note_drained(self, one: _Aside) -> None:
        one.state = "drained"
        names = [name for name, other in self._known.items() if other.state == "drained"]
        body = msgspec.json.encode(sorted(names))
        try:
            # Not as a document of the writer: a fresh journal has nothing of it.
            await self._writer.call(lambda journal: journal.save_document(DOCUMENT, body, 0))
        except JournalError as error:
            log.warning("not noted that a journal was taken over error=%r", str(error))
        log.warning(
            "journal set aside was taken over, it may be deleted path=%s candles=%d rows=%d lost=%d",
            *(one.path, one.candles, one.rows, one.lost),
        )

    async def _take(self, one: _Aside, *, with_rows: bool) -> bool:
        """Take candles, and then rows, too; returns whether that came to its end."""
        generation = self._writer.generation
        aside = AsideJournal(one.path)
        try:
            await asyncio.to_thread(aside.__enter__)
        except JournalError as error:
            one.state, one.trouble = "unreadable", str(error)
            log.error("nothing can be taken of a journal set aside error=%r", str(error))
            return False
        one.state = "reading"
        try:
            await self._take_candles(one, aside, generation, all_rows=with_rows)
            if with_rows:
                await self._take_rows(one, aside, generation)
        except JournalError as error:
            one.trouble = str(error)
            log.warning("taking over waits, trying again error=%r", str(error))
            return False
        finally:
            one.lost = aside.lost
            await asyncio.to_thread(aside.close)
        one.trouble = ""
        return True

    async def _take_candles(
        self, one: _Aside, aside: AsideJournal, generation: int, *, all_rows: bool
    ) -> None:
        for key in aside.series():
            if key[1] == schema.MARK_1H and not self._writer.has_marks:
                continue
            for time_range in self._wanted(key, all_rows=all_rows):
                async for page in _in_thread(aside.candles(key, time_range)):
                    batch = Batch(candles=page)
                    await self._write(generation, lambda journal: journal.write(batch))  # noqa: B023
                    one.candles += len(page)

    async def _take_rows(self, one: _Aside, aside: AsideJournal, generation: int) -> None:
        for table, upsert in TAKEN.items():
            async for pair, rows in _in_thread(aside.rows(table, self._since_ms(table))):
                one.rows += await self._write(
                    generation,
                    lambda journal: journal.add_rows(upsert, pair, rows),  # noqa: B023
                )

    def _wanted(self, key: Key, *, all_rows: bool) -> list[TimeRange]:
        """What is missing of a series; with `all_rows` of what is promised to nobody, too."""
        since_ms = self._since_ms(schema.TABLE_CANDLE)
        covered = self._writer.all_coverage.get(key)
        if covered is None:
            return [TimeRange(since_ms, self._now_ms())] if all_rows else []
        older = [TimeRange(since_ms, covered.from_ms)] if all_rows else []
        return [*older, *(hole.time_range for hole in covered.holes)]

    def _since_ms(self, table: str) -> int:
        keep_ms = self._keep_ms.get(table)
        return 0 if keep_ms is None else max(0, self._now_ms() - keep_ms)

    async def _write(self, generation: int, write: Callable[[Journal], int]) -> int:
        if self._writer.generation != generation:
            raise JournalError("the journal was replaced meanwhile")
        used, most = self._writer.bytes_used, self._max_bytes
        if used > ROOM_KEPT * most:
            raise JournalError(f"no room for more: {used:,} of journal.max_bytes {most:,} are used")
        changed = await self._writer.call(write)
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


def _promised_from_ms(path: Path) -> dict[Key, int]:
    with AsideJournal(path) as aside:
        return aside.promised_from_ms()


def _size(path: Path) -> int:
    try:
        return bytes_of(path)
    except OSError:
        return 0
