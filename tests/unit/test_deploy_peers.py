"""Keys between the nodes: made once, let in for one thing, and only our own lines are touched."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core.access import Access, access, key_name, mark, request
from core.config import ROOT, Cluster
from core.errors import UnfitNode, UsageError
from core.facts import Facts
from core.plan import Later, Plan, Run, as_text, make_plan
from core.process import run
from core.reader import Reader
from deploy.access.peers import forget, plan_forget, plan_keys, plan_peers
from deploy.removal import plan_remove
from tests.unit.peers import peer_ssh
from tests.unit.samples import lab_facts, local

CLUSTER = local()
KEYS = {"lab-a": "ssh-ed25519 AAAAa", "lab-b": "ssh-ed25519 AAAAb"}
LINE = 'restrict,from="198.18.100.{}",command="/usr/bin/rrsync -ro /opt/sparkstack" {} sparkstack-node:local:{}'


def node_access(name: str, **changes: object) -> Access:
    made = Access(
        user=CLUSTER.user, key=KEYS[name], host_keys=(f"ssh-ed25519 HOST{name[-1]}",), rrsync="/usr/bin/rrsync"
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def facts(**changes: object) -> Facts:
    return {name: replace(seen, access=node_access(name, **changes)) for name, seen in lab_facts().items()}


def whole() -> Facts:
    """Both nodes have everything."""
    return {
        "lab-a": replace(lab_facts()["lab-a"], access=node_access("lab-a", **entered("lab-b"))),
        "lab-b": replace(lab_facts()["lab-b"], access=node_access("lab-b", **entered("lab-a"))),
    }


def entered(peer: str) -> dict[str, object]:
    node = CLUSTER.node(peer)
    line = LINE.format(str(node.fabric).rsplit(".", 1)[1], KEYS[peer], peer)
    return {"authorized": frozenset({line}), "known": (f"{node.fabric} ssh-ed25519 HOST{peer[-1]}",)}


def titles(plan: Plan) -> list[str]:
    return [f"{step.node}: {step.title}" for step in plan.steps]


def test_keys_come_first_and_what_needs_them_is_shown() -> None:
    plan = plan_peers(CLUSTER, facts(key=None))
    assert titles(plan)[:4] == [
        "lab-a: make ~/.ssh/sparkstack-local",
        "lab-b: make ~/.ssh/sparkstack-local",
        "lab-a: let in lab-b",
        "lab-b: let in lab-a",
    ]
    assert sum(isinstance(step, Later) for step in plan.steps) == 2
    assert "comes first: the key" in as_text(plan)
    assert titles(plan_keys(CLUSTER, facts(key=None))) == titles(plan)[:2]


def test_a_key_is_let_in_for_reading_one_folder_from_one_address() -> None:
    assert plan_keys(CLUSTER, facts()).empty
    plan = plan_peers(CLUSTER, facts())
    step = next(step for step in plan.steps if step.node == "lab-b")
    assert isinstance(step, Run)
    assert not step.privileged
    head = str(CLUSTER.head.fabric).rsplit(".", 1)[1]
    assert step.argv[-1] == LINE.format(head, KEYS["lab-a"], "lab-a")


def test_where_all_is_in_place_nothing_is_to_do() -> None:
    assert plan_peers(CLUSTER, whole()).empty


def test_a_line_that_was_changed_is_written_anew() -> None:
    loose = frozenset({f'restrict,from="*" {KEYS["lab-b"]} sparkstack-node:local:lab-b'})
    seen = whole()
    seen = {**seen, "lab-a": replace(seen["lab-a"], access=replace(seen["lab-a"].access, authorized=loose))}
    assert titles(plan_peers(CLUSTER, seen)) == ["lab-a: let in lab-b in ~/.ssh/authorized_keys"]


def test_one_node_alone_is_refused_and_what_an_earlier_cluster_left_there_can_be_taken_back() -> None:
    alone = CLUSTER.model_copy(update={"nodes": CLUSTER.nodes[:1]})
    for seen in (whole(), facts(), facts(key=None)):
        with pytest.raises(UsageError, match="local has one node") as caught:
            plan_peers(alone, seen)
        assert caught.value.next_move.endswith("invoke trust --nodes --undo --cluster local")
    assert titles(plan_forget(alone, whole())) == [
        "lab-a: shut out other nodes in ~/.ssh/authorized_keys",
        "lab-a: remove ~/.ssh/sparkstack-local",
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"user": "root"}, "keys are made for spark, and root was asked"),
        ({"user": ""}, "nobody was asked"),
        ({"rrsync": None}, "rrsync is not there"),
        ({"host_keys": ()}, "no readable host keys"),
    ],
)
def test_a_node_that_cannot_keep_to_it_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UnfitNode, match=says):
        plan_peers(CLUSTER, facts(**changes))


def test_it_is_taken_back_by_itself_and_by_a_removal() -> None:
    assert titles(plan_forget(CLUSTER, whole())) == [
        "lab-a: shut out lab-b in ~/.ssh/authorized_keys",
        "lab-a: remove ~/.ssh/sparkstack-local",
        "lab-b: shut out lab-a in ~/.ssh/authorized_keys",
        "lab-b: remove ~/.ssh/sparkstack-local",
    ]
    stopped = {name: replace(seen, units={}, processes=()) for name, seen in whole().items()}
    assert set(titles(plan_forget(CLUSTER, whole()))) <= set(titles(plan_remove(CLUSTER, stopped)))
    assert plan_forget(CLUSTER, facts(key=None)).empty


def test_a_node_reaches_another_with_this_key_alone() -> None:
    argv = peer_ssh(CLUSTER, CLUSTER.nodes[1])
    assert argv[:3] == ("ssh", "-F", "none")
    assert {"-oIdentitiesOnly=yes", "-oIdentityAgent=none", "-oStrictHostKeyChecking=yes"} <= set(argv)


def test_the_command_that_the_docs_name_is_the_one_that_is_tried_on_machines() -> None:
    text = (ROOT / "docs" / "access.md").read_text(encoding="utf-8").replace("CLUSTER", CLUSTER.name)
    said = re.findall(r"-o\w+=[\w/~.-]+", text)
    assert f"-oIdentityFile=~/.ssh/{key_name(CLUSTER)}" in said
    assert set(said) <= set(peer_ssh(CLUSTER, CLUSTER.nodes[1]))


@pytest.mark.processes
class TestFiles:
    """The scripts, run in a home of a test."""

    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("HOME", str(tmp_path))
        return tmp_path / ".ssh"

    @pytest.fixture
    def seen(self) -> Callable[[], Access]:
        """Return what the probe's commands say now."""

        def look() -> Access:
            asked = {fact: run(argv, check=False) for fact, argv in request(CLUSTER).items()}
            return access(Reader("lab-a", {fact: {"code": one.code, "out": one.out} for fact, one in asked.items()}))

        return look

    def apply(self, plan: Plan, node: str = "lab-a") -> None:
        for step in plan.steps:
            if step.node == node and isinstance(step, Run):
                run(step.argv)

    def undo(self, cluster: Cluster, seen: Access) -> None:
        one = {name: replace(was, access=seen) for name, was in lab_facts().items()}
        self.apply(make_plan("t", [("t", forget(cluster, one))]))

    def test_a_key_is_made_that_only_its_owner_reads(self, home: Path, seen: Callable[[], Access]) -> None:
        assert seen().key is None
        self.apply(plan_keys(CLUSTER, facts(key=None)))
        assert stat.S_IMODE((home / "sparkstack-local").stat().st_mode) == 0o600
        made = seen().key
        assert made
        assert made.startswith("ssh-ed25519 AAAA")

    @pytest.mark.parametrize("before", ["", "ssh-ed25519 AAAAmine me@home\n", "# a\n\nssh-rsa AAAA x\nssh-rsa BBBB y"])
    def test_only_our_lines_come_and_go_and_the_mode_stays(
        self, before: str, home: Path, seen: Callable[[], Access]
    ) -> None:
        home.mkdir()
        file = home / "authorized_keys"
        file.write_text(before)
        file.chmod(0o640)
        for _ in range(2):
            self.apply(plan_peers(CLUSTER, facts()))
        assert file.read_text().splitlines() == [*before.splitlines(), *seen().authorized]
        assert len(seen().authorized) == 1
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        self.undo(CLUSTER, seen())
        assert file.read_text().splitlines() == before.splitlines()
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        assert [path.name for path in home.iterdir()] == ["authorized_keys"]

    def test_a_file_behind_a_link_is_replaced_where_it_lies(self, home: Path, tmp_path: Path) -> None:
        home.mkdir()
        (tmp_path / "dotfiles").write_text("ssh-rsa AAAA x\n")
        (home / "authorized_keys").symlink_to(tmp_path / "dotfiles")
        self.apply(plan_peers(CLUSTER, facts()))
        assert (home / "authorized_keys").is_symlink()
        assert len((tmp_path / "dotfiles").read_text().splitlines()) == 2

    def test_without_a_file_one_is_made_for_its_owner(self, home: Path) -> None:
        self.apply(plan_peers(CLUSTER, facts()))
        assert stat.S_IMODE((home / "authorized_keys").stat().st_mode) == 0o600
        assert stat.S_IMODE(home.stat().st_mode) == 0o700

    def test_lines_of_other_clusters_and_of_others_stay(self, home: Path, seen: Callable[[], Access]) -> None:
        home.mkdir()
        file = home / "authorized_keys"
        others = (
            'restrict,from="10.0.0.1",command="x" ssh-ed25519 AAAAo sparkstack-node:localhost:lab-b\n'
            "ssh-ed25519 AAAAm sparkstack-node:local:mine\n"
        )
        file.write_text(others)
        self.apply(plan_peers(CLUSTER, facts()))
        assert len(seen().authorized) == 1
        assert mark(CLUSTER) in next(iter(seen().authorized))
        self.undo(CLUSTER, seen())
        assert file.read_text() == others

    def test_the_others_are_known_at_their_fabric_addresses(self, seen: Callable[[], Access]) -> None:
        self.apply(plan_peers(CLUSTER, facts()))
        assert seen().known == (f"{CLUSTER.nodes[1].fabric} ssh-ed25519 HOSTb",)
