"""The configured profiles: metrics of scoring, and the rules that judge by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.config import checks
from monitor.config.errors import ConfigError
from monitor.config.schema import Config
from monitor.ingest.scoring.profiles import load_profiles
from monitor.ingest.settings import DecodingSettings, ScoringSettings
from monitor.rules.rate import RateRule
from monitor.telemetry import metrics
from tests.pictures import pictures


def test_every_image_is_in_the_histogram_of_every_learned_score(profile_folder: Path) -> None:
    profiles = load_profiles(ScoringSettings(profile=str(profile_folder), device="cpu"), DecodingSettings())
    profile = profiles.of("cam")
    before = counted(profile.fingerprint)
    strange = [profile.prepare(image) for _, image in pictures(5, 10, stripes=True)]
    profiles.p_values([("cam", image) for image in strange], batch_images=4)
    after = counted(profile.fingerprint)
    learned = [signal for signal, own in zip(profile.signals, profile.learned, strict=True) if own]
    assert {signal for signal, _ in after} == set(learned)
    assert all(after[signal, "+Inf"] - before.get((signal, "+Inf"), 0) == 10 for signal in learned)
    assert after["ood", "24.0"] - before.get(("ood", "24.0"), 0) == 0  # all of them far above the normal ones


def test_the_rules_are_checked_by_what_is_loaded_too(profile_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two looks at a store somebody may promote another version."""
    monkeypatch.setattr(checks, "check_profiles", lambda *_: [])
    rule = RateRule(name="rare", kind="rate", level=0.002)
    settings = Config(scoring=ScoringSettings(profile=str(profile_folder), device="cpu"), rules=(rule,))
    with pytest.raises(ConfigError, match=r"c\.yaml: .*rare.* 300 calibration images of .ood. are too few"):
        checks.checked_profiles(settings, "c.yaml")


def counted(fingerprint: str) -> dict[tuple[str, str], float]:
    """(signal, upper bound) -> images so far."""
    return {
        (sample.labels["signal"], sample.labels["le"]): sample.value
        for family in metrics.SCORES.collect()
        for sample in family.samples
        if sample.name.endswith("_bucket") and sample.labels["profile"] == fingerprint
    }
