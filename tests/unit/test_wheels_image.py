"""Distributions out of images: what upper layers hide stays hidden, what is missing is named, nothing is followed."""

from __future__ import annotations

import os
import random
import stat
import tarfile
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ImageRefused, RegistryRefused, UsageError
from tests.unit.layersamples import (
    DEVICE,
    FOLDER,
    HARD,
    PIPE,
    SITE,
    SYM,
    Entry,
    Memory,
    digest_of,
    distribution,
    entry,
    files,
    hard,
    link,
    memory,
    opaque,
    packed,
    record,
    tar,
    tree,
    whiteout,
)
from wheels.images import image as image_module
from wheels.images import layers
from wheels.images.freshfolder import FreshFolder
from wheels.images.image import Found, Wanted, extract_files

INFO = f"{SITE}/pkg-1.0.dist-info"
WHOLE = distribution()
PKG = Wanted("pkg")


def quiet(_: str) -> None:
    pass


def extract(blobs: Memory, folder: Path, *wanted: Wanted) -> tuple[Found, ...]:
    return extract_files(blobs, blobs.image(), wanted or (PKG,), folder, quiet)


def without(content: dict[str, bytes], *paths: str) -> dict[str, bytes]:
    return {path: body for path, body in content.items() if path not in paths}


def only(content: dict[str, bytes], *paths: str) -> dict[str, bytes]:
    return {path: content[path] for path in paths}


def refused(blobs: Memory, tmp_path: Path, *wanted: Wanted) -> str:
    with pytest.raises(ImageRefused) as caught:
        extract(blobs, tmp_path / "out", *wanted)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


# what is found


@pytest.mark.parametrize("how", ["gzip", "members", "zstd", "bare"])
def test_a_distribution_comes_out_as_it_is_and_nothing_else(how: str, tmp_path: Path) -> None:
    others = {"etc/passwd": b"root", f"{SITE}/other.py": b"x", f"{SITE}/pkg/unlisted.py": b"x"}
    blobs = memory(tar(*files({**others, **WHOLE})), how=how)
    (found,) = extract(blobs, tmp_path / "out")
    assert tree(tmp_path / "out") == WHOLE
    digest = blobs.layers[0].blob.digest
    assert found == Found("pkg", "1.0", "installed", PurePosixPath(SITE), "pkg-1.0.dist-info", (digest,))


def test_layers_below_the_last_one_that_is_needed_are_never_asked_for(tmp_path: Path) -> None:
    top, below = tar(entry("srv/x")), tar(*files(WHOLE))
    blobs = memory(tar(entry("a")), tar(entry("b")), below, top)
    extract(blobs, tmp_path / "out")
    assert [blobs.times(number) for number in (1, 2, 3, 4)] == [0, 0, 2, 1]


def test_a_layer_is_read_twice_at_most_whatever_is_taken_from_it(tmp_path: Path) -> None:
    """Here the top has files of two distributions whose RECORDs are in two layers below."""
    other = distribution("other", "2.0")
    top = {f"{SITE}/pkg/code.py": WHOLE[f"{SITE}/pkg/code.py"], f"{SITE}/other/code.py": other[f"{SITE}/other/code.py"]}
    blobs = memory(tar(*files(WHOLE)), tar(*files(other)), tar(entry("x")), tar(*files(top)))
    found = extract(blobs, tmp_path / "out", Wanted("other"), PKG)
    assert tree(tmp_path / "out") == {**WHOLE, **other}
    assert [blobs.times(number) for number in (1, 2, 3, 4)] == [2, 2, 1, 2]
    digests = [layer.blob.digest for layer in blobs.layers]
    assert [one.layers for one in found] == [(digests[1], digests[3]), (digests[0], digests[3])]


def test_files_of_upper_layers_replace_those_of_lower_ones(tmp_path: Path) -> None:
    newer = distribution(content={"pkg/__init__.py": b"", "pkg/code.py": b"new\n"})
    changed = only(newer, f"{SITE}/pkg/code.py", f"{INFO}/RECORD")
    for upper in (changed, only(changed, f"{SITE}/pkg/code.py")):
        lower = {**newer, f"{SITE}/pkg/code.py": b"old\n", f"{INFO}/RECORD": newer[f"{INFO}/RECORD"]}
        folder = tmp_path / str(len(upper))
        extract(memory(tar(*files(lower)), tar(*files(upper))), folder)
        assert tree(folder) == newer


