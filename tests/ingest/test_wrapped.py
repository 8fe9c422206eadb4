"""Images inside JSON, Avro and Protobuf; schemas from files and from a registry, with Confluent's serializers."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import timestamp_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from detectors.images.prepare import Preparer
from monitor.core.types import DeadLetter, Partition, Record
from monitor.ingest.by_stream import Preparers
from monitor.ingest.decode.pool import DecoderPool
from monitor.ingest.decode.records import Decoded, Decoder
from monitor.ingest.decode.remote import UnavailableError
from monitor.ingest.decode.values import DecodeError
from monitor.ingest.decode.wrapped import ValueReader
from monitor.ingest.settings import DecodingSettings, StreamNaming, ValueSettings
from tests.pictures import encoded, pictures
from tests.schema_registry import SchemaRegistry

PICTURE = encoded(next(pictures(3, 1))[1])
TEXT = base64.b64encode(PICTURE).decode()
AT_MS = 1_767_225_600_500
AT = datetime(2026, 1, 1, 0, 0, 0, 500_000, UTC)
TOPIC = SerializationContext("images", MessageField.VALUE)

FRAME_AVRO = {
    "type": "record",
    "name": "Frame",
    "namespace": "camera",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "picture", "type": ["null", "bytes"]},
    ],
}


def decoder(**value: Any) -> Decoder:
    settings = ValueSettings.model_validate(value)
    return Decoder(Preparers(Preparer(32)), StreamNaming(), DecodingSettings(workers=1), settings)


def record(value: bytes | object) -> Record:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Record(Partition("images", 0), 7, 1_000, b"cam-1", raw, (("content-type", b"application/json"),))


def refusal(made: Decoder, value: bytes | object) -> DecodeError:
    with pytest.raises(DecodeError) as refused:
        made(record(value))
    return refused.value


def check_frame(images: list[Decoded]) -> None:
    (image,) = images
    assert (image.id, image.event_time_ms) == ("frame-9", AT_MS)
    assert image.prepared.digest == decoder()(record(PICTURE))[0].prepared.digest


# -------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TEXT.rstrip("="),
        "\r\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76)),
        base64.urlsafe_b64encode(PICTURE).decode(),
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/png;charset=x;BASE64,{TEXT}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PICTURE),
    ],
    ids=["base64", "unpadded", "mime", "urlsafe", "data-uri", "data-uri-capitals", "data-uri-percent"],
)
def test_json_holds_an_image_as_text(text: str) -> None:
    (image,) = decoder(type="json")(record({"image": text}))
    assert (image.id, image.stream, image.event_time_ms) == ("images/0/7", "cam-1", 1_000)
    assert image.prepared.digest == decoder()(record(PICTURE))[0].prepared.digest


@pytest.mark.parametrize(
    "at", [AT_MS, "2026-01-01T00:00:00.500Z", "2026-01-01 01:00:00.5+01:00", "2026-01-01T00:00:00.5"]
)
def test_pointers_find_image_id_and_time_at_any_depth(at: object) -> None:
    body = {"frames": [{"a/b": {"~": TEXT}}], "meta": {"id": "frame-9", "at": at}}
    made = decoder(type="json", image="/frames/0/a~1b/~0", id="/meta/id", time="/meta/at")
    check_frame(made(record(body)))


@pytest.mark.parametrize(
    ("body", "reason", "text"),
    [
        (b"{", "json", "not readable as JSON"),
        (b"[" * 100_000, "json", "not readable as JSON"),
        (b"\xff\xfe", "json", "not readable as JSON"),
        ([], "json", "nothing at /a/0"),
        ({"a": []}, "json", "nothing at /a/0"),
        ({"a": {"0": None}}, "json", "nothing at /a/0"),
        ({"a": "text"}, "json", "nothing at /a/0"),
        ({"a": [5]}, "json", "expected an image at /a/0, found int"),
        ({"a": [""]}, "json", "expected an image at /a/0, found nothing"),
        ({"a": ["not base64!"]}, "json", "the text at /a/0 is no image"),
        ({"a": [" "]}, "json", "the text at /a/0 holds no bytes"),
        ({"a": ["data:,"]}, "json", "the text at /a/0 holds no bytes"),
        ({"a": ["data:image/png"]}, "json", "a data: URI without a comma"),
        ({"a": ["s3://bucket/key"]}, "claim-check", "allows no store"),
        ({"a": [base64.b64encode(b"no image").decode()]}, "format", "image 0: not one of JPEG"),
    ],
)
def test_what_holds_no_image_is_refused_by_name(body: object, reason: str, text: str) -> None:
    refused = refusal(decoder(type="json", image="/a/0"), body)
    assert refused.reason == reason
    assert text in str(refused)


@pytest.mark.parametrize(
    ("change", "reason", "text"),
    [
        ({"id": None}, "json", "nothing at /id"),
        ({"id": True}, "json", "a whole number at /id, found True"),
        ({"at": "noon"}, "event-time", "at /at: 'noon' is neither"),
        ({"at": 1.5}, "event-time", "expected a time at /at, found 1.5"),
        ({"at": 10**25}, "event-time", "outside the years"),
    ],
)
def test_a_wrong_id_or_time_is_refused_by_name(change: dict[str, object], reason: str, text: str) -> None:
    body = {"image": TEXT, "id": "frame-9", "at": AT_MS, **change}
    refused = refusal(decoder(type="json", id="/id", time="/at"), body)
    assert refused.reason == reason
    assert text in str(refused)


def test_a_wrapped_value_holds_one_image() -> None:
    batch = io.BytesIO()
    np.save(batch, np.zeros((2, 8, 8, 3), np.uint8))
    refused = refusal(decoder(type="json"), {"image": base64.b64encode(batch.getvalue()).decode()})
    assert (refused.reason, str(refused)) == ("images", "there are several images at /image; a wrapped value holds one")


@pytest.mark.slow
@given(
    value=st.binary(max_size=60)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)
)
def test_no_json_raises_anything_but_a_decode_error(value: bytes) -> None:
    with pytest.raises(DecodeError):
        decoder(type="json", image="/0")(record(value))


# -------------------------------------------------------------------------------------------------- Avro


def avro_bytes(schema: dict[str, Any], body: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), body)
    return stream.getvalue()


@pytest.fixture
def registry() -> Iterator[SchemaRegistry]:
    with SchemaRegistry() as server:
        yield server


def test_avro_with_a_local_schema(tmp_path: Path) -> None:
    (tmp_path / "frame.avsc").write_text(json.dumps(FRAME_AVRO))
    made = decoder(type="avro", schema_file=tmp_path / "frame.avsc", image="/picture", id="/id", time="/at")
    value = avro_bytes(FRAME_AVRO, {"id": "frame-9", "at": AT, "picture": PICTURE})
    check_frame(made(record(value)))
    assert "nothing at /picture" in str(refusal(made, avro_bytes(FRAME_AVRO, {"id": "x", "at": AT, "picture": None})))
    assert "1 bytes follow the value" in str(refusal(made, value + b"x"))
    for broken in (value[:-1], b"\xff" * 20, b"\0"):
        assert "not a value of its schema" in str(refusal(made, broken))


@pytest.mark.slow
def test_an_avro_value_cannot_take_more_memory_than_the_decoder_has(tmp_path: Path) -> None:
    """Forty bytes that claim 2**60 nulls end as one dead letter of the decoder process."""
    (tmp_path / "bomb.avsc").write_text('{"type": "array", "items": "null"}')
    settings = ValueSettings(type="avro", schema_file=tmp_path / "bomb.avsc")
    limits = DecodingSettings(workers=1, worker_memory_bytes=300_000_000, timeout_s=30)
    made = DecoderPool(Decoder(Preparers(Preparer(32)), StreamNaming(), limits, settings))
    try:
        (future,) = made.submit([record(b"\xfe\xff\xff\xff\xff\xff\xff\xff\x3f")])
        letter = future.result(60)
    finally:
        made.close()
    assert isinstance(letter, DeadLetter)
    assert letter.reason == "memory"


def test_avro_of_confluent_s_serializer(registry: SchemaRegistry) -> None:
    serializer = AvroSerializer(SchemaRegistryClient({"url": registry.url}), json.dumps(FRAME_AVRO))
    value = serializer({"id": "frame-9", "at": AT, "picture": PICTURE}, TOPIC)
    assert value
    made = decoder(
        type="avro", schema_registry={"url": registry.url}, image="/picture", id="/id", time="/at"
    )  # fmt: skip
    registry.asked.clear()
    check_frame(made(record(value)))
    check_frame(made(record(value)))
    assert len(registry.asked) == 1  # once per schema, not per record


@pytest.mark.slow
def test_a_decoder_process_reaches_the_registry(registry: SchemaRegistry) -> None:
    number = registry.register("frame", {"schema": json.dumps(FRAME_AVRO)})["id"]
    value = b"\0" + int(number).to_bytes(4, "big") + avro_bytes(FRAME_AVRO, {"id": "x", "at": AT, "picture": PICTURE})
    made = DecoderPool(decoder(type="avro", schema_registry={"url": registry.url}, image="/picture"))
    try:
        (future,) = made.submit([record(value)])
        assert isinstance(future.result(60), list), future.result()
    finally:
        made.close()


def test_an_avro_schema_may_refer_to_others(registry: SchemaRegistry) -> None:
    registry.register("lens", {"schema": json.dumps({"type": "fixed", "name": "camera.Lens", "size": 2})})
    frame = {**FRAME_AVRO, "fields": [*FRAME_AVRO["fields"], {"name": "lens", "type": "camera.Lens"}]}
    references = [{"name": "camera.Lens", "subject": "lens", "version": 1}]
    number = registry.register("frame", {"schema": json.dumps(frame), "references": references})["id"]
    bare = avro_bytes(FRAME_AVRO, {"id": "frame-9", "at": AT, "picture": PICTURE}) + b"ab"
    made = decoder(type="avro", schema_registry={"url": registry.url}, image="/picture", id="/id", time="/at")
    check_frame(made(record(b"\0" + int(number).to_bytes(4, "big") + bare)))


def test_a_schema_or_frame_that_is_not_there_is_the_record_s_fault(registry: SchemaRegistry) -> None:
    made = decoder(type="avro", schema_registry={"url": registry.url})
    assert "the schema registry has no schema 7" in str(refusal(made, b"\0\0\0\0\x07abc"))
    assert "not a zero and four bytes" in str(refusal(made, PICTURE))
    assert "not a zero and four bytes" in str(refusal(made, b"\0\0"))
    registry.register("bad", {"schema": '{"type": "nonsense"}'})
    assert "schema 1 cannot be used" in str(refusal(made, b"\0\0\0\0\x01abc"))


def test_a_registry_that_is_away_is_not(registry: SchemaRegistry) -> None:
    made = decoder(type="avro", schema_registry={"url": registry.url})
    registry.broken = True
    with pytest.raises(UnavailableError, match=r"schema 7: .*503"):
        made(record(b"\0\0\0\0\x07abc"))
    absent = decoder(type="avro", schema_registry={"url": "http://127.0.0.1:1"})
    with pytest.raises(UnavailableError, match="ConnectError"):
        absent(record(b"\0\0\0\0\x07abc"))


def test_the_registry_s_password_is_sent(registry: SchemaRegistry) -> None:
    number = registry.register("frame", {"schema": json.dumps(FRAME_AVRO)})["id"]
    registry.login = "monitor:secret"
    value = b"\0" + int(number).to_bytes(4, "big") + avro_bytes(FRAME_AVRO, {"id": "x", "at": AT, "picture": PICTURE})
    section = {"url": registry.url, "username": "monitor", "password": "secret"}
    assert decoder(type="avro", schema_registry=section, image="/picture")(record(value))
    with pytest.raises(UnavailableError, match="401"):
        decoder(type="avro", schema_registry={**section, "password": "other"}, image="/picture")(record(value))


def test_json_of_confluent_s_serializer(registry: SchemaRegistry) -> None:
    serializer = JSONSerializer('{"title": "Frame", "type": "object"}', SchemaRegistryClient({"url": registry.url}))
    value = serializer({"image": TEXT}, TOPIC)
    assert value is not None
    assert value[0] == 0
    assert decoder(type="json")(record(value))


# -------------------------------------------------------------------------------------------------- Protobuf


def proto_files() -> list[FileDescriptorProto]:
    """camera/lens.proto, and camera/frame.proto with Other and Frame, which has a message Shot in it."""
    field, kinds = FieldDescriptorProto, FieldDescriptorProto
    lens = FileDescriptorProto(name="camera/lens.proto", package="camera", syntax="proto3")
    lens.message_type.append(
        DescriptorProto(
            name="Lens", field=[field(name="mm", number=1, type=kinds.TYPE_INT32, label=kinds.LABEL_OPTIONAL)]
        )
    )

    def one(name: str, number: int, kind: Any, type_name: str = "") -> FieldDescriptorProto:
        made = field(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
        if type_name:
            made.type_name = type_name
        return made

    shot = DescriptorProto(name="Shot", field=[one("picture", 1, kinds.TYPE_BYTES)])
    frame = DescriptorProto(
        name="Frame",
        field=[
            one("id", 1, kinds.TYPE_STRING),
            one("at", 2, kinds.TYPE_MESSAGE, ".google.protobuf.Timestamp"),
            one("shot", 3, kinds.TYPE_MESSAGE, ".camera.Frame.Shot"),
            one("lens", 4, kinds.TYPE_MESSAGE, ".camera.Lens"),
        ],
        nested_type=[shot],
    )
    main = FileDescriptorProto(name="camera/frame.proto", package="camera", syntax="proto3")
    main.dependency.extend(["camera/lens.proto", "google/protobuf/timestamp.proto"])
    main.message_type.extend([DescriptorProto(name="Other"), frame])
    return [lens, main]


@pytest.fixture(scope="module")
def frame() -> Message:
    """A camera.Frame with picture, id and time."""
    pool = DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    for file in proto_files():
        pool.Add(file)
    made: Any = GetMessageClass(pool.FindMessageTypeByName("camera.Frame"))()
    made.id = "frame-9"
    made.at.FromMilliseconds(AT_MS)
    made.shot.picture = PICTURE
    made.lens.mm = 50
    return made


POINTERS = {"image": "/shot/picture", "id": "/id", "time": "/at"}


def test_protobuf_with_a_local_descriptor_set(frame: Message, tmp_path: Path) -> None:
    path = tmp_path / "frame.pb"
    path.write_bytes(FileDescriptorSet(file=proto_files()).SerializeToString())
    made = decoder(type="protobuf", schema_file=path, message="camera.Frame", **POINTERS)
    value = frame.SerializeToString()
    check_frame(made(record(value)))
    assert "not a camera.Frame" in str(refusal(made, value[:-10]))
    assert "nothing at /shot/picture" in str(refusal(made, type(frame)(id="x").SerializeToString()))


def test_protobuf_of_confluent_s_serializer(frame: Message, registry: SchemaRegistry) -> None:
    """A message that is not its file's first, from a file that imports another one of the registry."""
    client = SchemaRegistryClient({"url": registry.url})
    serializer = ProtobufSerializer(type(frame), client, {"use.deprecated.format": False})
    value = serializer(frame, TOPIC)
    assert value
    made = decoder(type="protobuf", schema_registry={"url": registry.url}, **POINTERS)
    registry.asked.clear()
    check_frame(made(record(value)))
    check_frame(made(record(value)))
    assert len(registry.asked) == 2  # the schema and the one that it refers to
    head = value[:5]
    for rest, text in (
        (b"", "is cut off"),
        (b"\xff" * 12, "is cut off or too long"),
        (b"\x01", "a path of -1 steps"),
        (b"\x02\x01", "negative step"),
        (b"\x02\x7e", "message 63 of schema"),
        (b"\x00\xff", "not a camera.Other"),
        (b"\x00", "nothing at /shot/picture"),
    ):
        assert text in str(refusal(made, head + rest))


