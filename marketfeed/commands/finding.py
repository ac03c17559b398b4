"""What a check found."""

from typing import Literal

import msgspec

Verdict = Literal["good", "warning", "bad"]


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at: `good`, a `warning` (it runs, but look at it) or `bad`."""

    subject: str
    verdict: Verdict
    text: str
