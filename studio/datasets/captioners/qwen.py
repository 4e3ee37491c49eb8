"""Qwen2-VL (Wang et al. 2024, arXiv:2409.12191) and Qwen2.5-VL: a chat model that answers a prompt.

The processor classes of transformers also want to read videos and need torchvision for it; pictures need only
the parts that are put together here: the picture's patches, and a chat with as many picture tokens as the
model merges patches into.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLForConditionalGeneration

from studio.datasets.captioners.base import Captioner, Place, load_model, load_part, moved, require_type
from studio.datasets.captioners.table import CaptionOptions

CLASSES: dict[str, Any] = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
}
MAX_PIXELS = 1024 * 1024  # larger pictures are scaled down: every 28 x 28 pixels cost a token
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{picture}<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n"
)
PICTURE = "<|image_pad|>"


class Qwen:
    """A loaded Qwen2-VL or Qwen2.5-VL."""

    def __init__(self, model: Any, processor: Any, tokenizer: Any, options: CaptionOptions) -> None:
        self._model, self._processor, self._tokenizer, self._options = model, processor, tokenizer, options
        tokenizer.padding_side = "left"  # answers are written behind

    @torch.no_grad()
    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """An answer each."""
        seen = self._processor(images=[_fitted(picture) for picture in pictures], return_tensors="pt")
        # (B, 3) patches in time, height and width; merge_size^2 of them become one token
        counts = (seen["image_grid_thw"].prod(1) // self._processor.merge_size**2).tolist()
        prompt = self._options.prompt or self._options.info.prompt
        texts = [CHAT.format(picture=PICTURE * count, prompt=prompt) for count in counts]
        words = self._tokenizer(texts, return_tensors="pt", padding=True)
        kinds = (words["input_ids"] == self._model.config.image_token_id).long()  # 1 = a picture's token
        inputs = {**seen, **words, "mm_token_type_ids": kinds}
        made = self._model.generate(
            **moved(inputs, self._model), max_new_tokens=self._options.max_tokens, do_sample=False
        )
        answers = made[:, words["input_ids"].shape[1] :].cpu()
        return [text.strip() for text in self._tokenizer.batch_decode(answers, skip_special_tokens=True)]


def load(place: Place, options: CaptionOptions, device: torch.device) -> Captioner:
    """A Qwen-VL from its folder.

    Raises:
        BadInput: another model.
    """
    return Qwen(
        load_model(CLASSES[require_type(place, *CLASSES)], place, device),
        load_part(AutoImageProcessor, place),
        load_part(AutoTokenizer, place),
        options,
    )


def _fitted(picture: Image.Image) -> Image.Image:
    """The picture with at most MAX_PIXELS."""
    scale = (MAX_PIXELS / (picture.width * picture.height)) ** 0.5
    if scale >= 1:
        return picture
    return picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
