"""Settings: config.yaml, the environment and credential files, as frozen typed objects.

Precedence: environment > credential files > config.yaml > the defaults below. Every key is also a
variable `MARKETFEED_SECTION__KEY` and a credential file `section__key`. Secrets are refused in config.yaml.

All mistakes are reported together in one `SettingsError`, each with its path, what is expected, what
stands there and where. A secret is never shown: not by an error, nor by `repr`, `str`, `model_dump` or
`describe`. To make settings by hand (tests, the demo), construct the classes below: they validate in the
same way, but raise pydantic's ValidationError.
"""

import ssl
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from marketfeed.settings.addresses import address
from marketfeed.settings.aggregator import AggregatorSettings
from marketfeed.settings.bots import BotsSettings
from marketfeed.settings.exchange import ExchangeSettings, Pairs, TopPairs
from marketfeed.settings.secrets import secret_file
from marketfeed.settings.status import CollectorStatusSettings, StatusSettings
from marketfeed.settings.values import (
    AbsolutePath,
    Duration,
    Name,
    Secret,
    Section,
    Size,
    Whole,
    expected,
    expecting,
)

__all__ = [
    "AggregatorSettings",
    "BotsSettings",
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

_Retention = Annotated[Duration, Field(ge=Duration.parse("1h"), le=Duration.parse("36500d"))]


class HistorySettings(Section):
    """How far back the store is filled, and how much of the exchange's weight a minute that may take."""

    days: Annotated[Whole, Field(ge=0, le=3650)] = 30
    weight_per_minute: Annotated[Whole, Field(ge=1, le=2400)] = 1200


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

    path: AbsolutePath = Path("/var/lib/marketfeed/journal.db")
    max_bytes: Annotated[
        Size,
        Field(ge=64 * 10**6, le=10**15),
        expecting("a size such as 10GB or 512MiB, from 64MB to 1000TB"),
    ] = 10 * 10**9
    retention: RetentionSettings = RetentionSettings()


def _authority(path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        ssl.create_default_context(cafile=str(path))
    except (OSError, ssl.SSLError):
        raise expected(
            "a file of certificates (PEM) that exists and that this user may read"
        ) from None
    return path


class InfluxSettings(Section):
    """The InfluxDB that rows are shipped to; `url` None: none, the journal is the store.

    `api` v2 writes to /api/v2/write, v1 to /write?db=BUCKET. `org` is the organisation's name or id.
    `ca_file` holds the certificate of a private authority (PEM), for https. At most one of `token` and
    `token_file` is set. The file is there and readable when settings are loaded, and is read when the token
    is used, so that a new token needs no restart. `compare`: what the bucket lacks is found and sent again.
    """

    url: Annotated[str, address("http", "https")] | None = None
    api: Literal["v2", "v1"] = "v2"
    # After `url` and `api`, which decide whether it is needed.
    org: Name | None = Field(default=None, validate_default=True)
    bucket: Name = "market_data"
    token: Secret | None = None
    token_file: Annotated[AbsolutePath | None, secret_file("influxdb.token")] = None
    ca_file: Annotated[AbsolutePath | None, AfterValidator(_authority)] = None
    compare: bool = True

    @field_validator("bucket", mode="after")
    @classmethod
    def _bucket(cls, bucket: str) -> str:
        if "/" in bucket:
            # As a bucket it can be made, and is never found again by a reader.
            raise expected(
                "a name without a slash: InfluxQL takes what follows one as a retention policy"
            )
        return bucket

    @field_validator("org", mode="after")
    @classmethod
    def _org(cls, org: str | None, info: ValidationInfo) -> str | None:
        if org is None and info.data.get("url") and info.data.get("api") == "v2":
            raise expected("the organisation's name, which influxdb.api v2 needs")
        return org


class Settings(Section):
    """All settings. Immutable."""

    exchange: ExchangeSettings = ExchangeSettings()
    history: HistorySettings = HistorySettings()
    journal: JournalSettings = JournalSettings()
    influxdb: InfluxSettings = InfluxSettings()
    status: CollectorStatusSettings = CollectorStatusSettings()
    aggregator: AggregatorSettings = AggregatorSettings()
    bots: BotsSettings = BotsSettings()
