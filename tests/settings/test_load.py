"""Settings as a whole: the shipped file, defaults, what depends on what, and that no secret is shown."""

import logging
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from marketfeed.errors import SettingsError
from marketfeed.settings import model as config
from marketfeed.settings.aggregator import AggregatorSettings, BotsSettings
from marketfeed.settings.load import describe, load_settings, variables
from marketfeed.settings.model import (
    Duration,
    ExchangeSettings,
    InfluxSettings,
    Settings,
    TopPairs,
)
from marketfeed.settings.sources import FOREIGN_VARIABLES, TEST_PREFIX

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "config.yaml"
CANARY = "c4n4ry-t0ken"


def shipped_keys(node: object, above: str = "") -> Iterator[str]:
    if isinstance(node, dict) and above not in (
        "exchange.pairs",
        "aggregator.feeders.aliases",
        "bots.fleet",
    ):
        for key, value in node.items():
            yield from shipped_keys(value, f"{above}.{key}" if above else key)
    else:
        yield above


# --- what is shipped ------------------------------------------------------------------------------


def test_the_shipped_file_loads_and_shows_the_defaults() -> None:
    shipped = load_settings(SHIPPED, {})
    assert shipped.influxdb.org == "marketfeed"
    example = shipped.aggregator
    assert (example.bots.long.url, example.bots.short.url) == (
        "http://bot1.example:8080",
        "http://bot2.example:8080",
    )
    # Addresses of bots are examples: orders must go to no host that nobody has named.
    assert example.model_copy(update={"bots": BotsSettings()}) == AggregatorSettings()
    others = {"influxdb": InfluxSettings(), "aggregator": AggregatorSettings()}
    assert shipped.model_copy(update=others) == Settings()
    assert shipped.influxdb.model_copy(update={"org": None}) == InfluxSettings()


def test_the_shipped_file_has_every_key_and_no_secret() -> None:
    keys = set(shipped_keys(yaml.safe_load(SHIPPED.read_text())))
    secrets = {
        "influxdb.token",
        "status.token",
        "aggregator.status.token",
        "aggregator.bots.long.password",
        "aggregator.bots.short.password",
        "aggregator.bots.meta.password",
        "bots.status.token",
    }
    assert keys == variables().keys() - secrets
    assert all(variables()[secret] in SHIPPED.read_text() for secret in secrets)


def test_variables_that_the_documents_name_exist() -> None:
    documents = [SHIPPED, *ROOT.glob("*.md"), *ROOT.glob("systemd/*")]
    text = "\n".join(document.read_text() for document in documents if document.is_file())
    known = {*variables().values(), *FOREIGN_VARIABLES, "MARKETFEED_SECTION__KEY"}
    named = set(re.findall(r"\bMARKETFEED_[A-Z][A-Z0-9_]*[A-Z0-9]\b", text))
    assert {name for name in named - known if not name.startswith(TEST_PREFIX)} == set()


