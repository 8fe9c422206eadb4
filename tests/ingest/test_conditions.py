"""The condition of an image: by header, by the hour, by a property; what the configuration may say of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from detectors.images.prepare import Prepared
from detectors.images.properties import NAMES
from detectors.profile.fit import recalibrate
from detectors.profile.profile import Profile
from monitor.__main__ import main
from monitor.config.loading import load_config
from monitor.core.types import Partition, Record
from monitor.ingest.conditions import AnyCondition, ConditionRule
from monitor.ingest.scoring.profiles import Profiles, load_profiles
from monitor.ingest.scoring.views import may_overlap
from monitor.telemetry import metrics
from tests.pictures import at_night, pictures

BERLIN = {"by": "hour", "timezone": "Europe/Berlin", "hours": {"day": "06:00-20:00", "night": "20:00-06:00"}}
LIGHT = {"by": "property", "name": "luma_p50", "ranges": {"night": [None, 40], "dusk": [40, 50], "day": [50, None]}}
HEADER = {"by": "header", "header": "light"}


def image(luma: float = 100.0) -> Prepared:
    measured = np.zeros(len(NAMES))
    measured[NAMES.index("luma_p50")] = luma
    return Prepared(np.zeros((1, 1, 3), np.uint8), measured, b"", b"", 1, 1, "RGB")


def record(**headers: str) -> Record:
    return Record(Partition("images", 0), 0, 0, b"cam", b"", tuple((k, v.encode()) for k, v in headers.items()))


def rule(tree: Mapping[str, Any]) -> ConditionRule:
    adapter: TypeAdapter[ConditionRule] = TypeAdapter(AnyCondition)
    return adapter.validate_python(tree)


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("utc", "condition"),
    [
        ("2025-01-15T04:59:59.999", "night"),  # winter: 05:59 in Berlin
        ("2025-01-15T05:00:00", "day"),
        ("2025-07-15T04:00:00", "day"),  # summer: 06:00
        ("2025-07-15T03:59:00", "night"),
        ("2025-07-15T17:59:59", "day"),
        ("2025-07-15T18:00:00", "night"),
        ("2025-03-30T04:00:00", "day"),  # the clock went from 02:00 to 03:00
        ("2025-03-29T04:00:00", "night"),  # and the day before had not
        ("2025-10-26T04:30:00", "night"),  # it went back from 03:00 to 02:00
        ("2025-10-26T05:00:00", "day"),
        ("0001-01-01T00:30:00", "night"),
    ],
)
def test_the_hour_is_that_of_a_clock_on_the_wall_also_when_it_is_changed(utc: str, condition: str) -> None:
    assert rule(BERLIN).namer()(record(), at(utc), image()) == condition


def test_spans_may_be_several_and_an_hour_that_is_there_twice_has_one_condition() -> None:
    shifts = {"early": "05:30-14:00", "late": ["14:00-22:00"], "off": ["22:00-24:00", "00:00-05:30"]}
    namer = rule({"by": "hour", "timezone": "Europe/Berlin", "hours": shifts}).namer()
    twice = [namer(record(), at(f"2025-10-26T0{hour}:15:00"), image()) for hour in (0, 1)]  # 02:15 and 02:15
    assert twice == ["off", "off"]
    assert namer(record(), at("2025-10-26T12:59:59"), image()) == "early"
    west = {"by": "hour", "timezone": "America/New_York", "hours": {"all": "00:00-24:00"}}
    assert rule(west).namer()(record(), at("0001-01-01T00:30:00"), image()) is None  # no clock shows the year 0


def test_ranges_of_a_property_include_their_lower_end() -> None:
    namer = rule(LIGHT).namer()
    found = [namer(record(), 0, image(luma)) for luma in (-5.0, 39.999, 40.0, 49.0, 50.0, 1e9)]
    assert found == ["night", "night", "dusk", "dusk", "day", "day"]


def test_a_header_is_the_condition_or_is_translated() -> None:
    plain, mapped = rule(HEADER).namer(), rule({**HEADER, "values": {"1": "day", "0": "night"}}).namer()
    assert [plain(record(light="night"), 0, image()), plain(record(), 0, image())] == ["night", None]
    assert [mapped(record(Light=v), 0, image()) for v in ("1", "0", "2")] == ["day", "night", ""]
    assert mapped(record(dark="1"), 0, image()) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({**BERLIN, "hours": {"day": "06:00-20:00", "night": "21:00-06:00"}}, "hours: 20:00 belongs to no condition"),
        ({**BERLIN, "hours": {"day": "06:00-20:00", "night": "19:30-06:00"}}, "hours: 19:30 belongs to both day and"),
        ({**BERLIN, "hours": {"day": "06:00-06:00"}}, "hours: 06:00-06:00 is empty; a whole day is 00:00-24:00"),
        ({**BERLIN, "hours": {"day": "6-20"}}, "should match pattern"),
        ({**BERLIN, "hours": {"Day!": "00:00-24:00"}}, "'Day!' names no condition"),
        ({**BERLIN, "hours": {}}, "hours: 00:00 belongs to no condition"),
        ({**BERLIN, "timezone": "Europe/Bonn"}, "timezone: 'Europe/Bonn' is no time zone"),
        ({**BERLIN, "timezone": "../etc"}, "'../etc' is no time zone"),
        ({**LIGHT, "name": "brightness"}, "name: there is no property 'brightness'; there are luma_p1"),
        ({**LIGHT, "ranges": {"night": [None, 40], "day": [50, None]}}, "ranges: day leaves what is below 50 without"),
        ({**LIGHT, "ranges": {"night": [None, 40], "day": [30, None]}}, "ranges: day overlaps with another"),
        ({**LIGHT, "ranges": {"night": [None, 40]}}, "ranges: what is from 40 on has no condition"),
        ({**LIGHT, "ranges": {"night": [40, 40]}}, "ranges: night is empty"),
        ({**LIGHT, "ranges": {}}, "ranges: there is none"),
        ({**HEADER, "header": ""}, "header: String should have at least 1 character"),
        ({"by": "moon"}, "does not match any of the expected tags"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_leaves_images_without_a_condition_is_refused_by_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"scoring": {"conditions": [change]}}))
    assert main(["check-config", "-c", str(path)]) == 78
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}: scoring.conditions.0")
    assert said in line


def test_globs_that_share_no_name_are_told_apart() -> None:
    assert not may_overlap("yard-*", "line-*")
    assert not may_overlap("*-in", "*-out")
    assert may_overlap("yard-*", "yard-1?")
    assert may_overlap("*", "line-1")
    assert may_overlap("a*z", "*b*")


@pytest.fixture(scope="module")
def folder(profile_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile with the conditions day and night."""
    profile = Profile.load(profile_folder, "cpu")
    recalibrate(profile, pictures(71, 60), condition="day")
    recalibrate(profile, at_night(pictures(70, 100)), condition="night")
    saved = tmp_path_factory.mktemp("conditions") / "profile"
    profile.save(saved)
    return saved


