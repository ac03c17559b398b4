"""What is wrong with the answers of readers on a bucket that two versions of the collector write to.

Pure: answers of `mixed_reader.py` are held against what the exchange knows, those of an older version also
against what the same version answers where its own collector is alone. Each function gives complaints.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from marketfeed.schema import MINUTE_MS, REGULAR, SETTLED_LATE_MS, TIMEFRAMES_MS
from tests.upgrade.mixed_plan import (
    AGAIN_PRICE,
    BOTH,
    DROPPED,
    ENDING,
    HOURLY,
    PAIRS,
    REUSED,
    SPECIAL,
    TIMEFRAMES,
    Plan,
)
from tests.upgrade.mixed_truth import Known

DUE_AFTER_MS: Final = 15_000
"""A reader counts a candle as missing so long after its close."""
YOUNG_MS: Final = 10 * MINUTE_MS
"""So long after its listing a contract may have no candle of each timeframe in the bucket yet."""
_ALLOWED_YOUNG: Final = {"StaleDataError"}

Answer = Mapping[str, Any]


def words(found: Answer) -> str:
    """What was raised, in one line."""
    return f"{found['error']}: {found['text'][:300]}"


# --- candles, of any version ------------------------------------------------------------------------------


def wrong_rows(pair: str, timeframe: str, found: Answer, truth: Known) -> Iterator[str]:
    """Candles that the exchange does not have, or has otherwise; times out of order."""
    known = truth.candles[pair, timeframe]
    times = [row[0] for row in found["rows"]]
    if times != sorted(set(times)):
        yield f"{pair} {timeframe}: open times are not ascending"
    for open_ms, *numbers in found["rows"]:
        if truth.life_at(pair, timeframe, open_ms) is None:
            continue  # the end cuts it: what was traded until then, by REST alone
        if tuple(numbers) != known.get(open_ms):
            yield f"{pair} {timeframe} {open_ms}: {numbers}, the exchange: {known.get(open_ms)}"


def untold(pair: str, timeframe: str, found: Answer, truth: Known, until_ms: int) -> Iterator[str]:
    """Candles of the last row's contract that are neither in a frame nor named by it."""
    if not found["rows"]:
        return
    first_ms, last_ms = found["rows"][0][0], found["rows"][-1][0]
    life = truth.life_at(pair, timeframe, last_ms)
    have = {row[0] for row in found["rows"]} | set(found["missing"])
    for open_ms in truth.candles[pair, timeframe]:
        closed_ms = open_ms + TIMEFRAMES_MS[timeframe]
        if (
            first_ms <= open_ms
            and closed_ms + DUE_AFTER_MS <= until_ms
            and truth.life_at(pair, timeframe, open_ms) == life
            and open_ms not in have
        ):
            yield f"{pair} {timeframe} {open_ms}: neither there nor told as missing"


# --- the new reader ---------------------------------------------------------------------------------------


def new_reader(answer: Answer, truth: Known, plan: Plan, now_ms: int, *, final: bool) -> list[str]:
    """Complaints about the current version's answer at `now_ms`; `final`: all is stored by then."""
    return [
        *_new_candles(answer, truth, plan, now_ms, final=final),
        *_new_settled(answer, truth, plan, now_ms, final=final),
        *_new_rates(answer, truth, plan, final=final),
        *(_new_lives(answer, truth, plan) if final else ()),
    ]


def _new_candles(
    answer: Answer, truth: Known, plan: Plan, now_ms: int, *, final: bool
) -> Iterator[str]:
    for pair, frames in answer["frames"].items():
        for timeframe, found in frames.items():
            young = pair == REUSED and plan.again_ms <= now_ms < plan.again_ms + YOUNG_MS
            if "error" in found:
                if final or not young or found["error"] not in _ALLOWED_YOUNG:
                    yield f"{pair} {timeframe}: {words(found)}"
                continue
            yield from wrong_rows(pair, timeframe, found, truth)
            until_ms = min(now_ms, plan.drop_ms) if pair == DROPPED else now_ms
            yield from untold(pair, timeframe, found, truth, until_ms)
            until_ms = min(until_ms, plan.end_ms)
            lives = {truth.life_at(pair, timeframe, row[0]) for row in found["rows"]}
            if len(lives) > 1 or None in lives:
                yield f"{pair} {timeframe}: one frame of {lives}"
            if final:
                yield from _whole(pair, timeframe, found, truth, plan, until_ms)
    if final:
        for timeframe, found in answer["older"].items():
            yield from _older(timeframe, found, truth, plan)


def _whole(
    pair: str, timeframe: str, found: Answer, truth: Known, plan: Plan, until_ms: int
) -> Iterator[str]:
    """All of the last contract is there."""
    first_ms, end_ms = truth.lives[pair][-1].owns(TIMEFRAMES_MS[timeframe])
    have = {row[0] for row in found["rows"]}
    for open_ms in truth.candles[pair, timeframe]:
        closed_ms = open_ms + TIMEFRAMES_MS[timeframe]
        due = max(first_ms, plan.since_ms) <= open_ms < end_ms and closed_ms <= until_ms
        if due and open_ms not in have:
            yield f"{pair} {timeframe} {open_ms}: missing at the end"
    told = [at for at in found["missing"] if at + TIMEFRAMES_MS[timeframe] <= until_ms]
    if told:
        yield f"{pair} {timeframe}: told as missing at the end: {told[:5]}"


