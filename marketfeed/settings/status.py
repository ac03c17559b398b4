"""Settings of a status port, the collector's or the aggregator's, and how a token is set."""

import os
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field, PlainValidator, SecretStr, ValidationInfo, field_validator

from marketfeed.settings import values
from marketfeed.settings.fields import FilePath, Secret, Section, whole_number
from marketfeed.settings.values import expected

MIN_TOKEN: Final = 16
"""Characters: nobody counts wrong guesses at a status port, so none may come near."""

_Port = Annotated[int, whole_number(0, 65535)]


def readable_token_file(path: Path | None, section: str, info: ValidationInfo) -> Path | None:
    """Pass the path of a token's file on, if it can be read and stands there instead of `token`."""
    if path is None:
        return None
    if info.data.get("token") is not None:
        raise expected(f"nothing, as {section}.token is set: one of the two")
    try:
        is_file = not path.is_dir() and path.exists() and os.access(path, os.R_OK)
    except OSError:
        is_file = False
    if not is_file:
        raise expected("a file that exists and that this user may read")
    return path


class StatusSettings(Section):
    """Where the status port listens, and what it asks callers for; port 0 takes any free one.

    Without `token` and `token_file` nothing is asked for, which only a loopback address may do. The file
    is read when the token is used, so that a new token needs no restart.
    """

    section: ClassVar[str] = "status"

    host: Annotated[str, PlainValidator(values.parse_host)] = "127.0.0.1"
    port: _Port = 9108
    token: Secret = None
    # After `host` and `token`, which say whether it is needed.
    token_file: FilePath | None = Field(default=None, validate_default=True)

    @field_validator("token", mode="after")
    @classmethod
    def _long_enough(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and len(token.get_secret_value()) < MIN_TOKEN:
            raise expected(f"a token of at least {MIN_TOKEN} characters")
        return token

    @field_validator("token_file", mode="after")
    @classmethod
    def _token_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        # Neither stands there if it was a mistake itself, which is told then.
        host, token = info.data.get("host", "127.0.0.1"), info.data.get("token", "unknown")
        if path is None and token is None and not values.is_loopback(host):
            variable = f"MARKETFEED_{cls.section.replace('.', '__').upper()}__TOKEN"
            raise expected(
                f"a file with a token (or {variable}), as {cls.section}.host is no loopback address"
            )
        return readable_token_file(path, cls.section, info)


class AggregatorStatusSettings(StatusSettings):
    """Where the aggregator's own status port listens."""

    section: ClassVar[str] = "aggregator.status"

    port: _Port = 9109
