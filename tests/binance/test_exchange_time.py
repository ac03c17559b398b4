"""What the exchange's time is taken for, by what its frames and its `time` tell: the rules alone.

A scene is an exchange with a clock of its own, and a host that is told of it.
"""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.binance.exchange_time import HOLD_S, LAG_MS, STANDS_AFTER_S, STEP_MS, ExchangeTime
from marketfeed.schema import DAY_MS, HOUR_MS

START_MS = 1_790_000_000_000
ROUNDING_MS = 1
TICK_S = 0.1


class Scene:
    """An exchange `step_ms` off its time at the start; frames come as `hear` says, `time` as `tell` does."""

    def __init__(self, *, assumed_ms: int = START_MS, speed: float = 1.0) -> None:
        self.now_s = 1_000.0
        self.speed = speed
        self.step_ms = 0
        self.time = ExchangeTime(assumed_ms, self.now_s, speed)
        self.time.awaits_frames = True

    @property
    def true_ms(self) -> int:
        return START_MS + self.step_ms + round((self.now_s - 1_000.0) * 1_000 * self.speed)

    @property
    def certain_ms(self) -> int:
        return self.time.certain_ms(self.now_s)

    @property
    def confirmed_ms(self) -> int:
        return self.time.confirmed_ms(self.now_s)

    @property
    def due_ms(self) -> int:
        return self.time.due_ms(self.now_s)

    def hear(self, off_ms: int = 0) -> bool:
        return self.time.on_stamp(self.true_ms + off_ms, self.now_s)

    def tell(self, off_ms: int = 0, round_trip_s: float = 0.0) -> None:
        self.time.on_answer(self.true_ms + off_ms, round_trip_s, self.speed, self.now_s)

    def run(self, for_s: float, off_ms: int = 0) -> list[bool]:
        """Let time pass, with a frame every tick."""
        until_s = self.now_s + for_s
        stored = []
        while self.now_s < until_s:
            self.now_s += TICK_S
            stored.append(self.hear(off_ms))
        return stored

    def is_at(self, certain_ms: int, due_ms: int) -> bool:
        return (
            abs(self.certain_ms - certain_ms) <= ROUNDING_MS
            and abs(self.due_ms - due_ms) <= ROUNDING_MS
        )


def running(*, told: bool = True) -> Scene:
    scene = Scene()
    if told:
        scene.tell()
    scene.run(1.0)
    return scene


# --- a true exchange --------------------------------------------------------------------------------

EVENTS = st.one_of(
    st.tuples(st.just("frame"), st.integers(0, 20_000)),
    st.tuples(st.just("time"), st.integers(0, 5_000)),
    st.tuples(st.just("pass"), st.integers(1, 200_000)),
)


@given(
    st.lists(EVENTS, max_size=60),
    st.booleans(),
    st.sampled_from((-3 * HOUR_MS, 0, 4_000)),
    st.sampled_from((1.0, 60.0)),
)
def test_nothing_is_certain_or_due_before_its_time(
    events: Sequence[tuple[str, int]], awaits: bool, assumed_off_ms: int, speed: float
) -> None:
    """Frames come late, answers take long, the host sleeps: no reading is ever ahead of the exchange."""
    scene = Scene(assumed_ms=START_MS + assumed_off_ms, speed=speed)
    scene.time.awaits_frames = awaits
    heard_ms: list[tuple[float, int]] = []
    told = False
    for kind, number in events:
        if kind == "pass":
            scene.now_s += number / 1_000
        elif kind == "time":
            # The server read its clock some time within the round trip.
            scene.tell(-round(number * speed), round_trip_s=number / 1_000)
            told = True
        else:
            # One far ahead of those before is stored when `time` has passed it, and certain only if that
            # agrees with it.
            before_ms, stamp_ms = scene.certain_ms, scene.true_ms - number
            is_step = heard_ms and stamp_ms - before_ms > STEP_MS * max(1.0, speed / 5.0)
            if scene.hear(-number) and not is_step:
                heard_ms.append((scene.now_s, stamp_ms))
        certain_ms, due_ms = scene.certain_ms, scene.due_ms
        assert certain_ms <= scene.true_ms + ROUNDING_MS
        assert certain_ms > 0 or not heard_ms
        assert certain_ms == 0 or heard_ms or (told and not awaits)
        if told or heard_ms:
            assert certain_ms <= scene.confirmed_ms <= due_ms + ROUNDING_MS
            assert due_ms <= scene.true_ms + ROUNDING_MS
        # The latest of the last minute, carried on; one a second is looked at.
        fresh = [
            at_ms + (scene.now_s - at_s) * 1_000 * speed
            for at_s, at_ms in heard_ms
            if scene.now_s - at_s < HOLD_S - 1.0
        ]
        assert certain_ms >= max(fresh, default=0) - ROUNDING_MS


