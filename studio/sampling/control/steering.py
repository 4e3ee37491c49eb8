"""What the networks say is added within the denoiser, at each step of a pass, for as long as they act.

Proven equal to diffusers' pipelines. Two things differ on purpose: networks that read latents (SD3.5, FLUX.1)
get the mean of the VAE's distribution instead of a sample of it, so that a picture depends on its seed alone;
and networks with different numbers of blocks add up block by block.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from studio.sampling.control.nets import Net
from studio.sampling.painting import Pass
from trainers.families.base import Family
from trainers.families.flux1 import pack, positions
from trainers.families.sdxl import time_ids
from trainers.guidance import Guided, Question


@dataclass(frozen=True)
class Steer:
    """One network with its map.

    Args:
        net: The network.
        map: RGB, of the drawing's size.
        hole: White where the map says nothing (inpaint); None = nowhere.
        weight: What its residuals are multiplied with.
        start: From this part of the steps on, 0 to 1.
        end: Up to this part.
        guess: Only the half with the prompt is steered, weaker in the outer blocks (guess mode; UNets).
    """

    net: Net
    map: Image.Image
    hole: Image.Image | None = None
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess: bool = False

    def acts(self, number: int, total: int) -> bool:
        """Whether it acts at step `number` of `total`."""
        return self.weight != 0 and number / total >= self.start and (number + 1) / total <= self.end


class Control:
    """The `Change` of a pass that networks steer.

    Args:
        steers: The networks.
    """

    def __init__(self, steers: Sequence[Steer]) -> None:
        self._steers = steers

    def begin(self, work: Pass) -> None:
        """Prepare the maps for this pass's denoiser; start and end are parts of its steps."""
        self._guided, self._scheduler, self._total = work.guided, work.scheduler, len(work.timesteps)
        self._asked = [(steer, _reader(steer, work.guided)) for steer in self._steers]

    @torch.no_grad()
    def before(self, number: int, t: Tensor, x: Tensor) -> Mapping[str, Any]:
        """Residuals of all networks that act at this step; none = {}."""
        acting = [(s, read) for s, read in self._asked if s.acts(number, self._total)]
        if not acting:
            return {}
        question = self._guided.question(self._scheduler, x, t, number)
        summed: dict[str, Any] = {}
        for _, read in acting:
            for key, value in read(question).items():
                summed[key] = _sum(summed[key], value) if key in summed else value
        return summed

    def after(self, number: int, t_next: Tensor | None, x: Tensor) -> Tensor:
        """Nothing changes after a step."""
        del number, t_next
        return x


def _sum(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor):
        return first + second
    return [one + other for one, other in zip(first, second, strict=True)]


Reader = Callable[[Question], dict[str, Any]]


@torch.no_grad()
def _reader(steer: Steer, guided: Guided) -> Reader:
    """How a network of this class is asked; its map is prepared once."""
    return _READERS[type(steer.net.model).__name__](steer, guided)


def _controlnet(steer: Steer, guided: Guided) -> Reader:
    """ControlNet (Zhang et al. 2023, arXiv:2302.05543): half a UNet; also a union of several."""
    model, family = steer.net.model, guided.family
    union = type(model).__name__ == "ControlNetUnionModel"
    # A network that pools over the picture (shuffle) says nothing of places: diffusers steers one half only.
    guess = steer.guess or bool(model.config.global_pool_conditions)
    shown = map_pixels(steer, family)

    def read(question: Question) -> dict[str, Any]:
        half = guess and question.against
        mine = question.with_prompt if half else slice(None)
        hidden = question.cond["hidden"][mine].to(family.dtype)
        options: dict[str, Any] = {"conditioning_scale": float(steer.weight), "guess_mode": guess}
        cond: Any = shown.expand(len(hidden), -1, -1, -1)
        if model.config.addition_embed_type == "text_time":
            times = time_ids(question.geometry[mine]).to(hidden.device)
            options["added_cond_kwargs"] = {
                "text_embeds": question.cond["pooled"][mine].to(family.dtype), "time_ids": times,
            }  # fmt: skip
        if union:
            mode = steer.net.mode or 0
            options["control_type_idx"] = [mode]
            types = hidden.new_zeros(len(hidden), int(model.config.num_control_type))
            types[:, mode] = 1
            options["control_type"] = types
            cond = [cond]
        x_t = question.x_t[mine, : int(model.config.in_channels)].to(family.dtype)
        down, middle = model(
            x_t,
            question.time[mine],
            encoder_hidden_states=hidden,
            controlnet_cond=cond,
            return_dict=False,
            **options,
        )
        if half:
            rest = question.with_prompt.start
            down = [torch.cat([torch.zeros_like(value[:rest]), value]) for value in down]
            middle = torch.cat([torch.zeros_like(middle[:rest]), middle])
        return {"down_block_additional_residuals": list(down), "mid_block_additional_residual": middle}

    return read


def _adapter(steer: Steer, guided: Guided) -> Reader:
    """T2I-Adapter (Mou et al. 2023, arXiv:2302.08453): reads the map once, whatever the step."""
    shown = map_pixels(steer, guided.family)
    if int(steer.net.model.config.in_channels) == 1:
        shown = shown.mean(dim=1, keepdim=True)
    features = [feature * steer.weight for feature in steer.net.model(shown)]

    def read(question: Question) -> dict[str, Any]:
        rows = len(question.x_t)
        return {"down_intrablock_additional_residuals": [f.repeat(rows, 1, 1, 1) for f in features]}

    return read


