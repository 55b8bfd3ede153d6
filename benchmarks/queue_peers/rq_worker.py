"""The worker of RQ; its command line can't be told where a unix socket is without a file."""

from __future__ import annotations

from rq import SimpleWorker

from benchmarks.queue_peers import tally

if __name__ == "__main__":
    SimpleWorker(["bench"], connection=tally.client()).work(logging_level="ERROR")
