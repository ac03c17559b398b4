"""The bodies and tags that feeders are known to post: each a vote, or refused with the sentence that helps.

Bodies: issue 7 and `cases/README.md` of the project's shared inputs, and what Freqtrade 2026.9's client sends
(`facts/freqtrade.md`).
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bot import CountingBot
from running import PAIR, rows, running, settings

from marketfeed.aggregator.events import Flow, recent
from marketfeed.aggregator.signal_body import read_signal
from marketfeed.aggregator.signal_values import UNKNOWN_FIELDS_BYTES
from marketfeed.aggregator.signals import Defaults, Electorate, Refused, Signal

ELECTORATE = Electorate.of(
    ("73", "74", "75", "79", "108"),
    ("120", "121", "122", "123", "124"),
    (("75", ("75a", "75b", "75c")),),
)
NO_FEEDER = "no feeder: expected feeder_id, or a tag that says from <feeder>"
NO_CONFIDENCE = "no confidence: expected the field confidence, or a tag that says conf=<0 to 1>"
SIDES = "Input should be 'long' or 'short'"


def read(body: dict[str, Any], bound_to: str | None = None) -> Signal | Refused:
    return read_signal(json.dumps(body).encode(), ELECTORATE, Defaults(), bound_to)


def signal(body: dict[str, Any]) -> Signal:
    found = read({"pair": PAIR, "side": "long"} | body)
    assert isinstance(found, Signal), found
    return found


TODAY = "long from 75b conf=0.89 (DQ: profit=3.05%, safety=0.39%)"
FIELDS = {"pair": PAIR, "side": "long", "feeder_id": 73, "confidence": 0.85, "entry_price": 95000}


@pytest.mark.parametrize(
    ("body", "posted_as", "confidence", "more"),
    [
        (
            {"side": "long", "leverage": 3, "ordertype": "market", "enter_tag": TODAY},
            "75b",
            0.89,
            {"feeder": "75", "leverage": 3.0},
        ),
        (FIELDS | {"signal_strength": "high"}, "73", 0.85, {"strength_text": "high"}),
        (FIELDS | {"signal_strength": 2}, "73", 0.85, {"strength": 2.0, "price": 95000.0}),
        (FIELDS | {"entry_price": None, "price": 94000}, "73", 0.85, {"price": 94000.0}),
        # Freqtrade's own client.
        (
            {
                "side": "long",
                "ordertype": "market",
                "stakeamount": 50.0,
                "leverage": 3.0,
                "entry_tag": "long from 108 conf=0.7",
            },
            "108",
            0.7,
            {"leverage": 3.0, "price": None},
        ),
        ({"price": None, "entry_tag": "from 74 conf=0.72"}, "74", 0.72, {"side": "long"}),
        # What the aggregator itself writes.
        ({"entry_tag": "long ensemble 3/5 conf=0.82 from=79"}, "79", 0.82, {}),
        ({"entry_tag": "long ensemble 1/5 conf=0.89 from=75b"}, "75b", 0.89, {"feeder": "75"}),
        ({"side": "short", "enter_tag": "short from 120 conf=0.8"}, "120", 0.8, {"side": "short"}),
        # Another name that means what is counted anyway.
        ({"direction": "LONG", "entry_tag": "from 73 conf=0.9"}, "73", 0.9, {"side": "long"}),
        *(
            ({name: value, "entry_tag": "from 73 conf=0.9"}, "73", 0.9, {"side": "long"})
            for name, values in (
                ("is_short", (None, "", 0, 0.0, "0", "no", "No", False)),
                ("direction", (None, "", "up", "bull", 1, 1.0, "long")),
            )
            for value in values
        ),
        ({"feeder": "74", "entry_tag": "from 73 conf=0.9"}, "73", 0.9, {}),
    ],
)
def test_what_is_a_vote(
    body: dict[str, Any], posted_as: str, confidence: float, more: dict[str, Any]
) -> None:
    found = read({"pair": PAIR} | body)
    assert isinstance(found, Signal), found
    assert (found.posted_as, found.confidence) == (posted_as, confidence)
    assert {name: getattr(found, name) for name in more} == more
    assert found.contradictions == ()


@pytest.mark.parametrize(
    ("body", "mistakes"),
    [
        # Freqtrade's own client without a word of ours.
        (
            {"side": "long", "stakeamount": 50.0, "leverage": 3.0, "entry_tag": "agg"},
            {"feeder_id": NO_FEEDER, "confidence": NO_CONFIDENCE},
        ),
        ({"price": None}, {"feeder_id": NO_FEEDER, "confidence": NO_CONFIDENCE}),
        ({"enter_tag": "long from 75b (DQ: profit=3.05%)"}, {"confidence": NO_CONFIDENCE}),
        (
            {"enter_tag": "long from 76 conf=0.89"},
            {"feeder_id": "feeder '76' is not one of those that vote here"},
        ),
        ({"side": "buy", "enter_tag": TODAY}, {"side": SIDES}),
        ({"side": "LONG", "enter_tag": TODAY}, {"side": SIDES}),
        ({"side": "short", "enter_tag": TODAY}, {"side": "feeder 75 votes long only"}),
        # The field that was probably meant.
        (
            {"feeder": "73", "confidence": 0.9},
            {"feeder_id": f"{NO_FEEDER}; 'feeder' is not read, feeder_id is probably meant"},
        ),
        (
            {"FeederId": 73, "confidence": 0.9},
            {"feeder_id": f"{NO_FEEDER}; 'FeederId' is not read, feeder_id is probably meant"},
        ),
        (
            {"feeder_ids": "73", "confidense": 0.9},
            {
                "feeder_id": f"{NO_FEEDER}; 'feeder_ids' is not read, feeder_id is probably meant",
                "confidence": f"{NO_CONFIDENCE}; 'confidense' is not read, confidence is probably meant",
            },
        ),
        (
            {"feeder_id": "73", "conf": 0.9},
            {"confidence": f"{NO_CONFIDENCE}; 'conf' is not read, confidence is probably meant"},
        ),
        (
            {"tag": "from 73 conf=0.9"},
            {
                "feeder_id": f"{NO_FEEDER}; 'tag' is not read, entry_tag is probably meant",
                "confidence": f"{NO_CONFIDENCE}; 'tag' is not read, entry_tag is probably meant",
            },
        ),
        (
            {"pair": None, "symbol": "BTCUSDT", "enter_tag": TODAY},
            {
                "pair": "Input should be a valid string; 'symbol' is not read, pair is probably meant"
            },
        ),
        # Not a long one by default.
        (
            {"direction": "short", "enter_tag": TODAY},
            {"side": "Without side it is long; 'direction' is not read, side is probably meant"},
        ),
        *(
            (
                {"direction": None} | {name: value, "enter_tag": "from 120 conf=0.9"},
                {"side": f"Without side it is long; '{name}' is not read, side is probably meant"},
            )
            for name, value in (
                *(("is_short", value) for value in (1, "1", "yes", 0.5, [])),
                *(("direction", value) for value in (0, -1, "down", "bear", {})),
            )
        ),
        (
            {"is_short": True, "enter_tag": "from 120 conf=0.9"},
            {"side": "Without side it is long; 'is_short' is not read, side is probably meant"},
        ),
    ],
)
def test_what_is_refused_and_with_which_sentence(
    body: dict[str, Any], mistakes: dict[str, str]
) -> None:
    found = read({"pair": PAIR} | body)
    assert isinstance(found, Refused), found
    assert {str(mistake.loc[1]): mistake.message for mistake in found.mistakes} == mistakes


# --- field and tag ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("confidence", "tag", "against"),
    [
        (0.89, "conf=0.89", None),
        (0.8951, "conf=0.89", None),
        (0.8812, "conf=0.89", None),
        (0.9, "conf=0.89", None),
        ("0.900", "conf=0.89", None),
        (0.9001, "conf=0.89", "0.89"),
        (0.8799, "conf=0.89", "0.89"),
        (0.85, "conf=0.7", "0.7"),
        (0.85, "conf=0.850", None),
        (0.85, "conf=0.852", "0.852"),
        (0.85, "conf=85", "85"),
        (0.85, "conf=.9", None),
        (1, "conf=0.97", "0.97"),
        # Free text says nothing, and the first number that is another one is named.
        (0.85, "conf=high", None),
        (0.85, "conf=0,89", None),
        (0.85, "conf=0.85 was conf=0.7", "0.7"),
        (0.85, "DQ: profit=3.05%", None),
    ],
)
def test_confidences_agree_within_one_of_the_tag_s_last_decimal(
    confidence: float | str, tag: str, against: str | None
) -> None:
    found = signal({"feeder_id": "73", "confidence": confidence, "entry_tag": f"from 73 {tag}"})
    assert found.confidence == float(confidence)
    assert [it.tag for it in found.contradictions] == ([] if against is None else [against])
    assert all(it.value == "confidence" for it in found.contradictions)
    # It is the same opinion, whatever its tag contradicts.
    assert found.digest() == msgspec.structs.replace(found, contradictions=()).digest()


@pytest.mark.parametrize(
    ("feeder", "tag", "against"),
    [
        ("75", "from 75b", None),
        ("75b", "from 75", None),
        ("75a", "from 75c", None),
        ("73", "from 75b", "75b"),
        ("73", "from 120", "120"),
        # No feeder: a tag may say "from" of anything.
        ("73", "breakout from below", None),
        ("73", "no word of it", None),
    ],
)
def test_an_alias_of_the_same_feeder_is_no_contradiction(
    feeder: str, tag: str, against: str | None
) -> None:
    found = signal({"feeder_id": feeder, "confidence": 0.9, "entry_tag": tag})
    assert found.posted_as == feeder
    assert [(it.value, it.tag) for it in found.contradictions] == (
        [] if against is None else [("feeder", against)]
    )


# --- unknown fields ---------------------------------------------------------------------------------


def test_of_what_is_called_as_a_secret_may_be_no_value_is_kept() -> None:
    body = FIELDS | {
        "passphrase": "hunter2",
        "API_Key": {"deep": "hunter2"},
        "signal_id": 7,
        "meta": [{"Authorization": "hunter2", "model": "a", "x": [{"signature": 1, "n": 2}]}],
        "credentials": ["hunter2"],
        "token": None,
        "clientSecret": "hunter2",
    }
    assert signal(body).unknown_fields == (
        '{"passphrase":"…","API_Key":"…","signal_id":7,"meta":[{"Authorization":"…","model":"a",'
        '"x":[{"signature":"…","n":2}]}],"credentials":"…","token":"…","clientSecret":"…"}'
    )


def test_unknown_fields_are_kept_in_their_order_as_far_as_they_fit() -> None:
    body = FIELDS | {"note": "a", "big": "x" * UNKNOWN_FIELDS_BYTES, "model": {"v": [1, None]}}
    assert signal(body).unknown_fields == '{"note":"a","model":{"v":[1,null]}}'
    full = signal(FIELDS | {f"field_{number}": number for number in range(1_000)}).unknown_fields
    assert full is not None
    kept = json.loads(full)
    assert UNKNOWN_FIELDS_BYTES - 20 < len(full.encode()) <= UNKNOWN_FIELDS_BYTES
    assert list(kept) == [f"field_{number}" for number in range(len(kept))]
    exact = signal(FIELDS | {"note": "é" * ((UNKNOWN_FIELDS_BYTES - len('{"note":""}')) // 2)})
    assert exact.unknown_fields is not None
    assert len(exact.unknown_fields.encode()) == UNKNOWN_FIELDS_BYTES - 1
    assert signal(FIELDS).unknown_fields is None


def test_what_is_beside_a_vote_is_stored_counted_and_shown(tmp_path: Path) -> None:
    body = {
        "pair": PAIR,
        "side": "long",
        "feeder_id": "73",
        "confidence": 0.815,
        "signal_strength": 'very\u001b "high"',
        "model": "v 7",
        "entry_tag": "long from 75b conf=0.70",
    }

    async def scenario() -> None:
        async with (
            CountingBot() as bot,
            running(settings(tmp_path, {"long": bot.url}, window_s=600)) as aggregator,
        ):
            status, answer = await aggregator.send(body)
            assert status == 200
            assert answer["status"].startswith(
                f"signal of feeder 73 for {PAIR} long counted, conf=0.82"
            )
            assert answer["status"].endswith(
                "; field and tag contradict each other (feeder 73, in the tag 75b and confidence 0.815, "
                "in the tag 0.70): the field counts, a later version refuses it with 422"
            )
            assert (await aggregator.send(FIELDS | {"feeder_id": "74"}))[0] == 200
            _, report = await aggregator.status()
            assert report["contradictions"] == {"73 feeder": 1, "73 confidence": 1}
            assert report["strength_texts"] == {"73": 1}
            async with aggregator.session.get(aggregator.aggregator.status_url + "/metrics") as got:
                text = await got.text()
            wanted = (
                'marketfeed_aggregator_contradictions_total{feeder="73",value="confidence"} 1.0'
            )
            assert wanted in text

    asyncio.run(scenario())
    stored = rows(tmp_path, "SELECT strength_text, unknown_fields FROM vote ORDER BY number")
    assert stored == [('very\u001b "high"', '{"model":"v 7"}'), (None, None)]
    first, second = Flow(tmp_path / "ledger.db").read()
    assert first.text.endswith('; strength "very\\u001b \\"high\\"", not read {"model":"v 7"}')
    assert first.confidence == 0.815
    assert "contradict" not in second.text
    plain, beside = recent(tmp_path / "ledger.db", 2).posted
    assert (plain.beside, plain.confidence) == ("", 0.85)
    assert beside.beside == 'strength "very\\u001b \\"high\\"", not read {"model":"v 7"}'
    # As it is shown: half up.
    assert beside.confidence == 0.82
