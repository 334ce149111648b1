"""Manifests as files, line by line, for the tests of what reads them."""

from pathlib import Path

LINE = '{"id":"1","image":"a.jpg","text":"a red cat"}'


def written(tmp_path: Path, *lines: str, name: str = "m.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
