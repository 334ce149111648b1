"""Mutations of valid inputs: bytes, text, JSON-like trees and files."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"

NASTY_TEXTS = [
    "",
    " ",
    "\u0000",
    "a\u0000b",
    "\u2028",
    "\u0085",
    "\ufeff",
    "\u202e",
    "\ud800",
    "[/b]",
    "[bold red]",
    "[link=http://a]",
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "%s%n%x",
    "$HOME",
    "`id`",
    "~",
    "~nobody-there/x",
    "/",
    ".",
    "..",
    "../../outside",
    "../" * 40 + "etc/passwd",
    "/dev/zero",
    "/dev/null/x",
    "/proc/self/mem",
    "C:\\x",
    "a" * 300,
    "a/" * 3000,
    "x" * 100_000,
    "e\u0301" * 50,
    "👩‍👩‍👧‍👦" * 40,
    "𠀀",
    "ａｂ",
    "null",
    "true",
    "nan",
    "1e999",
    "-0",
    "0x10",
    "1_000",
    "2024-01-01",
    "9" * 5000,
    "\n",
    "\r\n",
    "\t",
    '"',
    "'",
    ",",
    "=",
    "\\",
    "#",
    "-",
    "--help",
    "cuda",
    "cuda:7",
]
NASTY_NUMBERS = [0, -1, 1, 2, 2**31, 2**32, 2**63, -(2**63), 2**64, 10**30, 10**400, 0.0, -0.0, 0.5, 1e-320, 1e308]
NASTY_FLOATS = [float("nan"), float("inf"), float("-inf")]


def nasty_value(rng: Random) -> Any:
    choice = rng.randrange(10)
    if choice < 3:
        return rng.choice(NASTY_TEXTS)
    if choice < 6:
        return rng.choice(NASTY_NUMBERS)
    if choice == 6:
        return rng.choice(NASTY_FLOATS)
    return rng.choice(
        [None, True, False, [], {}, [[]], [None], {"": None}, [1, "a", None], {"a": {"b": []}}, ["x"] * 500]
    )


def mutate_tree(rng: Random, tree: Any, times: int | None = None) -> Any:
    """A copy of a tree of dictionaries and lists with one to three changes at random places."""
    tree = deepcopy(tree)
    for _ in range(times or rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(tree))
        if not places:
            return nasty_value(rng)
        holder, key = rng.choice(places)
        _change(rng, holder, key)
    return tree


def _places(tree: Any) -> Any:
    if isinstance(tree, dict):
        for key in tree:
            yield tree, key
            yield from _places(tree[key])
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield tree, index
            yield from _places(value)


def _change(rng: Random, holder: Any, key: Any) -> None:
    value = holder[key]
    choice = rng.randrange(9)
    if choice < 4:
        holder[key] = nasty_value(rng)
    elif choice == 4:
        del holder[key]
    elif choice == 5:
        holder[key] = rng.choice([[value], {"a": value}, str(value), [value, value], deepcopy(holder)])
    elif choice == 6 and isinstance(value, int | float) and not isinstance(value, bool):
        holder[key] = rng.choice([-value, value + 1, value - 1, value * 1000, value / 3, str(value)])
    elif choice == 7 and isinstance(holder, dict):
        holder[rng.choice([*map(str, holder), *NASTY_TEXTS[:20]])] = holder.pop(key)
    elif isinstance(value, str) and value:
        holder[key] = mutate_text(rng, value)
    elif isinstance(holder, list):
        holder.extend(deepcopy(holder[:50]))
    else:
        holder[rng.choice(["unknown", "", "__class__", "0"])] = value


def mutate_text(rng: Random, text: str) -> str:
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(text) + 1)
        end = min(len(text), at + rng.choice([1, 1, 3, 20, 200]))
        choice = rng.randrange(6)
        if choice == 0:
            text = text[:at] + text[end:]
        elif choice == 1:
            text = text[:at] + rng.choice(NASTY_TEXTS) + text[at:]
        elif choice == 2:
            text = text[:at] + text[at:end] * rng.choice([2, 3, 50]) + text[end:]
        elif choice == 3:
            text = text[:at] + rng.choice("{}[]()<>,:;&*!|'\"%@`~^#\\\n\r\t \u2028\u0000") + text[end:]
        elif choice == 4:
            text = text[:at]
        else:
            other = rng.randrange(len(text) + 1)
            text = text[:at] + text[other : other + 40] + text[at:]
    return text


def mutate_bytes(rng: Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 3, 10])):
        at = rng.randrange(len(data) + 1)
        length = rng.choice([1, 1, 2, 4, 8, 64, 1000])
        choice = rng.randrange(8)
        if choice == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif choice == 1:
            data[at : at + length] = bytes(rng.choice([0, 255]) for _ in range(min(length, len(data) - at)))
        elif choice == 2:
            del data[at : at + length]
        elif choice == 3:
            data[at:at] = rng.randbytes(length)
        elif choice == 4:
            data[at : at + length] = rng.randbytes(min(length, len(data) - at))
        elif choice == 5:
            del data[at:]
        elif choice == 6 and at + 8 <= len(data):
            data[at : at + 8] = struct.pack("<q", rng.choice([0, -1, 2**31, 2**62, 2**40, len(data)]))
        else:
            other = rng.randrange(len(data) + 1)
            data[at:at] = data[other : other + length]
    return bytes(data)


def encode_oddly(rng: Random, text: str) -> bytes:
    """A text as another editor or system may have saved it."""
    encoding = rng.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
    content = text.replace("\n", rng.choice(["\n", "\n", "\n", "\r\n", "\r"])).encode(encoding, errors="replace")
    return content if rng.random() < 0.7 else mutate_bytes(rng, content)


def dump_json(tree: Any) -> str:
    return json.dumps(tree, ensure_ascii=True)


def nasty_json(rng: Random) -> str:
    """JSON that strains a parser, whatever it should hold."""
    return rng.choice(
        [
            "",
            "null",
            "0",
            '"text"',
            "[]",
            "{}",
            "[" * 100_000 + "]" * 100_000,
            '{"a":' * 100_000 + "1" + "}" * 100_000,
            "[" * 2_000,
            '{"a":1,"a":2}',
            "9" * 5_000,
            "[" + "9" * 5_000 + "]",
            "1e400",
            "[NaN, Infinity, -Infinity]",
            '"\\ud800"',
            '{"\\ud800": "\\udfff"}',
            '"\\u0000"',
            "{'a': 1}",
            "{} trailing",
            "\ufeff{}",
        ]
    )


def replace_with_oddity(rng: Random, path: Path, bombs: Path) -> None:
    """Put something in the place of a file that is no ordinary file, or not the one that was meant."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    choice = rng.randrange(11)
    if choice == 0:
        path.mkdir()
    elif choice == 1:
        path.symlink_to("nowhere")
    elif choice == 2:
        path.symlink_to(path.name)
    elif choice == 3:
        os.mkfifo(path)
    elif choice == 4:
        path.symlink_to("/dev/zero")
    elif choice == 5:
        path.write_bytes(b"")
    elif choice == 6:
        path.write_bytes(LFS_POINTER)
    elif choice == 7:
        path.write_bytes(rng.randbytes(2_000))
    elif choice == 8:
        path.symlink_to(bombs / "zeros")  # sparse, larger than the limit of memory
    elif choice == 9:
        path.symlink_to(bombs / "blanks")


