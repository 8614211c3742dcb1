"""Layers: unpacked within limits, their members read as tarfile reads them, what is damaged or hostile said."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ImageRefused, RegistryRefused
from tests.unit.layersamples import (
    DEVICE,
    FILE,
    FOLDER,
    HARD,
    PIPE,
    SYM,
    Entry,
    Memory,
    digest_of,
    entry,
    files,
    hard,
    link,
    memory,
    packed,
    tar,
)
from wheels.images import inflate, layers
from wheels.images.behind import DEPTH, Behind
from wheels.images.inflate import Marks, Unpackable, unpacked
from wheels.images.layers import Budget, Index, Span, read_layer, read_spans
from wheels.images.sightings import Lookout
from wheels.images.tarstream import Damaged, Kind, Member, TarStream

HOWS = ("gzip", "members", "zstd", "bare")


def quiet(_: str) -> None:
    pass


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[begin : begin + size] for begin in range(0, len(data), size))


def members(data: bytes, size: int = 700) -> list[Member]:
    return list(TarStream(cut(data, size)))


def read(blobs: Memory, number: int = 1) -> Index:
    index = Index(number, blobs.layers[number - 1])
    read_layer(blobs, index, Lookout(frozenset({"pkg"})), Budget(), quiet)
    return index


# streams


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("size", [1, 3, 1000, 10**6])
def test_every_kind_of_packing_gives_the_same_bytes(how: str, size: int) -> None:
    data = random.Random(1).randbytes(5000) + bytes(5000)
    plain = unpacked(cut(packed(data, how), size), Marks())
    assert b"".join(iter(plain.read, b"")) == data
    assert plain.position == len(data)


def test_nothing_is_packed_as_nothing() -> None:
    assert unpacked(iter([]), Marks()).read() == b""
    assert unpacked(iter([b"", b"", gzip.compress(b"")]), Marks()).read() == b""


def test_frames_of_zstd_that_hold_something_else_are_passed_over() -> None:
    skipped = b"\x5a\x2a\x4d\x18\x04\0\0\0note"
    plain = unpacked(iter([skipped + zstandard.compress(b"one") + skipped + zstandard.compress(b"two")]), Marks())
    assert b"".join(iter(plain.read, b"")) == b"onetwo"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gzip.compress(bytes(9000))[:-1], "is cut off"),
        (gzip.compress(bytes(9000))[:40], "is cut off"),
        (gzip.compress(b"x") + b"garbage", "gzip stream is damaged"),
        (gzip.compress(b"x") + bytes(100), "gzip stream is damaged"),
        (gzip.compress(b"x")[:-8] + bytes(8), "gzip stream is damaged"),
        (zstandard.compress(b"x") + b"garbage", "zstd stream is damaged"),
    ],
)
def test_a_damaged_stream_is_said(data: bytes, says: str) -> None:
    plain = unpacked(iter([data]), Marks())
    with pytest.raises(Unpackable, match=says):
        list(iter(plain.read, b""))


def test_zstd_may_not_look_back_further_than_memory_allows() -> None:
    how = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=how).compressobj()
    data = compressor.compress(b"x" * 1000) + compressor.flush()
    with pytest.raises(Unpackable, match="looks too far back"):
        unpacked(iter([data]), Marks()).read()


def test_members_of_a_gzip_stream_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflate, "MOST_MEMBERS", 10)
    with pytest.raises(Unpackable, match="more than 10 members"):
        list(iter(unpacked(iter([gzip.compress(b"") * 20]), Marks()).read, b""))


@given(st.binary(max_size=300), st.sampled_from([b"", inflate.GZIP, inflate.ZSTD, gzip.compress(b"xy")[:-3]]))
def test_any_bytes_are_unpacked_or_refused(data: bytes, begin: bytes) -> None:
    plain = unpacked(cut(begin + data, 50), Marks())
    with suppress(Unpackable):
        assert sum(map(len, iter(plain.read, b""))) == plain.position


@given(st.integers(0, 2**32), st.lists(st.integers(0, 400_000), min_size=1, max_size=6), st.sampled_from(HOWS))
@settings(max_examples=40)
def test_going_on_from_marks_gives_what_was_there(seed: int, places: list[int], how: str) -> None:
    """Whether a place lies before, at or behind a mark, and wherever stored blocks are cut."""
    noise = random.Random(seed)
    data = b"".join(noise.randbytes(noise.randrange(3000)) + bytes(noise.randrange(3000)) for _ in range(150))
    stored = packed(data, how)
    marks = Marks(apart=20_000)
    first = unpacked(cut(stored, 5000), marks)
    while first.read():
        pass
    plain, piece = unpacked(cut(stored, 7777), marks), b""
    for place in sorted(place % len(data) for place in places):
        while plain.position <= place:
            plain.near(place)
            piece = plain.read()
        begin = plain.position - len(piece)
        assert data[place : plain.position] == piece[place - begin :]


def test_marks_of_all_layers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Marks, "__init__", lambda self: self.__dict__.update(found=[], apart=1000, most=64))
    budget, made = Budget(marks=10), []
    blobs = memory(*(tar(entry("x", bytes([number]) * 400_000)) for number in range(3)), block=100)
    for number in (1, 2, 3):
        made.append(Index(number, blobs.layers[number - 1]))
        read_layer(blobs, made[-1], Lookout(frozenset()), budget, quiet)
    assert 0 < sum(len(index.marks.found) for index in made) <= 10
    assert budget.marks == 10 - sum(len(index.marks.found) for index in made)


def test_marks_are_never_too_many() -> None:
    marks = Marks(apart=10)
    state = zlib.decompressobj()
    for plain in range(0, 50_000, 5):
        marks.offer(plain, plain, state)
    assert 20 < len(marks.found) <= inflate.MOST_MARKS
    places = [mark.plain for mark in marks.found]
    assert places == sorted(places)
    assert max(b - a for a, b in zip([0, *places], places, strict=False)) <= 2 * marks.apart


# two threads


def test_what_is_put_in_comes_out_in_its_order() -> None:
    with Behind(b"".join) as behind:
        for number in range(1000):
            behind.put(b"%d," % number)
        assert behind.result() == b"".join(b"%d," % number for number in range(1000))


def test_an_error_of_the_work_comes_out_where_blocks_are_put_in() -> None:
    def work(blocks: Iterator[bytes]) -> None:
        raise Damaged(next(blocks).decode())

    def feed() -> None:
        with Behind(work) as behind:
            while True:
                behind.put(b"first")

    with pytest.raises(Damaged, match="first"):
        feed()
    assert threading.active_count() == 1


def test_work_that_ends_early_takes_the_rest_and_forgets_it() -> None:
    with Behind(next) as behind:
        for _ in range(5 * DEPTH):
            behind.put(b"x")
        assert behind.result() == b"x"


def test_work_that_gets_no_more_ends() -> None:
    def feed() -> None:
        with Behind(b"".join) as behind:
            behind.put(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        feed()
    assert threading.active_count() == 1


# members


NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=120).filter(
        lambda part: part not in {".", ".."}
    ),
    min_size=1,
    max_size=4,
).map("/".join)
ENTRIES = st.builds(
    entry,
    NAMES,
    st.binary(max_size=1200),
    type=st.just(FILE),
    mode=st.sampled_from([0o644, 0o755]),
)
OTHERS = st.builds(entry, NAMES, type=st.sampled_from([SYM, HARD, FOLDER, PIPE, DEVICE]), linkname=NAMES)


@given(st.lists(ENTRIES | OTHERS, max_size=8), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.data())
def test_members_are_read_as_tarfile_reads_them(entries: list[Entry], kind: int, data: st.DataObject) -> None:
    archive = tar(*entries, kind=kind)
    found = members(archive, data.draw(st.sampled_from([1, 100, 512, 4096])))
    with tarfile.open(fileobj=io.BytesIO(archive), encoding="utf-8", errors="surrogateescape") as expected:
        theirs = expected.getmembers()
    assert [(one.name, one.offset) for one in found] == [(one.name, one.offset_data) for one in theirs]
    for ours, their in zip(found, theirs, strict=True):
        assert ours.size == (their.size if their.isreg() else 0)
        assert ours.target == (their.linkname if their.islnk() or their.issym() else "")
        assert (ours.kind == Kind.PROGRAM) == (their.isreg() and bool(their.mode & 0o100))
        if ours.kind in {Kind.FILE, Kind.PROGRAM}:
            assert archive[ours.offset : ours.offset + ours.size] == entries[found.index(ours)][1]


def test_kinds_are_told_apart() -> None:
    archive = tar(
        entry("f", b"1"),
        entry("p", mode=0o755),
        entry("c", type=tarfile.CONTTYPE),
        entry("d/", type=tarfile.AREGTYPE),
        entry("d", type=FOLDER),
        link("l", "../x"),
        hard("h", "f"),
        entry("pipe", type=PIPE),
        entry("unknown", b"some", type=b"~"),
    )
    assert [(one.name, one.kind.name) for one in members(archive)] == [
        ("f", "FILE"),
        ("p", "PROGRAM"),
        ("c", "FILE"),
        ("d", "FOLDER"),
        ("d", "FOLDER"),
        ("l", "LINK"),
        ("h", "HARD_LINK"),
        ("pipe", "OTHER"),
        ("unknown", "OTHER"),
    ]


def test_names_are_written_in_one_way() -> None:
    names = ["./", "/", ".", "./a", "a/", "a//b", "a/./b/", "././c", ".hidden", "d/.e", "d../..f"]
    archive = tar(*(entry(name) for name in names))
    assert [one.name for one in members(archive)] == [
        *("", "", "", "a", "a", "a/b", "a/b", "c", ".hidden", "d/.e", "d../..f")
    ]


def test_a_prefix_counts_where_the_format_has_one() -> None:
    long = f"{'d' * 120}/{'f' * 80}"
    (ustar,) = members(tar(entry(long), kind=tarfile.USTAR_FORMAT))
    assert ustar.name == long
    header = bytearray(tar(entry("name"), kind=tarfile.GNU_FORMAT))
    header[345:357] = b"14712345670\0"  # GNU has the time of the last access there
    assert [one.name for one in members(summed(header))] == ["name"]


def test_numbers_in_base_256_are_read() -> None:
    info, body = entry("big", b"12")
    header = bytearray(tar((info, body)))
    header[124:136] = b"\x80" + (2).to_bytes(11, "big")
    assert members(summed(header))[0].size == 2


def summed(header: bytearray) -> bytes:
    """Put the checksum right that tells whether a header is damaged."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


