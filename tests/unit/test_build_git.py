"""Git at a commit, from a real git daemon: pins, tags that moved, servers that refuse or go away, submodules."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build.git import check_out, fetch, mirror, pin_of, split_url
from build.resolve import resolve
from build.source import write_git_head
from build.submodules import gather, resolved, write
from core.errors import BuildFailed, HostNotReady
from core.process import run
from tests.unit.gitserver import Repository, Server, serving
from tests.unit.smalldisk import mounted


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "served") as found:
        yield found


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
def old_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask as git did before version 2: servers then give no commit by its hash."""
    config = tmp_path / "gitconfig"
    config.write_text("[protocol]\n\tversion = 0\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))


def history(server: Server, name: str = "a/project") -> tuple[Repository, str, str]:
    """Make a repository of two commits, the first tagged."""
    repository = server.repository(name)
    first = repository.commit({"file": "one\n", "folder/other": "x\n"})
    repository.git("tag", "--annotate", "--message", "first", "v1")
    second = repository.commit({"file": "two\n"})
    return repository, first, second


def tree(url: str, commit: str, work: Path, reference: str | None = None, *, submodules: bool = False) -> Path:
    pins = gather(url, commit, reference, lambda _: None, submodules=submodules, work=work)
    destination = work / "tree"
    write(pins, destination)
    return destination


@pytest.mark.processes
class TestACommit:
    def test_its_files_come_out_and_the_mirror_is_kept_under_host_and_path(self, server: Server, work: Path) -> None:
        _, first, _ = history(server)
        found = tree(server.url("a/project"), first, work, "v1")
        assert (found / "file").read_text() == "one\n"
        assert (found / "folder" / "other").read_text() == "x\n"
        assert not (found / ".git").exists()
        kept = work / "mirrors" / f"127.0.0.1_{server.port}" / "a" / "project.git"
        assert run(["git", "--git-dir", str(kept), "rev-parse", pin_of(first)]).out.strip() == first

    def test_only_that_commit_is_fetched(self, server: Server, work: Path) -> None:
        _, first, second = history(server)
        tree(server.url("a/project"), second, work)
        kept = mirror(server.url("a/project"), work=work)
        assert kept.git("cat-file", "-e", first, check=False).code != 0

    def test_what_is_there_is_not_asked_for_again(self, server: Server, work: Path, lines: list[str]) -> None:
        _, first, _ = history(server)
        kept = mirror(server.url("a/project"), work=work)
        fetch(kept, first, "v1", lines.append)
        assert lines == [f"fetch {server.url('a/project')} at {first[:12]} (v1)"]
        server.stop()
        fetch(kept, first, "v1", lines.append)
        assert len(lines) == 1

    def test_one_that_does_not_exist_is_named(self, server: Server, work: Path) -> None:
        history(server)
        with pytest.raises(BuildFailed, match=f"the pinned commit {'0' * 39}1 does not exist there") as caught:
            tree(server.url("a/project"), "0" * 39 + "1", work)
        assert "invoke build.lock" in caught.value.next_move

    def test_one_that_does_not_exist_is_named_beside_what_its_branch_names(self, server: Server, work: Path) -> None:
        _, _, second = history(server)
        with pytest.raises(BuildFailed, match=f"does not exist there; refs/heads/main names {second}"):
            tree(server.url("a/project"), "0" * 39 + "1", work, "main")

    def test_a_tag_that_moved_is_refused_with_both_commits(self, server: Server, work: Path) -> None:
        repository, first, second = history(server)
        repository.git("tag", "--force", "v1", second)
        with pytest.raises(BuildFailed, match=f"the tag v1 of .* has moved: pinned is {first}, it names {second}"):
            tree(server.url("a/project"), first, work, "v1")

    def test_a_branch_may_move_on(self, server: Server, work: Path) -> None:
        _, first, _ = history(server)
        assert (tree(server.url("a/project"), first, work, "main") / "file").read_text() == "one\n"

    def test_the_object_of_a_tag_is_no_commit(self, server: Server, work: Path) -> None:
        repository, first, _ = history(server)
        tag = repository.git("rev-parse", "v1")
        with pytest.raises(BuildFailed, match=f"{tag} is a tag's object, its commit is {first}"):
            tree(server.url("a/project"), tag, work)


@pytest.mark.processes
@pytest.mark.usefixtures("old_protocol")
class TestAServerThatGivesNoCommitByItsHash:
    def test_the_reference_is_the_way(self, server: Server, work: Path, lines: list[str]) -> None:
        _, first, second = history(server)
        kept = mirror(server.url("a/project"), work=work)
        fetch(kept, first, "v1", lines.append)
        assert kept.has(first)
        assert kept.git("cat-file", "-e", second, check=False).code != 0, "without the rest"
        assert any("gives no commit by its hash" in line for line in lines)

    @pytest.mark.parametrize("reference", ["main", None])
    def test_without_a_tag_the_history_is_searched(self, server: Server, work: Path, reference: str | None) -> None:
        _, first, _ = history(server)
        assert (tree(server.url("a/project"), first, work, reference) / "file").read_text() == "one\n"

    def test_a_second_pin_is_found_in_a_shallow_mirror(self, server: Server, work: Path) -> None:
        _, first, second = history(server)
        kept = mirror(server.url("a/project"), work=work)
        fetch(kept, second, None, lambda _: None)
        fetch(kept, first, None, lambda _: None)
        assert kept.has(first)
        assert kept.has(second)

    def test_a_commit_that_does_not_exist_is_named(self, server: Server, work: Path) -> None:
        history(server)
        with pytest.raises(BuildFailed, match="does not exist there"):
            tree(server.url("a/project"), "0" * 39 + "1", work)


@pytest.mark.processes
class TestTheConnection:
    def test_a_server_that_is_gone_is_said_and_the_next_run_goes_on(self, server: Server, work: Path) -> None:
        _, first, _ = history(server)
        server.stop()
        with pytest.raises(BuildFailed, match=r"git://127\.0\.0\.1:\d+/a/project\.git cannot be fetched") as caught:
            tree(server.url("a/project"), first, work)
        assert "unable to connect" in caught.value.evidence
        server.start()
        assert (tree(server.url("a/project"), first, work) / "file").exists()

    def test_a_repository_that_is_not_there_is_said(self, server: Server, work: Path) -> None:
        with pytest.raises(BuildFailed, match="cannot be fetched") as caught:
            tree(server.url("none"), "1" * 40, work)
        assert "repository" in caught.value.evidence

    def test_a_server_killed_midway_leaves_nothing_that_hinders(
        self, server: Server, work: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("core.store.BETWEEN_LINES", 0)
        repository = server.repository("large")
        (repository.folder / "noise").write_bytes(os.urandom(30_000_000))
        commit = repository.commit({"file": "x"})
        kept = mirror(server.url("large"), work=work)

        def kill(line: str) -> None:
            if "Receiving objects" in line:
                server.stop()

        with pytest.raises(BuildFailed, match="cannot be fetched"):
            fetch(kept, commit, None, kill)
        assert not kept.has(commit)
        (kept.folder / "shallow.lock").touch()
        (kept.folder / "objects" / "pack").mkdir(exist_ok=True)
        (kept.folder / "objects" / "pack" / "tmp_pack_x").write_bytes(b"x")
        server.start()
        fetch(kept, commit, None, lambda _: None)
        assert kept.has(commit)
        assert not list(kept.folder.rglob("tmp_pack_*"))

    def test_two_at_once_fetch_one_after_the_other(self, server: Server, work: Path) -> None:
        _, first, second = history(server)
        code = (
            "import sys; from pathlib import Path; from build.git import fetch, mirror;"
            "fetch(mirror(sys.argv[1], work=Path(sys.argv[2])), sys.argv[3], None, print)"
        )
        argv = [sys.executable, "-c", code, server.url("a/project"), str(work)]
        running = [subprocess.Popen([*argv, commit], stdout=subprocess.DEVNULL) for commit in [first, second] * 2]
        assert [process.wait() for process in running] == [0, 0, 0, 0]
        kept = mirror(server.url("a/project"), work=work)
        assert kept.has(first)
        assert kept.has(second)

    def test_a_full_disk_is_said(self, server: Server, tmp_path: Path, work: Path) -> None:
        repository = server.repository("large")
        (repository.folder / "noise").write_bytes(os.urandom(4_000_000))
        commit = repository.commit({"file": "x"})
        kept = mirror(server.url("large"), work=work)
        with mounted(tmp_path / "disk", "2m") as disk:
            with pytest.raises(HostNotReady, match="is full"):
                fetch(mirror(server.url("large"), work=disk), commit, None, lambda _: None)
            fetch(kept, commit, None, lambda _: None)
            with pytest.raises(HostNotReady, match="is full"):
                check_out(kept, commit, disk / "tree")
        assert kept.has(commit), "the mirror is not blamed"

    def test_nobody_is_asked_for_a_password(self, work: Path) -> None:
        with pytest.raises(BuildFailed, match="cannot be fetched"):
            tree("https://127.0.0.1:1/private.git", "1" * 40, work)


@pytest.mark.processes
class TestFilesComeOutAsCommitted:
    def test_attributes_and_the_users_configuration_change_nothing(
        self, server: Server, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        repository = server.repository("plain")
        repository.commit({"b.txt": "$Id$\nline\n", "c.txt": "x\n"})
        attributes = "*.txt text eol=crlf ident filter=shout\nc.txt export-ignore\n"
        commit = repository.commit({".gitattributes": attributes})
        config = tmp_path / "gitconfig"
        config.write_text(
            '[core]\nautocrlf = true\nhooksPath = /nonexistent\n[filter "shout"]\nsmudge = "tr a-z A-Z"\n'
        )
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
        found = tree(server.url("plain"), commit, work)
        assert (found / "b.txt").read_bytes() == b"$Id$\nline\n"
        assert (found / "c.txt").exists()

    def test_links_and_executable_bits_are_kept(self, server: Server, work: Path) -> None:
        repository = server.repository("kinds")
        (repository.folder / "link").symlink_to("script")
        (repository.folder / "script").write_text("#!/bin/sh\n")
        (repository.folder / "script").chmod(0o755)
        found = tree(server.url("kinds"), repository.commit({}), work)
        assert (found / "link").readlink() == Path("script")
        assert os.access(found / "script", os.X_OK)

    def test_variables_of_a_surrounding_git_do_not_lead_elsewhere(
        self, server: Server, work: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, first, _ = history(server)
        monkeypatch.setenv("GIT_DIR", "/nonexistent")
        monkeypatch.setenv("GIT_INDEX_FILE", "/nonexistent/index")
        kept = mirror(server.url("a/project"), work=work)
        fetch(kept, first, None, lambda _: None)
        check_out(kept, first, work / "tree")
        assert (work / "tree" / "file").read_text() == "one\n"

    def test_a_users_mirror_by_insteadof_is_used(
        self, server: Server, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, first, _ = history(server)
        config = tmp_path / "gitconfig"
        config.write_text(f'[url "git://127.0.0.1:{server.port}/"]\n\tinsteadOf = https://example.org/\n')
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
        assert (tree("https://example.org/a/project.git", first, work) / "file").exists()
        assert (work / "mirrors" / "example.org" / "a" / "project.git").is_dir()

    def test_a_damaged_mirror_is_removed_and_fetched_anew_by_the_next_run(self, server: Server, work: Path) -> None:
        _, first, _ = history(server)
        kept = mirror(server.url("a/project"), work=work)
        fetch(kept, first, None, lambda _: None)
        blob = kept.git("rev-parse", f"{first}:file").out.strip()
        for pack in kept.folder.glob("objects/pack/*.pack"):
            pack.chmod(0o644)
            pack.write_bytes(pack.read_bytes()[:-60] + b"\0" * 60)
        for loose in kept.folder.glob(f"objects/{blob[:2]}/{blob[2:]}"):
            loose.unlink()
        with pytest.raises(BuildFailed, match="is damaged; it was removed"):
            check_out(kept, first, work / "tree")
        assert (tree(server.url("a/project"), first, work) / "file").read_text() == "one\n"


@pytest.mark.processes
class TestSubmodules:
    def test_the_pinned_trees_gitlinks_are_the_pins_all_the_way_down(self, server: Server, work: Path) -> None:
        leaf = server.repository("a/leaf")
        leaf_commit = leaf.commit({"leaf": "pinned\n"})
        leaf.commit({"leaf": "newer\n"})
        middle = server.repository("a/middle")
        middle.link("deep/leaf", "../leaf.git", leaf_commit)
        middle_commit = middle.commit({"middle": "x"})
        top = server.repository("a/top")
        top.link("third_party/middle", server.url("a/middle"), middle_commit)
        found = tree(server.url("a/top"), top.commit({"top": "x"}), work, submodules=True)
        assert (found / "third_party" / "middle" / "deep" / "leaf" / "leaf").read_text() == "pinned\n"
        assert {path.name for path in (work / "mirrors").rglob("*.git")} == {"leaf.git", "middle.git", "top.git"}

    def test_without_them_their_folders_are_empty(self, server: Server, work: Path) -> None:
        top = server.repository("top")
        top.link("sub", "../none.git", "1" * 40)
        found = tree(server.url("top"), top.commit({"top": "x"}), work)
        assert list((found / "sub").iterdir()) == []

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("file:///etc", "the submodule sub is at file:///etc: the protocol file is not allowed"),
            ("/etc", "the protocol file is not allowed"),
            ("ext::sh -c touch% /tmp/owned", "is no URL of a repository"),
            ("http://127.0.0.1/x.git", "the protocol http is not allowed"),
            ("../../../../x.git", "is no URL of a repository|cannot be fetched"),
            ("--upload-pack=touch", "holds an object that git refuses"),
        ],
    )
    def test_another_protocol_is_refused(self, server: Server, work: Path, url: str, message: str) -> None:
        top = server.repository("top")
        top.link("sub", url, "1" * 40)
        with pytest.raises(BuildFailed, match=message):
            tree(server.url("top"), top.commit({"top": "x"}), work, submodules=True)

    def test_files_may_be_submodules_of_files(self, tmp_path: Path, work: Path) -> None:
        served = Server(tmp_path / "served")
        leaf = served.repository("leaf")
        top = served.repository("top")
        top.link("sub", f"file://{leaf.folder}/.git", leaf.commit({"leaf": "x"}))
        found = tree(f"file://{top.folder}/.git", top.commit({"top": "x"}), work, submodules=True)
        assert (found / "sub" / "leaf").exists()

    def test_one_that_gitmodules_does_not_know_is_named(self, server: Server, work: Path) -> None:
        top = server.repository("top")
        top.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},sub")
        (top.folder / "sub").mkdir()
        commit = top.commit({"top": "x"})
        with pytest.raises(BuildFailed, match=r"has a submodule sub, and its \.gitmodules does not say where that is"):
            tree(server.url("top"), commit, work, submodules=True)

    def test_a_submodules_missing_commit_names_the_submodules_repository(self, server: Server, work: Path) -> None:
        history(server)
        top = server.repository("a/top")
        top.link("sub", "../project.git", "1" * 40)
        with pytest.raises(BuildFailed, match=r"a/project\.git: the pinned commit 1{40} does not exist there"):
            tree(server.url("a/top"), top.commit({"top": "x"}), work, submodules=True)


@pytest.mark.processes
class TestResolving:
    @pytest.mark.parametrize("length", [7, 12, 40])
    def test_a_hash_is_made_whole(self, server: Server, work: Path, length: int) -> None:
        _, first, _ = history(server)
        assert resolve(server.url("a/project"), first[:length], lambda _: None, work=work) == first

    def test_tags_are_looked_through_and_come_before_branches(self, server: Server, work: Path) -> None:
        repository, first, second = history(server)
        url = server.url("a/project")
        assert resolve(url, "v1", lambda _: None, work=work) == first
        assert resolve(url, "main", lambda _: None, work=work) == second
        repository.git("branch", "v1", second)
        assert resolve(url, "v1", lambda _: None, work=work) == first

    @pytest.mark.parametrize("reference", ["v2", "8daff01", "1" * 40, "--upload-pack=x", ""])
    def test_what_nothing_is_called_is_said(self, server: Server, work: Path, reference: str) -> None:
        history(server)
        with pytest.raises(BuildFailed, match=r"has no tag, branch or commit|does not exist there"):
            resolve(server.url("a/project"), reference, lambda _: None, work=work)


@pytest.mark.processes
def test_a_tree_with_a_head_answers_rev_parse_and_nothing_else(tmp_path: Path) -> None:
    write_git_head(tmp_path / "one", "a" * 40)
    write_git_head(tmp_path / "two", "a" * 40)
    env = {"GIT_CONFIG_GLOBAL": "/dev/null"}
    assert run(["git", "rev-parse", "HEAD"], cwd=tmp_path / "one", env=env).out.strip() == "a" * 40
    assert run(["git", "rev-parse", "--short=8", "HEAD"], cwd=tmp_path / "one", env=env).out.strip() == "a" * 8
    assert run(["git", "rev-parse", "--abbrev-ref", "HEAD"], cwd=tmp_path / "one", env=env).out.strip() == "HEAD"
    assert run(["diff", "--recursive", str(tmp_path / "one"), str(tmp_path / "two")]).out == ""


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://github.com/NVIDIA/cutlass.git", ("https", "github.com", "/NVIDIA/cutlass.git")),
        ("https://user:secret@example.org:8443/a", ("https", "example.org_8443", "/a")),
        ("git@github.com:a/b.git", ("ssh", "github.com", "a/b.git")),
        ("ssh://git@example.org/a/b", ("ssh", "example.org", "/a/b")),
        ("file:///srv/git/a.git", ("file", "localhost", "/srv/git/a.git")),
        ("/srv/git/a.git", ("file", "localhost", "/srv/git/a.git")),
    ],
)
def test_a_url_has_a_scheme_a_host_and_a_path(url: str, found: tuple[str, str, str]) -> None:
    assert split_url(url) == found


