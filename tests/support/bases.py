"""Tiny real base models, saved as diffusers folders."""

import json
from pathlib import Path
from typing import Any

import torch

from trainers.families import FAMILIES, toy


def save_base(family: str, folder: Path, seed: int = 0) -> Path:
    """`FAMILIES[family]` at toy size as a diffusers folder."""
    return save_parts(FAMILIES[family].load_class().tiny(seed), FAMILIES[family].pipeline, folder)


def save_parts(parts: dict[str, Any], pipeline: str, folder: Path) -> Path:
    """Components as a diffusers folder, model_index.json included."""
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.42.1"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    index |= {
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    index["image_encoder"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def refiner_parts(seed: int = 0) -> dict[str, Any]:
    """SDXL's refiner at toy size: the second text encoder alone, five numbers beside the pooled text."""
    parts = FAMILIES["sdxl"].load_class().tiny(seed)
    second = parts["text_encoder_2"].config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        parts["unet"] = toy.unet(
            cross_attention_dim=second.hidden_size, attention_head_dim=(2, 4), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=second.projection_dim + 5 * 8,
        )  # fmt: skip
    return {name: part for name, part in parts.items() if name not in ("text_encoder", "tokenizer")}


def save_refiner(folder: Path, seed: int = 0) -> Path:
    """The toy refiner as a diffusers folder, its index as published."""
    save_parts(refiner_parts(seed), "StableDiffusionXLImg2ImgPipeline", folder)
    file = folder / "model_index.json"
    index = json.loads(file.read_text()) | {
        "text_encoder": [None, None], "tokenizer": [None, None],
        "requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False,
    }  # fmt: skip
    file.write_text(json.dumps(index))
    return folder


def own_config(part: Any) -> dict[str, Any]:
    """A model's config without diffusers' notes on it, which would put changed values back to the default."""
    return {name: value for name, value in part.config.items() if not name.startswith("_")}


def inpainting_parts(family: str, seed: int = 0) -> dict[str, Any]:
    """A toy base that reads a mask beside the latents: a UNet of nine channels, or FLUX.1 Fill."""
    parts = FAMILIES[family].load_class().tiny(seed)
    name = FAMILIES[family].denoiser
    config = own_config(parts[name])
    if name == "unet":
        config["in_channels"] = 9
    else:
        vae = parts["vae"].config
        latent, factor = vae.latent_channels, 2 ** (len(vae.block_out_channels) - 1)
        config |= {"in_channels": 4 * (2 * latent + factor**2), "out_channels": 4 * latent}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        parts[name] = type(parts[name]).from_config(config).eval()
    return parts


def wide_parts(family: str, seed: int = 0) -> dict[str, Any]:
    """A toy base with 16 latent channels, which some pipelines of diffusers take for granted."""
    parts = FAMILIES[family].load_class().tiny(seed)
    vae, transformer = own_config(parts["vae"]), own_config(parts["transformer"])
    vae["latent_channels"] = transformer["in_channels"] = transformer["out_channels"] = 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        parts["vae"] = type(parts["vae"]).from_config(vae).eval()
        parts["transformer"] = type(parts["transformer"]).from_config(transformer).eval()
    return parts


def lcm_parts(family: str, seed: int = 0) -> dict[str, Any]:
    """A toy base distilled with guidance as an input of its UNet, and its scheduler."""
    from diffusers.schedulers.scheduling_lcm import LCMScheduler

    parts = FAMILIES[family].load_class().tiny(seed)
    config = own_config(parts["unet"]) | {"time_cond_proj_dim": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        parts["unet"] = type(parts["unet"]).from_config(config).eval()
    parts["scheduler"] = LCMScheduler.from_config(parts["scheduler"].config)
    return parts
