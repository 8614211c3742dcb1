"""What the machines' root is made from."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import LabError
from lab.base import (
    PACKAGES,
    Distribution,
    Mirror,
    bootstrap,
    choose_mirror,
    distribution,
    folder,
    parse_index_targets,
    parse_os_release,
)

BOOKWORM = Distribution("debian", "bookworm", "amd64")
NOBLE = Distribution("ubuntu", "noble", "amd64")


def target(site: str, release: str, *, suite: str, codename: str, component: str = "main") -> str:
    return (
        f"MetaKey: {component}/binary-amd64/Packages\nDescription: {site} {release}/{component} amd64 Packages\n"
        f"Codename: {codename}\nSuite: {suite}\nComponent: {component}\nFallback-Of: \n"
        f"Release: {release}\nSite: {site}\n"
    )


def choose(wanted: Distribution, *targets: str, files: dict[str, str] | None = None) -> Mirror:
    return choose_mirror(parse_index_targets("\n".join(targets)), wanted, lambda path: (files or {})[str(path)])


def test_the_host_says_what_is_bootstrapped() -> None:
    text = 'PRETTY_NAME="Ubuntu 24.04.2 LTS"\nID=ubuntu\nVERSION_CODENAME=noble\n# a comment = this\n'
    assert distribution(parse_os_release(text), "aarch64") == Distribution("ubuntu", "noble", "arm64")


@pytest.mark.parametrize(
    ("os_release", "machine"),
    [({"ID": "fedora", "VERSION_CODENAME": ""}, "x86_64"), ({}, "x86_64"), ({"ID": "debian"}, "x86_64")],
)
def test_another_host_is_refused_in_words(os_release: dict[str, str], machine: str) -> None:
    with pytest.raises(LabError, match="made from Debian or Ubuntu"):
        distribution(os_release, machine)


def test_the_mirror_is_the_one_that_apt_uses_for_the_suite_itself() -> None:
    mirror = choose(
        BOOKWORM,
        target(
            "http://security.example/debian", "bookworm-security", suite="stable-security", codename="bookworm-security"
        ),
        target(
            "http://mirror.example/updates", "bookworm-updates", suite="stable-updates", codename="bookworm-updates"
        ),
        target("http://mirror.example/debian", "bookworm", suite="oldstable", codename="bookworm"),
        target("http://mirror.example/debian", "bookworm", suite="oldstable", codename="bookworm", component="contrib"),
    )
    assert mirror == Mirror("http://mirror.example/debian", ("main",))


def test_a_source_that_says_stable_is_found_by_its_code_name() -> None:
    found = choose(BOOKWORM, target("http://mirror.example/debian", "stable", suite="stable", codename="bookworm"))
    assert found.url == "http://mirror.example/debian"


def test_ubuntus_updates_and_security_are_not_taken_for_the_suite_though_they_have_its_code_name() -> None:
    mirror = choose(
        NOBLE,
        target("http://security.example/ubuntu", "noble-security", suite="noble-security", codename="noble"),
        target("http://mirror.example/ubuntu", "noble", suite="noble", codename="noble"),
        target("http://mirror.example/ubuntu", "noble", suite="noble", codename="noble", component="universe"),
    )
    assert mirror == Mirror("http://mirror.example/ubuntu", ("main", "universe"))


def test_a_list_of_mirrors_is_opened_and_its_first_one_taken() -> None:
    mirror = choose(
        NOBLE,
        target("mirror+file:/etc/apt/apt-mirrors.txt", "noble", suite="noble", codename="noble"),
        files={
            "/etc/apt/apt-mirrors.txt": "# ours\n\nhttp://near.example/ubuntu/\tpriority:1\nhttp://far.example/ubuntu/\n"
        },
    )
    assert mirror.url == "http://near.example/ubuntu/"


@pytest.mark.parametrize(
    ("wanted", "host"),
    [
        (BOOKWORM, "deb.debian.org"),
        (NOBLE, "archive.ubuntu.com"),
        (Distribution("ubuntu", "noble", "arm64"), "ports.ubuntu.com"),
    ],
)
def test_without_a_configured_mirror_it_is_the_distributions_own(wanted: Distribution, host: str) -> None:
    assert host in choose(wanted).url
    cdrom = target("cdrom://Debian", wanted.suite, suite="stable", codename=wanted.suite)
    assert host in choose(wanted, cdrom).url


@given(st.text())
def test_whatever_apt_prints_a_mirror_comes_out(text: str) -> None:
    assert choose_mirror(parse_index_targets(text), BOOKWORM, lambda _: "").url.startswith("http")


def test_debootstrap_checks_the_signature_and_leaves_no_mounts() -> None:
    command = bootstrap(BOOKWORM, Mirror("http://m.example/debian"), Path("/k.gpg"), Path("/root.partial"))
    assert command[:4] == ("unshare", "--mount", "--propagation", "private")
    assert {"--force-check-gpg", "--keyring=/k.gpg", "--arch=amd64", "--components=main"} < set(command)
    assert command[-3:] == ("bookworm", "/root.partial", "http://m.example/debian")


def test_another_package_list_makes_another_root(monkeypatch: pytest.MonkeyPatch) -> None:
    before = folder(BOOKWORM)
    monkeypatch.setattr("lab.base.PACKAGES", (*PACKAGES, "more"))
    assert folder(BOOKWORM) != before
    assert folder(BOOKWORM).name.startswith("base-bookworm-")
