"""Arguments that cannot be used are refused, naming which, what was found and what is expected."""

import math
from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored import PAIR, START_MS, candle, entry

from reader import MarketReader, ReaderError
from reader.arguments import MAX_LIMIT, time_ms
from reader.errors import ArgumentError

WRONG = [
    ({"limit": 0}, r"limit: 1 to \d+ is expected, found 0"),
    ({"limit": -5}, "limit: 1 to"),
    ({"limit": MAX_LIMIT + 1}, "limit: 1 to"),
    ({"limit": 10.0}, "limit: a whole number of candles.*found 10.0"),
    ({"limit": True}, "limit: a whole number"),
    ({"limit": "500"}, "limit: a whole number.*'500'"),
    ({"since": datetime(2026, 1, 1)}, "since: a datetime with a time zone.*without a zone"),  # noqa: DTZ001
    ({"until": pd.NaT}, "until: a datetime with a time zone"),
    ({"since": "2026-01-01"}, "since: a datetime with a time zone.*'2026-01-01'"),
    ({"since": date(2026, 1, 1)}, "since: a datetime with a time zone"),
    ({"since": float(START_MS)}, "since: a datetime with a time zone"),
    ({"since": np.datetime64("2026-01-01")}, "since: a datetime with a time zone"),
    ({"since": True}, "since: a datetime with a time zone"),
    ({"since": START_MS // 1000}, "since: milliseconds.*looks like seconds"),
    ({"since": -1}, "since: a time between 1970 and 2262"),
    ({"until": START_MS * 1000}, "until: a time between 1970 and 2262"),
    ({"until": datetime.max.replace(tzinfo=UTC)}, "until: a time between 1970 and 2262"),
    ({"since": START_MS, "until": START_MS}, "since: must lie before until"),
    ({"since": START_MS + 1, "until": START_MS}, "since: must lie before until"),
    ({"max_age_s": -1}, "max_age_s: a number of seconds"),
    ({"max_age_s": math.nan}, "max_age_s: a number of seconds"),
    ({"max_age_s": "60"}, "max_age_s: a number of seconds.*'60'"),
    ({"max_age_s": True}, "max_age_s: a number of seconds"),
]


@pytest.mark.parametrize(("asked", "text"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_arguments_of_get_ohlcv(connect, asked, text) -> None:
    reader = connect(entry(), candle(START_MS))
    with pytest.raises(ArgumentError, match=text) as caught:
        reader.get_ohlcv(PAIR, "3m", **asked)
    assert isinstance(caught.value, ReaderError)
    assert isinstance(caught.value, ValueError)


def test_wrong_arguments_elsewhere(connect) -> None:
    reader = connect(entry(), candle(START_MS))
    with pytest.raises(ArgumentError, match="pairs: a list of pairs is expected, found 'BTC"):
        reader.get_ohlcv_many(PAIR, "3m")
    with pytest.raises(ArgumentError, match="pairs: a list"):
        reader.get_ohlcv_many(None, "3m")
    with pytest.raises(ArgumentError, match="max_age_s"):
        reader.get_mark_price(PAIR, max_age_s="1")
    with pytest.raises(ArgumentError, match="max_age_s"):
        reader.get_all_pairs_funding_rates(max_age_s=-1)
    with pytest.raises(ArgumentError, match="timeout_s"):
        reader.wait_closed("3m", START_MS, -1)
    for wrong in (0, -1, math.inf, math.nan, True, "1"):
        with pytest.raises(ArgumentError, match="timeout_s: a number of seconds"):
            MarketReader.connect("http://127.0.0.1:9", timeout_s=wrong)
    with pytest.raises(ArgumentError, match="open_time: a candle of 3m opens on a multiple"):
        reader.wait_closed("3m", START_MS + 60_000, 0)


@given(st.datetimes(datetime(1970, 1, 1), datetime(2262, 1, 1), timezones=st.timezones()))  # noqa: DTZ001
def test_a_datetime_rounds_up_to_the_millisecond(moment: datetime) -> None:
    # The year may still be 1969 in UTC.
    us = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // pd.Timedelta(
        microseconds=1
    ).to_pytimedelta()
    if us >= 0:
        assert time_ms("since", moment) == (us + 999) // 1000


def test_a_timestamp_may_be_finer_than_a_microsecond() -> None:
    moment = pd.Timestamp(START_MS, unit="ms", tz="UTC")
    assert time_ms("since", moment) == START_MS
    assert time_ms("since", moment + pd.Timedelta(nanoseconds=1)) == START_MS + 1
    assert time_ms("since", np.int64(START_MS)) == START_MS
    assert time_ms("since", 0) == 0
