"""Two ways for a denoiser to compute the same in another order, off unless a request asks for one.

    channels_last   the channels of a pixel lie side by side (UNets: transformers have no convolutions)
    compiled        its repeated blocks are compiled, once for all of a kind (regional compile)

Sums are rounded in another order, so pictures differ by a level here and there: each says which way it was.
Compiled blocks do not see what adapters do (see `layers.adapt`), so switching them compiles nothing anew.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from studio.sampling.stack import AdapterStack
    from trainers.families.base import Family

Speed = Literal["plain", "channels_last", "compiled"]
REPEATED = (
    "BasicTransformerBlock",
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
    "JointTransformerBlock",
)
SHORT = 200  # characters of a compiler's complaint


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


def repeated(denoiser: nn.Module) -> list[nn.Module]:
    """Blocks of which it has many, alike but for their weights."""
    return [module for module in denoiser.modules() if type(module).__name__ in REPEATED]


def has_convolutions(denoiser: nn.Module) -> bool:
    """Whether it is a UNet; transformers have one convolution at most, which reads the latents."""
    return sum(isinstance(module, nn.Conv2d) for module in denoiser.modules()) > 1


@lru_cache
def why_not(device: torch.device) -> str:
    """What keeps torch from compiling; "" = nothing. Tried on one small function, which takes seconds."""
    try:
        torch.compile(_one_more, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # noqa: BLE001  a compiler can fail in any way, and pictures do not need it
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:SHORT].rstrip(". ")
        return f"torch cannot compile on this machine ({said})"
    return ""


def _one_more(x: Tensor) -> Tensor:
    return x + 1
