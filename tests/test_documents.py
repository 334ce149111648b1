"""Text, JSON and YAML within limits: what is read, what is refused, and that nothing a stranger writes costs more."""

import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from spanbox.documents import (
    JSON_DEPTH,
    YAML_DEPTH,
    YAML_SIZE,
    DocumentError,
    dump_yaml,
    parse_json,
    parse_yaml,
    quoted,
    read_json,
    read_text,
    read_yaml,
)


def aliases(levels: int, pattern: str) -> str:
    """YAML whose aliases stand for 9 ** levels values."""
    lines = [f"a{level}: &a{level} " + pattern.format(*[f"*a{level - 1}"] * 9) for level in range(1, levels)]
    return "\n".join(["a0: &a0 {k: v}", *lines])


IN_LISTS = "[" + ", ".join(["{}"] * 9) + "]"
IN_MAPPINGS = "{{" + ", ".join(f"k{n}: {{}}" for n in range(9)) + "}}"
IN_MERGES = "{{<<: [" + ", ".join(["{}"] * 9) + "], k: v}}"


class TestYamlValues:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("", None),
            ("# a comment", None),
            ("~", None),
            ("null", None),
            ("yes", True),
            ("off", False),
            ("'yes'", "yes"),
            ("12", 12),
            ("-1_000", -1000),
            ("0x1f", 31),
            ("010", "010"),
            ("1.5", 1.5),
            ("3e-4", 3e-4),
            ("-.5", -0.5),
            (".inf", math.inf),
            ("-.inf", -math.inf),
            ("2024-01-01", "2024-01-01"),
            ("2024-13-45", "2024-13-45"),
            ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
            ("1:60:60", "1:60:60"),
            ("=", "="),
            ("läufe 示例", "läufe 示例"),
            ("\ufeffa: 1", {"a": 1}),
            ("1: a\nnull: b\non: c\n1.5: d", {"1": "a", "null": "b", "on": "c", "1.5": "d"}),
            ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
            ("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}", {"a": {"k": 1, "l": 2}, "b": {"k": 1, "l": 3}}),
            ("<<: [{k: 1}, {k: 2, l: 3}]", {"k": 1, "l": 3}),
        ],
    )
    def test_read(self, text: str, value: object) -> None:
        assert parse_yaml(text) == value

    def test_not_a_number(self) -> None:
        assert math.isnan(parse_yaml(".nan"))

    def test_an_alias_is_a_copy(self) -> None:
        tree = parse_yaml("a: &x {k: 1}\nb: *x")
        tree["a"]["k"] = 2
        assert tree["b"]["k"] == 1

    @pytest.mark.parametrize(
        "value",
        [
            "1e5",
            "3e-4",
            "010",
            "yes",
            "~",
            "",
            "<<",
            "=",
            "2024-01-01",
            "12:30",
            "a\x85b",
            "a\u2028b",
            "'\"",
            " x ",
            "示例",
        ],
    )
    def test_a_text_survives_writing(self, value: str) -> None:
        assert parse_yaml(dump_yaml({"key": value, "list": [value]})) == {"key": value, "list": [value]}

    @pytest.mark.parametrize(
        "text", ["runs/小 😀", "a: b", "a #b", "[x", "null", "", "'\"\\", "a\x7fb\x85\u2028c\n d  e"]
    )
    def test_a_quoted_text_is_one_line(self, text: str) -> None:
        assert len(quoted(text).splitlines()) == 1
        assert parse_yaml(quoted(text)) == text

    @pytest.mark.parametrize("character", ["\0", "\udce9"])
    def test_a_quoted_name_that_is_no_utf_8_is_refused_by_its_character(self, character: str) -> None:
        with pytest.raises(DocumentError, match=rf"^line 1: {re.escape(repr(character))} cannot be part of a text$"):
            parse_yaml(quoted(f"caf{character}"))

    def test_numbers_survive_writing(self) -> None:
        numbers = [1e-7, 1e22, 0.1, -0.0, 10**39, True, None, math.inf]
        assert repr(parse_yaml(dump_yaml(numbers))) == repr(numbers)


