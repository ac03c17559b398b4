"""What came of a soak: whether it is good, as a table, and as a row of the scoreboard."""

import statistics
from typing import Final

import msgspec

from marketfeed.gaps.healer import RECHECKS, REQUESTS
from tests.faults.fault_audit import Audit
from tests.faults.fault_truth import Verdict
from tests.faults.scoreboard import Row

RSS_GROWTH: Final = 0.10
"""Memory may be that much more in the last quarter than in the second: what noise comes to."""
FILES_MORE: Final = 3 + REQUESTS + RECHECKS
"""Connections to REST are kept for a while."""
TASKS_MORE: Final = 2
PERFECT: Final = 100.0


class Sample(msgspec.Struct, frozen=True):
    """The collector at one instant. `tasks` is None when its status port did not answer."""

    rss_bytes: int
    files: int
    tasks: int | None
    healthy: bool


class Outcome(msgspec.Struct, frozen=True):
    """What came of a soak.

    `whole_after_s` are wall seconds from the last fault's end until all flowed; `rss_mb` the median of
    each quarter of the time; `files` and `tasks` their number at first, at most and at the end. `errors`
    are the lines of that level in the collector's logs. `healed_after_s` are exchange seconds from the
    last fault's end until no candle was missing; `gaps` counts those of candles by state, `audit` is what
    the exchange's REST shows of the journal in the end, and `percent`, `series` and `command_…` what the
    command `marketfeed audit --all` reports. `rollovers` are counted by how they ended. `rewritten` is how
    often a stored candle was seen to change, `worse` those that became ones of fewer trades.
    `coverage_mistakes` is what the journal's coverage says of `covered_series` that its rows do not.
    """

    exchange_hours: float
    wall_s: float
    faults: dict[str, int]
    verdict: Verdict
    connections_opened: int
    resubscribed: int
    rejects: int
    healthy_share: float
    whole_after_s: float
    rss_mb: list[float]
    files: tuple[int, int, int]
    tasks: tuple[int, int, int]
    exit_code: int
    errors: list[str]
    kills: int
    healed_after_s: float
    gaps: dict[str, int]
    audit: Audit
    rollovers: dict[str, int]
    rollovers_asked: int
    within_s: float | None
    percent: float
    series: int
    command_missing: int
    command_different: int
    command_errors: list[str]
    rewritten: int
    worse: list[str]
    covered_series: int
    coverage_mistakes: list[str]


