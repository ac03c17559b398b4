"""config.yaml as text: lines, duplicates, the surprises of YAML, and files that are none."""

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from marketfeed.errors import SettingsError
from marketfeed.settings.load import describe, load_settings
from marketfeed.settings.model import Settings
from marketfeed.settings.yaml import MAX_CONFIG_BYTES, read_config

CANARY = "c4n4ry"


def load(path: Path, text: str) -> Settings:
    path.write_text(text, encoding="utf-8")
    return load_settings(path, {})


def mistakes(path: Path, text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(path, text)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


@pytest.mark.parametrize(
    "text",
    ["", "# a comment\n", "---\n", "{}", "null", "exchange:\njournal:\n  retention:\n", "\ufeff"],
)
def test_an_empty_file_leaves_the_defaults(config: Path, text: str) -> None:
    assert load(config, text) == Settings()


def test_scalars_stay_the_text_that_was_written(config: Path) -> None:
    config.write_text(
        "a: 3:00\nb: no\nc: 0x10\nd: 1e3\ne: 2020-01-01\nf: ~\ng: 'null'\nh: |\n  x\n"
    )
    reading = read_config(Settings, config)
    assert reading.data == {
        "a": "3:00",
        "b": "no",
        "c": "0x10",
        "d": "1e3",
        "e": "2020-01-01",
        "f": None,
        "g": "null",
        "h": "x\n",
    }
    assert not reading.mistakes


def test_every_value_knows_its_line(config: Path) -> None:
    config.write_text("exchange:\n  pairs:\n    - A/B:B\n    - C/D:D\n  quote: USDT\n")
    lines = {path: origin.text for path, origin in read_config(Settings, config).origins.items()}
    assert lines == {
        ("exchange",): f"{config} line 1",
        ("exchange", "pairs"): f"{config} line 2",
        ("exchange", "pairs", 0): f"{config} line 3",
        ("exchange", "pairs", 1): f"{config} line 4",
        ("exchange", "quote"): f"{config} line 5",
    }


@pytest.mark.parametrize(
    ("value", "found"),
    [("3:00", "'3:00'"), ("60", "'60'"), ("yes", "'yes'"), ("60.0", "'60.0'"), ("[60s]", "a list")],
)
def test_surprises_of_yaml_are_shown_as_written(config: Path, value: str, found: str) -> None:
    (line,) = mistakes(config, f"exchange:\n  funding_rate_every: {value}\n")
    assert line.startswith("exchange.funding_rate_every: expected 3s, 4s,")
    assert line.endswith(f"found {found} ({config} line 2)")


def test_a_duplicate_key_names_both_lines(config: Path) -> None:
    text = "history:\n  days: 3\nstatus:\n  port: 0\nhistory:\n  days: 4\n"
    assert mistakes(config, text) == [
        f"history: is there twice, on lines 1 and 5 ({config} line 5)",
    ]
    (line,) = mistakes(config, "status:\n  port: 1\n  host: ::1\n  port: 2\n")
    assert line == f"status.port: is there twice, on lines 2 and 4 ({config} line 4)"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("exchange: {pairs: [a, b}\n", "line 1, column 24"),
        ("exchange:\n  pairs: all\n quote: USDT\n", "line 3, column 2"),
        ("exchange:\n\tpairs: all\n", "line 2, column 1"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1"),
        ("a: 'b\n", "line 2, column 1"),
    ],
)
def test_broken_yaml_says_where(config: Path, text: str, where: str) -> None:
    (line,) = mistakes(config, text)
    assert line.startswith(f"{config} {where}: not valid YAML: ")


@pytest.mark.parametrize(
    "text",
    [
        f"token: *{CANARY}",
        f"token: !{CANARY}!x",
        f"token: &{CANARY} [x, &{CANARY} y]\nb: *{CANARY}\nc: [",
        f"token: %{CANARY}",
        f"token: `{CANARY}",
        f'token: "{CANARY}',
        f"influxdb:\n  url: x\n  token:{CANARY}\n  org: x\n",
        f"influxdb: {{token: {CANARY}",
        f"token={CANARY}",
        f"influxdb:\n  token:{CANARY}\n",
        f"influxdb: {{token:{CANARY}}}",
        f"influxdb: {{token={CANARY}: 1}}",
        f"? [{CANARY}]\n: 1",
        f"? {{{CANARY}: 1}}\n: 1",
        f"a: !<{CANARY}",
        f"a: !{CANARY} b",
        f"%TAG ! {CANARY}",
        f"influxdb: {CANARY}",
        f"- {CANARY}",
        f"influxdb: {{Password: {CANARY}, token: {CANARY}, api_key: [{CANARY}], x: {CANARY}}}",
        f"exchange: {{pairs: {{token: {CANARY}}}}}",
        f"influxdb: {{token_file: {CANARY}}}",
        f"influxdb: {{token_file: /{CANARY}}}",
        f"influxdb: {{token_file: /no/such/directory/{CANARY}}}",
        f"influxdb: {{token_file: [{CANARY}]}}",
        f"influxdb: {{url: 'http://me:{CANARY}@h'}}",
        f"influxdb: {{url: 'http://me:x/{CANARY}@h'}}",
        f"influxdb: {{url: 'me:{CANARY}@h'}}",
        f"influxdb: {{url: 'me:{CANARY}://x@h'}}",
        f"influxdb: {{url: 'http://h?token={CANARY}'}}",
        f"influxdb: {{url: ['http://me:{CANARY}@h']}}",
        f"exchange: {{pairs: ['http://me:{CANARY}@h']}}",
        f"status: {{host: 'me:{CANARY}@{'h' * 100}'}}",
    ],
)
def test_a_secret_that_strayed_into_the_file_is_not_repeated(config: Path, text: str) -> None:
    assert mistakes(config, text)
    assert CANARY not in str(mistakes(config, text))


