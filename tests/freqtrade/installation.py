"""Freqtrade of PyPI in an environment of its own, and the wheel of `make dist` installed beside it.

Feeders pin the wheel, so bots of `prove.py` run what it installed: nothing here is on their path.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from influxd import cache_dir

from marketfeed import __version__

ROOT: Final = Path(__file__).parents[2]
VERSION: Final = "2026.9"
REQUIREMENTS: Final = (
    f"freqtrade=={VERSION}",
    f"freqtrade-client=={VERSION}",
    # What FreqAI's LightGBM models import; xgboost itself would bring half a gigabyte of CUDA.
    "lightgbm",
    "xgboost-cpu",
    "scikit-learn",
    "datasieve>=0.1.5",
    "joblib",
)
COLLECTORS: Final = ("cryptofeed", "uvloop", "influxdb_client", "sdnotify", "typer", "yaml")
"""Packages that only the collector needs."""
_LOOK: Final = f"""
import json, os, sys
import reader
loaded = [name for name in {COLLECTORS!r} if name in sys.modules]
import reader.freqtrade
os.environ["MARKETFEED_URL"] = "sqlite:////nowhere/journal.db"
reader.freqtrade.install()
from freqtrade.exchange import Binance
seam = hasattr(Binance._async_get_candle_history, "marketfeed_original")
print(json.dumps({{"file": reader.__file__, "loaded": loaded, "seam": seam}}))
"""


class Wheel(NamedTuple):
    """What the wheel did to Freqtrade's environment; versions by package."""

    python: Path
    file: Path
    before: Mapping[str, str]
    after: Mapping[str, str]
    check_before: str
    check: str
    """What `pip check` printed, before and after."""
    reader: str
    """Where `import reader` found it."""
    loaded: list[str]
    """Those of `COLLECTORS` that `import reader` imported."""
    seam: bool
    """Whether `reader.freqtrade.install()` has taken the place of this Freqtrade's downloads."""

    @property
    def changed(self) -> list[str]:
        """Packages that Freqtrade had and that are gone or another version now."""
        return [
            f"{name} {version} -> {self.after.get(name, 'gone')}"
            for name, version in self.before.items()
            if self.after.get(name) != version
        ]

    @property
    def added(self) -> list[str]:
        """Packages that came with the wheel."""
        return [f"{name} {self.after[name]}" for name in sorted({*self.after} - {*self.before})]


def install_wheel(home: Path) -> Wheel:
    """Build the wheel, install it into a fresh copy of Freqtrade's environment below `home`."""
    _call("make", "--silent", "--directory", ROOT, "dist")
    file = ROOT / "dist" / f"marketfeed-{__version__}-py3-none-any.whl"
    python = home / "bin" / "python"
    shutil.copytree(freqtrade_home(), home, symlinks=True, copy_function=_link)
    before, check_before = _packages(python), _check(python)
    _pip(python, "install", "--quiet", file)
    # As bots run: from another directory, with no path of this tree.
    found = json.loads(_call(python, "-I", "-c", _LOOK, cwd=home).splitlines()[-1])
    return Wheel(
        python, file, before, _packages(python), check_before, _check(python),
        found["file"], found["loaded"], found["seam"],
    )  # fmt: skip


def freqtrade_home() -> Path:
    """Return the environment that has Freqtrade alone, built at the first call (a minute)."""
    digest = hashlib.sha256("\n".join(REQUIREMENTS).encode()).hexdigest()[:8]
    # Another list, another directory: one that is in use elsewhere is never touched.
    home = cache_dir() / f"freqtrade-{VERSION}-{digest}"
    home.parent.mkdir(parents=True, exist_ok=True)
    stamp = home / "marketfeed.stamp"
    with (home.parent / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists():
            shutil.rmtree(home, ignore_errors=True)
            # Not the environment that the tests run in, but the Python below it.
            base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
            _call(base, "-m", "venv", home)
            _pip(home / "bin" / "python", "install", "--quiet", *REQUIREMENTS)
            stamp.touch()
    return home


def _link(source: str, target: str) -> None:
    """Link a file, or copy it to another file system; pip and Python replace files, they change none."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copy2(source, target)


def _packages(python: Path) -> dict[str, str]:
    rows: list[dict[str, str]] = json.loads(_pip(python, "list", "--format", "json"))
    return {row["name"]: row["version"] for row in rows}


def _check(python: Path) -> str:
    """Return what `pip check` prints, whatever it ends with."""
    done = _run(python, "-m", "pip", "--disable-pip-version-check", "check")
    return done.stdout.strip()


def _pip(python: Path, *arguments: str | Path) -> str:
    return _call(python, "-m", "pip", "--disable-pip-version-check", *arguments)


def _call(*command: str | Path, cwd: Path = ROOT) -> str:
    done = _run(*command, cwd=cwd)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} exited {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def _run(*command: str | Path, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    # Pins of this project (PIP_CONSTRAINT) are not Freqtrade's.
    env: dict[str, Any] = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))
    }
    return subprocess.run(
        [str(part) for part in command],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
