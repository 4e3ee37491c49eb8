"""FLUX.1 dev and schnell: pooled CLIP, T5, a transformer with double and single streams, flow matching.

Black Forest Labs 2024; there is no paper, the reference is their code and diffusers' FluxPipeline. dev was
distilled with guidance as an input; schnell, distilled to few steps, has none. Fill is dev with a mask and
the masked picture beside the latents.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.families import toy
from trainers.families.base import NOTHING, Conditioning, Part, joined
from trainers.families.flow import FlowFamily
from trainers.families.packing import pack, positions, unpack

if TYPE_CHECKING:
    from trainers.plan import Geometry


class Flux1(FlowFamily):
    """FLUX.1-dev and -schnell; which of the two, the transformer's config says."""

    name: ClassVar[str] = "flux1"
    text_encoder_names: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    clip_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    clip_layers: ClassVar[bool] = False
    t5_encoder: ClassVar[str] = "text_encoder_2"
    # proj_out is meant inside a single block only: the final layer has that name too, and the fused output of
    # attention and MLP in a single block. Modulation (norm*), embedders and the final layer stay as they are.
    lora_targets: ClassVar[tuple[str, ...] | str] = (
        r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
        r"|ff(_context)?\.net\.(0\.proj|2))"
        r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)"
    )
    parts: ClassVar[Mapping[str, Part]] = {
        "transformer": Part("diffusers.models.transformers.transformer_flux", "FluxTransformer2DModel"),
        "vae": Part("diffusers.models.autoencoders.autoencoder_kl", "AutoencoderKL"),
        "text_encoder": Part("transformers.models.clip.modeling_clip", "CLIPTextModel"),
        "text_encoder_2": Part("transformers.models.t5.modeling_t5", "T5EncoderModel"),
        "tokenizer": Part("transformers.models.clip.tokenization_clip", "CLIPTokenizer"),
        "tokenizer_2": Part("transformers.models.t5.tokenization_t5", "T5Tokenizer"),
    }

    @property
    def guidance_input(self) -> bool:
        """True for dev."""
        return bool(self.config("transformer").get("guidance_embeds"))

    @property
    def second_call(self) -> bool:
        """False: in dev guidance is an input, in schnell it is part of what was distilled."""
        return False

    @property
    def inpaints(self) -> bool:
        """True for Fill."""
        config = self.config("transformer")
        out = config.get("out_channels") or config["in_channels"]
        return int(config["in_channels"]) > int(out)

    def beside(self, mask: Tensor, masked: Tensor) -> Tensor:
        """(B, 16 + 64, h, w): the masked picture, then the mask, its pixels as channels of each cell."""
        cells = F.pixel_unshuffle(mask, self.latent_factor)
        return torch.cat([masked, cells.expand(len(masked), -1, -1, -1)], dim=1)

    @property
    def default_text_length(self) -> int:
        """512 for dev, 256 for schnell."""
        return 512 if self.guidance_input else 256

    def encode_ids(self, text_encoder: str, ids: Tensor, clip_skip: int = 0) -> Conditioning:
        """CLIP's pooled vector; T5's last layer, its padding included as in the pipeline."""
        del clip_skip  # no layer of CLIP is read
        said = self.part(text_encoder)(ids)
        return {"hidden": said[0]} if text_encoder == self.t5_encoder else {"pooled": said.pooler_output}

    def combine(self, outputs: Conditioning) -> Conditioning:
        """{"hidden": (B, text_length, 4096), "pooled": (B, 768)}."""
        return {"hidden": outputs["text_encoder_2.hidden"], "pooled": outputs["text_encoder.pooled"]}

    def predict(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Conditioning,
        geometry: "list[Geometry]",
        extra: Mapping[str, Any] = NOTHING,
    ) -> Tensor:
        """One call of the transformer; t from 0 to 1, `geometry` means nothing to this family.

        `cond` may bring "guidance" (B,), the value of dev's guidance input; else the recipe's is taken.
        """
        del geometry
        height, width = x_t.shape[-2:]
        guidance = cond.get("guidance")
        if self.guidance_input and guidance is None:
            guidance = torch.full((len(x_t),), self.use.guidance, device=x_t.device)
        hidden = cond["hidden"].to(self.dtype)
        packed = self.denoiser(
            hidden_states=pack(joined(x_t, cond).to(self.dtype)),
            timestep=t,
            guidance=guidance if self.guidance_input else None,
            pooled_projections=cond["pooled"].to(self.dtype),
            encoder_hidden_states=hidden,
            txt_ids=hidden.new_zeros(hidden.shape[1], 3),
            img_ids=positions(height // 2, width // 2, x_t.device),
            return_dict=False,
            **extra,
        )[0]
        return unpack(packed, height, width)

    def sampler_options(self, steps: int, shape: tuple[int, ...]) -> dict[str, Any]:
        """Evenly spaced noise levels 1, ..., 1 / steps before the shift, and mu where the base has one."""
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), **super().sampler_options(steps, shape)}

    @classmethod
    def pipeline_class(cls) -> Any:
        """FluxPipeline."""
        from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

        return FluxPipeline

    @classmethod
    def tiny(cls, seed: int = 0) -> dict[str, Any]:
        """dev, under 300k parameters."""
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        first, second = toy.clip_tokenizer(), toy.t5_tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            models = {
                "transformer": FluxTransformer2DModel(
                    in_channels=16,
                    num_layers=1,
                    num_single_layers=2,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    joint_attention_dim=48,
                    pooled_projection_dim=toy.WIDTH,
                    guidance_embeds=True,
                    axes_dims_rope=(4, 6, 6),
                ).eval(),
                "vae": toy.vae(
                    scaling_factor=0.3611,
                    shift_factor=0.1159,
                    use_quant_conv=False,
                    use_post_quant_conv=False,
                ),
                "text_encoder": toy.clip(first),
                "text_encoder_2": toy.t5(second, width=48),
            }
        shift = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
        return {**models, "tokenizer": first, "tokenizer_2": second, "scheduler": toy.flow_scheduler(**shift)}
