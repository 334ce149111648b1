"""Inputs written by hand for one format each: YAML, overrides, XML, tweets, training states, architectures, texts."""

import io
import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzz_mutate import NASTY_TEXTS, dump_json, mutate_bytes, mutate_text, nasty_value

from spanbox.config import known_keys


def _bomb(levels: int, width: int = 9) -> str:
    lines = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]" for level in range(1, levels)]
    return "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *lines]) + "\n"


def _mapping_bomb(levels: int) -> str:
    lines = ["a0: &a0 {k: v}"]
    for level in range(1, levels):
        entries = ", ".join(f"k{n}: *a{level - 1}" for n in range(9))
        lines.append(f"a{level}: &a{level} {{{entries}}}")
    return "\n".join(lines) + "\n"


def _merge_bomb(levels: int) -> str:
    merged = {level: ", ".join([f"*a{level - 1}"] * 9) for level in range(1, levels)}
    lines = [f"a{level}: &a{level}\n  <<: [{aliases}]\n  k{level}: v" for level, aliases in merged.items()]
    return "\n".join(["a0: &a0 {k: v}", *lines]) + "\n"


YAML_VALUES = [
    "2024-01-01",
    "2024-13-45",
    "2024-01-01T00:00:00Z",
    "0001-01-01 00:00:00 +99:99",
    "9" * 5_000,
    "-" + "9" * 5_000,
    "0x" + "f" * 9_000,
    "0b" + "1" * 30_000,
    "1:60:60",
    "190:20:30:" * 2_000 + "1",
    "1e" + "9" * 400,
    ".inf",
    "-.inf",
    ".nan",
    "~",
    "!!int 'x'",
    "!!int ''",
    "!!float 'x'",
    "!!float ''",
    "!!bool 'x'",
    "!!null 'x'",
    "!!timestamp 'x'",
    "!!timestamp 2024-99-99",
    "!!binary '***'",
    "!!binary 'aGVsbG8='",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!pairs [a: 1]",
    "!!map [a]",
    "!!seq {a: 1}",
    "!!str [a]",
    "!!python/object/apply:os.system [id]",
    "!unknown x",
    "!<tag:yaml.org,2002:int> x",
    "&a [*a]",
    "&a {b: *a}",
    "&a {*a : 1}",
    "*nowhere",
    "{[a, b]: c}",
    "{{a: b}: c}",
    "{? [1] : 2}",
    "{1: 2, 1: 3}",
    "{null: 1, true: 2, 1.5: 3}",
    "{a: 1, a: 2}",
    "{<<: 5}",
    "{<<: [1, 2]}",
    "{<<: {a: 1}}",
    "{=: 1}",
    "=",
    '"\\ud800"',
    '"\\U0001F600"',
    '"\\UFFFFFFFF"',
    '"\\x00"',
    '"\\0"',
    "|\n  text\n  more",
    "'unclosed",
    "[1, 2",
    "%YAML 9.9",
    "@at",
    "`tick`",
    "\t",
    "[" * 3_000,
    "[" * 3_000 + "]" * 3_000,
    "{a: " * 3_000 + "1" + "}" * 3_000,
    "[" * 100_000 + "]" * 100_000,
    "- " * 3_000 + "a",
    "? " * 3_000 + "a",
    "!!str " * 1_000 + "a",
    "&a " * 1_000 + "b",
    "'" + "a" * 2_000_000 + "'",
    "[" + "1, " * 300_000 + "1]",
    "a" * 2_000_000,
]


def nasty_yaml(rng: Random, text: str) -> str:
    """A config or a plan with something in it that strains a YAML parser."""
    choice = rng.randrange(8)
    if choice == 0:
        make = rng.choice([_bomb, _mapping_bomb, _merge_bomb])
        return make(rng.choice([3, 5, 7, 8, 9, 25])) + (text if rng.random() < 0.5 else "")
    if choice == 1:
        return rng.choice(
            ["---\n" * 3 + text, text + "---\n" + text, text + "...\nmore", "%TAG ! tag:x,2000:\n---\n" + text]
        )
    if choice == 2:
        return "".join(f"{' ' * depth}k:\n" for depth in range(rng.choice([50, 500, 3_000]))) + text
    if choice == 3:
        return text + rng.choice(YAML_VALUES)
    lines = text.splitlines(keepends=True)
    at = rng.choice([number for number, line in enumerate(lines) if ":" in line])
    key = lines[at].split(":")[0]
    lines[at] = f"{key}: {rng.choice(YAML_VALUES)}\n"
    return "".join(lines)


def overrides(rng: Random) -> list[str]:
    """One to three overrides, which a shell can hand over: no NUL, not above 100 kB."""
    made = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        key = rng.choice(known_keys())
        choice = rng.randrange(8)
        if choice == 0:
            key = mutate_text(rng, key)
        elif choice == 1:
            key = rng.choice(
                [key + ".x", key.rsplit(".")[0], "." + key, key + ".", "a." * 3_000 + "b", key.upper(), ".."]
            )
        value = rng.choice(
            [rng.choice(YAML_VALUES), rng.choice(NASTY_TEXTS), str(nasty_value(rng)), dump_json(nasty_value(rng))]
        )
        made.append(f"{key}={value}"[:100_000].replace("\0", "0"))
    return made


