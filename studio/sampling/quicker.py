"""Two ways for a denoiser to compute the same in another order, off unless a request asks for one.

    channels_last   the channels of a pixel lie side by side (UNets: transformers have no convolutions)
    compiled        its repeated blocks are compiled, once for all of a kind (regional compile)

Sums are rounded in another order, so pictures differ by a level here and there: each says which way it was.
Compiled blocks do not see what adapters do (see `layers.adapt`), so switching them compiles nothing anew.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from trainers.kernels import repeated, why_not

if TYPE_CHECKING:
    from studio.sampling.stack import AdapterStack
    from trainers.families.base import Family

Speed = Literal["plain", "channels_last", "compiled"]


def quicken(
    family: "Family", stack: "AdapterStack", speed: Speed, *, backend: str | Callable[..., Any] = "inductor"
) -> tuple[Speed, str]:
    """Have the denoiser compute in this way, until another is asked for.

    Args:
        family: A loaded base.
        stack: Its adapters.
        speed: The way.
        backend: Of torch's compiler; another one in tests.

    Returns:
        The way that is taken, and one line why it is not the one that was asked for.
    """
    denoiser = family.denoiser
    said = ""
    if speed == "channels_last" and not has_convolutions(denoiser):
        speed, said = "plain", "channels_last has no effect: this base has no convolutions in its blocks."
    if speed == "compiled" and backend == "inductor" and (fault := why_not(family.device)):
        speed, said = "plain", f"Drawn without compiling: {fault}."
    laid = torch.channels_last if speed == "channels_last" else torch.contiguous_format
    if has_convolutions(denoiser):
        denoiser.to(memory_format=laid)  # pyright: ignore[reportCallIssue, reportUnknownMemberType]
    for block in repeated(denoiser):
        block._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage]  it has no public undoing
        if speed == "compiled":
            block.compile(backend=backend)
    stack.stand_ready(repeated(denoiser) if speed == "compiled" else [])
    return speed, said


def has_convolutions(denoiser: nn.Module) -> bool:
    """Whether it is a UNet; transformers have one convolution at most, which reads the latents."""
    return sum(isinstance(module, nn.Conv2d) for module in denoiser.modules()) > 1
