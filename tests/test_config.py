"""The config: recipes, files, overrides, and errors with the key, the value found and the remedy."""

import shlex
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from spanbox.config import (
    RunConfig,
    as_written,
    describe_keys,
    dump_config,
    known_keys,
    load_config,
    parse_config,
    recipe_names,
)
from spanbox.errors import ConfigError
from spanbox.models.tower_settings import TowerSettings
from spanbox.models.trainable import LoraSettings


def problem(*overrides: str, source: str = "demo") -> str:
    """The error message of a recipe with these overrides."""
    with pytest.raises(ConfigError) as raised:
        load_config(source, overrides)
    return str(raised.value)


class TestRecipes:
    def test_there_are_four(self) -> None:
        assert recipe_names() == ["demo", "gmner", "pairs", "published"]

    @pytest.mark.parametrize("name", recipe_names())
    def test_parses(self, name: str) -> None:
        assert load_config(name).run.dir == f"runs/{name}"

    @pytest.mark.parametrize("name", recipe_names())
    def test_says_what_it_is_for(self, name: str) -> None:
        recipe = Path(__file__).parent.parent / "src" / "spanbox" / "recipes" / f"{name}.yaml"
        assert recipe.read_text(encoding="utf-8").startswith("# ")

    def test_with_its_suffix(self) -> None:
        assert load_config("demo.yaml") == load_config("demo")

    def test_unknown_names_those_there_are(self) -> None:
        assert problem(source="demos") == (
            "demos: no such config file or recipe; recipes are demo, gmner, pairs, published"
        )


