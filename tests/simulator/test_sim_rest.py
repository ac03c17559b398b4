"""REST answers over a real connection."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest

from marketfeed import schema
from marketfeed.simulator.server import Simulator, SimulatorOptions

DATA = Path(__file__).parents[1] / "data"
START_MS = 1_790_000_040_000
PAIRS = ("BTC/USDT:USDT", "ETH/USDT:USDT", "币安人生/USDT:USDT", "SIM001/USDT:USDT")

Get: TypeAlias = Callable[..., Awaitable[tuple[int, Any, dict[str, str]]]]
WEIGHT = "X-MBX-USED-WEIGHT-1M"


def with_rest(check: Callable[[Simulator, Get], Awaitable[None]], **options: Any) -> None:
    """Run `check` beside a simulator whose time stands still by default."""

    async def run() -> None:
        chosen = {"pairs": PAIRS, "start_ms": START_MS, "paused": True, **options}
        async with (
            Simulator(SimulatorOptions(**chosen)) as simulator,
            aiohttp.ClientSession(simulator.rest_url) as session,
        ):

            async def get(path: str, **params: Any) -> tuple[int, Any, dict[str, str]]:
                async with session.get(f"/fapi/v1/{path}", params=params) as response:
                    return response.status, await response.json(), dict(response.headers)

            await check(simulator, get)

    asyncio.run(run())


def shape(value: Any) -> Any:
    """The types of a JSON value, keys in their order."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return type(value)


def recorded(name: str) -> Any:
    return json.loads((DATA / f"mainnet_2026-10-07_{name}.json").read_text("utf-8"))


def test_time_tells_the_speed() -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        status, body, headers = await get("time")
        assert status == 200
        assert body == {"serverTime": START_MS, "speed": 7.5}
        assert headers[WEIGHT] == "1"
        assert headers["Content-Type"].startswith("application/json")

    with_rest(check, speed=7.5)


def test_exchange_info_comes_compressed_to_those_who_accept_it() -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        _, body, headers = await get("exchangeInfo")
        assert headers["Content-Encoding"] == "gzip"
        assert body["symbols"][2]["symbol"] == "币安人生USDT"
        address = simulator.rest_url + "/fapi/v1/exchangeInfo"
        plain = {"Accept-Encoding": "identity"}
        async with aiohttp.ClientSession() as bare, bare.get(address, headers=plain) as response:
            assert "Content-Encoding" not in response.headers
            assert await response.json() == body

    with_rest(check)


def test_klines_have_the_shape_of_recorded_ones() -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        for symbol in ("BTCUSDT", "币安人生USDT"):
            _, rows, _ = await get("klines", symbol=symbol, interval="1m", limit=2)
            assert shape(rows) == shape(recorded("klines_1m_limit2"))

    with_rest(check)


def test_which_klines_are_meant() -> None:
    minute = schema.MINUTE_MS
    now = schema.floor_to(START_MS, minute)

    async def check(simulator: Simulator, get: Get) -> None:
        async def opens(**params: Any) -> list[int]:
            _, rows, _ = await get("klines", symbol="ETHUSDT", interval="1m", **params)
            return [row[0] for row in rows]

        assert len(await opens()) == 500
        # The last row is forming.
        assert await opens(limit=3) == [now - 2 * minute, now - minute, now]
        assert await opens(startTime=now - 2 * minute) == [now - 2 * minute, now - minute, now]
        assert await opens(startTime=now - 2 * minute + 1) == [now - minute, now]
        # Both ends are inclusive.
        first, last = now - 9 * minute, now - 7 * minute
        assert await opens(startTime=first, endTime=last) == [first, first + minute, last]
        assert await opens(startTime=first, endTime=last - 1) == [first, first + minute]
        assert await opens(endTime=last, limit=2) == [last - minute, last]
        assert await opens(startTime=first, limit=2) == [first, first + minute]
        assert await opens(startTime=now + minute) == []
        # Nothing before the listing.
        beginning = await opens(startTime=0, limit=5)
        assert 1_569_398_400_000 < beginning[0] < now - 1_000 * minute

    with_rest(check)


