"""Kafka: topics of a cluster, read as a consumer group."""

from __future__ import annotations

from monitor.sources.kafka.settings import KafkaSettings
from monitor.sources.protocol import Producer, Source, SourceKind, SourceSettings


def _open_source(settings: SourceSettings[KafkaSettings]) -> Source:
    from monitor.sources.kafka.source import KafkaSource  # noqa: PLC0415 - load only the client in use

    group = settings.section.group_id + settings.group_suffix
    return KafkaSource(settings.section.model_copy(update={"group_id": group}))


def _open_producer(settings: SourceSettings[KafkaSettings]) -> Producer:
    from monitor.sources.kafka.producer import KafkaRecordProducer  # noqa: PLC0415 - load only the client in use

    return KafkaRecordProducer(settings.section)


def _check(settings: SourceSettings[KafkaSettings]) -> None:
    section = settings.section
    if not (section.tls or section.sasl or section.client):
        return  # nothing that the client could refuse
    from monitor.sources.kafka.group import consumer_options  # noqa: PLC0415 - load only the client in use
    from monitor.sources.kafka.producer import producer_options  # noqa: PLC0415

    consumer_options(section)
    producer_options(section)


KAFKA = SourceKind("kafka", KafkaSettings, _open_source, _open_producer, _check)