def test_the_topmost_of_several_versions_is_taken(tmp_path: Path) -> None:
    newer = distribution(version="2.0")
    gone = [whiteout(f"{SITE}/pkg-1.0.dist-info"), whiteout(f"{SITE}/pkg")]
    blobs = memory(tar(*files(WHOLE)), tar(*gone, *files(newer)))
    (found,) = extract(blobs, tmp_path / "out")
    assert found.version == "2.0"
    assert tree(tmp_path / "out") == newer
    assert blobs.times(1) == 0


def test_a_version_that_is_asked_for_is_looked_for_further_down(tmp_path: Path) -> None:
    newer = distribution(version="2.0", site="opt/lib/python3/site-packages")
    blobs = memory(tar(*files(WHOLE)), tar(*files(newer)))
    (found,) = extract(blobs, tmp_path / "out", Wanted("pkg", "1.0.0"))
    assert (found.version, tree(tmp_path / "out")) == ("1.0", WHOLE)


def test_scripts_and_data_outside_the_site_folder_belong_to_it(tmp_path: Path) -> None:
    content = distribution(content={"../../../bin/run": b"#!", "../../../share/pkg/data": b"d"})
    content = {os.path.normpath(path): body for path, body in content.items()}
    program = entry("usr/bin/run", b"#!", mode=0o6755)
    blobs = memory(tar(program, *files(without(content, "usr/bin/run"))))
    extract(blobs, tmp_path / "out")
    assert tree(tmp_path / "out") == content
    assert set(content) > {"usr/bin/run", "usr/share/pkg/data"}
    modes = {path: stat.S_IMODE((tmp_path / "out" / path).stat().st_mode) for path in content}
    assert modes == {path: 0o755 if path == "usr/bin/run" else 0o644 for path in content}


def test_what_was_installed_into_a_named_folder_is_found_where_pip_moved_it(tmp_path: Path) -> None:
    content = distribution(site="opt/alone", content={"../../bin/run": b"#!"})
    there = {path.replace("alone/../../bin", "alone/bin"): body for path, body in content.items()}
    extract(memory(tar(*files(there))), tmp_path / "out")
    assert tree(tmp_path / "out") == there


def test_of_two_places_where_a_file_may_be_one_is_enough(tmp_path: Path) -> None:
    """`pip install --target DIR/lib/python` and `--home DIR` leave the same RECORD."""
    content = distribution(site="h/lib/python", content={"../../bin/run": b"#!"})
    for place in ("h/bin/run", "h/lib/python/bin/run"):
        there = {place if path.endswith("/run") else path: body for path, body in content.items()}
        folder = tmp_path / place
        extract(memory(tar(*files(only(there, place))), tar(*files(without(there, place)))), folder)
        assert tree(folder) == there


def test_byte_code_may_be_missing_and_is_left_out(tmp_path: Path) -> None:
    rows: list[tuple[str, bytes | None]] = [("pkg/code.py", b"x"), ("pkg/__pycache__/code.cpython-312.pyc", None)]
    content = {f"{SITE}/pkg/code.py": b"x", f"{INFO}/RECORD": record([*rows, ("pkg/old.pyc", None)])}
    more = {**content, f"{SITE}/pkg/__pycache__/code.cpython-312.pyc": b"code"}
    extract(memory(tar(*files(more))), tmp_path / "out")
    assert tree(tmp_path / "out") == content


def test_a_sourceless_module_is_no_byte_code_that_python_makes_anew(tmp_path: Path) -> None:
    content = distribution(content={"pkg/code.pyc": b"code"})
    extract(memory(tar(*files(content))), tmp_path / "out")
    assert f"{SITE}/pkg/code.pyc" in tree(tmp_path / "out")
    said = refused(memory(tar(*files(without(content, f"{SITE}/pkg/code.pyc")))), tmp_path / "2")
    assert "pkg/code.pyc is in its RECORD and in no layer" in said


def test_empty_and_large_files_come_out_whole(tmp_path: Path) -> None:
    content = distribution(
        content={"pkg/empty": b"", "pkg/large": os.urandom(5_000_000), "pkg/zeros": bytes(3_000_000)}
    )
    extract(memory(tar(*files(content)), block=100_000), tmp_path / "out")
    assert tree(tmp_path / "out") == content


