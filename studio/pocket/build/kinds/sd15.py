"""`pocket`: Stable Diffusion 1.5. One CLIP, a UNet, epsilon."""

from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
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

TEXT_WIDTH = 96


class PocketSD15(DiffusionKind):
    """UNet of 2.2 million parameters with attention at 16 x 16, 8 x 8 and in the middle."""

    peak_lr: ClassVar[float] = 2e-3

    def __init__(self) -> None:
        self.tokenizers = {"tokenizer": make_tokenizer()}
        self.models = {
            "unet": make_unet(),
            "text_encoder": make_clip(self.tokenizers["tokenizer"], TEXT_WIDTH, 2),
        }

    def draw(self, material: Material, batch: int, generator: torch.Generator) -> Inputs:
        """Latents, noise, times, token ids."""
        share = torch.full((batch,), EMPTY_CAPTIONS, device=material.latents.device)
        return draw_common(material, batch, generator, share)

    def loss(self, inputs: Inputs) -> Tensor:
        """Weighted error of the noise."""
        noisy, t = self.noisy(inputs)
        words = self.models["text_encoder"](inputs["ids"])[0]
        return self.weighted(self.models["unet"](noisy, t, words, return_dict=False)[0], inputs, t)

    def pipeline(self, vae: Network, models: dict[str, Network]) -> StableDiffusionPipeline:
        """Without a safety checker: it draws shapes."""
        parts: dict[str, Any] = {
            **models,
            **self.tokenizers,
            "vae": vae,
            "scheduler": make_diffusion_scheduler(),
            "safety_checker": None,
            "feature_extractor": None,
            "image_encoder": None,
            "requires_safety_checker": False,
        }
        return StableDiffusionPipeline(**parts)


def make_unet() -> Network:
    """UNet on (B, 4, 16, 16)."""
    settings: dict[str, Any] = {
        "sample_size": LATENT_SIDE,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (32, 64, 96),
        "layers_per_block": 1,
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": (1, 2, 3),  # heads per level, as in SD1.5: diffusers keeps the misnomer
        "norm_num_groups": NORM_GROUPS,
    }
    return UNet2DConditionModel(**settings)
