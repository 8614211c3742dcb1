"""How git is called: never asking, never reading what would change a checkout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from core.process import Completed, run

# set where we run within a hook or an alias; each would point git at another repository
_POINTERS = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_NAMESPACE"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_SHALLOW_FILE", "GIT_GRAFT_FILE"),
    *("GIT_REPLACE_REF_BASE", "GIT_TRACE", "GIT_EXTERNAL_DIFF", "GIT_ATTR_SOURCE"),
)
_ALWAYS = {
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_ASKPASS": "",
    "GIT_TERMINAL_PROMPT": "0",
    "SSH_ASKPASS_REQUIRE": "never",
    "LC_ALL": "C",  # its messages are read
}

NETWORK = {
    **_ALWAYS,
    # no ext:: and no helpers; http and file because a user's own url.insteadOf may lead to a mirror of theirs
    "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file",
}
"""For fetching: the user's configuration holds (proxy, credentials, url.insteadOf)."""

LOCAL = {
    **_ALWAYS,
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "0",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_PARAMETERS": "",
}
"""For all else: nobody's configuration changes what comes out."""


def git(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] = LOCAL,
    cwd: Path | None = None,
    check: bool = True,
    stdin: str | None = None,
) -> Completed:
    """Run git. Raises CommandFailed when it fails, unless ``check`` is off."""
    return run([*program(env), *argv], env=env, cwd=cwd, check=check, stdin=stdin)


def program(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return how an argv of git's begins, to be run with ``env`` and without what points to another repository."""
    return ("env", *(f"--unset={name}" for name in _POINTERS if name not in env), "git")
