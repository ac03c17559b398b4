"""An InfluxDB for `make test-influx` to be tried with: `python tests/influxdb/serve.py 1` or `2`.

1 is Debian's influxd 1.6.7 alone, 2 has the tests' front before it. Prints URL, TOKEN and ORG, and ends
with its standard input.
"""

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from front import Front
from influxd import Influxd


def main() -> None:
    """See the module's docstring."""
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="influxdb-"))
        influxd = stack.enter_context(Influxd(Path(home)))
        words = f"URL={influxd.url}"
        if sys.argv[1:] == ["2"]:
            front = stack.enter_context(Front(influxd))
            words = f"URL={front.url} TOKEN={front.token} ORG={front.org}"
        sys.stdout.write(words + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
