"""A feeder's POST -> a Signal, or the sentences of what is wrong with it. Pure.

The body is Freqtrade's `ForceEnterPayload` and what feeders put beside it. A value is taken from its
field, else from the tag: `long from 75b conf=0.89 (DQ: profit=3.05%, safety=0.39%)`. Mistakes are reported
as a Freqtrade server reports them (pydantic's `detail` list, HTTP 422).
"""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from marketfeed import schema

PURE = True

Side = Literal["long", "short"]
SIDES: Final[tuple[Side, Side]] = ("long", "short")
MAX_TAG: Final = 255
"""Characters of a tag that are kept: what a Freqtrade database holds."""
UNKNOWN_FIELDS_BYTES: Final = 1_024
"""How much is kept of the fields of a body that nothing is made of."""
FIELDS: Final = frozenset(
    {
        "pair", "side", "feeder_id", "confidence", "signal_strength", "leverage", "ordertype", "price",
        "entry_price", "entry_tag", "enter_tag", "stakeamount",
    }
)  # fmt: skip
"""The fields of a body that are read."""


class Defaults(msgspec.Struct, frozen=True):
    """What stands in for a missing value; None: the signal is rejected."""

    confidence: float | None = None
    feeder: str | None = None


class Electorate(msgspec.Struct, frozen=True):
    """Who votes: each feeder's one side, and the feeder behind every name that may be posted."""

    side_of: Mapping[str, Side]
    feeder_of: Mapping[str, str]

    @classmethod
    def of(
        cls,
        long: tuple[str, ...],
        short: tuple[str, ...],
        aliases: tuple[tuple[str, tuple[str, ...]], ...] = (),
    ) -> "Electorate":
        """The electorate of two lists of feeders and their other names."""
        side_of: dict[str, Side] = dict.fromkeys(long, "long")
        side_of |= dict.fromkeys(short, "short")
        feeder_of = {feeder: feeder for feeder in side_of}
        feeder_of |= {name: feeder for feeder, names in aliases for name in names}
        return cls(side_of, feeder_of)

    def size(self, side: Side) -> int:
        """How many feeders vote for `side`."""
        return sum(1 for voted in self.side_of.values() if voted == side)


class Signal(msgspec.Struct, frozen=True):
    """What a feeder wants: `posted_as` is how it named itself, `feeder` as whom it votes.

    `confidence` is from 0 to 1. `defaulted` names the values that were missing and took a default.
    At most one of `strength` and `strength_text` is set: a number, or a text that is none, such as `high`.
    `unknown_fields` are those of the body that nothing is made of, as JSON: no part of what was meant.
    """

    pair: str
    side: Side
    feeder: str
    posted_as: str
    confidence: float
    leverage: float | None = None
    ordertype: str | None = None
    price: float | None = None
    strength: float | None = None
    tag: str = ""
    defaulted: tuple[str, ...] = ()
    strength_text: str | None = None
    unknown_fields: str | None = None

    def digest(self) -> bytes:
        """What distinguishes this signal from another of the same feeder, whatever the bodies looked like."""
        fields = msgspec.structs.asdict(self)
        # Ledgers hold digests in which `posted_as` is named as its column, in this very place.
        fields = {
            ("called" if name == "posted_as" else name): value for name, value in fields.items()
        }
        del fields["unknown_fields"]
        if self.strength_text is None:
            # Ledgers hold digests from before there was this field: a repeat must go on being one.
            del fields["strength_text"]
        return hashlib.sha256(msgspec.json.encode(fields)).digest()[:16]


class SignalMistake(msgspec.Struct, frozen=True):
    """One thing wrong with a body, as pydantic words it. `reason` is a short name for counting."""

    reason: str
    kind: str
    loc: tuple[str | int, ...]
    message: str
    found: object = None
    context: Mapping[str, str] | None = None

    def plain(self) -> dict[str, object]:
        """The item of `detail` in the answer."""
        item: dict[str, object] = {
            "type": self.kind,
            "loc": list(self.loc),
            "msg": self.message,
            "input": _shown(self.found),
        }
        if self.context is not None:
            item["ctx"] = self.context
        return item


class Refused(msgspec.Struct, frozen=True):
    """A body that is no signal. `feeder` is who it seems to be from, if it is one of ours."""

    mistakes: tuple[SignalMistake, ...]
    feeder: str | None = None

    @property
    def reason(self) -> str:
        """The first mistake's short name."""
        return self.mistakes[0].reason


# A comma ends it, unless a digit follows: 0,89 is no number, and must not be read as 0.
_NUMBER: Final = r"((?:[^\s,;()\[\]{}]|,(?=[0-9]))+)"
_TAG_FEEDER: Final = re.compile(r"\bfrom\b\s*[=:]?\s*([A-Za-z0-9_.-]{1,32})", re.IGNORECASE)
_TAG_CONFIDENCE: Final = re.compile(
    rf"(?<![\w.-])conf(?:idence)?\b\s*[=:]\s*{_NUMBER}", re.IGNORECASE
)
_DECIMAL: Final = re.compile(
    r"[+-]?([0-9]{1,15}(\.[0-9]{0,15})?|\.[0-9]{1,15})(e[+-]?[0-9]{1,2})?", re.IGNORECASE
)


