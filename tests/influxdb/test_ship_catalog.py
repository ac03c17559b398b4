"""The catalog is shipped again and again, so that no bucket forgets it; the newest point is right."""

from pathlib import Path

from endpoint import Server, run
from filled import PAIRS, T0

from marketfeed.influxdb.shipper import Shipper
from marketfeed.journal.batch import Batch
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import CatalogEntry
from marketfeed.schema import DAY_MS
from tests.waiting import until


class Clock:
    """Exchange time that a test sets."""

    def __init__(self, ms: int) -> None:
        self.ms = ms

    def now_ms(self) -> int:
        return self.ms


def entry(pair: str, changed_ms: int, ended_ms: int | None = None, frames: str = "1m") -> Batch:
    batch = Batch()
    names = tuple(frames.split(","))
    batch.add(CatalogEntry(pair, pair[:3], names, T0, 5, ended_ms, changed_ms))
    return batch


def shipped(server: Server, pair: str) -> dict[int, str]:
    """Time -> fields of a pair's points, in the order of time."""
    series = f"feed_catalog,pair={pair}"
    return {int(t): server.points[s, t] for s, t in sorted(server.points) if s == series}


def test_the_catalog_is_shipped_at_the_start_and_every_day(path: Path) -> None:
    clock = Clock(T0 + 40 * DAY_MS)

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        both = entry(PAIRS[0], T0)
        both.merge(entry(PAIRS[1], T0))
        await writer.call(lambda journal: journal.write(both))
        await until(lambda: len(shipped(server, PAIRS[1])) == 2)
        first_ms = clock.ms
        for pair in PAIRS[:2]:
            assert shipped(server, pair) == dict.fromkeys(
                (T0, first_ms), 'timeframes="1m",listed=5i,dropped=false'
            )
        clock.ms += DAY_MS - 1
        sent = len(server.requests)
        await writer.call(lambda journal: journal.write(entry(PAIRS[2], clock.ms)))
        await until(lambda: shipped(server, PAIRS[2]))
        clock.ms += 1
        await until(lambda: len(shipped(server, PAIRS[0])) == 3)
        # Not one by one: all of them in one request.
        assert len(server.requests) == sent + 2
        assert [max(shipped(server, pair)) for pair in PAIRS] == [first_ms + DAY_MS] * 3

    run(path, scenario, now_ms=clock.now_ms)


def test_a_change_is_not_hidden_by_what_was_shipped_after_it(path: Path) -> None:
    """It is noted at one time and committed some time later; in between the catalog was shipped."""
    clock = Clock(T0 + DAY_MS)
    pair = PAIRS[0]

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        await writer.call(lambda journal: journal.write(entry(pair, T0)))
        await until(lambda: clock.ms in shipped(server, pair))
        for number, ended_ms in enumerate((T0 + 7, None, T0 + 9)):
            changed_ms = clock.ms - 3 + number
            await writer.call(
                lambda journal, at=changed_ms, end=ended_ms: journal.write(entry(pair, at, end))
            )
            fields = 'timeframes="1m",listed=5i' + (f",ended={ended_ms}i" if ended_ms else "")
            fields += ",dropped=false"
            await until(lambda f=fields: list(shipped(server, pair).values())[-1] == f)
        assert max(shipped(server, pair)) > clock.ms

    run(path, scenario, now_ms=clock.now_ms)


def test_without_a_clock_nothing_is_shipped_again(path: Path) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        await writer.call(lambda journal: journal.write(entry(PAIRS[0], T0)))
        await until(lambda: shipper.shipped_below() == writer.next_seq)

    server = run(path, scenario)
    assert list(shipped(server, PAIRS[0])) == [T0]
