"""The prompts of a request as one base reads them, encoded when a picture needs them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from registry.errors import BadInput
from studio.sampling.prompts.embeddings import read_embedding
from studio.sampling.prompts.encode import PromptEncoder, Schedule
from studio.sampling.prompts.parse import PromptPlan, parse
from studio.sampling.request import SampleRequest
from studio.sampling.task import TaskEmbedding
from trainers.families.base import Family
from trainers.families.common import TextToImage
from trainers.new_tokens import Vectors, also_known, clip_encoders, embedding_of


class RequestTexts:
    """Prompts of one request for one loaded base.

    Args:
        family: With its adapters in place, which must stay as they are while this is used.
        request: What to draw.
        embeddings: Files that its texts name.

    Raises:
        BadInput: an embedding file is unsound, or clip skip leaves no layer.
    """

    def __init__(self, family: Family, request: SampleRequest, embeddings: Sequence[TaskEmbedding]) -> None:
        self._family, self._request = cast(TextToImage, family), request
        self._words, self._odd = _fitting(family, embeddings)
        self._encoder = PromptEncoder(self._family, clip_skip=request.clip_skip)

    def of(self, index: int, steps: int | None = None) -> tuple[Schedule, Schedule]:
        """Schedules of prompt and negative prompt of picture `index`, over `steps` (default: the request's).

        Raises:
            BadInput: the parts of the prompt cannot be composed on this base.
        """
        prompt, negative = self._request.texts(index)
        plan, avoid = parse(prompt), parse(negative, composed=False)
        self._check_shares(plan)
        with also_known(self._family, self._words):
            cond, against = self._encoder.pair(plan, avoid, steps or self._request.steps)
        return cond, against if negative else against.mapped(self._family.unguided)

    def warnings(self) -> list[str]:
        """What of the prompts has no effect, one sentence each."""
        family, request = self._family, self._request
        said = list(self._odd)
        pairs = {request.texts(index) for index in range(request.count)}
        if any(negative for _, negative in pairs) and not (family.second_call or request.true_cfg > 1):
            said.append("The negative prompt has no effect: this base takes no second call for guidance.")
        if request.clip_skip > 1 and not family.clip_layers:
            said.append("Clip skip has no effect: of CLIP this base reads the pooled vector alone.")
        with also_known(family, self._words):
            for name, side in (("prompt", 0), ("negative prompt", 1)):
                plans = [parse(pair[side], composed=not side) for pair in pairs]
                cut = max(self._encoder.cut(plan, request.steps) for plan in plans)
                if cut:
                    said.append(
                        f"The last {cut} tokens of the {name} are beyond what the text encoder reads."
                    )
        return said

    def _check_shares(self, plan: PromptPlan) -> None:
        total = sum(part.weight for part in plan.parts)
        if len(plan.parts) > 1 and not self._family.second_call and total <= 0:
            wrong = f"its parts joined by AND have shares that add up to {total:g}"
            do = "this base draws without a negative prompt: let them add up to more than 0"
            raise BadInput("prompt", wrong, do)


def batches(indices: list[int], most: int, same: Callable[[int], Any]) -> list[list[int]]:
    """Indices in batches of at most so many, one after the other, of which `same` says the same."""
    made: list[list[int]] = []
    for index in indices:
        if made and len(made[-1]) < most and same(made[-1][0]) == same(index):
            made[-1].append(index)
        else:
            made.append([index])
    return made


def _fitting(family: Family, embeddings: Sequence[TaskEmbedding]) -> tuple[Vectors, list[str]]:
    """Vectors by word and text encoder, and a sentence for each embedding that is for another base."""
    widths = {name: embedding_of(family.part(name)).embedding_dim for name in clip_encoders(family)}
    words: dict[str, dict[str, torch.Tensor]] = {}
    odd: list[str] = []
    for item in embeddings:
        rows = read_embedding(Path(item.path))
        if {name: value.shape[1] for name, value in rows.items()} == widths:
            words[item.word] = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in rows.items()}
            continue
        theirs = " and ".join(str(value.shape[1]) for value in rows.values())
        ours = " and ".join(str(width) for width in widths.values())
        odd.append(
            f"Embedding {item.word} is for another base (vectors of {theirs} values, not {ours}): "
            "it was read as a plain word."
        )
    return words, odd
