"""What is collected follows what the exchange lists, and nothing is believed that is not listed twice."""

import pytest
from msgspec.structs import replace

from marketfeed.binance.symbols import (
    NEVER_MS,
    ExchangeInfo,
    Instrument,
    Selection,
    select_all,
    select_named,
)
from marketfeed.pairs.catalog import not_wanted, to_drop
from marketfeed.pairs.roster import ENDED_AFTER_MS, Changes, Roster
from marketfeed.records import CatalogEntry
from marketfeed.schema import DAY_MS, MINUTE_MS
from marketfeed.settings.model import ExchangeSettings

T0 = 1_791_360_000_000


def contract(base: str, listed_ms: int = T0 - 400 * DAY_MS) -> Instrument:
    pair = f"{base}/USDT:USDT"
    return Instrument(f"{base}USDT", pair, "USDT", "TRADING", "PERPETUAL", listed_ms, NEVER_MS)


BTC, ETH, TON = contract("BTC"), contract("ETH"), contract("TON")


def info(*instruments: Instrument) -> ExchangeInfo:
    return ExchangeInfo({instrument.pair: instrument for instrument in instruments}, 0)


def roster(*instruments: Instrument) -> Roster:
    return Roster(Selection(instruments, {}))


def test_a_new_listing_joins_and_its_symbol_is_known_at_once() -> None:
    held = roster(BTC)
    symbols = held.pairs
    new = info(BTC, ETH)
    assert held.update(new, select_all(new, "USDT"), T0).joined == (ETH,)
    assert symbols == {"BTCUSDT": BTC.pair, "ETHUSDT": ETH.pair}
    assert held.update(new, select_all(new, "USDT"), T0).joined == ()


def test_an_announced_end_is_waited_for_and_then_comes_with_its_date() -> None:
    held = roster(BTC, TON)
    end_ms = T0 + 10 * MINUTE_MS
    ending = replace(TON, delivery_ms=end_ms)
    listed = info(BTC, ending)
    changes = held.update(listed, select_all(listed, "USDT"), T0)
    assert changes.dated == (ending,)
    # It trades until then.
    for minutes in (1, 2, 3):
        listed = info(BTC, replace(ending, status="PRE_SETTLE"))
        changes = held.update(listed, select_all(listed, "USDT"), T0 + minutes * MINUTE_MS)
        assert (changes.halted, changes.doubted, changes.dated) == ({}, {}, ())
    assert held.expire(end_ms + ENDED_AFTER_MS - 1) == ()
    (ended,) = held.expire(end_ms + ENDED_AFTER_MS)
    assert (ended.instrument.pair, ended.ended_ms) == (TON.pair, end_ms)
    assert TON.pair not in held
    assert "TONUSDT" not in held.pairs
    # Its row stays for years: it does not come back by that.
    for status in ("SETTLING", "CLOSE", "TRADING", "NEVER_SEEN"):
        listed = info(BTC, replace(ending, status=status))
        assert held.update(listed, select_all(listed, "USDT"), end_ms + DAY_MS).joined == ()


def test_a_pair_that_still_sends_frames_is_not_let_go_of() -> None:
    held = roster(BTC, replace(TON, delivery_ms=T0))
    heard_ms = {TON.pair: T0 + 10 * MINUTE_MS}

    def expire(now_ms: int) -> tuple[str, ...]:
        over = held.expire(now_ms, lambda pair: heard_ms.get(pair, 0), MINUTE_MS)
        return tuple(one.instrument.pair for one in over)

    assert expire(T0 + 11 * MINUTE_MS - 1) == ()
    heard_ms[TON.pair] += MINUTE_MS
    assert expire(T0 + 11 * MINUTE_MS) == ()
    assert expire(T0 + 12 * MINUTE_MS) == (TON.pair,)


@pytest.mark.parametrize("name", ["TONUSDT", ""])
def test_a_row_that_cannot_be_read_ends_nothing(name: str) -> None:
    held = roster(BTC, TON)
    listed = ExchangeInfo({BTC.pair: BTC}, 1, {name: "onboardDate"})
    for minutes in range(5):
        changes = held.update(listed, select_all(listed, "USDT"), T0 + minutes * MINUTE_MS)
        assert (changes.halted, changes.doubted) == ({}, {})
        assert held.still_trades(TON.pair)
    # Nor does another contract of that name, which only its absence lets through.
    quarterly = replace(TON, symbol="TONUSDT_261225", contract_type="CURRENT_QUARTER")
    listed = ExchangeInfo({BTC.pair: BTC, TON.pair: quarterly}, 1, {name: "onboardDate"})
    for minutes in range(5, 10):
        changes = held.update(listed, select_all(listed, "USDT"), T0 + minutes * MINUTE_MS)
        assert (changes.halted, changes.doubted) == ({}, {})
        assert held.still_trades(TON.pair)
    assert TON.pair in held


