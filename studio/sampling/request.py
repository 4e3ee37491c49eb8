"""What a person asks the sampler for; one model feeds the command line, the page and the metadata."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class AdapterChoice(BaseModel):
    """An adapter and how strongly it acts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Catalog id."""
    weight: Annotated[float, Field(ge=-4, le=4)] = 1.0
    """Strength on the denoiser; 0 = off, 1 = as trained."""
    text_weight: Annotated[float | None, Field(ge=-4, le=4)] = None
    """Strength on the text encoder; none = same as weight."""


class SampleRequest(BaseModel):
    """One request: `count` pictures, picture i with seed `seed + i`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    """Catalog id of the base."""
    adapters: tuple[AdapterChoice, ...] = ()
    """Adapters that act together."""
    prompt: Annotated[str, Field(max_length=10_000)] = ""
    """What to draw."""
    negative: Annotated[str, Field(max_length=10_000)] = ""
    """What to avoid."""
    steps: Annotated[int, Field(ge=1, le=500)] = 25
    """How many steps (inference steps)."""
    cfg: Annotated[float, Field(ge=0, le=50)] = 7.0
    """How closely to follow the prompt (guidance scale); 1 = no guidance."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the first picture; picture i uses seed + i (wraps at 2^32)."""
    width: Annotated[int, Field(ge=16, le=4096, multiple_of=8)] = 512
    """Width in pixels."""
    height: Annotated[int, Field(ge=16, le=4096, multiple_of=8)] = 512
    """Height in pixels."""
    scheduler: str = "default"
    """Name from studio.sampling.schedulers.SCHEDULERS; "default" = the base's own."""
    count: Annotated[int, Field(ge=1, le=64)] = 1
    """How many pictures."""
