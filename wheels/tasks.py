"""Tasks of wheels/: publish, wheels.extract, wheels.inspect, wheels.sign, wheels.verify."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from invoke.context import Context
from invoke.tasks import task
from rich.console import Console

from core.choice import chosen_cluster
from core.command import Options, answer, answer_json, command, mend
from core.config import DIST, Stack, load_stack, shown
from core.errors import WheelRefused
from wheels.extract import Wish as ExtractWish
from wheels.extract import run_extract, wanted_of
from wheels.inspect import as_data, show
from wheels.inspect import inspect as examine
from wheels.manifest import MANIFEST
from wheels.publishing.audit import audit
from wheels.publishing.publish import Wish as PublishWish
from wheels.publishing.publish import built
from wheels.publishing.publish import publish as make_public
from wheels.signature import is_signed, sign_wheels


@task(
    iterable=["to"],
    help={
        "stack": "whose release; the cluster's when left out",
        "cluster": "whose stack; without it SPARKSTACK_CLUSTER, else spark",
        "target": "of which machines (aarch64-cp312), where wheels for several are there",
        "to": "folder:PATH, index:URL, oci:HOST/REPOSITORY, github:OWNER/REPOSITORY (may be repeated)",
        "private": "those places can be read by you only: wheels that others may not be given go there too",
        "key": "SSH key that signs the release (a .pub of the agent's will do)",
        "dry-run": "show what is to be sent and stop",
        "json": "answer as JSON",
    },
)
@command
def publish(
    _: Context,
    stack: str = "",
    cluster: str = "",
    target: str = "",
    to: Sequence[str] | None = None,
    private: bool = False,
    key: str = "",
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Make the release: a folder that is a package index, with SBOM, provenance and hashes; send it to other places."""
    signer = Path(key).expanduser() if key else None
    wish = PublishWish(_stack(stack, cluster), target=target, to=tuple(to or ()), private=private, key=signer)
    make_public(wish, Options(dry_run, json))


@task(
    iterable=["dist"],
    help={
        "image": "REGISTRY/REPOSITORY:TAG or …@sha256:DIGEST, oci:FOLDER[:TAG], oci-archive:FILE[:TAG]",
        "dist": "what to take: NAME[==VERSION][@/FOLDER] (may be repeated, or hold commas)",
        "platform": "which of the image's platforms",
        "into": "folder for the wheels",
        "dry-run": "ask the registry for the image and show its layers, fetch none",
        "json": "answer as JSON",
    },
)
@command
def extract(
    _: Context,
    image: str,
    dist: Sequence[str] | None = None,
    platform: str = "linux/arm64",
    into: str = "",
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Take installed distributions out of an image as wheels, without Docker: only the layers that hold them."""
    target = Path(into) if into else DIST / "extracted"
    run_extract(ExtractWish(image, wanted_of(dist or ()), target, platform), Options(dry_run, json))


@task(
    iterable=["file"],
    help={
        "file": "wheel to read (may be repeated)",
        "stack": "ask the gates of this stack too, with its torch where that is there",
        "json": "answer as JSON",
    },
)
@command
def inspect(_: Context, file: Sequence[str] | None = None, stack: str = "", json: bool = False) -> None:
    """Show what is in wheels: tags, libraries, GPU code, what they ask of the system and of each other."""
    found = examine([Path(one) for one in file or ()], load_stack(stack) if stack else None)
    answer_json(as_data(found)) if json else show(found, Console(soft_wrap=not sys.stdout.isatty()))
    if found.refused:
        raise WheelRefused(
            "a gate refuses one of them", next_move=f"read the verdicts above; the stack {stack} takes other wheels"
        )


@task(
    help={
        "key": "SSH private key, or the .pub of one that the agent holds",
        "stack": "whose wheels; the cluster's when left out",
        "cluster": "whose stack; without it SPARKSTACK_CLUSTER, else spark",
        "target": "of which machines (aarch64-cp312), where wheels for several are there",
        "dry-run": "say whether there is something to sign and stop",
        "json": "answer as JSON",
    }
)
@command
def sign(
    _: Context,
    key: str,
    stack: str = "",
    cluster: str = "",
    target: str = "",
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Sign the wheels of a stack, for clusters that name who may sign (allowed_signers)."""
    place, signer = built(_stack(stack, cluster), target), Path(key).expanduser()
    pending = f"sign {shown(place / MANIFEST)} with {key}"
    mend(
        "sign the wheels",
        lambda: [] if is_signed(place / MANIFEST, signer) else [pending],
        lambda report: report(f"signed: {shown(sign_wheels(place, signer))}"),
        Options(dry_run, json),
    )


@task(
    help={
        "folder": "a release folder, as invoke publish makes it",
        "signers": "OpenSSH's allowed_signers file; without it the hashes alone are compared",
        "json": "answer as JSON",
    }
)
@command
def verify(_: Context, folder: str, signers: str = "", json: bool = False) -> None:
    """Compare every byte of a release folder with its hashes, its manifest and its signature."""
    who = audit(Path(folder), Path(signers) if signers else None)
    if json:
        answer_json({"folder": folder, "signed_by": who or None})
    else:
        answer(f"{folder}: every file is as listed" + (f", signed by {who}" if who else "; not asked who signed it"))


def _stack(stack: str, cluster: str) -> Stack:
    return load_stack(stack or chosen_cluster(cluster).stack)