def test_an_end_that_is_taken_back_is_none() -> None:
    held = roster(TON)
    listed = info(replace(TON, delivery_ms=T0 + MINUTE_MS))
    held.update(listed, select_all(listed, "USDT"), T0)
    assert held.update(info(TON), select_all(info(TON), "USDT"), T0 + 1).dated == (TON,)
    assert held.expire(T0 + DAY_MS) == ()


@pytest.mark.parametrize("status", ["TRADING_HALT", "BREAK", "HALT", "NEVER_SEEN", ""])
def test_a_status_that_is_no_end_is_a_halt_by_a_second_answer(status: str) -> None:
    held = roster(BTC, TON)
    halted, whole = info(BTC, replace(TON, status=status)), info(BTC, TON)
    first = held.update(halted, select_all(halted, "USDT"), T0)
    assert (first.doubted, first.halted, held.halted) == ({TON.pair: status}, {}, {})
    assert not held.still_trades(TON.pair)
    second = held.update(halted, select_all(halted, "USDT"), T0 + 3 * MINUTE_MS)
    assert (second.doubted, second.halted) == ({}, {TON.pair: status})
    assert held.halted == {TON.pair: status}
    # It is collected all the time, and goes on by itself.
    for days in range(1, 40):
        later = held.update(halted, select_all(halted, "USDT"), T0 + days * DAY_MS)
        assert (later.halted, later.joined, held.expire(T0 + days * DAY_MS)) == ({}, (), ())
    assert TON.pair in held
    assert held.pairs["TONUSDT"] == TON.pair
    back = held.update(whole, select_all(whole, "USDT"), T0 + 40 * DAY_MS)
    assert (back.resumed, back.joined, held.halted) == ((TON.pair,), (), {})
    assert held.still_trades(TON.pair)


def test_one_odd_answer_changes_nothing() -> None:
    held = roster(BTC, TON)
    odd, whole = info(BTC, replace(TON, status="BREAK")), info(BTC, TON)
    for turn in range(6):
        listed = odd if turn % 2 else whole
        held.update(listed, select_all(listed, "USDT"), T0 + turn)
        assert held.halted == {}
    assert len(held) == 2


def test_however_many_halt_at_once_all_go_on_being_collected() -> None:
    many = [contract(f"C{n}") for n in range(40)]
    held = roster(*many)
    stopped = info(*(replace(one, status="BREAK") for one in many))
    for turn in range(4):
        held.update(stopped, select_all(stopped, "USDT"), T0 + turn)
    assert len(held) == len(held.halted) == 40
    whole = info(*many)
    assert len(held.update(whole, select_all(whole, "USDT"), T0 + 4).resumed) == 40
    assert held.halted == {}


def test_a_row_that_is_missing_ends_nothing_however_many_are_and_for_however_long() -> None:
    many = [contract(f"C{n}") for n in range(40)]
    held = roster(*many)
    left = info(*many[12:])
    for days in range(30):
        changes = held.update(left, select_all(left, "USDT"), T0 + days * DAY_MS)
        assert changes == Changes()
        assert held.expire(T0 + days * DAY_MS) == ()
    assert len(held) == 40
    # It is not said either that these trade.
    assert not held.still_trades("C0/USDT:USDT")
    assert held.still_trades("C12/USDT:USDT")
    # Nor is a halt over, of which nothing is said any more.
    broken = info(*(replace(one, status="BREAK") for one in many))
    for turn in (1, 2):
        held.update(broken, select_all(broken, "USDT"), T0 + 40 * DAY_MS + turn)
    held.update(left, select_all(left, "USDT"), T0 + 41 * DAY_MS)
    assert len(held.halted) == 12


def test_a_beginning_that_is_put_right_is_told_and_nothing_joins() -> None:
    held = roster(BTC, TON)
    moved = replace(TON, listed_ms=T0 - DAY_MS)
    listed = info(BTC, moved)
    changes = held.update(listed, select_all(listed, "USDT"), T0)
    assert (changes.dated, changes.joined) == ((moved,), ())
    assert held.known(TON.pair) == moved


def test_a_configured_pair_joins_once_it_trades() -> None:
    coming = replace(ETH, status="PENDING_TRADING", contract_type="")
    names = [BTC.pair, ETH.pair]
    held = Roster(select_named(info(BTC, coming), names))
    assert list(held.refused) == [ETH.pair]
    listed = info(BTC, ETH)
    assert held.update(listed, select_named(listed, names), T0).joined == (ETH,)
    assert held.refused == {}


def test_what_ended_while_nobody_looked_is_found_and_what_is_not_configured_is_left_alone() -> None:
    held = roster(BTC)
    gone = replace(contract("OLD"), delivery_ms=T0 - DAY_MS, status="SETTLING")
    held.remember([ETH, contract("OLD"), TON])
    listed = info(BTC, ETH, gone)
    wanted = Selection((BTC,), {})
    held.update(listed, wanted, T0)
    assert [(e.instrument.pair, e.ended_ms) for e in held.expire(T0)] == [(gone.pair, T0 - DAY_MS)]
    # Of what has no row nobody knows.
    held.update(listed, wanted, T0 + MINUTE_MS)
    assert held.expire(T0 + DAY_MS) == ()


