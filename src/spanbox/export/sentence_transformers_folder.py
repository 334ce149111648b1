"""Export to sentence-transformers: the sentence encoder as Transformer, Pooling, Dense and Normalize.

Images stay with the transformers export: their features are compared with those of these sentences. The files have the
older of two forms, which new versions of the library read too.
"""

import json
from pathlib import Path

from safetensors.torch import save_file

from spanbox.api import Model
from spanbox.errors import ConfigError
from spanbox.files import write_text

POOLING = {"cls": "cls_token", "mean": "mean_tokens"}
MODULES = ("Transformer", "Pooling", "Dense", "Normalize")


def write_sentence_transformers(model: Model, folder: Path) -> list[str]:
    """Write the folder. Returns notes. Raises ConfigError for a pooling that the library does not have."""
    tower = model.model.text
    pool, kind = tower.settings.pool, tower.model.config.model_type
    if pool not in POOLING:
        raise ConfigError(
            f"{model.checkpoint}: sentence-transformers has no pooling as that of this text encoder ({kind}, "
            f"model.text.pool={pool}); export to transformers or onnx instead"
        )
    if kind == "siglip_text_model":
        raise ConfigError(
            f"{model.checkpoint}: {kind} attends to padding up to its full length, unlike sentence-transformers; "
            "export to transformers or onnx instead"
        )
    tower.model.save_pretrained(folder)
    layer = model.model.text_projection
    _write(
        folder / "sentence_bert_config.json", {"max_seq_length": model.config.data.max_tokens, "do_lower_case": False}
    )
    _write(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": layer.in_features,
            **{f"pooling_mode_{mode}": mode == POOLING[pool] for mode in POOLING.values()},
        },
    )
    dense = {
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _write(folder / "2_Dense" / "config.json", dense)
    weights = {f"linear.{name}": tensor.detach().cpu().clone() for name, tensor in layer.named_parameters()}
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    (folder / "3_Normalize").mkdir()
    _write(folder / "modules.json", [_module(index, name) for index, name in enumerate(MODULES)])
    _write(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    return ["Sentences alone: the image encoder is in the transformers export of the same run."]


def _module(index: int, name: str) -> dict[str, object]:
    path = f"{index}_{name}" if index else ""
    return {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}


def _write(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
