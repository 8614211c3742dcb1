"""Secrets that are planted in what a report is made of never come through; what helps to find a bug does."""

from __future__ import annotations

import ipaddress
import json
import stat
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from deploy.care.redact import GONE, Redactor, secrets_in, secrets_of
from deploy.care.report import Part, end_of, redactor_for, write
from tests.unit.samples import TABLES, local, spark_captures

ROWS: list[dict[str, Any]] = json.loads((TABLES / "redact.json").read_text())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["title"])
def test_a_secret_is_taken_out_and_the_rest_stays(row: dict[str, Any]) -> None:
    redactor = Redactor(frozenset(secrets_in(row["text"])))
    assert redactor.text(row["text"]) == row["gives"]
    assert redactor.text(row["gives"]) == row["gives"], "what is taken out already stays so"


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "token",
        "x.token",
        "-",
        "--token ",
        " ",
        "'",
        '"TOKEN=',
        "eyJaaaaaaaa-",
        "token:",
        "authorization",
        "://",
        "1.",
    ],
)
def test_half_a_megabyte_of_one_kind_is_read_in_seconds(piece: str) -> None:
    text = (piece * (500_000 // len(piece) + 1))[:500_000]
    began = time.monotonic()
    Redactor(frozenset()).text(text)
    assert time.monotonic() - began < 60, "an hour, where every letter begins a search to the end"


KEYS = st.sampled_from(["HF_TOKEN", "API_KEY", "my.secret", "sudo_password", "db-credential", "Cookie", "VLLM_API_KEY"])
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\"'\\"), min_size=8).filter(
    lambda text: text not in GONE and len(set(text)) > 4
)
FORMS = st.sampled_from(
    [
        "{key}={value}",
        'Environment="{key}={value}"',
        '{{"{key}": "{value}"}}',
        "export {key}='{value}'",
        "{key}: '{value}'",
    ]
)


@given(key=KEYS, value=VALUES, form=FORMS, around=st.text(max_size=20))
def test_a_value_under_the_name_of_a_secret_never_comes_through_anywhere(
    key: str, value: str, form: str, around: str
) -> None:
    named = Part("nodes/a/env.txt", form.format(key=key, value=value))
    journal = Part("here/journal/x.jsonl", json.dumps({"title": f"logged in with {value}", "argv": [value]}) + "\n")
    data = Part("facts.json", {"a": {"own": {"files": {"/etc/x.env": f"{around}\n{value}\n"}}}})
    redactor = Redactor(frozenset().union(*(part.secrets() for part in (named, journal, data))))
    for part in (named, journal, data):
        assert value not in part.redacted(redactor).decode()
        assert json.dumps(value)[1:-1] not in part.redacted(redactor).decode()


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_data_keeps_its_shape(data: Any) -> None:
    redacted = Redactor(frozenset(secrets_of(data))).data(data)
    assert type(redacted) is type(data)
    assert json.dumps(redacted)


def test_a_planted_secret_is_in_no_file_of_the_report_and_the_listing_counts(tmp_path: Path) -> None:
    parts = [
        Part("config.json", {"cluster": {"environment": {"HF_TOKEN": "plain words one"}}}),
        Part("nodes/lab-a/journal.txt", "Nov 24 lab-a vllm: got plain words one, hf_abcdefghijklmnopqrstuvwx\n"),
        Part(
            "here/journal/1.jsonl", '{"command": "vllm serve --api-key plain-two"}\n{"command": "plain-two", "cut of\n'
        ),
        Part("doctor.txt", "tokens: 507,000 of KV cache\n"),
    ]
    report = write(tmp_path / "r.tar.gz", parts, redactor_for(local(), spark_captures(), parts, private=False))
    with tarfile.open(report.path) as archive:
        texts = [file.read().decode() for one in archive if (file := archive.extractfile(one))]
    assert not [text for text in texts for word in ("plain words one", "hf_abc", "plain-two") if word in text]
    assert texts[-1] == "tokens: 507,000 of KV cache\n"
    assert [one.replaced for one in report.files] == [1, 2, 2, 0]
    assert report.as_text().splitlines()[-2] == "5 replaced; addresses and names are in it: --private replaces them"
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_lay_there_is_not_written_into(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    other.chmod(0o644)
    (tmp_path / ".r.tar.gz.partial").symlink_to(other)
    report = write(tmp_path / "r.tar.gz", [Part("a.txt", "b\n")], Redactor(frozenset()))
    assert other.read_text() == "mine"
    assert stat.S_IMODE(report.path.lstat().st_mode) == 0o600
    assert not report.path.is_symlink()


def test_what_cannot_be_put_in_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "r.tar.gz" / "full").mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be written"):
        write(tmp_path / "r.tar.gz", [Part("a.txt", "b\n")], Redactor(frozenset()))
    assert [path.name for path in tmp_path.iterdir()] == ["r.tar.gz"]


def test_private_replaces_addresses_and_names_by_the_same_words_everywhere() -> None:
    parts = [Part("facts.json", {"nodes": spark_captures().nodes})]
    redactor = redactor_for(local(), spark_captures(), parts, private=True)
    once, again = (redactor.text("lab-a 198.18.34.100 fe80::1 02:11:22:33:44:55 vllm 0.11.2.1") for _ in range(2))
    assert once == again
    assert not [word for word in ("lab-a", "198.18.34", "fe80", "02:11") if word in once]
    assert once.endswith(" vllm 0.11.2.1")
    assert ".100 " in once
    facts = parts[0].redacted(redactor).decode()
    assert not [word for word in ("172.16.100.", "gx10-beee", "ac10:6401") if word in facts]


def test_gids_of_ipv4_addresses_are_replaced_as_the_addresses_are() -> None:
    redactor = Redactor(frozenset(), networks=(ipaddress.IPv4Network("172.16.100.0/24"),), private=True)
    assert redactor.text("0000:0000:0000:0000:0000:ffff:ac10:6401 172.16.100.1") == "::ffff:10.255.1.1 10.255.1.1"


def test_home_folders_of_others_are_replaced() -> None:
    redactor = Redactor(frozenset(), keep=frozenset({"spark"}))
    assert redactor.text("/home/alice/x /home/spark/y /home/bob /home/alice") == (
        "/home/user-1/x /home/spark/y /home/user-2 /home/user-1"
    )


@given(st.text(min_size=1), st.integers(1, 50))
def test_of_a_long_text_the_end_is_kept(text: str, most: int) -> None:
    kept = end_of(text, most)
    assert kept == text if len(text) <= most else text.endswith(kept.partition(" are left out)\n")[2])
