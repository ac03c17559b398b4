"""Which field a body probably meant by a name that is not read. Pure."""

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

PURE = True

_OTHER_NAMES: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "feeder_id": frozenset(
            {"feeder", "feedername", "bot", "botid", "botname", "source", "sender", "from"}
        ),
        "confidence": frozenset({"conf", "probability", "prob", "certainty", "score"}),
        "pair": frozenset({"symbol", "market", "ticker", "instrument", "coin"}),
        "side": frozenset({"direction", "tradeside", "isshort"}),
        "entry_tag": frozenset({"tag", "entertag", "buytag", "signaltag", "comment"}),
    }
)
"""Field -> what others call it, without capitals and signs."""
_SIMILAR: Final = 0.8
_LOOKED_AT: Final = 50
"""Names of a body: a hostile one has thousands."""
_SIGNS: Final = re.compile(r"[^a-z0-9]")


def other_names(field: str, unread: Iterable[str]) -> list[str]:
    """Which of the names that are not read are others of `field`."""
    bare, others = _bare(field), _OTHER_NAMES.get(field, ())
    looked_at = itertools.islice(unread, _LOOKED_AT)
    return [name for name in looked_at if (it := _bare(name)) == bare or it in others]


def meant_as(field: str, unread: Iterable[str]) -> str | None:
    """The same, or which of them is spelled like it."""
    names = list(itertools.islice(unread, _LOOKED_AT))
    if found := other_names(field, names):
        return found[0]
    alike = difflib.get_close_matches(_bare(field), map(_bare, names), 1, _SIMILAR)
    return next((name for name in names if alike and _bare(name) == alike[0]), None)


def _bare(name: str) -> str:
    return _SIGNS.sub("", name[:64].lower())