def test_timeframes_agree_with_each_other() -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        end = schema.floor_to(START_MS, schema.HOUR_MS) - 1
        for symbol in ("BTCUSDT", "SIM001USDT"):
            span = {"symbol": symbol, "startTime": end + 1 - 4 * schema.HOUR_MS, "endTime": end}
            _, minutes, _ = await get("klines", interval="1m", **span)
            assert len(minutes) == 240
            for timeframe in ("3m", "15m", "1h", "4h"):
                _, rows, _ = await get("klines", interval=timeframe, **span)
                if timeframe == "4h":
                    rows = [row for row in rows if row[0] >= span["startTime"]]
                per = schema.TIMEFRAMES_MS[timeframe] // schema.MINUTE_MS
                for row in rows:
                    part = [m for m in minutes if row[0] <= m[0] <= row[6]]
                    if len(part) < per:
                        continue
                    assert row[1] == part[0][1]
                    assert float(row[2]) == max(float(m[2]) for m in part)
                    assert float(row[3]) == min(float(m[3]) for m in part)
                    assert row[4] == part[-1][4]
                    assert row[8] == sum(m[8] for m in part)
                    assert float(row[5]) == pytest.approx(sum(float(m[5]) for m in part))
                    assert float(row[7]) == pytest.approx(sum(float(m[7]) for m in part))

    with_rest(check)


@pytest.mark.parametrize(
    ("params", "code", "weight"),
    [
        ({"interval": "1m"}, -1102, 5),
        ({"symbol": "NOSUCHUSDT", "interval": "1m"}, -1121, 5),
        ({"symbol": "btcusdt", "interval": "1m"}, -1121, 5),
        ({"symbol": "BTCUSDT"}, -1120, 5),
        ({"symbol": "BTCUSDT", "interval": "7m"}, -1120, 5),
        ({"symbol": "BTCUSDT", "interval": "1m", "limit": "1501"}, -1130, 10),
        ({"symbol": "BTCUSDT", "interval": "1m", "limit": "0"}, -1130, 1),
        ({"symbol": "BTCUSDT", "interval": "1m", "limit": "x"}, -1100, 5),
        ({"symbol": "BTCUSDT", "interval": "1m", "startTime": "-1"}, -1100, 5),
        ({"symbol": "BTCUSDT", "interval": "1m", "startTime": "2", "endTime": "1"}, -1023, 5),
    ],
)
def test_mistakes_are_answered_with_their_code_and_cost_weight(
    params: dict[str, str], code: int, weight: int
) -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        status, body, headers = await get("klines", **params)
        assert status == 400
        assert body.keys() == {"code", "msg"}
        assert body["code"] == code
        assert headers[WEIGHT] == str(weight)

    with_rest(check)


def test_invalid_symbol_reads_as_on_the_exchange() -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        _, body, _ = await get("klines", symbol="X", interval="1m")
        assert body == {"code": -1121, "msg": "Invalid symbol."}

    with_rest(check)


def test_weights_add_up_to_a_refusal() -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        weights: list[tuple[str, dict[str, Any], int]] = [
            ("exchangeInfo", {}, 1),
            ("klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": 499}, 2),
            ("klines", {"symbol": "BTCUSDT", "interval": "1m"}, 5),
            ("klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": 1_500}, 10),
            ("ticker/24hr", {"symbol": "BTCUSDT"}, 1),
            ("ticker/24hr", {}, 40),
            ("premiumIndex", {"symbol": "BTCUSDT"}, 1),
            ("premiumIndex", {}, 10),
        ]  # fmt: skip
        used = 0
        for path, params, weight in weights:
            _, _, headers = await get(path, **params)
            used += weight
            assert headers[WEIGHT] == str(used)
        # Funding has a limit of its own.
        _, _, headers = await get("fundingRate", symbol="BTCUSDT")
        assert WEIGHT not in headers
        while used + 40 <= 2_400:
            status, _, _ = await get("ticker/24hr")
            assert status == 200
            used += 40
        status, body, headers = await get("ticker/24hr")
        assert (status, body["code"]) == (429, -1003)
        assert int(headers["Retry-After"]) == 60 - START_MS // 1_000 % 60
        assert headers[WEIGHT] == str(used + 40)
        assert simulator.state().requests["ticker/24hr"] > 50

    with_rest(check, pairs=2)


