"""One cold start of the campaign `cold_start.py`, in short."""

from pathlib import Path

import pytest
from cold_start import Filled, Moment, start_at
from scoreboard import Row, Scoreboard


@pytest.mark.long(135)
def test_feeders_have_all_candles_soon_after_a_cold_start(
    tmp_path: Path, scoreboard: Scoreboard
) -> None:
    # Just before all timeframes close: what closes meanwhile is fetched, or comes.
    start = start_at(tmp_path, Moment("1h", -1.0), Filled(pairs=4))
    assert start.good, start
    assert start.well_looks > 0
    scoreboard.add(
        Row(
            fault="a cold start, real time: what closed before the subscription",
            lost="nothing",
            whole_after_s=start.whole_s,
        )
    )
