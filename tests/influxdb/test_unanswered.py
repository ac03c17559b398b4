"""A request without an answer that is carried out late undoes nothing for good, and is not paid for twice."""

import asyncio
import socket
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
import pytest
import uvloop
from endpoint import Server, run, serving, stored
from filled import MINUTE, PAIRS, QUICK, T0, fill
from hypothesis import given, settings
from hypothesis import strategies as st

from marketfeed.commands.refused_lines import AT_ONCE, read_refused, resend_refused
from marketfeed.influxdb import unanswered as unanswered_lines
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.unanswered import UnansweredLines
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import KIND, Journal
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, Gap
from marketfeed.settings.model import InfluxSettings, Settings
from marketfeed.storage.ranges import Acknowledged
from tests.waiting import until

PACE: Final = msgspec.structs.replace(QUICK, recheck_after_s=0.3)


def corrected(trades: int, state: str) -> Batch:
    """A candle and a gap in one of their states; each is a row that changes."""
    batch = Batch()
    close = 1.0 + trades
    batch.add(
        Candle(PAIRS[0], "1m", T0, 1.0, 9.0, 1.0, close, 1.0, 1.0, 1.0, trades, True, T0 + MINUTE)
    )
    batch.add(Gap("candles_1m", PAIRS[0], T0, T0 + MINUTE, state, "lost"))  # type: ignore[arg-type]
    return batch


class Late:
    """Answers of a server that hangs up on some requests, and carries those out after a later one."""

    def __init__(self, server: Server, hangs_up: list[bool]) -> None:
        self._server = server
        self._hangs_up = hangs_up
        self.lines: list[str] = []
        server.answer = self._answer

    def _answer(self, lines: list[str]) -> tuple[int, bytes, dict[str, str]]:
        if self._hangs_up and self._hangs_up.pop():
            self.lines += lines
            return 0, b"", {}
        return stored(lines)

    def carry_out(self) -> None:
        for line in self.lines:
            series, fields, time = line.rsplit(" ", 2)
            self._server.points[series, time] = fields
        self.lines.clear()


def standing(path: Path) -> dict[tuple[str, str], str]:
    """What the journal holds, as points."""
    outbox = JournalOutbox(path, "")
    try:
        found = [
            line.rsplit(" ", 2)
            for line in outbox.newest(Acknowledged.alike(KIND.measurements), 10**6).lines
        ]
    finally:
        outbox.close()
    # The host's name is the shipper's own.
    return {(series, time): fields for series, fields, time in found if ",collector=" not in series}


def test_an_older_line_that_is_carried_out_late_is_put_right(path: Path) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        late = Late(server, [True])
        undone = []

        def rights() -> tuple[bool, bool]:
            texts = {
                series.partition(",")[0]: fields for (series, _), fields in server.points.items()
            }
            return "trades=9i" in texts.get("ohlcv_1m", ""), "healed=true" in texts.get(
                "feed_gap", ""
            )

        def after() -> None:
            if late.lines and rights() == (True, True):
                late.carry_out()
                undone.append(rights())

        server.after = after
        await writer.call(lambda journal: journal.write(corrected(5, "found")))
        await until(lambda: bool(late.lines))
        await writer.call(lambda journal: journal.write(corrected(9, "healed")))
        await until(lambda: bool(undone) and rights() == (True, True))
        assert undone == [(False, False)]
        await until(lambda: shipper.report().in_doubt == 0)
        assert shipper.shipped_below() == writer.next_seq
        # Nobody hears of it twice.
        sent = len(server.requests)
        await asyncio.sleep(2 * PACE.recheck_after_s)
        assert len(server.requests) == sent

    run(path, scenario, PACE)


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_in_whatever_order_a_server_carries_requests_out(
    tmp_path_factory: pytest.TempPathFactory, hangs_up: list[bool], changes: int
) -> None:
    path = tmp_path_factory.mktemp("late") / "journal.db"

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.after = Late(server, list(hangs_up)).carry_out
        for number in range(changes):
            batch = corrected(number, "healing" if number % 2 else "healed")
            batch.extend(fill(number, 1).candles)
            await writer.call(lambda journal, batch=batch: journal.write(batch))
            await asyncio.sleep(0.01)
        await until(lambda: shipper.shipped_below() == writer.next_seq)
        await until(lambda: shipper.report().in_doubt == 0)
        found = {key: fields for key, fields in server.points.items() if "feed_gap" not in key[0]}
        assert found == await asyncio.to_thread(standing, path)

    run(path, scenario, PACE)


