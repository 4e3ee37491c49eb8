"""What the pocket bases are made of: the classes of the real ones, far narrower and shallower."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel
from transformers.models.t5.tokenization_t5 import T5Tokenizer

from studio.pocket.render import SIDE

FACTOR = 4  # the autoencoders shrink each side by this
LATENT_SIDE = SIDE // FACTOR
NORM_GROUPS = 8
NEAREST = 4.0  # first bias of a T5 head for a neighbour it looks at

# Networks are Any: the libraries annotate their own constructors and calls more narrowly than they behave
# (a tuple of three widths is no tuple[int], an output is never the tuple it might be).
Network = Any


def make_autoencoder(channels: int = 4) -> Network:
    """(B, 3, 64, 64) in -1..1 <-> (B, channels, 16, 16); half a million parameters.

    With 4 channels as in SD1.5 and SDXL, with 16 as in SD3.5 and FLUX.1, which have no convolution around the
    latents.
    """
    widths = (32, 48, 48)
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "block_out_channels": widths,
        "layers_per_block": 1,
        "latent_channels": channels,
        "norm_num_groups": NORM_GROUPS,
        "sample_size": SIDE,
        "mid_block_add_attention": False,
        "use_quant_conv": channels == 4,
        "use_post_quant_conv": channels == 4,
    }
    return AutoencoderKL(**settings)


def make_clip(
    tokenizer: CLIPTokenizer, width: int, layers: int, *, projected: bool = False, activation: str = ""
) -> Network:
    """(B, 77) token ids -> (B, 77, width), and (B, width) for the whole.

    Args:
        tokenizer: Whose ids it reads.
        width: Of everything in it.
        layers: SDXL and SD3 read the one before the last.
        projected: Whether the vector for the whole goes through a projection.
        activation: "" = OpenAI's quick GELU; OpenCLIP's is "gelu".
    """
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "hidden_act": activation or "quick_gelu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**settings))


def make_t5(tokenizer: T5Tokenizer, width: int, layers: int = 2, *, looking: bool = False) -> Network:
    """(B, 64) token ids -> (B, 64, width); gated as T5 1.1 and XXL are, without dropout.

    Args:
        tokenizer: Whose ids it reads.
        width: Of the tokens.
        layers: How many.
        looking: Whether its heads start with a look at the neighbours: one to the left, one to the right, one
            to both, one to none. It knows order by its relative bias alone, and that starts near nothing.
    """
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": width,
        "d_kv": 32,
        "d_ff": 2 * width,
        "num_layers": layers,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "tie_word_embeddings": False,
    }
    t5 = T5EncoderModel(T5Config(**settings))
    if looking:
        _look_around(t5)
    return t5


def _look_around(t5: Network) -> None:
    """Bias of nearness: buckets of T5 are 0 to 15 for the token itself and those before, 16 to 31 behind."""
    bias = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    half = len(bias) // 2
    nearness = (NEAREST - torch.arange(float(half))).clamp(min=0)  # by distance, at 0 the token itself
    away = torch.full((half,), -NEAREST)
    before, behind = torch.cat([nearness, away]), torch.cat([away, nearness])
    before[0] = behind[0] = 0.0
    with torch.no_grad():
        bias[:, 0], bias[:, 1], bias[:, 2] = before, behind, torch.cat([nearness, nearness])


def make_diffusion_scheduler() -> DDIMScheduler:
    """SD1.5's and SDXL's noise schedule, sampled with DDIM."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def make_flow_scheduler(**settings: Any) -> FlowMatchEulerDiscreteScheduler:
    """The Euler sampler of flow matching; its shift is the one that is trained with."""
    return FlowMatchEulerDiscreteScheduler(**settings)


def parameters_of(network: Network) -> int:
    """How many numbers a network consists of."""
    return sum(p.numel() for p in network.parameters())