def nasty_xml(rng: Random, text: str) -> str:
    choice = rng.randrange(9)
    if choice < 3:
        return mutate_text(rng, text)
    return rng.choice(
        [
            "<a>" * 100_000 + "</a>" * 100_000,
            "<annotation>" + "<object>" * 20_000 + "</object>" * 20_000 + "</annotation>",
            "<annotation><object>" + "<bndbox>" * 20_000 + "</bndbox>" * 20_000 + "</object></annotation>",
            "<annotation>" + "<object><name>a</name></object>" * 50_000 + "</annotation>",
            text.replace("<xmin>1<", f"<xmin>{rng.choice(['9' * 5_000, 'nan', 'inf', '1e999', '１', '-1', ''])}<"),
            text.replace("<width>40<", f"<width>{rng.choice(['9' * 5_000, 'nan', '1e9', '-4', '４０'])}<"),
            '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><a>&d;</a>',
            '<!DOCTYPE a SYSTEM "http://localhost/x"><a/>',
            '<?xml version="1.0" encoding="no-such"?><a/>',
            '<?xml version="1.0" encoding="utf-7"?><a/>',
            '<?xml version="1.0" encoding="zlib"?><a/>',
            '<?xml version="1.0" encoding="utf-16"?><a/>',
            "<a " + " ".join(f"b{number}='c'" for number in range(20_000)) + "/>",
            text.replace("Tom", "T" * 3_000_000),
        ]
    )


def nasty_tweets(rng: Random, text: str) -> str:
    choice = rng.randrange(6)
    if choice < 3:
        return mutate_text(rng, text)
    if choice == 3:
        return text.replace("71044", rng.choice([*NASTY_TEXTS, "a" * 300, "é" * 200, "CON", "nul.txt"]))
    if choice == 4:
        return text.replace("Tom", rng.choice([*NASTY_TEXTS, "Tom " * 20_000]))
    return rng.choice(
        ["", "\n" * 1_000_000, "IMGID:\n", "IMGID:1", "IMGID:1\n" * 20_000, text * 2_000, "a\tB-\n", "a\tO\n"]
    )


def mutate_trainer_state(rng: Random, content: bytes) -> bytes:
    if rng.random() < 0.4:
        return mutate_bytes(rng, content)
    file = io.BytesIO()
    if rng.random() < 0.15:
        torch.save(rng.choice([None, 5, [], {}, torch.zeros(3), {"step": "x"}]), file)
        return file.getvalue()
    state = _mutate_state(rng, torch.load(io.BytesIO(content), weights_only=True))
    torch.save(state, file)
    return file.getvalue()


def _mutate_state(rng: Random, state: Any) -> Any:
    places = []

    def collect(node: Any) -> None:
        pairs = (
            list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        )
        for key, value in pairs:
            places.append((node, key))
            collect(value)

    collect(state)
    holder, key = rng.choice(places)
    value, choice = holder[key], rng.randrange(4)
    if choice == 0:
        del holder[key]
    elif choice == 1 and isinstance(value, torch.Tensor):
        holder[key] = rng.choice([value.new_zeros(3), value.double(), value.reshape(-1)[:0], value[None], value.bool()])
    elif choice == 2:
        holder[key] = rng.choice([2**40, -1, 2**70, float("nan"), float("inf"), "x", [], {}, None, True])
    else:
        holder[key] = nasty_value(rng)
    return state


def architecture(rng: Random) -> list[str]:
    """An override of one value of an architecture."""
    part = rng.choice(["text", "vision"])
    keys = {
        "text": "model_type vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size "
        "hidden_dropout_prob max_position_embeddings initializer_range hidden_act type_vocab_size layer_norm_eps "
        "pad_token_id",
        "vision": "model_type hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_dropout_prob "
        "image_size patch_size num_channels initializer_range hidden_act layer_norm_eps",
    }
    values = ["0", "-1", "1", "3", "7", "1.5", "nan", ".nan", ".inf", "x", "null", "[]", "{}", "true", "[16, 16]"]
    values += ["bert", "vit", "resnet", "gpt2", "clip", "1000000", "1000000000000", "9" * 400, "relu", "''"]
    return [
        f"model.{part}.architecture.{rng.choice(keys[part].split())}={rng.choice(values)}"
        for _ in range(rng.choice([1, 2]))
    ]


def write_texts(rng: Random, source: Path, target: Path) -> None:
    """A manifest whose texts strain a tokenizer; some spans still lie inside."""
    with target.open("w", encoding="utf-8") as file:
        for line in source.open(encoding="utf-8"):
            record = json.loads(line)
            if rng.random() < 0.5:
                text = rng.choice(NASTY_TEXTS) * rng.choice([1, 1, 50])
                record["text"] = rng.choice([text + record["text"], record["text"] + text, text])
                record["entities"] = [e for e in record.get("entities", ()) if e["end"] <= len(record["text"])]
            file.write(json.dumps(record) + "\n")
