"""Components of the real classes at toy size, for tests: whole pipelines that load in a second.

Weights are drawn from torch's global generator: whoever calls seeds it first.
"""

from typing import Any, cast

WIDTH = 32  # of text and of most else


def unet(**config: Any) -> Any:
    """UNet of two levels over 4 latent channels, about 200k parameters."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    common: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**common | config).eval()


def vae(**config: Any) -> Any:
    """Autoencoder of factor 4."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    common: dict[str, Any] = {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 32,
    }
    return AutoencoderKL(**common | config).eval()


def clip(tokenizer: Any, *, width: int = WIDTH, projection: int = 0, **config: Any) -> Any:
    """CLIP text encoder of two layers; with its projection when that has a width."""
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if projection:
        common["projection_dim"] = projection
    cls: Any = CLIPTextModelWithProjection if projection else CLIPTextModel
    return cls(CLIPTextConfig(**common | config)).eval()


def t5(tokenizer: Any, *, width: int = WIDTH) -> Any:
    """T5 encoder of two layers, gated as version 1.1 and XXL are."""
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    config: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": width,
        "d_kv": 16,
        "d_ff": 2 * width,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }
    return T5EncoderModel(T5Config(**config)).eval()


def diffusion_scheduler(prediction: str = "epsilon") -> Any:
    """DDIM with the noise schedule of Stable Diffusion."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=cast(Any, prediction),
    )


def flow_scheduler(**config: Any) -> Any:
    """The Euler sampler of flow matching."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def clip_tokenizer(**config: Any) -> Any:
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
    return cast(Any, CLIPTokenizer)(vocab=vocabulary, merges=merges, model_max_length=77, **config)


def t5_tokenizer() -> Any:
    """A T5Tokenizer over single characters of Latin-1 and a few pieces; others are unknown to it."""
    from transformers.models.t5.tokenization_t5 import T5Tokenizer

    pieces = ["▁", "re", "th", "▁a"]
    pieces += [chr(code) for code in (*range(33, 127), *range(161, 256))]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in pieces)]
    return cast(Any, T5Tokenizer)(vocab=vocabulary, extra_ids=100, model_max_length=512)