# whiteouts


HIDING: dict[str, tuple[list[Entry], str]] = {
    "a file": ([whiteout(f"{SITE}/pkg/code.py")], "code.py, which it consists of, was removed by layer 2"),
    "a folder": ([whiteout(f"{SITE}/pkg")], "which it consists of, was removed by layer 2"),
    "an opaque folder": ([opaque(f"{SITE}/pkg")], "which it consists of, was removed by layer 2"),
    "a file in place of a folder": ([entry(f"{SITE}/pkg")], f"lies behind /{SITE}/pkg, which is a file in layer 2"),
    "a folder in place of a file": ([entry(f"{SITE}/pkg/code.py", type=FOLDER)], "is a folder in layer 2"),
    "a folder of which its contents tell": ([entry(f"{SITE}/pkg/code.py/x/y")], "is a folder in layer 2"),
    "a link in place of a folder": (
        [link(f"{SITE}/pkg", "/opt/pkg")],
        f"lies behind /{SITE}/pkg, which is a symbolic link in layer 2",
    ),
    "a link in place of a file": ([link(f"{SITE}/pkg/code.py", "x")], "is a symbolic link in layer 2"),
    "a pipe": ([entry(f"{SITE}/pkg/code.py", type=PIPE)], "is a device or something else that is no file in layer 2"),
    "a device": ([entry(f"{SITE}/pkg/code.py", type=DEVICE)], "is a device or something else that is no file"),
    "a sparse file": ([entry(f"{SITE}/pkg/code.py", type=b"S")], "is a sparse file, in a form that is not read"),
    "a file and a folder": (
        [entry(f"{SITE}/pkg/code.py"), entry(f"{SITE}/pkg/code.py/x")],
        "is a folder and something else at once in layer 2",
    ),
    "a file below a link": (
        [link(f"{SITE}/pkg", "/opt/pkg"), entry(f"{SITE}/pkg/code.py")],
        f"lies behind /{SITE}/pkg, which is a symbolic link in layer 2",
    ),
    "a link behind a file": (
        [entry(f"{SITE}/pkg/code.py"), link(f"{SITE}/pkg", "/opt/pkg")],
        f"lies behind /{SITE}/pkg, which is a symbolic link in layer 2",
    ),
    "a hard link to itself": (
        [hard(f"{SITE}/pkg/code.py", f"{SITE}/pkg/code.py")],
        "is a hard link to what is not in layer 2",
    ),
    "a hard link to a file of a lower layer": (
        [hard(f"{SITE}/pkg/code.py", f"{SITE}/pkg/__init__.py")],
        "is a hard link to what is not in layer 2",
    ),
    "a hard link that leads out": (
        [hard(f"{SITE}/pkg/code.py", "../../../etc/passwd")],
        "is a hard link to what is not in layer 2",
    ),
    "a hard link to the host's files": (
        [hard(f"{SITE}/pkg/code.py", "/etc/passwd")],
        "is a hard link to what is not in layer 2",
    ),
    "a hard link to a link": (
        [link("opt/l", "/etc/passwd"), hard(f"{SITE}/pkg/code.py", "opt/l")],
        "is a hard link to a symbolic link in layer 2",
    ),
    "a hard link to a folder": (
        [entry("opt", type=FOLDER), hard(f"{SITE}/pkg/code.py", "opt")],
        "is a hard link to a folder in layer 2",
    ),
    "hard links in a circle": (
        [hard("opt/a", f"{SITE}/pkg/code.py"), hard(f"{SITE}/pkg/code.py", "opt/a")],
        "is a hard link to what is not in layer 2",
    ),
    "hard links without end": (
        [entry("h0"), *(hard(f"h{n + 1}", f"h{n}") for n in range(50)), hard(f"{SITE}/pkg/code.py", "h50")],
        "is a hard link to hard links, more than 40",
    ),
}


@pytest.mark.parametrize("case", HIDING)
@pytest.mark.parametrize("above", [[], [f"{INFO}/RECORD"]], ids=["RECORD below", "RECORD above"])
def test_what_hides_or_replaces_a_file_is_named(case: str, above: list[str], tmp_path: Path) -> None:
    upper, says = HIDING[case]
    said = refused(memory(tar(*files(WHOLE)), tar(*upper), *(tar(*files(only(WHOLE, one))) for one in above)), tmp_path)
    assert f"pkg 1.0 in /{SITE} of the image: /{SITE}/pkg/" in said
    assert says in said
    assert "next: take another image" in said


