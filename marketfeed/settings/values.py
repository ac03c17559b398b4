"""The types of which settings are made, and the words for what they expect.

Values come as text from config.yaml, the environment and credential files, or as they are from whoever
makes settings by hand. pydantic checks them. `expecting` puts our words in place of its errors, which
repeat the value; of plain numbers, switches and durations `mistakes` knows the words.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    Strict,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from marketfeed import schema

MISTAKE: Final = "marketfeed"
"""`type` of the validation errors that `expected` makes."""
_WORDS: Final[dict[object, str]] = {}
"""What `expecting` has made -> its words, for values that are missing."""


class Section(BaseModel):
    """Keys that belong together. Immutable; unknown keys are mistakes, and no error shows a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def expected(what: str, found: str = "") -> PydanticCustomError:
    """The error of a wrong value: `what` completes the sentence "expected …".

    `found` are words for what stands there, where it is more than the value: never a secret's.
    """
    return PydanticCustomError(MISTAKE, "expected {expected}", {"expected": what, "found": found})


def expecting(what: str) -> WrapValidator:
    """Whatever is wrong with a value of this type, or anywhere in it, the error is `expected(what)`."""

    def check(value: object, read: Callable[[object], object]) -> object:
        with contextlib.suppress(ValueError):
            return read(value)
        raise expected(what)

    _WORDS[check] = what
    return WrapValidator(check)


def words_for(mark: object) -> str:
    """What `expecting` says of the type that carries this mark; empty if it is none of its marks."""
    return _WORDS.get(mark.func, "") if isinstance(mark, WrapValidator) else ""


def all_of(mistakes: Iterable[tuple[tuple[str | int, ...], PydanticCustomError, object]]) -> None:
    """Raise all of these mistakes inside of a value, if there are any: where, what, and what stands there."""
    wrong: list[InitErrorDetails] = [
        InitErrorDetails(type=error, loc=where, input=found) for where, error, found in mistakes
    ]
    if wrong:
        raise ValidationError.from_exception_data("mistakes", wrong)


def from_text(form: str, read: Callable[[str], object]) -> BeforeValidator:
    """Text of this form is read; anything else is left as it stands, for pydantic to refuse."""
    pattern = re.compile(form)
    return BeforeValidator(
        lambda value: read(value) if isinstance(value, str) and pattern.fullmatch(value) else value
    )


def each(
    items: Sequence[object], problem: Callable[[object], str | None], once: str
) -> tuple[object, ...]:
    """The items of a list. Raises an error for each with a `problem`, or that must be there but `once`."""
    wrong: list[tuple[tuple[str | int, ...], PydanticCustomError, object]] = []
    first_at: dict[object, int] = {}
    for index, item in enumerate(items):
        what = problem(item)
        if what is None and first_at.setdefault(item, index) != index:
            what = f"{once} (it is item {first_at[item]} already)"
        if what is not None:
            wrong.append(((index,), expected(what), item))
    all_of(wrong)
    return tuple(items)


# Plain ones: no signs, no exponents, no leading zeros, no `yes`.
Whole = Annotated[int, Strict(), from_text(r"0|[1-9][0-9]{0,17}", int)]
Number = Annotated[float, Strict(), from_text(r"[0-9]{1,9}(\.[0-9]{1,9})?", float)]
Switch = Annotated[bool, Strict(), from_text("true|false", "true".__eq__)]
Size = Annotated[
    int,
    Strict(),
    from_text(
        r"(?i)0|[1-9][0-9]{0,17}|[0-9]{1,15} ?([kMGT]i?)?B",
        TypeAdapter(ByteSize).validate_python,
    ),
]
"""Bytes: a whole number, or one with kB, MB, GB, TB or KiB, MiB, GiB, TiB."""
Name = Annotated[
    str,
    Field(pattern=r"^[^\p{C}\p{Z}](([^\p{C}\p{Z}]| ){0,126}[^\p{C}\p{Z}])?$"),
    expecting("a name of 1 to 128 printable characters"),
]
"""The name of an organisation, a bucket or a user."""


def _absolute(path: object) -> Path:
    text = str(path) if isinstance(path, str | Path) else ""
    if not text or not text.isprintable() or text.endswith("/"):
        raise expected("the path of a file")
    try:
        return Path(text).expanduser().absolute()
    except (OSError, RuntimeError):
        raise expected("the path of a file (whose home directory or start is known)") from None


AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]
"""The path of a file. `~` is expanded, a relative one starts at the working directory."""


def _one_line(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not re.fullmatch(r"[ -~]{1,4096}", text) or not text.strip():
        raise ValueError
    return SecretStr(text.strip())


Secret = Annotated[
    SecretStr,
    AfterValidator(_one_line),
    PlainSerializer(lambda _: "***"),
    expecting("a token on one line, in printable ASCII"),
]
"""A token or password, which can stand in an HTTP header."""

_UNITS_MS: Final = {
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
        """Its length in seconds."""
        return self.ms / 1000.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a whole number with its unit. Raises ValueError for anything else."""
        match = re.fullmatch(r"([0-9]{1,15}) ?(ms|s|m|h|d)", text)
        if match is None:
            raise ValueError("not a duration")
        return cls(int(match[1]) * _UNITS_MS[match[2]])

    def __str__(self) -> str:
        if self.ms == 0:
            return "0s"
        unit = next(unit for unit, ms in _UNITS_MS.items() if self.ms % ms == 0)
        return f"{self.ms // _UNITS_MS[unit]}{unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> CoreSchema:
        """A setting is read by `parse`, and written as text again."""
        return core_schema.no_info_before_validator_function(
            lambda value: cls.parse(value) if isinstance(value, str) else value,
            core_schema.is_instance_schema(cls),
            serialization=core_schema.to_string_ser_schema(),
        )


def one_of(*texts: str, why: str = "") -> WrapValidator:
    """One of these durations."""
    what = f"{', '.join(texts[:-1])} or {texts[-1]}" + f" ({why})" * bool(why)
    choices = [Duration.parse(text) for text in texts]

    def check(value: object, read: Callable[[object], object]) -> object:
        with contextlib.suppress(ValueError):
            if (duration := read(value)) in choices:
                return duration
        raise expected(what)

    return WrapValidator(check)


@dataclass(frozen=True, slots=True)
class FromText:
    """Marks a key whose text in the environment or in a credential file is not its plain value.

    `decode` turns the text into what config.yaml would hold there, and returns any text that it does
    not understand as it stands, for validation to report.
    """

    decode: Callable[[str], object]


def decode_json(text: str) -> Any:
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
