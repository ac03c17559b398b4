"""What sections of the settings are made of: their common base, and fields that several of them have."""

from functools import partial
from pathlib import Path
from typing import Annotated, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    SecretStr,
)

from marketfeed.settings import values


class Section(BaseModel):
    """Keys that belong together. Immutable; unknown keys are mistakes, and no error shows a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def whole_number(low: int, high: int) -> PlainValidator:
    """A whole number from `low` to `high`."""
    return PlainValidator(partial(values.parse_whole_number, low=low, high=high))


def choice(*choices: str) -> PlainValidator:
    """One of `choices`, as text."""
    return PlainValidator(partial(values.parse_choice, choices=choices))


def duration(low: str, high: str) -> PlainValidator:
    """A duration from `low` to `high`."""
    shortest, longest = values.Duration.parse(low), values.Duration.parse(high)
    return PlainValidator(partial(values.parse_duration, low=shortest, high=longest))


def address(*schemes: str, may_have_path: bool = True) -> PlainValidator:
    """A URL of one of `schemes`."""
    return PlainValidator(partial(values.parse_url, schemes=schemes, may_have_path=may_have_path))


AS_TEXT: Final = PlainSerializer(str, return_type=str)
AS_LIST: Final = PlainSerializer(list)
FilePath = Annotated[Path, PlainValidator(values.parse_path), AS_TEXT]
Secret = Annotated[
    SecretStr | None,
    BeforeValidator(values.parse_token),
    PlainSerializer(lambda secret: None if secret is None else "***"),
]