@pytest.mark.parametrize(
    "hiding",
    [
        [whiteout(INFO)],
        [whiteout(f"{INFO}/RECORD")],
        [whiteout("usr")],
        [opaque(INFO)],
        [opaque("usr/lib")],
        [entry(".wh..wh..opq")],
        [entry("usr")],
        [link("usr/lib/python3", "/opt/python")],
    ],
)
def test_a_distribution_that_was_removed_is_not_there(hiding: list[Entry], tmp_path: Path) -> None:
    said = refused(memory(tar(*files(WHOLE)), tar(*hiding)), tmp_path)
    assert "host/image:tag holds no pkg that can be taken" in said
    assert f"pkg 1.0 in /{SITE} was removed by layer 2" in said or "in layer 2" in said


@pytest.mark.parametrize(
    "beside",
    [
        [whiteout(f"{SITE}/pkg/other.py"), opaque(f"{SITE}/other")],
        [whiteout(f"{SITE}/pk"), whiteout(f"{SITE}/pkg/code.pyc")],
        [entry(f"{SITE}/.wh..wh.plnk"), entry(f"{SITE}/.wh..wh.aufs")],
        [entry(f"{SITE}/pkg", type=FOLDER)],
        [link("lib", "usr/lib"), entry("dev/null", type=DEVICE), entry("run/pipe", type=PIPE)],
    ],
)
def test_what_happens_beside_a_file_does_not_touch_it(beside: list[Entry], tmp_path: Path) -> None:
    extract(memory(tar(*files(WHOLE)), tar(*beside)), tmp_path / "out")
    assert tree(tmp_path / "out") == WHOLE


def test_whiteouts_hide_nothing_of_their_own_layer(tmp_path: Path) -> None:
    hiding = [whiteout(f"{SITE}/pkg/code.py"), opaque(f"{SITE}/pkg"), opaque(SITE), whiteout(INFO)]
    for number, entries in enumerate([[*files(WHOLE), *hiding], [*hiding, *files(WHOLE)]]):
        folder = tmp_path / str(number)
        extract(memory(tar(entry(f"{SITE}/pkg/code.py", b"old")), tar(*entries)), folder)
        assert tree(folder) == WHOLE


def test_what_was_removed_and_is_back_is_there(tmp_path: Path) -> None:
    back = only(WHOLE, f"{SITE}/pkg/code.py", f"{SITE}/pkg/__init__.py")
    blobs = memory(tar(*files(WHOLE)), tar(whiteout(f"{SITE}/pkg")), tar(*files(back)))
    extract(blobs, tmp_path / "out")
    assert tree(tmp_path / "out") == WHOLE


def test_of_a_path_that_is_twice_in_a_layer_the_last_counts(tmp_path: Path) -> None:
    first = dict.fromkeys(WHOLE, b"first")
    extract(memory(tar(*files(first), *files(WHOLE))), tmp_path / "out")
    assert tree(tmp_path / "out") == WHOLE


def test_hard_links_are_resolved_by_what_came_before_them(tmp_path: Path) -> None:
    code = f"{SITE}/pkg/code.py"
    blobs = memory(
        tar(
            entry("opt/x", WHOLE[code], mode=0o755),
            hard("opt/y", "./opt/x"),
            hard(code, "/opt/y"),
            entry("opt/x", b"later"),
            *files(without(WHOLE, code)),
        )
    )
    extract(blobs, tmp_path / "out")
    assert tree(tmp_path / "out") == WHOLE
    assert os.access(tmp_path / "out" / code, os.X_OK)


def test_a_record_that_is_a_hard_link_is_read_as_well(tmp_path: Path) -> None:
    entries = [entry("opt/r", WHOLE[f"{INFO}/RECORD"]), hard(f"{INFO}/RECORD", "opt/r")]
    extract(memory(tar(*entries, *files(without(WHOLE, f"{INFO}/RECORD")))), tmp_path / "out")
    assert tree(tmp_path / "out") == WHOLE


