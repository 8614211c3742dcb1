"""The way to a node is what OpenSSH's own reader of the configuration says, under what the cluster's file says."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from core import config
from core.config import Cluster, load_cluster
from core.errors import ConfigError
from core.hand import user
from core.nodelock import patience_of
from core.process import run
from core.sshroute import Route, config_of, hops, known_name, parse_answer, pulse, route, strict_options

pytestmark = pytest.mark.processes


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(config, "WORK", tmp_path / "work with space")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    return load_cluster("spark")


def way(cluster: Cluster, text: str = "", name: str = "gx10-beee", **changes: object) -> Route:
    """Return the way to a node under a user's SSH configuration."""
    folder = Path.home() / ".ssh"
    folder.mkdir(exist_ok=True)
    (folder / "config").write_text(text, encoding="utf-8")
    return route(cluster.model_copy(update=changes), cluster.node(name))


def test_without_a_configuration_it_is_the_cluster_s_own(cluster: Cluster) -> None:
    found = way(cluster)
    assert (found.host, found.port, found.user, found.proxy, found.jumps) == ("192.168.34.100", 22, "gx10", None, ())
    assert found.agent == "/run/agent"
    assert Path.home() / ".ssh" / "id_ed25519" in found.identities
    assert not found.identities_only


@pytest.mark.parametrize("pattern", ["gx10-beee", "192.168.34.100", "gx10-*", "192.168.34.*"])
def test_a_node_is_found_in_it_by_its_name_or_by_its_address(cluster: Cluster, pattern: str) -> None:
    text = f"Host {pattern}\n Port 2222\n IdentityFile ~/.ssh/for-%h-%r\n IdentitiesOnly yes\n"
    found = way(cluster, text)
    assert (found.port, found.known_as, found.identities_only) == (2222, "[192.168.34.100]:2222", True)
    assert found.identities == (Path.home() / ".ssh" / "for-192.168.34.100-gx10",)


def test_a_rule_for_the_address_counts_for_a_node_that_is_found_by_its_name(cluster: Cluster) -> None:
    found = way(cluster, "Host gx10-beee\n User somebody\nMatch host 192.168.34.100\n Port 2200\n")
    assert (found.host, found.port) == ("192.168.34.100", 2200)


def test_what_the_cluster_s_file_says_wins(cluster: Cluster) -> None:
    text = "Host *\n Port 2222\n User root\n HostName 10.0.0.1\n IdentityFile ~/other\n"
    found = way(cluster, text, identity=Path("/keys/mine"))
    assert (found.host, found.user, found.identities) == ("192.168.34.100", "gx10", (Path("/keys/mine"),))
    assert found.identities_only
    assert found.port == 2222, "a port that is not in the file is the configuration's"


@pytest.mark.usefixtures("cluster")
def test_a_port_that_the_cluster_s_file_names_wins(tmp_path: Path) -> None:
    shipped = (config.CONFIG / "clusters" / "spark.toml").read_text(encoding="utf-8")
    text = shipped.replace('fabric = "172.16.100.1"', 'fabric = "172.16.100.1"\nssh_port = 22')
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    assert way(load_cluster(str(tmp_path / "mine.toml")), "Host *\n Port 2222\n").port == 22


@pytest.mark.parametrize(
    ("silence", "interval", "most", "lock"), [(20, 5, 4, 30), (8, 2, 4, 12), (4, 1, 4, 6), (600, 5, 120, 900)]
)
def test_ssh_gives_up_after_the_silence_that_the_cluster_allows_and_a_lock_lives_half_as_long_again(
    silence: float, interval: int, most: int, lock: float, cluster: Cluster
) -> None:
    patient = cluster.model_copy(update={"silence": silence})
    given = strict_options(patient)
    assert (given["ServerAliveInterval"], given["ServerAliveCountMax"]) == (str(interval), str(most))
    assert pulse(patient) * 4 <= silence
    assert patience_of(patient) == lock


def test_jump_hosts_are_passed_with_our_rules_and_known_by_name(cluster: Cluster) -> None:
    found = way(
        cluster,
        "Host gx10-*\n ProxyJump outer,me@inner:2200\n"
        "Host outer\n HostName 10.0.0.1\n User door\n ProxyJump porch\n"
        "Host inner\n HostName 10.0.0.2\n HostKeyAlias the-inner\n",
    )
    config_file = cluster.state / "ssh" / "way.conf"
    assert found.proxy == (
        *("ssh", "-F", str(config_file), "-J", "outer"),
        *("-W", "[192.168.34.100]:22", "ssh://me@inner:2200"),
    )
    porch, outer, inner = hops(cluster, found)
    assert [(one.host, one.port, one.known_as) for one in (porch, outer, inner)] == [
        ("porch", 22, "porch"),
        ("10.0.0.1", 22, "10.0.0.1"),
        ("10.0.0.2", 2200, "the-inner"),
    ]
    assert (outer.user, inner.user, porch.proxy) == ("door", "me", None)
    assert outer.proxy
    assert outer.proxy[-1] == "ssh://porch"
    assert inner.proxy
    assert inner.proxy[-2:] == ("[10.0.0.2]:2200", "ssh://outer")


def test_jump_hosts_in_a_circle_are_refused(cluster: Cluster) -> None:
    found = way(cluster, "Host gx10-* b\n ProxyJump a\nHost a\n ProxyJump b\n")
    with pytest.raises(ConfigError, match="in a circle"):
        list(hops(cluster, found))


