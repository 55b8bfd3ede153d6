"""A process that has imported the engine, knows no model and has touched no device: it forks a runner per request.

The runner is forked by a process in between that ends at once, so that the kernel gives it to the worker
(`workers.adoption`), which sees how it ends. The end of the stream ends the nursery; its runners go on.

Forking is safe only with a single thread: with more it ends with EXIT_UNFIT before it has served anything.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
import traceback
from typing import NoReturn

import setproctitle

from workers.nursery_requests import ANSWER_BYTES, EXIT_UNFIT, encode_answer, receive_request
from workers.runner_process import EXIT_OK, await_config, exit_now, import_engine, run, take_over

EXIT_BROKEN = 1  # of a runner, as Python has it for an exception that nobody caught


def main(arguments: list[str] | None = None) -> NoReturn:
    kind, requests = take_over("workers.nursery_process", arguments)
    setproctitle.setproctitle("keepwarm nursery")
    import_engine(kind)
    if len(os.listdir("/proc/self/task")) != 1:
        exit_now(EXIT_UNFIT)
    gc.collect()
    gc.freeze()  # a collection in a runner would write to every object, and so copy all the pages that it shares
    while True:
        try:
            with receive_request(requests) as connection:
                answer = fork_runner(requests, connection)
            requests.sendall(answer)
        except (EOFError, OSError):
            exit_now(EXIT_OK)


def fork_runner(requests: socket.socket, connection: socket.socket) -> bytes:
    """The answer to a request: the pid of an orphan that is a runner with `connection`, or why there is none."""
    try:
        reading, writing = os.pipe()
    except OSError as error:
        return encode_answer(error)
    try:
        between = os.fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        return encode_answer(error)
    if between == 0:
        try:
            os.write(writing, _fork_in_between(requests, connection, (reading, writing)))
        finally:
            os._exit(EXIT_OK)
    os.close(writing)
    with open(reading, "rb", buffering=0) as told:
        answer = told.read(ANSWER_BYTES)
    os.waitpid(between, 0)  # from here on the runner is the worker's
    return answer if len(answer) == ANSWER_BYTES else encode_answer(-errno.ECHILD)


def _fork_in_between(requests: socket.socket, connection: socket.socket, pipe: tuple[int, int]) -> bytes:
    try:
        pid = os.fork()
    except OSError as error:
        return encode_answer(error)
    if pid == 0:
        requests.close()
        for descriptor in pipe:
            os.close(descriptor)
        be_runner(connection)
    return encode_answer(pid)


def be_runner(connection: socket.socket) -> NoReturn:
    """In the nursery's process group until it has its model: there the worker finds those it was never told of."""
    try:
        config = await_config(connection)
        os.setsid()
        run(config, connection)
    except BaseException:  # whatever it is must not go on as a nursery
        traceback.print_exc()
    finally:
        exit_now(EXIT_BROKEN)


if __name__ == "__main__":
    main()