def test_the_defaults() -> None:
    assert describe(Settings()) == {
        "exchange": {
            "ws_url": "wss://fstream.binance.com",
            "rest_url": "https://fapi.binance.com",
            "archive": False,
            "archive_url": "https://data.binance.vision",
            "quote": "USDT",
            "pairs": {"top": 164},
            "contracts": ["perpetual"],
            "timeframes": ["3m", "5m", "15m", "1h"],
            "mark_price_every": "3s",
            "funding_rate_every": "1m",
        },
        "history": {"days": 30, "weight_per_minute": 1200},
        "journal": {
            "path": "/var/lib/marketfeed/journal.db",
            "max_bytes": 10_000_000_000,
            "retention": {"candles": "400d", "mark_price": "2d", "funding_rate": "14d"},
        },
        "influxdb": {
            "url": None,
            "api": "v2",
            "org": None,
            "bucket": "market_data",
            "token": None,
            "token_file": None,
            "ca_file": None,
            "compare": True,
        },
        "status": {
            "host": "127.0.0.1",
            "port": 9108,
            "token": None,
            "token_file": None,
            "filling_is": 200,
        },
        "aggregator": {
            "host": "127.0.0.1",
            "port": 8080,
            "status": {"host": "127.0.0.1", "port": 9109, "token": None, "token_file": None},
            "ledger": {"path": "/var/lib/marketfeed/ledger.db", "keep": "30d"},
            "feeders": {
                "long": ["73", "74", "75", "79", "108"],
                "short": ["120", "121", "122", "123", "124"],
                "aliases": {"75": ["75a", "75b", "75c"]},
            },
            "accounts": [],
            "window_s": 60.0,
            "min_agreements": 3,
            "min_confidence": 0.7,
            "missing_confidence": "reject",
            "missing_feeder": "reject",
            "on_conflict": "neither",
            "early_grace_s": 3.0,
            "cooldown_s": 300.0,
            "expire_s": 30.0,
            "default_leverage": 1.0,
            "max_leverage": 5.0,
            "ordertypes": ["market", "limit"],
            "bots": {
                side: {
                    "url": None,
                    "username": "freqtrader",
                    "password": None,
                    "password_file": None,
                    "timeout_s": 20.0,
                    "stakeamount": None,
                }
                for side in ("long", "short", "meta")
            },
            "unconfirmed_s": 40.0,
            "opposite_open": "send",
            "outside_whitelist": "send",
        },
        "bots": {
            "books": {"path": "/var/lib/marketfeed/books.db"},
            "fleet": {},
            "poll": "1m",
            "status": {"host": "127.0.0.1", "port": 9113, "token": None, "token_file": None},
        },
    }


# --- loading --------------------------------------------------------------------------------------


def test_the_path_may_come_from_the_environment(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("status: {port: 1}\n")
    second.write_text("status: {port: 2}\n")
    environ = {"MARKETFEED_CONFIG": str(first)}
    assert load_settings(None, environ).status.port == 1
    assert load_settings(second, environ).status.port == 2


def test_this_process_s_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKETFEED_STATUS__PORT", "7")
    monkeypatch.setenv("STATUS__PORT", "8")
    assert load_settings(None).status.port == 7
    assert Settings().status.port == 9108


def test_an_archive_that_is_not_used_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    url = "https://archive.example"
    address = {"MARKETFEED_EXCHANGE__ARCHIVE_URL": url}
    shipped = {"MARKETFEED_EXCHANGE__ARCHIVE_URL": "https://data.binance.vision/"}
    switch = {"MARKETFEED_EXCHANGE__ARCHIVE": "true"}
    for environ in ({}, shipped, switch, switch | address):
        load_settings(None, environ)
        assert not caplog.records
    assert load_settings(None, address).exchange.archive_url == url
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(
        "exchange.archive_url is set, but exchange.archive is false"
    )


def test_settings_are_immutable_and_made_by_hand_are_validated_too() -> None:
    settings = Settings(
        exchange=ExchangeSettings(pairs=("BTC/USDT:USDT",), timeframes=("1h", "1m"))
    )
    assert settings.exchange.timeframes == ("1m", "1h")
    assert settings.exchange.mark_price_every == Duration(3_000)
    with pytest.raises(ValidationError):
        settings.exchange.quote = "USDC"
    with pytest.raises(ValidationError):
        ExchangeSettings(pairs=TopPairs(0))
    assert hash(settings) == hash(settings.model_copy(deep=True))


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "exchange:\n"
        "  ws_url: https://fstream.binance.com\n"
        "  timeframes: 3m\n"
        "  mark_price_every: 2s\n"
        "  pears: all\n"
        "history: 30\n"
        "journal: {max_bytes: 1GB, max_bytes: 2GB, retention: {candles: 400}}\n"
        "influxdb:\n"
        "  url: http://influx.example:8086\n"
        "  token: x\n"
        "statsu: {port: 1}\n"
        "timeframes: [3m]\n"
    )
    with pytest.raises(SettingsError) as caught:
        load_settings(path, {"MARKETFEED_STATUS__PORT": "70000", "MARKETFEED_STATUS__PROT": "1"})
    at = f"({path} line "
    assert str(caught.value).splitlines() == [
        "13 mistakes in the settings:",
        f"  journal.max_bytes: is there twice, on lines 7 and 7 {at}7)",
        (
            "  influxdb.token: a secret does not belong in this file; it goes into the environment or a "
            f"credential file, as MARKETFEED_INFLUXDB__TOKEN or influxdb__token {at}10)"
        ),
        (
            "  status.prot: unknown key, did you mean MARKETFEED_STATUS__PORT? "
            "(environment variable MARKETFEED_STATUS__PROT)"
        ),
        (
            "  exchange.ws_url: expected wss://host[:port] or ws://host[:port] without a path; "
            f"found 'https://fstream.binance.com' {at}2)"
        ),
        f"  exchange.timeframes: expected a list such as [3m, 5m, 15m, 1h]; found '3m' {at}3)",
        f"  exchange.mark_price_every: expected 1s or 3s; found '2s' {at}4)",
        f"  exchange.pears: unknown key, did you mean pairs? {at}5)",
        (
            "  history: expected a mapping with keys of days, weight_per_minute; "
            f"found a single value {at}6)"
        ),
        (
            "  journal.retention.candles: expected a duration such as 90s, 5m, 2h or 400d, "
            f"from 1h to 36500d; found '400' {at}7)"
        ),
        (
            "  influxdb.org: expected the organisation's name, which influxdb.api v2 needs; "
            f"found nothing {at}8)"
        ),
        (
            "  status.port: expected a whole number from 0 to 65535; "
            "found '70000' (environment variable MARKETFEED_STATUS__PORT)"
        ),
        f"  statsu: unknown key, did you mean status? {at}11)",
        f"  timeframes: unknown key, did you mean exchange.timeframes? {at}12)",
    ]