@given(st.lists(st.integers(0, 4_000), min_size=1, max_size=300), st.integers(1, 600))
def test_a_frame_stamped_far_ahead_moves_nothing_and_is_not_stored(
    lags_ms: Sequence[int], ahead_min: int
) -> None:
    for told in (True, False):
        scene = running(told=told)
        for lag_ms in lags_ms:
            scene.now_s += TICK_S
            assert scene.hear(-lag_ms)
            certain_ms, due_ms = scene.certain_ms, scene.due_ms
            assert not scene.hear(ahead_min * 60_000)
            assert (scene.certain_ms, scene.due_ms) == (certain_ms, due_ms)


def test_of_one_frame_nothing_becomes_due_though_none_follows() -> None:
    for told in (True, False):
        scene = running(told=told)
        assert not scene.hear(DAY_MS)
        scene.now_s += 30.0
        assert scene.is_at(scene.true_ms, scene.true_ms)
        assert scene.time.is_doubted(scene.now_s)


# --- the first frame --------------------------------------------------------------------------------


def test_before_the_first_frame_nothing_is_certain() -> None:
    scene = Scene()
    assert (scene.certain_ms, scene.due_ms) == (0, START_MS)
    scene.tell(HOUR_MS)
    assert (scene.certain_ms, scene.due_ms) == (0, START_MS + HOUR_MS)
    # A command has none.
    scene.time.awaits_frames = False
    assert scene.certain_ms == START_MS + HOUR_MS


@pytest.mark.parametrize("told", [True, False])
def test_not_even_the_first_frame_is_believed_when_it_is_far_ahead(told: bool) -> None:
    scene = Scene(assumed_ms=START_MS - 2_000)
    if told:
        scene.tell()
    assert not any(scene.hear(10_000 * DAY_MS) for _ in range(50))
    assert scene.certain_ms == 0
    assert scene.hear()
    assert scene.is_at(scene.true_ms, scene.true_ms)


def test_a_host_whose_clock_is_behind_waits_for_the_exchanges_time() -> None:
    scene = Scene(assumed_ms=START_MS - HOUR_MS)
    assert not any(scene.run(5.0))
    scene.tell()
    assert all(scene.run(1.0))
    assert scene.is_at(scene.true_ms, scene.true_ms)


def test_a_time_that_is_ahead_keeps_no_first_frame_out() -> None:
    scene = Scene(assumed_ms=START_MS - HOUR_MS)
    scene.tell(3 * HOUR_MS)
    assert scene.hear()
    assert scene.is_at(scene.true_ms, scene.true_ms + 3 * HOUR_MS)
    # It has been told before; the next like answer is the second one.
    assert scene.time.frames_ahead_s(scene.now_s) == 0.0
    scene.tell(3 * HOUR_MS)
    assert scene.time.frames_ahead_s(scene.now_s) == pytest.approx(-3 * 3_600, abs=1)


# --- a step of the whole exchange -------------------------------------------------------------------


@pytest.mark.parametrize("step_ms", [STEP_MS + 1_000, HOUR_MS, 10 * DAY_MS])
def test_a_step_is_due_at_once_and_certain_when_time_agrees(step_ms: int) -> None:
    scene = running()
    old_ms = scene.true_ms
    scene.step_ms = step_ms
    assert not any(scene.run(STANDS_AFTER_S + 0.5))
    passed_ms = scene.true_ms - step_ms - old_ms
    assert scene.is_at(old_ms + passed_ms, scene.true_ms)
    assert scene.time.is_doubted(scene.now_s)
    scene.tell()
    assert all(scene.run(1.0))
    assert scene.is_at(scene.true_ms, scene.true_ms)
    assert scene.time.frames_ahead_s(scene.now_s) == 0.0
    assert not scene.time.is_doubted(scene.now_s)


@pytest.mark.parametrize("told", [True, False])
def test_a_step_that_time_does_not_confirm_is_certain_when_it_has_stood(told: bool) -> None:
    scene = running(told=told)
    scene.step_ms = HOUR_MS
    assert not any(scene.run(HOLD_S - 1.0))
    assert scene.certain_ms < scene.true_ms - HOUR_MS + STEP_MS
    assert scene.run(2.0)[-1]
    assert scene.is_at(scene.true_ms, scene.true_ms)
    # That `time` still tells the old one is said.
    scene.tell(-HOUR_MS)
    scene.tell(-HOUR_MS)
    assert scene.time.frames_ahead_s(scene.now_s) == pytest.approx(3_600, abs=1)


