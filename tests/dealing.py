"""The order of the tests of a run: side by side, each process begins with its share of the long ones.

xdist's `worksteal` gives each process an equal run of consecutive tests, and who has ended takes over from
the end of the longest queue. Were the long ones all at the beginning, one process would have them all.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

PURE = True

_Test = TypeVar("_Test")


def dealt(tests: Sequence[_Test], seconds: Callable[[_Test], float], processes: int) -> list[_Test]:
    """`tests` in the order in which `processes` run them; `seconds` is 0 for one that is not long.

    The longest are dealt first, each to the process that has the least to do by then. The others keep their
    order, so that those of a module stay together.
    """
    # As `WorkStealingScheduling` cuts the list.
    room = [(len(tests) + number) // processes for number in range(processes)]
    shares: list[list[_Test]] = [[] for _ in room]
    busy_s = [0.0] * processes
    for test in sorted(filter(seconds, tests), key=seconds, reverse=True):
        number = min(
            (at for at in range(processes) if len(shares[at]) < room[at]), key=busy_s.__getitem__
        )
        shares[number].append(test)
        busy_s[number] += seconds(test)
    others = iter([test for test in tests if not seconds(test)])
    return [
        test
        for share, places in zip(shares, room, strict=True)
        for test in (*share, *(next(others) for _ in range(places - len(share))))
    ]
