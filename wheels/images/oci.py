"""Images without Docker: one door to a registry, and to a layout or archive on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.config import WORK
from core.plan import Report
from wheels.images.blobstore import forget
from wheels.images.documents import Blobs, Descriptor, Image, Layer
from wheels.images.layout import open_archive, open_folder
from wheels.images.pull import open_repository
from wheels.images.reference import parse_reference

__all__ = ["Blobs", "Descriptor", "Image", "Layer", "forget", "open_image"]

FOLDER = "oci:"
ARCHIVE = "oci-archive:"


@contextmanager
def open_image(reference: str, report: Report, *, work: Path = WORK) -> Iterator[Blobs]:
    """Open an image: "nvcr.io/nvidia/vllm:25.11-py3", "host:5000/repository@sha256:HEX" from a registry,
    "oci:FOLDER[:TAG]" and "oci-archive:FILE[:TAG]" from the disk. Nothing is fetched before it is asked for.

    What a registry gives is kept below ``work``. Raises UsageError for what is no reference; RegistryRefused and
    ImageRefused.
    """
    if reference.startswith(FOLDER):
        with open_folder(reference, reference.removeprefix(FOLDER)) as layout:
            yield layout
    elif reference.startswith(ARCHIVE):
        with open_archive(reference, reference.removeprefix(ARCHIVE)) as layout:
            yield layout
    else:
        with open_repository(parse_reference(reference), report, work=work) as repository:
            yield repository
