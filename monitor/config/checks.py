"""What is wrong or odd in a configuration whose keys are all right; the same for `run` and `check-config`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from detectors.images.decode import Limits
from detectors.profile.files import DeviceError
from detectors.versions.journal import State
from detectors.versions.store import is_folder, split_address
from monitor.config.errors import ConfigError
from monitor.config.schema import Config
from monitor.core.buckets import Layout
from monitor.ingest.decode.wrapped import ValueReader
from monitor.ingest.scoring.profiles import Profiles, load_profiles, outline_profiles
from monitor.ingest.scoring.views import ConditionsError
from monitor.notify.receivers.protocol import ReceiverConfigError
from monitor.rules.registry import unsuited_rules, wrong_numbers
from monitor.sources import SOURCES, open_producer
from monitor.sources.protocol import FatalSourceError


def check(settings: Config, where: str) -> list[str]:
    """Refuse what cannot run, as far as that shows without a server and without a profile; returns what is odd.

    Args:
        where: names the file in errors.

    Raises:
        ConfigError: one line per fault.
    """
    if wrong := [line for look in FAULTS for line in look(settings)]:
        raise ConfigError([f"{where}: {line}" for line in wrong])
    return [f"{where}: {line}" for line in _oddities(settings)]


def check_profiles(settings: Config, where: str) -> list[str]:
    """Refuse profiles by which not every rule can judge; returns what is odd. Their networks are not loaded.

    Raises:
        ConfigError: one cannot be read, or does not have what a rule or a condition needs.
    """
    with _named(where):
        layouts, oddities = outline_profiles(settings.scoring)
    _check_rules(settings, where, layouts)
    return [f"{where}: {line}" for line in oddities]


def checked_profiles(settings: Config, where: str) -> Profiles:
    """The configured profiles, by which every rule can judge.

    Raises:
        ConfigError: as `check_profiles`; or one cannot be loaded.
    """
    check_device(settings, where)
    check_profiles(settings, where)  # before the seconds that torch takes
    with _named(where):
        profiles = load_profiles(settings.scoring, settings.decoding)
    # again: a store may have another active version by now
    _check_rules(settings, where, {**profiles.layouts, **profiles.shadow_layouts})
    return profiles


def _check_rules(settings: Config, where: str, layouts: Mapping[str, Layout]) -> None:
    if wrong := unsuited_rules(settings.rules, layouts):
        raise ConfigError([f"{where}: {line}" for line in wrong])


def check_device(settings: Config, where: str) -> None:
    """Refuse a device that this machine does not have. Loads torch, unless no special one is asked for.

    Raises:
        ConfigError: it cannot be used.
    """
    if settings.scoring.device in {"auto", "cpu"}:
        return
    from detectors.engines.device import choose_device  # noqa: PLC0415 - loads torch, see above

    with _named(where):
        choose_device(settings.scoring.device)


@contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except ConditionsError as error:
        raise ConfigError([f"{where}: {line}" for line in error.lines]) from error
    except DeviceError as error:
        raise ConfigError([f"{where}: scoring.device: {error}"]) from error
    except ValueError as error:
        raise ConfigError([f"{where}: scoring.profile: {error}"]) from error


def _wrong_rules(settings: Config) -> Iterator[str]:
    yield from wrong_numbers(settings.rules, settings.buckets.seconds)
    for i, rule in enumerate(settings.rules):
        if rule.window_ms > 1000 * settings.buckets.history_s:
            yield f"buckets.history_s: shorter than the window of rules.{i} ({rule.name})"


def _wrong_state(settings: Config) -> Iterator[str]:
    redis = settings.redis
    if not (redis.speaks_tls or redis.tls_ca_file or "?" in redis.url.get_secret_value()):
        return  # no file and no option that the client could refuse
    from monitor.store import StoreConfigError, check_client  # noqa: PLC0415 - the client takes half a second to load

    try:
        check_client(redis)
    except StoreConfigError as error:
        yield str(error)


def _wrong_sources(settings: Config) -> Iterator[str]:
    for kind in sorted({settings.source, settings.verdicts.type} & set(SOURCES)):
        try:
            SOURCES[kind].check(settings.source_settings(kind))
        except FatalSourceError as error:
            yield str(error)
    section, key = settings.source_settings().section, SOURCES[settings.source].section
    if section.dead_letter_topic in section.topics:
        yield f"{key}.dead_letter_topic: is one of {key}.topics: a letter would be read and become another letter"


def _wrong_receivers(settings: Config) -> Iterator[str]:
    for receiver in settings.receivers:
        try:
            receiver.build(lambda: open_producer(settings.source_settings())).close()
        except ReceiverConfigError as error:
            yield str(error)


def _wrong_formats(settings: Config) -> Iterator[str]:
    try:
        Limits(formats=settings.decoding.formats)
    except ValueError as error:
        yield f"decoding.formats: {error}"


def _wrong_values(settings: Config) -> Iterator[str]:
    try:
        ValueReader(settings.decoding, settings.value).check()
    except ValueError as error:
        yield str(error)


def _wrong_renewal(settings: Config) -> Iterator[str]:
    if settings.renewal.every is None:
        return
    root, wanted = split_address(settings.renewed)
    if is_folder(settings.renewed) or wanted != State.ACTIVE:
        yield f"renewal.every: {settings.renewed} is no store of profiles whose active version is followed"
    elif f"{root}@{State.SHADOW}" not in {entry.version for entry in settings.scoring.shadow}:
        yield f"renewal.every: a candidate is tried in shadow first: add {{version: {root}@shadow}} to scoring.shadow"


def _wrong_web(settings: Config) -> Iterator[str]:
    if settings.web.exposed:
        yield (
            f"web.host: {settings.web.host!r} is reachable from other machines: set web.token, or web.anonymous: true"
            " to let everybody read"
        )


FAULTS: tuple[Callable[[Config], Iterator[str]], ...] = (
    _wrong_rules,
    _wrong_state,
    _wrong_sources,
    _wrong_receivers,
    _wrong_formats,
    _wrong_values,
    _wrong_renewal,
    _wrong_web,
)


def _oddities(settings: Config) -> Iterator[str]:
    """What runs, and is hardly meant."""
    if not settings.rules:
        yield "rules: there is none, so no drift will ever be alerted on"
    if not settings.receivers:
        yield "receivers: there is none, so alerts show on the status page alone"
    if settings.redis.tls_ca_file and not settings.redis.speaks_tls:
        yield "redis.tls_ca_file: has no effect, as redis.url is redis:// (TLS is rediss://)"
    sasl, tls = settings.kafka.sasl, settings.kafka.tls
    if settings.source == "kafka" and sasl and not tls and sasl.mechanism in {"PLAIN", "OAUTHBEARER"}:
        yield f"kafka.tls: there is none, so {sasl.mechanism} sends the secret of kafka.sasl in clear"
    if sasl and sasl.oauth and (sasl.oauth.token_url or "").startswith("http://"):
        yield "kafka.sasl.oauth.token_url: is http://, so kafka.sasl.oauth.client_secret is sent in clear"
    if settings.verdicts.type in SOURCES and settings.verdicts.target in settings.source_settings().section.topics:
        yield "verdicts.target: is one of the topics that are read"
    web = settings.web
    if web.username and not web.password:
        yield "web.username: has no effect without web.password"
    for key in ("external_url", "dashboard_url"):
        url = getattr(web, key)
        if url and not url.startswith(("http://", "https://")):
            yield f"web.{key}: links need http:// or https:// at its start"
