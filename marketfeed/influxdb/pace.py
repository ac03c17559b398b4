"""How shipping is paced. Pure."""

from typing import Final

import msgspec

PURE = True


class Pace(msgspec.Struct, frozen=True):
    """How shipping is paced, in wall seconds.

    A request holds at most `max_lines`; while there are fewer to ship, turns are `turn_s` apart. After
    failures the wait is drawn from 0 to `backoff_first_s` doubled with each, `backoff_cap_s` at most;
    when rights or settings are wrong it is `parked_s`. A stop waits `last_s` for a server that hangs.
    What was sent without an answer is looked at again `recheck_after_s` after the server has answered.
    What the bucket has of each series is said at least `coverage_every_s`. Of rows that it refuses as a whole
    one is tried `probe_every_s`. While older rows that are sent again are not taken, they wait
    `older_first_s`, doubled with each failure, `older_cap_s` at most; what is new does not wait for them.
    """

    max_lines: int = 5_000
    turn_s: float = 1.0
    forming_every_s: float = 5.0
    backoff_first_s: float = 1.0
    backoff_cap_s: float = 10.0
    parked_s: float = 30.0
    last_s: float = 10.0
    recheck_after_s: float = 60.0
    coverage_every_s: float = 60.0
    probe_every_s: float = 60.0
    older_first_s: float = 5.0
    older_cap_s: float = 300.0


DEFAULT_PACE: Final = Pace()
