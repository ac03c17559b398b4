"""The floor: typed decoding of the same frames, without a socket and without a store."""

import time
from pathlib import Path

from marketfeed.binance.decode import FrameDecoder
from marketfeed.counters import cpu_s
from tests.bench import jobs, workload
from tests.bench.tape import Tape


def _decode(job: jobs.DecodeJob) -> jobs.Received:
    with Tape(Path(job.tape)) as tape:
        payloads = list(tape.payloads(job.frames))
    decode = FrameDecoder({i.symbol: i.pair for i in workload.listed()}).decode
    before_s, started_s = cpu_s(), time.monotonic()
    for payload in payloads:
        decode(payload)
    used_s, lasted_s = cpu_s() - before_s, time.monotonic() - started_s
    return jobs.Received(len(payloads), used_s, lasted_s, used_s, lasted_s)


if __name__ == "__main__":
    jobs.send(_decode(jobs.take(jobs.DecodeJob)))
    jobs.until_dismissed()
