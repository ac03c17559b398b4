"""A feeder that has posted nothing for a day is in sight, however often the aggregator is started again."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from bot import CountingBot
from running import LONG, SHORT, one_vote, rows, running, settle

from marketfeed.aggregator import silence
from marketfeed.aggregator.ballots import Vote
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_tables import Receipt
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.signals import Side, Signal
from marketfeed.aggregator.silence import SILENT_MS, Silence
from marketfeed.schema import DAY_MS, HOUR_MS
from tests.waiting import until

NOW_MS = 1_795_000_000_000


def test_who_has_posted_nothing_for_a_day_is_silent() -> None:
    found = Silence(("73", "74"), NOW_MS)
    found.heard("73", NOW_MS)
    found.heard("74", NOW_MS + HOUR_MS)
    assert found.warnings(NOW_MS + SILENT_MS - 1) == []
    (words,) = found.warnings(NOW_MS + SILENT_MS)
    assert words.startswith("feeder 73 has posted nothing for 24 h: ")
    assert found.silent_ms(NOW_MS + SILENT_MS) == {"73": SILENT_MS, "74": SILENT_MS - HOUR_MS}
    found.heard("73", NOW_MS + SILENT_MS)
    assert found.warnings(NOW_MS + SILENT_MS) == []
    assert "feeder 74 has posted nothing for 10 d" in found.warnings(NOW_MS + 10 * DAY_MS)[1]


def test_of_whom_the_ledger_has_not_been_asked_nothing_is_said() -> None:
    found = Silence(("73",), NOW_MS)
    assert found.is_looked_for()
    assert (found.silent_ms(NOW_MS), found.warnings(NOW_MS + 9 * DAY_MS)) == ({}, [])
    # An empty ledger: nobody may have been a feeder before this run.
    found.looked_back(None)
    assert not found.is_looked_for()
    assert found.warnings(NOW_MS + SILENT_MS - 1) == []
    assert found.warnings(NOW_MS + SILENT_MS)[0].startswith("feeder 73 has never posted")


def test_who_never_posted_is_named_at_once_and_silent_since_the_start() -> None:
    """A feeder that has just been added must raise no alert."""
    found = Silence(("73",), NOW_MS)
    found.looked_back(NOW_MS - 30 * DAY_MS)
    assert found.warnings(NOW_MS)[0].startswith("feeder 73 has never posted")
    assert found.silent_ms(NOW_MS + 5) == {"73": 5}


def test_an_older_or_a_later_word_changes_nothing() -> None:
    found = Silence(("73",), NOW_MS)
    found.heard("73", NOW_MS)
    found.heard("73", NOW_MS - 1)
    found.heard("99", NOW_MS)
    assert found.silent_ms(NOW_MS) == {"73": 0}
    # By a clock that was ahead.
    assert found.silent_ms(NOW_MS - 5) == {"73": 0}


def write(path: Path, *posted: tuple[str, int]) -> None:
    """Signals of these feeders in the ledger, received then."""
    settle(path)
    with Ledger.open(path) as ledger:
        receipts = []
        for number, (feeder, at_ms) in enumerate(posted, 1):
            side: Side = "long" if feeder in LONG else "short"
            signal = Signal("BTC/USDT:USDT", side, feeder, feeder, 0.9)
            vote = Vote(number, at_ms, signal, signal.digest(), "fleet")
            outcome: Any = "voted" if number % 2 else "duplicate"
            receipts.append(
                Receipt(vote, "fleet", "127.0.0.1", None, b"{}", outcome, number, "counted")
            )
        ledger.record(receipts, [], NOW_MS)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7])
def test_the_ledger_is_looked_through_slice_by_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(silence, "SLICE", 3)
    posted = [("73", NOW_MS), *(("74", NOW_MS + number) for number in range(1, count))]
    write(tmp_path / "ledger.db", *posted)

    async def scenario() -> None:
        found = Silence(("73", "74", "75"), NOW_MS)
        async with LedgerThread(tmp_path / "ledger.db") as ledger:
            await found.look_back(ledger)
        assert not found.is_looked_for()
        last = {"73": 10, "74": 11 - count if count > 1 else 10, "75": 10}
        assert found.silent_ms(NOW_MS + 10) == last
        never = [it for it in found.warnings(NOW_MS + SILENT_MS) if "never" in it]
        assert [it.split()[1] for it in never] == (["75"] if count > 1 else ["74", "75"])

    asyncio.run(scenario())


def test_a_restart_hides_no_silence_and_a_signal_ends_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot:
            given = one_vote(tmp_path, bot.url)
            async with running(given) as aggregator:
                await aggregator.post("73", 0.9)
            day_ms = 25 * HOUR_MS
            with Ledger.open(tmp_path / "ledger.db") as ledger:
                ledger.db.execute("UPDATE signal SET received = received - ?", (day_ms,))
            for _ in range(2):
                async with running(given) as aggregator:
                    warned = aggregator.aggregator.warnings
                    await until(lambda warned=warned: len(warned()) == 10, warned)
                    status, health = await aggregator.status("health")
                    assert (status, health["healthy"]) == (200, True)
                    assert health["warnings"] == warned()
                    assert "feeder 73 has posted nothing for 25 h: " in health["warnings"][0]
                    report = (await aggregator.status())[1]
                    assert report["warnings"] == warned()
                    assert report["silent_s"]["73"] >= 25 * 3600
                    assert report["silent_s"]["74"] < 3600
                    assert set(report["silent_s"]) == {*LONG, *SHORT}
            async with running(given) as aggregator:
                await aggregator.post("73", 0.9, pair="ETH/USDT:USDT")
                warned = aggregator.aggregator.warnings
                await until(lambda: len(warned()) == 9, warned)
                assert not any(it.startswith("feeder 73 ") for it in warned())
                assert len(rows(tmp_path, "SELECT 1 FROM signal")) == 2

    asyncio.run(scenario())
