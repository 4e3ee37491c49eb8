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
    cross_attention_dim: int  # of the real base: tells families apart
    resolution: int  # native side in pixels
    bucket_multiple: int  # pixels
    text_encoders: tuple[str, ...]  # pipeline attributes

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
    )
}
