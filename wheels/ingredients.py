"""What a wheel was made of, as data: it goes into the wheel as an SBOM, and into manifest and provenance.

Whoever makes a wheel fills it in; nothing here reads a recipe, so that what was made can be told long after.
"""

from __future__ import annotations

from typing import Annotated

from packageurl import PackageURL
from pydantic import Field

from core.config import Model

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Source(Model):
    """One origin of the source tree.

    ``origin`` is the URL of a repository or archive, NAME==VERSION of a source distribution, or a folder of this
    project; ``digest`` is `gitCommit:` or `sha256:` and hex, of a folder its tree_hash (build/tree.py).
    """

    place: str
    """`source`, `deps/VARIABLE`, or a submodule below one of them."""
    origin: str
    digest: Annotated[str, Field(pattern=r"^(gitCommit:[0-9a-f]{40}|sha256:[0-9a-f]{64})$")]

    @property
    def name(self) -> str:
        """The project's name, as its origin ends."""
        return self.origin.partition("==")[0].rstrip("/").rpartition("/")[2].removesuffix(".git")

    @property
    def version(self) -> str:
        """A source distribution's version; of all else what pins it."""
        return self.origin.partition("==")[2] or self.pin

    @property
    def pin(self) -> str:
        """The hex of the digest."""
        return self.digest.partition(":")[2]

    @property
    def sha256(self) -> str | None:
        """The pin, where it is the hash of a file or a tree."""
        return self.pin if self.digest.startswith("sha256:") else None

    @property
    def uri(self) -> str | None:
        """Where it is, in the form of SPDX for repositories; None for a folder of this project."""
        if self.sha256 is None:
            return f"git+{self.origin}@{self.pin}"
        if "==" in self.origin:
            return pypi(self.name, self.version).to_string()
        return self.origin if "://" in self.origin else None

    @property
    def purl(self) -> PackageURL | None:
        """Its package URL; None for a folder of this project."""
        if "==" in self.origin:
            return pypi(self.name, self.version)
        if self.uri is None:
            return None
        kind = {"download_url": self.origin} if self.sha256 else {"vcs_url": self.uri}
        return PackageURL("generic", name=self.name, version=self.pin, qualifiers=kind)


class Patch(Model):
    """A change of the source: the file's name, its hash, and where the change is discussed."""

    file: str
    sha256: Sha256
    link: str


class Pinned(Model):
    """A wheel that a build used."""

    name: str
    version: str
    filename: str
    sha256: Sha256

    @property
    def purl(self) -> PackageURL:
        """Its package URL."""
        return pypi(self.name, self.version, self.filename)


class Container(Model):
    """The image that a wheel was taken out of: digests as `sha256:` and hex, ``layers`` those that its files lay in."""

    reference: str
    digest: str
    platform: str = ""
    layers: tuple[str, ...] = ()

    @property
    def repository(self) -> str:
        """The reference without tag and digest."""
        plain = self.reference.partition("@")[0]
        head, slash, last = plain.rpartition("/")
        return f"{head}{slash}{last.partition(':')[0]}"

    @property
    def purl(self) -> PackageURL:
        """Its package URL."""
        name = self.repository.rpartition("/")[2].lower()
        where = {"repository_url": self.repository.lower()} if "/" in self.repository else {}
        return PackageURL("oci", name=name, version=self.digest, qualifiers=where)


class Ingredients(Model):
    """All that a wheel was made of; ``architectures`` are GPU architectures as nvcc names them."""

    recipe: str = ""
    variant: str | None = None
    architectures: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    patches: tuple[Patch, ...] = ()
    requirements: tuple[Pinned, ...] = ()
    """The wheels of the build environment."""
    toolkit: tuple[Pinned, ...] = ()
    """The wheels that the CUDA toolkit was made of, where it was not the machine's own."""
    image: Container | None = None


class Tool(Model):
    """A program of the machine that built: the line that names its version, and its file's hash where it was read."""

    name: str
    version: str
    sha256: Sha256 | None = None


def pypi(name: str, version: str, filename: str | None = None) -> PackageURL:
    """Return the package URL of a distribution, or of one file of it."""
    return PackageURL("pypi", name=name, version=version, qualifiers={"file_name": filename} if filename else None)
