"""Export to ONNX: each tower with its layers as one file, checked against PyTorch with onnxruntime.

    text.onnx         input_ids (N, T), attention_mask (N, T), span_tokens (N, K, T) bool
                      -> last_hidden_state (N, T, H), text (N, D), spans (N, K, D)
    image.onnx        pixel_values (N, 3, S, S), normalised as by the image processor, boxes (N, R, 4) in [0, 1]
                      -> grid (N, h, w, H), image (N, D), regions (N, R, D)
    tokenizer, preprocessor_config.json, heads.json

Numbers of rows, tokens, spans and boxes are free, and may be 0 for spans and boxes. A model that encodes spans without
their sentence has no `span_tokens`: each text is one span, `spans` is (N, D). One that encodes crops has no `boxes`:
each image is one crop, `regions` is (N, D).
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbox.api import Model
from spanbox.errors import ConfigError
from spanbox.export.heads import write_heads
from spanbox.geometry import roi_align
from spanbox.models.dual_encoder import DualEncoder
from spanbox.models.export import ImageProcessorFiles, exportable
from spanbox.models.pooling import pool_regions, pool_spans

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
LARGE = 2**30
"""Bytes from which weights are stored in a separate file: a single ONNX file holds at most 2 GiB."""
OPSET = 18


def write_onnx(model: Model, folder: Path) -> list[str]:
    """Write and check the files. Returns notes.

    Raises:
        ConfigError: the packages are not installed, the model was trained with padded images, or the outputs differ
            from those of PyTorch.
    """
    if model.config.data.aspect == "pad":
        raise ConfigError(
            "--to onnx: this model was trained with data.aspect=pad, and image.onnx encodes whole squares, in which "
            "padding would count; use --to transformers for its encoders, or spanbox.load for its features"
        )
    for package in PACKAGES:
        try:
            __import__(package)
        except ImportError:
            raise ConfigError(f"--to onnx: {package} is not installed; pip install 'spanbox[onnx]'") from None
    encoder = copy.deepcopy(model.model).float().cpu().eval()
    encoder.text.model = exportable(encoder.text.model)
    encoder.vision.model = exportable(encoder.vision.model)
    differences = {
        "text": _export(_TextHead(encoder), folder / "text.onnx", _text_inputs),
        "image": _export(_ImageHead(encoder), folder / "image.onnx", _image_inputs),
    }
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"{name}.onnx: its outputs differ from PyTorch's by {difference:.1e}, more than {TOLERANCE:.0e}; this "
                "encoder cannot be exported with the installed versions"
            )
    write_heads(model, folder)
    model.tokenizer.save_pretrained(folder)
    ImageProcessorFiles(model.model.preprocessing).save_pretrained(str(folder))
    measured = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    return [f"Largest difference to PyTorch, checked at export with three shapes of input: {measured}."]


class _TextHead(nn.Module):
    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.alone = encoder.settings.spans.source == "own"
        self.inputs = ["input_ids", "attention_mask", *([] if self.alone else ["span_tokens"])]
        self.outputs = ["last_hidden_state", "text", "spans"]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, span_tokens: Tensor | None = None) -> Any:
        states = self.encoder.text(input_ids, attention_mask.bool())
        members = attention_mask.bool()[:, None] if span_tokens is None else span_tokens
        spans = pool_spans(states.tokens, members, self.encoder.settings.spans.pool)
        spans = F.normalize(self.encoder.projection_of("spans")(spans), dim=-1)
        text = F.normalize(self.encoder.projection_of("text")(states.pooled), dim=-1)
        return states.tokens, text, spans[:, 0] if span_tokens is None else spans


class _ImageHead(nn.Module):
    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.crops = encoder.settings.regions.source == "crop"
        self.inputs = ["pixel_values", *([] if self.crops else ["boxes"])]
        self.outputs = ["grid", "image", "regions"]

    def forward(self, pixel_values: Tensor, boxes: Tensor | None = None) -> Any:
        states = self.encoder.vision(pixel_values)
        pooled = states.pooled
        if boxes is not None:
            settings = self.encoder.settings.regions
            bins = roi_align(states.grid, boxes, settings.output_size, settings.sampling_ratio)
            pooled = pool_regions(bins, settings.pool)
        regions = F.normalize(self.encoder.projection_of("regions")(pooled), dim=-1)
        return states.grid, F.normalize(self.encoder.projection_of("image")(states.pooled), dim=-1), regions


def _text_inputs(head: Any, rows: int, parts: int) -> list[Tensor]:
    tower = head.encoder.text
    length = min(tower.max_tokens, 4 + 3 * rows)
    ids = torch.randint(tower.model.config.vocab_size, (rows, length))
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[0, length - 1 :] = 0
    span_tokens = torch.zeros(rows, parts, length, dtype=torch.bool)
    span_tokens[:, :, 1:3] = True
    return [ids, mask, span_tokens][: len(head.inputs)]


def _image_inputs(head: Any, rows: int, parts: int) -> list[Tensor]:
    size = head.encoder.vision.image_size
    corners = torch.rand(rows, parts, 2) / 2
    boxes = torch.cat([corners, corners + 0.1 + torch.rand(rows, parts, 2) * 0.4], dim=2)
    return [torch.randn(rows, 3, size, size), boxes][: len(head.inputs)]


def _export(head: Any, path: Path, inputs: Callable[[Any, int, int], list[Tensor]]) -> float:
    """Write a file and return its largest difference to PyTorch."""
    axes = {
        "input_ids": {0: "texts", 1: "tokens"},
        "attention_mask": {0: "texts", 1: "tokens"},
        "span_tokens": {0: "texts", 1: "spans", 2: "tokens"},
        "pixel_values": {0: "images"},
        "boxes": {0: "images", 1: "boxes"},
    }
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # of PyTorch, about itself
        torch.manual_seed(0)
        program = torch.onnx.export(
            head.eval(),
            tuple(inputs(head, 2, 3)),
            input_names=head.inputs,
            output_names=head.outputs,
            dynamic_shapes=tuple(axes[name] for name in head.inputs),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
        )
        assert program is not None
        weights = sum(parameter.numel() * parameter.element_size() for parameter in head.parameters())
        program.save(path, external_data=weights > LARGE)
        return max(_difference(head, path, inputs(head, *shape)) for shape in ((2, 3), (1, 1), (3, 0)))


@torch.no_grad()
def _difference(head: Any, path: Path, inputs: Sequence[Tensor]) -> float:
    """The largest difference of an output on tokens that are not padding."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: tensor.numpy() for name, tensor in zip(head.inputs, inputs, strict=True)})
    expected = [output.numpy() for output in head(*inputs)]
    if "attention_mask" in head.inputs:  # states of padding are undefined
        kept = inputs[1].numpy()[:, :, None]
        found[0], expected[0] = found[0] * kept, expected[0] * kept
    differences = [float(np.abs(one - other).max(initial=0)) for one, other in zip(found, expected, strict=True)]
    return max(differences)


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without the exporter's messages about missing torchvision operators."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