def test_long_values_are_cut_and_control_characters_escaped() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, {"MARKETFEED_EXCHANGE__QUOTE": "x\n\x1b" + "y" * 500})
    assert "found 'x\\n\\x1byyy" in str(caught.value)
    assert len(str(caught.value)) < 300


# --- InfluxDB -------------------------------------------------------------------------------------


def influx(**values: str) -> Settings:
    return load_settings(
        None, {f"MARKETFEED_INFLUXDB__{key.upper()}": value for key, value in values.items()}
    )


def test_v2_needs_an_organisation_and_v1_does_not() -> None:
    with pytest.raises(SettingsError, match=r"influxdb\.org: expected the organisation's name"):
        influx(url="http://h")
    assert influx(url="http://h", org="o").influxdb.org == "o"
    assert influx(url="http://h", api="v1").influxdb.org is None
    assert influx(api="v2").influxdb.org is None


def test_token_and_token_file_are_one_or_the_other(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.touch(0o600)
    assert influx(token_file=str(token_file)).influxdb.token_file == token_file
    with pytest.raises(
        SettingsError, match=r"token_file: expected nothing, as influxdb\.token is set"
    ):
        influx(token_file=str(token_file), token=CANARY)


def test_a_token_file_must_be_there(tmp_path: Path) -> None:
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(SettingsError) as caught:
            influx(token_file=str(wrong))
        assert f"a file that exists and that this user may read; found '{wrong}'" in str(
            caught.value
        )


def test_a_token_file_must_be_readable(
    shared_path: Path, as_nobody: Callable[[Callable[[], None]], None]
) -> None:
    (shared_path / "token").touch(0o000)

    def load() -> None:
        with pytest.raises(SettingsError, match="that this user may read"):
            influx(token_file=str(shared_path / "token"))

    as_nobody(load)


def test_a_token_file_that_everybody_may_read_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(CANARY)
    token_file.chmod(0o640)
    influx(token_file=str(token_file))
    assert not caplog.records
    token_file.chmod(0o644)
    influx(token_file=str(token_file))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert (
        record.getMessage() == f"secret file is readable by everybody path={token_file} mode=0644"
    )


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_a_loopback_address_needs_no_status_token(host: str) -> None:
    assert load_settings(None, {"MARKETFEED_STATUS__HOST": host}).status.token is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "host.example"])  # noqa: S104 - read, not bound