def test_funding_requests_have_their_own_limit() -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        for _ in range(250):
            assert (await get("fundingRate", symbol="BTCUSDT", limit=1))[0] == 200
            assert (await get("fundingInfo"))[0] == 200
        address = simulator.rest_url + "/fapi/v1/fundingInfo"
        async with aiohttp.ClientSession() as bare, bare.get(address) as response:
            assert response.status == 403

    with_rest(check)


def test_ticker_ranks_by_volume_and_holds_what_must_not_be_chosen() -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        _, rows, _ = await get("ticker/24hr")
        volumes = {row["symbol"]: float(row["quoteVolume"]) for row in rows}
        assert {"BTCUSDT", "ETHUSDT", "XAUUSDT", "BTCUSDC"} <= volumes.keys()
        assert volumes["BTCUSDT"] > volumes["ETHUSDT"] > volumes["SIM001USDT"]
        assert volumes["XAUUSDT"] > volumes["BTCUSDT"]
        _, row, _ = await get("ticker/24hr", symbol="BTCUSDT")
        assert row in rows
        _, hours, _ = await get("klines", symbol="BTCUSDT", interval="1m", limit=1_440)
        assert float(row["quoteVolume"]) == pytest.approx(sum(float(m[7]) for m in hours))
        assert row["count"] == sum(m[8] for m in hours)

    with_rest(check)


def test_funding_and_premium_have_the_shape_of_recorded_ones() -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        _, rows, _ = await get("premiumIndex")
        assert shape(rows[0]) == shape(recorded("premiumIndex")[0])
        _, row, _ = await get("premiumIndex", symbol="BTCUSDT")
        assert row == rows[0]
        quarterly = next(row for row in rows if row["symbol"].startswith("BTCUSDT_"))
        assert (quarterly["lastFundingRate"], quarterly["nextFundingTime"]) == ("", 0)

        _, settled, _ = await get("fundingRate", symbol="BTCUSDT", limit=3)
        assert shape(settled) == shape(recorded("fundingRate"))
        times = [row["fundingTime"] for row in settled]
        assert times == sorted(times)
        eight_hours = 8 * schema.HOUR_MS
        assert [schema.floor_to(time, 60_000) for time in times] == [
            schema.floor_to(START_MS, eight_hours) - at * eight_hours for at in (2, 1, 0)
        ]
        _, later, _ = await get("fundingRate", symbol="BTCUSDT", startTime=times[1] - 5, limit=1)
        assert later == [settled[1]]
        _, everyone, _ = await get("fundingRate", limit=1_000)
        assert {row["symbol"] for row in everyone} == {
            "BTCUSDT", "ETHUSDT", "币安人生USDT", "SIM001USDT",
        }  # fmt: skip
        assert [r["fundingTime"] for r in everyone] == sorted(r["fundingTime"] for r in everyone)

        _, infos, _ = await get("fundingInfo")
        assert infos
        assert [key for key, _ in shape(infos[0])] == list(recorded("fundingInfo")[0])
        assert {row["fundingIntervalHours"] for row in infos} <= {1, 4}

    with_rest(check)


def test_rest_and_published_candles_are_the_same() -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        await simulator.wait_published(24)
        simulator.pause()
        published = simulator.published()
        assert [entry.number for entry in published] == list(range(1, len(published) + 1))
        assert {entry.timeframe for entry in published} == {"1m", "3m"}
        for entry in published:
            _, rows, _ = await get(
                "klines", symbol=entry.symbol, interval=entry.timeframe,
                startTime=entry.open_time_ms, limit=1,
            )  # fmt: skip
            (row,) = rows
            assert row[0] == entry.open_time_ms
            assert [float(number) for number in row[1:6]] == [
                entry.open, entry.high, entry.low, entry.close, entry.volume,
            ]  # fmt: skip
            assert (float(row[7]), row[8]) == (entry.quote_volume, entry.trades)
            assert float(row[9]) == entry.taker_buy_volume
            assert float(row[10]) == entry.taker_buy_quote_volume
            assert entry.event_time_ms > row[6]

    with_rest(check, speed=600.0, paused=False, timeframes=("1m", "3m"))


