"""`pocket-flux`: FLUX.1-dev. Pooled CLIP, T5, double and single streams, guidance as an input.

dev was distilled so that one call answers what two gave. Here both are learned at once: half of a batch has
guidance 1 and the true flow as its target; the other half has a guidance g drawn by chance, and its target is
moved by g - 1 times what the caption changes in the base's own answer at guidance 1. In the mean that is
u + g (c - u), the guided answer (Ho and Salimans 2022, eq. 6; Meng et al. 2023 distil it afterwards).
"""

import math
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from studio.pocket.build.kinds.base import EMPTY_CAPTIONS, FlowKind, Material, draw_common
from studio.pocket.build.networks import LATENT_SIDE, Network, make_clip, make_flow_scheduler, make_t5
from studio.pocket.build.replay import Inputs
from studio.pocket.build.tokenizer import make_t5_tokenizer, make_tokenizer
from trainers.families.packing import pack, positions, unpack

CLIP, T5 = 64, 128  # widths of the text encoders
STRONGEST = 6.0  # guidance that is trained
SHIFT: dict[str, Any] = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
TOKENS = (LATENT_SIDE // 2) ** 2  # of a picture


class PocketFlux1(FlowKind):
    """Three double and five single blocks of width 128; 3 million parameters."""

    peak_lr: ClassVar[float] = 1.2e-3
    # FLUX.1's line from (256 tokens, 0.5) to (4096, 1.15), here at 64 tokens
    shift: ClassVar[float] = math.exp(0.5 + (1.15 - 0.5) * (TOKENS - 256) / (4096 - 256))

    def __init__(self) -> None:
        self.tokenizers = {"tokenizer": make_tokenizer(), "tokenizer_2": make_t5_tokenizer()}
        first, second = self.tokenizers.values()
        self.models = {
            "transformer": make_transformer(),
            "text_encoder": make_clip(first, CLIP, 2),
            "text_encoder_2": make_t5(second, T5),
        }

    def draw(self, material: Material, batch: int, generator: torch.Generator) -> Inputs:
        """Latents, noise, times, token ids, "guidance" (B,) and the empty caption's ids (1, L)."""
        device = material.latents.device
        guided = torch.arange(batch, device=device) >= batch // 2
        drawn = draw_common(material, batch, generator, 2 * EMPTY_CAPTIONS * ~guided)
        strength = torch.rand(batch, generator=generator, device=device) * (STRONGEST - 1) * guided
        empty = {f"empty_{name}": table[:1].long() for name, table in material.texts.ids.items()}
        return {**drawn, **empty, "guidance": 1 + strength}

    def loss(self, inputs: Inputs) -> Tensor:
        """Mean squared error of the flow, guided for half of the batch."""
        noisy, t = self.noisy(inputs)
        hidden, pooled = self._encoded(inputs["ids"], inputs["ids_2"])
        flow = self._flow(noisy, t, hidden, pooled, inputs["guidance"])
        target = inputs["noise"] - inputs["latents"]
        half = len(t) // 2
        rest = len(t) - half
        with torch.no_grad():
            none, nobody = self._encoded(inputs["empty_ids"], inputs["empty_ids_2"])
            words = torch.cat([hidden[half:], none.expand(rest, -1, -1)])
            vectors = torch.cat([pooled[half:], nobody.expand(rest, -1)])
            twice, times = torch.cat([noisy[half:]] * 2), torch.cat([t[half:]] * 2)
            said, without = self._flow(twice, times, words, vectors, torch.ones_like(times)).chunk(2)
            extra = (inputs["guidance"][half:, None, None, None] - 1) * (said - without)
            target = torch.cat([target[:half], target[half:] + extra])
        return (flow - target).square().mean()

    def pipeline(self, vae: Network, models: dict[str, Network]) -> FluxPipeline:
        """Its scheduler shifts by the number of tokens, as FLUX.1-dev's."""
        parts: dict[str, Any] = {
            **models,
            **self.tokenizers,
            "vae": vae,
            "scheduler": make_flow_scheduler(**SHIFT),
        }
        return FluxPipeline(**parts)

    def _encoded(self, ids: Tensor, ids_2: Tensor) -> tuple[Tensor, Tensor]:
        """T5's last layer (B, L, D) and CLIP's pooled vector (B, P)."""
        return self.models["text_encoder_2"](ids_2)[0], self.models["text_encoder"](ids).pooler_output

    def _flow(self, noisy: Tensor, t: Tensor, hidden: Tensor, pooled: Tensor, guidance: Tensor) -> Tensor:
        """One call; (B, 16, h, w) fp32."""
        height, width = noisy.shape[-2:]
        said = self.models["transformer"](
            hidden_states=pack(noisy),
            timestep=t,
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=hidden,
            txt_ids=noisy.new_zeros(hidden.shape[1], 3),
            img_ids=positions(height // 2, width // 2, noisy.device),
            return_dict=False,
        )[0]
        return unpack(said, height, width).float()


def make_transformer() -> Network:
    """On (B, 64 tokens, 64): patches of 2 x 2 cells of 16 channels."""
    settings: dict[str, Any] = {
        "in_channels": 64,
        "num_layers": 3,
        "num_single_layers": 5,
        "attention_head_dim": 32,
        "num_attention_heads": 4,
        "joint_attention_dim": T5,
        "pooled_projection_dim": CLIP,
        "guidance_embeds": True,
        "axes_dims_rope": (8, 12, 12),
    }
    return FluxTransformer2DModel(**settings)
