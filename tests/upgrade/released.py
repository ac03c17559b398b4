"""The released version, from this repository's history, in an environment of its own.

It is kept between runs in $MARKETFEED_TEST_CACHE or ~/.cache/marketfeed-tests. What marketfeed needs comes
from the environment of these tests, behind its own packages: `marketfeed` and `reader` are the released ones.
"""

import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from influxd import cache_dir
from proc_commands import TIMEOUT_S, environment

ROOT: Final = Path(__file__).parents[2]
COMMIT: Final = "c63af644f1f9384019a4b7babbf6adac0e5af874"
"""What is released: journals of version 2, ledgers of version 1."""
NEEDS_ITSELF: Final = ("pydantic-settings", "python-dotenv")
"""Its requirements that are none of ours."""
INSTALL_S: Final = 300.0


class NotHereError(RuntimeError):
    """The commit is neither in this repository nor where it came from."""


class Released(NamedTuple):
    """The environment at `home`."""

    home: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.home / "bin" / "python"

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line of a `marketfeed` command."""
        return [str(self.home / "bin" / "marketfeed"), *map(str, arguments)]

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env=own_environment(),
        )


def own_environment(**more: str) -> dict[str, str]:
    """The environment for it: no path that leads back to this tree."""
    plain: Mapping[str, str] = environment()
    kept = {name: value for name, value in plain.items() if name != "PYTHONPATH"}
    return kept | {"PYTHONSAFEPATH": "1"} | more


def obtain() -> Released:
    """Install it, if that is not done yet. Raises NotHereError, and RuntimeError when pip cannot."""
    made_of = f"{COMMIT} {NEEDS_ITSELF} {sys.prefix} {sys.version}"
    key = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    home = cache_dir().absolute() / f"released-{key}"
    home.parent.mkdir(parents=True, exist_ok=True)
    found = Released(home)
    # Tests of several runs may want it at once.
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            _install(found)
            (home / "complete").touch()
    output = _run(
        found.python, "-c", "import marketfeed, reader; print(marketfeed.__file__, reader.__file__)"
    )
    for name in output.split():
        if not Path(name).is_relative_to(home):
            raise RuntimeError(f"found {name}, expected a file below {home}")
    return found


def _install(found: Released) -> None:
    _require_commit()
    _run(sys.executable, "-m", "venv", "--without-pip", found.home)
    # With the build backend at hand nothing is asked of a package index.
    offline = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    with tempfile.TemporaryDirectory(prefix="marketfeed-released-") as name:
        archive = Path(name) / "source.tar"
        _run("git", "-C", ROOT, "archive", f"--output={archive}", COMMIT)
        _run("tar", "-xf", archive, "-C", name)
        archive.unlink()
        pip = [sys.executable, "-m", "pip", "--python", str(found.python), "install", "--quiet"]
        _run(*pip, "--no-deps", *offline, name)
        # What it needs and we do not any more, as it pinned it.
        pinned = Path(name) / "constraints.txt"
        _run(*pip, "--no-deps", "--constraint", pinned, *NEEDS_ITSELF)
    ours = sysconfig.get_paths()["purelib"]
    own = _run(found.python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])")
    # A directory that is named so is behind this one, and its own `.pth` files are not read.
    (Path(own.strip()) / "dependencies.pth").write_text(f"{ours}\n")


def _require_commit() -> None:
    if _has_commit():
        return
    try:
        _run("git", "-C", ROOT, "fetch", "--quiet", "--depth", "1", "origin", COMMIT)
    except RuntimeError as error:
        raise NotHereError(str(error)) from error
    if not _has_commit():
        raise NotHereError("it was fetched, and is not here")


def _has_commit() -> bool:
    look = ["git", "-C", str(ROOT), "cat-file", "-e", f"{COMMIT}^{{commit}}"]
    try:
        return subprocess.run(look, capture_output=True, check=False).returncode == 0
    except OSError as error:
        raise NotHereError(f"git: {error}") from error


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        timeout=INSTALL_S,
        cwd="/",
        env=own_environment(),
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr or done.stdout}")
    return done.stdout
