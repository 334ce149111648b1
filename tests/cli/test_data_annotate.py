"""`spanbox data annotate`: options, output, and the way into training."""

from functools import partial
from pathlib import Path

import msgspec
import pytest

import miniature
from command import Command
from detectors import install_fake_spacy, write_owlvit
from spanbox.data.manifest import Manifest, write_manifest

PLUGIN = """
def tag(texts):
    return [[{"start": 0, "end": len(text.split()[0]), "type": "word"}] for text in texts]

def detect(images, labels):
    return [[{"box": [0, 0, image.width, image.height], "score": 0.5, "label": label} for label in own]
            for image, own in zip(images, labels)]

def fails(images, labels):
    raise RuntimeError("no credit left")
"""


@pytest.fixture
def annotate(spanbox: Command, tmp_path: Path) -> Command:
    """Runs `spanbox data annotate` where there is a module of functions."""
    (tmp_path / f"plugin_{tmp_path.name}.py").write_text(PLUGIN)
    return partial(spanbox, "data", "annotate")


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    return f"plugin_{tmp_path.name}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes without entities and objects."""
    folder = miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))
    for name in ("train", "val"):
        records = [
            msgspec.structs.replace(record, entities=(), objects=()) for record in Manifest(folder / f"{name}.jsonl")
        ]
        write_manifest(folder / f"{name}.jsonl", records)
    return folder


def test_functions_and_the_way_into_training(
    annotate: Command, spanbox: Command, plugin: str, plain: Path, tmp_path: Path
) -> None:
    for name in ("train", "val"):
        arguments = ("--tagger", f"{plugin}:tag", "--detector", f"{plugin}:detect", "--link")
        code, out, err = annotate(plain / f"{name}.jsonl", f"{name}.jsonl", *arguments)
        assert code == 0
        assert "annotating" in err
    assert out.splitlines()[0] == "12 pairs"
    assert "  entities found: 12" in out
    assert "  entities linked to a box: 12" in out
    assert out.endswith("written to val.jsonl. Next: spanbox data check val.jsonl\n")
    assert spanbox("data", "check", "train.jsonl", "val.jsonl", "--fast").code == 0
    (entity,) = Manifest(tmp_path / "train.jsonl")[0].entities
    assert (entity.type, entity.relevance, len(entity.boxes)) == ("word", (0.5,), 1)
    assert spanbox("train", "demo", *miniature.demo_overrides(tmp_path, Path("run"), "train.steps=2")).code == 0


def test_a_failure_is_explained_and_the_same_command_goes_on(
    annotate: Command, plugin: str, plain: Path, tmp_path: Path
) -> None:
    manifest = plain / "val.jsonl"
    tagger = ("--tagger", f"{plugin}:tag")
    code, _, err = annotate(manifest, "out.jsonl", *tagger, "--detector", f"{plugin}:fails")
    assert code == 2
    assert f"{plugin}:fails failed with RuntimeError: no credit left" in err
    assert "12 results are kept in out.jsonl.annotations; the same command goes on from there" in err
    assert not (tmp_path / "out.jsonl").exists()
    code, out, _ = annotate(manifest, "out.jsonl", *tagger)
    assert code == 0
    assert out.startswith("12 results from out.jsonl.annotations\n")


def test_a_pipeline_of_spacy_and_a_detector_from_a_folder(
    annotate: Command, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake_spacy(monkeypatch)
    write_owlvit(tmp_path / "owl")
    english = [record for record in Manifest(plain / "val.jsonl") if record.lang == "en"][:3]
    write_manifest(plain / "english.jsonl", english)
    arguments = ("--tagger", "spacy:xx_fake", "--spans", "noun-phrases", "--detector", "owl", "--threshold", "0.0")
    code, out, _ = annotate(plain / "english.jsonl", "out.jsonl", *arguments, "--most", 5, "--device", "cpu")
    assert code == 0
    found = list(Manifest(tmp_path / "out.jsonl"))
    assert all(1 <= len(record.objects) <= 5 for record in found)
    names = [{record.span_text(entity) for entity in record.entities} for record in found]
    assert all({each.label for each in record.objects} <= own for record, own in zip(found, names, strict=True))
    assert "objects found" in out


@pytest.mark.parametrize("labels", ["鞋,红色 帽子", "鞋，红色 帽子，", "鞋、红色 帽子"])
def test_labels_between_english_or_chinese_commas(
    annotate: Command, plugin: str, plain: Path, tmp_path: Path, labels: str
) -> None:
    code, _, _ = annotate(plain / "val.jsonl", "out.jsonl", "--detector", f"{plugin}:detect", "--labels", labels)
    assert code == 0
    assert [each.label for each in Manifest(tmp_path / "out.jsonl")[0].objects] == ["鞋", "红色 帽子"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give a --tagger, a --detector, or both"),
        (("--tagger", "json:loads", "--labels", "shoe"), "--labels needs a --detector"),
        (("--tagger", "json:loads", "--link"), "--link needs a --detector"),
        (("--tagger", "json:loads", "--spans", "both"), "--spans both needs a pipeline of spaCy"),
        (("--detector", "json:loads", "--spans", "noun-phrases"), "--spans noun-phrases needs a pipeline of spaCy"),
        (("--tagger", "none"), "--tagger: 'none' is not an import path"),
        (("--tagger", "nowhere:tag"), "--tagger: the module 'nowhere' cannot be imported"),
        (("--tagger", "json:none"), "--tagger: 'json' has no function 'none'"),
        (("--detector", "none"), "--detector: none is not a folder with a config.json"),
        (("--detector", "nowhere:detect"), "--detector: the module 'nowhere' cannot be imported"),
    ],
)
def test_wrong_options_are_explained(annotate: Command, plain: Path, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = annotate(plain / "val.jsonl", "out.jsonl", *arguments)
    assert code == 2
    assert message in err
