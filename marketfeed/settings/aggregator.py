"""Settings of the aggregator: who may post, who votes, what decides, and where a decision goes.

Names end in their unit; what is written `…_s` is seconds, with decimals if need be. Passwords are never
here: feeders' ones are hashes, bots' ones come from the environment or from files.
"""

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from marketfeed.settings.addresses import Host, address
from marketfeed.settings.secrets import secret_file
from marketfeed.settings.status import AggregatorStatusSettings, Port
from marketfeed.settings.values import (
    AbsolutePath,
    Duration,
    FromText,
    Name,
    Number,
    Secret,
    Section,
    Whole,
    all_of,
    decode_json,
    decode_list,
    each,
    expected,
    expecting,
)

_FEEDER: Final = "[A-Za-z0-9_.-]{1,32}"
_HASH: Final = re.compile(
    r"scrypt\$([0-9]{1,7})\$([0-9]{1,2})\$([0-9]{1,2})\$[0-9a-f]{16,128}\$[0-9a-f]{64}"
)
SCRYPT_N_MAX: Final = 2**16
"""Above this, one wrong password would cost more than 64 MB and a quarter of a second."""

_NAME: Final = "a feeder's name: 1 to 32 letters, digits, _ . or -"
_Feeder = Annotated[str, Field(pattern=f"^{_FEEDER}$"), expecting(_NAME)]
_Confidence = Annotated[Number, Field(ge=0, le=1)]
_Leverage = Annotated[Number, Field(ge=1, le=125)]


def _hash(text: str) -> str:
    if not (match := _HASH.fullmatch(text)):
        raise ValueError
    n, r, p = (int(part) for part in match.groups())
    if not (2 <= n <= SCRYPT_N_MAX and n & (n - 1) == 0 and 1 <= r <= 8 and 1 <= p <= 4):
        raise ValueError
    return text


class Account(Section):
    """Who may post: a name and the hash of its password, for one feeder alone or, without one, for all."""

    username: Annotated[
        str,
        Field(pattern="^[!-9;-~]{1,64}$"),
        expecting("a username of printable ASCII without blanks and colons"),
    ]
    hash: Annotated[
        str,
        AfterValidator(_hash),
        PlainSerializer(lambda _: "***"),
        expecting("a hash as `marketfeed hash-password` prints it"),
    ] = Field(repr=False)
    feeder: _Feeder | None = None


