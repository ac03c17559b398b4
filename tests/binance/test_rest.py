"""REST answers arrive in pieces, late, wrong or not at all: each is read whole or is a typed error."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from aiohttp import web

from marketfeed.binance.budget import Budget, Priority
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest, Settlement
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.symbols import NEVER_MS, Instrument
from marketfeed.errors import ExchangeError, ExchangeRefusedError, OddAnswerError
from marketfeed.grid import TimeRange
from marketfeed.records import Candle
from marketfeed.schema import HOUR_MS, MINUTE_MS
from marketfeed.simulator.server import Simulator, SimulatorOptions

START_MS = 1_790_000_040_000

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def ask(
    handler: Handler, question: Callable[[BinanceRest], Awaitable[T]], timeout_s: float = 10.0
) -> T:
    async def run() -> T:
        app = web.Application()
        app.router.add_get("/{tail:.*}", handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        clock = ExchangeClock()
        clock.set_server_time(clock.now_ms(), 0.0)
        turns = Turns(Budget(1_200), clock)
        try:
            async with aiohttp.ClientSession() as session:
                return await question(
                    BinanceRest(session, f"http://{host}:{port}", timeout_s, turns)
                )
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def test_an_answer_in_many_pieces_is_read_whole() -> None:
    # As large as the real exchangeInfo, which never arrives in one piece.
    body = b"".join(b'{"number":%d}' % number for number in range(100_000))

    async def in_pieces(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(body), 100_000):
            await response.write(body[start : start + 100_000])
            await asyncio.sleep(0.001)
        await response.write_eof()
        return response

    assert len(body) > 1_200_000
    assert ask(in_pieces, BinanceRest.exchange_info) == body


def test_server_time_and_volumes() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/fapi/v1/time":
            return web.json_response({"serverTime": 1_791_362_591_474, "more": 1})
        rows = [{"symbol": "BTCUSDT", "quoteVolume": "17.5", "count": 3}]
        return web.json_response(rows)

    time = ask(answer, BinanceRest.server_time)
    assert (time.time_ms, time.speed) == (1_791_362_591_474, 1.0)
    assert time.round_trip_s > 0
    assert ask(answer, BinanceRest.quote_volumes) == {"BTCUSDT": 17.5}


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[1]"])
def test_another_answer_than_documented_is_an_error(body: bytes) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body)

    with pytest.raises(ExchangeError, match="not the documented answer"):
        ask(answer, BinanceRest.server_time)
    with pytest.raises(ExchangeError, match="not the documented answer"):
        ask(answer, BinanceRest.quote_volumes)


@pytest.mark.parametrize("status", [400, 403, 418, 429, 500])
def test_a_refusal_tells_its_status_and_retry_after(status: int) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text="no", headers={"Retry-After": "307"})

    with pytest.raises(ExchangeRefusedError, match=f"status {status}: no") as caught:
        ask(refuse, BinanceRest.exchange_info)
    assert caught.value.status == status
    assert caught.value.retry_after_s == 307.0


def test_klines_that_are_refused_for_their_symbol_are_counted_in_a_row() -> None:
    invalid = {"code": -1121, "msg": "Invalid symbol."}
    answers = iter(
        [(400, invalid), (400, invalid), (400, {"code": -1120}), (200, []), (400, invalid)]
    )
    counts: list[int] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path != "/fapi/v1/klines":
            return web.json_response(invalid, status=400)
        status, body = next(answers)
        return web.json_response(body, status=status)

    async def question(rest: BinanceRest) -> None:
        for _ in range(5):
            with contextlib.suppress(ExchangeRefusedError):
                await rest.klines(BITCOIN, "1m", START_MS, START_MS + MINUTE_MS, Priority.HEAL)
            counts.append(rest.turns.invalid_symbols["BTCUSDT"])
            with pytest.raises(ExchangeRefusedError):
                await rest.settlements(START_MS, START_MS, Priority.SETTLED, "BTCUSDT")

    ask(answer, question)
    assert counts == [1, 2, 2, 0, 1]


BANNED_UNTIL_MS = 1_796_003_971_316
"""As the words of a recorded ban name it."""
BAN = (
    b'{"code":-1003,"msg":"Way too many requests; IP(203.0.113.7) banned until 1796003971316. '
    b'Please use the websocket for live updates to avoid bans."}'
)
DAY_S = 86_400.0


@pytest.mark.parametrize(
    ("status", "retry_after", "body", "left_s", "wait_s"),
    [
        # A ban's end by its words; with or without a header, the later one holds.
        (418, None, BAN, 7_200.0, 7_201.0),
        (418, "0", BAN, 7_200.0, 7_201.0),
        (418, "10000", BAN, 7_200.0, 10_000.0),
        (418, None, BAN, -50.0, 120.0),
        (418, None, BAN, 30 * DAY_S, 3 * DAY_S),
        (429, "5", BAN, 7_200.0, 7_201.0),
        # Never less than what such an answer costs anyway.
        (418, "0", b"", 0.0, 120.0),
        (418, "-7", b"", 0.0, 120.0),
        (418, "nan", b"", 0.0, 120.0),
        (418, "soon", b"", 0.0, 120.0),
        (429, "0", b"", 0.0, 60.0),
        (403, "1", b"", 0.0, 300.0),
        # Never for ever.
        (418, "1764457200", b"", 0.0, 3 * DAY_S),
        (429, "1764457200", b"", 0.0, 600.0),
        (403, "inf", b"", 0.0, 600.0),
        (503, "1764457200", b"", 0.0, 600.0),
        (503, "-3", b"", 0.0, 0.0),
        (503, "7", b"", 0.0, 7.0),
        (503, None, b"", 0.0, None),
        # A date, by the server's own clock, whatever this host's says.
        (418, "Mon, 30 Nov 2026 12:00:00 GMT", b"", 0.0, 10_800.0),
        (418, "Mon, 30 Nov 2026 08:00:00 GMT", b"", 0.0, 120.0),
        (503, "Mon, 30 Nov 2026 09:05:00 GMT", b"", 0.0, 300.0),
        (503, "Mon, 30 Nov 9999999 09:05:00 GMT", b"", 0.0, None),
    ],
)
def test_how_long_a_refusal_lasts_has_bounds(
    status: int, retry_after: str | None, body: bytes, left_s: float, wait_s: float | None
) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        headers = {"Date": "Mon, 30 Nov 2026 09:00:00 GMT"}
        if retry_after is not None:
            headers["Retry-After"] = retry_after
        return web.Response(status=status, body=body, headers=headers)

    async def question(rest: BinanceRest) -> None:
        clock = ExchangeClock()
        clock.set_server_time(BANNED_UNTIL_MS - round(left_s * 1000), 0.0, 1e-9)
        rest.turns = Turns(Budget(1_200), clock)
        with pytest.raises(ExchangeRefusedError) as caught:
            await rest.exchange_info()
        assert caught.value.status == status
        assert caught.value.retry_after_s == (None if wait_s is None else pytest.approx(wait_s))
        stopped_s = 0.0 if status == 503 else wait_s
        assert rest.turns.report().stopped_s == pytest.approx(stopped_s)

    ask(refuse, question)


def test_a_ban_met_before_the_exchanges_time_is_known_ends_by_the_answers_own_date() -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        # Two hours and 51.316 s before the end that the words name.
        headers = {"Date": "Sun, 29 Nov 2026 23:58:40 GMT"}
        return web.Response(status=418, body=BAN, headers=headers)

    async def question(rest: BinanceRest) -> None:
        clock = ExchangeClock()
        rest.turns = Turns(Budget(1_200), clock)
        with pytest.raises(ExchangeRefusedError) as caught:
            await rest.server_time()
        assert caught.value.retry_after_s == pytest.approx(7_252.316, abs=0.001)

    ask(refuse, question)


def test_an_answer_that_does_not_come_is_an_error() -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    with pytest.raises(ExchangeError, match=r"no answer in 0\.1 s"):
        ask(hang, BinanceRest.exchange_info, 0.1)


def test_a_cut_answer_is_an_error() -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * 10)
        assert request.transport is not None
        request.transport.abort()
        return response

    with pytest.raises(ExchangeError, match="exchangeInfo"):
        ask(cut, BinanceRest.exchange_info)


# --- candles and settlements ------------------------------------------------------------------------

BITCOIN = Instrument("BTCUSDT", "BTC/USDT:USDT", "USDT", "TRADING", "PERPETUAL", 1, NEVER_MS)


def recorded(name: str) -> bytes:
    return (Path(__file__).parents[1] / "data" / f"mainnet_2026-10-07_{name}.json").read_bytes()


def answering(body: bytes, asked: list[dict[str, str]]) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(dict(request.query))
        return web.Response(body=body, headers={"X-MBX-USED-WEIGHT-1M": "77"})

    return answer


@pytest.mark.parametrize(("round_trip_s", "closed"), [(0.0, 1), (20.0, 0)])
def test_a_clock_that_may_be_ahead_closes_no_candle(round_trip_s: float, closed: int) -> None:
    """A row is closed by the time that is past for certain, not by half of a long round trip."""
    body = recorded("klines_1m_limit2")
    open_ms = json.loads(body)[0][0]
    clock = ExchangeClock()

    async def question(rest: BinanceRest) -> Sequence[Candle]:
        rest.turns = Turns(Budget(1_200), clock)
        # The server's clock was read when the first candle still had 5 s to go, or 5 s after its close.
        read_ms = open_ms + MINUTE_MS + (5_000 if closed else -5_000)
        clock.set_server_time(read_ms, round_trip_s)
        end_ms = open_ms + 2 * MINUTE_MS
        return (await rest.klines(BITCOIN, "1m", open_ms, end_ms, Priority.HEAL)).candles

    assert len(ask(answering(body, []), question)) == closed


def test_before_anything_is_certain_no_candle_is_asked_for() -> None:
    asked: list[dict[str, str]] = []

    async def question(rest: BinanceRest) -> None:
        clock = ExchangeClock()
        clock.await_frames()
        rest.turns = Turns(Budget(1_200), clock)
        for _ in range(3):
            with pytest.raises(ExchangeError, match="nothing is known to have closed"):
                await rest.klines(BITCOIN, "1m", START_MS, START_MS + MINUTE_MS, Priority.HEAL)
            clock.set_server_time(START_MS + 10 * MINUTE_MS, 0.0)

    ask(answering(b"[]", asked), question)
    assert asked == []


def test_while_frames_lag_a_candle_has_closed_that_has_another_behind_it() -> None:
    """`time` may be ahead: a row that forms would be closed, and one left out be absent."""
    body = recorded("klines_1m_limit2")
    open_ms = json.loads(body)[0][0]
    first, second = open_ms, open_ms + MINUTE_MS
    end_ms = open_ms + 2 * MINUTE_MS
    asked: list[dict[str, str]] = []

    async def question(rest: BinanceRest) -> None:
        clock = ExchangeClock()
        clock.await_frames()
        rest.turns = Turns(Budget(1_200), clock)

        async def klines(until_ms: int = end_ms) -> tuple[list[int], list[TimeRange]]:
            answer = await rest.klines(BITCOIN, "1m", open_ms, until_ms, Priority.HEAL)
            return [one.open_time_ms for one in answer.candles], list(answer.unclear)

        assert clock.on_stamp(open_ms - 3 * HOUR_MS)
        # Told once, it may be wrong.
        clock.set_server_time(open_ms + 10 * MINUTE_MS, 0.0)
        assert await klines() == ([], [TimeRange(first, end_ms)])
        # Told twice, too: the last row may form, whatever `time` is.
        clock.set_server_time(open_ms + 10 * MINUTE_MS, 0.0)
        assert await klines() == ([first], [TimeRange(second, end_ms)])
        # One more is asked for than is wanted.
        assert await klines(second) == ([first], [])
        # Frames that are late, as a whole: what they prove is past has closed.
        for at_s in range(-3 * 3_600, 301, 4):
            assert clock.on_stamp(open_ms + at_s * 1_000)
        assert await klines() == ([first, second], [])

    ask(answering(body, asked), question)
    assert [one["limit"] for one in asked] == ["3", "3", "2", "2"]
    assert [int(one["endTime"]) for one in asked] == [
        end_ms + MINUTE_MS - 1,
        end_ms + MINUTE_MS - 1,
        end_ms - 1,
        end_ms - 1,
    ]


def test_an_answer_of_time_is_told_to_the_clock() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"serverTime": START_MS, "speed": 60.0})

    async def question(rest: BinanceRest) -> tuple[int, int, float]:
        clock = ExchangeClock(1e-9)
        rest.turns = Turns(Budget(1_200), clock)
        await rest.server_time()
        return clock.certain_ms(), clock.now_ms(), clock.speed

    certain_ms, now_ms, speed = ask(answer, question)
    # Not half the round trip later: that would be a guess.
    assert START_MS <= certain_ms <= now_ms < START_MS + MINUTE_MS
    assert speed == 60.0


def test_recorded_klines_are_candles() -> None:
    body = recorded("klines_1m_limit2")
    row = json.loads(body)[0]
    open_ms = row[0]
    asked: list[dict[str, str]] = []

    async def question(rest: BinanceRest) -> Sequence[Candle]:
        end_ms = open_ms + 2 * MINUTE_MS
        found = await rest.klines(BITCOIN, "1m", open_ms, end_ms, Priority.HEAL)
        assert rest.turns.report().weight_used >= 77
        assert not found.unclear
        return found.candles

    candles = ask(answering(body, asked), question)
    assert len(candles) == 2
    assert candles[0] == Candle(
        "BTC/USDT:USDT", "1m", open_ms, *map(float, row[1:6]), float(row[7]), float(row[9]), row[8],
        True, open_ms + MINUTE_MS, float(row[10]),
    )  # fmt: skip
    assert asked == [
        {
            "symbol": "BTCUSDT",
            "interval": "1m",
            "startTime": str(open_ms),
            "endTime": str(open_ms + 2 * MINUTE_MS - 1),
            "limit": "2",
        }
    ]


def test_a_candle_that_still_forms_is_none() -> None:
    async def run() -> None:
        options = SimulatorOptions(pairs=4, timeframes=("1m",), start_ms=START_MS, paused=True)
        async with Simulator(options) as sim, aiohttp.ClientSession() as session:
            clock = ExchangeClock(speed=1e-9)
            clock.set_server_time(START_MS, 0.0, 1e-9)
            rest = BinanceRest(session, sim.rest_url, turns=Turns(Budget(1_200), clock))
            since_ms = START_MS - 3 * MINUTE_MS
            until_ms = START_MS + MINUTE_MS
            # The clock stands at the close of the third candle: a second must have passed.
            found = await rest.klines(BITCOIN, "1m", since_ms, until_ms, Priority.HEAL)
            assert [one.open_time_ms for one in found.candles] == [since_ms, since_ms + MINUTE_MS]
            clock.set_server_time(START_MS + 1_001, 0.0, 1e-9)
            found = await rest.klines(BITCOIN, "1m", since_ms, until_ms, Priority.HEAL)
            assert len(found.candles) == 3
            # It is not absent either.
            assert found.unclear == [TimeRange(START_MS, until_ms)]

    asyncio.run(run())


CASES = json.loads((Path(__file__).parents[1] / "data/odd_rows.json").read_bytes())
"""Lists of which one row is odd."""
OPEN_MS = 1_790_006_400_000
SECOND = OPEN_MS + MINUTE_MS
THIRD = OPEN_MS + 2 * MINUTE_MS
GOOD: list[list[Any]] = [
    [ms, *CASES["klines"][0][1:6], ms + MINUTE_MS - 1, *CASES["klines"][0][7:]]
    for ms in range(OPEN_MS, OPEN_MS + 3 * MINUTE_MS, MINUTE_MS)
]


def klines_in(rows: object) -> tuple[list[int], list[TimeRange], int]:
    """Open times of what an answer with these rows gives, what is unclear of it, and odd rows counted."""

    async def question(rest: BinanceRest) -> tuple[list[int], list[TimeRange], int]:
        end_ms = OPEN_MS + 3 * MINUTE_MS
        found = await rest.klines(BITCOIN, "1m", OPEN_MS, end_ms, Priority.HEAL)
        odd = rest.turns.report().odd_rows["klines"]
        return [one.open_time_ms for one in found.candles], list(found.unclear), odd

    return ask(answering(json.dumps(rows).encode(), []), question)


def other(row: list[Any], **changes: Any) -> list[Any]:
    return [changes.get(f"at{index}", value) for index, value in enumerate(row)]


@pytest.mark.parametrize(
    ("rows", "opens", "unclear", "odd"),
    [
        (GOOD, [OPEN_MS, SECOND, THIRD], [], 0),
        (CASES["klines"], [OPEN_MS, THIRD], [TimeRange(SECOND, THIRD)], 1),
        (CASES["klines, last row repeated"], [OPEN_MS, SECOND], [], 1),
        ([*GOOD, GOOD[0]], [OPEN_MS, SECOND, THIRD], [], 1),
        # Which of two that differ holds? Neither, until there is one.
        ([*GOOD, other(GOOD[1], at5="8.0")], [OPEN_MS, THIRD], [TimeRange(SECOND, THIRD)], 1),
        ([*GOOD, other(GOOD[1], at5=None)], [OPEN_MS, THIRD], [TimeRange(SECOND, THIRD)], 1),
        ([GOOD[0], other(GOOD[1], at1="NaN")], [OPEN_MS], [TimeRange(SECOND, THIRD)], 1),
        ([*GOOD[:2], other(GOOD[2], at6=5)], [OPEN_MS, SECOND], [TimeRange(THIRD, THIRD + 60_000)], 1),
        # Of which candle it is cannot be read: it may be any of those that are lacking.
        ([GOOD[0], None], [OPEN_MS], [TimeRange(SECOND, THIRD + 60_000)], 1),
        ([other(GOOD[0], at0="x"), GOOD[1]], [SECOND],
         [TimeRange(OPEN_MS, SECOND), TimeRange(THIRD, THIRD + 60_000)], 1),
        ([GOOD[1], other(GOOD[0], at0=OPEN_MS - MINUTE_MS, at6=OPEN_MS - 1)], [SECOND],
         [TimeRange(OPEN_MS, SECOND), TimeRange(THIRD, THIRD + 60_000)], 1),
        # What is simply not there is not unclear.
        ([GOOD[0], GOOD[2]], [OPEN_MS, THIRD], [], 0),
        ([], [], [], 0),
    ],
)  # fmt: skip
def test_an_odd_kline_costs_itself_and_is_not_absent(
    rows: object, opens: list[int], unclear: list[TimeRange], odd: int
) -> None:
    assert klines_in(rows) == (opens, unclear, odd)


@pytest.mark.parametrize(
    "rows", [[None], CASES["klines"][1:2], [GOOD[0], other(GOOD[0], at5="8.0")], GOOD[::-1]]
)
def test_where_no_row_is_good_or_they_are_in_disorder_the_answer_is_an_error(rows: object) -> None:
    with pytest.raises(OddAnswerError):
        klines_in(rows)


def test_an_odd_row_that_still_forms_is_nothing_to_speak_of() -> None:
    async def question(rest: BinanceRest) -> list[int]:
        clock = ExchangeClock()
        clock.set_server_time(THIRD + 5_000, 0.0)
        rest.turns = Turns(Budget(1_200), clock)
        found = await rest.klines(BITCOIN, "1m", OPEN_MS, THIRD + MINUTE_MS, Priority.HEAL)
        assert found.unclear == [TimeRange(THIRD, THIRD + MINUTE_MS)]
        assert rest.turns.report().odd_rows == {"klines": 0}
        return [one.open_time_ms for one in found.candles]

    rows = [*GOOD[:2], other(GOOD[2], at5=None)]
    assert ask(answering(json.dumps(rows).encode(), []), question) == [OPEN_MS, SECOND]


def test_an_odd_row_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    async def question(rest: BinanceRest) -> None:
        for _ in range(5):
            await rest.klines(BITCOIN, "1m", OPEN_MS, THIRD + MINUTE_MS, Priority.HEAL)
        assert rest.turns.report().odd_rows == {"klines": 5}

    ask(answering(json.dumps(CASES["klines"]).encode(), []), question)
    (line,) = [r.getMessage() for r in caplog.records if "odd rows" in r.message]
    assert f"endpoint=klines count=1 of=1 names named='BTCUSDT 1m: open time {SECOND}:" in line


def test_odd_rows_of_other_lists_cost_themselves() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        rows: list[Any] = CASES.get(request.path.removeprefix("/fapi/v1/"), [])
        if request.path.endswith("fundingInfo"):
            usual = {"symbol": "AAAUSDT", "fundingIntervalHours": 4}
            rows = [usual, {"symbol": "BBBUSDT", "fundingIntervalHours": 0}, usual, 5]
        return web.json_response(rows)

    async def question(rest: BinanceRest) -> None:
        assert await rest.quote_volumes() == {"AAAUSDT": 5.0, "BBBUSDT": 4.0}
        assert await rest.funding_info(Priority.SETTLED) == {"AAAUSDT": 4}
        assert rest.turns.report().odd_rows == {"ticker/24hr": 1, "fundingInfo": 3}
        # A mark price that is not known is no fault of the rate.
        found = await rest.settlements(1, 2, Priority.SETTLED)
        assert [(one.symbol, one.rate, one.mark_price) for one in found.rates] == [
            ("AAAUSDT", 0.0001, 10.0),
            ("BBBUSDT", 0.0001, None),
            ("CCCUSDT", -0.0002, 3.0),
        ]
        assert (found.odd, found.full) == ([], False)

    ask(answer, question)


def rate(
    symbol: object = "AUSDT", at: object = OPEN_MS, value: object = "0.0001"
) -> dict[str, Any]:
    return {"symbol": symbol, "fundingTime": at, "fundingRate": value, "markPrice": "5"}


@pytest.mark.parametrize(
    ("row", "lost"),
    [
        (rate(value=None), ("AUSDT", OPEN_MS)),
        (rate(value="7"), ("AUSDT", OPEN_MS)),
        (rate(at=None), ("AUSDT", None)),
        (rate(symbol=None), (None, OPEN_MS)),
        (None, (None, None)),
        ({**rate(), "markPrice": "x"}, ("AUSDT", OPEN_MS)),
        # The other one of two that differ.
        (rate("BUSDT", value="0.0002"), ("BUSDT", OPEN_MS)),
    ],
)
def test_of_an_odd_settlement_is_known_whose_it_is_as_far_as_can_be_read(
    row: object, lost: tuple[str | None, int | None]
) -> None:
    rows = [rate("CUSDT"), rate("BUSDT"), row, rate("CUSDT")]
    found = ask(
        answering(json.dumps(rows).encode(), []),
        lambda rest: rest.settlements(1, 2, Priority.SETTLED, limit=4),
    )
    left = {one.symbol for one in found.rates}
    assert left == {"BUSDT", "CUSDT"} - {lost[0]}
    assert found.odd == [lost]
    # The page was full, whatever of it was left out: there may be more.
    assert found.full


def test_recorded_settlements() -> None:
    body = recorded("fundingRate")
    rows = json.loads(body)
    asked: list[dict[str, str]] = []
    found = ask(
        answering(body, asked), lambda rest: rest.settlements(1, 2, Priority.SETTLED, "BTCUSDT")
    ).rates
    assert len(found) == len(rows)
    for settlement, row in zip(found, rows, strict=True):
        assert settlement.rate == float(row["fundingRate"])
        assert settlement.time_ms % MINUTE_MS == 0
        assert abs(settlement.time_ms - row["fundingTime"]) < 1_000
    assert asked == [{"startTime": "1", "endTime": "2", "limit": "1000", "symbol": "BTCUSDT"}]
    old = (
        b'[{"symbol":"BTCUSDT","fundingTime":1568102400005,"fundingRate":"0.0001","markPrice":""}]'
    )
    (settlement,) = ask(
        answering(old, []), lambda rest: rest.settlements(1, 2, Priority.SETTLED)
    ).rates
    assert settlement == Settlement("BTCUSDT", 1568102400000, 0.0001, None, "Regular")


def test_recorded_funding_info() -> None:
    body = recorded("fundingInfo")
    found = ask(answering(body, []), lambda rest: rest.funding_info(Priority.SETTLED))
    assert found == {row["symbol"]: row["fundingIntervalHours"] for row in json.loads(body)}
