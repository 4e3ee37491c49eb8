"""The families we can train, as a table that costs no import.

`FAMILIES[name].load_class()` imports torch and diffusers; everything else here does not.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.families.base import Family


@dataclass(frozen=True)
class FamilyInfo:
    """What the rest of the house may know about a family without loading it."""

    name: str
    label: str  # as people call it
    module: str  # "trainers.families.sd:StableDiffusion15"
    pipeline: str  # diffusers class that a folder's model_index.json names
    default_base: str  # hub id
    cross_attention_dim: (
        int  # width of the text the real denoiser reads; with `denoiser` it tells families apart
    )
    resolution: int  # native side in pixels
    bucket_multiple: int  # pixels
    text_encoders: tuple[str, ...]  # pipeline attributes
    denoiser: str = "unet"  # pipeline attribute
    denoiser_class: str = "UNet2DConditionModel"  # as its config.json says
    latent_channels: int = 4  # of the VAE
    tokenizers: tuple[str, ...] = ("tokenizer",)  # pipeline attributes, one for each text encoder
    optional: tuple[str, ...] = ()  # components that a base may lack
    flow: bool = False  # trained by flow matching, on times 0 to 1; else diffusion over 1000 steps
    guidance_input: bool = False  # some bases take the guidance scale as an input and need no second call
    unguided: tuple[str, ...] = ()  # variants that have no such input all the same
    t5: str = ""  # text encoder that adapter.train_t5 trains

    def load_class(self) -> "type[Family]":
        """Import and return the family's class (torch, diffusers)."""
        module, _, attribute = self.module.partition(":")
        return getattr(import_module(module), attribute)


FAMILIES: dict[str, FamilyInfo] = {
    family.name: family
    for family in (
        FamilyInfo(
            name="sd15",
            label="Stable Diffusion 1.5",
            module="trainers.families.sd:StableDiffusion15",
            pipeline="StableDiffusionPipeline",
            default_base="stable-diffusion-v1-5/stable-diffusion-v1-5",
            cross_attention_dim=768,
            resolution=512,
            bucket_multiple=64,
            text_encoders=("text_encoder",),
        ),
        FamilyInfo(
            name="sd21",
            label="Stable Diffusion 2.1",
            module="trainers.families.sd:StableDiffusion21",
            pipeline="StableDiffusionPipeline",
            default_base="stabilityai/stable-diffusion-2-1",
            cross_attention_dim=1024,
            resolution=768,
            bucket_multiple=64,
            text_encoders=("text_encoder",),
        ),
        FamilyInfo(
            name="sdxl",
            label="Stable Diffusion XL",
            module="trainers.families.sdxl:StableDiffusionXL",
            pipeline="StableDiffusionXLPipeline",
            default_base="stabilityai/stable-diffusion-xl-base-1.0",
            cross_attention_dim=2048,
            resolution=1024,
            bucket_multiple=64,
            text_encoders=("text_encoder", "text_encoder_2"),
            tokenizers=("tokenizer", "tokenizer_2"),
        ),
        FamilyInfo(
            name="sd35",
            label="Stable Diffusion 3.5",
            module="trainers.families.sd35:StableDiffusion35",
            pipeline="StableDiffusion3Pipeline",
            default_base="stabilityai/stable-diffusion-3.5-medium",
            cross_attention_dim=4096,
            resolution=1024,
            bucket_multiple=64,
            text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
            denoiser="transformer",
            denoiser_class="SD3Transformer2DModel",
            latent_channels=16,
            tokenizers=("tokenizer", "tokenizer_2", "tokenizer_3"),
            optional=("text_encoder_3", "tokenizer_3"),
            flow=True,
            t5="text_encoder_3",
        ),
        FamilyInfo(
            name="flux1",
            label="FLUX.1",
            module="trainers.families.flux1:Flux1",
            pipeline="FluxPipeline",
            default_base="black-forest-labs/FLUX.1-dev",
            cross_attention_dim=4096,
            resolution=1024,
            bucket_multiple=64,
            text_encoders=("text_encoder", "text_encoder_2"),
            denoiser="transformer",
            denoiser_class="FluxTransformer2DModel",
            latent_channels=16,
            tokenizers=("tokenizer", "tokenizer_2"),
            flow=True,
            guidance_input=True,
            unguided=("schnell",),
            t5="text_encoder_2",
        ),
    )
}
