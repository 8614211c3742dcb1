"""Software bills of materials (CycloneDX 1.6, JSON): of a wheel that we made, inside it, and of a whole release.

A wheel's own lies where PEP 770 puts it, `NAME.dist-info/sboms/sparkstack.cdx.json`. The same content always gives the
same bytes: no time is in it, and the serial number is derived from all the rest.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseAcknowledgement
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from core.errors import WheelRefused
from wheels.images.documents import Image
from wheels.ingredients import Container, Ingredients, Patch, Pinned, Source, pypi
from wheels.intact import metadata_of
from wheels.lock import marker_environment
from wheels.manifest import Manifest, Wheel
from wheels.target import Target

PLACE = "sboms/sparkstack.cdx.json"
"""In a wheel's `.dist-info`."""
OURS = "sparkstack:"
"""What the names of our own properties begin with."""
_NAMESPACE = uuid5(NAMESPACE_URL, "urn:sparkstack:sbom:v1")
_LONGEST_NAME = 100
"""Characters of a licence's name; what is longer is its text."""


def wheel_sbom(name: str, version: str, ingredients: Ingredients) -> bytes:
    """Return the SBOM of a wheel that we made: sources, patches, build requirements, or the image it lay in."""
    root = Component(
        name=canonicalize_name(name),
        version=version,
        type=ComponentType.LIBRARY,
        purl=pypi(canonicalize_name(name), version),
        bom_ref=pypi(canonicalize_name(name), version).to_string(),
        properties=_told(ingredients),
    )
    parts = {str(part.bom_ref.value): part for part in _parts(ingredients)}
    return _text(root, list(parts.values()), {})


def image_files(name: str, version: str, image: Image, layers: Iterable[str]) -> dict[str, bytes]:
    """Return what goes into the .dist-info of a wheel that was taken out of an image: its SBOM, by its place there."""
    taken = Container(
        reference=_public(image.pinned or image.reference),
        digest=image.digest,
        platform=image.platform,
        layers=tuple(dict.fromkeys(layers)),
    )
    return {PLACE: wheel_sbom(name, version, Ingredients(image=taken))}


def _public(reference: str) -> str:
    """Leave out in which folder of this host an image lies: the same image gives the same wheel everywhere."""
    kind, colon, path = reference.partition(":")
    return f"{kind}:{PurePosixPath(path).name}" if colon and kind in {"oci", "oci-archive"} else reference


def sbom_in(wheel: Path) -> bytes | None:
    """Return the SBOM of ours that an intact wheel holds; None where there is none."""
    with zipfile.ZipFile(wheel) as archive:
        found = (name for name in archive.namelist() if fnmatchcase(name, f"*.dist-info/{PLACE}"))
        return next((archive.read(name) for name in found if name.count("/") == 2), None)


def _told(ingredients: Ingredients) -> list[Property]:
    """Return what was asked for, as far as there is a recipe."""
    words = {
        "recipe": ingredients.recipe,
        "variant": ingredients.variant or "",
        "architectures": ",".join(ingredients.architectures),
    }
    return _properties((key, value) for key, value in words.items() if value)


def _properties(pairs: Iterable[tuple[str, str]]) -> list[Property]:
    return [Property(name=f"{OURS}{key}", value=value) for key, value in pairs]


def _parts(ingredients: Ingredients) -> Iterator[Component]:
    yield from (_source(one) for one in ingredients.sources)
    yield from (_patch(one) for one in ingredients.patches)
    yield from (_used(one, "build-requirement") for one in ingredients.requirements)
    yield from (_used(one, "cuda-toolkit") for one in ingredients.toolkit)
    if ingredients.image:
        yield _container(ingredients.image)


def _source(source: Source) -> Component:
    link = XsUri(source.uri) if source.uri else None
    kind = ExternalReferenceType.SOURCE_DISTRIBUTION if source.sha256 else ExternalReferenceType.VCS
    return Component(
        name=source.name,
        version=source.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{source.place} {source.digest}",
        purl=source.purl,
        hashes=_hashes(source.sha256) if source.purl else [],  # of a folder it is no file's
        external_references=[ExternalReference(type=kind, url=link)] if link else [],
        properties=_properties([("role", "source"), ("place", source.place), ("digest", source.digest)]),
    )


def _patch(patch: Patch) -> Component:
    return Component(
        name=patch.file,
        type=ComponentType.FILE,
        bom_ref=f"patch {patch.file}",
        hashes=_hashes(patch.sha256),
        external_references=[ExternalReference(type=ExternalReferenceType.ISSUE_TRACKER, url=XsUri(patch.link))],
        properties=_properties([("role", "patch")]),
    )


def _used(pinned: Pinned, role: str) -> Component:
    """Describe a wheel that was there only while it was built: CycloneDX calls such a part excluded."""
    return Component(
        name=pinned.name,
        version=pinned.version,
        type=ComponentType.LIBRARY,
        scope=ComponentScope.EXCLUDED,
        bom_ref=pinned.purl.to_string(),
        purl=pinned.purl,
        hashes=_hashes(pinned.sha256),
        properties=_properties([("role", role)]),
    )


