"""Canaries: a token and passwords that are set in every way there is turn up nowhere."""

import base64
import json
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from proc_commands import (
    MARKETFEED,
    Collecting,
    Exchange,
    environment,
    exchange,
    get,
    run_marketfeed,
    write_config,
)
from scoreboard import Row, Scoreboard
from secrets_influx import talkative_influx

from marketfeed.errors import SettingsError
from marketfeed.settings.load import load_settings
from tests.waiting import wait_until

CANARY = "cAnArY-9f86d081884c7d65"
COMMANDS = (
    ["check"],
    ["setup", "--json"],
    ["status", "--json"],
    ["deadletter"],
    ["rejected-frames"],
)
DEBUG_RUN = Path(__file__).with_name("secrets_debug_run.py")


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    with exchange(tmp_path_factory.mktemp("exchange"), pairs=2) as running:
        yield running


def assert_silent(where: str, *contents: str | bytes) -> None:
    """Fail if the canary is in any of `contents`, plain or in base64 (without showing it again)."""
    encoded = {base64.b64encode(b" " * n + CANARY.encode())[4 : -4 - n] for n in range(3)}
    for content in contents:
        data = content.encode() if isinstance(content, str) else content
        for sign in (CANARY.encode(), *encoded):
            at = data.find(sign)
            shown = data[max(at - 200, 0) : at + 80].replace(CANARY.encode(), b"<CANARY>")
            assert at < 0, f"{where} shows a secret: {shown!r}"


def assert_no_file_holds(directory: Path, *but: Path) -> None:
    """Fail if any file there holds the canary: the journal, its WAL, logs."""
    for path in directory.rglob("*"):
        if path.is_file() and path not in but:
            assert_silent(path.name, path.read_bytes())


def given_by(way: str, directory: Path) -> tuple[dict[str, str], dict[str, Any], list[Path]]:
    """Set the token one `way`: variables, settings, and the files that may hold it."""
    if way == "environment":
        return {"MARKETFEED_INFLUXDB__TOKEN": CANARY}, {}, []
    secret = directory / "secrets" / ("influxdb__token" if way == "credential" else "token")
    secret.parent.mkdir()
    secret.write_text(CANARY + "\n")
    secret.chmod(0o600)
    if way == "credential":
        return {"MARKETFEED_SECRETS_DIR": str(secret.parent)}, {}, [secret]
    return {}, {"token_file": str(secret)}, [secret]


@pytest.mark.parametrize("way", ["environment", "credential", "token_file"])
def test_the_token_turns_up_nowhere(
    tmp_path: Path, venue: Exchange, scoreboard: Scoreboard, way: str
) -> None:
    variables, influx, files = given_by(way, tmp_path)
    env = environment(**variables)
    with talkative_influx() as server:
        config = write_config(
            tmp_path,
            venue.ws_url,
            venue.rest_url,
            influxdb={"url": server.url, "org": "org", **influx},
        )
        # The deepest logging with each way, and once what everybody runs.
        program = (
            [*MARKETFEED, "run", "--config"] if way == "credential" else [sys.executable, DEBUG_RUN]
        )
        with Collecting([*program, config], tmp_path / "run.log", env) as collector:
            wait_until(lambda: server.authorizations)
            # The last one parks the shipper.
            for status in (500, 401):
                server.status = status
                wait_until(lambda: f"status {status}" in str(collector.status()["shipping"]))  # noqa: B023
                for page in ("/status", "/metrics", "/health"):
                    assert_silent(page, get(collector.url + page).body)
            assert "***" in collector.status()["shipping"]["trouble"]
            for command in COMMANDS if way == "environment" else COMMANDS[:1]:
                where = ["--url", collector.url] if "status" in command else ["--config", config]
                done = run_marketfeed(*command, *where, env=env)
                assert_silent(f"{command}", done.stdout, done.stderr)
            # A second one, and a status port that is taken: errors that end a process.
            done = run_marketfeed("run", "--config", config, env=env)
            assert done.returncode == 1
            assert_silent("run", done.stdout, done.stderr)
            assert collector.stop() == 0, collector.log
            assert_silent("its log", collector.log)
    assert server.authorizations == {f"Token {CANARY}"}
    assert_no_file_holds(tmp_path, *files)
    scoreboard.add(Row(fault=f"the token given by {way}, the server repeats it", lost="not shown"))


