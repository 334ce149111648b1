"""The twelve kinds of input that the fuzzer damages, each with the command that reads it."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import fuzz_images
import fuzz_texts
import yaml
from fuzz_arrays import mutate_npy, mutate_npz, mutate_safetensors
from fuzz_isolated import Case
from fuzz_mutate import (
    NASTY_TEXTS,
    dump_json,
    encode_oddly,
    mutate_bytes,
    mutate_file,
    mutate_json_file,
    mutate_text,
    mutate_tree,
    nasty_json,
    replace_with_oddity,
)
from fuzz_samples import Samples
from fuzz_sources import published, tar_images

Kind = Callable[[Random, Samples, Path], Case]


def configs(rng: Random, samples: Samples, folder: Path) -> Case:
    """A config file."""
    path = folder / "case.yaml"
    _write_yaml(rng, path, (samples.run / "config.yaml").read_text(encoding="utf-8"), samples)
    return Case(["config", "show", "case.yaml"], writes=())


def plans(rng: Random, samples: Samples, folder: Path) -> Case:
    """Overrides, plans of ablations, and the figures of their runs."""
    choice = rng.randrange(10)
    if choice < 4:
        return Case(["config", "show", "demo", *fuzz_texts.overrides(rng)], writes=())
    for name in ("runs", "plan.yaml"):
        source = samples.ablation / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)
    if choice < 8:
        plan = folder / "plan.yaml"
        _write_yaml(rng, plan, plan.read_text(encoding="utf-8"), samples)
    else:
        file = rng.choice(sorted((folder / "runs").rglob("*.json")))
        mutate_json_file(rng, file, samples.bombs)
    argv = ["ablate", "plan.yaml", "--out", "runs"]
    return Case(argv, call=_ablate_without_runs)


def _ablate_without_runs() -> None:
    import spanbox.ablation
    from spanbox.cli.main import main
    from spanbox.errors import TrainingError

    def start_nothing(*arguments: object) -> None:
        raise TrainingError("the fuzzer starts no runs")

    spanbox.ablation._run = start_nothing  # type: ignore[assignment]
    main()


def _write_yaml(rng: Random, path: Path, text: str, samples: Samples) -> None:
    choice = rng.randrange(10)
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:  # damaged before
        choice = max(choice, 4)
    if choice < 4:
        tree = mutate_tree(rng, tree)
        text = yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5, sort_keys=False)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
    elif choice < 6:
        path.write_text(mutate_text(rng, text), encoding="utf-8", errors="surrogatepass")
    elif choice == 6:
        path.write_bytes(encode_oddly(rng, text))
    elif choice < 9:
        path.write_text(fuzz_texts.nasty_yaml(rng, text), encoding="utf-8", errors="surrogatepass")
    else:
        replace_with_oddity(rng, path, samples.bombs)


def manifests(rng: Random, samples: Samples, folder: Path) -> Case:
    """A manifest, checked, shown or trained on."""
    lines = (samples.scenes / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "images").symlink_to(samples.scenes / "images")
    for at in rng.sample(range(len(lines)), len(lines) // 2):
        lines[at] = _with_optional_fields(lines[at])
    at = rng.randrange(len(lines))
    choice = rng.randrange(10)
    path = folder / "m.jsonl"
    if choice < 5:
        for _ in range(rng.choice([1, 1, 2, 20])):
            at = rng.randrange(len(lines))
            lines[at] = dump_json(mutate_tree(rng, json.loads(lines[at])))
    elif choice == 5:
        lines[at] = mutate_text(rng, lines[at])
    elif choice == 6:
        lines[at] = nasty_json(rng)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
    if choice in (7, 8):
        path.write_bytes(encode_oddly(rng, "\n".join(lines)))
    elif choice == 9:
        replace_with_oddity(rng, path, samples.bombs)
    return _read_manifest(rng, samples)


def _with_optional_fields(line: str) -> str:
    """The pair with relevance, and with its own text turned into a paraphrase and one for the coarse level only."""
    record = json.loads(line)
    spans = [
        {"entity": i, "start": entity["start"] + 4, "end": entity["end"] + 4}
        for i, entity in enumerate(record["entities"])
    ]
    own = {"text": f"See {record['text']}", "entities": spans, "lang": "en", "source": "en-zh, zh-en"}
    for entity in record["entities"]:
        entity["relevance"] = [0.5] * len(entity.get("boxes", []))
    doubted = {"relevance": 0.25, "source": "页", "meta": {"page": [1, None]}}
    return json.dumps(record | doubted | {"paraphrases": [own, {"text": "一张图片"}]})


def _read_manifest(rng: Random, samples: Samples) -> Case:
    choice = rng.randrange(8)
    if choice < 4:
        return Case(["data", "check", "m.jsonl"], writes=("m.jsonl.*", ".m.jsonl.*"))
    if choice < 7:
        return Case(
            ["data", "show", "m.jsonl", "--n", "4", "--out", "out/page.html"], writes=("out*", "*.npy*", ".m.*")
        )
    overrides = [*samples.overrides(), "data.train=m.jsonl", "data.val=null", "train.steps=1"]
    overrides += rng.choice([[], ["data.augment.text.preset=strong"]])
    return Case(["train", "demo", *overrides])


def images(rng: Random, samples: Samples, folder: Path) -> Case:
    """Images, their headers and their metadata."""
    records = [json.loads(line) for line in (samples.scenes / "train.jsonl").open(encoding="utf-8")][:8]
    (folder / "images").mkdir()
    for number, record in enumerate(records):
        source = samples.scenes / record["image"]
        record["image"] = f"images/{number}{source.suffix}"
        path = folder / record["image"]
        shutil.copyfile(source, path)
        if number < 3 and rng.random() < 0.1:
            replace_with_oddity(rng, path, samples.bombs)
        elif number < 3:
            path.write_bytes(fuzz_images.damaged(rng, path.read_bytes()))
    (folder / "m.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return _read_manifest(rng, samples)


def checkpoints(rng: Random, samples: Samples, folder: Path) -> Case:
    """A run folder with its checkpoints, evaluated, mined with, planned with or resumed."""
    run = folder / "run"
    shutil.copytree(samples.run, run, symlinks=True, ignore=shutil.ignore_patterns("evaluation"))
    for _ in range(rng.choice([1, 1, 1, 2])):
        with suppress(RuntimeError):  # a link that was damaged before and leads to itself
            _damage_checkpoint(rng, samples, run)
    choice = rng.randrange(6)
    if choice < 3:
        data = ["--data", str(samples.scenes / "test.jsonl"), "--device", "cpu", "--examples", "0", "--reflection", "0"]
        return Case(["evaluate", "run", *data])
    if choice == 3:
        mined = ["data", "mine", "run", str(samples.scenes / "train.jsonl"), "--out", "mined.npy", "--device", "cpu"]
        return Case(mined)
    resumed = ["run.dir=run", "train.steps=8", "data.val=null"]
    return Case(["train", "run/config.yaml", "--resume", *resumed])


def _damage_checkpoint(rng: Random, samples: Samples, run: Path) -> None:
    folders = [run / "checkpoints" / name for name in ("best", "last")]
    folder = rng.choice(folders).resolve()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    path = rng.choice([*files, *files, run / "config.yaml", run / "log.jsonl", *folders])
    if path in folders:
        replace_with_oddity(rng, path, samples.bombs)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
            path.write_text(
                rng.choice([*NASTY_TEXTS[:30], "step-000003\n", "step-000099", "step-000003/x"]), errors="replace"
            )
    elif not path.is_file():
        return
    elif path.suffix == ".json":
        mutate_json_file(rng, path, samples.bombs)
    elif path.suffix == ".yaml":
        _write_yaml(rng, path, path.read_text(encoding="utf-8"), samples)
    elif path.name == "trainer.pt":
        mutate_file(rng, path, samples.bombs, fuzz_texts.mutate_trainer_state)
    elif path.suffix == ".safetensors":
        mutate_file(rng, path, samples.bombs, mutate_safetensors)
    else:
        mutate_file(rng, path, samples.bombs)


def indices(rng: Random, samples: Samples, folder: Path) -> Case:
    """The index of a manifest, the stored features of an evaluation, and mined neighbours."""
    choice = rng.randrange(3)
    if choice == 0:
        (folder / "images").symlink_to(samples.scenes / "images")
        for name in ("train.jsonl", "train.jsonl.index.npy"):
            shutil.copy2(samples.scenes / name, folder / name.replace("train", "m"))
        mutate_file(rng, folder / "m.jsonl.index.npy", samples.bombs, mutate_npy)
        return _read_manifest(rng, samples)
    if choice == 1:
        shutil.copytree(samples.run, folder / "run", symlinks=True)
        path = rng.choice(sorted((folder / "run" / "evaluation").glob("features-*/*")))
        if path.suffix == ".json":
            mutate_json_file(rng, path, samples.bombs)
        else:
            mutate_file(rng, path, samples.bombs, mutate_npy)
        data = ["--data", str(samples.scenes / "test.jsonl"), "--device", "cpu", "--examples", "1", "--reflection", "1"]
        return Case(["evaluate", "run", *data])
    for name in ("neighbours.npy", "neighbours.npy.json"):
        shutil.copyfile(samples.folder / name, folder / name)
    if rng.random() < 0.6:
        mutate_file(rng, folder / "neighbours.npy", samples.bombs, mutate_npy)
    else:
        mutate_json_file(rng, folder / "neighbours.npy.json", samples.bombs)
    overrides = [*samples.overrides(), "data.val=null", "train.steps=1", "data.neighbours=neighbours.npy"]
    return Case(["train", "demo", *overrides])


def logs(rng: Random, samples: Samples, folder: Path) -> Case:
    """The files of a run that a report is made of."""
    shutil.copytree(samples.run, folder / "run", ignore=shutil.ignore_patterns("checkpoints", "features-*"))
    run = folder / "run"
    shutil.copyfile(samples.ablation / "runs" / "table.csv", folder / "run" / "table.csv")
    if rng.random() < 0.15:
        table = folder / "ablation" / "table.csv"
        table.parent.mkdir()
        content = (run / "table.csv").read_text(encoding="utf-8")
        table.write_bytes(encode_oddly(rng, mutate_text(rng, content)))
        return Case(["report", "ablation", "--out", "r.html"], writes=("r.html", "*r.html*"))
    names = ["log.jsonl", "log.jsonl", "metrics.json", "config.yaml", "environment.json"]
    names += [f"evaluation/{name}" for name in ("outcomes.npz", "examples.json", "heatmaps.npz", "audit.json")]
    for name in sorted(set(rng.choices(names, k=rng.choice([1, 1, 2])))):
        path = run / name
        if path.suffix == ".jsonl":
            _damage_lines(rng, path, samples)
        elif path.suffix == ".json":
            mutate_json_file(rng, path, samples.bombs)
        elif path.suffix == ".yaml":
            _write_yaml(rng, path, path.read_text(encoding="utf-8"), samples)
        else:
            mutate_file(rng, path, samples.bombs, lambda rng, content: mutate_npz(rng, content, samples.bombs))
    lang = ["--lang", rng.choice(["en", "zh"])]
    return Case(["report", "run", "--out", "r.html", *lang], writes=("r.html", "*r.html*"))


def _damage_lines(rng: Random, path: Path, samples: Samples) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    choice = rng.randrange(8)
    if choice < 5:
        for _ in range(rng.choice([1, 2, len(lines)])):
            at = rng.randrange(len(lines))
            lines[at] = dump_json(mutate_tree(rng, json.loads(lines[at])))
    elif choice == 5:
        lines[rng.randrange(len(lines))] = nasty_json(rng)
    elif choice == 6:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
        return
    else:
        replace_with_oddity(rng, path, samples.bombs)
        return
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")


def importers(rng: Random, samples: Samples, folder: Path) -> Case:
    """The source of an import: texts, boxes in XML, proposals in npz, images."""
    source = folder / "Twitter10000_v2.0"
    shutil.copytree(samples.tweets, source)
    options: list[str] = []
    if rng.random() < 0.4:
        shutil.rmtree(source / "txt")
    for _ in range(rng.choice([1, 1, 2])):
        files = [path for path in sorted(source.rglob("*")) if path.is_file()]
        texts = [path for path in files if path.parent.name in ("txt", "json")]
        path = rng.choice([*files, *texts, *texts])
        _damage_source(rng, path, samples)
    if rng.random() < 0.3:
        options.append("--copy-images")
    return Case(["data", "import", "twitter-gmner", source.name, "out", *options], writes=("out*",))


def _damage_source(rng: Random, path: Path, samples: Samples) -> None:
    if path.suffix == ".json":
        mutate_json_file(rng, path, samples.bombs)
    elif path.suffix == ".npz":
        mutate_file(rng, path, samples.bombs, lambda rng, content: mutate_npz(rng, content, samples.bombs))
    elif path.suffix in (".txt", ".xml") and rng.random() < 0.9:
        content = path.read_text(encoding="utf-8", errors="replace")
        damaged = fuzz_texts.nasty_xml(rng, content) if path.suffix == ".xml" else fuzz_texts.nasty_tweets(rng, content)
        path.write_bytes(damaged.encode("utf-8", "surrogatepass") if rng.random() < 0.7 else encode_oddly(rng, damaged))
    else:
        mutate_file(rng, path, samples.bombs)


def predictions(rng: Random, samples: Samples, folder: Path) -> Case:
    """A file of predictions, scored."""
    path = folder / "predictions.jsonl"
    shutil.copyfile(samples.predictions, path)
    _damage_lines(rng, path, samples)
    argv = ["score", "predictions.jsonl", "--data", str(samples.scenes / "test.jsonl"), "--out", "scores.json"]
    return Case(argv, writes=("*scores.json*",))


def models(rng: Random, samples: Samples, folder: Path) -> Case:
    """Pretrained towers, their tokenizer, an architecture, and texts that strain a tokenizer."""
    shutil.copytree(samples.towers, folder / "towers")
    towers = ["model.text.path=towers/bert", "model.vision.path=towers/vit"]
    none = ["model.text.architecture=null", "model.vision.architecture=null"]
    choice = rng.randrange(10)
    manifest = samples.scenes / "train.jsonl"
    overrides = [*samples.overrides(), "data.val=null", "train.steps=1"]
    if choice < 6:
        files = [path for path in sorted((folder / "towers").rglob("*")) if path.is_file()]
        path = rng.choice(files)
        if path.suffix == ".json":
            mutate_json_file(rng, path, samples.bombs)
        else:
            mutate_file(rng, path, samples.bombs, mutate_safetensors)
        if rng.random() < 0.3:
            return Case(["plan", "demo", *overrides, *none, *towers])
        return Case(["train", "demo", *overrides, *none, *towers])
    if choice < 8:
        architecture = fuzz_texts.architecture(rng)
        return Case([rng.choice(["plan", "train"]), "demo", *overrides, *architecture])
    fuzz_texts.write_texts(rng, manifest, folder / "m.jsonl")
    (folder / "images").symlink_to(samples.scenes / "images")
    chosen = [*none, *towers] if rng.random() < 0.6 else []
    return Case(["train", "demo", *overrides, *chosen, "data.train=m.jsonl"])


KINDS: dict[str, Kind] = {
    "configs": configs,
    "overrides and plans": plans,
    "manifests": manifests,
    "images": images,
    "checkpoints": checkpoints,
    "index, bank, neighbours": indices,
    "logs and metrics": logs,
    "importer sources": importers,
    "published data sets": published,
    "images in tars": tar_images,
    "predictions": predictions,
    "models, tokenizers, texts": models,
}
