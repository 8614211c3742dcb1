"""Wheels out of an image: its layers' files of some distributions, RECORD proved, canonical wheels, a record of each.

While a record is true of the wheel that lies beside it, nothing is fetched again. What was fetched of an image stays in
`.work/blobs` for the next command.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from core.command import Options, answer, answer_json, show_plan
from core.config import WORK, Stack, shown
from core.errors import ImageRefused, UsageError
from core.host import CONTROLLER
from core.plan import Call, Plan, Report, make_plan, megabytes
from core.screen import Screen
from core.store import digest, full_disk_is_said, held
from wheels.canonical import EARLIEST
from wheels.extracted import Extracted, record, recorded, same_version
from wheels.images.image import Found, Wanted, extract_files
from wheels.images.oci import Blobs, Image, open_image
from wheels.installed import rebuild
from wheels.sbom import image_files
from wheels.target import Target

PLATFORMS = {"aarch64": "linux/arm64", "x86_64": "linux/amd64"}
"""How images call what `uname -m` says."""
_DIST = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?: *== *(?P<version>[^\s@]+))?(?:@/(?P<site>\S+))?"
)
Bill = Callable[[Found, Image], Mapping[str, bytes]]
"""Gives files for the .dist-info of a wheel, like an SBOM."""


def told(found: Found, image: Image) -> Mapping[str, bytes]:
    """Return the SBOM that says which image a wheel was taken out of, and which layers of it."""
    return image_files(found.name, found.version, image, found.layers)


@dataclass(frozen=True)
class Wish:
    """What `invoke wheels.extract` is told; ``epoch`` is the time of the files in the wheels, in seconds."""

    reference: str
    wanted: tuple[Wanted, ...]
    target: Path
    platform: str = PLATFORMS["aarch64"]
    epoch: int = EARLIEST
    work: Path = WORK


def wanted_of(dists: Iterable[str]) -> tuple[Wanted, ...]:
    """Return what `--dist NAME[==VERSION][@/FOLDER][,…]` asks for; the folder is the one that holds its .dist-info.

    Raises UsageError for what is no such list.
    """
    wanted: dict[str, Wanted] = {}
    for word in (word.strip() for dist in dists for word in dist.split(",")):
        one = _wanted(word)
        if one.name in wanted:
            raise UsageError(f"--dist names {one.name} twice", next_move="name each distribution once")
        wanted[one.name] = one
    if not wanted:
        raise UsageError("no distribution is named", next_move="write --dist flash-attn,flashinfer-python")
    return tuple(wanted.values())


def _wanted(word: str) -> Wanted:
    match = _DIST.fullmatch(word)
    try:
        if match:
            version = str(Version(match["version"])) if match["version"] else None
            site = PurePosixPath(match["site"]) if match["site"] else None
            return Wanted(canonicalize_name(match["name"]), version, site)
    except InvalidVersion:
        pass  # said below
    raise UsageError(
        f"--dist {word!r} is not NAME, NAME==VERSION or NAME==VERSION@/FOLDER", next_move="write --dist torch==2.9.0"
    )


def extract(wish: Wish, report: Report, *, bill: Bill | None = None) -> tuple[Extracted, ...]:
    """Take the wanted distributions out of the image, in one pass over its layers; return all of them as recorded.

    Those that are there already, from the same image, are left alone. ``bill`` adds files to the rebuilt wheels.
    Raises UsageError, RegistryRefused, and ImageRefused, also when the image has another version than was asked for.
    """
    with held(wish.work / "extract" / ".lock", "extracts wheels", report), full_disk_is_said(wish.work):
        with open_image(wish.reference, report, work=wish.work) as blobs:
            image = blobs.image(wish.platform)
            missing = _missing(wish, image)
            if missing:
                _take(wish, blobs, image, missing, report=report, bill=bill)
        names = {want.name for want in wish.wanted}
        taken = tuple(one for one in recorded(wish.target) if one.name in names)
        return tuple(_known_as(wish, one) for one in taken)


def _take(
    wish: Wish, blobs: Blobs, image: Image, missing: tuple[Wanted, ...], *, report: Report, bill: Bill | None
) -> None:
    with _folder(wish.work) as folder:
        for found in _as_asked(wish, missing, extract_files(blobs, image, missing, folder, report)):
            extra = bill(found, image) if bill else {}
            made = rebuild(folder, found, wish.target, epoch=wish.epoch, extra=extra)
            record(wish.target, _described(wish, made, found, image))
            report(f"{made.name}: {megabytes(made.stat().st_size)}")


def _known_as(wish: Wish, one: Extracted) -> Extracted:
    """Note that a wheel which was there already is what this reference means, too."""
    if one.reference == wish.reference:
        return one
    known = one.model_copy(update={"reference": wish.reference})
    record(wish.target, known)
    return known


@contextmanager
def _folder(work: Path) -> Iterator[Path]:
    """Give an empty folder for files of the image; what killed commands left there goes first."""
    for left in (work / "extract").glob("image-*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix="image-", dir=work / "extract") as name:
        folder = Path(name) / "root"
        folder.mkdir()
        yield folder


def _as_asked(wish: Wish, missing: tuple[Wanted, ...], found: Sequence[Found]) -> Sequence[Found]:
    """Refuse an image that has not all, or in other versions, before a wheel is written."""
    there = {str(canonicalize_name(one.name)): one.version for one in found}
    for want in missing:
        if want.name not in there:
            raise ImageRefused(
                f"{wish.reference} does not hold {want.name}", next_move="name another image, or another distribution"
            )
        if want.version is not None and not same_version(want.version, there[want.name]):
            raise ImageRefused(
                f"{wish.reference} holds {want.name} {there[want.name]}, asked for was {want.version}",
                next_move=f"ask for {want.name}=={there[want.name]}, or name another image",
            )
    return found


def _described(wish: Wish, wheel: Path, found: Found, image: Image) -> Extracted:
    name, version, _, tags = parse_wheel_filename(wheel.name)
    return Extracted(
        name=canonicalize_name(name),
        version=str(version),
        filename=wheel.name,
        sha256=digest(wheel),
        size=wheel.stat().st_size,
        tags=tuple(sorted(map(str, tags))),
        kind=found.kind,
        site=str(found.site),
        reference=wish.reference,
        image=image.pinned,
        manifest=image.digest,
        platform=image.platform,
        layers=found.layers,
    )


def _missing(wish: Wish, image: Image) -> tuple[Wanted, ...]:
    """Return what is not there yet from this image, the wheels that are there hashed again."""
    there = {
        one.name: one
        for one in recorded(wish.target)
        if (one.manifest, one.platform) == (image.digest, image.platform)
        and digest(wish.target / one.filename) == one.sha256
    }
    return tuple(want for want in wish.wanted if want.name not in there or not _fits(want, there[want.name]))


def _fits(want: Wanted, one: Extracted) -> bool:
    return (want.version is None or same_version(want.version, one.version)) and str(want.site or one.site) == one.site


def plan_extract(wish: Wish, image: Image) -> Plan:
    """Return what takes the wanted distributions out of the image; empty when all of them are there."""
    missing = _missing(wish, image)
    steps = [_step(wish, image, want) for want in missing]
    return make_plan(
        f"wheels out of {wish.reference} for {image.platform}, into {shown(wish.target)}",
        (("take out of the image", steps),),
        _notes(wish, image) if missing else (),
    )


def _step(wish: Wish, image: Image, want: Wanted) -> Call:
    dist = want.name + (f"=={want.version}" if want.version else "") + (f"@/{want.site}" if want.site else "")
    flags = f"--dist {dist} --platform {image.platform} --into {shown(wish.target)}"
    return Call(
        node=CONTROLLER,
        title=f"extract {dist}",
        reason=f"not there yet from {image.digest[:19]}",
        shown=f"invoke wheels.extract --image {image.pinned} {flags}",
        action=lambda report: extract(wish, report),
    )


def _notes(wish: Wish, image: Image) -> Iterator[str]:
    if image.pinned and image.pinned != wish.reference:
        yield f"to have the same image again, name {image.pinned}"
    total = sum(layer.blob.size for layer in image.layers)
    yield f"{len(image.layers)} layers, {megabytes(total)}; read from the top until all is found:"
    for number, layer in reversed(list(enumerate(image.layers, 1))):
        yield f"layer {number}: {megabytes(layer.blob.size)}, {layer.blob.digest}"


def run_extract(wish: Wish, options: Options) -> None:
    """Do what `invoke wheels.extract` does: look at the image, plan, take, look again, and answer what is there."""
    image = look(wish, Screen().line)
    plan = plan_extract(wish, image)
    if options.plan_only:
        show_plan(plan, options)
        return
    taken = extract(wish, Screen().line, bill=told)
    _answer(wish, taken, options, changed=not plan.empty)


def look(wish: Wish, report: Report) -> Image:
    """Return the image that the wish names, from its documents alone: no layer is fetched."""
    with open_image(wish.reference, report, work=wish.work) as blobs:
        return blobs.image(wish.platform)


def _answer(wish: Wish, taken: Sequence[Extracted], options: Options, *, changed: bool) -> None:
    image = taken[0].image
    if options.as_json:
        wheels = [one.model_dump(mode="json") for one in taken]
        answer_json({"changed": changed, "image": image, "platform": wish.platform, "wheels": wheels})
        return
    lines = [] if changed else ["nothing to do"]
    lines += [f"{one.filename}  {megabytes(one.size)}  sha256:{one.sha256}" for one in taken]
    answer("\n".join([*lines, f"image: {image}"]))


def take_components(
    stack: Stack, names: Iterable[str], target: Target, place: Path, report: Report, *, work: Path = WORK
) -> tuple[Extracted, ...]:
    """Take components of a stack whose origin is an image into the folder ``place``: each image is gone through once.

    Raises what extract() raises; ImageRefused names both versions where the image has another one than the stack.
    """
    names = {canonicalize_name(name) for name in names}
    images: dict[str, list[Wanted]] = {}
    for name, component in stack.components.items():
        if canonicalize_name(name) in names and component.image is not None:
            images.setdefault(component.image, []).append(Wanted(canonicalize_name(name), component.version))
    taken: list[Extracted] = []
    for reference, wanted in images.items():
        platform = PLATFORMS[target.architecture]
        wish = Wish(reference, tuple(wanted), place, platform, work=work)
        taken += extract(wish, report, bill=told)
    return tuple(taken)