def row(pair: str, ended_ms: int | None = None, *, dropped: bool = False) -> CatalogEntry:
    symbol = pair.partition(":")[0].replace("/", "")
    return CatalogEntry(pair, symbol, ("3m",), T0, None, ended_ms, T0, dropped)


def test_what_the_settings_ask_for_is_wanted_whether_it_trades_or_not() -> None:
    halted = replace(TON, status="HALT")
    listed = info(BTC, ETH, halted)
    stored = [row(pair) for pair in (BTC.pair, ETH.pair, TON.pair, "OLD/USDT:USDT")]
    named = ExchangeSettings.model_validate({"pairs": [BTC.pair, TON.pair]})
    selection = select_named(listed, [BTC.pair, TON.pair])
    assert list(not_wanted(stored, named, selection)) == [ETH.pair, "OLD/USDT:USDT"]
    # The chosen ones are kept as names.
    top = ExchangeSettings.model_validate({"pairs": {"top": 2}})
    assert not_wanted(stored, top, selection) == not_wanted(stored, named, selection)
    every = ExchangeSettings.model_validate({"pairs": "all"})
    assert not_wanted(stored, every, select_all(listed, "USDT")) == {}
    other = ExchangeSettings.model_validate({"pairs": "all", "quote": "USDC"})
    usdc = row("BTC/USDC:USDC")
    assert len(not_wanted(stored, other, select_all(listed, "USDC"))) == 4
    assert not_wanted([usdc], other, select_all(listed, "USDC")) == {}
    assert list(not_wanted([usdc], every, select_all(listed, "USDT"))) == [usdc.pair]


def test_another_type_ends_nothing_that_runs_and_is_dropped_by_a_start() -> None:
    held = roster(BTC, TON)
    gold = replace(TON, contract_type="TRADIFI_PERPETUAL")
    listed = info(BTC, gold)
    for minutes in range(3):
        for wanted in (
            select_all(listed, "USDT"),
            select_named(listed, [BTC.pair, TON.pair], ["perpetual"]),
        ):
            changes = held.update(listed, wanted, T0 + minutes * MINUTE_MS)
            assert (changes.halted, changes.doubted, changes.dated) == ({}, {}, ())
            assert TON.pair in held
            # To readers it would be live for ever, with the next start that does not collect it.
            for pairs in ("all", [BTC.pair, TON.pair]):
                settings = ExchangeSettings.model_validate({"pairs": pairs})
                rows = [row(BTC.pair), row(TON.pair)]
                unwanted = not_wanted(rows, settings, wanted)
                assert to_drop(unwanted.values(), listed, T0) == [row(TON.pair)]
    # The kept choice has it still.
    top = ExchangeSettings.model_validate({"pairs": {"top": 2}})
    kept = select_named(listed, [BTC.pair, TON.pair])
    assert not_wanted([row(BTC.pair), row(TON.pair)], top, kept) == {}
    # Nor is a type an end that nobody knows, or none.
    for minutes, kind in enumerate(("HYPERPETUAL", ""), 3):
        other = info(BTC, replace(TON, contract_type=kind))
        changes = held.update(other, select_all(other, "USDT"), T0 + minutes * MINUTE_MS)
        assert (changes.halted, changes.doubted, changes.dated) == ({}, {}, ())
        assert held.still_trades(TON.pair)


def test_what_is_dropped_once_or_was_ended_by_the_exchange_stays_as_it_is() -> None:
    pairs = [f"C{n}/USDT:USDT" for n in range(6)]
    live = row(pairs[0])
    ending = row(pairs[1], T0 + DAY_MS)
    delisted = row(pairs[2], T0 - DAY_MS)
    halted = row(pairs[3], T0 - DAY_MS)
    back = row(pairs[4], T0 - DAY_MS)
    dropped = row(pairs[5], T0 - DAY_MS, dropped=True)
    listed = info(
        contract("C0"),
        replace(contract("C2"), delivery_ms=T0 - DAY_MS, status="SETTLING"),
        replace(contract("C3"), status="HALT"),
        contract("C4"),
        contract("C5"),
    )
    stored = [live, ending, delisted, halted, back, dropped]
    assert to_drop(stored, listed, T0) == [live, ending, back]


def test_a_rename_is_guessed_once_and_nothing_is_stitched() -> None:
    held = roster(BTC, TON)
    end_ms = T0 + MINUTE_MS
    gram = contract("GRAM", listed_ms=end_ms + 3_600_000)
    listed = info(BTC, replace(TON, delivery_ms=end_ms), gram)
    changes = held.update(listed, Selection((BTC,), {}), T0)
    assert changes.renamed == ((TON.pair, gram.pair),)
    held.expire(end_ms + DAY_MS)
    assert held.update(listed, Selection((BTC,), {}), end_ms + DAY_MS).renamed == ()


def test_what_is_collected_all_the_same_is_not_left_out() -> None:
    held = Roster(Selection((BTC,), {BTC.pair: "its row is missing", TON.pair: "status CLOSE"}))
    assert held.left_out == {TON.pair: "status CLOSE"}