class TestFiles:
    def test_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(dump_config(load_config("pairs", ["seed=7"])), encoding="utf-8")
        assert load_config(str(path)).seed == 7

    def test_a_file_named_like_a_recipe_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "demo.yaml").write_text(dump_config(load_config("demo", ["seed=7"])), encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        assert load_config("demo.yaml").seed == 7
        assert load_config("demo").seed == 0

    def test_no_such_file(self) -> None:
        assert problem(source="no/such.yaml").startswith("no/such.yaml: no such config file")

    def test_a_run_folder_names_its_config(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text(dump_config(load_config("demo")), encoding="utf-8")
        assert problem(source=str(tmp_path)) == f"{tmp_path}: a folder; give its config, {tmp_path / 'config.yaml'}"

    def test_a_file_that_is_not_named_as_yaml(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.conf"
        path.write_text(dump_config(load_config("demo")), encoding="utf-8")
        assert problem(source=str(path)) == f"{path}: the name of a config file ends in .yaml or .yml"

    def test_not_utf_8(self, tmp_path: Path) -> None:
        path = tmp_path / "latin.yaml"
        path.write_bytes("run: {dir: läufe}".encode("latin-1"))
        assert problem(source=str(path)).startswith(f"{path}: cannot be read as YAML: not UTF-8 text")

    def test_errors_name_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text("sede: 1\n")
        assert problem(source=str(path)).startswith(f"{path}: the config is wrong:\n")

    @pytest.mark.parametrize(("text", "found"), [("- a\n- b\n", "list"), ("just words", "str"), ("42", "int")])
    def test_not_a_mapping(self, text: str, found: str) -> None:
        with pytest.raises(ConfigError, match=f"^mine: expected keys and values, found {found}$"):
            parse_config(text, "mine")

    @pytest.mark.parametrize("text", ["a: [1, 2", "a: b: c", "\tseed: 1"])
    def test_not_yaml(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"^mine: cannot be read as YAML: line [12]: "):
            parse_config(text, "mine")

    def test_nothing_is_executed(self) -> None:
        with pytest.raises(ConfigError, match=r"the tag '.*os\.getcwd' is not read"):
            parse_config("run: !!python/object/apply:os.getcwd []", "mine")

    @pytest.mark.parametrize("text", ["", "# only a comment\n"])
    def test_empty(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"model: is missing and has no default; see `spanbox config schema`"):
            parse_config(text, "mine")


class TestOverrides:
    def test_each_kind_of_value(self) -> None:
        config = load_config(
            "demo",
            [
                "train.steps=7",
                "train.optimiser.lr=3e-4",
                "train.resume=true",
                "data.val=null",
                "run.dir=runs/with = sign",
                "model.text.architecture.hidden_size=64",
                "loss.fine={weight: 0.5}",
            ],
        )
        assert (config.train.steps, config.train.optimiser.lr, config.train.resume) == (7, 3e-4, True)
        assert (config.data.val, config.run.dir) == (None, "runs/with = sign")
        assert config.model.text.architecture is not None
        assert config.model.text.architecture["hidden_size"] == 64
        assert config.model.text.architecture["model_type"] == "bert"
        assert (config.loss.fine.weight, config.loss.fine.temperature) == (0.5, 0.07)

    def test_a_weighted_sum_chooses_the_best(self) -> None:
        config = load_config("demo", ["train.best_metric={retrieval.t2i.r1: 1.0, matching.within_image: 0.5}"])
        assert config.train.best_metric == {"retrieval.t2i.r1": 1.0, "matching.within_image": 0.5}
        assert config.train.best_name == "1 retrieval.t2i.r1 + 0.5 matching.within_image"
        assert parse_config(dump_config(config), "dumped") == config

    @pytest.mark.parametrize("value", ["tensorboard", "[tensorboard]"])
    def test_one_tracker_or_a_list(self, value: str) -> None:
        assert load_config("demo", [f"train.track={value}"]).train.track == ("tensorboard",)

    def test_the_last_one_counts(self) -> None:
        assert load_config("demo", ["seed=1", "seed=2"]).seed == 2

    def test_a_section_that_the_file_leaves_out(self) -> None:
        text = "model: {text: {path: a}, vision: {path: b}}"
        assert parse_config(text, "mine", ["train.optimiser.lr=0.5"]).train.optimiser.lr == 0.5

    @pytest.mark.parametrize("override", ["train.steps", "=3", "", "--resume"])
    def test_not_an_override(self, override: str) -> None:
        assert problem(override) == (
            f"{override!r} is not an override; write dotted.key=value, for example train.batch_size=256"
        )

    def test_below_a_value(self) -> None:
        assert problem("seed=1", "seed.more=1") == "'seed.more=1': seed holds a value, not a section"

    def test_value_is_not_yaml(self) -> None:
        assert problem("train.steps=[1").startswith("'train.steps=[1': the value cannot be read as YAML: ")

    @pytest.mark.parametrize("folder", ["[1] a", "{a}/b", '"a" b', "[it's", "&a b: [c"])
    def test_the_advice_for_a_text_that_is_no_yaml_works(self, folder: str) -> None:
        advice = problem(f"run.dir={folder}").partition("if it is a text, write ")[2]
        (override,) = shlex.split(advice)
        assert load_config("demo", [override]).run.dir == folder

    @pytest.mark.parametrize("folder", ["caf\udce9", '"caf\udce9"'])
    def test_no_advice_for_a_name_that_is_no_utf_8(self, folder: str) -> None:
        """No YAML holds it."""
        message = problem(f"run.dir={folder}")
        assert message.endswith("the value cannot be read as YAML: '\\udce9' cannot be part of a text")

    @pytest.mark.parametrize("folder", ["runs/a #1", "运行/二 #2 😀", "runs/it's #3", "runs/a#4"])
    def test_a_number_sign_begins_no_comment(self, folder: str) -> None:
        assert load_config("demo", [f"run.dir={folder}"]).run.dir == folder
        assert load_config("demo", [f'run.dir="{folder}"']).run.dir == folder

    def test_what_is_no_text_has_no_comment(self) -> None:
        expected = (
            "train.steps: Input should be a valid integer, unable to parse string as an integer; found '5 # five'"
        )
        assert expected in problem("train.steps=5 # five")


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("key", "nearest"),
        [
            ("sead", "seed"),
            ("trian", "train"),
            ("batch_size", "train.batch_size"),
            ("train.batchsize", "train.batch_size"),
            ("train.optimizer", "train.optimiser"),
            ("train.optimiser.weight_dekay", "train.optimiser.weight_decay"),
            ("loss.coarse.temprature", "loss.coarse.temperature"),
            ("model.vision.archtecture", "model.vision.architecture"),
            ("model.regions.output", "model.regions.output_size"),
            ("lr", "train.optimiser.lr"),
        ],
    )
    def test_nearest_known_key(self, key: str, nearest: str) -> None:
        said = problem(f"{key}=1")
        assert said == f"demo: the config is wrong:\n  {key}: unknown key; the nearest known one is {nearest}"

    def test_no_known_key_is_like_it(self) -> None:
        assert problem("xyzzy=1") == "demo: the config is wrong:\n  xyzzy: unknown key; see `spanbox config schema`"

    def test_several_problems_are_listed_at_once(self) -> None:
        said = problem("sead=1", "train.steps=0", "data.max_tokens=many")
        assert len(said.splitlines()) == 4
        assert all(f"\n  {key}: " in said for key in ("sead", "train.steps", "data.max_tokens"))

    def test_of_many_only_the_ones_shown_are_compared_with_known_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Thousands would take a minute."""
        compared: list[str] = []
        monkeypatch.setattr("spanbox.config.nearest_key", lambda key, known: compared.append(key) or "")
        said = problem(*(f"{letter * 3}=1" for letter in ascii_lowercase))
        assert len(compared) == 10
        assert said.endswith("\n  jjj: unknown key\n  and 16 more")


class TestWrongValues:
    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("train.batch_size=1", "train.batch_size: Input should be greater than or equal to 2; found 1"),
            ("data.cache_gb=1e300", "data.cache_gb: Input should be less than or equal to 1000000; found 1e+300"),
            ("train.memory_gb=1e300", "train.memory_gb: Input should be less than or equal to 1000000; found 1e+300"),
            ("train.steps=0", "train.steps: Input should be greater than or equal to 1; found 0"),
            ("train.optimiser.lr=-1", "train.optimiser.lr: Input should be greater than 0; found -1"),
            ("train.optimiser.lr=.nan", "train.optimiser.lr: Input should be a finite number; found nan"),
            ("train.precision=half", "train.precision: Input should be 'auto', 'float32' or 'bfloat16'; found 'half'"),
            ("data.inverted_boxes=keep", "data.inverted_boxes: Input should be 'error' or 'drop'; found 'keep'"),
            ("data.broken_limit=2", "data.broken_limit: Input should be less than or equal to 1; found 2"),
            (
                "loss.fine.temperature=0",
                "loss.fine.temperature: Input should be greater than or equal to 0.01; found 0",
            ),
            (
                "train.track=[tensorbord]",
                "train.track: Input should be 'tensorboard', 'wandb' or 'trackio'; found 'tensorbord'",
            ),
            ("train.patience=0", "train.patience: Input should be greater than 0; found 0"),
            (
                "train.best_metric={retrieval.t2i.r1: high}",
                "train.best_metric: Input should be a valid number, unable to parse string as a number; found 'high'",
            ),
            ("seed=4294967296", "seed: Input should be less than 4294967296; found 4294967296"),
            ("data.workers=some", "data.workers: Input should be 'auto'; found 'some'"),
            ("run.dir=2024", "run.dir: Input should be a valid string; found 2024"),
            ("run.dir=' '", "run.dir: expected a path; found ' '"),
            ("data.train=|", "data.train: expected a path; found ''"),
        ],
    )
    def test_key_expectation_and_finding(self, override: str, said: str) -> None:
        assert f"\n  {said}" in problem(override)

    def test_both_weights_zero(self) -> None:
        said = problem("loss.coarse.weight=0", "loss.fine.weight=0")
        assert said == (
            "demo: the config is wrong:\n"
            "  the config: loss.coarse.weight and loss.fine.weight are both 0: nothing to learn; raise one"
        )

    @pytest.mark.parametrize("key", ["max_spans", "max_regions"])
    def test_fine_level_without_spans_or_regions(self, key: str) -> None:
        assert "set loss.fine.weight=0 to train the coarse level alone" in problem(f"data.{key}=0")
        load_config("demo", [f"data.{key}=0", "loss.fine.weight=0"])

    @pytest.mark.parametrize("kind", ["gated", "cross_attention", "conditioned_pooling"])
    @pytest.mark.parametrize("parts", ["loss.fusion.parts_weight=0", "loss.fine.weight=0"])
    def test_a_fusion_that_no_loss_trains(self, kind: str, parts: str) -> None:
        off = [f"model.fusion.kind={kind}", "loss.fusion.weight=0"]
        assert f"model.fusion.kind is {kind}, but no loss trains it" in problem(*off, parts)
        load_config("demo", off)
        load_config("demo", ["loss.fusion.weight=0", parts])

    @pytest.mark.parametrize("kind", ["gated", "cross_attention"])
    def test_negatives_of_a_fusion_that_has_candidates(self, kind: str) -> None:
        chosen = "loss.fusion.negatives.per_anchor=2"
        said = problem(f"model.fusion.kind={kind}", chosen)
        assert f"loss.fusion.negatives has no effect with model.fusion.kind={kind}: use loss.fusion.candidates" in said
        load_config("demo", ["model.fusion.kind=conditioned_pooling", chosen])

    @pytest.mark.parametrize("chosen", ["candidates=3", "choice=hardest"])
    def test_candidates_of_a_fusion_that_has_negatives(self, chosen: str) -> None:
        key = f"loss.fusion.{chosen}"
        kind = "model.fusion.kind=conditioned_pooling"
        assert f"{key.partition('=')[0]} has no effect with {kind}: use loss.fusion.negatives" in problem(kind, key)
        load_config("demo", ["model.fusion.kind=gated", key])

    @pytest.mark.parametrize("level", ["coarse", "fine"])
    def test_noise_found_by_two_levels_of_which_one_is_off(self, level: str) -> None:
        said = problem("loss.noise.kind=small_loss", f"loss.{level}.weight=0")
        assert "loss: noise.kind=small_loss compares the losses of both levels, and one of them is off" in said

    @pytest.mark.parametrize("tower", ["text", "vision"])
    def test_tower_with_two_sources_or_none(self, tower: str) -> None:
        assert problem(f"model.{tower}.path=somewhere").endswith(
            f"  model.{tower}: give either path (a pretrained encoder) or architecture (one with random weights), "
            "not both"
        )
        assert f"  model.{tower}: give either path" in problem(f"model.{tower}.architecture=null")

    def test_architecture_without_a_type(self) -> None:
        said = problem("model.text.architecture={hidden_size: 8}")
        assert "model.text.architecture: architecture needs a model_type, for example `model_type: bert`" in said


class TestDump:
    @pytest.mark.parametrize("name", recipe_names())
    def test_roundtrip(self, name: str) -> None:
        config = load_config(name, ["run.dir=runs/示例"])
        assert parse_config(dump_config(config), "dumped") == config

    def test_names_every_key_readably(self) -> None:
        text = dump_config(load_config("demo", ["run.dir=runs/示例"]))
        assert "runs/示例" in text
        tree = yaml.safe_load(text)
        for key in known_keys():
            value: Any = tree
            for part in key.split("."):
                if value is None:  # an optional section that is off
                    break
                value = value[part]


class TestDescription:
    def test_every_key_has_one(self) -> None:
        assert [key for key, _, description in describe_keys() if not description.strip()] == []

    def test_every_section_has_one(self) -> None:
        def undescribed(section: type[BaseModel], prefix: str = "") -> list[str]:
            missing = []
            for name, field in section.model_fields.items():
                if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                    missing += [] if field.description else [prefix + name]
                    missing += undescribed(field.annotation, f"{prefix}{name}.")
            return missing

        assert undescribed(RunConfig) == []

    def test_keys_are_those_of_the_tree(self) -> None:
        def leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
            keys = []
            for name, value in tree.items():
                is_section = isinstance(value, dict) and name != "architecture"
                keys += leaves(value, f"{prefix}{name}.") if is_section else [prefix + name]
            return keys

        # Sections that are off unless something in them is set.
        sections = ["model.text.lora.rank=8", "model.vision.lora.rank=8"]
        assert known_keys() == leaves(load_config("demo", sections).model_dump())
        assert [key for key, _, _ in describe_keys()] == known_keys()

    def test_defaults_are_those_of_a_config_that_sets_nothing(self) -> None:
        config = parse_config("model: {text: {path: a}, vision: {path: b}}", "mine")
        for key, default, _ in describe_keys():
            value: Any = config
            for part in key.split("."):
                value = getattr(value, part)
                if isinstance(value, TowerSettings) and ".lora." in key:
                    value = value.model_copy(update={"lora": LoraSettings()})  # off unless something in it is set
            if default != "required" and not key.endswith(".path"):
                assert as_written(value) == default, key