def quarters(values: list[float]) -> list[float]:
    """The median of each quarter of a series."""
    size = max(1, len(values) // 4)
    return [
        round(statistics.median(values[at * size : (at + 1) * size] or values), 1)
        for at in range(4)
    ]


def complaints(outcome: Outcome) -> list[str]:
    """What is not good about it; nothing if all is."""
    verdict = outcome.verdict
    found = [
        f"{len(names)} candles are {what}: {', '.join(names[:5])}"
        for what, names in (
            ("wrong", verdict.wrong),
            ("neither stored nor listed", verdict.unlisted),
            ("stored but never published", verdict.invented),
            ("missing by the exchange's REST", outcome.audit.missing),
            ("different by the exchange's REST", outcome.audit.different),
            ("stored and unknown to the exchange's REST", outcome.audit.extra),
            ("overwritten by worse ones", outcome.worse),
        )
        if names
    ]
    if not verdict.published:
        found.append("nothing was published")
    for what, count in (
        ("were never healed", verdict.listed),
        ("are listed as missing though stored", verdict.stale),
    ):
        if count:
            found.append(f"{count} candles {what}")
    if outcome.percent != PERFECT or outcome.command_different or outcome.command_errors:
        found.append(
            f"marketfeed audit reports {outcome.percent:.4f} %: {outcome.command_missing} missing, "
            f"{outcome.command_different} different, errors {outcome.command_errors[:3]}"
        )
    if outcome.coverage_mistakes:
        found.append(f"coverage is not what the rows say: {outcome.coverage_mistakes[:3]}")
    if outcome.rollovers.get("proven", 0) < outcome.rollovers_asked:
        found.append(f"{outcome.rollovers_asked} rollovers were asked for: {outcome.rollovers}")
    if outcome.within_s is not None and outcome.healed_after_s > outcome.within_s:
        found.append(f"healed only {outcome.healed_after_s:.0f} exchange s after the last fault")
    _, second_mb, _, last_mb = outcome.rss_mb
    # A fresh process fills its caches first.
    if not outcome.kills and last_mb > second_mb * (1.0 + RSS_GROWTH):
        found.append(f"memory grew from {second_mb:.1f} to {last_mb:.1f} MB")
    for what, (first, _, last), more in (
        ("open files", outcome.files, FILES_MORE),
        ("tasks", outcome.tasks, TASKS_MORE),
    ):
        if last > first + more:
            found.append(f"{what} grew from {first} to {last}")
    if outcome.exit_code != 0:
        found.append(f"the collector ended with {outcome.exit_code}")
    if outcome.errors:
        found.append(f"the collector logged {len(outcome.errors)} errors: {outcome.errors[0]}")
    return found


def table(outcome: Outcome) -> list[str]:
    """The lines of a table of it."""
    verdict = outcome.verdict
    rows: list[tuple[str, object]] = [
        ("exchange hours", f"{outcome.exchange_hours:g} in {outcome.wall_s:.0f} s"),
        ("faults", sum(outcome.faults.values())),
        *((f"  {name}", count) for name, count in outcome.faults.items()),
        ("candles published", verdict.published),
        ("  stored, identical", verdict.identical),
        ("  listed as missing", verdict.listed),
        ("  neither", len(verdict.unlisted)),
        ("  stored, wrong", len(verdict.wrong)),
        ("  stored, never published", len(verdict.invented)),
        ("  listed though stored", verdict.stale),
        ("kills", outcome.kills),
        ("gaps of candles", " ".join(f"{k} {v}" for k, v in sorted(outcome.gaps.items()))),
        ("healed after the last fault", f"{outcome.healed_after_s:.0f} exchange s"),
        ("candles by REST", f"{outcome.audit.expected}, {outcome.audit.empty} without trades"),
        ("  missing", len(outcome.audit.missing)),
        ("  different", len(outcome.audit.different)),
        ("marketfeed audit --all", f"{outcome.percent:.3f} % of {outcome.series} series"),
        ("  missing, different", f"{outcome.command_missing}, {outcome.command_different}"),
        ("coverage", f"{len(outcome.coverage_mistakes)} mistakes, {outcome.covered_series} series"),
        ("rewritten, by worse ones", f"{outcome.rewritten}, {len(outcome.worse)}"),
        ("rollovers", " ".join(f"{k} {v}" for k, v in outcome.rollovers.items()) or 0),
        ("connections opened", outcome.connections_opened),
        ("streams asked for again", outcome.resubscribed),
        ("frames refused", outcome.rejects),
        ("healthy", f"{outcome.healthy_share:.0%} of the time"),
        ("whole after the last fault", f"{outcome.whole_after_s:.1f} wall s"),
        ("RSS MB in each quarter", " ".join(map(str, outcome.rss_mb))),
        ("open files first, most, end", " ".join(map(str, outcome.files))),
        ("tasks first, most, end", " ".join(map(str, outcome.tasks))),
    ]
    return [f"{name:28} {value}" for name, value in rows]


def row(outcome: Outcome) -> Row:
    """A row of the scoreboard; its times are the exchange's."""
    speed = outcome.exchange_hours * 3_600.0 / outcome.wall_s
    return Row(
        fault=f"{sum(outcome.faults.values())} random faults in {outcome.exchange_hours:g} h",
        lost=outcome.verdict.text(),
        whole_after_s=outcome.whole_after_s * speed,
        others_disturbed="all were struck",
    )
