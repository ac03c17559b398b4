"""Everything in the journal reaches the server, whatever it answers: once acknowledged, never lost."""

import asyncio
from pathlib import Path

import aiohttp
import msgspec
import pytest
import uvloop
from aiohttp import web
from endpoint import Server, run, serving, stored
from filled import MINUTE, PAIRS, QUICK, ROWS, T0, fill
from hypothesis import given, settings
from hypothesis import strategies as st

from marketfeed.commands.refused_lines import read_refused
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import InfluxWriter
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.retention import expired
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle
from marketfeed.settings.model import InfluxSettings
from tests.shipped_ranges import ranges_of
from tests.sweeps import sweep_out
from tests.waiting import until


def test_every_table_is_shipped_once_as_the_schema_says(path: Path) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        await writer.call(lambda journal: journal.write(fill()))
        await until(lambda: shipper.shipped_below() == writer.next_seq)
        # What comes later comes alone.
        later = Batch()
        later.extend(fill(10, 1).candles)
        await writer.call(lambda journal: journal.write(later))
        await until(lambda: len(server.points) == ROWS + 3)
        await until(lambda: shipper.shipped_below() == writer.next_seq)
        assert sum(map(len, server.requests)) == ROWS + 3
        assert shipper.report().lines == ROWS + 3

    server = run(path, scenario)
    assert server.points["ohlcv_1m,pair=BTC/USDT:USDT", str(T0)] == (
        "open=1.5,high=2.5,low=1.0,close=2.0,volume=3.0,quote_volume=4.0,taker_buy_volume=1.0,trades=5i"
    )
    assert ("mark_price,pair=币安/USDT:USDT", str(T0 + 1_000)) in server.points
    (measurements,) = [{series.split(",")[0] for series, _ in server.points}]
    assert measurements == {
        "ohlcv_1m", "mark_price", "funding_rate", "funding_settled", "feed_gap", "feed_catalog",
    }  # fmt: skip
    assert server.headers[0]["path"] == "/api/v2/write?bucket=market_data&precision=ms&org=fleet"
    assert server.headers[0]["Authorization"] == "Token canary-token"


def test_v1_uses_its_own_route(path: Path) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        await writer.call(lambda journal: journal.write(fill()))
        await until(lambda: len(server.points) == ROWS)

    server = run(path, scenario, api="v1", org=None, token=None)
    assert server.headers[0]["path"] == "/write?db=market_data&precision=ms"
    assert "Authorization" not in server.headers[0]


def test_a_restart_ships_only_what_is_new(path: Path) -> None:
    async def main() -> None:
        async with serving() as server, aiohttp.ClientSession() as session:
            options = InfluxSettings.model_validate({"url": server.url, "org": "fleet"})
            for turn in range(2):
                async with JournalWriter(path) as writer:
                    shipper = Shipper(writer, InfluxWriter(options, session), QUICK)
                    task = asyncio.create_task(shipper.run())
                    batch = fill(20 * turn)
                    await writer.call(lambda journal, batch=batch: journal.write(batch))
                    shipper.end()
                    await task
                    assert shipper.shipped_below() == writer.next_seq
            # The second time: nine new rows a minute; what was settled, lost and listed is the same.
            assert sum(map(len, server.requests)) == ROWS + 90

    uvloop.run(main())


def test_a_changed_candle_is_shipped_again(path: Path) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        await writer.call(lambda journal: journal.write(fill(0, 1)))
        await until(lambda: len(server.points) == 9 + 3)
        better = Batch()
        better.add(
            Candle(PAIRS[0], "1m", T0, 1.5, 2.5, 1.0, 2.25, 3.0, 4.0, 1.0, 6, True, T0 + MINUTE)
        )
        await writer.call(lambda journal: journal.write(better))
        key = "ohlcv_1m,pair=BTC/USDT:USDT", str(T0)
        await until(lambda: "close=2.25" in server.points[key])

    run(path, scenario)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 401, 403, 404, 0])
def test_nothing_is_lost_while_the_server_refuses(path: Path, status: int) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.answer = lambda lines: (status, b"no", {"Retry-After": "0"} if status == 429 else {})
        await writer.call(lambda journal: journal.write(fill()))
        await until(lambda: len(server.requests) >= 4)
        assert server.points == {}
        report = shipper.report()
        assert report.state == ("parked" if status in (401, 403, 404) else "waiting")
        assert report.trouble
        server.answer = stored
        await until(lambda: len(server.points) == ROWS)
        await until(lambda: shipper.report().state == "shipping")

    run(path, scenario)