def _older(timeframe: str, found: Answer, truth: Known, plan: Plan) -> Iterator[str]:
    """REUSED up to its first contract's end is that contract's."""
    if "error" in found:
        yield f"{REUSED} {timeframe} until its first end: {words(found)}"
        return
    yield from wrong_rows(REUSED, timeframe, found, truth)
    have = {row[0] for row in found["rows"]}
    _, end_ms = truth.lives[REUSED][0].owns(TIMEFRAMES_MS[timeframe])
    want = {at for at in truth.candles[REUSED, timeframe] if plan.since_ms <= at < end_ms}
    if have != want:
        yield (
            f"{REUSED} {timeframe} until its first end: lacks {sorted(want - have)[:5]}, "
            f"has {sorted(have - want)[:5]} too many"
        )


def _new_settled(
    answer: Answer, truth: Known, plan: Plan, now_ms: int, *, final: bool
) -> Iterator[str]:
    due_ms = now_ms - SETTLED_LATE_MS
    for pair, found in answer["settled"].items():
        if "error" in found:
            yield f"{pair} settled: {words(found)}"
            continue
        known = truth.settled[pair]
        times_ms = {at_ms for at_ms, _ in known}
        for at_ms, rate, kind in found["rows"]:
            if at_ms not in times_ms:
                yield f"{pair} settled {at_ms}: the exchange has none"
            elif (at_ms > due_ms and not final) or known.get((at_ms, kind)) == rate:
                continue  # of what the older collector has written first no kind is known yet
            else:
                yield f"{pair} settled {at_ms}: {kind} {rate}, the exchange: {known}"
        if not final:
            continue
        until_ms = min(due_ms, plan.drop_ms) if pair == DROPPED else due_ms
        want = truth.settled_of(pair, plan.since_ms, until_ms)
        have = sorted((at, kind, rate) for at, rate, kind in found["rows"] if at < until_ms)
        if have != want:
            yield f"{pair} settled: {have}, the exchange: {want}"
        if found["missing"]:
            yield f"{pair} settled: told as missing {found['missing']}"
        to_ms = found["settled_to"]
        # A contract that has just joined is asked for once more after eleven minutes.
        is_young = pair == REUSED and plan.end_ms - plan.again_ms < 2 * YOUNG_MS
        is_asked = pair not in (ENDING, DROPPED) and not is_young
        if is_asked and (to_ms is None or not plan.full_ms < to_ms <= now_ms):
            yield f"{pair} settled_to {to_ms}: more than {plan.full_ms} and at most {now_ms} is right"
    if final:
        lone = [row for row in answer["settled"][SPECIAL]["rows"] if row[2] != REGULAR]
        both = [row[2] for row in answer["settled"][BOTH]["rows"] if row[0] == plan.full_ms]
        if len(lone) != 1 or both != [REGULAR, "Special"]:
            yield f"kinds: {lone} of {SPECIAL}, {both} of {BOTH}"


def _new_rates(answer: Answer, truth: Known, plan: Plan, *, final: bool) -> Iterator[str]:
    rates = answer["rates"]
    if "error" in rates:
        yield f"rates: {words(rates)}"
        return
    for pair in PAIRS if final else ():
        over = pair in (ENDING, DROPPED)
        if (pair in rates) == over:
            yield f"{pair}: {'a' if over else 'no'} running rate"
        if over or pair not in rates:
            continue
        want_h = {HOURLY: 1.0, REUSED: rates[pair]["interval_h"]}.get(pair, 8.0)
        if rates[pair]["interval_h"] not in (want_h, None):
            yield f"{pair}: an interval of {rates[pair]['interval_h']} h, {want_h} is right"
        settled = truth.settled[pair]
        if rates[pair]["settled"] not in settled.values():
            yield f"{pair}: settled last at {rates[pair]['settled']}, the exchange: {settled}"
    for pair, found in answer["marks"].items() if final else ():
        if "error" in found and pair not in (ENDING, DROPPED):
            yield f"{pair} mark price: {words(found)}"
    price = answer["marks"][REUSED].get("price", AGAIN_PRICE)
    if final and not AGAIN_PRICE / 2 < price < AGAIN_PRICE * 2:
        yield f"{REUSED}: a mark price of {price}, that of the contract before"


