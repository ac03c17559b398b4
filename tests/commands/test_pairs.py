"""`marketfeed pairs`: the kept choice, beside a running collector and without one, and lists."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from test_cli import Background, marketfeed

from marketfeed.journal.documents import change_document
from marketfeed.journal.view import JournalView
from marketfeed.pairs.absent import ABSENT_PAIRS
from marketfeed.pairs.listing import chosen_name
from marketfeed.schema import DAY_MS
from tests.waiting import wait_until

GONE = "ETH/USDT:USDT"


@pytest.fixture(scope="module")
def simulator() -> Iterator[dict[str, str]]:
    running = Background("simulate", "--pairs=4", "--speed=240", "--timeframes=1m", "--port=0")
    match = running.line(r"ws_url=(?P<ws_url>\S+) rest_url=(?P<rest_url>\S+)")
    yield match.groupdict()
    assert running.stop() == 0


def written(tmp_path: Path, simulator: dict[str, str], pairs: Any) -> Path:
    path = tmp_path / "config.yaml"
    exchange = simulator | {"pairs": pairs, "timeframes": ["1m"]}
    settings = {
        "exchange": exchange,
        "journal": {"path": str(tmp_path / "journal.db")},
        "status": {"port": 0},
        "history": {"days": 0},
    }
    path.write_text(json.dumps(settings, indent=1))
    return path


def chosen(config: Path) -> list[str]:
    body = JournalView(config.with_name("journal.db")).document(chosen_name("USDT", 4))
    return [] if body is None else list(json.loads(body))


def shown(config: Path) -> dict[str, dict[str, Any]]:
    done = marketfeed("pairs", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["setting"] == "top:4"
    return {item["pair"]: item for item in found["pairs"]}


def status_of(url: str) -> dict[str, Any]:
    return ask(f"{url}/status")[1]


def drop(config: Path, pair: str, *options: str) -> subprocess.CompletedProcess[str]:
    return marketfeed("pairs", "--config", config, "--drop", pair, *options)


@pytest.mark.long(35)
def test_a_pair_is_dropped_from_a_running_collector_and_stays_so(
    tmp_path: Path, simulator: dict[str, str]
) -> None:
    config = written(tmp_path, simulator, {"top": 4})
    running = Background("run", "--config", config)
    url = running.line(r"status_url=(?P<url>\S+)")["url"]
    wait_until(lambda: status_of(url).get("mark_price_age_s") is not None)
    assert len(chosen(config)) == 4
    done = drop(config, GONE, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["pair"], answer["left"]) == (GONE, 3)
    assert str(running.process.pid) in answer["collector"]
    wait_until(lambda: status_of(url).get("pairs") == 3)
    report = status_of(url)
    assert report["streams"] == 3 * 2
    assert report["refused_pairs"] == {}
    wait_until(lambda: shown(config)[GONE]["dropped"])
    assert not shown(config)[GONE]["chosen"]
    # Nothing that the collector keeps for its next start brings it back.
    assert running.stop() == 0
    assert sum("pair dropped by hand" in line for line in running.lines) == 1
    assert GONE not in chosen(config)
    again = Background("run", "--config", config)
    url = again.line(r"status_url=(?P<url>\S+)")["url"]
    wait_until(lambda: status_of(url).get("pairs") == 3)
    assert again.stop() == 0
    # Without a collector.
    other = next(pair for pair in chosen(config) if pair != "BTC/USDT:USDT")
    done = drop(config, other)
    assert done.returncode == 0, done.stderr
    assert f"{other} is dropped, 2 pairs are left: the next start" in done.stdout
    table = marketfeed("pairs", "--config", config)
    assert table.returncode == 0
    assert "2 pairs to be collected" in table.stdout
    again = Background("run", "--config", config)
    url = again.line(r"status_url=(?P<url>\S+)")["url"]
    wait_until(lambda: status_of(url).get("pairs") == 2)
    assert again.stop() == 0
    assert shown(config)[other]["dropped"]
    # What is not chosen is wrong use, and leaves everything as it is.
    done = drop(config, other)
    assert done.returncode == 2
    assert f"found {other}, expected one of the 2 chosen pairs" in done.stderr
    done = drop(config, "BTC/USDT:USDC")
    assert done.returncode == 2
    assert "did you mean BTC/USDT:USDT?" in done.stderr
    assert len(chosen(config)) == 2


def test_where_the_settings_name_the_pairs_they_are_what_to_change(
    tmp_path: Path, simulator: dict[str, str]
) -> None:
    config = written(tmp_path, simulator, ["BTC/USDT:USDT", GONE])
    line = 1 + next(at for at, text in enumerate(config.read_text().splitlines()) if GONE in text)
    done = drop(config, GONE)
    assert done.returncode == 2
    assert (
        f"exchange.pairs is a list: take {GONE} out of it ({config} line {line}) "
        "and restart the collector" in done.stderr
    )
    variable = "MARKETFEED_EXCHANGE__PAIRS"
    done = marketfeed("pairs", "-c", config, "--drop", GONE, **{variable: f"{GONE},BTC/USDT:USDT"})
    assert done.returncode == 2
    assert f"(environment variable {variable})" in done.stderr
    done = marketfeed("pairs", "-c", config, "--drop", GONE, **{variable: "all"})
    assert done.returncode == 2
    assert "exchange.pairs: found all" in done.stderr
    done = drop(config, "NOSUCH/USDT:USDT")
    assert done.returncode == 2
    assert "found NOSUCH/USDT:USDT, expected one of the 2 of exchange.pairs" in done.stderr


def test_wrong_pairs_and_no_journal(tmp_path: Path, simulator: dict[str, str]) -> None:
    config = written(tmp_path, simulator, {"top": 4})
    assert drop(config, "ETHUSDT").returncode == 2
    for done in (drop(config, GONE), marketfeed("pairs", "--config", config)):
        assert done.returncode == 1
        assert "journal.db" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "journal.db").exists()
    shown_help = " ".join(marketfeed("pairs", "--help").stdout.split())
    assert "A running collector lets go of it at its next look" in shown_help


@pytest.mark.long(25)
def test_a_pair_that_is_listed_no_more_is_a_warning_until_it_is_dropped(tmp_path: Path) -> None:
    exchange = Background("simulate", "--pairs=4", "--speed=240", "--timeframes=1m", "--port=0")
    urls = exchange.line(r"ws_url=(?P<ws_url>\S+) rest_url=(?P<rest_url>\S+)").groupdict()
    config = written(tmp_path, urls, {"top": 4})
    running = Background("run", "--config", config)
    url = running.line(r"status_url=(?P<url>\S+)")["url"]
    wait_until(lambda: status_of(url).get("mark_price_age_s") is not None)
    body = {"change": "status", "pair": GONE, "status": None}
    ask(f"{urls['rest_url']}/simulator/listings", body)
    wait_until(lambda: shown(config)[GONE]["missing_since_ms"])
    assert running.stop() == 0
    # The day is over: what the journal keeps of it is a day older.
    change_document(
        tmp_path / "journal.db",
        ABSENT_PAIRS,
        lambda known: json.dumps({GONE: json.loads(known or b"")[GONE] - DAY_MS}).encode(),
        0,
    )
    running = Background("run", "--config", config)
    url = running.line(r"status_url=(?P<url>\S+)")["url"]
    wait_until(lambda: ask(f"{url}/health")[0] == 200 and "warnings" in ask(f"{url}/health")[1])
    health = ask(f"{url}/health")[1]
    assert health["healthy"]
    assert health["reasons"] == []
    (text,) = health["warnings"]
    words, command = f"{GONE} has been missing from exchangeInfo for ", text.split("`")[1].split()
    assert text.startswith(words)
    assert f"warning: {words}" in marketfeed("status", "--url", url, "--config", config).stdout
    # The command that it names.
    assert command == ["marketfeed", "pairs", "--drop", GONE]
    assert marketfeed(*command[1:], "--config", config).returncode == 0
    wait_until(lambda: "warnings" not in ask(f"{url}/health")[1])
    assert running.stop() == 0
    assert sum("the exchange knows a pair no more" in line for line in running.lines) == 1
    assert sum("a pair is known again, or dropped" in line for line in running.lines) == 1
    assert exchange.stop() == 0


def ask(url: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """Get what is at `url`, or post a body there: the status, and what JSON was answered."""

    async def question() -> tuple[int, dict[str, Any]]:
        async with aiohttp.ClientSession() as session:
            asked = session.get(url) if body is None else session.post(url, json=body)
            async with asked as response:
                return response.status, await response.json()

    return asyncio.run(question())
