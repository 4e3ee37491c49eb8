"""BLIP (Li et al. 2022, arXiv:2201.12086): one short sentence a picture, or the end of one that is begun."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers.models.blip.modeling_blip import BlipForConditionalGeneration
from transformers.models.blip.processing_blip import BlipProcessor

from studio.datasets.captioners.base import Captioner, Place, load_model, load_part, moved, require_type
from studio.datasets.captioners.table import CaptionOptions

BEAMS = 3


class Blip:
    """A loaded BLIP; a prompt is the beginning of every caption."""

    def __init__(self, model: Any, processor: Any, options: CaptionOptions) -> None:
        self._model, self._processor, self._options = model, processor, options

    @torch.no_grad()
    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """One sentence each."""
        prompt = self._options.prompt
        text = {"text": [prompt] * len(pictures)} if prompt else {}
        inputs = self._processor(images=list(pictures), return_tensors="pt", **text)
        made = self._model.generate(
            **moved(inputs, self._model), max_new_tokens=self._options.max_tokens, num_beams=BEAMS
        )
        start = self._model.config.text_config.bos_token_id  # "[DEC]", an ordinary token to the tokenizer
        return [
            self._processor.tokenizer.decode(row[row != start], skip_special_tokens=True).strip()
            for row in made.cpu()
        ]


def load(place: Place, options: CaptionOptions, device: torch.device) -> Captioner:
    """BLIP from its folder.

    Raises:
        BadInput: another model.
    """
    require_type(place, "blip")
    return Blip(
        load_model(BlipForConditionalGeneration, place, device), load_part(BlipProcessor, place), options
    )
