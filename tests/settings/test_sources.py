"""The environment and credential files: names, precedence, what is misspelt, what cannot be read."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from marketfeed.errors import SettingsError
from marketfeed.settings.load import load_settings, variables
from marketfeed.settings.model import Duration, RetentionSettings, Settings, TopPairs
from marketfeed.settings.sources import MAX_CREDENTIAL_BYTES
from marketfeed.simulator.tls import self_signed

CANARY = "c4n4ry"


def mistakes(environ: Mapping[str, str], secrets_dir: Path | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, environ, secrets_dir)
    assert CANARY not in str(caught.value)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


HASH = "scrypt$16384$8$1$" + "0" * 32 + "$" + "1" * 64


def test_every_key_can_be_set_by_its_variable(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.touch(0o600)
    texts = {
        "exchange.ws_url": "ws://127.0.0.1:1",
        "exchange.rest_url": "http://127.0.0.1:2",
        "exchange.archive": "true",
        "exchange.archive_url": "http://127.0.0.1:3/a",
        "exchange.quote": "USDC",
        "exchange.pairs": "BTC/USDC:USDC",
        "exchange.contracts": "tradifi,perpetual",
        "exchange.timeframes": "1m,3m",
        "exchange.mark_price_every": "1s",
        "exchange.funding_rate_every": "30s",
        "history.days": "0",
        "history.weight_per_minute": "1",
        "journal.path": "/tmp/j.db",  # noqa: S108 - only a name
        "journal.max_bytes": "1GB",
        "journal.retention.candles": "1d",
        "journal.retention.mark_price": "2h",
        "journal.retention.funding_rate": "3h",
        "influxdb.url": "http://127.0.0.1:4",
        "influxdb.api": "v1",
        "influxdb.org": "o",
        "influxdb.bucket": "b",
        "influxdb.token": "t",
        "influxdb.token_file": str(token_file),
        "influxdb.ca_file": str(self_signed(tmp_path)[0]),
        "influxdb.compare": "false",
        "status.host": "::1",
        "status.port": "0",
        "status.token": "sixteen-or-longer",
        "status.token_file": str(token_file),
        "status.filling_is": "503",
        "aggregator.host": "::1",
        "aggregator.port": "0",
        "aggregator.status.host": "::1",
        "aggregator.status.port": "0",
        "aggregator.status.token": "sixteen-or-longer",
        "aggregator.status.token_file": str(token_file),
        "aggregator.ledger.path": "/tmp/l.db",  # noqa: S108 - only a name
        "aggregator.ledger.keep": "2d",
        "aggregator.feeders.long": "73,74,75",
        "aggregator.feeders.short": "120,121,122",
        "aggregator.feeders.aliases": '{"75": ["75a", "75b"]}',
        "aggregator.accounts": json.dumps([{"username": "fleet", "hash": HASH, "feeder": "75"}]),
        "aggregator.window_s": "0.5",
        "aggregator.min_agreements": "1",
        "aggregator.min_confidence": "0.5",
        "aggregator.missing_confidence": "0.75",
        "aggregator.missing_feeder": "75",
        "aggregator.on_conflict": "both",
        "aggregator.early_grace_s": "0.5",
        "aggregator.cooldown_s": "0",
        "aggregator.expire_s": "10",
        "aggregator.unconfirmed_s": "50",
        "aggregator.opposite_open": "skip",
        "aggregator.outside_whitelist": "skip",
        "aggregator.default_leverage": "2",
        "aggregator.max_leverage": "3",
        "aggregator.ordertypes": "market",
    }
    fleet = {"BOT1": {"url": "http://127.0.0.1:5", "password_file": str(token_file)}}
    texts |= {
        "bots.books.path": "/tmp/b.db",  # noqa: S108 - only a name
        "bots.fleet": json.dumps(fleet),
        "bots.poll": "5s",
        "bots.status.host": "::1",
        "bots.status.port": "0",
        "bots.status.token": "sixteen-or-longer",
        "bots.status.token_file": str(token_file),
    }
    for side in ("long", "short", "meta"):
        texts |= {
            f"aggregator.bots.{side}.url": "http://127.0.0.1:5",
            f"aggregator.bots.{side}.username": "u",
            f"aggregator.bots.{side}.password": "p",
            f"aggregator.bots.{side}.password_file": str(token_file),
            f"aggregator.bots.{side}.timeout_s": "2.5",
            f"aggregator.bots.{side}.stakeamount": "50",
        }
    assert texts.keys() == variables().keys()
    defaults = Settings()
    for key, text in texts.items():
        environ = {variables()[key]: text}
        if key == "exchange.pairs":
            environ["MARKETFEED_EXCHANGE__QUOTE"] = "USDC"
        if key in (
            "aggregator.feeders.aliases",
            "aggregator.accounts",
            "aggregator.missing_feeder",
        ):
            environ["MARKETFEED_AGGREGATOR__FEEDERS__LONG"] = "73,74,75"
        if key == "influxdb.url":
            environ["MARKETFEED_INFLUXDB__ORG"] = "o"
        for spelt in (environ, {name.lower(): value for name, value in environ.items()}):
            assert value_at(load_settings(None, spelt), key) != value_at(defaults, key)


def value_at(settings: Settings, key: str) -> object:
    value: object = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def test_lists_in_the_environment() -> None:
    def pairs(text: str) -> object:
        return load_settings(None, {"MARKETFEED_EXCHANGE__PAIRS": text}).exchange.pairs

    assert pairs("BTC/USDT:USDT, ETH/USDT:USDT") == ("BTC/USDT:USDT", "ETH/USDT:USDT")
    assert pairs('["BTC/USDT:USDT"]') == ("BTC/USDT:USDT",)
    assert pairs("all") == "all"
    assert pairs("top:50") == pairs('{"top": 50}') == TopPairs(50)
    loaded = load_settings(None, {"MARKETFEED_EXCHANGE__TIMEFRAMES": "3m,1m"})
    assert loaded.exchange.timeframes == ("1m", "3m")
    loaded = load_settings(None, {"MARKETFEED_EXCHANGE__CONTRACTS": "tradifi, perpetual"})
    assert loaded.exchange.contracts == ("perpetual", "tradifi")


def test_wrong_values_name_their_variable() -> None:
    assert mistakes(
        {
            "MARKETFEED_EXCHANGE__PAIRS": "BTC/USDT:USDT,btcusdt",
            "MARKETFEED_EXCHANGE__TIMEFRAMES": "1m,,3m",
            "MARKETFEED_HISTORY__DAYS": "many",
            "MARKETFEED_JOURNAL__RETENTION": "long",
            "MARKETFEED_INFLUXDB__TOKEN": f"{CANARY}\nX",
            "MARKETFEED_INFLUXDB__URL": f"http://me:{CANARY}@h",
        }
    ) == [
        (
            "exchange.pairs[1]: expected a pair as Freqtrade writes it, such as BTC/USDT:USDT; "
            "found 'btcusdt' (environment variable MARKETFEED_EXCHANGE__PAIRS)"
        ),
        (
            "exchange.timeframes[1]: expected one of 1m, 3m, 5m, 15m, 30m, 1h, 2h, 4h, 6h, 8h, 12h, 1d; "
            "found '' (environment variable MARKETFEED_EXCHANGE__TIMEFRAMES)"
        ),
        (
            "history.days: expected a whole number from 0 to 3650; "
            "found 'many' (environment variable MARKETFEED_HISTORY__DAYS)"
        ),
        (
            "journal.retention: expected a mapping with keys of candles, mark_price, funding_rate; "
            "found a single value (environment variable MARKETFEED_JOURNAL__RETENTION)"
        ),
        (
            "influxdb.url: expected http://host[:port] or https://host[:port] and without user:password@; "
            "found 'http://***@h' (environment variable MARKETFEED_INFLUXDB__URL)"
        ),
        (
            "influxdb.token: expected a token on one line, in printable ASCII; "
            "found *** (environment variable MARKETFEED_INFLUXDB__TOKEN)"
        ),
    ]


def test_misspelt_variables_are_mistakes() -> None:
    assert mistakes(
        {
            "MARKETFEED_EXCHNGE__PAIRS": CANARY,
            "MARKETFEED_EXCHANGE__PEARS": CANARY,
            "MARKETFEED_EXCHANGE": "{}",
            "MARKETFEED_JOURNAL__RETENTION__CANDLE": "1d",
            "MARKETFEED_INFLUX_TOKEN": CANARY,
            "MARKETFEED_INFLUXDB__TOKEN__X": CANARY,
            "MARKETFEED_ZZZ": "",
        }
    ) == [
        (
            "MARKETFEED_EXCHANGE: a section is not set as a whole; set its keys, such as "
            "MARKETFEED_EXCHANGE__WS_URL"
        ),
        (
            "exchange.pears: unknown key, did you mean MARKETFEED_EXCHANGE__PAIRS? "
            "(environment variable MARKETFEED_EXCHANGE__PEARS)"
        ),
        (
            "exchnge.pairs: unknown key, did you mean MARKETFEED_EXCHANGE__PAIRS? "
            "(environment variable MARKETFEED_EXCHNGE__PAIRS)"
        ),
        (
            "influxdb.token.x: unknown key, did you mean MARKETFEED_INFLUXDB__TOKEN? "
            "(environment variable MARKETFEED_INFLUXDB__TOKEN__X)"
        ),
        (
            "MARKETFEED_INFLUX_TOKEN: unknown key, did you mean MARKETFEED_INFLUXDB__TOKEN? "
            "(environment variable MARKETFEED_INFLUX_TOKEN)"
        ),
        (
            "journal.retention.candle: unknown key, did you mean MARKETFEED_JOURNAL__RETENTION__CANDLES? "
            "(environment variable MARKETFEED_JOURNAL__RETENTION__CANDLE)"
        ),
        "MARKETFEED_ZZZ: unknown key (environment variable MARKETFEED_ZZZ)",
    ]


def test_variables_that_are_not_ours() -> None:
    environ = {
        "MARKETFEED_URL": "sqlite:////x.db",
        "MARKETFEED_TOKEN": CANARY,
        "MARKETFEED_TOKEN_FILE": "/x",
        "MARKETFEED_BUCKET": "b",
        "MARKETFEED_TEST_ANYTHING": "1",
        "EXCHANGE__PAIRS": "all",
        "EXCHANGE": "{}",
        "PATH": "/bin",
    }
    assert load_settings(None, environ) == Settings()


def test_empty_variables_count_as_absent_and_null_is_none(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("influxdb: {url: 'http://h', org: o}\n")
    assert load_settings(config, {"MARKETFEED_INFLUXDB__URL": " "}).influxdb.url == "http://h"
    assert load_settings(config, {"MARKETFEED_INFLUXDB__URL": "null"}).influxdb.url is None


def test_the_same_variable_in_two_spellings_is_a_mistake() -> None:
    (line,) = mistakes({"MARKETFEED_HISTORY__DAYS": "1", "marketfeed_history__days": "2"})
    assert line.startswith("history.days: is there twice")
    assert "MARKETFEED_HISTORY__DAYS" in line
    assert "marketfeed_history__days" in line


def test_mappings_merge_key_by_key_across_sources(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("journal: {max_bytes: 1GB, retention: {candles: 10d, mark_price: 3d}}\n")
    environ = {
        "MARKETFEED_JOURNAL__RETENTION": '{"mark_price": "4d", "funding_rate": "5d"}',
        "MARKETFEED_JOURNAL__RETENTION__FUNDING_RATE": "6d",
    }
    journal = load_settings(config, environ).journal
    assert journal.max_bytes == 10**9
    assert journal.retention == RetentionSettings(
        candles=Duration.parse("10d"),
        mark_price=Duration.parse("4d"),
        funding_rate=Duration.parse("6d"),
    )


# --- credential files -----------------------------------------------------------------------------


def test_nested_credential_files_in_either_case(tmp_path: Path) -> None:
    (tmp_path / "influxdb__token").write_text(f"{CANARY}\n")
    (tmp_path / "JOURNAL__RETENTION__CANDLES").write_text("9d")
    (tmp_path / "exchange__timeframes").write_text("1m,5m\n")
    for environ, secrets_dir in (
        ({}, tmp_path),
        ({"CREDENTIALS_DIRECTORY": str(tmp_path)}, None),
        ({"MARKETFEED_SECRETS_DIR": str(tmp_path), "CREDENTIALS_DIRECTORY": "/no/such"}, None),
    ):
        loaded = load_settings(None, environ, secrets_dir)
        assert loaded.influxdb.token is not None
        assert loaded.influxdb.token.get_secret_value() == CANARY
        assert loaded.journal.retention.candles == Duration.parse("9d")
        assert loaded.exchange.timeframes == ("1m", "5m")


def test_precedence(tmp_path: Path) -> None:
    config, secrets = tmp_path / "config.yaml", tmp_path / "secrets"
    secrets.mkdir()
    environ: dict[str, str] = {}

    def port() -> int:
        return load_settings(config, environ, secrets).status.port

    config.write_text("status: {host: '::1'}\n")
    assert port() == 9108
    config.write_text("status: {host: '::1', port: 1}\n")
    assert port() == 1
    (secrets / "status__port").write_text("2")
    assert port() == 2
    environ["MARKETFEED_STATUS__PORT"] = "3"
    assert port() == 3
    assert load_settings(config, environ, secrets).status.host == "::1"


def test_a_mistake_names_the_source_that_won(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("exchange: {pairs: [a, b]}\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(config, {"MARKETFEED_EXCHANGE__PAIRS": "c"})
    assert "pairs[0]: " in str(caught.value)
    assert "found 'c' (environment variable MARKETFEED_EXCHANGE__PAIRS)" in str(caught.value)
    assert "line" not in str(caught.value)


def test_values_of_credential_files_are_never_shown(tmp_path: Path) -> None:
    (tmp_path / "influxdb__token").write_text(f"{CANARY}\n{CANARY}")
    (tmp_path / "influxdb__url").write_text(CANARY)
    (tmp_path / "exchange__pairs").write_text(CANARY)
    lines = mistakes({}, tmp_path)
    assert len(lines) == 3
    assert all("found *** (credential file " in line for line in lines)


def test_the_rest_of_a_credential_stays_one_beside_a_variable_for_the_whole(tmp_path: Path) -> None:
    (tmp_path / "aggregator__bots__long__url").write_text(CANARY)
    environ = {"MARKETFEED_AGGREGATOR__BOTS": '{"long": {"username": "u"}}'}
    (line,) = mistakes(environ, tmp_path)
    assert line.startswith("aggregator.bots.long.url: ")
    assert line.endswith(f"found *** (credential file {tmp_path}/aggregator__bots__long__url)")


def test_credential_files_that_are_wrong(tmp_path: Path) -> None:
    (tmp_path / "influxdb__tokn").write_text(CANARY)
    (tmp_path / "influxdb__token").write_bytes(b"\xff" + CANARY.encode())
    (tmp_path / "status__port").write_text(" \n")
    (tmp_path / "status__host").mkdir()
    (tmp_path / "history__days").write_text("1" * (MAX_CREDENTIAL_BYTES + 1))
    lines = mistakes({}, tmp_path)
    assert lines == [
        f"history.days: expected a file of at most 65536 bytes (credential file {tmp_path}/history__days)",
        f"influxdb.token: the file is not UTF-8 text (credential file {tmp_path}/influxdb__token)",
        (
            "influxdb.tokn: unknown key, did you mean influxdb__token? "
            f"(credential file {tmp_path}/influxdb__tokn)"
        ),
        f"status.host: expected a file (credential file {tmp_path}/status__host)",
        f"status.port: the file is empty (credential file {tmp_path}/status__port)",
    ]


def test_other_files_beside_the_credentials_are_left_alone(tmp_path: Path) -> None:
    secrets, elsewhere = tmp_path / "secrets", tmp_path / "elsewhere"
    secrets.mkdir()
    elsewhere.write_text(CANARY)
    (secrets / "tls.p12").write_bytes(b"\x00\xff")
    (secrets / ".influxdb__org").write_text("hidden")
    (secrets / "sub").mkdir()
    (secrets / "sub" / "influxdb__org").write_text("below")
    (secrets / "influxdb__token").symlink_to(elsewhere)
    loaded = load_settings(None, {}, secrets)
    assert loaded.influxdb.org is None
    assert loaded.influxdb.token is not None


def test_two_spellings_of_a_credential_file_are_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "influxdb__token").write_text(CANARY)
    (tmp_path / "INFLUXDB__TOKEN").write_text(CANARY)
    (line,) = mistakes({}, tmp_path)
    assert line.startswith("influxdb.token: is there twice")


def test_a_credential_directory_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    (line,) = mistakes({}, tmp_path / "none")
    assert (
        line == f"{tmp_path}/none: credential directory cannot be read: No such file or directory"
    )
    (tmp_path / "file").touch()
    (line,) = mistakes({"MARKETFEED_SECRETS_DIR": str(tmp_path / "file")})
    assert line == f"{tmp_path}/file: credential directory cannot be read: Not a directory"
    with (tmp_path / "large").open("wb") as large:
        os.truncate(large.fileno(), 17 * 2**20)
    (line,) = mistakes({}, tmp_path)
    assert line == f"{tmp_path}: expected a directory of at most 16777216 bytes of credentials"


def test_an_unreadable_credential_file(
    shared_path: Path, as_nobody: Callable[[Callable[[], None]], None]
) -> None:
    (shared_path / "influxdb__token").touch(0o000)

    def look() -> None:
        (line,) = mistakes({}, shared_path)
        assert line.startswith("influxdb.token: the file cannot be read: Permission denied")

    as_nobody(look)
