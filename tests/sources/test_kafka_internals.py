"""Every internal name of kafka-python that the Kafka source relies on exists in the installed version.

The list is that of the docstring of monitor/sources/kafka/client.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.cluster import ClusterMetadata
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.net import inet
from kafka.net.compat import KafkaNetClient
from kafka.net.connection import KafkaConnection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaTCPTransport
from kafka.producer.sender import Sender


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (KafkaNetClient, "def __init__(self, net=None, manager=None, **configs)"),
        (NetworkSelector, "def __init__(self, **configs)"),
        (NetworkSelector, "'slow_task_threshold_secs': "),
        (KafkaConnectionManager, "self._conns ="),
        (KafkaConnectionManager, "def get_connection(self, node_id"),
        (KafkaConnectionManager, "def maybe_raise_auth_failure(self, node_id)"),
        (KafkaConnectionManager, "self.cluster ="),
        (KafkaConnectionManager._build_transport, "(self, node, timeout_at=None)"),
        (KafkaConnectionManager._build_transport, "sock = "),
        (KafkaConnectionManager._build_transport, "transport = "),
        (inet.create_connection, "exceptions = ["),
        (inet.KafkaNetSocket.connect, "sock = "),
        (KafkaTCPTransport, "def _sock_recv(self)"),
        (KafkaTCPTransport, "self._sock ="),
        (KafkaConnection, "def init_future(self)"),
        (ClusterMetadata, "def bootstrap_brokers(self)"),
        (ClusterMetadata, "def topic_id(self, topic"),
        (KafkaConsumer, "'kafka_client': KafkaNetClient"),
        (KafkaConsumer, "self._coordinator ="),
        (KafkaConsumer, "self._fetcher ="),
        (KafkaConsumer, "self._cluster ="),
        (ConsumerCoordinator, "rejoining"),
        (ConsumerCoordinator, "def request_rejoin(self"),
        (Fetcher, "self._next_partition_records ="),
        (Fetcher.PartitionRecords, "self.topic_partition ="),
        (Fetcher.PartitionRecords, "self.next_fetch_offset ="),
        (Fetcher.PartitionRecords._unpack_records, "batch = records.next_batch()"),
        (Fetcher.PartitionRecords._unpack_records, "batch.base_offset"),
        (KafkaProducer, "'kafka_client': KafkaNetClient"),
        (KafkaProducer, "self._sender ="),
        (Sender, "def force_close(self)"),
    ],
)
def test_the_internal_name_exists(owner: type | Callable[..., object], name: str) -> None:
    parts = (
        [base for base in owner.__mro__ if base.__module__.startswith("kafka")] if inspect.isclass(owner) else [owner]
    )
    assert name in "".join(map(inspect.getsource, parts))
