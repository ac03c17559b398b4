"""The alerts in `grafana/alerts`: tried by Debian's own promtool, over metrics that there really are."""

import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from influxd import Influxd, InfluxdError, unpacked
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from marketfeed.aggregator.auth import hash_password
from marketfeed.cli import app
from tests.bench.child import Service

ALERTS = Path(__file__).parents[2] / "grafana" / "alerts"
RULES = ALERTS / "marketfeed.yml"
TESTS = ALERTS / "marketfeed.test.yml"
AGGREGATOR = "marketfeed_aggregator_"
START_TIMEOUT_S = 180.0


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def used() -> set[str]:
    """The names of all metrics that the rules use."""
    return {name for rule in rules() for name in re.findall(r"\bmarketfeed_\w+", rule["expr"])}


def names(families: Iterator[Metric]) -> set[str]:
    """What can be asked of these families; a labelled one may have no sample yet."""
    found = set[str]()
    for family in families:
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        found |= {family.name + end for end in ends.get(family.type, [""])}
    return found


@pytest.fixture(scope="module")
def promtool() -> Path:
    try:
        return unpacked("prometheus") / "usr" / "bin" / "promtool"
    except InfluxdError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no promtool to test with: {error}")


def test_promtool_sees_every_alert_fire_and_be_silent(promtool: Path) -> None:
    for command in (("check", "rules", RULES.name), ("test", "rules", TESTS.name)):
        done = subprocess.run(
            [promtool, *command], cwd=ALERTS, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_is_without_both_of_its_tests() -> None:
    fires, silent = set[str](), set[str]()
    for case in yaml.safe_load(TESTS.read_text())["tests"]:
        for test in case.get("alert_rule_test", ()):
            (fires if test.get("exp_alerts") else silent).add(test["alertname"])
    alerts = [rule["alert"] for rule in rules()]
    assert len(alerts) == len(set(alerts))
    assert fires == silent == set(alerts)


def test_every_command_that_an_alert_names_is_one() -> None:
    commands = {info.name for info in app.registered_commands}
    named = {
        rule["alert"]: set(re.findall(r"`marketfeed ([\w-]+)", rule["annotations"]["description"]))
        for rule in rules()
    }
    assert set().union(*named.values()) <= commands
    assert named["MarketfeedRejectedFrames"] == {"rejected-frames"}
    assert named["MarketfeedRefusedLines"] == {"deadletter"}


def test_no_alert_or_dashboard_uses_an_old_name() -> None:
    for path in (RULES, TESTS, *(ALERTS.parent / "dashboards").glob("*.json")):
        assert "dead_letters" not in path.read_text("utf-8"), path


def test_a_collector_shows_every_metric_that_the_alerts_use(
    influxd: Influxd, database: str, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    with Service("simulate", "--pairs=3", "--timeframes=1m", "--speed=60", "--port=0") as simulator:
        simulator.wait_listening(START_TIMEOUT_S)
        settings = {
            "exchange": {
                "ws_url": simulator.urls["ws_url"],
                "rest_url": simulator.urls["rest_url"],
                "pairs": {"top": 3},
                "timeframes": ["1m"],
            },
            "history": {"days": 0},
            "influxdb": {"url": influxd.url, "api": "v1", "bucket": database},
            "journal": {"path": str(tmp_path / "journal.db")},
            "status": {"port": 0},
        }
        config.write_text(json.dumps(settings))
        with Service("run", f"--config={config}") as collector:
            collector.wait_listening(START_TIMEOUT_S)
            wanted = {name for name in used() if not name.startswith(AGGREGATOR)}
            shown = scraped(collector)
            # The first scrape may come before there is a shipper.
            while "marketfeed_unshipped_rows" not in names(iter(shown)):
                collector.check()
                shown = scraped(collector)
    assert wanted - names(iter(shown)) == set()
    states = {
        sample.labels["state"] for f in shown if f.name == "marketfeed_gaps" for sample in f.samples
    }
    assert "unresolvable" in states, "a series that begins with its first event shows no increase"


def test_an_aggregator_shows_every_metric_that_the_alerts_use(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    word = tmp_path / "word"
    word.write_text("invented")
    word.chmod(0o600)
    settings = {
        "aggregator": {
            "port": 0,
            "status": {"port": 0},
            "ledger": {"path": str(tmp_path / "ledger.db")},
            "feeders": {"long": ["1"], "short": ["2"]},
            "min_agreements": 1,
            "accounts": [{"username": "fleet", "hash": hash_password("invented")}],
            "bots": {"long": {"url": "http://127.0.0.1:1", "password_file": str(word)}},
        }
    }
    config.write_text(json.dumps(settings))
    with Service("aggregate", f"--config={config}") as aggregator:
        aggregator.wait_listening(START_TIMEOUT_S)
        wanted = {name for name in used() if name.startswith(AGGREGATOR)}
        assert wanted - names(iter(scraped(aggregator))) == set()


def scraped(service: Service) -> list[Metric]:
    url = service.urls["status_url"] + "/metrics"
    with urllib.request.urlopen(url, timeout=180) as response:  # noqa: S310 - loopback
        return list(text_string_to_metric_families(response.read().decode()))
