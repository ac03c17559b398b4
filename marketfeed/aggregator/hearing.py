"""Who hears of what was committed: the desk, and the workers that may have waited for it."""

from collections.abc import Mapping

from marketfeed.aggregator.ballots import Decision
from marketfeed.aggregator.forwarder import Forwarder
from marketfeed.aggregator.inbox import Desk
from marketfeed.aggregator.ledger_tables import META, OPEN_STATES, Forward
from marketfeed.aggregator.meta import Meta
from marketfeed.aggregator.signals import Side
from marketfeed.aggregator.start import Start
from marketfeed.aggregator.whitelists import Whitelists


def hear(desk: Desk, forwarders: Mapping[Side, Forwarder], forward: Forward) -> None:
    """A step of a forward has been committed."""
    if forward.bot == META:
        # What becomes of a copy is nothing to the two others.
        return
    desk.heard(forward)
    for side, forwarder in forwarders.items():
        if side != forward.bot and forward.state == "sending":
            forwarder.other_sent(forward.pair)
        # One of the other side may have waited for its pair.
        sent_back = forward.state == "queued" and forward.attempts > 0 and side != forward.bot
        if sent_back or forward.state not in OPEN_STATES:
            forwarder.wake()


def wake(forwarders: Mapping[Side, Forwarder], meta: Meta | None, decision: Decision) -> None:
    """A decision that is forwarded has been committed."""
    if (forwarder := forwarders.get(decision.side)) is not None:
        forwarder.wake()
    if meta is not None:
        meta.wake()


def forbids(start: Start, whitelists: Whitelists, forward: Forward) -> str | None:
    """Why a queued order of one of the two bots may never be sent; None: nothing speaks against it."""
    # A window of an earlier run may have been decided before the list was known.
    return start.forbids(forward) or whitelists.against(forward.pair, forward.side)
