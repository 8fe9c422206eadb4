"""Versions of a profile: on a disk and in a real object store, whoever changes them at the same time."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import detectors
from detectors.profile.files import ProfileError
from detectors.profile.profile import Profile
from detectors.versions.difference import facts, moved
from detectors.versions.journal import State
from detectors.versions.store import Pointer, ProfileStore, located
from monitor.__main__ import main
from tests.pictures import pictures


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of a local S3, reached by the environment as a deployment has it."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - takes a second

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            changed.setenv(name, "test")
        changed.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs  # noqa: PLC0415 - likewise

        s3fs.S3FileSystem.clear_instance_cache()  # of tests with another server
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("profiles")
        yield "s3://profiles"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.slow)])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "disk":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def made(tmp_path: Path, text: str) -> Path:
    """The files of something that is called a profile."""
    folder = tmp_path / text
    (folder / "examples").mkdir(parents=True)
    (folder / "profile.json").write_text(json.dumps({"fingerprint": f"{text:0<16}", "images": {"fit": 9}}))
    (folder / "examples" / "one.jpg").write_bytes(text.encode() * 100)
    return folder


def states(store: ProfileStore) -> list[str]:
    return [str(version.state) for version in store.journal().versions]


def test_the_life_of_versions(root: str, tmp_path: Path) -> None:
    store = ProfileStore(root)
    assert not store.exists()
    for text in ("aaaa", "bbbb", "cccc"):
        store.add(made(tmp_path, text), f"made of {text}")
    assert states(store) == ["candidate"] * 3
    with pytest.raises(ProfileError, match="no version is active yet"):
        store.find()
    assert store.promote("1", "the first").state is State.ACTIVE
    assert store.promote("bbbb").number == 2
    assert states(store) == ["candidate", "active", "candidate"]
    back = store.roll_back("it saw ghosts")
    assert (back.number, back.state, back.changes[-1].reason) == (1, State.ACTIVE, "it saw ghosts")
    assert store.retire("2", "ghosts").state is State.RETIRED
    for act, message in (
        (lambda: store.promote("2"), "version 2 is retired: ghosts"),
        (lambda: store.promote("1"), "version 1 is active already"),
        (lambda: store.retire("1"), "version 1 is active"),
        (store.roll_back, "no version was active before"),
        (lambda: store.promote("9"), r"no version '9'; there are 1 \(aaaa0+\), 2"),
        (lambda: store.add(tmp_path / "bbbb"), r"is version 2 already \(retired\)"),
        (lambda: store.add(tmp_path), "No such file or directory; make a profile"),
    ):
        with pytest.raises(ProfileError, match=message):
            act()
    assert states(store) == ["active", "retired", "candidate"]
    folder = located(f"{root}@3")
    assert (folder / "examples" / "one.jpg").read_bytes() == b"cccc" * 100
    assert json.loads((located(root) / "profile.json").read_text())["fingerprint"].startswith("aaaa")


def test_one_version_is_in_shadow_until_it_is_active_retired_or_replaced(tmp_path: Path) -> None:
    store, pointer = ProfileStore(str(tmp_path / "store")), Pointer(f"{tmp_path / 'store'}@shadow")
    for text in ("aaaa", "bbbb", "cccc"):
        store.add(made(tmp_path, text))
    store.promote("1")
    assert pointer.pinned() == ""
    with pytest.raises(ProfileError, match="no version is in shadow"):
        store.find("shadow")
    assert store.shadow("2", "new lamps").state is State.SHADOW
    assert pointer.pinned() == f"{store.root}@2"
    store.shadow("3")
    assert states(store) == ["active", "candidate", "shadow"]
    for wanted in ("1", "3"):
        with pytest.raises(ProfileError, match=f"version {wanted} is (active|shadow)"):
            store.shadow(wanted)
    store.retire("3")
    assert (states(store), pointer.pinned()) == (["active", "candidate", "retired"], "")
    store.shadow("2")
    store.promote("2")
    assert (states(store), pointer.pinned()) == (["candidate", "active", "retired"], "")


def test_what_is_active_before_a_retired_one_is_not_rolled_back_to(tmp_path: Path) -> None:
    store = ProfileStore(str(tmp_path / "store"))
    for text in ("aaaa", "bbbb"):
        store.promote(str(store.add(made(tmp_path, text)).number))
    store.retire("1")
    with pytest.raises(ProfileError, match="version 1, active before, is retired"):
        store.roll_back()


def test_changes_at_the_same_time_all_happen_one_after_another(root: str, tmp_path: Path) -> None:
    folders = [made(tmp_path, text) for text in ("aaaa", "bbbb", "cccc", "dddd")]
    failed: list[BaseException] = []

    def add(folder: Path) -> None:
        try:
            ProfileStore(root).add(folder)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=add, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    journal = ProfileStore(root).journal()
    assert sorted(version.fingerprint[:4] for version in journal.versions) == ["aaaa", "bbbb", "cccc", "dddd"]
    assert [version.number for version in journal.versions] == [1, 2, 3, 4]


def test_a_half_copied_version_is_none_and_the_next_try_makes_it_whole(root: str, tmp_path: Path) -> None:
    store, folder = ProfileStore(root), made(tmp_path, "aaaa")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store._place), "create", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.add(folder)
    assert not store.exists()
    assert located(store.fetch(store.add(folder))) == store.fetch(store.find("1"))


def test_a_damaged_file_is_named_and_a_damaged_copy_fetched_again(root: str, tmp_path: Path) -> None:
    store = ProfileStore(root)
    store.add(made(tmp_path, "aaaa"))
    folder = store.fetch(store.promote("1"))
    (folder / "examples" / "one.jpg").write_bytes(b"else")
    if root.startswith("s3"):
        assert (located(root) / "examples" / "one.jpg").read_bytes() == b"aaaa" * 100
        store._place._store.pipe_file(f"{root}/versions/{folder.name}/examples/one.jpg", b"else")  # type: ignore[attr-defined]
        shutil.rmtree(folder)
    with pytest.raises(ProfileError, match=r"one\.jpg: damaged: its digest is"):
        located(root)


@pytest.mark.slow
def test_what_keeps_a_remote_version_from_being_copied_is_named(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"{s3}/{tmp_path.name}"
    with pytest.raises(ProfileError, match=f"{root}: there are no versions; `layerwatch profile add`"):
        located(root)
    store = ProfileStore(root)
    store.add(made(tmp_path, "aaaa"))
    store.promote("1")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ProfileError, match="Not a directory; set XDG_CACHE_HOME to a folder that can be written"):
        located(root)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(ProfileError, match="set XDG_CACHE_HOME, this user has no home"):
        located(root)


def test_a_change_that_is_missing_or_of_a_later_program_is_refused(tmp_path: Path) -> None:
    store = ProfileStore(str(tmp_path / "store"))
    for text in ("aaaa", "bbbb"):
        store.add(made(tmp_path, text))
    changes = tmp_path / "store" / "changes"
    (changes / "000002.json").write_text(json.dumps({"kind": "melt", "version": 1, "at": "", "by": ""}))
    with pytest.raises(ProfileError, match="store: change 2 is not one that this program knows"):
        ProfileStore(store.root).journal()
    os.rename(changes / "000002.json", changes / "000003.json")
    with pytest.raises(ProfileError, match="store: change 2 is missing"):
        ProfileStore(store.root).journal()


def test_a_store_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="nosuch://profiles: "):
        ProfileStore("nosuch://profiles")
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfileError, match="No such file or directory; make a profile with"):
        Profile.load(tmp_path / "none")
    with pytest.raises(ProfileError, match=r"file/changes: |Not a directory|versions"):
        ProfileStore(str(tmp_path / "file")).add(made(tmp_path, "aaaa"))


# ------------------------------------------------------------------------------------------------ real profiles


@pytest.fixture(scope="module")
def brighter(profile_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile of the run, calibrated on brighter images."""
    profile = Profile.load(profile_folder, "cpu")
    images = ((name, np.clip(image + 40.0, 0, 255).astype(np.uint8)) for name, image in pictures(9, 150))
    detectors.recalibrate(profile, images)
    folder = tmp_path_factory.mktemp("brighter")
    profile.save(folder)
    return folder