def test_several_names_of_one_file_are_one_file(tmp_path: Path) -> None:
    content = distribution(content={"pkg/a": b"same", "pkg/b": b"same", "pkg/empty": b"", "pkg/void": b""})
    linked = {f"{SITE}/pkg/b": f"{SITE}/pkg/a", f"{SITE}/pkg/void": f"{SITE}/pkg/empty"}
    links = [hard(path, target) for path, target in linked.items()]
    extract(memory(tar(*files(without(content, *linked)), *links)), tmp_path / "out")
    assert tree(tmp_path / "out") == content


# which distribution


def test_of_two_versions_in_one_layer_neither_is_taken_for_the_other(tmp_path: Path) -> None:
    other = distribution(version="2.0", site="opt/venv/lib/python3.12/site-packages")
    blobs = memory(tar(*files({**WHOLE, **other})))
    said = refused(blobs, tmp_path)
    assert "has several of pkg in layer 1" in said
    assert f"pkg 1.0 in /{SITE}\n" in said
    assert "pkg 2.0 in /opt/venv/lib/python3.12/site-packages\n" in said
    assert "name the version that is meant" in said
    for number, want in enumerate(
        [Wanted("pkg", "2"), Wanted("pkg", site=PurePosixPath("opt/venv/lib/python3.12/site-packages"))]
    ):
        extract(blobs, tmp_path / str(number), want)
        assert tree(tmp_path / str(number)) == other


def test_the_same_in_two_folders_is_taken_from_one_of_them(tmp_path: Path) -> None:
    second = distribution(site="opt/venv/lib/python3.12/site-packages")
    (found,) = extract(memory(tar(*files({**WHOLE, **second}))), tmp_path / "out")
    assert str(found.site).startswith("opt/")
    assert tree(tmp_path / "out") == second


def test_two_builds_of_one_version_are_not_taken_for_each_other(tmp_path: Path) -> None:
    other = distribution(site="opt/lib/python3/site-packages", content={"pkg/code.py": b"another build"})
    blobs = memory(tar(*files({**WHOLE, **other})))
    assert "has several of pkg" in refused(blobs, tmp_path)
    extract(blobs, tmp_path / "out", Wanted("pkg", site=PurePosixPath(SITE)))
    assert tree(tmp_path / "out") == WHOLE


def test_a_wheel_that_was_left_over_is_preferred(tmp_path: Path) -> None:
    wheel = {"wheels/pkg-1.0-py3-none-any.whl": b"PK"}
    blobs = memory(
        tar(*files({**WHOLE, **wheel, "wheels/pkg-broken.whl": b"", "cache/pkg-1.0-py3-none-any.whl": b"PK"}))
    )
    (found,) = extract(blobs, tmp_path / "out")
    assert (found.kind, str(found.site), found.info) == ("wheel", "cache", "pkg-1.0-py3-none-any.whl")
    assert tree(tmp_path / "out") == {"cache/pkg-1.0-py3-none-any.whl": b"PK"}
    (found,) = extract(blobs, tmp_path / "2", Wanted("pkg", site=PurePosixPath(SITE)))
    assert found.kind == "installed"


def test_of_several_wheels_none_is_guessed(tmp_path: Path) -> None:
    wheels = {"w/pkg-1.0-cp311-cp311-linux_x86_64.whl": b"1", "w/pkg-1.0-cp312-cp312-linux_x86_64.whl": b"2"}
    assert "pkg-1.0-cp312-cp312-linux_x86_64.whl" in refused(memory(tar(*files(wheels))), tmp_path)
    (found,) = extract(memory(tar(*files({**wheels, **WHOLE}))), tmp_path / "out")
    assert found.kind == "installed"


def test_names_are_compared_in_their_canonical_form(tmp_path: Path) -> None:
    content = distribution("Zope.Interface", "8.0+local.1")
    (found,) = extract(memory(tar(*files(content))), tmp_path / "out", Wanted("zope-interface", "8.0+local-1"))
    assert (found.name, found.version) == ("zope-interface", "8.0+local.1")


@pytest.mark.parametrize("site", [b"bell\a/lib", b"opt/\xff/lib", "opt/\u202e/lib".encode()])
def test_folders_that_cannot_be_shown_hold_nothing(site: bytes, tmp_path: Path) -> None:
    """Found by changing bytes: a name that is no UTF-8 cannot be printed."""
    content = distribution(site=site.decode("utf-8", "surrogateescape"))
    assert "holds no pkg\n" in refused(memory(tar(*files(content))), tmp_path)


