"""Lines to the server, request by request: what is refused is parted until the bad lines stand alone.

By age, where the server says how many are too old; by measurement and shard, where it says that a type does
not fit, for a whole shard is refused then; otherwise in halves.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

from marketfeed.influxdb.answers import Verdict
from marketfeed.influxdb.holds import grouped, has_field, measurement_of, shard_of, time_of
from marketfeed.influxdb.unanswered import UnansweredLines
from marketfeed.influxdb.writer import InfluxWriter

REFUSED_IN_A_ROW: Final = 50
"""After so many refusals in a row that do not speak of the lines, the fault is not in the lines."""

Refused = list[tuple[str, str]]
"""Lines, each with the server's words."""


class NotNowError(Exception):
    """The server does not take it now. Nothing is lost: the rows are still unacknowledged."""

    def __init__(self, verdict: Verdict, lines: Sequence[str] = ()) -> None:
        super().__init__(verdict.text)
        self.verdict = verdict
        self.pending = lines if verdict.pending else ()
        """Lines that were sent, and may be carried out yet."""


class Delivery:
    """Has `influx` take lines. Raises NotNowError; lines that it will never take are returned.

    `unanswered_lines` are the lines whose newest state must be the last that the server carries out. `hold`
    takes lines of one measurement and shard that the bucket refuses for a field's type, with the server's
    words and the field that all of them have (empty: not seen); without it they are returned, too. `keeps_ms`
    says for how long the bucket keeps points.
    """

    def __init__(
        self,
        influx: InfluxWriter,
        unanswered_lines: UnansweredLines,
        hold: Callable[[list[str], str, str], None] | None = None,
        keeps_ms: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.requests = 0
        self.acknowledged_s: float | None = None
        """When something was last acknowledged (monotonic)."""
        self._influx = influx
        self._unanswered = unanswered_lines
        self._refused_in_a_row = 0
        self._hold = hold
        self._keeps_ms = keeps_ms

    async def rows(self, texts: list[str], at_once: int) -> Refused:
        """Deliver lines of rows, `at_once` in a request; those without an answer are in doubt."""
        try:
            return await self.states(texts, at_once)
        except NotNowError as error:
            self._unanswered.add(error.pending)
            raise

    async def states(self, texts: list[str], at_once: int) -> Refused:
        """Deliver lines of which another state follows soon, `at_once` in a request."""
        refused: Refused = []
        for start in range(0, len(texts), at_once):
            doubted: list[str] = []
            await self._deliver(texts[start : start + at_once], refused, doubted)
            if doubted:
                # Words that blame no line may be of another fault, which is over since: put aside, good
                # rows would be missing in the bucket.
                await self._deliver(doubted, refused)
        return refused

    async def one(self, text: str) -> Verdict:
        """Send one line that was refused before; acknowledged, or rejected again. Raises NotNowError."""
        verdict = await self._influx.write([text])
        self.requests += 1
        if verdict.action == "acknowledged":
            self.acknowledged_s = time.monotonic()
            self._unanswered.answered(self.acknowledged_s)
        elif verdict.action != "rejected":
            # As it was refused before, it is nothing that may be carried out late.
            raise NotNowError(verdict)
        return verdict

    async def _deliver(
        self, texts: list[str], refused: Refused, doubted: list[str] | None = None
    ) -> None:
        """Have lines taken; what stands alone and is not goes into `refused`.

        Into `doubted` instead, if that is given and the server's words do not speak of lines.
        """
        verdict = await self._influx.write(texts)
        self.requests += 1
        if verdict.action == "acknowledged":
            self.acknowledged_s = time.monotonic()
            self._unanswered.answered(self.acknowledged_s)
            self._refused_in_a_row = 0
        elif verdict.action != "rejected":
            raise NotNowError(verdict, texts)
        elif verdict.beyond_retention >= len(texts):
            # All of them: halving a long history that the bucket does not keep would take for ever.
            refused.extend((text, verdict.text) for text in texts)
        elif len(parts := self._parts(texts, verdict)) > 1:
            for part in parts:
                await self._deliver(part, refused, doubted)
        elif self._hold is not None and verdict.conflict == measurement_of(texts[0]):
            field = verdict.conflict_field
            self._hold(texts, verdict.text, field if has_field(texts[0], field) else "")
        else:
            # Of doubted ones no good lines stand in between that would end the row.
            if doubted is not None:
                self._refused_in_a_row += not verdict.blames_lines
            if doubted is not None and self._refused_in_a_row >= REFUSED_IN_A_ROW:
                # Counted anew when it is tried again.
                self._refused_in_a_row = 0
                raise NotNowError(
                    Verdict("misconfigured", f"every line is refused: {verdict.text}")
                )
            if doubted is None or verdict.blames_lines:
                refused.append((texts[0], verdict.text))
            else:
                doubted += texts

    def _parts(self, texts: list[str], verdict: Verdict) -> list[list[str]]:
        """What is sent apart of refused lines; one part: they stand alone."""
        if verdict.beyond_retention:
            # What a bucket keeps has one lower end: the oldest lines are those that are too old.
            texts = sorted(texts, key=time_of)
            return [texts[: verdict.beyond_retention], texts[verdict.beyond_retention :]]
        parts = grouped(texts, measurement_of)
        if len(parts) == 1 and self._hold and verdict.conflict == measurement_of(texts[0]):
            keeps_ms = self._keeps_ms()
            parts = grouped(texts, lambda text: shard_of(time_of(text), keeps_ms))
            if len(parts) == 1:
                # Lines without the field are taken, and held they would wait for nothing.
                parts = grouped(texts, lambda text: has_field(text, verdict.conflict_field))
            return parts
        if len(parts) == 1 and len(texts) > 1:
            return [texts[: len(texts) // 2], texts[len(texts) // 2 :]]
        return parts
