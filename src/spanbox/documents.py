"""Text, JSON and YAML from untrusted files, read within limits of size and depth.

Every config, plan, log and description is read here. The limits keep a hostile or damaged file from filling memory,
hanging the process or ending it with a traceback; docs/limits.md lists them.

YAML is a safe subset: text, numbers, true and false, null, lists and mappings, with anchors and merge keys. Keys are
text. Dates are text. Tags are refused.
"""

import json
import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import yaml

MIB = 2**20
YAML_SIZE = MIB // 4
YAML_DEPTH = 32
YAML_VALUES = 20_000  # with every alias counted as often as it is used
INTEGER_DIGITS = 40
JSON_SIZE = 64 * MIB
JSON_DEPTH = 64
LOG_SIZE = 256 * MIB  # of a run, some 500,000 lines
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # the start of a small file in place of a large one
LFS_POINTER_SIZE = 1024  # bytes; the format allows no larger pointer
IS_LFS_POINTER = "a Git LFS pointer, not the file itself; run git lfs pull"


class DocumentError(ValueError):
    """A text, JSON or YAML file is malformed or beyond a limit. The message has the line, if any, but not the path."""


def refuse_special(path: Path) -> None:
    """Raise OSError for a folder, for a named pipe or device, whose reader would wait for ever, and for a pointer of
    Git LFS."""
    if path.exists() and not path.is_file():
        raise OSError("it is a folder" if path.is_dir() else "it is not a regular file")
    if is_lfs_pointer(path):
        raise OSError(f"it is {IS_LFS_POINTER}")


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer, which a clone without Git LFS has in place of a large file."""
    try:
        if not path.is_file() or path.stat().st_size > LFS_POINTER_SIZE:
            return False
        return path.read_bytes().startswith(LFS_POINTER)
    except (OSError, ValueError):  # a path that the system refuses
        return False


def read_text(path: Path, limit: int = JSON_SIZE, errors: Literal["strict", "replace"] = "strict") -> str:
    """A UTF-8 text file, without a byte order mark.

    Raises:
        DocumentError: it is larger than `limit` bytes, or not UTF-8 (with `errors="strict"`).
        OSError: it cannot be read, is not a regular file, or is a pointer of Git LFS.
    """
    refuse_special(path)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DocumentError(f"the file has more than {limit / MIB:g} MiB, the limit for it")
    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 text: byte {error.start} is {content[error.start]:#04x}") from None


def read_json(path: Path, limit: int = JSON_SIZE) -> Any:
    """A JSON file; NaN and infinities are numbers, as Python writes them. Raises DocumentError and OSError."""
    return parse_json(read_text(path, limit))


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file; an empty one if there is no such file, or it cannot be read or holds something else.

    For values that a program can do without.
    """
    try:
        content = read_json(path) if path.is_file() else {}
    except (DocumentError, OSError):
        return {}
    return content if isinstance(content, dict) else {}


def parse_json(text: str) -> Any:
    """JSON text; NaN and infinities are numbers, as Python writes them. Raises DocumentError."""
    try:
        tree = json.loads(text)
    except RecursionError:
        raise DocumentError(f"nested more than {JSON_DEPTH} levels deep") from None
    except ValueError as error:  # also an integer of thousands of digits
        raise DocumentError(f"not valid JSON: {error}") from None
    _check_json_depth(tree)
    return tree


def _check_json_depth(tree: Any) -> None:
    level = [tree]
    for _ in range(JSON_DEPTH):
        level = [child for node in level for child in _members(node) if isinstance(child, dict | list)]
        if not level:
            return
    raise DocumentError(f"nested more than {JSON_DEPTH} levels deep")


