"""`python -m benchmarks.queue_peers.produce PEER SIZE`: a producer that runs a round for every line on its input.

A line is `NAME COUNT`. The reply, a line of JSON, has the seconds from the first send until the worker had done the
last job, the seconds of sending, and the CPU seconds of this process.
"""

from __future__ import annotations

import importlib
import json
import sys
import time

from benchmarks.queue_peers import tally

ROUND_LIMIT_S = 120


def main(peer: str, size: int) -> None:
    produce = importlib.import_module(f"benchmarks.queue_peers.{peer}_peer").produce
    for line in sys.stdin:
        name, count = line.split()
        texts = [tally.text(name, index, int(count), size) for index in range(int(count))]
        began, cpu = time.perf_counter(), time.process_time()
        produce(texts)
        sent, sending = time.perf_counter(), time.process_time()
        tally.await_round(name, ROUND_LIMIT_S)
        wall = time.perf_counter()
        print(json.dumps({"wall_s": wall - began, "send_s": sent - began, "cpu_s": sending - cpu}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