@pytest.mark.parametrize("page", [b"<html><b>It works!</b>", b""])
def test_what_answers_like_no_influxdb_has_stored_nothing(path: Path, page: bytes) -> None:
    """A wrong address, or an ingress that has a page for everything: nothing counts as shipped."""

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.answer = lambda lines: (200, page, {})
        await writer.call(lambda journal: journal.write(fill()))
        await until(lambda: shipper.report().state == "parked")
        report = shipper.report()
        assert report.lines == 0
        assert report.trouble.startswith("status 200")
        assert "(an InfluxDB answers a write with 204, this is none)" in report.trouble
        assert shipper.shipped_below() == 1
        server.answer = stored
        await until(lambda: len(server.points) == ROWS)

    run(path, scenario)


@pytest.mark.parametrize("wish", ["0", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_server_that_wishes_no_wait_is_not_tried_without_end(path: Path, wish: str) -> None:
    """Whatever `Retry-After` says, the back-off is the least that is waited."""

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.answer = lambda lines: (503, b"", {"Retry-After": wish})
        await writer.call(lambda journal: journal.write(fill()))
        await until(lambda: len(server.requests) >= 1)
        await asyncio.sleep(0.5)
        # Waits are drawn from 0 to 1, 2, 4 … s: a hundred in half a second are none.
        assert len(server.requests) < 100
        server.answer = stored
        shipper.end()

    run(path, scenario, msgspec.structs.replace(QUICK, backoff_first_s=1.0, backoff_cap_s=10.0))


def test_one_bad_line_costs_that_line_only(path: Path) -> None:
    def v2(lines: list[str]) -> tuple[int, bytes, dict[str, str]]:
        if any(str(T0 + 3 * MINUTE) in line and "ohlcv_1m,pair=ETH" in line for line in lines):
            return 400, b'{"code":"invalid","message":"unable to parse it"}', {}
        return stored(lines)

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.answer = v2
        await writer.call(lambda journal: journal.write(fill()))
        await until(lambda: len(server.points) == ROWS - 1)
        await until(lambda: shipper.report().refused == 1)
        (line,) = await asyncio.to_thread(read_refused, path)
        assert line.line.startswith("ohlcv_1m,pair=ETH/USDT:USDT ")
        assert line.answer == "status 400: unable to parse it"
        assert "canary" not in line.target

    run(path, scenario)


def test_a_request_that_is_wrong_puts_no_line_aside(path: Path) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.answer = lambda lines: (400, b'{"message":"please provide an org"}', {})
        await writer.call(lambda journal: journal.write(fill()))
        await until(lambda: shipper.report().state == "parked")
        assert await asyncio.to_thread(read_refused, path) == []
        server.answer = stored
        await until(lambda: len(server.points) == ROWS)

    run(path, scenario)


@pytest.mark.parametrize("refused_requests", [8, 20, 33])
def test_a_fault_that_ends_while_lines_are_told_apart_puts_no_line_aside(
    path: Path, refused_requests: int
) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        left = refused_requests

        def answer(lines: list[str]) -> tuple[int, bytes, dict[str, str]]:
            nonlocal left
            left -= 1
            return stored(lines) if left < 0 else (400, b'{"message":"please provide an org"}', {})

        server.answer = answer
        await writer.call(lambda journal: journal.write(fill()))
        await until(lambda: len(server.points) == ROWS)
        assert await asyncio.to_thread(read_refused, path) == []

    run(path, scenario)


def test_many_bad_lines_beside_each_other_are_put_aside(path: Path) -> None:
    """By words that blame no line: those that are sent once more have no good ones in between."""
    bad = ROWS // 2

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        refused: set[str] = set()

        def answer(lines: list[str]) -> tuple[int, bytes, dict[str, str]]:
            refused.update(lines[:0] if len(refused) >= bad else lines[: bad - len(refused)])
            if refused.intersection(lines):
                return 400, b'{"message":"parsing failed"}', {}
            return stored(lines)

        server.answer = answer
        await writer.call(lambda journal: journal.write(fill()))
        await until(lambda: len(server.points) == ROWS - bad)
        await until(lambda: len(read_refused(path)) == bad)

    run(path, scenario)


def test_too_large_requests_are_halved(path: Path) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.answer = lambda lines: stored(lines) if len(lines) <= 7 else (413, b"", {})
        await writer.call(lambda journal: journal.write(fill()))
        await until(lambda: len(server.points) == ROWS)
        assert await asyncio.to_thread(read_refused, path) == []

    run(path, scenario)


def test_requests_that_fail_without_an_answer_become_smaller(path: Path) -> None:
    """A proxy may hang up on a large request, a server may need longer for it than anyone waits."""

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.answer = lambda lines: stored(lines) if len(lines) <= 200 else (0, b"", {})
        await writer.call(lambda journal: journal.write(fill(minutes=100)))
        await until(lambda: len(server.points) == 903)
        await until(lambda: shipper.shipped_below() == writer.next_seq)

    run(path, scenario)


def test_many_forming_candles_hold_nothing_up_where_only_small_requests_get_through(
    path: Path,
) -> None:
    forming = Batch()
    forming.extend(
        Candle(f"P{n}/USDT:USDT", "3m", T0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, n, False, T0 + 1)
        for n in range(500)
    )

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.answer = lambda lines: stored(lines) if len(lines) <= 200 else (0, b"", {})
        await writer.call(lambda journal: journal.write(forming))
        await writer.call(lambda journal: journal.write(fill()))
        await until(lambda: len(server.points) == ROWS + 500)

    run(path, scenario)


def test_a_lost_answer_is_sent_again_harmlessly(path: Path) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        def cut(lines: list[str]) -> tuple[int, bytes, dict[str, str]]:
            server.answer = stored
            for line in lines:
                series, fields, time = line.rsplit(" ", 2)
                server.points[series, time] = fields
            return 0, b"", {}

        server.answer = cut
        await writer.call(lambda journal: journal.write(fill()))
        # Once in vain, a line to probe with, and all of it again.
        await until(lambda: sum(map(len, server.requests)) == 2 * ROWS + 1)
        assert len(server.points) == ROWS

    run(path, scenario)


def test_live_rows_go_before_the_backlog(path: Path) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.answer = lambda lines: (503, b"", {"Retry-After": "0"})
        await writer.call(lambda journal: journal.write(fill(0, 60)))
        await until(lambda: len(server.requests) >= 2)
        await writer.call(lambda journal: journal.write(fill(60, 1)))
        before = len(server.requests)
        server.answer = stored
        await until(lambda: len(server.points) == 9 * 61 + 3)
        stored_requests = [r for r in server.requests[before:] if len(r) == 50]
        newest = str(T0 + 60 * MINUTE)
        # One batch may have been on its way and one read ahead when the newest rows were written.
        assert any(line.endswith(newest) for request in stored_requests[:3] for line in request)
        oldest = f"ohlcv_1m,pair={PAIRS[0]} "
        assert any(
            line.startswith(oldest) and line.endswith(f" {T0}") for line in server.requests[-1]
        )

    run(path, scenario, msgspec.structs.replace(QUICK, max_lines=50))


def test_forming_candles_are_shipped_as_they_stand_last(path: Path) -> None:
    def forming(trades: int) -> Batch:
        batch = Batch()
        batch.add(
            Candle(
                PAIRS[0], "3m", T0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, trades, False, T0 + trades
            )
        )
        return batch

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        for trades in range(1, 30):
            await writer.call(lambda journal, n=trades: journal.write(forming(n)))
        key = "forming_3m,pair=BTC/USDT:USDT", str(T0)
        await until(lambda: "trades=29i" in server.points.get(key, ""))
        sent = sum(line.startswith("forming_3m") for lines in server.requests for line in lines)
        assert sent < 29

    run(path, scenario)


def test_no_forming_candle_arrives_before_the_closed_one_that_it_follows(path: Path) -> None:
    """A reader takes what lies before a forming candle for closed, and misses it."""

    def minute(number: int) -> Batch:
        batch = Batch()
        for n, closed in ((number, True), (number + 1, False)):
            at_ms = T0 + n * MINUTE
            batch.add(
                Candle(PAIRS[0], "1m", at_ms, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 5, closed, at_ms)
            )
        return batch

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        for number in range(200):
            await writer.call(lambda journal, n=number: journal.write(minute(n)))
            await asyncio.sleep(0.002)
        last = "forming_1m,pair=BTC/USDT:USDT", str(T0 + 200 * MINUTE)
        await until(lambda: last in server.points)
        newest_ms = 0
        for line in (line for lines in server.requests for line in lines):
            at_ms = int(line.rpartition(" ")[2])
            if line.startswith("ohlcv_1m"):
                newest_ms = max(newest_ms, at_ms)
            elif line.startswith("forming_1m"):
                assert newest_ms >= at_ms - MINUTE, f"{line!r} after {newest_ms}"

    run(path, scenario)


def test_a_new_token_in_its_file_needs_no_restart(path: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("revoked\n")

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        def check(lines: list[str]) -> tuple[int, bytes, dict[str, str]]:
            if server.headers[-1]["Authorization"] == "Token fresh":
                return stored(lines)
            return 401, b'{"message":"unauthorized access"}', {}

        server.answer = check
        await writer.call(lambda journal: journal.write(fill()))
        await until(lambda: shipper.report().state == "parked")
        token.write_text("fresh\n")
        await until(lambda: len(server.points) == ROWS)

    run(path, scenario, token=None, token_file=str(token))


def test_a_journal_replaced_while_running_is_shipped_from_its_start(path: Path) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        await writer.call(lambda journal: journal.write(fill()))
        await until(lambda: len(server.points) == ROWS)
        await asyncio.to_thread(path.rename, path.with_name("gone.db"))
        await writer.replace()
        await writer.call(lambda journal: journal.write(fill(100, 2)))
        await until(lambda: len(server.points) == ROWS + 18)
        assert shipper.shipped_below() == writer.next_seq

    run(path, scenario)


def test_a_journal_replaced_while_lines_travel_loses_none_of_its_rows(path: Path) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def hold(request: web.Request) -> None:
        arrived.set()
        await go_on.wait()

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.before = hold
        await writer.call(lambda journal: journal.write(fill()))
        await arrived.wait()
        await asyncio.to_thread(path.rename, path.with_name("gone.db"))
        await writer.replace()
        # These rows get the numbers that are travelling.
        await writer.call(lambda journal: journal.write(fill(100, 2)))
        go_on.set()
        await until(lambda: len(server.points) == ROWS + 18)

    run(path, scenario)


def test_a_stop_does_not_wait_for_a_server_that_hangs(path: Path) -> None:
    held = asyncio.Event()

    async def hang(request: web.Request) -> None:
        held.set()
        await asyncio.Event().wait()

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.before = hang
        await writer.call(lambda journal: journal.write(fill()))
        await held.wait()

    server = run(path, scenario, msgspec.structs.replace(QUICK, last_s=0.2))
    assert server.points == {}
    with Journal.open(path) as journal:
        assert ranges_of(journal.shipped(f"{server.url} fleet market_data")) == []


def test_refused_forming_candles_push_no_line_out(path: Path) -> None:
    def forming(trades: int) -> Batch:
        batch = Batch()
        batch.add(
            Candle(
                PAIRS[0], "3m", T0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, trades, False, T0 + trades
            )
        )
        return batch

    def clash(lines: list[str]) -> tuple[int, bytes, dict[str, str]]:
        if any(line.startswith("forming_3m") for line in lines):
            return 422, b'{"message":"partial write: field type conflict dropped=1"}', {}
        return stored(lines)

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.answer = clash
        await writer.call(lambda journal: journal.write(fill()))
        for trades in range(1, 4):
            await writer.call(lambda journal, n=trades: journal.write(forming(n)))
            await until(lambda n=trades: shipper.report().refused == n)
        await until(lambda: len(server.points) == ROWS)
        assert shipper.report().state == "shipping"
        assert await asyncio.to_thread(read_refused, path) == []

    run(path, scenario)


def test_unshipped_rows_outlive_their_retention(path: Path) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.answer = lambda lines: (503, b"", {"Retry-After": "0"})
        await writer.call(lambda journal: journal.write(fill()))
        await until(lambda: len(server.requests) > 0)
        keep = {"candle": 0, "mark_price": 0}

        def expire(journal: Journal) -> int:
            return sweep_out(journal, expired(journal, keep, shipper.shipped_below()))

        assert await writer.call(expire) == 0
        server.answer = stored
        await until(lambda: shipper.shipped_below() == writer.next_seq)
        assert await writer.call(expire) == 2 * 3 * 9

    run(path, scenario)


@given(st.lists(st.sampled_from([204, 204, 204, 400, 413, 429, 500, 503, 0]), max_size=25))
@settings(max_examples=20, deadline=None)
def test_no_sequence_of_answers_loses_a_point(
    tmp_path_factory: pytest.TempPathFactory, statuses: list[int]
) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        left = list(statuses)

        def script(lines: list[str]) -> tuple[int, bytes, dict[str, str]]:
            status = left.pop() if left else 204
            # A refusal for a reason that is not in a single line would put it aside.
            if status in (400, 413) and len(lines) == 1:
                status = 204
            return status, b"unable to parse", {"Retry-After": "0"} if status in (429, 503) else {}

        server.answer = script
        for number in range(4):
            await writer.call(lambda journal, n=number: journal.write(fill(n * 10)))
            await asyncio.sleep(0.005)
        await until(lambda: len(server.points) == 4 * 90 + 3)
        await until(lambda: shipper.shipped_below() == writer.next_seq)

    run(tmp_path_factory.mktemp("answers") / "journal.db", scenario)
