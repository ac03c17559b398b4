"""The unit files: hardened as far as systemd can check, without a mistake, and what they start exists."""

import configparser
import os
import re
import shlex
import subprocess
from pathlib import Path

import proc_tools
import pytest
from proc_commands import run_marketfeed

from marketfeed.service.systemd import BEATS_TO_A_WATCHDOG
from marketfeed.settings.model import JournalSettings

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNITS = sorted(SYSTEMD.glob("*.service"))
MOST_EXPOSED = 1.2


WITHOUT_RUN = "systemd-analyze makes /run/systemd, which only root may where systemd does not run"


def analyze(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    if os.geteuid() != 0 and not Path("/run/systemd").is_dir() and not os.environ.get("CI"):
        pytest.skip(WITHOUT_RUN)
    tool = proc_tools.systemd_analyze()
    return subprocess.run(
        [tool.path, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=180.0,
        env=os.environ | tool.environment() | {"SYSTEMD_COLORS": "0"} | variables,
    )


def settings(unit: Path) -> configparser.SectionProxy:
    """The [Service] section; of a key that comes twice the last."""
    parser = configparser.RawConfigParser(strict=False, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return parser["Service"]


def test_there_are_three() -> None:
    assert [unit.name for unit in UNITS] == [
        "marketfeed-aggregator.service",
        "marketfeed-bots.service",
        "marketfeed.service",
    ]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_exposure(unit: Path) -> None:
    done = analyze("security", "--offline=true", "--threshold=12", unit)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) <= MOST_EXPOSED, done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_finds_no_mistake(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text()
    (program,) = re.findall(r"^ExecStart=(\S+)", text, re.MULTILINE)
    # That program is not installed here; everything else stays as it is.
    (tmp_path / unit.name).write_text(text.replace(f"ExecStart={program}", "ExecStart=/bin/true"))
    done = analyze(
        "verify",
        "--man=no",
        tmp_path / unit.name,
        SYSTEMD_UNIT_PATH=f"{tmp_path}:{proc_tools.systemd_units()}",
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_what_the_modules_expect_of_it(unit: Path) -> None:
    service = settings(unit)
    assert service["Type"] == "notify"
    assert service["User"] == service["Group"] == "marketfeed"
    assert service["UMask"] == "0027"
    assert service["StateDirectoryMode"] == "0750"
    journal = JournalSettings().path
    assert journal.parent == Path("/var/lib") / service["StateDirectory"]
    # Three calls that wait for a locked file, 5 s each, and the heartbeat's own.
    watchdog_s = float(service["WatchdogSec"])
    assert watchdog_s / BEATS_TO_A_WATCHDOG + 4 * 5 < watchdog_s
    assert service["LimitCORE"] == "0"
    assert service["Restart"] == "always"


def test_the_collectors_unit_starts_a_command_that_is_there() -> None:
    program, *arguments = shlex.split(settings(SYSTEMD / "marketfeed.service")["ExecStart"])
    assert Path(program).name == "marketfeed"
    done = run_marketfeed(*arguments, "--help")
    assert done.returncode == 0, done.stderr


def test_the_user_is_made_by_sysusers() -> None:
    lines = (SYSTEMD / "marketfeed.sysusers.conf").read_text().splitlines()
    (line,) = [line for line in lines if line and not line.startswith("#")]
    assert line.split()[:2] == ["u", "marketfeed"]
