"""Stable Diffusion XL: two CLIP text encoders, a UNet that is told the picture's size and crop.

Podell et al. 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis".

The VAE runs in fp32 as in every family: in fp16 the published one overflows to NaN.

The empty caption is encoded like any other, and that is what caption dropout trains: it is what guidance
starts from in most programs that people draw with. diffusers' pipeline, and we when we draw, put zeros in its
place when there is no negative prompt, see `unguided`.

The refiner is of this family, too: it has the second text encoder alone, and is told how fine the picture is
to be (an aesthetic score) instead of its target size.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from registry.formats.single_file import PREFIXES
from trainers.families import toy
from trainers.families.base import NOTHING, BaseFiles, Conditioning, Part, Use, joined
from trainers.families.common import penultimate
from trainers.families.sd import StableDiffusion15

if TYPE_CHECKING:
    from trainers.plan import Geometry


AESTHETIC_SCORE = 6.0  # what the refiner's pipeline asks for


class StableDiffusionXL(StableDiffusion15):
    """SDXL 1.0 and its fine-tunes; those that predict v (also with zero terminal SNR) by their scheduler."""

    name: ClassVar[str] = "sdxl"
    text_encoder_names: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    clip_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    clip_from_end: ClassVar[int] = 1
    parts: ClassVar[Mapping[str, Part]] = {
        **StableDiffusion15.parts,
        "text_encoder_2": Part("transformers.models.clip.modeling_clip", "CLIPTextModelWithProjection"),
        "tokenizer_2": Part("transformers.models.clip.tokenization_clip", "CLIPTokenizer"),
    }

    single_file: ClassVar[Mapping[str, str]] = PREFIXES["sdxl"]

    def __init__(
        self, base: BaseFiles, *, dtype: torch.dtype, device: torch.device, use: Use | None = None
    ) -> None:
        super().__init__(base, dtype=dtype, device=device, use=use)
        self.refines = not (self._folder() / "text_encoder" / "config.json").exists()
        if self.refines:
            self.text_encoder_names = ("text_encoder_2",)

    def encode_ids(self, text_encoder: str, ids: Tensor, clip_skip: int = 0) -> Conditioning:
        """{"hidden": (B, 77, D)}: the layer before the last; of the second encoder also "pooled" (B, P)."""
        hidden, pooled = penultimate(self.part(text_encoder), ids, clip_skip)
        return (
            {"hidden": hidden, "pooled": pooled} if text_encoder == "text_encoder_2" else {"hidden": hidden}
        )

    def combine(self, outputs: Conditioning) -> Conditioning:
        """{"hidden": (B, 77, 2048), "pooled": (B, 1280)}; of the refiner, hidden is (B, 77, 1280)."""
        all_of_them = [outputs[f"{name}.hidden"] for name in self.text_encoder_names]
        return {"hidden": torch.cat(all_of_them, dim=-1), "pooled": outputs["text_encoder_2.pooled"]}

    def unguided(self, empty: Conditioning) -> Conditioning:
        """Zeros if the base says so, as published ones do, which were trained with zeros for no caption."""
        if not self._read_config("", "model_index.json").get("force_zeros_for_empty_prompt", True):
            return empty
        return {key: torch.zeros_like(value) for key, value in empty.items()}

    def predict(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Conditioning,
        geometry: "list[Geometry]",
        extra: Mapping[str, Any] = NOTHING,
    ) -> Tensor:
        """One UNet call; t in integer train timesteps.

        `cond` may bring "aesthetic" (B,), the refiner's score from 0 to 10.
        """
        ids = time_ids(geometry).to(x_t.device)
        if self.refines:
            score = cond.get("aesthetic", ids.new_full((len(ids),), AESTHETIC_SCORE))
            ids = torch.cat([ids[:, :4], score[:, None].to(ids)], dim=1)
        added = {"text_embeds": cond["pooled"].to(self.dtype), "time_ids": ids}
        return self.denoiser(
            joined(x_t, cond).to(self.dtype),
            t,
            cond["hidden"].to(self.dtype),
            added_cond_kwargs=added,
            return_dict=False,
            **self.guidance_of(cond, len(x_t)) | dict(extra),
        )[0]

    @classmethod
    def pipeline_class(cls) -> Any:
        """StableDiffusionXLPipeline."""
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
            StableDiffusionXLPipeline,
        )

        return StableDiffusionXLPipeline

    @classmethod
    def tiny(cls, seed: int = 0) -> dict[str, Any]:
        """A million parameters; the second text encoder is wider than the first, as in the real base."""
        first, second = toy.clip_tokenizer(), toy.clip_tokenizer(pad_token="!")
        wide, pooled, step = 48, 24, 8
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            models = {
                "unet": toy.unet(
                    cross_attention_dim=toy.WIDTH + wide,
                    attention_head_dim=(2, 4),
                    use_linear_projection=True,
                    addition_embed_type="text_time",
                    addition_time_embed_dim=step,
                    projection_class_embeddings_input_dim=pooled + 6 * step,
                ),
                "vae": toy.vae(scaling_factor=0.13025),
                "text_encoder": toy.clip(first),
                "text_encoder_2": toy.clip(second, width=wide, projection=pooled, hidden_act="gelu"),
            }
        scheduler = toy.diffusion_scheduler()
        return {**models, "tokenizer": first, "tokenizer_2": second, "scheduler": scheduler}


def time_ids(geometry: "list[Geometry]") -> Tensor:
    """(B, 6): original (height, width), crop (top, left), target (height, width) in pixels (SDXL, sec. 2.2).

    fp32: bf16 would round sizes above 256.
    """
    return torch.tensor([[*g.original, *g.crop_origin, *g.target] for g in geometry], dtype=torch.float32)
