"""A Redis Cluster of three nodes on this machine."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from monitor.store.private_server import PrivateRedis

SLOTS = 16384
BUS = 10_000
"""A Redis Cluster's nodes talk to each other on the port that lies so far above the clients'."""
ON_DISK = ("--appendonly", "yes", "--appendfsync", "everysec")


@contextmanager
def redis_cluster(folder: Path, options: Sequence[str] = ON_DISK) -> Iterator[dict[int, PrivateRedis]]:
    """Three masters that share the slots; port -> server."""
    with ExitStack() as stack:
        nodes: dict[int, PrivateRedis] = {}
        for i in range(3):
            (folder / str(i)).mkdir()
            every = [*options, "--cluster-enabled", "yes", "--cluster-node-timeout", "15000"]
            node = stack.enter_context(PrivateRedis(folder / str(i), every, low_port()))
            nodes[node.port] = node
        clients = [stack.enter_context(redis.Redis(port=port)) for port in nodes]
        for i, client in enumerate(clients):
            client.execute_command("CLUSTER", "ADDSLOTS", *range(SLOTS * i // 3, SLOTS * (i + 1) // 3))
            for port in nodes:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", port)
        for client in clients:
            while client.cluster("INFO")["cluster_state"] != "ok":
                time.sleep(0.1)
        yield nodes


def low_port() -> int:
    """A free one whose bus port is free too."""
    while True:
        port = random.randint(20_000, 32_000)
        try:
            with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", port + BUS)):
                return port
        except OSError:
            continue
