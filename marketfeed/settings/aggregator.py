"""Settings of the aggregator: who may post, who votes, what decides, and where a decision goes.

Names end in their unit; what is written `…_s` is seconds, with decimals if need be. Passwords are never
here: feeders' ones are hashes, bots' ones come from the environment or from files.
"""

import os
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal, TypeGuard

from pydantic import (
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from marketfeed.settings import values
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
from marketfeed.settings.status import AggregatorStatusSettings
from marketfeed.settings.values import Duration, FromText, expected

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_HASH: Final = re.compile(
    r"scrypt\$[0-9]{1,7}\$[0-9]{1,2}\$[0-9]{1,2}\$[0-9a-f]{16,128}\$[0-9a-f]{64}"
)
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
SCRYPT_N_MAX: Final = 2**16
"""Above this, one wrong password would cost more than 64 MB and a quarter of a second."""


class Account(Section):
    """Who may post: a name and the hash of its password, for one feeder alone or, without one, for all."""

    username: str
    hash: str
    feeder: str | None = None


def _number(low: float, high: float) -> PlainValidator:
    return PlainValidator(partial(parse_number, low=low, high=high))


def parse_number(value: object, low: float, high: float) -> float:
    """Read a decimal number from `low` to `high`, without sign or exponent."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise expected(f"a number from {low:g} to {high:g}")
    return float(value)


def parse_feeders(value: object) -> tuple[str, ...]:
    """Read a list of feeders' names."""
    if not isinstance(value, list | tuple):
        raise expected("a list of feeders such as [73, 74, 75]")
    what = "a feeder's name: 1 to 32 letters, digits, _ . or -"
    return values.names_in(value, _NAME.fullmatch, what, "each feeder once")


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


Aliases = tuple[tuple[str, tuple[str, ...]], ...]


def parse_aliases(value: object) -> Aliases:
    """Read feeders' other names: a mapping such as `{75: [75a, 75b]}`."""
    what = "a mapping of feeders to their other names, such as {75: [75a, 75b]}, each name once"
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list | tuple):
        raise expected(what)
    seen: set[str] = set()
    for feeder, names in pairs:
        if not _is_name(feeder) or not isinstance(names, list | tuple):
            raise expected(what)
        for name in names:
            if not _is_name(name) or name in seen:
                raise expected(what)
            seen.add(name)
    return tuple((feeder, tuple(names)) for feeder, names in pairs)


def parse_accounts(value: object) -> tuple[Account, ...]:
    """Read who may post. Not a word of what stands there is repeated: it may be a password."""
    if not isinstance(value, list | tuple):
        raise expected("a list such as [{username: fleet, hash: scrypt$…}]")
    accounts = [_parse_account(item, index) for index, item in enumerate(value)]
    names = [account.username for account in accounts]
    if len(set(names)) < len(names):
        raise expected("accounts with a different username each")
    return tuple(accounts)


def _parse_account(item: object, index: int) -> Account:
    if isinstance(item, Account):
        return item
    if not isinstance(item, dict) or not {"username", "hash"} <= set(item) <= {
        "username",
        "hash",
        "feeder",
    }:
        raise expected(f"{{username: …, hash: …}}, with feeder: … or without, as account {index}")
    username, hashed, feeder = item["username"], item["hash"], item.get("feeder")
    if not isinstance(username, str) or not re.fullmatch(r"[!-9;-~]{1,64}", username):
        raise expected(
            f"a username of printable ASCII without blanks and colons in account {index}"
        )
    if not isinstance(hashed, str) or not _is_hash(hashed):
        raise expected(f"a hash as `marketfeed hash-password` prints it in account {index}")
    if feeder is not None and not _is_name(feeder):
        raise expected(f"a feeder's name, or none, in account {index}")
    return Account(username=username, hash=hashed, feeder=feeder)


