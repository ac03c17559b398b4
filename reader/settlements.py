"""Which settlements of a pair are due, which of them lack, and how long the running interval is.

A settlement is due 10 minutes after a time that running rates announced has passed, never by a grid: the
exchange changes a contract's rhythm whenever it likes. What it took back before it came is not due. Times are
ms; those of settlements are on the minute.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from marketfeed import schema
from reader.rows import Announced, FundingRow, SettledRow

PURE = True

BELIEVED_MS: Final = schema.DAY_MS
"""Two settlements that are further apart are no neighbours."""

KNOWN_FOR_MS: Final = 14 * schema.DAY_MS
"""So far back announcements are looked for: as long as the collector keeps running rates."""


def settled_rows(
    time_ms: int, rate: float, special_rate: float | None, kinds: str | None
) -> list[SettledRow]:
    """What InfluxDB has as one point: the settlements of a time, the regular one first.

    Older collectors write no `kinds`: what they wrote last is taken for the regular one. Off the hour it is
    a special one: every regular interval is of whole hours.
    """
    if not kinds:
        kinds = schema.SPECIAL if time_ms % schema.HOUR_MS else schema.REGULAR
    return [
        SettledRow(
            time_ms,
            rate if kind == schema.REGULAR or special_rate is None else special_rate,
            kind,
        )
        for kind in kinds.split(",")
    ]


def changes(announced: Iterable[Announced]) -> list[Announced]:
    """What was announced with each running rate -> each change of that, and the first."""
    found: list[Announced] = []
    for one in announced:
        if not found or found[-1].next_ms != one.next_ms:
            found.append(one)
    return found


def passed(announced: Sequence[Announced], until_ms: int) -> list[int]:
    """The announced settlements that have passed by `until_ms`, oldest first.

    `announced` is as a store gives it. One that was replaced before it came never passed.
    """
    found: list[int] = []
    for number, (_, next_ms) in enumerate(announced):
        followed = announced[number + 1 : number + 2]
        # The grid holds the first event of each step: that of the settlement's own names the next one.
        stood = not followed or schema.floor_to(next_ms, schema.MINUTE_MS) <= followed[0].from_ms
        if 0 < next_ms <= until_ms and stood:
            found.append(schema.to_minute(next_ms))
    return sorted(set(found))


def lacking(
    announced: Sequence[Announced],
    stored_ms: Collection[int],
    settled_to_ms: int | None,
    now_ms: int,
) -> list[int]:
    """The settlements that are due at `now_ms`, are not stored and were not answered for, oldest first.

    `settled_to_ms` is up to when all that was announced is stored; None: nothing is known of that.
    """
    due = passed(announced, now_ms - schema.SETTLED_LATE_MS - 1)
    return [at for at in due if at >= (settled_to_ms or 0) and at not in stored_ms]


def interval_h(row: FundingRow, settled_to_ms: int | None, between: Sequence[int]) -> float | None:
    """Hours from the last regular settlement to the next one; None unless they are neighbours for sure.

    `between` are the settlements that passed after that last one, as of the row's time.
    """
    if row.regular_ms is None or row.then_ms is None or between:
        return None
    # What passed before that was announced is known only if the exchange was asked for it.
    heard_ms = max(row.regular_ms, settled_to_ms or 0) + schema.SETTLED_LATE_MS
    length_ms = schema.to_minute(row.next_funding_time_ms) - row.regular_ms
    if row.then_ms > heard_ms or not 0 < length_ms <= BELIEVED_MS:
        return None
    return length_ms / schema.HOUR_MS
