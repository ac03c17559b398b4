"""The values that settings hold, and how each is read from text.

Every `parse_…` here turns what one source says (text from config.yaml, the environment or a credential
file; lists and dicts of text; or a value that is already of the right type) into a typed value, or raises
the error of `expected`, which says what would have been right and never repeats what was found.
"""

import contextlib
import ipaddress
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import SecretStr
from pydantic_core import PydanticCustomError

from marketfeed import schema

MISTAKE: Final = "marketfeed"
"""`type` of the validation errors that this module raises; their `ctx` holds the keys below."""


def expected(what: str) -> PydanticCustomError:
    """The error of a wrong value: `what` completes the sentence "expected …"."""
    return PydanticCustomError(MISTAKE, "expected {expected}", {"expected": what})


def expected_items(wrong: Iterable[tuple[int, str]]) -> PydanticCustomError:
    """The error of a list in which some items are wrong: (index, what was expected there) of each."""
    items = list(wrong)
    return PydanticCustomError(
        MISTAKE, "expected {expected}", {"expected": items[0][1], "items": items}
    )


def names_in(
    value: list[object] | tuple[object, ...], is_name: Callable[[str], object], what: str, once: str
) -> tuple[str, ...]:
    """The names of a list. Else raises which items are none (`what` is expected) or there before (`once`)."""
    wrong: list[tuple[int, str]] = []
    names: list[str] = []
    for index, item in enumerate(value):
        if not isinstance(item, str) or not is_name(item):
            wrong.append((index, what))
        elif item in names:
            wrong.append((index, once))
        else:
            names.append(item)
    if wrong:
        raise expected_items(wrong)
    return tuple(names)


@dataclass(frozen=True, slots=True)
class FromText:
    """Marks a field whose text in the environment or in a credential file is not its plain value.

    `decode` turns the text into what config.yaml would hold there, and returns any text that it does
    not understand as it stands, for validation to report.
    """

    decode: Callable[[str], object]


# --- numbers --------------------------------------------------------------------------------------

_WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


def parse_whole_number(value: object, low: int, high: int) -> int:
    """Read a plain decimal number from `low` to `high`. No signs, points, exponents or leading zeros."""
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise expected(f"a whole number from {low} to {high}")
    return value


_SIZE = re.compile(r"([0-9]{1,15}) ?([kKMGT]?i?)B", re.IGNORECASE)
_SIZE_UNITS: Final = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def parse_size(value: object, low: int, high: int) -> int:
    """Read a size in bytes: a whole number, or one with kB, MB, GB, TB or KiB, MiB, GiB, TiB."""
    size = value if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(value, str):
        if _WHOLE_NUMBER.fullmatch(value):
            size = int(value)
        elif (match := _SIZE.fullmatch(value)) and match[2].lower() in _SIZE_UNITS:
            size = int(match[1]) * _SIZE_UNITS[match[2].lower()]
    if size is None or not low <= size <= high:
        raise expected(f"a size such as 10GB or 512MiB, from {size_text(low)} to {size_text(high)}")
    return size


def size_text(size_bytes: int) -> str:
    """Write a size with the largest decimal unit that divides it: 10GB."""
    for unit in ("T", "G", "M", "k"):
        if size_bytes and size_bytes % _SIZE_UNITS[unit.lower()] == 0:
            return f"{size_bytes // _SIZE_UNITS[unit.lower()]}{unit}B"
    return f"{size_bytes}B"


# --- durations ------------------------------------------------------------------------------------

_DURATION = re.compile(r"([0-9]{1,15}) ?(ms|s|m|h|d)")
_DURATION_UNITS_MS: Final = {
    "d": schema.DAY_MS,
    "h": schema.HOUR_MS,
    "m": schema.MINUTE_MS,
    "s": schema.SECOND_MS,
    "ms": 1,
}