def field(at: int, value: bytes) -> bytes:
    """Return an archive of one file whose header has something else at a place."""
    header = bytearray(tar(entry("name", b"12")))
    header[at : at + len(value)] = value
    return summed(header)


def extended(records: bytes, kind: bytes = b"x", then: bytes | None = None) -> bytes:
    head = tar(entry("pax", records, type=kind))
    cut_at = 512 + -(-len(records) // 512) * 512
    return head[:cut_at] + (tar(entry("name", b"12")) if then is None else then)


def pax(**values: str) -> bytes:
    rows = b""
    for key, value in values.items():
        row = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(row)
        while len(b"%d" % length) + len(row) != length:
            length += 1
        rows += b"%d" % length + row
    return rows


HOSTILE = {
    "an absolute name": (tar(entry("/etc/x")), "leads out of the image's root"),
    "a way up": (tar(entry("a/../../x")), "leads out of the image's root"),
    "a way up in a long name": (tar(entry("a/" * 80 + "../x")), "leads out of the image's root"),
    "a way up that another header brings": (extended(pax(path="../x")), "leads out of the image's root"),
    "no name": (tar(entry("")), "has no name"),
    "a zero in a name": (extended(pax(path="a\0b")), "has no name"),
    "a name that is too long": (tar(entry("a/" * 2100)), "a name of more than 4096 bytes"),
    "an end in a header": (tar(entry("x"))[:300], "should be a header at byte 0 is none"),
    "an end in a file": (tar(entry("x", bytes(3000)))[:2000], "ends in the middle of a member"),
    "an end in an extended header": (tar(entry("x" * 2000))[:1500], "ends in the middle of a member"),
    "an end after an extended header": (extended(pax(path="x"), then=b""), "ends after an extended header"),
    "no archive": (b"x" * 1024, "should be a header at byte 0 is none"),
    "a changed header": (b"y" + tar(entry("x"))[1:], "should be a header at byte 0 is none"),
    "a damaged second header": (tar(entry("x"))[:512] + b"x" * 512, "should be a header at byte 512 is none"),
    "more behind its end": (tar(entry("x")) + tar(entry("y")), "goes on behind its end"),
    "a negative size": (field(124, b"\xff" * 12), "for a number"),
    "a size beyond all": (field(124, b"\x80" + b"\xff" * 11), "for a number"),
    "a size that is none": (field(124, b"0_1_0"), "for a number"),
    "a size with a sign": (field(124, b"-0000000001\0"), "for a number"),
    "a size in a header that is none": (extended(pax(size="-5")), "a size of '-5'"),
    "a size in a header beyond all": (extended(pax(size="9" * 30)), "a size of '9999"),
    "a size that reaches beyond the end": (extended(pax(size="100000")), "ends in the middle of a member"),
    "a huge extended header": (extended(pax(comment="x" * 1_100_000)), "an extended header has 1100"),
    "an extended header that cannot be read": (extended(b"abc"), "an extended header cannot be read"),
    "a record that is longer than its header": (extended(b"99 path=x\n"), "an extended header cannot be read"),
    "a record without end": (extended(b"9 path=xy"), "an extended header cannot be read"),
    "a record without key": (extended(b"6 =xy\n"), "an extended header cannot be read"),
    "a record of length zero": (extended(b"0 path=x\n"), "an extended header cannot be read"),
    "one name for all": (extended(pax(path="x"), b"g"), "gives all members the same path"),
    "one size for all": (extended(pax(size="1"), b"g"), "gives all members the same size"),
    "two long names": (
        extended(b"one\0", b"L", extended(b"two\0", b"L")),
        "two headers of one member give it a path",
    ),
    "a long name and a path": (
        extended(b"one\0", b"L", extended(pax(path="two"))),
        "two headers of one member give it a path",
    ),
    "extended headers without end": (
        b"".join(extended(pax(**{f"k{n}": "x"}), then=b"") for n in range(20)),
        "more than 8 extended headers",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_or_damaged_archive_is_refused(case: str) -> None:
    data, says = HOSTILE[case]
    with pytest.raises(Damaged, match=says):
        members(data)


def test_what_a_header_for_all_says_besides_is_left_alone() -> None:
    assert [one.name for one in members(extended(pax(comment="a commit"), b"g"))] == ["name"]


def test_an_archive_without_its_end_is_whole_as_long_as_no_member_is_cut() -> None:
    """As umoci and Docker have it; tools that leave the end out exist."""
    for end in (1024, 1000, 514):  # `umoci insert` ends with the last byte of the last file
        assert [one.name for one in members(tar(entry("x", b"12"))[:end])] == ["x"]
    assert members(b"") == []


def test_sparse_files_are_recognised_and_passed_over() -> None:
    by_pax = extended(pax(GNU__sparse__major="1", GNU__sparse__name="hole", GNU__sparse__realsize="99"))
    assert [(one.name, one.kind) for one in members(by_pax)] == [("hole", Kind.SPARSE)]
    old = bytearray(tar(entry("hole", b"12", type=b"S"), entry("next", b"x")))
    old[482] = 1
    goes_on, ends = bytes(504) + b"\1" + bytes(7), bytes(512)
    archive = summed(old)[:512] + goes_on + ends + bytes(old[512:])
    assert [(one.name, one.kind, one.offset) for one in members(archive)] == [
        ("hole", Kind.SPARSE, 1536),
        ("next", Kind.FILE, 2560),
    ]


@given(st.integers(0, 2**32))
@settings(max_examples=300)
def test_changed_archives_are_read_or_refused(seed: int) -> None:
    fuzz = random.Random(seed)
    data = bytearray(tar(entry("a" * 150, b"12"), hard("h", "a"), entry("ä", mode=0o755), kind=tarfile.PAX_FORMAT))
    for _ in range(fuzz.randint(1, 5)):
        data[fuzz.randrange(len(data))] = fuzz.choice(
            [0, 0xFF, 0x80, ord("/"), ord("."), ord("7"), fuzz.randrange(256)]
        )
    for begin in range(0, len(data), 512):
        if fuzz.random() < 0.7 and any(data[begin : begin + 512]):
            data[begin : begin + 512] = summed(data[begin : begin + 512])
    try:
        for member in members(bytes(data), 1000):
            assert not member.name.startswith("/")
            assert ".." not in member.name.split("/")
    except Damaged:
        pass


# layers


@pytest.mark.parametrize("how", HOWS)
def test_what_a_layer_has_is_found_again_at_its_place(how: str) -> None:
    content = {f"d{number % 7}/f{number}": os.urandom(number * 7 % 4000) for number in range(300)}
    blobs = memory(tar(*files(content)), how=how, block=3000)
    index = read(blobs)
    found = index.entries({hash(path) for path in content})
    spans = {path: Span(found[hash(path)][0].offset, found[hash(path)][0].extra) for path in list(content)[::5]}
    out: dict[Span, bytes] = {}
    for span, piece in read_spans(blobs, index, sorted(spans.values()), quiet):
        out[span] = out.get(span, b"") + piece
    assert {path: out.get(span, b"") for path, span in spans.items()} == {path: content[path] for path in spans}


def test_folders_of_which_only_their_contents_tell_are_noted_once() -> None:
    index = read(memory(tar(entry("a/b/c/x"), entry("a/b/y"), entry("a/b", type=FOLDER), entry("a/b/c/z"))))
    found = index.entries({hash("a"), hash("a/b"), hash("a/b/c")})
    kinds = {path: [one.kind for one in found[hash(path)]] for path in ("a", "a/b", "a/b/c")}
    assert kinds == {"a": [Kind.IMPLIED], "a/b": [Kind.IMPLIED, Kind.FOLDER], "a/b/c": [Kind.IMPLIED]}


def test_a_layer_whose_content_is_not_the_one_that_was_promised_is_refused() -> None:
    made = Memory()
    made.add(packed(tar(entry("x"))), digest_of(b"something else"))
    with pytest.raises(ImageRefused, match=r"layer 1 \(sha256:.*its content has the digest sha256:.*says sha256:"):
        read(made)


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (packed(tar(entry("x", bytes(5000)))[:3000]), "ends in the middle of a member"),
        (packed(tar(entry("x", os.urandom(5000))))[:-2000], "is cut off"),
        (packed(tar(entry("../x"))), "leads out of the image's root"),
        (packed(tar(entry("a/.wh...x"), entry("a/.wh..."))), r"removes '\.\.', which is no name"),
        (packed(tar(entry("a/.wh."))), "removes 'nothing', which is no name"),
        (b"\xfd7zXZ\0" + bytes(600), "should be a header at byte 0 is none"),
    ],
)
def test_a_damaged_layer_is_refused_by_its_number(blob: bytes, says: str) -> None:
    made = Memory()
    made.add(blob, digest_of(b""))
    with pytest.raises(ImageRefused, match=rf"layer 1 \(sha256:[0-9a-f]+\) is refused: .*{says}"):
        read(made)


@pytest.mark.parametrize("at", [3, 700, 5000])
def test_bytes_that_were_changed_on_their_way_are_found_by_their_digest_and_not_blamed_on_the_image(at: int) -> None:
    made = memory(tar(entry("x", os.urandom(20_000))))
    (name,) = made.blobs
    data = bytearray(made.blobs[name])
    data[at] ^= 0xFF
    made.blobs[name] = bytes(data)
    with pytest.raises(RegistryRefused, match="it is another blob"):
        read(made)


def test_what_unpacks_to_far_more_than_it_is_is_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "HARMLESS", 100_000)
    data = tar(entry("x", bytes(2_000_000)))
    for how in ("gzip", "zstd"):
        with pytest.raises(ImageRefused, match="unpacks to more than"):
            read(memory(data, how=how))
    monkeypatch.setattr(layers, "LARGEST", 1_000_000)
    with pytest.raises(ImageRefused, match="unpacks to more than 1 MB"):
        read(memory(data, how="bare"))


def test_zeros_behind_an_archive_are_a_bomb_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "HARMLESS", 100_000)
    with pytest.raises(ImageRefused, match="unpacks to more than"):
        read(memory(tar(entry("x")) + bytes(2_000_000)))


def test_files_and_folders_are_counted() -> None:
    budget = Budget(entries=100)
    blobs = memory(tar(*(entry(f"d/{number}") for number in range(98))), tar(entry("x"), entry("y")))
    for number in (1, 2):
        index = Index(number, blobs.layers[number - 1])
        if number == 1:
            read_layer(blobs, index, Lookout(frozenset()), budget, quiet)
            assert budget.entries == 1
        else:
            with pytest.raises(ImageRefused, match="more than 2000000 files and folders"):
                read_layer(blobs, index, Lookout(frozenset()), budget, quiet)


def test_what_reads_a_layer_is_closed_when_the_layer_is_refused() -> None:
    closed = []

    class Blobs(Memory):
        def read(self, blob, report):
            try:
                yield from super().read(blob, report)
            finally:
                closed.append(blob)

    made = Blobs(block=100)
    made.add(b"x" * 100_000, digest_of(b""))
    with pytest.raises(ImageRefused):
        read(made)
    assert len(closed) == 1
    assert threading.active_count() == 1
