"""Stable Diffusion 1.5 and 2.1: one CLIP text encoder, a UNet, epsilon or v prediction.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models".
"""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from registry.formats.single_file import PREFIXES
from trainers.families import toy
from trainers.families.base import NOTHING, Conditioning, Part, joined
from trainers.families.common import TextToImage, last
from trainers.objectives import DDPM, Prediction, ddpm

if TYPE_CHECKING:
    from trainers.plan import Geometry
    from trainers.recipe import ObjectiveSection


class StableDiffusion15(TextToImage):
    """SD1.5 and its fine-tunes."""

    name: ClassVar[str] = "sd15"
    denoiser_name: ClassVar[str] = "unet"
    text_encoder_names: tuple[str, ...] = ("text_encoder",)
    clip_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    bucket_multiple: ClassVar[int] = 64
    lora_targets: ClassVar[tuple[str, ...] | str] = (
        "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
    )  # fmt: skip
    conv_targets: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "conv")  # of ResNet blocks and of resampling
    parts: ClassVar[Mapping[str, Part]] = {
        "unet": Part("diffusers.models.unets.unet_2d_condition", "UNet2DConditionModel"),
        "vae": Part("diffusers.models.autoencoders.autoencoder_kl", "AutoencoderKL"),
        "text_encoder": Part("transformers.models.clip.modeling_clip", "CLIPTextModel"),
        "tokenizer": Part("transformers.models.clip.tokenization_clip", "CLIPTokenizer"),
    }

    single_file: ClassVar[Mapping[str, str]] = PREFIXES["sd15"]

    @property
    def guidance_input(self) -> bool:
        """True for a UNet distilled with guidance (LCM: Luo et al. 2023, arXiv:2310.04378)."""
        return self._guidance_width > 0

    @property
    def inpaints(self) -> bool:
        """True for a UNet of nine channels."""
        channels = int(self.config("vae")["latent_channels"])
        return int(self.config("unet").get("in_channels", channels)) == 2 * channels + 1

    def beside(self, mask: Tensor, masked: Tensor) -> Tensor:
        """(B, 1 + 4, h, w): the mask, each cell by its first pixel, then the masked picture."""
        cells = F.interpolate(mask, size=masked.shape[-2:])
        return torch.cat([cells.expand(len(masked), -1, -1, -1), masked], dim=1)

    def make_objective(self, section: "ObjectiveSection") -> DDPM:
        """The base's own scheduler config says epsilon (1.5, 2.1-base) or v_prediction (2.1 at 768 px)."""
        return ddpm(self.scheduler_config(), section)

    def encode_ids(self, text_encoder: str, ids: Tensor, clip_skip: int = 0) -> Conditioning:
        """{"hidden": (B, 77, D)}: the last layer's output after its norm."""
        return {"hidden": last(self.part(text_encoder), ids, clip_skip)}

    def combine(self, outputs: Conditioning) -> Conditioning:
        """{"hidden": (B, 77, D)}."""
        return {"hidden": outputs["text_encoder.hidden"]}

    def predict(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Conditioning,
        geometry: "list[Geometry]",
        extra: Mapping[str, Any] = NOTHING,
    ) -> Tensor:
        """One UNet call; t in integer train timesteps, `geometry` means nothing to this family."""
        del geometry
        hidden = cond["hidden"].to(self.dtype)
        options = self.guidance_of(cond, len(x_t)) | dict(extra)
        return self.denoiser(joined(x_t, cond).to(self.dtype), t, hidden, return_dict=False, **options)[0]

    def guidance_of(self, cond: Conditioning, count: int) -> dict[str, Any]:
        """{"timestep_cond": (B, D)} for a UNet that reads guidance: sines and cosines of 1000 (w - 1)."""
        if not self._guidance_width:
            return {}
        from diffusers.models.embeddings import get_timestep_embedding

        scale = cond.get("guidance")
        if scale is None:
            scale = torch.full((count,), self.use.guidance, device=self.device)
        embedded = get_timestep_embedding(1000 * (scale - 1), self._guidance_width, downscale_freq_shift=1)
        return {"timestep_cond": embedded.to(self.dtype)}

    @cached_property
    def _guidance_width(self) -> int:
        """Of the guidance scale's embedding; 0 = it is no input."""
        return int(self.config("unet").get("time_cond_proj_dim") or 0)

    @classmethod
    def pipeline_class(cls) -> Any:
        """StableDiffusionPipeline."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        return StableDiffusionPipeline

    @classmethod
    def tiny(cls, seed: int = 0) -> dict[str, Any]:
        """Under 300k parameters; VAE factor 4, so that 32 px pictures have 8x8 latents."""
        tokenizer = toy.clip_tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            models = {
                "unet": toy.unet(cross_attention_dim=toy.WIDTH, **cls._tiny_unet()),
                "vae": toy.vae(),
                "text_encoder": toy.clip(tokenizer),
            }
        scheduler = toy.diffusion_scheduler(cls._tiny_prediction)
        return {**models, "tokenizer": tokenizer, "scheduler": scheduler}

    _tiny_prediction: ClassVar[Prediction] = "epsilon"

    @classmethod
    def _tiny_unet(cls) -> dict[str, Any]:
        return {"attention_head_dim": 2}  # 1.5 counts heads here, whatever the argument is called


class StableDiffusion21(StableDiffusion15):
    """SD2.1: OpenCLIP-H text encoder, linear projections, v prediction at 768 px (2.1-base: epsilon)."""

    name: ClassVar[str] = "sd21"
    single_file: ClassVar[Mapping[str, str]] = PREFIXES["sd21"]
    _tiny_prediction: ClassVar[Prediction] = "v_prediction"

    @classmethod
    def _tiny_unet(cls) -> dict[str, Any]:
        return {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True}