def make_bombs(folder: Path) -> None:
    """Files that are small on disk and large in memory."""
    folder.mkdir()
    with (folder / "zeros").open("wb") as file:
        file.truncate(3 * 2**30)
    block = b" " * 2**20
    with (folder / "blanks").open("wb") as file:  # blank lines of JSON, YAML and texts
        for _ in range(64):
            file.write(block)


def mutate_json_file(rng: Random, path: Path, bombs: Path) -> None:
    """Damage a JSON file: its tree, its text, its bytes, or what it is."""
    content = path.read_text(encoding="utf-8", errors="replace")
    choice = rng.randrange(10)
    tree = _tree_of(content) if choice < 5 else None
    if tree is not None:
        path.write_text(dump_json(mutate_tree(rng, tree)), encoding="utf-8")
    elif choice == 5:
        path.write_text(nasty_json(rng), encoding="utf-8", errors="replace")
    elif choice == 6:
        path.write_text(mutate_text(rng, content), encoding="utf-8", errors="replace")
    elif choice < 9:
        path.write_bytes(encode_oddly(rng, content))
    else:
        replace_with_oddity(rng, path, bombs)


def _tree_of(content: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):  # it was damaged before
        return None


def mutate_file(rng: Random, path: Path, bombs: Path, mutate: Callable[[Random, bytes], bytes] = mutate_bytes) -> None:
    """Damage a file's content, or now and then what it is."""
    if path.is_symlink() or not path.is_file():  # it was replaced before
        return
    if rng.random() < 0.12:
        replace_with_oddity(rng, path, bombs)
    else:
        path.write_bytes(mutate(rng, path.read_bytes()))
