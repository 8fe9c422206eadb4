"""The one typed schema of the configuration; `config.yaml` at the top of the project is its commented default.

Read once at start: the file, then environment variables over it (`LAYERWATCH__KAFKA__BOOTSTRAP_SERVERS=a:9092,b:9092`,
parts joined by two underscores, values read as YAML). Values are passed on to the parts that use them, never the whole.
Unknown keys are errors: a typing mistake must not silently become a default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)

ENV_PREFIX = "LAYERWATCH__"
OWN_RULES = "layerwatch-"
"""How the names of the alerts about the monitor itself begin."""
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: what a wrong configuration exits with; init systems can tell it from a crash."""
EXIT_UNAVAILABLE = 69
"""EX_UNAVAILABLE: a server that is needed does not answer, or refuses us."""
EXIT_SOFTWARE = 70
"""EX_SOFTWARE: something hangs or is broken; whoever supervises us should start us anew."""


class ConfigError(Exception):
    """The configuration is wrong; `lines` has one line per wrong key, each naming file and key."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def _resolve_secret(value: Any) -> Any:
    """Accept `{env: NAME}` and `{file: PATH}` besides a plain string, so that no secret has to stand in the file."""
    if not isinstance(value, Mapping):
        return value
    if set(value) == {"env"}:
        name = str(value["env"])
        if name not in os.environ:
            raise ValueError(f"environment variable {name} is not set")
        return os.environ[name]
    if set(value) == {"file"}:
        try:
            return Path(str(value["file"])).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"cannot read {value['file']}: {error.strerror}") from error
    raise ValueError("must be a string, {env: NAME} or {file: PATH}")


def _split_commas(value: Any) -> Any:
    """Let an environment variable give a list as `a,b`."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Secret = Annotated[SecretStr, BeforeValidator(_resolve_secret)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
Share = Annotated[float, Field(gt=0, lt=1)]
Glob = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProfileOverride(Section):
    """Another profile for the streams that match: a site whose normal differs."""

    streams: Glob
    path: Path


class Scoring(Section):
    profile: Path = Path("profile")
    profiles: tuple[ProfileOverride, ...] = ()
    device: str = "auto"
    batch_images: PositiveInt = 64
    batch_age_s: PositiveFloat = 0.05


class KafkaSasl(Section):
    """Authentication of the Kafka client; field names are kafka-python's without their prefix."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI"]
    username: str | None = None
    password: Secret | None = None
    kerberos_service_name: str = "kafka"
    kerberos_domain_name: str | None = None
    kerberos_name: str | None = None
    oauth_token: Secret | None = None


class KafkaTls(Section):
    """Transport encryption of the Kafka client."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    key_password: Secret | None = None
    crl_file: Path | None = None
    ciphers: str | None = None
    check_hostname: bool = True


class Kafka(Section):
    bootstrap_servers: Names = ("localhost:9092",)
    topics: Names = ("images",)
    group_id: str = "layerwatch"
    client_id: str = "layerwatch"
    dead_letter_topic: str = "images.dead-letter"
    start: Literal["earliest", "latest"] = "earliest"
    tls: KafkaTls | None = None
    sasl: KafkaSasl | None = None
    session_timeout_s: PositiveFloat = 45.0
    max_poll_records: PositiveInt = 500
    fetch_max_bytes: PositiveInt = 50 * 2**20
    request_timeout_s: PositiveFloat = 40.0
    client: dict[str, Any] = Field(default_factory=dict)
    """Any further option of kafka-python's clients by its own name."""


class RedisStream(Section):
    """The Redis Streams source: an edge box with one Redis and no Kafka."""

    topics: Names = ("images",)
    partitions: PositiveInt = 1
    max_length: PositiveInt = 10_000
    dead_letter_topic: str = "images.dead-letter"
    start: Literal["earliest", "latest"] = "earliest"
    lease_s: PositiveFloat = 10.0


class Redis(Section):
    """Where the state lives: one server by URL, a Sentinel set, or a Cluster."""

    mode: Literal["single", "sentinel", "cluster"] = "single"
    url: Secret = SecretStr("redis://localhost:6379/0")
    sentinels: Names = ()
    sentinel_master: str = "mymaster"
    sentinel_password: Secret | None = None
    tls_ca_file: Path | None = None
    timeout_s: PositiveFloat = 5.0
    wait_aof: bool = True

    @model_validator(mode="after")
    def _sentinel_needs_hosts(self) -> Redis:
        if self.mode == "sentinel" and not self.sentinels:
            raise ValueError("mode sentinel needs redis.sentinels (host:port, ...)")
        return self


class StreamNaming(Section):
    """What an alert is about. `from: header` reads the named header, `constant` uses `name` for every image."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    source: Literal["key", "header", "constant"] = Field(default="key", alias="from")
    header: str = "stream"
    name: str = "default"
    event_time_header: str | None = None
    """Header with the event time (ms since the epoch, or RFC 3339); the record's timestamp where it is absent."""
    max_streams: PositiveInt = 10_000


