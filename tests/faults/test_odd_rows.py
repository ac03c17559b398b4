"""A real collector, and lists in which a row is odd: that row is counted and named, all others are stored."""

import asyncio
import contextlib
import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from proc_commands import Collecting, get, run_command, run_marketfeed, write_config
from scripted_rest import Asked, scripted_rest

from marketfeed.schema import HOUR_MS, MINUTE_MS, TIMEFRAMES_MS
from marketfeed.simulator.server import SimulatorOptions

START_MS: Final = 1_792_800_000_000
LENGTH_MS: Final = TIMEFRAMES_MS["15m"]
SPEED: Final = 120.0
WAIT_S: Final = 180.0
FIRST, SECOND = "BTCUSDT", "ETHUSDT"
MISSING_MS: Final = START_MS - 8 * HOUR_MS
"""Of the first pair this candle is odd from the start on."""
STORED_MS: Final = START_MS - 6 * HOUR_MS
"""Of the second pair this one is odd once it is stored."""
SETTLED_MS: Final = START_MS // (8 * HOUR_MS) * (8 * HOUR_MS) - 8 * HOUR_MS
"""The first pair's rate of this time is odd."""


class Odd:
    """Spoils a row of each list, as in tests/data/odd_rows.json."""

    def __init__(self) -> None:
        self.candles: set[tuple[str, int]] = {(FIRST, MISSING_MS)}
        self.rates = True

    def changed(self, asked: Asked, body: Any) -> Any:
        """The answer as a test wants it."""
        if asked.endpoint == "ticker/24hr":
            return [*body, {"symbol": "BTCUSD_PERP", "volume": "1", "baseVolume": "0.1"}]
        if asked.endpoint == "klines":
            symbol = asked.query["symbol"]
            rows = [
                [*row[:5], None, *row[6:]] if (symbol, row[0]) in self.candles else row
                for row in body
            ]
            # The last row of each of the second pair's answers is repeated.
            return [*rows, *rows[-1:]] if symbol == SECOND else rows
        if asked.endpoint == "fundingRate" and self.rates:
            for row in body:
                if row["symbol"] == SECOND:
                    row["markPrice"] = None
                elif row["symbol"] == FIRST and abs(row["fundingTime"] - SETTLED_MS) < MINUTE_MS:
                    row["fundingRate"] = None
        return body


@pytest.mark.long(15)
def test_an_odd_row_costs_itself_alone(tmp_path: Path) -> None:
    odd = Odd()
    journal = tmp_path / "journal.db"

    def stored(sql: str, *values: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(journal)) as db:
            return db.execute(sql, values).fetchall()

    def opens(symbol: str) -> set[int]:
        pair = f"{symbol.removesuffix('USDT')}/USDT:USDT"
        sql = "SELECT open_time FROM candle JOIN pair ON pair_id = pair.id WHERE pair = ?"
        return {ms for (ms,) in stored(sql, pair)}

    async def run() -> None:
        options = SimulatorOptions(
            pairs=3, timeframes=("15m",), speed=SPEED, start_ms=START_MS + 60_000
        )
        async with scripted_rest(options) as exchange:
            exchange.changed = odd.changed
            config = write_config(
                tmp_path,
                exchange.sim.ws_url,
                exchange.url,
                exchange={"timeframes": ["15m"], "pairs": {"top": 2}},
                history={"days": 1},
            )
            with Collecting(run_command(config), tmp_path / "run.log") as collecting:

                async def report() -> dict[str, Any]:
                    return await asyncio.to_thread(collecting.status)

                async def until(so: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
                    async with asyncio.timeout(WAIT_S):
                        while not so(reported := await report()):
                            await asyncio.sleep(0.05)
                    return reported

                # `top: 2` starts, and all but the odd candle and rate are stored.
                # Healing asks for it on and on.
                reported = await until(
                    lambda r: r["history"] and r["history"]["history"]["candles_left"] == 1
                )
                assert reported["pairs"] == 2
                assert reported["history"]["history"]["candles"] > 150
                assert reported["history"]["history"]["state"] == "filling"
                day = set(range(START_MS - 20 * HOUR_MS, START_MS, LENGTH_MS))
                assert day - opens(FIRST) == {MISSING_MS}
                assert day <= opens(SECOND)
                await until(lambda r: r["settled"]["history_pairs"] == 1)
                rates = stored("SELECT rate, mark_price FROM funding_settled")
                assert len(rates) >= 4
                assert None in {mark for _, mark in rates}
                # The audit goes on, of both; an odd row does not make a stored candle wrong.
                audited = (await report())["history"]["audit"]["audited"]
                odd.candles.add((SECOND, STORED_MS))
                reported = await until(
                    lambda r: (
                        r["history"]["audit"]["errors"] >= 4
                        and r["history"]["audit"]["audited"] > audited + 200
                    )
                )
                audit = reported["history"]["audit"]
                assert (audit["missing"], audit["different"], audit["unmended"]) == (0, 0, [])
                assert all(reported["rest"]["odd_rows"][name] for name in ("klines", "ticker/24hr"))
                assert reported["rest"]["odd_rows"]["fundingRate"]
                metrics = (await asyncio.to_thread(get, collecting.url + "/metrics")).body.decode()
                assert re.search(
                    r'marketfeed_rest_odd_rows_total{endpoint="klines"} [1-9]', metrics
                )
                # Named once each, however often they were met.
                for of in ("BTCUSDT 15m", "ETHUSDT 15m", "BTCUSD_PERP", "BTCUSDT: "):
                    lines = [one for one in collecting.log.splitlines() if f"named='{of}" in one]
                    assert len(lines) == 1, (of, lines)
                # The command says so as well.
                done = await asyncio.to_thread(
                    run_marketfeed, "audit", "--config", config, "--days=0.9", "--all", "--json"
                )
                assert done.returncode == 1, done.stderr
                answer = json.loads(done.stdout)
                assert (answer["missing"], answer["different"]) == (1, 0), answer
                assert sorted(answer["errors"]) == [
                    f"BTC/USDT:USDT 15m: odd rows for {MISSING_MS} to {MISSING_MS + LENGTH_MS}",
                    f"ETH/USDT:USDT 15m: odd rows for {STORED_MS} to {STORED_MS + LENGTH_MS}",
                ]
                assert answer["compared"] > 150
                # What was odd is asked for again, until it is good.
                odd.candles.clear()
                odd.rates = False
                await until(lambda r: r["history"]["history"]["state"] == "complete")
                await until(lambda r: r["settled"]["history_pairs"] == 0)
                assert MISSING_MS in opens(FIRST)
                assert await asyncio.to_thread(collecting.stop) == 0

    asyncio.run(run())
