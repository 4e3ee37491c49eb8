"""Learnt encoders of pictures, for those who have one: CLIP and SigLIP with texts, DINO and DINOv2 without.

    CLIP: Radford et al. 2021, arXiv:2103.00020; SigLIP: Zhai et al. 2023, arXiv:2303.15343;
    DINOv2: Oquab et al. 2023, arXiv:2304.07193.

Nothing is fetched unless a hub id is given; torch and transformers are loaded when an encoder is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from registry.errors import BadInput, Damaged
from registry.files import read_json

if TYPE_CHECKING:
    from studio.datasets.captioners.base import Place

Rows = NDArray[np.float32]
BATCH = 16
# What a config calls itself -> whether it knows texts.
TYPES = {
    "clip": True,
    "siglip": True,
    "dinov2": False,
    "dinov2_with_registers": False,
    "dinov3_vit": False,
    "vit": False,
}


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder.

    Args:
        name: As the person gave it.
        model: Of transformers, on its device.
        pictures: Its image processor.
        tokens: Its tokenizer; None when it knows no texts.
    """

    name: str
    model: Any
    pictures: Any
    tokens: Any | None

    def images(self, pictures: Sequence[Image.Image]) -> Rows:
        """Unit rows (N, D) of pictures of any size and mode."""
        import torch

        rows: list[Any] = []
        for start in range(0, len(pictures), BATCH):
            part = [picture.convert("RGB") for picture in pictures[start : start + BATCH]]
            inputs = self._moved(self.pictures(images=part, return_tensors="pt"))
            with torch.inference_mode():
                whole = self.model if self.tokens is None else self.model.get_image_features
                rows.append(_pooled(whole(**inputs)))
        return _units(torch.cat(rows))

    def texts(self, texts: Sequence[str]) -> Rows | None:
        """Unit rows (N, D) of texts, to be compared with those of pictures; None when it knows no texts."""
        import torch

        if self.tokens is None:
            return None
        most = self.model.config.text_config.max_position_embeddings
        inputs = self.tokens(
            list(texts), padding="max_length", max_length=most, truncation=True, return_tensors="pt"
        )  # to the full length: so SigLIP was trained, and CLIP looks no further than the end of the text
        with torch.inference_mode():
            return _units(_pooled(self.model.get_text_features(**self._moved(inputs))))

    def _moved(self, inputs: Any) -> dict[str, Any]:
        from studio.datasets.captioners.base import moved

        return moved(inputs, self.model)


def checked(where: str) -> str:
    """An encoder as it is remembered: the whole path of a folder, or a hub id; loads and fetches nothing.

    Hours of drawing come before it is asked, so what can be known is said first.

    Raises:
        BadInput: no folder and no hub id, or a folder with another model.
    """
    folder = Path(where).expanduser()
    if folder.exists():
        folder = folder.absolute()
        try:
            config: Any = read_json(folder / "config.json")
        except (OSError, Damaged):
            wrong, do = "has no readable config.json", "give the folder of a CLIP, SigLIP or DINO model"
            raise BadInput(f"encoder {folder}", wrong, do) from None
        kind = config.get("model_type") if isinstance(config, dict) else None
        if kind not in TYPES:
            wrong = f"is a model of type {str(kind)[:40]}" if kind else "says no model_type in config.json"
            raise BadInput(f"encoder {folder}", wrong, f"use one of {', '.join(TYPES)}")
        return str(folder)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", where):
        wrong = "is neither a folder that is there nor a hub id"
        raise BadInput(f"encoder {where[:200]}", wrong, "write a path or OWNER/NAME")
    return where


def load_encoder(where: str) -> Encoder:
    """An encoder from a folder or from the hub.

    Args:
        where: A folder, or OWNER/NAME.

    Raises:
        BadInput: it is not there, incomplete, or none of `TYPES`.
    """
    import torch
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.models.auto.modeling_auto import AutoModel
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    from studio.datasets.captioners.base import find, load_model, load_part, require_type

    place: Place = find(where)
    kind = require_type(place, *TYPES)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures = load_part(AutoImageProcessor, place)
    tokens = load_part(AutoTokenizer, place) if TYPES[kind] else None
    return Encoder(where, load_model(AutoModel, place, device), pictures, tokens)


def _pooled(answer: Any) -> Any:
    """(N, D) of what a model returns: its own pooling, else the first token, else the tensor itself."""
    if hasattr(answer, "shape"):
        return answer
    if getattr(answer, "pooler_output", None) is not None:
        return answer.pooler_output
    return answer.last_hidden_state[:, 0]


def _units(rows: Any) -> Rows:
    rows = rows.float().cpu()
    return (rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-9)).numpy()