class Decoding(Section):
    workers: PositiveInt = 2
    max_record_bytes: PositiveInt = 32 * 2**20
    max_pixels: PositiveInt = 50_000_000
    max_images_per_record: PositiveInt = 1024
    formats: Names = ("JPEG", "PNG", "WEBP")
    claim_check_prefixes: Names = ()
    timeout_s: PositiveFloat = 20.0
    worker_memory_bytes: PositiveInt = 2 * 2**30


class Buckets(Section):
    seconds: PositiveInt = 10
    lateness_s: NonNegativeFloat = 10.0
    idle_timeout_s: PositiveFloat = 30.0
    max_future_s: PositiveFloat = 60.0
    retention_s: PositiveInt = 7 * 86_400


class Rule(Section):
    """What every rule has: a name, the streams it watches, and how long a breach must last."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
    streams: Glob = "*"
    except_streams: Names = Field(default=(), alias="except")
    for_s: NonNegativeFloat = Field(default=0.0, alias="for")
    keep_firing_for_s: NonNegativeFloat = Field(default=0.0, alias="keep_firing_for")
    labels: dict[str, str] = Field(default_factory=dict)

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def watches(self, stream: str) -> bool:
        """Whether `streams` matches (case-sensitive; without wildcards: equality) and none of the exceptions does."""
        left_out = any(fnmatchcase(stream, glob) for glob in self.except_streams)
        return fnmatchcase(stream, self.streams) and not left_out


class RateRule(Rule):
    kind: Literal["rate"]
    signal: str = "ood"
    level: float = 0.05
    window_s: PositiveFloat = 300.0
    threshold: Share = 0.10
    min_images: PositiveInt = 100
    confidence: Share = 0.99


class SequentialRule(Rule):
    kind: Literal["sequential"]
    signals: Names = ("ood",)
    false_alarm_days: PositiveFloat | None = None
    """At most one false alarm in that many days over all streams; None: 7 for a fleet, 30 for one stream."""
    expected_streams: PositiveInt = 1
    delta: Share = 0.01
    benign_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    reference: Literal["tightening", "fixed"] = "tightening"
    dependence: Annotated[float, Field(ge=1)] | None = None
    """Frames that count as one (video); None takes what the profile measured at fit."""


class ShiftRule(Rule):
    kind: Literal["shift"]
    signals: Names = ("ood",)
    window_s: PositiveFloat = 3600.0
    effect: Share = 0.15
    min_images: PositiveInt = 500
    confidence: Share = 0.99


class RejectedRule(Rule):
    kind: Literal["rejected"]
    window_s: PositiveFloat = 300.0
    threshold: Share = 0.05
    min_images: PositiveInt = 20
    confidence: Share = 0.99


class FrozenRule(Rule):
    kind: Literal["frozen"]
    run: PositiveInt = 10
    """Identical consecutive images from which a stream counts as frozen."""


class SilenceRule(Rule):
    kind: Literal["silence"]
    after_s: PositiveFloat = 300.0


AnyRule = Annotated[
    RateRule | SequentialRule | ShiftRule | RejectedRule | FrozenRule | SilenceRule,
    Field(discriminator="kind"),
]


class Receiver(Section):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
    timeout_s: PositiveFloat = 10.0
    send_resolved: bool = True


class WebhookReceiver(Receiver):
    """Standard Webhooks: signed POST of the alert document."""

    type: Literal["webhook"]
    url: str
    secret: Secret | None = None
    """`whsec_` + base64; without one the request is not signed."""
    headers: dict[str, Secret] = Field(default_factory=dict)


class AlertmanagerReceiver(Receiver):
    type: Literal["alertmanager"]
    urls: Annotated[Names, Field(min_length=1)]
    """Every instance of the cluster: they deduplicate among themselves."""
    resend_s: PositiveFloat = 60.0
    username: str | None = None
    password: Secret | None = None
    bearer_token: Secret | None = None


class SlackReceiver(Receiver):
    type: Literal["slack"]
    url: Secret


class PagerDutyReceiver(Receiver):
    type: Literal["pagerduty"]
    routing_key: Secret
    url: str = "https://events.pagerduty.com/v2/enqueue"


class KafkaReceiver(Receiver):
    """CloudEvents in binary mode on a topic of the same cluster, keyed by the alert."""

    type: Literal["kafka"]
    topic: str = "layerwatch.alerts"


AnyReceiver = Annotated[
    WebhookReceiver | AlertmanagerReceiver | SlackReceiver | PagerDutyReceiver | KafkaReceiver,
    Field(discriminator="type"),
]


class Evidence(Section):
    thumbnails: bool = True
    thumbnail_px: Annotated[int, Field(ge=16, le=512)] = 96
    exemplars: Annotated[int, Field(ge=0, le=100)] = 12
    """Worst images kept per stream and hour."""
    retention_s: PositiveInt = 7 * 86_400


class Verdicts(Section):
    """Sink for one line per image (labelling queues); off unless a type is given."""

    type: Literal["none", "kafka", "redis-stream", "jsonl"] = "none"
    target: str = "layerwatch.verdicts"
    """Topic, stream key or file, by type."""
    max_p_value: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only images whose OOD p-value is at most this."""


