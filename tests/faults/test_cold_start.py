"""One cold start of the campaign `cold_start.py`, in short."""

import time
from pathlib import Path

from cold_start import exchange_s, start_at
from proc_commands import exchange
from scoreboard import Row, Scoreboard

from tests.waiting import wait_until

PAIRS = 4


def test_feeders_have_all_candles_soon_after_a_cold_start(
    tmp_path: Path, scoreboard: Scoreboard
) -> None:
    with exchange(tmp_path, PAIRS, speed=1.0, timeframes="1m") as sim:
        # Away from the next boundary, at which the last one's candle would be old enough for history.
        wait_until(lambda: 2.0 < exchange_s(sim) % 60.0 < 40.0)
        start = start_at(tmp_path, sim, 12.0, PAIRS, time.monotonic())
    assert start.good, start
    scoreboard.add(
        Row(
            fault="a cold start, real time: what closed before the subscription",
            lost="nothing",
            whole_after_s=start.whole_s,
        )
    )