def test_of_frames_ahead_the_least_is_the_step() -> None:
    scene = running(told=False)
    assert not scene.hear(10_000 * DAY_MS)
    scene.step_ms = HOUR_MS
    scene.run(HOLD_S / 2)
    assert scene.due_ms == pytest.approx(scene.true_ms, abs=ROUNDING_MS)
    scene.now_s += HOLD_S
    assert not scene.hear(10_000 * DAY_MS)
    assert scene.certain_ms < scene.true_ms - HOUR_MS + STEP_MS
    assert scene.hear()
    assert scene.is_at(scene.true_ms, scene.true_ms)


def test_a_frame_of_the_old_time_ends_a_step() -> None:
    scene = running(told=False)
    for _ in range(200):
        scene.now_s += 0.9
        assert not scene.hear(HOUR_MS)
        assert scene.hear()
        assert scene.is_at(scene.true_ms, scene.true_ms)


def test_a_stream_that_is_always_ahead_moves_nothing_while_the_others_begin_to_lag() -> None:
    scene = running(told=False)
    for _ in range(3 * round(HOLD_S)):
        scene.now_s += 1.0
        assert scene.hear(-20_000)
        assert not scene.hear(DAY_MS)
        assert max(scene.certain_ms, scene.due_ms) <= scene.true_ms + ROUNDING_MS


@given(st.lists(st.integers(-4, 3 * 24), min_size=1, max_size=8), st.integers(1, 90))
def test_every_step_is_followed(hours: Sequence[int], every_s: int) -> None:
    """Steps to and fro, with `time` or without: after two minutes all readings are the exchange's."""
    for told in (True, False):
        scene = running(told=told)
        for hour in hours:
            scene.step_ms = hour * HOUR_MS
            for _ in range(0, 2 * round(HOLD_S) + 2, every_s):
                if told:
                    scene.tell()
                scene.run(every_s)
                assert scene.certain_ms <= max(scene.true_ms, START_MS + 4 * DAY_MS)
            assert scene.is_at(scene.true_ms, scene.true_ms)


def test_it_goes_back_when_no_stamp_has_reached_it_for_a_minute() -> None:
    scene = running()
    before_ms = scene.true_ms
    scene.step_ms = -HOUR_MS
    assert all(scene.run(HOLD_S - 2.0))
    gone_ms = scene.true_ms + HOUR_MS - before_ms
    assert scene.is_at(before_ms + gone_ms, before_ms + gone_ms)
    scene.tell()
    scene.run(3.0)
    assert scene.is_at(scene.true_ms, scene.true_ms)


# --- frames that lag, and `time` that is wrong ------------------------------------------------------


def test_frames_that_lag_are_a_reason_until_they_do_not() -> None:
    scene = running()
    lag_ms = 10 * 60_000
    assert all(scene.run(HOLD_S + 2.0, -lag_ms))
    assert scene.is_at(scene.true_ms - lag_ms, scene.true_ms)
    # It has been told once: nobody has confirmed that.
    assert scene.confirmed_ms == scene.certain_ms
    assert scene.time.is_doubted(scene.now_s)
    scene.tell()
    assert scene.confirmed_ms == pytest.approx(scene.true_ms, abs=ROUNDING_MS)
    assert scene.certain_ms == pytest.approx(scene.true_ms - lag_ms, abs=ROUNDING_MS)
    scene.tell()
    assert scene.time.frames_ahead_s(scene.now_s) == pytest.approx(-600, abs=1)
    assert all(scene.run(1.0))
    assert scene.is_at(scene.true_ms, scene.true_ms)
    scene.tell()
    assert scene.time.frames_ahead_s(scene.now_s) == 0.0
    assert not scene.time.is_doubted(scene.now_s)


def test_what_catches_up_is_stored_and_closes_what_it_proves() -> None:
    scene = running()
    scene.run(HOLD_S + 2.0, -10 * 60_000)
    for off_ms in range(-10 * 60_000, 1, 1_500):
        scene.now_s += 0.01
        assert scene.hear(off_ms)
        assert abs(scene.certain_ms - scene.true_ms - off_ms) <= ROUNDING_MS
    # A jump among frames that lag is known to be past, but is not confirmed by what `time` tells.
    scene = running()
    scene.run(HOLD_S + 2.0, -10 * 60_000)
    certain_ms = scene.certain_ms
    assert scene.hear(-5 * 60_000)
    assert scene.certain_ms == certain_ms


