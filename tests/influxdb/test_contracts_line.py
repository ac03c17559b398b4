"""Contracts of all types, and what they lack, from the exchange to both stores, readers and feeders.

A real collector takes coins and gold from an exchange whose mark prices lack values and whose list has odd
rows; what the journal's reader answers, that of a real influxd answers, too.
"""

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any, Final

import pytest
from both import Both
from influxd import Influxd

from marketfeed.schema import APPLICATION_ID, HOUR_MS, MINUTE_MS
from marketfeed.simulator.fault_kinds import Lack
from marketfeed.simulator.server import SimulatorOptions
from reader import MarketReader
from reader.feeder import FUNDING_RATE, FUTURES, Download, Feeder
from tests import older_versions
from tests.faults.proc_commands import Collecting, get, run_command, run_marketfeed, write_config
from tests.faults.scripted_rest import Asked, ScriptedRest, scripted_rest

START_MS: Final = 1_792_800_000_000
WAIT_S: Final = 180.0
BITCOIN, ETHER, RIPPLE, GOLD, SILVER = (
    f"{base}/USDT:USDT" for base in ("BTC", "ETH", "XRP", "XAU", "XAG")
)
LACKING: Final = {
    GOLD: Lack("xauusdt@markPrice", key="i", how="empty"),
    SILVER: Lack("xagusdt@markPrice", key="i", how="null"),
    ETHER: Lack("ethusdt@markPrice", key="i", how="absent"),
    RIPPLE: Lack("xrpusdt@markPrice", key="T", how="null"),
}
PAIRS: Final = (BITCOIN, *LACKING)
ODD: Final = {"NODATEUSDT": {"onboardDate": None}, "ODDBASEUSDT": {"baseAsset": "A B"}}


def changed(asked: Asked, body: Any) -> Any:
    """The exchange's list, with odd rows."""
    if asked.endpoint == "exchangeInfo":
        like = next(row for row in body["symbols"] if row["symbol"] == "ETHUSDT")
        body["symbols"] += [
            like | {"symbol": symbol, "baseAsset": symbol[:-4]} | changes
            for symbol, changes in ODD.items()
        ]
    return body


def newest_ms(journal: Path) -> int:
    """The time of the newest mark price."""
    with contextlib.closing(sqlite3.connect(journal)) as db:
        ((time_ms,),) = db.execute("SELECT max(time) FROM mark_price").fetchall()
    return int(time_ms)


def asked_at_ms(journal: Path) -> int:
    """A second after the newest mark price; just before a close that was still coming as the run ended."""
    at_ms = newest_ms(journal) + 1_000
    since_ms = at_ms % MINUTE_MS
    return at_ms if since_ms > 10_000 else at_ms - since_ms - 1


def answers(reader: MarketReader, now_ms: int) -> dict[str, Any]:
    """What a store holds of each pair, by any reader."""
    feeder = Feeder(reader, lambda: now_ms)
    found: dict[str, Any] = {}
    for pair in PAIRS:
        frame = reader.get_ohlcv(pair, "1m", limit=200)
        mark = reader.get_mark_price(pair)
        candles = Download(pair, "1m", FUTURES, None, 200)
        rates = Download(pair, "1h", FUNDING_RATE, now_ms - 10 * HOUR_MS, 100)
        found[pair] = {
            "candles": frame.to_numpy().tolist(),
            "missing": list(frame.attrs["missing"]),
            "resampled": reader.get_ohlcv(pair, "15m", limit=10).to_numpy().tolist(),
            "mark": (float(mark), mark.index_price, mark.time),
            "download": feeder.answer([candles])[0],
            "settled": feeder.answer([rates])[0],
        }
        if pair != RIPPLE:
            rate = reader.get_funding_rate(pair)
            found[pair]["rate"] = (float(rate), rate.next_funding_time, rate.time)
    return found


