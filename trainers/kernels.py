"""Which of torch's kernels run on a GPU: for training and for drawing alike."""

import torch


def settle_kernels() -> None:
    """Attention by the flash and memory-saving kernels, never by cuDNN's; costs nothing without a GPU.

    cuDNN's ended a FLUX.1 step (4,608 tokens, heads of 128, bf16) in an illegal memory access on an H100 with
    torch 2.11, which no program can catch: the process has to go, and the run with it.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
