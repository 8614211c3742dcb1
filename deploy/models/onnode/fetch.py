"""Fetches a model onto this node; standard library only, because nothing of ours is installed here.

`python3 -m deploy.models.onnode.fetch REQUEST` reads what to do from a file that is for its reader's eyes only, and
removes it before anything else:

    {"hub": "huggingface", "repository": "Qwen/...", "revision": "main", "target": "/opt/sparkstack/models/Qwen/...",
     "folder": "", "environment": {"HF_TOKEN": "..."}}

Interrupted at any point it goes on where it was when it is run again: whole files are kept by their hashes, others grow
from where they end. Its last line of a failure is {"error": KIND, "cause": ..., "next": ...}.
"""

from __future__ import annotations

import http.client
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.models.onnode import files, hubs
from deploy.models.onnode.files import Entry
from deploy.onnode import common
from deploy.onnode.common import Progress, Refused, say

STREAMS = 4
"""Files that arrive at once."""


@dataclass(frozen=True)
class Work:
    """One model that is being fetched."""

    hub: hubs.Hub | None
    """None where the files come from a folder."""
    source: Path
    target: Path
    listing: hubs.Listing

    @property
    def blobs(self) -> Path:
        """Where its files arrive."""
        return files.staging_of(self.target) / "blobs"


def main(request: Path) -> int:
    """Do what the file says; return the exit code."""
    return common.ended(lambda: fetch(common.taken(request)))


def use_proxies(environment: Mapping[str, str]) -> None:
    """Have urllib go through the proxies of the request; in both spellings, because a node may have set the other."""
    for name, value in environment.items():
        if name.lower().endswith("_proxy"):
            os.environ[name.lower()] = os.environ[name.upper()] = value


def fetch(told: Mapping[str, Any]) -> None:
    """List, bring what is missing, verify, put in place. Raises Refused."""
    use_proxies(told["environment"])
    with files.held(Path(told["target"])):
        _fetch(told, _work(told))


def _fetch(told: Mapping[str, Any], work: Work) -> None:
    total = sum(entry.size for entry in work.listing.files)
    at = work.listing.commit or f"as it is in {work.source}"
    say(f"{told['repository']} at {at}: {len(work.listing.files)} files, {common.size_words(total)}")
    if work.listing.left_out:
        say(f"left out, the same weights in other formats: {', '.join(work.listing.left_out)[:300]}")
    about = {key: told[key] for key in ("repository", "hub", "revision")}
    files.begin(work.target, {**about, "commit": work.listing.commit})
    hashes = _bring_all(work, total)
    listed = ((entry.path, entry.size, hashes[entry.key]) for entry in work.listing.files)
    text = files.manifest_text({**about, "commit": work.listing.commit}, listed)
    files.place(files.staging_of(work.target), work.target, work.listing.files, text)
    say(f"whole and verified in {work.target}")


def _work(told: Mapping[str, Any]) -> Work:
    target = Path(told["target"])
    if told["hub"] == "folder":
        source = Path(told["folder"])
        return Work(None, source, target, hubs.folder_listing(source))
    hub = hubs.hub_of(told["hub"], hubs.Asked(told["repository"], told["revision"], told["environment"]))
    return Work(hub, target, target, hub.listing())


def _bring_all(work: Work, total: int) -> dict[str, str]:
    """Have every file as a verified blob; return blob name to sha256. Raises the first Refused."""
    entries = list({entry.key: entry for entry in work.listing.files}.values())
    _clear(work.blobs, {entry.key for entry in entries if entry.digest})
    present = sum(_present(work.blobs, entry) for entry in entries)
    coming = (entry for entry in entries if work.source != work.target or _candidate(work, entry) is None)
    common.require_room(work.blobs, sum(entry.size - _present(work.blobs, entry) for entry in coming))
    with Progress(total, present).shown() as progress, common.threads(STREAMS) as pool:
        jobs = {entry.key: pool.submit(_bring, work, entry, progress) for entry in entries}
        return {key: job.result() for key, job in jobs.items()}


def _clear(blobs: Path, wanted: set[str]) -> None:
    """Remove what is of another commit, or what nobody vouches for: it comes again."""
    for path in blobs.iterdir():
        if path.name.removesuffix(".part") not in wanted:
            path.unlink()


def _present(blobs: Path, entry: Entry) -> int:
    """Return how many bytes of a file are there, whole or in part."""
    found = (path.stat().st_size for path in (blobs / entry.key, blobs / f"{entry.key}.part") if path.exists())
    return min(entry.size, max(found, default=0))