def _is_hash(text: str) -> bool:
    if not _HASH.fullmatch(text):
        return False
    n, r, p = (int(part) for part in text.split("$")[1:4])
    return 2 <= n <= SCRYPT_N_MAX and n & (n - 1) == 0 and 1 <= r <= 8 and 1 <= p <= 4


def parse_missing_confidence(value: object) -> float | Literal["reject"]:
    """Read what a signal without a confidence gets: `reject`, or a stated confidence."""
    if value == "reject":
        return "reject"
    try:
        return parse_number(value, 0.0, 1.0)
    except PydanticCustomError:
        raise expected("reject, or a confidence from 0 to 1") from None


def parse_missing_feeder(value: object) -> str:
    """Read who a signal without a feeder is from: `reject`, or a feeder's name."""
    if _is_name(value):
        return value
    raise expected("reject, or a feeder's name")


def parse_ordertypes(value: object) -> tuple[str, ...]:
    """Read the order types that may be forwarded, the preferred one first."""
    if (
        isinstance(value, list | tuple)
        and value
        and all(item in ("market", "limit") for item in value)
        and len(set(value)) == len(value)
    ):
        return tuple(value)
    raise expected("[market], [limit], [market, limit] or [limit, market]")


def _aliases_plain(aliases: Aliases) -> object:
    return {feeder: list(names) for feeder, names in aliases}


def _accounts_plain(accounts: tuple[Account, ...]) -> object:
    return [
        {"username": account.username, "hash": "***", "feeder": account.feeder}
        for account in accounts
    ]


_Feeders = Annotated[
    tuple[str, ...], PlainValidator(parse_feeders), AS_LIST, FromText(values.decode_list)
]


