"""Random bytes and configurations give a result or an error of ours; never another exception.

`LAYERWATCH_FUZZ=20000` sets how many of each are tried.
"""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detectors.images.decode import Limits
from detectors.images.prepare import Preparer
from monitor.config.errors import ConfigError
from monitor.config.loading import load_config
from monitor.config.schema import Config
from monitor.core.types import Partition, Record
from monitor.ingest.by_stream import Preparers
from monitor.ingest.decode.records import Decoder
from monitor.ingest.decode.values import DecodeError
from monitor.ingest.settings import DecodingSettings, StreamNaming
from tests.pictures import encoded, pictures

EXECUTIONS = int(os.environ.get("LAYERWATCH_FUZZ", "300"))
often = settings(max_examples=EXECUTIONS, deadline=None, suppress_health_check=list(HealthCheck), database=None)
pytestmark = pytest.mark.timeout(3600)

LIMITS = DecodingSettings(max_pixels=100_000, max_record_bytes=200_000, max_images_per_record=16)
DECODER = Decoder(Preparers(Preparer(32, Limits(200_000, 100_000))), StreamNaming(event_time_header="t"), LIMITS)
IMAGE = next(iter(pictures(5, 1)))[1]


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, IMAGE)
    return buffer.getvalue()


SEEDS = [
    *(encoded(IMAGE, kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF")),
    npy(),
    msgpack.packb({"images": [encoded(IMAGE)], "ids": ["a"], "timestamps": [1]}),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good value with some bytes changed, cut out or put in."""
    value = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        # most decisions are taken in the first bytes
        at = draw(st.one_of(st.integers(0, min(80, len(value))), st.integers(0, len(value))))
        some = draw(st.binary(max_size=8))
        value[at : at + draw(st.integers(0, 8))] = some
        if not value:
            break
    return bytes(value[: draw(st.one_of(st.just(len(value)), st.integers(0, len(value))))])


scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary())
trees = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4))
)
messages = st.fixed_dictionaries({}, optional={"images": trees, "ids": trees, "timestamps": trees}).map(
    lambda tree: bytes(msgpack.packb(tree, unicode_errors="surrogatepass"))
)
kinds = st.sampled_from([None, b"", b"image/png", b"application/x-npy", b"application/msgpack", b"\xff"])


@pytest.mark.slow
@often
@given(st.one_of(damaged(), st.binary(max_size=200), messages), kinds, st.binary(max_size=30), st.binary(max_size=20))
def test_any_value_gives_images_or_a_decode_error(value: bytes, kind: bytes | None, at: bytes, key: bytes) -> None:
    headers = [("t", at)] if at else []
    if kind is not None:
        headers.append(("content-type", kind))
    record = Record(Partition("images", 0), 7, 1000, key, value, tuple(headers))
    try:
        images = DECODER(record)
    except DecodeError as error:
        assert error.reason and str(error)  # noqa: PT017, PT018
    else:
        assert images
        assert all(image.prepared.pixels.shape == (32, 32, 3) for image in images)


sections = [field.annotation for field in Config.model_fields.values()]
names = sorted({*Config.model_fields, *(name for kind in sections for name in getattr(kind, "model_fields", {}))})
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(names)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.sampled_from(names), st.text(max_size=8)), inner)
    ),
    max_leaves=12,
)


def loads(text: bytes, environ: dict[str, str]) -> None:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(text)
        file.flush()
        try:
            load_config(Path(file.name), environ)
        except ConfigError as error:
            lines = error.lines
            named = [line.startswith(file.name) or "LAYERWATCH__" in line for line in lines]
            assert lines and all(named) and not any("\n" in line for line in lines)  # noqa: PT018


@pytest.mark.slow
@often
@given(plain)
def test_any_tree_is_a_configuration_or_lines_that_say_what_is_wrong(tree: Any) -> None:
    loads(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"), {})


@often
@given(st.one_of(st.binary(max_size=80), st.text(max_size=80).map(lambda t: t.encode("utf-8", "surrogatepass"))))
def test_any_file_is_a_configuration_or_lines_that_say_what_is_wrong(text: bytes) -> None:
    loads(text, {})


variables = st.lists(st.sampled_from(names), min_size=1, max_size=3).map(
    lambda n: "LAYERWATCH__" + "__".join(n).upper()
)


@often
@given(st.dictionaries(variables, st.text(max_size=30), max_size=3))
def test_any_environment_is_a_configuration_or_lines_that_say_what_is_wrong(environ: dict[str, str]) -> None:
    loads(b"{}", environ)
