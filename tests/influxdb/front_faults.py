"""What a front can be made to do with the next writes instead of what is right."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer with `status` and nothing stored. `code` and `message` make the body as 2.x has it."""

    status: int
    code: str = "internal error"
    message: str = "made to fail"
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class Slow:
    """Store and answer as usual, but wait before: `where` names before what."""

    seconds: float
    where: Literal["storing", "answering"] = "storing"


@dataclass(frozen=True, slots=True)
class Cut:
    """Close the connection without an answer, the lines being stored or not."""

    stored: bool


@dataclass(frozen=True, slots=True)
class Partial:
    """Store all lines but the last one and answer 422, as for a conflict of types."""


Fault = Answer | Slow | Cut | Partial

BAD_REQUEST = Answer(400, "invalid", "unable to parse 'x': missing fields")
UNAUTHORIZED = Answer(401, "unauthorized", "unauthorized access")
FORBIDDEN = Answer(403, "forbidden", "insufficient permissions for write")
NOT_FOUND = Answer(404, "not found", 'bucket "x" not found')
TOO_LARGE = Answer(413, "request too large", "unable to read data: points batch is too large")
SERVER_ERROR = Answer(
    500, "internal error", "unexpected error writing points to database: engine: cache-max-memory"
)
UNAVAILABLE = Answer(503, "unavailable", "service unavailable")


def too_many(retry_after: str | None = "1") -> Answer:
    """A rate limit, with seconds or an HTTP date to wait."""
    return Answer(429, "too many requests", "over the limit of writes", retry_after)