@dataclass(frozen=True, slots=True, order=True)
class Duration:
    """A length of time in whole milliseconds, written as in config.yaml: `250ms 3s 5m 2h 400d`."""

    ms: int

    @property
    def s(self) -> float:
        """The same in seconds."""
        return self.ms / 1000.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a whole number with its unit. Raises ValueError for anything else."""
        match = _DURATION.fullmatch(text)
        if match is None:
            raise ValueError("not a duration")
        return cls(int(match[1]) * _DURATION_UNITS_MS[match[2]])

    def __str__(self) -> str:
        if self.ms == 0:
            return "0s"
        unit = next(unit for unit, ms in _DURATION_UNITS_MS.items() if self.ms % ms == 0)
        return f"{self.ms // _DURATION_UNITS_MS[unit]}{unit}"


def parse_duration(value: object, low: Duration, high: Duration) -> Duration:
    """Read a duration from `low` to `high`. A number without a unit is refused."""
    duration = value if isinstance(value, Duration) else None
    if isinstance(value, str) and _DURATION.fullmatch(value):
        duration = Duration.parse(value)
    if duration is None or not low <= duration <= high:
        raise expected(f"a duration such as 90s, 5m, 2h or 400d, from {low} to {high}")
    return duration


def parse_mark_price_every(value: object) -> Duration:
    """Read the cadence of the mark price stream: Binance pushes every second or every third."""
    for choice in (Duration(schema.SECOND_MS), Duration(3 * schema.SECOND_MS)):
        if value in (choice, str(choice)):
            return choice
    raise expected("1s or 3s")


def parse_funding_rate_every(value: object) -> Duration:
    """Read the grid of the running funding rate: whole seconds that divide a minute, 3s at least."""
    duration = (
        Duration.parse(value) if isinstance(value, str) and _DURATION.fullmatch(value) else value
    )
    choices = [Duration(s * schema.SECOND_MS) for s in (3, 4, 5, 6, 10, 12, 15, 20, 30, 60)]
    if duration in choices and isinstance(duration, Duration):
        return duration
    raise expected("3s, 4s, 5s, 6s, 10s, 12s, 15s, 20s, 30s or 60s (it must divide a minute)")


# --- switches ---------------------------------------------------------------------------------------


def parse_switch(value: object) -> bool:
    """Read `true` or `false`."""
    if value is True or value == "true":
        return True
    if value is False or value == "false":
        return False
    raise expected("true or false")


# --- text -----------------------------------------------------------------------------------------


def parse_name(value: object) -> str:
    """Read the name of an organisation or bucket: printable text, up to 128 characters."""
    if (
        isinstance(value, str)
        and value.strip() == value != ""
        and value.isprintable()
        and len(value) <= 128
    ):
        return value
    raise expected("a name of 1 to 128 printable characters")


def parse_quote(value: object) -> str:
    """Read a quote currency."""
    if isinstance(value, str) and re.fullmatch(r"[A-Z0-9]{1,16}", value):
        return value
    raise expected("a quote currency in capital letters, such as USDT")


def parse_choice(value: object, choices: tuple[str, ...]) -> str:
    """Read one of `choices`."""
    if isinstance(value, str) and value in choices:
        return value
    raise expected(" or ".join(choices))


def parse_path(value: object) -> Path:
    """Read the path of a file. `~` is expanded, a relative path starts at the working directory."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and value and value.isprintable() and not value.endswith("/"):
        try:
            return Path(value).expanduser().absolute()
        except (OSError, RuntimeError):
            raise expected("the path of a file (whose home directory or start is known)") from None
    raise expected("the path of a file")


def parse_token(value: object) -> SecretStr | None:
    """Read a token: printable ASCII, so that it can stand in an HTTP header."""
    if value is None:
        return None
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(text, str) and re.fullmatch(r"[ -~]{1,4096}", text) and text.strip():
        return SecretStr(text.strip())
    raise expected("a token on one line, in printable ASCII")


# --- addresses ------------------------------------------------------------------------------------

_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})")


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        labels = text.removesuffix(".").split(".")
        # A last label of digits alone is a mistyped IPv4 address, not a name.
        return (
            len(text) <= 253
            and all(_HOST_LABEL.fullmatch(label) for label in labels)
            and not labels[-1].isdigit()
        )
    return True


