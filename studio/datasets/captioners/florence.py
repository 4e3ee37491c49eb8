"""Florence-2 (Xiao et al. 2023, arXiv:2311.06242): the task is a word such as <MORE_DETAILED_CAPTION>.

The class of transformers is used, so the model has to be in its layout (florence-community/..., not the
microsoft/... ones, which need code of their own).
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers.models.florence2.modeling_florence2 import Florence2ForConditionalGeneration
from transformers.models.florence2.processing_florence2 import Florence2Processor

from registry.errors import BadInput
from studio.datasets.captioners.base import Captioner, Place, load_model, load_part, moved, require_type
from studio.datasets.captioners.table import CaptionOptions

TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
BEAMS = 3


class Florence:
    """A loaded Florence-2."""

    def __init__(self, model: Any, processor: Any, options: CaptionOptions) -> None:
        self._model, self._processor, self._options = model, processor, options
        self._task = options.prompt or options.info.prompt

    @torch.no_grad()
    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """A text each, as long as the task says."""
        inputs = self._processor(
            images=list(pictures), text=[self._task] * len(pictures), return_tensors="pt", padding=True
        )
        made = self._model.generate(
            **moved(inputs, self._model), max_new_tokens=self._options.max_tokens, num_beams=BEAMS
        )
        # The tasks here answer in plain text: nothing to parse but the marks around it.
        texts = self._processor.batch_decode(made.cpu(), skip_special_tokens=True)
        return [text.strip() for text in texts]


def load(place: Place, options: CaptionOptions, device: torch.device) -> Captioner:
    """Florence-2 from its folder.

    Raises:
        BadInput: the prompt is none of its tasks, or another model.
    """
    task = options.prompt or options.info.prompt
    if task not in TASKS:
        raise BadInput("prompt", f"{task[:60]!r} is no task of Florence-2", f"use {', '.join(TASKS)}")
    require_type(place, "florence2")
    return Florence(
        load_model(Florence2ForConditionalGeneration, place, device),
        load_part(Florence2Processor, place),
        options,
    )
