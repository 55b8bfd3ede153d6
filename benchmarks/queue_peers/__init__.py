"""Other task queues behind one interface, for `python -m benchmarks queue`; they live in an environment of their own.

Each module has `NAME`, `WORKER` (the arguments behind `python -m` that start its worker, with the options its users
would choose for small tasks in one process) and `produce(texts)`, which hands the texts to the queue. Its task counts
and does nothing else. Where the server is stands in `PEER_SOCKET`. Nothing here may import Keepwarm.
"""
