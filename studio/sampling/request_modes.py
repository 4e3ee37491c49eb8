"""Parts of a request that have values of their own."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class HiresChoice(BaseModel):
    """A second pass at a larger size, so that large pictures keep one composition."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: Annotated[float, Field(gt=1, le=4)] = 2.0
    """How many times wider and higher."""
    steps: Annotated[int, Field(ge=0, le=500)] = 0
    """Steps of the second pass; 0 = as many as the first."""
    strength: Annotated[float, Field(gt=0, le=1)] = 0.5
    """How much the second pass may change, 0 to 1."""
    upscaler: Literal["lanczos", "latent"] = "lanczos"
    """Enlarge the picture (lanczos, sharp) or the latents (latent: faster, needs a strength above 0.5)."""


class UpscaleChoice(BaseModel):
    """Enlarge a picture and draw it anew in overlapping tiles of the request's size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: Annotated[float, Field(ge=1, le=8)] = 2.0
    """How many times wider and higher than the given picture."""
    overlap: Annotated[int, Field(ge=0, le=512)] = 64
    """Pixels that neighbouring tiles share; they are blended there."""