@pytest.mark.slow
def test_a_difference_shows_what_became_normal(profile_folder: Path, brighter: Path) -> None:
    before, after = (Profile.load(folder, "cpu") for folder in (profile_folder, brighter))
    found = {m.signal: m for m in moved(before, after)}
    assert found["luma_p50"].beyond is not None
    assert found["luma_p50"].beyond > 0.3
    assert found["width"].beyond is not None
    assert found["ood"].beyond is not None  # the same detector: scores can be compared
    assert {fact.name for fact in facts(before, after)} >= {"images", "calibrated_at", "calibrated_from"}
    assert after.manifest["calibrated_from"] == before.fingerprint
    same = moved(before, before)
    assert all(m.beyond is None or 0.03 < m.beyond < 0.07 for m in same)
    assert {m.signal for m in same if m.beyond is None} == {"seen"}


@pytest.mark.slow
def test_the_command_line_adds_promotes_and_rolls_back(
    profile_folder: Path, brighter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    for words in (
        ["add", str(profile_folder), store],
        ["add", str(brighter), store, "--reason", "new lamps"],
        ["promote", store, "1"],
        ["promote", store, "2", "--reason", "after a day beside"],
    ):
        assert main(["profile", *words]) == 0
    assert "version 2" in capsys.readouterr().out.splitlines()[-1]
    fingerprints = [Profile.load(f"{store}@{number}", "cpu").fingerprint for number in (1, 2)]
    assert Profile.load(store, "cpu").fingerprint == fingerprints[1]
    assert main(["profile", "roll-back", store]) == 0
    assert Profile.load(store, "cpu").fingerprint == fingerprints[0]
    capsys.readouterr()
    assert main(["profile", "list", store]) == 0
    listed = capsys.readouterr().out
    assert "new lamps" not in listed.splitlines()[0]
    assert fingerprints[1] in listed
    assert main(["profile", "list", store, "--json"]) == 0
    versions = json.loads(capsys.readouterr().out)["versions"]
    assert [version["state"] for version in versions] == ["active", "candidate"]
    assert versions[1]["lineage"]["calibrated_from"] == fingerprints[0]
    assert versions[1]["changes"][0]["reason"] == "new lamps"
    assert main(["profile", "diff", f"{store}@1", f"{store}@2"]) == 0
    assert "luma_p50" in capsys.readouterr().out
    assert main(["profile", "show", f"{store}@2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == fingerprints[1]
    assert main(["profile", "promote", store, "7"]) == 1
    assert "no version '7'" in capsys.readouterr().err
