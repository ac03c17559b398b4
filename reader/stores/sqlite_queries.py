"""The questions to a journal as SQL text; `sqlite.py` asks them.

Where pairs are asked for, `:pairs` is a JSON list of them, joined as `asked`; `asked.key` is a pair's
place in it. CROSS JOIN keeps the loops in the order in which they are written: each pair is a seek, and
rows come by pair as asked, then by time, without sorting. Times are ms.
"""

from collections.abc import Sequence
from typing import Final

from marketfeed import schema

# The lower bound of a limited answer is the open time of its oldest candle, found by a walk over keys.
CANDLES: Final = """
SELECT asked.key, c.open_time, c.open, c.high, c.low, c.close, c.volume{more}
FROM json_each(:pairs) AS asked
CROSS JOIN pair ON pair.pair = asked.value
CROSS JOIN candle AS c
    ON c.pair_id = pair.id AND c.timeframe_ms = :timeframe_ms AND c.open_time < :end
    AND c.open_time >= CASE WHEN :limit IS NULL THEN :start ELSE coalesce((
        SELECT open_time FROM candle
        WHERE pair_id = pair.id AND timeframe_ms = :timeframe_ms
          AND open_time >= :start AND open_time < :end
        ORDER BY open_time DESC LIMIT 1 OFFSET :limit - 1
    ), :start) END
"""
EXTENT: Final = """
SELECT asked.key,
    (SELECT min(open_time) FROM candle WHERE pair_id = pair.id AND timeframe_ms = :timeframe_ms
     AND open_time >= :own_start AND open_time < :own_end),
    (SELECT max(open_time) FROM candle WHERE pair_id = pair.id AND timeframe_ms = :timeframe_ms
     AND open_time >= :own_start AND open_time < :own_end)
FROM json_each(:pairs) AS asked CROSS JOIN pair ON pair.pair = asked.value
"""
# As EXTENT, and what is promised of each series (two rows of a pair with two lives): from where, looked
# through down to where, whether nobody else has changed rows, and where the last hole behind the newest
# candle ends that the exchange does not have either.
COVERED_EXTENT: Final = """
SELECT asked.key,
    (SELECT min(open_time) FROM candle WHERE pair_id = pair.id AND timeframe_ms = :timeframe_ms
     AND open_time >= :own_start AND open_time < :own_end),
    (SELECT max(open_time) FROM candle WHERE pair_id = pair.id AND timeframe_ms = :timeframe_ms
     AND open_time >= :own_start AND open_time < :own_end),
    c."from", c.looked,
    (SELECT commits = covered_commits AND deleted = covered_deleted FROM sequence),
    (SELECT max("end") FROM gap
     WHERE kind IN (:gap, :history) AND pair_id = pair.id AND start >= max(c."from", coalesce((
            SELECT max(open_time) FROM candle WHERE pair_id = pair.id AND timeframe_ms = :timeframe_ms
            AND open_time >= :own_start AND open_time < :own_end
         ), 0)) AND state = 'unresolvable' AND empty_2 IS NOT NULL)
FROM json_each(:pairs) AS asked
CROSS JOIN pair ON pair.pair = asked.value
LEFT JOIN coverage AS c
    ON c.pair_id = pair.id AND c.timeframe_ms = :timeframe_ms AND NOT c.released
"""
# Of all pairs: nearly always there are none.
OPEN_HOLES: Final = """
SELECT pair.pair, gap.start, gap."end" FROM gap CROSS JOIN pair ON pair.id = gap.pair_id
WHERE gap.kind IN (:gap, :history) AND gap.state IN ('found', 'healing') AND gap."end" > gap.start
"""
LIVES: Final = """(
    SELECT json_group_array(json_array(listed, ended, symbol)) FROM life WHERE pair_id = c.pair_id
)"""
# Where one has closed since the end was fixed, it is the one that was forming then.
FORMING: Final = """
SELECT asked.key, f.open_time, f.open, f.high, f.low, f.close, f.volume{more}
FROM json_each(:pairs) AS asked
CROSS JOIN pair ON pair.pair = asked.value
CROSS JOIN candle AS f
    ON f.pair_id = pair.id AND f.timeframe_ms = :timeframe_ms AND f.open_time = :own_end
UNION ALL
SELECT asked.key, f.open_time, f.open, f.high, f.low, f.close, f.volume{more}
FROM json_each(:pairs) AS asked
CROSS JOIN pair ON pair.pair = asked.value
CROSS JOIN forming AS f ON f.pair_id = pair.id AND f.timeframe_ms = :timeframe_ms
WHERE NOT EXISTS (
    SELECT 1 FROM candle
    WHERE pair_id = pair.id AND timeframe_ms = :timeframe_ms AND open_time = :own_end
)
"""
CATALOG: Final = """
SELECT pair.pair, ltrim(c.timeframes, ','), c.since, c.listed, c.ended, c.{dropped}, {lives}
FROM catalog AS c CROSS JOIN pair ON pair.id = c.pair_id
ORDER BY pair.pair
"""
CATALOG_OF: Final = """
SELECT pair.pair, ltrim(c.timeframes, ','), c.since, c.listed, c.ended, c.{dropped}, {lives}
FROM json_each(:pairs) AS asked
CROSS JOIN pair ON pair.pair = asked.value
CROSS JOIN catalog AS c ON c.pair_id = pair.id
ORDER BY pair.pair
"""
NEWEST: Final = """
SELECT pair, (SELECT max(open_time) FROM candle
              WHERE pair_id = pair.id AND timeframe_ms = :timeframe_ms) AS newest
FROM pair WHERE newest IS NOT NULL
"""
NEWEST_OF: Final = """
SELECT max((SELECT max(open_time) FROM candle
            WHERE pair_id = pair.id AND timeframe_ms = :timeframe_ms))
FROM json_each(:pairs) AS asked CROSS JOIN pair ON pair.pair = asked.value
"""
WITH_CANDLE: Final = """
SELECT pair FROM pair WHERE EXISTS (
    SELECT 1 FROM candle
    WHERE pair_id = pair.id AND timeframe_ms = :timeframe_ms AND open_time = :open_time
)"""
MARK_PRICES: Final = f"""
SELECT pair.pair, m.time, m.mark_price, {schema.INDEX_PRICE}
FROM json_each(:pairs) AS asked
CROSS JOIN pair ON pair.pair = asked.value
CROSS JOIN mark_price AS m ON m.pair_id = pair.id
    AND m.time = (SELECT max(time) FROM mark_price WHERE pair_id = pair.id)
"""  # noqa: S608 - constants
# A walk over one pair's rows, which lie in the order of time, and two seeks a minute.
MARK_MINUTES: Final = """
WITH minute AS (
    SELECT pair_id, min(time) AS first, max(time) AS last,
        max(mark_price) AS high, min(mark_price) AS low
    FROM mark_price
    WHERE pair_id = (SELECT id FROM pair WHERE pair = :pair) AND time >= :start AND time < :end
    GROUP BY pair_id, time / 60000
)
SELECT minute.first / 60000 * 60000, f.mark_price, minute.high, minute.low, l.mark_price
FROM minute
CROSS JOIN mark_price AS f ON f.pair_id = minute.pair_id AND f.time = minute.first
CROSS JOIN mark_price AS l ON l.pair_id = minute.pair_id AND l.time = minute.last
ORDER BY minute.first
"""
MARK_HOURS: Final = """
SELECT open_time, open, high, low, close FROM mark_1h
WHERE pair_id = (SELECT id FROM pair WHERE pair = :pair) AND open_time >= :start AND open_time < :end
ORDER BY open_time
"""
# As COVERED_EXTENT, of a series that is no timeframe.
MARK_EXTENT: Final = """
SELECT 0, NULL, (SELECT max(open_time) FROM mark_1h WHERE pair_id = pair.id), c."from", c.looked,
    (SELECT deleted = covered FROM series_deleted),
    (SELECT max("end") FROM gap
     WHERE kind IN (:gap, :history) AND pair_id = pair.id AND start >= max(c."from", coalesce((
            SELECT max(open_time) FROM mark_1h WHERE pair_id = pair.id
         ), 0)) AND state = 'unresolvable' AND empty_2 IS NOT NULL)
FROM pair JOIN series_coverage AS c
    ON c.pair_id = pair.id AND c.series = 'mark_1h' AND NOT c.released
WHERE pair.pair = :pair
"""
SETTLEMENTS: Final[dict[str, str | int]] = {
    "regular": schema.REGULAR,
    "within": schema.LONGEST_INTERVAL_MS,
}
"""Parameters of the next two."""
FUNDING_RATES: Final = """
WITH newest AS (
    SELECT pair.id, pair.pair, f.time, f.rate, coalesce((
            SELECT rate FROM funding_settled WHERE pair_id = pair.id
            ORDER BY time DESC, kind LIMIT 1
        ), f.settled_rate) AS settled, f.next_funding_time AS next, (
            SELECT time FROM funding_settled WHERE pair_id = pair.id AND kind = :regular
            ORDER BY time DESC LIMIT 1
        ) AS regular
    FROM json_each(:pairs) AS asked
    CROSS JOIN pair ON pair.pair = asked.value
    CROSS JOIN funding_rate AS f ON f.pair_id = pair.id
        AND f.time = (SELECT max(time) FROM funding_rate WHERE pair_id = pair.id)
)
SELECT newest.pair, newest.time, newest.rate, newest.settled, newest.next, newest.regular,
    a.time, a.next_funding_time,
    (SELECT max(time) FROM funding_settled WHERE pair_id = newest.id)
FROM newest
LEFT JOIN funding_rate AS a ON a.pair_id = newest.id AND a.time = (
    SELECT time FROM funding_rate
    WHERE pair_id = newest.id AND time >= newest.regular AND time < newest.regular + :within
        AND next_funding_time > newest.regular
    ORDER BY time LIMIT 1
)
"""
SETTLED: Final = """
SELECT time, rate, kind FROM funding_settled
WHERE pair_id = (SELECT id FROM pair WHERE pair = :pair) AND time >= :start AND time < :end
ORDER BY time, kind <> :regular, kind
"""
# The first row is the newest that is not after the start: a seek; the rest is a walk from there.
ANNOUNCED: Final = """
WITH known AS (
    SELECT time, next_funding_time AS next, lag(next_funding_time) OVER (ORDER BY time) AS before
    FROM funding_rate
    WHERE pair_id = (SELECT id FROM pair WHERE pair = :pair) AND time >= coalesce((
        SELECT max(time) FROM funding_rate
        WHERE pair_id = (SELECT id FROM pair WHERE pair = :pair) AND time <= :start
    ), 0)
)
SELECT time, next FROM known WHERE before IS NULL OR next <> before ORDER BY time
"""
DOCUMENT: Final = "SELECT body FROM document WHERE name = :name"


def more_columns(columns: Sequence[str], has_quotes: object) -> str:
    """SQL for `more` of a candle; what a file may lack is NULL where it does not have it."""
    return "".join(
        f", {name if has_quotes or name != schema.TAKER_BUY_QUOTE else 'NULL'}" for name in columns
    )
