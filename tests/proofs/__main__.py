"""`python -m tests.proofs [SECTION]…`: run the proofs and write PROOFS.md from what they report.

Every figure comes from this run. A section that fails is shown as failed, with its words, and the run goes
on; the page is written at the end, in one step. Exit 0 when all sections were good, 1 when one was not.
"""

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.proofs.commands import ROOT
from tests.proofs.section import Section, markdown
from tests.proofs.sections import Proofs

SECTIONS: Final = (
    *("faults", "upgrades", "starts", "rounds", "listings", "week", "mixed"),
    *("kills", "forwards", "outages", "refusals", "reconciled"),
    *("bench", "bench3", "growth", "soak"),
)
_LIBRARIES: Final = (
    *("cryptofeed", "influxdb-client", "aiohttp", "uvloop", "msgspec", "pandas", "numpy"),
)
_NEVER: Final = """
## What was never run

Nothing on this page has talked to Binance: the exchange is the simulator of this repository, on loopback,
and InfluxDB is Debian's influxd 1.6.7, with a front that answers as 2.7 does. Two commands prove the rest on
the host that is to collect:

```console
$ marketfeed check --live 120          # connects, subscribes, and looks at two minutes of real frames
$ marketfeed audit --all --days 1      # the next morning: every stored candle against Binance's own
```
"""


def main() -> int:
    """Run the chosen sections and write the page."""
    arguments = _arguments()
    wanted = [name for name in SECTIONS if name in (arguments.sections or SECTIONS)]
    logs = arguments.logs.absolute()
    proofs = Proofs(logs, arguments.peer_python, quick=arguments.quick)
    head = _head(arguments.quick, wanted)
    started_s = time.monotonic()
    sections: list[tuple[str, Section]] = []
    for name in wanted:
        _print(f"[{time.monotonic() - started_s:5.0f} s] {name}")
        before_s = time.monotonic()
        try:
            section = getattr(proofs, name)()
        except Exception as error:
            section = Section(title=name, failures=[f"it broke: {error!r}"])
        section.seconds = time.monotonic() - before_s
        for failure in section.failures:
            _print(f"          {name}: {failure.splitlines()[0]}")
        sections.append((name, section))
    page = _page(head, sections, time.monotonic() - started_s)
    _write(arguments.output, page)
    _print(f"[{time.monotonic() - started_s:5.0f} s] written: {arguments.output}; logs in {logs}")
    return 1 if any(section.failures for _, section in sections) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.proofs", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="a few minutes, to try it")
    parser.add_argument("--peer-python", metavar="PYTHON", help="one that has cryptofeed 3")
    parser.add_argument("--output", type=Path, metavar="FILE", help="PROOFS.md, or PROOFS-quick.md")
    parser.add_argument("--logs", type=Path, metavar="DIR", default=ROOT / ".cache" / "proofs")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {unknown[0]!r}: {', '.join(SECTIONS)} are there")
    if arguments.output is None:
        whole = not (arguments.quick or arguments.sections)
        # A trial must not take the place of the proofs.
        arguments.output = ROOT / "PROOFS.md" if whole else arguments.logs / "PROOFS-part.md"
    return arguments


def _head(quick: bool, wanted: list[str]) -> list[str]:
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = " with changes" if _git("status", "--porcelain", "--untracked-files=no") else ""
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    head = [
        "# Proofs",
        "",
        (
            "Written by `make proofs` (`python -m tests.proofs`): every figure is from that one run. "
            "Compare ratios rather than figures: both sides of a ratio ran on the same machine, by turns."
        ),
        "",
        *markdown(
            [
                ["", ""],
                ["when", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"],
                ["commit", f"{commit}{changed}"],
                ["machine", f"{_cpu()}, {os.cpu_count()} cores, {memory:.0f} GiB, {_disk()}"],
                ["system", f"{platform.system()} {platform.release()}"],
                ["Python", f"{platform.python_version()}; {libraries}"],
                ["load at the start", f"{os.getloadavg()[0]:.2f} (of {os.cpu_count()})"],
            ]
        ),
    ]
    if quick:
        head[2:2] = ["**A quick trial: these figures are no proofs.**", ""]
    if len(wanted) < len(SECTIONS):
        left = ", ".join(name for name in SECTIONS if name not in wanted)
        head += ["", f"**Not run: {left}.**"]
    return head


def _page(head: list[str], sections: list[tuple[str, Section]], lasted_s: float) -> str:
    overview = [["section", "", "minutes"]]
    for _, section in sections:
        verdict = "**not good**" if section.failures else "good"
        if section.unmet:
            verdict += f", **{section.unmet} of {section.goals} goals not met**"
        overview.append([section.title, verdict, f"{section.seconds / 60:.1f}"])
    overview.append(["together", "", f"{lasted_s / 60:.1f}"])
    lines = [*head, "", *markdown(overview), _NEVER.rstrip()]
    for _, section in sections:
        lines += ["", f"## {section.title}", ""]
        for failure in section.failures:
            lines += [f"**Not good**: {failure}", ""]
        if section.commands:
            lines += ["```console", *(f"$ {command}" for command in section.commands), "```", ""]
        lines += section.body
    return "\n".join(lines).rstrip() + "\n"


def _write(path: Path, page: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _disk() -> str:
    """The file system of the logs' directory, where journals of tests lie, too."""
    done = subprocess.run(
        ["stat", "--file-system", "--format=%T", "/tmp"],  # noqa: S108 - its kind only
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "?"


def _print(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
