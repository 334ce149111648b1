"""Both READMEs: their commands run in order on miniature data and towers; docs/source_tree.md lists every file."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import miniature
from spanbox.cli import demo
from spanbox.cli.main import app

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
FEW_PAIRS = 18  # a newcomer's first manifest
MINIATURE = {  # overrides that make a command small; training keeps the batch size of the README
    "train gmner": [*(each for each in miniature.SCHEDULE if "batch_size" not in each), "model.dim=16"],
    "gmner train": [each for each in miniature.SCHEDULE if "batch_size" not in each],
    "demo": ["--n", "32", *miniature.TOWERS, *miniature.SCHEDULE],
}
NOT_RUN = ("pip install", "hf download", "make ", "torchrun")  # need the network, or run these tests themselves;
# test_torchrun.py covers torchrun


def readme_blocks(readme: str, language: str) -> list[str]:
    """The fenced blocks of a language, without the indentation of the list around them."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in blocks]


def readme_commands(readme: str) -> list[list[str]]:
    """Every shell command, split into words, comments left out."""
    script = "\n".join(readme_blocks(readme, "bash")).replace("\\\n", " ")
    return [words for line in script.splitlines() if (words := shlex.split(line, comments=True))]


def readme_code(readme: str) -> list[str]:
    """The Python blocks without their comments, which are translated."""
    return [ast.dump(ast.parse(block)) for block in readme_blocks(readme, "python")]


def source_tree(readme: str) -> set[str]:
    """Paths listed in the README's source tree; folders end with a slash."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    (block,) = re.findall(r"^```\n(src/spanbox/\n.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    paths, parents = set(), [""]
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        paths.add(path := parents[depth] + line.split()[0])
        parents[depth + 1 :] = [path]
    return paths


def described_files() -> set[str]:
    """Paths in docs/source_tree.md, whose headings are folders."""
    paths, folder = set(), ""
    for line in (ROOT / "docs" / "source_tree.md").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"## `(.*/)`", line):
            folder = heading[1] if heading[1].startswith("src/") else f"src/spanbox/{heading[1]}"
        elif row := re.match(r"\| `([^`]+)` \| .+ \| .+ \|$", line):
            paths.add(folder + row[1])
    return paths


def test_every_file_is_described() -> None:
    listed = described_files()
    assert not [path for path in listed if not (ROOT / path).exists()]
    folders = tuple(path for path in listed if path.endswith("/"))
    files = [str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.py") if not path.name.startswith("__")]
    assert not [path for path in files if path not in listed and not path.startswith(folders)]


@pytest.mark.parametrize("readme", READMES)
def test_the_source_tree_lists_every_folder(readme: str) -> None:
    listed = source_tree(readme)
    assert not [path for path in listed if not (ROOT / path).exists()]
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in (ROOT / "src/spanbox").glob("*/__init__.py")}
    assert not folders - listed


def test_both_source_trees_list_the_same_files() -> None:
    assert source_tree(READMES[0]) == source_tree(READMES[1])


@pytest.mark.parametrize("readme", READMES)
def test_the_links_resolve(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)", text)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_both_readmes_have_the_same_commands() -> None:
    assert readme_commands(READMES[0]) == readme_commands(READMES[1])
    assert readme_code(READMES[0]) == readme_code(READMES[1])
    assert readme_blocks(READMES[0], "json") == readme_blocks(READMES[1], "json")


def test_every_command_is_run_or_known_not_to_be() -> None:
    for words in readme_commands("README.md"):
        assert words[0] == "spanbox" or " ".join(words).startswith(NOT_RUN), words


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in readme_commands("README.md"):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), words


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_the_readme_works_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "HELD_OUT", 12)
    make_what_the_reader_has(tmp_path)
    for words in readme_commands("README.md"):
        if words[0] == "spanbox":
            run(words[1:])
    for block in readme_blocks("README.md", "python"):
        exec(compile(block, "README.md", "exec"), {})  # our own text, from the repository
    for name, companion in (("text", "tokenizer.json"), ("vision", "preprocessor_config.json")):
        assert (tmp_path / "encoders" / name / "model.safetensors").is_file()
        assert (tmp_path / "encoders" / name / companion).is_file()


def run(words: list[str]) -> None:
    """One `spanbox` command, made small."""
    more = next((extra for start, extra in MINIATURE.items() if " ".join(words).startswith(start)), [])
    with pytest.raises(SystemExit) as ended:
        app([*words, *more])
    assert ended.value.code == 0, words


def make_what_the_reader_has(folder: Path) -> None:
    """Own data in manifests, BERT and ViT under models/, and Twitter10000_v2.0 as it is published."""
    miniature.write_scenes(folder)
    manifest = folder / "train.jsonl"
    manifest.write_text("".join(manifest.read_text(encoding="utf-8").splitlines(True)[:FEW_PAIRS]), encoding="utf-8")
    miniature.save_pretrained_towers(folder / "models", folder / "train.jsonl")
    (folder / "models" / "bert").rename(folder / "models" / "bert-base-uncased")
    (folder / "models" / "vit").rename(folder / "models" / "vit-base-patch16-224-in21k")
    (folder / "Twitter10000_v2.0" / "txt").mkdir(parents=True)
    (folder / "Twitter10000_v2.0" / "xml").mkdir()
    Image.new("RGB", (64, 48), "white").save(folder / "photo.jpg")
    for split in ("train", "dev", "test"):
        tweet = "IMGID:1\nGarfield\tB-LOC\nPark\tI-LOC\n\n"
        (folder / "Twitter10000_v2.0" / "txt" / f"{split}.txt").write_text(tweet, encoding="utf-8")
