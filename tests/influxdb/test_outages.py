"""Outages in short: `outages.py` runs them in full, beside cryptofeed's own backends."""

from pathlib import Path

import pytest
from front import Front
from influxd import Influxd
from outages import Scenario, run_ours


@pytest.mark.parametrize("kind", ["killed", "refused"])
def test_an_outage_loses_nothing_and_doubles_nothing(
    influxd: Influxd, tmp_path: Path, kind: str
) -> None:
    # A server of its own: that of the session is not for killing.
    with Influxd(tmp_path / "influxd") as server, Front(server) as front:
        front.add_bucket("market_data")
        scenario = Scenario("1 s", kind, 1.0, pairs=200, backlog=20_000)
        outcome = run_ours(scenario, server, front, tmp_path, around_s=0.5)
    assert outcome.good, outcome
    assert outcome.points > 21_000
    assert outcome.rss_max_mb is not None
    assert outcome.rss_max_mb < 200
