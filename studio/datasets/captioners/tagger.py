"""WD-style taggers: an image classifier with many labels, and `selected_tags.csv` that names them.

Two kinds of folders are read: of transformers (any class that AutoModelForImageClassification knows), and of
timm, as SmilingWolf publishes them. Of the latter, plain vision transformers need nothing else (`plain_vit`);
SwinV2, ConvNeXt and EVA02 go through transformers' wrapper and need the package timm.

The published taggers were trained on pictures padded to a white square, with channels in the order blue,
green, red.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from registry.errors import BadInput
from registry.files import read_json
from studio.datasets.captioners.base import Captioner, Place, load_model, load_part
from studio.datasets.captioners.plain_vit import PlainViT
from studio.datasets.captioners.table import CaptionOptions

TAGS = "selected_tags.csv"
GENERAL, CHARACTER = 0, 4  # categories of Danbooru; 9 is the rating, which says nothing about the picture
FACES = {
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@",
    "^_^", "o_o", "u_u", "x_x", "|_|", "||_||",
}  # fmt: skip  # tags whose underscore is drawn


@dataclass(frozen=True)
class Tag:
    """A label of the classifier."""

    name: str
    category: int


class Tagger:
    """A loaded tagger.

    Args:
        score: RGB pictures -> (B, tags) probabilities.
        tags: What each column is.
        options: Thresholds and tags to leave out.
    """

    def __init__(
        self,
        score: Callable[[Sequence[Image.Image]], Tensor],
        tags: Sequence[Tag],
        options: CaptionOptions,
    ) -> None:
        self._score, self._tags = score, tags
        self._least = {GENERAL: options.threshold, CHARACTER: options.character_threshold}
        self._out = {_spelled(name) for name in options.leave_out}

    @torch.no_grad()
    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Characters, then general tags, each by probability."""
        return [self._words(row) for row in self._score(pictures).float().cpu()]

    def _words(self, scores: Tensor) -> str:
        chosen = [
            (tag.category != CHARACTER, -score, _spelled(tag.name))
            for tag, score in zip(self._tags, scores.tolist(), strict=True)
            if tag.category in self._least and score >= self._least[tag.category]
        ]
        return ", ".join(name for _, _, name in sorted(chosen) if name not in self._out)


def load(place: Place, options: CaptionOptions, device: torch.device) -> Captioner:
    """A tagger from its folder.

    Raises:
        BadInput: no table of tags, another number of them than labels, or a model that needs timm.
    """
    tags = read_tags(place)
    config = read_json(place.file("config.json"))
    if "model_type" not in config and "architecture" in config:
        score, labels = _from_timm(place, config, device)
    else:
        score, labels = _from_transformers(place, device)
    if labels != len(tags):
        wrong = f"has {labels} labels and {len(tags)} rows in {TAGS}"
        raise BadInput(place.name, wrong, "get model and table of one release")
    return Tagger(score, tags, options)


def read_tags(place: Place) -> list[Tag]:
    """The rows of selected_tags.csv: columns name and category.

    Raises:
        BadInput: missing, or without those columns.
    """
    with place.file(TAGS).open(encoding="utf-8", newline="") as lines:
        try:
            return [Tag(row["name"], int(row["category"])) for row in csv.DictReader(lines)]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            wrong = "is no table of tags (columns name, category)"
            raise BadInput(f"{place.name}/{TAGS}", wrong, "get it again") from error


def prepare(
    pictures: Sequence[Image.Image], side: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """(B, 3, side, side) in blue, green, red: padded to a white square, scaled bicubically, normalised."""
    return torch.stack([_prepared(picture, side, mean, std) for picture in pictures])


def _prepared(picture: Image.Image, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    pixels = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    scaled = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(scaled[..., ::-1].copy()).permute(2, 0, 1)


def _from_timm(place: Place, config: dict[str, Any], device: torch.device) -> Any:
    """Scores and number of labels of a folder in timm's layout."""
    facts = config.get("pretrained_cfg") or {}
    side = int((facts.get("input_size") or (3, 448, 448))[-1])
    mean, std = facts.get("mean") or (0.5,) * 3, facts.get("std") or (0.5,) * 3
    name = str(config["architecture"])
    if name.startswith("vit_") and "clip" not in name:
        model: Any = PlainViT.load(place, config, device)
        labels, scored = model.labels, model
    elif find_spec("timm") is None:
        wrong = f"is a {name}, which needs the package timm"
        raise BadInput(
            place.name, wrong, "install timm, or use a tagger that is a plain ViT (wd-vit-tagger-v3)"
        )
    else:
        from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperForImageClassification

        model = load_model(TimmWrapperForImageClassification, place, device)
        labels, scored = int(config["num_classes"]), lambda pixels: model(pixel_values=pixels).logits

    def score(pictures: Sequence[Image.Image]) -> Tensor:
        pixels = prepare(pictures, side, mean, std).to(device, next(iter(model.parameters())).dtype)
        return scored(pixels).sigmoid()

    return score, labels


def _from_transformers(place: Place, device: torch.device) -> Any:
    """Scores and number of labels of a folder in transformers' layout, prepared as its processor says."""
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.models.auto.modeling_auto import AutoModelForImageClassification

    model, processor = (
        load_model(AutoModelForImageClassification, place, device),
        load_part(AutoImageProcessor, place),
    )

    def score(pictures: Sequence[Image.Image]) -> Tensor:
        pixels = processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        return model(pixel_values=pixels.to(device, model.dtype)).logits.sigmoid()

    return score, model.config.num_labels


def _spelled(name: str) -> str:
    """A tag as people write it: "long_hair" -> "long hair"; faces stay."""
    return name if name in FACES else name.replace("_", " ").strip()