def _container(image: Container) -> Component:
    told = [("role", "image"), ("reference", image.reference), *(("layer", layer) for layer in image.layers)]
    if image.platform:
        told.append(("platform", image.platform))
    return Component(
        name=image.repository,
        version=image.digest,
        type=ComponentType.CONTAINER,
        bom_ref=image.purl.to_string(),
        purl=image.purl,
        hashes=_hashes(image.digest.removeprefix("sha256:")),
        properties=_properties(told),
    )


def _hashes(sha256: str | None) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else []


def release_sbom(manifest: Manifest, place: Path) -> bytes:
    """Return the SBOM of a release: its wheels with hash, origin and licences, and what requires what among them.

    ``place`` is the folder of the wheels; only their METADATA is read. Raises BuildFailed for a wheel without one,
    WheelRefused for one whose requirements cannot be read.
    """
    read = {wheel.name: parse_email(metadata_of(place / wheel.filename))[0] for wheel in manifest.wheels}
    refs = {wheel.name: _ref(wheel) for wheel in manifest.wheels}
    edges = _required(read, manifest.target)
    told = [("stack", manifest.stack), ("target", manifest.target.in_words), ("lock-sha256", manifest.lock_sha256)]
    root = Component(
        name=manifest.release,
        version=manifest.lock_sha256,
        type=ComponentType.APPLICATION,
        bom_ref=manifest.release,
        properties=_properties(told),
    )
    parts = [_listed(wheel, read[wheel.name]) for wheel in manifest.wheels]
    return _text(root, parts, {refs[name]: [refs[one] for one in names] for name, names in edges.items()})


def _ref(wheel: Wheel) -> str:
    return pypi(wheel.name, wheel.version).to_string()


def _listed(wheel: Wheel, metadata: RawMetadata) -> Component:
    told = [
        ("origin", wheel.origin),
        ("filename", wheel.filename),
        ("redistributable", str(wheel.redistributable).lower()),
    ]
    made = {"recipe-hash": wheel.recipe, "tree": wheel.tree, "image": wheel.image}
    return Component(
        name=wheel.name,
        version=wheel.version,
        type=ComponentType.LIBRARY,
        bom_ref=_ref(wheel),
        purl=pypi(wheel.name, wheel.version),
        description=metadata.get("summary"),
        hashes=_hashes(wheel.sha256),
        licenses=list(licenses(metadata)),
        properties=_properties([*told, *((key, value) for key, value in made.items() if value)]),
    )


def licenses(metadata: RawMetadata) -> Iterator[License]:
    """Return the licences that a distribution declares, each as CycloneDX knows it.

    PEP 639's expression counts alone. Before it there were a free text, which may be a whole licence, and classifiers.
    """
    said = metadata.get("license_expression") or _short(metadata.get("license"))
    declared = LicenseAcknowledgement.DECLARED
    first = LicenseFactory().make_from_string(said, license_acknowledgement=declared) if said else None
    if first is not None and not (isinstance(first, DisjunctiveLicense) and first.name):
        yield first
        return
    classifiers = (one for one in metadata.get("classifiers", []) if one.startswith("License ::"))
    names = [one.rpartition("::")[2].strip() for one in classifiers]
    for name in dict.fromkeys([*([said] if said else []), *names]):
        yield DisjunctiveLicense(name=name, acknowledgement=declared)


def _short(text: str | None) -> str | None:
    """Return the first line of a License field as a name; nothing for what old tools wrote where there was none."""
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[0][:_LONGEST_NAME] if lines and lines[0] not in {"UNKNOWN", "LICENSE"} else None


def _required(read: Mapping[str, RawMetadata], target: Target) -> dict[str, list[str]]:
    """Return which wheels of the release each one requires on the target, extras that another asks for included."""
    environment = marker_environment(target)
    found: dict[str, set[str]] = {name: set() for name in read}
    waiting = [(name, "") for name in read]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        for requirement in _requirements(name, read[name]):
            needed = canonicalize_name(requirement.name)
            marker = requirement.marker
            if needed in read and (marker is None or marker.evaluate({**environment, "extra": extra})):
                found[name].add(needed)
                asked = {(needed, wanted) for wanted in requirement.extras} - seen
                seen |= asked
                waiting += sorted(asked)
    return {name: sorted(names - {name}) for name, names in found.items()}


def _requirements(name: str, metadata: RawMetadata) -> Iterator[Requirement]:
    for line in metadata.get("requires_dist", []):
        try:
            yield Requirement(line)
        except InvalidRequirement as error:
            raise WheelRefused(
                f"the METADATA of {name} requires {line!r}, which is no requirement",
                next_move="take another version of it: installers cannot read this one",
            ) from error


def _text(root: Component, parts: list[Component], edges: Mapping[str, Iterable[str]]) -> bytes:
    """Write a BOM; the root depends on all of its parts."""
    tools = ToolRepository(components=[Component(name="sparkstack", type=ComponentType.APPLICATION)])
    bom = Bom(metadata=BomMetaData(component=root, tools=tools), components=parts)
    by_ref = {str(part.bom_ref.value): part for part in parts}
    bom.register_dependency(root, parts)
    for ref, part in by_ref.items():
        bom.register_dependency(part, [by_ref[one] for one in edges.get(ref, ())])
    data = json.loads(JsonV1Dot6(bom).output_as_string())
    del data["metadata"]["timestamp"], data["serialNumber"]
    plain = json.dumps(data, sort_keys=True)
    data["serialNumber"] = uuid5(_NAMESPACE, plain).urn
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()
