"""Lines to the server, request by request: what is refused is halved until the bad lines stand alone."""

import time
from collections.abc import Sequence
from typing import Final

from marketfeed.influxdb.answers import Verdict
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

    `unanswered_lines` are the lines whose newest state must be the last that the server carries out.
    """

    def __init__(self, influx: InfluxWriter, unanswered_lines: UnansweredLines) -> None:
        self.requests = 0
        self.acknowledged_s: float | None = None
        """When something was last acknowledged (monotonic)."""
        self._influx = influx
        self._unanswered = unanswered_lines
        self._refused_in_a_row = 0

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
        elif len(texts) > 1:
            if verdict.beyond_retention:
                # What a bucket keeps has one lower end: the oldest lines are those that are too old.
                texts = sorted(texts, key=_time_of)
            middle = verdict.beyond_retention or len(texts) // 2
            await self._deliver(texts[:middle], refused, doubted)
            await self._deliver(texts[middle:], refused, doubted)
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


def _time_of(text: str) -> int:
    """The time at a line's end."""
    return int(text.rpartition(" ")[2])
