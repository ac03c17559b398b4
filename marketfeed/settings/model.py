"""Settings: config.yaml, the environment and credential files, as frozen typed objects.

Precedence: environment > credential files > config.yaml > the defaults below. Every key is also a
variable `MARKETFEED_SECTION__KEY` and a credential file `section__key`. Secrets are refused in config.yaml.

All mistakes are reported together in one `SettingsError`, each with its path, what is expected, what
stands there and where. A secret is never shown: not by an error, nor by `repr`, `str`, `model_dump` or
`describe`. To make settings by hand (tests, the demo), construct the classes below: they validate in the
same way, but raise pydantic's ValidationError.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    field_validator,
)

from marketfeed.settings import values
from marketfeed.settings.aggregator import AggregatorSettings
from marketfeed.settings.status import StatusSettings, TokenField, readable_token_file
from marketfeed.settings.values import Duration, FromText, Pairs, TopPairs, expected

__all__ = [
    "AggregatorSettings",
    "Duration",
    "ExchangeSettings",
    "HistorySettings",
    "InfluxSettings",
    "JournalSettings",
    "Pairs",
    "RetentionSettings",
    "Settings",
    "StatusSettings",
    "TopPairs",
]


_CONFIG: Final = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _whole_number(low: int, high: int) -> PlainValidator:
    return PlainValidator(partial(values.parse_whole_number, low=low, high=high))


def _url(*schemes: str, may_have_path: bool = True) -> PlainValidator:
    return PlainValidator(partial(values.parse_url, schemes=schemes, may_have_path=may_have_path))


def _pairs(value: object, info: ValidationInfo) -> Pairs:
    return values.parse_pairs(value, info.data.get("quote"))


def _pairs_plain(pairs: Pairs) -> object:
    if isinstance(pairs, TopPairs):
        return {"top": pairs.count}
    return pairs if isinstance(pairs, str) else list(pairs)


_AsText: Final = PlainSerializer(str, return_type=str)
_File = Annotated[Path, PlainValidator(values.parse_path), _AsText]
_Retention = Annotated[
    Duration,
    PlainValidator(
        partial(values.parse_duration, low=Duration.parse("1h"), high=Duration.parse("36500d"))
    ),
    _AsText,
]


class ExchangeSettings(BaseModel):
    """What is collected, and from where.

    `archive` says whether history may come from the public archive at `archive_url`, whose terms forbid
    its use for live trading.
    `mark_price_every` is the stream's cadence, `funding_rate_every` the grid on which running funding
    rates are stored. `timeframes` are in ascending order, whatever order they were written in.
    """

    model_config = _CONFIG

    ws_url: Annotated[str, _url("wss", "ws", may_have_path=False)] = "wss://fstream.binance.com"
    rest_url: Annotated[str, _url("https", "http")] = "https://fapi.binance.com"
    archive: Annotated[bool, PlainValidator(values.parse_switch)] = False
    archive_url: Annotated[str, _url("https", "http")] = "https://data.binance.vision"
    quote: Annotated[str, PlainValidator(values.parse_quote)] = "USDT"
    # After `quote`, against which the validator compares.
    pairs: Annotated[
        Pairs,
        PlainValidator(_pairs),
        PlainSerializer(_pairs_plain),
        FromText(values.decode_pairs),
    ] = TopPairs(164)
    timeframes: Annotated[
        tuple[str, ...],
        PlainValidator(values.parse_timeframes),
        PlainSerializer(list),
        FromText(values.decode_list),
    ] = ("3m", "5m", "15m", "1h")
    mark_price_every: Annotated[
        Duration, PlainValidator(values.parse_mark_price_every), _AsText
    ] = Duration.parse("3s")
    funding_rate_every: Annotated[
        Duration, PlainValidator(values.parse_funding_rate_every), _AsText
    ] = Duration.parse("60s")


class HistorySettings(BaseModel):
    """How far back the store is filled, and how much of the exchange's weight a minute that may take."""

    model_config = _CONFIG

    days: Annotated[int, _whole_number(0, 3650)] = 30
    weight_per_minute: Annotated[int, _whole_number(1, 2400)] = 1200


class RetentionSettings(BaseModel):
    """How long rows are kept, counted back from the newest stored one.

    `funding_rate` goes for the running ones: one a pair and minute, which would be 5 GB in 400 days.
    Settled ones, three to six a day, are kept.
    """

    model_config = _CONFIG

    candles: _Retention = Duration.parse("400d")
    mark_price: _Retention = Duration.parse("2d")
    funding_rate: _Retention = Duration.parse("14d")


class JournalSettings(BaseModel):
    """The journal's file (an absolute path) and how large it may grow."""

    model_config = _CONFIG

    path: _File = Path("/var/lib/marketfeed/journal.db")
    max_bytes: Annotated[
        int, PlainValidator(partial(values.parse_size, low=64 * 10**6, high=10**15))
    ] = 10 * 10**9
    retention: RetentionSettings = RetentionSettings()


class InfluxSettings(BaseModel):
    """The InfluxDB that rows are shipped to; `url` None: none, the journal is the store.

    `api` v2 writes to /api/v2/write, v1 to /write?db=BUCKET. At most one of `token` and `token_file` is
    set. The file is there and readable when settings are loaded, and is read when the token is used, so
    that a new token needs no restart.
    """

    model_config = _CONFIG

    url: Annotated[str, _url("http", "https")] | None = None
    api: Annotated[Literal["v1", "v2"], PlainValidator(values.parse_api)] = "v2"
    # After `url` and `api`, which say whether it is needed.
    org: Annotated[str, PlainValidator(values.parse_name)] | None = Field(
        default=None, validate_default=True
    )
    bucket: Annotated[str, PlainValidator(values.parse_name)] = "market_data"
    token: TokenField = None
    token_file: _File | None = None

    @field_validator("org", mode="after")
    @classmethod
    def _org(cls, org: str | None, info: ValidationInfo) -> str | None:
        if org is None and info.data.get("url") and info.data.get("api") == "v2":
            raise expected("the organisation's name, which influxdb.api v2 needs")
        return org

    @field_validator("token_file", mode="after")
    @classmethod
    def _token_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return readable_token_file(path, "influxdb", info)


class Settings(BaseModel):
    """All settings. Immutable."""

    model_config = _CONFIG

    exchange: ExchangeSettings = ExchangeSettings()
    history: HistorySettings = HistorySettings()
    journal: JournalSettings = JournalSettings()
    influxdb: InfluxSettings = InfluxSettings()
    status: StatusSettings = StatusSettings()
    aggregator: AggregatorSettings = AggregatorSettings()
