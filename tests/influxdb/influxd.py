"""A real InfluxDB for tests: Debian's influxd 1.6.7 on private ports and directories.

The package is fetched once into $MARKETFEED_TEST_CACHE (~/.cache/marketfeed-tests) and unpacked there;
nothing is installed and no root is needed. An `influxd` of version 1 on the PATH is taken as it is.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import urllib3

from tests.ports import held_port

PACKAGE = "influxdb"
READY_S = 180.0
_APT = ("apt-get", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2")

CONFIG = """
reporting-disabled = true
bind-address = "127.0.0.1:0"
[meta]
  dir = "{home}/meta"
[data]
  dir = "{home}/data"
  wal-dir = "{home}/wal"
  query-log-enabled = false
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
  auth-enabled = {auth}
  max-row-limit = {max_rows}
  max-body-size = {max_body_bytes}
[monitor]
  store-enabled = false
[subscriber]
  enabled = false
[continuous_queries]
  enabled = false
"""


class InfluxdError(Exception):
    """No influxd can be found, or it does not do what was asked."""


def cache_dir() -> Path:
    """Where tests keep what they fetched."""
    name = os.environ.get("MARKETFEED_TEST_CACHE", "~/.cache/marketfeed-tests")
    return Path(name).expanduser()


def obtain() -> Path:
    """Return the path of an influxd of version 1, fetching it if need be. Raises InfluxdError."""
    installed = shutil.which("influxd")
    if installed is not None and "InfluxDB v1." in _run(installed, "version"):
        return Path(installed)
    return unpacked(PACKAGE) / "usr" / "bin" / "influxd"


def unpacked(package: str) -> Path:
    """Return the directory of an unpacked Debian package, fetching it if need be. Raises InfluxdError."""
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / package
    with (cache / f"{package}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "usr").is_dir():
            fresh = cache / f"{package}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            _unpack(package, fresh)
            shutil.rmtree(home, ignore_errors=True)
            fresh.rename(home)
    return home


def _unpack(package: str, folder: Path) -> None:
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise InfluxdError(f"no {tool} to fetch {package} with")
    try:
        _run(*_APT, "download", package, cwd=folder)
    except InfluxdError:
        # No package lists yet, or old ones: take fresh ones into a directory of our own.
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True)
        own = ("-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={folder}/cache")
        _run(*_APT, *own, "update", cwd=folder)
        _run(*_APT, *own, "download", package, cwd=folder)
        shutil.rmtree(lists)
        shutil.rmtree(folder / "cache", ignore_errors=True)
    (archive,) = folder.glob("*.deb")
    _run("dpkg", "-x", archive, folder)
    archive.unlink()


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, cwd=cwd
    )
    if done.returncode != 0:
        output = " ".join((done.stderr or done.stdout).split())[-500:]
        raise InfluxdError(f"{command[0]} exited {done.returncode}: {output}")
    return done.stdout


def _is_stopped(task: Path) -> bool:
    """Whether a thread of a process stands still; one that is gone does."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return True


def quoted(name: str) -> str:
    """A name as InfluxQL takes it, whatever it is made of."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


class Influxd:
    """One influxd process with its data below `home`. Start it, or use it as a context manager.

    It keeps its port and data over `stop`, `kill` and `start`. `auth`: only users may ask. `max_rows`:
    how many rows an answer may have, 0 for any number. `max_body_bytes`: how large a write may be.
    """

    def __init__(
        self,
        home: Path,
        *,
        auth: bool = False,
        max_rows: int = 0,
        max_body_bytes: int = 25_000_000,
    ) -> None:
        self._binary = obtain()
        self._home = home
        self._auth = auth
        self._max_rows = max_rows
        self._max_body_bytes = max_body_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._http = urllib3.PoolManager(retries=False, timeout=180.0)
        self.port = held_port()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has been started and not stopped."""
        return self._process is not None

    # --- the process ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start and wait until it answers."""
        self._home.mkdir(parents=True, exist_ok=True)
        config, log = self._home / "influxdb.conf", self._home / "log"
        config.write_text(
            CONFIG.format(
                home=self._home,
                port=self.port,
                auth="true" if self._auth else "false",
                max_rows=self._max_rows,
                max_body_bytes=self._max_body_bytes,
            )
        )
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [self._binary, "-config", config],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"HOME": str(self._home), "PATH": os.environ["PATH"]},
            )
        deadline_s = time.monotonic() + READY_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.kill()
                raise InfluxdError(f"influxd did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.01)

    def _is_ready(self) -> bool:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return self._http.request("GET", f"{self.url}/ping").status == 204
        return False

    def stop(self) -> None:
        """Stop cleanly (SIGTERM)."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang: connections are taken, nothing is answered (SIGSTOP). Returns when it does."""
        os.kill(self.pid, signal.SIGSTOP)
        # A thread that is running on another core may answer one question more.
        while not all(_is_stopped(task) for task in Path(f"/proc/{self.pid}/task").iterdir()):
            time.sleep(0.001)

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, with_signal: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(with_signal)
        try:
            process.wait(READY_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._http.clear()

    # --- its content ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def database(self, name: str) -> Iterator[str]:
        """A database of that name, empty, dropped afterwards."""
        self.query(f"CREATE DATABASE {quoted(name)}")
        yield name
        if self.running:
            self.query(f"DROP DATABASE {quoted(name)}")

    def write(self, database: str, lines: Iterable[str]) -> None:
        """Write lines with times in ms. Raises InfluxdError unless all are stored."""
        status, body = self.post_lines(database, "\n".join(lines).encode())
        if status != 204:
            raise InfluxdError(f"write: {status} {body[:500]!r}")

    def post_lines(self, database: str, lines: bytes, precision: str = "ms") -> tuple[int, bytes]:
        """Post lines as they are; the status and body of the answer."""
        fields = {"db": database, "precision": precision}
        url = f"{self.url}/write?{urlencode(fields)}"
        answer = self._http.request("POST", url, body=lines)
        return answer.status, answer.data

    def query(
        self,
        text: str,
        database: str | None = None,
        *,
        user: str | None = None,
        **parameters: str | int,
    ) -> list[dict[str, Any]]:
        """All series that InfluxQL statements answer with, times in ms. Raises InfluxdError.

        `user` is `name:password`.
        """
        fields = {"q": text, "epoch": "ms", "params": json.dumps(parameters)}
        if database is not None:
            fields["db"] = database
        headers = None if user is None else urllib3.make_headers(basic_auth=user)
        answer = self._http.request(
            "POST", f"{self.url}/query", fields=fields, encode_multipart=False, headers=headers
        )
        body = json.loads(answer.data)
        errors = [body, *body.get("results", ())]
        for found in errors:
            if "error" in found:
                raise InfluxdError(f"query: {answer.status} {found['error']}")
        return [series for result in body["results"] for series in result.get("series", ())]
