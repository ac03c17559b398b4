"""What a tag says: `long from 75b conf=0.89 (DQ: profit=3.05%, safety=0.39%)`. Pure."""

import re
from decimal import Decimal
from typing import Final

from marketfeed.aggregator.signal_values import exact_of

PURE = True

# A comma ends it, unless a digit follows: 0,89 is no number, and must not be read as 0.
_NUMBER: Final = r"((?:[^\s,;()\[\]{}]|,(?=[0-9]))+)"
_FEEDER: Final = re.compile(r"\bfrom\b\s*[=:]?\s*([A-Za-z0-9_.-]{1,32})", re.IGNORECASE)
_CONFIDENCE: Final = re.compile(rf"(?<![\w.-])conf(?:idence)?\b\s*[=:]\s*{_NUMBER}", re.IGNORECASE)


def feeder_in(tag: str) -> str | None:
    """The feeder that a tag names first, as it stands there."""
    found = _FEEDER.search(tag)
    return found[1].rstrip(".-") if found else None


def confidences_in(tag: str) -> list[str]:
    """Every confidence that a tag says, as it stands there: most often one, and not always a number."""
    return [text.rstrip(".") for text in _CONFIDENCE.findall(tag)]


def contradicting(confidence: Decimal, tag: str) -> str | None:
    """The confidence of a tag that is another than this one; None: it says none, or agrees.

    It agrees within one of its own last decimal: 0.8512 is 0.85 in a tag, and 0.86 if that was rounded up.
    What is no number says nothing.
    """
    for text in confidences_in(tag):
        said = exact_of(text)
        if said is None:
            continue
        last = said.as_tuple().exponent
        if isinstance(last, int) and abs(confidence - said) > Decimal(1).scaleb(last):
            return text
    return None
