"""The tag of an order that this aggregator sends: how such an order is told from others in a bot.

    "long ensemble 3/5 conf=0.82 from=79"
     SIDE " ensemble " VOTES "/" FEEDERS [" " …]

What follows the count may be of another version. Nobody else's trade has such a tag.
"""

import re
from typing import Final, cast

from marketfeed.aggregator.signals import Side

PURE = True

_TAG: Final = re.compile(r"(long|short) ensemble [0-9]+/[0-9]+(?: .*)?", re.ASCII | re.DOTALL)


def ensemble_side(tag: str) -> Side | None:
    """The side that was decided, of a tag of ours; None if it is none of ours."""
    found = _TAG.fullmatch(tag)
    return None if found is None else cast("Side", found[1])
