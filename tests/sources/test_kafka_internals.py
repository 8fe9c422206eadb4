"""Every internal name of kafka-python that the Kafka source relies on exists in the installed version."""

from __future__ import annotations

import inspect

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.cluster import ClusterMetadata
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.net.connection import KafkaConnection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.transport import KafkaTCPTransport
from kafka.producer.sender import Sender


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (KafkaConnectionManager, "_conns"),
        (KafkaConnectionManager, "def get_connection"),
        (KafkaConnectionManager, "def maybe_raise_auth_failure"),
        (KafkaConnectionManager, "def _build_transport"),
        (KafkaTCPTransport, "def _sock_recv"),
        (KafkaTCPTransport, "self._sock ="),
        (KafkaConnection, "init_future"),
        (ClusterMetadata, "def bootstrap_brokers"),
        (ClusterMetadata, "def topic_id"),
        (KafkaConsumer, "self._coordinator ="),
        (KafkaConsumer, "self._fetcher ="),
        (KafkaConsumer, "self._cluster ="),
        (ConsumerCoordinator, "rejoining"),
        (ConsumerCoordinator, "def request_rejoin"),
        (Fetcher, "self._next_partition_records ="),
        (Fetcher, "def _unpack_records"),
        (KafkaProducer, "self._sender ="),
        (Sender, "def force_close"),
    ],
)
def test_the_internal_name_exists(owner: type, name: str) -> None:
    source = "".join(inspect.getsource(base) for base in owner.__mro__ if base.__module__.startswith("kafka"))
    assert name in source
