"""What publish does and refuses before anything is sent; destinations as they are written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from core.command import Options
from core.errors import BuildFailed, PublishRefused, UsageError
from core.plan import Report
from tests.unit.samples import cpu
from tests.unit.small_wheels import Place, listed, small_place
from wheels.publishing import publish as module
from wheels.publishing import release as releases
from wheels.publishing.artifacts import Artifacts
from wheels.publishing.github import GitHub
from wheels.publishing.publish import Wish, destination, publish, refuse_unfit
from wheels.publishing.pypi import PackageIndex
from wheels.publishing.release import Release
from wheels.publishing.shared import SharedFolder


@dataclass
class Recorder:
    """A destination that remembers what it was sent, or refuses everything."""

    address: str
    log: list[str]
    refuses: bool = False
    sent: list[str] = field(default_factory=list)

    def pending(self, release: Release) -> list[str]:
        self.log.append(f"{self.address} is asked")
        if self.refuses:
            raise PublishRefused("another file", next_move="none")
        return [part.name for part in release.files if part.name not in self.sent]

    def send(self, release: Release, folder: Path, report: Report) -> None:
        self.log.append(f"{self.address} is sent")
        report(f"sending to {self.address}")
        self.sent += [part.name for part in release.files if (folder / part.name).is_file()]


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> Place:
    """Put small wheels where those of the stack `cpu` lie, and let `folder:` and others be recorders."""
    monkeypatch.setattr(module, "DIST", tmp_path / "dist")
    monkeypatch.setattr(releases, "RELEASES", tmp_path / "dist" / "releases")
    kinds = {kind: lambda text, kind=kind: Recorder(f"{kind}:{text}", log, refuses=text == "refuses") for kind in "ab"}
    monkeypatch.setattr(module, "KINDS", kinds)
    return small_place(tmp_path / "dist" / "cpu" / "x86_64-cp311")


def here(place: Place) -> Path:
    return place.folder.parents[1] / "releases" / place.manifest.release


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("folder:/srv/index", SharedFolder(Path("/srv/index"))),
        ("oci:ghcr.io/someone/wheels", Artifacts("ghcr.io/someone/wheels")),
        ("oci:localhost:5000/wheels", Artifacts("localhost:5000/wheels")),
        ("github:someone/wheels", GitHub("someone/wheels")),
        ("index:https://host/", PackageIndex("https://host/", "https://host/simple/")),
        ("index:https://host/up,https://host/pages", PackageIndex("https://host/up", "https://host/pages/")),
        (
            "index:https://upload.pypi.org/legacy/",
            PackageIndex("https://upload.pypi.org/legacy/", "https://pypi.org/simple/"),
        ),
    ],
)
def test_a_destination_says_of_what_kind_it_is(text: str, expected: object) -> None:
    assert destination(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "folder:", "/srv/index", "https://host/", "pypi:https://host/", "indx:https://host/"),
        *("index:ftp://host/", "index:https://user:secret@host/", "index:https://host/?token=secret", "index:nowhere"),
        *("oci:ghcr.io/someone/wheels:tag", "oci:ghcr.io/someone/wheels@sha256:aa", "oci:wheels", "oci:host/UPPER"),
        *("github:someone", "github:someone/wheels/more", "github:some one/wheels", "github:-x/wheels"),
    ],
)
def test_what_is_no_destination_is_refused_without_its_secrets(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        destination(text)
    assert "secret" not in str(caught.value)


def test_a_section_of_pypirc_is_a_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".pypirc").write_text(
        "[distutils]\nindex-servers = ours\n[ours]\nrepository = https://host/upload\nusername = u\npassword = p\n"
    )
    found = destination("index:ours,https://host/simple")
    assert found == PackageIndex("https://host/upload", "https://host/simple/", "ours")
    assert found.address == "index:ours"


def test_a_release_goes_to_its_folder_and_then_everywhere(
    place: Place, log: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    publish(Wish(cpu(), to=("a:x", "b:y")), Options())
    assert (here(place) / "SHA256SUMS").is_file()
    looked = ["a:x is asked", "b:y is asked"]
    assert log == [*looked, *looked, "a:x is sent", "b:y is sent", *looked]
    assert "sending to a:x" in capsys.readouterr().err


def test_without_destination_the_folder_is_all_and_the_second_time_nothing_is_done(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(Wish(cpu()), Options())
    before = {path: path.stat().st_mtime_ns for path in here(place).rglob("*")}
    capsys.readouterr()
    publish(Wish(cpu()), Options())
    assert capsys.readouterr().out == "nothing to do\n"
    assert {path: path.stat().st_mtime_ns for path in here(place).rglob("*")} == before


def test_a_plan_says_what_would_be_sent_and_changes_nothing(
    place: Place, log: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    publish(Wish(cpu(), to=("a:x",)), Options(dry_run=True, as_json=True))
    steps = json.loads(capsys.readouterr().out)["stages"][0]["steps"]
    assert len(steps) == 16
    assert log == ["a:x is asked"]
    assert not here(place).parent.exists()


@pytest.mark.usefixtures("place")
def test_what_one_destination_refuses_goes_to_none(log: list[str]) -> None:
    with pytest.raises(PublishRefused):
        publish(Wish(cpu(), to=("a:x", "b:refuses")), Options())
    assert "a:x is sent" not in log


def test_signatures_are_made_once(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    signed: list[Path] = []

    def sign(path: Path, key: Path) -> Path:
        assert key == tmp_path / "key"
        signed.append(path)
        target = path.with_name(f"{path.name}.sig")
        target.write_text("signature")
        return target

    monkeypatch.setattr(module, "sign", sign)
    for _ in range(2):
        publish(Wish(cpu(), to=("a:x",), key=tmp_path / "key"), Options())
    assert signed == [here(place) / "SHA256SUMS", here(place) / "manifest.json"]
    publish(Wish(cpu()), Options())
    assert (here(place) / "manifest.json.sig").read_text() == "signature"


class TestWhatMayNotBeGiven:
    def image(self, tmp_path: Path, **changes: object) -> Place:
        return small_place(tmp_path / "image", origin="image", redistributable=False, **changes)

    def test_it_is_refused_by_name_with_the_way_out(self, tmp_path: Path) -> None:
        manifest = self.image(tmp_path).manifest
        with pytest.raises(PublishRefused, match=r"1 wheels of .* may not be given to others") as caught:
            refuse_unfit(manifest, [GitHub("a/b")], private=False)
        assert "spark_alpha-1.0+cu130-py3-none-any.whl" in caught.value.evidence
        assert "--private" in caught.value.next_move

    def test_a_folder_and_a_private_place_may_have_it(self, tmp_path: Path) -> None:
        manifest = self.image(tmp_path).manifest
        refuse_unfit(manifest, [SharedFolder(tmp_path)], private=False)
        refuse_unfit(manifest, [GitHub("a/b"), Artifacts("h:1/x")], private=True)

    def test_what_the_stack_gives_away_goes_everywhere(self, tmp_path: Path) -> None:
        manifest = small_place(tmp_path / "image", origin="image", redistributable=True).manifest
        refuse_unfit(manifest, [GitHub("a/b")], private=False)

    def test_development_builds_go_to_folders_only(self, tmp_path: Path) -> None:
        manifest = small_place(tmp_path / "dev", development=True).manifest
        refuse_unfit(manifest, [SharedFolder(tmp_path)], private=False)
        with pytest.raises(PublishRefused, match="-dev holds development builds and is for folders only"):
            refuse_unfit(manifest, [PackageIndex("https://h/", "https://h/simple/")], private=True)

    def test_nothing_is_made_for_a_release_that_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "DIST", tmp_path / "dist")
        monkeypatch.setattr(releases, "RELEASES", tmp_path / "dist" / "releases")
        small_place(tmp_path / "dist" / "cpu" / "t", origin="image", redistributable=False)
        with pytest.raises(PublishRefused):
            publish(Wish(cpu(), to=("github:a/b",)), Options())
        assert not (tmp_path / "dist" / "releases").exists()


class TestWhichWheels:
    def test_of_several_targets_one_is_to_be_named(self, place: Place) -> None:
        other = place.folder.with_name("aarch64-cp312")
        other.mkdir()
        listed(other)
        with pytest.raises(UsageError, match="are there for aarch64-cp312, x86_64-cp311"):
            publish(Wish(cpu()), Options())
        publish(Wish(cpu(), target="x86_64-cp311"), Options())

    @pytest.mark.usefixtures("place")
    def test_without_wheels_the_command_that_makes_them_is_named(self) -> None:
        with pytest.raises(BuildFailed, match="there are no wheels of cpu for aarch64-cp312") as caught:
            publish(Wish(cpu(), target="aarch64-cp312"), Options())
        assert caught.value.next_move == "run invoke build-wheels --stack cpu"

    def test_what_is_no_manifest_is_said(self, place: Place) -> None:
        (place.folder / "manifest.json").write_text("{}")
        with pytest.raises(BuildFailed, match="is not a manifest"):
            publish(Wish(cpu()), Options())