@pytest.mark.parametrize("version", [2, 3])
def test_types_and_what_contracts_lack(
    influxd: Influxd, database: str, tmp_path: Path, version: int
) -> None:
    journal = tmp_path / "journal.db"
    if version == 2:
        older_versions.empty(journal, "journal_version_2.sql", APPLICATION_ID, 2)

    async def check(exchange: ScriptedRest, config: Path) -> None:
        with Collecting(run_command(config), tmp_path / "run.log") as collecting:
            report: dict[str, Any] = {}
            async with asyncio.timeout(WAIT_S):
                while not (
                    report
                    and report["pairs"] == len(PAIRS)
                    and report["ready_pairs"] == len(PAIRS)
                    and report["mark_price_age_s"] is not None
                    and report["settled"]["history_pairs"] == 0
                    and (report["history"]["history"] or {}).get("state") == "complete"
                    and report["exchange_time_ms"] > START_MS + 3 * MINUTE_MS
                ):
                    await asyncio.sleep(0.1)
                    report = await asyncio.to_thread(collecting.status)
            metrics = (await asyncio.to_thread(get, collecting.url + "/metrics")).body.decode()
            assert await asyncio.to_thread(collecting.stop) == 0
            log = collecting.log
        # Of what came last it has not shipped everything.
        await asyncio.to_thread(Both(influxd, database, journal).add)
        now_ms = asked_at_ms(journal)
        with (
            MarketReader.connect(f"sqlite:///{journal}", now_ms=lambda: now_ms) as one,
            MarketReader.connect(influxd.url, bucket=database, now_ms=lambda: now_ms) as two,
        ):
            found = await asyncio.to_thread(answers, one, now_ms)
            other = await asyncio.to_thread(answers, two, now_ms)
        differing = [
            (pair, name, found[pair][name], other[pair][name])
            for pair in PAIRS
            for name in found[pair]
            if found[pair][name] != other[pair][name]
        ]
        assert differing == []
        for pair in PAIRS:
            mark, index, _ = found[pair]["mark"]
            assert mark > 0
            has_index = pair in (BITCOIN, RIPPLE)
            assert (index is not None) == has_index
            assert found[pair]["missing"] == []
            assert len(found[pair]["candles"]) == 200
            assert len(found[pair]["download"]) == 200
            assert len(found[pair]["settled"]) >= 2
        # Without a next settlement there is no running rate; the others keep theirs.
        with contextlib.closing(sqlite3.connect(journal)) as db:
            names = db.execute(
                "SELECT DISTINCT pair.pair FROM funding_rate JOIN pair ON pair.id = pair_id"
            ).fetchall()
            (rejected,) = db.execute("SELECT count(*) FROM dead_letter").fetchone()
        assert {name for (name,) in names} == set(PAIRS) - {RIPPLE}
        assert rejected == 0
        series = influxd.query("SELECT count(index_price) FROM mark_price GROUP BY pair", database)
        assert {one["tags"]["pair"] for one in series} == {BITCOIN, RIPPLE}
        # Rows that make no pair are named, and counted.
        for symbol in ODD:
            assert f"{symbol}: " in log
        assert report["rest"]["odd_rows"]["exchangeInfo"] >= len(ODD)
        assert 'marketfeed_rest_odd_rows_total{endpoint="exchangeInfo"}' in metrics
        assert "contracts are left out by type: CURRENT_QUARTER 1, NEXT_QUARTER 1" in log

    async def check_coins_alone(config: Path) -> None:
        with Collecting(run_command(config), tmp_path / "again.log") as collecting:
            async with asyncio.timeout(WAIT_S):
                while not await asyncio.to_thread(collecting.is_delivering):
                    await asyncio.sleep(0.1)
            assert await asyncio.to_thread(collecting.stop) == 0
            assert "pairs dropped: the settings name them no more count=2" in collecting.log
            assert "NEXT_QUARTER 1, TRADIFI_PERPETUAL 2; exchange.contracts" in collecting.log
        await asyncio.to_thread(Both(influxd, database, journal).add)
        now_ms = newest_ms(journal) + 1_000
        for url in (f"sqlite:///{journal}", influxd.url):
            with MarketReader.connect(url, bucket=database, now_ms=lambda: now_ms) as reader:
                live = {one.pair for one in reader.pairs() if one.timeframes}
                assert live == {BITCOIN, ETHER, RIPPLE}
                assert set(reader.get_all_pairs_funding_rates(max_age_s=None)) <= live
        with contextlib.closing(sqlite3.connect(journal)) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (version,)

    async def run() -> None:
        options = SimulatorOptions(
            pairs=(BITCOIN, ETHER, RIPPLE),
            tradifi=(GOLD, SILVER),
            timeframes=("1m",),
            speed=60.0,
            start_ms=START_MS,
        )
        async with scripted_rest(options) as exchange:
            exchange.changed = changed
            for fault in LACKING.values():
                await exchange.sim.faults.start(fault)
            config = write_config(
                tmp_path,
                exchange.sim.ws_url,
                exchange.url,
                exchange={
                    "pairs": "all",
                    "contracts": ["perpetual", "tradifi"],
                    "timeframes": ["1m"],
                },
                history={"days": 1, "weight_per_minute": 2_400},
                influxdb={"url": influxd.url, "api": "v1", "bucket": database},
            )
            await check(exchange, config)
            # With coins alone gold is let go of, and check says what is left out.
            coins = write_config(
                tmp_path,
                exchange.sim.ws_url,
                exchange.url,
                exchange={"pairs": "all", "timeframes": ["1m"]},
            )
            await check_coins_alone(coins)
            coins = write_config(
                tmp_path,
                exchange.sim.ws_url,
                exchange.url,
                exchange={"pairs": [BITCOIN, GOLD, "NODATE/USDT:USDT"], "timeframes": ["1m"]},
            )
            checked = await asyncio.to_thread(run_marketfeed, "check", "--config", coins, "--json")
            texts = checked.stdout
            assert checked.returncode == 0, checked.stdout
            assert f"{GOLD} is left out: its contract type is TRADIFI_PERPETUAL" in texts
            assert "exchange.contracts needs tradifi to collect it" in texts
            assert "NODATE/USDT:USDT is left out: its row of exchangeInfo cannot be und" in texts
            assert "ODDBASEUSDT: names 'A B/USDT:USDT', which is no pair" in texts

    asyncio.run(run())
