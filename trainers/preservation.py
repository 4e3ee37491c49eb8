"""Base-prediction preservation: the base itself says what it should keep predicting.

No class pictures are needed. A batch of B pictures gets rows that show the same latents under the class's
caption, with noise of their own. Their target is what the base, with the adapter switched off, predicts on
the same x_t:

    loss = mean error of the pictures + weight * mean ||adapted(x_t, class) - base(x_t, class)||^2

The second term is prior preservation (Ruiz et al. 2022, "DreamBooth", eq. 2) with the base in the place of
pictures drawn by it: distillation (Li and Hoiem 2016, "Learning without Forgetting"), as OneTrainer's "prior
prediction" and ai-toolkit's "differential output preservation" do it.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainers.priors import class_caption
from trainers.recipe_dreambooth import PreservationSection

if TYPE_CHECKING:
    from trainers.data import Batch, Conditioning
    from trainers.families.base import Family
    from trainers.methods import Trainables


@dataclass(frozen=True)
class PriorRows:
    """Adds the rows to batches.

    Args:
        section: The preservation section of the recipe, mode base_prediction.
        taught: The words that are taught, see `priors.taught_words`.
        conditioning: Captions -> batched tensors, as for the batch itself.
    """

    section: PreservationSection
    taught: Sequence[str]
    conditioning: "Callable[[list[str]], Conditioning]"

    def added(self, batch: "Batch", roles: Sequence[str]) -> "Batch":
        """`batch` with `section.rows` more rows for each of its instances; (B,) becomes (B + n,).

        The loop takes the mean over all rows. Weights are scaled so that it is the sum of the two means, and
        instances learn as fast as without preservation.

        Args:
            batch: B rows.
            roles: Of its B pictures; priors among them get no rows.
        """
        chosen = [row for row, role in enumerate(roles) if not role] * self.section.rows
        if not chosen:
            return batch
        count, size = len(chosen), len(roles)
        rows = torch.tensor([*range(size), *chosen])
        captions = [
            class_caption(batch.captions[row], self.taught, self.section.class_prompt) for row in chosen
        ]
        cond = self.conditioning(captions)
        scale = torch.full((size + count,), (size + count) / size)
        scale[size:] = self.section.loss_weight * (size + count) / count
        return replace(
            select(batch, rows),
            cond={key: torch.cat([value, cond[key]]) for key, value in batch.cond.items()},
            weight=batch.weight[rows] * scale,
            captions=[*batch.captions, *captions],
            mask=_open_mask(batch.mask, count),
            from_base=torch.arange(size + count) >= size,
        )


def _open_mask(mask: Tensor | None, count: int) -> Tensor | None:
    """Masks say what is learned of a picture; what is kept is kept everywhere."""
    return None if mask is None else torch.cat([mask, torch.ones_like(mask[:1]).expand(count, -1, -1, -1)])


def select(batch: "Batch", rows: Tensor) -> "Batch":
    """The rows of a batch, in the order of `rows` (N,) int64 on the CPU; all with a batch axis follows."""
    size, index = len(batch.captions), rows.tolist()

    def pick(value: object) -> object:
        if isinstance(value, Tensor) and value.ndim and len(value) == size:
            return value.index_select(0, rows.to(value.device))
        if isinstance(value, list) and len(value) == size:
            return [value[row] for row in index]
        if isinstance(value, dict):
            return {key: pick(item) for key, item in value.items()}
        return value

    return replace(batch, **{name: pick(value) for name, value in vars(batch).items()})


@dataclass(frozen=True)
class BasePrediction:
    """Asks the base below the adapter.

    Args:
        family: With the adapter attached.
        trainables: Can be switched off.
        always: Ask also where no row is marked: other processes that share the base may have one.
    """

    family: "Family"
    trainables: "Trainables"
    always: bool = False

    @torch.no_grad()
    def into(self, target: Tensor, batch: "Batch", x_t: Tensor, t: Tensor) -> Tensor:
        """`target` (B, C, h, w) with the base's prediction in the rows that `batch.from_base` marks.

        Text encoders that are trained are switched off too. In eval mode: draws no random number. Call it
        before the forward pass that keeps its activations, so that their peaks do not add up.
        """
        marked = batch.from_base
        rows = torch.zeros(0, dtype=torch.long) if marked is None else marked.nonzero().flatten()
        if not len(rows) and not self.always:  # a piece of a batch may have none
            return target
        asked = rows if len(rows) else torch.zeros(1, dtype=torch.long)
        part, at = select(batch, asked), asked.to(x_t.device)
        training = any(module.training for module in self.trainables.components.values())
        with self.trainables.disabled(), self.trainables.evaluating() if training else nullcontext():
            cond = self.family.conditioning(part.cond)
            base = self.family.predict(x_t[at], t[at], cond, part.geometry)
        return target.index_copy(0, at, base.to(target.dtype)) if len(rows) else target
