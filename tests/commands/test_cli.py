"""The commands as a user runs them: processes, exit codes, what they print."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marketfeed import __version__
from marketfeed.errors import JournalError
from marketfeed.journal.journal import KIND, Journal
from marketfeed.storage.reading import inspect
from tests.waiting import wait_until

TIMEOUT_S = 180.0


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MARKETFEED_")}
    return kept | {"COLUMNS": "200", "NO_COLOR": "1"}


def marketfeed(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "marketfeed", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env=environment() | variables,
    )


class Background:
    """A command that runs on; `line` waits for a line on its standard error."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "marketfeed", *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self.lines: list[str] = []

    def line(self, pattern: str) -> re.Match[str]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"no {pattern!r} in:\n{''.join(self.lines)}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stderr is not None
        self.lines += self.process.stderr.readlines()
        self.process.stderr.close()
        return self.process.wait(TIMEOUT_S)


@pytest.fixture(scope="module")
def simulator() -> Iterator[dict[str, str]]:
    running = Background("simulate", "--pairs=6", "--speed=60", "--timeframes=1m,3m", "--port=0")
    match = running.line(r"ws_url=(?P<ws_url>\S+) rest_url=(?P<rest_url>\S+)")
    yield match.groupdict()
    assert running.stop() == 0


@pytest.fixture
def config(tmp_path: Path, simulator: dict[str, str]) -> Path:
    path = tmp_path / "config.yaml"
    settings: dict[str, Any] = {
        "exchange": simulator
        | {"pairs": ["BTC/USDT:USDT", "NOSUCH/USDT:USDT"], "timeframes": ["1m"]},
        "journal": {"path": str(tmp_path / "journal.db"), "max_bytes": "64MB"},
        "status": {"port": 0},
        "history": {"days": 0},
    }
    path.write_text(json.dumps(settings))
    return path


def test_help_and_version() -> None:
    shown = marketfeed("--help")
    assert shown.returncode == 0
    for command in ("run", "demo", "check", "status", "simulate", "backup"):
        assert command in shown.stdout
        assert marketfeed(command, "--help").returncode == 0
    # A paragraph is filled to the window's width, wherever its lines end in the source.
    text = marketfeed("demo", "--help").stdout
    assert "and reads everything back; ends with a comparison" in text
    assert marketfeed("--version").stdout == f"marketfeed {__version__}\n"


def test_shell_completion(tmp_path: Path) -> None:
    """Installed and asked for in a real bash, as somebody who presses Tab after `marketfeed sta`."""
    script = """
        marketfeed --install-completion
        source ~/.bashrc
        COMP_WORDS=(marketfeed sta); COMP_CWORD=1
        _marketfeed_completion marketfeed
        echo "completed: ${COMPREPLY[*]}"
    """
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env=environment() | {"HOME": str(tmp_path), "PATH": programs},
    )
    assert "completed: status\n" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"],
        ["run", "--nosuch"],
        ["demo", "--timeframes=7m"],
        ["demo", "--pairs=0"],
        ["run", "x"],
    ],
)
def test_wrong_use_exits_2(arguments: list[str]) -> None:
    assert marketfeed(*arguments).returncode == 2