def _a_list(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise expected("a list such as [{username: fleet, hash: scrypt$…}]")
    return value


def _feeders(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise expected("a list of feeders such as [73, 74, 75]")

    return each(value, lambda name: None if _is_name(name) else _NAME, "each feeder once")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(_FEEDER, value) is not None


_Feeders = Annotated[tuple[str, ...], BeforeValidator(_feeders), FromText(decode_list)]
Aliases = tuple[tuple[str, tuple[str, ...]], ...]
_ALIASES: Final = "a mapping of feeders to their other names, such as {75: [75a, 75b]}"


def _aliases(value: object) -> object:
    """A mapping as it is kept. Raises every mistake of it where it stands."""
    if isinstance(value, dict):
        value = tuple(value.items())
    if not isinstance(value, tuple) or any(
        not isinstance(it, tuple) or len(it) != 2 for it in value
    ):
        raise expected(_ALIASES)
    taken: dict[object, object] = {}
    mistakes: list[tuple[tuple[str | int, ...], PydanticCustomError, object]] = []
    for feeder, names in value:
        where = str(feeder)
        if not _is_name(feeder):
            mistakes.append(((where,), expected(_NAME), feeder))
        if not isinstance(names, list | tuple):
            mistakes.append(((where,), expected("a list of other names such as [75a, 75b]"), names))
            continue
        for index, name in enumerate(names):
            if not _is_name(name):
                mistakes.append(((where, index), expected(_NAME), name))
            elif name in taken:
                what = f"each name once (it is one of {taken[name]}'s already)"
                mistakes.append(((where, index), expected(what), name))
            else:
                taken[name] = feeder
    all_of(mistakes)
    return tuple((feeder, tuple(names)) for feeder, names in value)


def _each_type_once(types: tuple[str, ...]) -> tuple[str, ...]:
    if not types or len(set(types)) < len(types):
        raise ValueError
    return types


def _some(names: tuple[str, ...]) -> str:
    """The first of these, for a sentence."""
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(names[:12]) + more) or "there is none"


class FeedersSettings(Section):
    """Who votes for which side. An alias votes as its feeder: 75a, 75b and 75c are one vote."""

    long: _Feeders = ()
    short: _Feeders = ()
    # After both sides, against which it is compared.
    aliases: Annotated[
        Aliases, BeforeValidator(_aliases), PlainSerializer(dict), FromText(decode_json)
    ] = ()

    @property
    def known(self) -> frozenset[str]:
        """The feeders of both sides."""
        return frozenset({*self.long, *self.short})

    @field_validator("short", mode="after")
    @classmethod
    def _short(cls, short: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        long = info.data.get("long", ())
        what = "a feeder that does not vote long as well"
        all_of(((index,), expected(what), it) for index, it in enumerate(short) if it in long)
        return short

    @field_validator("aliases", mode="after")
    @classmethod
    def _other_names(cls, aliases: Aliases, info: ValidationInfo) -> Aliases:
        if not {"long", "short"} <= info.data.keys():
            # Those are mistaken themselves: whom they meant is not known.
            return aliases
        known = (*info.data["long"], *info.data["short"])
        what = f"one of the feeders of long and short ({_some(known)})"
        all_of(
            ((feeder,), expected(what, repr(feeder)), feeder)
            for feeder, _ in aliases
            if feeder not in known
        )
        what = "another name than a feeder's own"
        all_of(
            ((feeder, index), expected(what), name)
            for feeder, names in aliases
            for index, name in enumerate(names)
            if name in known
        )
        return aliases


class BotSettings(Section):
    """A Freqtrade bot's REST API; `url` None: no bot for this side, its decisions are not forwarded.

    At most one of `password` and `password_file` is set; the file is read when the password is used.
    `timeout_s` is what the bot's answer may take; `stakeamount` None leaves the stake to the bot.
    """

    url: Annotated[str, address("http", "https")] | None = None
    username: Name = "freqtrader"
    password: Secret | None = None
    password_file: Annotated[AbsolutePath | None, secret_file("the bot's password")] = None
    timeout_s: Annotated[Number, Field(ge=0.1, le=60)] = 20.0
    stakeamount: (
        Annotated[
            Number,
            Field(ge=0.000001, le=1e9),
            expecting("a number from 1e-06 to 1e+09"),
        ]
        | None
    ) = None

    @field_validator("username", mode="after")
    @classmethod
    def _username(cls, username: str) -> str:
        if ":" in username:
            raise expected("a username without a colon, as HTTP Basic wants it")
        return username


class BotsSettings(Section):
    """The bot of each side: a decision goes to the bot of its own side only, and a copy of it to `meta`.

    `meta` with `url` None: there is no such third bot.
    """

    long: BotSettings = BotSettings()
    short: BotSettings = BotSettings()
    meta: BotSettings = BotSettings()


class LedgerSettings(Section):
    """The ledger's file, and how long votes, decisions and forwards are kept in it."""

    path: AbsolutePath = Path("/var/lib/marketfeed/ledger.db")
    keep: Annotated[Duration, Field(ge=Duration.parse("1d"), le=Duration.parse("36500d"))] = (
        Duration.parse("30d")
    )


class AggregatorSettings(Section):
    """The aggregator. The defaults hold no bot and no account, so that nothing can be posted.

    Without `feeders` those of the shipped config.yaml vote; a side that is left out of it has none.
    """

    host: Host = "127.0.0.1"
    port: Port = 8080
    status: AggregatorStatusSettings = AggregatorStatusSettings()
    ledger: LedgerSettings = LedgerSettings()
    feeders: FeedersSettings = FeedersSettings(
        long=("73", "74", "75", "79", "108"),
        short=("120", "121", "122", "123", "124"),
        aliases=(("75", ("75a", "75b", "75c")),),
    )
    accounts: Annotated[tuple[Account, ...], BeforeValidator(_a_list), FromText(decode_json)] = ()
    window_s: Annotated[Number, Field(ge=0.1, le=3600)] = 60.0
    # After `feeders`, against which they are compared.
    min_agreements: Annotated[Whole, Field(ge=1, le=1000)] = Field(default=3, validate_default=True)
    min_confidence: _Confidence = 0.7
    missing_confidence: Annotated[
        Literal["reject"] | _Confidence, expecting("reject, or a confidence from 0 to 1")
    ] = "reject"
    missing_feeder: Annotated[_Feeder, expecting("reject, or a feeder's name")] = "reject"
    # What happens to long and short of a pair whose windows opened less than `window_s` apart.
    on_conflict: Literal["both", "neither"] = "neither"
    # How long a full house waits for the other side, with `neither`; None: until the window's end.
    early_grace_s: Annotated[Number, Field(ge=0, le=3600)] | None = 3.0
    cooldown_s: Annotated[Number, Field(ge=0, le=86_400)] = 300.0
    expire_s: Annotated[Number, Field(ge=0.1, le=3600)] = 30.0
    # None: the bot decides, if no feeder does.
    default_leverage: _Leverage | None = 1.0
    # After `default_leverage`, which it caps.
    max_leverage: _Leverage = 5.0
    ordertypes: Annotated[
        tuple[Literal["market", "limit"], ...],
        AfterValidator(_each_type_once),
        expecting("[market], [limit], [market, limit] or [limit, market]"),
        FromText(decode_list),
    ] = ("market", "limit")
    bots: BotsSettings = BotsSettings()
    # An order of which nobody knows what became is lost so long after it was sent.
    unconfirmed_s: Annotated[Number, Field(ge=0.1, le=3600)] = 40.0
    # Of a pair that the other side's bot holds.
    opposite_open: Literal["send", "skip"] = "send"
    # Of a pair that is not on its bot's whitelist; Freqtrade's forceenter takes it.
    outside_whitelist: Literal["send", "skip"] = "send"

    @field_validator("accounts", mode="after")
    @classmethod
    def _accounts(cls, accounts: tuple[Account, ...], info: ValidationInfo) -> tuple[Account, ...]:
        first_at: dict[str, int] = {}
        feeders: FeedersSettings | None = info.data.get("feeders")
        mistakes: list[tuple[tuple[str | int, ...], PydanticCustomError, object]] = []
        for index, account in enumerate(accounts):
            name, feeder = account.username, account.feeder
            if (first := first_at.setdefault(name, index)) != index:
                what = expected(f"another username than that of accounts[{first}]", "the same")
                mistakes.append(((index, "username"), what, name))
            if feeders and feeder and feeder not in feeders.known:
                known = _some((*feeders.long, *feeders.short))
                what = expected(f"one of aggregator.feeders ({known})", repr(feeder))
                mistakes.append(((index, "feeder"), what, feeder))
        all_of(mistakes)
        return accounts

    @field_validator("min_agreements", mode="after")
    @classmethod
    def _min_agreements(cls, number: int, info: ValidationInfo) -> int:
        feeders: FeedersSettings = info.data.get("feeders", FeedersSettings())
        sizes = [len(side) for side in (feeders.long, feeders.short) if side]
        if sizes and number > min(sizes):
            raise expected(f"at most {min(sizes)}, the feeders of the smaller side")
        return number

    @field_validator("missing_feeder", mode="after")
    @classmethod
    def _missing_feeder(cls, name: str, info: ValidationInfo) -> str:
        feeders: FeedersSettings | None = info.data.get("feeders")
        if name != "reject" and feeders and name not in feeders.known:
            raise expected("reject, or one of aggregator.feeders")
        return name

    @field_validator("max_leverage", mode="after")
    @classmethod
    def _max_leverage(cls, number: float, info: ValidationInfo) -> float:
        if number < (info.data.get("default_leverage") or 1.0):
            raise expected("at least aggregator.default_leverage")
        return number
