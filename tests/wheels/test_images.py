"""Images as umoci makes and unpacks them: what comes out of ours is what lies in the image that umoci unpacked."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import ImageRefused
from core.process import run
from tests.unit.imagesamples import Sample, tagged
from tests.unit.layersamples import (
    FOLDER,
    SITE,
    Entry,
    distribution,
    entry,
    files,
    hard,
    link,
    opaque,
    tar,
    tree,
    whiteout,
)
from tests.wheels.images import Workbench
from wheels.images.image import Found, Wanted, extract_files
from wheels.images.oci import open_image

pytestmark = pytest.mark.wheels
PLATFORM = "linux/amd64"
CONTENT = {
    f"pkg/{folder}{name}.py": f"{folder}{name}\n".encode() * 40 for folder in ("", "a/", "a/b/", "c/") for name in "xyz"
}
WHOLE = distribution(content=CONTENT)
OTHER = distribution("other", "2.0", {"other/__init__.py": b"other\n", "pkg/shared.py": b"shared\n"})


def quiet(_: str) -> None:
    pass


def extract(reference: str, folder: Path, work: Path, *names: str) -> tuple[Found, ...]:
    with open_image(reference, quiet, work=work) as blobs:
        return extract_files(blobs, blobs.image(PLATFORM), [Wanted(name) for name in names], folder, quiet)


def unpacked(reference: str, place: Path) -> dict[str, bytes]:
    """Return the files of an image as umoci lays them out."""
    run(["umoci", "unpack", "--image", reference.removeprefix("oci:"), str(place)])
    root = place / "rootfs"
    plain = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(root)): path.read_bytes() for path in plain}


def put(root: Path, content: dict[str, bytes]) -> None:
    """Write files, whatever is in their places."""
    for path, body in content.items():
        target = root / path
        for up in target.parents:
            if up.is_file():
                up.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        target.write_bytes(body)


# layers by umoci, from changes on the disk


def replace(root: Path, noise: random.Random) -> None:
    for path in noise.sample(sorted(WHOLE), 3):
        put(root, {path: WHOLE[path]} if noise.random() < 0.7 else {path: b"changed\n"})


def remove(root: Path, noise: random.Random) -> None:
    path = root / noise.choice([f"{SITE}/pkg/a/x.py", f"{SITE}/pkg/a", f"{SITE}/pkg/c", f"{SITE}/pkg-1.0.dist-info"])
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def put_back(root: Path, noise: random.Random) -> None:
    put(root, WHOLE if noise.random() < 0.5 else {path: body for path, body in WHOLE.items() if "/pkg/" in path})


def exchange(root: Path, noise: random.Random) -> None:
    """Put a file where a folder was, or the other way round."""
    folder, file = root / SITE / "pkg" / "a", root / SITE / "pkg" / "x.py"
    chosen = noise.choice([folder, file])
    if chosen.is_dir():
        shutil.rmtree(chosen)
        chosen.write_bytes(b"a file\n")
    else:
        chosen.unlink(missing_ok=True)
        put(chosen, {"inner": b"x"})


def link_hard(root: Path, noise: random.Random) -> None:
    there = sorted(path for path in (root / SITE / "pkg").rglob("*.py") if path.is_file())
    if there:
        (root / f"link-{noise.randrange(10**6)}").hardlink_to(noise.choice(there))


def unrelated(root: Path, noise: random.Random) -> None:
    put(root, {f"srv/{noise.randrange(1000)}": noise.randbytes(2000)})


CHANGES: tuple[Callable[[Path, random.Random], None], ...] = (
    replace,
    remove,
    put_back,
    put_back,
    link_hard,
    unrelated,
    exchange,
)


@pytest.mark.parametrize("seed", range(12))
def test_images_that_grew_by_changes_are_read_as_umoci_unpacks_them(seed: int, tmp_path: Path) -> None:
    noise = random.Random(seed)
    bench = Workbench(tmp_path / "bench")
    bench.begin()
    with bench.layer() as root:
        put(root, WHOLE)
        put(root, OTHER)
    for _ in range(4):
        with bench.layer() as root:
            for change in noise.sample(CHANGES, 2):
                if (root / SITE / "pkg").is_dir() or change is put_back:
                    change(root, noise)
        if noise.random() < 0.4:
            put(tmp_path / "opaque", {"x.py": CONTENT["pkg/x.py"], "new.py": b"new\n"})
            bench.opaque(tmp_path / "opaque", f"/{SITE}/pkg/c")
    compare(bench.reference, tmp_path)


def compare(reference: str, place: Path) -> None:
    """Take what is installed out of an image in both ways."""
    theirs = unpacked(reference, place / "theirs")
    for name, listed in (("pkg", WHOLE), ("other", OTHER)):
        out = place / f"ours-{name}"
        if set(listed) <= theirs.keys():
            extract(reference, out, place / "work", name)
            assert tree(out) == {path: theirs[path] for path in listed}
        else:
            with pytest.raises(ImageRefused):
                extract(reference, out, place / "work", name)


# layers by hand, as no tool makes them


def entries(noise: random.Random) -> list[Entry]:
    """Return a layer of all that the specification knows, and of what extractors take besides."""
    paths = [*sorted(WHOLE), f"{SITE}/pkg/a", f"{SITE}/pkg/a/b", f"{SITE}/pkg", SITE, "srv/x"]
    made: list[Entry] = []
    for _ in range(noise.randint(1, 8)):
        path = noise.choice(paths)
        body = WHOLE.get(path, b"new\n") if noise.random() < 0.6 else b"another\n"
        is_folder = path not in WHOLE and path != "srv/x"
        made.append(
            noise.choice(
                [
                    entry(path, type=FOLDER, mode=0o755) if is_folder else entry(path, body),
                    entry(path, type=FOLDER, mode=0o755) if is_folder else entry(path, body),
                    entry(f"./{path}", body) if not is_folder else opaque(path),
                    whiteout(path),
                    hard(noise.choice(sorted(WHOLE)), noise.choice(sorted(WHOLE))),
                    link(path, "/srv/x") if noise.random() < 0.2 else entry("srv/x", b"x"),
                ]
            )
        )
    return made


def test_layers_made_by_hand_are_read_as_umoci_unpacks_them_or_refused(tmp_path: Path) -> None:
    """Where umoci itself gives up, there is nothing to compare with: then ours may only take what it can prove."""
    noise, compared = random.Random(4), 0
    for number in range(60):
        place = tmp_path / str(number)
        layers = [files({**WHOLE, **OTHER}), *(entries(noise) for _ in range(noise.randint(1, 3)))]
        sample = Sample()
        image = sample.image(*(tar(*one) for one in layers), platform=PLATFORM, config={"config": {}})
        sample.folder(place / "layout", tagged(image, "made"))
        reference = f"oci:{place / 'layout'}:made"
        done = run(["umoci", "unpack", "--image", reference.removeprefix("oci:"), str(place / "probe")], check=False)
        if done.code == 0:
            compared += taken_or_refused(reference, place)
        shutil.rmtree(place)
    assert compared > 10


def taken_or_refused(reference: str, place: Path) -> int:
    """Compare what ours takes with umoci's; return how many distributions it took."""
    theirs, taken = unpacked(reference, place / "theirs"), 0
    for name, listed in (("pkg", WHOLE), ("other", OTHER)):
        out = place / f"ours-{name}"
        try:
            extract(reference, out, place / "work", name)
        except ImageRefused:
            continue
        assert tree(out) == {path: theirs[path] for path in listed}
        taken += 1
    return taken


def test_a_layer_of_another_tool_is_read_at_any_size(tmp_path: Path) -> None:
    """GNU tar and pigz-like members, files of some megabytes: what comes out has the digests of what went in."""
    noise = random.Random(9)
    content = {f"pkg/data/{number}": noise.randbytes(noise.randrange(3_000_000)) for number in range(12)}
    whole = distribution(content={**content, f"pkg/{'long' * 30}/{'name' * 40}.py": b"long\n"})
    bench = Workbench(tmp_path / "bench")
    bench.begin()
    with bench.layer() as root:
        put(root, whole)
    extract(bench.reference, tmp_path / "out", tmp_path / "work", "pkg")
    assert {path: hashlib.sha256(body).digest() for path, body in tree(tmp_path / "out").items()} == {
        path: hashlib.sha256(body).digest() for path, body in whole.items()
    }