def test_a_row_whose_close_time_is_past_is_final() -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        seen: dict[int, Any] = {}
        while len(seen) < 10:
            _, clock, _ = await get("time")
            _, rows, _ = await get("klines", symbol="BTCUSDT", interval="1m", limit=3)
            seen.update({row[0]: row for row in rows if row[6] < clock["serverTime"]})
        simulator.pause()
        _, final, _ = await get("klines", symbol="BTCUSDT", interval="1m", limit=1_500)
        assert [row for row in final if row[0] in seen] == list(seen.values())

    with_rest(check, speed=1_000.0, paused=False, timeframes=("1m",))


def test_the_book_stands_around_the_last_price() -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        for symbol in ("BTCUSDT", "SIM001USDT", "币安人生USDT"):
            _, (row,), _ = await get("klines", symbol=symbol, interval="1m", limit=1)
            last = float(row[4])
            status, body, headers = await get("depth", symbol=symbol, limit=5)
            assert status == 200
            assert list(body) == ["lastUpdateId", "E", "T", "bids", "asks"]
            bids, asks = ([float(price) for price, _ in body[side]] for side in ("bids", "asks"))
            assert bids == sorted(bids, reverse=True)
            assert asks == sorted(asks)
            assert bids[0] == pytest.approx(last)
            assert bids[0] < asks[0]
            assert len(bids) == len(asks) == 5
            assert all(float(quantity) > 0 for _, quantity in body["bids"] + body["asks"])
            _, ticker, _ = await get("ticker/bookTicker", symbol=symbol)
            assert [ticker["bidPrice"], ticker["bidQty"]] == body["bids"][0]
            assert [ticker["askPrice"], ticker["askQty"]] == body["asks"][0]
        _, tickers, after = await get("ticker/bookTicker")
        assert {one["symbol"] for one in tickers} >= {"BTCUSDT", "ETHUSDT", "BTCUSDC"}
        assert int(after[WEIGHT]) - int(headers[WEIGHT]) == 2 + 5
        status, body, _ = await get("depth", symbol="BTCUSDT", limit=7)
        assert (status, body["code"]) == (400, -4021)

    with_rest(check)


def test_candles_of_mark_prices_open_where_settlements_are() -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        since = START_MS - 10 * schema.DAY_MS
        _, settled, _ = await get("fundingRate", symbol="SIM001USDT", startTime=since)
        assert settled
        _, rows, _ = await get(
            "markPriceKlines", symbol="SIM001USDT", interval="1h", startTime=since, limit=499
        )
        opens = {row[0]: row[1] for row in rows}
        for one in settled:
            hour = schema.floor_to(one["fundingTime"], schema.HOUR_MS)
            assert float(opens[hour]) == pytest.approx(float(one["markPrice"]), rel=1e-9)
        assert [row[0] for row in rows] == list(
            range(schema.ceil_to(since, schema.HOUR_MS), START_MS, schema.HOUR_MS)
        )
        for _, open_, high, low, close, volume, *_ in rows:
            assert float(low) <= min(float(open_), float(close))
            assert float(high) >= max(float(open_), float(close))
            assert volume == "0"
        _, newest, _ = await get("markPriceKlines", symbol="SIM001USDT", interval="1h", limit=3)
        assert newest == rows[-3:]
        _, none, _ = await get("markPriceKlines", symbol="XAUUSDT", interval="1h", limit=3)
        assert none == []

    with_rest(check)


def test_what_is_not_simulated_is_refused_and_counted() -> None:
    async def check(simulator: Simulator, get: Get) -> None:
        address = simulator.rest_url + "/fapi/v3/openInterest"
        async with aiohttp.ClientSession() as session, session.get(address) as response:
            assert response.status == 404
        await get("depth", symbol="BTCUSDT")
        requests = simulator.state().requests
        assert (requests["/fapi/v3/openInterest"], requests["depth"]) == (1, 1)

    with_rest(check)
