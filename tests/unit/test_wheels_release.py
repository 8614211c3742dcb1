"""The release folder: whole or not there, the same bytes twice, never changed; and a folder of many releases."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from core.errors import BuildFailed, HostNotReady, PublishRefused
from tests.unit.small_wheels import Place, listed, small_place
from tests.unit.smalldisk import mounted
from wheels.publishing.release import Part, Release, assemble, draw, names_in, pending
from wheels.publishing.shared import SharedFolder

ALPHA = "spark_alpha-1.0+cu130-py3-none-any.whl"
NEEDED = "spark_needed-2.0-py3-none-any.whl"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return small_place(tmp_path / "wheels")


@pytest.fixture
def release(place: Place) -> Release:
    return draw(place.manifest, place.folder)


def made(release: Release, parent: Path) -> Path:
    folder = parent / release.name
    assemble(release, folder, print)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names_in(folder)}


class TestDrawing:
    def test_it_holds_wheels_their_metadata_and_what_they_are_made_of(self, release: Release) -> None:
        assert [part.name for part in release.parts] == [
            "SHA256SUMS",
            "manifest.json",
            "provenance/spark-alpha.intoto.json",
            "sbom.cdx.json",
            "simple/index.html",
            "simple/index.json",
            "simple/spark-alpha/index.html",
            "simple/spark-alpha/index.json",
            "simple/spark-needed/index.html",
            "simple/spark-needed/index.json",
            ALPHA,
            f"{ALPHA}.metadata",
            NEEDED,
            f"{NEEDED}.metadata",
            "stack.lock",
        ]

    def test_hashes_stand_over_all_other_files_as_sha256sum_reads_them(self, release: Release) -> None:
        lines = release.content("SHA256SUMS").decode().splitlines()
        assert lines == [f"{part.sha256}  {part.name}" for part in release.parts if part.name != "SHA256SUMS"]

    def test_a_part_has_the_hash_and_size_of_its_content(self, release: Release) -> None:
        for part in release.parts:
            data = part.data or (part.source or Path()).read_bytes()
            assert (part.sha256, part.size) == (hashlib.sha256(data).hexdigest(), len(data))

    def test_a_wheel_that_is_missing_or_cut_off_is_said_before_anything_is_made(self, place: Place) -> None:
        (place.folder / NEEDED).write_bytes(b"half")
        with pytest.raises(BuildFailed, match=f"{NEEDED} is missing or cut off"):
            draw(place.manifest, place.folder)

    def test_a_lock_of_another_set_is_refused(self, place: Place) -> None:
        (place.folder / "stack.lock").write_text("spark-needed==2.0\n")
        with pytest.raises(BuildFailed, match="is not the one that the manifest names"):
            draw(place.manifest, place.folder)

    @pytest.mark.parametrize("name", ["../outside.whl", "/etc/passwd", ".hidden.whl"])
    def test_a_manifest_that_names_files_elsewhere_is_refused(self, place: Place, name: str) -> None:
        wheel = place.manifest.wheels[0].model_copy(update={"filename": name})
        with pytest.raises(BuildFailed, match="is no plain file name"):
            draw(place.manifest.model_copy(update={"wheels": (wheel,)}), place.folder)


class TestTheFolder:
    def test_it_is_made_whole_and_then_there_is_nothing_to_do(self, release: Release, tmp_path: Path) -> None:
        folder = tmp_path / "releases" / release.name
        assert pending(release, folder) == [f"{folder}: 15 files, {release.size / 1000:.0f} kB"]
        assemble(release, folder, print)
        assert pending(release, folder) == []
        assert [path.name for path in sorted(folder.parent.iterdir())] == [".lock", release.name]

    def test_two_of_them_have_the_same_bytes(self, place: Place, release: Release, tmp_path: Path) -> None:
        again = draw(place.manifest, place.folder)
        assert contents(made(release, tmp_path / "one")) == contents(made(again, tmp_path / "two"))

    def test_wheels_take_no_second_place_on_the_disk(self, place: Place, release: Release, tmp_path: Path) -> None:
        assert (made(release, tmp_path / "releases") / ALPHA).samefile(place.folder / ALPHA)

    def test_on_another_file_system_they_are_copied(
        self, place: Place, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(*_: object) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refused)
        folder = made(release, tmp_path / "releases")
        assert not (folder / ALPHA).samefile(place.folder / ALPHA)
        assert (folder / ALPHA).read_bytes() == (place.folder / ALPHA).read_bytes()

    def test_there_a_release_beside_it_lends_the_wheels_that_both_have(
        self, place: Place, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.link

        def only_beside(source: Path, target: Path) -> None:
            if source.parent == place.folder:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            real(source, target)

        monkeypatch.setattr(os, "link", only_beside)
        first = made(release, tmp_path / "releases")
        fewer = listed(place.folder, place.manifest.wheels[1])
        second = made(draw(fewer.manifest, place.folder), tmp_path / "releases")
        assert (first / NEEDED).samefile(second / NEEDED)

    def test_a_wheel_that_is_not_the_manifests_is_refused_and_leaves_nothing(
        self, place: Place, release: Release, tmp_path: Path
    ) -> None:
        data = bytearray((place.folder / NEEDED).read_bytes())
        data[100] ^= 1
        (place.folder / NEEDED).write_bytes(data)
        with pytest.raises(BuildFailed, match="is not the wheel that its manifest names"):
            made(release, tmp_path / "releases")
        assert [path.name for path in (tmp_path / "releases").iterdir()] == [".lock"]

    def test_what_a_killed_command_left_is_in_nobodys_way(self, release: Release, tmp_path: Path) -> None:
        left = tmp_path / "releases" / f".{release.name}.new"
        left.mkdir(parents=True)
        (left / "half.whl").write_bytes(b"half")
        assert pending(release, made(release, tmp_path / "releases")) == []
        assert not left.exists()

    def test_any_changed_byte_is_found(self, release: Release, tmp_path: Path) -> None:
        folder = made(release, tmp_path / "releases")
        for part in release.parts:
            path = folder / part.name
            whole = path.read_bytes()
            path.unlink()
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            with pytest.raises(
                PublishRefused, match=f"another {re.escape(part.name)}: its sha256 is {found}"
            ) as caught:
                pending(release, folder)
            assert part.sha256 in str(caught.value)
            path.write_bytes(whole)
        assert pending(release, folder) == []

    def test_a_missing_file_and_one_too_many_are_found(self, release: Release, tmp_path: Path) -> None:
        folder = made(release, tmp_path / "releases")
        (folder / "extra").touch()
        with pytest.raises(PublishRefused, match="holds extra, which is not in this release"):
            pending(release, folder)
        (folder / "extra").unlink()
        (folder / "stack.lock").unlink()
        with pytest.raises(PublishRefused, match=r"lacks stack\.lock"):
            pending(release, folder)

    def test_signatures_are_added_to_a_release_that_is_there(self, release: Release, tmp_path: Path) -> None:
        folder = made(release, tmp_path / "releases")
        signature = Part("manifest.json.sig", hashlib.sha256(b"s").hexdigest(), 1, data=b"s")
        signed = Release(release.manifest, release.parts, (signature,))
        assert pending(signed, folder) == [str(folder / "manifest.json.sig")]
        assemble(signed, folder, print)
        assert pending(signed, folder) == []
        assert release.signed_in(folder).signatures == (signature,)
        assert pending(release, folder) == [], "a release without key leaves signatures alone"


class TestAFolderOfManyReleases:
    def published(self, place: Place, tmp_path: Path, shared: SharedFolder) -> Release:
        release = draw(place.manifest, place.folder)
        shared.send(release, made(release, tmp_path / "releases"), print)
        return release

    def test_each_lies_in_its_folder_and_the_pages_name_all(self, place: Place, tmp_path: Path) -> None:
        shared = SharedFolder(tmp_path / "index")
        first = self.published(place, tmp_path, shared)
        second = self.published(small_place(tmp_path / "other"), tmp_path, shared)
        assert first.name == second.name
        fewer = listed(place.folder, place.manifest.wheels[1])
        third = self.published(fewer, tmp_path, shared)
        (needed,) = json.loads((shared.path / "simple/spark-needed/index.json").read_bytes())["files"]
        assert needed["url"] == f"../../{min(first.name, third.name)}/{NEEDED}"
        (alpha,) = json.loads((shared.path / "simple/spark-alpha/index.json").read_bytes())["files"]
        assert alpha["url"] == f"../../{first.name}/{ALPHA.replace('+', '%2B')}"
        for one in (first, third):
            assert shared.pending(one) == []

    def test_the_same_again_is_nothing_to_do(self, place: Place, tmp_path: Path) -> None:
        shared = SharedFolder(tmp_path / "index")
        release = draw(place.manifest, place.folder)
        assert [line.partition(":")[0] for line in shared.pending(release)] == [
            str(shared.path / release.name),
            "6 pages of the index",
        ]
        self.published(place, tmp_path, shared)
        assert shared.pending(release) == []

    def test_another_file_under_the_same_name_is_refused_naming_both_hashes(self, place: Place, tmp_path: Path) -> None:
        shared = SharedFolder(tmp_path / "index")
        first = self.published(place, tmp_path, shared)
        before = contents(shared.path)
        changed = small_place(tmp_path / "changed", "VALUE = 2\n")
        second = draw(changed.manifest, changed.folder)
        with pytest.raises(PublishRefused, match=f"there is another {re.escape(ALPHA)}") as caught:
            shared.send(second, changed.folder, print)
        for one in (first, second):
            assert one.manifest.wheels[0].sha256 in str(caught.value)
        assert contents(shared.path) == before

    def test_a_page_that_was_changed_is_written_again(self, place: Place, tmp_path: Path) -> None:
        shared = SharedFolder(tmp_path / "index")
        release = self.published(place, tmp_path, shared)
        (shared.path / "simple/index.html").write_text("nothing")
        assert shared.pending(release) == ["1 pages of the index"]
        shared.send(release, tmp_path / "releases" / release.name, print)
        assert shared.pending(release) == []

    def test_a_folder_among_them_without_manifest_is_named(self, place: Place, tmp_path: Path) -> None:
        shared = SharedFolder(tmp_path / "index")
        (shared.path / "strange").mkdir(parents=True)
        (shared.path / "strange" / "SHA256SUMS").touch()
        with pytest.raises(PublishRefused, match="strange lies among the releases and has no manifest"):
            shared.pending(draw(place.manifest, place.folder))


@pytest.mark.processes
def test_a_disk_of_its_own_gets_copies(place: Place, release: Release, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk") as disk:
        folder = made(release, disk / "releases")
        assert pending(release, folder) == []
        assert (folder / ALPHA).stat().st_dev != (place.folder / ALPHA).stat().st_dev


@pytest.mark.processes
def test_a_full_disk_is_said_and_leaves_nothing(release: Release, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", size="16k") as disk:
        with pytest.raises(HostNotReady, match="is full"):
            made(release, disk / "releases")
        assert [path.name for path in (disk / "releases").iterdir()] == [".lock"]
