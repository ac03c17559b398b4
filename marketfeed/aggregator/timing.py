"""How the workers of the bots, and the looks at the ledger, are paced."""

from typing import Final

import msgspec

PURE = True


class Pace(msgspec.Struct, frozen=True):
    """Pauses and limits, in wall seconds.

    After a refused connection a worker waits `retry_first_s`, doubled each time up to `retry_cap_s`. A bot
    that is full, paused or does not let us in is asked again after `again_s`. After an answer that took
    `slow_s` or more it gets nothing for a quarter of that time, `pause_s` at most.

    An unknown outcome is looked for every `look_s`, and others wait until the bot has answered looks for
    `settle_s`. Settings in which an order is lost within `searched_s` after its bot's time-out are refused.
    Once it is lost it is looked for every `look_lost_s`, until the bot has answered looks for `forget_s`.
    After a start, those that were lost within `recall_s` are looked for again. A bot is asked how it is every
    `probe_s`, when nothing waits for it, and for its whitelist every `whitelist_s`; after `whitelist_again_s`
    already if a pair outside was decided. Every `whole_s` is looked whether the ledger's file is readable,
    and every `place_s` whether it is still the one in its place.
    """

    retry_first_s: float = 0.1
    retry_cap_s: float = 1.0
    again_s: float = 1.0
    slow_s: float = 1.0
    pause_s: float = 1.0
    look_s: float = 1.0
    settle_s: float = 10.0
    searched_s: float = 10.0
    look_lost_s: float = 15.0
    forget_s: float = 900.0
    recall_s: float = 86_400.0
    probe_s: float = 30.0
    whitelist_s: float = 3_600.0
    whitelist_again_s: float = 60.0
    ledger_retry_s: float = 0.5
    whole_s: float = 60.0
    place_s: float = 1.0


DEFAULT_PACE: Final = Pace()