class TestYamlRefusals:
    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("9" * 5_000, "line 1: an integer of 5000 digits, the limit is 40"),
            ("a: 1\nb: 0x" + "f" * 9_000, "line 2: an integer of 9002 digits"),
            ("!!int 'x'", "line 1: the tag 'tag:yaml.org,2002:int' is not read"),
            ("!!timestamp x", "the tag 'tag:yaml.org,2002:timestamp' is not read"),
            ("!!python/object/apply:os.getcwd []", "is not read"),
            ("!mine {a: 1}", "the tag '!mine' is not read"),
            ("{!!str a: 1}", "a key is plain text"),
            ("&a [*a]", "&a contains itself"),
            ("&a {b: *a}", "&a contains itself"),
            ("*a", r"\*a has no anchor &a before it"),
            ("{a: 1, a: 2}", "the key 'a' is given twice"),
            ("a: 1\n'a': 2", "line 2: the key 'a' is given twice"),
            ("{1: a, '1': b}", "the key '1' is given twice"),
            ("{[a]: 1}", "a key is plain text"),
            ("{{a: 1}: 1}", "a key is plain text"),
            ("<<: 5", "<< needs a mapping"),
            ("<<: [1]", "<< needs a mapping"),
            ('"\\0"', r"'\\x00' cannot be part of a text"),
            ("a: \ud800", "line 1: .* cannot be part of a text"),
            ("a\x00", "line 1: .* cannot be part of a text"),
            ('"\\ud800"', "line 1: "),
            ('"\\UFFFFFFFF"', "line 1: "),
            ("a: 1\n---\nb: 2", "line 2: a second document starts"),
            ("---\n---\n", "a second document starts"),
            ("a: [1", "line [12]: "),
            ("a: b: c", "line 1: "),
            ("@x", "line 1: "),
            ("a" * (YAML_SIZE + 1), "more than 0.25 MiB"),
            (f"[{'1, ' * 30_000}1]", "more than 20,000 values"),
        ],
    )
    def test_with_line_and_reason(self, text: str, problem: str) -> None:
        with pytest.raises(DocumentError, match=problem):
            parse_yaml(text)

    @pytest.mark.parametrize("pattern", [IN_LISTS, IN_MAPPINGS, IN_MERGES], ids=["lists", "mappings", "merges"])
    @pytest.mark.parametrize("levels", [8, 40])
    def test_aliases_that_expand(self, pattern: str, levels: int) -> None:
        with pytest.raises(DocumentError, match="more than 20,000 values, aliases included"):
            parse_yaml(aliases(levels, pattern))

    @pytest.mark.parametrize("levels", [YAML_DEPTH + 1, 3_000, 50_000])
    @pytest.mark.parametrize("brackets", ["[]", "{}"])
    def test_deep(self, levels: int, brackets: str) -> None:
        opening = brackets[0] if brackets == "[]" else "{a: "
        with pytest.raises(DocumentError, match=f"nested more than {YAML_DEPTH} levels deep"):
            parse_yaml(opening * levels + brackets[1] * levels)

    def test_the_deepest_that_is_read(self) -> None:
        parse_yaml("[" * YAML_DEPTH + "]" * YAML_DEPTH)

    def test_deep_by_aliases(self) -> None:
        lines = [f"a{level}: &a{level} [*a{level - 1}]" for level in range(1, 150)]
        with pytest.raises(DocumentError, match=f"nested more than {YAML_DEPTH} levels deep"):
            parse_yaml("\n".join(["a0: &a0 []", *lines]))


class TestJson:
    def test_not_finite_numbers_are_read(self) -> None:
        assert parse_json("[Infinity, -Infinity]") == [math.inf, -math.inf]

    @pytest.mark.parametrize(
        "text", ["", "{", "nul", "'a'", "[1] 2", "9" * 5_000, "[" * 100_000, "[" * 100_000 + "]" * 100_000]
    )
    def test_refused(self, text: str) -> None:
        with pytest.raises(DocumentError):
            parse_json(text)

    @pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
    def test_depth(self, opening: str, closing: str) -> None:
        inner = {"]": "[]", "}": "{}"}[closing]
        at_limit = opening * (JSON_DEPTH - 1) + inner + closing * (JSON_DEPTH - 1)
        parse_json(at_limit)
        with pytest.raises(DocumentError, match=f"nested more than {JSON_DEPTH} levels deep"):
            parse_json(opening + at_limit + closing)


class TestFiles:
    def test_byte_order_mark(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"\xef\xbb\xbf{}")
        assert read_json(tmp_path / "a") == {}

    @pytest.mark.parametrize("content", [b"\xff\xfea\x00", "ä".encode("latin-1"), b"\xed\xa0\x80"])
    def test_not_utf_8(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(DocumentError, match="not UTF-8 text: byte 0 is 0x"):
            read_text(tmp_path / "a")

    def test_too_large_is_not_read_to_its_end(self, tmp_path: Path) -> None:
        with (tmp_path / "a").open("wb") as file:
            file.truncate(2**40)  # sparse
        with pytest.raises(DocumentError, match=r"more than 0\.25 MiB"):
            read_yaml(tmp_path / "a")

    def test_no_regular_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "folder").mkdir()
        (tmp_path / "loop").symlink_to("loop")
        reads: list[Any] = [read_text, read_json, read_yaml]
        for read in reads:
            for name in ("pipe", "folder", "loop", "missing"):
                with pytest.raises(OSError, match=r"folder|regular file|No such file|symbolic links"):
                    read(tmp_path / name)
            with pytest.raises(OSError, match="not a regular file"):
                read(Path("/dev/zero"))