def _new_lives(answer: Answer, truth: Known, plan: Plan) -> Iterator[str]:
    for pair, found in answer["lives"].items():
        want = [[one.symbol, one.listed_ms, one.ended_ms] for one in truth.lives[pair]]
        if found != want:
            yield f"{pair} lives: {found}, the exchange: {want}"
    for timeframe in TIMEFRAMES:
        lives = answer["frames"][REUSED][timeframe].get("lives")
        want = [[one.listed_ms, one.ended_ms, one.symbol] for one in truth.lives[REUSED]]
        if lives != want:
            yield f"{REUSED} {timeframe}: the break is told as {lives}, {want} is right"
    for pair, found in answer["strict"].items():
        # What has closed since the end may lack, of the dropped pair all that has since.
        if pair == REUSED and found.get("error") != "GapError":
            yield f"{pair} strict: {found}"
    pairs = answer["pairs"]
    for pair in PAIRS:
        live = pair not in (ENDING, DROPPED)
        if pair not in pairs or (pairs[pair]["ended"] is None) != live:
            yield f"{pair}: {pairs.get(pair)}"
    if pairs.get(ENDING, {}).get("ended") != plan.ending_ms:
        yield f"{ENDING}: {pairs.get(ENDING)}, it ended at {plan.ending_ms}"


# --- readers of an older version --------------------------------------------------------------------------


def old_reader(answer: Answer, truth: Known, plan: Plan, now_ms: int) -> list[str]:
    """Complaints about an older version's answer, whatever it cannot know: no error, no wrong candle.

    It may join the contracts of one symbol, and knows no kinds of settlements.
    """
    found: list[str] = []
    for pair, frames in answer["frames"].items():
        for timeframe, frame in frames.items():
            young = pair == REUSED and plan.again_ms <= now_ms < plan.again_ms + YOUNG_MS
            if "error" not in frame:
                found += wrong_rows(pair, timeframe, frame, truth)
                if pair not in (REUSED, DROPPED, ENDING):
                    found += untold(pair, timeframe, frame, truth, now_ms)
            elif not young or frame["error"] not in _ALLOWED_YOUNG:
                found.append(f"{pair} {timeframe}: {words(frame)}")
    for pair, settled in answer["settled"].items():
        if "error" in settled:
            found.append(f"{pair} settled: {words(settled)}")
            continue
        rates = {(at_ms, rate) for (at_ms, _), rate in truth.settled[pair].items()}
        known = {at_ms for at_ms, _ in rates}
        found += [
            f"{pair} settled {at_ms}: {rate}, the exchange: {sorted(rates)}"
            for at_ms, rate, _ in settled["rows"]
            if (at_ms, rate) not in rates and (at_ms in known or at_ms < now_ms - SETTLED_LATE_MS)
        ]
    for name in ("pairs", "rates", "feeder"):
        if "error" in answer[name]:
            found.append(f"{name}: {words(answer[name])}")
    return found


def as_alone(mixed: Answer, alone: Answer, plan: Plan) -> list[str]:
    """Where an older version answers otherwise than beside its own collector alone, and not better."""
    found: list[str] = []
    for pair in PAIRS:
        end_ms = plan.drop_ms if pair == DROPPED else plan.end_ms
        for timeframe in TIMEFRAMES:
            found += [
                f"{pair} {timeframe}: {text}"
                for text in _frame_as_alone(
                    mixed["frames"][pair][timeframe],
                    alone["frames"][pair][timeframe],
                    end_ms - TIMEFRAMES_MS[timeframe],
                )
            ]
        due_ms = end_ms - SETTLED_LATE_MS
        one, other = (
            [row for row in answer["settled"][pair].get("rows", ()) if row[0] < due_ms]
            for answer in (mixed, alone)
        )
        if one != other:
            found.append(f"{pair} settled: {one}, alone {other}")
        one, other = (_entry(answer["pairs"].get(pair), pair) for answer in (mixed, alone))
        if one != other:
            found.append(f"{pair}: {one}, alone {other}")
        one, other = (
            {name: answer["rates"].get(pair, {}).get(name) for name in ("settled", "next")}
            for answer in (mixed, alone)
        )
        if one != other and pair != DROPPED:
            found.append(f"{pair} rate: {one}, alone {other}")
    for name, other in alone["feeder"].items():
        one = mixed["feeder"][name]
        if "error" in one and "error" not in other:
            found.append(f"a feeder's {name}: {words(one)}, alone it is answered")
    return found


def _entry(found: Answer | None, pair: str) -> object:
    """A row of `pairs`; when exactly each collector was stopped to drop a pair does not matter."""
    if found is None or pair != DROPPED:
        return found
    return found["timeframes"], found["ended"] is None


def _frame_as_alone(one: Answer, other: Answer, last_ms: int) -> Iterator[str]:
    if "error" in other:
        if one.get("error") not in (None, other["error"]):
            yield f"{words(one)}, alone {words(other)}"
        return
    if "error" in one:
        yield f"{words(one)}, alone it is answered"
        return
    rows, alone = (
        {row[0]: row[1:] for row in answer["rows"] if row[0] <= last_ms} for answer in (one, other)
    )
    lost = {at: row for at, row in alone.items() if rows.get(at) != row}
    if lost:
        yield f"other candles than alone: {list(lost.items())[:3]}"
    more = sorted(set(rows) - set(alone) - set(other["missing"]))
    if more:
        yield f"candles that it has not alone, and does not miss there: {more[:5]}"
    told = sorted(at for at in set(one["missing"]) - set(other["missing"]) if at <= last_ms)
    if told:
        yield f"missing, and not alone: {told[:5]}"