@pytest.mark.parametrize(
    "url", ["", "x", "https://", "https:///x", "https://h/../../x", "ext::sh -c x", "-x", "https://h/", "git@h:.."]
)
def test_what_leads_nowhere_has_no_mirror(url: str) -> None:
    with pytest.raises(BuildFailed, match="no URL of a repository"):
        mirror(url)


@given(st.text(max_size=40))
def test_no_url_has_a_mirror_outside_the_folder_of_mirrors(url: str) -> None:
    work = Path("/w")
    for text in (url, f"https://h/{url}", f"git@h:{url}", f"https://{url}/x"):
        try:
            folder = mirror(text, work=work).folder
        except (BuildFailed, ValueError):
            continue
        assert folder.is_relative_to("/w/mirrors")
        assert ".." not in folder.parts
        assert len(folder.relative_to("/w/mirrors").parts) >= 2


@pytest.mark.parametrize(
    ("parent", "url", "found"),
    [
        ("https://h/a/b.git", "../c.git", "https://h/a/c.git"),
        ("https://h/a/b.git/", "../../x/c", "https://h/x/c"),
        ("https://h/a/b.git", "./c", "https://h/a/b.git/c"),
        ("git@h:a/b.git", "../c.git", "git@h:a/c.git"),
        ("git@h:b.git", "../c.git", "git@h:c.git"),
        ("https://h/a/b.git", "https://o/c", "https://o/c"),
    ],
)
def test_a_relative_submodule_is_found_from_where_it_stands(parent: str, url: str, found: str) -> None:
    assert resolved(parent, url) == found