@pytest.mark.parametrize(
    ("content", "want", "says"),
    [
        (WHOLE, Wanted("pkgg"), "holds no pkgg (did you mean pkg?)"),
        ({"x": b""}, PKG, "holds no pkg\n"),
        (WHOLE, Wanted("pkg", "3"), f"holds no pkg 3 that can be taken\n    pkg 1.0 in /{SITE}\n"),
        (WHOLE, Wanted("pkg", site=PurePosixPath("opt")), "holds no pkg in /opt that can be taken"),
        ({f"{INFO}/METADATA": b""}, PKG, f"pkg 1.0 in /{SITE} without RECORD, which a wheel cannot be made of"),
        (
            {f"{SITE}/pkg-1.0-py3.12.egg-info/PKG-INFO": b""},
            PKG,
            f"pkg 1.0 in /{SITE} as pkg-1.0-py3.12.egg-info, which a wheel cannot be made of",
        ),
        ({f"{SITE}/pkg.egg-info": b""}, PKG, f"pkg in /{SITE} as pkg.egg-info, which a wheel cannot be made of"),
    ],
)
def test_what_is_not_there_is_said(content: dict[str, bytes], want: Wanted, says: str, tmp_path: Path) -> None:
    assert says in refused(memory(tar(*files(content))), tmp_path, want)


# hostile RECORDs


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (b"../../../../../../etc/x,,\n", "leads out of the root"),
        (b"a\\b,,\n", "is no path"),
        (b"a\x07b,,\n", "a name that no file should have"),
        (b"%s,,\n" % (b"x" * 300), "a name that no file should have"),
        (b"%s,,\n" % (b"x/" * 3000), "a name that no file should have"),
        (b"a,,\na,,\n", "names a twice"),
        (b"\xff", "cannot be read"),
        (b"../../..,,\n", "is a folder in layer 1"),
        (b"pkg,,\n", "is a folder in layer 1"),
        (b"..,,\n", "is a folder in layer 1"),
        (b"pkg/code.py/x,,\n", f"lies behind /{SITE}/pkg/code.py, which is a file in layer 1"),
        (b"../../../..,,\n", "a name that no file should have"),
        (
            b"missing.py,,\nother.py,,\n",
            f"/{SITE}/missing.py and 1 more of its files are in its RECORD and in no layer",
        ),
    ],
)
def test_a_record_that_leads_elsewhere_or_lies_is_refused(rows: bytes, says: str, tmp_path: Path) -> None:
    content = {**WHOLE, f"{INFO}/RECORD": rows}
    said = refused(memory(tar(*files(content))), tmp_path)
    assert f"pkg 1.0 in /{SITE} of the image: " in said
    assert says in said


def test_absolute_paths_of_a_record_are_those_of_the_image(tmp_path: Path) -> None:
    content = {f"{INFO}/RECORD": b"/etc/hostname,,\n", "etc/hostname": b"the image's"}
    extract(memory(tar(*files(content))), tmp_path / "out")
    assert tree(tmp_path / "out") == content


def test_a_huge_record_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "LARGEST_RECORD", 100)
    assert "its RECORD has " in refused(memory(tar(*files(WHOLE))), tmp_path)


def test_records_beyond_what_memory_allows_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "Budget", lambda: layers.Budget(records=10))
    blobs = memory(tar(*files(WHOLE)))
    extract(blobs, tmp_path / "out")
    assert tree(tmp_path / "out") == WHOLE


def test_what_is_wanted_is_not_in_thousands_of_places(tmp_path: Path) -> None:
    many = {f"{number}/pkg-1.0.dist-info/RECORD": b"x,,\n" for number in range(2001)}
    assert "in more than 2000 places" in refused(memory(tar(*files(many))), tmp_path)
    assert "has several of pkg" in refused(memory(tar(*files(dict(list(many.items())[:30])))), tmp_path)


def test_more_than_any_wheel_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "MAX_BYTES", 100)
    assert "what is wanted has" in refused(memory(tar(*files(WHOLE))), tmp_path)


# the folder