def _sd3(steer: Steer, guided: Guided) -> Reader:
    """SD3's ControlNets: InstantX' (zeros for the pooled text) and Stability's own (without any text)."""
    family, model, config = guided.family, steer.net.model, steer.net.model.config
    denoiser: Any = family.denoiser
    silent = bool(config.force_zeros_for_pooled_projection)
    wordless = config.joint_attention_dim is None
    blocks = len(denoiser.transformer_blocks)
    pixels = map_pixels(steer, family) * 2 - 1
    if wordless and steer.net.kind == "canny":
        pixels = (pixels + 1) / 2 * 127.5 + 0.5  # as Stability's canny network was trained
    latents = _latents(pixels, family)
    if silent:
        latents = latents + _shift(family)  # InstantX trained on latents that were scaled, but not shifted

    def read(question: Question) -> dict[str, Any]:
        x_t = question.x_t.to(family.dtype)
        pooled = question.cond["pooled"].to(family.dtype)
        samples = model(
            hidden_states=x_t,
            timestep=question.time * 1000,
            encoder_hidden_states=None if wordless else question.cond["hidden"].to(family.dtype),
            pooled_projections=torch.zeros_like(pooled) if silent else pooled,
            controlnet_cond=latents.expand(len(x_t), -1, -1, -1),
            conditioning_scale=steer.weight,
            return_dict=False,
        )[0]
        return {"block_controlnet_hidden_states": _spread(samples, blocks, len(samples) / blocks)}

    return read


def _flux(steer: Steer, guided: Guided) -> Reader:
    """FLUX.1's ControlNets: InstantX' (latents; also unions), XLabs' (pixels; repeated over the blocks)."""
    family, model = guided.family, steer.net.model
    denoiser: Any = family.denoiser
    hint = model.input_hint_block is not None
    pixels = map_pixels(steer, family) * 2 - 1
    shown = pixels if hint else pack(_latents(pixels, family))
    double, single = len(denoiser.transformer_blocks), len(denoiser.single_transformer_blocks)

    def read(question: Question) -> dict[str, Any]:
        rows, (height, width) = len(question.x_t), question.x_t.shape[-2:]
        hidden = question.cond["hidden"].to(family.dtype)
        options: dict[str, Any] = {}
        if model.union:
            mode = steer.net.mode or 0
            options["controlnet_mode"] = torch.full((rows, 1), mode, device=hidden.device, dtype=torch.long)
        guidance = None
        if model.config.guidance_embeds:  # the base may have no such input, as schnell
            guidance = torch.full((rows,), guided.scale, device=hidden.device)
        many, few = model(
            hidden_states=pack(question.x_t.to(family.dtype)),
            controlnet_cond=shown.expand(rows, *(-1 for _ in shown.shape[1:])),
            conditioning_scale=steer.weight,
            timestep=question.time,
            guidance=guidance,
            pooled_projections=question.cond["pooled"].to(family.dtype),
            encoder_hidden_states=hidden,
            txt_ids=hidden.new_zeros(hidden.shape[1], 3),
            img_ids=positions(height // 2, width // 2, hidden.device),
            return_dict=False,
            **options,
        )
        said: dict[str, Any] = {}
        if many is not None:
            said["controlnet_block_samples"] = (
                [many[index % len(many)] for index in range(double)] if hint else _steps(many, double)
            )
        if few is not None:
            said["controlnet_single_block_samples"] = _steps(few, single)
        return said

    return read


_READERS: dict[str, Callable[[Steer, Guided], Reader]] = {
    "ControlNetModel": _controlnet,
    "ControlNetUnionModel": _controlnet,
    "SD3ControlNetModel": _sd3,
    "FluxControlNetModel": _flux,
    "T2IAdapter": _adapter,
}


def _spread(samples: Sequence[Tensor], blocks: int, share: float) -> list[Tensor]:
    """One for each block: block i gets sample i * share, as SD3's transformer spreads them."""
    return [samples[int(index * share)] for index in range(blocks)]


def _steps(samples: Sequence[Tensor], blocks: int) -> list[Tensor]:
    """One for each block: whole runs of blocks share a sample, as FLUX.1's transformer spreads them."""
    run = int(np.ceil(blocks / len(samples)))
    return [samples[index // run] for index in range(blocks)]


def map_pixels(steer: Steer, family: Family) -> Tensor:
    """(1, 3, H, W) in [0, 1]; -1 where the hole is."""
    values = torch.from_numpy(np.array(steer.map.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    if steer.hole is not None:
        white = torch.from_numpy(np.array(steer.hole.convert("L")))[None, None] >= 128
        values = torch.where(white, -1.0, values)
    return values.to(family.device, family.dtype)


def _latents(pixels: Tensor, family: Family) -> Tensor:
    """(1, C, h, w) scaled latents of pixels in [-1, 1]: the mean of the VAE's distribution."""
    mean, _ = family.encode_image(pixels)
    return mean.to(family.dtype)


def _shift(family: Family) -> float:
    """What scaled latents are short of unshifted ones."""
    config = family.config("vae")
    return float(config.get("shift_factor") or 0.0) * float(config["scaling_factor"])