def test_a_backlog_is_not_shipped_twice_for_an_outage_without_answers(path: Path) -> None:
    """Tried again and again meanwhile: with what is in doubt already, so that does not become more."""

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.answer = lambda lines: (0, b"", {})
        for number in range(40):
            batch = fill(number * 20, 20)
            await writer.call(lambda journal, batch=batch: journal.write(batch))
            await until(lambda n=number: len(server.requests) > n)
        rows = 40 * 20 * 9 + 3
        in_vain = sum(map(len, server.requests))
        # The first as large as it was, then a line each.
        assert in_vain <= PACE.max_lines + len(server.requests)
        assert shipper.report().in_doubt <= PACE.max_lines
        server.answer = stored
        await until(lambda: shipper.shipped_below() == writer.next_seq)
        await until(lambda: shipper.report().in_doubt == 0)
        again = sum(map(len, server.requests)) - in_vain - rows
        assert again <= 10, "probes, and none of the rows: no one has changed"
        assert len(server.points) == rows

    run(path, scenario, PACE)


def closed(start_ms: int, count: int, trades: int = 5) -> Batch:
    batch = Batch()
    for number in range(count):
        at_ms = start_ms + number * MINUTE
        batch.add(
            Candle(PAIRS[0], "1m", at_ms, 1.0, 9.0, 1.0, 2.0, 1.0, 1.0, 1.0, trades, True, at_ms)
        )
    return batch


def test_rows_that_a_server_cannot_store_now_hold_no_others_up(path: Path) -> None:
    """Those of an old shard that is read-only, say: each of them is answered 500, corrected or not."""
    old_ms = T0 - 40_000 * MINUTE

    def answer(lines: list[str]) -> tuple[int, bytes, dict[str, str]]:
        if any(int(line.rpartition(" ")[2]) < T0 for line in lines):
            return 500, b"engine: read-only file system", {}
        return stored(lines)

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.answer = answer
        await writer.call(lambda journal: journal.write(closed(old_ms, 15)))
        await until(lambda: len(server.requests) > 5)
        await writer.call(lambda journal: journal.write(closed(T0, 300)))
        await until(lambda: len(server.points) >= 250)
        await writer.call(lambda journal: journal.write(closed(old_ms, 15, trades=9)))
        sent = len(server.requests)
        await until(lambda: len(server.requests) > sent + 5)
        before = len(server.points)
        await writer.call(lambda journal: journal.write(closed(T0 + 1_000 * MINUTE, 300)))
        await until(lambda: len(server.points) >= before + 250)
        server.answer = stored
        await until(lambda: shipper.shipped_below() == writer.next_seq)
        await until(lambda: shipper.report().in_doubt == 0)
        assert len(server.points) == 615
        assert server.points == await asyncio.to_thread(standing, path)

    run(path, scenario, PACE)


def test_lines_sent_again_by_hand_undo_no_correction_that_comes_meanwhile(path: Path) -> None:
    """Each 500 are read just before they are sent, and looked at once more when they have arrived."""
    numbers = range(AT_ONCE + 1)

    def candles(trades: int) -> Batch:
        batch = Batch()
        for number in numbers:
            at_ms = T0 + number * MINUTE
            batch.add(
                Candle(
                    PAIRS[0], "1m", at_ms, 1.0, 9.0, 1.0, 2.0, 1.0, 1.0, 1.0, trades, True, at_ms
                )
            )
        return batch

    async def main() -> None:
        async with serving() as server:
            with Journal.open(path) as journal:
                journal.write(candles(5))
                old = [f"{s} {fields} {time}" for (s, time), fields in standing(path).items()]
                journal.put_aside("x", [(line, "status 422") for line in old], T0)

                async def correct(request: object) -> None:
                    server.before = None
                    journal.write(candles(9))

                server.before = correct
                given = Settings.model_validate(
                    {
                        "journal": {"path": str(path)},
                        "influxdb": {"url": server.url, "org": "fleet", "token": "canary-token"},
                    }
                )
                assert await resend_refused(given) == len(numbers)
                assert server.points == standing(path)
            assert list(map(len, server.requests)) == [AT_ONCE, AT_ONCE, 1]
            assert read_refused(path) == []

    uvloop.run(main())


def test_what_never_reached_a_server_is_not_in_doubt() -> None:
    async def main() -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{held.getsockname()[1]}"
            given = InfluxSettings.model_validate({"url": url, "api": "v1"})
            async with aiohttp.ClientSession() as session:
                verdict = await InfluxWriter(given, session).write(["a b=1 1"])
        assert (verdict.action, verdict.pending) == ("retryable", False)

    uvloop.run(main())


def test_a_server_that_hangs_up_all_the_time_keeps_memory_bounded() -> None:
    held = UnansweredLines(60.0)
    for number in range(100):
        held.add(f"{number} {line}" for line in range(1_000))
        held.answered(float(number))
        if held.hold_s(float(number)) > 0:
            break
    assert len(held) == unanswered_lines.MOST_LINES
    assert held.hold_s(float(number)) == 60.0 - number
    assert held.hold_s(61.0) == 0.0
    assert held.due(59.9) == []
    due = held.due(60.0)
    assert due == [f"0 {line}" for line in range(unanswered_lines.AT_ONCE)]
    held.rechecked(len(due))
    assert held.due(60.0) == []
    assert len(held) == unanswered_lines.MOST_LINES - 1_000
