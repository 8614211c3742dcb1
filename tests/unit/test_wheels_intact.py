"""What a recipe promises of files, on wheels made by hand."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BuildFailed
from wheels.intact import require_files

CODE = "print('hello')\n" * 20


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make(tmp_path / "x-1-py3-none-any.whl")


def make(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/__init__.py", CODE)
        archive.writestr("x-1.dist-info/METADATA", "Name: x\n")
    return path


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make(tmp_path_factory.mktemp("wheels") / "x-1-py3-none-any.whl").read_bytes()


def test_a_wheel_with_all_its_files_passes(wheel: Path) -> None:
    require_files(wheel, ("x/__init__.py", "x-1.dist-info/METADATA"))
    require_files(wheel, ())


def test_a_wheel_that_lacks_files_is_refused_with_their_names(wheel: Path) -> None:
    with pytest.raises(BuildFailed) as caught:
        require_files(wheel, ("x/_C.so", "x/__init__.py", "x/_moe.so"))
    assert caught.value.cause == "x-1-py3-none-any.whl lacks x/_C.so, x/_moe.so"
    assert "left out silently" in caught.value.next_move


def test_what_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_text("<html>404</html>")
    with pytest.raises(BuildFailed, match=r"x\.whl is not an intact zip file: File is not a zip file"):
        require_files(tmp_path / "x.whl", ())


def test_a_damaged_member_is_named(wheel: Path) -> None:
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x/data", "0123456789")
    wheel.write_bytes(wheel.read_bytes().replace(b"0123456789", b"0123456780"))
    with pytest.raises(BuildFailed, match="x/data in it is damaged"):
        require_files(wheel, ("x/data",))


def test_a_missing_wheel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"none\.whl is not an intact zip file"):
        require_files(tmp_path / "none.whl", ())


@given(data=st.data())
def test_any_damage_is_refused_or_harmless(
    data: st.DataObject, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    position = data.draw(st.integers(0, len(content) - 1))
    damaged = data.draw(
        st.one_of(
            st.just(content[:position]),
            st.binary(min_size=1, max_size=4).map(
                lambda some: content[:position] + some + content[position + len(some) :]
            ),
        )
    )
    path = tmp_path_factory.getbasetemp() / "damaged.whl"
    path.write_bytes(damaged)
    with contextlib.suppress(BuildFailed):
        require_files(path, ("x/__init__.py",))
        with zipfile.ZipFile(path) as archive:
            assert archive.read("x/__init__.py").decode() == CODE
