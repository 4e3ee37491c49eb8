"""The pocket base's networks: Stable Diffusion 1.5's classes, far narrower and shallower."""

from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from studio.pocket.render import SIDE

TEXT_WIDTH = 96
FACTOR = 4  # the autoencoder shrinks each side by this
LATENT_SIDE = SIDE // FACTOR
NORM_GROUPS = 8

# Networks are Any: the libraries annotate their own constructors and calls more narrowly than they behave
# (a tuple of three widths is no tuple[int], an output is never the tuple it might be).
Network = Any


def make_autoencoder() -> Network:
    """(B, 3, 64, 64) in -1..1 <-> (B, 4, 16, 16); 234 thousand parameters."""
    widths = (16, 32, 32)
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "block_out_channels": widths,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": NORM_GROUPS,
        "sample_size": SIDE,
        "mid_block_add_attention": False,
    }
    return AutoencoderKL(**settings)


def make_denoiser() -> Network:
    """UNet on (B, 4, 16, 16) with attention at 16 x 16, 8 x 8 and in the middle; 2.2 million parameters."""
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


def make_text_encoder(tokenizer: CLIPTokenizer) -> Network:
    """(B, 77) token ids -> (B, 77, 96); 304 thousand parameters."""
    end = tokenizer.eos_token_id
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "projection_dim": TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    return CLIPTextModel(CLIPTextConfig(**settings))


def make_scheduler() -> DDIMScheduler:
    """SD1.5's noise schedule, sampled with DDIM."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def assemble(
    vae: Network, tokenizer: CLIPTokenizer, text_encoder: Network, denoiser: Network
) -> StableDiffusionPipeline:
    """The parts as a pipeline, without a safety checker: it draws shapes."""
    parts: dict[str, Any] = {
        "vae": vae,
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "unet": denoiser,
        "scheduler": make_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }
    pipe = StableDiffusionPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe
