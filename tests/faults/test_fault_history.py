"""History as an operator meets it: killed at any point, beside a running collector, and what it reports."""

import json
import random
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from proc_commands import (
    MARKETFEED,
    Collecting,
    Exchange,
    Process,
    environment,
    exchange,
    get,
    run_command,
    run_marketfeed,
    write_config,
)

from marketfeed.binance.archive import TERMS
from marketfeed.journal.journal import Journal
from marketfeed.schema import DAY_MS, floor_to
from reader import MarketReader
from reader.feeder import FUTURES, Download, Feeder
from tests.ports import held_port
from tests.waiting import wait_until

KILLS = 3
SHIPPED = Path(__file__).resolve().parents[2] / "config.yaml"
UNUSED = "exchange.archive_url is set, but exchange.archive is false"


def configured(directory: Path, sim: Exchange, port: int, days: int, weight: int) -> Path:
    return write_config(
        directory,
        sim.ws_url,
        sim.rest_url,
        exchange={
            "pairs": "all",
            "timeframes": ["3m", "5m"],
            "archive": True,
            "archive_url": sim.rest_url,
        },
        history={"days": days, "weight_per_minute": weight},
        status={"port": port},
    )


def candles(path: Path) -> int:
    if not path.exists():
        return 0
    with Journal.open(path, wait_lock_s=5.0) as journal:
        return journal.row_counts()["candle"]


def klines(sim: Exchange) -> int:
    requests: dict[str, int] = get(sim.rest_url + "/simulator/state").json["requests"]
    return requests.get("klines", 0)


def audit(config: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = run_marketfeed(
        "audit", "--config", config, "--all", "--weight=2400", "--json", *arguments
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.long(40)
def test_a_backfill_that_is_killed_at_any_point_goes_on_where_it_was(tmp_path: Path) -> None:
    chance = random.Random(7)
    with exchange(tmp_path, pairs=4, speed=60.0, timeframes="1m") as sim:
        config = configured(tmp_path, sim, 0, days=10, weight=100)
        until_then = minutes_ago(sim, 10)
        command = [*MARKETFEED, "backfill", "--config", str(config), "--from=rest", "--json"]
        path = tmp_path / "journal.db"
        stored = 0
        for number in range(KILLS):
            with Process(command, tmp_path / f"backfill-{number}.log") as process:
                # Some kills come before anything was stored, some in the midst of a commit.
                asked = klines(sim)
                wait_until(lambda: klines(sim) > asked or process.process.poll() is not None)  # noqa: B023
                time.sleep(chance.uniform(0.0, 0.4))
                process.process.send_signal(signal.SIGKILL)
                process.wait()
            now = candles(path)
            # What was stored stays stored.
            assert now >= stored
            stored = now
        done = run_marketfeed(*command[3:])
        assert done.returncode == 0, done.stdout + done.stderr
        outcome = json.loads(done.stdout)
        assert outcome["by"] == "this command"
        assert outcome["history"]["state"] == "complete"
        assert outcome["history"]["candles_left"] == 0
        # 10 + 6 requests a pair, and with each kill those under way, and the tiles' new edges.
        assert klines(sim) <= 4 * (10 + 6) + KILLS * (8 + 4 * 2)
        code, report = audit(config, "--days=9", f"--until={until_then}")
        assert code == 0, report
        assert report["missing"] == report["different"] == 0
        assert report["compared"] == report["expected"] > 4 * 8 * (480 + 288)


def minutes_ago(sim: Exchange, minutes: int) -> str:
    now_ms = get(sim.rest_url + "/simulator/state").json["exchange_time_ms"]
    return f"{datetime.fromtimestamp(now_ms / 1000 - minutes * 60, UTC):%Y-%m-%dT%H:%M:%S}"


@pytest.mark.long(20)
def test_the_service_fills_by_itself_and_the_command_shows_how(tmp_path: Path) -> None:
    with exchange(tmp_path, pairs=3, speed=10.0, timeframes="1m,3m,5m") as sim:
        config = configured(tmp_path, sim, held_port(), days=3, weight=2_400)
        until_then = minutes_ago(sim, 10)
        with Collecting(run_command(config), tmp_path / "run.log") as collecting:
            wait_until(lambda: collecting.status()["pairs"] == 3)
            # Beside it: no lock error, but its progress until it is done.
            followed = run_marketfeed("backfill", "--config", config, "--json")
            assert followed.returncode == 0, followed.stderr
            outcome = json.loads(followed.stdout)
            assert outcome["by"] == "the running collector"
            assert outcome["history"]["days"] == 3
            assert outcome["history"]["pairs_done"] == 3
            state = collecting.status()["history"]
            assert state["history"]["state"] == "complete"
            assert b"marketfeed_history_complete 1.0" in get(collecting.url + "/metrics").body
            # It reads beside the collector.
            audited = run_marketfeed(
                "audit", "--config", config, "--days=2.9", "--all", f"--until={until_then}"
            )
            assert audited.returncode == 0, audited.stdout
            assert "100.000 %: 0 missing, 0 different" in audited.stdout
            # What it does not do by itself is named in one sentence.
            more = run_marketfeed("backfill", "--config", config, "--days=5")
            assert more.returncode == 1
            assert "fills 3 days of history by itself; for 5 days set history.days" in more.stderr
            assert "Traceback" not in more.stderr
            # Its own audit has begun.
            wait_until(lambda: collecting.status()["history"]["audit"]["audited"] > 0)
            table = run_marketfeed("status", "--config", config)
            assert "complete, 3 days, pairs 3 of 3, 0 candles left" in table.stdout
            assert collecting.stop() == 0


@pytest.mark.long(20)
def test_the_first_daily_candle_of_a_listing_is_filled_and_read(tmp_path: Path) -> None:
    """It opens before the listing: that of 2019-09-25 00:00 of a contract that is listed at 08:00."""
    with exchange(tmp_path, pairs=1, speed=10.0, timeframes="1m,8h,1d") as sim:
        (row,) = [
            one
            for one in get(sim.rest_url + "/fapi/v1/exchangeInfo").json["symbols"]
            if one["symbol"] == "BTCUSDT"
        ]
        listed_ms = row["onboardDate"]
        first_ms = floor_to(listed_ms, DAY_MS)
        assert first_ms < listed_ms
        config = write_config(
            tmp_path,
            sim.ws_url,
            sim.rest_url,
            exchange={"pairs": "all", "timeframes": ["1d"], "archive_url": sim.rest_url},
            history={"days": 3_650, "weight_per_minute": 2_400},
            journal={
                "path": str(tmp_path / "journal.db"),
                "retention": {"candles": "4000d"},
            },
        )
        with Collecting(run_command(config), tmp_path / "run.log") as collecting:
            wait_until(lambda: collecting.status()["pairs"] == 1)

            def is_filled() -> bool:
                history = collecting.status()["history"] or {}
                return all(
                    history[name]["state"] == "complete" for name in ("history", "mark_candles")
                )

            wait_until(is_filled)
            now_ms = collecting.status()["exchange_time_ms"]
            url = f"sqlite:///{tmp_path / 'journal.db'}"
            with MarketReader.connect(url, now_ms=lambda: now_ms) as reader:
                frame = reader.get_ohlcv("BTC/USDT:USDT", "1d", since=first_ms, max_age_s=None)
                assert frame["date"].iloc[0].timestamp() * 1_000 == first_ms
                assert frame.attrs["missing"] == []
                assert frame["volume"].iloc[0] > 0
                asked = Download("BTC/USDT:USDT", "1d", FUTURES, first_ms, 499, listed_ms)
                (rows,) = Feeder(reader, lambda: now_ms).answer([asked])
                assert isinstance(rows, list)
                assert (rows[0][0], len(rows)) == (first_ms, 499)
            assert collecting.stop() == 0
        code, report = audit(config, "--days=3650", "--timeframes=1d")
        assert code == 0, report
        assert report["missing"] == report["different"] == 0
        assert report["expected"] == len(frame) - frame.attrs["forming"]


@pytest.mark.long(25)
def test_what_cannot_be_filled_or_audited_is_reported(tmp_path: Path) -> None:
    with exchange(tmp_path, pairs=1, speed=10.0, timeframes="1m") as sim:
        config = configured(tmp_path, sim, 0, days=1, weight=2_400)
        absent = run_marketfeed("audit", "--config", config)
        assert absent.returncode == 1
        assert "there is none" in absent.stderr
        none = run_marketfeed("backfill", "--config", config, "--pairs=NOSUCH/USDT:USDT")
        assert none.returncode == 2
        assert "not collected by these settings: NOSUCH/USDT:USDT" in none.stderr
        assert run_marketfeed("backfill", "--config", config).returncode == 0
        nothing = run_marketfeed("audit", "--config", config, "--since=2036-01-01", "--json")
        # Nothing was expected: that proves nothing.
        assert nothing.returncode == 1
        assert json.loads(nothing.stdout)["expected"] == 0
        code, report = audit(config, "--days=0.5", f"--until={minutes_ago(sim, 10)}")
        assert (code, report["missing"], report["different"]) == (0, 0, 0)


# --- the public archive -----------------------------------------------------------------------------


def archive_requests(sim: Exchange) -> int:
    count: int = get(sim.rest_url + "/simulator/state").json["archive_requests"]
    return count


def as_shipped(directory: Path, sim: Exchange, *, archive: bool) -> dict[str, str]:
    """The environment in which the shipped settings meet that exchange, and its archive."""
    exchange = {"WS_URL": sim.ws_url, "REST_URL": sim.rest_url, "ARCHIVE_URL": sim.rest_url}
    if archive:
        exchange["ARCHIVE"] = "true"
    return environment(
        MARKETFEED_CONFIG=str(SHIPPED),
        MARKETFEED_JOURNAL__PATH=str(directory / "journal.db"),
        MARKETFEED_STATUS__PORT="0",
        **{f"MARKETFEED_EXCHANGE__{key}": value for key, value in exchange.items()},
    )


@pytest.mark.long(20)
@pytest.mark.parametrize("archive", [False, True])
def test_a_collector_asks_the_archive_only_where_the_settings_say_so(
    tmp_path: Path, *, archive: bool
) -> None:
    with exchange(tmp_path, pairs=3, speed=60.0, timeframes="3m,5m,15m,1h") as sim:
        command = [*MARKETFEED, "run"]
        env = as_shipped(tmp_path, sim, archive=archive)
        with Collecting(command, tmp_path / "run.log", env) as collecting:

            def filled() -> bool:
                state = collecting.status()["history"]
                return state is not None and state["history"]["state"] == "complete"

            wait_until(filled)
            report = collecting.status()["history"]["history"]
            assert report["stored"] > 0
            assert collecting.stop() == 0
        # 30 days of 3m, 5m, 15m and 1h, the newest of them by healing.
        assert candles(tmp_path / "journal.db") >= 3 * 30 * (480 + 288 + 96 + 24) - 3 * 4 * 60
        assert (archive_requests(sim) > 0) == (report["files"] > 0) == archive
        assert collecting.log.count(TERMS) == archive
        assert collecting.log.count(UNUSED) == (not archive)


@pytest.mark.long(15)
def test_commands_use_the_archive_at_the_operators_word_and_name_its_terms(tmp_path: Path) -> None:
    with exchange(tmp_path, pairs=1, speed=1.0, timeframes="3m") as sim:
        env = as_shipped(tmp_path, sim, archive=False)

        def asked_by(*command: str) -> tuple[int, int]:
            """How many requests the archive got, and how often the terms were printed."""
            before = archive_requests(sim)
            done = run_marketfeed(*command, "--json", env=env)
            assert done.returncode == 0, done.stdout + done.stderr
            assert json.loads(done.stdout)
            assert done.stderr.count(UNUSED) == 1
            return archive_requests(sim) - before, done.stderr.count(TERMS)

        assert asked_by("backfill", "--days=4") == (0, 0)
        requests, named = asked_by("backfill", "--days=12", "--from=archive")
        assert requests > 0
        assert named == 1
        assert asked_by("audit", "--days=1") == (0, 0)
        requests, named = asked_by("audit", "--days=6", "--from=archive")
        assert requests > 0
        assert named == 1
