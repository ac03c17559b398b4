"""A real Chromium for tests: Debian's, with its driver and whatever libraries this machine lacks.

The packages are fetched once into $MARKETFEED_TEST_CACHE (~/.cache/marketfeed-tests) and unpacked there;
nothing is installed and no root is needed. A `chromium` with a `chromedriver` on the PATH is taken as it is.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

PACKAGES = ("chromium", "chromium-driver")
_APT = ("-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2")
_READY = "complete"


class BrowserError(Exception):
    """There is no browser to be had."""


def cache_dir() -> Path:
    """Where tests keep what they fetched."""
    name = os.environ.get("MARKETFEED_TEST_CACHE", "~/.cache/marketfeed-tests")
    return Path(name).expanduser()


class Found:
    """Programs, and the directories of the libraries that they need beside the machine's own."""

    def __init__(self, chromium: Path, driver: Path, libraries: Sequence[Path]) -> None:
        self.chromium = chromium
        self.driver = driver
        self.libraries = libraries


def obtain() -> Found:
    """Return a Chromium and its driver, fetching them if need be. Raises BrowserError."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium and driver:
        return Found(Path(chromium), Path(driver), ())
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / "chromium"
    with (cache / "chromium.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / _READY).exists():
            fresh = cache / "chromium.new"
            for old in (fresh, home):
                shutil.rmtree(old, ignore_errors=True)
            fresh.mkdir()
            _fetch(fresh)
            (fresh / _READY).touch()
            fresh.rename(home)
    libraries = sorted({path.parent for path in (home / "usr" / "lib").rglob("*.so*")})
    return Found(
        home / "usr" / "lib" / "chromium" / "chromium",
        home / "usr" / "bin" / "chromedriver",
        libraries,
    )


def _fetch(folder: Path) -> None:
    """Unpack the packages below `folder`, and of those that they need the ones this machine lacks."""
    try:
        _download(folder, ())
    except BrowserError:
        # No package lists yet, or old ones: take fresh ones into a directory of our own.
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True)
        own = ("-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={folder}/cache")
        _run("apt-get", *_APT, *own, "update", cwd=folder)
        _download(folder, own)
        shutil.rmtree(lists)
        shutil.rmtree(folder / "cache", ignore_errors=True)
    for package in folder.glob("*.deb"):
        _run("dpkg", "-x", package, folder)
        package.unlink()


def _download(folder: Path, options: Sequence[str]) -> None:
    # A simulation: what would be installed here, which needs no root.
    planned = _run(
        "apt-get", *_APT, *options, "install", "--simulate", "--no-install-recommends", *PACKAGES
    )
    names = re.findall(r"^Inst (\S+)", planned, re.MULTILINE)
    _run("apt-get", *_APT, *options, "download", *names, cwd=folder)


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[-500:]
        raise BrowserError(f"{command[0]} exited {done.returncode}: {said}")
    return done.stdout


@contextlib.contextmanager
def browser(
    home: Path, width: int = 1280, height: int = 900, dark: bool = False
) -> Iterator[webdriver.Chrome]:
    """A headless Chromium with a fresh profile below `home`, of a window's inner size."""
    found = obtain()
    options = webdriver.ChromeOptions()
    options.binary_location = str(found.chromium)
    for argument in (
        "--headless=new",
        # Chromium's own sandbox needs rights that root and containers lack; the pages are ours.
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={home / 'profile'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    environment = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "HOME": str(home),
        "LD_LIBRARY_PATH": os.pathsep.join(str(path) for path in found.libraries),
        # The driver is given: selenium shall look for none.
        "SE_OFFLINE": "true",
    }
    service = Service(str(found.driver), env=environment)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        # A headless window is never narrower than 500 px; a device is.
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme(driver, dark)
        yield driver
    finally:
        driver.quit()


def scheme(driver: webdriver.Chrome, dark: bool) -> None:
    """Prefer dark or light colours from now on."""
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
    )


def complaints(driver: webdriver.Chrome) -> list[dict[str, Any]]:
    """What the console has said since it was asked last, but for information."""
    return [entry for entry in driver.get_log("browser") if entry["level"] in {"WARNING", "SEVERE"}]


def pretty(entries: list[dict[str, Any]]) -> str:
    """Console entries for a failure's text."""
    return json.dumps(entries, indent=1)
