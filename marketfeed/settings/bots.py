"""Settings of the bots' records: where the books are, which bots there are, and their buckets."""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, field_validator

from marketfeed import schema
from marketfeed.settings.addresses import address
from marketfeed.settings.secrets import secret_file
from marketfeed.settings.status import Port, StatusSettings
from marketfeed.settings.values import (
    AbsolutePath,
    Duration,
    FromText,
    Name,
    Number,
    Section,
    all_of,
    decode_json,
    expected,
    expecting,
)

_BOT: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MEASUREMENT: Final = "[a-z][a-z0-9_]{0,63}"


class FleetBot(Section):
    """An executor bot: a Freqtrade bot's REST API, which side it trades, and the bucket of its trades.

    The password is the content of `password_file`, read when it is used. `bucket` None: the bot's name with
    `_trades` behind it.
    """

    url: Annotated[str, address("http", "https")]
    username: Name = "freqtrader"
    password_file: Annotated[AbsolutePath | None, secret_file("the bot's password")] = None
    timeout_s: Annotated[Number, Field(ge=0.1, le=60)] = 20.0
    side: Literal["long", "short", "both"] = "both"
    bucket: Name | None = None
    measurement: Annotated[
        str,
        Field(pattern=f"^{_MEASUREMENT}$"),
        expecting("a measurement of small letters, digits and _, such as closed_trades_v2"),
    ] = schema.CLOSED_TRADES

    @field_validator("bucket", mode="after")
    @classmethod
    def _bucket(cls, bucket: str | None) -> str | None:
        if bucket is not None and "/" in bucket:
            raise expected(
                "a name without a slash: InfluxQL takes what follows one as a retention policy"
            )
        return bucket

    def bucket_of(self, name: str) -> str:
        """The bucket of this bot, which is called `name`."""
        return self.bucket or f"{name}_trades"


class _Fleet(dict[str, FleetBot]):
    """Bots by name, as all settings are with a hash."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


def _names(fleet: dict[str, FleetBot]) -> dict[str, FleetBot]:
    what = "a bot's name: 1 to 32 letters, digits, _ or -"
    all_of(((name,), expected(what), name) for name in fleet if not _BOT.fullmatch(name))
    return _Fleet(fleet)


Fleet = Annotated[
    dict[str, FleetBot],
    AfterValidator(_names),
    FromText(decode_json),
]


class BooksSettings(Section):
    """The file of the books. What is in it is kept for good."""

    path: AbsolutePath = Path("/var/lib/marketfeed/books.db")


class BotsStatusSettings(StatusSettings):
    """Where the status port of the bots' records listens."""

    section: ClassVar[str] = "bots.status"

    port: Port = 9113
    token_file: Annotated[AbsolutePath | None, secret_file("bots.status.token")] = Field(
        default=None, validate_default=True
    )


class BotsSettings(Section):
    """The bots' records. Without a fleet there is nothing to record."""

    books: BooksSettings = BooksSettings()
    fleet: Fleet = _Fleet()
    poll: Annotated[Duration, Field(ge=Duration.parse("1s"), le=Duration.parse("1h"))] = (
        Duration.parse("60s")
    )
    status: BotsStatusSettings = BotsStatusSettings()
