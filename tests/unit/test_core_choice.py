"""Which cluster and which stack a command means."""

from __future__ import annotations

import pytest

from core.choice import chosen_cluster, cluster_of_stack, stack_of, this_host
from core.config import load_cluster
from core.errors import ConfigError, UsageError


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARKSTACK_CLUSTER", raising=False)


def test_without_a_word_it_is_spark() -> None:
    assert chosen_cluster("").name == "spark"


def test_the_variable_comes_before_the_default_and_the_flag_before_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPARKSTACK_CLUSTER", "local")
    assert chosen_cluster("").name == "local"
    assert chosen_cluster("spark").name == "spark"
    monkeypatch.setenv("SPARKSTACK_CLUSTER", "")
    assert chosen_cluster("").name == "spark"


def test_a_cluster_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean local"):
        chosen_cluster("locla")


def test_the_stack_is_the_clusters() -> None:
    assert stack_of(load_cluster("local")).name == "cpu"
    assert stack_of(load_cluster("spark"), "guide").name == "guide"


def test_a_stack_that_does_not_agree_with_the_cluster_is_refused() -> None:
    with pytest.raises(UsageError, match="--stack guide does not agree with the cluster local, whose stack is cpu"):
        stack_of(load_cluster("local"), "guide")


@pytest.mark.parametrize(("stack", "cluster"), [("cpu", "local"), ("guide", "spark"), ("current", "spark")])
def test_a_stack_alone_means_the_first_cluster_that_has_it_else_the_chosen_one(stack: str, cluster: str) -> None:
    found = cluster_of_stack(stack)
    assert (found.name, found.stack) == (cluster, stack)


def test_a_stack_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"guid\.toml does not exist \(did you mean guide\?\)"):
        cluster_of_stack("guid")


def test_this_host_alone_is_a_cluster_of_one_node_without_ssh() -> None:
    (node,) = this_host("cpu").nodes
    assert (node.name, node.local) == ("controller", True)
