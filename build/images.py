"""Components of a stack that are taken out of images: what is still to be taken, and what was taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from packaging.utils import canonicalize_name

from build.request import Build
from core.config import Component, Stack, shown
from core.errors import BuildFailed
from core.host import CONTROLLER
from core.plan import Call, Report
from wheels.extract import PLATFORMS, take_components
from wheels.extracted import Extracted, taken_components
from wheels.ingredients import Container, Ingredients
from wheels.manifest import Wheel, sha256_of


def extract_steps(build: Build, have: Mapping[str, Wheel]) -> Iterator[Call]:
    """Return a step for each image that holds components which are not there yet, or are from another image."""
    images: dict[str, list[str]] = {}
    for name, component in components_of(build).items():
        if not _is_taken(component, have.get(canonicalize_name(name))):
            images.setdefault(str(component.image), []).append(name)
    return (_extract_step(build, image, names) for image, names in images.items())


def components_of(build: Build) -> dict[str, Component]:
    """Return the components that come from images; none where single ones are built."""
    found = _from_images(build.stack)
    return {} if build.only else found


def _from_images(stack: Stack) -> dict[str, Component]:
    return {canonicalize_name(name): one for name, one in stack.components.items() if one.origin == "image"}


def _is_taken(component: Component, have: Wheel | None) -> bool:
    asked = ("image", component.image, component.version)
    return have is not None and (have.origin, have.image, have.version) == asked


def taken_wheels(stack: Stack, place: Path) -> tuple[Wheel, ...]:
    """Return the manifest's entries of the wheels in ``place`` that came from the images which the stack names."""
    components = _from_images(stack)
    return tuple(_wheel(components[one.name], one) for one in taken_components(stack, place))


def _wheel(component: Component, taken: Extracted) -> Wheel:
    image = Container(reference=taken.reference, digest=taken.manifest, platform=taken.platform, layers=taken.layers)
    return Wheel(
        name=taken.name,
        version=taken.version,
        filename=taken.filename,
        sha256=taken.sha256,
        size=taken.size,
        origin="image",
        image=taken.reference,
        layers=taken.layers,
        redistributable=component.may_be_given,
        made_of=Ingredients(image=image),
    )


def listed_images(build: Build) -> Iterator[Wheel]:
    """Return the entries of all components from images, their wheels hashed again. Raises BuildFailed."""
    taken = {wheel.name: wheel for wheel in taken_wheels(build.stack, build.place)}
    for name in components_of(build):
        if name not in taken or sha256_of(build.place / taken[name].filename) != taken[name].sha256:
            raise BuildFailed(f"{name} is not the wheel that was extracted", next_move="run the same command again")
        yield taken[name]


def _extract_step(build: Build, image: str, names: list[str]) -> Call:
    wanted = [f"{name}=={build.stack.components[name].version}" for name in names]
    flags = " ".join(f"--dist {one}" for one in wanted)
    platform = PLATFORMS[build.target.architecture]
    return Call(
        node=CONTROLLER,
        title=f"extract {', '.join(wanted)}",
        reason="the stack takes it out of an image, by digest; only the layers that hold it are fetched",
        shown=f"invoke wheels.extract --image {image} {flags} --platform {platform} --into {shown(build.place)}",
        action=partial(_take, build, names),
    )


def _take(build: Build, names: list[str], report: Report) -> None:
    build.place.mkdir(parents=True, exist_ok=True)
    take_components(build.stack, names, build.target, build.place, report)
