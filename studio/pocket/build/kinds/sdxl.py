"""`pocket-xl`: Stable Diffusion XL. Two CLIPs, a UNet that is told the picture's size and crop, epsilon."""

from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor

from studio.pocket.build.kinds.base import EMPTY_CAPTIONS, DiffusionKind, Material, draw_common
from studio.pocket.build.networks import (
    LATENT_SIDE,
    NORM_GROUPS,
    Network,
    make_clip,
    make_diffusion_scheduler,
)
from studio.pocket.build.replay import Inputs
from studio.pocket.build.tokenizer import make_tokenizer
from studio.pocket.render import SIDE

FIRST, SECOND = 64, 96  # widths of the text encoders
TIME_WIDTH = 16  # of each of the six numbers
OTHER_SIZES = 0.3  # share of pictures with another size or crop than their own
LARGEST, FARTHEST = 1024, 64  # pixels of such sizes and crops


class PocketSDXL(DiffusionKind):
    """Attention below the first level only, deeper further down, as in SDXL; 3 million parameters.

    Sizes and crops that it is told mostly are those of the pictures, (64, 64) and (0, 0), and else drawn by
    chance and mean nothing: larger originals look no different here, and training sets will have such.
    """

    peak_lr: ClassVar[float] = 1.5e-3

    def __init__(self) -> None:
        self.tokenizers = {"tokenizer": make_tokenizer(), "tokenizer_2": make_tokenizer(pad_token="!")}
        first, second = self.tokenizers.values()
        self.models = {
            "unet": make_unet(),
            "text_encoder": make_clip(first, FIRST, 3),
            "text_encoder_2": make_clip(second, SECOND, 3, projected=True, activation="gelu"),
        }

    def draw(self, material: Material, batch: int, generator: torch.Generator) -> Inputs:
        """As `pocket`, with "time_ids" (B, 6) and "heard" (B,): 0 where zeros stand for no caption."""
        device = material.latents.device
        share = torch.full((batch,), EMPTY_CAPTIONS / 2, device=device)
        drawn = draw_common(material, batch, generator, share)
        # Guidance starts from zeros or from the empty caption, depending on the program: both are trained.
        heard = torch.rand(batch, generator=generator, device=device) >= EMPTY_CAPTIONS / 2
        own = torch.tensor([SIDE, SIDE, 0, 0, SIDE, SIDE], device=device, dtype=torch.float32)
        numbers = torch.rand(batch, 4, generator=generator, device=device)
        sizes, crops = SIDE + numbers[:, :2] * (LARGEST - SIDE), numbers[:, 2:] * FARTHEST
        other = torch.cat([sizes, crops, own[4:].expand(batch, 2)], dim=1).round()
        moved = torch.rand(batch, 1, generator=generator, device=device) < OTHER_SIZES
        return {**drawn, "heard": heard.float(), "time_ids": torch.where(moved, other, own)}

    def loss(self, inputs: Inputs) -> Tensor:
        """Weighted error of the noise."""
        noisy, t = self.noisy(inputs)
        first = self.models["text_encoder"](inputs["ids"], output_hidden_states=True)
        second = self.models["text_encoder_2"](inputs["ids_2"], output_hidden_states=True)
        heard = inputs["heard"][:, None]
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1) * heard[..., None]
        added = {"text_embeds": second[0] * heard, "time_ids": inputs["time_ids"]}
        said = self.models["unet"](noisy, t, hidden, added_cond_kwargs=added, return_dict=False)
        return self.weighted(said[0], inputs, t)

    def pipeline(self, vae: Network, models: dict[str, Network]) -> StableDiffusionXLPipeline:
        """Guidance starts from zeros, as with the published base."""
        parts: dict[str, Any] = {
            **models,
            **self.tokenizers,
            "vae": vae,
            "scheduler": make_diffusion_scheduler(),
            "force_zeros_for_empty_prompt": True,
            "add_watermarker": False,
        }
        return StableDiffusionXLPipeline(**parts)


def make_unet() -> Network:
    """UNet on (B, 4, 16, 16)."""
    settings: dict[str, Any] = {
        "sample_size": LATENT_SIDE,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (32, 64, 96),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": FIRST + SECOND,
        "attention_head_dim": (1, 2, 3),  # heads per level, whatever it is called
        "use_linear_projection": True,
        "norm_num_groups": NORM_GROUPS,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_WIDTH,
        "projection_class_embeddings_input_dim": SECOND + 6 * TIME_WIDTH,
    }
    return UNet2DConditionModel(**settings)