def test_a_secret_in_the_file_says_where_secrets_go(config: Path) -> None:
    (line,) = mistakes(config, f"influxdb:\n  token: {CANARY}\n")
    assert line == (
        "influxdb.token: a secret does not belong in this file; it goes into the environment or a "
        f"credential file, as MARKETFEED_INFLUXDB__TOKEN or influxdb__token ({config} line 2)"
    )
    assert "MARKETFEED_INFLUXDB__TOKEN" in mistakes(config, "influxdb: {password: x}")[0]
    assert "MARKETFEED_STATUS__TOKEN" in mistakes(config, f"status: {{token: {CANARY}}}")[0]
    assert "MARKETFEED_JOURNAL" not in mistakes(config, "journal: {Token: null}")[0]


def test_aliases_and_tags_are_refused_without_being_followed(config: Path) -> None:
    (line,) = mistakes(config, "exchange: {timeframes: &x [3m, *x]}\n")
    assert line.startswith("exchange.timeframes[1]: aliases (*name) are not used here")
    (line,) = mistakes(config, "status: {port: !!int '1'}\n")
    assert line.startswith("status.port: YAML tags (!name) are not used here")
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40)
    )
    assert len(mistakes(config, bomb)) < 500


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"status: {port: 1}\n\xff\n", "is not UTF-8 text (byte 18)"),
        (b"a: \x00", "a character that YAML does not allow (position 3)"),
        (b"[" * 50_000, "is nested too deeply"),
        (b"# " + b"x" * MAX_CONFIG_BYTES, f"or larger than {MAX_CONFIG_BYTES} bytes"),
        (b"- a\n- b\n", "expected sections such as exchange: and journal:; found a list"),
        (b"exchange", "expected sections such as exchange: and journal:; found a single value"),
    ],
)
def test_files_that_are_no_settings(config: Path, raw: bytes, what: str) -> None:
    config.write_bytes(raw)
    with pytest.raises(SettingsError) as caught:
        load_settings(config, {})
    assert str(caught.value).startswith(f"a mistake in the settings:\n  {config}: ")
    assert str(caught.value).endswith(what)


def test_a_missing_file_says_how_to_pass_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(tmp_path / "none.yaml", {})
    assert f"{tmp_path / 'none.yaml'}: no such file; pass the path of one with --config" in str(
        caught.value
    )
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load_settings(tmp_path, {})


NAMES = st.sampled_from(
    [
        "exchange",
        "pairs",
        "timeframes",
        "journal",
        "retention",
        "candles",
        "influxdb",
        "url",
        "token",
        "x",
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.text(max_size=12)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | LEAVES, inner, max_size=4),
    max_leaves=12,
)
YAML_LIKE = st.text(alphabet="ab:-?&*!|>%@`'\"#{}[],~<= \n\t\\0xU1\ufeff", max_size=60)
FEW = settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@FEW
@given(TREES.map(yaml.dump) | YAML_LIKE | st.text(max_size=60))
@example('a: "\\UFFFFFFFF"')
@example("%YAML 1.")
def test_random_yaml_raises_nothing_but_settings_error(config: Path, text: str) -> None:
    config.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(SettingsError):
        load_settings(config, {})


def test_what_describe_shows_reads_back_as_equal_settings(config: Path) -> None:
    made = load(
        config,
        "exchange: {pairs: [ETH/USDT:USDT, BTC/USDT:USDT], timeframes: [1h, 1m], mark_price_every: 1s}\n"
        "journal: {max_bytes: 512MiB, retention: {candles: 90d}}\n"
        "influxdb: {url: 'http://influx.example:8086/', org: o}\n",
    )
    assert load(config, yaml.safe_dump(describe_without_secrets(made))) == made


def describe_without_secrets(made: Settings) -> dict[str, object]:
    shown = describe(made)
    for section in (
        shown["influxdb"],
        shown["status"],
        shown["aggregator"]["status"],
        shown["bots"]["status"],
    ):
        del section["token"]
    for bot in shown["aggregator"]["bots"].values():
        del bot["password"]
    return shown
