"""What `/metrics` of a collector names: dashboards and alarms of others count on it."""

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import aiohttp
import pytest
import uvloop

from marketfeed.collector.collector import Collector
from marketfeed.collector.status_report import StatusReport
from marketfeed.settings.model import Settings
from marketfeed.simulator.server import Simulator, SimulatorOptions
from tests.ports import held_port
from tests.waiting import until

PAIRS: Final = ("BTC/USDT:USDT", "ETH/USDT:USDT")
TIMEFRAMES: Final = ("1m", "3m")

COUNTERS: Final = """
audit_different audit_errors audit_mended audit_missing audited_candles bucket_emptied commit_failures
commit_seconds commits compare_rounds compared_tiles connection_events[state] cpu_seconds frames
gaps[state] lost_rows mended_ranges mended_rows rechecked_candles rechecked_different records[kind]
records_given_up[kind] refused_lines rejects[reason] rest_odd_rows[endpoint] rest_refusals[status]
rest_requests[endpoint] resubscribed rollovers[outcome] rows_changed ship_requests shipped_lines
subscribe_answers subscribe_refusals wrong_tiles
"""
GAUGES: Final = """
absent_candles audit_mismatch_rate audit_unmended awaited_settlements bucket_left_tiles
bucket_mismatch_rate build_info[version] clock_offset_seconds compare_age_seconds compare_off
connections[state] dead_letters filling healthy held_shards history_candles_left history_complete
history_pairs_done journal_bytes journal_wal_bytes mark_price_age_seconds[pair] missing_candles
missing_of_ended newest_close_age_seconds[timeframe] oldest_hole_seconds open_gaps[state]
overdue_series[channel] pairs pending_records ready_pairs rejected_frames resident_memory_bytes
rest_funding_used rest_stopped_seconds rest_waiting rest_weight_limit rest_weight_used ship_parked
ship_trouble_seconds start_time_seconds streams tasks unhealthy_reasons unshipped_rows
"""
HISTOGRAMS: Final = "close_to_commit_seconds[le] close_to_healed_seconds[le]"


def expected() -> dict[str, tuple[str, str]]:
    """The kind and the label of each metric, by its name."""
    found = {}
    for kind, names, end in (
        ("counter", COUNTERS, "_total"),
        ("gauge", GAUGES, ""),
        ("histogram", HISTOGRAMS, ""),
    ):
        for name, label in re.findall(r"(\w+)(?:\[(\w+)\])?", names):
            found[f"marketfeed_{name}{end}"] = (kind, label)
    return found


@contextlib.asynccontextmanager
async def collecting(path: Path) -> AsyncIterator[Collector]:
    options = SimulatorOptions(pairs=len(PAIRS), timeframes=TIMEFRAMES, speed=120)
    async with Simulator(options) as sim:
        settings = Settings.model_validate(
            {
                "exchange": {
                    "ws_url": sim.ws_url,
                    "rest_url": sim.rest_url,
                    "pairs": list(PAIRS),
                    "timeframes": list(TIMEFRAMES),
                },
                "journal": {"path": str(path)},
                "influxdb": {
                    "url": f"http://127.0.0.1:{held_port()}",
                    "org": "fleet",
                    "token": uuid.uuid4().hex,
                },
                "status": {"port": 0},
                "history": {"days": 1, "weight_per_minute": 2_400},
            }
        )
        collector, stop = Collector(settings), asyncio.Event()
        task = asyncio.create_task(collector.run(stop))
        try:
            await until(lambda: has_all(collector.report()))
            yield collector
        finally:
            stop.set()
            await task


def has_all(report: StatusReport) -> bool:
    stored = all(one.pairs_with_newest == len(PAIRS) for one in report.timeframes)
    return stored and report.mark_price_age_s is not None and report.history is not None


def exposed(text: str) -> tuple[dict[str, str], dict[str, set[str]], dict[str, float]]:
    """An exposition as read: kinds by metric, labels by sample, values by sample with its labels."""
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    labels: dict[str, set[str]] = {}
    values = {}
    for sample, value in re.findall(r"^([^#].*) (\S+)$", text, re.MULTILINE):
        values[sample] = float(value)
        found = labels.setdefault(re.sub(r"(_bucket)?\{.*", "", sample), set())
        found.update(re.findall(r'(\w+)="', sample))
    return kinds, labels, values


def test_metrics_keep_their_names_labels_and_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def run() -> tuple[str, StatusReport]:
        async with (
            collecting(tmp_path / "journal.db") as collector,
            aiohttp.ClientSession() as session,
            session.get(status_url() + "/metrics") as answer,
        ):
            return await answer.text(), collector.report()

    def status_url() -> str:
        (url,) = re.findall(r"status_url=(\S+)", caplog.text)
        return str(url)

    text, report = uvloop.run(run())
    kinds, labels, values = exposed(text)
    assert kinds == {name: kind for name, (kind, _) in expected().items()}
    for name, (_, label) in expected().items():
        # A metric that has a label shows nothing before its first event.
        assert labels.get(name, {label}) == {label} - {""}, name
    known = {
        "marketfeed_pairs": len(PAIRS),
        "marketfeed_streams": report.streams,
        'marketfeed_connections{state="open"}': len(report.connections),
    }
    assert known.items() <= values.items()
    for sample in (
        *(f'mark_price_age_seconds{{pair="{pair}"}}' for pair in PAIRS),
        *(f'newest_close_age_seconds{{timeframe="{name}"}}' for name in TIMEFRAMES),
    ):
        assert f"marketfeed_{sample}" in values
    # The old name, kept for one release, has the same value.
    assert report.journal.dead_letters == report.journal.rejected_frames
    assert values["marketfeed_dead_letters"] == values["marketfeed_rejected_frames"]
