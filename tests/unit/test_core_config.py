"""Configuration: what is wrong in a file is named, with key, expectation and nearest spelling."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import config
from core.config import CONFIG, Cluster, Profile, Stack, load_cluster, load_profile, load_stack, parse_size
from core.errors import ConfigError
from core.mistakes import nearest

CLUSTER = """
stack = "cpu"
profile = "tiny"
user = "spark"
management = { subnet = "198.18.34.0/24" }
fabric = { subnet = "198.18.100.0/24" }
[[nodes]]
name = "lab-a"
management = "198.18.34.100"
fabric = "198.18.100.1"
[[nodes]]
name = "lab-b"
management = "198.18.34.101"
fabric = "198.18.100.2"
[lab]
disk = "12 GiB"
"""
PROFILE = 'model = "tiny"\nserved_names = ["tiny"]\n'
STACK = """
description = "test"
lock = "config/stacks/cpu.lock"
platforms = ["x86_64"]
python = ["3.11"]
[components]
vllm = { origin = "index", version = "1" }
[components.image]
origin = "source"
version = "1"
recipe = "probe"
"""
LOADERS = {"cluster": (load_cluster, CLUSTER), "profile": (load_profile, PROFILE), "stack": (load_stack, STACK)}


NODES = CLUSTER[CLUSTER.index("[[nodes]]") : CLUSTER.index("[lab]")]
# each: a good file in which `old` became `new`, and what must be said about it
MISTAKES = json.loads((Path(__file__).parent / "tables" / "config_mistakes.json").read_text())


def write(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake["title"])
def test_a_mistake_is_refused_with_key_and_expectation(mistake: dict[str, str], tmp_path: Path) -> None:
    load, good = LOADERS[mistake["kind"]]
    old = NODES if mistake["old"] == "NODES" else mistake["old"]
    assert old in good
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, good.replace(old, mistake["new"])))
    assert caught.value.cause == f"{tmp_path}/mine.toml is not a {mistake['kind']}"
    assert any(line.startswith(mistake["says"]) for line in caught.value.evidence.splitlines()), caught.value.evidence
    assert caught.value.exit_code == 10


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    text = CLUSTER.replace('stack = "cpu"', 'stak = "cpu"').replace('disk = "12 GiB"', 'disk = "12"')
    with pytest.raises(ConfigError) as caught:
        load_cluster(write(tmp_path, text))
    assert len(caught.value.evidence.splitlines()) == 3  # stack is missing, stak unknown, disk wrong


@pytest.mark.parametrize("text", ["name = ", "a = 1\na = 2", "\0"], ids=["half a line", "a key twice", "binary"])
def test_what_is_not_toml_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.toml is not TOML: .*(line 1|end of document)"):
        load_cluster(write(tmp_path, text))


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b'stack = "\xff"')
    with pytest.raises(ConfigError, match="is not TOML: 'utf-8' codec"):
        load_cluster(str(tmp_path / "mine.toml"))


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: No such file"):
        load_cluster(str(tmp_path / "none.toml"))


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_cluster(str(tmp_path / "folder.toml"))


@pytest.mark.parametrize("name", ["lcoal", "locall"])
def test_a_missing_cluster_is_refused_with_the_nearest_one(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_cluster(name)
    assert caught.value.cause == f"config/clusters/{name}.toml does not exist (did you mean local?)"
    assert "local, spark" in caught.value.next_move


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../clusters/local", "clusters/local"])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_cluster(name)


def test_a_missing_node_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"no node 'lab-c' \(did you mean lab-"):
        load_cluster("local").node("lab-c")


def test_a_good_file_is_read_and_named_after_itself(tmp_path: Path) -> None:
    cluster = load_cluster(write(tmp_path, CLUSTER))
    assert cluster.name == "mine"
    assert cluster.head.name == "lab-a"
    assert [node.name for node in cluster.workers] == ["lab-b"]
    assert cluster.node("lab-b").ssh_port == 22
    assert cluster.api_url == "http://198.18.34.100:8000/v1"
    assert cluster.lab is not None
    assert cluster.lab.disk == 12 * 1024**3


def test_an_api_on_loopback_is_reached_on_the_head_only(tmp_path: Path) -> None:
    cluster = load_cluster(write(tmp_path, CLUSTER.replace("[lab]", '[api]\nlisten = "loopback"\n[lab]')))
    assert cluster.api_url == "http://127.0.0.1:8000/v1"


def test_one_node_may_have_one_network(tmp_path: Path) -> None:
    second = CLUSTER[CLUSTER.rindex("[[nodes]]") : CLUSTER.index("[lab]")]
    one = CLUSTER.replace(second, "").replace("198.18.100.", "198.18.34.")
    assert len(load_cluster(write(tmp_path, one)).nodes) == 1


def test_what_was_read_cannot_be_changed() -> None:
    cluster = load_cluster("local")
    with pytest.raises(ValueError, match="frozen"):
        cluster.user = "root"  # type: ignore[misc]


@pytest.mark.parametrize("model", [Cluster, Stack, Profile])
def test_every_shipped_file_is_read(model: type[Cluster | Stack | Profile]) -> None:
    kind = f"{model.__name__.lower()}s"
    load = getattr(config, f"load_{kind[:-1]}")
    for path in (CONFIG / kind).glob("*.toml"):
        assert load(path.stem).name == path.stem


@given(st.integers(min_value=1, max_value=2**20), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB"]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str) -> None:
    factor = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert parse_size(f"{number} {unit}") == parse_size(f"{number}{unit}") == number * factor


@given(st.text())
def test_a_text_is_a_size_or_refused(text: str) -> None:
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*(B|[KMGT]iB)\s*", text):
        assert isinstance(parse_size(text), int)
    else:
        with pytest.raises(ValueError, match='expected a size like "12 GiB"'):
            parse_size(text)


@given(st.one_of(st.integers(), st.booleans(), st.floats(), st.none()))
def test_what_is_no_text_is_left_to_the_model(value: object) -> None:
    assert parse_size(value) is value


@given(st.text(max_size=20), st.lists(st.text(max_size=20), max_size=5))
def test_a_hint_names_one_of_the_words_or_nothing(word: str, words: list[str]) -> None:
    assert nearest(word, words) in {"", *(f" (did you mean {known}?)" for known in words)}


@pytest.mark.parametrize(
    ("lines", "publishable"),
    [
        ('origin = "index"', True),
        ('origin = "source"\nrecipe = "probe"', True),
        ('origin = "image"\nimage = "r/x@sha256:1"', False),
        ('origin = "image"\nimage = "r/x@sha256:1"\nredistributable = true', True),
        ('origin = "index"\nredistributable = false', False),
    ],
)
def test_what_comes_from_an_image_is_not_for_others_unless_the_stack_says_so(
    lines: str, tmp_path: Path, *, publishable: bool
) -> None:
    text = STACK.replace('origin = "source"\nversion = "1"\nrecipe = "probe"', f'version = "1"\n{lines}')
    assert load_stack(write(tmp_path, text)).components["image"].may_be_given is publishable


def test_a_cluster_says_who_may_sign_releases_or_nothing(tmp_path: Path):
    path = tmp_path / "own.toml"
    path.write_text(CLUSTER)
    assert load_cluster(str(path)).allowed_signers is None
    path.write_text('allowed_signers = "config/allowed_signers"\n' + CLUSTER)
    assert load_cluster(str(path)).allowed_signers == Path("config/allowed_signers")
    path.write_text("allowed_signers = true\n" + CLUSTER)
    with pytest.raises(ConfigError, match="allowed_signers"):
        load_cluster(str(path))
