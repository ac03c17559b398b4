"""Names full of quotes, commas, backslashes, line ends and parts of queries go the whole way unharmed.

Pairs and buckets: from the journal through setup, check and shipping to the reader, on 1.x and 2.x.
"""

import asyncio
import itertools
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from front import Front
from hypothesis import example, given, settings
from hypothesis import strategies as st
from influxd import Influxd
from shipped import shipping
from stored import START_MS, candle, entry

from marketfeed.commands.check_influxdb import check_influx
from marketfeed.commands.refused_lines import read_refused
from marketfeed.commands.setup_influxdb import setup_influx
from marketfeed.journal.batch import Batch
from marketfeed.records import FundingRate, FundingSettled, Gap, MarkPrice
from marketfeed.settings.model import Settings
from reader import MarketReader, UnknownPairError
from reader.rows import CandleQuery
from reader.stores.influx import InfluxStore
from tests.waiting import until

NASTY = [
    '"; DROP DATABASE "neighbour"; --',
    "'; DROP MEASUREMENT ohlcv_3m; --",
    "A' OR '1'='1",
    "$pair",
    "A,pair=B",
    "A open=1 1\nohlcv_3m,pair=B open=2 2",
    "A\r\n\r\nGET / HTTP/1.1",
    "币安 人生=/USDT:USDT",
    "\\",
    'A\\"B',
    "A\\,B\\ C\\=D",
    "#A",
    "/.*/",
    "*",
    "%s%00{}",
]
pair_names = st.sampled_from(NASTY) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12
)
# influxd 1.6.7 makes directories of them and looks for files with glob: no [, * and ?, nor slashes.
bucket_names = st.sampled_from(
    [
        '"',
        "'",
        "a b",
        "a;b",
        '"; DROP DATABASE "neighbour',
        "$a",
        "a&db=b",
        "a#b",
        "a+b%20c",
    ]
) | st.text(st.sampled_from("aB \"'`;$&=#%+,.-_(){}币ä"), min_size=1, max_size=10).map(
    lambda text: f"b{text}e"
)
_numbers = itertools.count()


def written(pair: str) -> str:
    """A pair's name as InfluxDB holds it: line ends and tabs are written out."""
    text = pair.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return text + " " if text.endswith("\\") else text


@pytest.mark.parametrize("api", ["v1", "v2"])
@given(pairs=st.lists(pair_names, min_size=1, max_size=5, unique_by=written), bucket=bucket_names)
@example(pairs=NASTY, bucket='"; DROP DATABASE "neighbour"; SELECT \'$x\' #&db=neighbour')
@settings(max_examples=12, deadline=None)
def test_no_name_changes_a_query_or_breaks_a_line(
    influxd: Influxd,
    tmp_path_factory: pytest.TempPathFactory,
    api: str,
    pairs: list[str],
    bucket: str,
) -> None:
    path = tmp_path_factory.mktemp("names") / "journal.db"
    bucket = f"{bucket} {next(_numbers)}"
    if api == "v2":
        # 2.x refuses quotation marks in a bucket's name.
        bucket = bucket.replace('"', "'")
    with influxd.database("neighbour") as neighbour, Front(influxd) as front:
        influxd.write(neighbour, [f"m a=1 {START_MS}"])
        influx: dict[str, Any] = {"url": influxd.url, "api": "v1", "bucket": bucket}
        if api == "v2":
            influx = {"url": front.url, "org": front.org, "token": front.token, "bucket": bucket}
        asyncio.run(set_up(influx))
        uvloop.run(ship(path, influx, pairs))
        assert read_refused(path) == []
        database = bucket if api == "v1" else front.buckets[bucket].database
        try:
            counts(influxd, database, len(pairs))
            read_back(influx, pairs)
        finally:
            with influxd.database(database):
                front.buckets.clear()
        assert influxd.query("SELECT a FROM m", neighbour)[0]["values"] == [[START_MS, 1]]


async def set_up(influx: dict[str, Any]) -> None:
    wanted = Settings.model_validate({"exchange": {"timeframes": ["3m"]}, "influxdb": influx})
    async with aiohttp.ClientSession() as session:
        done = await setup_influx(wanted, session)
        assert {item.verdict for item in done} == {"good"}, done
        found = await check_influx(wanted, session)
        assert {item.verdict for item in found} == {"good"}, found


async def ship(path: Path, influx: dict[str, Any], pairs: list[str]) -> None:
    batch = Batch()
    for index, pair in enumerate(pairs):
        batch.add(entry(pair))
        batch.add(candle(START_MS, pair))
        batch.add(candle(START_MS + 180_000, pair, closed=False))
        batch.add(MarkPrice(pair, START_MS, index + 1.5, 2.5))
        batch.add(FundingRate(pair, START_MS, index / 7, START_MS + 1))
        batch.add(FundingSettled(pair, START_MS, index / 3, None))
        batch.add(Gap(f"candle_{pair}", pair, START_MS, START_MS + 5, "healed", "lost"))
    async with shipping(path, influx) as (writer, shipper):
        await writer.call(lambda journal: journal.write(batch))
        await until(lambda: shipper.shipped_below() == writer.next_seq > 1)
        # Forming candles go apart from the others.
        await until(lambda: shipper.lines + shipper.refused == 7 * len(pairs))
        assert shipper.refused == 0


def counts(influxd: Influxd, database: str, pairs: int) -> None:
    """Every point is there once, and there is nothing else."""
    fields = {
        "ohlcv_3m": "close",
        "forming_3m": "close",
        "mark_price": "mark_price",
        "funding_rate": "rate",
        "funding_settled": "rate",
        "feed_gap": "healed",
        "feed_catalog": "timeframes",
    }
    (names,) = influxd.query("SHOW MEASUREMENTS", database)
    assert {name for (name,) in names["values"]} == set(fields)
    for name, field in fields.items():
        (found,) = influxd.query(f"SELECT count({field}) FROM {name}", database)  # noqa: S608
        assert found["values"][0][1] == pairs
    hosts = influxd.query('SHOW TAG VALUES FROM feed_gap WITH KEY = "collector"', database)
    assert [value for item in hosts for _, value in item["values"]] == [socket.gethostname()]


def read_back(influx: dict[str, Any], pairs: list[str]) -> None:
    """The reader finds each pair under its name, with its own rows, and no foreign ones."""
    with MarketReader.connect(
        influx["url"],
        token=influx.get("token"),
        bucket=influx["bucket"],
        now_ms=lambda: START_MS + 181_000,
    ) as reader:
        store = reader._store
        assert isinstance(store, InfluxStore)
        names = [written(pair) for pair in pairs]
        # The public methods refuse what is no pair before they ask; what is asked is the store's.
        answers = store.candles(CandleQuery(names, "3m", 0, 2**62, 5, forming=True))
        for index, (pair, name, found) in enumerate(zip(pairs, names, answers, strict=True)):
            with pytest.raises(UnknownPairError):
                reader.get_ohlcv(pair, "3m", 5)
            assert found.values[:, 1].tolist() == [candle(START_MS, pair).open]
            assert found.forming is not None
            assert found.forming[1] == candle(START_MS + 180_000, pair).open
            (mark,) = store.mark_prices([name]).values()
            assert mark.mark_price == index + 1.5
            (rate,) = store.funding_rates([name]).values()
            assert rate.rate == index / 7
            assert [row.rate for row in store.settled_rates(name, 0, 2**62)] == [index / 3]
            (noted,) = store.catalog([name])
            assert noted.pair == name
            assert not store.mark_prices([name + "'"])
