"""The sections of the proofs that are campaigns: cold starts, rounds of faults, years, two versions."""

import sys
from pathlib import Path
from typing import Final

import msgspec

from tests.faults.cold_start import Start
from tests.faults.fault_rounds import total
from tests.faults.round_run import Round
from tests.pairs import simulated_week
from tests.proofs.commands import run
from tests.proofs.section import Section, markdown
from tests.upgrade.mixed_outcome import Mixed

START_LANES: Final = "4"
ROUND_LANES: Final = "8"
"""Parts side by side, less than half of what two idle cores bear: a start of 164 pairs takes a fifth of one,
a round of 20 pairs a thirtieth."""
_HOURS_S: Final = 3 * 3_600.0


def starts(logs: Path, *, quick: bool) -> Section:
    """Cold starts at moments around a boundary, and a few with a month of history."""
    count, pairs = ("2", "6") if quick else ("40", "164")
    section = Section(title=f"Cold starts, {count} around a boundary, {pairs} pairs")
    judged = _starts(section, logs / "starts.log", "--moments", count, "--pairs", pairs)
    few = "1" if quick else "4"
    month = ("--days", "1" if quick else "30", "--timed")
    timed = _starts(section, logs / "starts-month.log", "--moments", few, "--pairs", pairs, *month)
    head = ["boundary", "s after it", "series whole", "whole after s", "at most", "well after s"]
    table = [[*head, "looks while well", "good"]]
    for start in judged:
        verdict = "yes" if start.good else f"**NO** {start.well_while_lacking}"
        table.append([*_cells(start), str(start.well_looks), verdict])
    waits = [f"{start.whole_s:.0f} s" for start in timed if start.whole_s is not None]
    section.body = [
        *markdown(table),
        "",
        (
            "From the start of the process (wall seconds) until a feeder had the newest closed candles of "
            "every pair and timeframe, 499 or as many as a day has, and until `/health` was `well`. Good: "
            "whole in the time that fetching them weighs and 75 s, and no look at which it was `well` "
            "and a feeder's question failed."
        ),
        "",
        f"With 30 days of history, all 499 of every series, only timed: {', '.join(waits) or '-'}.",
    ]
    return section


def _starts(section: Section, log: Path, *arguments: str) -> list[Start]:
    done = run(
        ["-m", "tests.faults.cold_start", *arguments, "--lanes", START_LANES, "--json"],
        _HOURS_S,
        python=sys.executable,
        log=log,
    )
    section.took(done)
    found = msgspec.json.decode(done.output or "[]", type=list[Start])
    if done.code != 0 or not found:
        section.failed("The cold starts", done)
    return found


def _cells(start: Start) -> list[str]:
    times = [
        "-" if value is None else f"{value:.1f}"
        for value in (start.whole_s, start.within_s, start.well_s)
    ]
    return [
        start.boundary,
        f"{start.at_s:+.2f}",
        f"{start.whole_series} of {start.series}",
        *times,
    ]


def rounds(logs: Path, *, quick: bool) -> Section:
    """Rounds of two or three faults at once, looked at each second."""
    count, round_s, pairs, speed = ("2", "60", "4", "5") if quick else ("40", "300", "20", "1")
    section = Section(title=f"{count} rounds of two or three faults at once, {round_s} s each")
    done = run(
        [
            *("-m", "tests.faults.fault_rounds", "--rounds", count, "--round-s", round_s),
            *("--speed", speed, "--pairs", pairs, "--lanes", ROUND_LANES, "--json"),
        ],
        _HOURS_S,
        python=sys.executable,
        log=logs / "rounds.log",
    )
    section.took(done)
    found = msgspec.json.decode(done.output or "[]", type=list[Round])
    if done.code != 0 or not found:
        section.failed("The rounds", done)
    names = ("well", "filling", "not well", "no answer")
    table = [["faults", "well while missing s", *(f"{name} s" for name in names), "whole after s"]]
    for one in found:
        whole = "-" if one.whole_after_s is None else f"{one.whole_after_s:.0f}"
        seconds = [str(one.seconds.get(name, 0)) for name in names]
        table.append(["; ".join(one.faults), str(one.well_while_missing), *seconds, whole])
    section.body = [
        *markdown(table),
        "",
        f"{total(found)}.",
        "",
        (
            "In real time. Of each fault: when it began, and how long it lasted. `well while missing`: "
            "seconds at which `/health` said `well` while a candle of the feed or of healing was due and not "
            "in the journal for more than 60 s. Whole: wall seconds from the end of the last fault until all "
            "was stored and well. Then every candle is compared with the exchange's, and coverage with the "
            "rows."
        ),
    ]
    return section