def read_signal(
    body: bytes, electorate: Electorate, defaults: Defaults, bound_to: str | None = None
) -> Signal | Refused:
    """Read a posted body. `bound_to` is the feeder that the caller's account speaks for, if for one."""
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        text = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        return Refused(
            (
                SignalMistake(
                    "not_json",
                    "json_invalid",
                    ("body", 0),
                    "JSON decode error",
                    {},
                    {"error": text},
                ),
            )
        )
    if not isinstance(data, dict):
        what = "Input should be a valid dictionary or object to extract fields from"
        return Refused((SignalMistake("not_an_object", "model_attributes_type", ("body",), what),))
    return _Reading(data, electorate, defaults, bound_to).signal()


class _Reading:
    """One body while it is read: collects every mistake."""

    def __init__(
        self,
        data: dict[str, Any],
        electorate: Electorate,
        defaults: Defaults,
        bound_to: str | None,
    ) -> None:
        self._data = data
        self._electorate = electorate
        self._defaults = defaults
        self._bound_to = bound_to
        self._mistakes: list[SignalMistake] = []
        self._defaulted: list[str] = []

    def signal(self) -> Signal | Refused:
        pair, side = self._pair(), self._side()
        tag = self._text("entry_tag") or self._text("enter_tag") or ""
        posted_as, feeder = self._feeder(tag)
        confidence = self._confidence(tag)
        leverage = self._number("leverage", low=1.0)
        ordertype = self._one_of("ordertype", ("limit", "market"))
        price = self._number("entry_price", above=0.0)
        if price is None:
            price = self._number("price", above=0.0)
        strength, strength_text = self._strength()
        self._number("stakeamount")
        if feeder is not None and side is not None and self._electorate.side_of[feeder] != side:
            own = self._electorate.side_of[feeder]
            what = f"feeder {feeder} votes {own} only"
            self._wrong("wrong_side", "value_error", "side", what, side)
        if self._mistakes or not (pair and side and feeder) or confidence is None:
            return Refused(tuple(self._mistakes), feeder)
        return Signal(
            pair,
            side,
            feeder,
            posted_as or feeder,
            confidence,
            leverage,
            ordertype,
            price,
            strength,
            tag[:MAX_TAG],
            tuple(self._defaulted),
            strength_text,
            self._unknown_fields(),
        )

    def _unknown_fields(self) -> str | None:
        """The first ones that fit: what a newer feeder sends, for who looks into the ledger."""
        kept: dict[str, Any] = {}
        text = None
        for name, value in self._data.items():
            if name in FIELDS:
                continue
            kept[name] = value
            try:
                encoded = msgspec.json.encode(kept)
            except RecursionError:
                break
            if len(encoded) > UNKNOWN_FIELDS_BYTES:
                break
            text = encoded.decode()
        return text

    # --- who and how sure -------------------------------------------------------------------------

    def _feeder(self, tag: str) -> tuple[str | None, str | None]:
        """As whom the caller names itself, and the feeder behind it."""
        field = self._data.get("feeder_id")
        if isinstance(field, int) and not isinstance(field, bool):
            field = str(field)
        if field is not None and not isinstance(field, str):
            self._wrong(
                "bad_feeder", "string_type", "feeder_id", "Input should be a valid string", field
            )
            return None, None
        posted_as = field.strip() if field else None
        if not posted_as and (found := _TAG_FEEDER.search(tag)):
            posted_as = found[1].rstrip(".-")
        if not posted_as:
            return self._unnamed()
        feeder = self._electorate.feeder_of.get(posted_as)
        if feeder is None:
            what = f"feeder {posted_as[:32]!r} is not one of those that vote here"
            self._wrong("unknown_feeder", "value_error", "feeder_id", what, posted_as[:64])
            return None, None
        if self._bound_to not in (None, feeder):
            what = f"this account posts for feeder {self._bound_to} only, not for {feeder}"
            self._wrong("foreign_feeder", "value_error", "feeder_id", what, posted_as)
            return None, None
        return posted_as, feeder

    def _unnamed(self) -> tuple[str | None, str | None]:
        if self._bound_to is not None:
            return self._bound_to, self._bound_to
        if self._defaults.feeder is None:
            what = "no feeder: expected feeder_id, or a tag that says from <feeder>"
            self._wrong("missing_feeder", "missing", "feeder_id", what, None)
            return None, None
        self._defaulted.append("feeder")
        return self._defaults.feeder, self._defaults.feeder

    def _confidence(self, tag: str) -> float | None:
        key, raw = "confidence", self._data.get("confidence")
        if raw is None and (found := _TAG_CONFIDENCE.findall(tag)):
            key, raw = "entry_tag", found[0].rstrip(".")
            if len({_decimal(text.rstrip(".")) for text in found}) > 1:
                what = "The tag says more than one confidence"
                self._wrong("bad_confidence", "value_error", key, what, ", ".join(found))
                return None
        if raw is None:
            if self._defaults.confidence is None:
                what = (
                    "no confidence: expected the field confidence, or a tag that says conf=<0 to 1>"
                )
                self._wrong("missing_confidence", "missing", "confidence", what, None)
                return None
            self._defaulted.append("confidence")
            return self._defaults.confidence
        value = _decimal(raw)
        if value is None or not 0.0 <= value <= 1.0:
            what = "Confidence should be a number from 0 to 1"
            self._wrong("bad_confidence", "value_error", key, what, raw)
            return None
        return value

    # --- fields -----------------------------------------------------------------------------------

    def _pair(self) -> str | None:
        if self._data.get("pair") is None:
            kind = "string_type" if "pair" in self._data else "missing"
            what = "Input should be a valid string" if "pair" in self._data else "Field required"
            self._wrong(
                "missing_pair", kind, "pair", what, self._data if kind == "missing" else None
            )
            return None
        pair = self._data["pair"]
        if not isinstance(pair, str):
            self._wrong("bad_pair", "string_type", "pair", "Input should be a valid string", pair)
            return None
        if not schema.is_pair(pair):
            what = f"Input should be a futures pair such as {schema.PAIR_EXAMPLE}"
            self._wrong("bad_pair", "value_error", "pair", what, pair[:64])
            return None
        return pair

    def _side(self) -> Side | None:
        # Freqtrade's default: /forcebuy names no side.
        if "side" not in self._data:
            return "long"
        side = self._one_of("side", SIDES, required=True)
        return "long" if side == "long" else "short" if side == "short" else None

    def _one_of(self, key: str, choices: tuple[str, ...], *, required: bool = False) -> str | None:
        value = self._data.get(key)
        if value is None and not required:
            return None
        if isinstance(value, str) and value in choices:
            return value
        text = " or ".join(repr(choice) for choice in choices)
        self._wrong(f"bad_{key}", "enum", key, f"Input should be {text}", value, {"expected": text})
        return None

    def _text(self, key: str) -> str | None:
        value = self._data.get(key)
        if value is None or isinstance(value, str):
            return value
        self._wrong(f"bad_{key}", "string_type", key, "Input should be a valid string", value)
        return None

    def _number(
        self, key: str, low: float | None = None, above: float | None = None
    ) -> float | None:
        raw = self._data.get(key)
        if raw is None:
            return None
        value = _decimal(raw)
        if value is None:
            self._wrong(
                f"bad_{key}", "float_parsing", key, "Input should be a valid, finite number", raw
            )
            return None
        if low is not None and value < low:
            what = f"Input should be greater than or equal to {low:g}"
            self._wrong(f"bad_{key}", "greater_than_equal", key, what, raw)
            return None
        if above is not None and value <= above:
            what = f"Input should be greater than {above:g}"
            self._wrong(f"bad_{key}", "greater_than", key, what, raw)
            return None
        return value

    def _strength(self) -> tuple[float | None, str | None]:
        """The strength as a number, or as a text: feeders post either.

        The text of a finite number ("0.8") is that number, as in every other field. Any other text ("high",
        "80%", "NaN", "") is a text, of which `MAX_TAG` characters are kept. null is no strength. All else
        is a mistake: true, [], {}, a number beyond a float's range.
        """
        raw = self._data.get("signal_strength")
        if raw is None:
            return None, None
        value = _decimal(raw)
        if value is None and isinstance(raw, str):
            return None, raw[:MAX_TAG]
        if value is None:
            what = f"signal_strength should be a number or a text, found {_named(raw)}"
            self._wrong("bad_signal_strength", "float_parsing", "signal_strength", what, raw)
        return value, None

    def _wrong(
        self,
        reason: str,
        kind: str,
        key: str,
        message: str,
        found: object,
        context: Mapping[str, str] | None = None,
    ) -> None:
        self._mistakes.append(SignalMistake(reason, kind, ("body", key), message, found, context))


def _shown(found: object) -> object:
    """What is repeated of a wrong value: a body that is nested deeply cannot be encoded again."""
    if not found or isinstance(found, str | int | float):
        return found
    return "an object" if isinstance(found, dict) else "an array"


def _named(found: object) -> str:
    """What kind of JSON value it is, in words; its digits may be thousands."""
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, int | float):
        return "a number out of range"
    return "an object" if isinstance(found, dict) else "an array"


def _decimal(raw: object) -> float | None:
    """A finite number, or the text of one (Freqtrade accepts both). None: it is none."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, str):
        if not _DECIMAL.fullmatch(raw.strip()):
            return None
        raw = float(raw)
    if not isinstance(raw, int | float):
        return None
    try:
        value = float(raw)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None
