"""How many of a process's descriptors a listening socket may take: the rest is for its own files and calls.

Callers beyond the places are accepted before others have gone: a turn of the loop may hold as many as the
backlog, and those that gave way in the turn before are closed in this one.
"""

import resource
from typing import Final

OWN: Final = 128
"""For the files and the calls of the process itself, and for its status port."""
BACKLOG: Final = 128


def limit() -> int:
    """How many descriptors this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**20 if soft == resource.RLIM_INFINITY else soft


def places(wanted: int, descriptors: int) -> int:
    """How many connections may be open, of `wanted` ones, with so many descriptors in all."""
    left = descriptors - OWN - 2 * backlog(descriptors)
    return max(min(wanted, left), descriptors // 4, 1)


def backlog(descriptors: int) -> int:
    """How many connections may wait to be accepted."""
    return max(min(BACKLOG, descriptors // 8), 1)
