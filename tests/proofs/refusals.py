"""The section of what refusals of InfluxDB cost the rows that it takes."""

import sys
from pathlib import Path

import msgspec

from tests.proofs.commands import run
from tests.proofs.section import Section, Table, markdown


class _Check(msgspec.Struct):
    what: str
    found: float
    most: float | None
    good: bool


class _Outcome(msgspec.Struct):
    refusals: dict[str, list[_Check]] = {}


def refusals(logs: Path, *, quick: bool) -> Section:
    """A field of another type in a week, points that are too old, a bucket that keeps less."""
    section = Section(title="What InfluxDB refuses, and the rows beside it")
    only = ("--only", "too old", "--only", "expiry") if quick else ()
    done = run(
        ["-m", "tests.influxdb.refusals", "--json", *only],
        900.0,
        python=sys.executable,
        log=logs / "refusals.log",
    )
    section.took(done)
    try:
        found = msgspec.json.decode(done.output, type=_Outcome).refusals
    except msgspec.DecodeError:
        found = {}
    if done.code != 0 or not found:
        section.failed("The refusals", done)
    rows: Table = [["scenario", "what", "found", "at most", "good"]]
    for name, checks in found.items():
        for one in checks:
            most = "-" if one.most is None else f"{one.most:g}"
            rows.append([name, one.what, f"{one.found:g}", most, "yes" if one.good else "**NO**"])
    section.body = markdown(rows)
    return section
