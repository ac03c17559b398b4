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
from typing import Annotated, Literal

from pydantic import (
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    field_validator,
)

from marketfeed.settings import values
from marketfeed.settings.aggregator import AggregatorSettings
from marketfeed.settings.fields import (
    AS_LIST,
    AS_TEXT,
    FilePath,
    Secret,
    Section,
    address,
    choice,
    duration,
    whole_number,
)
from marketfeed.settings.status import StatusSettings, readable_token_file
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


def _pairs(value: object, info: ValidationInfo) -> Pairs:
    return values.parse_pairs(value, info.data.get("quote"))


def _pairs_plain(pairs: Pairs) -> object:
    if isinstance(pairs, TopPairs):
        return {"top": pairs.count}
    return pairs if isinstance(pairs, str) else list(pairs)


_Retention = Annotated[Duration, duration("1h", "36500d"), AS_TEXT]


class ExchangeSettings(Section):
    """What is collected, and from where.

    `archive` says whether history may come from the public archive at `archive_url`, whose terms forbid
    its use for live trading.
    `mark_price_every` is the stream's cadence, `funding_rate_every` the grid on which running funding
    rates are stored. `timeframes` are in ascending order, whatever order they were written in.
    """

    ws_url: Annotated[str, address("wss", "ws", may_have_path=False)] = "wss://fstream.binance.com"
    rest_url: Annotated[str, address("https", "http")] = "https://fapi.binance.com"
    archive: Annotated[bool, PlainValidator(values.parse_switch)] = False
    archive_url: Annotated[str, address("https", "http")] = "https://data.binance.vision"
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
        AS_LIST,
        FromText(values.decode_list),
    ] = ("3m", "5m", "15m", "1h")
    mark_price_every: Annotated[
        Duration, PlainValidator(values.parse_mark_price_every), AS_TEXT
    ] = Duration.parse("3s")
    funding_rate_every: Annotated[
        Duration, PlainValidator(values.parse_funding_rate_every), AS_TEXT
    ] = Duration.parse("60s")


class HistorySettings(Section):
    """How far back the store is filled, and how much of the exchange's weight a minute that may take."""

    days: Annotated[int, whole_number(0, 3650)] = 30
    weight_per_minute: Annotated[int, whole_number(1, 2400)] = 1200


class RetentionSettings(Section):
    """How long rows are kept, counted back from the newest stored one.

    `funding_rate` goes for the running ones: one a pair and minute, which would be 5 GB in 400 days.
    Settled ones, three to six a day, are kept.
    """

    candles: _Retention = Duration.parse("400d")
    mark_price: _Retention = Duration.parse("2d")
    funding_rate: _Retention = Duration.parse("14d")


class JournalSettings(Section):
    """The journal's file (an absolute path) and how large it may grow."""

    path: FilePath = Path("/var/lib/marketfeed/journal.db")
    max_bytes: Annotated[
        int, PlainValidator(partial(values.parse_size, low=64 * 10**6, high=10**15))
    ] = 10 * 10**9
    retention: RetentionSettings = RetentionSettings()


class InfluxSettings(Section):
    """The InfluxDB that rows are shipped to; `url` None: none, the journal is the store.

    `api` v2 writes to /api/v2/write, v1 to /write?db=BUCKET. At most one of `token` and `token_file` is
    set. The file is there and readable when settings are loaded, and is read when the token is used, so
    that a new token needs no restart.
    """

    url: Annotated[str, address("http", "https")] | None = None
    api: Annotated[Literal["v1", "v2"], choice("v2", "v1")] = "v2"
    # After `url` and `api`, which say whether it is needed.
    org: Annotated[str, PlainValidator(values.parse_name)] | None = Field(
        default=None, validate_default=True
    )
    bucket: Annotated[str, PlainValidator(values.parse_name)] = "market_data"
    token: Secret = None
    token_file: FilePath | None = None

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


class Settings(Section):
    """All settings. Immutable."""

    exchange: ExchangeSettings = ExchangeSettings()
    history: HistorySettings = HistorySettings()
    journal: JournalSettings = JournalSettings()
    influxdb: InfluxSettings = InfluxSettings()
    status: StatusSettings = StatusSettings()
    aggregator: AggregatorSettings = AggregatorSettings()
