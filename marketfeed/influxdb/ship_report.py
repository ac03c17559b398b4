"""How shipping goes, for reports. Pure."""

from typing import Final

import msgspec

PURE = True

HELD_NAMED: Final = 20
"""Ten years of weeks would be a report of hundreds of KB, every second."""


class ShipReport(msgspec.Struct, frozen=True):
    """How shipping goes. `state` is `shipping`, `waiting` (the server is down or busy) or `parked`.

    `in_doubt` are lines that were sent without an answer, or whose answer may be carried out late; `held`
    names the newest measurements and shards whose rows wait because the bucket refuses them; all are
    `held_shards`.
    """

    target: str
    state: str
    trouble: str
    trouble_for_s: float
    unshipped: int
    lines: int
    refused: int
    batches: int
    acknowledged_ago_s: float | None
    in_doubt: int
    held: list[str] = []
    held_shards: int = 0
