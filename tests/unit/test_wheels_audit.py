"""A release that came from elsewhere: lists of hashes that are none, and sets that do not belong together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SignatureRefused
from tests.unit.small_wheels import small_place
from wheels.publishing.audit import audit
from wheels.publishing.release import assemble, draw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = small_place(tmp_path / "wheels")
    release = draw(place.manifest, place.folder)
    assemble(release, tmp_path / "releases" / release.name, print)
    return tmp_path / "releases" / release.name


def listed_again(folder: Path) -> None:
    """Write the list of hashes anew over what lies there now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_a_whole_release_is_whole(folder: Path) -> None:
    assert audit(folder) == ""


@pytest.mark.parametrize(
    "line",
    [
        *("nonsense", f"{'0' * 63}  short", f"{'0' * 64} one-blank", f"{'0' * 64}  /etc/passwd", f"{'0' * 64}  "),
        *(f"{'0' * 64}  ../outside", f"{'0' * 64}  a/../../outside", f"{'A' * 64}  upper", f"{'0' * 64}  stack.lock"),
    ],
)
def test_a_list_with_a_line_that_is_none_is_refused(folder: Path, line: str) -> None:
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(SignatureRefused, match="has a line that is none"):
        audit(folder)


@given(st.binary(max_size=200))
def test_whatever_a_list_holds_it_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("release")
    (folder / "SHA256SUMS").write_bytes(data)
    with pytest.raises(SignatureRefused, match="is not a whole release"):
        audit(folder)


@pytest.mark.parametrize("name", ["SHA256SUMS", "manifest.json", "stack.lock", "spark_needed-2.0-py3-none-any.whl"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(SignatureRefused, match=rf"its {name} cannot be read|{name} is missing"):
        audit(folder)


def test_a_link_in_the_place_of_a_file_is_no_file_of_the_list(folder: Path) -> None:
    (folder / "more").symlink_to("/etc")
    with pytest.raises(SignatureRefused, match="more is not in its SHA256SUMS"):
        audit(folder)


def test_a_wheel_that_the_manifest_does_not_mean_is_refused_though_the_list_has_it(folder: Path) -> None:
    path = folder / "spark_needed-2.0-py3-none-any.whl"
    path.unlink()
    path.write_bytes(b"another")
    listed_again(folder)
    with pytest.raises(SignatureRefused, match=r"spark_needed.* is not the one that its manifest\.json names"):
        audit(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]"])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    listed_again(folder)
    with pytest.raises(SignatureRefused, match=r"its manifest\.json cannot be read"):
        audit(folder)


def test_another_lock_is_refused(folder: Path) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**data, "lock_sha256": "0" * 64}))
    listed_again(folder)
    with pytest.raises(SignatureRefused, match=r"its stack\.lock is not the one"):
        audit(folder)


@pytest.mark.processes
def test_an_unsigned_release_is_refused_where_signers_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "signers").write_text("")
    with pytest.raises(SignatureRefused, match="SHA256SUMS is not signed"):
        audit(folder, tmp_path / "signers")
