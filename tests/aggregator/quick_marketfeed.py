"""`marketfeed`, whose aggregator takes settings by which an order is lost before its answer is late.

In service that is refused (`require_complete`); tests of a start cannot wait for that long.
"""

import msgspec

from marketfeed import cli
from marketfeed.aggregator import aggregator
from marketfeed.aggregator.timing import DEFAULT_PACE
from marketfeed.settings.model import Settings


class QuickAggregator(aggregator.Aggregator):
    """The same, with no look at that."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, msgspec.structs.replace(DEFAULT_PACE, searched_s=-60.0))


if __name__ == "__main__":
    aggregator.Aggregator = QuickAggregator  # type: ignore[misc]
    cli.main()
