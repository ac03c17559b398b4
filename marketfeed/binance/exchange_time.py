"""What the exchange's time is, by the stamps of its frames and its REST's `time`: all the rules.

Neither is ahead of the time at which it is received, so both are times that are past. They are carried on by
the caller's clock, `now_s`: wall seconds that go on while the host is suspended. Three readings come of them:

- `certain_ms`, by frames alone, is the time by which candles have closed: the latest stamp of the last 60 s.
- `confirmed_ms` is the later of that and what two answers of `time` in a row have passed: what closes by it
  may be asked for, and of the answer `klines.Past` knows what has closed.
- `due_ms` is the time by which data is due and has its age: the later of that and REST's `time`.

A stamp more than 5 s ahead of the others is a step: one server's slip, or a new time of the whole exchange.
It becomes certain once `time` agrees, or when no frame has had the old time for 60 s. An answer of `time`
that is far ahead of all that is known is taken when it comes twice.
"""

from collections import deque
from typing import Final, NamedTuple

PURE = True

HOLD_S: Final = 60.0
"""Wall seconds for which a stamp counts, and for which a step must stand that `time` does not confirm."""
STANDS_AFTER_S: Final = 1.0
"""Wall seconds for which a step must stand for data to be due by it: of one frame nothing becomes due."""
STEP_MS: Final = 5_000
"""How far a stamp may be ahead of what is known (exchange ms); a wall second in any case."""
LAG_MS: Final = 10_000
"""How far frames and `time` may be apart (exchange ms); a wall second in any case."""


class _Step(NamedTuple):
    """Stamps ahead of all others: their least lead, and when they began and came last (wall s)."""

    lead_ms: float
    since_s: float
    last_s: float


class ExchangeTime:
    """What is known of the exchange's time; `assumed_ms` is what it is taken for before that.

    A time is kept as its lead: by how many ms it is ahead of `now_s`. `speed` is in exchange seconds per wall
    second, as `time` has it. Nothing is certain before the first frame if frames are awaited, else before
    `time`.
    """

    def __init__(self, assumed_ms: float, now_s: float, speed: float = 1.0) -> None:
        self.speed = speed
        self.awaits_frames = False
        self._assumed = assumed_ms - now_s * 1000.0 * speed
        # When each came, and its lead. The leads fall: the first is the latest time.
        self._stamps: deque[tuple[float, float]] = deque()
        self._step: _Step | None = None
        self._rest: float | None = None
        # The last two answers.
        self._answers: deque[float] = deque(maxlen=2)
        # How many answers in a row were far from the frames.
        self._apart = 0

    def on_stamp(self, stamp_ms: int, now_s: float) -> bool:
        """Take in the stamp of a frame that came just now; whether the frame may be stored.

        One that is far ahead of all that is known may not: it would hide what comes after it.
        """
        lead = stamp_ms - now_s * 1000.0 * self.speed
        stamps, step, rest = self._stamps, self._step, self._rest
        known = self._latest(now_s)
        if known is None:
            known = self._assumed if rest is None else max(rest, self._assumed)
        allowed = max(STEP_MS, 1000.0 * self.speed)
        if lead > known + allowed and (rest is None or abs(lead - rest) > allowed):
            since_s = now_s if step is None else step.since_s
            least = lead if step is None else min(step.lead_ms, lead)
            self._step = _Step(least, since_s, now_s)
            if now_s - since_s < HOLD_S or lead > least + allowed:
                return rest is not None and lead <= rest
        self._step = None
        while stamps and stamps[-1][1] <= lead:
            stamps.pop()
        # One a second: of frames that are ever later there would be thousands.
        if not stamps or now_s - stamps[-1][0] >= 1.0:
            stamps.append((now_s, lead))
        return True

    def on_answer(self, time_ms: int, round_trip_s: float, speed: float, now_s: float) -> None:
        """Take in an answer of `time` that came just now, `round_trip_s` wall seconds after the question."""
        if speed != self.speed:
            self._assumed += now_s * 1000.0 * (self.speed - speed)
            self._rest = self._step = None
            self._stamps.clear()
            self._answers.clear()
            self.speed = speed
        lead = time_ms - now_s * 1000.0 * speed
        self._answers.append(lead)
        newest, rest = self._newest(now_s), self._rest
        # The answer before may have become apart meanwhile: frames came, or they lag.
        before = max(self._apart, rest is not None and self._are_apart(newest, rest))
        self._apart = before + 1 if self._are_apart(newest, lead) else 0
        if self._apart == 1 and newest is not None and lead > newest:
            return
        # The server read its clock some time within the round trip: a time known better is kept.
        if rest is None or not lead <= rest <= lead + round_trip_s * 1000.0 * speed:
            self._rest = lead

    def certain_ms(self, now_s: float) -> int:
        """Exchange time that is past for certain; 0 while none is."""
        lead = self._latest(now_s)
        if lead is None and not self.awaits_frames:
            lead = self._rest
        return 0 if lead is None else round(lead + now_s * 1000.0 * self.speed)

    def confirmed_ms(self, now_s: float) -> int:
        """Exchange time that is past by two answers of `time`, or for certain; 0 while nothing is certain."""
        certain_ms = self.certain_ms(now_s)
        if not certain_ms or len(self._answers) < 2:
            return certain_ms
        return max(certain_ms, round(min(self._answers) + now_s * 1000.0 * self.speed))

    def due_ms(self, now_s: float) -> int:
        """Exchange time by which data is due."""
        leads = [one for one in (self._latest(now_s), self._rest) if one is not None]
        step = self._step
        if step is not None and step.last_s - step.since_s >= STANDS_AFTER_S:
            leads.append(step.lead_ms)
        return round(max(leads, default=self._assumed) + now_s * 1000.0 * self.speed)

    def is_doubted(self, now_s: float) -> bool:
        """Whether `time` should be asked now: it is not known, or frames have another one."""
        if self._rest is None or self._step is not None or self._apart > 0:
            return True
        return self._are_apart(self._newest(now_s), self._rest)

    def frames_ahead_s(self, now_s: float) -> float:
        """How far frames are ahead of `time` (exchange s) if two answers in a row were far from them."""
        newest, rest = self._newest(now_s), self._rest
        if self._apart < 2 or newest is None or rest is None:
            return 0.0
        return (newest - rest) / 1000.0

    def _latest(self, now_s: float) -> float | None:
        """The lead of the latest stamp that counts; None before the first."""
        stamps = self._stamps
        # The last one stays while no other follows: without frames the time goes on from it.
        while len(stamps) > 1 and stamps[0][0] < now_s - HOLD_S:
            stamps.popleft()
        return stamps[0][1] if stamps else None

    def _newest(self, now_s: float) -> float | None:
        """The lead of the frames, be it certain or not."""
        return self._latest(now_s) if self._step is None else self._step.lead_ms

    def _are_apart(self, newest: float | None, rest: float) -> bool:
        return newest is not None and abs(newest - rest) > self._lag_ms()

    def _lag_ms(self) -> float:
        return max(LAG_MS, 1000.0 * self.speed)
