"""The `evaluation` section of the configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from monitor.core.settings import Section

MOST_SHARDS = 64
"""A thread for each shard and receiver polls the outbox: more would keep the processes busy with that."""


class EvaluationSettings(Section):
    """How the streams are divided among the processes that judge them."""

    shards: Annotated[int, Field(ge=1, le=MOST_SHARDS)] = 1
