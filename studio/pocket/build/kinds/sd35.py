"""`pocket-sd35`: Stable Diffusion 3.5 Medium. Two CLIPs and T5, a transformer over text and picture."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from studio.pocket.build.kinds.base import EMPTY_CAPTIONS, FlowKind, Material, draw_common
from studio.pocket.build.networks import LATENT_SIDE, Network, make_clip, make_flow_scheduler, make_t5
from studio.pocket.build.replay import Inputs
from studio.pocket.build.tokenizer import make_t5_tokenizer, make_tokenizer

FIRST, SECOND, T5 = 64, 96, 160  # widths of the text encoders


class PocketSD35(FlowKind):
    """Six blocks of width 128, attention over the picture alone beside the joint one in the first two."""

    peak_lr: ClassVar[float] = 1.2e-3
    shift: ClassVar[float] = 2.0  # the real one has 3 at 1024 px; fewer numbers drown sooner

    def __init__(self) -> None:
        self.tokenizers = {
            "tokenizer": make_tokenizer(),
            "tokenizer_2": make_tokenizer(pad_token="!"),
            "tokenizer_3": make_t5_tokenizer(),
        }
        first, second, third = self.tokenizers.values()
        self.models = {
            "transformer": make_transformer(),
            "text_encoder": make_clip(first, FIRST, 3, projected=True),
            "text_encoder_2": make_clip(second, SECOND, 3, projected=True, activation="gelu"),
            "text_encoder_3": make_t5(third, T5),
        }

    def draw(self, material: Material, batch: int, generator: torch.Generator) -> Inputs:
        """Latents, noise, times, token ids."""
        share = torch.full((batch,), EMPTY_CAPTIONS, device=material.latents.device)
        return draw_common(material, batch, generator, share)

    def loss(self, inputs: Inputs) -> Tensor:
        """Mean squared error of the flow."""
        noisy, t = self.noisy(inputs)
        first = self.models["text_encoder"](inputs["ids"], output_hidden_states=True)
        second = self.models["text_encoder_2"](inputs["ids_2"], output_hidden_states=True)
        third = self.models["text_encoder_3"](inputs["ids_3"])[0]
        clips = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        clips = F.pad(clips, (0, T5 - clips.shape[-1]))
        flow = self.models["transformer"](
            hidden_states=noisy,
            timestep=t * 1000,
            encoder_hidden_states=torch.cat([clips, third.to(clips.dtype)], dim=-2),
            pooled_projections=torch.cat([first[0], second[0]], dim=-1),
            return_dict=False,
        )[0]
        return (flow.float() - (inputs["noise"] - inputs["latents"])).square().mean()

    def pipeline(self, vae: Network, models: dict[str, Network]) -> StableDiffusion3Pipeline:
        """Its scheduler has the shift that was trained with."""
        parts: dict[str, Any] = {
            **models,
            **self.tokenizers,
            "vae": vae,
            "scheduler": make_flow_scheduler(shift=self.shift),
        }
        return StableDiffusion3Pipeline(**parts)


def make_transformer() -> Network:
    """On (B, 16, 16, 16) in patches of 2 x 2: 64 tokens beside 77 + 64 of text."""
    settings: dict[str, Any] = {
        "sample_size": LATENT_SIDE,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 6,
        "attention_head_dim": 32,
        "num_attention_heads": 4,
        "joint_attention_dim": T5,
        "caption_projection_dim": 128,
        "pooled_projection_dim": FIRST + SECOND,
        "pos_embed_max_size": 2 * LATENT_SIDE,
        "dual_attention_layers": (0, 1),
        "qk_norm": "rms_norm",
    }
    return SD3Transformer2DModel(**settings)
