"""Every form in which feeders post, and the sentence for everything that is no signal."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.aggregator.signal_body import read_signal
from marketfeed.aggregator.signals import MAX_TAG, Defaults, Electorate, Refused, Signal

ELECTORATE = Electorate.of(
    ("73", "74", "75", "79", "108"),
    ("120", "121", "122", "123", "124"),
    (("75", ("75a", "75b", "75c")),),
)
REJECT = Defaults()
PAIR = "BTC/USDT:USDT"


def read(
    body: dict[str, Any] | bytes, defaults: Defaults = REJECT, bound_to: str | None = None
) -> Signal | Refused:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_signal(raw, ELECTORATE, defaults, bound_to)


def signal(
    body: dict[str, Any], defaults: Defaults = REJECT, bound_to: str | None = None
) -> Signal:
    found = read({"pair": PAIR, "side": "long"} | body, defaults, bound_to)
    assert isinstance(found, Signal), found
    return found


def refused(
    body: dict[str, Any] | bytes, defaults: Defaults = REJECT, bound_to: str | None = None
) -> list[tuple[str, str, str]]:
    """(type, place, sentence) of each mistake."""
    found = read(body, defaults, bound_to)
    assert isinstance(found, Refused), found
    plain = [mistake.plain() for mistake in found.mistakes]
    json.dumps(plain, allow_nan=False)
    return [(p["type"], ".".join(map(str, p["loc"])), p["msg"]) for p in plain]  # type: ignore[arg-type,misc]


# --- what feeders post today -------------------------------------------------------------------------


def test_the_body_of_today() -> None:
    body = (
        b'{"pair":"BTC/USDT:USDT","side":"long","leverage":3,"ordertype":"market",'
        b'"enter_tag":"long from 75b conf=0.89 (DQ: profit=3.05%, safety=0.39%)"}'
    )
    assert read(body) == Signal(
        pair=PAIR,
        side="long",
        feeder="75",
        posted_as="75b",
        confidence=0.89,
        leverage=3.0,
        ordertype="market",
        tag="long from 75b conf=0.89 (DQ: profit=3.05%, safety=0.39%)",
    )


def test_structured_fields_go_before_the_tag() -> None:
    found = signal(
        {
            "feeder_id": 79,
            "confidence": "0.72",
            "entry_price": 100.5,
            "price": 99,
            "signal_strength": 1.5,
            "enter_tag": "long from 75b conf=0.89",
        }
    )
    assert (found.feeder, found.posted_as, found.confidence) == ("79", "79", 0.72)
    assert (found.price, found.strength) == (100.5, 1.5)


@pytest.mark.parametrize(
    ("tag", "called", "confidence"),
    [
        ("long from 75b conf=0.89 (DQ: profit=3.05%, safety=0.39%)", "75b", 0.89),
        ("from 73 conf=1", "73", 1.0),
        ("from=79 conf=.5", "79", 0.5),
        ("FROM: 108, Conf: 0.701;", "108", 0.701),
        ("conf=0.89 from 75a", "75a", 0.89),
        ("long ensemble 3/5 conf=0.82 from=79", "79", 0.82),
        ("from 74. confidence = 0.9)", "74", 0.9),
        ("from 73 conf=7e-1", "73", 0.7),
        ("from 73 conf=0 profit=0.99", "73", 0.0),
        ("from 73 [conf=0.89]", "73", 0.89),
        ("from 73 {conf=0.89,profit=3.05%}", "73", 0.89),
        ("from 73, conf=0.89. (DQ)", "73", 0.89),
        ("min-conf=0.70 long from 73 conf=0.89", "73", 0.89),
        ("min_conf=0.70, min.conf=0.71, minconf=0.72 from 73 conf=0.89", "73", 0.89),
        ("from 73 conf=0.89 (conf=0.890)", "73", 0.89),
    ],
)
def test_tags(tag: str, called: str, confidence: float) -> None:
    for key in ("enter_tag", "entry_tag"):
        found = signal({key: tag})
        assert (found.posted_as, found.confidence, found.tag) == (called, confidence, tag)


@pytest.mark.parametrize(
    ("tag", "sentence"),
    [
        # Not 0, which would count as a vote without any confidence.
        ("long from 75a conf=0,89", "Confidence should be a number from 0 to 1"),
        ("long from 75a conf=0,89 (DQ: profit=3.05%)", "Confidence should be a number from 0 to 1"),
        ("long from 75a conf=0.89 was conf=0.7", "The tag says more than one confidence"),
        ("conf=0.7, long from 75a conf=0.89", "The tag says more than one confidence"),
        ("long from 75a conf=0.89 conf=high", "The tag says more than one confidence"),
    ],
)
def test_a_confidence_that_is_not_clear_is_refused(tag: str, sentence: str) -> None:
    ((_, place, found),) = refused({"pair": PAIR, "enter_tag": tag}, Defaults(0.75, "73"))
    assert (place, found) == ("body.entry_tag", sentence)


def test_what_a_freqtrade_client_sends() -> None:
    body = {
        "pair": PAIR,
        "side": "short",
        "ordertype": "limit",
        "stakeamount": 50.0,
        "leverage": 3.0,
        "price": 12.5,
        "entry_tag": "from 120 conf=0.8",
    }
    found = read(body)
    assert isinstance(found, Signal)
    assert (found.side, found.ordertype, found.price) == ("short", "limit", 12.5)
    # forcebuy: no side is long, no price is none.
    bare = read({"pair": PAIR, "price": None}, Defaults(0.75, "73"))
    assert isinstance(bare, Signal)
    assert (bare.side, bare.price, bare.feeder, bare.confidence) == ("long", None, "73", 0.75)


def test_numbers_may_be_text_and_long_tags_are_cut() -> None:
    found = signal(
        {"feeder_id": "73", "confidence": "0.9", "leverage": "5", "enter_tag": "x" * 999}
    )
    assert (found.leverage, len(found.tag)) == (5.0, MAX_TAG)


@pytest.mark.parametrize(
    ("posted", "strength", "text"),
    [
        ("high", None, "high"),
        ("80%", None, "80%"),
        ("0,8", None, "0,8"),
        ("NaN", None, "NaN"),
        ("Infinity", None, "Infinity"),
        ("", None, ""),
        ("x" * 999, None, "x" * MAX_TAG),
        # The text of a number is the number.
        ("0.8", 0.8, None),
        (" 8e-1 ", 0.8, None),
        (0.8, 0.8, None),
        (-2, -2.0, None),
        (None, None, None),
    ],
)
def test_a_strength_is_a_number_or_a_text(
    posted: Any, strength: float | None, text: str | None
) -> None:
    found = signal({"feeder_id": 73, "confidence": 0.85, "signal_strength": posted})
    assert (found.strength, found.strength_text) == (strength, text)


def test_signals_of_different_strengths_are_different_signals() -> None:
    bodies: list[dict[str, Any]] = [{}, *({"signal_strength": s} for s in ("high", "low", 1, 2))]
    found = [signal({"feeder_id": 73, "confidence": 0.85} | body).digest() for body in bodies]
    assert len(set(found)) == len(bodies)
    # As in ledgers of before: a signal that is repeated after an upgrade is a repeat.
    plain = Signal(PAIR, "long", "73", "73", 0.85, 3.0, "market", 95000.0, 2.0, "tag", ("feeder",))
    assert plain.digest().hex() == "df6e46c3d9a14e531ea8edaa8fd0fae1"


# --- missing values ---------------------------------------------------------------------------------


def test_what_is_missing_is_refused_with_a_sentence_unless_a_default_is_stated() -> None:
    bare = {"pair": PAIR, "side": "long"}
    assert refused(bare) == [
        (
            "missing",
            "body.feeder_id",
            "no feeder: expected feeder_id, or a tag that says from <feeder>",
        ),
        (
            "missing",
            "body.confidence",
            "no confidence: expected the field confidence, or a tag that says conf=<0 to 1>",
        ),
    ]
    found = signal({}, Defaults(confidence=0.75, feeder="74"))
    assert (found.feeder, found.confidence, found.defaulted) == (
        "74",
        0.75,
        ("feeder", "confidence"),
    )
    assert signal({"enter_tag": "from 73 conf=0.9"}, Defaults(0.75, "74")).defaulted == ()


def test_an_account_of_one_feeder_names_it_and_no_other() -> None:
    assert signal({"confidence": 0.9}, bound_to="75").posted_as == "75"
    assert signal({"confidence": 0.9, "feeder_id": "75c"}, bound_to="75").posted_as == "75c"
    ((kind, place, sentence),) = refused(
        {"pair": PAIR, "confidence": 0.9, "feeder_id": "73"}, bound_to="75"
    )
    assert (kind, place) == ("value_error", "body.feeder_id")
    assert sentence == "this account posts for feeder 75 only, not for 73"


def test_a_default_does_not_stand_in_for_nonsense() -> None:
    defaults = Defaults(0.75, "73")
    for conf in ("nan", "inf", "1.01", "-0.1", "89%", "high"):
        ((_, place, sentence),) = refused(
            {"pair": PAIR, "enter_tag": f"from 73 conf={conf}"}, defaults
        )
        assert (place, sentence) == (
            "body.entry_tag",
            "Confidence should be a number from 0 to 1",
        )
    for feeder in ("99", "75d", "bot1"):
        ((_, place, _),) = refused({"pair": PAIR, "confidence": 1, "feeder_id": feeder}, defaults)
        assert place == "body.feeder_id"


# --- what is no signal ------------------------------------------------------------------------------

GOOD = {"pair": PAIR, "side": "long", "feeder_id": "73", "confidence": 0.9}


@pytest.mark.parametrize(
    ("change", "kind", "place", "sentence"),
    [
        ({"side": "buy"}, "enum", "side", "Input should be 'long' or 'short'"),
        ({"side": "LONG"}, "enum", "side", "Input should be 'long' or 'short'"),
        ({"side": None}, "enum", "side", "Input should be 'long' or 'short'"),
        ({"side": "short"}, "value_error", "side", "feeder 73 votes long only"),
        ({"pair": None}, "string_type", "pair", "Input should be a valid string"),
        ({"pair": 7}, "string_type", "pair", "Input should be a valid string"),
        ({"pair": "BTCUSDT"}, "value_error", "pair", None),
        ({"pair": "BTC/USDT"}, "value_error", "pair", None),
        ({"pair": "BTC/USDT:USDT'; DROP TABLE signal"}, "value_error", "pair", None),
        ({"ordertype": "stop"}, "enum", "ordertype", "Input should be 'limit' or 'market'"),
        ({"leverage": 0.5}, "greater_than_equal", "leverage", None),
        ({"leverage": "much"}, "float_parsing", "leverage", None),
        ({"leverage": True}, "float_parsing", "leverage", None),
        ({"leverage": [3]}, "float_parsing", "leverage", None),
        ({"price": 0}, "greater_than", "price", None),
        ({"price": "inf"}, "float_parsing", "price", None),
        ({"confidence": 1.5}, "value_error", "confidence", None),
        ({"confidence": "NaN"}, "value_error", "confidence", None),
        ({"confidence": True}, "value_error", "confidence", None),
        ({"confidence": {}}, "value_error", "confidence", None),
        ({"feeder_id": 73.0}, "string_type", "feeder_id", None),
        ({"feeder_id": ["73"]}, "string_type", "feeder_id", None),
        ({"enter_tag": 5}, "string_type", "enter_tag", None),
        *(
            (
                {"signal_strength": strength},
                "float_parsing",
                "signal_strength",
                f"signal_strength should be a number or a text, found {found}",
            )
            for strength, found in (
                (True, "true"),
                (False, "false"),
                ([1], "an array"),
                ([], "an array"),
                ({"high": 1}, "an object"),
                (10**400, "a number out of range"),
            )
        ),
        ({"stakeamount": "all"}, "float_parsing", "stakeamount", None),
    ],
)
def test_one_thing_wrong_is_one_sentence(
    change: dict[str, Any], kind: str, place: str, sentence: str | None
) -> None:
    ((found_kind, found_place, found_sentence),) = refused(GOOD | change)
    assert (found_kind, found_place) == (kind, f"body.{place}")
    assert sentence is None or found_sentence == sentence


def test_a_missing_pair_is_reported_as_freqtrade_does() -> None:
    assert refused({k: v for k, v in GOOD.items() if k != "pair"}) == [
        ("missing", "body.pair", "Field required")
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"confidence": NaN}',
        b'{"confidence": Infinity}',
        b'{"pair": "\xff"}',
        b"[" * 8_000,
        b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
        b'{"pair": "\\ud800"}',
    ],
)
def test_what_is_no_json(body: bytes) -> None:
    ((kind, place, sentence),) = refused(body)
    assert (kind, place, sentence) == ("json_invalid", "body.0", "JSON decode error")


def test_a_refusal_can_be_reported_however_deep_the_body_is() -> None:
    def emit(refused: Refused) -> None:
        encode({"detail": [mistake.plain() for mistake in refused.mistakes]})

    def encode(answer: object) -> None:
        # From some frames further down than where the body was decoded, as in the service.
        msgspec.json.encode(answer)

    depths = 0
    for depth in range(1, 1_200):
        for head in (b'{"x":', b'{"pair":"BTC/USDT:USDT","feeder_id":', b'{"confidence":'):
            found = read_signal(head + b"[" * depth + b"]" * depth + b"}", ELECTORATE, REJECT)
            assert isinstance(found, Refused)
            emit(found)
            depths += found.reason != "not_json"
    # As deep as a body can be decoded, and deeper.
    assert 0 < depths < 3 * 1_199


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"1", b"null"])
def test_json_that_is_no_object(body: bytes) -> None:
    ((kind, place, _),) = refused(body)
    assert (kind, place) == ("model_attributes_type", "body")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        key: JSON | st.sampled_from([PAIR, "long", "short", "73", "75b", 0.9, "from 73 conf=0.9"])
        for key in (
            "pair",
            "side",
            "feeder_id",
            "confidence",
            "leverage",
            "ordertype",
            "price",
            "entry_price",
            "entry_tag",
            "enter_tag",
            "signal_strength",
        )
    },
)


@given(BODIES | JSON)
def test_anything_is_a_signal_in_bounds_or_refused_with_words(body: Any) -> None:
    found = read(json.dumps(body).encode(), Defaults(0.75, "73"))
    if isinstance(found, Refused):
        assert found.mistakes
        plain = [mistake.plain() for mistake in found.mistakes]
        assert msgspec.json.decode(msgspec.json.encode(plain)) == json.loads(
            json.dumps(plain, allow_nan=False)
        )
    else:
        assert 0.0 <= found.confidence <= 1.0
        assert ELECTORATE.side_of[found.feeder] == found.side
        numbers = (found.leverage, found.price, found.strength)
        assert all(number is None or math.isfinite(number) for number in numbers)
        assert len(found.digest()) == 16


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    assert isinstance(read(body), Signal | Refused)