def week(logs: Path, *, quick: bool) -> Section:
    """A week of listings, halts, ends, relistings and settlements through a real collector at speed 240."""
    days = "0.5" if quick else "7"
    section = Section(title="A week of contracts that come, go and change, at speed 240")
    command = (
        "tests.pairs.simulated_week",
        "--speed",
        "240",
        "--days",
        days,
        "--seed",
        "1",
        "--json",
    )
    done = run(["-m", *command], _HOURS_S, python=sys.executable, log=logs / "week.log")
    section.took(done)
    try:
        outcome = msgspec.json.decode(done.output, type=simulated_week.Outcome)
    except msgspec.DecodeError:
        section.failed("The week", done)
        return section
    if done.code != 0:
        section.failed("The week", done)
    table = [
        [
            "day's end",
            "contracts",
            "events",
            "candles",
            "lives",
            "settlements",
            "whole after s",
            "wrong",
        ]
    ]
    for day in outcome.days:
        found = (
            *(day.contracts, day.events, day.candles, day.lives, day.settled),
            *(day.whole_s, len(day.wrong)),
        )
        table.append([day.at, *map(str, found)])
    section.body = [
        *markdown(table),
        "",
        *(f"{line}." for line in simulated_week.total(outcome).splitlines()),
        "",
        (
            "Everything since the start is compared at each day's end: every candle of every contract, "
            "lives, coverage, settlements, and what both readers and feeders get. What is fair to hold at "
            "that speed is said at the head of `tests/pairs/simulated_week.py`."
        ),
    ]
    return section


def listings(logs: Path, *, quick: bool) -> Section:
    """Years of listings, halts, ends, relistings and rhythms through pure functions alone."""
    years = "1" if quick else "40"
    section = Section(title=f"Listings of {years} simulated years")
    done = run(
        ["-m", "tests.pairs.simulated_year", years],
        _HOURS_S,
        python=sys.executable,
        log=logs / "listings.log",
    )
    section.took(done)
    section.body = [done.output.strip().splitlines()[-1] if done.output.strip() else "-"]
    if done.code != 0:
        section.failed("A simulated year of listings", done)
    return section


def mixed(logs: Path, *, quick: bool) -> Section:
    """Two versions of the collector on one bucket, each older one first and last."""
    section = Section(title="Two versions of the collector on one bucket")
    few = ("--minutes", "24", "--versions", "0.2.0", "--orders", "old first") if quick else ()
    done = run(
        ["-m", "tests.upgrade.mixed_collectors", *few, "--json"],
        _HOURS_S,
        python=sys.executable,
        log=logs / "mixed.log",
    )
    section.took(done)
    found = msgspec.json.decode(done.output or "[]", type=list[Mixed])
    if done.code != 0 or not found:
        section.failed("Two versions of the collector", done)
    table = [
        ["older version", "started", "exchange min", "looks", "candles", "settlements", "wrong"]
    ]
    for one in found:
        numbers = (one.minutes, one.looks, one.candles, one.settled, len(one.complaints))
        table.append([one.version, one.order, *(f"{number:,}" for number in numbers)])
    section.body = [
        *markdown(table),
        "",
        (
            "A real influxd, a symbol that is used again, an end, a lone special settlement, a pair that is "
            "dropped. Readers of the current version are held against the exchange; those of the older one "
            "against it, and against what they answer where its collector is alone."
        ),
    ]
    return section


def reconciled(logs: Path, *, quick: bool) -> Section:
    """What a real influxd loses after it has acknowledged it, and how it comes back."""
    section = Section(title="What a bucket loses, and how it comes back")
    done = run(
        ["-m", "tests.influxdb.reconciled", "--json", *(["--quick"] if quick else [])],
        5_400.0,
        python=sys.executable,
        log=logs / "reconciled.log",
    )
    section.took(done)
    found = msgspec.json.decode(done.output or "{}").get("reconciled", [])
    if done.code != 0 or not found:
        section.failed("The losses", done)
    table = [["what", "rows", "lost", "whole after s", "within", "live lag s", "good", ""]]
    for one in found:
        numbers = [one[name] for name in ("whole_s", "within_s", "live_lag_s")]
        cells = ["-" if number is None else f"{number:g}" for number in numbers]
        good = "yes" if one["good"] else "**NO**"
        table.append(
            [one["name"], f"{one['rows']:,}", f"{one['lost']:,}", *cells, good, one["note"]]
        )
    section.body = markdown(table)
    return section