def test_wrong_settings_exit_2_and_name_every_mistake(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("exchnge: {}\nstatus: {port: many}\n")
    for command in ("run", "check", "status"):
        done = marketfeed(command, "--config", path)
        assert done.returncode == 2
        assert "exchnge: unknown key, did you mean exchange?" in done.stderr
        assert "status.port: expected a whole number" in done.stderr
        assert "Traceback" not in done.stderr
    assert marketfeed("run", "--config", tmp_path / "none.yaml").returncode == 2


def test_check_tells_what_is_found(config: Path) -> None:
    done = marketfeed("check", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    findings = {
        (item["subject"], item["verdict"]): item["text"]
        for item in json.loads(done.stdout)["findings"]
    }
    assert ("journal", "good") in findings
    assert "NOSUCH/USDT:USDT is left out" in findings["pairs", "warning"]
    assert findings["pairs", "good"] == "1 pairs will be collected"
    assert "delivers: BTC/USDT:USDT mark price" in findings["stream", "good"]
    assert not config.with_name("journal.db").exists()
    table = marketfeed("check", "--config", config)
    assert table.returncode == 0
    assert "NOSUCH/USDT:USDT is left out: the exchange lists no such contract" in table.stdout
    assert "\x1b[" not in table.stdout


def test_check_says_how_long_history_takes_and_warns_of_an_archive_that_is_not_used(
    config: Path, simulator: dict[str, str]
) -> None:
    variables = {
        "MARKETFEED_HISTORY__DAYS": "30",
        "MARKETFEED_EXCHANGE__TIMEFRAMES": "1m,3m",
        "MARKETFEED_EXCHANGE__ARCHIVE_URL": simulator["rest_url"],
    }
    line = "3m: 30 days of 1 pairs by REST are 29 requests of weight 58: 0.1 min"
    done = marketfeed("check", "--config", config, "--json", **variables)
    history = [f for f in json.loads(done.stdout)["findings"] if f["subject"] == "history"]
    assert [finding["verdict"] for finding in history] == ["good"] * 4
    assert history[1]["text"] == line
    assert history[2]["text"].startswith("mark_1h: 30 days of 1 pairs by REST are 2 requests")
    unused = "exchange.archive_url is set, but exchange.archive is false"
    assert done.stderr.count(unused) == 1
    shown = marketfeed("check", "--config", config, **variables)
    assert line in shown.stdout
    assert shown.stderr.count(unused) == 1
    named = marketfeed(
        "check", "--config", config, **variables, MARKETFEED_EXCHANGE__ARCHIVE="true"
    )
    assert named.returncode == 0
    assert named.stdout.count("CC BY-NC-SA 4.0") == 1
    assert unused not in named.stderr


def test_check_exits_1_when_something_is_bad(config: Path) -> None:
    closed = marketfeed(
        "check", "--config", config, MARKETFEED_EXCHANGE__REST_URL="http://127.0.0.1:1"
    )
    assert closed.returncode == 1
    assert "Cannot connect" in closed.stdout
    config.with_name("journal.db").write_bytes(b"x" * 4_096)
    damaged = marketfeed("check", "--config", config)
    assert damaged.returncode == 1
    assert "file is not a database" in damaged.stdout
    none = marketfeed("check", "--config", config, MARKETFEED_EXCHANGE__PAIRS="NOSUCH/USDT:USDT")
    assert "none of the configured pairs is traded" in none.stdout


def test_the_shipped_settings_are_good_as_they_stand(
    tmp_path: Path, simulator: dict[str, str]
) -> None:
    """As far as they can be here: the journal's place is a service's, the exchange is a simulator."""
    variables = {f"MARKETFEED_EXCHANGE__{key.upper()}": url for key, url in simulator.items()}
    done = marketfeed(
        "check",
        "--config",
        Path(__file__).parents[2] / "config.yaml",
        "--json",
        **variables,
        MARKETFEED_JOURNAL__PATH=str(tmp_path / "journal.db"),
    )
    findings = json.loads(done.stdout)["findings"]
    assert done.returncode == 0, findings
    (aggregator,) = [item for item in findings if item["subject"] == "aggregator"]
    assert aggregator["verdict"] == "warning"
    assert "not set up" in aggregator["text"]


@pytest.mark.parametrize(
    "command",
    [["audit"], ["backup", "copy.db"], ["rejected-frames"], ["deadletter"], ["signals"]],
    ids=" ".join,
)
def test_what_is_not_there_or_not_to_be_read_is_reported_in_a_line(
    command: list[str], shared_path: Path, as_nobody: Callable[[Callable[[], None]], None]
) -> None:
    place = shared_path / "closed"
    variables = {
        "MARKETFEED_JOURNAL__PATH": str(place / "journal.db"),
        "MARKETFEED_AGGREGATOR__LEDGER__PATH": str(place / "ledger.db"),
    }
    absent = marketfeed(*command, **variables)
    assert absent.returncode == 1
    assert "there is none yet, or " in absent.stderr
    assert len(absent.stderr.splitlines()) == 1
    place.mkdir(mode=0)

    def asks() -> None:
        with pytest.raises(JournalError, match="this user may not read it"):
            inspect(KIND, place / "journal.db")

    as_nobody(asks)
    if os.geteuid() != 0:
        closed = marketfeed(*command, **variables)
        assert closed.returncode == 1
        assert len(closed.stderr.splitlines()) == 1
        place.chmod(0o700)


def test_check_live_requires_data_of_every_stream(config: Path) -> None:
    good = marketfeed("check", "--config", config, "--live=20", "--json")
    assert good.returncode == 0, good.stdout
    findings = [item for item in json.loads(good.stdout)["findings"] if item["verdict"] == "good"]
    assert {"mark prices", "klines"} <= {item["subject"] for item in findings}
    # The simulator makes no 5m streams: they are ACKed and stay silent, as at Binance.
    silent = marketfeed(
        "check", "--config", config, "--live=5", MARKETFEED_EXCHANGE__TIMEFRAMES="1m,5m"
    )
    assert silent.returncode == 1
    assert "1 streams are silent: btcusdt@kline_5m" in silent.stdout


def test_run_status_and_a_clean_stop(config: Path) -> None:
    running = Background("run", "--config", config)
    url = running.line(r"status_url=(\S+)")[1]
    running.line("connection open")

    def asked() -> dict[str, Any]:
        with urllib.request.urlopen(f"{url}/status", timeout=TIMEOUT_S) as answer:  # noqa: S310 - loopback
            return dict(json.load(answer))

    wait_until(lambda: asked()["healthy"] and asked()["frames"] > 20)
    done = marketfeed("status", "--url", url, "--json")
    report = json.loads(done.stdout)
    assert report["frames"] > 20
    assert report["refused_pairs"] == {"NOSUCH/USDT:USDT": "the exchange lists no such contract"}
    shown = marketfeed("status", "--url", url)
    assert shown.returncode == 0
    assert "Closed candles" in shown.stdout
    second = marketfeed("run", "--config", config)
    assert second.returncode == 1
    assert f"another process is writing it (process {running.process.pid})" in second.stderr
    port = url.rpartition(":")[2]
    third = marketfeed(
        "run",
        "--config",
        config,
        MARKETFEED_JOURNAL__PATH=str(config.with_name("other.db")),
        MARKETFEED_STATUS__PORT=port,
    )
    assert third.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port} (status.host, status.port): " in third.stderr
    assert running.stop() == 0, "".join(running.lines)
    assert "stopped frames=" in running.lines[-1]
    path = config.with_name("journal.db")
    assert not Path(f"{path}-wal").exists()
    with Journal.open(path) as journal:
        assert journal.row_counts()["mark_price"] > 0
    gone = marketfeed("status", "--url", url)
    assert gone.returncode == 1
    assert f"no collector answers at {url}, is `marketfeed run` running there? " in gone.stderr
    assert "ssl" not in gone.stderr


def test_demo_compares_every_candle(tmp_path: Path) -> None:
    done = marketfeed(
        "demo", "--pairs=12", "--seconds=4", "--speed=60", f"--keep={tmp_path}", "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {
        "pairs", "timeframes", "seconds", "speed", "frames", "candles_expected", "candles_stored",
        "missing", "wrong", "mark_prices", "funding_rates", "close_to_reader_ms", "rss_mb",
    }  # fmt: skip
    assert set(report["close_to_reader_ms"]) == {"p50", "p99", "max"}
    assert report["pairs"] == 12
    assert report["candles_expected"] == report["candles_stored"] >= 24
    assert report["missing"] == report["wrong"] == 0
    assert (tmp_path / "journal.db").exists()
