"""Which of torch's kernels run on a GPU, what is compiled, how memory is kept on a CPU: for training and
drawing alike."""

import ctypes
import sys
from functools import lru_cache

import torch
from torch import Tensor, nn

REPEATED = (
    "BasicTransformerBlock",
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
    "JointTransformerBlock",
)
SHORT = 200  # characters of a compiler's complaint
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc


def settle_kernels() -> None:
    """Attention by the flash and memory-saving kernels, never by cuDNN's; costs nothing without a GPU.

    cuDNN's ended a FLUX.1 step (4,608 tokens, heads of 128, bf16) in an illegal memory access on an H100 with
    torch 2.11, which no program can catch: the process has to go, and the run with it.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def keep_memory() -> None:
    """Freed memory stays with the process, up to 256 MiB of it, for the next step of a training on the CPU.

    By default glibc hands every larger piece back to the system and takes it anew, page by page: 1,700 page
    faults in each step on the pocket base, 4 % of its time. Does nothing where the C library is another one
    (mallopt(3)).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most it takes: larger tensors go their own way
        mallopt(M_TRIM_THRESHOLD, 256 << 20)
        mallopt(M_TOP_PAD, 64 << 20)


def repeated(denoiser: nn.Module) -> list[nn.Module]:
    """Blocks of which it has many, alike but for their weights."""
    return [module for module in denoiser.modules() if type(module).__name__ in REPEATED]


@lru_cache
def why_not(device: torch.device) -> str:
    """What keeps torch from compiling; "" = nothing. Tried on one small function, which takes seconds."""
    try:
        torch.compile(_one_more, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # noqa: BLE001  a compiler can fail in any way, and nobody depends on it
        return f"torch cannot compile on this machine ({in_short(error)})"
    return ""


def in_short(error: BaseException) -> str:
    """The first line of a compiler's complaint."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:SHORT].rstrip(". ")


def _one_more(x: Tensor) -> Tensor:
    return x + 1