class FeedersSettings(Section):
    """Who votes for which side. An alias votes as its feeder: 75a, 75b and 75c are one vote."""

    long: _Feeders = ()
    short: _Feeders = ()
    # After both sides, against which it is compared.
    aliases: Annotated[
        Aliases,
        PlainValidator(parse_aliases),
        PlainSerializer(_aliases_plain),
        FromText(values.decode_json),
    ] = ()

    @field_validator("short", mode="after")
    @classmethod
    def _short(cls, short: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if both := set(short) & set(info.data.get("long", ())):
            raise expected(f"feeders that do not vote long as well ({', '.join(sorted(both))})")
        return short

    @field_validator("aliases", mode="after")
    @classmethod
    def _aliases(cls, aliases: Aliases, info: ValidationInfo) -> Aliases:
        known = {*info.data.get("long", ()), *info.data.get("short", ())}
        for feeder, names in aliases:
            if feeder not in known:
                raise expected(f"aliases of feeders that are listed ({feeder} is not)")
            if taken := known.intersection(names):
                raise expected(f"other names than feeders' own ({', '.join(sorted(taken))})")
        return aliases


class BotSettings(Section):
    """A Freqtrade bot's REST API; `url` None: no bot for this side, its decisions are not forwarded.

    At most one of `password` and `password_file` is set; the file is read when the password is used.
    `timeout_s` is what the bot's answer may take; `stakeamount` None leaves the stake to the bot.
    """

    url: Annotated[str, address("http", "https")] | None = None
    username: Annotated[str, PlainValidator(values.parse_name)] = "freqtrader"
    password: Secret = None
    password_file: FilePath | None = None
    timeout_s: Annotated[float, _number(0.1, 60.0)] = 5.0
    stakeamount: Annotated[float, _number(0.000001, 1e9)] | None = None

    @field_validator("username", mode="after")
    @classmethod
    def _username(cls, username: str) -> str:
        if ":" in username:
            raise expected("a username without a colon, as HTTP Basic wants it")
        return username

    @field_validator("password_file", mode="after")
    @classmethod
    def _password_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is None:
            return None
        if info.data.get("password") is not None:
            raise expected("nothing, as the bot's password is set: one of the two")
        if not path.is_file() or not os.access(path, os.R_OK):
            raise expected("a file that exists and that this user may read")
        return path


class BotsSettings(Section):
    """The bot of each side: a decision goes to the bot of its own side only."""

    long: BotSettings = BotSettings()
    short: BotSettings = BotSettings()


class LedgerSettings(Section):
    """The ledger's file, and how long votes, decisions and forwards are kept in it."""

    path: FilePath = Path("/var/lib/marketfeed/ledger.db")
    keep: Annotated[Duration, duration("1d", "36500d"), AS_TEXT] = Duration.parse("30d")


class AggregatorSettings(Section):
    """The aggregator: the defaults hold no feeder, no bot and no account, so that nothing can be posted."""

    host: Annotated[str, PlainValidator(values.parse_host)] = "127.0.0.1"
    port: Annotated[int, whole_number(0, 65535)] = 8080
    status: AggregatorStatusSettings = AggregatorStatusSettings()
    ledger: LedgerSettings = LedgerSettings()
    feeders: FeedersSettings = FeedersSettings()
    accounts: Annotated[
        tuple[Account, ...],
        PlainValidator(parse_accounts),
        PlainSerializer(_accounts_plain),
        FromText(values.decode_json),
    ] = ()
    window_s: Annotated[float, _number(0.1, 3600.0)] = 60.0
    # After `feeders`, against which they are compared.
    min_agreements: Annotated[int, whole_number(1, 1000)] = Field(default=3, validate_default=True)
    min_confidence: Annotated[float, _number(0.0, 1.0)] = 0.7
    missing_confidence: Annotated[
        float | Literal["reject"], PlainValidator(parse_missing_confidence)
    ] = "reject"
    missing_feeder: Annotated[str, PlainValidator(parse_missing_feeder)] = "reject"
    # What happens to long and short of a pair whose windows opened less than `window_s` apart.
    on_conflict: Annotated[Literal["both", "neither"], choice("both", "neither")] = "neither"
    cooldown_s: Annotated[float, _number(0.0, 86_400.0)] = 300.0
    expire_s: Annotated[float, _number(0.1, 3600.0)] = 30.0
    default_leverage: Annotated[float, _number(1.0, 125.0)] = 1.0
    # After `default_leverage`, which it caps.
    max_leverage: Annotated[float, _number(1.0, 125.0)] = 5.0
    ordertypes: Annotated[
        tuple[str, ...],
        PlainValidator(parse_ordertypes),
        AS_LIST,
        FromText(values.decode_list),
    ] = ("market", "limit")
    bots: BotsSettings = BotsSettings()

    @field_validator("accounts", mode="after")
    @classmethod
    def _accounts(cls, accounts: tuple[Account, ...], info: ValidationInfo) -> tuple[Account, ...]:
        feeders: FeedersSettings | None = info.data.get("feeders")
        if feeders is not None:
            known = {*feeders.long, *feeders.short}
            for index, account in enumerate(accounts):
                if account.feeder is not None and account.feeder not in known:
                    raise expected(f"one of aggregator.feeders as account {index}'s feeder")
        return accounts

    @field_validator("min_agreements", mode="after")
    @classmethod
    def _min_agreements(cls, number: int, info: ValidationInfo) -> int:
        feeders: FeedersSettings | None = info.data.get("feeders")
        if feeders is not None:
            sizes = [len(side) for side in (feeders.long, feeders.short) if side]
            if sizes and number > min(sizes):
                raise expected(f"at most {min(sizes)}, the feeders of the smaller side")
        return number

    @field_validator("missing_feeder", mode="after")
    @classmethod
    def _missing_feeder(cls, name: str, info: ValidationInfo) -> str:
        feeders: FeedersSettings | None = info.data.get("feeders")
        if name != "reject" and feeders and name not in {*feeders.long, *feeders.short}:
            raise expected("reject, or one of aggregator.feeders")
        return name

    @field_validator("max_leverage", mode="after")
    @classmethod
    def _max_leverage(cls, number: float, info: ValidationInfo) -> float:
        if number < info.data.get("default_leverage", 1.0):
            raise expected("at least aggregator.default_leverage")
        return number
