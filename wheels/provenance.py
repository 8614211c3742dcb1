"""Where a wheel that we made comes from: an in-toto Statement v1 with SLSA's provenance v1, docs/provenance.md.

https://github.com/in-toto/attestation/tree/main/spec/v1 and https://slsa.dev/spec/v1.1/provenance say what the fields
are. All of it stands in the manifest, so it can be written long after the recipe has changed; the same manifest gives
the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from wheels.ingredients import Container, Ingredients, Pinned, Source, Tool
from wheels.manifest import Manifest, Wheel

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD = "urn:sparkstack:build:v1"
"""A recipe's build (docs/provenance.md). A URI that collides with none and names no domain, because none is ours."""
EXTRACTION = "urn:sparkstack:extraction:v1"
"""Taken out of an image."""
BUILDER = "urn:sparkstack:builder:v1"
Descriptor = dict[str, Any]
"""A ResourceDescriptor: name, uri, digest, annotations."""


def statement(manifest: Manifest, wheel: Wheel) -> bytes:
    """Return the provenance of a wheel with origin "source" or "image", as JSON.

    Where an older version of the suite has kept less, it holds what there is: recipe hash and tree, or the image.
    """
    if wheel.origin == "index":
        raise ValueError(f"{wheel.filename} was not made here")
    known = wheel.made_of or Ingredients(image=_image_of(wheel))
    definition = {
        "buildType": BUILD if wheel.origin == "source" else EXTRACTION,
        "externalParameters": _asked(manifest, wheel, known),
        "resolvedDependencies": list(_dependencies(wheel, known)),
    }
    run = {"builder": {"id": BUILDER}, "metadata": {"invocationId": wheel.recipe or wheel.image or ""}}
    told = {
        "_type": STATEMENT,
        "subject": [{"name": wheel.filename, "digest": {"sha256": wheel.sha256}}],
        "predicateType": PREDICATE,
        "predicate": {"buildDefinition": definition, "runDetails": run},
    }
    return (json.dumps(told, indent=1, sort_keys=True) + "\n").encode()


def _image_of(wheel: Wheel) -> Container | None:
    if wheel.image is None:
        return None
    return Container(reference=wheel.image, digest=wheel.image.rpartition("@")[2], layers=wheel.layers)


def _asked(manifest: Manifest, wheel: Wheel, known: Ingredients) -> dict[str, Any]:
    """Return what the user of the suite decided; empty words are left out."""
    asked = {
        "stack": manifest.stack,
        "component": wheel.name,
        "target": manifest.target.tag,
        "recipe": known.recipe,
        "variant": known.variant,
        "architectures": list(known.architectures),
        "image": known.image.reference if known.image else None,
        "development": wheel.development,
    }
    return {key: value for key, value in asked.items() if value}


def _dependencies(wheel: Wheel, known: Ingredients) -> Iterator[Descriptor]:
    yield from (_source(one) for one in known.sources)
    for patch in known.patches:
        yield _described("patch", patch.file, sha256=patch.sha256, link=patch.link)
    if wheel.tree:
        yield _described("tree", "source", sha256=wheel.tree)
    yield from (_used("build requirement", one) for one in known.requirements)
    yield from (_used("CUDA toolkit", one) for one in known.toolkit)
    yield from (_tool(one) for one in wheel.toolchain)
    if known.image:
        yield from _image(known.image)


def _described(role: str, name: str, *, uri: str | None = None, sha256: str | None, **more: str) -> Descriptor:
    """Return a descriptor; it has a URI, a digest or both, as the specification asks."""
    found: Descriptor = {"name": name, "annotations": {"role": role, **more}}
    if uri:
        found["uri"] = uri
    if sha256:
        found["digest"] = {"sha256": sha256}
    return found


def _source(source: Source) -> Descriptor:
    found = _described("source", source.origin, uri=source.uri, sha256=source.sha256, place=source.place)
    return found if source.sha256 else {**found, "digest": {"gitCommit": source.pin}}


def _used(role: str, pinned: Pinned) -> Descriptor:
    return _described(role, pinned.filename, uri=pinned.purl.to_string(), sha256=pinned.sha256)


def _tool(tool: Tool) -> Descriptor:
    uri = None if tool.sha256 else f"urn:sparkstack:tool:{tool.name}"
    return _described("tool", tool.name, uri=uri, sha256=tool.sha256, version=tool.version)


def _image(image: Container) -> Iterator[Descriptor]:
    yield _described("image", image.reference, uri=image.purl.to_string(), sha256=image.digest.removeprefix("sha256:"))
    for layer in image.layers:
        yield _described("layer", layer, sha256=layer.removeprefix("sha256:"))
