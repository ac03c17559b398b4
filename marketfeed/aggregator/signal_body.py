"""A feeder's POST -> a Signal, or the sentences of what is wrong with it. Pure.

The body is Freqtrade's `ForceEnterPayload` and what feeders put beside it. A value is taken from its
field, else from the tag: `long from 75b conf=0.89 (DQ: profit=3.05%, safety=0.39%)`. Mistakes are reported
as a Freqtrade server reports them (pydantic's `detail` list, HTTP 422).
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from marketfeed import schema
from marketfeed.aggregator.meant import meant_as, other_names
from marketfeed.aggregator.signal_tag import confidences_in, contradicting, feeder_in
from marketfeed.aggregator.signal_values import exact_of, named, number_of, unknown_fields
from marketfeed.aggregator.signals import (
    MAX_TAG,
    SIDES,
    Contradiction,
    Defaults,
    Electorate,
    Refused,
    Side,
    Signal,
    SignalMistake,
)

PURE = True

FIELDS: Final = frozenset(
    {
        "pair", "side", "feeder_id", "confidence", "signal_strength", "leverage", "ordertype", "price",
        "entry_price", "entry_tag", "enter_tag", "stakeamount",
    }
)  # fmt: skip
"""The fields of a body that are read."""
_MEANS_LONG: Final = ("long", "buy", "up", "bull", "bullish", "1", "false")
"""What another field than `side` may say of a signal that counts as long."""
_NO_SHORT: Final = ("false", "no", "n", "0", "long", "buy")
"""What a field that asks whether it is short says of one that is not."""
_SAYS_NOTHING: Final = ("none", "")


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
        self._contradictions: list[Contradiction] = []

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
            unknown_fields(self._data, FIELDS),
            tuple(self._contradictions),
        )

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
        in_tag = feeder_in(tag)
        if not (posted_as := posted_as or in_tag):
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
        # Another name of the same feeder is none, and a tag may say "from" of anything.
        if in_tag and self._electorate.feeder_of.get(in_tag, feeder) != feeder:
            self._contradictions.append(Contradiction("feeder", posted_as, in_tag))
        return posted_as, feeder

    def _unnamed(self) -> tuple[str | None, str | None]:
        if self._bound_to is not None:
            return self._bound_to, self._bound_to
        if self._defaults.feeder is None:
            what = "no feeder: expected feeder_id, or a tag that says from <feeder>"
            what += self._hint("feeder_id", "entry_tag")
            self._wrong("missing_feeder", "missing", "feeder_id", what, None)
            return None, None
        self._defaulted.append("feeder")
        return self._defaults.feeder, self._defaults.feeder

    def _confidence(self, tag: str) -> float | None:
        key, raw = "confidence", self._data.get("confidence")
        if raw is None and (found := confidences_in(tag)):
            key, raw = "entry_tag", found[0]
            if len(found) > 1 and len({number_of(text) for text in found}) > 1:
                what = "The tag says more than one confidence"
                self._wrong("bad_confidence", "value_error", key, what, ", ".join(found))
                return None
        if raw is None:
            if self._defaults.confidence is None:
                what = (
                    "no confidence: expected the field confidence, or a tag that says conf=<0 to 1>"
                )
                what += self._hint("confidence", "entry_tag")
                self._wrong("missing_confidence", "missing", "confidence", what, None)
                return None
            self._defaulted.append("confidence")
            return self._defaults.confidence
        value = number_of(raw)
        if value is None or not 0.0 <= value <= 1.0:
            what = "Confidence should be a number from 0 to 1"
            self._wrong("bad_confidence", "value_error", key, what, raw)
            return None
        if key == "confidence" and tag and (exactly := exact_of(raw)) is not None:
            in_tag = contradicting(exactly, tag)
            if in_tag is not None:
                self._contradictions.append(Contradiction(key, str(raw).strip(), in_tag[:32]))
        return value

    # --- fields -----------------------------------------------------------------------------------

    def _pair(self) -> str | None:
        if self._data.get("pair") is None:
            kind = "string_type" if "pair" in self._data else "missing"
            what = "Input should be a valid string" if "pair" in self._data else "Field required"
            what += self._hint("pair")
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
            return self._unsaid_side()
        side = self._one_of("side", SIDES, required=True)
        return "long" if side == "long" else "short" if side == "short" else None

    def _unsaid_side(self) -> Side | None:
        # Who means short by another field must not be counted as long.
        unread = (name for name in self._data if name not in FIELDS)
        others = other_names("side", unread)
        name = next((name for name in others if not _is_long(name, self._data[name])), None)
        if name is None:
            return "long"
        what = f"Without side it is long{_probably('side', name)}"
        self._wrong("bad_side", "missing", "side", what, self._data[name])
        return None

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
        value = number_of(raw)
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
        value = number_of(raw)
        if value is None and isinstance(raw, str):
            return None, raw[:MAX_TAG]
        if value is None:
            what = f"signal_strength should be a number or a text, found {named(raw)}"
            self._wrong("bad_signal_strength", "float_parsing", "signal_strength", what, raw)
        return value, None

    def _hint(self, *fields: str) -> str:
        """What a body without any of these fields probably meant by another name; empty: nothing."""
        if any(self._data.get(field) is not None for field in fields):
            return ""
        for field in fields:
            unread = (name for name in self._data if name not in FIELDS)
            if (name := meant_as(field, unread)) is not None:
                return _probably(field, name)
        return ""

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


def _is_long(name: str, value: object) -> bool:
    """Whether a field of this name, which is not read, leaves the signal long."""
    if value is not None and not isinstance(value, bool | int | float | str):
        return False
    said = f"{value:g}" if isinstance(value, float) else str(value)[:16].strip().lower()
    asks = "short" in name.lower()
    return said in _SAYS_NOTHING or said in (_NO_SHORT if asks else _MEANS_LONG)


def _probably(field: str, name: str) -> str:
    return f"; {name[:32]!r} is not read, {field} is probably meant"
