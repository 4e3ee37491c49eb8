"""Stable Diffusion 3.5 (and 3): two CLIPs and T5, a transformer over text and picture, flow matching.

Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis".

T5 reads its padding too, as in diffusers' pipeline: the base was trained that way.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.families import toy
from trainers.families.base import NOTHING, BaseFiles, Conditioning, Part, Use
from trainers.families.common import penultimate
from trainers.families.flow import FlowFamily

if TYPE_CHECKING:
    from trainers.plan import Geometry

CLIP = "transformers.models.clip.modeling_clip"


class StableDiffusion35(FlowFamily):
    """SD3.5 Medium and Large. A base without T5 reads zeros in its place."""

    name: ClassVar[str] = "sd35"
    text_encoder_names: tuple[str, ...] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    clip_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    clip_from_end: ClassVar[int] = 1
    t5_encoder: ClassVar[str] = "text_encoder_3"
    # Attention (attn2 where blocks of Medium have two) and both MLPs; not norms, embedders, final layer.
    lora_targets: ClassVar[tuple[str, ...] | str] = (
        r"transformer_blocks\.\d+\.(attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
        r"|ff(_context)?\.net\.(0\.proj|2))"
    )
    parts: ClassVar[Mapping[str, Part]] = {
        "transformer": Part("diffusers.models.transformers.transformer_sd3", "SD3Transformer2DModel"),
        "vae": Part("diffusers.models.autoencoders.autoencoder_kl", "AutoencoderKL"),
        "text_encoder": Part(CLIP, "CLIPTextModelWithProjection"),
        "text_encoder_2": Part(CLIP, "CLIPTextModelWithProjection"),
        "text_encoder_3": Part("transformers.models.t5.modeling_t5", "T5EncoderModel"),
        "tokenizer": Part("transformers.models.clip.tokenization_clip", "CLIPTokenizer"),
        "tokenizer_2": Part("transformers.models.clip.tokenization_clip", "CLIPTokenizer"),
        "tokenizer_3": Part("transformers.models.t5.tokenization_t5", "T5Tokenizer"),
    }

    def __init__(
        self, base: BaseFiles, *, dtype: torch.dtype, device: torch.device, use: Use | None = None
    ) -> None:
        super().__init__(base, dtype=dtype, device=device, use=use)
        if not (self._folder() / self.t5_encoder / "config.json").exists():
            self.text_encoder_names = self.clip_encoders

    @property
    def default_text_length(self) -> int:
        """256."""
        return 256

    def encode_ids(self, text_encoder: str, ids: Tensor, clip_skip: int = 0) -> Conditioning:
        """A CLIP's layer before the last and its pooled vector; T5's last layer."""
        encoder = self.part(text_encoder)
        if text_encoder == self.t5_encoder:
            return {"hidden": encoder(ids)[0]}
        hidden, pooled = penultimate(encoder, ids, clip_skip)
        return {"hidden": hidden, "pooled": pooled}

    def combine(self, outputs: Conditioning) -> Conditioning:
        """{"hidden": (B, 77 + text_length, 4096), "pooled": (B, 2048)}.

        The CLIPs side by side, filled up with zeros to T5's width, then T5 behind them.
        """
        clips = torch.cat([outputs[f"{name}.hidden"] for name in self.clip_encoders], dim=-1)
        pooled = torch.cat([outputs[f"{name}.pooled"] for name in self.clip_encoders], dim=-1)
        t5 = outputs.get(f"{self.t5_encoder}.hidden")
        if t5 is None:
            width = int(self.config("transformer")["joint_attention_dim"])
            t5 = clips.new_zeros(len(clips), self.text_length, width)
        clips = F.pad(clips, (0, t5.shape[-1] - clips.shape[-1]))
        return {"hidden": torch.cat([clips, t5], dim=-2), "pooled": pooled}

    def predict(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Conditioning,
        geometry: "list[Geometry]",
        extra: Mapping[str, Any] = NOTHING,
    ) -> Tensor:
        """One call of the transformer; t from 0 to 1, `geometry` means nothing to this family."""
        del geometry
        return self.denoiser(
            hidden_states=x_t.to(self.dtype),
            timestep=t * 1000,
            encoder_hidden_states=cond["hidden"].to(self.dtype),
            pooled_projections=cond["pooled"].to(self.dtype),
            return_dict=False,
            **extra,
        )[0]

    @classmethod
    def pipeline_class(cls) -> Any:
        """StableDiffusion3Pipeline."""
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
            StableDiffusion3Pipeline,
        )

        return StableDiffusion3Pipeline

    @classmethod
    def tiny(cls, seed: int = 0) -> dict[str, Any]:
        """Under 500k parameters: two blocks, one of them with the second attention of Medium."""
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        first, second, third = toy.clip_tokenizer(), toy.clip_tokenizer(pad_token="!"), toy.t5_tokenizer()
        wide = 48
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            models = {
                "transformer": SD3Transformer2DModel(
                    sample_size=8,
                    patch_size=2,
                    in_channels=4,
                    out_channels=4,
                    num_layers=2,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    joint_attention_dim=96,
                    caption_projection_dim=32,
                    pooled_projection_dim=toy.WIDTH + wide,
                    pos_embed_max_size=16,
                    dual_attention_layers=(0,),
                    qk_norm="rms_norm",
                ).eval(),
                "vae": toy.vae(
                    scaling_factor=1.5305,
                    shift_factor=0.0609,
                    use_quant_conv=False,
                    use_post_quant_conv=False,
                ),
                "text_encoder": toy.clip(first, projection=toy.WIDTH),
                "text_encoder_2": toy.clip(second, width=wide, projection=wide, hidden_act="gelu"),
                "text_encoder_3": toy.t5(third, width=96),
            }
        tokenizers = {"tokenizer": first, "tokenizer_2": second, "tokenizer_3": third}
        return {**models, **tokenizers, "scheduler": toy.flow_scheduler(shift=3.0)}
