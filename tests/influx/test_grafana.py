"""The dashboards: every query of theirs answers with rows, every metric of theirs is exported."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from both import Both
from influxd import Influxd
from stored import M3, OTHER, PAIR, START_MS, candle, entry

from marketfeed import schema
from marketfeed.binance.turns import RestReport
from marketfeed.metrics import Counters, Exposition, Gauges
from marketfeed.records import FundingRate, FundingSettled, Gap, MarkPrice
from marketfeed.ship import ShipReport

GRAFANA = Path(__file__).parents[2] / "grafana"
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((GRAFANA / "dashboards").glob("*.json"))
}
COUNT = 40
END_MS = START_MS + COUNT * M3


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


def filled_in(query: str) -> str:
    """The query as Grafana sends it."""
    escaped = re.sub(r"([\\^$*+?.()|\[\]{}/])", r"\\\1", PAIR)
    values = {
        "${pairs:regex}": escaped,
        "$timeFilter": f"time >= {START_MS}ms and time <= {END_MS}ms",
        "$__interval": "3s",
        "$timeframe": "3m",
        "$pair": PAIR,
    }
    for name, value in values.items():
        query = query.replace(name, value)
    assert "$" not in query.replace(")$/", ""), query
    return query


@pytest.fixture(scope="module")
def shipped(influxd: Influxd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """A bucket with points of every measurement."""
    with influxd.database("grafana") as database:
        both = Both(influxd, database, tmp_path_factory.mktemp("grafana") / "journal.db")
        pairs = (PAIR, OTHER)
        both.add(
            [entry(pair, listed_ms=START_MS, ended_ms=END_MS) for pair in pairs],
            [candle(START_MS + n * M3, pair) for n in range(COUNT) for pair in pairs],
            candle(END_MS, closed=False),
            [MarkPrice(PAIR, START_MS + n * 3_000, 100.0 + n, 99.0) for n in range(100)],
            [
                FundingRate(p, START_MS + n * 60_000, n / 1e4, END_MS)
                for n in range(9)
                for p in pairs
            ],
            FundingSettled(PAIR, START_MS, 0.0001, 100.0),
            Gap("candle_3m", PAIR, START_MS, START_MS + M3, state="healed", reason="silence"),
            Gap("connection", None, START_MS, None, state="found", reason="reset"),
        )
        yield both


def test_the_sample_has_every_measurement(shipped: Both) -> None:
    (series,) = shipped.influxd.query("SHOW MEASUREMENTS", shipped.database)
    assert {name for (name,) in series["values"]} == {
        "ohlcv_3m",
        "forming_3m",
        *schema.MEASUREMENT_FIELDS,
    }


@pytest.mark.parametrize("query", queries("influxdb"))
def test_every_query_answers_with_rows(shipped: Both, query: str) -> None:
    series = shipped.influxd.query(filled_in(query), shipped.database)
    assert sum(len(found["values"]) for found in series) > 0


def test_candles_and_the_forming_one_have_the_same_columns(shipped: Both) -> None:
    (panel,) = [p for _, p in panels() if p["type"] == "candlestick"]
    closed, forming = (
        shipped.influxd.query(filled_in(target["query"]), shipped.database)[0]
        for target in panel["targets"]
    )
    assert closed["columns"] == forming["columns"] == ["time", *panel["options"]["fields"]]
    assert [row[0] for row in closed["values"]] == [START_MS + n * M3 for n in range(COUNT)]
    assert [row[0] for row in forming["values"]] == [END_MS]


def test_the_funding_table_has_a_row_for_each_pair(shipped: Both) -> None:
    (query,) = [
        target["query"]
        for _, panel in panels()
        for target in panel["targets"]
        if panel["type"] == "table" and 'FROM "funding_rate"' in target["query"]
    ]
    series = shipped.influxd.query(filled_in(query), shipped.database)
    assert {found["tags"]["pair"]: found["values"][0][1] for found in series} == {
        PAIR: 0.0008,
        OTHER: 0.0008,
    }


def test_variables_find_what_is_stored(shipped: Both) -> None:
    found = {}
    for variable in DASHBOARDS["market-data"]["templating"]["list"]:
        series = shipped.influxd.query(variable["query"], shipped.database)
        values = {row[-1] for each in series for row in each["values"]}
        pattern = variable["regex"].strip("/")
        matches = (re.search(pattern, value) for value in values)
        found[variable["name"]] = {match[1] for match in matches if match} if pattern else values
    assert found == {"pair": {PAIR, OTHER}, "pairs": {PAIR, OTHER}, "timeframe": {"3m"}}


# --- Prometheus -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Metric -> its labels, of a collector to which everything has happened."""
    counters = Counters()
    for counter in (
        counters.connection_events,
        counters.gaps,
        counters.rejects,
        counters.records,
        counters.records_given_up,
    ):
        counter["something"] += 1
    gauges = Gauges(
        **{
            name: {"something": 1} if "dict" in str(kind) else 1
            for name, kind in Gauges.__init__.__annotations__.items()
            if name not in ("shipping", "rest", "return")
        },
        shipping=ShipReport("target", "shipping", "", 0.0, 1, 1, 1, 1, 0.0),
        rest=RestReport(1, 1, 1, 1, 1, 1.0, "", {"klines": 1}, {"429": 1}),
    )
    metrics: dict[str, set[str]] = {}
    for line in Exposition(counters, lambda: gauges).text().decode().splitlines():
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
