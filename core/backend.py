"""How the environment of a release is made on a node: a venv, or an environment of the owner's Miniforge."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from core.fields import Folder, Model, Name
from core.parsers import python_version

Minor = tuple[int, int]


class Backend(Model):
    """What makes the environment of a release, and which Python it gets."""

    kind: Literal["venv", "conda"] = "venv"
    """"venv": by a Python of the node or one that is brought; "conda": by the node's own Miniforge, offline."""
    python: Literal["found", "brought"] = "found"
    """With "venv": "brought" takes the stack's own Python also where the node has one of that version."""
    miniforge: Folder | None = None
    """Where the owner installed Miniforge; without the key ~/miniforge3 of the cluster's user."""
    name: Name = "sparkstack"
    """What `conda activate` takes for the release in use."""
    prefix: Folder | None = None
    """Where that environment seems to lie, if not in Miniforge's envs/."""

    @property
    def conda(self) -> bool:
        """Whether Miniforge makes the environments."""
        return self.kind == "conda"

    @model_validator(mode="after")
    def _conda_has_its_own_python(self) -> Self:
        if self.conda and self.python == "brought":
            raise ValueError('with kind "conda" Python is of the node\'s Miniforge; leave the key "python" out')
        return self


class Interpreter(Model):
    """A Python that can be brought: an archive in the layout of python-build-standalone's `install_only`."""

    version: Annotated[str, Field(pattern=r"^3\.\d+\.\d+$")]
    platform: str
    """Architecture as `uname -m` says it."""
    url: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @property
    def minor(self) -> Minor:
        """The minor version, as wheels name it."""
        return python_version(self.version)

    @property
    def folder(self) -> str:
        """What it is called in ROOT/python on a node."""
        return f"{self.version}-{self.sha256[:10]}"

    @property
    def archive(self) -> str:
        """What its archive is called, here and on a node; its URL may end with anything."""
        return f"{self.folder}.tar.gz"


def plain(minor: Minor) -> str:
    """Return "3.12" for (3, 12)."""
    return "{}.{}".format(*minor)
