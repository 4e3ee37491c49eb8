"""Gradient checkpointing of all blocks or of a share: activations are computed again on the way back.

Which blocks is counted out in the order of their first call, spread evenly, so a share of the blocks saves
about that share of the memory for that share of the time: no more than is needed has to be paid. To keep
single operations of a block instead (attention's outputs) would save a little more for the same memory, and
puts Python between all others: docs/log.md.
"""

from math import ceil
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from trainers.families.base import Family
    from trainers.methods import Trainables


class Checkpointed:
    """What diffusers' models call in place of their blocks.

    Args:
        share: Of the blocks that are computed again, above 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._places: dict[nn.Module, int] = {}  # in the order of their first call

    def __call__(self, block: nn.Module, *args: Any) -> Any:
        """The block's result."""
        if not self.chosen(self._places.setdefault(block, len(self._places))):
            return block(*args)
        # Without dropout a block draws nothing, and no random state has to be put back.
        return checkpoint(block.__call__, *args, use_reentrant=False, preserve_rng_state=block.training)

    def chosen(self, place: int) -> bool:
        """Whether the block in that place is one of the share; the first always is."""
        return ceil((place + 1) * self.share) > ceil(place * self.share)


def enable_checkpointing(family: "Family", trainables: "Trainables", share: float = 1.0) -> None:
    """Compute activations of a share of the denoiser's blocks again; of text encoders that learn, of all."""
    denoiser: Any = family.denoiser
    denoiser.enable_gradient_checkpointing(Checkpointed(share))
    for name in trainables.components:
        if name != family.denoiser_name:
            family.part(name).gradient_checkpointing_enable({"use_reentrant": False})
            family.part(name).train()
