"""Stable Diffusion 1.5 and 2.1: one CLIP text encoder, a UNet, epsilon or v prediction.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models".
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from registry.errors import BadInput
from trainers.families.base import Conditioning, Family, Part
from trainers.objectives import DDPM, Prediction, ddpm

if TYPE_CHECKING:
    from trainers.plan import Geometry
    from trainers.recipe import ObjectiveSection

TOKENS = 77  # positions of CLIP's text encoder, start and end included


class StableDiffusion15(Family):
    """SD1.5 and its fine-tunes."""

    name: ClassVar[str] = "sd15"
    denoiser_name: ClassVar[str] = "unet"
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    bucket_multiple: ClassVar[int] = 64
    lora_targets: ClassVar[tuple[str, ...]] = (
        "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
    )  # fmt: skip
    conv_targets: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "conv")  # of ResNet blocks and of resampling
    text_targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    parts: ClassVar[Mapping[str, Part]] = {
        "unet": Part("diffusers.models.unets.unet_2d_condition", "UNet2DConditionModel"),
        "vae": Part("diffusers.models.autoencoders.autoencoder_kl", "AutoencoderKL"),
        "text_encoder": Part("transformers.models.clip.modeling_clip", "CLIPTextModel"),
        "tokenizer": Part("transformers.models.clip.tokenization_clip", "CLIPTokenizer"),
    }

    def make_objective(self, section: "ObjectiveSection") -> DDPM:
        """The base's own scheduler config says epsilon (1.5, 2.1-base) or v_prediction (2.1 at 768 px)."""
        return ddpm(
            self.scheduler_config(),
            prediction=section.prediction,
            snr_gamma=section.snr_gamma,
            noise_offset=section.noise_offset,
            timesteps=(section.timestep_min, section.timestep_max),
        )

    @property
    def latent_factor(self) -> int:
        """8 in the real bases: each level of the VAE but the last halves the side."""
        return 2 ** (len(self.config("vae")["block_out_channels"]) - 1)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> mean and standard deviation, each (B, 4, H / 8, W / 8), scaled."""
        vae = self.part("vae")
        posterior = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return (posterior.mean - (vae.config.shift_factor or 0.0)) * scale, posterior.std * scale

    @torch.no_grad()
    def decode_image(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) scaled latents -> (B, 3, 8 h, 8 w) in about [-1, 1]."""
        vae = self.part("vae")
        latents = latents.to(self.device, vae.dtype) / vae.config.scaling_factor
        return vae.decode(latents + (vae.config.shift_factor or 0.0), return_dict=False)[0].float()

    def tokenize(self, captions: list[str]) -> Conditioning:
        """{"input_ids": (B, 77) int64}; what is longer is cut, see `tokens_cut`."""
        encoded = self.part("tokenizer")(
            captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        )
        return {"input_ids": encoded.input_ids}

    def tokens_cut(self, caption: str) -> int:
        """Tokens beyond the 75 that fit between start and end."""
        return max(0, len(self.part("tokenizer")(caption, verbose=False).input_ids) - TOKENS)

    def conditioning(self, cond: Conditioning) -> Conditioning:
        """{"hidden": (B, 77, D)}: the last layer's output after its norm."""
        if "hidden" in cond:
            return cond
        return {"hidden": self.part("text_encoder")(cond["input_ids"])[0]}

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning, geometry: "list[Geometry]") -> Tensor:
        """One UNet call; t in integer train timesteps, `geometry` means nothing to this family."""
        del geometry
        hidden = cond["hidden"].to(self.dtype)
        return self.denoiser(x_t.to(self.dtype), t, hidden, return_dict=False)[0]

    def _load(self, name: str) -> Any:
        loaded = super()._load(name)
        if name == "tokenizer":
            # An empty folder loads as a tokenizer of two tokens; old folders load with a length of 1e30.
            if len(loaded) < 256:
                raise BadInput(
                    f"{self.base.location}/tokenizer",
                    f"has only {len(loaded)} tokens",
                    "the base is incomplete",
                )
            loaded.model_max_length = TOKENS
        return loaded

    @classmethod
    def pipeline_class(cls) -> Any:
        """StableDiffusionPipeline."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        return StableDiffusionPipeline

    @classmethod
    def tiny(cls, seed: int = 0) -> dict[str, Any]:
        """Under 300k parameters; VAE factor 4, so that 32 px pictures have 8x8 latents."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from transformers.models.clip.configuration_clip import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPTextModel

        tokenizer = tiny_tokenizer()
        unet_config: dict[str, Any] = {
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "norm_num_groups": 8,
        }
        vae_config: dict[str, Any] = {
            "block_out_channels": (8, 16, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            "latent_channels": 4,
            "norm_num_groups": 4,
            "sample_size": 32,
        }
        text_config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            models = {
                "unet": UNet2DConditionModel(**unet_config, **cls._tiny_unet()).eval(),
                "vae": AutoencoderKL(**vae_config).eval(),
                "text_encoder": CLIPTextModel(text_config).eval(),
            }
        scheduler = DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=cls._tiny_prediction,
        )
        return {**models, "tokenizer": tokenizer, "scheduler": scheduler}

    _tiny_prediction: ClassVar[Prediction] = "epsilon"

    @classmethod
    def _tiny_unet(cls) -> dict[str, Any]:
        return {"attention_head_dim": 2}  # 1.5 counts heads here, whatever the argument is called


class StableDiffusion21(StableDiffusion15):
    """SD2.1: OpenCLIP-H text encoder, linear projections, v prediction at 768 px (2.1-base: epsilon)."""

    name: ClassVar[str] = "sd21"
    _tiny_prediction: ClassVar[Prediction] = "v_prediction"

    @classmethod
    def _tiny_unet(cls) -> dict[str, Any]:
        return {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True}


def tiny_tokenizer() -> Any:
    """A CLIPTokenizer over single bytes and a few merges, so that any text tokenises."""
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [
        chr(256 + n) for n in range(256 - len(printable))
    ]  # GPT-2's bytes
    merges = [("t", "h"), ("r", "e"), ("re", "d</w>"), ("s", "t"), ("st", "a")]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return cast(Any, CLIPTokenizer)(vocab=vocabulary, merges=merges, model_max_length=TOKENS)