@pytest.mark.parametrize("off_ms", [LAG_MS + 1_000, 3 * HOUR_MS])
def test_time_far_ahead_is_taken_when_it_is_told_twice(off_ms: int) -> None:
    scene = running()
    scene.tell(off_ms)
    assert scene.is_at(scene.true_ms, scene.true_ms)
    assert scene.confirmed_ms == pytest.approx(scene.true_ms, abs=ROUNDING_MS)
    assert scene.time.frames_ahead_s(scene.now_s) == 0.0
    assert scene.time.is_doubted(scene.now_s)
    scene.run(3.0)
    scene.tell(off_ms)
    assert scene.is_at(scene.true_ms, scene.true_ms + off_ms)
    assert scene.time.frames_ahead_s(scene.now_s) == pytest.approx(-off_ms / 1_000, abs=1)
    assert scene.confirmed_ms == pytest.approx(scene.true_ms + off_ms, abs=ROUNDING_MS)
    scene.run(3.0)
    scene.tell()
    assert scene.is_at(scene.true_ms, scene.true_ms)
    assert scene.time.frames_ahead_s(scene.now_s) == 0.0
    assert not scene.time.is_doubted(scene.now_s)


def test_of_two_answers_the_lesser_is_confirmed() -> None:
    scene = running(told=False)
    scene.run(HOLD_S + 2.0, -10 * 60_000)
    for off_ms, confirmed_off_ms in (
        (3 * HOUR_MS, -10 * 60_000),
        (0, 0),
        (-2_000, -2_000),
        (5 * HOUR_MS, -2_000),
        (-HOUR_MS, -10 * 60_000),
    ):
        scene.tell(off_ms)
        assert scene.confirmed_ms == pytest.approx(
            scene.true_ms + confirmed_off_ms, abs=ROUNDING_MS
        )


def test_time_that_was_wrong_once_in_a_while_is_never_taken() -> None:
    scene = running()
    for _ in range(20):
        scene.tell(3 * HOUR_MS)
        scene.run(3.0)
        scene.tell()
        scene.run(3.0)
        assert scene.is_at(scene.true_ms, scene.true_ms)
        assert scene.time.frames_ahead_s(scene.now_s) == 0.0


def test_time_that_is_behind_changes_nothing_and_is_a_reason() -> None:
    scene = running()
    scene.tell(-HOUR_MS)
    assert scene.time.frames_ahead_s(scene.now_s) == 0.0
    scene.tell(-HOUR_MS)
    assert scene.is_at(scene.true_ms, scene.true_ms)
    assert scene.time.frames_ahead_s(scene.now_s) == pytest.approx(3_600, abs=1)


def test_an_answer_that_took_long_makes_no_clock_worse() -> None:
    scene = Scene()
    scene.time.awaits_frames = False
    scene.tell()
    scene.now_s += 600.0
    scene.tell(-9_000, round_trip_s=10.0)
    assert scene.is_at(scene.true_ms, scene.true_ms)
    # What it says for certain is taken.
    scene.tell(-11_000, round_trip_s=10.0)
    assert scene.is_at(scene.true_ms - 11_000, scene.true_ms - 11_000)


# --- no frames, and other speeds --------------------------------------------------------------------


@pytest.mark.parametrize("silent_s", [30.0, 90.0, 86_400.0])
def test_without_frames_both_go_on(silent_s: float) -> None:
    """However the time passes: the host may have been suspended."""
    for told in (True, False):
        scene = running(told=told)
        scene.now_s += silent_s
        assert scene.is_at(scene.true_ms, scene.true_ms)
        assert scene.hear()
        assert scene.is_at(scene.true_ms, scene.true_ms)


@pytest.mark.parametrize("speed", [0.5, 60.0, 240.0])
def test_the_hold_is_wall_seconds_at_any_speed(speed: float) -> None:
    scene = Scene(speed=speed)
    scene.tell()
    scene.run(1.0)
    scene.step_ms = -24 * HOUR_MS
    scene.run(HOLD_S - 2.0)
    assert scene.certain_ms == pytest.approx(scene.true_ms + 24 * HOUR_MS, abs=ROUNDING_MS)
    scene.run(3.0)
    assert scene.certain_ms == pytest.approx(scene.true_ms, abs=ROUNDING_MS)


def test_against_a_fast_simulator_a_wall_second_is_no_step() -> None:
    scene = Scene(speed=60.0)
    scene.tell()
    scene.run(1.0, -55_000)
    scene.time.on_answer(scene.true_ms - 300_000, 0.0, 60.0, scene.now_s)
    assert scene.hear()
    assert scene.certain_ms == pytest.approx(scene.true_ms, abs=ROUNDING_MS)
    assert not scene.hear(61_000)


def test_a_speed_that_time_tells_begins_anew() -> None:
    scene = Scene()
    scene.hear()
    scene.now_s += 10.0
    scene.speed = 60.0
    scene.tell()
    assert (scene.certain_ms, scene.due_ms) == (0, scene.true_ms)
    assert scene.confirmed_ms == 0
    scene.run(1.0)
    assert scene.is_at(scene.true_ms, scene.true_ms)
