"""What Prometheus sees of an aggregator: its counters and its report, name by name."""

from marketfeed import __version__
from marketfeed.aggregator.metrics import AggregatorCounters, AggregatorExposition
from marketfeed.aggregator.status_report import AggregatorReport, BotReport

REPORT = AggregatorReport(
    version=__version__,
    healthy=False,
    reasons=["bot of short: not well", "forward lost: one", "forward lost: another"],
    uptime_s=60.0,
    url="http://127.0.0.1:8080",
    open_windows=4,
    pending=5,
    commits=17,
    ledger_schema="schema version 2",
    signals={},
    strength_texts={},
    contradictions={},
    refused={},
    decisions={},
    forwards={},
    waiting={"long": 1, "short": 2},
    waits_for={"long": ("", ""), "short": ("no room", "no room: 15 trades of 15")},
    expired={"long": {}, "short": {"no room": 20, "busy": 21}},
    unsettled={"long": 0, "short": 3},
    lost={"long": ["one", "another"], "short": []},
    bot_trouble={"long": "", "short": "not well"},
    limited_addresses=6,
    shipping=None,
    rss_bytes=7_000_000,
    cpu_s=8.5,
    warnings=["account fleet at 127.0.0.1: a request was refused"],
    refused_by_account={"fleet": {"401": 20, "422": 21}, "?": {"401": 22}},
    bots={
        "long": BotReport(
            state="running",
            force_entry_enable=True,
            max_open_trades=5,
            stake_currency="USDT",
            trading_mode="futures",
            barred=True,
            whitelist=3,
            outside_whitelist=22,
            outside_pairs=[],
            refusals={"rights": 23, "full": 0},
            expired_with_room=24,
        )
    },
    silent_s={"73": 25.0},
)


def test_every_metric_has_its_name_labels_and_value() -> None:
    counters = AggregatorCounters()
    counters.started_s = 9.0
    counters.signals["73", "voted"] = 10
    counters.missing["73", "confidence"] = 11
    counters.decisions["long", "forward"] = 12
    counters.forwards["short", "accepted"] = 13
    counters.strength_texts["73"] = 14
    counters.contradictions["73", "confidence"] = 15
    counters.refused["bad_key"] = 15
    counters.requests[200] = 16
    counters.commits, counters.commit_s = 17, 0.5
    counters.ledger_failures, counters.wrong_passwords = 18, 19
    for lag_ms in (5, 6, 40_000):
        counters.close_to_send.add(lag_ms)
    text = AggregatorExposition(counters, lambda: REPORT).text().decode()
    prefix = "marketfeed_aggregator_"
    found = {
        name.removeprefix(prefix): float(value)
        for name, _, value in (
            line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")
        )
    }
    lag = "decision_to_send_seconds"
    seen = dict.fromkeys(("0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0"), 2.0)
    buckets = {"0.005": 1.0} | seen | {"30.0": 2.0, "+Inf": 3.0}
    assert found == {
        'signals_total{feeder="73",outcome="voted"}': 10.0,
        'missing_total{feeder="73",value="confidence"}': 11.0,
        'decisions_total{outcome="forward",side="long"}': 12.0,
        'forwards_total{side="short",state="accepted"}': 13.0,
        'strength_texts_total{feeder="73"}': 14.0,
        'contradictions_total{feeder="73",value="confidence"}': 15.0,
        'refused_total{reason="bad_key"}': 15.0,
        'refused_posts_total{account="fleet",status="401"}': 20.0,
        'refused_posts_total{account="fleet",status="422"}': 21.0,
        'refused_posts_total{account="?",status="401"}': 22.0,
        'requests_total{status="200"}': 16.0,
        "commits_total": 17.0,
        "commit_seconds_total": 0.5,
        "ledger_failures_total": 18.0,
        "wrong_passwords_total": 19.0,
        "cpu_seconds_total": 8.5,
        **{f'{lag}_bucket{{le="{bound}"}}': count for bound, count in buckets.items()},
        f"{lag}_count": 3.0,
        f"{lag}_sum": 40.011,
        "start_time_seconds": 9.0,
        "healthy": 0.0,
        "unhealthy_reasons": 3.0,
        "warnings": 1.0,
        "open_windows": 4.0,
        "pending_signals": 5.0,
        "limited_addresses": 6.0,
        "resident_memory_bytes": 7_000_000.0,
        'waiting_forwards{side="long"}': 1.0,
        'waiting_forwards{side="short"}': 2.0,
        'held_forwards{side="short",why="no room"}': 2.0,
        'expired_forwards_total{side="short",why="no room"}': 20.0,
        'expired_forwards_total{side="short",why="busy"}': 21.0,
        'unsettled_forwards{side="long"}': 0.0,
        'unsettled_forwards{side="short"}': 3.0,
        'lost_forwards{side="long"}': 2.0,
        'lost_forwards{side="short"}': 0.0,
        'bot_trouble{side="long"}': 0.0,
        'bot_trouble{side="short"}': 1.0,
        'bot_barred{side="long"}': 1.0,
        'outside_whitelist_total{side="long"}': 22.0,
        'refused_orders_total{side="long",why="rights"}': 23.0,
        'refused_orders_total{side="long",why="full"}': 0.0,
        'expired_with_room_total{side="long"}': 24.0,
        'feeder_silent_seconds{feeder="73"}': 25.0,
        f'marketfeed_build_info{{version="{__version__}"}}': 1.0,
    }