def _members(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def read_yaml(path: Path) -> Any:
    """A YAML file. Raises DocumentError and OSError."""
    return parse_yaml(read_text(path, YAML_SIZE))


def parse_yaml(text: str) -> Any:
    """YAML text, one document; None for an empty one. Raises DocumentError."""
    if len(text) > YAML_SIZE:
        raise DocumentError(f"the text has more than {YAML_SIZE / MIB:g} MiB, the limit for YAML")
    if found := _NO_TEXT.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise DocumentError(f"line {line}: {found[0]!r} cannot be part of a text")
    try:
        return _YamlReader(text).document()
    except yaml.MarkedYAMLError as error:
        context = f"{error.context}, " if error.context else ""
        raise DocumentError(f"{_line(error.problem_mark)}{context}{error.problem}") from None
    except (yaml.YAMLError, OverflowError) as error:
        raise DocumentError(" ".join(str(error).split())) from None


def dump_yaml(tree: Any) -> str:
    """Plain values as YAML that `parse_yaml` reads back as the same values."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def can_be_read_back(text: str) -> bool:
    """Whether `parse_yaml` accepts the text at all, in quotes; not that of a file name that is no UTF-8."""
    return not _NO_TEXT.search(text)


def quoted(text: str) -> str:
    """A text as YAML on one line that `parse_yaml` reads back. Not as JSON, which writes emoji as two surrogates."""
    return f'"{"".join(map(_quoted_character, text))}"'


def _quoted_character(char: str) -> str:
    is_plain = char.isprintable() and char not in '"\\'
    return char if is_plain or _NO_TEXT.match(char) else f"\\U{ord(char):08x}"  # no escape stands for NO_TEXT either


class _YamlReader:
    """Makes values from the events of PyYAML's parser; PyYAML itself constructs nothing."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        self._anchors: dict[str, tuple[Any, int] | None] = {}  # value and size; None while it is being read
        self._values = 0

    def document(self) -> Any:
        """The only document of the text."""
        value, is_read = None, False
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if is_read:
                    raise DocumentError(f"{_line(event.start_mark)}a second document starts; expected one")
                value, is_read = self._read(next(self._events), 0), True
        return value

    def _read(self, event: Any, depth: int) -> Any:
        line = _line(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            value = self._alias(event, line)
            _check_yaml_depth(depth + _height(value), line)
            return value
        _check_yaml_depth(depth + (not isinstance(event, yaml.ScalarEvent)), line)
        if event.tag is not None:
            raise DocumentError(f"{line}the tag {event.tag!r} is not read; write the value without a tag")
        self._count(1, line)
        before = self._values
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        value = self._content(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, 1 + self._values - before
        return value

    def _content(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.ScalarEvent):
            is_plain = event.implicit[0]
            return _plain_value(event.value, _line(event.start_mark)) if is_plain else _text(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return [self._read(inner, depth + 1) for inner in self._until(yaml.SequenceEndEvent)]
        return self._mapping(depth)

    def _mapping(self, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for event in self._until(yaml.MappingEndEvent):
            line = _line(event.start_mark)
            is_merge = isinstance(event, yaml.ScalarEvent) and event.implicit[0] and event.value == "<<"
            key = self._key(event, line)
            value = self._read(next(self._events), depth + 1)
            if is_merge:
                for mapping in value if isinstance(value, list) else [value]:
                    if not isinstance(mapping, dict):
                        raise DocumentError(f"{line}<< needs a mapping or a list of mappings")
                    for name, inner in mapping.items():
                        merged.setdefault(name, inner)  # of several, the first one wins
            elif key in own:
                raise DocumentError(f"{line}the key {key!r} is given twice")
            else:
                own[key] = value
        return merged | own

    def _key(self, event: Any, line: str) -> str:
        """A key as text, even where it would be another type as a value: `1`, `on`, `null`."""
        if isinstance(event, yaml.AliasEvent):
            value = self._alias(event, line)
            if isinstance(value, str):
                return value
        elif isinstance(event, yaml.ScalarEvent) and event.tag is None:
            self._count(1, line)
            key = _text(event)
            if event.anchor is not None:
                self._anchors[event.anchor] = key, 1
            return key
        raise DocumentError(f"{line}a key is plain text, not a list, a mapping or a value with a tag")

    def _alias(self, event: Any, line: str) -> Any:
        anchor = event.anchor
        if anchor not in self._anchors:
            raise DocumentError(f"{line}*{anchor} has no anchor &{anchor} before it")
        found = self._anchors[anchor]
        if found is None:
            raise DocumentError(f"{line}&{anchor} contains itself")
        value, size = found
        self._count(size, line)
        return deepcopy(value)  # overrides change the tree, and each place on its own

    def _until(self, end: type[yaml.Event]) -> Iterator[Any]:
        for event in self._events:
            if isinstance(event, end):
                return
            yield event

    def _count(self, values: int, line: str) -> None:
        self._values += values
        if self._values > YAML_VALUES:
            raise DocumentError(f"{line}more than {YAML_VALUES:,} values, aliases included")


def _check_yaml_depth(depth: int, line: str) -> None:
    if depth > YAML_DEPTH:
        raise DocumentError(f"{line}nested more than {YAML_DEPTH} levels deep")


def _height(value: Any) -> int:
    """Levels of lists and mappings in a value, at most `YAML_DEPTH`: deeper ones are never made."""
    return 1 + max(map(_height, _members(value)), default=0) if isinstance(value, dict | list) else 0


_EXPONENT = r"[eE][-+]?[0-9]+"
_FLOAT = re.compile(
    rf"[-+]?(([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)({_EXPONENT})?|[0-9]+{_EXPONENT}|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
)
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0b[01]+)")
_CONSTANTS = {"": None, "~": None, "null": None, "yes": True, "true": True, "on": True}
_CONSTANTS |= {"no": False, "false": False, "off": False}
_CONSTANTS |= {change(word): value for word, value in list(_CONSTANTS.items()) for change in (str.title, str.upper)}
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # no path and no UTF-8 file can hold these


def _plain_value(text: str, line: str) -> Any:
    """The value of a text without quotes."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        digits = text.replace("_", "")
        if len(digits) > INTEGER_DIGITS:
            raise DocumentError(f"{line}an integer of {len(digits)} digits, the limit is {INTEGER_DIGITS}")
        return int(digits, 0)
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _text(event: yaml.ScalarEvent) -> str:
    text: str = event.value
    if found := _NO_TEXT.search(text):  # from an escape such as \0
        raise DocumentError(f"{_line(event.start_mark)}{found[0]!r} cannot be part of a text")
    return text


def _line(mark: Any) -> str:
    return f"line {mark.line + 1}: " if mark is not None else ""


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `parse_yaml` reads as something else and PyYAML does not."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        has_line_ends = any(character in text for character in "\x85\u2028\u2029")
        quoted = '"' if has_line_ends or _FLOAT.fullmatch(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, quoted)


_Dumper.add_representer(str, _Dumper.represent_text)