@pytest.mark.parametrize(
    "content",
    [f"{CANARY}\n{CANARY}\n".encode(), f"{CANARY}\xff".encode("latin-1")],
    ids=["two lines", "not UTF-8"],
)
def test_a_token_file_that_no_header_can_hold(
    tmp_path: Path, venue: Exchange, content: bytes
) -> None:
    secret = tmp_path / "token"
    secret.write_bytes(content)
    secret.chmod(0o600)
    with talkative_influx() as server:
        config = write_config(
            tmp_path,
            venue.ws_url,
            venue.rest_url,
            influxdb={"url": server.url, "org": "org", "token_file": str(secret)},
        )
        with Collecting(
            [*MARKETFEED, "run", "--config", config], tmp_path / "run.log"
        ) as collector:
            # It collects on, and reports that it cannot ship.
            wait_until(lambda: collector.status()["mark_price_age_s"] is not None)
            wait_until(lambda: "token file" in str(collector.status()["shipping"]["trouble"]))
            for page in ("/status", "/metrics", "/health"):
                assert_silent(page, get(collector.url + page).body)
            for command in ("check", "setup"):
                done = run_marketfeed(command, "--config", config)
                assert done.returncode == 1
                assert_silent(command, done.stdout, done.stderr)
                assert "Traceback" not in done.stderr
            assert collector.stop() == 0, collector.log
    assert_no_file_holds(tmp_path, secret)


URLS: Mapping[str, tuple[str, str]] = {
    "exchange.ws_url": ("wss", "fstream.binance.com"),
    "exchange.rest_url": ("https", "fapi.binance.com"),
    "exchange.archive_url": ("https", "data.binance.vision"),
    "influxdb.url": ("http", "127.0.0.1:8086"),
}


def with_passwords(written: str) -> dict[str, dict[str, str]]:
    """Every URL of the settings, with a password in it."""
    sections: dict[str, dict[str, str]] = {}
    for key, (scheme, host) in URLS.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = f"{scheme}://{written.format(CANARY)}{host}"
    return sections


def variables(sections: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """Settings as variables of the environment."""
    return {
        f"MARKETFEED_{section}__{name}".upper(): str(value)
        for section, keys in sections.items()
        for name, value in keys.items()
    }


def refusal(config: Path | None, environ: Mapping[str, str]) -> str:
    """The mistakes of these settings; loading must refuse them, and keep the secret in every form."""
    with pytest.raises(SettingsError) as caught:
        load_settings(config, environ)
    error = caught.value
    assert_silent("the error", str(error), repr(error), "".join(traceback.format_exception(error)))
    return str(error)


@pytest.mark.parametrize("written", ["user:{}@", "{}@", "user:{}@@", "user:p%40{}/x@", ":{}@"])
def test_a_password_in_a_url_is_refused_and_not_shown(tmp_path: Path, written: str) -> None:
    sections = with_passwords(written)
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(sections))
    for text in (refusal(file, {}), refusal(None, variables(sections))):
        assert all(key in text for key in URLS)


@pytest.mark.parametrize(
    "influx",
    [
        {"token": CANARY},
        {"token_file": CANARY},
        {"tokn": CANARY},
        {"token": [CANARY]},
        {"token": {"is": CANARY}},
    ],
)
def test_a_token_in_the_wrong_place_is_refused_and_not_shown(
    tmp_path: Path, influx: dict[str, object]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"influxdb": influx}))
    refusal(file, {})


@pytest.mark.parametrize("name", ["TOKEN", "TOKEN_FILE", "TOKN"])
def test_a_token_that_is_none_is_not_shown(name: str) -> None:
    refusal(None, {f"MARKETFEED_INFLUXDB__{name}": f"{CANARY}\nx"})


def test_commands_do_not_show_what_they_refuse(tmp_path: Path, scoreboard: Scoreboard) -> None:
    sections = with_passwords("user:{}@")
    (file := tmp_path / "config.yaml").write_text(json.dumps(sections))
    for command in ("run", "check", "status"):
        done = run_marketfeed(command, "--config", file)
        assert done.returncode == 2
        assert_silent(command, done.stdout, done.stderr)
    done = run_marketfeed("status", env=environment(**variables(sections)))
    assert done.returncode == 2
    assert_silent("status", done.stdout, done.stderr)
    scoreboard.add(Row(fault="passwords in every URL of the settings", lost="refused, not shown"))