def test_a_folder_that_is_not_empty_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(UsageError, match="is not empty"):
        extract(memory(tar(*files(WHOLE))), tmp_path)


def test_links_in_the_folder_are_not_gone_through(tmp_path: Path) -> None:
    """Somebody else puts one there while we write."""
    (tmp_path / "outside").mkdir()
    with FreshFolder(tmp_path / "out") as fresh:
        (tmp_path / "out" / "l").symlink_to(tmp_path / "outside")
        (tmp_path / "out" / "f").symlink_to(tmp_path / "outside" / "f")
        with pytest.raises(NotADirectoryError):
            fresh.file("l/x", executable=False)
        with pytest.raises(FileExistsError):
            fresh.file("f", executable=False)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_blob_that_changes_between_two_readings_is_refused(tmp_path: Path) -> None:
    class Changing(Memory):
        def read(self, blob, report):
            yield from super().read(blob, report)
            self.blobs[blob.digest] = packed(tar(*files({**WHOLE, f"{SITE}/pkg/code.py": b"evil"})))

    made = Changing()
    data = tar(*files(WHOLE))
    made.add(packed(data), digest_of(data))
    with pytest.raises((RegistryRefused, ImageRefused)):
        extract(made, tmp_path / "out")


# anything


PATHS = [
    *("usr", "usr/lib", SITE, f"{SITE}/pkg", f"{SITE}/pkg/code.py", f"{SITE}/pkg/__init__.py", INFO),
    *(f"{INFO}/RECORD", f"{INFO}/METADATA", f"{SITE}/pkg-1.0-py3-none-any.whl", "../up", "/abs", "a/../../b"),
]
ANY = st.builds(
    lambda path, kind, target, body: entry(path, body if kind == b"0" else b"", type=kind, linkname=target),
    st.sampled_from(PATHS),
    st.sampled_from([b"0", b"0", HARD, SYM, FOLDER, PIPE, DEVICE, b"S"]),
    st.sampled_from(PATHS),
    st.sampled_from([b"", b"x", b"../../../../up,,\n", b"pkg/code.py,,\n", b"/abs,,\n"]),
)
HIDES = st.sampled_from(PATHS[:10]).flatmap(lambda path: st.sampled_from([whiteout(path), opaque(path)]))


@given(
    st.sampled_from([[], files(WHOLE)]),
    st.lists(st.lists(ANY | HIDES, max_size=6), min_size=1, max_size=3),
    st.sampled_from([10, 1000]),
)
def test_nothing_is_ever_written_outside_or_through_a_link(
    tmp_path_factory: pytest.TempPathFactory, below: list[Entry], above: list[list[Entry]], block: int
) -> None:
    place = tmp_path_factory.mktemp("any")
    marked = ([entry(f"layer-{number}"), *entries] for number, entries in enumerate([below, *above]))
    blobs = memory(*(tar(*entries) for entries in marked), block=block)
    try:
        extract(blobs, place / "out")
    except ImageRefused:
        assert not (place / "out").exists()
    else:
        assert tree(place / "out")
    assert [path.name for path in place.iterdir()] in ([], ["out"])
    assert all(blobs.times(number + 1) <= 2 for number in range(len(blobs.layers)))


def resolved(above: list[list[Entry]]) -> dict[str, bytes | None]:
    """Lay layers over each other as the specification has it, without links: files, and None for folders."""
    found: dict[str, bytes | None] = {}
    for entries in above:
        for info, _ in entries:
            _apply_whiteout(found, *info.name.rsplit("/", 1))
        for info, body in entries:
            for up in list(PurePosixPath(info.name).parents)[:-1]:
                found[str(up)] = None
            if ".wh." not in info.name:
                if info.type != FOLDER:
                    _remove(found, info.name, itself=True)
                found[info.name] = None if info.type == FOLDER else body
    return found


def _apply_whiteout(found: dict[str, bytes | None], folder: str, name: str) -> None:
    if name == ".wh..wh..opq":
        _remove(found, folder, itself=False)
    elif name.startswith(".wh."):
        _remove(found, f"{folder}/{name[4:]}", itself=True)


def _remove(found: dict[str, bytes | None], path: str, *, itself: bool) -> None:
    for one in [one for one in found if one.startswith(f"{path}/") or (itself and one == path)]:
        del found[one]