def test_a_proxy_command_gets_address_and_port(cluster: Cluster) -> None:
    found = way(cluster, "Host gx10-*\n ProxyCommand nc -X connect %h %p # %r %%\n")
    assert found.proxy == ("sh", "-c", "exec nc -X connect 192.168.34.100 22 # gx10 %")
    with pytest.raises(ConfigError, match="ProxyUseFdpass"):
        way(cluster, "Host gx10-*\n ProxyCommand nc %h %p\n ProxyUseFdpass yes\n")


@pytest.mark.parametrize(
    ("said", "agent"),
    [
        ("none", None),
        ("SSH_AUTH_SOCK", "/run/agent"),
        ("$SSH_AUTH_SOCK", "/run/agent"),
        ("/tmp/a.sock", "/tmp/a.sock"),
    ],
)
def test_the_agent_may_be_another_one(cluster: Cluster, said: str, agent: str | None) -> None:
    assert way(cluster, f"IdentityAgent {said}\n").agent == agent


LOOSE = """Host *
 StrictHostKeyChecking no
 UserKnownHostsFile /dev/null
 BatchMode no
 ForwardAgent yes
 ControlMaster auto
 ControlPath ~/.ssh/%C
 UpdateHostKeys yes
 KnownHostsCommand /bin/echo
 PermitLocalCommand yes
 LocalCommand /bin/true
"""


def test_a_loose_configuration_loosens_nothing_on_the_way_nor_for_rsync(cluster: Cluster) -> None:
    found = way(cluster, "Host door\n ProxyJump none\n" + LOOSE + " ProxyJump door\n")
    node = cluster.node("gx10-beee")
    for file, host in ((cluster.state / "ssh" / "way.conf", "door"), (config_of(cluster, node, found), "x")):
        said = parse_answer(run(["ssh", "-G", "-F", str(file), host]).out)
        assert said["stricthostkeychecking"] == ("true",)
        assert said["userknownhostsfile"] == (str(cluster.known_hosts),)
        assert said["batchmode"] == ("yes",)
        assert said["forwardagent"] == ("no",)
        assert said["controlmaster"] == ("false",)
        assert said["updatehostkeys"] == ("false",)
        assert said["permitlocalcommand"] == ("no",)
        assert said.get("controlpath", ("none",)) == said.get("knownhostscommand", ("none",)) == ("none",)


def test_rsync_goes_the_way_of_our_own_connections(cluster: Cluster) -> None:
    found = way(cluster, "Host gx10-*\n ProxyJump door\n IdentityFile ~/.ssh/100%%\n Port 2222\n")
    file = config_of(cluster, cluster.node("gx10-beee"), found)
    said = parse_answer(run(["ssh", "-G", "-F", str(file), "192.168.34.100"]).out)
    assert (said["hostname"], said["port"], said["user"]) == (("192.168.34.100",), ("2222",), ("gx10",))
    assert said["identityfile"] == (f"{Path.home()}/.ssh/100%%",)
    assert said["proxycommand"][0].endswith("-W '[192.168.34.100]:2222' ssh://door")
    assert "Include" not in file.read_text(encoding="utf-8")


def test_the_cluster_may_have_a_configuration_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("Host gx10-*\n Port 4444\n", encoding="utf-8")
    assert way(cluster, "Port 22\n", ssh_config=tmp_path / "own").port == 4444
    with pytest.raises(ConfigError, match="does not exist"):
        way(cluster, ssh_config=tmp_path / "nowhere")


def test_a_configuration_that_ssh_cannot_read_is_told_in_its_words(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="cannot read the SSH configuration") as caught:
        way(cluster, "Prot 22\n")
    assert "prot" in caught.value.evidence.lower()


def test_a_name_in_known_hosts_has_the_port_only_when_it_is_another_one() -> None:
    assert (known_name("a", 22), known_name("a", 2222)) == ("a", "[a]:2222")


def test_a_chain_of_many_jump_hosts_is_no_circle(cluster: Cluster) -> None:
    names = [f"hop{number}" for number in range(10)]
    text = "".join(f"Host {name}\n ProxyJump {before}\n" for name, before in itertools.pairwise(names))
    found = list(hops(cluster, way(cluster, f"Host gx10-*\n ProxyJump hop2\n{text}")))
    assert [one.host for one in found] == [f"hop{number}" for number in range(9, 1, -1)]


def test_a_proxy_command_of_a_jump_host_gets_its_name_as_it_was_said(cluster: Cluster) -> None:
    text = "Host gx10-*\n ProxyJump bastion\nHost bastion\n HostName 10.0.0.1\n ProxyCommand connect %n %h %p\n"
    (hop,) = hops(cluster, way(cluster, text))
    assert hop.proxy == ("sh", "-c", "exec connect bastion 10.0.0.1 22")


def test_no_key_file_is_none_for_rsync_too(cluster: Cluster) -> None:
    found = way(cluster, "IdentityFile none\n")
    assert found.identities == ()
    file = config_of(cluster, cluster.node("gx10-beee"), found)
    assert parse_answer(run(["ssh", "-G", "-F", str(file), "x"]).out)["identityfile"] == ("none",)


def test_key_files_are_named_as_ssh_names_them(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", "/keys")
    found = way(cluster, "IdentityFile ${KEYS}/%i-%u\nIdentityFile /keys/id~old\nIdentityFile ~/own\n")
    assert found.identities == (Path(f"/keys/{os.getuid()}-{user()}"), Path("/keys/id~old"), Path.home() / "own")