def loaded(tmp_path: Path, folder: Path, *conditions: dict[str, Any]) -> Profiles:
    path = tmp_path / "c.yaml"
    scoring = {"profile": str(folder), "device": "cpu", "conditions": list(conditions)}
    path.write_text(yaml.safe_dump({"scoring": scoring}))
    settings = load_config(path)
    return load_profiles(settings.scoring, settings.decoding)


def test_each_image_is_judged_by_its_condition_in_one_batch(folder: Path, tmp_path: Path) -> None:
    light = {**LIGHT, "streams": "yard-*", "ranges": {"night": [None, 40], "day": [40, None]}}
    profiles = loaded(tmp_path, folder, light, {**HEADER, "streams": "cell"})
    base = profiles.of("yard-1")
    taken = [(name, base.prepare(shown, name.encode())) for name, shown in pictures(72, 6)]
    taken += [(name, base.prepare(shown, name.encode())) for name, shown in at_night(pictures(73, 6))]
    views = [profiles.view_of("yard-1", record(), 0, prepared) for _, prepared in taken]
    assert [view.condition for view in views] == ["day"] * 6 + ["night"] * 6
    found = profiles.p_values([("yard-1", prepared) for _, prepared in taken], 5, views)
    for view, judged, (_, prepared) in zip(views, found, taken, strict=True):
        assert judged.fingerprint == view.fingerprint
        np.testing.assert_allclose(judged.p_values, view.score([prepared]).p_values[0], atol=0.02)
    dark = base.signals.index("luma_p50")
    assert min(judged.p_values[dark] for judged in found[6:]) > 0.01 > base.score([taken[6][1]]).p_values[0, dark]
    assert profiles.loaded == set(profiles.layouts) == {base.fingerprint, *(view.fingerprint for view in views)}
    assert {layout.condition for layout in profiles.layouts.values()} == {"", "day", "night"}
    assert profiles.fingerprint_of("yard-1") == base.fingerprint
    assert (set(profiles.conditions_of("yard-1")), set(profiles.conditions_of("cell"))) == ({"day", "night"},) * 2
    assert not profiles.conditions_of("line-1")


def test_an_image_without_a_usable_condition_is_judged_by_all_images_and_counted(folder: Path, tmp_path: Path) -> None:
    profiles = loaded(tmp_path, folder, {**HEADER, "streams": "cell"})
    before = [metrics.UNCONDITIONED.labels(reason)._value.get() for reason in ("missing", "unknown")]
    shown = [record(light="night"), record(), record(light="dawn"), record(light="Night")]
    assert [profiles.view_of("cell", r, 0, image()).condition for r in shown] == ["night", "", "", ""]
    assert profiles.view_of("line-1", record(), 0, image()).condition == ""
    after = [metrics.UNCONDITIONED.labels(reason)._value.get() for reason in ("missing", "unknown")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 2]


def test_calibration_images_outside_the_range_are_warned_of(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    said = []
    for edge in (40, 70):  # normal images by day lie at 60, more or less
        light = {**LIGHT, "ranges": {"night": [None, edge], "day": [edge, None]}}
        path.write_text(yaml.safe_dump({"scoring": {"profile": str(folder), "conditions": [light]}}))
        assert main(["check-config", "-c", str(path)]) == 0
        said.append([line for line in capsys.readouterr().err.splitlines() if "scoring" in line])
    assert said[0] == []
    (line,) = said[1]
    assert line.startswith(f"warning: {path}: scoring.conditions.0.ranges: day of profile ")
    assert "was calibrated on images outside its range, with luma_p50 from 5" in line


def test_a_profile_without_the_condition_is_refused_where_it_is_named(
    folder: Path, profile_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    scoring = {
        "profile": str(folder),
        "profiles": [{"streams": "line-*", "path": str(profile_folder)}],
        "conditions": [{**LIGHT, "streams": "yard-*"}, {**HEADER, "streams": "line-1"}],
    }
    path.write_text(yaml.safe_dump({"scoring": scoring}))
    assert main(["check-config", "-c", str(path)]) == 78
    own, plain = Profile.load(folder, "cpu").fingerprint, Profile.load(profile_folder, "cpu").fingerprint
    assert own == plain  # the same calibration of its own: adding conditions changes nothing else
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("scoring.")[2].partition(";")[0] for line in lines] == [
        f"conditions.0.ranges: profile {own} has no condition 'dusk' (it has day, night)",
        f"conditions.1.header: profile {plain} has no conditions",
    ]