PLACES = [f"{SITE}/pkg", f"{SITE}/pkg/a", f"{SITE}/pkg/b", f"{SITE}/pkg/s", f"{SITE}/pkg/s/c", INFO]
CHANGES = st.sampled_from(PLACES).flatmap(
    lambda path: st.sampled_from([entry(path, b"new"), entry(path, type=FOLDER), whiteout(path), opaque(path)])
)


@given(st.lists(st.lists(CHANGES, max_size=4, unique_by=lambda one: one[0].name), max_size=4))
@settings(max_examples=300)
def test_layers_mean_what_the_specification_says(
    tmp_path_factory: pytest.TempPathFactory, above: list[list[Entry]]
) -> None:
    place = tmp_path_factory.mktemp("layers")
    whole = distribution(content={"pkg/a": b"a", "pkg/b": b"b", "pkg/s/c": b"c"})
    sound = [[one for one in entries if not _contradicts(one[0].name, entries)] for entries in above]
    expected = resolved([files(whole), *sound])
    listed = {path: expected.get(path) for path in whole}
    try:
        extract(memory(tar(*files(whole)), *(tar(*entries) for entries in sound)), place / "out")
    except ImageRefused:
        assert None in listed.values()
    else:
        assert tree(place / "out") == listed


def _contradicts(name: str, entries: list[Entry]) -> bool:
    """Say whether the layer has the path as a file, and something below it at the same time."""
    names = {info.name: info.type for info, _ in entries}
    ups = [str(up) for up in PurePosixPath(name).parents]
    return any(up in names and names[up] != FOLDER for up in ups)


def _changed(data: bytearray, fuzz: random.Random) -> bytes:
    for _ in range(fuzz.randint(1, 6)):
        match fuzz.randrange(4):
            case 0:
                data[fuzz.randrange(len(data))] = fuzz.randrange(256)
            case 1:
                begin = fuzz.randrange(len(data))
                del data[begin : begin + fuzz.choice([1, 10, 512])]
            case 2:
                begin = fuzz.randrange(len(data))
                data[begin:begin] = data[fuzz.randrange(len(data)) :][: fuzz.choice([1, 512, 1024])]
            case _:
                begin = fuzz.randrange(max(1, len(data) // 512)) * 512
                block = bytearray(data[begin : begin + 512].ljust(512, b"\0"))
                block[fuzz.choice([0, 100, 124, 156, 157, 257, 345])] = fuzz.choice(b"\0/.0123567LKxgS\x80\xff")
                block[148:156] = b" " * 8
                block[148:156] = b"%06o\0 " % sum(block)
                data[begin : begin + 512] = block
        if not data:
            data += bytes(512)
    return bytes(data)


def mutate(seed: int, place: Path) -> None:
    """Change bytes of a layer's archive or of what is stored, and take a distribution out of the image."""
    fuzz = random.Random(seed)
    kind = fuzz.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    long = distribution(content={f"pkg/{'ä' * 60}/{'b' * 90}": b"long", "pkg/code.py": b"x" * 700})
    entries = [*files(long), hard("h", f"{SITE}/pkg/code.py"), link("l", "../../x"), whiteout("etc/x"), opaque("opt")]
    fuzz.shuffle(entries)
    data = tar(*entries, kind=kind)
    how = fuzz.choice(["gzip", "members", "zstd", "bare"])
    made = Memory(block=fuzz.choice([7, 700, 70_000]))
    if fuzz.random() < 0.7:
        data = _changed(bytearray(data), fuzz)
        made.add(packed(data, how), digest_of(data))
    else:
        blob = _changed(bytearray(packed(data, how)), fuzz)
        made.add(blob, digest_of(data))
    with suppress(ImageRefused):
        extract(made, place / "out")
    assert {path.name for path in place.iterdir()} <= {"out"}
    tree(place / "out")


@given(st.integers(0, 2**40))
@settings(max_examples=200)
def test_changed_bytes_never_do_more_than_fail(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    mutate(seed, tmp_path_factory.mktemp("fuzz"))


@pytest.mark.long
def test_very_many_changed_bytes_never_do_more_than_fail(tmp_path: Path) -> None:
    begin = random.SystemRandom().randrange(2**40)
    for seed in range(begin, begin + 50_000):
        place = tmp_path / str(seed)
        place.mkdir()
        mutate(seed, place)
