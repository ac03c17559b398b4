"""The dashboards: every query of theirs answers with rows, every metric of theirs is exported."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from influxd import Influxd

from marketfeed import schema
from marketfeed.binance.rest_queue import RestReport
from marketfeed.collector.metrics import CollectorExposition
from marketfeed.collector.status_report import (
    ConnectionReport,
    JournalReport,
    StatusReport,
    TimeframeReport,
)
from marketfeed.counters import CollectorCounters
from marketfeed.gaps.healer import HealReport
from marketfeed.history.backfill import HistoryReport
from marketfeed.history.background import HistoryState
from marketfeed.history.continuous_audit import AuditingReport
from marketfeed.history.funding import SettledRatesReport
from marketfeed.history.quotes import QuotesReport
from marketfeed.influxdb import line_protocol as lines
from marketfeed.influxdb.ship_report import ShipReport

GRAFANA = Path(__file__).parents[2] / "grafana"
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((GRAFANA / "dashboards").glob("*.json"))
}
PAIR = schema.PAIR_EXAMPLE
PAIRS = 6
M3 = schema.TIMEFRAMES_MS["3m"]


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            yield f"{name}: {panel['title']}", panel


def queries(kind: str) -> list[Any]:
    """Every target of panels, and every query of variables, that goes to a data source of `kind`."""
    field = {"influxdb": "query", "prometheus": "expr"}[kind]
    found = [
        pytest.param(target[field], id=f"{title} {target['refId']}")
        for title, panel in panels()
        for target in panel["targets"]
        if target["datasource"]["type"] == kind
    ]
    for dashboard in DASHBOARDS.values():
        for variable in dashboard["templating"]["list"]:
            if variable["datasource"]["type"] == kind:
                query = variable["query"]
                text = query if isinstance(query, str) else query["query"]
                found.append(pytest.param(text, id=f"${variable['name']}"))
    return found


# --- InfluxQL ---------------------------------------------------------------------------------------


class Demo(NamedTuple):
    """A bucket as `marketfeed demo` has filled it, from `start_ms` to `end_ms`, and what it printed."""

    influxd: Influxd
    database: str
    report: dict[str, Any]
    start_ms: int
    end_ms: int

    def query(self, text: str) -> list[dict[str, Any]]:
        return self.influxd.query(self.filled_in(text), self.database)

    def filled_in(self, query: str) -> str:
        """The query as Grafana sends it."""
        escaped = re.sub(r"([\\^$*+?.()|\[\]{}/])", r"\\\1", PAIR)
        values = {
            "${pairs:regex}": escaped,
            "$timeFilter": f"time >= {self.start_ms}ms and time <= {self.end_ms}ms",
            "$__interval": "3s",
            "$timeframe": "3m",
            "$pair": PAIR,
        }
        for name, value in values.items():
            query = query.replace(name, value)
        assert "$" not in query.replace(")$/", ""), query
        return query


@pytest.fixture(scope="module")
def demo(influxd: Influxd) -> Iterator[Demo]:
    """Run the demo once. Only what a good half hour does not have is added: a settlement, gaps."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MARKETFEED_")}
    with influxd.database("grafana") as database:
        done = subprocess.run(
            [
                sys.executable, "-m", "marketfeed", "demo", f"--pairs={PAIRS}", "--seconds=6",
                "--speed=240", "--timeframes=1m,3m", f"--influx={influxd.url}", "--json",
            ],
            env={**kept, "MARKETFEED_INFLUXDB__API": "v1", "MARKETFEED_INFLUXDB__BUCKET": database},
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        times = influxd.query("SELECT mark_price FROM mark_price", database)[0]["values"]
        edges = times[0][0], times[-1][0]
        start_ms, end_ms = edges[0] - schema.DAY_MS, edges[1] + schema.DAY_MS
        tag = lines.escape_tag(PAIR)
        influxd.write(
            database,
            [
                lines.funding_settled_text(tag, edges[0], 0.0001, 100.0),
                lines.gap_text(
                    tag,
                    "candle_3m",
                    "host",
                    edges[0],
                    edges[0] + 180_000,
                    healed=True,
                    state="healed",
                ),
                lines.gap_text(
                    lines.ALL_PAIRS,
                    "connection",
                    "host",
                    edges[0],
                    None,
                    healed=False,
                    state="found",
                ),
            ],
        )
        yield Demo(influxd, database, json.loads(done.stdout), start_ms, end_ms)


def test_the_demo_finds_the_journal_in_influxdb_row_by_row(demo: Demo) -> None:
    report = demo.report
    found = report["influxdb"]
    assert report["pairs"] == PAIRS
    assert report["candles_expected"] == report["candles_stored"] >= 8 * PAIRS
    assert found["missing"] == found["extra"] == found["unequal_frames"] == 0
    assert found["frames"] == 2 * PAIRS
    stored = report["mark_prices"] + report["funding_rates"] + report["candles_stored"]
    assert found["rows"] >= stored


def test_the_sample_has_every_measurement(demo: Demo) -> None:
    (series,) = demo.query("SHOW MEASUREMENTS")
    # A demo may lie within one hour: then it has no mark candle.
    assert {name for (name,) in series["values"]} | {schema.MARK_1H} == {
        *(f"{kind}_{timeframe}" for kind in ("ohlcv", "forming") for timeframe in ("1m", "3m")),
        *schema.MEASUREMENT_FIELDS,
        schema.FEED_COVERAGE,
    }


@pytest.mark.parametrize("query", queries("influxdb"))
def test_every_query_answers_with_rows(demo: Demo, query: str) -> None:
    assert sum(len(found["values"]) for found in demo.query(query)) > 0


def test_candles_and_the_forming_one_have_the_same_columns(demo: Demo) -> None:
    (panel,) = [p for _, p in panels() if p["type"] == "candlestick"]
    closed, forming = (demo.query(target["query"])[0] for target in panel["targets"])
    assert closed["columns"] == forming["columns"] == ["time", *panel["options"]["fields"]]
    opens = [row[0] for row in closed["values"]]
    assert opens == list(range(opens[0], opens[0] + len(opens) * M3, M3))
    # Shipped every 5 s: twenty minutes of the demo's time.
    ((formed_ms, *_),) = forming["values"]
    assert opens[0] <= formed_ms <= opens[-1] + M3


def test_the_funding_table_has_a_row_for_each_pair(demo: Demo) -> None:
    (query,) = [
        target["query"]
        for _, panel in panels()
        for target in panel["targets"]
        if panel["type"] == "table" and 'FROM "funding_rate"' in target["query"]
    ]
    found = {series["tags"]["pair"]: series["values"] for series in demo.query(query)}
    assert len(found) == PAIRS
    for pair, ((_, rate, _, due_ms),) in found.items():
        newest = demo.influxd.query(
            "SELECT last(rate), next_funding_time FROM funding_rate WHERE pair = $pair",
            demo.database,
            pair=pair,
        )
        assert newest[0]["values"][0][1:] == [rate, due_ms]


def test_variables_find_what_is_stored(demo: Demo) -> None:
    found = {}
    for variable in DASHBOARDS["market-data"]["templating"]["list"]:
        series = demo.query(variable["query"])
        values = {row[-1] for each in series for row in each["values"]}
        pattern = variable["regex"].strip("/")
        matches = (re.search(pattern, value) for value in values)
        found[variable["name"]] = {match[1] for match in matches if match} if pattern else values
    assert found["timeframe"] == {"1m", "3m"}
    assert found["pair"] == found["pairs"] >= {PAIR}
    assert len(found["pair"]) == PAIRS


# --- Prometheus -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Metric -> its labels, of a collector to which everything has happened."""
    counters = CollectorCounters()
    for counter in (
        counters.connection_events,
        counters.gaps,
        counters.rejects,
        counters.records,
        counters.records_given_up,
    ):
        counter["something"] += 1
    report = StatusReport(
        version="1",
        state="well",
        healthy=True,
        reasons=[],
        ready_pairs=1,
        uptime_s=1.0,
        exchange_time_ms=1,
        clock_offset_ms=1.0,
        speed=1.0,
        pairs=1,
        refused_pairs={},
        streams=1,
        frames=1,
        frames_per_s=1.0,
        answers=1,
        resubscribed=1,
        rollovers={},
        records={},
        rejects={},
        overdue={"1m": 1},
        overdue_series=[],
        missing_candles=1,
        healing=HealReport({"found": 1}, {}, 1, 1, ""),
        settled=SettledRatesReport(1, 1, 1, 1, ""),
        mark_price_age_s=1.0,
        timeframes=[TimeframeReport("1m", 1, 1, 1, 1, 1.0)],
        connections=[ConnectionReport("feed-1", "open", 1, 1, 1, 1.0, "")],
        journal=JournalReport("journal.db", "", 1, 1, 1, 1, 1, 1, {}, 1, 1, 1, None),
        shipping=ShipReport("target", "shipping", "", 0.0, 1, 1, 1, 1, 0.0, 0, [], 0),
        history=HistoryState(
            HistoryReport("complete", 30, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1.0, ""),
            AuditingReport(1, 1, 1, 1, 1, []),
            QuotesReport("complete", 1, 1, 1, None, ""),
        ),
        rest=RestReport(1, 1, 1, 1, 1, 1.0, "", {"klines": 1}, {"429": 1}),
        rss_bytes=1,
        cpu_s=1.0,
    )
    exposition = CollectorExposition(counters, lambda: report, lambda: {PAIR: 1.0})
    metrics: dict[str, set[str]] = {}
    for line in exposition.text().decode().splitlines():
        if not line.startswith("#"):
            name, _, rest = line.partition("{")
            labels = set(re.findall(r'(\w+)="', rest))
            metrics.setdefault(name.split()[0], {"instance", "job"}).update(labels)
    return metrics


@pytest.mark.parametrize("query", queries("prometheus"))
def test_every_metric_is_exported_with_its_labels(
    exported: dict[str, set[str]], query: str
) -> None:
    names = re.findall(r"\bmarketfeed_\w+", query)
    assert names
    assert set(names) <= exported.keys()
    grouped = set(
        itertools.chain(*(re.findall(r"\w+", g) for g in re.findall(r"by \(([^)]*)\)", query)))
    )
    selected = set(re.findall(r"[{,]\s*(\w+)\s*=", query))
    for label in grouped | selected:
        assert any(label in exported[name] for name in names), label
    for opening, closing in ("()", "{}", "[]"):
        assert query.count(opening) == query.count(closing)


def test_every_counter_is_looked_at_as_a_rate() -> None:
    for parameter in queries("prometheus"):
        for expression in re.findall(r"\w+_(?:total|bucket)\b.{0,60}", str(parameter.values[0])):
            assert "$__rate_interval" in expression or "refused_lines_total" in expression


def test_labels_of_legends_exist(exported: dict[str, set[str]]) -> None:
    for title, panel in panels():
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")):
                names = re.findall(r"\bmarketfeed_\w+", target["expr"])
                assert any(label in exported[name] for name in names), title


# --- what Grafana reads -----------------------------------------------------------------------------


def test_data_sources_are_provisioned() -> None:
    text = (GRAFANA / "provisioning/datasources/marketfeed.yaml").read_text(encoding="utf-8")
    sources = {source["uid"]: source for source in yaml.safe_load(text)["datasources"]}
    used = [
        asked["datasource"]
        for dashboard in DASHBOARDS.values()
        for asked in [
            *dashboard["panels"],
            *(target for panel in dashboard["panels"] for target in panel["targets"]),
            *dashboard["templating"]["list"],
        ]
    ]
    for source in used:
        assert sources[source["uid"]]["type"] == source["type"]
    influxdb = sources["marketfeed-influxdb"]
    assert influxdb["secureJsonData"]["httpHeaderValue1"].startswith("Token ")
    (provider,) = yaml.safe_load(
        (GRAFANA / "provisioning/dashboards/marketfeed.yaml").read_text(encoding="utf-8")
    )["providers"]
    assert provider["options"]["path"] in (GRAFANA / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_their_own_place(name: str) -> None:
    dashboard = DASHBOARDS[name]
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["description"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert len({one["uid"] for one in DASHBOARDS.values()}) == len(DASHBOARDS)
