"""The proofs, one function each: run commands, read what they report, and make a section of the page."""

import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.faults.scoreboard import VARIABLE, Row, read_rows
from tests.proofs import campaigns
from tests.proofs.commands import ROOT, Done, run
from tests.proofs.forwards import forwards
from tests.proofs.refusals import refusals
from tests.proofs.section import Section, Table, markdown

PEER_3: Final = "python3.13"
PEER_VENV: Final = ROOT / ".venv-proofs"
_LONG: Final = {
    "READ_ERRORS": "12",
    "DISK_ERRORS": "25",
    "FRAMES": "1000000",
    "MARKETFEED_TEST_ROLLOVERS": "30",
}
"""How often what the suite does in short is done here."""


class Proofs:
    """Makes sections. `quick` tries everything in a few minutes; its figures are no proofs."""

    def __init__(self, logs: Path, peer_3: str | None, *, quick: bool) -> None:
        self._logs = logs
        self._peer_3 = peer_3
        self._quick = quick
        logs.mkdir(parents=True, exist_ok=True)

    # --- faults -----------------------------------------------------------------------------------

    def faults(self) -> Section:
        """The scoreboard: one row for each fault that the tests make, and hours full of them."""
        section = Section(title="Faults, and what they cost")
        board, junit = self._logs / "faults.jsonl", self._logs / "faults.xml"
        board.unlink(missing_ok=True)
        tests = [
            *("tests/faults", "--deselect=tests/faults/test_fault_exchange_soak.py"),
            "tests/binance/test_rollovers.py",
        ]
        if self._quick:
            tests = ["tests/faults/test_fault_exchange_frames.py"]
        done = run(
            ["-m", "pytest", "-q", *tests, f"--junitxml={junit}"],
            1_800.0,
            python=sys.executable,
            log=self._logs / "faults.log",
            environment={VARIABLE: str(board), **_LONG},
        )
        section.took(done)
        hours, every = ("0.5", "0.7") if self._quick else ("8", "1.5")
        soak = run(
            [
                *("-m", "tests.faults.soak", "--exchange-hours", hours, "--speed", "240"),
                *("--pairs", "20", "--every", every, "--kills", "2", "--json"),
            ],
            420.0,
            python=sys.executable,
            log=self._logs / "faults-soak.log",
            environment={VARIABLE: str(board)},
        )
        section.took(soak)
        rows = read_rows(board) if board.exists() else []
        broken, skipped, passed = _outcomes(junit)
        section.body = [
            (
                f"{passed} tests passed; {len(rows)} faults below. Times are exchange seconds from "
                "the fault. “-”: nothing to notice or to mend."
            ),
            "",
            *markdown(_fault_rows(rows, broken)),
        ]
        if skipped:
            section.body += ["", "Not run here: " + "; ".join(skipped) + "."]
        if done.code not in (0, 1) or not passed:
            section.failed("The scoreboard", done)
        section.failures += [f"not survived, or not shown: {name}: {why}" for name, why in broken]
        if soak.code != 0:
            section.failed("The soak of random faults", soak)
        else:
            section.body += ["", _soak_words(_json(soak))]
        return section

    def upgrades(self) -> Section:
        """The released version's readers, collector, journal and ledger: to this one, and back."""
        section = Section(title="From the released version to this one, and back")
        board, junit = self._logs / "upgrades.jsonl", self._logs / "upgrades.xml"
        board.unlink(missing_ok=True)
        # A fleet in real time, and ten minutes of the released version on what was taken back to it.
        long = {} if self._quick else {"FLEET_SPEED": "1", "WAY_BACK_S": "600"}
        done = run(
            ["-m", "pytest", "-q", "tests/upgrade", f"--junitxml={junit}", "--numprocesses=3"],
            1_800.0,
            python=sys.executable,
            log=self._logs / "upgrades.log",
            environment={VARIABLE: str(board), **long},
        )
        section.took(done)
        broken, skipped, passed = _outcomes(junit)
        rows = [["what", "lost"], *([row.fault, row.lost] for row in read_rows(board))]
        section.body = [f"{passed} tests passed.", "", *markdown(rows)]
        if done.code != 0 or skipped or not passed:
            section.failed("The upgrades", done)
        section.failures += [f"not shown: {name}: {why}" for name, why in broken]
        return section

    def starts(self) -> Section:
        """Cold starts at moments around a boundary, in real time."""
        return campaigns.starts(self._logs, quick=self._quick)

    def rounds(self) -> Section:
        """Rounds of two or three faults at once, in real time."""
        return campaigns.rounds(self._logs, quick=self._quick)

    def listings(self) -> Section:
        """Years of listings, halts, ends, relistings and rhythms of settlements, simulated."""
        return campaigns.listings(self._logs, quick=self._quick)

    def week(self) -> Section:
        """A week of what becomes of contracts, through a real collector."""
        return campaigns.week(self._logs, quick=self._quick)

    def mixed(self) -> Section:
        """An older collector and this one, and readers of both, on one bucket."""
        return campaigns.mixed(self._logs, quick=self._quick)

    def reconciled(self) -> Section:
        """What a bucket loses, and how it comes back."""
        return campaigns.reconciled(self._logs, quick=self._quick)

    def kills(self) -> Section:
        """Kill -9 of collectors and shippers, of either of two collectors, and of aggregators."""
        kills = "20" if self._quick else "120"
        section = Section(title=f"kill -9, {kills} times each")
        rows: Table = [["what is killed", "tests passed", "failed", "wall s"]]
        for what, tests in (
            ("a collector, at random moments", ["tests/faults/test_kill.py"]),
            (
                "a journal with a random history of what is promised and missing",
                ["tests/journal/test_coverage_kill.py"],
            ),
            (
                "a shipper, towards InfluxDB 1.x and 2.x that fail meanwhile",
                ["tests/influxdb/test_ship_kill.py"],
            ),
            (
                "either of two collectors with one bucket",
                ["tests/influxdb/test_two_collectors.py"],
            ),
            (
                "an aggregator, between a signal's receipt and the bot's answer",
                ["tests/aggregator/test_aggregator_kill.py"],
            ),
            (
                "a migration of journal or ledger, there and back, beside a reader",
                ["tests/storage/test_migration_kill.py"],
            ),
        ):
            name = Path(tests[0]).stem
            junit = self._logs / f"{name}.xml"
            done = run(
                ["-m", "pytest", "-q", *tests, f"--junitxml={junit}"],
                600.0,
                python=sys.executable,
                log=self._logs / f"{name}.log",
                environment={"KILLS": kills},
            )
            section.took(done)
            broken, skipped, passed = _outcomes(junit)
            rows.append([what, str(passed), str(len(broken)), f"{done.seconds:.0f}"])
            if done.code != 0 or skipped or not passed:
                section.failed(f"kills: {what}:", done)
        section.body = [
            *markdown(rows),
            "",
            (
                "A test passes when every committed row is there, once, with its numbers, coverage is what "
                "the rows say, and InfluxDB holds what the journal holds; of the aggregator, when no "
                "decision led to two orders, none is lost without a reason, and every unknown outcome is "
                "settled or alarmed; of a migration, when the file is wholly of the old version or of the "
                "new one."
            ),
        ]
        return section

    def forwards(self) -> Section:
        """What the aggregator sends to real bots, under load, troubles and kills."""
        return forwards(self._logs, quick=self._quick)

    # --- outages ----------------------------------------------------------------------------------

    def outages(self) -> Section:
        """InfluxDB away, beside cryptofeed's own InfluxDB backends."""
        section = Section(title="InfluxDB away, beside cryptofeed's InfluxDB backends")
        peers = [("--peer", sys.executable)]
        if peer := self._peer(section):
            peers.append(("--peer", peer))
        only = ["--only", "3 s"] if self._quick else []
        done = run(
            [
                "tests/influxdb/outages.py",
                "--json",
                *only,
                *(part for pair in peers for part in pair),
            ],
            900.0,
            python=sys.executable,
            log=self._logs / "outages.log",
        )
        section.took(done)
        section.commands[-1] = section.commands[-1].replace("--peer", "--peer PYTHON")
        found = _json(done).get("outages", [])
        if done.code != 0 or not found:
            section.failed("The outages", done)
        columns = [
            ("outage", "outage", 0),
            ("kind", "server", 0),
            ("who", "who", 0),
            ("points", "points", 0),
            ("lost", "lost", 0),
            ("duplicates", "doubled", 0),
            ("live_after_s", "live after s", 1),
            ("caught_up_s", "caught up after s", 1),
            ("rss_max_mb", "peak RSS MB", 0),
        ]
        table = [[title for _, title, _ in columns]]
        for item in found:
            cells = ["-" if item[key] is None else _number(item[key], d) for key, _, d in columns]
            table += [cells]
        section.body = [
            *markdown(table),
            "",
            (
                "1,000 points/s, seconds of wall time from the outage's end; `10 min` is compressed into "
                "30 s at 20,000 points/s, `6 h` is a backlog of 3.5 M points in the journal. Every point is "
                "asked for afterwards."
            ),
        ]
        return section

    def refusals(self) -> Section:
        """What InfluxDB refuses, and what that costs the rows that it takes."""
        return refusals(self._logs, quick=self._quick)

    # --- benchmarks -------------------------------------------------------------------------------

    def bench(self) -> Section:
        """Measurements beside peers, on this Python and its cryptofeed."""
        names = ["ingest", "paced", "close", "reader", "influx", "ship", "aggregate"]
        if self._quick:
            names = ["close"]
        section = Section(title="Benchmarks beside cryptofeed 2 and influxdb-client")
        return self._measure(section, names, ["--repeat", "3"], sys.executable, "python", 420.0)

    def bench3(self) -> Section:
        """Run the tests beside cryptofeed 3, on its Python."""
        section = Section(title="Benchmarks beside cryptofeed 3")
        peer = self._peer(section)
        if peer is None:
            return section
        names = ["paced"] if self._quick else ["ingest", "paced"]
        return self._measure(section, names, ["--repeat", "2"], peer, PEER_3, 300.0)

    def growth(self) -> Section:
        """CPU, memory and lag with few and more pairs."""
        section = Section(title="Growth: 50 and 164 pairs × 5 timeframes and mark prices, speed 1")
        seconds = "20" if self._quick else "70"
        more = ["--growth-seconds", seconds, "--sizes", "50", "164"]
        return self._measure(section, ["growth"], more, sys.executable, "python", 360.0)

    def soak(self) -> Section:
        """Ten minutes with all pairs."""
        section = Section(
            title="Ten minutes with 530 pairs × 5 timeframes and mark prices, speed 1"
        )
        more = ["--soak-seconds", "20" if self._quick else "600", "--pairs", "530"]
        return self._measure(section, ["soak"], more, sys.executable, "python", 840.0)

    def _measure(
        self,
        section: Section,
        names: Sequence[str],
        more: Sequence[str],
        python: str,
        shown: str,
        limit_s: float,
    ) -> Section:
        # One by one: what breaks takes nothing else with it.
        for name in names:
            done = run(
                ["-m", "tests.bench", name, "--json", *more],
                limit_s,
                python=python,
                log=self._logs / f"{shown}-{name}.log",
                shown_python=shown,
            )
            section.took(done)
            report = _json(done)
            if done.code != 0 or not report:
                section.failed(f"`{name}`", done)
                continue
            for table in report["sections"].values():
                met = [row["met"] for row in table["rows"] if row["met"] is not None]
                section.goals += len(met)
                section.unmet += met.count(False)
                for row in table["rows"]:
                    if row.get("missing") or row.get("wrong"):
                        section.failures.append(f"{row['what']}: candles are missing or wrong")
                section.body += ["", f"### {table['title']}", "", *markdown(_bench_rows(table))]
                section.body += ["", *(f"* {note}" for note in table["notes"])]
            environment = report["environment"]
            facts = ("python", "cryptofeed", "influxdb-client", "load")
            line = ", ".join(f"{fact} {environment[fact]}" for fact in facts)
            section.body += ["", f"_{line} at the start_"]
        return section

    # --- the other Python -------------------------------------------------------------------------

    def _peer(self, section: Section) -> str | None:
        """A Python with cryptofeed 3 and ourselves: the one that was given, or one made now."""
        if self._peer_3 is not None:
            return self._peer_3
        python = PEER_VENV / "bin" / "python"
        stamp = PEER_VENV / "proofs.stamp"
        if stamp.exists():
            return str(python)
        found = shutil.which(PEER_3)
        if found is None:
            section.failures.append(f"cryptofeed 3 was not measured: there is no {PEER_3} here")
            return None
        pins = {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
        for step, (program, arguments) in enumerate(
            (
                (found, ["-m", "venv", str(PEER_VENV)]),
                (str(python), ["-m", "pip", "install", "--quiet", "-e", f"{ROOT}[dev]"]),
            )
        ):
            log = self._logs / f"venv-{step}.log"
            done = run(arguments, 300.0, python=program, log=log, environment=pins)
            section.seconds += done.seconds
            if done.code != 0:
                section.failed("cryptofeed 3 was not measured: its environment", done)
                return None
        stamp.touch()
        return str(python)


def _fault_rows(rows: Sequence[Row], broken: Sequence[tuple[str, str]]) -> Table:
    table = [["fault", "lost", "noticed after s", "whole after s", "others disturbed"]]
    for row in rows:
        times = [
            "-" if value is None else f"{value:.1f}"
            for value in (row.noticed_after_s, row.whole_after_s)
        ]
        table.append([row.fault, row.lost, *times, row.others_disturbed])
    table += [[name, f"**NOT SHOWN**: {why}", "-", "-", "?"] for name, why in broken]
    return table


def _bench_rows(table: Mapping[str, Any]) -> Table:
    fixed = ("what", "goal", "met")
    names = list(dict.fromkeys(k for row in table["rows"] for k in row if k not in fixed))
    verdicts = {None: "", True: "yes", False: "**NO**"}
    return [
        ["", *names, "goal", "met"],
        *(
            [
                row["what"].strip(),
                *("" if row.get(name) is None else _number(row[name], None) for name in names),
                row["goal"] or "",
                verdicts[row["met"]],
            ]
            for row in table["rows"]
        ),
    ]


def _number(value: object, digits: int | None) -> str:
    if not isinstance(value, int | float):
        return str(value)
    if digits is None:
        digits = 0 if value == int(value) or abs(value) >= 1_000 else 1 if abs(value) >= 20 else 2
    return f"{value:,.{digits}f}"


def _soak_words(outcome: Mapping[str, Any]) -> str:
    verdict = outcome["verdict"]
    return (
        f"Random faults one after another: {outcome['exchange_hours']:g} exchange hours in "
        f"{outcome['wall_s']:.0f} s, {sum(outcome['faults'].values())} faults and {outcome['kills']} kills; "
        f"{verdict['published']:,} candles published, {verdict['identical']:,} stored as they were, "
        f"{len(verdict['wrong'])} wrong; RSS by quarters "
        f"{', '.join(f'{mb:.0f}' for mb in outcome['rss_mb'])} MB."
    )


def _outcomes(junit: Path) -> tuple[list[tuple[str, str]], list[str], int]:
    """What a run of tests came to: those that failed with why, those that were skipped, how many passed."""
    if not junit.exists():
        return [], [], 0
    broken: list[tuple[str, str]] = []
    skipped: list[str] = []
    passed = 0
    for case in ET.parse(junit).iter("testcase"):  # noqa: S314 - pytest's own
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name', '')}"
        bad = [child for child in case if child.tag in ("failure", "error")]
        if bad:
            broken.append((name, (bad[0].get("message") or "?").splitlines()[0][:200]))
        elif case.find("skipped") is not None:
            skipped.append(name)
        else:
            passed += 1
    return broken, skipped, passed


def _json(done: Done) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(done.output)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}
