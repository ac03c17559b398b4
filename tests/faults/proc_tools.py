"""Tools that a test needs and the machine may lack, from Debian's packages, unpacked into a cache.

Nothing is installed, and no privileges are needed. The cache is `$MARKETFEED_TEST_CACHE`, or
`~/.cache/marketfeed-tests`.
"""

import fcntl
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

TIMEOUT_S: Final = 300.0


class ToolError(RuntimeError):
    """A tool is not here, and could not be fetched."""


class Tool(NamedTuple):
    """A file of a package, and the directories in which the loader finds what it needs."""

    path: Path
    libraries: tuple[Path, ...]

    def environment(self) -> dict[str, str]:
        """Variables to run it with."""
        return {"LD_LIBRARY_PATH": ":".join(map(str, self.libraries))} if self.libraries else {}


@cache
def strace() -> Tool:
    """The system call tracer."""
    if found := shutil.which("strace"):
        return Tool(Path(found), ())
    root = _unpacked("strace", "libunwind8", "liblzma5")
    return Tool(root / "usr/bin/strace", _libraries(root))


@cache
def faketime() -> Tool:
    """The library that, preloaded, gives a process another wall clock time."""
    name = "libfaketimeMT.so.1"
    pattern = f"*/faketime/{name}"
    for path in Path("/usr/lib").glob(pattern):
        return Tool(path, ())
    for path in (_unpacked("libfaketime") / "usr/lib").glob(pattern):
        return Tool(path, ())
    raise ToolError(f"{name} is not in its package")


@cache
def systemd_analyze() -> Tool:
    """What judges unit files, with systemd's own units beside it."""
    if found := shutil.which("systemd-analyze"):
        return Tool(Path(found), ())
    root = _unpacked("systemd", with_needs=True)
    return Tool(root / "usr/bin/systemd-analyze", _libraries(root))


def systemd_units() -> Path:
    """The directory of systemd's own units."""
    found = [
        path
        for top in systemd_analyze().path.resolve().parents
        for path in (top / "lib/systemd/system", top / "usr/lib/systemd/system")
        if (path / "basic.target").exists()
    ]
    if not found:
        raise ToolError("systemd's own units are not beside systemd-analyze")
    return found[0]


def _libraries(root: Path) -> tuple[Path, ...]:
    return tuple(
        sorted(
            {path.parent for place in ("lib", "usr/lib") for path in (root / place).rglob("*.so*")}
        )
    )


def _unpacked(*packages: str, with_needs: bool = False) -> Path:
    home = os.environ.get("MARKETFEED_TEST_CACHE") or Path.home() / ".cache" / "marketfeed-tests"
    directory = Path(home).absolute() / packages[0]
    directory.mkdir(parents=True, exist_ok=True)
    root, done = directory / "root", directory / "done"
    with (directory / "lock").open("w") as lock:
        # Tests of several runs may want it at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            _fetch(directory, packages, with_needs)
            for package in directory.glob("*.deb"):
                _run("dpkg-deb", "--extract", str(package), str(root), cwd=directory)
            done.touch()
    return root


def _fetch(directory: Path, packages: tuple[str, ...], with_needs: bool) -> None:
    # Lists of its own: the system's may be absent, and need root to be fetched.
    for place in ("lists/partial", "archives/partial"):
        (directory / place).mkdir(parents=True, exist_ok=True)
    options = [
        "-qq",
        f"-oDir::State::lists={directory}/lists",
        f"-oDir::Cache={directory}",
        "-oDebug::NoLocking=true",
        "-oAPT::Sandbox::User=" + ("root" if os.geteuid() == 0 else ""),
    ]
    _run("apt-get", *options, "update", cwd=directory)
    if with_needs:
        # What apt would install here, were it asked to.
        plan = _run(
            "apt-get", *options, "--simulate", "--no-install-recommends", "install", *packages,
            cwd=directory,
        )  # fmt: skip
        packages = tuple(re.findall(r"^Inst (\S+)", plan, re.MULTILINE))
    _run("apt-get", *options, "download", *packages, cwd=directory)
    shutil.rmtree(directory / "lists")


def _run(*command: str, cwd: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except OSError as error:
        raise ToolError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise ToolError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout
