"""Redis Streams: partitioned logs on the Redis of the state, for an edge box without Kafka."""

from __future__ import annotations

from monitor.sources.protocol import Producer, Source, SourceKind, SourceSettings
from monitor.sources.redis_streams.settings import RedisStreamSettings


def _open_source(settings: SourceSettings[RedisStreamSettings]) -> Source:
    from monitor.sources.redis_streams.source import RedisStreamSource  # noqa: PLC0415 - load only the client in use

    return RedisStreamSource(settings.section, settings.redis, settings.monitor + settings.group_suffix)


def _open_producer(settings: SourceSettings[RedisStreamSettings]) -> Producer:
    from monitor.sources.redis_streams.log import RedisRecordProducer  # noqa: PLC0415 - load only the client in use

    return RedisRecordProducer(settings.section, settings.redis)


REDIS_STREAM = SourceKind("redis_stream", RedisStreamSettings, _open_source, _open_producer)
