"""How a base lies in memory: all on the device, in small pieces, or waiting in the main memory for its turn.

`choose` and `settle` decide by a stated fit and import nothing heavy to do so; `arrange` does it, with the
hooks of accelerate and diffusers. Quick to slow: fast, slicing, model, group, sequential.
"""

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch

from trainers.fitting import BY_ITSELF
from trainers.stored import ROUNDED, Precision, bytes_saved

if TYPE_CHECKING:
    from trainers.families.base import Family

Mode = Literal["fast", "slicing", "model", "sequential", "group"]
Sizes = Mapping[Precision, Mapping[str, int]]  # bytes of each part, by how its weights are kept
RESIDENT = ("fast", "slicing")  # all parts stay on the device
QUICK = (*RESIDENT, "model")  # nothing comes and goes within a step
# Peak of the VAE's decoder in fp32: some tensors of 128 to 256 channels at full size.
DECODE_BYTES = 3500  # for each pixel
TILE_PIXELS = 512 * 512  # a tiled decoder never has more at once
STEP_BYTES = 400  # activations of a denoiser for each pixel, fused attention, two rows
BLOCK_SHARE = 0.1  # of the denoiser: the largest block and the next one, in group offload


def choose(
    wanted: str, parts: Mapping[str, int], needed: tuple[int, int], free: int, *, on_cpu: bool = False
) -> Mode:
    """The quickest mode that fits, unless the request names one.

    Args:
        wanted: "auto" or a mode.
        parts: Bytes of each part of the base.
        needed: Bytes that computing takes beside the weights: in one piece, and in small pieces.
        free: Bytes of the device that may be used.
        on_cpu: There is no second memory to wait in, and pieces would draw another picture on a busy day.
    """
    if wanted != "auto":
        return wanted  # pyright: ignore[reportReturnType]  the request's field has just these values
    whole, pieces = needed
    weights, largest = sum(parts.values()), max(parts.values(), default=0)
    if on_cpu or weights + whole <= free:
        return "fast"
    if weights + pieces <= free:
        return "slicing"
    if largest + pieces <= free:
        return "model"
    return "group" if BLOCK_SHARE * largest + pieces <= free else "sequential"


def settle(
    memory: str, precision: str, sizes: Sizes, needed: tuple[int, int], free: int, *, on_cpu: bool = False
) -> tuple[Mode, Precision]:
    """How a base lies, and how its weights are kept.

    Weights are rounded when the request says so; else only when `memory` is left open as well, nothing quick
    fits whole, and something quick fits rounded: then as finely as that allows.

    Args:
        memory: "auto" or a mode.
        precision: "auto" or how the weights are kept.
        sizes: Bytes of each part, for each way to keep the weights.
        needed: As `choose` takes it.
        free: Likewise.
        on_cpu: Likewise.
    """
    if precision in sizes:
        kept: Precision = precision  # pyright: ignore[reportAssignmentType]  one of its keys
        return choose(memory, sizes[kept], needed, free, on_cpu=on_cpu), kept
    mode = choose(memory, sizes["whole"], needed, free, on_cpu=on_cpu)
    if memory != "auto" or mode in QUICK:
        return mode, "whole"
    for kept in BY_ITSELF:
        quick = choose(memory, sizes[kept], needed, free)
        if quick in QUICK:
            return quick, kept
    return mode, "whole"


def needed_bytes(pixels: int) -> tuple[int, int]:
    """Bytes to draw and decode a picture of so many pixels: in one piece, and in small pieces."""
    step = STEP_BYTES * pixels
    return max(step, DECODE_BYTES * pixels), max(step, DECODE_BYTES * min(pixels, TILE_PIXELS))


def bytes_of(family: "Family") -> dict[str, int]:
    """Bytes of each part with weights, as it is; loads what is not loaded."""
    return {
        name: sum(p.numel() * p.element_size() for p in chain(part.parameters(), part.buffers()))
        for name, part in _parts(family).items()
    }


def sizes_of(family: "Family") -> Sizes:
    """Bytes of each part of a base that is whole, and what they would be."""
    sizes: dict[Precision, Mapping[str, int]] = {"whole": bytes_of(family)}
    for kept in ROUNDED:
        saved = bytes_saved(family, kept)
        sizes[kept] = {name: size - saved.get(name, 0) for name, size in sizes["whole"].items()}
    return sizes


def free_bytes(device: torch.device) -> int:
    """Bytes that could be taken, those included that torch keeps for reuse."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    import psutil

    return int(psutil.virtual_memory().available)


def arrange(family: "Family", mode: Mode) -> None:
    """Put the parts of a freshly loaded base where `mode` has them; done once for each base."""
    parts = _parts(family)
    if mode != "fast":
        in_pieces(family, True)
    if mode in RESIDENT:
        family.home = family.device
        for part in parts.values():
            part.to(family.device)
    elif mode == "model":
        _one_at_a_time(list(parts.values()), family.device)
    elif mode == "sequential":
        from accelerate import cpu_offload

        for part in parts.values():
            cpu_offload(part, family.device, offload_buffers=True)
    else:
        _in_groups(family, parts)


def in_pieces(family: "Family", on: bool) -> None:
    """Attention and the VAE in small pieces, or in one; costs nothing to change."""
    vae: Any = family.part("vae")
    denoiser: Any = family.denoiser
    (vae.enable_slicing if on else vae.disable_slicing)()
    (vae.enable_tiling if on else vae.disable_tiling)()
    if hasattr(denoiser, "set_attention_slice"):  # UNets; transformers have none
        denoiser.set_attention_slice("auto" if on else None)


def _parts(family: "Family") -> dict[str, Any]:
    """In the order in which they are used."""
    return {
        **family.text_encoders, family.denoiser_name: family.denoiser, "vae": family.part("vae")
    }  # fmt: skip


def _one_at_a_time(parts: list[Any], device: torch.device) -> None:
    """Each part comes to the device when it is called and sends the one before it away."""
    from accelerate import cpu_offload_with_hook

    hook: Any = None
    for part in parts:
        _, hook = cpu_offload_with_hook(part, device, prev_module_hook=hook)


def _in_groups(family: "Family", parts: Mapping[str, Any]) -> None:
    from diffusers.hooks import apply_group_offloading

    for name, part in parts.items():
        options: dict[str, Any] = {"offload_type": "leaf_level"}
        if name == family.denoiser_name:
            options = {"offload_type": "block_level", "num_blocks_per_group": 1}
        apply_group_offloading(
            part, onload_device=family.device, offload_device=torch.device("cpu"), **options
        )
