"""Zero-shot object detection by transformers' OWL-ViT, OWLv2 and Grounding DINO from local folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from spanbox.documents import DocumentError, read_json
from spanbox.errors import ConfigError
from spanbox.models.pretrained import check_files, fingerprint, quiet

FAMILIES = ("owlvit", "owlv2", "grounding-dino", "mm-grounding-dino")


class ZeroShotDetector:
    """Finds in images the objects that words name.

    Args:
        folder: of a model as transformers saves it, with its processor.
        device: where it runs.
        threshold: score from which a box counts.

    Raises:
        ConfigError: no such folder, another kind of model, or it cannot be loaded.
    """

    def __init__(self, folder: Path, device: torch.device, threshold: float) -> None:
        self._processor, self._model = _load(folder)
        self.name = folder.resolve().name
        self.key = f"{fingerprint(folder)} {threshold}"
        self._device = device
        self._threshold = threshold
        self._model.to(device).eval()
        config = self._model.config
        self._max_tokens = getattr(config, "max_text_len", None) or config.text_config.max_position_embeddings
        self._padding = "max_length" if config.model_type.startswith("owl") else True  # as they were trained

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[list[dict[str, Any]]]:
        """The boxes found in each image, as `{"box": [x0, y0, x1, y1] in pixels, "score": ..., "label": ...}`.

        Args:
            images: RGB.
            labels: names of the objects to look for in each image; a label beyond the length of the model is cut off.
        """
        return [self._detect(image, list(own)) for image, own in zip(images, labels, strict=True)]

    def _detect(self, image: Image.Image, labels: list[str]) -> list[dict[str, Any]]:
        if not labels:
            return []
        inputs = self._processor(
            text=[labels],
            images=[image],
            return_tensors="pt",
            padding=self._padding,
            truncation=True,
            max_length=self._max_tokens,
        ).to(self._device)
        outputs = self._model(**inputs)
        (found,) = self._processor.post_process_grounded_object_detection(
            outputs, threshold=self._threshold, target_sizes=[image.size[::-1]], text_labels=[labels]
        )
        boxes, scores = found["boxes"].tolist(), found["scores"].tolist()
        return [
            {"box": box, "score": score, "label": _nearest(name, labels)}
            for box, score, name in zip(boxes, scores, found["text_labels"], strict=True)
        ]


def _nearest(name: str, labels: Sequence[str]) -> str:
    """The label that a detector means: Grounding DINO gives the words that fit a box, in lower case."""
    words = name.casefold().split()
    plain = [label.casefold().split() for label in labels]
    if words in plain:
        return labels[plain.index(words)]
    within = [label for label, own in zip(labels, plain, strict=True) if words and set(words) <= set(own)]
    return within[0] if len(within) == 1 else name


def _load(folder: Path) -> tuple[Any, Any]:
    """Processor and model."""
    try:
        kind = read_json(folder / "config.json").get("model_type")
    except (OSError, DocumentError, AttributeError):
        raise ConfigError(
            f"--detector: {folder} is not a folder with a config.json of transformers; give the folder of a detector, "
            "fetched for example with `hf download IDEA-Research/grounding-dino-tiny --local-dir DIR`"
        ) from None
    if kind not in FAMILIES:
        raise ConfigError(
            f"--detector: {folder} holds a model of type {kind!r}; expected {', '.join(FAMILIES)}. Other detectors "
            "can be used as a function, --detector module:function"
        )
    check_files(folder, "--detector")
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    try:
        with quiet():
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, report = AutoModelForZeroShotObjectDetection.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors, tokenizers and transformers each raise other classes of errors
        reason = " ".join(str(error).split())[:300] or type(error).__name__  # such as a package that is missing
        raise ConfigError(f"--detector: {folder} cannot be loaded: {reason}") from None
    if report["missing_keys"]:
        names = ", ".join(sorted(report["missing_keys"])[:3])
        raise ConfigError(f"--detector: {folder} lacks weights of its model, such as {names}; fetch it again")
    return processor, model
