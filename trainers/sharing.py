"""A frozen base that the processes of a run hold together: each has a share of its blocks' weights (FSDP).

Torch's FSDP2 (`fully_shard`; Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277) cuts the weights of each
repeated block along their first dimension, one piece a process. A block is made whole on all of them by one
all-gather before it computes, and let go of after it, on the way there and on the way back; the next one
comes meanwhile. Frozen weights have no gradients, so nothing is reduced or scattered. What learns stays whole
on every process, and is averaged as without sharing. No number changes, but that gradients are added in
another order where several blocks read the same values, at the skips of a UNet.

Every pass needs all processes: they run the same passes in the same order (`loop.passes`), previews and the
probe included.
"""

import re
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from registry.errors import StudioError

if TYPE_CHECKING:
    from accelerate import Accelerator

# The innermost of what is repeated: transformer_blocks.3, down_blocks.0.resnets.1
_BLOCK = re.compile(r"(^|[._])(blocks|resnets)\.\d+$")


def share_part(part: nn.Module, learning: Iterable[nn.Parameter], device: torch.device) -> None:
    """Keep this process's share of a part's blocks on `device`, and all else of the part whole.

    Call it on all processes, after adapters were attached and before weights are asked for otherwise. One
    block at a time is whole on the device meanwhile.

    Args:
        part: In the main memory.
        learning: Parameters that stay whole: what learns, and what is saved beside it.
        device: Where it computes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Nothing writes into what a block returned; FLUX.1's return views, and torch warns of what that could do.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view")
    whole, mesh = set(learning), init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in list(blocks(part)):
        fully_shard(block, mesh=mesh, ignored_params=whole)
    rest = {parameter for parameter in part.parameters() if not _is_shared(parameter)}
    for tensor in (*rest, *part.buffers()):
        tensor.data = tensor.data.to(device)
    # Around all: the blocks know their order by it, and the next one is asked for while one computes.
    fully_shard(part, mesh=mesh, ignored_params=rest)


@contextmanager
def in_turn(accelerator: "Accelerator") -> Generator[None]:
    """The block by one process after the other, so that the main memory holds one base at a time.

    Raises:
        StudioError: what one process raised there, on all of them: none goes on without it.
    """
    from accelerate.utils import broadcast_object_list

    for turn in range(accelerator.num_processes):
        fault: StudioError | None = None
        if turn == accelerator.process_index:
            try:
                yield
            except StudioError as error:
                fault = error
        (fault,) = broadcast_object_list([fault], from_process=turn)  # the others wait here
        if fault is not None:
            raise fault


def blocks(part: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a part, innermost ones only."""
    paths = {path: module for path, module in part.named_modules() if _BLOCK.search(path)}
    for path, module in paths.items():
        if not any(other.startswith(f"{path}.") for other in paths):
            yield module


def held_bytes(part: nn.Module) -> int:
    """Bytes of the frozen weights of a part's blocks that lie in this process."""
    frozen = {p for block in blocks(part) for p in block.parameters() if not p.requires_grad}
    return sum(_local(parameter).untyped_storage().nbytes() for parameter in frozen)


def _is_shared(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "to_local")  # a DTensor; to import that costs more than to ask


def _local(parameter: Any) -> Tensor:
    return parameter.to_local() if _is_shared(parameter) else parameter


T = TypeVar("T")


@dataclass(frozen=True)
class Together:
    """What processes that share a base have to agree on, for none may make a pass alone.

    Args:
        writes: Whether this is the first process, whose word counts.
        shared: Whether they share the base at all; where not, each goes its own way.
    """

    writes: bool = True
    shared: bool = False

    def agreed(self, word: Any) -> Any:
        """What the first process says; any value that can be pickled."""
        if not self.shared:
            return word
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([word])[0]

    def alone(self, work: Callable[[], T], failed: Callable[[Exception], None]) -> T | None:
        """The outcome of what the first process does without the base; None on the others.

        Where the base is shared, a failure is told and does not keep it from the passes that follow.
        """
        if not self.writes:
            return None
        try:
            return work()
        except Exception as error:
            if not self.shared:
                raise
            failed(error)
            return None


APART = Together()
