"""Mutations of NumPy and safetensors files."""

import io
import json
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzz_mutate import NASTY_FLOATS, dump_json, mutate_bytes, mutate_text, mutate_tree

BOMB = 3 * 2**29  # bytes that a bomb unpacks to


def npy_header(description: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, description)
    return file.getvalue()


def npy_bytes(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def nasty_array(rng: Random, array: Any) -> Any:
    """An array of another shape, type or content."""
    array = np.array(array)
    choice = rng.randrange(9)
    if choice == 0:
        return array.astype(rng.choice(["f2", "f4", "f8", "i1", "i4", "u8", "?", "c8", "S4", "U4"]), casting="unsafe")
    if choice == 1:
        return array[: rng.randrange(len(array) + 1)] if array.ndim else array
    if choice == 2:
        return np.array([{"a": 1}, None], dtype=object)
    if choice == 3:
        return array[None] if rng.random() < 0.5 else array.reshape(-1)
    if choice == 4:
        return np.zeros((0,), dtype=array.dtype)
    if choice == 5:
        return np.array(rng.choice([0, 1.5, "x", b"y"]))
    if array.dtype.kind not in "iuf" or not array.size:
        return array[::-1]
    flat = array.reshape(-1).copy()
    if array.dtype.kind == "f":
        flat[rng.randrange(len(flat))] = rng.choice([*NASTY_FLOATS, 1e38, -1e38])
    else:
        limits = np.iinfo(array.dtype)
        flat[rng.randrange(len(flat))] = rng.choice([limits.min, limits.max, 0, len(flat)])
    return flat.reshape(array.shape)


def mutate_npy(rng: Random, content: bytes) -> bytes:
    choice = rng.randrange(6)
    if choice == 0:
        return mutate_bytes(rng, content)
    if choice == 1:  # in the header, which is a Python literal
        return mutate_bytes(rng, content[:128]) + content[128:]
    if choice == 2:
        header = content[10:128].decode("latin-1")
        return content[:10] + mutate_text(rng, header).encode("utf-8", "replace")[:118].ljust(118) + content[128:]
    if choice == 3:
        shape = rng.choice([(2**40,), (-1,), (2**31, 2**31), (0,), (1,) * 70, (2**28, 4), (10**30,)])
        description = {"descr": rng.choice(["<i8", "<f4", "|O", "<U9", "|V0"]), "fortran_order": False, "shape": shape}
        return npy_header(description) + content[128:]
    if choice == 4:
        deep = b"{'descr': " + b"(" * 2_000 + b"'<i8'" + b")" * 2_000 + b", 'fortran_order': False, 'shape': (1,), }\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(deep)) + deep + content[128:]
    try:
        return npy_bytes(nasty_array(rng, np.load(io.BytesIO(content), allow_pickle=False)))
    except ValueError:
        return mutate_bytes(rng, content)


def mutate_npz(rng: Random, content: bytes, bombs: Path) -> bytes:
    choice = rng.randrange(5)
    if choice == 0:
        return mutate_bytes(rng, content)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            members = {name: npy_bytes(arrays[name]) for name in arrays.files}
        name = rng.choice(list(members))
    except (ValueError, IndexError, OSError, zipfile.BadZipFile):  # it was damaged before
        return mutate_bytes(rng, content)
    if choice == 1:
        del members[name]
    elif choice == 2 and rng.random() < 0.3:
        return _with_bomb(members, sorted(members)[0], bombs)
    else:
        members[name] = mutate_npy(rng, members[name])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for key, data in members.items():
            archive.writestr(f"{key}.npy", data)
    return file.getvalue()


def _with_bomb(members: dict[str, bytes], name: str, bombs: Path) -> bytes:
    """The members of an archive, one of them a few MB on disk and more than a GiB in memory."""
    path = bombs / f"{name.replace('/', '-')}.npz"
    if not path.exists():
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open(f"{name}.npy", "w") as file,
        ):
            file.write(npy_header({"descr": "<f4", "fortran_order": False, "shape": (BOMB // 4,)}))
            for _ in range(BOMB // 2**24):
                file.write(bytes(2**24))
    file = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(file, "a") as archive:
        for key in members.keys() - {name}:
            archive.writestr(f"{key}.npy", members[key])
    return file.getvalue()


def mutate_safetensors(rng: Random, content: bytes) -> bytes:
    size = struct.unpack("<Q", content[:8])[0]
    choice = rng.randrange(4)
    if choice == 0:
        return mutate_bytes(rng, content)
    if choice == 1:
        return struct.pack("<Q", rng.choice([0, 1, 2**63, 2**40, len(content), size - 1, size + 1])) + content[8:]
    header = json.loads(content[8 : 8 + size])
    text = mutate_text(rng, dump_json(header)) if choice == 2 else dump_json(mutate_tree(rng, header))
    encoded = text.encode("utf-8", "replace")
    return struct.pack("<Q", len(encoded)) + encoded + content[8 + size :]
