"""The model of a worker, built from what its job carries: a profile that scores, or a backbone that gives features."""

from __future__ import annotations

import tempfile
from pathlib import Path

from detectors.images.decode import Limits
from detectors.images.tones import Tones
from detectors.profile.backbone import Backbone
from detectors.profile.files import MANIFEST, files_to_score
from detectors.profile.profile import Profile
from detectors.profile.spec import BackboneSpec, EngineName
from monitor.cli.archive.cluster import Job
from monitor.cli.archive.results import Results
from monitor.cli.archive.tables import Features, Scoring, ShardTable


def loaded(folder: str | Path, device: str, engine: EngineName | None, condition: str) -> tuple[Profile, str]:
    """The profile that scores, and in words what runs its network.

    Raises:
        ProfileError: it cannot be loaded, or has no such condition, or the engine cannot run it here.
    """
    profile = Profile.load(folder, device, engine)
    return profile.under(condition) if condition else profile, profile.runs_by


def keep_profile(results: Results, folder: str | Path) -> None:
    """Copy what scoring needs of a profile to the results, where all machines can read it; it says what scored them."""
    manifest = (Path(folder) / MANIFEST).read_bytes()
    for name in (MANIFEST, *files_to_score(manifest)):
        results.put(name, (Path(folder) / name).read_bytes())


def table_of(job: Job, threads: int) -> ShardTable:
    """What makes the tables of a job; errors as `loaded`, and BackboneError."""
    if job.profile:
        with tempfile.TemporaryDirectory() as folder:
            kept = Results(job.profile)
            for name in (MANIFEST, *files_to_score(kept.get(MANIFEST))):
                (Path(folder) / name).write_bytes(kept.get(name))
            profile, _ = loaded(folder, job.device, job.engine, job.condition)
        return ShardTable(Scoring(profile), threads)
    backbone = Backbone(BackboneSpec.from_json(job.backbone), job.device).on_grids(*job.grids)
    return ShardTable(Features(backbone, backbone.preparer(Limits(), Tones())), threads)