class Pipeline(Section):
    queue_bytes: PositiveInt = 256 * 2**20
    """Bytes of records held between poll and apply; polling pauses above, resumes below half."""
    poll_s: PositiveFloat = 0.2
    stall_s: PositiveFloat = 120.0
    """Watchdog: with work in hand and no apply for that long the process exits (70) and is restarted."""
    grace_s: PositiveFloat = 25.0
    """SIGTERM: time to finish what is in flight (below the orchestrator's own limit, usually 30 s)."""


class DeadLetters(Section):
    max_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Stop the partition and alert when more than this share of the last `window` records is bad; 1 = never."""
    window: PositiveInt = 1000
    on_gap: Literal["continue", "stop"] = "continue"
    """A cursor before the start of the log (retention took records unread): counted and alerted, then this."""
    on_unreadable: Literal["dead-letter", "stop"] = "dead-letter"
    """Bytes of the log that no client can read: an empty dead letter per offset, or the partition stops; alerted."""


class Web(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """0 picks a free port (logged)."""
    external_url: str = ""
    """How people reach this page, with the path where a proxy puts it below one; in alerts and on the page."""
    dashboard_url: str = ""
    """Where alerts lead besides; `{stream}` in it becomes the alert's stream, percent-quoted."""
    token: Secret | None = None
    username: str | None = None
    password: Secret | None = None


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Config(Section):
    """Everything a monitor can be told."""

    monitor: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")] = "layerwatch"
    source: Literal["kafka", "redis-stream"] = "kafka"
    kafka: Kafka = Kafka()
    redis_stream: RedisStream = RedisStream()
    redis: Redis = Redis()
    stream: StreamNaming = StreamNaming()
    scoring: Scoring = Scoring()
    decoding: Decoding = Decoding()
    buckets: Buckets = Buckets()
    rules: tuple[AnyRule, ...] = ()
    receivers: tuple[AnyReceiver, ...] = ()
    evidence: Evidence = Evidence()
    verdicts: Verdicts = Verdicts()
    pipeline: Pipeline = Pipeline()
    dead_letters: DeadLetters = DeadLetters()
    web: Web = Web()
    log: Log = Log()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Config:
        for what, names in (
            ("rules", [rule.name for rule in self.rules]),
            ("receivers", [receiver.name for receiver in self.receivers]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what}: the name {twice[0]} is used twice")
        if any(rule.name.startswith(OWN_RULES) for rule in self.rules):
            raise ValueError(f"rules: names that begin with {OWN_RULES} are taken by alerts about the monitor itself")
        return self


def load_config(path: Path | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the file (None: defaults only) and the environment over it.

    Raises:
        ConfigError: one line per wrong key.
    """
    where = str(path) if path else "defaults"
    tree: Any = {}
    if path:
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ConfigError([f"{where}: {error.strerror}"]) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError([f"{where}: not valid YAML: {' '.join(str(error).split())}"]) from error
        if not isinstance(tree, dict):
            raise ConfigError([f"{where}: must be a mapping of sections (got {type(tree).__name__})"])
    from_environment = _overlay(tree, environ)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        # a key may hold anything, line breaks too, and one error is one line
        lines = [_line(where, from_environment, item) for item in error.errors()]
        raise ConfigError([" ".join(line.split()) for line in lines]) from error


def _overlay(tree: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Write the environment's values into `tree`; returns dotted key -> variable, to name it in errors."""
    named: dict[str, str] = {}
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX):
            continue
        *sections, key = variable.removeprefix(ENV_PREFIX).lower().split("__")
        node = tree
        for section in sections:
            child = node.get(section)
            if not isinstance(child, dict):
                child = {}
            # a copy, so that an anchor shared in the file is not changed in two places
            node[section] = dict(child)
            node = node[section]
        try:
            node[key] = yaml.safe_load(environ[variable])
        except yaml.YAMLError:
            node[key] = environ[variable]
        named[".".join([*sections, key])] = variable
    return named


def _line(where: str, from_environment: Mapping[str, str], item: Any) -> str:
    """`config.yaml: buckets.seconds: must be greater than 0 (got -5)`; never shows a secret's value."""
    key = ".".join(str(part) for part in item["loc"])
    origin = from_environment.get(key, where)
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"{origin}: {key}: unknown key"
    message = message.replace("Input should be", "must be").replace("Field required", "is required")
    message = message.replace("a valid tuple", "a list")
    shown = item.get("input")
    secret = any(word in key for word in ("secret", "password", "token", "key", "url"))
    got = f" (got {shown!r})" if isinstance(shown, int | float | str) and not secret else ""
    return f"{origin}: {key + ': ' if key else ''}{message}{got}"
