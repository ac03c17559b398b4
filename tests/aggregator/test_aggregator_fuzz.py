"""Hostile requests while feeders post: no answer is a 5xx, no valid post is refused or lost.

`FUZZ=100000` sends more; tests/aggregator/fuzz_run.py measures what feeders wait meanwhile.
"""

import asyncio
import os
import time
from pathlib import Path

import pytest
from bot import CountingBot
from hostile import Hostile, assault
from running import FLEET, LONG, quick_hash, rows, running, settings

from marketfeed.aggregator.ledger_refused import KEPT
from marketfeed.aggregator.refused_posts import ALIKE_OF_SENDER, LOG_EVERY_S

COUNT = int(os.environ.get("FUZZ", "2000"))
SEED = int(os.environ.get("SEED", "1"))
FUZZ = ("fuzz", "invented-fuzz-password")


@pytest.mark.long(20)
def test_hostile_requests_beside_feeders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    accounts = [{"username": name, "hash": quick_hash(word)} for name, word in (FLEET, FUZZ)]

    async def scenario() -> None:
        async with (
            CountingBot() as bot,
            running(
                settings(tmp_path, {"long": bot.url}, accounts=accounts, window_s=600)
            ) as aggregator,
        ):
            for login in (FLEET, FUZZ):
                assert (await aggregator.get("version", login))[0] == 200
            attack = asyncio.create_task(
                assault(aggregator.aggregator.url, Hostile(SEED, FUZZ), COUNT, 10_000)
            )
            posts = 0
            while not attack.done():
                pair = f"P{posts}/USDT:USDT"
                assert (await aggregator.post(LONG[posts % 5], 0.9, pair=pair))[0] == 200
                posts += 1
            found = await attack
            assert found.total() == COUNT
            assert not [status for status in found if status.startswith("5")], found
            assert found["200"] > 0
            assert found["422"] > COUNT / 5
            assert rows(tmp_path, "SELECT count(*) FROM signal WHERE account = 'fleet'") == [
                (posts,)
            ]

    started_s = time.monotonic()
    asyncio.run(scenario())
    lasted_s = time.monotonic() - started_s
    # Whoever reaches the port cannot fill the log.
    assert "Traceback" not in caplog.text
    lines = caplog.text.count("post refused")
    # A line within a minute for each status of fleet, fuzz, and callers without a name or of another.
    assert 1 <= lines <= 30 * (1 + lasted_s // LOG_EVERY_S)
    (kept,) = rows(tmp_path, "SELECT count(*) FROM refused_post")[0]
    assert 1 <= kept <= 6 * (ALIKE_OF_SENDER + 1) < KEPT