def is_loopback(host: str) -> bool:
    """Whether only this host reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


def parse_host(value: object) -> str:
    """Read an address to listen on: a host name or an IP address, without a port."""
    if isinstance(value, str) and value.isascii() and _is_host(value):
        return value
    raise expected("a host name or an IP address such as 127.0.0.1, without a port")


def parse_url(value: object, schemes: tuple[str, ...], *, may_have_path: bool) -> str:
    """Read a URL and normalise it: scheme and host in small letters, no slash at its end.

    User names, passwords, queries and fragments are refused: a URL is no place for a secret.
    """
    what = " or ".join(f"{scheme}://host[:port]" for scheme in schemes)
    if not may_have_path:
        what += " without a path"
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise expected(what)
    if "@" in value:
        raise expected(f"{what} and without user:password@")
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise expected(what) from None
    path = parts.path.rstrip("/")
    if (
        parts.scheme not in schemes
        or not _is_host(host)
        or port == 0
        or "?" in value
        or "#" in value
        or (path and not may_have_path)
    ):
        raise expected(what)
    authority = f"[{host}]" if ":" in host else host
    if port is not None:
        authority += f":{port}"
    return f"{parts.scheme}://{authority}{path}"


# --- pairs and timeframes -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TopPairs:
    """The `count` pairs with the greatest 24 h quote volume: `pairs: {top: 164}`."""

    count: int


Pairs = TopPairs | tuple[str, ...] | Literal["all"]
"""Which pairs are collected: the most traded, the named ones, or every one that is listed."""

_PAIRS_EXPECTED: Final = (
    f"{{top: N}} with N from 1 to 1000, a list such as [{schema.PAIR_EXAMPLE}], or all"
)
_TIMEFRAMES_EXPECTED: Final = "a list such as [3m, 5m, 15m, 1h]"


def parse_pairs(value: object, quote: str | None) -> Pairs:
    """Read `pairs`. `quote` is what each named pair must be quoted and settled in, if that is known."""
    if value == "all":
        return "all"
    if isinstance(value, TopPairs):
        value = {"top": value.count}
    if isinstance(value, dict):
        if set(value) != {"top"}:
            raise expected(_PAIRS_EXPECTED)
        try:
            return TopPairs(parse_whole_number(value["top"], 1, 1000))
        except PydanticCustomError:
            raise expected(_PAIRS_EXPECTED) from None
    if not isinstance(value, list | tuple) or not value:
        raise expected(_PAIRS_EXPECTED)
    wrong: list[tuple[int, str]] = []
    first_at: dict[str, int] = {}
    for index, pair in enumerate(value):
        if not schema.is_pair(pair):
            wrong.append((index, f"a pair as Freqtrade writes it, such as {schema.PAIR_EXAMPLE}"))
        elif quote is not None and not pair.endswith(f"/{quote}:{quote}"):
            wrong.append((index, f"a pair that ends in /{quote}:{quote}, as exchange.quote says"))
        elif pair in first_at:
            wrong.append((index, f"each pair once (it is item {first_at[pair]} already)"))
        else:
            first_at[pair] = index
    if wrong:
        raise expected_items(wrong)
    return tuple(value)


def parse_timeframes(value: object) -> tuple[str, ...]:
    """Read `timeframes`, and put them in ascending order."""
    if not isinstance(value, list | tuple) or not value:
        raise expected(_TIMEFRAMES_EXPECTED)
    one_of = "one of " + ", ".join(schema.TIMEFRAMES_MS)
    names = names_in(value, schema.TIMEFRAMES_MS.__contains__, one_of, "each timeframe once")
    return tuple(sorted(names, key=schema.TIMEFRAMES_MS.__getitem__))


def decode_json(text: str) -> object:
    """Decode text that looks like a JSON list or object; any other text, and broken JSON, stays text."""
    if text.startswith(("{", "[")):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def decode_list(text: str) -> object:
    """Decode `1m,3m`, or a JSON list."""
    if text.startswith(("{", "[")):
        return decode_json(text)
    return [item.strip() for item in text.split(",")]


def decode_pairs(text: str) -> object:
    """Decode `all`, `top:50`, `BTC/USDT:USDT,ETH/USDT:USDT`, or JSON."""
    if text == "all":
        return text
    if match := re.fullmatch(r"top: ?([0-9]+)", text):
        return {"top": match[1]}
    return decode_list(text)
