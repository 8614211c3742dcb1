"""RECORD: read strictly, and never led out of the root."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wheels.canonical import NotAWheel
from wheels.record import Row, difference, located, parse_record

SITE = PurePosixPath("usr/lib/python3.12/dist-packages")


def spec(data: bytes, algorithm: str = "sha256") -> str:
    digest = hashlib.new(algorithm, data).digest()
    return f"{algorithm}={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def test_rows_have_path_hash_and_size() -> None:
    text = f'"a,b.py",{spec(b"x")},1\r\npkg/__pycache__/a.pyc,,\nx.dist-info/RECORD,,\n'
    assert parse_record(text.encode()) == (
        Row("a,b.py", "sha256", hashlib.sha256(b"x").digest(), 1),
        Row("pkg/__pycache__/a.pyc"),
        Row("x.dist-info/RECORD"),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"a.py,sha256=x\n", "has not path, hash and size"),
        (b",,\n", "has not path, hash and size"),
        (b"a.py,md5=AAAA,1\n", "by 'md5', which proves nothing"),
        (b"a.py,sha256=A,1\n", "a hash of a.py that is none"),
        (b"a.py,sha256=\xc3\xa4,1\n", "a hash of a.py that is none"),
        (b"a.py,,-1\n", "a size of '-1'"),
        (b"a.py,,\na.py,,\n", "names a.py twice"),
        (b"\xff,,\n", "cannot be read"),
        (b'"a.py,,\n', "cannot be read"),
    ],
)
def test_a_line_that_is_no_row_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(NotAWheel, match=says):
        parse_record(text)


@given(st.binary(max_size=200))
def test_whatever_a_record_holds_it_is_read_or_refused(data: bytes) -> None:
    try:
        rows = parse_record(data)
    except NotAWheel:
        return
    assert len({row.path for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("torch/__init__.py", "usr/lib/python3.12/dist-packages/torch/__init__.py"),
        ("../../../bin/torchrun", "usr/bin/torchrun"),
        ("../../../../etc/x", "etc/x"),
        ("./a//b", "usr/lib/python3.12/dist-packages/a/b"),
        ("/usr/share/x", "usr/share/x"),
    ],
)
def test_a_file_lies_where_the_record_says_seen_from_the_site_folder(path: str, where: str) -> None:
    assert located(SITE, path) == PurePosixPath(where)


@pytest.mark.parametrize("path", ["../../../../../x", "/../x", "a\\b", "a\0b"])
def test_a_path_that_leads_out_is_refused(path: str) -> None:
    with pytest.raises(NotAWheel, match="its RECORD names"):
        located(SITE, path)


@given(st.text(alphabet="./ab\\", max_size=30))
def test_no_path_leads_out_of_the_root(path: str) -> None:
    try:
        found = located(SITE, path)
    except NotAWheel:
        return
    assert not found.is_absolute()
    assert ".." not in found.parts


def test_a_difference_is_said_in_words() -> None:
    (row,) = parse_record(f"a.py,{spec(b'good')},4\n".encode())
    assert difference(row, io.BytesIO(b"good")) == ""
    assert difference(row, io.BytesIO(b"evil")) == "a.py is not the file that its RECORD names (sha256)"
    assert difference(row, io.BytesIO(b"longer")) == "a.py has 6 bytes, its RECORD says 4"
    assert difference(Row("a.pyc"), io.BytesIO(b"anything")) == ""


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_every_strong_hash_counts(algorithm: str) -> None:
    (row,) = parse_record(f"a.py,{spec(b'good', algorithm)},\n".encode())
    assert difference(row, io.BytesIO(b"good")) == ""
    assert difference(row, io.BytesIO(b"evil")) != ""
