"""Wheels out of images: asked for in words, planned from documents alone, taken once, and what is there stays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from core.command import Options
from core.config import Component, Stack
from core.errors import ImageRefused, UsageError
from core.plan import as_text, megabytes
from tests.unit import installations
from tests.unit.installations import FILES, METADATA, WHEEL, install
from wheels import extract as module
from wheels.extract import Wish, extract, plan_extract, run_extract, take_components, wanted_of
from wheels.extracted import RECORDS, recorded, taken_components
from wheels.images.documents import Descriptor, Image, Layer
from wheels.images.image import Found, Wanted
from wheels.sbom import sbom_in
from wheels.target import Target

REFERENCE = "nvcr.io/nvidia/vllm:25.11-py3"
PINNED = f"nvcr.io/nvidia/vllm@sha256:{'1' * 64}"
PLATFORM = "linux/arm64"


def silent(_: str) -> None:
    """Report nothing."""


class Registry:
    """Stands for all images: distributions by name, with their versions; counts how often layers are gone through."""

    def __init__(self) -> None:
        self.holds = {"x": "1", "other.dist": "2.0"}
        self.digest = "sha256:" + "2" * 64
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.reference = ""
        self.content = FILES["x/__init__.py"]

    @contextmanager
    def open_image(self, reference: str, _: Any, *, work: Path) -> Iterator[Registry]:
        assert work.name == "work"
        self.reference = reference
        yield self

    def image(self, platform: str) -> Image:
        layers = tuple(
            Layer(Descriptor("tar", f"sha256:{number}", number * 10**6), f"sha256:{number}") for number in (1, 2)
        )
        return Image(self.reference, self.digest, platform, layers, PINNED)

    def extract_files(
        self, blobs: Registry, image: Image, wanted: Sequence[Wanted], folder: Path, _: Any
    ) -> tuple[Found, ...]:
        assert image.digest == self.digest
        self.asked.append((blobs.reference, tuple(want.name for want in wanted)))
        assert list(folder.iterdir()) == []
        return tuple(self._put(want.name, folder) for want in wanted if want.name in self._names())

    def _names(self) -> dict[str, str]:
        return {name.replace(".", "-"): name for name in self.holds}

    def _put(self, wanted: str, folder: Path) -> Found:
        name = self._names()[wanted]
        version = self.holds[name]
        info = f"{name}-{version}.dist-info"
        metadata = METADATA.replace(b"Name: x", f"Name: {name}".encode())
        metadata = metadata.replace(b"Version: 1\n", f"Version: {version}\n".encode())
        files = {f"{name}.py": self.content, f"{info}/METADATA": metadata, f"{info}/WHEEL": WHEEL}
        site = installations.SITE
        install(folder, files, installations.Found(name=name, version=version, info=info))
        return Found(name=name, version=version, kind="installed", site=site, info=info, layers=("sha256:1",))


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry()
    monkeypatch.setattr(module, "open_image", made.open_image)
    monkeypatch.setattr(module, "extract_files", made.extract_files)
    return made


def wish(tmp_path: Path, *dists: str, reference: str = REFERENCE) -> Wish:
    return Wish(reference, wanted_of(dists), tmp_path / "out", work=tmp_path / "work")


def listing(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").glob("*.whl"))


@pytest.mark.parametrize(
    ("dists", "wanted"),
    [
        (["flash-attn,flashinfer-python"], [("flash-attn", None), ("flashinfer-python", None)]),
        (["Flash_Attn", "torch==2.9.0+CU130"], [("flash-attn", None), ("torch", "2.9.0+cu130")]),
        (["a == 1.0, b"], [("a", "1.0"), ("b", None)]),
    ],
)
def test_distributions_are_named_with_commas_or_flags(dists: list[str], wanted: list[tuple[str, str | None]]):
    assert [(one.name, one.version) for one in wanted_of(dists)] == wanted


def test_a_distribution_that_an_image_has_in_several_folders_is_named_with_one():
    folder = PurePosixPath("opt/venv/lib/python3.12/site-packages")
    assert wanted_of([f"a@/{folder},b==1@/{folder}"]) == (Wanted("a", None, folder), Wanted("b", "1", folder))


def test_a_wheel_from_another_folder_is_taken_anew(images: Registry, tmp_path: Path):
    extract(wish(tmp_path, f"x@/{installations.SITE}"), silent)
    extract(wish(tmp_path, "x"), silent)
    assert len(images.asked) == 1
    extract(wish(tmp_path, "x@/opt/other"), silent)
    assert len(images.asked) == 2


@pytest.mark.parametrize(
    "dists", [["a,a"], ["a", "A==1"], [""], [], ["a,,b"], ["a>=1"], ["a[x]"], ["a==x"], ["../a"], ["a@b"], ["a@/"]]
)
def test_what_names_no_distribution_is_refused(dists: list[str]):
    with pytest.raises(UsageError):
        wanted_of(dists)


def test_all_are_taken_in_one_pass_and_recorded(images: Registry, tmp_path: Path):
    taken = extract(wish(tmp_path, "other-dist,x==1.0"), silent)
    assert images.asked == [(REFERENCE, ("other-dist", "x"))]
    assert listing(tmp_path) == ["other_dist-2.0-py3-none-any.whl", "x-1-py3-none-any.whl"]
    assert taken == recorded(tmp_path / "out")
    (one,) = (one for one in taken if one.name == "x")
    assert (one.image, one.manifest, one.reference) == (PINNED, images.digest, REFERENCE)
    assert (one.platform, one.layers, one.tags) == (PLATFORM, ("sha256:1",), ("py3-none-any",))


def test_what_is_there_is_not_taken_again(images: Registry, tmp_path: Path):
    first = extract(wish(tmp_path, "x"), silent)
    assert extract(wish(tmp_path, "x==1"), silent) == first
    assert len(images.asked) == 1
    extract(wish(tmp_path, "x,other-dist"), silent)
    assert images.asked[1:] == [(REFERENCE, ("other-dist",))]


def test_the_same_image_under_another_name_is_noted_and_nothing_is_taken(images: Registry, tmp_path: Path):
    extract(wish(tmp_path, "x"), silent)
    (known,) = extract(wish(tmp_path, "x", reference=PINNED), silent)
    assert known.reference == PINNED
    assert recorded(tmp_path / "out") == (known,)
    assert len(images.asked) == 1


def test_a_wheel_that_was_changed_or_comes_from_another_image_is_taken_again(images: Registry, tmp_path: Path):
    extract(wish(tmp_path, "x"), silent)
    path = tmp_path / "out" / "x-1-py3-none-any.whl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"!")
    extract(wish(tmp_path, "x"), silent)
    assert path.read_bytes() == whole
    images.digest, images.content = "sha256:" + "3" * 64, b"another"
    extract(wish(tmp_path, "x"), silent)
    assert path.read_bytes() != whole
    path.unlink()
    extract(wish(tmp_path, "x"), silent)
    assert len(images.asked) == 4


def test_another_version_takes_the_place_of_the_former_wheel(images: Registry, tmp_path: Path):
    extract(wish(tmp_path, "x"), silent)
    images.holds["x"], images.digest = "2", "sha256:" + "3" * 64
    (tmp_path / "out" / "stranger-1-py3-none-any.whl").write_bytes(b"")
    extract(wish(tmp_path, "x"), silent)
    assert listing(tmp_path) == ["stranger-1-py3-none-any.whl", "x-2-py3-none-any.whl"]


@pytest.mark.usefixtures("images")
def test_another_version_than_the_one_that_was_asked_for_is_refused_naming_both(tmp_path: Path):
    with pytest.raises(ImageRefused, match=r"holds x 1, asked for was 1\.1") as refusal:
        extract(wish(tmp_path, "other-dist,x==1.1"), silent)
    assert refusal.value.next_move.startswith("ask for x==1")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("images")
def test_what_the_image_does_not_hold_is_refused(tmp_path: Path):
    with pytest.raises(ImageRefused, match="does not hold torch"):
        extract(wish(tmp_path, "torch"), silent)


@pytest.mark.usefixtures("images")
def test_the_folder_for_its_files_is_removed_whatever_happens(tmp_path: Path):
    left = tmp_path / "work" / "extract" / "image-left" / "root"
    left.mkdir(parents=True)
    with pytest.raises(ImageRefused):
        extract(wish(tmp_path, "torch"), silent)
    extract(wish(tmp_path, "x"), silent)
    assert [path.name for path in (tmp_path / "work" / "extract").iterdir()] == [".lock"]


def test_a_record_that_cannot_be_read_counts_for_nothing(images: Registry, tmp_path: Path):
    extract(wish(tmp_path, "x"), silent)
    (tmp_path / "out" / RECORDS / "x.json").write_text("{}")
    assert recorded(tmp_path / "out") == ()
    extract(wish(tmp_path, "x"), silent)
    assert len(images.asked) == 2


@pytest.mark.usefixtures("images")
def test_a_bill_goes_into_the_wheel(tmp_path: Path):
    (plain,) = extract(wish(tmp_path, "x"), silent)
    (tmp_path / "out" / plain.filename).unlink()
    (billed,) = extract(
        wish(tmp_path, "x"), silent, bill=lambda found, image: {"sboms/a": f"{found.name} {image.pinned}".encode()}
    )
    assert billed.sha256 != plain.sha256


def test_the_plan_names_layers_from_the_top_and_the_digest_to_pin(images: Registry, tmp_path: Path):
    asked = wish(tmp_path, "x==1,other-dist")
    images.reference = REFERENCE
    text = as_text(plan_extract(asked, images.image(PLATFORM)))
    assert f"to have the same image again, name {PINNED}" in text
    assert "2 layers, 3 MB; read from the top until all is found:" in text
    assert text.index("layer 2: 2 MB, sha256:2") < text.index("layer 1: 1 MB, sha256:1")
    assert f"$ invoke wheels.extract --image {PINNED} --dist x==1 --platform {PLATFORM} --into {tmp_path}/out" in text
    extract(asked, silent)
    assert plan_extract(asked, images.image(PLATFORM)).empty


def test_a_dry_run_takes_nothing(images: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_extract(wish(tmp_path, "x"), Options(dry_run=True))
    assert "extract x — not there yet" in capsys.readouterr().out
    assert images.asked == []
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("images")
def test_the_answer_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_extract(wish(tmp_path, "x"), Options())
    told = capsys.readouterr().out
    (one,) = recorded(tmp_path / "out")
    assert f"{one.filename}  {megabytes(one.size)}  sha256:{one.sha256}\nimage: {PINNED}\n" in told
    told_by_wheel = json.loads(sbom_in(tmp_path / "out" / one.filename) or "")
    assert PINNED.rpartition("@")[2] in json.dumps(told_by_wheel), "the image, in its SBOM"
    run_extract(wish(tmp_path, "x"), Options())
    assert "nothing to do\nx-1-py3-none-any.whl" in capsys.readouterr().out
    run_extract(wish(tmp_path, "x"), Options(as_json=True))
    data = json.loads(capsys.readouterr().out)
    assert (data["changed"], data["image"], data["platform"]) == (False, PINNED, PLATFORM)
    assert [wheel["filename"] for wheel in data["wheels"]] == [one.filename]


def stack_of(**components: tuple[str, str]) -> Stack:
    made = {
        name: Component(origin="image", version=version, image=image) for name, (version, image) in components.items()
    }
    made["numpy"] = Component(origin="index", version="2")
    return Stack(name="s", description="", lock=Path("l"), platforms=("aarch64",), python=("3.12",), components=made)


def test_a_stacks_components_are_taken_from_each_image_once(images: Registry, tmp_path: Path):
    images.holds["third"] = "3"
    stack = stack_of(x=("1", PINNED), other_dist=("2", PINNED), third=("3", REFERENCE))
    target = Target(architecture="aarch64", python=(3, 12))
    names = ("x", "other_dist", "third")
    taken = take_components(stack, names, target, tmp_path / "out", silent, work=tmp_path / "work")
    assert images.asked == [(PINNED, ("x", "other-dist")), (REFERENCE, ("third",))]
    assert [one.name for one in taken] == ["other-dist", "x", "third"]
    assert {one.name for one in taken_components(stack, tmp_path / "out")} == {"x", "other-dist", "third"}
    newer = stack_of(x=("1", PINNED.replace("1", "4")), other_dist=("2.1", PINNED))
    assert list(taken_components(newer, tmp_path / "out")) == []
    with pytest.raises(ImageRefused, match=r"holds other-dist 2\.0, asked for was 2\.1"):
        take_components(newer, ("other_dist",), target, tmp_path / "out", silent, work=tmp_path / "work")
