"""A real Chromium for tests: Debian's, with its driver and whatever libraries this machine lacks.

The packages are fetched once into $MARKETFEED_TEST_CACHE (~/.cache/marketfeed-tests) and unpacked there;
nothing is installed and no root is needed. A `chromium` with a `chromedriver` on the PATH is taken as it is.
"""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

PACKAGES = ("chromium", "chromium-driver")
_APT = ("-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2")
_READY = "complete"
AXE_VERSION = "4.14.1"


class BrowserError(Exception):
    """No browser can be found."""


def cache_dir() -> Path:
    """Where tests keep what they fetched."""
    name = os.environ.get("MARKETFEED_TEST_CACHE", "~/.cache/marketfeed-tests")
    return Path(name).expanduser()


class Chrome(webdriver.Chrome):
    """A browser whose window has the size of a device's."""

    def resize(self, width: int, height: int) -> None:
        """Become so large (CSS pixels). A headless window is never narrower than 500; a device is."""
        self.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )


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
    # Some packages of Debian 12 put theirs below /lib, which is a link on an installed system.
    places = (home / "usr" / "lib", home / "lib")
    libraries = sorted({path.parent for place in places for path in place.rglob("*.so*")})
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
    if shutil.which(str(command[0])) is None:
        raise BrowserError(f"no {command[0]} to fetch it with: on Debian, apt install {command[0]}")
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode != 0:
        output = " ".join((done.stderr or done.stdout).split())[-500:]
        raise BrowserError(f"{command[0]} exited {done.returncode}: {output}")
    return done.stdout


@contextlib.contextmanager
def browser(
    home: Path, width: int = 1280, height: int = 900, dark: bool = False
) -> Iterator[Chrome]:
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
    if not Path("/etc/fonts/fonts.conf").exists():
        # Without a font Chromium crashes; those unpacked beside it are found by no default.
        environment["FONTCONFIG_FILE"] = str(_fonts(home))
    service = Service(str(found.driver), env=environment)
    driver = Chrome(options=options, service=service)
    try:
        driver.resize(width, height)
        scheme(driver, dark)
        yield driver
    finally:
        driver.quit()


def _fonts(home: Path) -> Path:
    """A file for fontconfig that names the fonts of the unpacked packages."""
    file = home / "fonts.conf"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">\n'
        f"<fontconfig><dir>{cache_dir() / 'chromium' / 'usr/share/fonts'}</dir>"
        f"<cachedir>{home / 'fonts'}</cachedir></fontconfig>\n"
    )
    return file


def scheme(driver: Chrome, dark: bool) -> None:
    """Prefer dark or light colours from now on."""
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
    )


def complaints(driver: Chrome) -> list[dict[str, Any]]:
    """What the console has logged since it was asked last, but for information."""
    return [entry for entry in driver.get_log("browser") if entry["level"] in {"WARNING", "SEVERE"}]


def axe() -> str:
    """The source of axe-core, which judges pages by WCAG: fetched once from npm. Raises BrowserError."""
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"axe-core-{AXE_VERSION}.min.js"
    with (cache / "axe-core.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                _run("npm", "pack", "--silent", f"axe-core@{AXE_VERSION}", cwd=Path(folder))
                with tarfile.open(next(Path(folder).glob("*.tgz"))) as package:
                    found = package.extractfile("package/axe.min.js")
                    assert found is not None
                    source = found.read()
                fresh = Path(folder) / "axe.min.js"
                fresh.write_bytes(source)
                fresh.rename(file)
    return file.read_text(encoding="utf-8")


def axe_violations(driver: Chrome) -> list[str]:
    """What axe-core finds wrong with the page as it stands, one line each."""
    # By the driver and not by the page, whose policy would let no such script in.
    driver.execute_script(axe())
    found = driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run({resultTypes: ['violations']}).then((r) => done(r.violations), (e) => done(String(e)))"
    )
    if isinstance(found, str):
        raise BrowserError(f"axe-core: {found}")
    return [
        f"{one['id']}: {one['help']}: {'; '.join(' '.join(node['target']) for node in one['nodes'])}"
        for one in found
    ]