def test_any_other_address_needs_one(host: str, tmp_path: Path) -> None:
    environ = {"MARKETFEED_STATUS__HOST": host}
    with pytest.raises(
        SettingsError, match=r"status\.token_file: expected a file with a token \(or"
    ):
        load_settings(None, environ)
    long_one = f"{CANARY}-{CANARY}"
    token = load_settings(None, environ | {"MARKETFEED_STATUS__TOKEN": long_one}).status.token
    assert token is not None
    assert token.get_secret_value() == long_one
    (tmp_path / "token").write_text(long_one)
    (tmp_path / "token").chmod(0o600)
    file = {"MARKETFEED_STATUS__TOKEN_FILE": str(tmp_path / "token")}
    assert load_settings(None, environ | file).status.token_file == tmp_path / "token"
    with pytest.raises(SettingsError, match=r"expected nothing, as status\.token is set"):
        load_settings(None, environ | file | {"MARKETFEED_STATUS__TOKEN": long_one})


def test_the_aggregator_s_status_port_needs_one_too() -> None:
    with pytest.raises(
        SettingsError,
        match=r"aggregator\.status\.token_file: .*MARKETFEED_AGGREGATOR__STATUS__TOKEN\), as "
        r"aggregator\.status\.host is no loopback",
    ):
        load_settings(None, {"MARKETFEED_AGGREGATOR__STATUS__HOST": "192.0.2.7"})


def test_a_short_status_token_is_refused_and_not_shown() -> None:
    environ = {"MARKETFEED_STATUS__HOST": "192.0.2.7", "MARKETFEED_STATUS__TOKEN": CANARY}
    with pytest.raises(SettingsError) as caught:
        load_settings(None, environ)
    assert "status.token: expected a token of at least 16 characters" in str(caught.value)
    # The one mistake, and not a second one that follows from it.
    assert str(caught.value).startswith("a mistake in the settings")
    assert CANARY not in str(caught.value)


def test_no_representation_of_settings_shows_the_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "influxdb__token").write_text(CANARY)
    for settings in (
        load_settings(None, {"MARKETFEED_INFLUXDB__TOKEN": CANARY}),
        load_settings(None, {}, tmp_path),
    ):
        assert settings.influxdb.token is not None
        assert settings.influxdb.token.get_secret_value() == CANARY
        logging.getLogger("test").info("settings=%s %r", settings, settings.influxdb)
        shown = [
            repr(settings),
            str(settings),
            repr(settings.influxdb),
            f"{settings.influxdb.token}",
            repr(settings.model_dump()),
            settings.model_dump_json(),
            repr(describe(settings)),
        ]
        assert CANARY not in "".join(shown)
        assert "'token': '***'" in repr(describe(settings))
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        (f"influxdb: {{token: {CANARY}}}", {}),
        (f"influxdb: {{url: 'https://me:{CANARY}@influx.example'}}", {}),
        (f"influxdb: {{token_file: {CANARY}}}", {}),
        (f"influxdb: {{token: *{CANARY}", {}),
        ("", {"MARKETFEED_INFLUXDB__TOKEN": f"\n{CANARY}\n\n{CANARY}"}),
        ("", {"MARKETFEED_INFLUXDB__TOKEN": CANARY, "MARKETFEED_STATUS__PORT": "x"}),
        ("", {"MARKETFEED_INFLUXDB__URL": f"http://{CANARY}@h"}),
        ("", {"MARKETFEED_INFLUXDB__TOKENN": CANARY}),
        ("", {"MARKETFEED_JOURNAL__RETENTION": f'{{"token": "{CANARY}"}}'}),
        ("", {"MARKETFEED_JOURNAL__RETENTION": f'{{"token": "{CANARY}'}),
        ("influxdb: x", {"MARKETFEED_INFLUXDB__TOKEN": CANARY}),
    ],
)
def test_no_error_shows_a_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, environ: dict[str, str]
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path, environ)
    error = caught.value
    assert error.__context__ is None
    assert error.__cause__ is None
    trace = "".join(traceback.format_exception(error))
    assert CANARY not in repr(error) + str(error) + trace + caplog.text


def test_settings_made_by_hand_do_not_show_a_wrong_secret_either() -> None:
    with pytest.raises(ValidationError) as caught:
        InfluxSettings.model_validate({"token": f"{CANARY}\n", "url": f"http://me:{CANARY}@h"})
    assert CANARY not in str(caught.value) + repr(caught.value)


def test_all_public_names_exist() -> None:
    assert all(hasattr(config, name) for name in config.__all__)