@given(value=st.binary(max_size=60))
def test_no_protobuf_raises_anything_but_a_decode_error(value: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "frame.pb"
    if not path.exists():
        path.write_bytes(FileDescriptorSet(file=proto_files()).SerializeToString())
    made = decoder(type="protobuf", schema_file=path, message="camera.Frame", **POINTERS)
    with pytest.raises(DecodeError):
        made(record(value))


# -------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"type": "avro"}, "needs either schema_registry or schema_file"),
        ({"type": "json", "schema_registry": {"url": "http://r"}}, "takes no schema"),
        ({"id": "/id"}, "type raw takes no image, id or time"),
        ({"type": "json", "message": "a.B"}, "message names the type"),
        ({"type": "json", "image": "image"}, "image"),
        ({"type": "avro", "schema_registry": {"url": "http://user:secret@registry"}}, "url"),
    ],
)
def test_what_does_not_go_together_is_refused(section: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        ValueSettings.model_validate(section)


@pytest.mark.parametrize(
    ("content", "section", "text"),
    [
        (None, {"type": "avro"}, "No such file"),
        (b"{", {"type": "avro"}, "JSONDecodeError"),
        (b'{"type": "nonsense"}', {"type": "avro"}, "nonsense"),
        (None, {"type": "protobuf", "message": "camera.Frame"}, "No such file"),
        (b"\xff", {"type": "protobuf", "message": "camera.Frame"}, "is no descriptor set"),
        (b"", {"type": "protobuf", "message": "camera.Frame"}, "has no message camera.Frame"),
    ],
)
def test_a_schema_file_that_cannot_be_used_is_refused_before_the_start(
    content: bytes | None, section: dict[str, str], text: str, tmp_path: Path
) -> None:
    path = tmp_path / "schema"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"value\.schema_file: ") as refused:
        ValueReader(DecodingSettings(), ValueSettings.model_validate({**section, "schema_file": path})).check()
    assert text in str(refused.value)


def test_a_missing_extra_is_named_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka.schema_registry", None)
    settings = ValueSettings.model_validate({"type": "avro", "schema_registry": {"url": "http://registry"}})
    with pytest.raises(ValueError, match=r"value\.type: avro needs .*layerwatch\[avro,protobuf,schema-registry\]"):
        ValueReader(DecodingSettings(), settings).check()
