"""A small model of how systemd reads what we write: systemd.syntax(7), systemd.service(5), systemd.exec(5)."""

from __future__ import annotations

import re


def unit_values(text: str, key: str) -> list[str]:
    """Return the values of a key in a unit file: comments out, lines that end with a backslash joined."""
    lines = [line for line in text.split("\n") if not line.startswith(("#", ";"))]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [line.partition("=")[2].strip() for line in joined.split("\n") if line.startswith(f"{key}=")]


def exec_words(value: str) -> list[str]:
    """Split a command line: quotes wrap whole words, a backslash escapes, %% is % and $$ is $; all else is refused."""
    words, rest = [], value.strip(" \t")
    while rest:
        quote = rest[0] if rest[0] in "'\"" else ""
        word, rest = _one(rest[1:] if quote else rest, quote)
        words.append(word)
        rest = rest.lstrip(" \t")
    return [words[0], *(_expanded(word) for word in words[1:])]


def _one(text: str, quote: str) -> tuple[str, str]:
    word = ""
    while text:
        letter, text = text[0], text[1:]
        if quote and letter == quote:
            assert not text or text[0] in " \t", "a closing quote must end the word"
            return word, text
        if not quote and letter in " \t":
            return word, text
        assert quote or letter not in "'\"", "an opening quote must begin the word"
        if letter == "\\":
            assert text, "a backslash at the end"
            assert text[0] in "\\\"'", f"an escape that we do not write: {text[0]}"
            letter, text = text[0], text[1:]
        word += letter
    assert not quote, "an open quote"
    return word, ""


def _expanded(word: str) -> str:
    assert not re.search(r"%(?!%)", word.replace("%%", "")), "a specifier"
    word = word.replace("%%", "%")
    assert "$" not in word.replace("$$", ""), "a variable"
    return word.replace("$$", "$")


def environment(text: str) -> dict[str, str]:
    """Read an EnvironmentFile: KEY=value, in double quotes a backslash escapes a quote, itself, $ and a backtick."""
    found = {}
    for line in text.split("\n"):
        if not line or line.startswith(("#", ";")):
            continue
        key, _, value = line.partition("=")
        found[key] = _unquoted(value.lstrip(" \t"))
    return found


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        assert not set(value) & set("'\"\\"), "quotes or escapes outside of quotes"
        return value.rstrip(" \t")
    match = re.fullmatch(r'"((?:[^"\\]|\\.)*)"', value, re.DOTALL)
    assert match, "what follows the closing quote would belong to the value"
    return re.sub(r'\\(["\\$`])', r"\1", match[1])
