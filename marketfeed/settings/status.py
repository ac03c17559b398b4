"""Settings of a status port, the collector's or the aggregator's."""

from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from marketfeed.settings.addresses import Host, is_loopback
from marketfeed.settings.secrets import secret_file
from marketfeed.settings.values import (
    AbsolutePath,
    Secret,
    Section,
    Whole,
    expected,
    expecting,
    from_text,
)

MIN_TOKEN: Final = 16
"""Characters: nobody counts wrong guesses at a status port, so none may come near."""
Port = Annotated[Whole, Field(ge=0, le=65535)]
HealthStatus = Annotated[Literal[200, 503], from_text("200|503", int), expecting("200 or 503")]


class StatusSettings(Section):
    """Where the status port listens, and what it asks callers for; port 0 takes any free one.

    Without `token` and `token_file` nothing is asked for, which only a loopback address may do. The file
    is read when the token is used, so that a new token needs no restart.
    """

    section: ClassVar[str] = "status"

    host: Host = "127.0.0.1"
    port: Port = 9108
    token: Secret | None = None
    # After `host` and `token`, which decide whether it is needed.
    token_file: Annotated[AbsolutePath | None, secret_file("status.token")] = Field(
        default=None, validate_default=True
    )

    @field_validator("token", mode="after")
    @classmethod
    def _long_enough(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and len(token.get_secret_value()) < MIN_TOKEN:
            raise expected(f"a token of at least {MIN_TOKEN} characters")
        return token

    @field_validator("token_file", mode="after")
    @classmethod
    def _needed(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        # Neither stands there if it was a mistake itself, which is reported then.
        host, token = info.data.get("host", "127.0.0.1"), info.data.get("token", "unknown")
        if path is None and token is None and not is_loopback(host):
            variable = f"MARKETFEED_{cls.section.replace('.', '__').upper()}__TOKEN"
            raise expected(
                f"a file with a token (or {variable}), as {cls.section}.host is no loopback address"
            )
        return path


class CollectorStatusSettings(StatusSettings):
    """The collector's: `filling_is` is what `/health` answers while history is filled for the first time."""

    filling_is: HealthStatus = 200


class AggregatorStatusSettings(StatusSettings):
    """Where the aggregator's own status port listens."""

    section: ClassVar[str] = "aggregator.status"

    port: Port = 9109
    token_file: Annotated[AbsolutePath | None, secret_file("aggregator.status.token")] = Field(
        default=None, validate_default=True
    )
