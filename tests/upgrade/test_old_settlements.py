"""Settlements beside the released version: its readers see what they saw, its points harm nobody."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from influxd import Influxd
from released import Released, own_environment

sys.path.append(str(Path(__file__).parents[1] / "reader"))

from stored import PAIR, entry, write
from test_reader_settlements import hour, live, running, settled, since

from marketfeed import schema
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.journal.journal import KIND, Journal
from marketfeed.storage.database import convert
from marketfeed.storage.ranges import Acknowledged
from reader import MarketReader
from reader.feeder import Feeder
from reader.values import FundingRate

READ: Final = """
import json, sys
from reader import MarketReader

url, bucket, pair, now_ms = sys.argv[1:]
with MarketReader.connect(url, bucket=bucket or None, now_ms=lambda: int(now_ms)) as reader:
    frame = reader.get_funding_history(pair)
    rows = [[date.value // 10**6, rate] for date, rate in zip(frame["date"], frame["rate"])]
    print(json.dumps([rows, reader.get_funding_rate(pair, max_age_s=None).settled_rate]))
"""
LINES: Final = """
import sys
from pathlib import Path
from marketfeed.outbox import Outbox
from marketfeed.ranges import Ranges

print("\\n".join(Outbox(Path(sys.argv[1]), "old host").newest(Ranges(), 2**40).lines))
"""
RATES: Final = {h: 0.0001 * (h + 50) for h in (-16, -8, 0, 2)}


@pytest.fixture(scope="module")
def influxd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Influxd]:
    with Influxd(tmp_path_factory.mktemp("influxd")) as server:
        yield server


def journal(path: Path) -> Path:
    """Of version 2, which both write and read: a regular settlement beside a special one, a lone special."""
    with Journal.open(path) as made:
        write(
            made,
            entry(),
            settled(-16, -8, 0),
            settled(0, 2, kind=schema.SPECIAL),
            running((-16, -8, -8), (-8, 0, 0), (0, 3, 8)),
        )
    convert(KIND, path, 2)
    return path


def run(released: Released, script: str, *arguments: object) -> str:
    done = subprocess.run(
        [str(released.python), "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env=own_environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def old_lines(released: Released, path: Path) -> list[str]:
    return run(released, LINES, path).splitlines()


def new_lines(path: Path) -> list[str]:
    outbox = JournalOutbox(path, "new host")
    try:
        return outbox.newest(Acknowledged.alike(KIND.measurements), 2**40).lines
    finally:
        outbox.close()


def test_an_old_reader_of_a_new_bucket_and_of_a_new_collectors_journal(
    released: Released, influxd: Influxd, tmp_path: Path
) -> None:
    path = journal(tmp_path / "journal.db")
    with influxd.database("new") as bucket:
        influxd.write(bucket, new_lines(path))
        rows, newest = json.loads(run(released, READ, influxd.url, bucket, PAIR, hour(3)))
    assert rows == [[hour(h), rate] for h, rate in RATES.items()]
    assert newest == RATES[2]
    rows, newest = json.loads(run(released, READ, f"sqlite:///{path}", "", PAIR, hour(3)))
    assert [rate for _, rate in rows] == [*(RATES[h] for h in (-16, -8, 0, 0, 2))]
    assert newest == RATES[2]


@pytest.mark.parametrize("new_first", [True, False])
def test_both_collectors_on_one_bucket(
    released: Released, influxd: Influxd, tmp_path: Path, new_first: bool
) -> None:
    """In both orders; of what only the old one wrote no kind is known."""
    path = journal(tmp_path / "journal.db")
    lines = [old_lines(released, path), new_lines(path)]
    with influxd.database("both") as bucket:
        for some in reversed(lines) if new_first else lines:
            influxd.write(bucket, some)
        now_ms = hour(3)
        with MarketReader.connect(influxd.url, bucket=bucket, now_ms=lambda: now_ms) as reader:
            frame = reader.get_funding_history(PAIR)
            assert frame["kind"].tolist() == [
                *["Regular"] * 3,
                *["Special"] * 2,
            ]
            assert frame["rate"].tolist() == [*(RATES[h] for h in (-16, -8, 0, 0, 2))]
            assert frame.attrs["missing"] == []
            rate = reader.get_funding_rate(PAIR, max_age_s=None)
            assert isinstance(rate, FundingRate)
            assert (rate.interval_h, rate.settled_rate) == (8.0, RATES[2])


def test_a_bucket_and_a_journal_of_the_old_one_alone(
    released: Released, influxd: Influxd, tmp_path: Path
) -> None:
    """No kinds, nothing told of what was answered: the running rates decide."""
    path = journal(tmp_path / "journal.db")
    with influxd.database("old") as bucket:
        influxd.write(bucket, old_lines(released, path))
        for url, name in ((influxd.url, bucket), (f"sqlite:///{path}", None)):
            for now_h, refused in ((3, False), (8.15, False), (8.2, True)):
                now_ms = hour(now_h)
                with MarketReader.connect(url, bucket=name, now_ms=lambda: now_ms) as reader:  # noqa: B023
                    feeder = Feeder(reader, lambda: now_ms)  # noqa: B023
                    for asked in (live(), since(-8)):
                        (found,) = feeder.answer([asked])
                        assert isinstance(found, Exception) == refused, found
