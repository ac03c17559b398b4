"""Votes as data: what goes through an aggregator reaches a real InfluxDB, by the collector's own `ship`."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from influxd import Influxd

AGGREGATOR_TESTS = Path(__file__).parents[1] / "aggregator"
sys.path.append(str(AGGREGATOR_TESTS))

from bot import CountingBot  # noqa: E402 - the directory has to be known first
from running import (  # noqa: E402
    FLEET,
    PAIR,
    Process,
    basic,
    config,
    rows,
    running,
    states,
)

from marketfeed import schema  # noqa: E402
from marketfeed.aggregator.ledger_schema import KIND  # noqa: E402
from marketfeed.aggregator.outbox import LedgerOutbox  # noqa: E402
from marketfeed.settings.load import load_settings  # noqa: E402
from marketfeed.settings.model import Settings  # noqa: E402
from marketfeed.storage.ranges import Acknowledged  # noqa: E402
from tests.waiting import until  # noqa: E402


def shipping(path: Path, influxd: Influxd, database: str, bot_url: str, **changes: Any) -> Settings:
    bots = {"long": bot_url} | changes.pop("bots", {})
    file = config(path, bots, **{"window_s": 0.5, "expire_s": 30} | changes)
    data = yaml.safe_load(file.read_text())
    data["influxdb"] = {"url": influxd.url, "api": "v1", "bucket": database}
    file.write_text(yaml.safe_dump(data))
    return load_settings(file, {})


def points(influxd: Influxd, database: str, measurement: str) -> list[dict[str, Any]]:
    found = influxd.query(f'SELECT * FROM "{measurement}" GROUP BY *', database)  # noqa: S608
    return [
        dict(zip(series["columns"], values, strict=True)) | series["tags"]
        for series in found
        for values in series["values"]
    ]


@pytest.mark.parametrize("behaviour", ["ok", "already_open"])
def test_votes_decisions_and_forwards_are_points(
    tmp_path: Path, influxd: Influxd, database: str, behaviour: Any
) -> None:
    async def scenario() -> None:
        async with CountingBot(behaviour) as bot:
            given = shipping(tmp_path, influxd, database, bot.url)
            async with running(given) as aggregator:
                for feeder, confidence in (("73", 0.85), ("74", 0.72), ("79", 0.88), ("79", 0.88)):
                    await aggregator.post(feeder, confidence, signal_strength=2)
                await aggregator.post("73", 0.9, pair="币安/USDT:USDT")
                await until(lambda: len(rows(tmp_path, "SELECT 1 FROM decision")) == 2, "decisions")
                await until(lambda: states(tmp_path)[0] in ("accepted", "refused"), "an answer")
                await until(
                    lambda: rows(
                        tmp_path,
                        "SELECT 1 FROM shipped, sequence WHERE last = next - 1 AND first = 1",
                    ),
                    "everything shipped",
                )
                assert rows(tmp_path, "SELECT count(*) FROM refused_line") == [(0,)]

    asyncio.run(scenario())
    votes = points(influxd, database, schema.SIGNAL)
    assert sorted((v["pair"], v["side"], v["feeder"], v["confidence"]) for v in votes) == [
        (PAIR, "long", "73", 0.85),
        (PAIR, "long", "74", 0.72),
        (PAIR, "long", "79", 0.88),
        ("币安/USDT:USDT", "long", "73", 0.9),
    ]
    assert {name for vote in votes for name in vote} <= {
        "time",
        "pair",
        "side",
        "feeder",
        *schema.AGGREGATOR_FIELDS[schema.SIGNAL],
    }
    decided = {point["pair"]: point for point in points(influxd, database, schema.ENSEMBLE)}
    (received,) = (v["time"] for v in votes if v["pair"] == PAIR and v["feeder"] == "73")
    forwarded, skipped = decided[PAIR], decided["币安/USDT:USDT"]
    assert forwarded["tag"] == "long ensemble 3/5 conf=0.82 from=79"
    assert (forwarded["primary"], forwarded["votes"], forwarded["of"]) == ("79", 3, 5)
    assert (forwarded["outcome"], skipped["outcome"]) == ("forward", "skip")
    assert forwarded["time"] >= received + 500
    assert forwarded["answered"] >= forwarded["sent"] >= forwarded["time"]
    if behaviour == "ok":
        assert (forwarded["state"], forwarded["status"]) == ("accepted", 200)
    else:
        assert (forwarded["state"], forwarded["status"]) == ("refused", 502)
        assert "already open" in forwarded["answer"]
    assert skipped["reasons"] == "1 of 5 votes, 3 needed"
    assert set(forwarded) <= {
        "time",
        "pair",
        "side",
        "primary",
        *schema.AGGREGATOR_FIELDS[schema.ENSEMBLE],
    }
    outbox = LedgerOutbox(tmp_path / "ledger.db", "")
    lines = outbox.newest(Acknowledged.alike(KIND.measurements), 1_000).lines
    assert outbox.as_they_stand(lines) == lines
    # What a late request would undo is known again; a decision and its forward are one point.
    (forward,) = [line for line in lines if "state=" in line]
    key, time = forward.partition(" ")[0], forward.rpartition(" ")[2]
    assert outbox.as_they_stand([f'{key} state="queued",answer="" {time}']) == [forward]
    outbox.close()


def test_what_the_meta_bot_refused_is_in_the_decision_s_point(
    tmp_path: Path, influxd: Influxd, database: str
) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot, CountingBot() as meta:
            meta.refuses = f"Failed to enter position for {PAIR}."
            own = {"url": meta.url, "password_file": str(tmp_path / "bot_word")}
            rules = {"min_agreements": 1, "bots": {"meta": own}}
            given = shipping(tmp_path, influxd, database, bot.url, **rules)
            async with running(given) as aggregator:
                await aggregator.post("73", 0.85)

                def shipped() -> bool:
                    found = points(influxd, database, schema.ENSEMBLE)
                    ends = [(point.get("state"), point.get("meta_state")) for point in found]
                    return ends == [("accepted", "refused")]

                await until(shipped, "both ends in one point")

    asyncio.run(scenario())
    (point,) = points(influxd, database, schema.ENSEMBLE)
    assert (point["status"], point["meta_status"]) == (200, 502)
    assert point["meta_answer"].endswith(f"Failed to enter position for {PAIR}.")
    assert point["meta_answered"] >= point["meta_sent"] >= point["time"]
    assert point["outcome"] == "forward"


def test_a_text_strength_does_not_park_shipping(
    tmp_path: Path, influxd: Influxd, database: str
) -> None:
    """The fleet's own body, among others with a number, over a process and a real server."""
    with_text = (
        b'{"pair":"BTC/USDT:USDT","side":"long","feeder_id":73,"confidence":0.85,"entry_price":95000,'
        b'"signal_strength":"high"}'
    )
    bodies = [
        with_text.replace(b"73", b"74").replace(b'"high"', b"2"),
        with_text,
        with_text.replace(b"73", b"79").replace(b'"high"', b'"0.8"'),
        with_text.replace(b"73", b"75").replace(b'"high"', b"null"),
        with_text.replace(b"73", b"108").replace(b'"high"', b'-1.5,"model":"a \\"b\\", c=1\\n"'),
    ]
    shipped = "SELECT 1 FROM shipped, sequence WHERE last = next - 1 AND first = 1"

    async def scenario() -> None:
        async with CountingBot() as bot, aiohttp.ClientSession() as session:
            # Decided when all have voted, however slow the machine is.
            shipping(tmp_path, influxd, database, bot.url, window_s=600)
            process = await asyncio.to_thread(Process, tmp_path / "config.yaml")
            try:
                for number, body in enumerate(bodies, 1):
                    url = f"{process.url}/api/v1/forceenter"
                    async with session.post(url, data=body, headers=basic(FLEET)) as answer:
                        assert answer.status == 200, await answer.text()
                    # Each on its own, so that a bad one could hold back the next.
                    await until(
                        lambda n=number: len(points(influxd, database, schema.SIGNAL)) == n,
                        f"point {number}",
                    )
                await until(lambda: states(tmp_path), "a forward")
                await until(lambda: states(tmp_path) == ["accepted"], "an answer")
                await until(lambda: rows(tmp_path, shipped), "everything shipped")
            finally:
                await asyncio.to_thread(process.stop)
            assert [post["entry_tag"] for post in bot.posts] == [
                "long ensemble 5/5 conf=0.85 from=74"
            ]

    asyncio.run(scenario())
    assert rows(tmp_path, "SELECT body, strength FROM vote ORDER BY number") == [
        (bodies[0], 2.0),
        (bodies[1], None),
        (bodies[2], 0.8),
        (bodies[3], None),
        (bodies[4], -1.5),
    ]
    assert rows(tmp_path, "SELECT count(*) FROM refused_line") == [(0,)]
    found = {point["feeder"]: point for point in points(influxd, database, schema.SIGNAL)}
    assert {feeder: point.get("strength") for feeder, point in found.items()} == {
        "74": 2.0,
        "73": None,
        "79": 0.8,
        "75": None,
        "108": -1.5,
    }
    assert {point.get("strength_text") for point in found.values()} == {"high", None}
    assert found["73"]["strength_text"] == "high"
    assert {
        feeder: point.get("unknown_fields") for feeder, point in found.items()
    } == dict.fromkeys(("74", "73", "79", "75")) | {"108": '{"model":"a \\"b\\", c=1\\n"}'}