def _bring(work: Work, entry: Entry, progress: Progress) -> str:
    """Have one file as a blob; return its sha256."""
    whole = work.blobs / entry.key
    if entry.digest and whole.exists():
        return entry.digest if entry.algorithm == "sha256" else common.digests(whole)["sha256"]
    found = _reused(work, entry, progress)
    if not found and work.hub is None:
        raise Refused("absent", f"{entry.path} has changed meanwhile", "run it again")
    return found or _fetched(work, entry, progress)


def _candidate(work: Work, entry: Entry) -> Path | None:
    """Return the file that the model's own folder, or the folder to take it from, has under this name."""
    path = work.source / entry.path
    return path if path.is_file() and path.stat().st_size == entry.size else None


def _reused(work: Work, entry: Entry, progress: Progress) -> str:
    """Take a file that is there already, by its hash where one is known; return its sha256, nothing otherwise."""
    path, whole = _candidate(work, entry), work.blobs / entry.key
    if path is None:
        return ""
    if work.source != work.target:
        part = work.blobs / f"{entry.key}.part"
        shutil.copyfile(path, part)
        if part.stat().st_size != entry.size:
            return ""
        path = part
    found = common.digests(path, progress.add)
    if entry.digest and found[entry.algorithm] != entry.digest:
        progress.add(-entry.size)
        return ""
    whole.unlink(missing_ok=True)
    if work.source == work.target:
        common.link(path, whole)
    else:
        common.keep(path, whole)
    return found["sha256"]


def _fetched(work: Work, entry: Entry, progress: Progress) -> str:
    """Fetch a file and verify it; one that went on from an earlier run and is wrong is fetched anew, once."""
    part = work.blobs / f"{entry.key}.part"
    resumed = part.exists()
    for _ in range(2 if resumed else 1):
        _stream(work, entry, part, progress)
        found = common.digests(part)
        if found[entry.algorithm] == entry.digest:
            common.keep(part, work.blobs / entry.key)
            return found["sha256"]
        progress.add(-part.stat().st_size)
        part.unlink()
    raise Refused(
        "damaged",
        f"{entry.path} is not what the hub lists: {found[entry.algorithm]} instead of {entry.digest}",
        "run the same command again; if it stays, name another hub (--from) or HF_ENDPOINT",
    )


def _stream(work: Work, entry: Entry, part: Path, progress: Progress) -> None:
    """Fetch a file to its end, over as many connections as it takes."""
    part.touch()
    failed = 0
    while (have := part.stat().st_size) < entry.size:
        try:
            _once(work, entry, part, progress)
        except common.Again as again:
            failed = 0 if part.stat().st_size > have else failed + 1
            common.pause(again, max(failed - 1, 0))
    if have > entry.size:
        os.truncate(part, entry.size)  # an earlier run's leftover; the hash decides


def _once(work: Work, entry: Entry, part: Path, progress: Progress) -> None:
    """Ask for what is missing of a file and take what comes. Raises Again when the connection ends too early."""
    have = part.stat().st_size
    assert work.hub is not None, "_bring() has looked"
    with work.hub.open(work.listing.commit, entry, have) as answer:
        start = _start_of(answer, entry, have)
        _require_commit(answer, work.listing.commit)
        progress.add(start - have)
        with part.open("r+b") as file:
            file.truncate(start)
            file.seek(start)
            _take(answer, entry, file, progress)


def _start_of(answer: http.client.HTTPResponse, entry: Entry, have: int) -> int:
    """Return the byte that an answer begins at: what was asked for, or 0 from a server without ranges."""
    if answer.status == 200:
        return 0
    told = answer.headers.get("Content-Range", "")
    if answer.status != 206 or told != f"bytes {have}-{entry.size - 1}/{entry.size}":
        raise Refused("hub", f"{entry.path}: asked for byte {have} on, got {told[:80]!r}", "name another hub (--from)")
    return have


def _require_commit(answer: http.client.HTTPResponse, commit: str) -> None:
    told = answer.headers.get("X-Repo-Commit", commit)
    if told != commit:
        raise Refused("hub", f"the hub sends files of {told[:40]} for {commit}", "check HF_ENDPOINT")


def _take(answer: http.client.HTTPResponse, entry: Entry, file: Any, progress: Progress) -> None:
    buffer = memoryview(bytearray(common.BLOCK))
    while True:
        try:
            count = answer.readinto(buffer)
        except (OSError, http.client.HTTPException) as error:
            raise common.broken(error) from error
        if not count:
            break
        file.write(buffer[:count])
        progress.add(count)
        if file.tell() > entry.size:
            raise Refused("hub", f"{entry.path} is longer than the hub lists", "name another hub (--from)")
    if file.tell() < entry.size:
        raise common.Again(f"{entry.path}: the connection ended at byte {file.tell()} of {entry.size}")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
